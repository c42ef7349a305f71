//! Downstream tasks: training, evaluation, prediction and linear probes of each, and uses of plain
//! features.
//!
//! | module | holds |
//! |---|---|
//! | [`features`] | images to features: preprocessing, threads |
//! | [`backbone`] | the extractor of [`clasp_model::backbone::Backbone`] |
//! | [`embed`] | features of any images, written as .npy or Parquet |
//! | [`retrieve`] | the nearest images of a gallery, and a contact sheet |
//! | [`searcher`] | the network whose features images are searched by |
//! | [`index`] | exact search over features that are added and removed |
//! | [`people`] | predictions for photos, of each person that a detector finds |
//! | [`probe`] | what the evaluations of frozen backbones share; linear probes by L-BFGS |
//! | [`task`] | the contract of a task, in traits |
//! | [`registry`] | the list of tasks |
//! | [`finetune`] | one training loop for all tasks |
//! | [`reid`] | re-identification: BNNeck; frozen: ranking by cosine |
//! | [`attributes`] | attribute recognition: a linear layer; frozen: a linear probe of pooled features |
//! | [`parsing`] | human parsing: a light head or CE2P's; frozen: a linear probe of each position |
//! | [`pose`] | top-down pose: deconvolutions; frozen: a linear heatmap per joint |
//! | [`detection`] | pedestrian detection: CSP |
//! | [`search`] | person search: SeqNet's two stages, or CSP with an embedding |
//! | [`drawing`] | lines, boxes and labels in pictures of predictions |
//!
//! A linear probe measures how good the features are, not how good a fine-tuned model would be: its
//! metrics compare with each other, never with published fine-tuned ones. Every result carries its
//! protocol in words.
//!
//! To add a task: a folder with a type that implements the traits of [`task`], and a line in
//! [`registry`].

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

pub mod attributes;
pub mod backbone;
pub mod detection;
pub mod drawing;
pub mod embed;
mod error;
pub mod features;
pub mod finetune;
pub mod index;
pub mod parsing;
pub mod people;
pub mod pose;
pub mod probe;
pub mod registry;
pub mod reid;
pub mod retrieve;
pub mod search;
pub mod searcher;
pub mod task;
#[cfg(test)]
mod testing;

pub use backbone::BackboneExtractor;
pub use error::TaskError;
pub use features::{Batching, Extractor, PassProgress, Preprocess};
pub use registry::TaskKind;
