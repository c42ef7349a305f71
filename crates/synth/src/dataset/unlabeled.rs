//! Tars of further people for pre-training, with their ground truth as a label store.

use std::path::Path;

use clasp_data::image::encode_jpeg;
use clasp_data::labels::{Labels, StoreMeta};
use clasp_data::{atomic_write, rng_for};
use rayon::prelude::*;

use super::config::SynthConfig;
use super::error::SynthError;
use crate::ground_truth::ground_truth_labels;
use crate::person::appearance::SynthPerson;
use crate::render::{RenderedPerson, Shot, render};

/// Pictures drawn at a time, which bounds the memory.
const CHUNK: usize = 64;
/// Images in a tar of unlabeled people.
pub(super) const SHARD: usize = 1000;

/// Name of a tar of unlabeled people and of its labels.
pub(super) fn shard_name(shard: usize) -> String {
    format!("unlabeled-{shard:03}")
}

/// Whether the labels of every shard exist.
pub(super) fn whole(truth: &Path, config: &SynthConfig) -> bool {
    (0..config.unlabeled.div_ceil(SHARD))
        .all(|shard| truth.join(shard_name(shard) + ".parquet").exists())
}

/// The `index`-th of an unlimited series of people, each with a camera of its own, as JPEG with its
/// file name.
#[must_use]
pub fn unlabeled_jpeg(seed: u64, index: u64, height: usize, width: usize) -> (String, Vec<u8>) {
    let (key, rendered, quality) = render_unlabeled(seed, index, height, width);
    (format!("{key}.jpg"), encode_jpeg(&rendered.image, quality))
}

/// Key, annotated picture and JPEG quality of one of [`unlabeled_jpeg`].
pub(crate) fn render_unlabeled(
    seed: u64,
    index: u64,
    height: usize,
    width: usize,
) -> (String, RenderedPerson, u8) {
    let mut rng = rng_for(seed, 0, &format!("unlabelled {index}"));
    let person = SynthPerson::sample(&mut rng);
    let shot = Shot::sample(&person, &mut rng);
    let rendered = render(&person, &shot, height, width);
    (format!("{index:08}"), rendered, shot.camera.quality)
}

/// Writes a tar of unlabeled people and returns their ground truth in the same order.
pub(super) fn write_shard(
    path: &Path,
    config: &SynthConfig,
    meta: &StoreMeta,
    range: std::ops::Range<usize>,
    progress: &mut dyn FnMut(usize),
) -> Result<Vec<Labels>, SynthError> {
    let mut labels = Vec::with_capacity(range.len());
    atomic_write(path, |out| {
        let mut tar = tar::Builder::new(out);
        let start = range.start;
        for first in range.clone().step_by(CHUNK) {
            let chunk: Vec<(String, Vec<u8>, Labels)> = (first..(first + CHUNK).min(range.end))
                .into_par_iter()
                .map(|index| {
                    let (height, width) = (config.height, config.width);
                    let (key, rendered, quality) =
                        render_unlabeled(config.seed, index as u64, height, width);
                    let labels = ground_truth_labels(&key, &rendered, meta);
                    let bytes = encode_jpeg(&rendered.image, quality);
                    (format!("{key}.jpg"), bytes, labels)
                })
                .collect();
            for (name, bytes, _) in &chunk {
                let mut header = tar::Header::new_gnu();
                header.set_size(bytes.len() as u64);
                header.set_mode(0o644);
                header.set_mtime(0);
                tar.append_data(&mut header, name, bytes.as_slice())?;
            }
            progress(first + chunk.len() - start);
            labels.extend(chunk.into_iter().map(|(_, _, labels)| labels));
        }
        tar.finish()
    })?;
    Ok(labels)
}
