//! Work on many images that stops, and goes on when the same is asked for again.

use fs_err as fs;
use std::path::Path;

use crate::{TINY, done, drawn, refused};

/// Eight people and two files that are none, `people/a/b` and `people/a_b` among them.
fn people(at: &Path) {
    fs::create_dir_all(at.join("people/a")).expect("a folder");
    let query = fs::read_dir(drawn().join("market/query")).expect("synthetic people");
    let mut images: Vec<_> = query
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "jpg"))
        .collect();
    images.sort();
    let names = ["a/b", "a_b", "c", "d", "e", "f", "g", "h"];
    for (name, image) in names.iter().zip(&images) {
        let to = at.join(format!("people/{name}.jpg"));
        fs::copy(image, to).expect("an image");
    }
    for name in ["broken", "text"] {
        fs::write(at.join(format!("people/{name}.jpg")), "not an image").expect("a file");
    }
}

/// Leaves so many whole lines of a file, and a part of the next.
fn cut(path: &Path, lines: usize) {
    let text = fs::read_to_string(path).expect("what is done");
    let whole: usize = text.split_inclusive('\n').take(lines).map(str::len).sum();
    assert!(
        whole + 5 < text.len(),
        "{} has too few lines",
        path.display()
    );
    fs::write(path, &text[..whole + 5]).expect("a file");
}

#[test]
fn predictions_resume_after_a_stop() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    people(at);
    let data = drawn().to_string_lossy().into_owned();
    let train = [
        "finetune",
        "attributes",
        "attributes-mini",
        "--data",
        &data,
        "--out",
        "model",
    ];
    let small = [
        "model.backbone=swin-pico",
        "model.size=[64,32]",
        "run.batch=8",
        "run.steps=1",
        "run.eval_every=0",
    ];
    let small: Vec<&str> = small.iter().flat_map(|set| ["--set", *set]).collect();
    done(at, &[&train[..], &small].concat());

    let predict = |out: &'static str, more: &[&'static str]| -> Vec<&'static str> {
        let first = ["predict", "attributes", "people", "--model", "model"];
        [&first[..], &["--out", out, "--draw", "drawn"], more].concat()
    };
    done(at, &predict("whole.jsonl", &["--keep-going"]));
    let expected = fs::read(at.join("whole.jsonl")).expect("predictions");
    assert_eq!(expected.iter().filter(|byte| **byte == b'\n').count(), 8);
    assert!(!at.join("whole.jsonl.partial").exists());
    for picture in ["a/b", "a_b", "h"] {
        let path = at.join(format!("drawn/{picture}.png"));
        assert!(path.is_file(), "{picture} is not drawn");
    }

    // Too many of the images are none: what was done is kept under a name that says so.
    refused(at, &predict("p.jsonl", &[]), &["2 of 10", "--keep-going"]);
    let partial = at.join("p.jsonl.partial");
    assert!(!at.join("p.jsonl").exists() && partial.is_file());
    cut(&partial, 6);
    refused(
        at,
        &predict("p.jsonl", &["--set", "threshold=0.4"]),
        &["p.jsonl.partial", "set was", "remove the file"],
    );
    let killed = [".p.jsonl.4294967295-0.tmp", ".p.jsonl2.4294967295-0.tmp"];
    for name in killed {
        fs::write(at.join(name), "").expect("a file");
    }
    done(at, &predict("p.jsonl", &["--keep-going"]));
    assert!(fs::read(at.join("p.jsonl")).expect("predictions") == expected);
    assert!(!partial.exists());
    // That of another file may be one that is being written.
    assert_eq!(killed.map(|name| at.join(name).exists()), [false, true]);

    // Nothing was done, so nothing is kept that another --draw would be refused for.
    fs::write(at.join("file"), "").expect("a file");
    let drawn_to_file = ["--out", "d.jsonl", "--draw", "file"];
    let arguments = [
        &["predict", "attributes", "people", "--model", "model"][..],
        &drawn_to_file,
    ];
    refused(
        at,
        &arguments.concat(),
        &["--draw file: expected a folder for pictures"],
    );
    assert!(!at.join("d.jsonl.partial").exists());

    // Jobs that each do a part of the images.
    for (out, part) in [("0.jsonl", "0/3"), ("1.jsonl", "1/3"), ("2.jsonl", "2/3")] {
        done(at, &predict(out, &["--keep-going", "--shard", part]));
    }
    let merge = ["merge", "0.jsonl", "1.jsonl", "2.jsonl", "--out"];
    done(at, &[&merge[..], &["merged.jsonl"]].concat());
    assert!(fs::read(at.join("merged.jsonl")).expect("predictions") == expected);
    refused(at, &[&merge[..], &["merged.npy"]].concat(), &["the format"]);
    let twice = ["merge", "0.jsonl", "0.jsonl", "--out", "twice.jsonl"];
    refused(at, &twice, &["other images", "again"]);
}

#[test]
fn features_resume_after_a_stop() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    people(at);
    let images = drawn().join("unlabeled").to_string_lossy().into_owned();
    let sets = [
        "method=dino".to_owned(),
        format!("data.images={images:?}"),
        "run.steps=0".to_owned(),
    ];
    let mut arguments = vec!["pretrain", "demo", "--out", "run"];
    arguments.extend_from_slice(TINY);
    arguments.extend(sets.iter().flat_map(|set| ["--set", set.as_str()]));
    done(at, &arguments);

    let embed = |out: &'static str, more: &[&'static str]| -> Vec<&'static str> {
        let first = ["embed", "people", "--model", "run", "--out", out];
        [&first[..], more].concat()
    };
    // Another ending is refused before any work.
    refused(at, &embed("f.txt", &[]), &["f.txt", ".npy", "found .txt"]);
    assert!(!at.join("f.txt.partial").exists());

    done(at, &embed("whole.npy", &["--keep-going"]));
    let read = |name: &str| fs::read(at.join(name)).expect("features");
    for (out, whole) in [("f.npy", "whole.npy"), ("f.parquet", "whole.parquet")] {
        refused(at, &embed(out, &[]), &["2 of 10", "--keep-going"]);
        let partial = at.join(format!("{out}.partial"));
        assert!(!at.join(out).exists() && partial.is_file());
        cut(&partial, 4);
        refused(at, &embed(out, &["--prompt", "part"]), &["prompt was"]);
        done(at, &embed(out, &["--keep-going"]));
        done(at, &embed(whole, &["--keep-going"]));
        assert!(read(out) == read(whole), "{out} differs");
        assert!(!partial.exists());
    }
    let keys = fs::read_to_string(at.join("f.npy.keys.txt")).expect("keys");
    assert_eq!(keys, "a/b\na_b\nc\nd\ne\nf\ng\nh\n");

    // Jobs that each do a part of the images.
    for ending in ["npy", "parquet"] {
        let parts = [0, 1, 2].map(|part| format!("part-{part}.{ending}"));
        for (index, part) in parts.iter().enumerate() {
            let shard = format!("{index}/3");
            let mut arguments = vec!["embed", "people", "--model", "run", "--keep-going"];
            arguments.extend(["--out", part, "--shard", &shard]);
            done(at, &arguments);
        }
        let merged = format!("merged.{ending}");
        let mut merge = vec!["merge", "--out", &merged];
        merge.extend(parts.iter().map(String::as_str));
        done(at, &merge);
        let whole = format!("whole.{ending}");
        assert!(read(&merged) == read(&whole), "{ending} differs");
    }
    assert!(read("merged.npy.keys.txt") == read("whole.npy.keys.txt"));
}
