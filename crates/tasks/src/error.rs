//! Why an evaluation cannot be done.

use clasp_data::layouts::LayoutError;
use clasp_data::source::{SourceError, TooManyUnreadable};
use clasp_metrics::MetricError;
use clasp_weights::WeightsError;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// The data set is not what it should be.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The images cannot be found or read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// More images than 5 % cannot be read.
    #[error(transparent)]
    Unreadable(#[from] TooManyUnreadable),
    /// The backbone cannot be loaded.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The metric cannot be computed.
    #[error(transparent)]
    Metric(#[from] MetricError),
    /// A labelled image that cannot be decoded.
    #[error("{file}: {reason}")]
    Image {
        /// The image.
        file: String,
        /// Why not.
        reason: String,
    },
    /// A file whose content does not go with its labels.
    #[error("{file}: expected {expected}, found {found}")]
    Mismatch {
        /// The file.
        file: String,
        /// What its labels say.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Too little to train or evaluate on.
    #[error("{what}: expected {expected}, found {found}")]
    TooFew {
        /// The data set or split.
        what: String,
        /// What is needed.
        expected: &'static str,
        /// What there is.
        found: usize,
    },
    /// A feature that is not a finite number.
    #[error(
        "image {image} has a feature of {found}\nhint: the backbone's weights are damaged or its training diverged"
    )]
    NotFinite {
        /// Position of the image in its list.
        image: usize,
        /// The value.
        found: f32,
    },
    /// The device gave no features.
    #[error("the backbone's features cannot be read from the device: {0}")]
    Device(String),
    /// A result that cannot be written as wanted.
    #[error("{file}: expected an ending .npy or .parquet, found {found}")]
    Format {
        /// The file.
        file: String,
        /// Its ending.
        found: String,
    },
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
    /// A file that cannot be read or written; the message names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
