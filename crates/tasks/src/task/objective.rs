//! Head, loss and outputs of a task.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use clasp_model::backbone::{Backbone, Features};
use clasp_model::heads::Training;
use clasp_model::layers::Rng;
use clasp_model::prompt::PromptWeights;
use clasp_weights::onnx::Output;

use super::Task;
use crate::TaskError;

/// Which features of the backbone a head reads in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadInput {
    /// Those of the whole image.
    Pooled,
    /// The feature maps.
    Maps,
}

/// What a task trains.
pub trait Objective: Task {
    /// The head.
    type Head: Module + Clone + Send + Sync;
    /// The ground truth of an example.
    type Target: Clone + Send + Sync + 'static;

    /// What [`Objective::loss`] reads of the features. The processes that train one model exchange no
    /// others.
    const HEAD_INPUT: HeadInput;

    /// Whether [`Objective::refined_loss`] refines labels.
    const REFINES_LABELS: bool = false;

    /// A head with fresh weights.
    ///
    /// # Errors
    /// The head cannot be built on this backbone.
    fn head(
        &self,
        layout: &FeatureLayout,
        rng: &mut Rng,
        device: &Device,
    ) -> Result<Self::Head, TaskError>;

    /// The outputs of the head before decoding, by name: for other programs.
    fn outputs(&self, head: &Self::Head, features: Features) -> Vec<(String, Output)>;

    /// What [`Objective::outputs`] lack of the task; none if a prediction needs no more than to decode them.
    fn missing_in_outputs(&self) -> Option<&'static str> {
        None
    }

    /// The loss of a batch; batch statistics and memories, which have no gradient, are collected in
    /// `training`.
    fn loss(
        &self,
        head: &Self::Head,
        features: &Features,
        targets: &[Self::Target],
        training: &mut Training<'_>,
    ) -> BatchLoss;

    /// The loss of a batch whose labels are refined by a model of earlier self-correction cycles.
    fn refined_loss(
        &self,
        head: &Self::Head,
        features: &Features,
        targets: &[Self::Target],
        training: &mut Training<'_>,
        refiner: &LabelRefiner<'_, Self::Head>,
    ) -> BatchLoss {
        let _ = refiner;
        self.loss(head, features, targets, training)
    }
}

/// The features that a backbone gives to a head.
#[derive(Debug, Clone)]
pub struct FeatureLayout {
    /// The backbone, on its device.
    pub backbone: Backbone,
    /// The prompt weights.
    pub prompt: PromptWeights,
    /// Channels of the pooled features.
    pub pooled: usize,
    /// Channels of the feature map of each stage, finest first.
    pub channels: Vec<usize>,
    /// Pixels of the image per position of each map, along each axis.
    pub strides: Vec<usize>,
}

/// A model that refines labels: the average of earlier self-correction cycles.
pub struct LabelRefiner<'a, H> {
    /// Its head.
    pub head: &'a H,
    /// Features of the batch from its backbone.
    pub features: &'a Features,
    /// Cycles that are in the average.
    pub cycles: u64,
}

/// The loss of a batch.
#[derive(Debug, Clone)]
pub struct BatchLoss {
    /// The value that is minimized.
    pub total: Tensor<1>,
    /// Its terms and other values to log, by name.
    pub terms: Vec<(&'static str, f64)>,
}

impl BatchLoss {
    /// The weighted sum of named terms.
    ///
    /// # Panics
    /// Without terms.
    pub fn sum<const N: usize>(terms: [(&'static str, Tensor<1>, f64); N]) -> Self {
        let mut total: Option<Tensor<1>> = None;
        let mut values = Vec::with_capacity(N);
        for (name, term, weight) in terms {
            values.push((name, scalar(&term)));
            let term = term * weight;
            total = Some(match total {
                Some(total) => total + term,
                None => term,
            });
        }
        match total {
            Some(total) => Self {
                total,
                terms: values,
            },
            None => panic!("a loss without terms"),
        }
    }
}

/// The value of a loss.
pub fn scalar(tensor: &Tensor<1>) -> f64 {
    let data = tensor.clone().without_autodiff().into_data();
    data.iter::<f64>().next().unwrap_or(f64::NAN)
}

/// The values of a tensor in training, row-major.
pub fn detached_values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    let data = tensor.clone().without_autodiff().into_data();
    data.iter::<f32>().collect()
}
