//! Fine-tuning as a user does it: train, evaluate, predict, search; a killed run; wrong input.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::{command, done, drawn, refused};

/// Overrides that make a recipe tiny.
pub const TINY: &[&str] = &[
    "--set",
    "model.backbone=swin-pico",
    "--set",
    "model.size=[64,32]",
    "--set",
    "run.batch=8",
    "--set",
    "run.steps=6",
    "--set",
    "run.log_every=1",
    "--set",
    "run.save_every=2",
];

/// Arguments of a command with a tiny recipe between them.
pub fn arguments<'a>(first: &[&'a str], rest: &[&'a str]) -> Vec<&'a str> {
    [first, TINY, rest].concat()
}

#[test]
fn finetune_evaluate_predict_search() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let data = drawn().to_string_lossy().into_owned();
    let images = drawn().join("market/query").to_string_lossy().into_owned();
    let gallery = drawn()
        .join("market/bounding_box_test")
        .to_string_lossy()
        .into_owned();
    for task in ["reid", "attributes", "parsing", "pose"] {
        let recipe = format!("{task}-mini");
        let first = ["finetune", task, &recipe, "--data", &data, "--out", task];
        let own: &[&str] = match task {
            "reid" => &["--set", "task.instances=2"],
            "parsing" => &["--set", "task.width=16", "--set", "run.eval_every=0"],
            "pose" => &[
                "--set",
                "task.width=16",
                "--set",
                "run.eval_every=0",
                "--set",
                "model.strides=[4,2,1,1]",
            ],
            _ => &["--set", "run.eval_every=0"],
        };
        let text = done(at, &arguments(&first, own));
        assert!(
            text.contains("6 steps") && text.contains("model.safetensors"),
            "{text}"
        );
        // It ends with a metric, or says why there is none and what gives it.
        let ending = match task {
            "reid" => "no metric: the weights are those of the last step",
            "attributes" => "mA ",
            "parsing" => "mIoU ",
            _ => "AP ",
        };
        let next = format!("clasp eval {task} --data {data} --model {task}");
        assert!(text.contains(ending) && text.contains(&next), "{text}");
        let file = format!("{task}.onnx");
        let text = done(at, &["export", "onnx", task, "-o", &file]);
        assert!(text.contains("checked on 4 synthetic people"), "{text}");
        let text = done(
            at,
            &[
                "eval",
                task,
                "--model",
                task,
                "--data",
                &data,
                "--predictions",
                "p.out",
                "--json",
            ],
        );
        let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let metrics = report["metrics"].as_array().expect("metrics");
        assert!(metrics.len() > 1, "{text}");
        let first = &metrics[0];
        assert!(
            first["name"].is_string() && first["value"].is_number() && first["better"] == "higher",
            "{first}"
        );
        assert!(
            report["protocol"]
                .as_str()
                .expect("a protocol")
                .contains("fine-tuned")
        );
        // By two processes, and the metrics from what they wrote: the same to the byte.
        let evaluated = ["eval", task, "--model", task, "--data", &data];
        for (shard, out) in [("0/2", "0.jsonl"), ("1/2", "1.jsonl")] {
            done(
                at,
                &[&evaluated[..], &["--shard", shard, "--out", out]].concat(),
            );
        }
        let predictions = fs_err::read(at.join("p.out")).expect("predictions");
        let joined = [
            "--shards",
            "1.jsonl",
            "0.jsonl",
            "--predictions",
            "p.out",
            "--json",
        ];
        assert_eq!(done(at, &[&evaluated[..], &joined].concat()), text);
        assert!(fs_err::read(at.join("p.out")).expect("predictions") == predictions);
        let twice = [&evaluated[..], &["--shards", "0.jsonl", "0.jsonl"]].concat();
        refused(at, &twice, &["0.jsonl", "expected the shard from number"]);
        let plain = [
            "predict",
            task,
            &images,
            "--model",
            task,
            "--out",
            "lines.jsonl",
        ];
        let drawn = [&plain[..], &["--draw", "pictures"]].concat();
        let lines = match task {
            "reid" => {
                refused(at, &drawn, &["--draw", "clasp search"]);
                done(at, &plain)
            }
            _ => done(at, &drawn),
        };
        assert!(lines.contains("predictions in lines.jsonl"), "{lines}");
        let lines = fs_err::read_to_string(at.join("lines.jsonl")).expect("predictions");
        let line: serde_json::Value =
            serde_json::from_str(lines.lines().next().expect("a line")).expect("JSON");
        assert!(
            line["image"].is_string() && line["prediction"].is_object(),
            "{line}"
        );
    }
    done(
        at,
        &[
            "search",
            "--query",
            &images,
            "--gallery",
            &gallery,
            "--model",
            "reid",
            "--top",
            "3",
        ],
    );
    let matches = fs_err::read_to_string(at.join("matches.jsonl")).expect("matches");
    let line: serde_json::Value =
        serde_json::from_str(matches.lines().next().expect("a line")).expect("JSON");
    assert_eq!(line["matches"].as_array().map(Vec::len), Some(3));
    assert!(at.join("matches.png").metadata().expect("a sheet").len() > 1000);

    // Features of the gallery by two jobs instead of one.
    let embed = ["embed", &gallery, "--model", "reid"];
    for (shard, out) in [("0/2", "0.parquet"), ("1/2", "1.parquet")] {
        done(
            at,
            &[&embed[..], &["--shard", shard, "--out", out]].concat(),
        );
    }
    done(
        at,
        &["merge", "0.parquet", "1.parquet", "--out", "all.parquet"],
    );
    let search = ["search", "--query", &images, "--gallery", &gallery];
    let by_features = ["--model", "reid", "--gallery-features", "all.parquet"];
    let few = ["--top", "3", "--out", "by-features.jsonl"];
    done(at, &[&search[..], &by_features, &few].concat());
    let found = fs_err::read_to_string(at.join("by-features.jsonl"));
    assert_eq!(found.expect("matches"), matches);
    // Those of another size, or of images that are not in the gallery, cannot be compared.
    let size = [&by_features[..], &few, &["--size", "32x16"]].concat();
    let expected = ["all.parquet", "size 32x16, found", "size 64x32"];
    refused(at, &[&search[..], &size].concat(), &expected);
    let other = ["search", "--query", &images, "--gallery", &images];
    let expected = ["all.parquet", "which is not among them"];
    refused(at, &[&other[..], &by_features, &few].concat(), &expected);
    // Nor those of a part of them, unless that is said; nor those of the model's backbone.
    let half = ["--gallery-features", "0.parquet", "--model", "reid"];
    let half = [&search[..], &half, &few].concat();
    refused(at, &half, &["0.parquet", "the first one missing is"]);
    done(at, &[&half[..], &["--keep-going"]].concat());
    let prompt = ["--prompt", "part", "--out", "all.parquet"];
    done(at, &[&embed[..], &prompt].concat());
    let expected = ["all.parquet", "expected features of model"];
    refused(at, &[&search[..], &by_features, &few].concat(), &expected);

    // A threshold is kept with the model, and search marks by it.
    let calibrate = ["--model", "reid", "--data", &data, "--calibrate", "0.2"];
    let eval = [&["eval", "reid"], calibrate.as_slice()].concat();
    let output = command(at, &eval).output().expect("the program");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("written to reid/model.safetensors"), "{text}");
    // The metric comes first, beside chance, and the protocol last.
    let (first, last) = (text.lines().next(), text.lines().last());
    let first = first.unwrap_or_default();
    assert!(
        first.starts_with("mAP ") && first.contains(" (chance "),
        "{text}"
    );
    assert!(
        last.unwrap_or_default()
            .starts_with("Re-identification, fine-tuned")
    );
    // The images are those of the test set of the data that the model was trained for.
    let warned = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        warned.contains("warning: the threshold is chosen on the test images"),
        "{warned}"
    );
    assert!(done(at, &["inspect", "reid"]).contains("same person from cosine"));
    let both = ["--query", &images, "--gallery", &gallery, "--model", "reid"];
    let text = done(at, &[&["search"], both.as_slice()].concat());
    assert!(
        text.contains("above the threshold for the same person"),
        "{text}"
    );
    let matches = fs_err::read_to_string(at.join("matches.jsonl")).expect("matches");
    assert!(matches.contains("\"same\":true") && matches.contains("\"same\":false"));
    // At another size it is not that of these features.
    let resized = [&["search"], &both[..], &["--size", "32x16"]].concat();
    let output = command(at, &resized).output().expect("the program");
    let warned = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && warned.contains("measured at its own size"),
        "{warned}"
    );
    let matches = fs_err::read_to_string(at.join("matches.jsonl")).expect("matches");
    assert!(!matches.contains("\"same\":true"), "{matches}");
    // Nor is the model lost to a result.
    let lost = [&["search"], &both[..], &["--out", "reid/model.safetensors"]].concat();
    refused(
        at,
        &lost,
        &[
            "--out reid/model.safetensors",
            "found the model that is read",
        ],
    );
    // Where nothing is found there is no threshold, but the metric and a warning, in JSON too.
    let none = ["--model", "reid", "--data", &data, "--calibrate", "1e-9"];
    let eval = [&["eval", "reid", "--json"], none.as_slice()].concat();
    let output = command(at, &eval).output().expect("the program");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(report["metrics"][0]["value"].is_number(), "{report}");
    let stored = output.status.success();
    let expected = match stored {
        true => "too few to measure",
        false => "no threshold is stored",
    };
    assert!(report["notes"].to_string().contains(expected), "{report}");
    refused(
        at,
        &[
            "eval",
            "pose",
            "--model",
            "pose",
            "--data",
            &data,
            "--calibrate",
            "0.1",
        ],
        &["--calibrate is for reid, not for pose"],
    );
    // The threshold of other features than the model compares is not stored with it.
    for (option, value) in [
        ("--set", "task.flip_test=true"),
        ("--set", "feature=after"),
        ("--size", "32x16"),
        ("--precision", "bf16"),
    ] {
        let changed = [&["eval", "reid"], &calibrate[..], &[option, value]].concat();
        refused(at, &changed, &["as it is stored, found", option, "hint: "]);
    }
    let ranked = [&["eval", "reid"], &calibrate[..], &["--set", "rerank_k1=9"]].concat();
    done(at, &ranked);

    // Settings of the test can be changed, and only those.
    let text = done(
        at,
        &[
            "eval",
            "parsing",
            "--model",
            "parsing",
            "--data",
            &data,
            "--set",
            "flip_test=false",
        ],
    );
    assert!(!text.contains("flipped image"), "{text}");
    refused(
        at,
        &[
            "eval",
            "parsing",
            "--model",
            "parsing",
            "--data",
            &data,
            "--set",
            "flip_tst=false",
        ],
        &["flip_tst", "did you mean `flip_test`?"],
    );
    refused(
        at,
        &["eval", "pose", "--model", "reid", "--data", &data],
        &["a model of task pose", "one of task reid"],
    );
    refused(
        at,
        &["eval", "reid", "--model", ".", "--data", &data],
        &["clasp finetune"],
    );
    refused(
        at,
        &[
            "eval", "reid", "--model", "reid", "--data", &data, "--split", "train",
        ],
        &["split `train`", "val, test"],
    );
    refused(
        at,
        &[
            "predict",
            "pose",
            &images,
            "--model",
            "pose",
            "--out",
            "no/p.jsonl",
        ],
        &["no/p.jsonl", "there is no folder no"],
    );

    // One task's backbone starts another's; what is written for benchmarks is what is re-ranked.
    let first = ["finetune", "attributes", "attributes-mini", "--data", &data];
    let own = [
        "--init",
        "reid",
        "--out",
        "second",
        "--set",
        "run.checkpoint_selection=last",
    ];
    done(at, &arguments(&first, &own));
    let ranked = |file: &str, more: &[&str]| -> String {
        let first = ["eval", "reid", "--model", "reid", "--data", &data];
        let text = done(at, &[&first[..], &["--predictions", file], more].concat());
        assert!(text.contains(" skipped"), "{text}");
        fs_err::read_to_string(at.join(file)).expect("rankings")
    };
    assert!(ranked("plain.jsonl", &[]) != ranked("reranked.jsonl", &["--rerank"]));
    // A run that has ended is not written again: its model may hold a calibrated threshold.
    let calibrate = [
        "eval",
        "reid",
        "--model",
        "reid",
        "--data",
        &data,
        "--calibrate",
        "0.5",
    ];
    done(at, &calibrate);
    let whole = fs_err::read(at.join("reid/model.safetensors")).expect("a model");
    let text = done(at, &["finetune", "reid", "--resume", "reid"]);
    assert!(text.contains("had ended before"), "{text}");
    let after = fs_err::read(at.join("reid/model.safetensors")).expect("a model");
    assert!(after == whole, "the threshold is lost");
    fs_err::write(at.join("cut.safetensors"), &whole[..whole.len() / 2]).expect("a file");
    refused(
        at,
        &["inspect", "cut.safetensors"],
        &["not a whole safetensors file"],
    );
}

/// Everything logged of the steps, without speeds.
fn log(run: &Path) -> Vec<String> {
    let text = fs_err::read_to_string(run.join("metrics.jsonl")).expect("a log");
    text.lines()
        .map(|line| {
            let mut line: serde_json::Value = serde_json::from_str(line).expect("JSON");
            line.as_object_mut()
                .expect("an object")
                .remove("speed/images_per_second");
            line.to_string()
        })
        .collect()
}

#[test]
fn a_killed_finetuning_resumes_to_the_bit() {
    let own = [
        "run.ema=0.5",
        "run.eval_every=0.5",
        "optimizer.lr_schedule=plateau",
        "optimizer.patience=0",
        "model.drop_path=0.2",
    ];
    resumes_to_the_bit("attributes", &own, "eval/mA");
}

#[test]
fn a_killed_self_correction_resumes_to_the_bit() {
    // Three steps an epoch: cycles end after steps 3 and 6.
    let own = [
        "run.batch=16",
        "run.self_correction_start=1",
        "run.self_correction_interval=1",
        "optimizer.lr_schedule=cyclic",
        "task.head=ce2p",
        "task.width=8",
        "run.eval_every=1",
    ];
    resumes_to_the_bit("parsing", &own, "eval/mIoU");
}

/// Kills a run three times, and compares what it comes to with one that was left alone.
fn resumes_to_the_bit(task: &str, own: &[&str], evaluated: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = drawn().to_string_lossy().into_owned();
    let recipe = format!("{task}-mini");
    let start = |out: &str| {
        let first = ["finetune", task, &recipe, "--data", &data, "--threads", "1"];
        let own = own.iter().flat_map(|setting| ["--set", setting]);
        let own: Vec<&str> = own.chain(["--out", out]).collect();
        let all = arguments(&first, &own).into_iter();
        all.map(str::to_owned).collect::<Vec<_>>()
    };
    let whole = start("whole");
    done(
        folder.path(),
        &whole.iter().map(String::as_str).collect::<Vec<_>>(),
    );
    let expected = log(&folder.path().join("whole"));
    assert!(
        expected.iter().any(|line| line.contains(evaluated)),
        "{expected:?}"
    );

    let run = folder.path().join("killed");
    let resume = ["finetune", task, "--resume", "killed", "--threads", "1"];
    let mut arguments = start("killed");
    for lines in [1, 4, 7] {
        let texts: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut child = command(folder.path(), &texts)
            .spawn()
            .expect("the program starts");
        let begun = Instant::now();
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
            arguments = resume.map(str::to_owned).to_vec();
        }
    }
    done(folder.path(), &resume);
    assert_eq!(log(&run), expected);
    for file in ["model.safetensors", "last.safetensors"] {
        let read = |run: &str| fs_err::read(folder.path().join(run).join(file)).expect("a model");
        // The words in the file name the run's recipe alone, which is the same.
        assert!(read("whole") == read("killed"), "{file} differs");
    }
    let changed = ["--set", "run.batch=4"];
    refused(
        folder.path(),
        &[&resume[..4], &changed].concat(),
        &["run.batch", "a run keeps its recipe"],
    );
}

#[test]
fn wrong_input_is_named() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let data = drawn().to_string_lossy().into_owned();
    refused(at, &["finetune", "reid"], &["no data", "--data"]);
    refused(
        at,
        &["finetune", "reid", "--data", "nowhere"],
        &["nowhere", "expected the folder of a dataset", "hint: "],
    );
    refused(
        at,
        &["finetune", "reid", "--data", "."],
        &["bounding_box_test"],
    );
    refused(
        at,
        &["finetune", "reid", "reed", "--data", "."],
        &["reed", "reid-mini"],
    );
    let tiny = |task: &'static str, more: &[&'static str]| -> Vec<String> {
        let recipe = format!("{task}-mini");
        let first = ["finetune", task, &recipe, "--data", &data, "--out", "run"];
        arguments(&first, more)
            .into_iter()
            .map(str::to_owned)
            .collect()
    };
    for (task, more, words) in [
        (
            "reid",
            ["--set", "task.instance=2"],
            ["`instance`", "did you mean `instances`?"],
        ),
        (
            "reid",
            ["--set", "run.batch=6"],
            ["run.batch", "2 to 12 training identities"],
        ),
        (
            "reid",
            ["--set", "run.checkpoint_selection=val"],
            ["task.holdout", "no other validation split"],
        ),
        (
            "attributes",
            ["--set", "task.train_splits=[\"public\"]"],
            ["no image of split `public`", "train, val"],
        ),
        (
            "pose",
            ["--set", "task.blur_kernel=4"],
            ["task.blur_kernel", "odd"],
        ),
        (
            "pose",
            ["--set", "model.strides=[4,2,1]"],
            ["model.strides", "4, then 3 times 1 or 2"],
        ),
        (
            "pose",
            ["--set", "optimizer.lr=-1"],
            ["optimizer.lr", "at least 0"],
        ),
        ("parsing", ["--set", "task.head=heavy"], ["heavy", "light"]),
        (
            "parsing",
            ["--init", "nothing.safetensors"],
            ["nothing.safetensors", "found nothing"],
        ),
        (
            "parsing",
            ["--set", "task.classes=ccp_parts"],
            ["Clothing Co-Parsing", "background"],
        ),
        (
            "reid",
            ["--set", "run.checkpoint_selection=tset"],
            ["no image of split `tset`", "val, test"],
        ),
    ] {
        let arguments = tiny(task, &more);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        refused(at, &arguments, &words);
    }
    // A rate that makes the weights explode is told of, and the last checkpoint stays.
    let arguments = tiny(
        "attributes",
        &[
            "--set",
            "optimizer.lr=1e30",
            "--set",
            "optimizer.warmup_epochs=0",
        ],
    );
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    refused(at, &arguments, &["hint: lower `optimizer.lr`"]);
}
