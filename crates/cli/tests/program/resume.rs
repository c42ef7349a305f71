//! A run that is killed and resumed is the run that was not.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::{TINY, command, done, drawn};

/// Losses by step; a step that was taken again after a kill counts as it was taken last.
fn losses(run: &Path) -> BTreeMap<u64, String> {
    let log = fs_err::read_to_string(run.join("metrics.jsonl")).expect("a log");
    log.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .map(|line| {
            let losses = line
                .as_object()
                .expect("an object")
                .iter()
                .filter(|(key, _)| key.starts_with("loss"));
            let losses: Vec<String> = losses
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            (line["step"].as_u64().expect("a step"), losses.join(" "))
        })
        .collect()
}

#[test]
fn a_killed_pretraining_resumes_to_the_bit() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (images, labels) = (drawn().join("unlabeled"), folder.path().join("labels"));
    let (images, labels) = (
        images.to_string_lossy().into_owned(),
        labels.to_string_lossy().into_owned(),
    );
    done(
        folder.path(),
        &["label", &images, "--out", &labels, "--grid", "8x4"],
    );

    let sets = [
        format!("data.images={images:?}"),
        format!("data.labels={labels:?}"),
    ];
    let start = |out: &str| {
        let mut arguments = vec!["pretrain", "demo", "--threads", "1", "--out", out];
        arguments.extend_from_slice(TINY);
        for set in &sets {
            arguments.extend_from_slice(&["--set", set]);
        }
        arguments.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let whole = start("whole");
    done(
        folder.path(),
        &whole.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    let expected = losses(&folder.path().join("whole"));
    assert_eq!(expected.len(), 8);

    let run = folder.path().join("killed");
    let mut arguments = start("killed");
    for lines in [1, 3, 6] {
        let texts: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut child = command(folder.path(), &texts)
            .spawn()
            .expect("the program starts");
        let begun = Instant::now();
        // Killed as soon as the log shows that many steps, which may be in the middle of the next
        // one.
        while begun.elapsed() < Duration::from_secs(120)
            && child.try_wait().expect("a child").is_none()
        {
            let log = fs_err::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
            if log.lines().count() >= lines {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        child.kill().ok();
        child.wait().expect("a child");
        if run.join("run.toml").exists() {
            arguments = ["pretrain", "--resume", "killed", "--threads", "1"]
                .map(str::to_owned)
                .to_vec();
        }
    }
    // A kill in the middle of a save leaves its beginning; no process has that number.
    let left = run.join("checkpoints/.step-00000007.safetensors.4294967295-9.tmp");
    fs_err::write(&left, "half a checkpoint").expect("a file");
    done(
        folder.path(),
        &["pretrain", "--resume", "killed", "--threads", "1"],
    );
    assert!(
        cfg!(not(target_os = "linux")) || !left.exists(),
        "what a killed save left is still there"
    );
    assert_eq!(losses(&run), expected);
    let read = |run: &str| {
        fs_err::read(folder.path().join(run).join("backbone.safetensors")).expect("a backbone")
    };
    assert!(read("whole") == read("killed"), "the backbones differ");
}

#[test]
fn killed_labeling_resumes_to_the_byte() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let images = drawn().join("unlabeled").to_string_lossy().into_owned();
    done(
        folder.path(),
        &[
            "data",
            "pack",
            &images,
            "--out",
            "shards",
            "--per-shard",
            "8",
        ],
    );
    let label = |out: &str| {
        [
            "label",
            "shards",
            "--out",
            out,
            "--threads",
            "1",
            "--batch",
            "4",
        ]
        .map(str::to_owned)
        .to_vec()
    };
    let texts = label("whole");
    done(
        folder.path(),
        &texts.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    let files = |out: &str| {
        let mut files = BTreeMap::new();
        for entry in fs_err::read_dir(folder.path().join(out)).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path
                .extension()
                .is_some_and(|extension| extension == "parquet")
            {
                files.insert(
                    path.file_name().expect("a name").to_owned(),
                    fs_err::read(&path).expect("a file"),
                );
            }
        }
        files
    };
    let expected = files("whole");
    assert!(
        expected.len() > 2,
        "expected several shards, found {}",
        expected.len()
    );

    let texts = label("killed");
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    for shards in [0, 1, 2] {
        let mut child = command(folder.path(), &texts)
            .spawn()
            .expect("the program starts");
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(60)
            && child.try_wait().expect("a child").is_none()
        {
            if folder.path().join("killed").is_dir() && files("killed").len() > shards {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().ok();
        child.wait().expect("a child");
    }
    done(folder.path(), &texts);
    assert!(files("killed") == expected, "the labels differ");
}
