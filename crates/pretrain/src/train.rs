//! Pre-training: one loop from the first step, or from a checkpoint, to the backbone file.
//!
//! Beside the files of every run folder ([`clasp_run::folder`]) that of pre-training holds
//!
//! | file | content |
//! |---|---|
//! | `experts.jsonl` | weights of the experts by prompt, a line a block and prompt ([`crate::experts`]) |
//! | `backbone.safetensors` | the teacher's backbone ([`clasp_weights::backbone`]) |
//! | `unreadable.txt` | images that could not be read, and why; only if there are any |
//!
//! Several ranks, processes or threads, may train one network ([`train_on_ranks`]): each computes some
//! replicas of every batch, and rank 0 writes all files.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use burn::tensor::Device;
use clasp_data::atomic::atomic_write;
use clasp_data::image::Filter;
use clasp_data::loader::{ItemRequest, Loader};
use clasp_model::prompt::{ATTRIBUTE, PART, PROMPTS};
use clasp_run::log::add_progress;
use clasp_run::ranks::{Digest, agree_on_recipe, check_digests, checkpoint_of_first};
use clasp_run::schedule::is_logged;
use clasp_run::{
    CheckpointSchedule, Collective, Control, Event, Local, Machine, Metrics, RunFolder, RunSummary,
    StepError, checkpoints,
};
use clasp_weights::backbone::{BackboneMeta, save_backbone};
use serde::Serialize;

use crate::checkpoint;
use crate::collapse::CollapseMonitor;
use crate::dataset::{ImageReads, ImageSample, PretrainDataset, ViewGenerator};
use crate::error::{PretrainError, Result};
use crate::experts::mean_entropy;
use crate::plan::{PretrainPlan, machine};
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
    train_on_ranks(recipe, folder, resume, device, control, Arc::new(Local))
}

/// The same as one rank of several, each of which calls this with the same recipe and folder. The
/// step is that of one process with as many replicas. All ranks must read the same images and, to
/// resume, the same run folder; rank 0 writes there.
///
/// # Errors
///
/// See [`train`]; if another rank ends, or has other settings or data, the error here is a
/// [`clasp_run::RunError::Collective`].
pub fn train_on_ranks(
    recipe: &PretrainRecipe,
    folder: &Path,
    resume: bool,
    device: &Device,
    control: &mut Control<'_>,
    collective: Arc<dyn Collective>,
) -> Result<PretrainSummary> {
    let started = Instant::now();
    let ranks = collective.as_ref();
    let OpenRun {
        mut run,
        images,
        mut trainer,
        mut loader,
        mut checkpoints,
        unreadable,
    } = open(recipe, folder, resume, device, control, &collective)?;
    let plan = trainer.plan.clone();
    let own_images = trainer.share().images();
    let mut log = { run.as_ref() }
        .map(|run| run.open_log(trainer.step, &["experts.jsonl"]))
        .transpose()?;
    let mut monitor = CollapseMonitor::new(
        plan.prototypes,
        plan.recipe.run.batch * plan.recipe.views.global,
        plan.warmup_steps.max(plan.frozen_steps).max(100),
        trainer.step,
    )
    .with_weight(plan.recipe.loss.dino_weight);
    let mut metrics = Metrics::new();
    control.report(Event::Start {
        examples: images,
        batch: plan.recipe.run.batch,
        steps: plan.steps,
        from: trainer.step,
    });

    while trainer.step < plan.steps && !ranks.any(control.stop_requested())? {
        let begun = Instant::now();
        let batch = loader.next();
        let complete = batch.items.len() == own_images;
        check_readable(folder, &unreadable, &plan, images, complete, ranks)?;

        let next = trainer.step + 1;
        let observe = is_logged(next, plan.recipe.run.log_every, plan.steps);
        let outcome = match trainer.step(&batch.items, observe) {
            Ok(outcome) => outcome,
            Err(StepError::Collective(error)) => return Err(error.into()),
            Err(StepError::NonFinite(cause)) => {
                let keys = batch.items.iter().map(|sample| sample.key.clone());
                let keys: Vec<Vec<String>> = ranks.gather(&keys.collect())?;
                return Err(match &run {
                    Some(run) => {
                        run.refuse_step(next, cause, keys.iter().flatten().map(String::as_str))
                    }
                    None => cause.in_step(next, folder),
                }
                .into());
            }
        };
        metrics = outcome.metrics;
        let epoch = trainer.step as f64 / plan.steps_per_epoch as f64;
        let seconds = begun.elapsed().as_secs_f64();
        add_progress(&mut metrics, epoch, plan.recipe.run.batch, seconds);
        for prompt in PROMPTS {
            if let Some(entropy) = mean_entropy(&outcome.usage, prompt) {
                metrics.insert(format!("experts/{prompt}/entropy"), entropy);
            }
        }
        if let Some(run) = &mut run {
            for warning in monitor.check(trainer.step, outcome.collapse) {
                run.warn(control, warning)?;
            }
        }
        if let Some(log) = &mut log
            && observe
        {
            log.write(trainer.step, &metrics)?;
            log.append("experts.jsonl", &outcome.usage)?;
        }
        control.report(Event::Step {
            step: trainer.step,
            steps: plan.steps,
            metrics: &metrics,
        });
        if checkpoints.is_due(trainer.step) && trainer.step < plan.steps {
            check_digests(
                run.as_mut(),
                trainer.step,
                || checkpoint::digest(&trainer),
                ranks,
                control,
            )?;
            if run.is_some() {
                let path =
                    checkpoint::save(&mut checkpoints, folder, &trainer, batch.position, images)?;
                control.report(Event::CheckpointSaved(&path));
            }
        }
    }

    // At the end, and when stopped, so that no step is lost.
    let position = loader.position();
    drop(loader);
    check_digests(
        run.as_mut(),
        trainer.step,
        || checkpoint::digest(&trainer),
        ranks,
        control,
    )?;
    let unreadable = gather_unreadable(&unreadable, ranks)?;
    let backbone = folder.join("backbone.safetensors");
    let mut checkpoint = checkpoints::path(folder, trainer.step);
    if let Some(run) = &mut run {
        checkpoint = checkpoint::save(&mut checkpoints, folder, &trainer, position, images)?;
        control.report(Event::CheckpointSaved(&checkpoint));
        let (network, _) = trainer.teacher.backbone.clone().split_mask_token();
        save_backbone(&backbone, &network, &backbone_meta(&trainer))?;
        if let Some(list) = list_unreadable(folder, &unreadable)? {
            let failed = unreadable.failed.len();
            let warning = format!("{failed} images could not be read; see {}", list.display());
            run.warn(control, warning)?;
        }
    }
    // No rank is done before the files are written.
    ranks.barrier()?;
    Ok(PretrainSummary {
        run: RunSummary {
            steps: trainer.step,
            finished: trainer.step >= plan.steps,
            seconds: started.elapsed().as_secs_f64(),
            metrics,
            warnings: run.map_or(Vec::new(), |run| run.warnings().to_vec()),
            checkpoint,
        },
        images,
        unreadable: unreadable.failed.len(),
        backbone,
    })
}

/// A run that is ready for its first step of this process.
struct OpenRun {
    /// The run folder; rank 0 alone has it.
    run: Option<RunFolder>,
    /// Images of the dataset.
    images: usize,
    trainer: Pretrainer,
    /// Of this rank's share of each batch.
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
    collective: &Arc<dyn Collective>,
) -> Result<OpenRun> {
    let ranks = collective.as_ref();
    let writes = ranks.rank().writes();
    let existing = (resume && writes)
        .then(|| RunFolder::resume(folder))
        .transpose()?;
    let dataset = Arc::new(PretrainDataset::open(recipe)?);
    let images = dataset.len();
    let machine = machine(device, control.threads).of_all(ranks)?;
    let plan = plan(recipe, &dataset, machine)?;
    let vocabulary = dataset.vocabulary().cloned();
    let mut trainer = Pretrainer::on_rank(plan, vocabulary, device, Arc::clone(collective))?;
    let plan = trainer.plan.clone();
    check_equal(&dataset, &trainer, ranks)?;
    let checkpoint = match &existing {
        Some(run) => run.latest_checkpoint()?,
        None => None,
    };
    let checkpoint = checkpoint_of_first(checkpoint, folder, ranks)?;
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
    if !ranks.is_alone() {
        ranks.agree("the weights at the start", &checkpoint::digest(&trainer))?;
    }
    let run_toml = plan.run_toml(images, control.device_name);
    let run = writes
        .then(|| RunFolder::begin(existing, folder, &run_toml, [trainer.step, plan.steps]))
        .transpose()?;
    let unreadable = Arc::new(Mutex::new(ImageReads::default()));
    let generator = ViewGenerator::new(
        dataset,
        &plan.recipe,
        trainer.grid(),
        Arc::clone(&unreadable),
    );
    let loader = Loader::of_places(
        images,
        plan.recipe.run.batch,
        trainer.share().places(),
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

/// Checks that all ranks train the same: program, recipe, images and vocabulary.
fn check_equal(
    dataset: &PretrainDataset,
    trainer: &Pretrainer,
    ranks: &dyn Collective,
) -> Result<()> {
    if ranks.is_alone() {
        return Ok(());
    }
    let mut recipe = trainer.plan.recipe.clone();
    // Hosts may have the same files in other places; what is in them is compared by itself.
    recipe.data.images.clear();
    recipe.data.labels = PathBuf::new();
    recipe.model.init = PathBuf::new();
    recipe.distillation.teacher = PathBuf::new();
    agree_on_recipe(&recipe.to_toml(), dataset.len(), ranks)?;
    let mut keys = Digest::default();
    dataset.keys().for_each(|key| keys.add_text(key));
    ranks.agree("the digest of the images' keys", &keys.text())?;
    let vocabulary = trainer.vocabulary().map(|vocabulary| vocabulary.digest());
    ranks.agree(
        "the vocabulary of the labels",
        &vocabulary.unwrap_or_default(),
    )?;
    let teacher = trainer.frozen_teacher.as_ref();
    let teacher = teacher.map_or("none", |teacher| teacher.sha256());
    Ok(ranks.agree("the frozen teacher", teacher)?)
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

/// Stops a run that cannot read its images: too many of them, or not even a `complete` batch, on
/// any rank.
fn check_readable(
    folder: &Path,
    unreadable: &Mutex<ImageReads>,
    plan: &PretrainPlan,
    images: usize,
    complete: bool,
    ranks: &dyn Collective,
) -> Result<()> {
    let own_images = images.div_ceil(ranks.rank().size);
    let too_many = locked(unreadable).are_too_many(own_images) && !plan.recipe.data.skip_unreadable;
    if !ranks.any(!complete || too_many)? {
        return Ok(());
    }
    let all = gather_unreadable(unreadable, ranks)?;
    let example = all.failed.first_key_value();
    let error = PretrainError::Unreadable {
        failed: all.failed.len(),
        tried: (all.tried as usize).min(images),
        example: example
            .map(|(key, reason)| format!("{key}: {reason}"))
            .unwrap_or_default(),
        list: folder.join("unreadable.txt"),
    };
    if ranks.rank().writes() {
        list_unreadable(folder, &all)?;
    }
    Err(error)
}

/// The images that no rank could read.
fn gather_unreadable(unreadable: &Mutex<ImageReads>, ranks: &dyn Collective) -> Result<ImageReads> {
    let own = locked(unreadable).clone();
    Ok(match ranks.is_alone() {
        true => own,
        false => ImageReads::of_ranks(ranks.gather(&own)?),
    })
}

/// Writes `unreadable.txt`, if images could not be read, and returns its path.
fn list_unreadable(folder: &Path, unreadable: &ImageReads) -> Result<Option<PathBuf>> {
    if unreadable.failed.is_empty() {
        return Ok(None);
    }
    let path = folder.join("unreadable.txt");
    atomic_write(&path, |file| {
        file.write_all(unreadable.to_lines().as_bytes())
    })?;
    Ok(Some(path))
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
