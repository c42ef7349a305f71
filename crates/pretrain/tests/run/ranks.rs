//! Several ranks train what one process with as many replicas does.

use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clasp_pretrain::train_on_ranks;
use clasp_run::collective::{Collective, CollectiveError, Rank, TcpOptions, TcpRing};

use super::*;

/// Rank `index` of `size`, in a thread of this process.
fn connected(index: usize, size: usize, master: &str) -> Arc<dyn Collective> {
    let options = TcpOptions {
        rank: Rank::new(index, size).unwrap(),
        master,
        patience: Duration::from_secs(60),
        waits: &|| true,
    };
    Arc::new(TcpRing::connect(&options).unwrap())
}

/// What each of `size` ranks returns, on one thread each, in `folder` with the recipe that `recipe`
/// gives for it.
fn on_ranks(
    size: usize,
    recipe: impl Fn(usize) -> PretrainRecipe + Sync,
    folder: &Path,
    resume: bool,
    then: impl Fn(usize, u64) -> Then + Sync,
) -> Vec<thread::Result<Result<PretrainSummary, PretrainError>>> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let master = listener.local_addr().unwrap().to_string();
    drop(listener);
    let (recipe, then, master) = (&recipe, &then, &master);
    thread::scope(|scope| {
        let ranks: Vec<_> = (0..size)
            .map(|index| {
                let work = move |control: &mut Control<'_>| {
                    let collective = connected(index, size, master);
                    let (recipe, device) = (recipe(index), Device::flex());
                    train_on_ranks(&recipe, folder, resume, &device, control, collective)
                };
                scope.spawn(move || controlled(|step| then(index, step), work))
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join()).collect()
    })
}

/// A run of `size` ranks that ends well.
fn together(size: usize, recipe: &PretrainRecipe, folder: &Path, resume: bool) {
    let results = on_ranks(size, |_| recipe.clone(), folder, resume, |_, _| Then::GoOn);
    for summary in results {
        assert!(summary.unwrap().unwrap().run.finished);
    }
}

/// Two replicas add up in the same order wherever they are. Sums of more, and Sinkhorn–Knopp's over
/// samples, are in another order, and AdamW's steps follow the sign of a gradient that is nearly
/// zero.
const ANOTHER_ORDER: f64 = 1e-5;

/// Largest difference between the logs and between the last checkpoints of two runs, relative to
/// numbers above 1.
fn difference(one: &Path, other: &Path) -> f64 {
    let mut largest = 0.0_f64;
    let mut compare = |what: &str, a: f64, b: f64| {
        let apart = (a - b).abs() / a.abs().max(1.0);
        assert!(apart < 1e-3, "{what}: {a} {b}");
        largest = largest.max(apart);
    };
    let [logs, others] = [log(one), log(other)];
    assert_eq!(logs.len(), others.len());
    for (step, (metrics, others)) in logs.iter().zip(&others).enumerate() {
        assert!(metrics.keys().eq(others.keys()), "{metrics:?} {others:?}");
        for (name, value) in metrics {
            compare(&format!("{name} of line {step}"), *value, others[name]);
        }
    }
    let state = |folder: &Path| {
        let path = clasp_run::checkpoints::latest(folder).unwrap().unwrap();
        checkpoint::read(&path).unwrap().0
    };
    let [state, others] = [state(one), state(other)];
    assert!(state.keys().eq(others.keys()));
    for (name, tensor) in &state {
        for (a, b) in tensor.data.iter().zip(&others[name].data) {
            compare(name, f64::from(*a), f64::from(*b));
        }
    }
    largest
}

#[test]
fn ranks_train_what_one_process_with_as_many_replicas_does() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    dataset(folder, &Vocabulary::standard().unwrap());
    for (name, ranks, tolerance, set) in [
        ("clasp", 2, 1e-6, vec!["run.replicas=2"]),
        (
            "sinkhorn",
            2,
            ANOTHER_ORDER,
            vec![
                "method=solider",
                "loss.centering=sinkhorn",
                "projection_head.prototypes=8",
                "run.replicas=2",
                "run.accumulate=2",
            ],
        ),
        (
            "masked",
            2,
            ANOTHER_ORDER,
            vec![
                "method=dino",
                "model.backbone=vit-pico",
                "loss.ibot_weight=1",
                // Some shares have no masked patch.
                "loss.mask_probability=0.3",
                "loss.koleo_weight=0.1",
                "run.batch=8",
                "run.replicas=4",
            ],
        ),
        (
            "masked-sinkhorn",
            4,
            ANOTHER_ORDER,
            vec![
                "method=dino",
                "model.backbone=vit-pico",
                "loss.ibot_weight=1",
                "loss.mask_probability=0.3",
                "loss.centering=sinkhorn",
                "projection_head.prototypes=8",
                "run.replicas=4",
            ],
        ),
        (
            "merged",
            4,
            ANOTHER_ORDER,
            vec!["model.adapter=merged", "model.experts=4", "run.replicas=4"],
        ),
    ] {
        let recipe = recipe(folder, &set);
        let alone = folder.join(format!("{name}-alone"));
        let expected = whole(&recipe, &alone);
        let ranked = folder.join(format!("{name}-together"));
        together(ranks, &recipe, &ranked, false);
        let apart = difference(&alone, &ranked);
        assert!(apart <= tolerance, "{name}: {apart:e}");
        let experts = |folder: &Path| fs::read_to_string(folder.join("experts.jsonl")).unwrap();
        assert_eq!(experts(&alone).is_empty(), experts(&ranked).is_empty());
        assert!(ranked.join("backbone.safetensors").is_file() && expected.run.finished);
        assert!(!ranked.join("warnings.txt").exists());
    }
}

#[test]
fn a_run_goes_on_after_a_rank_was_killed_with_any_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    dataset(folder, &Vocabulary::standard().unwrap());
    let recipe = recipe(folder, &["run.replicas=4"]);
    let alone = folder.join("alone");
    whole(&recipe, &alone);
    for (name, [before, killed, after]) in [
        ("two-to-one", [2, 1, 1]),
        ("one-to-four", [2, 0, 4]),
        ("four-to-two", [4, 3, 2]),
    ] {
        let out = folder.join(name);
        let then = |rank: usize, step: u64| match rank == killed && step == 5 {
            true => Then::Kill,
            false => Then::GoOn,
        };
        let results = on_ranks(before, |_| recipe.clone(), &out, false, then);
        for (rank, result) in results.into_iter().enumerate() {
            match result {
                Err(_) => assert_eq!(rank, killed),
                Ok(result) => {
                    let error = result.unwrap_err();
                    let lost = matches!(
                        &error,
                        PretrainError::Run(RunError::Collective(CollectiveError::Lost { .. }))
                    );
                    assert!(lost && error.to_string().contains("--resume"), "{error}");
                }
            }
        }
        let saved = PretrainRecipe::of_run(&out, &[]).unwrap();
        together(after, &saved, &out, true);
        let apart = difference(&alone, &out);
        assert!(apart <= ANOTHER_ORDER, "{name}: {apart:e}");
    }
}

#[test]
fn a_signal_at_one_rank_stops_all_at_the_same_step() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    dataset(folder, &Vocabulary::standard().unwrap());
    let recipe = recipe(folder, &["run.replicas=2"]);
    let out = folder.join("run");
    let then = |rank: usize, step: u64| match (rank, step) {
        (1, 3) => Then::Stop,
        _ => Then::GoOn,
    };
    for result in on_ranks(2, |_| recipe.clone(), &out, false, then) {
        let summary = result.unwrap().unwrap();
        assert_eq!((summary.run.steps, summary.run.finished), (3, false));
        assert!(
            summary
                .run
                .checkpoint
                .ends_with("step-00000003.safetensors")
        );
        assert!(summary.run.checkpoint.is_file());
    }
}

#[test]
fn ranks_with_other_recipes_images_or_devices_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    dataset(folder, &Vocabulary::standard().unwrap());
    fs::create_dir_all(folder.join("fewer")).unwrap();
    for index in 0..IMAGES - 1 {
        let image = format!("{index:02}.png");
        let to = folder.join("fewer").join(&image);
        fs::copy(folder.join("images").join(image), to).unwrap();
    }
    let fewer = format!("data.images={}", folder.join("fewer").display());
    for (set, expected) in [
        ("loss.part_weight=2", "part_weight = 1"),
        (&fewer[..], "the number of images: expected 20"),
        ("seed=4", "seed = 3"),
    ] {
        let out = folder.join("run");
        let results = on_ranks(
            2,
            |rank| match rank {
                1 => recipe(folder, &["run.replicas=2", set]),
                _ => recipe(folder, &["run.replicas=2"]),
            },
            &out,
            false,
            |_, _| Then::GoOn,
        );
        for result in results {
            let error = result.unwrap().unwrap_err().to_string();
            assert!(
                error.starts_with("rank 1: ") && error.contains(expected),
                "{error}"
            );
        }
        assert!(!out.exists(), "a run that cannot start leaves no folder");
    }
}

#[test]
fn faults_of_a_step_end_all_ranks_and_are_listed_once() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    dataset(folder, &Vocabulary::standard().unwrap());
    // Each step multiplies the weights by about -1000.
    let diverging = [
        "method=dino",
        "run.replicas=2",
        "run.steps=40",
        "run.save_every=100",
        "optimizer.lr=10",
        "optimizer.min_lr=10",
        "optimizer.weight_decay=100",
        "optimizer.weight_decay_end=100",
        "optimizer.warmup_epochs=0",
    ];
    let recipe_of = |_| recipe(folder, &diverging);
    let out = folder.join("diverged");
    let results = on_ranks(2, recipe_of, &out, false, |_, _| Then::GoOn);
    for result in results {
        let error = result.unwrap().unwrap_err();
        let found = matches!(&error, PretrainError::Run(RunError::NonFinite { .. }));
        assert!(found, "{error}");
    }
    let keys = fs::read_to_string(out.join("nonfinite.txt")).unwrap();
    assert_eq!(keys.lines().count(), 4, "{keys}");

    for index in 0..6 {
        fs::write(folder.join(format!("images/{index:02}.png")), "no image").unwrap();
    }
    let recipe_of = |_| recipe(folder, &["run.replicas=2"]);
    let out = folder.join("unreadable");
    let results = on_ranks(2, recipe_of, &out, false, |_, _| Then::GoOn);
    let list = fs::read_to_string(out.join("unreadable.txt")).unwrap();
    for result in results {
        let error = result.unwrap().unwrap_err();
        let PretrainError::Unreadable { failed, .. } = error else {
            panic!("{error}");
        };
        assert_eq!(list.lines().count(), failed);
    }
}

#[test]
fn gradients_in_bf16_train_nearly_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    dataset(folder, &Vocabulary::standard().unwrap());
    let set = ["run.replicas=2", "run.exchange=bf16"];
    let [exact, rounded] = [&set[..1], &set].map(|set| {
        let out = folder.join(format!("run-{}", set.len()));
        let recipe = recipe(folder, set);
        together(2, &recipe, &out, false);
        log(&out).pop().unwrap()["loss/total"]
    });
    assert!(
        exact != rounded && (exact - rounded).abs() < 0.05,
        "{exact} {rounded}"
    );
}
