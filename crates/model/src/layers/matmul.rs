//! Products of matrices in the thread's [`Precision`], and attention of them.

use burn::{
    module::Param,
    nn::Linear,
    tensor::{
        DType, Tensor,
        activation::softmax,
        module::{attention, linear as linear_of_tensors},
        ops::AttentionModuleOptions,
    },
};

use crate::kernels::{self, Precision, half_format};

/// Whether factors are to be cast to 16 bits here: the CPU's fused operations round theirs themselves.
fn casts_to_half<const D: usize>(x: &Tensor<D>) -> bool {
    Precision::current() == Precision::Bf16 && !kernels::can_fuse(x)
}

/// The number format of the factors of a product with x.
pub(super) fn product_format<const D: usize>(x: &Tensor<D>) -> DType {
    if casts_to_half(x) {
        half_format()
    } else {
        x.dtype()
    }
}

/// x · W + b, multiplied in the thread's [`Precision`].
///
/// # Shapes
/// - x: [..., inputs], any rank; W: [inputs, outputs]
pub(crate) fn project<const D: usize>(x: Tensor<D>, layer: &Linear) -> Tensor<D> {
    product(x, layer.weight.val(), layer.bias.as_ref().map(Param::val))
}

/// As [`project`], of tensors.
pub(crate) fn product<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<2>,
    bias: Option<Tensor<1>>,
) -> Tensor<D> {
    let product = if casts_to_half(&x) {
        product_in_half(x, weight).cast(DType::F32)
    } else if Precision::current() == Precision::Bf16 && !x.is_autodiff() && !weight.is_autodiff() {
        kernels::project::project(x, weight)
    } else {
        return linear_of_tensors(x, weight, bias);
    };
    match bias {
        None => product,
        Some(bias) => product + bias.unsqueeze(),
    }
}

fn product_in_half<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    linear_of_tensors(x.cast(half_format()), weight.cast(half_format()), None)
}

/// x · W in the number format that the product has: bf16 in that precision.
#[cfg(feature = "gpu")]
pub(crate) fn product_as_computed<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    if casts_to_half(&x) {
        return product_in_half(x, weight);
    }
    linear_of_tensors(x, weight, None)
}

/// a · b of each matrix of the leading axes, in the thread's [`Precision`].
pub(crate) fn matmul<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    if !casts_to_half(&a) {
        return a.matmul(b);
    }
    a.cast(half_format())
        .matmul(b.cast(half_format()))
        .cast(DType::F32)
}

/// softmax(q kᵀ / √d + bias) v, all [batch, heads, tokens, d] but `bias`, which broadcasts to
/// [batch, heads, tokens, tokens].
pub(crate) fn attend([query, key, value]: [Tensor<4>; 3], bias: Option<Tensor<4>>) -> Tensor<4> {
    // Burn's operation has no gradient of its own: under autodiff it would fall back to one that
    // also differentiates the row maxima, which is slower than the lines below.
    if !query.is_autodiff() && !casts_to_half(&query) {
        let options = AttentionModuleOptions::default();
        return attention(query, key, value, None, bias, options);
    }
    attend_in_steps([query, key, value], bias)
}

/// As [`attend`], by operations that each have a gradient.
pub(crate) fn attend_in_steps(
    [query, key, value]: [Tensor<4>; 3],
    bias: Option<Tensor<4>>,
) -> Tensor<4> {
    let width = query.dims()[3] as f64;
    let scores = matmul(query * width.powf(-0.5), key.swap_dims(2, 3));
    let scores = match bias {
        None => scores,
        Some(bias) => scores + bias,
    };
    matmul(softmax(scores, 3), value)
}

/// Floating-point operations of a transformer block's matrix products: projections, attention among
/// `window` tokens, MLP.
pub(crate) fn block_operations(
    tokens: usize,
    window: usize,
    channels: usize,
    hidden: usize,
) -> usize {
    tokens * (8 * channels * channels + 4 * window * channels + 4 * channels * hidden)
}
