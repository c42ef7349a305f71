//! Why an evaluation cannot be done.

use std::path::PathBuf;

use clasp_data::layouts::LayoutError;
use clasp_data::source::{SourceError, TooManyUnreadable};
use clasp_metrics::MetricError;
use clasp_model::ModelError;
use clasp_run::{InvalidValue, RecipeError};
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
        "{image} has a feature of {found}\n  hint: the backbone's weights are damaged or its training diverged"
    )]
    NotFinite {
        /// The image: its key or path, or its position where no more is known.
        image: String,
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
    /// A recipe cannot be read.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A value of a recipe is out of range, or two values contradict each other.
    #[error(transparent)]
    Setting(#[from] InvalidValue),
    /// A network cannot be made.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A new run would overwrite an old one.
    #[error(
        "{folder}: holds a run already\n  hint: go on with `--resume {folder}`, or choose another folder with `--out`"
    )]
    RunExists {
        /// Folder of the run.
        folder: PathBuf,
    },
    /// A checkpoint cannot be written, or does not fit the recipe.
    #[error("{path}: `{what}`: expected {expected}, found {found}\n  hint: {hint}")]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// Recipe key or tensor.
        what: String,
        /// What the recipe asks for.
        expected: String,
        /// What the file holds.
        found: String,
        /// What to do.
        hint: &'static str,
    },
    /// A loss or the norm of the gradients is infinite or not a number.
    #[error(
        "step {step}: the {term} is {value}; the run has stopped and the last good checkpoint is kept\n  \
         the images of the batch are listed in {keys}\n  \
         hint: lower `optimiser.lr`, lengthen `optimiser.warmup_epochs`, set `optimiser.clip`, or look at those images"
    )]
    NonFiniteLoss {
        /// Step that failed.
        step: u64,
        /// What it is.
        term: String,
        /// Its value.
        value: f64,
        /// File with the images.
        keys: PathBuf,
    },
    /// The caller asked to stop.
    #[error("stopped")]
    Stopped,
    /// A file that cannot be read or written; the message names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
