//! The training loop: from the first step, or from a checkpoint, to the model's file.
//!
//! Beside the files of every run folder ([`clasp_run::folder`]) that of fine-tuning holds
//!
//! | file | content |
//! |---|---|
//! | `best.safetensors` | the model with the best metric so far, unless the last step is selected |
//! | `last.safetensors` | the model after the last step |
//! | `model.safetensors` | the selected one of both (`run.checkpoint_selection`) |
//!
//! `metrics.jsonl` holds the metrics of evaluations as `eval/…`.
//!
//! Several ranks, processes or threads, may train one model ([`train_on_ranks`]): each computes the
//! backbone for its share of every batch, and rank 0 writes all files.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use burn::tensor::Device;
use clasp_data::atomic::atomic_write;
use clasp_data::loader::{ItemRequest, Loader, LoaderPosition};
use clasp_data::rng_for;
use clasp_metrics::metric::line_of;
use clasp_run::log::add_progress;
use clasp_run::ranks::{Digest, agree_on_recipe, check_digests, checkpoint_of_first};
use clasp_run::recipe::to_toml;
use clasp_run::schedule::is_logged;
use clasp_run::{
    CheckpointSchedule, Collective, Control, Event, Local, Machine, Metrics, RunFolder, RunSummary,
    StepError, checkpoints,
};
use serde::Serialize;

use super::checkpoint::{self, BestCheckpoint, LoopState};
use super::init::{self, InitialBackbone, check_adapter, check_frozen};
use super::recipe::{FinetunePlan, FinetuneRecipe, LrSchedule};
use super::trainer::FinetuneTrainer;
use crate::TaskError;
use crate::features::PassProgress;
use crate::task::check::{self, setting};
use crate::task::{Evaluate, Example, Inference, TrainingExamples};

/// Relative improvement of the loss below which there is a plateau, the default of PyTorch's
/// `ReduceLROnPlateau`.
const PLATEAU_THRESHOLD: f64 = 1e-4;
/// The selected model of a run folder.
const MODEL: &str = "model.safetensors";
/// The model with the best metric so far.
const BEST: &str = "best.safetensors";
/// Images of a batch of an evaluation.
const EVAL_BATCH: usize = 16;

/// How a run of fine-tuning ended.
#[derive(Clone, Debug, Serialize)]
pub struct FinetuneSummary {
    /// Steps, metrics, warnings, checkpoint.
    #[serde(flatten)]
    pub run: RunSummary,
    /// Examples of an epoch.
    pub examples: usize,
    /// The evaluation that the model was selected by.
    pub best: Option<BestCheckpoint>,
    /// The model; none for a run that was stopped.
    pub model: Option<PathBuf>,
    /// Whether the run had ended before: nothing was trained, and its model is as it was.
    pub had_ended: bool,
}

/// Runs `recipe` in `folder` on `device`, from the start or, with `resume`, from the last
/// checkpoint there.
///
/// A run that was stopped or killed at any moment and is resumed takes the same steps as one that
/// was not; on one thread, to the bit.
///
/// # Errors
///
/// See [`TaskError`]; in any case the last checkpoint stays.
pub fn train<T: TrainingExamples + Evaluate>(
    recipe: &FinetuneRecipe<T::Config>,
    folder: &Path,
    resume: bool,
    device: &Device,
    control: &mut Control<'_>,
) -> Result<FinetuneSummary, TaskError> {
    train_on_ranks::<T>(recipe, folder, resume, device, control, Arc::new(Local))
}

/// The same as one rank of several, each of which calls this with the same recipe and folder. The
/// step is that of one process with as many replicas. All ranks read every batch, since each
/// computes the loss on all of it, and evaluate; rank 0 writes the run folder, which all must reach
/// to resume.
///
/// # Errors
///
/// See [`train`]; if another rank ends, or has other settings or data, the error here is a
/// [`clasp_run::RunError::Collective`].
pub fn train_on_ranks<T: TrainingExamples + Evaluate>(
    recipe: &FinetuneRecipe<T::Config>,
    folder: &Path,
    resume: bool,
    device: &Device,
    control: &mut Control<'_>,
    collective: Arc<dyn Collective>,
) -> Result<FinetuneSummary, TaskError> {
    let started = Instant::now();
    let ranks = collective.as_ref();
    let OpenRun {
        mut run,
        examples,
        mut trainer,
        data,
        test_set,
        mut state,
        mut checkpoints,
    } = open::<T>(recipe, folder, resume, device, control, &collective)?;
    let plan = trainer.plan.clone();
    // Such a model may hold more than the run wrote, as a calibrated threshold. One beside an
    // evaluation that was stopped is of an earlier end of the run.
    let was_evaluated = test_set.is_none() || state.last_evaluation >= trainer.step;
    let ended = Some(folder.join(MODEL))
        .filter(|path| resume && trainer.step >= plan.steps && was_evaluated && path.is_file());
    let mut loader = loader(&trainer, Arc::clone(&data), state.position);
    let mut log = { run.as_ref() }
        .map(|run| run.open_log(trainer.step, &[]))
        .transpose()?;
    let mut metrics = Metrics::new();
    control.report(Event::Start {
        examples,
        batch: plan.recipe.run.batch,
        steps: plan.steps,
        from: trainer.step,
    });

    // Whether the last step is done and evaluated; a stop in its evaluation leaves that to a resume.
    let finished = loop {
        let step = trainer.step;
        let last = step >= plan.steps;
        // Before the next step rather than after the last: when these are interrupted, the resumed
        // process repeats them.
        if finished_cycles(&plan, step) > state.cycles {
            end_cycle(&mut trainer, &data)?;
            state.cycles += 1;
            checkpoints.mark_outdated();
        }
        let due = step > state.last_evaluation
            && (plan
                .eval_every
                .is_some_and(|every| step.is_multiple_of(every))
                || last);
        if let Some(test_set) = test_set.as_ref().filter(|_| due) {
            // Every rank evaluates: it would otherwise wait, and the results are the same.
            let best = run.as_ref().map(|_| folder.join(BEST));
            let result = evaluate(best.as_deref(), &mut trainer, test_set, &mut state, control);
            let stopped = ranks.any(matches!(result, Err(TaskError::Stopped)))?;
            match result {
                Err(TaskError::Stopped) => break false,
                Err(error) => return Err(error),
                Ok(evaluation) => {
                    if let Some(log) = &mut log {
                        log.write(step, &evaluation)?;
                    }
                    checkpoints.mark_outdated();
                }
            }
            if stopped {
                break false;
            }
            if !ranks.is_alone() {
                state = ranks.of_first(&state)?;
                trainer.plateau_factor = state.plateau_factor;
            }
        }
        if step > 0 && !last && checkpoints.is_due(step) {
            check_digests(run.as_mut(), step, || digest(&trainer), ranks, control)?;
            if run.is_some() {
                let path = checkpoint::save(&mut checkpoints, folder, &trainer, &state, examples)?;
                control.report(Event::CheckpointSaved(&path));
            }
        }
        if last || ranks.any(control.stop_requested())? {
            break last;
        }

        let begun = Instant::now();
        let batch = loader.next();
        state.position = batch.position;
        let batch = { batch.items.into_iter() }.collect::<Result<Vec<_>, TaskError>>()?;
        let keys = batch.iter().map(|example| example.key.as_str());
        metrics = trainer.step(&batch).map_err(|error| match (error, &run) {
            (StepError::Collective(error), _) => error.into(),
            (StepError::NonFinite(cause), Some(run)) => run.refuse_step(step + 1, cause, keys),
            (StepError::NonFinite(cause), None) => cause.in_step(step + 1, folder),
        })?;
        let epoch = trainer.step as f64 / plan.steps_per_epoch as f64;
        let seconds = begun.elapsed().as_secs_f64();
        add_progress(&mut metrics, epoch, batch.len(), seconds);
        if let Some(log) = &mut log
            && is_logged(trainer.step, plan.recipe.run.log_every, plan.steps)
        {
            log.write(trainer.step, &metrics)?;
        }
        control.report(Event::Step {
            step: trainer.step,
            steps: plan.steps,
            metrics: &metrics,
        });
    };

    // At the end and when stopped, so that no finished step is lost.
    drop(loader);
    check_digests(
        run.as_mut(),
        trainer.step,
        || digest(&trainer),
        ranks,
        control,
    )?;
    let had_ended = ended.is_some();
    let mut checkpoint = checkpoints::path(folder, trainer.step);
    if run.is_some() {
        checkpoint = checkpoint::save(&mut checkpoints, folder, &trainer, &state, examples)?;
        control.report(Event::CheckpointSaved(&checkpoint));
        if finished && !had_ended {
            save_model(folder, &trainer, &state)?;
        }
    }
    // No rank is done before the files are written.
    ranks.barrier()?;
    let model = ended.or_else(|| finished.then(|| folder.join(MODEL)));
    Ok(FinetuneSummary {
        run: RunSummary {
            steps: trainer.step,
            finished,
            seconds: started.elapsed().as_secs_f64(),
            metrics,
            warnings: run.map_or(Vec::new(), |run| run.warnings().to_vec()),
            checkpoint,
        },
        examples,
        best: state.best,
        model,
        had_ended,
    })
}

/// A run that is ready for its first step of this process.
struct OpenRun<T: TrainingExamples + Evaluate> {
    /// The run folder; rank 0 alone has it.
    run: Option<RunFolder>,
    /// Examples of an epoch.
    examples: usize,
    trainer: FinetuneTrainer<T>,
    data: Arc<T::TrainingSet>,
    /// What the model is selected by; none for the last step.
    test_set: Option<T::TestSet>,
    state: LoopState,
    checkpoints: CheckpointSchedule,
}

/// Opens data and run folder, builds the network and restores the last checkpoint, if there is one.
/// The folder of a new run is created last, so that a run that cannot start leaves none behind.
fn open<T: TrainingExamples + Evaluate>(
    recipe: &FinetuneRecipe<T::Config>,
    folder: &Path,
    resume: bool,
    device: &Device,
    control: &mut Control<'_>,
    collective: &Arc<dyn Collective>,
) -> Result<OpenRun<T>, TaskError> {
    let ranks = collective.as_ref();
    let writes = ranks.rank().writes();
    let existing = (resume && writes)
        .then(|| RunFolder::resume(folder))
        .transpose()?;
    check_task::<T>(recipe)?;
    let selection = recipe.selection_split();
    let (task, data) = T::open(&recipe.task, &recipe.data.path, selection.as_ref())?;
    let test_set = { selection.as_ref() }
        .map(|split| task.open_test(&recipe.data.path, split))
        .transpose()?;
    for note in task.notes(&data) {
        control.report(Event::Note(&note));
    }
    check_files(&task.files(&data))?;
    let examples = task.count(&data);
    let machine = Machine::alone(control.threads, *device == Device::flex());
    let plan = recipe.clone().plan(examples, machine.of_all(ranks)?)?;
    task.check_batch(&data, plan.recipe.run.batch)?;
    let InitialBackbone {
        backbone,
        meta,
        preprocess,
        loaded,
    } = init::backbone(&plan, device)?;
    if let Some(report) = &loaded {
        control.report(Event::WeightsLoaded {
            path: &recipe.model.init,
            report,
        });
    }
    T::check_size(recipe.model.size, &backbone.strides())?;
    let parameters = backbone.parameter_groups()?;
    check_frozen(&recipe.model.freeze, &parameters)?;
    check_adapter(&recipe.model, &parameters)?;
    let collective = Arc::clone(collective);
    let mut trainer =
        FinetuneTrainer::new(plan, task, backbone, meta, preprocess, device, collective)?;
    check_equal(&trainer, &data, ranks)?;
    let checkpoint = match &existing {
        Some(run) => run.latest_checkpoint()?,
        None => None,
    };
    let checkpoint = checkpoint_of_first(checkpoint, folder, ranks)?;
    let state = { checkpoint.as_deref() }
        .map(|path| checkpoint::restore(path, &mut trainer, examples))
        .transpose()?;
    if !ranks.is_alone() {
        ranks.agree("the weights at the start", &digest(&trainer))?;
    }
    let plan = &trainer.plan;
    let run_toml = plan.run_toml(T::NAME, examples, control.device_name);
    let run = writes
        .then(|| RunFolder::begin(existing, folder, &run_toml, [trainer.step, plan.steps]))
        .transpose()?;
    let resumed = checkpoint.map(|path| (trainer.step, path));
    let keep = plan.recipe.run.keep_checkpoints;
    let checkpoints = CheckpointSchedule::new(folder, plan.save_every, keep, resumed);
    Ok(OpenRun {
        run,
        examples,
        trainer,
        data: Arc::new(data),
        test_set,
        state: state.unwrap_or_default(),
        checkpoints,
    })
}

/// Checks of the recipe that depend on the task.
fn check_task<T: TrainingExamples>(recipe: &FinetuneRecipe<T::Config>) -> Result<(), TaskError> {
    T::check(&recipe.task)?;
    check::size(recipe.model.size, 1)?;
    let first = recipe.run.self_correction_start;
    if first > 0 && !T::REFINES_LABELS {
        let expected = format!("0: the labels of {} cannot be refined", T::NAME);
        return Err(setting("run.self_correction_start", &expected, first));
    }
    Ok(())
}

/// Checks that all ranks train the same: version, number of examples, recipe and names of the files.
/// Labels are compared by the loss of each step.
fn check_equal<T: TrainingExamples>(
    trainer: &FinetuneTrainer<T>,
    data: &T::TrainingSet,
    ranks: &dyn Collective,
) -> Result<(), TaskError> {
    if ranks.is_alone() {
        return Ok(());
    }
    let mut recipe = trainer.plan.recipe.clone();
    // Hosts may have the same files in other places.
    recipe.data.path = PathBuf::new();
    recipe.model.init = PathBuf::new();
    agree_on_recipe(&to_toml(&recipe), trainer.task.count(data), ranks)?;
    let mut names = Digest::default();
    for file in trainer.task.files(data) {
        let name = file.file_name().unwrap_or_default();
        names.add_text(&name.to_string_lossy());
    }
    Ok(ranks.agree("the digest of the files' names", &names.text())?)
}

/// Digest of everything that training changes.
fn digest<T: TrainingExamples>(trainer: &FinetuneTrainer<T>) -> String {
    let state = checkpoint::state(trainer);
    Digest::of_tensors(state.iter().map(|(name, tensor)| (&**name, &*tensor.data)))
}

/// Writes the model after the last step, and the selected one as `model.safetensors`.
fn save_model<T: Evaluate>(
    folder: &Path,
    trainer: &FinetuneTrainer<T>,
    state: &LoopState,
) -> Result<(), TaskError> {
    let [last, best, model] = ["last.safetensors", BEST, MODEL].map(|file| folder.join(file));
    trainer.model().save(&last, None)?;
    let selected = match state.best.is_some() && best.is_file() {
        true => best,
        false => last,
    };
    let bytes = fs_err::read(selected)?;
    Ok(atomic_write(&model, |file| file.write_all(&bytes))?)
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

/// Evaluates the model, saves it to the file `best_model`, if there is one, when it is the best so
/// far, and lowers the learning rate on a plateau.
fn evaluate<T: Evaluate>(
    best_model: Option<&Path>,
    trainer: &mut FinetuneTrainer<T>,
    test_set: &T::TestSet,
    state: &mut LoopState,
    control: &mut Control<'_>,
) -> Result<Metrics, TaskError> {
    let model = trainer.model();
    let stop = control.stop;
    let progress = |_: PassProgress| match stop.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    let inference = Inference {
        batch: EVAL_BATCH,
        threads: control.threads,
        predictions: false,
        progress: &progress,
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
        if let Some(path) = best_model {
            model.save(path, Some(metric.clone()))?;
        }
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
    control.report(Event::Evaluated {
        step: trainer.step,
        result: &line_of(&evaluation.scores.metrics),
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
