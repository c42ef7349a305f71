//! How a model runs over images.

use std::ops::ControlFlow;

use crate::features::PassProgress;

/// How a model runs over images; what it computes is configured in the task.
#[derive(Clone, Copy)]
pub struct Inference<'a> {
    /// Images in a batch.
    pub batch: usize,
    /// Threads, each with its own clone of the model.
    pub threads: usize,
    /// Whether [`super::Evaluation::predictions`] are kept where they are large (masks).
    pub predictions: bool,
    /// Called after every batch; stops the pass when it breaks.
    pub progress: &'a (dyn Fn(PassProgress) -> ControlFlow<()> + Sync),
}
