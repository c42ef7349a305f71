//! A weight-normed linear layer (Salimans and Kingma 2016, arXiv 1602.07868) to many outputs: y = x
//! · (g ∘ v / |v|)ᵀ.
//!
//! With 65,536 prototypes the weights are 67 MB, larger than all else in a step; here they are read
//! once in each direction, and nothing of their size is made but their gradient.

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::{
    matrix::{MatrixView, add_product, set_product},
    norm::{strand, total},
    operation::{FusedOperation, Operand, apply},
    scalar::{dot, vectorized},
};

/// Outputs at a time: their weights stay in the cache between uses.
const RUN: usize = 512;

/// x: [batch, inputs], v: [outputs, inputs], g: [outputs, 1] → [batch, outputs].
pub fn prototypes(x: Tensor<2>, v: Tensor<2>, g: Tensor<2>) -> Tensor<2> {
    let ([batch, inputs], [outputs, _]) = (x.dims(), v.dims());
    let operands = [Operand::new(x), Operand::new(v), Operand::new(g)];
    apply(Prototypes { inputs }, operands, [batch, outputs])
}

#[derive(Debug, Clone)]
struct Prototypes {
    inputs: usize,
}

vectorized! {
    /// Each `gains` becomes g / |v| of its row.
    fn divide_by_norms<'a>(gains: &'a mut [f32], v: &'a [f32], inputs: usize) {
        for (gain, v) in gains.iter_mut().zip(v.chunks_exact(inputs)) {
            *gain /= dot(v, v).sqrt();
        }
    }

    /// Each row of `rows` is multiplied by `factors`, value by value.
    fn scale_columns<'a>(rows: &'a mut [f32], factors: &'a [f32]) {
        for row in rows.chunks_exact_mut(factors.len()) {
            for (value, factor) in row.iter_mut().zip(factors) {
                *value *= factor;
            }
        }
    }

    /// Turns the gradients of unit rows v / |v|, times g, in `dv` into those of v, and writes those
    /// of g. `scales` is g / |v|.
    fn through_norms<'a>(
        dv: &'a mut [f32],
        dg: &'a mut [f32],
        v: &'a [f32],
        g: &'a [f32],
        scales: &'a [f32],
        inputs: usize,
    ) {
        let rows = dv.chunks_exact_mut(inputs).zip(v.chunks_exact(inputs));
        let gains = g.iter().zip(scales).zip(dg);
        for ((dv, v), ((g, scale), dg)) in rows.zip(gains) {
            let along = dot(dv, v);
            *dg = along * scale / g;
            let share = along / dot(v, v);
            for (dv, v) in dv.iter_mut().zip(v) {
                *dv = scale * (*dv - share * v);
            }
        }
    }
}

impl FusedOperation<3> for Prototypes {
    /// g / |v|.
    type Saved = Vec<f32>;

    fn forward(&self, [x, v, g]: [&[f32]; 3], _save: bool) -> (Vec<f32>, Option<Vec<f32>>) {
        let (inputs, outputs, batch) = (self.inputs, g.len(), x.len() / self.inputs);
        let x = MatrixView::new(x, inputs);
        let share = strand(outputs, 1);
        let mut scales = g.to_vec();
        let mut parts: Vec<Vec<f32>> = v
            .par_chunks(share * inputs)
            .zip(scales.par_chunks_mut(share))
            .map(|(v, scales)| {
                let columns = scales.len();
                let mut out = vec![0.0; batch * columns];
                let runs = v.chunks(RUN * inputs).zip(scales.chunks_mut(RUN));
                for (run, (v, scales)) in runs.enumerate() {
                    divide_by_norms(scales, v, inputs);
                    let weights = MatrixView::new(v, inputs).t();
                    set_product(&mut out[run * RUN..], columns, x, weights);
                }
                scale_columns(&mut out, scales);
                out
            })
            .collect();
        let out = if parts.len() == 1 {
            parts.remove(0)
        } else {
            let mut out = Vec::with_capacity(batch * outputs);
            for row in 0..batch {
                for part in &parts {
                    let columns = part.len() / batch;
                    out.extend_from_slice(&part[row * columns..][..columns]);
                }
            }
            out
        };
        (out, Some(scales))
    }

    fn backward(
        &self,
        [x, v, g]: [&[f32]; 3],
        scales: Vec<f32>,
        output: Vec<f32>,
    ) -> [Vec<f32>; 3] {
        let (inputs, outputs, batch) = (self.inputs, g.len(), x.len() / self.inputs);
        let share = strand(outputs, 1);
        let (mut dv, mut dg) = (vec![0.0; v.len()], vec![0.0; outputs]);
        let of_x = dv
            .par_chunks_mut(share * inputs)
            .zip(dg.par_chunks_mut(share))
            .zip(v.par_chunks(share * inputs))
            .enumerate()
            .map(|(index, ((dv, dg), v))| {
                let mut of_x = vec![0.0; x.len()];
                let mut slopes = vec![0.0; batch * RUN];
                let runs = dv.chunks_mut(RUN * inputs).zip(dg.chunks_mut(RUN));
                for (run, ((dv, dg), v)) in runs.zip(v.chunks(RUN * inputs)).enumerate() {
                    let (first, count) = (index * share + run * RUN, dg.len());
                    let slopes = &mut slopes[..batch * count];
                    for (row, slopes) in slopes.chunks_exact_mut(count).enumerate() {
                        slopes.copy_from_slice(&output[row * outputs + first..][..count]);
                    }
                    set_product(
                        dv,
                        inputs,
                        MatrixView::new(slopes, count).t(),
                        MatrixView::new(x, inputs),
                    );
                    let scales = &scales[first..first + count];
                    scale_columns(slopes, scales);
                    let slopes = MatrixView::new(slopes, count);
                    add_product(&mut of_x, inputs, slopes, MatrixView::new(v, inputs), 1.0);
                    through_norms(dv, dg, v, &g[first..first + count], scales, inputs);
                }
                of_x
            })
            .collect();
        [total(of_x), dv, dg]
    }
}
