//! Layers of the task heads: convolutions, batch and group normalization, resizing.
//!
//! Weights are PyTorch's in names and layout. Nothing here changes while it runs: what training
//! needs beyond the values ([`Training`]) is passed in, and batch normalization returns its
//! statistics through it.

use std::collections::BTreeMap;

use burn::{
    module::{Module, ModuleMapper, Param, ParamId},
    nn::LayerNorm,
    tensor::{
        Device, Tensor, TensorData,
        module::{batch_norm, batch_norm_train, conv_transpose2d, conv2d},
        ops::{ConvOptions, ConvTransposeOptions},
    },
};

use crate::kernels::{can_fuse, conv};
use crate::layers::{self, Rng, uniform};

/// Share of a batch in the running statistics, PyTorch's default.
pub const MOMENTUM: f64 = 0.1;
const EPSILON: f64 = 1e-5;

/// State of a forward pass in training; inference has none.
#[derive(Debug)]
pub struct Training<'a> {
    /// New running statistics, for [`update_statistics`].
    pub statistics: &'a mut Statistics,
    /// Generator of dropout.
    pub rng: &'a mut Rng,
}

/// New values of buffers that are not trained.
pub type Statistics = BTreeMap<ParamId, Tensor<1>>;

/// The module with the running statistics of its last training pass.
pub fn update_statistics<M: Module>(module: M, statistics: Statistics) -> M {
    struct StatisticsMapper(Statistics);
    impl ModuleMapper for StatisticsMapper {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let Some(new) = self.0.remove(&param.id) else {
                return param;
            };
            param.map(|old| {
                let new = new.inner().reshape(old.dims());
                if old.is_autodiff() {
                    Tensor::from_inner(new)
                } else {
                    new
                }
            })
        }
    }
    module.map(&mut StatisticsMapper(statistics))
}

/// A convolution with stride 1 whose padding keeps the size of the map.
#[derive(Module, Debug)]
pub struct Conv {
    /// [outputs, inputs, kernel, kernel].
    pub weight: Param<Tensor<4>>,
    /// `[outputs]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl Conv {
    /// Weights and bias uniform within 1/√(inputs · kernel²), PyTorch's default.
    pub fn init(
        [inputs, outputs, kernel]: [usize; 3],
        bias: bool,
        rng: &mut Rng,
        device: &Device,
    ) -> Self {
        let bound = 1.0 / ((inputs * kernel * kernel) as f64).sqrt();
        let shape = [outputs, inputs, kernel, kernel];
        Self {
            weight: layers::uniform_symmetric(shape, bound, rng, device),
            bias: bias.then(|| layers::uniform_symmetric([outputs], bound, rng, device)),
        }
    }

    /// Weights of standard deviation `std`, bias `bias` everywhere.
    pub fn normal(
        [inputs, outputs, kernel]: [usize; 3],
        std: f64,
        bias: f64,
        rng: &mut Rng,
        device: &Device,
    ) -> Self {
        let shape = [outputs, inputs, kernel, kernel];
        Self {
            weight: layers::trunc_normal(shape, std, rng, device),
            bias: Some(layers::constant([outputs], bias, device)),
        }
    }

    /// x: [batch, inputs, height, width] → [batch, outputs, height, width].
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let weight = self.weight.val();
        if can_fuse(&x) && weight.dims()[2] % 2 == 1 {
            return conv::conv(x, weight, self.bias.as_ref().map(Param::val));
        }
        let padding = (weight.dims()[2] - 1) / 2;
        let options = ConvOptions::new([1, 1], [padding, padding], [1, 1], 1);
        conv2d(x, weight, self.bias.as_ref().map(Param::val), options)
    }
}

/// A transposed convolution that makes a map `stride` times as high and wide.
#[derive(Module, Debug)]
pub struct Deconv {
    /// [inputs, outputs, kernel, kernel].
    pub weight: Param<Tensor<4>>,
    /// `[outputs]`.
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    stride: usize,
}

impl Deconv {
    /// Kernel 4 for stride 2, else a kernel as large as the stride; weights of standard deviation
    /// `std`, no bias or one of 0.
    pub fn init(
        [inputs, outputs, stride]: [usize; 3],
        std: f64,
        bias: bool,
        rng: &mut Rng,
        device: &Device,
    ) -> Self {
        let kernel = if stride == 2 { 4 } else { stride };
        let shape = [inputs, outputs, kernel, kernel];
        Self {
            weight: layers::trunc_normal(shape, std, rng, device),
            bias: bias.then(|| layers::constant([outputs], 0.0, device)),
            stride,
        }
    }

    /// x: [batch, inputs, height, width] → [batch, outputs, stride · height, stride · width].
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let weight = self.weight.val();
        let (kernel, stride) = (weight.dims()[2], self.stride);
        if can_fuse(&x) && (kernel - stride).is_multiple_of(2) {
            return conv::conv_transposed(x, weight, self.bias.as_ref().map(Param::val), stride);
        }
        let padding = (kernel - stride) / 2;
        let options =
            ConvTransposeOptions::new([stride, stride], [padding, padding], [0, 0], [1, 1], 1);
        conv_transpose2d(x, weight, self.bias.as_ref().map(Param::val), options)
    }
}

/// Batch normalization (Ioffe and Szegedy 2015) over all axes but the second.
#[derive(Module, Debug)]
pub struct BatchNorm {
    /// `[channels]`.
    pub weight: Param<Tensor<1>>,
    /// `[channels]`.
    pub bias: Param<Tensor<1>>,
    /// `[channels]`; not trained.
    pub running_mean: Param<Tensor<1>>,
    /// `[channels]`; not trained.
    pub running_var: Param<Tensor<1>>,
}

impl BatchNorm {
    /// The identity.
    pub fn init(channels: usize, device: &Device) -> Self {
        let constant = |value| layers::constant([channels], value, device);
        Self {
            weight: constant(1.0),
            bias: constant(0.0),
            running_mean: constant(0.0).set_require_grad(false),
            running_var: constant(1.0).set_require_grad(false),
        }
    }

    /// x: [batch, channels, ...]. In training by the statistics of the batch, else by the running
    /// ones.
    pub fn forward<const D: usize>(
        &self,
        x: Tensor<D>,
        training: Option<&mut Training<'_>>,
    ) -> Tensor<D> {
        let (weight, bias) = (self.weight.val(), self.bias.val());
        let (mean, var) = (self.running_mean.val(), self.running_var.val());
        let Some(training) = training else {
            return batch_norm(x, weight, bias, mean, var, EPSILON);
        };
        let count = x.shape().num_elements() / x.dims()[1];
        let batch = batch_norm_train(x, weight, bias, EPSILON);
        // The running variance is the unbiased one, as in PyTorch.
        let unbiased = count as f64 / (count.max(2) - 1) as f64;
        let follow = |old: Tensor<1>, new: Tensor<1>, factor: f64| {
            old.inner() * (1.0 - MOMENTUM) + new.inner() * (MOMENTUM * factor)
        };
        let statistics = &mut training.statistics;
        statistics.insert(self.running_mean.id, follow(mean, batch.mean, 1.0));
        statistics.insert(self.running_var.id, follow(var, batch.variance, unbiased));
        batch.output
    }
}

/// Group normalization (Wu and He 2018).
#[derive(Module, Debug)]
pub struct GroupNorm {
    /// `[channels]`.
    pub weight: Param<Tensor<1>>,
    /// `[channels]`.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    groups: usize,
}

impl GroupNorm {
    /// # Panics
    /// When `groups` does not divide `channels`.
    pub fn init(channels: usize, groups: usize, device: &Device) -> Self {
        assert!(
            channels.is_multiple_of(groups),
            "{groups} groups of {channels} channels"
        );
        Self {
            weight: layers::constant([channels], 1.0, device),
            bias: layers::constant([channels], 0.0, device),
            groups,
        }
    }

    /// x: [batch, channels, height, width], the same shape out.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, channels, height, width] = x.dims();
        let x = x.reshape([batch, self.groups, channels / self.groups * height * width]);
        let (var, mean) = x.clone().var_mean_bias(2);
        let x = (x - mean) / (var + EPSILON).sqrt();
        let per_channel = |param: &Param<Tensor<1>>| param.val().reshape([1, channels, 1, 1]);
        x.reshape([batch, channels, height, width]) * per_channel(&self.weight)
            + per_channel(&self.bias)
    }
}

/// Norms of the maps of all stages but the last, whose norm is the backbone's: dense heads take
/// normalized maps, as published ones do.
pub fn stage_norms(channels: &[usize], device: &Device) -> Vec<LayerNorm> {
    let earlier = channels.iter().take(channels.len().saturating_sub(1));
    earlier
        .map(|&channels| layers::layer_norm(channels, device))
        .collect()
}

/// The maps of all stages, those with a norm of [`stage_norms`] normalized over their channels.
///
/// maps: [batch, channels, height, width] each, the same shapes out.
pub fn normalize_stages(maps: &[Tensor<4>], norms: &[LayerNorm]) -> Vec<Tensor<4>> {
    let normalized = |(map, norm): (&Tensor<4>, _)| normalize_map(map.clone(), norm);
    let later = maps.iter().skip(norms.len()).cloned();
    maps.iter()
        .zip(norms)
        .map(normalized)
        .chain(later)
        .collect()
}

/// Layer norm over the channels of a map: [batch, channels, height, width], the same shape out.
pub fn normalize_map(map: Tensor<4>, norm: &LayerNorm) -> Tensor<4> {
    layers::normalize(map.permute([0, 2, 3, 1]), norm).permute([0, 3, 1, 2])
}

/// Drops whole channels with probability `rate` in training, and divides the others by 1 − rate
/// (Tompson et al. 2015). x: [batch, channels, height, width].
pub fn dropout_channels(x: Tensor<4>, rate: f64, training: Option<&mut Training<'_>>) -> Tensor<4> {
    let Some(training) = training else { return x };
    let [batch, channels, _, _] = x.dims();
    let keep = 1.0 - rate;
    let draw = |_| {
        if uniform(training.rng) < keep {
            (1.0 / keep) as f32
        } else {
            0.0
        }
    };
    let factors: Vec<f32> = (0..batch * channels).map(draw).collect();
    let shape = [batch, channels, 1, 1];
    x.clone() * Tensor::from_data(TensorData::new(factors, shape), &x.device())
}

/// Resizes maps bilinearly to `size` = height, width: [batch, channels, height, width] → the same
/// with the height and width of `size`.
///
/// With `align_corners` the centers of the corner positions stay aligned, else the borders of the
/// map, as in PyTorch's `interpolate`. Two matrix products, so that it is differentiable and
/// exportable everywhere.
pub fn resize_bilinear(x: Tensor<4>, size: [usize; 2], align_corners: bool) -> Tensor<4> {
    let [_, _, height, width] = x.dims();
    if [height, width] == size {
        return x;
    }
    apply(
        x,
        bilinear_weights(height, size[0], align_corners),
        bilinear_weights(width, size[1], align_corners),
        size,
    )
}

/// Means over bins, as many as `size` = height, width, which overlap by a row or column where they
/// do not divide the map, as in PyTorch's `adaptive_avg_pool2d`. [batch, channels, height, width] →
/// the same with the height and width of `size`.
pub fn adaptive_mean(x: Tensor<4>, size: [usize; 2]) -> Tensor<4> {
    let [_, _, height, width] = x.dims();
    let weights = |inputs: usize, outputs: usize| {
        let mut weights = vec![0.0; inputs * outputs];
        for bin in 0..outputs {
            let (from, to) = (
                bin * inputs / outputs,
                ((bin + 1) * inputs).div_ceil(outputs),
            );
            for input in from..to {
                weights[bin * inputs + input] = 1.0 / (to - from) as f32;
            }
        }
        weights
    };
    apply(x, weights(height, size[0]), weights(width, size[1]), size)
}

/// rows · x · columnsᵀ for every channel; rows: [size[0], height], columns: [size[1], width].
fn apply(x: Tensor<4>, rows: Vec<f32>, columns: Vec<f32>, size: [usize; 2]) -> Tensor<4> {
    let [batch, channels, height, width] = x.dims();
    let device = x.device();
    let matrix =
        |values, shape: [usize; 2]| Tensor::<2>::from_data(TensorData::new(values, shape), &device);
    let columns = matrix(columns, [size[1], width]).transpose();
    let rows = matrix(rows, [size[0], height]);
    let x = x
        .reshape([batch * channels * height, width])
        .matmul(columns)
        .reshape([batch * channels, height, size[1]]);
    rows.unsqueeze_dim::<3>(0)
        .matmul(x)
        .reshape([batch, channels, size[0], size[1]])
}

/// Row i holds the shares of the inputs in output i: [outputs, inputs].
fn bilinear_weights(inputs: usize, outputs: usize, align_corners: bool) -> Vec<f32> {
    let mut weights = vec![0.0; inputs * outputs];
    for output in 0..outputs {
        let place = if align_corners {
            output as f64 * (inputs - 1) as f64 / (outputs.max(2) - 1) as f64
        } else {
            ((output as f64 + 0.5) * inputs as f64 / outputs as f64 - 0.5).max(0.0)
        };
        let low = (place as usize).min(inputs - 1);
        let share = (place - low as f64) as f32;
        weights[output * inputs + low] += 1.0 - share;
        weights[output * inputs + (low + 1).min(inputs - 1)] += share;
    }
    weights
}
