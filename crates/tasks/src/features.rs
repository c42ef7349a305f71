//! Images to features, on all threads.
//!
//! An [`Extractor`] turns a batch of images into pooled features and feature maps:
//! [`crate::backbone::BackboneExtractor`], or a fine-tuned model. Each thread works on whole
//! batches with its own clone, in a rayon pool of one thread: on a CPU that is faster than one pool
//! for all, and results do not depend on the number of threads.

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use clasp_data::image::{self, Filter, Limits, Rgb};
use clasp_data::source::load_file;
use clasp_model::Shares;
use clasp_weights::backbone::BackboneMeta;
use rayon::prelude::*;

use crate::TaskError;

/// How many images are processed at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batching {
    /// Images in a batch.
    pub batch: usize,
    /// Threads, each with its own clone of the network.
    pub threads: usize,
}

impl Default for Batching {
    fn default() -> Self {
        Self {
            batch: 16,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

impl Batching {
    /// Images of a long list whose results are stored together: enough batches a thread that
    /// waiting for the slowest one is short beside them.
    pub fn chunk(&self) -> usize {
        16 * self.batch.max(1) * self.threads.max(1)
    }
}

/// How far a pass over images is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassProgress {
    /// What the images are, for example `training images`.
    pub stage: &'static str,
    /// Images done.
    pub done: usize,
    /// Images in all.
    pub total: usize,
}

/// How an image becomes the input of a backbone; stored with its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocess {
    /// Height of the input in pixels.
    pub height: usize,
    /// Width of the input in pixels.
    pub width: usize,
    /// Mean of each channel, of values from 0 to 1.
    pub mean: [f32; 3],
    /// Standard deviation of each channel.
    pub std: [f32; 3],
    /// Filter that resizes.
    pub filter: Filter,
}

impl Preprocess {
    /// ImageNet's mean and standard deviation, bicubic.
    pub fn imagenet(height: usize, width: usize) -> Self {
        Self {
            height,
            width,
            mean: image::IMAGENET_MEAN,
            std: image::IMAGENET_STD,
            filter: Filter::Bicubic,
        }
    }

    /// The preprocessing in the metadata of a backbone's file.
    pub fn of(meta: &BackboneMeta) -> Self {
        Self {
            height: meta.height,
            width: meta.width,
            mean: meta.mean,
            std: meta.std,
            filter: meta.filter,
        }
    }

    /// Takes inputs of another height and width, where these are given.
    pub fn resize(&mut self, size: Option<[usize; 2]>) {
        if let Some(size) = size {
            [self.height, self.width] = size;
        }
    }

    /// The mean color, with 8 bits a channel: it fills inputs beyond the border of an image.
    pub fn mean_color(&self) -> [u8; 3] {
        self.mean.map(|mean| (mean * 255.0).round() as u8)
    }

    /// An image of the input's size, normalized: `[3, height, width]`.
    pub fn normalize(&self, image: &Rgb) -> Vec<f32> {
        image::normalize(image, self.mean, self.std)
    }

    /// The whole image, resized to the input's size without keeping its aspect: `[3, height,
    /// width]`.
    pub fn apply(&self, image: &Rgb) -> Vec<f32> {
        image::normalize(
            &image::resize(image, self.height, self.width, self.filter),
            self.mean,
            self.std,
        )
    }
}

impl std::fmt::Display for Preprocess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}x{} (height x width), {:?}",
            self.height, self.width, self.filter
        )
    }
}

/// A batch of inputs.
#[derive(Debug, Clone)]
pub struct InputBatch {
    /// `[batch, 3, height, width]`.
    pub values: Vec<f32>,
    /// Number of images.
    pub batch: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
}

/// Features of a batch.
#[derive(Debug, Clone)]
pub struct FeatureBatch {
    /// `[batch, channels]`.
    pub pooled: Vec<f32>,
    /// Feature maps of the last stages, finest first.
    pub maps: Vec<FeatureMaps>,
}

/// Feature maps of one stage for a batch.
#[derive(Debug, Clone)]
pub struct FeatureMaps {
    /// `[batch, channels, height, width]`.
    pub values: Vec<f32>,
    /// Channels.
    pub channels: usize,
    /// Rows of the map.
    pub height: usize,
    /// Columns of the map.
    pub width: usize,
}

/// Features of one image.
#[derive(Debug, Clone)]
pub struct ImageFeatures<'a> {
    /// `[channels]`.
    pub pooled: &'a [f32],
    /// Feature maps of the last stages, finest first.
    pub maps: Vec<FeatureMap<'a>>,
}

/// The feature map of one stage for one image.
#[derive(Debug, Clone, Copy)]
pub struct FeatureMap<'a> {
    /// `[channels, height, width]`.
    pub values: &'a [f32],
    /// Channels.
    pub channels: usize,
    /// Rows of the map.
    pub height: usize,
    /// Columns of the map.
    pub width: usize,
}

/// Turns images into features. A clone is made for each thread.
pub trait Extractor: Clone + Send {
    /// How many copies of the network run on so many threads: a copy a thread on the CPU.
    fn shares(&self, threads: usize) -> Shares {
        Shares::of_cpu(threads)
    }

    /// Pooled features, and the maps of the last `stages` stages (or of as many as there are).
    ///
    /// # Errors
    /// [`TaskError::Device`].
    fn extract(&self, images: InputBatch, stages: usize) -> Result<FeatureBatch, TaskError>;
}

/// A pass over images.
#[derive(Clone, Copy)]
pub struct ImagePass<'a> {
    /// What the images are, for progress messages.
    pub stage: &'static str,
    /// Number of images.
    pub count: usize,
    /// Height and width of an input.
    pub size: [usize; 2],
    /// How many of the last stages' maps are wanted.
    pub stages: usize,
    /// The name of an image in errors: its key or path.
    pub name: &'a (dyn Fn(usize) -> String + Sync),
}

/// Features of the images of a pass. `load(i)` gives input i, [3, height, width], or `None` to skip
/// it; `keep(i, features)` gives what is kept of its features. Results are in order, `None` for
/// skipped images.
///
/// # Errors
/// Those of `load`, `keep` and the extractor; [`TaskError::NotFinite`]; [`TaskError::Stopped`] if
/// `progress` breaks.
pub fn each_image<E: Extractor, T: Send>(
    extractor: &E,
    pass: ImagePass<'_>,
    batching: &Batching,
    load: impl Fn(usize) -> Result<Option<Vec<f32>>, TaskError> + Sync,
    keep: impl Fn(usize, &ImageFeatures) -> Result<T, TaskError> + Sync,
    progress: &(dyn Fn(PassProgress) -> ControlFlow<()> + Sync),
) -> Result<Vec<Option<T>>, TaskError> {
    let ImagePass {
        stage,
        count,
        size,
        stages,
        name,
    } = pass;
    let one_batch = |extractor: &E, items: Range<usize>| -> Result<Vec<Option<T>>, TaskError> {
        let inputs = { items.clone().into_par_iter().map(&load) }.collect::<Result<Vec<_>, _>>()?;
        let loaded: Vec<usize> = items
            .clone()
            .filter(|i| inputs[i - items.start].is_some())
            .collect();
        let mut results: Vec<Option<T>> = items.clone().map(|_| None).collect();
        if !loaded.is_empty() {
            let values = inputs.into_iter().flatten().flatten().collect();
            let images = InputBatch {
                values,
                batch: loaded.len(),
                height: size[0],
                width: size[1],
            };
            let extracted = extractor.extract(images, stages)?;
            for (position, &image) in loaded.iter().enumerate() {
                let features = extracted.image(position, loaded.len());
                features.check_finite(|| name(image))?;
                results[image - items.start] = Some(keep(image, &features)?);
            }
        }
        Ok(results)
    };
    let (sizes, shares) = (
        [count, batching.batch.max(1)],
        extractor.shares(batching.threads),
    );
    on_replicas(extractor, stage, sizes, shares, one_batch, progress)
}

/// Runs `work` on batches of `0..count`, each replica of the model in a pool of threads of its own;
/// results are in order.
///
/// # Errors
/// Those of `work`, of the earliest batch where several fail; [`TaskError::Stopped`] if `progress`
/// breaks.
pub fn on_replicas<M: Clone + Send, T: Send>(
    model: &M,
    stage: &'static str,
    [count, batch]: [usize; 2],
    shares: Shares,
    work: impl Fn(&M, Range<usize>) -> Result<Vec<T>, TaskError> + Sync,
    progress: &(dyn Fn(PassProgress) -> ControlFlow<()> + Sync),
) -> Result<Vec<T>, TaskError> {
    let batches = count.div_ceil(batch);
    let shares = shares.at_most(batches);
    let (next, done, stop) = (
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicBool::new(false),
    );
    let one_batch = |model: &M, index: usize| -> Result<Vec<T>, TaskError> {
        let items = index * batch..count.min((index + 1) * batch);
        let size = items.len();
        let results = work(model, items)?;
        let done = size + done.fetch_add(size, Ordering::Relaxed);
        match progress(PassProgress {
            stage,
            done,
            total: count,
        }) {
            ControlFlow::Continue(()) => Ok(results),
            ControlFlow::Break(()) => Err(TaskError::Stopped),
        }
    };
    let (next, stop, one_batch) = (&next, &stop, &one_batch);
    let worker = move |model: M| -> Result<Vec<(usize, Vec<T>)>, (usize, Box<TaskError>)> {
        let pool = { rayon::ThreadPoolBuilder::new().num_threads(shares.threads) }.build();
        let pool =
            pool.map_err(|error| (0, Box::new(TaskError::Io(std::io::Error::other(error)))))?;
        pool.install(move || {
            let mut results = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= batches {
                    break;
                }
                match one_batch(&model, index) {
                    Ok(batch) => results.push((index, batch)),
                    Err(error) => {
                        stop.store(true, Ordering::Relaxed);
                        return Err((index, Box::new(error)));
                    }
                }
            }
            Ok(results)
        })
    };
    let outcomes = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..shares.replicas)
            .map(|_| model.clone())
            .map(|model| scope.spawn(move || worker(model)))
            .collect();
        let join = |handle: std::thread::ScopedJoinHandle<'_, _>| match handle.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        handles.into_iter().map(join).collect::<Vec<_>>()
    });
    let mut results = Vec::with_capacity(batches);
    let mut errors = Vec::new();
    for outcome in outcomes {
        match outcome {
            Ok(batches) => results.extend(batches),
            Err(error) => errors.push(error),
        }
    }
    // Several threads may have failed before they saw the flag: report what comes first in the
    // data.
    if let Some((_, error)) = errors.into_iter().min_by_key(|(index, _)| *index) {
        return Err(*error);
    }
    results.sort_unstable_by_key(|(index, _)| *index);
    Ok(results.into_iter().flat_map(|(_, batch)| batch).collect())
}

impl FeatureBatch {
    /// The features of one image of a batch.
    fn image(&self, position: usize, batch: usize) -> ImageFeatures<'_> {
        let channels = self.pooled.len() / batch;
        let maps = self.maps.iter().map(|maps| {
            let size = maps.channels * maps.height * maps.width;
            assert_eq!(
                maps.values.len(),
                batch * size,
                "values of {batch} maps of one stage"
            );
            let values = &maps.values[position * size..(position + 1) * size];
            FeatureMap {
                values,
                channels: maps.channels,
                height: maps.height,
                width: maps.width,
            }
        });
        ImageFeatures {
            pooled: &self.pooled[position * channels..(position + 1) * channels],
            maps: maps.collect(),
        }
    }
}

impl ImageFeatures<'_> {
    fn check_finite(&self, image: impl Fn() -> String) -> Result<(), TaskError> {
        let mut values = self
            .pooled
            .iter()
            .chain(self.maps.iter().flat_map(|map| map.values));
        values.find(|v| !v.is_finite()).map_or(Ok(()), |&found| {
            let image = image();
            Err(TaskError::NotFinite { image, found })
        })
    }
}

/// Reads and decodes an image file that must have that height and width, because its labels are
/// coordinates in it.
///
/// # Errors
/// Those of [`read_image`], and another size.
pub fn read_sized(path: &Path, size: [usize; 2]) -> Result<Rgb, TaskError> {
    let image = read_image(path)?;
    if [image.height, image.width] == size {
        return Ok(image);
    }
    Err(TaskError::Mismatch {
        file: path.display().to_string(),
        expected: format!("{}x{} (height x width) as in the JSON", size[0], size[1]),
        found: format!("{}x{}", image.height, image.width),
    })
}

/// Reads and decodes an image file, by the rule of all readers ([`load_file`]).
///
/// # Errors
/// If it cannot be read, is too large, or is no image; the message names it.
pub fn read_image(path: &Path) -> Result<Rgb, TaskError> {
    load_file(path, &Limits::default()).map_err(|unreadable| TaskError::Image {
        file: unreadable.path.display().to_string(),
        reason: unreadable.failure.reason,
    })
}
