//! Contrastive training of a small CLIP on image-caption pairs.
//!
//! The loss is CLIP's (arXiv 2103.00020): a batch's image and text features against each other, cross-entropy
//! both ways, with a learned temperature whose factor is kept at most 100. Our choices beside it:
//!
//! * captions that are equal, letter by letter, count as matches of one another (as in UniCL, arXiv 2204.03610):
//!   drawn people have few words, and a batch holds many equal captions. Where all captions differ this is
//!   CLIP's loss;
//! * where it is known which part of a person each pixel shows, the dense features that part maps are read from learn
//!   it too, from words alone: [`dense_loss`], on the clear and the mask features. Contrast between whole pictures teaches a small model on little data
//!   next to nothing about where things are;
//! * where the answers to questions about a picture are known, its pooled feature is set against one phrase for each
//!   value of the question: [`value_loss`], CLIP's rule for zero-shot answers. Captions name many facts at once, and
//!   a batch hardly ever holds two that differ in one small fact alone: a hat, a sleeve;
//! * training may go through several sizes, on all patches or a part of them (FLIP, arXiv 2212.00794): [`Stage`].
//!   Position embeddings are resampled as at inference, so nothing is converted in between;
//! * what a run gives is the moving average of its weights, so that a run that is stopped gives a usable model too;
//! * a batch is split over threads, each with its own copy of the model's graph. The loss needs the whole batch:
//!   features are gathered, the loss and its gradient on them computed once, and that gradient is pushed back
//!   through each part. The result does not depend on timing, only on the number of threads.
//!
//! The data is a function of an index, so a run continues after a checkpoint with the next index and nothing else
//! to remember. A run folder holds `checkpoint.safetensors` (weights, both moments, step and configuration) and
//! `log.jsonl` (a JSON object each logged step).

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::time::Instant;

use burn::module::Module;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use clasp_data::atomic::remove_abandoned;
use clasp_data::vocabulary::IGNORE;
use clasp_model::ModelError;
use clasp_model::clip::{Clip, ClipConfig, ClipConfigError, Dense};
use clasp_model::optim::{self, Gradients, Norms, Optimizer, OptimizerConfig, Rates, decays, ema};
use clasp_model::tokenizer::tokenize_flat;
use clasp_weights::WeightsError;
use clasp_weights::checkpoint;
use clasp_weights::state::{StateDict, load_state_dict, state_dict};
use fs_err as fs;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng};
use serde::{Deserialize, Serialize};

/// An image and what it shows.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// [3, height, width], normalised with the mean and standard deviation that the model will be saved with.
    pub image: Vec<f32>,
    /// The caption.
    pub caption: String,
    /// Part class of each pixel, [height, width]; 255 where unknown. `None` if nothing is known.
    pub parts: Option<Vec<u8>>,
    /// Value of each attribute of [`Words`]; 255 where unknown. Empty if nothing is known.
    pub values: Vec<u8>,
}

/// Texts that name what is known of pictures beside their captions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Words {
    /// Phrases for each part class, for the dense loss; none for no such loss.
    pub parts: Vec<Vec<String>>,
    /// Phrases for each value of each attribute, for the value loss; none for no such loss.
    pub attributes: Vec<Vec<Vec<String>>>,
    /// Part classes on which each attribute can be seen, for the value loss of single tokens; an attribute without
    /// any is learned from the pooled feature alone. Attributes that the list lacks have none.
    pub places: Vec<Vec<u8>>,
}

/// A part of the training at one size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Height and width of the images in pixels.
    pub size: [usize; 2],
    /// Number of steps.
    pub steps: usize,
    /// Share of the patches that is seen, drawn anew each step: 1 for all.
    pub patches: f32,
}

/// How to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Seed of the patches and phrases that each step sees.
    pub seed: u64,
    /// Pairs in a step.
    pub batch: usize,
    /// Sizes in turn.
    pub stages: Vec<Stage>,
    /// Largest learning rate; reached after `warm_up` steps, then falling to zero by half a cosine.
    pub learning_rate: f64,
    /// Steps of linear warm-up.
    pub warm_up: usize,
    /// Weight decay (decoupled), on matrices only. The moments' constants are CLIP's: 0.9, 0.98, 1e-6.
    pub weight_decay: f64,
    /// Largest length of the gradient, over all parameters.
    pub clip: f64,
    /// Weight of the dense loss beside the contrastive one; 0 for none.
    pub dense: f64,
    /// Weight of the value loss beside the contrastive one; 0 for none.
    pub values: f64,
    /// Momentum of the moving average of the weights (Polyak averaging), 0 for none. The average is what is measured on
    /// the held-out pairs and what a run gives, whether it ended or was stopped.
    pub average: f64,
    /// Threads among which a batch is split, no more than it has pairs; 0 takes one for each core.
    pub threads: usize,
    /// Steps between log lines.
    pub log_every: usize,
    /// Steps between measurements on the held-out pairs.
    pub evaluate_every: usize,
    /// Steps between checkpoints.
    pub save_every: usize,
}

impl Default for TrainConfig {
    fn default() -> Self {
        let stage = |size, steps, patches| Stage {
            size,
            steps,
            patches,
        };
        Self {
            seed: 0,
            batch: 128,
            stages: vec![stage([128, 64], 2000, 1.0)],
            learning_rate: 1e-3,
            warm_up: 100,
            weight_decay: 0.1,
            clip: 1.0,
            dense: 1.0,
            values: 4.0,
            average: 0.995,
            threads: 0,
            log_every: 10,
            evaluate_every: 200,
            save_every: 100,
        }
    }
}

/// What can go wrong in training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A setting that cannot work.
    #[error("CLIP training: `{field}` is {found}; expected {expected}")]
    Setting {
        /// The setting.
        field: &'static str,
        /// Its value.
        found: String,
        /// What would be accepted.
        expected: String,
    },
    /// Sizes of the model that cannot be built.
    #[error(transparent)]
    Model(#[from] ClipConfigError),
    /// A checkpoint that cannot be read or written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The optimiser's state in a checkpoint is not whole.
    #[error(transparent)]
    Optimiser(#[from] ModelError),
    /// The log cannot be written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A checkpoint of another run.
    #[error(
        "{}: the checkpoint does not belong to this run: {problem}\n\
         hint: give the settings it was started with, or another folder", path.display()
    )]
    OtherRun {
        /// The checkpoint.
        path: PathBuf,
        /// What differs.
        problem: String,
    },
    /// Training that left the finite numbers.
    #[error(
        "step {step}: the loss is {loss}; the last checkpoint is kept\n\
         hint: lower `learning_rate` or lengthen `warm_up`"
    )]
    Diverged {
        /// The step.
        step: usize,
        /// The loss.
        loss: f32,
    },
    /// A pair that is not what was asked for.
    #[error("pair {index}: {what} has {found} values; expected {expected}")]
    Pair {
        /// The pair's index.
        index: u64,
        /// The image or its classes.
        what: &'static str,
        /// The number of values.
        found: usize,
        /// What the size asked for needs.
        expected: usize,
    },
    /// A thread of the run ended before its work did.
    #[error("a training thread stopped unexpectedly; the last checkpoint is kept")]
    Worker,
}

/// Where a run is; also a line of its log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
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
    /// The smallest contrastive loss that could be reached with the last batch's equal captions.
    pub floor: f32,
    /// Mean dense loss since the last line; 0 without one.
    pub dense: f32,
    /// Mean value loss since the last line; 0 without one.
    pub values: f32,
    /// Learning rate.
    pub learning_rate: f64,
    /// Length of the gradient before clipping.
    pub gradient: f64,
    /// Factor on the cosines.
    pub scale: f32,
    /// Pairs a second since the last line.
    pub pairs_per_second: f64,
    /// On the held-out pairs, at some steps.
    pub held_out: Option<Retrieval>,
}

/// How often the right caption, or image, is the nearest among all that are held out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Retrieval {
    /// Share of images whose nearest caption is theirs (or equal to theirs).
    pub image_to_text: f32,
    /// Share of captions whose nearest image is theirs (or has an equal caption).
    pub text_to_image: f32,
    /// What guessing would reach.
    pub chance: f32,
}

/// How a run ended.
#[derive(Debug)]
pub struct Trained {
    /// The moving average of the weights, without gradients.
    pub clip: Clip,
    /// Steps done in all.
    pub step: usize,
    /// Whether these were all steps; otherwise the callback stopped the run, and it can go on from its folder.
    pub finished: bool,
}

impl TrainConfig {
    /// Steps of all stages.
    pub fn steps(&self) -> usize {
        self.stages.iter().map(|stage| stage.steps).sum()
    }

    /// Learning rate of a step, counted from 0.
    pub fn learning_rate(&self, step: usize) -> f64 {
        if step < self.warm_up {
            return self.learning_rate * (step + 1) as f64 / self.warm_up as f64;
        }
        let rest = (self.steps() - self.warm_up.min(self.steps())).max(1);
        let done = (step - self.warm_up) as f64 / rest as f64;
        0.5 * self.learning_rate * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
    }

    /// Momentum of the average at a step, counted from 0: smaller at first, so that the start is soon forgotten.
    fn momentum(&self, step: usize) -> f64 {
        self.average.min((1 + step) as f64 / (10 + step) as f64)
    }

    /// The stage of a step, counted from 0; the last one behind the end.
    fn stage(&self, step: usize) -> &Stage {
        let mut end = 0;
        let found = self.stages.iter().find(|stage| {
            end += stage.steps;
            step < end
        });
        match found.or(self.stages.last()) {
            Some(stage) => stage,
            None => unreachable!("checked: at least one stage"),
        }
    }

    fn check(&self, model: &ClipConfig) -> Result<(), TrainError> {
        model.validate()?;
        let wrong = |field, found: String, expected: &str| {
            Err(TrainError::Setting {
                field,
                found,
                expected: expected.to_owned(),
            })
        };
        if !(2..=65_536).contains(&self.batch) {
            return wrong("batch", self.batch.to_string(), "2 to 65536 pairs");
        }
        if self.stages.is_empty() || self.steps() == 0 {
            return wrong("stages", "empty".into(), "at least one step");
        }
        for stage in &self.stages {
            let sides = model.vision.patch..=4096;
            if stage.size.iter().any(|side| !sides.contains(side)) {
                return wrong(
                    "stages.size",
                    format!("{:?}", stage.size),
                    "one patch to 4096 pixels",
                );
            }
            if !(stage.patches > 0.0 && stage.patches <= 1.0) {
                return wrong(
                    "stages.patches",
                    stage.patches.to_string(),
                    "more than 0, at most 1",
                );
            }
        }
        for (field, value) in [("dense", self.dense), ("values", self.values)] {
            if !(value.is_finite() && value >= 0.0) {
                return wrong(field, value.to_string(), "0 or a positive number");
            }
        }
        if !(0.0..1.0).contains(&self.average) {
            return wrong("average", self.average.to_string(), "0 or more, below 1");
        }
        for (field, value) in [("learning_rate", self.learning_rate), ("clip", self.clip)] {
            if !(value.is_finite() && value > 0.0) {
                return wrong(field, value.to_string(), "a positive number");
            }
        }
        if !(0.0..1.0).contains(&(self.weight_decay * self.learning_rate)) {
            return wrong(
                "weight_decay",
                self.weight_decay.to_string(),
                "a small positive number",
            );
        }
        for (field, value) in [
            ("log_every", self.log_every),
            ("evaluate_every", self.evaluate_every),
            ("save_every", self.save_every),
        ] {
            if value == 0 {
                return wrong(field, "0".into(), "at least 1");
            }
        }
        Ok(())
    }
}

/// Trains a CLIP, or goes on with the run that the folder holds.
///
/// * `clip` is where a new run starts: a fresh model, or one to adapt; it is trained on the device it lies on.
/// * `data(index, size)` gives the pair of an index at a size; the same index always gives the same pair. It is
///   called from several threads, a batch ahead of the training.
/// * `words` name part classes and values of attributes, for the dense and the value loss.
/// * `held_out` are pairs at the last stage's size that `data` never gives.
/// * `progress` is called after each logged step; `Break` stops the run after a checkpoint.
///
/// # Errors
///
/// A setting that cannot work, a folder that cannot be written, a checkpoint of another run, or a loss that is
/// not finite (the last checkpoint is kept).
pub fn train(
    config: &TrainConfig,
    clip: Clip,
    data: &(dyn Fn(u64, [usize; 2]) -> Pair + Sync),
    words: &Words,
    held_out: &[Pair],
    folder: &Path,
    progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
) -> Result<Trained, TrainError> {
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
    let (mut clip, mut average, mut optimiser, start) = if path.exists() {
        resume(&path, &run, config, clip)?
    } else {
        let average = clip.clone();
        (clip, average, Optimizer::new(optimiser_config(config)), 0)
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
        .map_err(|_| TrainError::Worker)?;
    let steps = config.steps();

    std::thread::scope(|scope| {
        let (send, batches) = sync_channel::<Result<Batch, TrainError>>(1);
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

        let mut since = (Instant::now(), 0usize, [0f64; 3]);
        for step in start..steps {
            let batch = batches.recv().map_err(|_| TrainError::Worker)??;
            let stage = config.stage(step);
            let patches = draw_patches(config.seed, step, stage, model);
            let patches = patches.as_deref();
            let dense = DenseStep::new(config, step, &words.parts, &batch, patches, model);
            let values = ValueStep::new(config, step, words, &batch, patches, model);
            let losses = gradients(
                &clip,
                &batch,
                patches,
                dense.as_ref(),
                values.as_ref(),
                &pools,
                &plain,
            )?;
            let Losses {
                contrastive,
                floor,
                dense,
                values,
                mut gradients,
            } = losses;
            let loss = contrastive + dense + values;
            if !loss.is_finite() {
                return Err(TrainError::Diverged { step, loss });
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
            clip = optimiser.step("", clip, &mut gradients, &norms, &rates);
            clip.logit_scale = clip
                .logit_scale
                .map(|scale| scale.clamp(0.0, LARGEST_SCALE.ln()));
            average = ema(average, &clip, config.momentum(step));

            let done = step + 1;
            since.1 += 1;
            since.2[0] += f64::from(contrastive);
            since.2[1] += f64::from(dense);
            since.2[2] += f64::from(values);
            let evaluate =
                !held_out.is_empty() && (done % config.evaluate_every == 0 || done == steps);
            let mut stop = false;
            if done % config.log_every == 0 || done == steps || evaluate {
                let seconds = since.0.elapsed().as_secs_f64();
                let line = Progress {
                    step: done,
                    steps,
                    pairs: (done * config.batch) as u64,
                    size: stage.size,
                    loss: (since.2[0] / since.1 as f64) as f32,
                    floor,
                    dense: (since.2[1] / since.1 as f64) as f32,
                    values: (since.2[2] / since.1 as f64) as f32,
                    learning_rate,
                    gradient: length,
                    scale: clip.scale().into_scalar::<f32>(),
                    pairs_per_second: (since.1 * config.batch) as f64 / seconds.max(1e-9),
                    held_out: evaluate.then(|| retrieval(&average, held_out, last_size, &plain)),
                };
                let text = serde_json::to_string(&line).map_err(std::io::Error::from)?;
                writeln!(log, "{text}")?;
                stop = progress(&line).is_break();
                since = (Instant::now(), 0, [0.0; 3]);
            }
            if done % config.save_every == 0 || done == steps || stop {
                save(&path, &run, [&clip, &average], &optimiser, done)?;
            }
            if stop {
                return Ok(Trained {
                    clip: average,
                    step: done,
                    finished: done == steps,
                });
            }
        }
        Ok(Trained {
            clip: average,
            step: steps,
            finished: true,
        })
    })
}

/// CLIP's bound of the factor on cosines.
const LARGEST_SCALE: f64 = 100.0;

fn optimiser_config(config: &TrainConfig) -> OptimizerConfig {
    OptimizerConfig {
        beta2: 0.98,
        epsilon: 1e-6,
        clip: optim::GradientClip::Global(config.clip),
        ..OptimizerConfig::default()
    }
}

/// Pairs as arrays.
struct Batch {
    size: [usize; 2],
    /// [batch, 3, height, width].
    images: Vec<f32>,
    /// [batch, columns].
    tokens: Vec<i64>,
    columns: usize,
    /// Pairs with the same number have the same caption.
    captions: Vec<usize>,
    /// Part class of each patch, [batch, patches]; 255 where no class has most of the patch.
    classes: Vec<u8>,
    /// Value of each attribute, [batch, attributes]; 255 where unknown.
    values: Vec<u8>,
}

/// `attributes`: how many there are; a pair knows the values of all or says nothing of them.
fn check_pair(
    pair: &Pair,
    index: u64,
    [height, width]: [usize; 2],
    attributes: usize,
) -> Result<(), TrainError> {
    let check = |what, found, expected| {
        if found == expected {
            return Ok(());
        }
        Err(TrainError::Pair {
            index,
            what,
            found,
            expected,
        })
    };
    check("the image", pair.image.len(), 3 * height * width)?;
    if attributes > 0 && !pair.values.is_empty() {
        check("the list of attributes", pair.values.len(), attributes)?;
    }
    match &pair.parts {
        Some(parts) => check("the map of classes", parts.len(), height * width),
        None => Ok(()),
    }
}

/// The batch of a step: the pairs from `step · batch` on, drawn by `threads` threads.
fn draw(
    data: &(dyn Fn(u64, [usize; 2]) -> Pair + Sync),
    step: usize,
    batch: usize,
    size: [usize; 2],
    model: &ClipConfig,
    words: &Words,
    threads: usize,
) -> Result<Batch, TrainError> {
    let first = (step * batch) as u64;
    let pairs: Vec<Pair> = std::thread::scope(|scope| {
        let share = batch.div_ceil(threads);
        let parts: Vec<_> = (0..batch)
            .step_by(share)
            .map(|start| {
                scope.spawn(move || {
                    (start..batch.min(start + share))
                        .map(|place| data(first + place as u64, size))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        // All are joined before the first failure is looked at: a scope panics for threads that nobody joined.
        let parts: Vec<_> = parts.into_iter().map(|part| part.join()).collect();
        let parts: Result<Vec<_>, _> = parts.into_iter().collect();
        parts.map(|parts| parts.concat())
    })
    .map_err(|_| TrainError::Worker)?;
    for (index, pair) in (first..).zip(&pairs) {
        check_pair(pair, index, size, words.attributes.len())?;
    }
    let unknown = vec![IGNORE; words.attributes.len()];
    let captions: Vec<&str> = pairs.iter().map(|pair| pair.caption.as_str()).collect();
    let (tokens, columns) = tokenize_flat(&captions, model.text.context);
    let patch = model.vision.patch;
    Ok(Batch {
        size,
        tokens,
        columns,
        captions: numbers(&captions),
        classes: pairs
            .iter()
            .flat_map(|pair| patch_classes(pair.parts.as_deref(), size, patch))
            .collect(),
        values: pairs
            .iter()
            .flat_map(|pair| match pair.values.len() {
                0 => unknown.clone(),
                _ => pair.values.clone(),
            })
            .collect(),
        images: pairs
            .iter()
            .flat_map(|pair| pair.image.iter().copied())
            .collect(),
    })
}

/// The class that covers most of each patch and at least two fifths of it, 255 where none does. Of equals, the lowest.
///
/// Small parts seldom cover more than half of a patch: with a higher bound feet, bare arms and bags are hardly
/// ever learned.
///
/// parts: [height, width]; returns [rows · columns of patches]
fn patch_classes(parts: Option<&[u8]>, [height, width]: [usize; 2], patch: usize) -> Vec<u8> {
    let (rows, columns) = (height / patch, width / patch);
    let Some(parts) = parts else {
        return vec![IGNORE; rows * columns];
    };
    let class = |place: usize| {
        let (top, left) = (place / columns * patch, place % columns * patch);
        let mut counts = [0usize; 256];
        for row in top..top + patch {
            for &part in &parts[row * width + left..row * width + left + patch] {
                counts[usize::from(part)] += 1;
            }
        }
        let most = counts
            .iter()
            .enumerate()
            .max_by_key(|(class, count)| (**count, 255 - *class));
        match most {
            Some((class, count)) if 5 * count >= 2 * patch * patch => {
                u8::try_from(class).unwrap_or(IGNORE)
            }
            _ => IGNORE,
        }
    };
    (0..rows * columns).map(class).collect()
}

/// Equal texts get equal numbers.
fn numbers(texts: &[&str]) -> Vec<usize> {
    let mut known = BTreeMap::new();
    texts
        .iter()
        .map(|text| {
            let next = known.len();
            *known.entry(*text).or_insert(next)
        })
        .collect()
}

/// The patches that a step sees, in order; `None` for all.
fn draw_patches(seed: u64, step: usize, stage: &Stage, model: &ClipConfig) -> Option<Vec<i64>> {
    let [rows, columns] = model.grid(stage.size[0], stage.size[1]);
    let count = rows * columns;
    let kept = ((count as f32 * stage.patches).round() as usize).clamp(1, count);
    if kept == count {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(1 + step as u64);
    let mut order: Vec<i64> = (0..count as i64).collect();
    for place in 0..kept {
        let other = place + (rng.next_u64() % (count - place) as u64) as usize;
        order.swap(place, other);
    }
    order.truncate(kept);
    order.sort_unstable();
    Some(order)
}

/// What a step finds.
struct Losses {
    contrastive: f32,
    floor: f32,
    dense: f32,
    values: f32,
    gradients: Gradients,
}

/// All losses and the gradient of every parameter.
fn gradients(
    clip: &Clip,
    batch: &Batch,
    patches: Option<&[i64]>,
    dense: Option<&DenseStep>,
    values: Option<&ValueStep>,
    pools: &[rayon::ThreadPool],
    device: &Device,
) -> Result<Losses, TrainError> {
    let count = batch.captions.len();
    let share = count.div_ceil(pools.len());
    let embed = clip.config().embed;
    std::thread::scope(|scope| {
        let mut workers = Vec::new();
        for (pool, start) in pools.iter().zip((0..count).step_by(share)) {
            let rows = start..count.min(start + share);
            let (features_out, features) = channel::<[Vec<f32>; 2]>();
            let (grads_out, grads) = channel::<Pushed>();
            // A graph of its own: the values are shared, the nodes are not.
            let replica = clip.valid().train();
            let part = Part {
                batch,
                rows,
                patches,
                dense,
                values,
                device,
            };
            let handle =
                scope.spawn(move || pool.install(move || part.run(replica, &features_out, &grads)));
            workers.push((handle, features, grads_out));
        }

        let mut gathered = [Vec::new(), Vec::new()];
        for (_, features, _) in &workers {
            let part = features.recv().map_err(|_| TrainError::Worker)?;
            for (all, part) in gathered.iter_mut().zip(part) {
                all.extend(part);
            }
        }
        let tracked = device.clone().autodiff();
        let [images, texts] = gathered.map(|values| {
            Tensor::<2>::from_data(TensorData::new(values, [count, embed]), &tracked).require_grad()
        });
        let log_scale = clip.logit_scale.val().autodiff().require_grad();
        let (loss, floor) = contrastive_loss(
            images.clone(),
            texts.clone(),
            log_scale.clone().exp(),
            &batch.captions,
        );
        let contrastive = loss.clone().into_scalar::<f32>();
        let grads = loss.backward();
        let scale_gradient = log_scale.grad(&grads).ok_or(TrainError::Worker)?;
        // The parts' gradients add up, but will be averaged.
        let parts = workers.len() as f64;
        let images = host(images.grad(&grads).ok_or(TrainError::Worker)? * parts);
        let texts = host(texts.grad(&grads).ok_or(TrainError::Worker)? * parts);

        let mut rows = 0;
        for (index, (_, _, grads)) in workers.iter().enumerate() {
            let end = count.min((index + 1) * share) * embed;
            let part = Pushed {
                features: [images[rows..end].to_vec(), texts[rows..end].to_vec()],
                parts,
            };
            grads.send(part).map_err(|_| TrainError::Worker)?;
            rows = end;
        }
        let mut replicas = Vec::new();
        let (mut dense, mut values) = (0.0, 0.0);
        for (handle, _, _) in workers {
            let ([of_tokens, of_values], gradients) =
                handle.join().map_err(|_| TrainError::Worker)??;
            dense += of_tokens;
            values += of_values;
            replicas.push(gradients);
        }
        let mut gradients = optim::average(replicas);
        // The temperature takes part only in the gathered loss.
        gradients.insert("logit_scale".to_owned(), scale_gradient);
        Ok(Losses {
            contrastive,
            floor,
            dense,
            values,
            gradients,
        })
    })
}

/// What comes back to a part: the contrastive loss's gradient on its features, and the number of parts.
struct Pushed {
    features: [Vec<f32>; 2],
    parts: f64,
}

/// One thread's share of a batch.
struct Part<'a> {
    batch: &'a Batch,
    rows: std::ops::Range<usize>,
    patches: Option<&'a [i64]>,
    dense: Option<&'a DenseStep>,
    values: Option<&'a ValueStep>,
    device: &'a Device,
}

impl Part<'_> {
    /// Features out, their gradient in; this part's dense and value loss and the parameters' gradients back.
    fn run(
        &self,
        replica: Clip,
        features: &Sender<[Vec<f32>; 2]>,
        gradients: &Receiver<Pushed>,
    ) -> Result<([f32; 2], Gradients), TrainError> {
        let batch = self.batch;
        let (count, [height, width]) = (self.rows.len(), batch.size);
        let tracked = self.device.clone().autodiff();
        let pixels = 3 * height * width;
        let images = batch.images[self.rows.start * pixels..self.rows.end * pixels].to_vec();
        let shape = [count, 3, height, width];
        let images = Tensor::<4>::from_data(TensorData::new(images, shape), &tracked);
        let columns = batch.columns;
        let tokens = &batch.tokens[self.rows.start * columns..self.rows.end * columns];
        let tokens = integers(tokens.to_vec(), [count, columns], &tracked);
        let patches = self
            .patches
            .map(|patches| integers(patches.to_vec(), [patches.len()], &tracked));
        let (maps, images) = match self.dense {
            Some(_) => {
                let variants = [Dense::Clear, Dense::Mask];
                let (maps, images) = replica.encode_image_tokens(images, patches, variants);
                (Some(maps), images)
            }
            None => (None, replica.encode_image_patches(images, patches)),
        };
        let texts = replica.encode_text(tokens);
        let parts = [host(images.clone().inner()), host(texts.clone().inner())];
        features.send(parts).map_err(|_| TrainError::Worker)?;
        let (mut values, mut of_values) = (None, 0.0);
        if let Some(step) = self.values {
            let rows = &self.rows;
            let (loss, alone) = step.loss(&replica, images.clone(), maps.as_ref(), rows, &tracked);
            (values, of_values) = (Some(loss), alone);
        }
        let dense = match (self.dense, maps) {
            (Some(dense), Some(maps)) => dense.loss(&replica, maps, &self.rows, &tracked),
            _ => None,
        };

        let Pushed {
            features: [image_gradient, text_gradient],
            parts,
        } = gradients.recv().map_err(|_| TrainError::Worker)?;
        let shape = images.dims();
        let tensor = |values| Tensor::<2>::from_data(TensorData::new(values, shape), &tracked);
        // d/dw Σ f(w)·g is the gradient of the loss when g is the loss's gradient on the features.
        let mut product =
            (images * tensor(image_gradient)).sum() + (texts * tensor(text_gradient)).sum();
        let mut found = [0.0; 2];
        let weights = [
            self.dense.map(|step| step.weight),
            self.values.map(|step| step.weight),
        ];
        for ((loss, weight), found) in [dense, values].into_iter().zip(weights).zip(&mut found) {
            if let (Some(loss), Some(weight)) = (loss, weight) {
                *found = loss.clone().into_scalar::<f32>();
                product = product + loss * (weight * parts);
            }
        }
        found[1] = of_values;
        let gradients = optim::gradients(&replica, &mut product.backward());
        Ok((found, gradients))
    }
}

/// A step's part of the dense loss: which tokens of which class, and words for the classes.
struct DenseStep {
    weight: f64,
    /// [phrases, columns], and the columns.
    tokens: (Vec<i64>, usize),
    /// Class of each phrase.
    phrase_class: Vec<usize>,
    /// Class of each seen patch, [batch, seen patches]; 255 where unknown.
    classes: Vec<u8>,
    /// Weight of a token by its class; all tokens of the batch have a weight of 1 together.
    class_weight: Vec<f32>,
    /// Seen patches of an image.
    seen: usize,
}

/// Phrases for each class in a step.
const PHRASES: usize = 3;
/// Phrases for each value in a step, one of which is set against the mean of the others.
const VALUE_PHRASES: usize = 4;
/// The factor on cosines at which part maps are read (METHOD: labels).
const PART_SCALE: f64 = 50.0;

impl DenseStep {
    /// `None` where there is nothing to learn: no phrases, no weight, or no token whose class is known.
    fn new(
        config: &TrainConfig,
        step: usize,
        phrases: &[Vec<String>],
        batch: &Batch,
        patches: Option<&[i64]>,
        model: &ClipConfig,
    ) -> Option<Self> {
        if phrases.is_empty() || config.dense == 0.0 {
            return None;
        }
        let all = batch.classes.len() / batch.captions.len();
        let every: Vec<i64> = (0..all as i64).collect();
        let patches = patches.unwrap_or(&every);
        let classes: Vec<u8> = batch
            .classes
            .chunks_exact(all)
            .flat_map(|row| patches.iter().map(|&patch| row[patch as usize]))
            .map(|class| {
                if usize::from(class) < phrases.len() {
                    class
                } else {
                    IGNORE
                }
            })
            .collect();
        let mut counts = vec![0f32; phrases.len()];
        for &class in classes.iter().filter(|class| **class != IGNORE) {
            counts[usize::from(class)] += 1.0;
        }
        let total: f32 = counts.iter().map(|count| count.sqrt()).sum();
        if total == 0.0 {
            return None;
        }
        // Between every token alike and every class alike: bags are small, and backgrounds are not.
        let class_weight = counts
            .iter()
            .map(|count| {
                if *count > 0.0 {
                    1.0 / (count.sqrt() * total)
                } else {
                    0.0
                }
            })
            .collect();
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed ^ 0x7061_7274);
        rng.set_stream(1 + step as u64);
        let mut texts = Vec::new();
        let mut phrase_class = Vec::new();
        for (class, phrases) in phrases.iter().enumerate() {
            for _ in 0..PHRASES.min(phrases.len()) {
                let place = (rng.next_u64() % phrases.len() as u64) as usize;
                texts.push(phrases[place].as_str());
                phrase_class.push(class);
            }
        }
        Some(Self {
            weight: config.dense,
            tokens: tokenize_flat(&texts, model.text.context),
            phrase_class,
            classes,
            class_weight,
            seen: patches.len(),
        })
    }

    /// The loss of the images `rows`, a share of the batch's, mean over both maps; `None` if no class is known.
    ///
    /// Clear features are the mask features averaged over tokens whose queries are alike. While queries are not yet
    /// alike by part, the mean hides what is where, so the mask features learn beside them.
    fn loss(
        &self,
        clip: &Clip,
        maps: [Tensor<3>; 2],
        rows: &std::ops::Range<usize>,
        device: &Device,
    ) -> Option<Tensor<1>> {
        let [count, seen, embed] = maps[0].dims();
        let known: Vec<(i64, usize)> = self.classes[rows.start * self.seen..rows.end * self.seen]
            .iter()
            .enumerate()
            .filter(|(_, class)| **class != IGNORE)
            .map(|(place, class)| (place as i64, usize::from(*class)))
            .collect();
        if known.is_empty() {
            return None;
        }
        let places = known.iter().map(|(place, _)| *place).collect();
        let classes: Vec<usize> = known.iter().map(|(_, class)| *class).collect();
        let weights: Vec<f32> = classes
            .iter()
            .map(|class| self.class_weight[*class])
            .collect();
        let places = integers(places, [known.len()], device);
        let (phrases, columns) = &self.tokens;
        let shape = [self.phrase_class.len(), *columns];
        let phrases = clip.encode_text(integers(phrases.clone(), shape, device));
        let [clear, mask] = maps.map(|map| {
            let tokens = map.reshape([count * seen, embed]).select(0, places.clone());
            let phrases = phrases.clone();
            dense_loss(tokens, phrases, &classes, &self.phrase_class, &weights)
        });
        Some((clear + mask) * 0.5)
    }
}

/// A step's part of the value loss: the batch's answers, and words for them.
struct ValueStep {
    weight: f64,
    /// [`VALUE_PHRASES`] phrases for each value of each attribute, one attribute after the other:
    /// [values · phrases, columns], and the columns.
    tokens: (Vec<i64>, usize),
    /// Number of values of each attribute.
    counts: Vec<usize>,
    /// Value of each attribute, [batch, attributes]; 255 where unknown.
    values: Vec<u8>,
    /// Known answers of the batch.
    known: usize,
    /// Value of each attribute that can be seen at each seen patch, [batch, seen patches, attributes]; 255 where it
    /// is not known or cannot be seen there. Empty where nothing is known of patches.
    token_values: Vec<u8>,
    /// Known answers of the batch's tokens, for each attribute.
    token_known: Vec<usize>,
}

impl ValueStep {
    /// `None` where there is nothing to learn: no attributes, no weight, or no answer that is known.
    fn new(
        config: &TrainConfig,
        step: usize,
        words: &Words,
        batch: &Batch,
        patches: Option<&[i64]>,
        model: &ClipConfig,
    ) -> Option<Self> {
        let attributes = &words.attributes;
        let known = batch.values.iter().filter(|value| **value != IGNORE);
        let known = known.count();
        if known == 0 || config.values == 0.0 {
            return None;
        }
        let token_values = token_values(words, batch, patches);
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed ^ 0x7661_6c75);
        rng.set_stream(1 + step as u64);
        let texts: Vec<&str> = attributes
            .iter()
            .flatten()
            .flat_map(|phrases| std::iter::repeat_n(phrases, VALUE_PHRASES))
            .map(|phrases| {
                let place = rng.next_u64() % phrases.len().max(1) as u64;
                phrases.get(place as usize).map_or("", String::as_str)
            })
            .collect();
        Some(Self {
            weight: config.values,
            tokens: tokenize_flat(&texts, model.text.context),
            counts: attributes.iter().map(Vec::len).collect(),
            values: batch.values.clone(),
            known,
            token_known: (0..attributes.len())
                .map(|attribute| {
                    let of_attribute = token_values.iter().skip(attribute);
                    let of_attribute = of_attribute.step_by(attributes.len());
                    of_attribute.filter(|value| **value != IGNORE).count()
                })
                .collect(),
            token_values,
        })
    }

    /// The loss of the images `rows`, a share of the batch's, from their features [rows, embed], and the same share of
    /// the loss on the phrases themselves.
    ///
    /// Each value is named by the mean feature of all but one of its phrases, as labels are read from a mean over
    /// phrases. The one that is left out is set against these means like an image whose answer is known: phrases in
    /// other words for the same value come together and values apart. Without it there is a saddle point: where the
    /// phrases of two values are alike, images get no gradient that tells the values apart, and while images do not
    /// tell them apart, neither do phrases get one.
    ///
    /// The tokens of a part are set against the values that can be seen on it, each attribute with the same weight. The
    /// pooled feature takes up what tokens say (its last block averages the very values that make dense features), and
    /// a token that shows a hat is a far stronger signal than an image that has one somewhere.
    ///
    /// Returns the sum of the three, and the images' alone.
    fn loss(
        &self,
        clip: &Clip,
        images: Tensor<2>,
        maps: Option<&[Tensor<3>; 2]>,
        rows: &std::ops::Range<usize>,
        device: &Device,
    ) -> (Tensor<1>, f32) {
        let attributes = self.counts.len();
        let answers = rows.start * attributes..rows.end * attributes;
        let truth = &self.values[answers];
        let (phrases, columns) = &self.tokens;
        let values: usize = self.counts.iter().sum();
        let shape = [values * VALUE_PHRASES, *columns];
        let phrases = clip.encode_text(integers(phrases.clone(), shape, device));
        let [_, embed] = phrases.dims();
        let phrases = phrases.reshape([values, VALUE_PHRASES, embed]);
        let asked = phrases.clone().slice([0..values, 0..1]);
        let asked = asked.reshape([values, embed]);
        let named = phrases.slice([0..values, 1..VALUE_PHRASES]).mean_dim(1);
        let named = named.reshape([values, embed]);
        let length = (named.clone() * named.clone()).sum_dim(1).sqrt();
        let named = named / (length + 1e-6);
        let scale = clip.scale().detach();
        let of_images = value_loss(images, named.clone(), scale.clone(), &self.counts, truth);
        let of_images = of_images / self.known.max(1) as f64;
        let images_alone = of_images.clone().into_scalar::<f32>();
        let own = own_values(&self.counts);
        let of_phrases = value_loss(asked, named.clone(), scale.clone(), &self.counts, &own);
        let share = rows.len() as f64 * attributes as f64 / self.values.len() as f64;
        let mut sum = of_images + of_phrases * (share / values as f64);
        if let Some(maps) = maps {
            for map in maps {
                let loss = self.token_loss(map.clone(), named.clone(), scale.clone(), rows, device);
                sum = match loss {
                    Some(loss) => sum + loss * 0.5,
                    None => sum,
                };
            }
        }
        (sum, images_alone)
    }

    /// The loss of the tokens of the images `rows`, [rows, seen patches, embed], mean over the attributes that any
    /// token of the batch shows; `None` where these images show none.
    fn token_loss(
        &self,
        map: Tensor<3>,
        named: Tensor<2>,
        scale: Tensor<1>,
        rows: &std::ops::Range<usize>,
        device: &Device,
    ) -> Option<Tensor<1>> {
        let [count, seen, embed] = map.dims();
        let attributes = self.counts.len();
        let width = seen * attributes;
        let truth = self
            .token_values
            .get(rows.start * width..rows.end * width)?;
        let (places, truth): (Vec<i64>, Vec<&[u8]>) = (0..)
            .zip(truth.chunks_exact(attributes))
            .filter(|(_, answers)| answers.iter().any(|value| *value != IGNORE))
            .unzip();
        if places.is_empty() {
            return None;
        }
        let kept = places.len();
        let places = integers(places, [kept], device);
        let tokens = map.reshape([count * seen, embed]).select(0, places);
        let losses = value_losses(tokens, named, scale, &self.counts, &truth.concat());
        let shown = self.token_known.iter().filter(|known| **known > 0).count();
        { losses.into_iter().zip(&self.token_known) }
            .filter(|(_, known)| **known > 0)
            .map(|(loss, known)| loss / (*known as f64 * shown as f64))
            .reduce(|sum, loss| sum + loss)
    }
}

/// Value of each attribute at each seen patch, [batch, seen patches, attributes], see [`Words::places`].
fn token_values(words: &Words, batch: &Batch, patches: Option<&[i64]>) -> Vec<u8> {
    if words.places.iter().all(Vec::is_empty) {
        return Vec::new();
    }
    let all = batch.classes.len() / batch.captions.len();
    let every: Vec<i64> = (0..all as i64).collect();
    let patches = patches.unwrap_or(&every);
    let attributes = words.attributes.len();
    let mut found = Vec::with_capacity(batch.captions.len() * patches.len() * attributes);
    let images = { batch.classes.chunks_exact(all) }.zip(batch.values.chunks_exact(attributes));
    for (classes, values) in images {
        for &patch in patches {
            let class = classes[patch as usize];
            found.extend(values.iter().enumerate().map(|(attribute, value)| {
                let places = words.places.get(attribute);
                match places.is_some_and(|places| places.contains(&class)) {
                    true => *value,
                    false => IGNORE,
                }
            }));
        }
    }
    found
}

/// The truth of each value's phrase, [values, attributes]: the value in its own attribute, 255 in the others.
fn own_values(counts: &[usize]) -> Vec<u8> {
    let mut truth = Vec::new();
    for (attribute, &values) in counts.iter().enumerate() {
        for value in 0..values {
            let row = truth.len() + attribute;
            truth.resize(truth.len() + counts.len(), IGNORE);
            truth[row] = u8::try_from(value).unwrap_or(IGNORE);
        }
    }
    truth
}

/// How well images answer questions whose answers are known: the sum, over images and attributes, of
/// `−log softmax_v(s · cos(image, phrase of v))` at the true value, the softmax over the values of one attribute.
///
/// # Shapes
///
/// - images: [images, embed], rows of length 1
/// - phrases: [values, embed], rows of length 1: those of the first attribute, then of the second, …
/// - scale: [1]
/// - counts: how many values each attribute has
/// - truth: [images, attributes], 255 or any value that the attribute does not have where unknown
/// - output: [1]
pub fn value_loss(
    images: Tensor<2>,
    phrases: Tensor<2>,
    scale: Tensor<1>,
    counts: &[usize],
    truth: &[u8],
) -> Tensor<1> {
    let device = images.device();
    let losses = value_losses(images, phrases, scale, counts, truth);
    let first = Tensor::<1>::zeros([1], &device);
    losses.into_iter().fold(first, |sum, loss| sum + loss)
}

/// [`value_loss`] of each attribute.
fn value_losses(
    images: Tensor<2>,
    phrases: Tensor<2>,
    scale: Tensor<1>,
    counts: &[usize],
    truth: &[u8],
) -> Vec<Tensor<1>> {
    let device = images.device();
    let count = images.dims()[0];
    let logits = images.matmul(phrases.transpose()) * scale.unsqueeze();
    let mut start = 0;
    let mut losses = Vec::new();
    for (attribute, &values) in counts.iter().enumerate() {
        let mut one_hot = vec![0f32; count * values];
        for (image, answers) in truth.chunks_exact(counts.len()).enumerate() {
            if let Some(cell) = Some(usize::from(answers[attribute])).filter(|&v| v < values) {
                one_hot[image * values + cell] = 1.0;
            }
        }
        let own = log_softmax(logits.clone().narrow(1, start, values), 1);
        let one_hot = Tensor::<2>::from_data(TensorData::new(one_hot, [count, values]), &device);
        losses.push((own * one_hot).sum().neg());
        start += values;
    }
    losses
}

fn integers<const D: usize>(
    values: Vec<i64>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// How well each token is named by the words for its part: a weighted sum over tokens of
/// `−log Σ_{t names the class of i} softmax_t(s · cos(u_i, t))`, s = 50, the rule by which part maps are read. Any
/// one of a class's phrases may take the probability, so a sleeve need not be "a shirt" and "a coat" at once (as in
/// MIL-NCE, arXiv 1912.06430).
///
/// # Shapes
///
/// - tokens: [tokens, embed], rows of length 1
/// - phrases: [phrases, embed], rows of length 1
/// - classes, weights: one for each token; phrase_class: one for each phrase
/// - output: [1]
pub fn dense_loss(
    tokens: Tensor<2>,
    phrases: Tensor<2>,
    classes: &[usize],
    phrase_class: &[usize],
    weights: &[f32],
) -> Tensor<1> {
    /// Far below any score, far above minus infinity.
    const NOT_OWN: f32 = -1e4;
    let device = tokens.device();
    let shape = [classes.len(), phrase_class.len()];
    let others: Vec<f32> = classes
        .iter()
        .flat_map(|class| {
            phrase_class
                .iter()
                .map(move |other| if class == other { 0.0 } else { NOT_OWN })
        })
        .collect();
    let others = Tensor::<2>::from_data(TensorData::new(others, shape), &device);
    let weights = Tensor::<2>::from_data(TensorData::new(weights.to_vec(), [shape[0], 1]), &device);
    let logits = tokens.matmul(phrases.transpose()) * PART_SCALE;
    let own = log_softmax(logits, 1) + others;
    let most = own.clone().detach().max_dim(1);
    let own = (own - most.clone()).exp().sum_dim(1).log() + most;
    (own * weights).sum().neg()
}

/// Symmetric cross-entropy between images and texts, and the smallest value it can take.
///
/// With s = scale and P the matrix that spreads each pair's target evenly over all pairs with the same caption:
/// `L = ½ (CE(P, s·I Tᵀ) + CE(Pᵀ, s·T Iᵀ))`. P is the identity where captions differ.
///
/// # Shapes
///
/// - images, texts: [batch, embed], rows of length 1
/// - scale: [1]
/// - captions: a number for each pair, equal for equal captions
/// - output: [1]
pub fn contrastive_loss(
    images: Tensor<2>,
    texts: Tensor<2>,
    scale: Tensor<1>,
    captions: &[usize],
) -> (Tensor<1>, f32) {
    let count = captions.len();
    let mut sizes = BTreeMap::<usize, usize>::new();
    for caption in captions {
        *sizes.entry(*caption).or_default() += 1;
    }
    let mut targets = vec![0f32; count * count];
    for (row, caption) in targets.chunks_exact_mut(count).zip(captions) {
        for (target, other) in row.iter_mut().zip(captions) {
            if caption == other {
                *target = 1.0 / sizes[caption] as f32;
            }
        }
    }
    // The entropy of the targets.
    let floor = captions
        .iter()
        .map(|caption| (sizes[caption] as f32).ln())
        .sum::<f32>()
        / count as f32;
    let targets =
        Tensor::<2>::from_data(TensorData::new(targets, [count, count]), &images.device());
    let logits = images.matmul(texts.transpose()) * scale.unsqueeze();
    let both = log_softmax(logits.clone(), 1) + log_softmax(logits, 0);
    ((both * targets).sum() / (-2.0 * count as f64), floor)
}

/// How often the nearest caption of an image, and the nearest image of a caption, is a right one.
///
/// `size`: height and width of the images.
pub fn retrieval(
    clip: &Clip,
    pairs: &[Pair],
    [height, width]: [usize; 2],
    device: &Device,
) -> Retrieval {
    let count = pairs.len();
    let captions: Vec<&str> = pairs.iter().map(|pair| pair.caption.as_str()).collect();
    let captions_number = numbers(&captions);
    let mut images = Vec::new();
    let mut texts = Vec::new();
    for pairs in pairs.chunks(32) {
        let pixels: Vec<f32> = pairs
            .iter()
            .flat_map(|pair| pair.image.iter().copied())
            .collect();
        let pixels = TensorData::new(pixels, [pairs.len(), 3, height, width]);
        images.push(clip.encode_image(Tensor::from_data(pixels, device)));
        let captions: Vec<&str> = pairs.iter().map(|pair| pair.caption.as_str()).collect();
        let (tokens, columns) = tokenize_flat(&captions, clip.config().text.context);
        let tokens = TensorData::new(tokens, [pairs.len(), columns]);
        texts.push(clip.encode_text(Tensor::from_data(tokens, device)));
    }
    let cosines = host(Tensor::cat(images, 0).matmul(Tensor::cat(texts, 0).transpose()));
    let hits = |cosine: &dyn Fn(usize, usize) -> f32| {
        let hit = |row: &usize| {
            let best = (0..count).max_by(|a, b| cosine(*row, *a).total_cmp(&cosine(*row, *b)));
            best.is_some_and(|best| captions_number[best] == captions_number[*row])
        };
        (0..count).filter(hit).count() as f32 / count as f32
    };
    let equal = |row: &usize| captions_number.iter().filter(|c| *c == row).count() as f32;
    Retrieval {
        image_to_text: hits(&|row, column| cosines[row * count + column]),
        text_to_image: hits(&|row, column| cosines[column * count + row]),
        chance: captions_number.iter().map(equal).sum::<f32>() / (count * count) as f32,
    }
}

/// A tensor's values, row-major.
fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// In front of the names of the optimiser's arrays in a checkpoint.
const OPTIMISER: &str = "optimiser.";
/// In front of the names of the averaged weights in a checkpoint.
const AVERAGE: &str = "average.";

/// The settings that decide what a run computes, as text: a run continues only under the same.
fn identity(config: &TrainConfig, model: &ClipConfig, words: &Words) -> Result<String, TrainError> {
    let mut config = config.clone();
    (
        config.log_every,
        config.evaluate_every,
        config.save_every,
        config.threads,
    ) = (1, 1, 1, 1);
    let text = serde_json::to_string(&(config, model, words)).map_err(std::io::Error::from)?;
    Ok(text)
}

fn save(
    path: &Path,
    run: &str,
    [clip, average]: [&Clip; 2],
    optimiser: &Optimizer,
    step: usize,
) -> Result<(), TrainError> {
    let mut state = state_dict(clip);
    for (name, array) in state_dict(average) {
        state.insert(format!("{AVERAGE}{name}"), array);
    }
    for (name, array) in optimiser.state() {
        state.insert(format!("{OPTIMISER}{name}"), array);
    }
    let metadata = [
        ("kind".to_owned(), "clasp clip training".to_owned()),
        ("run".to_owned(), run.to_owned()),
        ("step".to_owned(), step.to_string()),
    ];
    Ok(checkpoint::write(path, &state, &metadata.into())?)
}

fn resume(
    path: &Path,
    run: &str,
    config: &TrainConfig,
    clip: Clip,
) -> Result<(Clip, Clip, Optimizer, usize), TrainError> {
    let other = |problem: String| TrainError::OtherRun {
        path: path.to_owned(),
        problem,
    };
    let (mut state, metadata) = checkpoint::read(path)?;
    if metadata.get("run").map(String::as_str) != Some(run) {
        return Err(other("its settings or its model's sizes differ".to_owned()));
    }
    let step = metadata
        .get("step")
        .and_then(|step| step.parse::<usize>().ok())
        .filter(|step| *step <= config.steps())
        .ok_or_else(|| other("it names no step of this run".to_owned()))?;
    let mut taken = |prefix: &str| {
        let mut found = StateDict::new();
        state.retain(|name, array| match name.strip_prefix(prefix) {
            Some(name) => {
                found.insert(name.to_owned(), std::mem::take(array));
                false
            }
            None => true,
        });
        found
    };
    let (moments, averaged) = (taken(OPTIMISER), taken(AVERAGE));
    let device = clip.logit_scale.val().device();
    let optimiser = Optimizer::from_state(optimiser_config(config), &moments, &device)?;
    optimiser.check("", &clip)?;
    let average = clip.clone();
    let load = |clip: Clip, state: &StateDict| {
        let (clip, report) = load_state_dict(clip, state);
        if report.is_complete() {
            Ok(clip)
        } else {
            Err(other(report.to_string()))
        }
    };
    Ok((
        load(clip, &state)?,
        load(average, &averaged)?,
        optimiser,
        step,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clasp_model::clip::{TextConfig, VisionConfig};
    use clasp_weights::state::HostTensor;

    const SIZE: usize = 16;
    const SQUARE: [usize; 2] = [SIZE, SIZE];

    fn tiny() -> ClipConfig {
        ClipConfig {
            embed: 16,
            vision: VisionConfig {
                image: [SIZE, SIZE],
                patch: 8,
                width: 16,
                layers: 1,
                heads: 2,
                hidden: 32,
            },
            text: TextConfig {
                context: 8,
                width: 16,
                layers: 1,
                heads: 2,
                hidden: 32,
                ..ClipConfig::mini().text
            },
            ..ClipConfig::mini()
        }
    }

    fn config() -> TrainConfig {
        let stage = |steps, patches| Stage {
            size: SQUARE,
            steps,
            patches,
        };
        TrainConfig {
            batch: 9,
            stages: vec![stage(6, 0.5), stage(6, 1.0)],
            warm_up: 2,
            learning_rate: 3e-3,
            threads: 2,
            log_every: 4,
            evaluate_every: 1000,
            save_every: 5,
            ..TrainConfig::default()
        }
    }

    /// A picture of one of six colours, a little noisy, and its name.
    fn pair(index: u64, [height, width]: [usize; 2]) -> Pair {
        const COLOURS: [(&str, [f32; 3]); 6] = [
            ("red", [1.0, -1.0, -1.0]),
            ("green", [-1.0, 1.0, -1.0]),
            ("blue", [-1.0, -1.0, 1.0]),
            ("yellow", [1.0, 1.0, -1.0]),
            ("white", [1.0, 1.0, 1.0]),
            ("black", [-1.0, -1.0, -1.0]),
        ];
        let mut rng = ChaCha8Rng::seed_from_u64(index);
        let (name, colour) = COLOURS[(rng.next_u64() % 6) as usize];
        let noise = |rng: &mut ChaCha8Rng| (rng.next_u32() as f32 / u32::MAX as f32 - 0.5) * 0.4;
        let image = colour
            .iter()
            .flat_map(|&value| std::iter::repeat_n(value, height * width))
            .map(|value| value + noise(&mut rng))
            .collect();
        // The left half is the wall, of the class 1 or 2 by its colour; the right half is unknown.
        let class = 1 + u8::from(name < "red");
        Pair {
            image,
            caption: format!("a {name} wall"),
            parts: Some(
                (0..height * width)
                    .map(|place| {
                        if place % width < width / 2 {
                            class
                        } else {
                            IGNORE
                        }
                    })
                    .collect(),
            ),
            // Of every third picture nothing else is known.
            values: match index % 3 {
                0 => Vec::new(),
                _ => vec![class - 1, IGNORE],
            },
        }
    }

    fn fresh() -> Clip {
        tiny().init(&mut ChaCha8Rng::seed_from_u64(5), &Device::flex())
    }

    fn words() -> Words {
        let texts = |texts: &[&str]| texts.iter().map(|text| vec![(*text).to_owned()]).collect();
        Words {
            parts: texts(&["nothing", "something bright", "something dark"]),
            attributes: vec![texts(&["light", "dark"]), texts(&["a", "b", "c"])],
            places: vec![vec![1, 2]],
        }
    }

    fn run(config: &TrainConfig, folder: &Path, stop: Option<usize>) -> Trained {
        train(
            config,
            fresh(),
            &pair,
            &words(),
            &[],
            folder,
            &mut |progress| {
                if stop.is_some_and(|stop| progress.step >= stop) {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            },
        )
        .unwrap()
    }

    fn rows(values: &[[f32; 2]]) -> Tensor<2> {
        let flat: Vec<f32> = values.iter().flatten().copied().collect();
        Tensor::from_data(TensorData::new(flat, [values.len(), 2]), &Device::flex())
    }

    #[test]
    fn more_threads_than_pairs_are_as_many_as_pairs() {
        let folder = tempfile::tempdir().unwrap();
        let of = |threads, name: &str| {
            let config = TrainConfig {
                threads,
                batch: 3,
                ..config()
            };
            run(&config, &folder.path().join(name), Some(1)).step
        };
        assert!(of(100, "many") > 0);
        assert_eq!(of(100, "many again"), of(3, "three"));
    }

    #[test]
    fn the_loss_is_clips_where_captions_differ() {
        let (images, texts) = ([[1.0, 0.0], [0.6, 0.8]], [[0.8, 0.6], [0.0, 1.0]]);
        let scale = Tensor::<1>::from_data([2.0f32], &Device::flex());
        let (loss, floor) = contrastive_loss(rows(&images), rows(&texts), scale, &[0, 1]);
        // Cosines: [[0.8, 0.0], [0.96, 0.8]]; twice that are the logits.
        let entropy = |right: f32, wrong: f32| ((right - wrong).exp().recip() + 1.0).ln();
        let expected = [(1.6, 0.0), (1.6, 1.92), (1.6, 1.92), (1.6, 0.0)];
        let expected: f32 = expected.iter().map(|(r, w)| entropy(*r, *w)).sum::<f32>() / 4.0;
        assert!((loss.into_scalar::<f32>() - expected).abs() < 1e-5);
        assert_eq!(floor, 0.0);
    }

    #[test]
    fn equal_captions_are_matches_of_one_another() {
        let images = rows(&[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]);
        let scale = Tensor::<1>::from_data([100.0f32], &Device::flex());
        let (loss, floor) = contrastive_loss(images.clone(), images, scale, &[4, 4, 7]);
        let loss = loss.into_scalar::<f32>();
        assert!((floor - 2.0 / 3.0 * 2f32.ln()).abs() < 1e-6);
        assert!((loss - floor).abs() < 1e-5, "{loss} against {floor}");
    }

    #[test]
    fn a_token_is_named_by_any_phrase_of_its_class() {
        let tokens = rows(&[[1.0, 0.0], [0.0, 1.0]]);
        // Cosines with the first token: 0.1, 0.08, 0; with the second: about 0.995, 0.997, 0.1.
        let phrases = rows(&[[0.1, 0.994_987], [0.08, 0.996_795], [0.0, 0.1]]);
        let of = |classes: &[usize], weights: &[f32]| {
            let classes_of_phrases = [0, 0, 1];
            dense_loss(
                tokens.clone(),
                phrases.clone(),
                classes,
                &classes_of_phrases,
                weights,
            )
            .into_scalar::<f32>()
        };
        let [a, b, c] = [5f32, 4.0, 0.0].map(f32::exp);
        let expected = -((a + b) / (a + b + c)).ln();
        assert!((of(&[0, 0], &[1.0, 0.0]) - expected).abs() < 1e-5);
        let expected = -(c / (a + b + c)).ln();
        assert!((of(&[1, 0], &[1.0, 0.0]) - expected).abs() < 1e-4);
        assert!(of(&[0, 0], &[0.0, 1.0]) < 1e-6);
        assert!(of(&[0, 1], &[0.0, 1.0]) > 40.0);
    }

    #[test]
    fn an_answer_is_judged_among_the_values_of_its_attribute() {
        let images = rows(&[[1.0, 0.0], [0.0, 1.0]]);
        let phrases = rows(&[[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [0.8, 0.6], [1.0, 0.0]]);
        let of = |truth: &[u8]| {
            let scale = Tensor::<1>::from_data([2.0f32], &Device::flex());
            value_loss(images.clone(), phrases.clone(), scale, &[2, 3], truth).into_scalar::<f32>()
        };
        let softmax = |logits: &[f32], at: usize| {
            let sum: f32 = logits.iter().map(|logit| logit.exp()).sum();
            -(logits[at].exp() / sum).ln()
        };
        let first = softmax(&[2.0, 1.2], 1);
        let second = softmax(&[2.0, 1.2, 0.0], 0);
        assert!((of(&[1, 255, 255, 255]) - first).abs() < 1e-5);
        assert!((of(&[1, 255, 255, 0]) - first - second).abs() < 1e-5);
        assert_eq!(of(&[255, 255, 2, 3]).abs(), 0.0);
    }

    #[test]
    fn phrases_learn_their_values_without_images() {
        assert_eq!(own_values(&[2, 1]), [0, 255, 1, 255, 255, 0]);
        // Images of noise: nothing can be learned from them, and yet the phrases of two values part.
        let noise = |index: u64, size: [usize; 2]| {
            let mut rng = ChaCha8Rng::seed_from_u64(index);
            let mut number = || rng.next_u32() as f32 / u32::MAX as f32 - 0.5;
            let image: Vec<f32> = (0..3 * size[0] * size[1]).map(|_| number()).collect();
            let value = u8::from(number() > 0.0);
            Pair {
                image,
                caption: "noise".to_owned(),
                parts: None,
                values: vec![value],
            }
        };
        let phrases = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let hats = phrases(&["a person with a hat", "a hat"]);
        let none = phrases(&["a person without a hat", "no hat"]);
        let words = Words {
            parts: Vec::new(),
            attributes: vec![vec![hats, none]],
            places: Vec::new(),
        };
        let cosine = |clip: &Clip| {
            let texts = ["a person with a hat", "a person without a hat"];
            let (tokens, columns) = tokenize_flat(&texts, 8);
            let features = clip.encode_text(integers(tokens, [2, columns], &Device::flex()));
            host(features.clone().matmul(features.transpose()))[1]
        };
        let folder = tempfile::tempdir().unwrap();
        let config = TrainConfig {
            stages: vec![Stage {
                size: SQUARE,
                steps: 60,
                patches: 1.0,
            }],
            ..config()
        };
        let train = train(
            &config,
            fresh(),
            &noise,
            &words,
            &[],
            folder.path(),
            &mut |_| ControlFlow::Continue(()),
        );
        let (before, after) = (cosine(&fresh()), cosine(&train.unwrap().clip));
        assert!(
            before > 0.8 && after < 0.5,
            "{before} before, {after} after"
        );
    }

    #[test]
    fn a_patch_has_the_class_of_most_of_it() {
        let mut parts = vec![3u8; 16];
        parts[..2].fill(7);
        (parts[8], parts[9], parts[12]) = (1, 1, 1);
        // Of the upper left patch, half each; of the lower left, three quarters.
        assert_eq!(patch_classes(Some(&parts), [4, 4], 2), [3, 3, 1, 3]);
        // The same pixels as a picture of two rows: columns 0 and 1 of both rows make the first patch.
        assert_eq!(patch_classes(Some(&parts), [2, 8], 2), [1, 3, 3, 3]);
        assert_eq!(patch_classes(None, [4, 4], 2), [255; 4]);
        // Four classes with a quarter each: nothing covers two fifths.
        assert_eq!(patch_classes(Some(&[1, 2, 3, 4]), [2, 2], 2), [255]);
        parts.fill(IGNORE);
        assert_eq!(patch_classes(Some(&parts), [4, 4], 2), [255; 4]);
    }

    #[test]
    fn the_gradient_does_not_depend_on_the_split() {
        let device = Device::flex();
        let clip = tiny().init(&mut ChaCha8Rng::seed_from_u64(1), &device);
        let batch = draw(&pair, 0, 9, SQUARE, &tiny(), &words(), 2).unwrap();
        let seen = [0, 3];
        let dense = DenseStep::new(&config(), 0, &words().parts, &batch, Some(&seen), &tiny());
        let values = ValueStep::new(&config(), 0, &words(), &batch, Some(&seen), &tiny());
        let of_tokens = values.as_ref().map(|step| step.token_known.clone());
        assert!(of_tokens.is_some_and(|known| known[0] > 0 && known[1] == 0));
        assert!(dense.is_some() && values.is_some());
        let pools = |count| -> Vec<rayon::ThreadPool> {
            let pool = |_| {
                let builder = rayon::ThreadPoolBuilder::new().num_threads(1);
                builder.build().unwrap()
            };
            (0..count).map(pool).collect()
        };
        let of = |threads| {
            let pools = pools(threads);
            let found = gradients(
                &clip,
                &batch,
                Some(&[0, 3]),
                dense.as_ref(),
                values.as_ref(),
                &pools,
                &device,
            )
            .unwrap();
            let losses = [found.contrastive, found.dense, found.values];
            (losses, found.gradients)
        };
        let (losses, whole) = of(1);
        for threads in [2, 3, 4] {
            let (others, split) = of(threads);
            for (loss, other) in losses.iter().zip(others) {
                assert!((loss - other).abs() < 1e-5, "{loss} and {other}");
            }
            assert_eq!(whole.len(), split.len());
            for (name, gradient) in &whole {
                let scale = gradient.clone().abs().max().into_scalar::<f32>().max(1e-3);
                let difference = gradient.clone() - split[name].clone();
                let difference = difference.abs().max().into_scalar::<f32>();
                assert!(difference < 1e-4 * scale, "{name}: {difference} of {scale}");
            }
        }
        // Every parameter learns.
        assert_eq!(whole.len(), state_dict(&clip).len());
    }

    #[test]
    fn six_colours_are_learned() {
        let folder = tempfile::tempdir().unwrap();
        let config = TrainConfig {
            batch: 24,
            stages: vec![Stage {
                size: SQUARE,
                steps: 60,
                patches: 1.0,
            }],
            ..config()
        };
        let clip = run(&config, folder.path(), None).clip;
        let held_out: Vec<Pair> = (1000..1030).map(|index| pair(index, SQUARE)).collect();
        let found = retrieval(&clip, &held_out, SQUARE, &Device::flex());
        let log = fs::read_to_string(folder.path().join("log.jsonl")).unwrap();
        let losses: Vec<[f32; 2]> = log
            .lines()
            .map(|line| serde_json::from_str::<Progress>(line).unwrap())
            .map(|progress| [progress.dense, progress.values])
            .collect();
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        for (first, last) in first.iter().zip(last) {
            assert!(*first > 0.5 && last < 0.2, "{losses:?}");
        }
        assert_eq!((found.image_to_text, found.text_to_image), (1.0, 1.0));
        assert!(found.chance > 0.1 && found.chance < 0.3, "{found:?}");
    }

    #[test]
    fn a_run_that_was_stopped_goes_on_to_the_same_end() {
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let expected = run(&config(), whole.path(), None);
        let stopped = run(&config(), parts.path(), Some(4));
        assert_eq!((stopped.step, stopped.finished), (4, false));
        let found = run(&config(), parts.path(), None);
        assert_eq!((found.step, found.finished), (12, true));
        assert_eq!(state_dict(&found.clip), state_dict(&expected.clip));
        let read = |folder: &tempfile::TempDir| {
            checkpoint::read(&folder.path().join("checkpoint.safetensors")).unwrap()
        };
        assert_eq!(read(&whole), read(&parts));
        let log = fs::read_to_string(parts.path().join("log.jsonl")).unwrap();
        let steps: Vec<usize> = log
            .lines()
            .map(|line| serde_json::from_str::<Progress>(line).unwrap().step)
            .collect();
        assert_eq!(steps, [4, 8, 12]);
    }

    #[test]
    fn a_checkpoint_of_another_run_is_refused_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        run(&config(), folder.path(), Some(4));
        let path = folder.path().join("checkpoint.safetensors");
        let before = fs::read(&path).unwrap();
        let attempt = |config: &TrainConfig| {
            train(
                config,
                fresh(),
                &pair,
                &words(),
                &[],
                folder.path(),
                &mut |_| ControlFlow::Continue(()),
            )
            .unwrap_err()
            .to_string()
        };
        let other = TrainConfig {
            batch: 10,
            ..config()
        };
        assert!(attempt(&other).contains("does not belong to this run"));
        fs::write(&path, &before[..before.len() / 2]).unwrap();
        assert!(attempt(&config()).contains("not a whole safetensors file"));
        let (mut state, metadata) = {
            fs::write(&path, &before).unwrap();
            checkpoint::read(&path).unwrap()
        };
        state.insert(
            "optimiser.ln_final.weight.first".into(),
            HostTensor {
                shape: vec![1],
                data: vec![0.0],
            },
        );
        checkpoint::write(&path, &state, &metadata).unwrap();
        assert!(attempt(&config()).contains("ln_final.weight"));
    }

    #[test]
    fn what_cannot_work_is_said_before_anything_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("run");
        let attempt = |config: TrainConfig, data: &(dyn Fn(u64, [usize; 2]) -> Pair + Sync)| {
            train(&config, fresh(), data, &words(), &[], &folder, &mut |_| {
                ControlFlow::Continue(())
            })
            .unwrap_err()
        };
        for config in [
            TrainConfig {
                batch: 1,
                ..config()
            },
            TrainConfig {
                stages: vec![],
                ..config()
            },
            TrainConfig {
                stages: vec![Stage {
                    size: [16, 4],
                    steps: 1,
                    patches: 1.0,
                }],
                ..config()
            },
            TrainConfig {
                stages: vec![Stage {
                    size: SQUARE,
                    steps: 1,
                    patches: 0.0,
                }],
                ..config()
            },
            TrainConfig {
                learning_rate: f64::NAN,
                ..config()
            },
            TrainConfig {
                log_every: 0,
                ..config()
            },
        ] {
            let error = attempt(config, &pair);
            assert!(matches!(error, TrainError::Setting { .. }), "{error}");
        }
        assert!(!folder.exists());
        let wrong = |index, _| pair(index, [8, 8]);
        assert!(matches!(
            attempt(config(), &wrong),
            TrainError::Pair {
                expected: 768,
                found: 192,
                ..
            }
        ));
        let broken = |index, size| {
            let mut pair = pair(index, size);
            pair.image.fill(f32::NAN);
            pair
        };
        assert!(matches!(
            attempt(config(), &broken),
            TrainError::Diverged { step: 0, .. }
        ));
        let panics = |_, _| -> Pair { panic!("a test's data") };
        assert!(matches!(attempt(config(), &panics), TrainError::Worker));
    }

    #[test]
    fn the_rate_rises_and_falls_and_stages_follow_one_another() {
        let config = config();
        assert_eq!(config.learning_rate(0), 1.5e-3);
        assert_eq!(config.learning_rate(1), 3e-3);
        assert_eq!(config.learning_rate(2), 3e-3);
        assert!((config.learning_rate(7) - 1.5e-3).abs() < 1e-12);
        assert!(config.learning_rate(11) > 0.0 && config.learning_rate(12) < 1e-12);
        assert_eq!(config.stage(5).patches, 0.5);
        assert_eq!(
            (config.stage(6).patches, config.stage(99).patches),
            (1.0, 1.0)
        );
        let patches = draw_patches(0, 3, &config.stages[0], &tiny()).unwrap();
        assert_eq!(patches.len(), 2);
        assert_eq!(draw_patches(0, 9, &config.stages[1], &tiny()), None);
    }
}
