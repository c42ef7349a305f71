//! What a backbone is good for: features, frozen evaluation on labelled data, and fine-tuned models.
//!
//! | file | holds |
//! |---|---|
//! | [`features`] | images to features: preprocessing, threads |
//! | [`backbone`] | the adapter of [`clasp_model::backbone::Backbone`] |
//! | [`embed`] | features of any images, written as .npy or Parquet |
//! | [`linear`] | linear read-outs: L-BFGS on plain slices |
//! | [`frozen`] | what the frozen protocols share |
//! | [`reid`] | re-identification by cosine, nothing trained |
//! | [`attributes`] | a linear classifier of pooled features per attribute |
//! | [`parsing`] | a linear classifier per position of the feature map |
//! | [`pose`] | a linear heatmap per joint |
//! | [`score`] | predictions of any program, judged by a data set |
//! | [`search`] | the nearest images of a gallery, and a contact sheet |
//! | [`finetune`] | one training loop for all tasks |
//! | [`tuned`] | the fine-tuned tasks, one file each |
//!
//! A frozen evaluation says how good the features are, not how good a fine-tuned model would be: compare its figures with
//! each other, never with published fine-tuned ones. Every report carries its protocol in words.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

pub mod attributes;
pub mod backbone;
pub mod embed;
mod error;
pub mod features;
pub mod finetune;
pub mod frozen;
pub mod linear;
pub mod parsing;
pub mod pose;
pub mod reid;
pub mod score;
pub mod search;
#[cfg(test)]
mod testing;
pub mod tuned;

pub use backbone::BackboneExtractor;
pub use error::TaskError;
pub use features::{Extractor, Preprocess};
pub use frozen::{Options, Progress};
