//! Layer norm.

use burn::{
    nn::{LayerNorm, LayerNormConfig},
    tensor::{Device, Tensor},
};

use crate::kernels;
#[cfg(feature = "gpu")]
use crate::{gpu, layers::matmul::product_format};
#[cfg(feature = "gpu")]
use burn::tensor::DType;

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
    #[cfg(feature = "gpu")]
    if let Some(normal) = by_kernel(&x, norm, DType::F32) {
        return normal;
    }
    kernels::norm::layer_norm(x, norm, EPSILON)
}

/// As [`normalize`], of what goes into matrix products alone: on a GPU in their number format.
pub(crate) fn normalize_for_product<const D: usize>(x: Tensor<D>, norm: &LayerNorm) -> Tensor<D> {
    #[cfg(feature = "gpu")]
    if let Some(normal) = by_kernel(&x, norm, product_format(&x)) {
        return normal;
    }
    kernels::norm::layer_norm(x, norm, EPSILON)
}

/// The norm by the kernel for GPUs, where it computes.
#[cfg(feature = "gpu")]
fn by_kernel<const D: usize>(x: &Tensor<D>, norm: &LayerNorm, format: DType) -> Option<Tensor<D>> {
    let beta = norm.beta.as_ref()?.val();
    gpu::supports_layer_norm(&x.device(), x.dims()[D - 1], x.shape().num_elements())
        .then(|| gpu::layer_norm(x.clone(), norm.gamma.val(), beta, EPSILON, format))
}
