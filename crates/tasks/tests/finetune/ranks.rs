//! Several ranks fine-tune what one process with as many replicas does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use clasp_model::optim::Rule;
use clasp_run::collective::{Collective, CollectiveError, Local, ThreadRank};
use clasp_run::recipe::Auto;
use clasp_run::{Event, RunError, checkpoints};
use clasp_tasks::TaskError;
use clasp_tasks::finetune::{FinetuneSummary, train_on_ranks};

use super::*;

/// A run on one thread as the process of `collective`, stopped after `stop_after` steps.
pub fn run<T: DownstreamTask>(
    recipe: &FinetuneRecipe<T::Config>,
    folder: &Path,
    resume: bool,
    stop_after: Option<u64>,
    collective: impl FnOnce() -> Arc<dyn Collective> + Send,
) -> Result<FinetuneSummary, TaskError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    pool.unwrap().install(|| {
        let stop = AtomicBool::new(false);
        let mut on_event = |event: Event<'_>| {
            if let Event::Step { step, .. } = event {
                stop.store(stop_after == Some(step), Ordering::Relaxed);
            }
        };
        let mut control = Control {
            device_name: "cpu",
            threads: 1,
            stop: &stop,
            on_event: &mut on_event,
        };
        let device = Device::flex();
        train_on_ranks::<T>(recipe, folder, resume, &device, &mut control, collective())
    })
}

/// What each rank returns, one for each of `recipes`; the last is stopped after `stop_after` steps.
fn on_ranks<T: DownstreamTask>(
    recipes: &[&FinetuneRecipe<T::Config>],
    folder: &Path,
    resume: bool,
    stop_after: Option<u64>,
) -> Vec<Result<FinetuneSummary, TaskError>> {
    let results = ThreadRank::on_each(recipes.len(), |rank| {
        let index = rank.rank().index;
        let stop_after = stop_after.filter(|_| index + 1 == recipes.len());
        let collective = || Arc::new(rank) as Arc<dyn Collective>;
        run::<T>(recipes[index], folder, resume, stop_after, collective)
    });
    results.unwrap()
}

/// Largest difference between the last checkpoints of two runs, relative to numbers above 1.
fn difference(folders: [&Path; 2]) -> f32 {
    let states = folders.map(|folder| {
        let path = checkpoints::latest(folder).unwrap().unwrap();
        checkpoint::read(&path).unwrap().0
    });
    assert!(states[0].keys().eq(states[1].keys()));
    { states[0].iter() }
        .flat_map(|(name, tensor)| tensor.data.iter().zip(&states[1][name].data))
        .map(|(a, b)| (a - b).abs() / a.abs().max(1.0))
        .fold(0.0, f32::max)
}

/// Trains alone and on `ranks` ranks, and compares.
fn check<T: DownstreamTask>(
    mut recipe: FinetuneRecipe<T::Config>,
    ranks: usize,
    replicas: usize,
    limit: f32,
) {
    recipe.run.replicas = Auto::Value(replicas);
    recipe.model.drop_path = 0.2;
    let folder = tempfile::tempdir().unwrap();
    let [alone, ranked] = ["alone", "ranked"].map(|name| folder.path().join(name));
    run::<T>(&recipe, &alone, false, None, || Arc::new(Local)).unwrap();
    for summary in on_ranks::<T>(&vec![&recipe; ranks], &ranked, false, None) {
        assert!(summary.unwrap().run.finished, "{}", T::NAME);
    }
    let apart = difference([&alone, &ranked]);
    assert!(apart <= limit, "{}: {apart:e}", T::NAME);
    // One process alone writes, and each file once.
    let files = |folder: &Path| {
        let names = fs_err::read_dir(folder).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        // The names of TensorBoard's events hold the time.
        let kind = |name: String| {
            name.split_once(".tfevents")
                .map_or(name.clone(), |_| "events".to_owned())
        };
        let mut names: Vec<String> = names.map(kind).collect();
        names.sort();
        names
    };
    assert_eq!(files(&alone), files(&ranked), "{}", T::NAME);
}

const POSE: &str = "width = 16\nflip_test = false\n";
const REID: &str = "instances = 2\nfeature = \"after\"\n";

/// Batch normalization, triplets, a memory, refined labels and their averages need the whole batch.
/// Gradients of ranks of one replica each are added in the order of the replicas; those of ranks of two
/// replicas in another.
#[test]
fn ranks_fine_tune_what_one_process_with_as_many_replicas_does() {
    check::<ReidTask>(
        recipe::<ReidTask>(&drawn().join("market"), [64, 32], 4, 8, REID),
        4,
        4,
        0.0,
    );
    let parsing = "head = \"light\"\nwidth = 16\nflip_test = false\n";
    let mut corrected = recipe::<ParsingTask>(&drawn(), [64, 32], 5, 12, parsing);
    corrected.run.self_correction_start = 1;
    corrected.run.ema = 0.9;
    check::<ParsingTask>(corrected, 4, 4, 0.0);
    // Not by AdamW, which follows the sign of gradients that are nearly zero.
    let mut parsing = recipe::<ParsingTask>(&drawn(), [64, 32], 4, 12, parsing);
    parsing.optimizer.name = Rule::Sgd;
    check::<ParsingTask>(parsing, 2, 4, 1e-5);
    let two_stages = "head = \"two-stage\"\nembedding_dim = 16\nqueue_size = 8\n[task.regions]\nanchor_sizes = [16.0, 40.0]\naspect_ratios = [2.0]\nsamples_per_image = [64, 16]\n";
    let search = recipe::<SearchTask>(&drawn().join("scenes"), [128, 192], 2, 4, two_stages);
    check::<SearchTask>(search, 2, 2, 0.0);
    let detection =
        recipe::<DetectionTask>(&drawn().join("scenes"), [128, 192], 2, 4, "width = 16\n");
    check::<DetectionTask>(detection, 2, 2, 0.0);
    let pose = recipe::<PoseTask>(&drawn(), [64, 32], 2, 8, POSE);
    check::<PoseTask>(pose, 2, 2, 0.0);
    // The head alone: features are exchanged and no gradient of the backbone.
    let mut head = recipe::<AttributeTask>(&drawn(), [64, 32], 3, 8, "");
    head.model.trainable = clasp_tasks::finetune::recipe::Trainable::Head;
    check::<AttributeTask>(head, 2, 2, 0.0);
}

/// The best model is the same as well, and a stop at one rank stops both with one checkpoint, from
/// which one process or two continue.
#[test]
fn ranks_that_are_stopped_continue() {
    let folder = tempfile::tempdir().unwrap();
    let [alone, ranked, again] = ["alone", "ranked", "again"].map(|name| folder.path().join(name));
    let mut recipe = recipe::<ReidTask>(&drawn().join("market"), [64, 32], 6, 8, REID);
    recipe.run.replicas = Auto::Value(2);
    recipe.run.checkpoint_selection = "test".to_owned();
    recipe.run.eval_every = 0.5;
    run::<ReidTask>(&recipe, &alone, false, None, || Arc::new(Local)).unwrap();
    let both = [&recipe, &recipe];
    for folder in [&ranked, &again] {
        for summary in on_ranks::<ReidTask>(&both, folder, false, Some(4)) {
            let run = summary.unwrap().run;
            assert_eq!((run.steps, run.finished), (4, false));
        }
    }
    let resumed = run::<ReidTask>(&recipe, &ranked, true, None, || Arc::new(Local)).unwrap();
    assert!(resumed.run.finished && resumed.best.is_some());
    for had_ended in [false, true] {
        for summary in on_ranks::<ReidTask>(&both, &again, true, None) {
            let summary = summary.unwrap();
            assert!(summary.run.finished && summary.had_ended == had_ended);
        }
    }
    for other in [&ranked, &again] {
        assert_eq!(difference([&alone, other]), 0.0);
        for file in ["best.safetensors", "model.safetensors"] {
            let [one, other] = [&alone, other].map(|run| fs_err::read(run.join(file)).unwrap());
            assert!(one == other, "{file}");
        }
    }
}

#[test]
fn ranks_with_other_settings_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let one = recipe::<ReidTask>(&drawn().join("market"), [64, 32], 4, 8, REID);
    let mut other = one.clone();
    other.optimizer.lr = 1e-3;
    for result in on_ranks::<ReidTask>(&[&one, &other], &run, false, None) {
        let error = result.unwrap_err();
        let is_disagreement = matches!(
            &error,
            TaskError::Run(RunError::Collective(CollectiveError::Disagree {
                rank: 1,
                ..
            }))
        );
        assert!(
            is_disagreement && error.to_string().contains("lr"),
            "{error}"
        );
    }
    assert!(!run.exists());
}

/// Every rank computes the loss on all labels: with other labels it would train another model.
#[test]
fn ranks_with_other_labels_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let table = fs_err::read_to_string(drawn().join("attributes.csv")).unwrap();
    let other = folder.path().join("data");
    fs_err::create_dir(&other).unwrap();
    for entry in fs_err::read_dir(drawn()).unwrap() {
        let entry = entry.unwrap();
        std::os::unix::fs::symlink(entry.path(), other.join(entry.file_name())).unwrap();
    }
    fs_err::remove_file(other.join("attributes.csv")).unwrap();
    let swapped = table
        .replace(",1", ",x")
        .replace(",0", ",1")
        .replace(",x", ",0");
    fs_err::write(other.join("attributes.csv"), swapped).unwrap();
    let one = recipe::<AttributeTask>(&drawn(), [64, 32], 4, 8, "");
    let mut wrong = one.clone();
    wrong.data.path = other;
    let run = folder.path().join("run");
    for result in on_ranks::<AttributeTask>(&[&one, &wrong], &run, false, None) {
        let error = result.unwrap_err().to_string();
        assert!(error.contains("labels all ranks must have"), "{error}");
    }
}
