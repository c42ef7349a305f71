//! The demo in small: stopped, killed, and run again.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{TINY, command, done, refused};

/// A demo that takes seconds.
fn demo(people: &str) -> Vec<&str> {
    let first = ["demo", "--out", "d", "--people", people];
    [&first[..], TINY].concat()
}

/// Waits until `ready` holds, or the program has ended.
fn wait(child: &mut Child, ready: impl Fn() -> bool) {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(120)
        && child.try_wait().expect("a child").is_none()
        && !ready()
    {
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn results(at: &Path) -> String {
    fs_err::read_to_string(at.join("d/results.json")).expect("results")
}

#[test]
fn a_killed_demo_resumes_and_a_finished_one_repeats_no_step() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let run = at.join("d/run");
    // Before the first checkpoint, in both pre-trainings, and when the network at initialization
    // lies there.
    for lies in [
        "run.toml",
        "checkpoints",
        "../dino/checkpoints",
        "../init/run.toml",
    ] {
        let mut child = command(at, &demo("64"))
            .spawn()
            .expect("the program starts");
        wait(&mut child, || run.join(lies).exists());
        child.kill().ok();
        child.wait().expect("a child");
    }
    done(at, &demo("64"));
    let first = results(at);
    let page = fs_err::read_to_string(at.join("d/report.html")).expect("a report");
    assert!(page.contains("ln K = ln 8 = 2.08"), "no line at ln K");
    assert!(page.find("<td>chance") < page.find("<td>initialization"));
    for name in ["initialization", "DINO", "CLASP", "CLASP, part prompt"] {
        assert!(first.contains(&format!("\"{name}\"")), "{name}");
    }
    // DINO takes as many steps.
    let log = fs_err::read_to_string(at.join("d/dino/metrics.jsonl")).expect("a log");
    assert_eq!(log.lines().count(), 8);
    let log = fs_err::read_to_string(run.join("metrics.jsonl")).expect("a log");
    assert_eq!(log.lines().count(), 8);

    let written = |name: &str| {
        let file = run.join(name).metadata().expect("a file");
        file.modified().expect("a time")
    };
    let before = written("checkpoints/step-00000008.safetensors");
    // What was printed as a warning stands in the report.
    let warning = "step 1: an <invented> warning";
    fs_err::write(run.join("warnings.txt"), warning).expect("a file");
    done(at, &demo("64"));
    assert_eq!(results(at), first);
    let page = fs_err::read_to_string(at.join("d/report.html")).expect("a report");
    assert!(page.contains("CLASP, step 1: an &#60;invented&#62; warning"));
    let log = fs_err::read_to_string(run.join("metrics.jsonl")).expect("a log");
    assert_eq!(log.lines().count(), 8);
    assert_eq!(written("checkpoints/step-00000008.safetensors"), before);

    let other = [&demo("64")[..], &["--seed", "1"]].concat();
    refused(at, &other, &["people", "seed"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_stops_a_demo_that_labels() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let at = folder.path();
    let mut child = Command::new(env!("CARGO_BIN_EXE_clasp"))
        .current_dir(at)
        .args(demo("1000"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    wait(&mut child, || at.join("d/labels").is_dir());
    let process = child.id().to_string();
    let sent = Command::new("kill").args(["-INT", &process]).status();
    assert!(sent.expect("a signal").success());
    let output = child.wait_with_output().expect("a child");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{message}");
    assert!(
        message.contains("stopped; run the same command to resume"),
        "{message}"
    );
    assert!(!message.contains("3/5"), "{message}");
    assert!(!at.join("d/run").exists());
}
