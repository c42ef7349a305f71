//! What can go wrong in CLIP training.

use std::path::PathBuf;

use clasp_model::ModelError;
use clasp_model::clip::ClipConfigError;
use clasp_weights::WeightsError;

/// What can go wrong in training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClipTrainError {
    /// A setting out of range.
    #[error("CLIP training: `{field}` is {found}; expected {expected}")]
    Setting {
        /// The setting.
        field: &'static str,
        /// Its value.
        found: String,
        /// What would be accepted.
        expected: String,
    },
    /// Sizes of the model that cannot be built.
    #[error(transparent)]
    Model(#[from] ClipConfigError),
    /// A checkpoint that cannot be read or written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The optimizer state in a checkpoint is incomplete.
    #[error(transparent)]
    Optimizer(#[from] ModelError),
    /// The log cannot be written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A checkpoint of another run.
    #[error(
        "{}: the checkpoint does not belong to this run: {problem}\n\
         hint: give the settings it was started with, or another folder", path.display()
    )]
    OtherRun {
        /// The checkpoint.
        path: PathBuf,
        /// What differs.
        problem: String,
    },
    /// The loss is not finite.
    #[error(
        "step {step}: the loss is {loss}; the last checkpoint is kept\n\
         hint: lower `lr` or raise `warmup_steps`"
    )]
    Diverged {
        /// The step.
        step: usize,
        /// The loss.
        loss: f32,
    },
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
    /// A thread of the run ended before its work did.
    #[error("a training thread stopped unexpectedly; the last checkpoint is kept")]
    Worker,
}
