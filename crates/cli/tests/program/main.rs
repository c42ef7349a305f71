//! End-to-end tests: each runs the program as a user does.

#![allow(clippy::unwrap_used)]

mod bad_input;
mod bench;
mod console;
mod demo;
mod documents;
mod finetune;
mod flow;
mod interrupted;
mod layouts;
mod miniatures;
mod parquet;
mod ranks;
mod resume;
mod robust;
mod scenes;
mod serve;
mod weights;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The program with arguments, in a folder.
pub fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_clasp"));
    command.current_dir(folder).args(arguments).arg("--quiet");
    command
}

/// Runs the program; it has to end well. Returns what it printed.
#[track_caller]
pub fn done(folder: &Path, arguments: &[&str]) -> String {
    let output = command(folder, arguments)
        .output()
        .expect("the program starts");
    assert!(
        output.status.success(),
        "clasp {} ended with {}:\n{}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Runs the program; it has to end with status 2 and a message that holds every one of `words`.
#[track_caller]
pub fn refused(folder: &Path, arguments: &[&str], words: &[&str]) {
    let output: Output = command(folder, arguments)
        .output()
        .expect("the program starts");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(2),
        "clasp {}:\n{message}",
        arguments.join(" ")
    );
    assert!(
        !message.contains("panicked"),
        "clasp {}:\n{message}",
        arguments.join(" ")
    );
    for word in words {
        assert!(
            message.contains(word),
            "clasp {}: expected `{word}` in:\n{message}",
            arguments.join(" ")
        );
    }
}

/// A few drawn people, drawn once for all tests.
pub fn drawn() -> PathBuf {
    static DRAWN: std::sync::OnceLock<(tempfile::TempDir, PathBuf)> = std::sync::OnceLock::new();
    DRAWN
        .get_or_init(|| {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let path = folder.path().join("drawn");
            let out = path.to_string_lossy().into_owned();
            let arguments = [
                "synth",
                "--out",
                &out,
                "--size",
                "64x32",
                "--train-identities",
                "12",
                "--test-identities",
                "8",
                "--cameras",
                "2",
                "--shots",
                "2",
                "--unlabeled",
                "40",
                "--scenes",
                "8",
            ];
            done(folder.path(), &arguments);
            (folder, path)
        })
        .1
        .clone()
}

/// Overrides that make a recipe tiny: a run of it takes seconds.
pub const TINY: &[&str] = &[
    "--set",
    "model.backbone=swin-pico",
    "--set",
    "views.global_size=[64,32]",
    "--set",
    "views.local_size=[32,32]",
    "--set",
    "views.local=2",
    "--set",
    "projection_head.prototypes=8",
    "--set",
    "projection_head.hidden_dim=32",
    "--set",
    "projection_head.bottleneck_dim=16",
    "--set",
    "run.batch=4",
    "--set",
    "run.steps=8",
    "--set",
    "run.log_every=1",
    "--set",
    "run.save_every=2",
];
