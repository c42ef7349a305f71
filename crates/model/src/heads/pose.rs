//! The pose head: transposed convolutions to a quarter of the image, then a heatmap a joint (Xiao
//! et al., "Simple Baselines for Human Pose Estimation and Tracking", ECCV 2018).

use burn::{
    module::Module,
    tensor::{Device, Tensor, activation::relu},
};

use super::blocks::{BatchNorm, Conv, Deconv, Training};
use crate::layers::Rng;

/// Transposed convolutions with batch normalization, and a 1x1 convolution.
#[derive(Module, Debug)]
pub struct PoseHead {
    /// Each doubles the map.
    pub deconvs: Vec<Deconv>,
    /// One after each.
    pub norms: Vec<BatchNorm>,
    /// width → joints.
    pub heatmaps: Conv,
}

impl PoseHead {
    /// A head with fresh weights of standard deviation 0.001, as published; `doublings` transposed
    /// convolutions.
    pub fn init(
        channels: usize,
        width: usize,
        doublings: usize,
        joints: usize,
        rng: &mut Rng,
        device: &Device,
    ) -> Self {
        let inputs = |index| if index == 0 { channels } else { width };
        Self {
            deconvs: (0..doublings)
                .map(|index| Deconv::init([inputs(index), width, 2], 0.001, false, rng, device))
                .collect(),
            norms: (0..doublings)
                .map(|_| BatchNorm::init(width, device))
                .collect(),
            heatmaps: Conv::normal([inputs(doublings), joints, 1], 0.001, 0.0, rng, device),
        }
    }

    /// # Shapes
    /// - map: [batch, channels, rows, columns]
    /// - output: [batch, joints, rows · 2^doublings, columns · 2^doublings]
    pub fn forward(&self, map: Tensor<4>, mut training: Option<&mut Training<'_>>) -> Tensor<4> {
        let layers = self.deconvs.iter().zip(&self.norms);
        let x = layers.fold(map, |x, (deconv, norm)| {
            relu(norm.forward(deconv.forward(x), training.as_deref_mut()))
        });
        self.heatmaps.forward(x)
    }
}
