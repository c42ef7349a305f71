//! The training loop: from the first step, or from a checkpoint, to the model's file.
//!
//! | file of the run folder | content |
//! |---|---|
//! | `run.toml` | the resolved recipe |
//! | `metrics.jsonl`, `events.out.tfevents.*` | metrics by step, `eval/…` among them |
//! | `checkpoints/` | the last checkpoints ([`super::checkpoint`]) |
//! | `best.safetensors` | the model with the best metric so far, unless the last step is selected |
//! | `last.safetensors` | the model after the last step |
//! | `model.safetensors` | the selected one of both (`run.checkpoint_selection`) |
//! | `nonfinite.txt` | images of the batch of a non-finite loss; only after one |

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::tensor::Device;
use clasp_data::atomic::{FolderLock, atomic_write};
use clasp_data::loader::{ItemRequest, Loader, LoaderPosition};
use clasp_data::rng_for;
use clasp_model::named;
use clasp_run::{Log, Metrics, checkpoints};
use clasp_weights::import;
use serde::Serialize;

use super::checkpoint::{self, BestCheckpoint, LoopState};
use super::init::{self, InitialBackbone, check_adapter, check_frozen};
use super::recipe::{FinetunePlan, FinetuneRecipe, LrSchedule};
use super::trainer::FinetuneTrainer;
use crate::TaskError;
use crate::features::PassProgress;
use crate::task::check::{self, setting};
use crate::task::model::strides;
use crate::task::{Evaluate, Evaluation, Example, Inference, TrainingExamples};

/// Relative improvement of the loss below which there is a plateau, the default of PyTorch's `ReduceLROnPlateau`.
const PLATEAU_THRESHOLD: f64 = 1e-4;
/// Images of a batch of an evaluation.
const EVAL_BATCH: usize = 16;

/// What the caller provides for a run.
pub struct FinetuneControl<'a> {
    /// Device to compute on.
    pub device: Device,
    /// Threads to use.
    pub cores: usize,
    /// Set (by Ctrl-C) to stop after the current step, with a checkpoint.
    pub stop: &'a AtomicBool,
    /// Called for every event.
    pub report: &'a mut dyn FnMut(FinetuneEvent<'_>),
    /// Called after every batch of an evaluation; stops it when it breaks.
    pub evaluating: &'a (dyn Fn(PassProgress) -> ControlFlow<()> + Sync),
}

/// An event of a run.
pub enum FinetuneEvent<'a> {
    /// A warning about labels that cannot be used.
    Note(&'a str),
    /// The run starts at step `from`.
    Start {
        /// Examples of an epoch.
        examples: usize,
        /// Steps in all.
        steps: u64,
        /// Examples of a step.
        batch: usize,
        /// Steps that are done.
        from: u64,
    },
    /// The backbone starts from the recipe's `model.init`.
    Loaded(&'a import::ImportReport),
    /// A step is done.
    Step {
        /// Steps done.
        step: u64,
        /// Steps in all.
        steps: u64,
        /// Metrics of this step.
        metrics: &'a Metrics,
    },
    /// The model was evaluated.
    Evaluated {
        /// After so many steps.
        step: u64,
        /// The evaluation.
        evaluation: &'a Evaluation,
        /// Whether it is the best so far.
        best: bool,
    },
}

/// The end of a run.
#[derive(Clone, Debug, Serialize)]
pub struct FinetuneSummary {
    /// Steps that are done.
    pub steps: u64,
    /// Whether that is all of them.
    pub finished: bool,
    /// Examples of an epoch.
    pub examples: usize,
    /// Seconds of this process.
    pub seconds: f64,
    /// Metrics of the last step of this process.
    pub metrics: Metrics,
    /// The evaluation that the model was selected by.
    pub best: Option<BestCheckpoint>,
    /// The model; none for a run that was stopped.
    pub model: Option<PathBuf>,
}

/// Runs `recipe` in `folder`, from the start or, with `resume`, from the last checkpoint there.
///
/// A run that was stopped or killed at any moment and is resumed takes the same steps as one that was not; on one
/// thread, to the bit.
///
/// # Errors
/// See [`TaskError`]; whatever happens, the last good checkpoint stays.
pub fn train<T: TrainingExamples + Evaluate>(
    recipe: &FinetuneRecipe<T::Config>,
    folder: &Path,
    resume: bool,
    control: &mut FinetuneControl<'_>,
) -> Result<FinetuneSummary, TaskError> {
    let started = Instant::now();
    // An existing run is locked from here on; a new one has no folder until it can start.
    let mut lock = match resume && folder.is_dir() {
        true => Some(FolderLock::take(folder)?),
        false => None,
    };
    T::check(&recipe.task)?;
    check::size(recipe.model.size, 1)?;
    if recipe.run.self_correction_start > 0 && !T::REFINES_LABELS {
        let expected = format!("0: the labels of {} cannot be refined", T::NAME);
        return Err(setting(
            "run.self_correction_start",
            &expected,
            recipe.run.self_correction_start,
        ));
    }
    let selection = recipe.selection_split();
    let (task, data) = T::open(&recipe.task, &recipe.data.path, selection.as_ref())?;
    let eval = match &selection {
        Some(split) => Some(task.open_test(&recipe.data.path, split)?),
        None => None,
    };
    for note in task.notes(&data) {
        (control.report)(FinetuneEvent::Note(&note));
    }
    check_files(&task.files(&data))?;
    let examples = task.count(&data);
    let on_cpu = control.device == Device::flex();
    let plan = recipe.clone().plan(examples, control.cores, on_cpu)?;
    let batch = plan.recipe.run.batch;
    task.check_batch(&data, batch)?;
    let InitialBackbone {
        backbone,
        meta,
        preprocess,
        loaded,
    } = init::backbone(&plan, &control.device)?;
    if let Some(report) = &loaded {
        (control.report)(FinetuneEvent::Loaded(report));
    }
    T::check_size(recipe.model.size, &strides(&backbone))?;
    let mut names = Vec::new();
    named::visit(&backbone, &mut |name, _, _| names.push(name.to_owned()));
    check_frozen(&recipe.model.freeze, &names)?;
    check_adapter(&recipe.model, &backbone.parameter_groups()?)?;
    let mut trainer =
        FinetuneTrainer::new(plan, task, backbone, meta, preprocess, &control.device)?;
    // After all checks, so that a run that cannot start leaves no folder.
    if !resume {
        lock = Some(begin::<T>(
            folder,
            &trainer.plan,
            examples,
            &control.device,
        )?);
    }
    let mut state = LoopState::default();
    if resume && let Some(path) = checkpoints::latest(folder)? {
        state = checkpoint::restore(&path, &mut trainer, examples)?;
    }
    let plan = trainer.plan.clone();
    let data = Arc::new(data);
    let mut loader = loader(&trainer, Arc::clone(&data), state.position);
    checkpoints::remove_incomplete(folder)?;
    let mut log = Log::open(folder, trainer.step, &[])?;
    let mut metrics = Metrics::new();
    let mut saved = None;
    (control.report)(FinetuneEvent::Start {
        examples,
        steps: plan.steps,
        batch,
        from: trainer.step,
    });

    let from = trainer.step;
    loop {
        let step = trainer.step;
        let last = step >= plan.steps;
        // Before the next step rather than after the last: when these are interrupted, the resumed process repeats them.
        if finished_cycles(&plan, step) > state.cycles {
            end_cycle(&mut trainer, &data)?;
            state.cycles += 1;
        }
        let due = step > state.last_evaluation
            && (plan
                .eval_every
                .is_some_and(|every| step.is_multiple_of(every))
                || last);
        if let Some(eval) = eval.as_ref().filter(|_| due) {
            match evaluate(folder, &mut trainer, eval, &mut state, control) {
                Err(TaskError::Stopped) => break,
                other => log.write(step, &other?)?,
            }
        }
        if step > from && step.is_multiple_of(plan.save_every) {
            checkpoint::save(folder, &trainer, &state, examples)?;
            saved = Some(step);
        }
        if last || control.stop.load(Ordering::Relaxed) {
            break;
        }

        let step_started = Instant::now();
        let items = loader.next();
        state.position = items.position;
        let batch = { items.items.into_iter() }.collect::<Result<Vec<_>, TaskError>>()?;
        metrics = (trainer.step(&batch)).map_err(|error| {
            let keys: Vec<&str> = batch.iter().map(|example| example.key.as_str()).collect();
            not_finite(folder, step + 1, error.term, error.value, &keys)
        })?;
        let step = trainer.step;
        let epoch = step as f64 / plan.steps_per_epoch as f64;
        let speed = batch.len() as f64 / step_started.elapsed().as_secs_f64();
        metrics.insert("epoch".to_owned(), epoch);
        metrics.insert("speed/images_per_second".to_owned(), speed);
        if step.is_multiple_of(plan.recipe.run.log_every) || step == plan.steps || step == 1 {
            log.write(step, &metrics)?;
        }
        (control.report)(FinetuneEvent::Step {
            step,
            steps: plan.steps,
            metrics: &metrics,
        });
    }

    // At the end and when stopped, so that no finished step is lost.
    drop(loader);
    if saved != Some(trainer.step) {
        checkpoint::save(folder, &trainer, &state, examples)?;
    }
    let finished = trainer.step >= plan.steps;
    let model = folder.join("model.safetensors");
    if finished {
        let last = folder.join("last.safetensors");
        trainer.model().save(&last, None)?;
        let best = folder.join("best.safetensors");
        let selected = if state.best.is_some() && best.is_file() {
            best
        } else {
            last
        };
        let bytes = fs_err::read(selected)?;
        atomic_write(&model, |file| file.write_all(&bytes))?;
    }
    drop(lock);
    Ok(FinetuneSummary {
        steps: trainer.step,
        finished,
        examples,
        seconds: started.elapsed().as_secs_f64(),
        metrics,
        best: state.best,
        model: finished.then_some(model),
    })
}

/// Cycles of self-correction that are finished at a step.
fn finished_cycles<C>(plan: &FinetunePlan<C>, step: u64) -> u64 {
    let run = &plan.recipe.run;
    let epoch = step / plan.steps_per_epoch;
    match run.self_correction_start {
        0 => 0,
        first if epoch < first => 0,
        first => (epoch - first) / run.self_correction_interval + 1,
    }
}

/// Ends a cycle of self-correction; statistics are estimated on an epoch of training images.
fn end_cycle<T: TrainingExamples>(
    trainer: &mut FinetuneTrainer<T>,
    data: &Arc<T::TrainingSet>,
) -> Result<(), TaskError> {
    let mut loader = loader(trainer, Arc::clone(data), LoaderPosition::default());
    let mut unreadable = None;
    let count = loader.steps_per_epoch();
    let next = |_| match { loader.next().items.into_iter() }.collect::<Result<Vec<_>, _>>() {
        Ok(batch) => Some(batch),
        Err(error) => {
            unreadable = Some(error);
            None
        }
    };
    trainer.end_cycle((0..count).map_while(next));
    unreadable.map_or(Ok(()), Err)
}

/// Evaluates the model, saves it if it is the best so far, and lowers the learning rate on a plateau.
fn evaluate<T: Evaluate>(
    folder: &Path,
    trainer: &mut FinetuneTrainer<T>,
    test_set: &T::TestSet,
    state: &mut LoopState,
    control: &mut FinetuneControl<'_>,
) -> Result<Metrics, TaskError> {
    let model = trainer.model();
    let inference = Inference {
        batch: EVAL_BATCH,
        threads: control.cores,
        predictions: false,
        progress: control.evaluating,
    };
    let evaluation = model.task.evaluate(&model, test_set, &inference)?;
    let Some(metric) = evaluation.scores.metrics.first() else {
        return Err(TaskError::TooFew {
            what: evaluation.data,
            expected: "a metric to select checkpoints by",
            found: 0,
        });
    };
    let previous = state.best.as_ref();
    let best = previous.is_none_or(|best| metric.is_better_than(best.metric.value));
    if best {
        model.save(&folder.join("best.safetensors"), Some(metric.clone()))?;
        state.best = Some(BestCheckpoint {
            metric: metric.clone(),
            step: trainer.step,
            data: evaluation.data.clone(),
        });
    }
    // A plateau of the loss where the task evaluates one, else of the metric.
    let improved = match &evaluation.loss {
        None => best,
        Some(loss) => {
            let lowest = state.lowest_loss;
            let lower = lowest.is_none_or(|lowest| loss.improves_on(lowest, PLATEAU_THRESHOLD));
            if lower {
                state.lowest_loss = Some(loss.value);
            }
            lower
        }
    };
    state.since_improvement = if improved {
        0
    } else {
        state.since_improvement + 1
    };
    let optimizer = &trainer.plan.recipe.optimizer;
    if optimizer.lr_schedule == LrSchedule::Plateau && state.since_improvement > optimizer.patience
    {
        trainer.plateau_factor *= optimizer.gamma;
        state.since_improvement = 0;
    }
    state.plateau_factor = trainer.plateau_factor;
    state.last_evaluation = trainer.step;
    (control.report)(FinetuneEvent::Evaluated {
        step: trainer.step,
        evaluation: &evaluation,
        best,
    });
    let metrics = evaluation.scores.metrics.into_iter();
    Ok(metrics
        .map(|metric| (format!("eval/{}", metric.name), metric.value))
        .collect())
}

/// Checks that all files exist before the first step: the last may be read after hours.
///
/// # Errors
/// One is missing.
fn check_files(files: &[&Path]) -> Result<(), TaskError> {
    let missing: Vec<&&Path> = files.iter().filter(|file| !file.is_file()).collect();
    let Some(first) = missing.first() else {
        return Ok(());
    };
    Err(TaskError::Mismatch {
        file: first.display().to_string(),
        expected: "a file that the labels name (paths are relative to the file with the labels)"
            .to_owned(),
        found: format!(
            "none; {} of {} such files are missing",
            missing.len(),
            files.len()
        ),
    })
}

/// Creates the folder of a new run.
fn begin<T: TrainingExamples>(
    folder: &Path,
    plan: &FinetunePlan<T::Config>,
    examples: usize,
    device: &Device,
) -> Result<FolderLock, TaskError> {
    fs_err::create_dir_all(folder)?;
    let lock = FolderLock::take(folder)?;
    let path = folder.join("run.toml");
    if path.exists() {
        return Err(TaskError::RunExists {
            folder: folder.to_owned(),
        });
    }
    let text = plan.to_toml(T::NAME, examples, &format!("{device:?}"));
    atomic_write(&path, |file| file.write_all(text.as_bytes()))?;
    Ok(lock)
}

type LoadedExample<T> = Result<Example<<T as crate::task::Objective>::Target>, TaskError>;

fn loader<T: TrainingExamples>(
    trainer: &FinetuneTrainer<T>,
    data: Arc<T::TrainingSet>,
    from: LoaderPosition,
) -> Loader<LoadedExample<T>> {
    let plan = &trainer.plan;
    let (seed, batch, examples) = (
        plan.recipe.seed,
        plan.recipe.run.batch,
        trainer.task.count(&data),
    );
    let (task, preprocess) = (trainer.task.clone(), trainer.preprocess.clone());
    let images = Arc::clone(&data);
    let has_own_order = task.epoch_order(&data, batch, seed, 0).is_some();
    let load = move |ItemRequest { item, epoch, place }| {
        let mut rng = rng_for(seed, epoch, &format!("example {item} at {place}"));
        Some(task.example(&images, item, &preprocess, &mut rng))
    };
    if !has_own_order {
        return Loader::new(examples, batch, seed, plan.workers, from, load);
    }
    let task = trainer.task.clone();
    let order = move |epoch| {
        task.epoch_order(&data, batch, seed, epoch)
            .unwrap_or_default()
    };
    Loader::ordered(examples, batch, plan.workers, from, order, load)
}

/// Writes the images of the batch whose loss is not finite.
fn not_finite(folder: &Path, step: u64, term: String, value: f64, keys: &[&str]) -> TaskError {
    let file = folder.join("nonfinite.txt");
    let text: String = keys.iter().map(|key| format!("{key}\n")).collect();
    match atomic_write(&file, |out| out.write_all(text.as_bytes())) {
        Err(error) => error.into(),
        Ok(()) => TaskError::NonFiniteLoss {
            step,
            term,
            value,
            keys: file,
        },
    }
}
