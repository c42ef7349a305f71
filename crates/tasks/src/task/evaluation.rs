//! Metrics of a task: of a fine-tuned model, of predictions in a file, of frozen features.

use std::ops::Range;
use std::path::Path;

use clasp_data::layouts::LayoutError;
use clasp_metrics::Metric;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::inference::Inference;
use super::{FinetunedModel, Objective};
use crate::TaskError;
use crate::probe::FrozenEvaluation;

/// How a task is evaluated: the model runs over the units of a test set (images, people or scenes),
/// and metrics are computed from the results of all units, which several processes may have computed
/// ([`super::shard`]).
pub trait Evaluate: Objective {
    /// Labeled images to evaluate on.
    type TestSet: Send + Sync;
    /// What the model finds in a unit: all that metrics and predictions need.
    type UnitResult: Serialize + DeserializeOwned + Send;

    /// What the units are, for messages.
    const UNITS: &'static str = "evaluation images";

    /// Most units that a model takes at once.
    const MOST_AT_ONCE: usize = usize::MAX;

    /// Places in the stored state of the task that results do not depend on, as JSON pointers: what
    /// [`Evaluate::summarize`] alone reads.
    const ONLY_SUMMARIZED: &'static [&'static str] = &[];

    /// The evaluation of a frozen backbone, for tasks that need no head of their own.
    const FROZEN: Option<FrozenEvaluation> = None;

    /// Whether `score` takes a split; otherwise the dataset defines one test set.
    const HAS_SPLITS: bool = true;

    /// Opens data to evaluate on.
    ///
    /// # Errors
    /// The data are missing, unusable, or of other classes or joints than the model's.
    fn open_test(&self, folder: &Path, split: &SplitChoice) -> Result<Self::TestSet, TaskError>;

    /// Number of units of a test set.
    fn units(data: &Self::TestSet) -> usize;

    /// What tells a unit from others and from a changed one: its name, and its labels or boxes.
    fn unit_text(data: &Self::TestSet, unit: usize) -> String;

    /// The results of some consecutive units, computed as one batch; with `predictions` also what only
    /// [`Evaluation::predictions`] needs.
    ///
    /// # Errors
    /// Images that cannot be read, or features that are not finite.
    fn results_of_batch(
        &self,
        model: &FinetunedModel<Self>,
        data: &Self::TestSet,
        units: Range<usize>,
        predictions: bool,
    ) -> Result<Vec<Self::UnitResult>, TaskError>;

    /// Checks the result of a unit that was read from a file.
    ///
    /// # Errors
    /// The model cannot have given it for this unit.
    fn check_result(
        &self,
        model: &FinetunedModel<Self>,
        data: &Self::TestSet,
        unit: usize,
        result: &Self::UnitResult,
    ) -> Result<(), WrongResult>;

    /// The metrics, from the results of all units in their order.
    ///
    /// # Errors
    /// The metric cannot be computed.
    fn summarize(
        &self,
        model: &FinetunedModel<Self>,
        data: &Self::TestSet,
        results: Vec<Self::UnitResult>,
        predictions: bool,
    ) -> Result<Evaluation, TaskError>;

    /// The results of some consecutive units.
    ///
    /// # Errors
    /// Those of [`Evaluate::results_of_batch`], and a stop.
    fn results(
        &self,
        model: &FinetunedModel<Self>,
        data: &Self::TestSet,
        units: Range<usize>,
        inference: &Inference<'_>,
    ) -> Result<Vec<Self::UnitResult>, TaskError> {
        let inference = Inference {
            batch: inference.batch.min(Self::MOST_AT_ONCE),
            ..*inference
        };
        model.batches(Self::UNITS, units.len(), &inference, |model, items| {
            let items = units.start + items.start..units.start + items.end;
            self.results_of_batch(model, data, items, inference.predictions)
        })
    }

    /// Evaluates a model.
    ///
    /// # Errors
    /// Those of [`Evaluate::results`] and [`Evaluate::summarize`].
    fn evaluate(
        &self,
        model: &FinetunedModel<Self>,
        data: &Self::TestSet,
        inference: &Inference<'_>,
    ) -> Result<Evaluation, TaskError> {
        let results = self.results(model, data, 0..Self::units(data), inference)?;
        self.summarize(model, data, results, inference.predictions)
    }

    /// Evaluates the predictions of any program, in the format that [`Evaluation::predictions`]
    /// has; `config` says what the classes are where the task has a choice of them.
    ///
    /// # Errors
    /// Data or predictions that cannot be read, or that do not belong together.
    fn score(
        request: &ScoreRequest<'_>,
        config: &Self::Config,
    ) -> Result<PredictionScores, TaskError>;
}

/// A result of a unit that a model cannot have given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongResult {
    /// What was expected.
    pub expected: String,
    /// What was found.
    pub found: String,
}

/// Checks a row of `length` numbers, each of which `is_right`; `what` says it in words.
pub(crate) fn check_row(
    row: &[f32],
    length: usize,
    is_right: impl Fn(f32) -> bool,
    what: &str,
) -> Result<(), WrongResult> {
    let wrong = row.iter().find(|value| !is_right(**value));
    if row.len() == length && wrong.is_none() {
        return Ok(());
    }
    Err(WrongResult {
        expected: format!("{length} {what}"),
        found: wrong.map_or_else(|| format!("{} numbers", row.len()), f32::to_string),
    })
}

/// Metrics with the details behind them.
#[derive(Debug, Clone, Serialize)]
pub struct TaskScores {
    /// The metrics to quote; checkpoints are selected by the first.
    pub metrics: Vec<Metric>,
    /// The first metric of random answers, or of the best constant answer, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chance: Option<f64>,
    /// Everything else that was measured.
    pub details: Value,
    /// A table to print.
    #[serde(skip)]
    pub table: String,
}

impl TaskScores {
    /// The value of the metric of that name.
    pub fn value(&self, name: &str) -> Option<f64> {
        let metric = self.metrics.iter().find(|metric| metric.name == name);
        metric.map(|metric| metric.value)
    }
}

/// The evaluation of a model.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    /// The task.
    pub task: &'static str,
    /// The protocol in words.
    pub protocol: String,
    /// What was evaluated on: a split, or a file.
    pub data: String,
    /// The training loss on these data, where published schedules reduce the learning rate on its
    /// plateaus.
    pub loss: Option<Metric>,
    /// Warnings about labels that cannot be used.
    pub notes: Vec<String>,
    /// The metrics.
    #[serde(flatten)]
    pub scores: TaskScores,
    /// Predictions in the format that the task's benchmark takes: COCO's results (pose, detection),
    /// a tar of PNG masks (parsing), a CSV of probabilities (attributes), JSON lines of rankings
    /// (re-identification, search).
    #[serde(skip)]
    pub predictions: Vec<u8>,
}

/// Predictions to be evaluated.
#[derive(Debug, Clone)]
pub struct ScoreRequest<'a> {
    /// Folder of the dataset.
    pub data: &'a Path,
    /// Split of the dataset.
    pub split: &'a SplitChoice,
    /// File or folder of predictions.
    pub predictions: &'a Path,
    /// Probability above which an attribute is predicted.
    pub threshold: f32,
}

/// Metrics of predictions.
#[derive(Debug, Clone)]
pub struct PredictionScores {
    /// The metrics.
    pub scores: TaskScores,
    /// What was evaluated on: a split, or a file.
    pub data: String,
    /// Warnings about predictions and labels that cannot be used.
    pub notes: Vec<String>,
}

/// The split to evaluate on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SplitChoice {
    /// Held out of training to select checkpoints on: `val`.
    Val,
    /// What results are reported on: `test`, or `val` where a dataset has no other.
    Test,
    /// By name.
    Named(String),
}

impl SplitChoice {
    /// The split of that name.
    pub fn named(name: &str) -> Self {
        match name {
            "val" => Self::Val,
            "test" => Self::Test,
            other => Self::Named(other.to_owned()),
        }
    }

    /// The name of this split among the splits of a file.
    ///
    /// # Errors
    /// [`LayoutError::NoSplit`].
    pub fn find(&self, splits: Vec<String>, file: &Path) -> Result<String, LayoutError> {
        let wanted: &[&str] = match self {
            Self::Val => &["val"],
            Self::Test => &["test", "val"],
            Self::Named(name) => &[name],
        };
        { wanted.iter() }
            .find(|name| splits.iter().any(|split| split == *name))
            .map(|name| (*name).to_owned())
            .ok_or_else(|| LayoutError::NoSplit {
                file: file.display().to_string(),
                wanted: self.name().to_owned(),
                splits,
            })
    }

    /// Opens this split where each split is a file of its own.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn open<D>(&self, open: impl Fn(&str) -> Result<D, LayoutError>) -> Result<D, LayoutError> {
        match (self, open(self.name())) {
            (Self::Test, Err(LayoutError::NotFound { .. } | LayoutError::NoSplitFile { .. })) => {
                open("val")
            }
            (_, opened) => opened,
        }
    }

    /// Its name, or the first name that is tried.
    pub fn name(&self) -> &str {
        match self {
            Self::Val => "val",
            Self::Test => "test",
            Self::Named(name) => name,
        }
    }
}

/// The last part of a path, to name a file in a result.
pub fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// Names that a note lists.
const LISTED: usize = 3;

/// A note of how many predictions are missing or of unknown images, with the first of them; none if
/// there are none.
pub(crate) fn count_note(what: &str, names: &[String]) -> Option<String> {
    let first = names.iter().take(LISTED).cloned().collect::<Vec<_>>();
    (!names.is_empty()).then(|| format!("{} {what}, the first: {}", names.len(), first.join(", ")))
}

/// An error about a file of predictions.
pub(crate) fn mismatch(file: &Path, expected: impl ToString, found: impl ToString) -> TaskError {
    TaskError::Mismatch {
        file: file.display().to_string(),
        expected: expected.to_string(),
        found: found.to_string(),
    }
}
