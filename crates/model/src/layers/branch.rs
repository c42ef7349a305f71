//! Bias with activation, and bias with residual sum, after a matrix product: Burn's graph, and on GPUs one
//! kernel each.

use burn::{nn::Linear, tensor::Tensor};

#[cfg(feature = "gpu")]
use super::matmul::product_as_computed;
use super::{drop_path::DropFactors, matmul::project};
#[cfg(feature = "gpu")]
use crate::gpu;
use crate::kernels::activation::Activation;

/// x + f · (input · W + b), f the factor of each image.
///
/// # Shapes
/// - x: [batch, ..., outputs]; input: [batch, ..., inputs]
pub(crate) fn add_projected<const D: usize>(
    x: Tensor<D>,
    input: Tensor<D>,
    layer: &Linear,
    factors: &Option<DropFactors>,
) -> Tensor<D> {
    #[cfg(feature = "gpu")]
    if let Some(bias) = &layer.bias
        && gpu::supports_branch(&x.device(), x.shape().num_elements())
    {
        let product = product_as_computed(input, layer.weight.val());
        let row = factors
            .as_ref()
            .map(|factors| factors.on_device(&x.device()));
        return gpu::add_branch(x, product, bias.val(), row);
    }
    x + DropFactors::scale(factors, project(input, layer))
}

/// The activation of x · W + b; on a GPU in the number format of products.
///
/// # Shapes
/// - x: [..., inputs]; returns [..., outputs]
pub(crate) fn activated<const D: usize>(
    x: Tensor<D>,
    layer: &Linear,
    activation: Activation,
) -> Tensor<D> {
    #[cfg(feature = "gpu")]
    if let (Activation::Gelu, Some(bias)) = (activation, &layer.bias) {
        let [inputs, outputs] = layer.weight.dims();
        let elements = x.shape().num_elements() / inputs.max(1) * outputs;
        if gpu::supports_branch(&x.device(), elements) {
            return gpu::gelu(product_as_computed(x, layer.weight.val()), bias.val());
        }
    }
    activation.forward(project(x, layer))
}
