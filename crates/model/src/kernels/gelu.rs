//! Activations as operations of Burn's graph.

use burn::tensor::{
    Tensor,
    activation::{self, sigmoid},
};

use super::activation::Activation;
use super::mode::fuses;

impl Activation {
    /// The activation of each value, as operations of Burn's graph.
    pub(crate) fn forward<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::QuickGelu => x.clone() * sigmoid(x * 1.702),
            Self::Gelu => gelu(x),
        }
    }
}

/// x · Φ(x), with the gradient of that function.
///
/// Burn's own gradient is, on every device but the CPU, that of an approximation by tanh, up to 8e-4
/// apart (docs/LOG.md). By single operations each has its own.
pub fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if !x.is_autodiff() || fuses(&x.device()) {
        return activation::gelu(x);
    }
    let twice = (x.clone() * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0;
    x * twice * 0.5
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::unfused;
    use burn::tensor::Device;

    #[test]
    fn the_graph_has_the_gradient_of_the_exact_function() {
        let values: Vec<f32> = (-40..=40).map(|step| step as f32 / 8.0).collect();
        let traced = || {
            let device = Device::flex().autodiff();
            let x = Tensor::<1>::from_floats(values.as_slice(), &device).require_grad();
            let y = gelu(x.clone());
            let gradient = x.grad(&y.clone().sum().backward()).unwrap();
            [y.inner(), gradient].map(|tensor| tensor.try_into_vec_as::<f32>().unwrap())
        };
        let (one, other) = (traced(), unfused(traced));
        for (one, other) in one.iter().flatten().zip(other.iter().flatten()) {
            assert!((one - other).abs() < 1e-6, "{one} {other}");
        }
    }
}
