//! Fresh weights as OpenCLIP draws them.

use burn::{
    module::Param,
    nn::Linear,
    tensor::{Device, Tensor, TensorData},
};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// A distribution to draw a parameter from.
#[derive(Clone, Copy, Debug)]
pub(super) enum InitialDistribution {
    Zero,
    /// Mean 0 and this standard deviation.
    Normal(f32),
    /// Between minus and plus this bound.
    Uniform(f32),
}

/// The distributions of a block's parameters; the attention's biases start at zero.
pub(super) struct BlockDraws {
    pub(super) in_proj: InitialDistribution,
    pub(super) out_proj: InitialDistribution,
    pub(super) c_fc: InitialDistribution,
    pub(super) c_fc_bias: InitialDistribution,
    pub(super) c_proj: InitialDistribution,
    pub(super) c_proj_bias: InitialDistribution,
}

impl BlockDraws {
    /// PyTorch's defaults: Xavier for the fused projection, `±1/√fan_in` elsewhere.
    pub(super) fn torch(width: usize, hidden: usize) -> Self {
        let bound = |fan: usize| InitialDistribution::Uniform((fan as f32).powf(-0.5));
        Self {
            in_proj: InitialDistribution::Uniform((6.0 / (4 * width) as f32).sqrt()),
            out_proj: bound(width),
            c_fc: bound(width),
            c_fc_bias: bound(width),
            c_proj: bound(hidden),
            c_proj_bias: bound(hidden),
        }
    }

    /// The text tower's: normal by width and depth; the MLP's biases keep PyTorch's default.
    pub(super) fn text(width: usize, layers: usize) -> Self {
        let w = (width as f32).powf(-0.5);
        let projection = InitialDistribution::Normal(w * (2.0 * layers as f32).powf(-0.5));
        Self {
            in_proj: InitialDistribution::Normal(w),
            out_proj: projection,
            c_fc: InitialDistribution::Normal((2.0 * width as f32).powf(-0.5)),
            c_fc_bias: InitialDistribution::Uniform(w),
            c_proj: projection,
            c_proj_bias: InitialDistribution::Uniform(w / 2.0),
        }
    }
}

/// Where the first weights come from.
pub(super) enum Fill<'a> {
    Zero,
    Random(&'a mut ChaCha8Rng),
}

impl Fill<'_> {
    pub(super) fn param<const D: usize>(
        &mut self,
        shape: [usize; D],
        draw: InitialDistribution,
        device: &Device,
    ) -> Param<Tensor<D>> {
        let count = shape.iter().product();
        let values: Vec<f32> = match (self, draw) {
            (Self::Zero, _) | (_, InitialDistribution::Zero) => vec![0.0; count],
            (Self::Random(rng), InitialDistribution::Normal(std)) => {
                (0..count).map(|_| std * normal(rng)).collect()
            }
            (Self::Random(rng), InitialDistribution::Uniform(bound)) => (0..count)
                .map(|_| rng.random_range(-bound..bound))
                .collect(),
        };
        Param::from_data(TensorData::new(values, shape), device)
    }

    pub(super) fn linear(
        &mut self,
        [inputs, outputs]: [usize; 2],
        weight: InitialDistribution,
        bias: InitialDistribution,
        device: &Device,
    ) -> Linear {
        Linear {
            weight: self.param([inputs, outputs], weight, device),
            bias: Some(self.param([outputs], bias, device)),
        }
    }
}

/// A standard normal number (Box–Muller).
pub(super) fn normal(rng: &mut ChaCha8Rng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.random::<f32>()).ln()).sqrt();
    radius * (std::f32::consts::TAU * rng.random::<f32>()).cos()
}
