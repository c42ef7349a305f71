//! Contrastive training of a small CLIP on image-caption pairs.
//!
//! The loss is CLIP's (arXiv 2103.00020): symmetric cross-entropy between the image and text
//! features of a batch, with a learned scale of at most 100. Our choices beside it:
//!
//! * equal captions are positives of one another (as in UniCL, arXiv 2204.03610): captions of
//!   synthetic people have few words, and a batch holds many equal ones. Where all captions differ
//!   this is CLIP's loss;
//! * where the part class of each pixel is known, a loss on dense features, from which part maps
//!   are read: [`part_loss`], on the clear and the mask features. From contrast between whole
//!   pictures, a small model on little data learns hardly anything about positions;
//! * where attribute values of a picture are known, a loss on its pooled feature and one phrase for
//!   each value: [`attribute_loss`], the rule of zero-shot classification. Captions name many facts
//!   at once, and a batch hardly ever holds two that differ in a single one, such as a hat or a
//!   sleeve;
//! * training may go through several sizes, on all patches or a part of them (FLIP, arXiv
//!   2212.00794): [`ResolutionStage`]. Position embeddings are resampled as at inference, so
//!   nothing is converted in between;
//! * the result of a run is the moving average (EMA) of its weights, so that a stopped run has a
//!   usable model too;
//! * a batch is split over replicas, each with its own copy of the model's graph. The loss needs
//!   the whole batch: features are gathered, the loss and its gradient with respect to them are
//!   computed once, and each replica propagates its share of the gradient. The result depends on
//!   the number of replicas, but not on timing.
//!
//! The data is a function of an index, so a run resumes from a checkpoint with the next index and
//! needs no other state. The run folder is that of every training ([`clasp_run::folder`]); the
//! trained CLIP is returned, and the caller writes it.

mod batch;
mod checkpoint;
mod config;
mod error;
mod gradients;
mod losses;
mod objectives;
mod retrieval;
mod tensors;
#[cfg(test)]
mod tests;
mod trainer;

use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use clasp_model::clip::Clip;
use clasp_run::log::add_progress;
use clasp_run::schedule::is_logged;
use clasp_run::{CheckpointSchedule, Control, Event, Metrics, RunFolder, RunSummary};

pub use self::batch::{ClassPhrases, ClipTrainData, TrainingPair};
pub use self::config::{
    ClipLossConfig, ClipOptimizerConfig, ClipRunConfig, ClipTrainConfig, ResolutionStage,
};
pub use self::error::ClipTrainError;
pub use self::losses::{attribute_loss, contrastive_loss, part_loss};
pub use self::retrieval::{Retrieval, retrieval};

use self::batch::{PairBatch, check_pair, draw};
use self::trainer::ClipTrainer;

/// Result of a run.
#[derive(Debug)]
pub struct TrainedClip {
    /// The moving average of the weights, without gradients.
    pub clip: Clip,
    /// How the run ended. One that was stopped can be resumed.
    pub run: RunSummary,
}

/// Trains a CLIP from the weights of `clip`, on its device, or, with `resume`, resumes the run in
/// `folder` from its last checkpoint.
///
/// A run that was stopped or killed at any moment and is resumed takes the same steps as one that
/// was not; on the same number of replicas, to the bit.
///
/// # Errors
///
/// See [`ClipTrainError`]; in any case the last checkpoint stays.
pub fn train(
    config: &ClipTrainConfig,
    clip: Clip,
    data: &ClipTrainData<'_>,
    folder: &Path,
    resume: bool,
    control: &mut Control<'_>,
) -> Result<TrainedClip, ClipTrainError> {
    let started = Instant::now();
    let OpenRun {
        run,
        mut trainer,
        mut checkpoints,
    } = open(config, clip, data, folder, resume, control)?;
    let config = trainer.config.clone();
    let steps = config.steps() as u64;
    let mut log = run.open_log(trainer.step, &[])?;
    let mut metrics = Metrics::new();
    control.report(Event::Start {
        examples: config.steps() * config.run.batch,
        batch: config.run.batch,
        steps,
        from: trainer.step,
    });

    std::thread::scope(|scope| {
        let (send, batches) = sync_channel::<Result<PairBatch, ClipTrainError>>(1);
        let (config, model, threads) = (&config, trainer.model.clone(), control.threads);
        let from = trainer.step as usize;
        scope.spawn(move || {
            for step in from..config.steps() {
                let batch = draw(data, step, config, &model, threads);
                let failed = batch.is_err();
                // The other end is gone when the run stops early.
                if send.send(batch).is_err() || failed {
                    break;
                }
            }
        });

        while trainer.step < steps && !control.stop_requested() {
            let begun = Instant::now();
            let batch = batches.recv().map_err(|_| ClipTrainError::Worker)??;
            let keys = batch.keys.iter().map(String::as_str);
            metrics = { trainer.step(&batch) }
                .map_err(|cause| run.refuse_step(trainer.step + 1, cause, keys))?;
            let step = trainer.step;
            let epoch = step as f64 / steps as f64;
            let seconds = begun.elapsed().as_secs_f64();
            add_progress(&mut metrics, epoch, config.run.batch, seconds);
            let evaluate = !data.held_out.is_empty()
                && (step.is_multiple_of(config.run.evaluate_every) || step == steps);
            if evaluate {
                evaluate_average(&trainer, data.held_out, &mut metrics, control);
            }
            if evaluate || is_logged(step, config.run.log_every, steps) {
                log.write(step, &metrics)?;
            }
            control.report(Event::Step {
                step,
                steps,
                metrics: &metrics,
            });
            if checkpoints.is_due(step) && step < steps {
                let path = checkpoint::save(&mut checkpoints, folder, &trainer)?;
                control.report(Event::CheckpointSaved(&path));
            }
        }
        Ok::<_, ClipTrainError>(())
    })?;

    // At the end, and when stopped, so that no step is lost.
    let checkpoint = checkpoint::save(&mut checkpoints, folder, &trainer)?;
    control.report(Event::CheckpointSaved(&checkpoint));
    Ok(TrainedClip {
        run: RunSummary {
            steps: trainer.step,
            finished: trainer.step >= steps,
            seconds: started.elapsed().as_secs_f64(),
            metrics,
            warnings: run.warnings().to_vec(),
            checkpoint,
        },
        clip: trainer.average,
    })
}

/// A run that is ready for its first step of this process.
struct OpenRun {
    run: RunFolder,
    trainer: ClipTrainer,
    checkpoints: CheckpointSchedule,
}

/// Checks recipe and pairs, opens the run folder and restores the last checkpoint, if there is one.
/// The folder of a new run is created last, so that a run that cannot start leaves none behind.
fn open(
    config: &ClipTrainConfig,
    clip: Clip,
    data: &ClipTrainData<'_>,
    folder: &Path,
    resume: bool,
    control: &Control<'_>,
) -> Result<OpenRun, ClipTrainError> {
    let existing = resume.then(|| RunFolder::resume(folder)).transpose()?;
    clip.config().validate()?;
    let config = config.resolved(clip.config(), control.threads)?;
    let last_size = config.stage(config.steps()).size;
    for (index, pair) in (0..).zip(data.held_out) {
        check_pair(pair, index, last_size, 0)?;
    }
    let mut trainer = ClipTrainer::new(config, clip, data.phrases.clone())?;
    let checkpoint = match &existing {
        Some(run) => run.latest_checkpoint()?,
        None => None,
    };
    if let Some(path) = &checkpoint {
        checkpoint::restore(path, &mut trainer)?;
    }
    let config = &trainer.config;
    let run_toml = config.run_toml(control.device_name);
    let steps = [trainer.step, config.steps() as u64];
    let run = RunFolder::begin(existing, folder, &run_toml, steps)?;
    let resumed = checkpoint.map(|path| (trainer.step, path));
    let (every, keep) = (config.run.save_every, config.run.keep_checkpoints);
    let checkpoints = CheckpointSchedule::new(folder, every, keep, resumed);
    Ok(OpenRun {
        run,
        trainer,
        checkpoints,
    })
}

/// Evaluates the moving average on the held-out pairs and adds `eval/…` to the metrics.
fn evaluate_average(
    trainer: &ClipTrainer,
    held_out: &[TrainingPair],
    metrics: &mut Metrics,
    control: &mut Control<'_>,
) {
    let size = trainer.config.stage(trainer.config.steps()).size;
    let found = retrieval(&trainer.average, held_out, size, &trainer.device);
    for (name, value) in [
        ("image_to_text", found.image_to_text),
        ("text_to_image", found.text_to_image),
        ("chance", found.chance),
    ] {
        metrics.insert(format!("eval/{name}"), f64::from(value));
    }
    control.report(Event::Evaluated {
        step: trainer.step,
        result: &found,
        best: false,
    });
}
