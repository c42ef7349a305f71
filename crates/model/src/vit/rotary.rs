//! Rotary positions (RoPE, Su et al. 2021, arXiv 2104.09864) of the patches of an image, as in
//! DINOv3 (arXiv 2508.10104).
//!
//! The middle of each patch has a row and a column in [-1, 1], whatever the size of the image. With
//! d channels a head, d/4 frequencies turn by the row and as many by the column:
//!
//! ```text
//! angle(p, f) = 2π · p / 100^(4f/d),    f = 0 … d/4 − 1
//! ```
//!
//! Channel c of the first half of a head is turned together with channel c of the second half.
//! The tokens in front of the patches are not turned.

use std::f64::consts::TAU;

use burn::tensor::{Device, Tensor, TensorData};

/// Base of the periods.
const BASE: f64 = 100.0;

/// Cosines and sines for the tokens of an image.
#[derive(Debug, Clone)]
pub(super) struct Rotation {
    /// [1, 1, 1, tokens, channels of a head].
    cos: Tensor<5>,
    /// The same, of the opposite sign in the first half of the channels.
    sin: Tensor<5>,
}

impl Rotation {
    /// Of `prefix` tokens and the patches of a grid, for heads of `dim` channels.
    pub(super) fn new(prefix: usize, grid: [usize; 2], dim: usize, device: &Device) -> Self {
        let quarter = dim / 4;
        let periods: Vec<f64> = (0..quarter)
            .map(|index| BASE.powf(4.0 * index as f64 / dim as f64))
            .collect();
        let [rows, columns] = grid;
        let tokens = prefix + rows * columns;
        let mut cos = vec![1.0; prefix * dim];
        let mut sin = vec![0.0; prefix * dim];
        let middle = |index: usize, count: usize| (2 * index + 1) as f64 / count as f64 - 1.0;
        for row in 0..rows {
            for column in 0..columns {
                let turned = [middle(row, rows), middle(column, columns)].into_iter();
                let turns: Vec<(f64, f64)> = turned
                    .flat_map(|place| periods.iter().map(move |period| TAU * place / period))
                    .map(f64::sin_cos)
                    .collect();
                for sign in [-1.0, 1.0] {
                    sin.extend(turns.iter().map(|(sin, _)| (sign * sin) as f32));
                    cos.extend(turns.iter().map(|(_, cos)| *cos as f32));
                }
            }
        }
        let table = |values: Vec<f32>| {
            Tensor::from_data(TensorData::new(values, [1, 1, 1, tokens, dim]), device)
        };
        Self {
            cos: table(cos),
            sin: table(sin),
        }
    }

    /// Turns queries and keys: [2, batch, heads, tokens, channels of a head], the same out.
    pub(super) fn apply(&self, x: Tensor<5>) -> Tensor<5> {
        let half = x.dims()[4] / 2;
        let [first, second] = [0, half].map(|from| x.clone().narrow(4, from, half));
        let swapped = Tensor::cat(vec![second, first], 4);
        x * self.cos.clone() + swapped * self.sin.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of every token and channel, with the first channel of each pair 1 and the second 0.
    fn turned(prefix: usize, grid: [usize; 2], dim: usize) -> Vec<f32> {
        let device = Device::flex();
        let tokens = prefix + grid[0] * grid[1];
        let channel: Vec<f32> = (0..dim).map(|c| f32::from(u8::from(c < dim / 2))).collect();
        let x = Tensor::<1>::from_floats(channel.as_slice(), &device)
            .reshape([1, 1, 1, 1, dim])
            .expand([2, 1, 1, tokens, dim]);
        let turned = Rotation::new(prefix, grid, dim, &device).apply(x);
        turned.into_data().iter::<f32>().collect()
    }

    #[test]
    fn patches_turn_by_row_and_column_and_other_tokens_do_not() {
        // Two rows of one patch: middles at -1/2 and 1/2, and 0 across. Periods 1 and 10.
        let values = turned(1, [2, 1], 8);
        let (tokens, dim) = (3, 8);
        assert_eq!(values.len(), 2 * tokens * dim);
        let expected = |place: f64| -> Vec<f32> {
            let angles = [place, place / 10.0, 0.0, 0.0].map(|turns| TAU * turns);
            let cos = angles.map(|angle| angle.cos() as f32);
            let sin = angles.map(|angle| angle.sin() as f32);
            [cos, sin].concat()
        };
        let class = [[1.0; 4], [0.0; 4]].concat();
        for (token, expected) in [class, expected(-0.5), expected(0.5)].iter().enumerate() {
            let found = &values[token * dim..(token + 1) * dim];
            for (one, other) in found.iter().zip(expected) {
                assert!(
                    (one - other).abs() < 1e-6,
                    "{token}: {found:?} {expected:?}"
                );
            }
        }
    }

    #[test]
    fn a_turn_keeps_the_length() {
        for pair in turned(2, [3, 5], 16).chunks(16) {
            let square: f32 = pair.iter().map(|value| value * value).sum();
            assert!((square - 8.0).abs() < 1e-5, "{square}");
        }
    }
}
