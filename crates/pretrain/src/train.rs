//! The run: one loop from the first step, or from a checkpoint, to the backbone file.
//!
//! The run's folder holds
//!
//! | file | content |
//! |---|---|
//! | `run.toml` | the resolved recipe, with versions, seed and machine above it |
//! | `metrics.jsonl`, `events.out.tfevents.*` | figures by step ([`clasp_run::log`]) |
//! | `experts.jsonl` | use of each expert by each task, a line a block and task ([`Usage`]) |
//! | `checkpoints/` | the last checkpoints ([`crate::checkpoint`]) |
//! | `backbone.safetensors` | the teacher's backbone ([`clasp_weights::backbone`]) |
//! | `unreadable.txt` | images that could not be read, and why; only where there are any |
//! | `nonfinite.txt` | keys of the batch that a loss was not finite on; only after that |

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use burn::tensor::Device;
use clasp_data::atomic::{FolderLock, atomic_write};
use clasp_data::loader::{ItemRequest, Loader, LoaderPosition};
use clasp_model::mix::{ATTRIBUTE, PART, TASKS};
use clasp_run::{Log, Metrics, checkpoints};
use clasp_weights::backbone::{BackboneMeta, save_backbone};
use serde::Serialize;

use crate::checkpoint;
use crate::error::{PretrainError, Result};
use crate::monitor::{CollapseMonitor, Usage};
use crate::recipe::{Machine, Plan, Recipe, run_toml};
use crate::step::{NonFinite, Trainer};
use crate::views::{Corpus, Item, Maker, Unreadable};

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
}

/// Something to tell the user.
pub enum Event<'a> {
    /// The recipe is resolved and the run begins, at `from`.
    Start {
        /// The resolved recipe.
        plan: &'a Plan,
        /// Images that are trained on.
        images: usize,
        /// Steps that are done already.
        from: u64,
    },
    /// A step is done.
    Step {
        /// Steps done.
        step: u64,
        /// Steps in all.
        steps: u64,
        /// Figures of this step.
        metrics: &'a Metrics,
    },
    /// The backbone starts from the recipe's `model.init`.
    Loaded(&'a clasp_weights::import::Report),
    /// Something to look at.
    Warning(&'a str),
    /// A checkpoint is written.
    Saved(&'a Path),
}

/// How a run ended.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Steps that are done.
    pub steps: u64,
    /// Whether that is all of them.
    pub finished: bool,
    /// Images of the corpus.
    pub images: usize,
    /// Seconds of this process, from opening the data on.
    pub seconds: f64,
    /// Figures of the last step of this process.
    pub metrics: Metrics,
    /// Warnings of this process.
    pub warnings: Vec<String>,
    /// Images that could not be read.
    pub unreadable: usize,
    /// The last checkpoint.
    pub checkpoint: PathBuf,
    /// The teacher's backbone.
    pub backbone: PathBuf,
}

/// Runs `recipe` in `folder`, from the start or, with `resume`, from the last checkpoint there.
///
/// A run that was stopped or killed at any moment and is resumed takes the same steps as one that
/// was not; on one thread, to the bit.
///
/// # Errors
///
/// See [`PretrainError`]; whatever happens, the last good checkpoint stays.
pub fn train(
    recipe: &Recipe,
    folder: &Path,
    resume: bool,
    control: &mut Control<'_>,
) -> Result<Summary> {
    let started = Instant::now();
    // Of a run that exists from here on; a new one has no folder until it can begin.
    let mut lock = match resume && folder.is_dir() {
        true => Some(FolderLock::take(folder)?),
        false => None,
    };
    let corpus = Arc::new(Corpus::open(recipe)?);
    let images = corpus.len();
    let machine = Machine::of(&control.device, control.cores);
    let mut recipe = recipe.clone();
    if let Some(temperature) = corpus.temperature() {
        // An automatic temperature follows from the labels; run.toml keeps what it came to.
        recipe.attributes.temperature.settle(temperature);
    }
    let plan = recipe.plan(images, machine)?;
    let mut trainer = Trainer::new(plan.clone(), corpus.vocabulary().cloned(), &control.device)?;
    let place = if resume {
        go_on(folder, &mut trainer, images)?
    } else {
        None
    };
    if place.is_none()
        && let Some(report) = trainer.start_from_init()?
    {
        (control.report)(Event::Loaded(&report));
    }
    if !resume {
        lock = Some(begin(folder, &plan, images, &control.device)?);
    }

    let unreadable = Arc::new(Mutex::new(Unreadable::default()));
    let maker = Maker::new(corpus, &plan, trainer.grid(), Arc::clone(&unreadable));
    let mut loader = Loader::new(
        images,
        plan.recipe.run.batch,
        plan.recipe.seed,
        plan.workers,
        place.unwrap_or_default(),
        move |ItemRequest { item, epoch, .. }| maker.make(item, epoch),
    );
    checkpoints::tidy(folder)?;
    let mut log = Log::open(folder, trainer.step, &["experts.jsonl"])?;
    let mut monitor = CollapseMonitor::new(
        plan.outputs,
        plan.recipe.run.batch * plan.recipe.views.global,
        plan.warmup_steps.max(plan.frozen_steps).max(100),
    );
    let mut run = Report {
        folder,
        warnings: Vec::new(),
        unreadable: 0,
    };
    let mut metrics = Metrics::new();
    // What a resumed run starts from is written already.
    let mut saved = place.map(|_| trainer.step);
    (control.report)(Event::Start {
        plan: &plan,
        images,
        from: trainer.step,
    });

    while trainer.step < plan.steps && !control.stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let batch = loader.next();
        run.readable(
            &unreadable,
            batch.items.len() == plan.recipe.run.batch,
            images,
            plan.recipe.data.keep_going,
        )?;

        let next = trainer.step + 1;
        let observe =
            next.is_multiple_of(plan.recipe.run.log_every) || next == plan.steps || next == 1;
        let outcome = trainer
            .step(&batch.items, observe)
            .map_err(|error| run.not_finite(next, &error, &batch.items))?;
        metrics = outcome.metrics;
        metrics.insert(
            "epoch".to_owned(),
            trainer.step as f64 / plan.steps_per_epoch as f64,
        );
        metrics.insert(
            "speed/images_per_second".to_owned(),
            batch.items.len() as f64 / begun.elapsed().as_secs_f64(),
        );
        for task in TASKS {
            if let Some(entropy) = mean_entropy(&outcome.usage, task) {
                metrics.insert(format!("experts/{task}/entropy"), entropy);
            }
        }
        for warning in monitor.check(trainer.step, &metrics) {
            (control.report)(Event::Warning(&warning));
            run.warnings.push(warning);
        }
        if observe {
            log.write(trainer.step, &metrics)?;
            log.append("experts.jsonl", &outcome.usage)?;
        }
        (control.report)(Event::Step {
            step: trainer.step,
            steps: plan.steps,
            metrics: &metrics,
        });
        if trainer.step.is_multiple_of(plan.save_every) && trainer.step < plan.steps {
            let path = checkpoint::save(folder, &trainer, batch.position, images)?;
            (control.report)(Event::Saved(&path));
            saved = Some(trainer.step);
        }
    }

    // At the end, and when stopped: nothing that was computed is lost.
    let place = loader.position();
    drop(loader);
    let path = match checkpoints::latest(folder)? {
        Some(path) if saved == Some(trainer.step) => path,
        _ => checkpoint::save(folder, &trainer, place, images)?,
    };
    (control.report)(Event::Saved(&path));
    let backbone = folder.join("backbone.safetensors");
    save_backbone(
        &backbone,
        &trainer.teacher.backbone,
        &backbone_meta(&trainer),
    )?;
    run.list_unreadable(&unreadable)?;
    if run.unreadable > 0 {
        let warning = format!(
            "{} images could not be used; {} says which and why",
            run.unreadable,
            folder.join("unreadable.txt").display()
        );
        (control.report)(Event::Warning(&warning));
        run.warnings.push(warning);
    }
    drop(lock);
    Ok(Summary {
        steps: trainer.step,
        finished: trainer.step >= plan.steps,
        images,
        seconds: started.elapsed().as_secs_f64(),
        metrics,
        warnings: run.warnings,
        unreadable: run.unreadable,
        checkpoint: path,
        backbone,
    })
}

/// Makes the folder of a new run, and locks it.
fn begin(folder: &Path, plan: &Plan, images: usize, device: &Device) -> Result<FolderLock> {
    fs_err::create_dir_all(folder)?;
    let lock = FolderLock::take(folder)?;
    let path = folder.join("run.toml");
    if path.exists() {
        return Err(PretrainError::RunExists {
            folder: folder.to_owned(),
        });
    }
    let text = run_toml(plan, images, &format!("{device:?}"));
    atomic_write(&path, |file| file.write_all(text.as_bytes()))?;
    Ok(lock)
}

/// Brings `trainer` to the last checkpoint of a run and returns the loader's place; `None` for one
/// that was killed before its first checkpoint, which begins again.
fn go_on(folder: &Path, trainer: &mut Trainer, images: usize) -> Result<Option<LoaderPosition>> {
    if !folder.join("run.toml").is_file() {
        let found = if folder.is_dir() {
            "no run.toml in it"
        } else {
            "no such folder"
        };
        return Err(PretrainError::NothingToResume {
            folder: folder.to_owned(),
            found: found.to_owned(),
        });
    }
    checkpoints::latest(folder)?
        .map(|path| checkpoint::restore(&path, trainer, images))
        .transpose()
}

/// What the backbone file says.
fn backbone_meta(trainer: &Trainer) -> BackboneMeta {
    let recipe = &trainer.plan.recipe;
    let mut heads = vec!["dino".to_owned()];
    heads.extend(
        [(PART, "part"), (ATTRIBUTE, "attribute")]
            .into_iter()
            .filter(|(task, _)| trainer.plan.tasks[*task])
            .map(|(_, name)| name.to_owned()),
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
        filter: "bicubic".to_owned(),
        method: recipe.method.name().to_owned(),
        heads,
        tasks: recipe.mix.tasks.clone(),
        step: trainer.step,
        vocabulary: trainer
            .vocabulary()
            .map(|vocabulary| vocabulary.digest())
            .unwrap_or_default(),
        recipe: recipe.to_toml(),
        licences: vec![
            "weights: those of the images and labels that they were trained on".to_owned(),
            "program: MIT OR Apache-2.0".to_owned(),
        ],
        origin: String::new(),
    }
}

fn mean_entropy(usage: &[Usage], task: &str) -> Option<f64> {
    let entropies: Vec<f64> = usage
        .iter()
        .filter(|one| one.task == task)
        .map(|one| one.entropy)
        .collect();
    (!entropies.is_empty()).then(|| entropies.iter().sum::<f64>() / entropies.len() as f64)
}

/// What goes wrong on the way, written into the run's folder.
struct Report<'a> {
    folder: &'a Path,
    warnings: Vec<String>,
    unreadable: usize,
}

impl Report<'_> {
    /// Stops a run that cannot read its images: too many of them, or none for a batch.
    fn readable(
        &mut self,
        unreadable: &Mutex<Unreadable>,
        full: bool,
        images: usize,
        keep_going: bool,
    ) -> Result<()> {
        let list = unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        // Not before enough were tried: nobody wants to hear of 5 % after one bad file.
        let tried = (list.tried as usize).min(images);
        let failed = list.failed.len();
        let too_many = tried >= images.min(1000) && failed * 20 > tried;
        let example = list
            .failed
            .first_key_value()
            .map(|(key, reason)| format!("{key}: {reason}"))
            .unwrap_or_default();
        drop(list);
        if full && (keep_going || !too_many) {
            return Ok(());
        }
        self.list_unreadable(unreadable)?;
        Err(PretrainError::Unreadable {
            failed,
            tried,
            example,
            list: self.folder.join("unreadable.txt"),
        })
    }

    /// Writes the keys of images that could not be read.
    fn list_unreadable(&mut self, unreadable: &Mutex<Unreadable>) -> Result<()> {
        let list = unreadable.lock().unwrap_or_else(PoisonError::into_inner);
        self.unreadable = list.failed.len();
        if list.failed.is_empty() {
            return Ok(());
        }
        let text: String = list
            .failed
            .iter()
            .map(|(key, reason)| format!("{key}\t{}\n", reason.replace('\n', " ")))
            .collect();
        drop(list);
        Ok(atomic_write(&self.folder.join("unreadable.txt"), |file| {
            file.write_all(text.as_bytes())
        })?)
    }

    /// Writes the keys of the batch whose loss is not finite.
    fn not_finite(&self, step: u64, error: &NonFinite, items: &[Item]) -> PretrainError {
        let keys = self.folder.join("nonfinite.txt");
        let text: String = items.iter().map(|item| format!("{}\n", item.key)).collect();
        match atomic_write(&keys, |file| file.write_all(text.as_bytes())) {
            Err(error) => error.into(),
            Ok(()) => PretrainError::NonFinite {
                step,
                term: error.term.clone(),
                value: error.value,
                keys,
            },
        }
    }
}
