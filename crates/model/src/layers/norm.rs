//! Layer norm.

use burn::{
    nn::{LayerNorm, LayerNormConfig},
    tensor::{Device, Tensor},
};

use crate::kernels;

/// A layer norm over the last axis, epsilon 1e-5.
pub fn layer_norm(channels: usize, device: &Device) -> LayerNorm {
    LayerNormConfig::new(channels)
        .with_epsilon(EPSILON)
        .init(device)
}

/// ε of [`layer_norm`].
pub const EPSILON: f64 = 1e-5;

/// The norm of each token by a layer of [`layer_norm`]. x: [..., channels], any rank.
pub fn normalize<const D: usize>(x: Tensor<D>, norm: &LayerNorm) -> Tensor<D> {
    kernels::norm::layer_norm(x, norm, EPSILON)
}
