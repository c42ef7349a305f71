//! Errors of this crate.

use clasp_data::layouts::LayoutError;
use clasp_data::source::{SourceError, TooManyUnreadable};
use clasp_metrics::MetricError;
use clasp_model::ModelError;
use clasp_run::{CollectiveError, InvalidValue, RecipeError, RunError};
use clasp_weights::WeightsError;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// The dataset is missing or unusable.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The images cannot be found or read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// More than 5 % of the images cannot be read.
    #[error(transparent)]
    Unreadable(#[from] TooManyUnreadable),
    /// The backbone cannot be loaded.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The metric cannot be computed.
    #[error(transparent)]
    Metric(#[from] MetricError),
    /// A labeled image cannot be decoded.
    #[error("{file}: {reason}")]
    Image {
        /// The image.
        file: String,
        /// The reason.
        reason: String,
    },
    /// A file does not match its labels or its use.
    #[error("{file}: expected {expected}, found {found}")]
    Mismatch {
        /// The file.
        file: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// Too little to train or evaluate on.
    #[error("{what}: expected {expected}, found {found}")]
    TooFew {
        /// The dataset or split.
        what: String,
        /// What was expected.
        expected: &'static str,
        /// What was found.
        found: usize,
    },
    /// A feature that is not a finite number.
    #[error(
        "{image}: expected finite features, found {found}\n  hint: the backbone's weights are damaged or its training diverged"
    )]
    NotFinite {
        /// The image: its key or path, or else its position.
        image: String,
        /// The value.
        found: f32,
    },
    /// The device gave no features.
    #[error("the backbone's features cannot be read from the device: {0}")]
    Device(String),
    /// An unknown format of a result.
    #[error("{file}: expected an ending .npy or .parquet, found {found}")]
    Format {
        /// The file.
        file: String,
        /// Its ending.
        found: String,
    },
    /// There is nothing at a path.
    #[error(transparent)]
    Missing(#[from] clasp_data::missing::MissingPath),
    /// The run folder, the recipe or a checkpoint; a step that is not finite; or another process of
    /// the training.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A network cannot be built.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
    /// A file that cannot be read or written; the message names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl From<CollectiveError> for TaskError {
    fn from(error: CollectiveError) -> Self {
        RunError::from(error).into()
    }
}

impl From<RecipeError> for TaskError {
    fn from(error: RecipeError) -> Self {
        RunError::from(error).into()
    }
}

impl From<InvalidValue> for TaskError {
    fn from(error: InvalidValue) -> Self {
        RunError::from(error).into()
    }
}
