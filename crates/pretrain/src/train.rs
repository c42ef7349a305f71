//! Pre-training: one loop from the first step, or from a checkpoint, to the backbone file.
//!
//! Beside the files of every run folder ([`clasp_run::folder`]) that of pre-training holds
//!
//! | file | content |
//! |---|---|
//! | `experts.jsonl` | weights of the experts by prompt, a line a block and prompt ([`crate::experts`]) |
//! | `backbone.safetensors` | the teacher's backbone ([`clasp_weights::backbone`]) |
//! | `unreadable.txt` | images that could not be read, and why; only if there are any |

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use burn::tensor::Device;
use clasp_data::atomic::atomic_write;
use clasp_data::image::Filter;
use clasp_data::loader::{ItemRequest, Loader};
use clasp_model::prompt::{ATTRIBUTE, PART, PROMPTS};
use clasp_run::log::add_progress;
use clasp_run::schedule::is_logged;
use clasp_run::{CheckpointSchedule, Control, Event, Metrics, RunFolder, RunSummary};
use clasp_weights::backbone::{BackboneMeta, save_backbone};
use serde::Serialize;

use crate::checkpoint;
use crate::collapse::CollapseMonitor;
use crate::dataset::{ImageReads, ImageSample, PretrainDataset, ViewGenerator};
use crate::error::{PretrainError, Result};
use crate::experts::mean_entropy;
use crate::plan::{Machine, PretrainPlan};
use crate::recipe::PretrainRecipe;
use crate::step::Pretrainer;

/// How a run of pre-training ended.
#[derive(Clone, Debug, Serialize)]
pub struct PretrainSummary {
    /// Steps, metrics, warnings, checkpoint.
    #[serde(flatten)]
    pub run: RunSummary,
    /// Images of the dataset.
    pub images: usize,
    /// Images that could not be read.
    pub unreadable: usize,
    /// File of the teacher's backbone.
    pub backbone: PathBuf,
}

/// Runs `recipe` in `folder` on `device`, from the start or, with `resume`, from the last
/// checkpoint there.
///
/// A run that was stopped or killed at any moment and is resumed takes the same steps as one that
/// was not; on one thread, to the bit.
///
/// ```no_run
/// # fn main() -> Result<(), clasp_pretrain::PretrainError> {
/// use std::sync::atomic::AtomicBool;
///
/// use clasp_pretrain::PretrainRecipe;
/// use clasp_run::Control;
///
/// let settings = ["data.images=people", "data.labels=labels"].map(str::to_owned);
/// let recipe = PretrainRecipe::load("mini", &settings)?;
/// let mut control = Control {
///     device_name: "cpu",
///     threads: 2,
///     stop: &AtomicBool::new(false),
///     on_event: &mut |_| {},
/// };
/// let device = burn::tensor::Device::flex();
/// let done = clasp_pretrain::train(&recipe, "run".as_ref(), false, &device, &mut control)?;
/// println!("{} steps, {}", done.run.steps, done.backbone.display());
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// See [`PretrainError`]; in any case the last checkpoint stays.
pub fn train(
    recipe: &PretrainRecipe,
    folder: &Path,
    resume: bool,
    device: &Device,
    control: &mut Control<'_>,
) -> Result<PretrainSummary> {
    let started = Instant::now();
    let OpenRun {
        mut run,
        images,
        mut trainer,
        mut loader,
        mut checkpoints,
        unreadable,
    } = open(recipe, folder, resume, device, control)?;
    let plan = trainer.plan.clone();
    let mut log = run.open_log(trainer.step, &["experts.jsonl"])?;
    let mut monitor = CollapseMonitor::new(
        plan.prototypes,
        plan.recipe.run.batch * plan.recipe.views.global,
        plan.warmup_steps.max(plan.frozen_steps).max(100),
    )
    .with_weight(plan.recipe.loss.dino_weight);
    let mut metrics = Metrics::new();
    control.report(Event::Start {
        examples: images,
        batch: plan.recipe.run.batch,
        steps: plan.steps,
        from: trainer.step,
    });

    while trainer.step < plan.steps && !control.stop_requested() {
        let begun = Instant::now();
        let batch = loader.next();
        let complete = batch.items.len() == plan.recipe.run.batch;
        check_readable(&run, &unreadable, &plan, images, complete)?;

        let next = trainer.step + 1;
        let observe = is_logged(next, plan.recipe.run.log_every, plan.steps);
        let keys = batch.items.iter().map(|sample| sample.key.as_str());
        let outcome = trainer
            .step(&batch.items, observe)
            .map_err(|cause| run.refuse_step(next, cause, keys))?;
        metrics = outcome.metrics;
        let epoch = trainer.step as f64 / plan.steps_per_epoch as f64;
        let seconds = begun.elapsed().as_secs_f64();
        add_progress(&mut metrics, epoch, batch.items.len(), seconds);
        for prompt in PROMPTS {
            if let Some(entropy) = mean_entropy(&outcome.usage, prompt) {
                metrics.insert(format!("experts/{prompt}/entropy"), entropy);
            }
        }
        for warning in monitor.check(trainer.step, outcome.collapse) {
            run.warn(control, warning)?;
        }
        if observe {
            log.write(trainer.step, &metrics)?;
            log.append("experts.jsonl", &outcome.usage)?;
        }
        control.report(Event::Step {
            step: trainer.step,
            steps: plan.steps,
            metrics: &metrics,
        });
        if checkpoints.is_due(trainer.step) && trainer.step < plan.steps {
            let path =
                checkpoint::save(&mut checkpoints, folder, &trainer, batch.position, images)?;
            control.report(Event::CheckpointSaved(&path));
        }
    }

    // At the end, and when stopped, so that no step is lost.
    let position = loader.position();
    drop(loader);
    let checkpoint = checkpoint::save(&mut checkpoints, folder, &trainer, position, images)?;
    control.report(Event::CheckpointSaved(&checkpoint));
    let backbone = folder.join("backbone.safetensors");
    let (network, _) = trainer.teacher.backbone.clone().split_mask_token();
    save_backbone(&backbone, &network, &backbone_meta(&trainer))?;
    let failed = list_unreadable(&run, &unreadable)?;
    if failed > 0 {
        let list = folder.join("unreadable.txt");
        let warning = format!("{failed} images could not be read; see {}", list.display());
        run.warn(control, warning)?;
    }
    Ok(PretrainSummary {
        run: RunSummary {
            steps: trainer.step,
            finished: trainer.step >= plan.steps,
            seconds: started.elapsed().as_secs_f64(),
            metrics,
            warnings: run.warnings().to_vec(),
            checkpoint,
        },
        images,
        unreadable: failed,
        backbone,
    })
}

/// A run that is ready for its first step of this process.
struct OpenRun {
    run: RunFolder,
    /// Images of the dataset.
    images: usize,
    trainer: Pretrainer,
    loader: Loader<ImageSample>,
    checkpoints: CheckpointSchedule,
    unreadable: Arc<Mutex<ImageReads>>,
}

/// Opens dataset and run folder and restores the last checkpoint, if there is one. The folder of a
/// new run is created last, so that a run that cannot start leaves none behind.
fn open(
    recipe: &PretrainRecipe,
    folder: &Path,
    resume: bool,
    device: &Device,
    control: &mut Control<'_>,
) -> Result<OpenRun> {
    let existing = resume.then(|| RunFolder::resume(folder)).transpose()?;
    let dataset = Arc::new(PretrainDataset::open(recipe)?);
    let images = dataset.len();
    let plan = plan(recipe, &dataset, Machine::of(device, control.threads))?;
    let mut trainer = Pretrainer::new(plan, dataset.vocabulary().cloned(), device)?;
    let plan = trainer.plan.clone();
    let checkpoint = match &existing {
        Some(run) => run.latest_checkpoint()?,
        None => None,
    };
    let position = { checkpoint.as_deref() }
        .map(|path| checkpoint::restore(path, &mut trainer, images))
        .transpose()?;
    if position.is_none()
        && let Some(report) = trainer.load_init()?
    {
        control.report(Event::WeightsLoaded {
            path: &recipe.model.init,
            report: &report,
        });
    }
    if position.is_none()
        && let Some(teacher) = &trainer.frozen_teacher
    {
        let path = recipe.distillation.teacher.display();
        let note = format!("distillation of {path}: {}", teacher.report());
        control.report(Event::Note(&note));
    }
    let run = match existing {
        Some(run) => run,
        None => RunFolder::create(folder, &plan.run_toml(images, control.device_name))?,
    };
    let unreadable = Arc::new(Mutex::new(ImageReads::default()));
    let generator = ViewGenerator::new(
        dataset,
        &plan.recipe,
        trainer.grid(),
        Arc::clone(&unreadable),
    );
    let loader = Loader::new(
        images,
        plan.recipe.run.batch,
        plan.recipe.seed,
        plan.workers,
        position.unwrap_or_default(),
        move |ItemRequest { item, epoch, .. }| generator.sample(item, epoch),
    );
    let resumed = checkpoint.map(|path| (trainer.step, path));
    let keep = plan.recipe.run.keep_checkpoints;
    let checkpoints = CheckpointSchedule::new(folder, plan.save_every, keep, resumed);
    Ok(OpenRun {
        run,
        images,
        trainer,
        loader,
        checkpoints,
        unreadable,
    })
}

/// The plan of `recipe` for a dataset. An automatic temperature of the attribute targets follows
/// from the labels; `run.toml` keeps its value.
fn plan(
    recipe: &PretrainRecipe,
    dataset: &PretrainDataset,
    machine: Machine,
) -> Result<PretrainPlan> {
    let mut recipe = recipe.clone();
    if let Some(temperature) = dataset.temperature() {
        recipe.attributes.temperature.resolve(temperature);
    }
    recipe.plan(dataset.len(), machine)
}

/// Stops a run that cannot read its images: too many of them, or not even a `complete` batch.
fn check_readable(
    run: &RunFolder,
    unreadable: &Mutex<ImageReads>,
    plan: &PretrainPlan,
    images: usize,
    complete: bool,
) -> Result<()> {
    let list = locked(unreadable);
    let too_many = list.are_too_many(images) && !plan.recipe.data.skip_unreadable;
    if complete && !too_many {
        return Ok(());
    }
    let example = list.failed.first_key_value();
    let error = PretrainError::Unreadable {
        failed: list.failed.len(),
        tried: (list.tried as usize).min(images),
        example: example
            .map(|(key, reason)| format!("{key}: {reason}"))
            .unwrap_or_default(),
        list: run.path().join("unreadable.txt"),
    };
    drop(list);
    list_unreadable(run, unreadable)?;
    Err(error)
}

/// Writes `unreadable.txt`, if images could not be read, and returns their number.
fn list_unreadable(run: &RunFolder, unreadable: &Mutex<ImageReads>) -> Result<usize> {
    let list = locked(unreadable);
    let (failed, text) = (list.failed.len(), list.to_lines());
    drop(list);
    if failed > 0 {
        let path = run.path().join("unreadable.txt");
        atomic_write(&path, |file| file.write_all(text.as_bytes()))?;
    }
    Ok(failed)
}

fn locked(unreadable: &Mutex<ImageReads>) -> MutexGuard<'_, ImageReads> {
    unreadable.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Metadata of the backbone file.
fn backbone_meta(trainer: &Pretrainer) -> BackboneMeta {
    let recipe = &trainer.plan.recipe;
    let mut heads = vec!["dino".to_owned()];
    heads.extend(
        [(PART, "part"), (ATTRIBUTE, "attribute")]
            .into_iter()
            .filter(|(prompt, _)| trainer.plan.prompts[*prompt])
            .map(|(_, name)| name.to_owned()),
    );
    heads.extend(
        trainer
            .frozen_teacher
            .is_some()
            .then(|| "distillation".to_owned()),
    );
    let [height, width] = recipe.views.global_size;
    BackboneMeta {
        stage: "pretrain".to_owned(),
        clasp: env!("CARGO_PKG_VERSION").to_owned(),
        config: trainer.plan.backbone.clone(),
        height,
        width,
        mean: recipe.views.mean,
        std: recipe.views.std,
        filter: Filter::Bicubic,
        method: recipe.method.name().to_owned(),
        heads,
        prompts: recipe.model.prompts.clone(),
        step: trainer.step,
        vocabulary: trainer
            .vocabulary()
            .map(|vocabulary| vocabulary.digest())
            .unwrap_or_default(),
        recipe: recipe.to_toml(),
        licenses: vec![
            "weights: those of the images and labels that they were trained on".to_owned(),
            "program: MIT OR Apache-2.0".to_owned(),
        ],
        origin: String::new(),
    }
}
