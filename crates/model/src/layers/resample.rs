//! Position embeddings of one grid at the positions of another.

use burn::tensor::{Tensor, TensorData};

/// Resamples embeddings of the positions of a grid to another grid, see [`resample_matrix`].
///
/// map: [rows·columns, dim] of the grid `from` → [rows·columns, dim] of the grid `to`.
pub fn resample_grid(map: Tensor<2>, from: [usize; 2], to: [usize; 2]) -> Tensor<2> {
    let dim = map.dims()[1];
    let device = map.device();
    let matrix = |from, to| {
        let data = TensorData::new(resample_matrix(from, to), [to, from]);
        Tensor::<2>::from_data(data, &device)
    };
    // [rows, columns·dim], then [new rows·columns, dim] with the columns in front of the product.
    let map = map.reshape([from[0], from[1] * dim]);
    let map = matrix(from[0], to[0]).matmul(map);
    let map = map.reshape([to[0], from[1], dim]);
    let map = matrix(from[1], to[1]).unsqueeze::<3>().matmul(map);
    map.reshape([to[0] * to[1], dim])
}

/// The matrix [to, from] that resamples a line of `from` values to `to` values, row-major: cubic (a
/// = −1/2), widened when shrinking, without aligned corners. It is `interpolate(mode="bicubic",
/// antialias=True)` of PyTorch in one dimension, which OpenCLIP uses on position embeddings when it
/// loads a checkpoint at another size (Hugging Face's option to interpolate, without antialias and
/// with a = −3/4, gives other numbers).
pub fn resample_matrix(from: usize, to: usize) -> Vec<f32> {
    let scale = from as f64 / to as f64;
    let widen = scale.max(1.0);
    let support = 2.0 * widen;
    let mut matrix = vec![0f32; to * from];
    for (row, line) in matrix.chunks_exact_mut(from).enumerate() {
        let center = scale * (row as f64 + 0.5);
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let weights: Vec<f64> = (first..end)
            .map(|column| cubic((column as f64 - center + 0.5) / widen))
            .collect();
        let total: f64 = weights.iter().sum();
        for (column, weight) in (first..end).zip(weights) {
            line[column] = (weight / total) as f32;
        }
    }
    matrix
}

/// Keys' cubic kernel with a = −1/2.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resampling_to_the_same_size_is_the_identity_and_rows_sum_to_one() {
        let same = resample_matrix(7, 7);
        for (index, value) in same.iter().enumerate() {
            let expected = if index % 8 == 0 { 1.0 } else { 0.0 };
            assert!((value - expected).abs() < 1e-6);
        }
        for (from, to) in [(14, 32), (14, 5), (1, 9), (9, 1)] {
            for row in resample_matrix(from, to).chunks_exact(from) {
                assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            }
        }
    }
}
