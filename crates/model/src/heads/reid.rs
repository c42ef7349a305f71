//! The re-identification head: BNNeck (Luo et al., CVPR Workshops 2019) and a classifier of
//! training identities.

use burn::{
    module::Module,
    nn::Linear,
    tensor::{Device, Tensor},
};

use super::blocks::{BatchNorm, Training};
use crate::layers::{self, Rng};

/// Batch normalization without a shift, then a linear layer without a bias.
///
/// The triplet loss and, as published, the test take the feature before the normalization; the
/// classifier takes the one after.
#[derive(Module, Debug)]
pub struct ReidHead {
    /// The neck; its bias stays 0.
    pub bottleneck: BatchNorm,
    /// channels → identities; of use in training only.
    pub classifier: Linear,
}

impl ReidHead {
    /// A head with fresh weights: the classifier's of standard deviation 0.001, as published.
    pub fn init(channels: usize, identities: usize, rng: &mut Rng, device: &Device) -> Self {
        let mut bottleneck = BatchNorm::init(channels, device);
        bottleneck.bias = bottleneck.bias.set_require_grad(false);
        Self {
            bottleneck,
            classifier: Linear {
                weight: layers::trunc_normal([channels, identities], 0.001, rng, device),
                bias: None,
            },
        }
    }

    /// The feature after the neck: [batch, channels] → [batch, channels].
    pub fn forward(&self, pooled: Tensor<2>, training: Option<&mut Training<'_>>) -> Tensor<2> {
        self.bottleneck.forward(pooled, training)
    }

    /// Logits of the training identities of a feature after the neck: [batch, channels] → [batch,
    /// identities].
    pub fn classify(&self, feature: Tensor<2>) -> Tensor<2> {
        self.classifier.forward(feature)
    }
}
