//! Position embeddings of one grid at the positions of another, and relative position biases of one
//! window for another.

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

/// How embeddings of the positions of a grid reach another grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resampling {
    /// [`resample_matrix`]: timm, OpenCLIP, and transformers' DINOv2 with registers.
    #[default]
    Antialiased,
    /// [`bicubic_matrix`]: the other ViTs of transformers.
    Bicubic,
}

impl Resampling {
    /// The matrix [to, from] of an axis, row-major.
    pub fn matrix(self, from: usize, to: usize) -> Vec<f32> {
        match self {
            Self::Antialiased => resample_matrix(from, to),
            Self::Bicubic => bicubic_matrix(from, to),
        }
    }
}

/// Resamples embeddings of the positions of a grid to another grid.
///
/// map: [rows·columns, dim] of the grid `from` → [rows·columns, dim] of the grid `to`.
pub fn resample_grid(
    map: Tensor<2>,
    from: [usize; 2],
    to: [usize; 2],
    resampling: Resampling,
) -> Tensor<2> {
    let dim = map.dims()[1];
    let device = map.device();
    let matrix = |from, to| {
        let data = TensorData::new(resampling.matrix(from, to), [to, from]);
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

/// The matrix [to, from] of PyTorch's bicubic interpolation without antialias: Keys' kernel with a
/// = −3/4 over the four neighbors, those beyond the edge repeated.
pub fn bicubic_matrix(from: usize, to: usize) -> Vec<f32> {
    const A: f64 = -0.75;
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let scale = from as f64 / to as f64;
    let mut matrix = vec![0f32; to * from];
    for (row, line) in matrix.chunks_exact_mut(from).enumerate() {
        let place = scale * (row as f64 + 0.5) - 0.5;
        let first = place.floor();
        let t = place - first;
        let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
        for (offset, weight) in [-1.0, 0.0, 1.0, 2.0].into_iter().zip(weights) {
            let column = (first + offset).clamp(0.0, (from - 1) as f64) as usize;
            line[column] += weight as f32;
        }
    }
    matrix
}

/// Takes tables of relative position biases from a window to one of other rows and columns; see
/// [`offset_matrix`].
#[derive(Debug, Clone)]
pub struct BiasResampling {
    /// [2·rows − 1, 2·old rows − 1].
    by_row: Tensor<2>,
    /// [2·columns − 1, 2·old columns − 1].
    by_column: Tensor<2>,
}

impl BiasResampling {
    /// From windows of rows and columns to others.
    pub fn new(from: [usize; 2], to: [usize; 2], device: &Device) -> Self {
        let [by_row, by_column] = [0, 1].map(|axis| {
            let shape = [to[axis], from[axis]].map(|side| 2 * side - 1);
            let data = TensorData::new(offset_matrix(from[axis], to[axis]), shape);
            Tensor::<2>::from_data(data, device)
        });
        Self { by_row, by_column }
    }

    /// table: [(2·old rows − 1)·(2·old columns − 1), heads] → [(2·rows − 1)·(2·columns − 1), heads].
    pub fn apply(&self, table: Tensor<2>) -> Tensor<2> {
        let heads = table.dims()[1];
        let [rows, from_rows] = self.by_row.dims();
        let [columns, from_columns] = self.by_column.dims();
        let table = table.reshape([from_rows, from_columns * heads]);
        let table = self.by_row.clone().matmul(table);
        let table = table.reshape([rows, from_columns, heads]);
        let by_column = self.by_column.clone().unsqueeze::<3>();
        by_column.matmul(table).reshape([rows * columns, heads])
    }
}

/// The matrix [2·to − 1, 2·from − 1], row-major, that takes the relative position biases of a window
/// to another along one axis. It is timm's `resize_rel_pos_bias_table`, which places the old offsets
/// at the sums of a geometric progression that spans the new ones, and interpolates linearly between
/// them; the progression is BEiT's (arXiv 2106.08254).
pub fn offset_matrix(from: usize, to: usize) -> Vec<f32> {
    let ratio = progression_ratio(from - 1, to - 1);
    let (mut sums, mut next) = (Vec::with_capacity(from), 1.0);
    for step in 1..from {
        sums.push(next);
        next += ratio.powi(step as i32);
    }
    let before = sums.iter().rev().map(|sum| -sum);
    let places: Vec<f64> = before.chain([0.0]).chain(sums.iter().copied()).collect();
    let count = places.len();
    let mut matrix = vec![0f32; (2 * to - 1) * count];
    for (index, line) in matrix.chunks_exact_mut(count).enumerate() {
        let wanted = index as f64 - (to - 1) as f64;
        // The first place that is not before it, and the one before that.
        let right = places
            .partition_point(|place| *place < wanted)
            .min(count - 1);
        let left = right.saturating_sub(1);
        let after = (places[right] - wanted).max(0.0);
        let before = (wanted - places[left]).max(0.0);
        let (before, after) = if before == 0.0 && after == 0.0 {
            (1.0, 1.0)
        } else {
            (before, after)
        };
        line[left] += (after / (before + after)) as f32;
        line[right] += (before / (before + after)) as f32;
    }
    matrix
}

/// The ratio, between 1.01 and 1.5, of a geometric progression of `terms` terms from 1 on whose sum
/// is `sum`, found by halving the interval as timm does.
fn progression_ratio(terms: usize, sum: usize) -> f64 {
    let (mut least, mut most) = (1.01, 1.5);
    let mut ratio = least;
    while most - least > 1e-6 {
        ratio = (least + most) / 2.0;
        let found = (1.0 - f64::powi(ratio, terms as i32)) / (1.0 - ratio);
        if found > sum as f64 {
            most = ratio;
        } else {
            least = ratio;
        }
    }
    ratio
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

    #[test]
    fn biases_of_a_smaller_window_are_nearly_the_inner_ones() {
        let matrix = offset_matrix(7, 4);
        for (index, row) in matrix.chunks_exact(13).enumerate() {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            assert!(row[index + 3] > 0.9, "{index}: {}", row[index + 3]);
        }
        // The same offset, in the middle, is kept.
        assert_eq!(matrix[3 * 13 + 6], 1.0);
        for (from, to) in [(1, 3), (4, 1), (1, 1), (64, 63)] {
            let matrix = offset_matrix(from, to);
            assert_eq!(matrix.len(), (2 * to - 1) * (2 * from - 1));
            assert!(matrix.iter().all(|weight| weight.is_finite()));
        }
        let table: Vec<f32> = (0..13 * 13 * 2).map(|value| value as f32).collect();
        let table = TensorData::new(table, [13 * 13, 2]);
        let table = Tensor::<2>::from_data(table, &Device::flex());
        let found = BiasResampling::new([7, 7], [7, 4], &Device::flex()).apply(table);
        assert_eq!(found.dims(), [13 * 7, 2]);
        let middle = found.into_data().iter::<f32>().nth(2 * 45).unwrap();
        assert!((middle - 2.0 * 84.0).abs() < 1e-3, "{middle}");
    }
}
