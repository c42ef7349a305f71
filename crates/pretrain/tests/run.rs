//! Runs on a few noise images: exact resume, errors during a run, the files that it writes.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;
use clasp_data::image::{Rgb, encode_png};
use clasp_data::labels::{LabelValues, Labels, StoreMeta, write_shard};
use clasp_data::rng_for;
use clasp_data::vocabulary::Vocabulary;
use clasp_model::swin::WindowPadding;
use clasp_pretrain::checkpoint::read_student;
use clasp_pretrain::{Control, Event, PretrainError, PretrainRecipe, PretrainSummary, train};
use clasp_run::{Auto, RunError};
use clasp_weights::{checkpoint, import};
use fs_err as fs;
use rand::RngExt;

#[path = "run/ranks.rs"]
mod ranks;

const IMAGES: usize = 20;

const TINY: &str = r#"
seed = 3
[model]
backbone = "swin-pico"
experts = 3
[views]
global_size = [64, 32]
local_size = [32, 32]
local = 1
[projection_head]
prototypes = 32
hidden_dim = 16
bottleneck_dim = 8
[optimizer]
warmup_epochs = 1
[teacher]
momentum = 0.9
[run]
batch = 4
steps = 7
save_every = 2
log_every = 1
keep_checkpoints = 2
replicas = 1
"#;

/// Noise under `images/`, and labels for it under `labels/`.
fn dataset(folder: &Path, vocabulary: &Vocabulary) {
    let mut rng = rng_for(0, 0, "corpus");
    fs::create_dir_all(folder.join("images")).unwrap();
    let mut labels = Vec::new();
    for index in 0..IMAGES {
        let pixels = (0..3 * 40 * 80).map(|_| rng.random()).collect();
        let png = encode_png(&Rgb {
            width: 40,
            height: 80,
            pixels,
        });
        fs::write(folder.join(format!("images/{index:02}.png")), png).unwrap();
        labels.push(Labels {
            key: format!("{index:02}"),
            width: 40,
            height: 80,
            image_sha256: String::new(),
            values: LabelValues {
                parts: (0..32)
                    .map(|_| rng.random_range(0..vocabulary.parts.len() as u8))
                    .collect(),
                part_confidence: vec![200; 32],
                attributes: (0..vocabulary.logits())
                    .map(|_| rng.random_range(-1.0..1.0))
                    .collect(),
            },
        });
    }
    write_shard(
        &folder.join("labels"),
        "images-0",
        &meta(vocabulary),
        &labels,
    )
    .unwrap();
}

fn meta(vocabulary: &Vocabulary) -> StoreMeta {
    StoreMeta {
        vocabulary: vocabulary.clone(),
        model: "noise".to_owned(),
        model_sha256: "00".to_owned(),
        rows: 8,
        columns: 4,
        method: "clip".to_owned(),
        dense: "clear".to_owned(),
        confidence: 0.5,
    }
}

fn recipe(folder: &Path, set: &[&str]) -> PretrainRecipe {
    let mut all = vec![
        format!("data.images={}", folder.join("images").display()),
        format!("data.labels={}", folder.join("labels").display()),
    ];
    all.extend(set.iter().map(|text| (*text).to_owned()));
    PretrainRecipe::parse(TINY, "test", &all).unwrap()
}

/// What to do after the step that is done.
enum Then {
    GoOn,
    /// As Ctrl-C.
    Stop,
    /// As SIGKILL: nothing after this moment happens.
    Kill,
}

/// What `work` returns on one thread, where `then` says after each step how it goes on.
fn controlled<R: Send>(
    then: impl Fn(u64) -> Then + Sync,
    work: impl FnOnce(&mut Control<'_>) -> R + Send,
) -> R {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .unwrap();
    pool.install(|| {
        let stop = AtomicBool::new(false);
        let mut on_event = |event: Event<'_>| {
            if let Event::Step { step, .. } = event {
                match then(step) {
                    Then::GoOn => {}
                    Then::Stop => stop.store(true, Ordering::Relaxed),
                    Then::Kill => panic!("killed"),
                }
            }
        };
        work(&mut Control {
            device_name: "cpu",
            threads: 1,
            stop: &stop,
            on_event: &mut on_event,
        })
    })
}

/// A run on one thread.
fn run(
    recipe: &PretrainRecipe,
    folder: &Path,
    resume: bool,
    then: impl Fn(u64) -> Then + Sync,
) -> Result<PretrainSummary, PretrainError> {
    controlled(then, |control| {
        train(recipe, folder, resume, &Device::flex(), control)
    })
}

fn whole(recipe: &PretrainRecipe, folder: &Path) -> PretrainSummary {
    run(recipe, folder, false, |_| Then::GoOn).unwrap()
}

/// A network before the first step as a frozen teacher of another size and normalization than
/// [`TINY`]: the setting that names its file.
fn frozen_teacher(folder: &Path, name: &str, backbone: &str) -> String {
    let backbone = format!("model.backbone={backbone}");
    let set = [
        &backbone,
        "method=dino",
        "run.steps=0",
        "views.global_size=[96, 48]",
        "views.std=[0.5, 0.25, 0.5]",
    ];
    let summary = whole(&recipe(folder, &set), &folder.join(name));
    format!("distillation.teacher={}", summary.backbone.display())
}

/// The log without what a clock decides.
fn log(folder: &Path) -> Vec<BTreeMap<String, f64>> {
    let text = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| {
            let mut metrics: BTreeMap<String, f64> = serde_json::from_str(line).unwrap();
            metrics.remove("speed/images_per_second").unwrap();
            metrics
        })
        .collect()
}

#[test]
fn a_run_that_was_stopped_or_killed_equals_one_that_was_not() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    dataset(folder, &Vocabulary::standard().unwrap());
    let teacher = frozen_teacher(folder, "teacher", "vit-pico");
    let distillation = [
        &teacher,
        "method=dino",
        "loss.dino_weight=0",
        "views.local=0",
        "distillation.dense=0.5",
    ];
    let masked = [
        "model.backbone=vit-pico",
        "loss.ibot_weight=1",
        "loss.koleo_weight=0.1",
    ];
    for (name, set) in [
        ("clasp", vec!["method=clasp"]),
        ("solider", vec!["method=solider", "run.accumulate=2"]),
        ("dino", vec!["method=dino", "run.replicas=2"]),
        ("vit", vec!["model.backbone=vit-pico"]),
        ("distillation", distillation.to_vec()),
        ("masked", masked.to_vec()),
    ] {
        let recipe = recipe(folder, &set);
        let straight = folder.join(format!("{name}-straight"));
        let expected = whole(&recipe, &straight);
        assert!(expected.run.finished && expected.run.steps == 7);
        assert_eq!(log(&straight).len(), 7);
        let moments: &[u64] = if name == "clasp" {
            &[1, 2, 3, 5, 6]
        } else {
            &[3]
        };
        for &moment in moments {
            for kill in [false, true] {
                let broken = folder.join(format!("{name}-{moment}-{kill}"));
                let first = catch_unwind(AssertUnwindSafe(|| {
                    run(&recipe, &broken, false, |step| match step == moment {
                        true if kill => Then::Kill,
                        true => Then::Stop,
                        false => Then::GoOn,
                    })
                }));
                match first {
                    Err(_) => assert!(kill),
                    Ok(summary) => {
                        let summary = summary.unwrap();
                        assert!(!kill && !summary.run.finished && summary.run.steps == moment);
                    }
                }
                // The recipe that the folder holds, as `--resume` reads it.
                let saved = PretrainRecipe::of_run(&broken, &[]).unwrap();
                let second = run(&saved, &broken, true, |_| Then::GoOn).unwrap();
                assert!(second.run.finished);
                assert_eq!(
                    log(&broken),
                    log(&straight),
                    "{name}, step {moment}, kill {kill}"
                );
                let read = |path: &Path| checkpoint::read(path).unwrap().0;
                assert_eq!(read(&second.run.checkpoint), read(&expected.run.checkpoint));
                assert_eq!(
                    fs::read(&second.backbone).unwrap(),
                    fs::read(&expected.backbone).unwrap()
                );
                let experts =
                    |folder: &Path| fs::read_to_string(folder.join("experts.jsonl")).unwrap();
                assert_eq!(experts(&broken), experts(&straight));
            }
        }
    }
}

#[test]
fn a_run_writes_its_files() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    dataset(folder, &Vocabulary::standard().unwrap());
    let recipe = recipe(folder, &[]);
    let out = folder.join("run");
    let summary = whole(&recipe, &out);

    let text = fs::read_to_string(out.join("run.toml")).unwrap();
    assert!(
        text.starts_with("# The resolved recipe")
            && text.contains("seed 3")
            && !text.contains("\"auto\""),
        "{text}"
    );
    // Saved at 2, 4, 6 and 7; two are kept.
    let mut names: Vec<_> = fs::read_dir(out.join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["step-00000006.safetensors", "step-00000007.safetensors"]
    );
    let (state, metadata) = checkpoint::read(&summary.run.checkpoint).unwrap();
    for name in [
        "student.part.",
        "student.attribute.",
        "student.trunk.dino.",
        "teacher.dino.",
        "optimizer.part.",
        "center",
    ] {
        assert!(
            state.keys().any(|key| key.starts_with(name)),
            "no `{name}` in the checkpoint"
        );
    }
    assert_eq!(metadata["step"], "7");
    // A recipe that claims a larger network than the file holds takes no memory.
    let mut claims = metadata.clone();
    let text = claims["recipe"].replace("\"swin-pico\"", "\"swin-base\"");
    claims.insert("recipe".to_owned(), text);
    let path = folder.join("claims.safetensors");
    checkpoint::write(&path, &state, &claims).unwrap();
    let error = read_student(&path, &Device::flex()).err().unwrap();
    assert!(
        error
            .to_string()
            .contains("values of its recipe's backbone"),
        "{error}"
    );

    let (backbone, meta) = import::load_backbone(&out, &Device::flex()).unwrap();
    assert_eq!((meta.height, meta.width, meta.step), (64, 32, 7));
    assert_eq!(meta.heads, ["dino", "part", "attribute"]);
    assert_eq!(meta.prompts, ["identity", "part", "attribute"]);
    assert_eq!(
        PretrainRecipe::parse(&meta.recipe, "meta", &[]).unwrap(),
        PretrainRecipe::of_run(&out, &[]).unwrap()
    );
    assert_eq!(backbone.channels(), 128);

    let metrics = log(&out).pop().unwrap();
    for name in [
        "loss/total",
        "loss/dino",
        "loss/part",
        "loss/attribute",
        "loss/part_identity",
        "features/prompt_distance",
        "features/image_distance",
        "gradient/prompts",
        "teacher/mean_entropy",
        "accuracy/part",
        "accuracy/attribute",
        "teacher/entropy",
        "features/std",
        "gradient/norm",
        "schedule/lr",
        "schedule/momentum",
    ] {
        assert!(metrics[name].is_finite(), "{name}");
    }
    // A second run in the same folder is refused.
    let message = run(&recipe, &out, false, |_| Then::GoOn)
        .unwrap_err()
        .to_string();
    assert!(message.contains("found `run.toml` in it"), "{message}");
}

#[test]
fn labels_of_other_images_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let vocabulary = Vocabulary::standard().unwrap();
    dataset(folder, &vocabulary);
    let try_run = |set: &[&str], name: &str| match run(
        &recipe(folder, set),
        &folder.join(name),
        false,
        |_| Then::Stop,
    ) {
        Ok(summary) => format!("{} images", summary.images),
        Err(error) => error.to_string(),
    };
    let labels = |name: &str| folder.join(name);
    let row = |key: &str, vocabulary: &Vocabulary| Labels {
        key: key.to_owned(),
        width: 40,
        height: 80,
        image_sha256: String::new(),
        values: LabelValues {
            parts: vec![1; 32],
            part_confidence: vec![200; 32],
            attributes: vec![0.5; vocabulary.logits()],
        },
    };

    let set = format!("data.labels={}", labels("foreign").display());
    write_shard(
        &labels("foreign"),
        "a",
        &meta(&vocabulary),
        &[row("street/7", &vocabulary)],
    )
    .unwrap();
    let message = try_run(&[&set], "1");
    assert!(
        message.contains("expected labels of these images")
            && message.contains("street/7")
            && message.contains("`00`"),
        "{message}"
    );

    let set = format!("data.labels={}", labels("some").display());
    let some: Vec<Labels> = (0..15)
        .map(|index| row(&format!("{index:02}"), &vocabulary))
        .collect();
    write_shard(&labels("some"), "a", &meta(&vocabulary), &some).unwrap();
    let message = try_run(&[&set], "2");
    assert!(
        message.contains("5 of 20 images have no labels, the first is `15`"),
        "{message}"
    );
    assert_eq!(
        try_run(&[&set, "data.missing_labels=skip"], "3"),
        "15 images"
    );

    let message = try_run(&["data.labels="], "4");
    assert!(
        message.contains("method `clasp` learns from labels"),
        "{message}"
    );
    assert_eq!(try_run(&["data.labels=", "method=dino"], "5"), "20 images");

    // k-means labels have no attributes.
    let kmeans = Vocabulary::kmeans();
    let set = format!("data.labels={}", labels("kmeans").display());
    let rows: Vec<Labels> = (0..IMAGES)
        .map(|index| row(&format!("{index:02}"), &kmeans))
        .collect();
    write_shard(&labels("kmeans"), "a", &meta(&kmeans), &rows).unwrap();
    let message = try_run(&[&set], "6");
    assert!(message.contains("`model.prompts`"), "{message}");
    assert_eq!(try_run(&[&set, "method=solider"], "7"), "20 images");

    // Resuming with labels of another vocabulary.
    let message = run(
        &recipe(folder, &[&set, "method=solider", "data.labels=labels"]),
        &labels("7"),
        true,
        |_| Then::GoOn,
    );
    assert!(message.is_err());
    let standard = format!("data.labels={}", labels("labels").display());
    let message = run(
        &recipe(folder, &[&standard, "method=solider"]),
        &labels("7"),
        true,
        |_| Then::GoOn,
    )
    .unwrap_err()
    .to_string();
    assert!(
        message.contains("expected labels of vocabulary"),
        "{message}"
    );
}

#[test]
fn a_run_is_resumed_with_its_own_recipe_and_files() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    dataset(folder, &Vocabulary::standard().unwrap());
    let out = folder.join("run");
    run(&recipe(folder, &[]), &out, false, |step| {
        if step == 3 { Then::Stop } else { Then::GoOn }
    })
    .unwrap();
    let resume = |set: &[&str]| {
        run(&recipe(folder, set), &out, true, |_| Then::Stop)
            .unwrap_err()
            .to_string()
    };
    let message = resume(&["model.backbone=swin-nano"]);
    assert!(
        message.contains("`model.backbone`: expected \"swin-nano\", found \"swin-pico\""),
        "{message}"
    );
    let message = resume(&["model.experts=6"]);
    assert!(
        message.contains("`model.experts`: expected 6, found 3"),
        "{message}"
    );

    let message = run(&recipe(folder, &[]), &folder.join("absent"), true, |_| {
        Then::Stop
    })
    .unwrap_err()
    .to_string();
    assert!(
        message.contains("expected the folder of a run, found nothing there"),
        "{message}"
    );

    // A backbone of another architecture to start from.
    let set = format!("model.init={}", out.join("backbone.safetensors").display());
    let start = recipe(folder, &[&set, "model.backbone=swin-nano"]);
    let message = run(&start, &folder.join("other"), false, |_| Then::Stop)
        .unwrap_err()
        .to_string();
    assert!(message.contains("another architecture"), "{message}");
    run(
        &recipe(folder, &[&set]),
        &folder.join("same"),
        false,
        |_| Then::Stop,
    )
    .unwrap();

    // Values of a resume hold for the next one, those of a refused resume do not.
    let kept = || PretrainRecipe::of_run(&out, &[]).unwrap();
    assert_eq!(kept().run.steps, Auto::Value(7));
    let set = ["run.steps=9", "optimizer.lr=1e-6"];
    let changed = PretrainRecipe::of_run(&out, &set.map(str::to_owned)).unwrap();
    run(&changed, &out, true, |_| Then::Stop).unwrap();
    assert_eq!(kept().run.steps, Auto::Value(9));
    let summary = run(&kept(), &out, true, |_| Then::GoOn).unwrap();
    assert_eq!(summary.run.steps, 9);
    assert_eq!(kept().optimizer.lr, Auto::Value(1e-6));

    // A cut checkpoint.
    let path = clasp_run::checkpoints::latest(&out).unwrap().unwrap();
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let message = resume(&[]);
    assert!(message.contains("step-00000009"), "{message}");
}

#[test]
fn a_run_that_distills_keeps_its_teacher() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    dataset(folder, &Vocabulary::standard().unwrap());
    let teacher = frozen_teacher(folder, "teacher", "vit-pico");
    let recipe = |set: &[&str]| {
        let always = [
            "data.labels=",
            "method=dino",
            "loss.dino_weight=0",
            "views.local=0",
        ];
        recipe(folder, &[&always[..], set].concat())
    };
    let out = folder.join("run");
    let set = [
        &teacher,
        "optimizer.lr=0.003",
        "run.steps=40",
        "run.save_every=20",
    ];
    let summary = whole(&recipe(&set), &out);
    let metrics = log(&out);
    let loss = |index: usize| metrics[index]["loss/distill_pooled"];
    assert!(loss(39) < 0.8 * loss(0), "{} to {}", loss(0), loss(39));
    assert!(!metrics[0].contains_key("loss/distill_dense"));
    let saved = PretrainRecipe::of_run(&out, &[]).unwrap().distillation;
    assert_eq!(saved.pooled, Auto::Value(1.0));
    assert_eq!(saved.size, Auto::Value([96, 48]));
    let (state, metadata) = checkpoint::read(&summary.run.checkpoint).unwrap();
    assert!(
        state
            .keys()
            .any(|key| key.starts_with("student.distillation.pooled."))
    );
    assert_eq!(metadata["frozen_teacher"].len(), 64);

    // Resuming with another teacher, with none, and with one that is no longer there.
    let error = |set: &[&str], resume: bool, to: &str| {
        run(&recipe(set), &folder.join(to), resume, |_| Then::Stop)
            .unwrap_err()
            .to_string()
    };
    let other = frozen_teacher(folder, "other", "swin-pico");
    let none = ["distillation.teacher=", "loss.dino_weight=1"];
    for set in [&[&*other][..], &none] {
        let message = error(set, true, "run");
        assert!(
            message.contains("expected the run's frozen teacher") && message.contains("hint:"),
            "{message}"
        );
    }
    let absent = ["distillation.teacher=absent.safetensors"];
    for (resume, to) in [(true, "run"), (false, "new")] {
        let message = error(&absent, resume, to);
        assert!(
            message.starts_with("`distillation.teacher`: absent.safetensors: expected a backbone"),
            "{message}"
        );
    }
    // A file that is no backbone.
    let image = format!(
        "distillation.teacher={}",
        folder.join("images/00.png").display()
    );
    let message = error(&[&image], false, "new");
    assert!(
        message.starts_with("`distillation.teacher`: ") && message.contains("00.png"),
        "{message}"
    );
    for set in [
        &["distillation.pooled=1"][..],
        &[&teacher, "distillation.pooled=0"],
    ] {
        let message = error(set, false, "new");
        assert!(
            message.contains("`distillation.pooled`: expected"),
            "{message}"
        );
    }
    // A run that cannot start leaves no folder.
    assert!(!folder.join("new").exists());
}

#[test]
fn a_checkpoint_that_cannot_be_written_leaves_the_last_good_one() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    dataset(folder, &Vocabulary::standard().unwrap());
    let out = folder.join("run");
    // A folder of that name makes the second checkpoint fail, as a full disk would.
    fs::create_dir_all(out.join("checkpoints/step-00000004.safetensors/x")).unwrap();
    let error = run(&recipe(folder, &[]), &out, false, |_| Then::GoOn).unwrap_err();
    let PretrainError::Run(RunError::NotSaved {
        step: 4,
        kept: Some(kept),
        ..
    }) = &error
    else {
        panic!("{error}")
    };
    assert!(kept.ends_with("step-00000002.safetensors"), "{error}");
    fs::remove_dir_all(out.join("checkpoints/step-00000004.safetensors")).unwrap();
    assert!(
        run(&recipe(folder, &[]), &out, true, |_| Then::GoOn)
            .unwrap()
            .run
            .finished
    );
}

#[test]
fn a_run_that_diverges_stops_and_keeps_the_last_good_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    dataset(folder, &Vocabulary::standard().unwrap());
    let out = folder.join("run");
    let recipe = recipe(
        folder,
        &[
            // Each step multiplies the weights by about -1000.
            "optimizer.lr=10",
            "optimizer.min_lr=10",
            "optimizer.weight_decay=100",
            "optimizer.weight_decay_end=100",
            "run.steps=40",
            "run.save_every=1",
            "optimizer.warmup_epochs=0",
            "method=dino",
        ],
    );
    let error = run(&recipe, &out, false, |_| Then::GoOn).unwrap_err();
    match &error {
        PretrainError::Run(RunError::NonFinite { keys, .. }) => {
            assert_eq!(fs::read_to_string(keys).unwrap().lines().count(), 4);
        }
        PretrainError::Run(RunError::Checkpoint { expected, .. }) => {
            assert_eq!(expected, "finite numbers")
        }
        _ => panic!("{error}"),
    }
    if let Some(path) = clasp_run::checkpoints::latest(&out).unwrap() {
        let (state, _) = checkpoint::read(&path).unwrap();
        assert!(
            state
                .values()
                .flat_map(|array| &array.data)
                .all(|value| value.is_finite())
        );
    }
}

#[test]
fn unreadable_images_are_listed_and_more_than_five_percent_stop_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    dataset(folder, &Vocabulary::standard().unwrap());
    let image = |index: usize| -> PathBuf { folder.join(format!("images/{index:02}.png")) };
    let cut = |index: usize| {
        let bytes = fs::read(image(index)).unwrap();
        fs::write(image(index), &bytes[..bytes.len() / 3]).unwrap();
    };
    cut(3);
    let out = folder.join("one");
    let summary = whole(&recipe(folder, &["run.steps=12"]), &out);
    assert_eq!(summary.unreadable, 1);
    assert!(
        fs::read_to_string(out.join("unreadable.txt"))
            .unwrap()
            .starts_with("03\t")
    );
    cut(5);
    cut(9);
    let message = run(
        &recipe(folder, &["run.steps=12"]),
        &folder.join("two"),
        false,
        |_| Then::GoOn,
    )
    .unwrap_err()
    .to_string();
    assert!(
        message.contains("could not be read") && message.contains("skip_unreadable"),
        "{message}"
    );
    let summary = whole(
        &recipe(folder, &["run.steps=12", "data.skip_unreadable=true"]),
        &folder.join("three"),
    );
    assert_eq!(summary.unreadable, 3);
}

#[test]
fn a_run_keeps_the_windows_of_the_file_that_it_starts_from() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    dataset(folder, &Vocabulary::standard().unwrap());
    let short = ["method=dino", "data.labels=", "run.steps=2"];
    let recipe = |set: &[&str]| recipe(folder, &[&short[..], set].concat());
    let padding = |run: &Path| {
        let file = run.join("backbone.safetensors");
        import::window_padding(&file).unwrap()
    };
    // Windows of 4 do not divide the last map of these images, 2x1.
    let timm = folder.join("timm");
    whole(&recipe(&["model.windows=timm"]), &timm);
    assert_eq!(padding(&timm), WindowPadding::Timm);
    let plain = folder.join("plain");
    whole(&recipe(&[]), &plain);
    assert_eq!(padding(&plain), WindowPadding::Detection);

    let init = format!("model.init={}", timm.join("backbone.safetensors").display());
    let kept = folder.join("kept");
    let stop_at_1 = |step: u64| match step {
        1 => Then::Stop,
        _ => Then::GoOn,
    };
    run(&recipe(&[&init]), &kept, false, stop_at_1).unwrap();
    assert!(
        fs::read_to_string(kept.join("run.toml"))
            .unwrap()
            .contains("windows = \"timm\"")
    );
    // Resumed without the file.
    fs::remove_file(timm.join("backbone.safetensors")).unwrap();
    let again = PretrainRecipe::of_run(&kept, &[]).unwrap();
    run(&again, &kept, true, |_| Then::GoOn).unwrap();
    assert_eq!(padding(&kept), WindowPadding::Timm);
    let other = PretrainRecipe::of_run(&kept, &["model.windows=detection".into()]).unwrap();
    let message = run(&other, &kept, true, |_| Then::GoOn).unwrap_err();
    assert!(message.to_string().contains("model.windows"), "{message}");

    let init = format!("model.init={}", kept.join("backbone.safetensors").display());
    let refused = recipe(&[&init, "model.windows=detection"]);
    let message = run(&refused, &folder.join("refused"), false, |_| Then::GoOn).unwrap_err();
    let message = message.to_string();
    assert!(
        message.contains("leave out `model.windows`") && message.contains("timm"),
        "{message}"
    );
    let vit = recipe(&["model.backbone=vit-pico", "model.windows=timm"]);
    let message = run(&vit, &folder.join("vit"), false, |_| Then::GoOn).unwrap_err();
    assert!(message.to_string().contains("no windows"), "{message}");

    // A run from before the key had those of `detection`, whatever its file has.
    let text = fs::read_to_string(kept.join("run.toml")).unwrap();
    let old: String = { text.lines() }
        .filter(|line| !line.starts_with("windows"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(kept.join("run.toml"), old).unwrap();
    let old = PretrainRecipe::of_run(&kept, &[]).unwrap();
    assert_eq!(old.model.windows, Auto::Value(WindowPadding::Detection));
}
