//! Parameters and gradients in another number format, several in one launch where the device has the kernel.

use burn::{
    nn::Linear,
    tensor::{DType, Tensor},
};

use super::{leaf::with_values, matmul::product_format};
#[cfg(feature = "gpu")]
use crate::gpu;

/// The values of each tensor in another number format. All have the same one.
pub(crate) fn cast_all(tensors: Vec<Tensor<1>>, format: DType) -> Vec<Tensor<1>> {
    #[cfg(feature = "gpu")]
    if gpu::supports_casts(&tensors) {
        return gpu::casts(tensors, format);
    }
    { tensors.into_iter() }
        .map(|tensor| tensor.cast(format))
        .collect()
}

/// Casts the weights of layers to the number format of products, so that no product casts its weight, and
/// the gradient of it back: the gradient of a cast weight has the format of the weight. The weights must be
/// factors of products alone. Nothing is cast for the CPU's fused operations, which round their inputs
/// themselves.
pub(crate) fn cast_weights(mut layers: Vec<&mut Linear>) {
    let Some(first) = layers.first() else {
        return;
    };
    let format = product_format(&first.weight.val());
    layers.retain(|layer| layer.weight.val().dtype() != format);
    let weight = |layer: &&mut Linear| {
        let weight = layer.weight.val().without_autodiff();
        let size = weight.shape().num_elements();
        weight.reshape([size])
    };
    let cast = cast_all(layers.iter().map(weight).collect(), format);
    for (layer, weight) in layers.into_iter().zip(cast) {
        let weight = weight.reshape(layer.weight.dims());
        layer.weight = with_values(&layer.weight, weight);
    }
}
