//! Matrix products with a layer's weights outside the fused operations, for inference in bf16
//! ([`super::Precision`]).

use burn::{
    backend::{Flex, flex::FlexTensor},
    tensor::{Tensor, TensorData},
};
use rayon::prelude::*;

use super::{
    norm::strand,
    operation::{host, values},
    weight::{PackedWeight, Weight},
};

/// x · W, both rounded. x: [..., inputs] of the CPU and outside autodiff, any rank; W: [inputs,
/// outputs].
///
/// # Panics
/// When [`super::can_fuse`] says no.
pub fn project<const D: usize>(x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
    let [inputs, outputs] = weight.dims();
    let mut shape = x.dims();
    shape[D - 1] = outputs;
    let packed = PackedWeight::new(&weight);
    let (x, weight) = (host(x), host(weight));
    let (x, weight) = (values(&x), Weight::new(values(&weight), outputs, &packed));
    let mut out = vec![0.0; x.len() / inputs * outputs];
    let share = strand(x.len(), inputs);
    out.par_chunks_mut(share / inputs * outputs)
        .zip(x.par_chunks(share))
        .for_each(|(out, x)| weight.add_product(out, x));
    Tensor::from_primitive::<Flex>(FlexTensor::from_data(TensorData::new(out, shape)))
}
