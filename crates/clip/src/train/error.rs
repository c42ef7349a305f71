//! What can go wrong in CLIP training.

use clasp_model::ModelError;
use clasp_model::clip::ClipConfigError;
use clasp_run::{InvalidValue, RecipeError, RunError};
use clasp_weights::WeightsError;

/// What can go wrong in training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClipTrainError {
    /// The run folder, the recipe or a checkpoint; or a step that is not finite.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Sizes of the model that cannot be built.
    #[error(transparent)]
    Model(#[from] ClipConfigError),
    /// A checkpoint that cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The optimizer state in a checkpoint is incomplete.
    #[error(transparent)]
    Optimizer(#[from] ModelError),
    /// A file of the run cannot be read or written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A pair with an image or annotations of the wrong size.
    #[error("pair {index}: {what} has {found} values; expected {expected}")]
    Pair {
        /// The pair's index.
        index: u64,
        /// The image or the annotation.
        what: &'static str,
        /// The number of values.
        found: usize,
        /// The number of values at this size.
        expected: usize,
    },
    /// A thread that makes training pairs ended before its work did.
    #[error("a thread that makes training pairs stopped unexpectedly; the last checkpoint is kept")]
    Worker,
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

impl From<RecipeError> for ClipTrainError {
    fn from(error: RecipeError) -> Self {
        RunError::from(error).into()
    }
}

impl From<InvalidValue> for ClipTrainError {
    fn from(error: InvalidValue) -> Self {
        RunError::from(error).into()
    }
}
