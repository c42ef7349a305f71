//! The MLP of a transformer block with its norm and its residual: x + f · (act(LN x · W₁ + b₁) · W₂
//! + b₂).

use std::sync::Arc;

use burn::{
    module::Param,
    nn::{LayerNorm, Linear},
    tensor::Tensor,
};
use rayon::prelude::*;

use super::{
    activation::Activation,
    mode::Precision,
    norm::{NormAffine, normalize, normalize_backward, strand, total},
    operation::{FusedOperation, Operand, apply},
    scalar::{activate, activate_with_slopes, add, add_rows, fill_rows, multiply, scale},
    weight::{PackedWeight, Weight, add_weight_gradient},
};

/// Tokens between the two matrix products at a time: few enough for the cache, and so many that
/// packing the weights for each run of tokens costs little.
pub const RUN: usize = 512;

/// Parameters of the operation, as tensors.
#[derive(Clone)]
pub struct MlpParameters {
    pub gamma: Tensor<1>,
    pub beta: Tensor<1>,
    /// W₁: [channels, hidden].
    pub weight1: Tensor<2>,
    pub bias1: Tensor<1>,
    /// W₂: [hidden, channels].
    pub weight2: Tensor<2>,
    pub bias2: Tensor<1>,
}

impl MlpParameters {
    /// # Panics
    /// When the norm or a layer has no bias.
    pub fn new(norm: &LayerNorm, first: &Linear, second: &Linear) -> Self {
        let bias = |bias: &Option<Param<Tensor<1>>>| match bias {
            Some(bias) => bias.val(),
            None => panic!("an MLP without biases"),
        };
        Self {
            gamma: norm.gamma.val(),
            beta: bias(&norm.beta),
            weight1: first.weight.val(),
            bias1: bias(&first.bias),
            weight2: second.weight.val(),
            bias2: bias(&second.bias),
        }
    }
}

/// x: [batch, tokens, channels]; `factors` f is one a sample of the batch, 1 without.
pub fn mlp(
    x: Tensor<3>,
    parameters: MlpParameters,
    epsilon: f64,
    activation: Activation,
    factors: Option<Vec<f32>>,
) -> Tensor<3> {
    let shape = x.dims();
    let operation = MlpOperation {
        packed: [&parameters.weight1, &parameters.weight2].map(PackedWeight::new),
        epsilon: epsilon as f32,
        activation,
        factors: factors.map(|values| BranchFactors::new(values, shape[1] * shape[2])),
    };
    let inputs = [
        Operand::new(x),
        Operand::new(parameters.gamma),
        Operand::new(parameters.beta),
        Operand::new(parameters.weight1),
        Operand::new(parameters.bias1),
        Operand::new(parameters.weight2),
        Operand::new(parameters.bias2),
    ];
    apply(operation, inputs, shape)
}

/// A factor for each sample of a batch.
#[derive(Debug, Clone)]
pub struct BranchFactors {
    values: Arc<[f32]>,
    /// Values of the tensor that belong to one sample.
    sample: usize,
}

impl BranchFactors {
    pub fn new(values: Vec<f32>, sample: usize) -> Self {
        Self {
            values: values.into(),
            sample,
        }
    }

    /// Multiplies `part`, which starts at the value `first` of the tensor.
    pub fn scale(&self, part: &mut [f32], first: usize) {
        let (mut rest, mut at) = (part, first);
        while !rest.is_empty() {
            let sample = at / self.sample;
            let count = ((sample + 1) * self.sample - at).min(rest.len());
            let (now, later) = rest.split_at_mut(count);
            let factor = self.values[sample];
            scale(now, factor);
            (rest, at) = (later, at + count);
        }
    }
}

#[derive(Debug, Clone)]
struct MlpOperation {
    /// Packed weights W₁ and W₂.
    packed: [PackedWeight; 2],
    epsilon: f32,
    activation: Activation,
    factors: Option<BranchFactors>,
}

impl FusedOperation<7> for MlpOperation {
    /// LN x · W₁ + b₁: [tokens, hidden].
    type Saved = Vec<f32>;

    fn forward(
        &self,
        [x, gamma, beta, weight1, bias1, weight2, bias2]: [&[f32]; 7],
        save: bool,
    ) -> (Vec<f32>, Option<Vec<f32>>) {
        let (channels, hidden) = (bias2.len(), bias1.len());
        let norm = NormAffine {
            gamma,
            beta,
            epsilon: self.epsilon,
        };
        let [packed1, packed2] = &self.packed;
        let weight1 = Weight::new(weight1, hidden, packed1);
        let weight2 = Weight::new(weight2, channels, packed2);
        let share = strand(x.len(), channels);
        let mut out = vec![0.0; x.len()];
        let mut saved = vec![0.0; if save { x.len() / channels * hidden } else { 0 }];
        // Without anything to save each run of tokens uses the same few rows.
        let mut places: Vec<Option<&mut [f32]>> = if save {
            saved
                .chunks_mut(share / channels * hidden)
                .map(Some)
                .collect()
        } else {
            x.chunks(share).map(|_| None).collect()
        };
        out.par_chunks_mut(share)
            .zip(x.par_chunks(share))
            .zip(places.par_iter_mut())
            .enumerate()
            .for_each(|(index, ((out, x), saved))| {
                let rows = RUN.min(x.len() / channels);
                let mut normed = vec![0.0; rows * channels];
                let mut scratch = vec![0.0; if saved.is_some() { 0 } else { rows * hidden }];
                let mut active = vec![0.0; rows * hidden];
                let runs = out.chunks_mut(RUN * channels).zip(x.chunks(RUN * channels));
                for (run, (out, x)) in runs.enumerate() {
                    let count = x.len() / channels * hidden;
                    let normed = &mut normed[..x.len()];
                    normalize(norm, x, normed);
                    let before = match saved {
                        Some(saved) => &mut saved[run * RUN * hidden..][..count],
                        None => &mut scratch[..count],
                    };
                    fill_rows(before, bias1);
                    weight1.add_product(before, normed);
                    let active = &mut active[..count];
                    activate(before, active, self.activation);
                    fill_rows(out, bias2);
                    weight2.add_product(out, active);
                    if let Some(factors) = &self.factors {
                        factors.scale(out, index * share + run * RUN * channels);
                    }
                    add(out, x);
                }
            });
        (out, save.then_some(saved))
    }

    fn backward(
        &self,
        [x, gamma, beta, weight1, bias1, weight2, bias2]: [&[f32]; 7],
        mut saved: Vec<f32>,
        mut output: Vec<f32>,
    ) -> [Vec<f32>; 7] {
        let (channels, hidden) = (bias2.len(), bias1.len());
        let norm = NormAffine {
            gamma,
            beta,
            epsilon: self.epsilon,
        };
        let precision = Precision::current();
        let (weight1, weight2) = (
            Weight::transposed(weight1, hidden),
            Weight::transposed(weight2, channels),
        );
        let share = strand(x.len(), channels);
        // `output` becomes the gradient of x: of the residual it is that already.
        let sums: Vec<[Vec<f32>; 5]> = output
            .par_chunks_mut(share)
            .zip(x.par_chunks(share))
            .zip(saved.par_chunks_mut(share / channels * hidden))
            .enumerate()
            .map(|(index, ((output, x), saved))| {
                let rows = RUN.min(x.len() / channels);
                let mut normed = vec![0.0; rows * channels];
                let mut branch = vec![0.0; rows * channels];
                let mut active = vec![0.0; rows * hidden];
                let mut sums = [
                    2 * channels,
                    channels * hidden,
                    hidden,
                    hidden * channels,
                    channels,
                ]
                .map(|count| vec![0.0; count]);
                let [norm_sums, sums1, bias_sums1, sums2, bias_sums2] = &mut sums;
                let runs = output
                    .chunks_mut(RUN * channels)
                    .zip(x.chunks(RUN * channels));
                for (run, ((dx, x), before)) in runs.zip(saved.chunks_mut(RUN * hidden)).enumerate()
                {
                    let branch = &mut branch[..x.len()];
                    branch.copy_from_slice(dx);
                    if let Some(factors) = &self.factors {
                        factors.scale(branch, index * share + run * RUN * channels);
                    }
                    let active = &mut active[..before.len()];
                    activate_with_slopes(before, active, self.activation);
                    let slopes = before;
                    add_rows(bias_sums2, branch);
                    let sizes = [hidden, channels];
                    add_weight_gradient(precision, sums2, [active, branch], sizes);

                    weight2.set_product(active, branch);
                    multiply(active, slopes);
                    add_rows(bias_sums1, active);
                    let normed = &mut normed[..x.len()];
                    normalize(norm, x, normed);
                    let sizes = [channels, hidden];
                    add_weight_gradient(precision, sums1, [normed, active], sizes);

                    weight1.set_product(normed, active);
                    normalize_backward(norm, x, normed, dx, norm_sums);
                }
                sums
            })
            .collect();
        let [mut norm_sums, sums1, bias_sums1, sums2, bias_sums2] = totals(sums);
        let beta_sums = norm_sums.split_off(channels);
        [
            output, norm_sums, beta_sums, sums1, bias_sums1, sums2, bias_sums2,
        ]
    }
}

/// [`total`] of each of `N` kinds of sums.
pub fn totals<const N: usize>(parts: Vec<[Vec<f32>; N]>) -> [Vec<f32>; N] {
    let mut kinds = [const { Vec::new() }; N];
    for part in parts {
        for (kind, sums) in kinds.iter_mut().zip(part) {
            kind.push(sums);
        }
    }
    kinds.map(total)
}
