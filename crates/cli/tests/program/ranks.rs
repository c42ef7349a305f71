//! `clasp pretrain` and `clasp finetune` in several processes.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use clasp_weights::checkpoint;
use fs_err as fs;

use crate::{TINY, command, done, drawn, refused};

/// An address of this host that nothing listens on.
fn master() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// Starts one process a rank.
fn start(at: &Path, arguments: &[&str], ranks: usize) -> Vec<Child> {
    let master = master();
    let size = ranks.to_string();
    (0..ranks)
        .map(|rank| {
            let rank = rank.to_string();
            let more = ["--ranks", &size, "--rank", &rank, "--master", &master];
            command(at, &[arguments, &more].concat())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect()
}

fn ended(children: Vec<Child>) -> Vec<Output> {
    let outputs = children.into_iter().map(Child::wait_with_output);
    outputs.collect::<Result<_, _>>().unwrap()
}

/// What two processes print that do their work: rank 0 alone prints.
fn done_by_two(at: &Path, arguments: &[&str]) -> String {
    let outputs = ended(start(at, arguments, 2));
    for output in &outputs {
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{message}");
    }
    assert!(outputs[1].stdout.is_empty());
    String::from_utf8_lossy(&outputs[0].stdout).into_owned()
}

/// Arguments of a run of two replicas on one thread each, which goes to `out`.
fn pretrain(out: &str) -> Vec<String> {
    let images = drawn().join("unlabeled").to_string_lossy().into_owned();
    let mut arguments: Vec<String> = ["pretrain", "demo", "--threads", "1", "--out", out]
        .into_iter()
        .chain(TINY.iter().copied())
        .map(str::to_owned)
        .collect();
    for set in [
        "method=dino".to_owned(),
        format!("data.images={images:?}"),
        // Sinkhorn–Knopp adds up samples in another order in several processes.
        "loss.centering=center".to_owned(),
        "run.replicas=2".to_owned(),
        "run.steps=20".to_owned(),
    ] {
        arguments.extend(["--set".to_owned(), set]);
    }
    arguments
}

/// Losses of all steps.
fn losses(run: &Path) -> Vec<f64> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let loss = |line: &str| {
        let metrics: serde_json::Value = serde_json::from_str(line).unwrap();
        metrics["loss/total"].as_f64().unwrap()
    };
    text.lines().map(loss).collect()
}

/// Both runs have the same losses and the same last checkpoint after `steps` steps, within 1e-6.
fn assert_equal(one: &Path, other: &Path, steps: usize) {
    let [losses, others] = [one, other].map(losses);
    assert_eq!(losses.len(), steps);
    assert_eq!(others.len(), steps);
    for (a, b) in losses.iter().zip(&others) {
        assert!((a - b).abs() < 1e-6, "{losses:?} {others:?}");
    }
    let state = |run: &Path| {
        let path = run.join(format!("checkpoints/step-{steps:08}.safetensors"));
        checkpoint::read(&path).unwrap().0
    };
    let [state, others] = [one, other].map(state);
    assert!(state.keys().eq(others.keys()));
    for (name, tensor) in &state {
        for (a, b) in tensor.data.iter().zip(&others[name].data) {
            assert!((a - b).abs() < 1e-6, "{name}: {a} {b}");
        }
    }
}

#[test]
fn two_processes_train_what_one_with_two_replicas_does_also_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let [alone, together, killed] = ["alone", "together", "killed"].map(pretrain);
    let [alone, together, killed] = [&alone, &together, &killed]
        .map(|arguments| arguments.iter().map(String::as_str).collect::<Vec<_>>());
    done(at, &alone);

    let said = done_by_two(at, &together);
    assert!(said.contains("20 steps on 40 images"), "{said}");
    assert_equal(&at.join("alone"), &at.join("together"), 20);

    // The same as threads of one process, one for each device.
    let devices = pretrain("devices");
    let devices: Vec<&str> = devices.iter().map(String::as_str).collect();
    done(at, &[&devices[..], &["--device", "cpu,cpu"]].concat());
    assert_equal(&at.join("alone"), &at.join("devices"), 20);

    let mut children = start(at, &killed, 2);
    let log = at.join("killed/metrics.jsonl");
    let begun = Instant::now();
    while fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < 5 {
        assert!(begun.elapsed() < Duration::from_secs(300), "no fifth step");
        std::thread::sleep(Duration::from_millis(2));
    }
    children[1].kill().unwrap();
    let outputs = ended(children);
    let message = String::from_utf8_lossy(&outputs[0].stderr);
    // It had done all steps, or it ended because rank 1 did.
    if !outputs[0].status.success() {
        assert_eq!(outputs[0].status.code(), Some(2), "{message}");
        let says = message.contains("rank 1 is gone") && message.contains("--resume");
        assert!(says, "{message}");
    }
    let resume = ["pretrain", "--resume", "killed", "--threads", "1"];
    refused(
        at,
        &[
            &resume[..],
            &["--ranks", "1", "--rank", "1", "--master", "x:1"],
        ]
        .concat(),
        &["--rank", "rank 1 of 1"],
    );
    done_by_two(at, &resume);
    assert_equal(&at.join("alone"), &at.join("killed"), 20);
}

#[test]
fn two_processes_fine_tune_what_one_with_two_replicas_does() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let data = drawn().join("market").to_string_lossy().into_owned();
    let arguments = |out: &'static str| {
        let command = format!(
            "finetune reid reid-mini --threads 1 --out {out} --set model.backbone=swin-pico \
             --set model.size=[64,32] --set run.steps=6 --set run.batch=8 --set run.replicas=2 \
             --set run.log_every=1 --set task.instances=2 --data"
        );
        let words = command.split_whitespace().map(str::to_owned);
        words.chain([data.clone()]).collect::<Vec<_>>()
    };
    let [alone, together, devices] = ["alone", "together", "devices"].map(arguments);
    let [alone, together, devices] = [&alone, &together, &devices]
        .map(|arguments| arguments.iter().map(String::as_str).collect::<Vec<_>>());
    done(at, &alone);
    let said = done_by_two(at, &together);
    assert!(said.contains("model: together"), "{said}");
    assert_equal(&at.join("alone"), &at.join("together"), 6);
    let said = done(at, &[&devices[..], &["--device", "cpu,cpu"]].concat());
    assert!(said.contains("model: devices"), "{said}");
    assert_equal(&at.join("alone"), &at.join("devices"), 6);
}

#[test]
fn processes_that_cannot_train_together_say_why() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let arguments = pretrain("run");
    let mut arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    refused(
        at,
        &[&arguments[..], &["--ranks", "2", "--rank", "0"]].concat(),
        &["--master"],
    );
    let two = ["--device", "cpu,cpu"];
    let ranks = ["--ranks", "2", "--rank", "0", "--master", "x:1"];
    let hint = ["one device for each process", "as many processes"];
    refused(at, &[&arguments[..], &two, &ranks].concat(), &hint);
    let hint = ["expected one device", "pretrain, finetune"];
    refused(at, &[&["bench", "embed"][..], &two].concat(), &hint);
    if cfg!(not(feature = "mpi")) {
        let hint = ["--mpi", "--features mpi"];
        refused(at, &[&arguments[..], &["--mpi"]].concat(), &hint);
    }
    arguments.extend(["--set", "run.replicas=3"]);
    let hint = ["`run.replicas`: expected a multiple of the 2 ranks"];
    refused(at, &[&arguments[..], &two].concat(), &hint);
    for output in ended(start(at, &arguments, 2)) {
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{message}");
        let says = message.contains("`run.replicas`: expected a multiple of the 2 ranks");
        assert!(says, "{message}");
    }
    assert!(!at.join("run").exists());
}

#[test]
fn the_exchange_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let bench = ["bench", "exchange", "--values", "300000", "--iters", "3"];
    let outputs = ended(start(folder.path(), &bench, 2));
    assert!(outputs.iter().all(|output| output.status.success()));
    let line: serde_json::Value = serde_json::from_slice(&outputs[0].stdout).unwrap();
    assert_eq!(line["settings"]["ranks"], 2);
    assert!(line["mib_per_s"].as_f64().unwrap() > 0.0);
    assert!(outputs[1].stdout.is_empty());
    let text = done(
        folder.path(),
        &[&bench[..], &["--device", "cpu,cpu,cpu"]].concat(),
    );
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["settings"]["ranks"], 3);
    assert_eq!(line["settings"]["by"], "threads");
}
