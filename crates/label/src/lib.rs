//! Pseudo-labels for images of people: part maps and attributes from CLIP, or part maps from
//! k-means without it.
//!
//! | file | holds |
//! |---|---|
//! | [`config`] | the settings |
//! | [`prompts`] | text features of the vocabulary |
//! | [`parts`] | cosines to a part map |
//! | [`attributes`] | pooled features to logits |
//! | [`kmeans`] | part maps without CLIP |
//! | [`labeler`] | the two above as one interface |
//! | [`mod@run`] | the labeling run: shards, threads, resume |
//! | [`calibrate`] | statistics of the logits over all images |
//! | [`stats`] | statistics of a store, with warnings |
//! | [`check`] | consistency of labels and images |
//! | [`compare`] | agreement of two stores |
//! | [`mod@accuracy`] | accuracy of a store against the ground truth of synthetic people |
//! | [`show`] | a contact sheet with overlays and a legend |
//!
//! Labels are stored in the format of [`clasp_data::labels`]; pre-training reads these files and
//! does not use this crate.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

pub mod accuracy;
pub mod attributes;
pub mod calibrate;
pub mod check;
pub mod compare;
pub mod config;
mod error;
#[cfg(test)]
mod golden;
pub mod kmeans;
pub mod labeler;
pub mod parts;
pub mod prompts;
pub mod run;
pub mod show;
pub mod stats;
#[cfg(test)]
mod testing;

use burn::tensor::Tensor;

pub use config::{LabelConfig, VerticalBand};
pub use error::Error;
pub use labeler::{ClipLabeler, KMeansLabeler, Labeler};
pub use run::{LabelProgress, LabelRunConfig, LabelRunReport, run};

/// The numbers of a tensor; `place` names it in errors.
///
/// # Errors
///
/// The device failed, or a number is not finite.
fn read<const D: usize>(tensor: Tensor<D>, place: &'static str) -> Result<Vec<f32>, Error> {
    let wrong = |found: String| Error::Network {
        place,
        expected: "finite numbers".into(),
        found,
    };
    let numbers = tensor
        .try_into_vec_as::<f32>()
        .map_err(|error| wrong(error.to_string()))?;
    match numbers.iter().find(|x| !x.is_finite()) {
        Some(x) => Err(wrong(x.to_string())),
        None => Ok(numbers),
    }
}

/// A rayon pool of one thread, in which results do not depend on the number of threads.
fn one_thread() -> Result<rayon::ThreadPool, Error> {
    pool(1)
}

/// A rayon pool of `threads` threads.
fn pool(threads: usize) -> Result<rayon::ThreadPool, Error> {
    Ok(rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(std::io::Error::other)?)
}
