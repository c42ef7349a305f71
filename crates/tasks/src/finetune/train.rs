//! The run: one loop from the first step, or from a checkpoint, to the model's file.
//!
//! | file of the run's folder | content |
//! |---|---|
//! | `run.toml` | the resolved recipe |
//! | `metrics.jsonl`, `events.out.tfevents.*` | figures by step, `eval/…` among them |
//! | `checkpoints/` | the last checkpoints ([`super::checkpoint`]) |
//! | `best.safetensors` | the model with the best metric so far, where one is chosen |
//! | `last.safetensors` | the model after the last step |
//! | `model.safetensors` | the one that `run.select` says |
//! | `nonfinite.txt` | images of the batch that a loss was not finite on; only after that |

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::tensor::Device;
use clasp_data::atomic::{FolderLock, atomic_write};
use clasp_data::image::{Filter, IMAGENET_MEAN, IMAGENET_STD};
use clasp_data::loader::{ItemRequest, Loader, LoaderPosition};
use clasp_data::rng_for;
use clasp_model::ModelError;
use clasp_model::backbone::{Backbone, BackboneConfig};
use clasp_model::moe::{is_moe, is_prompt};
use clasp_model::named;
use clasp_run::{Log, Metrics, checkpoints};
use clasp_weights::backbone::{BackboneMeta, backbone_state};
use clasp_weights::import::{self, import};
use clasp_weights::state::load_state_dict;
use serde::Serialize;

use super::check;
use super::checkpoint::{self, Best, Progress};
use super::model::strides;
use super::recipe::{Decline, ModelSection, Norm, Plan, Recipe, Tune, setting};
use super::trainer::Trainer;
use super::{Example, Report, Running, Task};
use crate::TaskError;
use crate::features::Preprocess;
use crate::frozen;

/// A loss is lower by this share or not at all, as PyTorch's scheduler of plateaus has it.
const LOWER: f64 = 1e-4;

/// What the caller gives a run to live with.
pub struct Control<'a> {
    /// Where to compute.
    pub device: Device,
    /// Threads that may be used.
    pub cores: usize,
    /// Set (by Ctrl-C) to stop after the step that is under way, with a checkpoint.
    pub stop: &'a AtomicBool,
    /// Hears of everything that happens.
    pub report: &'a mut dyn FnMut(Event<'_>),
    /// Hears how far an evaluation is.
    pub evaluating: &'a (dyn Fn(frozen::Progress) -> std::ops::ControlFlow<()> + Sync),
}

/// Something to tell the user.
pub enum Event<'a> {
    /// Something in the data that cannot be used.
    Note(&'a str),
    /// The run begins, at step `from`.
    Start {
        /// Examples of an epoch.
        examples: usize,
        /// Steps in all.
        steps: u64,
        /// Examples of a step.
        batch: usize,
        /// Steps that are done already.
        from: u64,
    },
    /// The backbone starts from the recipe's `model.init`.
    Loaded(&'a import::Report),
    /// A step is done.
    Step {
        /// Steps done.
        step: u64,
        /// Steps in all.
        steps: u64,
        /// Figures of this step.
        metrics: &'a Metrics,
    },
    /// The model was evaluated.
    Evaluated {
        /// After so many steps.
        step: u64,
        /// What was found.
        report: &'a Report,
        /// Whether it is the best so far.
        best: bool,
    },
}

/// How a run ended.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Steps that are done.
    pub steps: u64,
    /// Whether that is all of them.
    pub finished: bool,
    /// Examples of an epoch.
    pub examples: usize,
    /// Seconds of this process.
    pub seconds: f64,
    /// Figures of the last step of this process.
    pub metrics: Metrics,
    /// What the model was chosen by.
    pub best: Option<Best>,
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
pub fn train<T: Task>(
    recipe: &Recipe<T::Settings>,
    folder: &Path,
    resume: bool,
    control: &mut Control<'_>,
) -> Result<Summary, TaskError> {
    let started = Instant::now();
    // Of a run that exists from here on; a new one has no folder until it can begin.
    let mut lock = match resume && folder.is_dir() {
        true => Some(FolderLock::take(folder)?),
        false => None,
    };
    T::check(&recipe.task)?;
    check::size(recipe.model.size, 1)?;
    if recipe.run.correct_from > 0 && !T::CORRECTS {
        let expected = format!("0: {} has no labels that a model could refine", T::NAME);
        return Err(setting(
            "run.correct_from",
            &expected,
            recipe.run.correct_from,
        ));
    }
    let choose_by = recipe.choose_by();
    let (task, data) = T::open(&recipe.task, &recipe.data.path, choose_by.as_ref())?;
    let eval = match &choose_by {
        Some(split) => Some(task.open_eval(&recipe.data.path, split)?),
        None => None,
    };
    for note in task.notes(&data) {
        (control.report)(Event::Note(&note));
    }
    check_files(&task.files(&data))?;
    let examples = task.examples(&data);
    let on_cpu = control.device == Device::flex();
    let plan = recipe.clone().plan(examples, control.cores, on_cpu)?;
    let batch = plan.recipe.run.batch;
    task.check_batch(&data, batch)?;
    let (backbone, meta, preprocess) = backbone(&plan, control)?;
    T::check_size(recipe.model.size, &strides(&backbone))?;
    let mut names = Vec::new();
    named::visit(&backbone, &mut |name, _, _| names.push(name.to_owned()));
    check_frozen(&recipe.model.freeze, &names)?;
    check_adapter(&recipe.model, &names)?;
    let mut trainer = Trainer::new(plan, task, backbone, meta, preprocess, &control.device)?;
    // Only now, so that a run that cannot begin leaves no folder behind.
    if !resume {
        lock = Some(begin::<T>(
            folder,
            &trainer.plan,
            examples,
            &control.device,
        )?);
    }
    let mut progress = Progress::default();
    if resume && let Some(path) = checkpoints::latest(folder)? {
        progress = checkpoint::restore(&path, &mut trainer, examples)?;
    }
    let plan = trainer.plan.clone();
    let data = Arc::new(data);
    let mut loader = loader(&trainer, Arc::clone(&data), progress.position);
    checkpoints::tidy(folder)?;
    let mut log = Log::open(folder, trainer.step, &[])?;
    let mut metrics = Metrics::new();
    let mut saved = None;
    (control.report)(Event::Start {
        examples,
        steps: plan.steps,
        batch,
        from: trainer.step,
    });

    let from = trainer.step;
    loop {
        let step = trainer.step;
        let last = step >= plan.steps;
        // Before the next step rather than after the last: a stop in the middle of these leaves them to the process that
        // goes on.
        if cycles(&plan, step) > progress.cycles {
            correct(&mut trainer, &data)?;
            progress.cycles += 1;
        }
        let due = step > progress.evaluated
            && (plan
                .eval_every
                .is_some_and(|every| step.is_multiple_of(every))
                || last);
        if let Some(eval) = eval.as_ref().filter(|_| due) {
            match choose(folder, &mut trainer, eval, &mut progress, control) {
                Err(TaskError::Stopped) => break,
                other => log.write(step, &other?)?,
            }
        }
        if step > from && step.is_multiple_of(plan.save_every) {
            checkpoint::save(folder, &trainer, &progress, examples)?;
            saved = Some(step);
        }
        if last || control.stop.load(Ordering::Relaxed) {
            break;
        }

        let begun = Instant::now();
        let items = loader.next();
        progress.position = items.position;
        let batch = { items.items.into_iter() }.collect::<Result<Vec<_>, TaskError>>()?;
        metrics = (trainer.step(&batch)).map_err(|error| {
            let keys: Vec<&str> = batch.iter().map(|example| example.key.as_str()).collect();
            not_finite(folder, step + 1, error.term, error.value, &keys)
        })?;
        let step = trainer.step;
        let epoch = step as f64 / plan.steps_per_epoch as f64;
        let speed = batch.len() as f64 / begun.elapsed().as_secs_f64();
        metrics.insert("epoch".to_owned(), epoch);
        metrics.insert("speed/images_per_second".to_owned(), speed);
        if step.is_multiple_of(plan.recipe.run.log_every) || step == plan.steps || step == 1 {
            log.write(step, &metrics)?;
        }
        (control.report)(Event::Step {
            step,
            steps: plan.steps,
            metrics: &metrics,
        });
    }

    // At the end, and when stopped: nothing that was computed is lost.
    drop(loader);
    if saved != Some(trainer.step) {
        checkpoint::save(folder, &trainer, &progress, examples)?;
    }
    let finished = trainer.step >= plan.steps;
    let model = folder.join("model.safetensors");
    if finished {
        let last = folder.join("last.safetensors");
        trainer.model().save(&last, None)?;
        let best = folder.join("best.safetensors");
        let chosen = if progress.best.is_some() && best.is_file() {
            best
        } else {
            last
        };
        let bytes = fs_err::read(chosen)?;
        atomic_write(&model, |file| file.write_all(&bytes))?;
    }
    drop(lock);
    Ok(Summary {
        steps: trainer.step,
        finished,
        examples,
        seconds: started.elapsed().as_secs_f64(),
        metrics,
        best: progress.best,
        model: finished.then_some(model),
    })
}

/// Cycles of self-correction that end up to a step.
fn cycles<S>(plan: &Plan<S>, step: u64) -> u64 {
    let run = &plan.recipe.run;
    let epoch = step / plan.steps_per_epoch;
    match run.correct_from {
        0 => 0,
        first if epoch < first => 0,
        first => (epoch - first) / run.correct_every + 1,
    }
}

/// Ends a cycle of self-correction; statistics come from an epoch of training images.
fn correct<T: Task>(trainer: &mut Trainer<T>, data: &Arc<T::Data>) -> Result<(), TaskError> {
    let mut loader = loader(trainer, Arc::clone(data), LoaderPosition::default());
    let mut wrong = None;
    let count = loader.steps_per_epoch();
    let next = |_| match { loader.next().items.into_iter() }.collect::<Result<Vec<_>, _>>() {
        Ok(batch) => Some(batch),
        Err(error) => {
            wrong = Some(error);
            None
        }
    };
    trainer.correct((0..count).map_while(next));
    wrong.map_or(Ok(()), Err)
}

/// Evaluates the model, keeps it if it is the best so far, and lowers the learning rate on a plateau.
fn choose<T: Task>(
    folder: &Path,
    trainer: &mut Trainer<T>,
    eval: &T::Eval,
    progress: &mut Progress,
    control: &mut Control<'_>,
) -> Result<Metrics, TaskError> {
    let model = trainer.model();
    let running = Running {
        batch: 16,
        threads: control.cores,
        predictions: false,
        progress: control.evaluating,
    };
    let report = model.task.evaluate(&model, eval, &running)?;
    let Some((name, value)) = report.figures.first().cloned() else {
        return Err(TaskError::TooFew {
            what: report.data,
            expected: "something to choose a model by",
            found: 0,
        });
    };
    let gain = |before: f64| {
        if lower_is_better(&name) {
            before - value
        } else {
            value - before
        }
    };
    let best = progress
        .best
        .as_ref()
        .is_none_or(|best| gain(best.value) > 0.0);
    if best {
        model.save(
            &folder.join("best.safetensors"),
            Some((name.clone(), value)),
        )?;
        progress.best = Some(Best {
            metric: name,
            value,
            step: trainer.step,
            data: report.data.clone(),
        });
    }
    // A plateau is one of the loss where there is one, else of the metric.
    let better = match report.loss {
        None => best,
        Some(loss) => {
            let lower = progress.lowest.is_none_or(|low| loss < low * (1.0 - LOWER));
            if lower {
                progress.lowest = Some(loss);
            }
            lower
        }
    };
    progress.without_gain = if better { 0 } else { progress.without_gain + 1 };
    let optimiser = &trainer.plan.recipe.optimiser;
    if optimiser.decline == Decline::Plateau && progress.without_gain > optimiser.patience {
        trainer.plateaus *= optimiser.gamma;
        progress.without_gain = 0;
    }
    progress.plateaus = trainer.plateaus;
    progress.evaluated = trainer.step;
    (control.report)(Event::Evaluated {
        step: trainer.step,
        report: &report,
        best,
    });
    let figures = report.figures.into_iter();
    Ok(figures
        .map(|(name, value)| (format!("eval/{name}"), value))
        .collect())
}

/// Whether a figure of that name is an error rate.
pub fn lower_is_better(name: &str) -> bool {
    name.starts_with("MR")
}

/// Checks that each word of `model.freeze` begins the name of a parameter of the backbone.
///
/// # Errors
/// One does not.
fn check_frozen(freeze: &[String], names: &[String]) -> Result<(), TaskError> {
    let known = |start: &&String| names.iter().any(|name| name.starts_with(start.as_str()));
    match freeze.iter().find(|start| !known(start)) {
        Some(unknown) => {
            let first: BTreeSet<&str> = { names.iter() }
                .filter_map(|name| name.split('.').next())
                .collect();
            let first: Vec<&str> = first.into_iter().collect();
            let expected = format!("how names of parameters begin: {}", first.join(", "));
            Err(setting("model.freeze", &expected, unknown))
        }
        None => Ok(()),
    }
}

/// Checks that the backbone, of parameters called `names`, has what the recipe wants trained of it.
///
/// # Errors
/// It has no prompts to be learnt, or nothing that adapts it.
fn check_adapter(model: &ModelSection, names: &[String]) -> Result<(), TaskError> {
    if model.mix == "learn" && !names.iter().any(|name| is_prompt(name)) {
        let expected = "auto, a task or weights: this backbone has no prompts";
        return Err(setting("model.mix", expected, &model.mix));
    }
    let adapted = |name: &String| is_moe(name) || name.contains("semantic_embed");
    if model.tune == Tune::Experts && !names.iter().any(adapted) {
        let expected = "full or head: this backbone has no adapter";
        return Err(setting("model.tune", expected, "experts"));
    }
    Ok(())
}

/// Looks for all files before the first step, as the last may be read after hours.
///
/// # Errors
/// One is not there.
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

/// Makes the folder of a new run.
fn begin<T: Task>(
    folder: &Path,
    plan: &Plan<T::Settings>,
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

/// The backbone to start from, on the autodiff side of the device, what its file will say, and the preprocessing.
fn backbone<S>(
    plan: &Plan<S>,
    control: &mut Control<'_>,
) -> Result<(Backbone, BackboneMeta, Preprocess), TaskError> {
    let model = &plan.recipe.model;
    let [height, width] = model.size;
    let device = control.device.clone().inner();
    let mut rng = rng_for(plan.recipe.seed, 0, "backbone");
    let (backbone, mut meta) = if model.init.as_os_str().is_empty() {
        let config = BackboneConfig {
            drop_path: model.drop_path,
            ..BackboneConfig::named(&model.backbone)?
        };
        let config = strided(config.for_images(model.size), &model.strides)?;
        let backbone = config.init(&mut rng, &device.autodiff());
        (backbone, fresh_meta(config))
    } else {
        let options = import::Options {
            size: Some(model.size),
            ..import::Options::default()
        };
        let imported = import(&model.init, &options, &device)?;
        (control.report)(Event::Loaded(&imported.report));
        let mut meta = imported.meta;
        meta.config.drop_path = model.drop_path;
        meta.config = strided(meta.config.for_images(model.size), &model.strides)?;
        let fresh = meta.config.init(&mut rng, &device.autodiff());
        let (backbone, report) = load_state_dict(fresh, &backbone_state(&imported.backbone));
        if !report.is_complete() {
            return Err(TaskError::Mismatch {
                file: model.init.display().to_string(),
                expected: "the tensors of its backbone".to_owned(),
                found: report.to_string(),
            });
        }
        (backbone, meta)
    };
    (meta.height, meta.width) = (height, width);
    match model.norm {
        Norm::Backbone => {}
        Norm::Half => (meta.mean, meta.std) = ([0.5; 3], [0.5; 3]),
        Norm::Imagenet => (meta.mean, meta.std) = (IMAGENET_MEAN, IMAGENET_STD),
    }
    let preprocess = Preprocess::of(&meta, &model.init)?;
    Ok((backbone, meta, preprocess))
}

/// The same backbone with the strides of a recipe, if it names any.
fn strided(config: BackboneConfig, strides: &[usize]) -> Result<BackboneConfig, TaskError> {
    if strides.is_empty() {
        return Ok(config);
    }
    let name = config.name;
    config.with_strides(strides).map_err(|error| {
        let expected = match error {
            ModelError::Setting { expected, .. } => format!(
                "[] for the own strides of {} (--set 'model.strides=[]'), or {expected}",
                name
            ),
            other => other.to_string(),
        };
        setting("model.strides", &expected, format!("{strides:?}"))
    })
}

fn fresh_meta(config: BackboneConfig) -> BackboneMeta {
    BackboneMeta {
        stage: "init".to_owned(),
        clasp: env!("CARGO_PKG_VERSION").to_owned(),
        config,
        height: 0,
        width: 0,
        mean: IMAGENET_MEAN,
        std: IMAGENET_STD,
        filter: filter_name(Filter::Bicubic).to_owned(),
        method: "none".to_owned(),
        heads: Vec::new(),
        tasks: Vec::new(),
        step: 0,
        vocabulary: String::new(),
        recipe: String::new(),
        licences: vec!["program: MIT OR Apache-2.0".to_owned()],
        origin: String::new(),
    }
}

fn filter_name(filter: Filter) -> &'static str {
    match filter {
        Filter::Bicubic => "bicubic",
        Filter::Bilinear => "bilinear",
        _ => "nearest",
    }
}

type Item<T> = Result<Example<<T as Task>::Target>, TaskError>;

fn loader<T: Task>(
    trainer: &Trainer<T>,
    data: Arc<T::Data>,
    from: LoaderPosition,
) -> Loader<Item<T>> {
    let plan = &trainer.plan;
    let (seed, batch, examples) = (
        plan.recipe.seed,
        plan.recipe.run.batch,
        trainer.task.examples(&data),
    );
    let (task, preprocess) = (trainer.task.clone(), trainer.preprocess.clone());
    let shown = Arc::clone(&data);
    let own = task.order(&data, batch, seed, 0).is_some();
    let load = move |ItemRequest { item, epoch, place }| {
        let mut rng = rng_for(seed, epoch, &format!("example {item} at {place}"));
        Some(task.example(&shown, item, &preprocess, &mut rng))
    };
    if !own {
        return Loader::new(examples, batch, seed, plan.workers, from, load);
    }
    let task = trainer.task.clone();
    let order = move |epoch| task.order(&data, batch, seed, epoch).unwrap_or_default();
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
