//! Initialisation and the few layers that several models share.
//!
//! All draws come from a generator that is passed in, so a model is a function of its configuration
//! and a seed on every device.

use burn::{
    module::Param,
    nn::{LayerNorm, LayerNormConfig, Linear},
    tensor::{
        DType, Device, Tensor, TensorData,
        activation::softmax,
        module::{attention, linear as linear_of_tensors},
        ops::AttentionModuleOptions,
    },
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng as _;

use crate::kernels::{self, Precision};

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

/// A parameter from the normal distribution with standard deviation `std`, drawn again outside [-2, 2]
/// (absolute, as `trunc_normal_` in PyTorch and timm has it).
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

/// A linear layer with weight [inputs, outputs] of standard deviation 0.02 and bias zero, as DINO and
/// Swin start theirs.
pub fn linear(inputs: usize, outputs: usize, bias: bool, rng: &mut Rng, device: &Device) -> Linear {
    Linear {
        weight: trunc_normal([inputs, outputs], 0.02, rng, device),
        bias: bias.then(|| constant([outputs], 0.0, device)),
    }
}

/// A linear layer with weight [inputs, outputs] of standard deviation 1/√inputs (LeCun et al. 1998) and bias zero, for
/// heads of any width. 0.02 suits 2048 channels; three layers of it on 128 channels hand on a signal
/// 100 times smaller than their own biases after a few steps, and nothing is learned but the mean answer.
pub fn head_linear(inputs: usize, outputs: usize, rng: &mut Rng, device: &Device) -> Linear {
    Linear {
        weight: trunc_normal([inputs, outputs], 1.0 / (inputs as f64).sqrt(), rng, device),
        bias: Some(constant([outputs], 0.0, device)),
    }
}

/// A layer norm over the last axis, epsilon 1e-5.
pub fn layer_norm(channels: usize, device: &Device) -> LayerNorm {
    LayerNormConfig::new(channels)
        .with_epsilon(EPSILON)
        .init(device)
}

/// Stochastic depth (Huang et al. 2016): what the branch of each image is multiplied with. With probability `rate` it is
/// dropped, else divided by the probability of being kept. None without a generator, which drops nothing.
fn drop_factors(batch: usize, rate: f64, rng: Option<&mut Rng>) -> Option<Vec<f32>> {
    assert!(
        (0.0..1.0).contains(&rate),
        "drop path rate {rate} is not in [0, 1)"
    );
    let rng = rng.filter(|_| rate > 0.0)?;
    let keep = 1.0 - rate;
    let factor = |_| {
        if uniform(rng) < keep {
            (1.0 / keep) as f32
        } else {
            0.0
        }
    };
    Some((0..batch).map(factor).collect())
}

/// x: [batch, ...], each sample times its factor.
pub(crate) fn scale_samples<const D: usize>(x: Tensor<D>, factors: Option<&[f32]>) -> Tensor<D> {
    let Some(factors) = factors else { return x };
    let mut shape = [1; D];
    shape[0] = factors.len();
    let factors = Tensor::<D>::from_data(TensorData::new(factors.to_vec(), shape), &x.device());
    x * factors
}

/// Drop path of a whole pass: the factors of two branches a block, drawn in their order, and sent to the device at once.
#[derive(Debug)]
pub(crate) struct Drops(std::vec::IntoIter<[Option<Factors>; 2]>);

/// Factors of a branch: one an image.
#[derive(Debug, Clone)]
pub(crate) struct Factors {
    /// As fused operations take them.
    pub values: Vec<f32>,
    /// Row of the tensor of all factors, [branches, batch]; none where `values` are at hand for the device.
    row: Option<(Tensor<2>, usize)>,
}

impl Drops {
    /// For blocks of these rates. Without a generator nothing is dropped. `device` computes.
    pub fn draw(
        rates: impl Iterator<Item = f64>,
        batch: usize,
        mut rng: Option<&mut Rng>,
        device: &Device,
    ) -> Self {
        let drawn: Vec<[Option<Vec<f32>>; 2]> = rates
            .map(|rate| [(); 2].map(|()| drop_factors(batch, rate, rng.as_deref_mut())))
            .collect();
        let device = device.clone().inner();
        let all: Vec<f32> = drawn
            .iter()
            .flatten()
            .flatten()
            .flatten()
            .copied()
            .collect();
        let tensor = (!all.is_empty() && device != Device::flex()).then(|| {
            let rows = all.len() / batch;
            Tensor::<2>::from_data(TensorData::new(all, [rows, batch]), &device)
        });
        let mut rows = 0..;
        let blocks: Vec<[Option<Factors>; 2]> = drawn
            .into_iter()
            .map(|branches| {
                branches.map(|values| {
                    values.map(|values| Factors {
                        values,
                        row: tensor.clone().zip(rows.next()),
                    })
                })
            })
            .collect();
        Self(blocks.into_iter())
    }

    /// Factors of the next block's attention and MLP.
    pub fn next(&mut self) -> [Option<Factors>; 2] {
        self.0.next().unwrap_or_default()
    }
}

impl Factors {
    /// x: [batch, ...], each sample times its factor.
    pub fn scale<const D: usize>(factors: &Option<Self>, x: Tensor<D>) -> Tensor<D> {
        match factors {
            None => x,
            Some(Self {
                row: Some((tensor, row)),
                ..
            }) => {
                let mut shape = [1; D];
                shape[0] = x.dims()[0];
                x * tensor.clone().narrow(0, *row, 1).reshape(shape)
            }
            Some(Self { values, .. }) => scale_samples(x, Some(values)),
        }
    }
}

/// Whether factors of products are to be cast: fused operations of the CPU see to their own.
fn halves<const D: usize>(x: &Tensor<D>) -> bool {
    Precision::current() == Precision::Bf16 && !kernels::can_fuse(x)
}

/// x · W + b, the product in the thread's [`Precision`].
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
    let product = if halves(&x) {
        let (x, weight) = (x.cast(DType::BF16), weight.cast(DType::BF16));
        linear_of_tensors(x, weight, None).cast(DType::F32)
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

/// a · b of each matrix of the leading axes, in the thread's [`Precision`].
pub(crate) fn matmul<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> Tensor<D> {
    if !halves(&a) {
        return a.matmul(b);
    }
    a.cast(DType::BF16)
        .matmul(b.cast(DType::BF16))
        .cast(DType::F32)
}

/// softmax(q kᵀ / √d + bias) v, all [batch, heads, tokens, d] but `bias`, which broadcasts to [batch, heads, tokens, tokens].
pub(crate) fn attend([query, key, value]: [Tensor<4>; 3], bias: Option<Tensor<4>>) -> Tensor<4> {
    // Burn's operation has no gradient of its own: under autodiff it would fall back to one that also differentiates the row
    // maxima, which is slower than the lines below.
    if !query.is_autodiff() && !halves(&query) {
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

/// Floating-point operations of a transformer block's products: projections, attention among `window` tokens, and the MLP.
pub(crate) fn block_operations(
    tokens: usize,
    window: usize,
    channels: usize,
    hidden: usize,
) -> usize {
    tokens * (8 * channels * channels + 4 * window * channels + 4 * channels * hidden)
}

/// ε of [`layer_norm`].
pub const EPSILON: f64 = 1e-5;

/// The norm of each token by a layer of [`layer_norm`]. x: [..., channels], any rank.
pub fn normalise<const D: usize>(x: Tensor<D>, norm: &LayerNorm) -> Tensor<D> {
    kernels::norm::layer_norm(x, norm, EPSILON)
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

    #[test]
    fn drop_path_keeps_the_mean_and_drops_whole_images() {
        let device = Device::flex();
        let mut rng = Rng::seed_from_u64(2);
        let branch = Tensor::<3>::ones([4000, 2, 3], &device);
        let factors = drop_factors(4000, 0.25, Some(&mut rng));
        let values = scale_samples(branch, factors.as_deref())
            .into_data()
            .try_into_vec::<f32>()
            .unwrap();
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        assert!((mean - 1.0).abs() < 0.03, "{mean}");
        for image in values.chunks(6) {
            assert!(image.iter().all(|v| *v == image[0]));
            assert!(image[0] == 0.0 || (image[0] - 4.0 / 3.0).abs() < 1e-6);
        }
        assert_eq!(drop_factors(4000, 0.25, None), None);
    }
}
