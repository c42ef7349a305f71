//! Activations of tensors.

use burn::tensor::{
    Tensor,
    activation::{self, sigmoid},
};
use rayon::prelude::*;

use super::activation::Activation;
use super::mode::can_fuse;
use super::operation::{FusedOperation, Operand, apply};
use super::scalar::{activate, activate_with_slopes, multiply};

/// Values that a thread computes at a time.
const SHARE: usize = 1 << 14;

impl Activation {
    /// The activation of each value.
    pub(crate) fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::QuickGelu => x.clone() * sigmoid(x * 1.702),
            Self::Gelu => gelu(x),
        }
    }
}

/// x · Φ(x), with the gradient of that function: on the CPU one fused operation.
///
/// Burn's own gradient is, on every device but the CPU, that of an approximation by tanh, up to 8e-4 apart
/// (docs/LOG.md). By single operations each has its own.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if can_fuse(&x) {
        let shape = x.dims();
        return apply(GeluOperation, [Operand::new(x)], shape);
    }
    if !x.is_autodiff() {
        return activation::gelu(x);
    }
    let twice = (x.clone() * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0;
    x * twice * 0.5
}

/// Many values at a time: Burn's error function of single ones took 3 % of a step of the demo (docs/LOG.md).
#[derive(Debug, Clone)]
struct GeluOperation;

impl FusedOperation<1> for GeluOperation {
    type Saved = ();

    fn forward(&self, [x]: [&[f32]; 1], _save: bool) -> (Vec<f32>, Option<()>) {
        let mut out = vec![0.0; x.len()];
        let shares = out.par_chunks_mut(SHARE).zip(x.par_chunks(SHARE));
        shares.for_each(|(out, x)| activate(x, out, Activation::Gelu));
        (out, Some(()))
    }

    fn backward(&self, [x]: [&[f32]; 1], (): (), mut output: Vec<f32>) -> [Vec<f32>; 1] {
        let shares = output.par_chunks_mut(SHARE).zip(x.par_chunks(SHARE));
        shares.for_each(|(gradient, x)| {
            let (mut slopes, mut active) = (x.to_vec(), vec![0.0; x.len()]);
            activate_with_slopes(&mut slopes, &mut active, Activation::Gelu);
            multiply(gradient, &slopes);
        });
        [output]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::unfused;
    use burn::tensor::Device;

    #[test]
    fn the_graph_has_the_gradient_of_the_exact_function() {
        // More than a thread computes at a time.
        let values: Vec<f32> = (-40_000..=40_000).map(|step| step as f32 / 8e3).collect();
        let traced = || {
            let device = Device::flex().autodiff();
            let x = Tensor::<1>::from_floats(values.as_slice(), &device).require_grad();
            let y = gelu(x.clone());
            let gradient = x.grad(&(y.clone() * 0.5).sum().backward()).unwrap();
            [y.inner(), gradient].map(|tensor| tensor.try_into_vec_as::<f32>().unwrap())
        };
        let (one, other) = (traced(), unfused(traced));
        for (one, other) in one.iter().flatten().zip(other.iter().flatten()) {
            assert!((one - other).abs() < 1e-6, "{one} {other}");
        }
    }
}
