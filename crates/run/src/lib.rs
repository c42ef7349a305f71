//! The folder of a training run, whatever is trained: its recipe, its log, its checkpoints.
//!
//! | file | holds |
//! |---|---|
//! | [`recipe`] | recipes in TOML: `"auto"`, overrides, errors that name the right key |
//! | [`check`] | ranges of their values |
//! | [`log`] | figures by step, as JSON lines and TensorBoard events |
//! | [`origin`] | date, command line and version, for the head of `run.toml` |
//! | [`checkpoints`] | which checkpoints a folder has, and which of them stay |
//!
//! Nothing here knows a network.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used))]

pub mod check;
pub mod checkpoints;
pub mod log;
pub mod origin;
pub mod recipe;

pub use check::Setting;
pub use log::{Log, Metrics};
pub use recipe::{Auto, RecipeError};
