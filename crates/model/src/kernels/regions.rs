//! RoIAlign on the CPU: regions of maps, sampled bilinearly (`heads::regions`).

use burn::tensor::Tensor;
use rayon::prelude::*;

use super::operation::{FusedOperation, Operand, apply};

/// Samples of a bin along each axis, as in torchvision's detectors.
const SAMPLES: usize = 2;

/// A rectangle on a map.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Region {
    /// Image of the batch.
    pub image: usize,
    /// Left, top, right and bottom in positions of the map; 0 is the border of the map, not the
    /// center of its first position.
    pub corners: [f32; 4],
}

/// A position of an axis and its weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Tap {
    pub at: usize,
    pub weight: f32,
}

/// The weights by which each of `size` bins between `start` and `end` of an axis samples its
/// `length` positions: two samples, each between two positions. Coordinates are those of
/// torchvision's `roi_align` without `aligned`: a value stands at its index.
pub(crate) fn taps(start: f32, end: f32, length: usize, size: usize) -> Vec<[Tap; 4]> {
    let bin = (end - start).max(1.0) / size as f32;
    let sample = |at: f32| -> [Tap; 2] {
        if at < -1.0 || at > length as f32 || at.is_nan() {
            return [Tap { at: 0, weight: 0.0 }; 2];
        }
        let at = at.clamp(0.0, (length - 1) as f32);
        let low = at as usize;
        let share = at - low as f32;
        let weight = 1.0 / SAMPLES as f32;
        [(low, 1.0 - share), ((low + 1).min(length - 1), share)].map(|(at, share)| Tap {
            at,
            weight: weight * share,
        })
    };
    (0..size)
        .map(|index| {
            let at = |part: f32| start + (index as f32 + part) * bin;
            let ([a, b], [c, d]) = (sample(at(0.25)), sample(at(0.75)));
            [a, b, c, d]
        })
        .collect()
}

/// Cuts regions out of maps. map: [batch, channels, height, width] → [regions, channels, size,
/// size].
pub fn cut(map: Tensor<4>, regions: &[Region], size: usize) -> Tensor<4> {
    let [_, channels, height, width] = map.dims();
    let shape = [regions.len(), channels, size, size];
    let place = |region: &Region| RegionSamples {
        image: region.image,
        rows: taps(region.corners[1], region.corners[3], height, size),
        columns: taps(region.corners[0], region.corners[2], width, size),
    };
    let operation = RoiAlign {
        map: [channels, height, width],
        size,
        places: regions.iter().map(place).collect(),
    };
    apply(operation, [Operand::new(map)], shape)
}

#[derive(Debug, Clone)]
struct RoiAlign {
    /// Channels, height and width.
    map: [usize; 3],
    size: usize,
    places: Vec<RegionSamples>,
}

/// The positions and weights that a region samples.
#[derive(Debug, Clone)]
struct RegionSamples {
    image: usize,
    rows: Vec<[Tap; 4]>,
    columns: Vec<[Tap; 4]>,
}

impl RegionSamples {
    /// The columns of the map that it touches.
    fn span(&self) -> std::ops::Range<usize> {
        let places = || self.columns.iter().flatten().map(|tap| tap.at);
        places().min().unwrap_or(0)..places().max().map_or(0, |last| last + 1)
    }
}

impl FusedOperation<1> for RoiAlign {
    type Saved = ();

    fn forward(&self, [map]: [&[f32]; 1], _save: bool) -> (Vec<f32>, Option<()>) {
        let ([channels, height, width], size) = (self.map, self.size);
        let area = height * width;
        let mut out = vec![0.0; self.places.len() * channels * size * size];
        let regions = out.par_chunks_mut(channels * size * size);
        regions.zip(&self.places).for_each(|(out, place)| {
            let span = place.span();
            let mut row = vec![0.0_f32; span.len()];
            let image = &map[place.image * channels * area..][..channels * area];
            for (plane, out) in image
                .chunks_exact(area)
                .zip(out.chunks_exact_mut(size * size))
            {
                for (taps, out) in place.rows.iter().zip(out.chunks_exact_mut(size)) {
                    row.fill(0.0);
                    for tap in taps {
                        let values = &plane[tap.at * width..][span.clone()];
                        row.iter_mut()
                            .zip(values)
                            .for_each(|(to, from)| *to += tap.weight * from);
                    }
                    for (taps, out) in place.columns.iter().zip(out) {
                        *out = taps
                            .iter()
                            .map(|tap| tap.weight * row[tap.at - span.start])
                            .sum();
                    }
                }
            }
        });
        (out, Some(()))
    }

    fn backward(&self, [map]: [&[f32]; 1], (): (), output: Vec<f32>) -> [Vec<f32>; 1] {
        let ([channels, height, width], size) = (self.map, self.size);
        let area = height * width;
        let mut gradient = vec![0.0; map.len()];
        // A plane is written by one thread, region after region, so that equal inputs give equal
        // bits.
        let planes = gradient.par_chunks_mut(area).enumerate();
        planes.for_each(|(index, plane)| {
            let (image, channel) = (index / channels, index % channels);
            let mut row = vec![0.0_f32; width];
            for (number, place) in self
                .places
                .iter()
                .enumerate()
                .filter(|(_, p)| p.image == image)
            {
                let values = &output[(number * channels + channel) * size * size..][..size * size];
                let span = place.span();
                for (taps, values) in place.rows.iter().zip(values.chunks_exact(size)) {
                    row[span.clone()].fill(0.0);
                    for (taps, value) in place.columns.iter().zip(values) {
                        taps.iter()
                            .for_each(|tap| row[tap.at] += tap.weight * value);
                    }
                    for tap in taps {
                        let to = &mut plane[tap.at * width..][span.clone()];
                        to.iter_mut()
                            .zip(&row[span.clone()])
                            .for_each(|(to, from)| *to += tap.weight * from);
                    }
                }
            }
        });
        [gradient]
    }
}
