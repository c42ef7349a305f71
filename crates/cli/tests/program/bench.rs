//! What benchmarks promise: a device is compared before it is timed, and a record holds for the run
//! that it is of.

use std::process::Stdio;

use serde_json::Value;

use crate::{command, done, refused};

/// The last line of a benchmark.
fn line(text: &str) -> Value {
    serde_json::from_str(text.lines().last().expect("a line")).expect("JSON")
}

#[test]
fn the_graph_of_other_devices_is_alike_on_the_cpu() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for model in ["swin-pico", "vit-pico"] {
        let found = line(&done(
            folder.path(),
            &["bench", "compare", "--model", model],
        ));
        for what in ["features", "loss", "gradients", "step", "teacher"] {
            let apart = found[format!("{what}_apart")].as_f64().expect("a number");
            assert!(apart < 1e-4, "{model} {what}: {apart}");
        }
    }
    refused(
        folder.path(),
        &["bench", "compare", "--device", "cpu:1"],
        &["cpu:1", "--threads"],
    );
}

#[test]
fn a_gallery_is_searched_exactly() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let small = [
        "--gallery",
        "3000",
        "--dim",
        "32",
        "--queries",
        "70",
        "--iters",
        "1",
    ];
    let found = line(&done(
        folder.path(),
        &[&["bench", "index"], &small[..]].concat(),
    ));
    assert_eq!(found["found_first"], 70, "{found}");
}

#[test]
fn a_record_holds_for_its_own_settings() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let run = [
        "bench",
        "pretrain",
        "--model",
        "swin-pico",
        "--batch",
        "2",
        "--iters",
        "1",
    ];
    let small = ["--prototypes", "64", "--local", "0", "--threads", "1"];
    let run: Vec<&str> = run.into_iter().chain(small).collect();
    let found = line(&done(at, &run));
    for figure in [
        "images_per_s",
        "gflop_per_s",
        "product_gflop_per_s",
        "share_of_product",
    ] {
        assert!(found[figure].as_f64().is_some_and(|v| v > 0.0), "{found}");
    }
    // A peer a thousand times slower than half of clasp: passed by far.
    let record = serde_json::json!([{
        "work": found["work"], "settings": found["settings"], "figure": "images_per_s",
        "peer": 1e-3 * found["images_per_s"].as_f64().expect("a rate"), "ratio": 2.0, "processor": "A",
    }]);
    fs_err::write(at.join("record.json"), record.to_string()).expect("written");
    let with = |more: &[&'static str]| -> Vec<&str> {
        let check = ["--check", "record.json"];
        run.iter()
            .copied()
            .chain(more.iter().copied())
            .chain(check)
            .collect()
    };
    done(at, &with(&[]));
    let other = ["--set", "run.gradient_checkpointing=true"];
    refused(
        at,
        &with(&other),
        &["checkpointing false in the record, true here", "--record"],
    );
}

#[test]
fn metrics_are_those_of_what_was_drawn() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let bench = |arguments: &str| {
        let arguments = ["bench"].into_iter().chain(arguments.split(' '));
        line(&done(folder.path(), &Vec::from_iter(arguments)))
    };
    let share = |found: &Value, name: &str| found[name].as_f64().expect("a figure");
    let poses = bench("coco --images 20 --predictions 3 --iters 1");
    assert_eq!(poses["poses"].as_u64().map(|poses| poses % 3), Some(0));
    // A box a twentieth of its height beside the pedestrian is right; nearly all others are wrong,
    // and as sure.
    let boxes = bench("detection --images 20 --predictions 30 --iters 1");
    assert_eq!(boxes["boxes"], 600);
    let missed = share(&boxes, "miss_rate");
    assert!(missed > 0.3 && missed < 1.0, "{boxes}");
    // Features of length 256 tell 20 people apart, but not those of length 1.
    let people = "search --queries 20 --frames 60 --gallery 40 --people 3";
    let [known, guessed] = [256, 1].map(|dim| bench(&format!("{people} --dim {dim}")));
    assert!(
        share(&known, "mAP") > 0.5 && share(&guessed, "mAP") < 0.3,
        "{known} {guessed}"
    );
}

/// It used to be a panic.
#[test]
fn a_closed_standard_output_is_no_error() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let arguments = ["bench", "coco", "--images", "5", "--iters", "1"];
    let mut run = command(folder.path(), &arguments);
    let mut child = run.stdout(Stdio::piped()).spawn().expect("started");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("ended").code(), Some(0));
}

/// On a build with Vulkan, and a driver for it, be it one in software.
#[cfg(feature = "vulkan")]
#[test]
fn vulkan_computes_what_the_cpu_does() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let arguments = ["bench", "compare", "--device", "vulkan"];
    let output = crate::command(folder.path(), &arguments)
        .output()
        .expect("the program starts");
    let message = String::from_utf8_lossy(&output.stderr);
    if message.contains("this machine has no such device") {
        return;
    }
    assert!(output.status.success(), "{message}");
}
