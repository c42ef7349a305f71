//! The weights of a resized axis, and sums with them.

use pulp::Simd;

use super::span::Span;
use crate::image::filter::Filter;

/// Values that are computed side by side: four of the widest vectors.
pub(super) const LANES: usize = 64;

/// Which input pixels, at what weight, make each output pixel of an axis.
pub(super) struct Taps {
    /// Per output pixel: the first input pixel and where its weights are.
    pub(super) outputs: Vec<(usize, std::ops::Range<usize>)>,
    /// Fixed point of [`FRACTION`] fractional bits, in two parts: `upper * PART + lower`, whole
    /// numbers.
    pub(super) weights: Vec<[f32; 2]>,
}

/// Fractional bits of a weight: 32 less 8 of the pixel less 2 for overshoot and sign.
const FRACTION: u32 = 32 - 8 - 2;

/// What the upper part of a weight counts.
const PART: f32 = (1 << (FRACTION / 2)) as f32;

/// Weights after which the lower sum is carried into the upper one. A lower part is within 2^10 of
/// 0 and a pixel below 2^8, so that the sum of 31 and a rest below 2^11 stays below 2^23.
pub(super) const CARRY: usize = 31;

impl Taps {
    pub(super) fn new(span: Span, size: usize, filter: Filter) -> Self {
        let scale = span.scale(size);
        let widening = scale.max(1.0);
        let support = filter.support() * widening;
        let mut outputs = Vec::with_capacity(size);
        let mut weights = Vec::with_capacity(size * (2 * support.ceil() as usize + 1));
        let mut exact = Vec::new();
        for x in 0..size {
            let center = f64::from(span.start) + (x as f64 + 0.5) * scale;
            // `as usize` truncates, and takes what is negative to 0.
            let first = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(span.length);
            exact.clear();
            exact.extend((first..end).map(|i| {
                let distance = i as f64 - center + 0.5;
                filter.weight(distance * (1.0 / widening))
            }));
            let sum: f64 = exact.iter().sum();
            let start = weights.len();
            weights.extend(exact.iter().map(|&weight| {
                let normal = if sum == 0.0 { weight } else { weight / sum };
                let scaled = normal * f64::from(1 << FRACTION);
                let fixed = (scaled + 0.5_f64.copysign(scaled)) as i32;
                let part = PART as i32;
                let upper = (fixed + part / 2).div_euclid(part);
                [upper as f32, (fixed - upper * part) as f32]
            }));
            outputs.push((first, start..weights.len()));
        }
        Taps { outputs, weights }
    }

    /// The input pixels that any output pixel reads.
    pub(super) fn span(&self) -> std::ops::Range<usize> {
        let ends = self.outputs.iter().map(|(first, w)| first + w.len());
        let start = self.outputs.first().map_or(0, |(first, _)| *first);
        start..ends.max().unwrap_or(start)
    }

    /// The sum of inputs times weights, rounded to a whole number from 0 to 255.
    ///
    /// Exact: with u and l the sums of the upper and lower parts, the fixed-point sum u 2^11 + l is
    /// rounded and shifted by 22 bits as floor((u + 2^10 + floor(l / 2^11)) / 2^11), and every
    /// number in that has 24 bits at most. Products of 32-bit integers take twice as many
    /// operations as the fused ones.
    #[inline(always)]
    pub(super) fn weigh<S: Simd>(
        &self,
        simd: S,
        weights: std::ops::Range<usize>,
        inputs_by_lane: &[[f32; LANES]],
    ) -> [f32; LANES] {
        // Vectors with two sums each that are in the registers at once.
        const GROUP: usize = 4;
        let weights = &self.weights[weights];
        let inputs_by_lane = &inputs_by_lane[..weights.len()];
        let mut values = [0.0; LANES];
        let (groups, _) = S::as_mut_simd_f32s(&mut values).0.as_chunks_mut::<GROUP>();
        for (index, group) in groups.iter_mut().enumerate() {
            let mut upper = [simd.splat_f32s(PART / 2.0); GROUP];
            let mut lower = [simd.splat_f32s(0.0); GROUP];
            for (weights, inputs_by_lane) in weights.chunks(CARRY).zip(inputs_by_lane.chunks(CARRY))
            {
                for ([high, low], cell) in weights.iter().zip(inputs_by_lane) {
                    let (high, low) = (simd.splat_f32s(*high), simd.splat_f32s(*low));
                    let cell = &S::as_simd_f32s(cell).0.as_chunks::<GROUP>().0[index];
                    for v in 0..GROUP {
                        upper[v] = simd.mul_add_f32s(high, cell[v], upper[v]);
                        lower[v] = simd.mul_add_f32s(low, cell[v], lower[v]);
                    }
                }
                for v in 0..GROUP {
                    let carried = floor_of_part(simd, lower[v]);
                    upper[v] = simd.add_f32s(upper[v], carried);
                    lower[v] = simd.mul_add_f32s(carried, simd.splat_f32s(-PART), lower[v]);
                }
            }
            for v in 0..GROUP {
                let value = floor_of_part(simd, upper[v]);
                let value = simd.max_f32s(value, simd.splat_f32s(0.0));
                group[v] = simd.min_f32s(value, simd.splat_f32s(255.0));
            }
        }
        values
    }
}

/// floor(x / [`PART`]) of whole numbers below 2^23: less almost one half, then rounded to the
/// nearest by adding and taking away 1.5 * 2^23. What is rounded has 24 bits at most and never lies
/// in the middle.
#[inline(always)]
fn floor_of_part<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let almost_half = simd.splat_f32s(0.5 / PART - 0.5);
    let moved = simd.mul_add_f32s(x, simd.splat_f32s(1.0 / PART), almost_half);
    let round = simd.splat_f32s(12_582_912.0);
    simd.sub_f32s(simd.add_f32s(moved, round), round)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_hundreds_of_pixels_are_exact() {
        let taps = Taps::new(Span::whole(0, 700), 5, Filter::Bicubic);
        // Flat black and white, and all bytes mixed.
        let byte = |input: usize, lane: usize| match lane {
            0 => 0,
            1 => 255,
            _ => (input * (37 + lane) + input * input * lane) as u8,
        };
        let inputs_by_lane: Vec<[f32; LANES]> = (0..700)
            .map(|input| std::array::from_fn(|lane| f32::from(byte(input, lane))))
            .collect();
        for (first, weights) in &taps.outputs {
            assert!(weights.len() > 4 * CARRY, "{} weights", weights.len());
            let found = taps.weigh(pulp::Scalar, weights.clone(), &inputs_by_lane[*first..]);
            for (lane, found) in found.into_iter().enumerate() {
                let terms = taps.weights[weights.clone()].iter().zip(*first..);
                let sum: i64 = terms
                    .map(|([upper, lower], input)| {
                        (*upper as i64 * PART as i64 + *lower as i64) * i64::from(byte(input, lane))
                    })
                    .sum();
                let expected = ((sum + (1 << (FRACTION - 1))) >> FRACTION).clamp(0, 255);
                assert_eq!(found as i64, expected, "lane {lane}");
            }
        }
    }
}
