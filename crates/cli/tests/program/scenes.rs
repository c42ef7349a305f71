//! Fine-tuning on scenes: detection and person search.

use std::path::Path;

use crate::finetune::arguments;
use crate::{command, done, drawn, refused};

/// The scenes with `change` done to the annotation of each split, in a folder of their own.
fn changed_scenes(folder: &Path, change: impl Fn(&mut serde_json::Value)) -> String {
    let drawn = drawn().join("scenes");
    for split in ["train", "val"] {
        let text = fs_err::read_to_string(drawn.join(format!("{split}.json"))).expect("scenes");
        let mut json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        for image in json["images"].as_array_mut().expect("images") {
            let name = image["file_name"].as_str().expect("a name");
            let path = drawn.join("images").join(name);
            image["file_name"] = path.to_string_lossy().into();
        }
        change(&mut json);
        fs_err::create_dir_all(folder).expect("a folder");
        fs_err::write(folder.join(format!("{split}.json")), json.to_string()).expect("a file");
    }
    folder.to_string_lossy().into_owned()
}

#[test]
fn boxes_that_do_not_fit_are_reported() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let train = |data: &str, out: &str| -> Vec<String> {
        let first = ["finetune", "detection", "detection-mini", "--data", data];
        let own = [
            "--out",
            out,
            "--set",
            "model.size=[64,64]",
            "--set",
            "task.width=32",
            "--set",
            "run.batch=2",
            "--set",
            "run.steps=2",
        ];
        { arguments(&first, &own).into_iter() }
            .map(str::to_owned)
            .collect()
    };
    let refused = |data: &str, expected: &[&str]| {
        let arguments = train(data, "refused");
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        refused(at, &arguments, expected);
        assert!(!at.join("refused/model.safetensors").exists());
    };
    let larger = changed_scenes(&at.join("larger"), |json| {
        for image in json["images"].as_array_mut().expect("images") {
            image["width"] = 4000.into();
        }
    });
    refused(&larger, &["4000 (height x width) as in the JSON"]);
    let empty = changed_scenes(&at.join("empty"), |json| {
        for one in json["annotations"].as_array_mut().expect("annotations") {
            one["ignore"] = 1.into();
        }
    });
    refused(&empty, &["at least one labeled person", "found 0"]);
    let gone = changed_scenes(&at.join("gone"), |json| {
        json["images"][0]["file_name"] = "gone.jpg".into();
    });
    refused(&gone, &["gone.jpg", "files are missing"]);
    let outside = changed_scenes(&at.join("outside"), |json| {
        json["annotations"][0]["bbox"] = serde_json::json!([-50, -50, 20, 20]);
    });
    let arguments = train(&outside, "outside-run");
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = command(at, &arguments)
        .output()
        .expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("covers nothing of its image"), "{said}");
}

#[test]
fn scenes_are_learned_too() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let scenes = drawn().join("scenes").to_string_lossy().into_owned();
    let images = drawn().join("scenes/images").to_string_lossy().into_owned();
    let first = [
        "finetune",
        "detection",
        "detection-mini",
        "--data",
        &scenes,
        "--out",
        "d",
    ];
    let own = [
        "--set",
        "model.size=[64,96]",
        "--set",
        "task.width=32",
        "--set",
        "run.batch=2",
        "--set",
        "run.checkpoint_selection=last",
        "--set",
        "run.steps=150",
        "--set",
        "optimizer.lr=3e-3",
        "--set",
        "run.save_every=1000",
    ];
    done(at, &arguments(&first, &own));
    let text = done(
        at,
        &["eval", "detection", "--model", "d", "--data", &scenes],
    );
    assert!(
        text.contains("MR^-2") && text.contains("reasonable"),
        "{text}"
    );
    let detect = ["predict", "detection", &images, "--model", "d"];
    let drawn_boxes = ["--out", "boxes.jsonl", "--draw", "pictures"];
    done(at, &[&detect[..], &drawn_boxes].concat());
    // People found in photos are what models of crops look at.
    let data = drawn().to_string_lossy().into_owned();
    let first = [
        "finetune",
        "pose",
        "pose-mini",
        "--data",
        &data,
        "--out",
        "pose",
    ];
    done(
        at,
        &arguments(
            &first,
            &["--set", "task.width=16", "--set", "run.eval_every=0"],
        ),
    );
    let found = [
        "--detector",
        "d",
        "--out",
        "people.jsonl",
        "--draw",
        "drawn",
    ];
    let people = ["predict", "pose", &images, "--model", "pose"];
    done(at, &[people.as_slice(), found.as_slice()].concat());
    let lines = fs_err::read_to_string(at.join("people.jsonl")).expect("predictions");
    let mut count = 0;
    for line in lines.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        for one in line["people"].as_array().expect("people") {
            let crop = |at: usize| one["crop"][at].as_f64().expect("a number");
            let joints = one["prediction"]["joints"].as_array().expect("joints");
            assert_eq!(joints.len(), 17);
            // Where the crop is, not in its corner.
            let x = joints[0]["x"].as_f64().expect("a number");
            assert!(
                x >= crop(0) - crop(2) && x <= crop(0) + 2.0 * crop(2),
                "{one}"
            );
            count += 1;
        }
    }
    assert!(count > 0, "no person was detected: {lines}");
    assert!(at.join("drawn").is_dir());
    refused(
        at,
        &[&detect[..], &["--detector", "d", "--out", "x.jsonl"]].concat(),
        &["detection detects people itself"],
    );
    refused(
        at,
        &[&people[..], &["--detector", "pose", "--out", "x.jsonl"]].concat(),
        &["expected a fine-tuned model of detection or search, found one of pose"],
    );
    refused(
        at,
        &[
            "eval",
            "detection",
            "--frozen",
            "--model",
            "d",
            "--data",
            &scenes,
        ],
        &["no frozen evaluation"],
    );
}
