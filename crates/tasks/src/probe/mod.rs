//! Evaluation of frozen features: what the protocols of all tasks share.
//!
//! | file | holds |
//! |---|---|
//! | `config` | the configuration |
//! | [`linear`] | linear probes and their losses |
//! | [`lbfgs`] | the optimizer that fits them |
//! | [`selection`] | which images are used, and which weight decay |
//! | [`tokens`] | feature maps of several stages on one grid |
//!
//! All protocols are this project's choice, made for fast comparison of backbones. The backbone
//! does not change, its features are standardized per channel over the training split, a probe is
//! linear and convex, and its weight decay is selected on training images that it was not fitted
//! to. Nothing is random: the same data and backbone give the same metrics. Each task's protocol is
//! in its own `probe` module.

pub(crate) mod config;
pub mod lbfgs;
pub mod linear;
pub mod selection;
pub mod tokens;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use clasp_data::layouts::LayoutError;
use clasp_metrics::Metric;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::TaskError;
use crate::backbone::BackboneExtractor;
use crate::features::{PassProgress, Preprocess};

pub use config::ProbeConfig;

/// The split to evaluate on: the configured one, or `test`, or `val`.
pub(crate) fn eval_split(
    config: &ProbeConfig,
    splits: &[String],
    file: &Path,
) -> Result<String, LayoutError> {
    let wanted = config.eval_split.clone();
    let usual = || {
        ["test", "val"]
            .map(str::to_owned)
            .into_iter()
            .find(|name| splits.contains(name))
    };
    wanted.or_else(usual).ok_or_else(|| LayoutError::NoSplit {
        file: file.display().to_string(),
        wanted: "test` or `val".to_owned(),
        splits: splits.to_vec(),
    })
}

/// The evaluation of a frozen backbone on a task.
pub type FrozenEvaluation = fn(&FrozenRequest<'_>) -> Result<FrozenResult, TaskError>;

/// A frozen backbone and the data to evaluate it on.
pub struct FrozenRequest<'a> {
    /// The backbone with its prompt weights.
    pub extractor: &'a BackboneExtractor,
    /// How images become its inputs.
    pub preprocess: &'a Preprocess,
    /// Folder of the dataset.
    pub data: &'a Path,
    /// Also re-rank by k-reciprocal encoding (re-identification).
    pub rerank: bool,
    /// Queries whose nearest gallery images are returned (re-identification).
    pub examples: usize,
    /// The protocol's configuration.
    pub config: &'a ProbeConfig,
    /// Called after every batch; stops the evaluation when it breaks.
    pub progress: &'a (dyn Fn(PassProgress) -> ControlFlow<()> + Sync),
}

/// The evaluation of a frozen backbone.
#[derive(Debug, Clone, Serialize)]
pub struct FrozenResult {
    /// The metrics to quote, the main one first.
    pub metrics: Vec<Metric>,
    /// The first metric of random answers, or of the best constant answer.
    pub chance: f64,
    /// The protocol in words.
    pub protocol: String,
    /// Everything else that was measured.
    pub details: Value,
    /// Queries with their nearest gallery images (re-identification).
    #[serde(skip)]
    pub examples: Vec<RetrievalExample>,
    /// How many queries the metrics are means over, where some are skipped.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub counted: String,
}

impl FrozenResult {
    /// The result with all of `report` as its details.
    pub(crate) fn new(
        metrics: Vec<Metric>,
        chance: f64,
        protocol: &str,
        report: &impl Serialize,
    ) -> Self {
        Self {
            metrics,
            chance,
            protocol: protocol.to_owned(),
            details: serde_json::to_value(report).unwrap_or_default(),
            examples: Vec::new(),
            counted: String::new(),
        }
    }
}

/// A query and its nearest gallery images.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RetrievalExample {
    /// File of the query.
    pub query: PathBuf,
    /// Its average precision.
    pub average_precision: f64,
    /// The nearest gallery images, nearest first, and whether each shows the same person.
    pub matches: Vec<(PathBuf, bool)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_split_is_test_or_val() {
        let names = ["train", "val"].map(str::to_owned);
        let config = ProbeConfig::default();
        let file = Path::new("a.csv");
        assert_eq!(eval_split(&config, &names, file).unwrap(), "val");
        let error = eval_split(&config, &names[..1], file)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`test` or `val`") && error.contains("train"),
            "{error}"
        );
    }
}
