//! Self-attention within windows, with its norm and its residual: x + f · (softmax(q kᵀ / √d +
//! bias) v · W + b), with q, k, v = LN x · W' + b'.
//!
//! The norm reads the tokens window by window, and all that follows until the residual is in that
//! order ([`RowOrder`]): a cyclic shift costs nothing, and a window's queries, keys and
//! values are consecutive rows. A padding position is attended to, with the projection's bias as its
//! key and value, but has no query. Without a backward pass to save for, a thread takes a few windows
//! from the norm to the output projection, so that what lies between stays in the cache. The softmax
//! is computed again in the backward pass: it is as large as all that is saved, and cheap.

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
    norm::{NormAffine, normalize_backward, normalize_tokens, strand, total},
    operation::{FusedOperation, Operand, apply},
    scalar::{
        add, add_rows, add_rows_at, copy_rows_at, dot, fill_rows, scale, softmax_rows, vectorized,
    },
    weight::{PackedWeight, Weight, add_weight_gradient},
    windows::{RowOrder, Window, WindowGrid, WindowRun},
};

/// A score that is 0 after the softmax.
const NEVER: f32 = -1e30;

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
    let packed = [&parameters.qkv_weight, &parameters.weight].map(PackedWeight::new);
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
        packed,
        heads,
        epsilon: epsilon as f32,
        grid,
        factors: factors.map(|values| BranchFactors::new(values, shape[1] * shape[2])),
    };
    apply(operation, inputs, shape)
}

#[derive(Debug, Clone)]
struct AttentionOperation {
    /// Packed weights of the projection to q, k and v, and of the output projection.
    packed: [PackedWeight; 2],
    heads: usize,
    epsilon: f32,
    grid: Arc<WindowGrid>,
    factors: Option<BranchFactors>,
}

/// What the backward pass needs, in the windows' order.
#[derive(Debug, Clone)]
struct AttentionSaved {
    /// [batch·tokens, 3·channels].
    qkv: Vec<f32>,
    /// The heads' outputs side by side: [batch·tokens, channels].
    mixed: Vec<f32>,
}

/// Keys and values of a window's positions: rows `stride` apart that begin with a key, and have the
/// value `channels` later.
#[derive(Clone, Copy)]
struct Pairs<'a> {
    rows: &'a [f32],
    area: usize,
    stride: usize,
    channels: usize,
}

impl<'a> Pairs<'a> {
    /// Of a window with these rows of queries, keys and values; with padding, collected in `memory`.
    fn new(window: &Window, qkv: &'a [f32], padding: &[f32], memory: &'a mut [f32]) -> Self {
        let channels = padding.len() / 3;
        let area = window.tokens.len();
        let (rows, stride) = if qkv.len() == area * 3 * channels {
            (&qkv[channels..], 3 * channels)
        } else {
            let mut rows = qkv.chunks_exact(3 * channels);
            for (pair, token) in memory.chunks_exact_mut(2 * channels).zip(&window.tokens) {
                let row = token.and_then(|_| rows.next()).unwrap_or(padding);
                pair.copy_from_slice(&row[channels..]);
            }
            (&*memory, 2 * channels)
        };
        Self {
            rows,
            area,
            stride,
            channels,
        }
    }

    /// [area, width] of the head whose channels begin at `first`.
    fn keys(self, first: usize, width: usize) -> MatrixView<'a> {
        MatrixView::part(&self.rows[first..], self.area, width, self.stride)
    }

    /// As [`Self::keys`].
    fn values(self, first: usize, width: usize) -> MatrixView<'a> {
        self.keys(self.channels + first, width)
    }
}

/// Memory for one window at a time.
struct WindowScratch {
    /// See [`Pairs`]: [area, 2·channels].
    pairs: Vec<f32>,
    /// [tokens of the window, stride].
    scores: Vec<f32>,
}

impl WindowScratch {
    fn new(grid: &WindowGrid, channels: usize) -> Self {
        Self {
            pairs: vec![0.0; grid.area * 2 * channels],
            scores: vec![0.0; grid.area * grid.stride()],
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

    /// The attention weights of a head in a window, into `scores`. qkv: the rows of the window's
    /// tokens.
    fn weigh(
        &self,
        head: usize,
        window: &Window,
        bias: &[f32],
        (qkv, pairs): (&[f32], Pairs),
        scores: &mut [f32],
    ) {
        let WindowGrid { area, .. } = *self.grid;
        let stride = self.grid.stride();
        let width = pairs.channels / self.heads;
        let bias = &bias[head * area * stride % bias.len()..][..area * stride];
        let mut rows = scores.chunks_exact_mut(stride);
        for (position, bias) in bias.chunks_exact(stride).enumerate() {
            if window.tokens[position].is_none() {
                continue;
            }
            if let Some(row) = rows.next() {
                row.copy_from_slice(bias);
                if let Some(region) = window.regions.get(position) {
                    for (score, other) in row.iter_mut().zip(&window.regions) {
                        *score += if region == other { 0.0 } else { window.penalty };
                    }
                }
            }
        }
        let count = qkv.len() / (3 * pairs.channels);
        let queries = MatrixView::part(&qkv[head * width..], count, width, 3 * pairs.channels);
        let keys = pairs.keys(head * width, width).t();
        add_product(scores, stride, queries, keys, (width as f32).powf(-0.5));
        softmax_rows(&mut scores[..count * stride], stride);
    }

    /// The heads' outputs of a window. qkv: [tokens of the window, 3·channels], mixed: [tokens of the
    /// window, channels].
    fn mix(
        &self,
        window: &Window,
        qkv: &[f32],
        padding: &[f32],
        bias: &[f32],
        mixed: &mut [f32],
        scratch: &mut WindowScratch,
    ) {
        let WindowScratch { pairs, scores } = scratch;
        let pairs = Pairs::new(window, qkv, padding, pairs);
        let width = pairs.channels / self.heads;
        let (area, stride) = (self.grid.area, self.grid.stride());
        let count = mixed.len() / pairs.channels;
        for head in 0..self.heads {
            self.weigh(head, window, bias, (qkv, pairs), scores);
            set_product(
                &mut mixed[head * width..],
                pairs.channels,
                MatrixView::part(scores, count, area, stride),
                pairs.values(head * width, width),
            );
        }
    }

    /// [`Self::mix`] of each window of a run. qkv, mixed: the run's rows.
    fn mix_windows(
        &self,
        run: &WindowRun,
        [qkv, padding, bias]: [&[f32]; 3],
        mixed: &mut [f32],
        scratch: &mut WindowScratch,
    ) {
        let channels = padding.len() / 3;
        for (window, rows) in self.grid.windows_with_rows(run.windows.clone()) {
            let qkv = &qkv[3 * channels * rows.start..3 * channels * rows.end];
            let mixed = &mut mixed[channels * rows.start..channels * rows.end];
            self.mix(window, qkv, padding, bias, mixed, scratch);
        }
    }

    /// The gradient of a window's qkv, [tokens of the window, 3·channels], given that of `mixed`.
    /// `sums` are those of the padding, [2·channels], and of the scores' bias, as
    /// [`Self::score_bias`] has it.
    fn mix_backward(
        &self,
        window: &Window,
        [qkv, padding, bias, mixed]: [&[f32]; 4],
        gradient: &mut [f32],
        [padding_sums, bias_sums]: &mut [Vec<f32>; 2],
        [scratch, slopes]: &mut [WindowScratch; 2],
    ) {
        let WindowScratch { pairs, scores } = scratch;
        let pairs = Pairs::new(window, qkv, padding, pairs);
        let channels = pairs.channels;
        let width = channels / self.heads;
        let factor = (width as f32).powf(-0.5);
        let (area, stride) = (self.grid.area, self.grid.stride());
        let count = mixed.len() / channels;
        let padded = count < area;
        for head in 0..self.heads {
            let (key, value) = (head * width, channels + head * width);
            self.weigh(head, window, bias, (qkv, pairs), scores);
            let weights = MatrixView::part(scores, count, area, stride);
            let output = MatrixView::part(&mixed[key..], count, width, channels);
            let (values, keys) = (pairs.values(key, width), pairs.keys(key, width));
            set_product(&mut slopes.scores, stride, output, values.t());
            softmax_backward(
                &scores[..count * stride],
                &mut slopes.scores,
                &mut bias_sums[head * area * stride % bias.len()..],
                &window.tokens,
                stride,
            );
            let of_scores = MatrixView::part(&slopes.scores, count, area, stride);
            let queries = MatrixView::part(&qkv[key..], count, width, 3 * channels);
            set_product(&mut gradient[key..], 3 * channels, of_scores, keys);
            let (of_pairs, of_pairs_stride) = if padded {
                (&mut slopes.pairs[..], 2 * channels)
            } else {
                (&mut gradient[channels..], 3 * channels)
            };
            set_product(&mut of_pairs[value..], of_pairs_stride, weights.t(), output);
            set_product(
                &mut of_pairs[key..],
                of_pairs_stride,
                of_scores.t(),
                queries,
            );
        }
        let mut rows = gradient.chunks_exact_mut(3 * channels);
        if !padded {
            rows.for_each(|row| scale(&mut row[..2 * channels], factor));
            return;
        }
        for (pair, token) in slopes
            .pairs
            .chunks_exact_mut(2 * channels)
            .zip(&window.tokens)
        {
            scale(&mut pair[..channels], factor);
            match token.and_then(|_| rows.next()) {
                Some(row) => {
                    scale(&mut row[..channels], factor);
                    row[channels..].copy_from_slice(pair);
                }
                None => add(padding_sums, pair),
            }
        }
    }

    /// The gradients of the output projection's weights and bias, given that of the output, [batch,
    /// tokens, channels]. `mixed` becomes its own gradient.
    fn output_projection_backward(
        &self,
        mixed: &mut [f32],
        output: &[f32],
        weight: &Weight,
        order: &RowOrder,
    ) -> [Vec<f32>; 2] {
        let channels = output.len() / order.tokens.len();
        let share = strand(output.len(), channels);
        let precision = Precision::current();
        let sums = mixed
            .par_chunks_mut(share)
            .zip(order.tokens.par_chunks(share / channels))
            .enumerate()
            .map(|(index, (mixed, tokens))| {
                let mut branch = vec![0.0; RUN.min(tokens.len()) * channels];
                let mut sums = [channels * channels, channels].map(|count| vec![0.0; count]);
                let [weight_sums, bias_sums] = &mut sums;
                let runs = mixed.chunks_mut(RUN * channels).zip(tokens.chunks(RUN));
                for (run, (mixed, tokens)) in runs.enumerate() {
                    let branch = &mut branch[..mixed.len()];
                    copy_rows_at(branch, output, tokens);
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
        totals(sums)
    }

    /// The gradient of qkv, given that of `mixed`, and the sums of [`Self::mix_backward`].
    fn mixing_backward(
        &self,
        [qkv, padding, bias, mixed]: [&[f32]; 4],
    ) -> (Vec<f32>, [Vec<f32>; 2]) {
        let channels = padding.len() / 3;
        let image = self.grid.tokens * channels;
        let share = strand(mixed.len(), image);
        let mut gradient = vec![0.0; qkv.len()];
        let sums = gradient
            .par_chunks_mut(3 * share)
            .zip(qkv.par_chunks(3 * share))
            .zip(mixed.par_chunks(share))
            .map(|((gradient, qkv), mixed)| {
                let mut scratch = [(); 2].map(|()| WindowScratch::new(&self.grid, channels));
                let mut sums = [2 * channels, bias.len()].map(|count| vec![0.0; count]);
                let windows = 0..mixed.len() / image * self.grid.windows.len();
                for (window, rows) in self.grid.windows_with_rows(windows) {
                    let wide = 3 * channels * rows.start..3 * channels * rows.end;
                    let mixed = &mixed[channels * rows.start..channels * rows.end];
                    self.mix_backward(
                        window,
                        [&qkv[wide.clone()], padding, bias, mixed],
                        &mut gradient[wide],
                        &mut sums,
                        &mut scratch,
                    );
                }
                sums
            })
            .collect();
        (gradient, totals(sums))
    }
}

/// The gradient of the norm's output, in the place of `mixed`, and those of the weights and bias of the
/// projection to q, k and v, given that of its output.
fn input_projection_backward(
    norm: NormAffine,
    x: &[f32],
    mut mixed: Vec<f32>,
    of_qkv: &[f32],
    weight: &Weight,
    order: &RowOrder,
) -> (Vec<f32>, [Vec<f32>; 2]) {
    let channels = norm.gamma.len();
    let share = strand(x.len(), channels);
    let precision = Precision::current();
    let sums = mixed
        .par_chunks_mut(share)
        .zip(order.tokens.par_chunks(share / channels))
        .zip(of_qkv.par_chunks(3 * share))
        .map(|((of_normed, tokens), of_qkv)| {
            let mut normed = vec![0.0; RUN.min(tokens.len()) * channels];
            let mut sums = [3 * channels * channels, 3 * channels].map(|count| vec![0.0; count]);
            let [weight_sums, bias_sums] = &mut sums;
            let runs = of_normed.chunks_mut(RUN * channels).zip(tokens.chunks(RUN));
            for ((of_normed, tokens), of_qkv) in runs.zip(of_qkv.chunks(3 * RUN * channels)) {
                add_rows(bias_sums, of_qkv);
                let normed = &mut normed[..of_normed.len()];
                normalize_tokens(norm, x, tokens, normed);
                let sizes = [channels, 3 * channels];
                add_weight_gradient(precision, weight_sums, [normed, of_qkv], sizes);
                weight.set_product(of_normed, of_qkv);
            }
            sums
        })
        .collect();
    (mixed, totals(sums))
}

/// The gradients of γ and of β, one after the other, given that of the norm's output; dx += that of x.
fn norm_backward(
    norm: NormAffine,
    x: &[f32],
    of_normed: &[f32],
    dx: &mut [f32],
    order: &RowOrder,
) -> Vec<f32> {
    let channels = norm.gamma.len();
    let share = strand(x.len(), channels);
    let sums = dx
        .par_chunks_mut(share)
        .zip(x.par_chunks(share))
        .zip(order.rows.par_chunks(share / channels))
        .map(|((dx, x), rows)| {
            let mut of_tokens = vec![0.0; RUN.min(rows.len()) * channels];
            let mut norm_sums = vec![0.0; 2 * channels];
            let runs = dx.chunks_mut(RUN * channels).zip(x.chunks(RUN * channels));
            for ((dx, x), rows) in runs.zip(rows.chunks(RUN)) {
                let of_tokens = &mut of_tokens[..x.len()];
                copy_rows_at(of_tokens, of_normed, rows);
                normalize_backward(norm, x, of_tokens, dx, &mut norm_sums);
            }
            norm_sums
        })
        .collect();
    total(sums)
}

/// out = b + a · W, in `parts` or more that threads without other work can take. a: [rows, inputs],
/// out: [rows, outputs].
fn set_layer(out: &mut [f32], [a, bias]: [&[f32]; 2], weight: &Weight, rows: usize, parts: usize) {
    let part = rows.div_ceil(parts).clamp(1, RUN);
    out.par_chunks_mut(part * (out.len() / rows))
        .zip(a.par_chunks(part * (a.len() / rows)))
        .for_each(|(out, a)| {
            fill_rows(out, bias);
            weight.add_product(out, a);
        });
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
        let [packed_qkv, packed] = &self.packed;
        let qkv_weight = Weight::new(qkv_weight, 3 * channels, packed_qkv);
        let weight = Weight::new(weight, channels, packed);
        let score_bias = self.score_bias(table);
        let images = x.len() / channels / self.grid.tokens;
        let order = RowOrder::new(&self.grid, images);
        let runs = WindowRun::all(&self.grid, images);
        let most = runs.iter().map(|run| run.rows.len()).max().unwrap_or(0);
        // With few runs some threads may have none left: then products are divided too.
        let parts = (2 * rayon::current_num_threads()).div_ceil(runs.len().max(1));

        let mut branch = vec![0.0; x.len()];
        let saved_values = if save { x.len() } else { 0 };
        let (mut qkv, mut mixed) = (vec![0.0; 3 * saved_values], vec![0.0; saved_values]);
        // Without anything to save the runs of a thread use the same few rows.
        let scratch_rows = if save { 0 } else { most };
        let saved: Vec<Option<[&mut [f32]; 2]>> = if save {
            let qkv = WindowRun::parts(&runs, &mut qkv, 3 * channels);
            let mixed = WindowRun::parts(&runs, &mut mixed, channels);
            qkv.into_iter()
                .zip(mixed)
                .map(|(a, b)| Some([a, b]))
                .collect()
        } else {
            runs.iter().map(|_| None).collect()
        };
        let branches = WindowRun::parts(&runs, &mut branch, channels);
        runs.par_iter().zip(branches).zip(saved).for_each_init(
            || {
                let rows = |count: usize, width: usize| vec![0.0; count * width];
                (
                    [
                        rows(most, channels),
                        rows(scratch_rows, 3 * channels),
                        rows(scratch_rows, channels),
                    ],
                    WindowScratch::new(&self.grid, channels),
                )
            },
            |([normed, qkv, mixed], scratch), ((run, branch), saved)| {
                let rows = run.rows.len();
                if rows == 0 {
                    return;
                }
                let [qkv, mixed] = saved.unwrap_or_else(|| {
                    [
                        &mut qkv[..rows * 3 * channels],
                        &mut mixed[..rows * channels],
                    ]
                });
                let normed = &mut normed[..rows * channels];
                normalize_tokens(norm, x, &order.tokens[run.rows.clone()], normed);
                set_layer(qkv, [normed, qkv_bias], &qkv_weight, rows, parts);
                self.mix_windows(run, [qkv, qkv_bias, &score_bias], mixed, scratch);
                set_layer(branch, [mixed, bias], &weight, rows, parts);
                if let Some(factors) = &self.factors {
                    factors.scale(branch, run.rows.start * channels);
                }
            },
        );

        let share = strand(x.len(), channels);
        let mut out = vec![0.0; x.len()];
        out.par_chunks_mut(share)
            .zip(x.par_chunks(share))
            .zip(order.rows.par_chunks(share / channels))
            .for_each(|((out, x), rows)| {
                out.copy_from_slice(x);
                add_rows_at(out, &branch, rows);
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
        let (qkv_weight, weight) = (
            Weight::transposed(qkv_weight, 3 * channels),
            Weight::transposed(weight, channels),
        );
        let images = x.len() / channels / self.grid.tokens;
        let order = RowOrder::new(&self.grid, images);
        let AttentionSaved { qkv, mut mixed } = saved;

        let [weight_sums, bias_sums] =
            self.output_projection_backward(&mut mixed, &output, &weight, &order);
        let score_bias = self.score_bias(table);
        let (of_qkv, [padding_sums, score_sums]) =
            self.mixing_backward([&qkv, qkv_bias, &score_bias, &mixed]);
        drop(qkv);
        let (of_normed, [qkv_weight_sums, mut qkv_bias_sums]) =
            input_projection_backward(norm, x, mixed, &of_qkv, &qkv_weight, &order);
        drop(of_qkv);
        let mut norm_sums = norm_backward(norm, x, &of_normed, &mut output, &order);
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
