//! `cargo xtask ci`: the checks that every change passes.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::{dependencies, metadata};

/// Formatting, lints, dependency table, then the test command of the README.
pub fn ci() -> Result<()> {
    run("cargo", &["fmt", "--all", "--check"])?;
    dependencies::check(&metadata()?)?;
    run(
        "cargo",
        &[
            "clippy",
            "--release",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ],
    )?;
    run("cargo", &["test", "--release", "--workspace", "--locked"])
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    println!("$ {program} {}", arguments.join(" "));
    let _start = Instant::now();
    let status = Command::new(program)
        .args(arguments)
        .status()
        .with_context(|| format!("starting {program}"))?;
    ensure!(
        status.success(),
        "`{program} {}` failed: {status}",
        arguments.join(" ")
    );
    Ok(())
}
