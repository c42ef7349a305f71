//! The configuration of all protocols.

use super::lbfgs::Lbfgs;
use crate::features::Batching;

/// How frozen features are evaluated.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeConfig {
    /// Batch size and threads of the backbone.
    pub batching: Batching,
    /// How many of the last stages a probe of feature maps uses, resized to the finest grid and
    /// concatenated.
    pub stages: usize,
    /// Name of the training split.
    pub train_split: String,
    /// Name of the split to evaluate on; `None` takes `test`, or else `val`.
    pub eval_split: Option<String>,
    /// Most training images; `None` takes all. A part of them is evenly spaced.
    pub train_images: Option<usize>,
    /// Most bytes of training features of feature maps; beyond that, evenly spaced training images
    /// are used.
    pub memory: usize,
    /// Most training images on which the weight decay of probes of feature maps is selected.
    pub selection: usize,
    /// The optimizer of the probes.
    pub solver: Lbfgs,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self {
            batching: Batching::default(),
            stages: 2,
            train_split: "train".to_owned(),
            eval_split: None,
            train_images: None,
            memory: 1 << 30,
            selection: 200,
            solver: Lbfgs::default(),
        }
    }
}

impl ProbeConfig {
    /// The optimizer while weight decay is selected: each fit starts where the one with more decay
    /// ended, and the last digits do not matter.
    pub(crate) fn selection_solver(&self) -> Lbfgs {
        Lbfgs {
            iterations: self.solver.iterations.min(30),
            ..self.solver
        }
    }

    /// The training images to use, of `count` that take `bytes` each.
    pub(crate) fn training(&self, count: usize, bytes: usize) -> Vec<usize> {
        let most = self.train_images.unwrap_or(count);
        spaced(count, most.min(self.memory / bytes.max(1)))
    }
}

/// At most `most` of `0..count`, evenly spaced.
pub(crate) fn spaced(count: usize, most: usize) -> Vec<usize> {
    let most = most.min(count);
    (0..most).map(|i| i * count / most).collect()
}
