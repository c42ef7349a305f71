//! The commands in README and documents are run, as far as their inputs can be made here in seconds.

use std::collections::BTreeSet;
use std::path::Path;

use crate::documents::{commands, documents, repository};
use crate::{TINY, command, done, drawn};

/// Options whose value is read.
const INPUT_OPTIONS: &[&str] = &[
    "--data",
    "--model",
    "--init",
    "--query",
    "--gallery",
    "--resume",
];

/// Commands whose first operands are read.
const READS_OPERANDS: &[&str] = &[
    "data", "label", "embed", "inspect", "import", "export", "search",
];

/// Commands that have tests of their own and take longer than a test of documents should.
const TOO_LONG: &[&str] = &["demo", "bench", "synth", "clip"];

/// Overrides that make every recipe tiny.
fn tiny(verb: &str, task: &str) -> Vec<&'static str> {
    let fine_tuning = "--set model.backbone=swin-pico --set model.size=[64,32] --set run.batch=8 \
                       --set run.steps=2 --set run.eval_every=0";
    match (verb, task) {
        ("pretrain", _) => TINY.to_vec(),
        ("finetune", "reid") => {
            let own = " --set task.instances=2";
            fine_tuning
                .split_whitespace()
                .chain(own.split_whitespace())
                .collect()
        }
        ("finetune", _) => fine_tuning.split_whitespace().collect(),
        _ => Vec::new(),
    }
}

/// Whether everything that the command reads is in the folder.
fn can_run(folder: &Path, words: &[String]) -> bool {
    let Some(verb) = words.get(1).map(String::as_str) else {
        return false;
    };
    // Two or more capitals stand for something that the reader has.
    let is_placeholder = |word: &String| {
        let capitals = word
            .chars()
            .all(|c| c.is_ascii_uppercase() || "-_[]".contains(c));
        capitals && word.len() > 1 && !folder.join(word).exists()
    };
    // A published checkpoint is of a larger network than the tiny recipes have.
    let starts_from_checkpoint = words.iter().any(|word| word.starts_with("model.init="));
    if TOO_LONG.contains(&verb) || starts_from_checkpoint || words.iter().any(is_placeholder) {
        return false;
    }
    let exists = |word: &str| folder.join(word.trim_matches(['[', ']'])).exists();
    let value_of = |option: &str| {
        let at = words.iter().position(|word| word == option)?;
        words.get(at + 1)
    };
    let options = INPUT_OPTIONS.iter().filter_map(|option| value_of(option));
    let settings = words.iter().filter_map(|word| {
        let (key, value) = word.split_once('=')?;
        let reads = [
            "data.images",
            "data.labels",
            "distillation.teacher",
            "boxes",
        ]
        .contains(&key);
        reads.then(|| value.trim_matches('"').to_owned())
    });
    let operands = words[2..]
        .iter()
        .take_while(|word| !word.starts_with('-'))
        .filter(|_| READS_OPERANDS.contains(&verb))
        .filter(|word| {
            !["check", "show", "stats", "compare", "safetensors", "onnx"].contains(&word.as_str())
        });
    options.chain(operands).all(|word| exists(word))
        && settings.into_iter().all(|value| exists(&value))
}

/// Copies the first files of a folder.
fn copy_some(from: &Path, to: &Path, count: usize) {
    fs_err::create_dir_all(to).expect("a folder");
    let mut files: Vec<_> = { fs_err::read_dir(from).expect("images") }
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    for file in files.into_iter().take(count) {
        let name = file.file_name().expect("a name");
        fs_err::copy(&file, to.join(name)).expect("a copy");
    }
}

#[test]
fn documented_commands_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let (people, market) = (drawn(), drawn().join("market"));
    copy_some(&people.join("unlabeled"), &at.join("photos"), 24);
    copy_some(&market.join("query"), &at.join("wanted"), 2);
    for part in ["query", "bounding_box_test", "bounding_box_train"] {
        copy_some(&market.join(part), &at.join("market1501").join(part), 48);
    }
    let weights = repository().join("crates/weights/tests/golden");
    for (published, name) in [
        ("export/swin.safetensors", "FILE"),
        ("solider_full.pth", "swin_base.pth"),
    ] {
        fs_err::copy(weights.join(published), at.join(name)).expect("a checkpoint");
    }

    let mut ran = BTreeSet::new();
    for (name, text) in documents() {
        for documented in commands(&name, &text) {
            let mut words = documented.words;
            if !can_run(at, &words) {
                continue;
            }
            // A CLIP of the hub is a download; the bundled one is the default.
            if let Some(hub) = words.iter().position(|word| word == "--clip") {
                words.drain(hub..hub + 2);
            }
            let task = words.get(2).cloned().unwrap_or_default();
            let more = tiny(&words[1], &task);
            let arguments: Vec<&str> = words[1..].iter().map(String::as_str).chain(more).collect();
            let output = command(at, &arguments)
                .output()
                .expect("the program starts");
            assert!(
                output.status.success(),
                "{}: {}\n{}",
                documented.place,
                words.join(" "),
                String::from_utf8_lossy(&output.stderr)
            );
            ran.insert(words[1].clone());
        }
    }
    // The rule above must not leave out what README walks through.
    let expected = [
        "embed", "eval", "export", "finetune", "import", "inspect", "label", "pretrain", "search",
    ];
    for verb in expected {
        assert!(
            ran.contains(verb),
            "no documented `clasp {verb}` was run, only {ran:?}"
        );
    }
    done(at, &["recipes"]);
}
