//! Self-attention within windows, with its norm and its residual: x + f · (softmax(q kᵀ / √d +
//! bias) v · W + b), with q, k, v = LN x · W' + b'.
//!
//! Windows are gathered, padded and scattered by index, so that a cyclic shift costs nothing. A
//! padding position is attended to, with the projection's bias as its key and value, but has no
//! query. The softmax is computed again in the backward pass: it is as large as all that is saved,
//! and cheap.

use std::sync::Arc;

use burn::{
    module::Param,
    nn::{LayerNorm, Linear},
    tensor::Tensor,
};
use rayon::prelude::*;

use super::{
    matrix::{MatrixView, add_product, set_product},
    mlp::{BranchFactors, RUN, totals},
    mode::Precision,
    norm::{NormAffine, normalize, normalize_backward, strand},
    operation::{FusedOperation, Operand, apply},
    scalar::{add, add_rows, dot, fill_rows, scale, softmax_rows, vectorized},
    weight::{Weight, add_weight_gradient},
};

/// A score that is 0 after the softmax.
const NEVER: f32 = -1e30;

/// The windows of an image: which tokens attend to which.
#[derive(Debug, Clone)]
pub struct WindowGrid {
    /// Tokens of an image.
    pub tokens: usize,
    /// Positions of a window.
    pub area: usize,
    /// The windows; every token is in one.
    pub windows: Vec<Window>,
    /// For each pair of positions the row of the bias table; empty without a table.
    pub bias_index: Vec<u32>,
    /// Whether a position attends to itself and those before it alone.
    pub causal: bool,
}

/// One window.
#[derive(Debug, Clone)]
pub struct Window {
    /// The token at each position; none for padding.
    pub tokens: Vec<Option<u32>>,
    /// Positions of different regions get `penalty` on their score; empty where all are of one.
    pub regions: Vec<u8>,
    /// See `regions`.
    pub penalty: f32,
}

impl WindowGrid {
    /// All tokens in one window.
    pub fn whole(tokens: usize, causal: bool) -> Self {
        let window = Window {
            tokens: (0..tokens as u32).map(Some).collect(),
            regions: Vec::new(),
            penalty: 0.0,
        };
        Self {
            tokens,
            area: tokens,
            windows: vec![window],
            bias_index: Vec::new(),
            causal,
        }
    }

    /// A row of scores, rounded up to whole vectors.
    fn stride(&self) -> usize {
        self.area.next_multiple_of(16)
    }
}

/// Parameters of the operation, as tensors.
#[derive(Clone)]
pub struct AttentionParameters {
    pub gamma: Tensor<1>,
    pub beta: Tensor<1>,
    /// [channels, 3·channels]: queries, keys, values, each head by head.
    pub qkv_weight: Tensor<2>,
    pub qkv_bias: Option<Tensor<1>>,
    /// [channels, channels].
    pub weight: Tensor<2>,
    pub bias: Tensor<1>,
    /// Biases of the scores: [rows, heads].
    pub table: Option<Tensor<2>>,
}

impl AttentionParameters {
    /// # Panics
    /// When the norm or the output projection has no bias.
    pub fn new(norm: &LayerNorm, qkv: &Linear, proj: &Linear, table: Option<Tensor<2>>) -> Self {
        let bias = |bias: &Option<Param<Tensor<1>>>| match bias {
            Some(bias) => bias.val(),
            None => panic!("an attention without biases"),
        };
        Self {
            gamma: norm.gamma.val(),
            beta: bias(&norm.beta),
            qkv_weight: qkv.weight.val(),
            qkv_bias: qkv.bias.as_ref().map(Param::val),
            weight: proj.weight.val(),
            bias: bias(&proj.bias),
            table,
        }
    }
}

/// x: [batch, tokens, channels]; `factors` f is one a sample of the batch, 1 without.
pub fn attention(
    x: Tensor<3>,
    parameters: AttentionParameters,
    epsilon: f64,
    heads: usize,
    grid: Arc<WindowGrid>,
    factors: Option<Vec<f32>>,
) -> Tensor<3> {
    let shape = x.dims();
    assert_eq!(
        shape[1], grid.tokens,
        "tokens of an image and of its windows"
    );
    let device = x.device().inner();
    let qkv_bias = parameters.qkv_bias;
    let table = parameters.table;
    let inputs = [
        Operand::new(x),
        Operand::new(parameters.gamma),
        Operand::new(parameters.beta),
        Operand::new(parameters.qkv_weight),
        Operand::new(qkv_bias.unwrap_or_else(|| Tensor::zeros([3 * shape[2]], &device))),
        Operand::new(parameters.weight),
        Operand::new(parameters.bias),
        Operand::new(table.unwrap_or_else(|| Tensor::zeros([1, heads], &device))),
    ];
    let operation = AttentionOperation {
        heads,
        epsilon: epsilon as f32,
        grid,
        factors: factors.map(|values| BranchFactors::new(values, shape[1] * shape[2])),
    };
    apply(operation, inputs, shape)
}

#[derive(Debug, Clone)]
struct AttentionOperation {
    heads: usize,
    epsilon: f32,
    grid: Arc<WindowGrid>,
    factors: Option<BranchFactors>,
}

/// What the backward pass needs.
#[derive(Debug, Clone)]
struct AttentionSaved {
    /// [batch·tokens, 3·channels].
    qkv: Vec<f32>,
    /// The heads' outputs side by side: [batch·tokens, channels].
    mixed: Vec<f32>,
}

/// A window's operands and scores, for one window at a time.
struct AttentionScratch {
    /// [tokens of the window, channels].
    queries: Vec<f32>,
    /// Keys, then values, of each position: [area, 2·channels].
    pairs: Vec<f32>,
    /// [tokens of the window, stride].
    scores: Vec<f32>,
    /// [tokens of the window, channels].
    mixed: Vec<f32>,
}

impl AttentionScratch {
    fn new(grid: &WindowGrid, channels: usize) -> Self {
        Self {
            queries: vec![0.0; grid.area * channels],
            pairs: vec![0.0; grid.area * 2 * channels],
            scores: vec![0.0; grid.area * grid.stride()],
            mixed: vec![0.0; grid.area * channels],
        }
    }

    /// Fetches a window of `qkv`, that of an image.
    fn gather(&mut self, window: &Window, qkv: &[f32], padding: &[f32]) {
        let channels = padding.len() / 3;
        let mut queries = self.queries.chunks_exact_mut(channels);
        for (pair, token) in self
            .pairs
            .chunks_exact_mut(2 * channels)
            .zip(&window.tokens)
        {
            let Some(token) = token else {
                pair.copy_from_slice(&padding[channels..]);
                continue;
            };
            let row = &qkv[*token as usize * 3 * channels..][..3 * channels];
            pair.copy_from_slice(&row[channels..]);
            if let Some(query) = queries.next() {
                query.copy_from_slice(&row[..channels]);
            }
        }
    }
}

impl AttentionOperation {
    /// The bias of each head and pair of positions: [heads, area, stride], or [1, area, stride]
    /// without a table; beyond the area, never.
    fn score_bias(&self, table: &[f32]) -> Vec<f32> {
        let (area, stride) = (self.grid.area, self.grid.stride());
        let kinds = if self.grid.bias_index.is_empty() {
            1
        } else {
            self.heads
        };
        let mut bias = vec![NEVER; kinds * area * stride];
        for (head, bias) in bias.chunks_exact_mut(area * stride).enumerate() {
            for (row, bias) in bias.chunks_exact_mut(stride).enumerate() {
                let seen = if self.grid.causal { row + 1 } else { area };
                match self.grid.bias_index.chunks_exact(area).nth(row) {
                    Some(index) => {
                        for (bias, index) in bias.iter_mut().zip(index).take(seen) {
                            *bias = table[*index as usize * self.heads + head];
                        }
                    }
                    None => bias[..seen].fill(0.0),
                }
            }
        }
        bias
    }

    /// What each value of the bias table got: the reverse of [`Self::score_bias`].
    fn table_gradient(&self, bias: &[f32], table: &[f32]) -> Vec<f32> {
        let (area, stride) = (self.grid.area, self.grid.stride());
        let mut gradient = vec![0.0; table.len()];
        for (head, bias) in bias.chunks_exact(area * stride).enumerate() {
            let rows = bias
                .chunks_exact(stride)
                .zip(self.grid.bias_index.chunks_exact(area));
            for (row, index) in rows {
                for (value, index) in row.iter().zip(index) {
                    gradient[*index as usize * self.heads + head] += value;
                }
            }
        }
        gradient
    }

    /// The attention weights of a head in a gathered window, into its scores. Returns the window's
    /// number of tokens.
    fn weigh(
        &self,
        head: usize,
        window: &Window,
        bias: &[f32],
        scratch: &mut AttentionScratch,
    ) -> usize {
        let WindowGrid { area, .. } = *self.grid;
        let stride = self.grid.stride();
        let channels = scratch.queries.len() / area;
        let width = channels / self.heads;
        let bias = &bias[head * area * stride % bias.len()..][..area * stride];
        let mut rows = scratch.scores.chunks_exact_mut(stride);
        let mut count = 0;
        for (position, bias) in bias.chunks_exact(stride).enumerate() {
            if window.tokens[position].is_none() {
                continue;
            }
            if let Some(row) = rows.next() {
                row.copy_from_slice(bias);
                count += 1;
                if let Some(region) = window.regions.get(position) {
                    for (score, other) in row.iter_mut().zip(&window.regions) {
                        *score += if region == other { 0.0 } else { window.penalty };
                    }
                }
            }
        }
        add_product(
            &mut scratch.scores,
            stride,
            MatrixView::part(&scratch.queries[head * width..], count, width, channels),
            MatrixView::part(&scratch.pairs[head * width..], area, width, 2 * channels).t(),
            (width as f32).powf(-0.5),
        );
        softmax_rows(&mut scratch.scores[..count * stride], stride);
        count
    }

    /// The heads' outputs of an image. qkv: [tokens, 3·channels], mixed: [tokens, channels].
    fn mix(
        &self,
        qkv: &[f32],
        padding: &[f32],
        bias: &[f32],
        mixed: &mut [f32],
        scratch: &mut AttentionScratch,
    ) {
        let (area, stride) = (self.grid.area, self.grid.stride());
        let channels = padding.len() / 3;
        let width = channels / self.heads;
        for window in &self.grid.windows {
            if window.tokens.iter().all(Option::is_none) {
                continue;
            }
            scratch.gather(window, qkv, padding);
            for head in 0..self.heads {
                let count = self.weigh(head, window, bias, scratch);
                let values = &scratch.pairs[channels + head * width..];
                set_product(
                    &mut scratch.mixed[head * width..],
                    channels,
                    MatrixView::part(&scratch.scores, count, area, stride),
                    MatrixView::part(values, area, width, 2 * channels),
                );
            }
            let tokens = window.tokens.iter().flatten();
            for (token, row) in tokens.zip(scratch.mixed.chunks_exact(channels)) {
                mixed[*token as usize * channels..][..channels].copy_from_slice(row);
            }
        }
    }

    /// The gradient of an image's qkv, given that of `mixed`. `sums` are those of the padding,
    /// [2·channels], and of the scores' bias, as [`Self::score_bias`] has it.
    #[allow(clippy::too_many_arguments)]
    fn mix_backward(
        &self,
        qkv: &[f32],
        padding: &[f32],
        bias: &[f32],
        mixed: &[f32],
        gradient: &mut [f32],
        [padding_sums, bias_sums]: &mut [Vec<f32>; 2],
        [scratch, slopes]: &mut [AttentionScratch; 2],
    ) {
        let (area, stride) = (self.grid.area, self.grid.stride());
        let channels = padding.len() / 3;
        let width = channels / self.heads;
        let factor = (width as f32).powf(-0.5);
        for window in &self.grid.windows {
            let tokens = || window.tokens.iter().flatten().map(|token| *token as usize);
            if tokens().next().is_none() {
                continue;
            }
            scratch.gather(window, qkv, padding);
            for (token, row) in tokens().zip(slopes.mixed.chunks_exact_mut(channels)) {
                row.copy_from_slice(&mixed[token * channels..][..channels]);
            }
            for head in 0..self.heads {
                let (key, value) = (head * width, channels + head * width);
                let count = self.weigh(head, window, bias, scratch);
                let weights = MatrixView::part(&scratch.scores, count, area, stride);
                let output = MatrixView::part(&slopes.mixed[key..], count, width, channels);
                set_product(
                    &mut slopes.pairs[value..],
                    2 * channels,
                    weights.t(),
                    output,
                );
                let values = MatrixView::part(&scratch.pairs[value..], area, width, 2 * channels);
                set_product(&mut slopes.scores, stride, output, values.t());
                softmax_backward(
                    &scratch.scores[..count * stride],
                    &mut slopes.scores,
                    &mut bias_sums[head * area * stride % bias.len()..],
                    &window.tokens,
                    stride,
                );
                let of_scores = MatrixView::part(&slopes.scores, count, area, stride);
                let queries = MatrixView::part(&scratch.queries[key..], count, width, channels);
                let keys = MatrixView::part(&scratch.pairs[key..], area, width, 2 * channels);
                set_product(&mut slopes.queries[key..], channels, of_scores, keys);
                set_product(
                    &mut slopes.pairs[key..],
                    2 * channels,
                    of_scores.t(),
                    queries,
                );
            }
            let AttentionScratch { queries, pairs, .. } = slopes;
            scale(queries, factor);
            let mut queries = queries.chunks_exact(channels);
            for (pair, token) in pairs.chunks_exact_mut(2 * channels).zip(&window.tokens) {
                scale(&mut pair[..channels], factor);
                let Some(token) = token else {
                    add(padding_sums, pair);
                    continue;
                };
                let row = &mut gradient[*token as usize * 3 * channels..][..3 * channels];
                row[channels..].copy_from_slice(pair);
                if let Some(query) = queries.next() {
                    row[..channels].copy_from_slice(query);
                }
            }
        }
    }
}

vectorized! {
    /// The backward pass of a softmax, P ∘ (dP − Σ P ∘ dP), row by row. `slopes` holds dP and gets
    /// the result, which is added to the row of `sums` of each position that has a token.
    pub fn softmax_backward<'a>(
        weights: &'a [f32],
        slopes: &'a mut [f32],
        sums: &'a mut [f32],
        tokens: &'a [Option<u32>],
        columns: usize,
    ) {
        let rows = weights.chunks_exact(columns).zip(slopes.chunks_exact_mut(columns));
        let sums = sums.chunks_exact_mut(columns).zip(tokens);
        let sums = sums.filter(|(_, token)| token.is_some());
        for ((weights, slopes), (sums, _)) in rows.zip(sums) {
            let mean = dot(weights, slopes);
            for ((slope, weight), sum) in slopes.iter_mut().zip(weights).zip(sums) {
                *slope = weight * (*slope - mean);
                *sum += *slope;
            }
        }
    }
}

impl FusedOperation<8> for AttentionOperation {
    type Saved = AttentionSaved;

    fn forward(
        &self,
        [x, gamma, beta, qkv_weight, qkv_bias, weight, bias, table]: [&[f32]; 8],
        save: bool,
    ) -> (Vec<f32>, Option<AttentionSaved>) {
        let channels = bias.len();
        let norm = NormAffine {
            gamma,
            beta,
            epsilon: self.epsilon,
        };
        let qkv_weight = Weight::new(qkv_weight, 3 * channels);
        let weight = Weight::new(weight, channels);
        let share = strand(x.len(), channels);

        let mut qkv = vec![0.0; 3 * x.len()];
        qkv.par_chunks_mut(3 * share)
            .zip(x.par_chunks(share))
            .for_each(|(qkv, x)| {
                let mut normed = vec![0.0; RUN.min(x.len() / channels) * channels];
                let runs = qkv.chunks_mut(3 * RUN * channels);
                for (qkv, x) in runs.zip(x.chunks(RUN * channels)) {
                    let normed = &mut normed[..x.len()];
                    normalize(norm, x, normed);
                    fill_rows(qkv, qkv_bias);
                    qkv_weight.add_product(qkv, normed);
                }
            });

        let score_bias = self.score_bias(table);
        let image = self.grid.tokens * channels;
        let mut mixed = vec![0.0; x.len()];
        mixed
            .par_chunks_mut(image)
            .zip(qkv.par_chunks(3 * image))
            .for_each_init(
                || AttentionScratch::new(&self.grid, channels),
                |scratch, (mixed, qkv)| self.mix(qkv, qkv_bias, &score_bias, mixed, scratch),
            );

        let mut out = vec![0.0; x.len()];
        out.par_chunks_mut(share)
            .zip(mixed.par_chunks(share))
            .zip(x.par_chunks(share))
            .enumerate()
            .for_each(|(index, ((out, mixed), x))| {
                let runs = out.chunks_mut(RUN * channels).zip(x.chunks(RUN * channels));
                let runs = runs.zip(mixed.chunks(RUN * channels)).enumerate();
                for (run, ((out, x), mixed)) in runs {
                    fill_rows(out, bias);
                    weight.add_product(out, mixed);
                    if let Some(factors) = &self.factors {
                        factors.scale(out, index * share + run * RUN * channels);
                    }
                    add(out, x);
                }
            });
        (out, save.then_some(AttentionSaved { qkv, mixed }))
    }

    fn backward(
        &self,
        [x, gamma, beta, qkv_weight, qkv_bias, weight, bias, table]: [&[f32]; 8],
        saved: AttentionSaved,
        mut output: Vec<f32>,
    ) -> [Vec<f32>; 8] {
        let channels = bias.len();
        let norm = NormAffine {
            gamma,
            beta,
            epsilon: self.epsilon,
        };
        let precision = Precision::current();
        let (qkv_weight, weight) = (
            Weight::transposed(qkv_weight, 3 * channels),
            Weight::transposed(weight, channels),
        );
        let share = strand(x.len(), channels);
        let AttentionSaved { qkv, mut mixed } = saved;

        // The output projection: `mixed` becomes its own gradient.
        let sums = mixed
            .par_chunks_mut(share)
            .zip(output.par_chunks(share))
            .enumerate()
            .map(|(index, (mixed, output))| {
                let mut branch = vec![0.0; RUN.min(mixed.len() / channels) * channels];
                let mut sums = [channels * channels, channels].map(|count| vec![0.0; count]);
                let [weight_sums, bias_sums] = &mut sums;
                let runs = mixed.chunks_mut(RUN * channels);
                for (run, (mixed, output)) in runs.zip(output.chunks(RUN * channels)).enumerate() {
                    let branch = &mut branch[..output.len()];
                    branch.copy_from_slice(output);
                    if let Some(factors) = &self.factors {
                        factors.scale(branch, index * share + run * RUN * channels);
                    }
                    add_rows(bias_sums, branch);
                    let sizes = [channels, channels];
                    add_weight_gradient(precision, weight_sums, [mixed, branch], sizes);
                    weight.set_product(mixed, branch);
                }
                sums
            })
            .collect();
        let [weight_sums, bias_sums] = totals(sums);

        let score_bias = self.score_bias(table);
        let image = self.grid.tokens * channels;
        let images = strand(x.len(), image);
        let mut of_qkv = vec![0.0; qkv.len()];
        let sums = of_qkv
            .par_chunks_mut(3 * images)
            .zip(qkv.par_chunks(3 * images))
            .zip(mixed.par_chunks(images))
            .map(|((of_qkv, qkv), mixed)| {
                let mut scratch = [(); 2].map(|()| AttentionScratch::new(&self.grid, channels));
                let mut sums = [2 * channels, score_bias.len()].map(|count| vec![0.0; count]);
                let images = of_qkv.chunks_mut(3 * image).zip(qkv.chunks(3 * image));
                for ((of_qkv, qkv), mixed) in images.zip(mixed.chunks(image)) {
                    self.mix_backward(
                        qkv,
                        qkv_bias,
                        &score_bias,
                        mixed,
                        of_qkv,
                        &mut sums,
                        &mut scratch,
                    );
                }
                sums
            })
            .collect();
        let [padding_sums, score_sums] = totals(sums);
        drop((qkv, mixed));

        // The input projection and the norm: `output` becomes the gradient of x, as of the residual
        // it is already.
        let sums = output
            .par_chunks_mut(share)
            .zip(x.par_chunks(share))
            .zip(of_qkv.par_chunks(3 * share))
            .map(|((dx, x), of_qkv)| {
                let mut normed = vec![0.0; RUN.min(x.len() / channels) * channels];
                let mut sums = [2 * channels, 3 * channels * channels, 3 * channels]
                    .map(|count| vec![0.0; count]);
                let [norm_sums, weight_sums, bias_sums] = &mut sums;
                let runs = dx.chunks_mut(RUN * channels).zip(x.chunks(RUN * channels));
                for ((dx, x), of_qkv) in runs.zip(of_qkv.chunks(3 * RUN * channels)) {
                    add_rows(bias_sums, of_qkv);
                    let normed = &mut normed[..x.len()];
                    normalize(norm, x, normed);
                    let sizes = [channels, 3 * channels];
                    add_weight_gradient(precision, weight_sums, [normed, of_qkv], sizes);
                    qkv_weight.set_product(normed, of_qkv);
                    normalize_backward(norm, x, normed, dx, norm_sums);
                }
                sums
            })
            .collect();
        let [mut norm_sums, qkv_weight_sums, mut qkv_bias_sums] = totals(sums);
        let of_padding = &mut qkv_bias_sums[channels..];
        of_padding
            .iter_mut()
            .zip(&padding_sums)
            .for_each(|(sum, value)| *sum += value);
        let beta_sums = norm_sums.split_off(channels);
        let table_sums = self.table_gradient(&score_sums, table);
        [
            output,
            norm_sums,
            beta_sums,
            qkv_weight_sums,
            qkv_bias_sums,
            weight_sums,
            bias_sums,
            table_sums,
        ]
    }
}
