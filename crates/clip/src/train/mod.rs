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
//! * a batch is split over threads, each with its own copy of the model's graph. The loss needs the
//!   whole batch: features are gathered, the loss and its gradient with respect to them are
//!   computed once, and each replica propagates its share of the gradient. The result depends on
//!   the number of threads, but not on timing.
//!
//! The data is a function of an index, so a run resumes from a checkpoint with the next index and
//! needs no other state. A run folder holds `checkpoint.safetensors` (weights, both moments, step
//! and configuration) and `log.jsonl` (a JSON object each logged step).

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

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use burn::module::Module;
use clasp_data::atomic::remove_abandoned;
use clasp_model::clip::Clip;
use clasp_model::optim::{Norms, Optimizer, Rates, decays, ema};
use fs_err as fs;
use serde::{Deserialize, Serialize};

pub use self::batch::{ClassPhrases, TrainingPair};
pub use self::config::{ClipTrainConfig, ResolutionStage};
pub use self::error::ClipTrainError;
pub use self::losses::{attribute_loss, contrastive_loss, part_loss};
pub use self::retrieval::{Retrieval, retrieval};

use self::batch::{PairBatch, check_pair, draw, draw_patches};
use self::checkpoint::{identity, optimizer_config, resume, save};
use self::gradients::{BatchGradients, gradients};
use self::objectives::{AttributeObjective, PartObjective};

/// Progress of a run; also a line of its log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClipTrainProgress {
    /// Steps done.
    pub step: usize,
    /// Steps in all.
    pub steps: usize,
    /// Pairs seen, repetitions counted.
    pub pairs: u64,
    /// Height and width of the images.
    pub size: [usize; 2],
    /// Mean contrastive loss since the last line.
    pub loss: f32,
    /// Lower bound of the contrastive loss for the last batch, from its equal captions.
    pub floor: f32,
    /// Mean part loss since the last line; 0 without one.
    pub dense: f32,
    /// Mean attribute loss since the last line; 0 without one.
    pub values: f32,
    /// Learning rate.
    pub learning_rate: f64,
    /// Norm of the gradient before clipping.
    pub gradient: f64,
    /// Factor on the cosines.
    pub scale: f32,
    /// Pairs a second since the last line.
    pub pairs_per_second: f64,
    /// On the held-out pairs, at some steps.
    pub held_out: Option<Retrieval>,
}

/// Result of a run.
#[derive(Debug)]
pub struct TrainedClip {
    /// The moving average of the weights, without gradients.
    pub clip: Clip,
    /// Steps done in all.
    pub step: usize,
    /// Whether all steps are done; otherwise the callback stopped the run, which can be resumed.
    pub finished: bool,
}

/// CLIP's bound of the factor on cosines.
const LARGEST_SCALE: f64 = 100.0;

/// Trains a CLIP, or resumes the run in `folder`.
///
/// * `clip` is the initial model of a new run, trained on its own device.
/// * `data(index, size)` gives the pair of an index at a size; the same index always gives the same
///   pair. It is called from several threads, a batch ahead of the training.
/// * `words`: phrases for part classes and attribute values, for the part and attribute losses.
/// * `held_out` are pairs at the last stage's size that `data` never gives.
/// * `progress` is called after each logged step; `Break` stops the run after a checkpoint.
///
/// # Errors
///
/// A setting out of range, a folder that cannot be written, a checkpoint of another run, or a loss
/// that is not finite (the last checkpoint is kept).
pub fn train(
    config: &ClipTrainConfig,
    clip: Clip,
    data: &(dyn Fn(u64, [usize; 2]) -> TrainingPair + Sync),
    words: &ClassPhrases,
    held_out: &[TrainingPair],
    folder: &Path,
    progress: &mut dyn FnMut(&ClipTrainProgress) -> ControlFlow<()>,
) -> Result<TrainedClip, ClipTrainError> {
    let model = &clip.config().clone();
    let clip = clip.valid();
    let plain = clip.logit_scale.val().device();
    config.check(model)?;
    let last_size = config.stages[config.stages.len() - 1].size;
    for (index, pair) in (0..).zip(held_out) {
        check_pair(pair, index, last_size, 0)?;
    }
    fs::create_dir_all(folder)?;
    let _lock = clasp_data::atomic::FolderLock::take(folder)?;
    remove_abandoned(folder)?;
    let path = folder.join("checkpoint.safetensors");
    let run = identity(config, model, words)?;
    let (mut clip, mut average, mut optimizer, start) = if path.exists() {
        resume(&path, &run, config, clip)?
    } else {
        let average = clip.clone();
        (clip, average, Optimizer::new(optimizer_config(config)), 0)
    };
    let threads = match config.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let threads = threads.min(config.batch);
    let mut log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join("log.jsonl"))?;
    let pools = (0..threads)
        .map(|_| rayon::ThreadPoolBuilder::new().num_threads(1).build())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| ClipTrainError::Worker)?;
    let steps = config.steps();

    std::thread::scope(|scope| {
        let (send, batches) = sync_channel::<Result<PairBatch, ClipTrainError>>(1);
        scope.spawn(move || {
            for step in start..steps {
                let size = config.stage(step).size;
                let batch = draw(data, step, config.batch, size, model, words, threads);
                let failed = batch.is_err();
                // The other end is gone when the run stops early.
                if send.send(batch).is_err() || failed {
                    break;
                }
            }
        });

        let mut means = LogMeans::new();
        for step in start..steps {
            let batch = batches.recv().map_err(|_| ClipTrainError::Worker)??;
            let stage = config.stage(step);
            let patches = draw_patches(config.seed, step, stage, model);
            let patches = patches.as_deref();
            let dense = PartObjective::new(config, step, &words.parts, &batch, patches, model);
            let values = AttributeObjective::new(config, step, words, &batch, patches, model);
            let losses = gradients(
                &clip,
                &batch,
                patches,
                dense.as_ref(),
                values.as_ref(),
                &pools,
                &plain,
            )?;
            let BatchGradients {
                contrastive,
                floor,
                dense,
                values,
                mut gradients,
            } = losses;
            let loss = contrastive + dense + values;
            if !loss.is_finite() {
                return Err(ClipTrainError::Diverged { step, loss });
            }
            let norms = Norms::of(&gradients);
            let length = norms.total();
            let learning_rate = config.learning_rate(step);
            let rates = |name: &str, shape: &[usize]| {
                Some(Rates {
                    lr: learning_rate,
                    decay: if decays(name, shape) {
                        config.weight_decay
                    } else {
                        0.0
                    },
                })
            };
            clip = optimizer.step("", clip, &mut gradients, &norms, &rates);
            clip.logit_scale = clip
                .logit_scale
                .map(|scale| scale.clamp(0.0, LARGEST_SCALE.ln()));
            average = ema(average, &clip, config.momentum(step));

            let done = step + 1;
            means.add([contrastive, dense, values]);
            let evaluate =
                !held_out.is_empty() && (done % config.evaluate_every == 0 || done == steps);
            let mut stop = false;
            if done % config.log_every == 0 || done == steps || evaluate {
                let [loss, dense, values] = means.means();
                let line = ClipTrainProgress {
                    step: done,
                    steps,
                    pairs: (done * config.batch) as u64,
                    size: stage.size,
                    loss,
                    floor,
                    dense,
                    values,
                    learning_rate,
                    gradient: length,
                    scale: clip.scale().into_scalar::<f32>(),
                    pairs_per_second: means.pairs_per_second(config.batch),
                    held_out: evaluate.then(|| retrieval(&average, held_out, last_size, &plain)),
                };
                let text = serde_json::to_string(&line).map_err(std::io::Error::from)?;
                writeln!(log, "{text}")?;
                stop = progress(&line).is_break();
                means = LogMeans::new();
            }
            if done % config.save_every == 0 || done == steps || stop {
                save(&path, &run, [&clip, &average], &optimizer, done)?;
            }
            if stop {
                return Ok(TrainedClip {
                    clip: average,
                    step: done,
                    finished: done == steps,
                });
            }
        }
        Ok(TrainedClip {
            clip: average,
            step: steps,
            finished: true,
        })
    })
}

/// Means of the losses since the last line of the log.
struct LogMeans {
    started: Instant,
    steps: usize,
    sums: [f64; 3],
}

impl LogMeans {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            steps: 0,
            sums: [0.0; 3],
        }
    }

    fn add(&mut self, losses: [f32; 3]) {
        self.steps += 1;
        for (sum, loss) in self.sums.iter_mut().zip(losses) {
            *sum += f64::from(loss);
        }
    }

    fn means(&self) -> [f32; 3] {
        self.sums.map(|sum| (sum / self.steps as f64) as f32)
    }

    fn pairs_per_second(&self, batch: usize) -> f64 {
        let seconds = self.started.elapsed().as_secs_f64();
        (self.steps * batch) as f64 / seconds.max(1e-9)
    }
}
