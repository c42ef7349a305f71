//! Fresh weights.
//!
//! All draws come from a generator that is passed in, so a model is a function of its configuration
//! and a seed on every device.

use burn::{
    module::Param,
    nn::Linear,
    tensor::{Device, Tensor, TensorData},
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng as _;

/// The generator of every draw in this crate.
pub type Rng = ChaCha8Rng;

/// A uniform number in [0, 1), from the upper 53 bits.
pub fn uniform(rng: &mut Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// A number from the standard normal distribution (Box and Muller 1958).
fn normal(rng: &mut Rng) -> f64 {
    // 1 - u is in (0, 1], so the logarithm is finite.
    let radius = (-2.0 * (1.0 - uniform(rng)).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(rng)).cos()
}

fn parameter<const D: usize>(
    shape: [usize; D],
    device: &Device,
    mut draw: impl FnMut() -> f64,
) -> Param<Tensor<D>> {
    let values: Vec<f32> = (0..shape.iter().product::<usize>())
        .map(|_| draw() as f32)
        .collect();
    Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), device))
}

/// A parameter from the normal distribution with standard deviation `std`, drawn again outside [-2,
/// 2] (absolute, as `trunc_normal_` in PyTorch and timm has it).
pub fn trunc_normal<const D: usize>(
    shape: [usize; D],
    std: f64,
    rng: &mut Rng,
    device: &Device,
) -> Param<Tensor<D>> {
    parameter(shape, device, || {
        loop {
            let value = std * normal(rng);
            if value.abs() <= 2.0 {
                return value;
            }
        }
    })
}

/// A parameter from the uniform distribution on [-bound, bound).
pub fn uniform_symmetric<const D: usize>(
    shape: [usize; D],
    bound: f64,
    rng: &mut Rng,
    device: &Device,
) -> Param<Tensor<D>> {
    parameter(shape, device, || bound * (2.0 * uniform(rng) - 1.0))
}

/// A parameter with one value everywhere.
pub fn constant<const D: usize>(
    shape: [usize; D],
    value: f64,
    device: &Device,
) -> Param<Tensor<D>> {
    parameter(shape, device, || value)
}

/// A linear layer with weight [inputs, outputs] of standard deviation 0.02 and bias zero, as DINO
/// and Swin start theirs.
pub fn linear(inputs: usize, outputs: usize, bias: bool, rng: &mut Rng, device: &Device) -> Linear {
    Linear {
        weight: trunc_normal([inputs, outputs], 0.02, rng, device),
        bias: bias.then(|| constant([outputs], 0.0, device)),
    }
}

/// A linear layer with weight [inputs, outputs] of standard deviation 1/√inputs (LeCun et al. 1998)
/// and bias zero, for heads of any width. With 0.02, which suits 2048 channels, the signal after
/// three layers of 128 channels is 100 times smaller than their biases after a few steps, and only
/// the mean output is learned.
pub fn head_linear(inputs: usize, outputs: usize, rng: &mut Rng, device: &Device) -> Linear {
    Linear {
        weight: trunc_normal([inputs, outputs], 1.0 / (inputs as f64).sqrt(), rng, device),
        bias: Some(constant([outputs], 0.0, device)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::SeedableRng;

    #[test]
    fn trunc_normal_has_its_moments_and_bounds() {
        let device = Device::flex();
        let mut rng = Rng::seed_from_u64(1);
        let values = trunc_normal([200, 200], 0.02, &mut rng, &device)
            .val()
            .into_data()
            .try_into_vec::<f32>()
            .unwrap();
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let std =
            (values.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / values.len() as f32).sqrt();
        assert!(mean.abs() < 5e-4, "{mean}");
        assert!((std - 0.02).abs() < 3e-4, "{std}");

        let wide = trunc_normal([100, 100], 3.0, &mut rng, &device);
        let largest: f32 = wide.val().abs().max().into_scalar();
        assert!(largest <= 2.0);
    }
}
