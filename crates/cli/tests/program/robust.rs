//! What must not end the work, and how work that is ended ends: readers that go away, signals,
//! locks, images that are away for a moment.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{TINY, command, done, drawn, refused};

/// Waits for a condition while a process runs, a minute at most.
fn wait_until(child: &mut Child, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(child.try_wait().unwrap().is_none(), "it ended too early");
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "it takes too long"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn pretraining<'a>(images: &'a str, out: &'a str, steps: &'a str) -> Vec<&'a str> {
    let mut arguments = vec!["pretrain", "mini", "--threads", "1", "--out", out];
    arguments.extend(TINY);
    arguments.extend(["--set", images, "--set", "method=dino", "--set", steps]);
    arguments
}

/// Drawn people, each a file.
fn photos() -> Vec<PathBuf> {
    let entries = fs_err::read_dir(drawn().join("market/bounding_box_train")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jpg"));
    paths.sort();
    assert!(paths.len() >= 30, "{}", paths.len());
    paths
}

fn lines(path: &Path) -> usize {
    fs_err::read_to_string(path).map_or(0, |text| text.lines().count())
}

#[cfg(unix)]
#[test]
fn sigterm_and_ctrl_c_stop_after_the_step_with_a_checkpoint_and_their_status() {
    let folder = tempfile::tempdir().unwrap();
    let images = format!("data.images={}", drawn().join("unlabeled").display());
    for (signal, status) in [("-TERM", 143), ("-INT", 130)] {
        let out = format!("run{signal}");
        let mut arguments = pretraining(&images, &out, "run.steps=5000");
        arguments.extend(["--set", "run.save_every=100000"]);
        let mut child = command(folder.path(), &arguments).spawn().unwrap();
        let run = folder.path().join(&out);
        wait_until(&mut child, || lines(&run.join("metrics.jsonl")) > 3);
        // A second run into the same folder, and one that would go on with it, are refused
        // meanwhile.
        let resume = ["pretrain", "--resume", &out, "--set", "run.steps=9"];
        refused(folder.path(), &resume, &["another process", &out]);
        let process = child.id().to_string();
        let sent = Command::new("kill")
            .args([signal, &process])
            .status()
            .unwrap();
        assert!(sent.success());
        assert_eq!(child.wait().unwrap().code(), Some(status));
        let steps = lines(&run.join("metrics.jsonl"));
        let kept = run.join(format!("checkpoints/step-{steps:08}.safetensors"));
        assert!(kept.is_file(), "{}", kept.display());
        // And it goes on from there.
        let steps = format!("run.steps={}", steps + 2);
        done(
            folder.path(),
            &[
                "pretrain",
                "--resume",
                &out,
                "--threads",
                "1",
                "--set",
                &steps,
            ],
        );
    }
}

#[test]
fn work_continues_when_standard_error_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let unlabeled = drawn().join("unlabeled").display().to_string();
    let images = format!("data.images={unlabeled}");
    let train = pretraining(&images, "run", "run.steps=3");
    let label = ["label", &unlabeled, "--out", "labels", "--threads", "1"];
    for (arguments, result) in [
        (&train[..], "run/backbone.safetensors"),
        (&label[..], "labels/_calibration.json"),
    ] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_clasp"))
            .current_dir(folder.path())
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stderr.take());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{arguments:?}");
        assert!(folder.path().join(result).exists(), "{result}");
    }
    // An error has its status, whether or not anybody hears of it.
    let mut child = Command::new(env!("CARGO_BIN_EXE_clasp"))
        .args(["data", "check", "/nonexistent"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(2));
}

#[test]
fn images_that_were_away_are_embedded_by_the_next_run() {
    let folder = tempfile::tempdir().unwrap();
    let images = format!("data.images={}", drawn().join("unlabeled").display());
    done(folder.path(), &pretraining(&images, "model", "run.steps=0"));
    let here = folder.path().join("images");
    fs_err::create_dir(&here).unwrap();
    let mut list = String::new();
    for path in photos().iter().take(30) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        fs_err::copy(path, here.join(&name)).unwrap();
        list.push_str(&format!("images/{name}\n"));
    }
    fs_err::write(folder.path().join("list.txt"), &list).unwrap();
    let embed = |out: &'static str| ["embed", "list.txt", "--model", "model", "--out", out];
    done(folder.path(), &embed("whole.npy"));
    let away = tempfile::tempdir().unwrap();
    let names: Vec<String> = list.lines().map(str::to_owned).collect();
    for name in &names[10..14] {
        let file = Path::new(name).file_name().unwrap();
        fs_err::copy(folder.path().join(name), away.path().join(file)).unwrap();
        fs_err::remove_file(folder.path().join(name)).unwrap();
    }
    let part = embed("part.npy");
    refused(folder.path(), &part, &["4 of 30 images cannot be read"]);
    for name in &names[10..14] {
        let file = Path::new(name).file_name().unwrap();
        fs_err::copy(away.path().join(file), folder.path().join(name)).unwrap();
    }
    done(folder.path(), &part);
    let read = |name: &str| fs_err::read(folder.path().join(name)).unwrap();
    assert!(read("part.npy") == read("whole.npy"));
    assert!(read("part.npy.keys.txt") == read("whole.npy.keys.txt"));
    assert!(!folder.path().join("part.npy.partial").exists());
}

#[cfg(unix)]
#[test]
fn names_with_escape_sequences_do_not_reach_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    fs_err::create_dir(folder.path().join("in")).unwrap();
    let name = "in/\u{1b}]0;pwned\u{7}\u{1b}[2Jbroken.png";
    fs_err::write(folder.path().join(name), "nope").unwrap();
    let output = command(folder.path(), &["data", "stats", "in", "--keep-going"])
        .output()
        .unwrap();
    for stream in [output.stdout, output.stderr] {
        assert!(!stream.contains(&0x1b) && !stream.contains(&7));
    }
}

#[test]
fn several_arguments_and_a_list_on_standard_input_are_images() {
    let folder = tempfile::tempdir().unwrap();
    let photos = photos();
    let paths: Vec<String> = photos
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let mut arguments = vec!["data", "stats"];
    arguments.extend(paths.iter().take(3).map(String::as_str));
    assert!(done(folder.path(), &arguments).starts_with("3 images"));
    let pattern = format!("{}/*.jpg", photos[0].parent().unwrap().display());
    let all = done(folder.path(), &["data", "stats", &pattern]);
    assert!(all.starts_with(&format!("{} images", paths.len())), "{all}");
    let list = folder.path().join("list");
    fs_err::write(&list, paths[..2].join("\n")).unwrap();
    let output = command(folder.path(), &["data", "stats", "-"])
        .stdin(fs_err::File::open(&list).unwrap().into_file())
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("2 images"));
}

#[test]
fn recipes_completions_and_runs_are_listed() {
    let folder = tempfile::tempdir().unwrap();
    let list = done(folder.path(), &["recipes"]);
    assert!(
        list.contains("reid-mini") && list.contains("swin-tiny"),
        "{list}"
    );
    let keys = done(folder.path(), &["recipes", "reid-mini", "--keys"]);
    assert!(keys.contains("run.batch = "), "{keys}");
    let script = done(folder.path(), &["completions", "bash"]);
    assert!(script.contains("_clasp()"), "{script}");
    refused(folder.path(), &["recipes", "mini2"], &["expected one of"]);
    refused(
        folder.path(),
        &["finetune", "reid", "mini", "--data", "."],
        &["did you mean `reid-mini`"],
    );
    let images = format!("data.images={}", drawn().join("unlabeled").display());
    done(
        folder.path(),
        &pretraining(&images, "runs/a", "run.steps=1"),
    );
    let runs = done(folder.path(), &["runs", "runs"]);
    assert!(
        runs.starts_with("finished  step        1  pretrain"),
        "{runs}"
    );
    let head = fs_err::read_to_string(folder.path().join("runs/a/run.toml")).unwrap();
    assert!(
        head.contains("# command: ") && head.contains("# started 20"),
        "{head}"
    );
}
