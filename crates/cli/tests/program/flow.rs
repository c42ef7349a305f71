//! The way from images to metrics, command by command, in the smallest form.

use crate::{TINY, command, done, drawn, refused};

#[test]
fn every_verb_says_what_it_is_for() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = command(folder.path(), &["--help"])
        .output()
        .expect("the program starts");
    let help = String::from_utf8_lossy(&output.stdout);
    for name in [
        "demo", "synth", "data", "clip", "label", "pretrain", "finetune", "eval", "predict",
        "search", "embed", "inspect", "bench",
    ] {
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(name)),
            "{name} is not in:\n{help}"
        );
        let output = command(folder.path(), &[name, "--help"])
            .output()
            .expect("the program starts");
        assert!(output.status.success(), "clasp {name} --help");
    }
}

#[test]
fn label_pretrain_evaluate_embed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let data = drawn().to_string_lossy().into_owned();
    let images = drawn().join("unlabeled").to_string_lossy().into_owned();
    let told = done(at, &["label", &images, "--out", "labels", "--grid", "8x4"]);
    let next = format!("clasp label show labels {images};");
    assert!(told.contains(&next), "{told}");
    done(
        at,
        &[
            "label",
            "show",
            "labels",
            &images,
            "--out",
            "sheet.png",
            "--count",
            "4",
        ],
    );
    assert!(at.join("sheet.png").metadata().expect("a sheet").len() > 1000);
    // Another precision is another setting, and changes next to nothing.
    let bf16 = |out: &'static str| -> Vec<&str> {
        let fixed = ["label", &images, "--grid", "8x4", "--precision", "bf16"];
        fixed.into_iter().chain(["--out", out]).collect()
    };
    refused(at, &bf16("labels"), &["precision", "other settings"]);
    done(at, &bf16("rounded"));
    let text = done(at, &["label", "compare", "labels", "rounded", "--json"]);
    let agreement: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        (&agreement["images"], &agreement["alone"]),
        (&40.into(), &0.into())
    );
    assert!(
        agreement["positions"]
            .as_f64()
            .is_some_and(|share| share > 0.97),
        "{text}"
    );

    // How right the labels are, whichever comes first; the truth itself is right.
    let truth = drawn().join("truth").to_string_lossy().into_owned();
    let truth = truth.as_str();
    for pair in [["labels", truth], [truth, "labels"], [truth, truth]] {
        let text = done(at, &["label", "compare", pair[0], pair[1], "--json"]);
        let found: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(found["images"], 40, "{text}");
        let attributes = found["attributes"].as_array().expect("attributes");
        assert_eq!(attributes.len(), 14, "{text}");
        let right = |a: &serde_json::Value| a["off"] == true || a["right"] == 1.0;
        assert_eq!(attributes.iter().all(right), pair[0] == pair[1], "{text}");
    }

    // Status 1 only says that something is hardly ever chosen, which is so in a few images.
    let stats = command(at, &["label", "stats", "labels", "--json"])
        .output()
        .expect("the program starts");
    assert!(
        matches!(stats.status.code(), Some(0 | 1)),
        "{}",
        String::from_utf8_lossy(&stats.stderr)
    );

    for method in ["dino", "clasp"] {
        let mut arguments = vec![
            "pretrain".to_owned(),
            "demo".to_owned(),
            "--out".to_owned(),
            method.to_owned(),
        ];
        arguments.extend(TINY.iter().map(|text| (*text).to_owned()));
        for set in [
            format!("method={method}"),
            format!("data.images={images:?}"),
            "data.labels=labels".to_owned(),
        ] {
            arguments.extend(["--set".to_owned(), set]);
        }
        done(
            at,
            &arguments.iter().map(String::as_str).collect::<Vec<_>>(),
        );
    }

    // k-means labels by a backbone of ours, and SOLIDER on them.
    done(
        at,
        &[
            "label", &images, "--out", "kmeans", "--kmeans", "dino", "--grid", "8x4",
        ],
    );
    let mut arguments = vec![
        "pretrain".to_owned(),
        "demo".to_owned(),
        "--out".to_owned(),
        "solider".to_owned(),
    ];
    arguments.extend(TINY.iter().map(|text| (*text).to_owned()));
    for set in [
        "method=solider".to_owned(),
        format!("data.images={images:?}"),
        "data.labels=kmeans".to_owned(),
    ] {
        arguments.extend(["--set".to_owned(), set]);
    }
    done(
        at,
        &arguments.iter().map(String::as_str).collect::<Vec<_>>(),
    );

    for task in ["reid", "attributes", "parsing", "pose"] {
        let result = done(
            at,
            &[
                "eval", task, "--frozen", "--data", &data, "--model", "clasp", "--prompt", "all",
                "--json",
            ],
        );
        let result: serde_json::Value = serde_json::from_str(&result).expect("JSON");
        assert_eq!(
            result.as_array().map(Vec::len),
            Some(4),
            "{task}: three prompts and the default mix"
        );
    }
    done(
        at,
        &[
            "embed",
            &images,
            "--model",
            "clasp",
            "--out",
            "features.npy",
        ],
    );
    let bytes = fs_err::read(at.join("features.npy")).expect("features");
    assert!(bytes.starts_with(b"\x93NUMPY"));
    let keys = fs_err::read_to_string(at.join("features.npy.keys.txt")).expect("keys");
    assert_eq!(keys.lines().count(), 40);
    let text = done(at, &["inspect", "clasp"]);
    assert!(text.contains("swin-pico") && text.contains("moe"), "{text}");
}

/// Labels that a person corrects are learned, reported, and taken back.
#[test]
fn corrected_labels_are_learned() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let images = drawn().join("unlabeled").to_string_lossy().into_owned();
    done(at, &["label", &images, "--out", "labels", "--grid", "8x4"]);
    let train = |out: &str| {
        let set = format!("data.images={images:?}");
        let mut arguments = vec!["pretrain", "demo", "--threads", "1", "--out", out];
        arguments.extend_from_slice(TINY);
        arguments.extend(["--set", &set, "--set", "data.labels=labels"]);
        done(at, &arguments);
        fs_err::read(at.join(out).join("backbone.safetensors")).expect("a backbone")
    };
    let before = train("before");
    let stats = || {
        let text = done(at, &["label", "stats", "labels", "--json"]);
        let stats: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        stats["corrections"].clone()
    };
    let label_file = fs_err::read(at.join("labels/unlabeled-000.parquet")).expect("labels");
    let text = done(at, &["label", "check", "labels", &images, "--json"]);
    assert!(text.contains("\"unused_corrections\": []"), "{text}");
    let key = "00000000".to_owned();
    let correct = |more: &[&str]| {
        let mut arguments = vec!["label", "correct", "labels", &key];
        arguments.extend_from_slice(more);
        done(at, &arguments)
    };
    correct(&["--attribute", "gender=female", "--part", "3,2=head"]);
    let text = correct(&["--attribute", "glasses=yes", "--part", "3,2="]);
    assert!(
        text.contains("2 attributes and 1 position corrected"),
        "{text}"
    );
    assert_eq!(
        stats(),
        serde_json::json!({"images": 1, "attributes": 2, "positions": 1, "unused": []})
    );
    refused(
        at,
        &["label", "correct", "labels", &key, "--attribute", "hat=yes"],
        &["hat"],
    );
    refused(
        at,
        &["label", "correct", "labels", "nobody", "--clear"],
        &["nobody", "key"],
    );
    refused(
        at,
        &["label", "correct", "labels", &key],
        &["--attribute NAME=VALUE"],
    );
    assert_ne!(before, train("after"));
    correct(&["--clear"]);
    assert_eq!(stats()["images"], 0);
    assert_eq!(before, train("again"));
    let unchanged = fs_err::read(at.join("labels/unlabeled-000.parquet")).expect("labels");
    assert!(unchanged == label_file);
}
