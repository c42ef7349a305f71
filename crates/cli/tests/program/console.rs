//! The commands in README and documents are run, as far as their inputs can be made here in
//! seconds.

use std::collections::BTreeSet;
use std::path::Path;

use crate::documents::{commands, documents, files, repository};
use crate::{TINY, command, done, drawn};

/// Options whose value is read.
const INPUT_OPTIONS: &[&str] = &[
    "--data",
    "--model",
    "--init",
    "--query",
    "--gallery",
    "--resume",
    "--metrics",
];

/// Commands whose first operands are read.
const READS_OPERANDS: &[&str] = &[
    "data", "label", "embed", "merge", "inspect", "import", "export", "search",
];

/// Commands that have tests of their own and take longer than a test of documents should; a server
/// runs until it is stopped.
const TOO_LONG: &[&str] = &["demo", "bench", "synth", "clip", "serve"];

/// Overrides that make every recipe tiny.
fn tiny(name: &str, task: &str) -> Vec<&'static str> {
    let fine_tuning = "--set model.backbone=swin-pico --set model.size=[64,32] --set run.batch=8 \
                       --set run.steps=2 --set run.eval_every=0";
    match (name, task) {
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
    let Some(name) = words.get(1).map(String::as_str) else {
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
    if TOO_LONG.contains(&name) || starts_from_checkpoint || words.iter().any(is_placeholder) {
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
        .filter(|_| READS_OPERANDS.contains(&name))
        .filter(|word| {
            let actions = [
                "check",
                "show",
                "stats",
                "compare",
                "safetensors",
                "onnx",
                "hub",
            ];
            !actions.contains(&word.as_str())
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
    for name in expected {
        assert!(
            ran.contains(name),
            "no documented `clasp {name}` was run, only {ran:?}"
        );
    }
    done(at, &["recipes"]);
}

/// Keys of recipes in backticks or behind `--set`, as messages, comments and documents name them.
fn named_keys(text: &str) -> Vec<String> {
    let is_key = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_.".contains(c);
    ["`", "--set ", "--set '"]
        .iter()
        .flat_map(|before| text.split(before).skip(1))
        .filter_map(|rest| {
            let end = rest.find(|c: char| !is_key(c))?;
            let (key, after) = rest.split_at(end);
            let ends_as_key = ["`", "=", " = "].iter().any(|end| after.starts_with(end));
            (key.contains('.') && ends_as_key).then(|| key.to_owned())
        })
        .collect()
}

#[test]
fn keys_of_recipes_that_messages_and_documents_name_exist() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let list = done(folder.path(), &["recipes", "--json"]);
    let list: Vec<serde_json::Value> = serde_json::from_str(&list).expect("JSON");
    let mut keys = BTreeSet::new();
    for recipe in &list {
        let name = recipe["name"].as_str().expect("a name");
        let text = done(folder.path(), &["recipes", name, "--keys"]);
        keys.extend(
            text.lines()
                .filter_map(|line| Some(line.split_once(" = ")?.0.to_owned())),
        );
    }
    let sections: BTreeSet<&str> = keys
        .iter()
        .filter_map(|key| key.split('.').next())
        .collect();
    let files_of_runs = ["run.toml", "model.safetensors", "attributes.csv"];
    let mut texts = documents();
    // What tests write on purpose stands below.
    texts.extend(
        files("crates", "rs")
            .into_iter()
            .filter(|(name, _)| name.contains("/src/") && !name.ends_with("tests.rs"))
            .map(|(name, text)| {
                let code = text.split("#[cfg(test)]\nmod tests {").next();
                (name, code.unwrap_or_default().to_owned())
            }),
    );
    let mut named = 0;
    for (name, text) in texts {
        for key in named_keys(&text) {
            let section = key.split('.').next().unwrap_or_default();
            if !sections.contains(section) || files_of_runs.contains(&key.as_str()) {
                continue;
            }
            named += 1;
            assert!(keys.contains(&key), "{name}: no recipe has the key `{key}`");
        }
    }
    assert!(named > 30, "only {named} keys were found");
}
