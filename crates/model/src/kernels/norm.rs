//! Layer norm (Ba et al. 2016, arXiv 1607.06450): y = (x − mean) / √(variance + ε) · γ + β over the
//! channels of a token.

use burn::{nn::LayerNorm, tensor::Tensor};
use rayon::prelude::*;

use super::{
    mode::can_fuse,
    operation::{FusedOperation, Operand, apply},
    scalar::{dot, square_deviation, sum, vectorized},
};

/// The norm of each token. x: [..., channels], any rank; `epsilon` is the norm's.
pub fn layer_norm<const D: usize>(x: Tensor<D>, norm: &LayerNorm, epsilon: f64) -> Tensor<D> {
    let Some(beta) = norm.beta.as_ref().filter(|_| can_fuse(&x)) else {
        return norm.forward(x);
    };
    let shape = x.dims();
    let inputs = [
        Operand::new(x),
        Operand::new(norm.gamma.val()),
        Operand::new(beta.val()),
    ];
    apply(LayerNormOperation(epsilon as f32), inputs, shape)
}

/// Layer norm with its ε.
#[derive(Debug, Clone, Copy)]
struct LayerNormOperation(f32);

/// γ, β and ε of a norm.
#[derive(Debug, Clone, Copy)]
pub struct NormAffine<'a> {
    pub gamma: &'a [f32],
    pub beta: &'a [f32],
    pub epsilon: f32,
}

vectorized! {
    /// out = LN x, token by token.
    pub fn normalize<'a>(norm: NormAffine<'a>, x: &'a [f32], out: &'a mut [f32]) {
        let channels = norm.gamma.len();
        for (x, out) in x.chunks_exact(channels).zip(out.chunks_exact_mut(channels)) {
            normalize_row(norm, x, out);
        }
    }

    /// out = LN of the given tokens of x, one after the other.
    pub fn normalize_tokens<'a>(norm: NormAffine<'a>, x: &'a [f32], tokens: &'a [usize], out: &'a mut [f32]) {
        let channels = norm.gamma.len();
        for (token, out) in tokens.iter().zip(out.chunks_exact_mut(channels)) {
            normalize_row(norm, &x[token * channels..][..channels], out);
        }
    }

    /// dx += the gradient of x, given that of LN x in `output`; `sums` are those of γ and of β, one
    /// after the other.
    pub fn normalize_backward<'a>(
        norm: NormAffine<'a>,
        x: &'a [f32],
        output: &'a [f32],
        dx: &'a mut [f32],
        sums: &'a mut [f32],
    ) {
        let channels = norm.gamma.len();
        let (mut normed, mut scaled) = (vec![0.0; channels], vec![0.0; channels]);
        let (gamma_sums, beta_sums) = sums.split_at_mut(channels);
        // Slices of one known length, so that the loops need no checks.
        let gamma = &norm.gamma[..channels];
        let (normed, scaled) = (&mut normed[..channels], &mut scaled[..channels]);
        let (gamma_sums, beta_sums) = (&mut gamma_sums[..channels], &mut beta_sums[..channels]);
        let rows = x.chunks_exact(channels).zip(output.chunks_exact(channels));
        for ((x, output), dx) in rows.zip(dx.chunks_exact_mut(channels)) {
            let (x, output, dx) = (&x[..channels], &output[..channels], &mut dx[..channels]);
            let (mean, scale) = moments(x, norm.epsilon);
            for i in 0..channels {
                normed[i] = (x[i] - mean) * scale;
                scaled[i] = output[i] * gamma[i];
                gamma_sums[i] += output[i] * normed[i];
                beta_sums[i] += output[i];
            }
            let mean = sum(scaled) / channels as f32;
            let slope = dot(scaled, normed) / channels as f32;
            for i in 0..channels {
                dx[i] += scale * (scaled[i] - mean - normed[i] * slope);
            }
        }
    }
}

#[inline(always)]
fn normalize_row(norm: NormAffine, x: &[f32], out: &mut [f32]) {
    let (mean, scale) = moments(x, norm.epsilon);
    let affine = norm.gamma.iter().zip(norm.beta);
    for ((out, x), (gamma, beta)) in out.iter_mut().zip(x).zip(affine) {
        *out = ((x - mean) * scale).mul_add(*gamma, *beta);
    }
}

/// Mean and 1 / √(variance + ε) of a row.
#[inline(always)]
fn moments(x: &[f32], epsilon: f32) -> (f32, f32) {
    let count = x.len() as f32;
    let mean = sum(x) / count;
    let variance = square_deviation(x, mean) / count;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

impl FusedOperation<3> for LayerNormOperation {
    type Saved = ();

    fn forward(&self, [x, gamma, beta]: [&[f32]; 3], _save: bool) -> (Vec<f32>, Option<()>) {
        let affine = NormAffine {
            gamma,
            beta,
            epsilon: self.0,
        };
        let mut out = vec![0.0; x.len()];
        let strand = strand(x.len(), gamma.len());
        out.par_chunks_mut(strand)
            .zip(x.par_chunks(strand))
            .for_each(|(out, x)| normalize(affine, x, out));
        (out, Some(()))
    }

    fn backward(&self, [x, gamma, beta]: [&[f32]; 3], (): (), output: Vec<f32>) -> [Vec<f32>; 3] {
        let affine = NormAffine {
            gamma,
            beta,
            epsilon: self.0,
        };
        let mut dx = vec![0.0; x.len()];
        let strand = strand(x.len(), gamma.len());
        let sums = dx
            .par_chunks_mut(strand)
            .zip(x.par_chunks(strand))
            .zip(output.par_chunks(strand))
            .map(|((dx, x), output)| {
                let mut sums = vec![0.0; 2 * gamma.len()];
                normalize_backward(affine, x, output, dx, &mut sums);
                sums
            })
            .collect();
        let mut sums = total(sums);
        let beta_sums = sums.split_off(gamma.len());
        [dx, sums, beta_sums]
    }
}

/// Values of one thread's share of `count` values in rows of `row`.
pub fn strand(count: usize, row: usize) -> usize {
    (count / row).div_ceil(rayon::current_num_threads()).max(1) * row
}

/// The sum of equally long vectors.
pub fn total(parts: Vec<Vec<f32>>) -> Vec<f32> {
    let mut parts = parts.into_iter();
    let mut sum = parts.next().unwrap_or_default();
    for part in parts {
        for (sum, value) in sum.iter_mut().zip(&part) {
            *sum += value;
        }
    }
    sum
}
