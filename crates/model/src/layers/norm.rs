//! Layer norm.

use burn::{
    nn::{LayerNorm, LayerNormConfig},
    tensor::{DType, Device, Tensor},
};

use super::matmul::product_format;
#[cfg(feature = "gpu")]
use crate::gpu;
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
    normalize_in(x, norm, DType::F32)
}

/// As [`normalize`], of what goes into matrix products alone: on a GPU in their number format.
pub(crate) fn normalize_for_product<const D: usize>(x: Tensor<D>, norm: &LayerNorm) -> Tensor<D> {
    let format = product_format(&x);
    normalize_in(x, norm, format)
}

/// As [`normalize`], in a number format where the kernel for GPUs computes.
#[cfg_attr(not(feature = "gpu"), allow(unused_variables))]
fn normalize_in<const D: usize>(x: Tensor<D>, norm: &LayerNorm, format: DType) -> Tensor<D> {
    #[cfg(feature = "gpu")]
    if let Some(beta) = &norm.beta
        && gpu::supports_layer_norm(&x.device(), x.dims()[D - 1], x.shape().num_elements())
    {
        return gpu::layer_norm(x, norm.gamma.val(), beta.val(), EPSILON, format);
    }
    kernels::norm::layer_norm(x, norm, EPSILON)
}
