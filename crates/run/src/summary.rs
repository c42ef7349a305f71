//! How a run ended.

use std::path::PathBuf;

use serde::Serialize;

use crate::log::Metrics;

/// How a run ended, whatever was trained. Loops add fields of their own with `#[serde(flatten)]`.
#[derive(Clone, Debug, Serialize)]
pub struct RunSummary {
    /// Steps that are done.
    pub steps: u64,
    /// Whether these are all steps of the recipe.
    pub finished: bool,
    /// Seconds that this process took.
    pub seconds: f64,
    /// Metrics of the last step of this process.
    pub metrics: Metrics,
    /// Warnings of this process.
    pub warnings: Vec<String>,
    /// The last checkpoint.
    pub checkpoint: PathBuf,
}
