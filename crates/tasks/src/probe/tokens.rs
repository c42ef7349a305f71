//! Feature maps of several stages as one grid of tokens, and the bilinear interpolation that this
//! takes.

use crate::features::{FeatureMap, ImageFeatures};

/// The feature maps of an image resized to the grid of the finest and concatenated: a token per
/// position, row by row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TokenGrid {
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    /// `[height * width, channels]`.
    pub values: Vec<f32>,
}

impl TokenGrid {
    pub fn new(features: &ImageFeatures) -> Self {
        let (height, width) = features
            .maps
            .first()
            .map_or((0, 0), |map| (map.height, map.width));
        let channels = features.maps.iter().map(|map| map.channels).sum();
        let mut values = vec![0.0; height * width * channels];
        let mut first = 0;
        for map in &features.maps {
            let (rows, columns) = (
                LinearInterpolation::new(map.height, height),
                LinearInterpolation::new(map.width, width),
            );
            for (position, token) in values.chunks_exact_mut(channels).enumerate() {
                let (row, column) = (rows.at(position / width), columns.at(position % width));
                for (channel, value) in token[first..first + map.channels].iter_mut().enumerate() {
                    *value = interpolate(map, channel, row, column);
                }
            }
            first += map.channels;
        }
        Self {
            height,
            width,
            channels,
            values,
        }
    }
}

fn interpolate(map: &FeatureMap, channel: usize, row: Neighbors, column: Neighbors) -> f32 {
    let plane = &map.values[channel * map.height * map.width..];
    let at = |r: usize| {
        let line = &plane[r * map.width..(r + 1) * map.width];
        line[column.low] + (line[column.high] - line[column.low]) * column.weight
    };
    let (low, high) = (at(row.low), at(row.high));
    low + (high - low) * row.weight
}

/// Two neighboring positions and the weight of the second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Neighbors {
    pub low: usize,
    pub high: usize,
    pub weight: f32,
}

/// Bilinear interpolation along one axis, pixel centers at halves (PyTorch's
/// `align_corners=False`).
pub(crate) struct LinearInterpolation(Vec<Neighbors>);

impl LinearInterpolation {
    pub fn new(from: usize, to: usize) -> Self {
        let between = |i: usize| {
            let place =
                ((i as f32 + 0.5) * from as f32 / to as f32 - 0.5).clamp(0.0, from as f32 - 1.0);
            let low = place as usize;
            Neighbors {
                low,
                high: (low + 1).min(from - 1),
                weight: place - low as f32,
            }
        };
        Self((0..to).map(between).collect())
    }

    pub fn at(&self, i: usize) -> Neighbors {
        self.0[i]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpolation_equals_pytorch() {
        // torch.nn.functional.interpolate([[0, 3]], size=4, mode="bilinear"): 0, 0.75, 2.25, 3.
        let weights = LinearInterpolation::new(2, 4);
        let values: Vec<f32> = (0..4)
            .map(|i| weights.at(i))
            .map(|b| [0.0, 3.0][b.low] * (1.0 - b.weight) + [0.0, 3.0][b.high] * b.weight)
            .collect();
        assert_eq!(values, [0.0, 0.75, 2.25, 3.0]);
        assert_eq!(
            LinearInterpolation::new(3, 3).at(1),
            Neighbors {
                low: 1,
                high: 2,
                weight: 0.0
            }
        );
    }

    #[test]
    fn maps_are_resized_to_the_finest_grid() {
        let fine: Vec<f32> = (0..8).map(|v| v as f32).collect(); // [1, 4, 2]
        let coarse = [10.0, 20.0, 5.0, 5.0]; // [2, 2, 1]
        let features = ImageFeatures {
            pooled: &[],
            maps: vec![
                FeatureMap {
                    values: &fine,
                    channels: 1,
                    height: 4,
                    width: 2,
                },
                FeatureMap {
                    values: &coarse,
                    channels: 2,
                    height: 2,
                    width: 1,
                },
            ],
        };
        let tokens = TokenGrid::new(&features);
        assert_eq!((tokens.height, tokens.width, tokens.channels), (4, 2, 3));
        assert_eq!(tokens.values[..6], [0.0, 10.0, 5.0, 1.0, 10.0, 5.0]);
        assert_eq!(tokens.values[6..9], [2.0, 12.5, 5.0]);
    }
}
