//! Changes of color on planes of 32-bit floats from 0 to 1.
//!
//! Definitions are torchvision's for float tensors (`torchvision.transforms.v2.functional`):
//! brightness, contrast and saturation blend the image with black, with its mean gray and with
//! its own gray; hue turns the color circle of HSV.
//!
//! Contrast needs the mean over the whole view, everything else one pixel. So the operations run
//! in two passes at most, one up to the contrast and one from it on, and within a pass block by
//! block, each block staying in the nearest cache while all operations go over it.

use crate::vectors::vectorized;

/// A change of color.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum ColorOperation {
    /// Multiplies by the factor.
    Brightness(f32),
    /// Multiplies the difference to the view's mean gray.
    Contrast(f32),
    /// Multiplies the difference to the pixel's gray.
    Saturation(f32),
    /// Turns the hue by this share of the circle, from -0.5 to 0.5.
    Hue(f32),
    /// Takes color away.
    Gray,
}

/// Pixels of a block: three planes of it fill 12 KiB.
const BLOCK: usize = 1024;

/// Values from here up are inverted by solarizing: half of 255, rounded up, as Pillow has it.
const SOLARIZE_FROM: f32 = 128.0 / 255.0;

/// Applies the operations in order. `pixels`: `[3, height, width]`.
pub(super) fn apply(pixels: &mut [f32], operations: &[ColorOperation]) {
    let mut rest = operations;
    let mut contrast = None;
    while contrast.is_some() || !rest.is_empty() {
        let next = rest
            .iter()
            .position(|operation| matches!(operation, ColorOperation::Contrast(_)));
        let (now, later) = rest.split_at(next.unwrap_or(rest.len()));
        let gray = pass(pixels, contrast, now, next.is_some());
        let Some((ColorOperation::Contrast(factor), later)) = later.split_first() else {
            return;
        };
        contrast = Some((*factor, gray));
        rest = later;
    }
}

vectorized! {

/// One pass: a contrast with its mean gray, then operations on single pixels. Returns the mean
/// gray of the result where `measure` is set.
fn pass<'a>(
    pixels: &'a mut [f32],
    contrast: Option<(f32, f32)>,
    operations: &'a [ColorOperation],
    measure: bool,
) -> f32 {
    let area = pixels.len() / 3;
    let (red, rest) = pixels.split_at_mut(area);
    let (green, blue) = rest.split_at_mut(area);
    let mut sum = 0.0_f64;
    let blocks = red
        .chunks_mut(BLOCK)
        .zip(green.chunks_mut(BLOCK))
        .zip(blue.chunks_mut(BLOCK));
    for ((r, g), b) in blocks {
        if let Some((factor, mean)) = contrast {
            each(r, g, b, |pixel| pixel.map(|x| blend(x, mean, factor)));
        }
        for operation in operations {
            match *operation {
                ColorOperation::Brightness(factor) => {
                    each(r, g, b, |pixel| pixel.map(|x| clamp(x * factor)))
                }
                ColorOperation::Saturation(factor) => each(r, g, b, |pixel| {
                    let gray = gray(pixel);
                    pixel.map(|x| blend(x, gray, factor))
                }),
                ColorOperation::Hue(turn) => each(r, g, b, |pixel| turn_hue(pixel, 6.0 * turn)),
                ColorOperation::Gray => each(r, g, b, |pixel| [gray(pixel); 3]),
                // The caller cuts the list at each contrast.
                ColorOperation::Contrast(_) => {}
            }
        }
        if measure {
            sum += f64::from(gray_sum(r, g, b));
        }
    }
    (sum / area as f64) as f32
}
}

/// Replaces every pixel of a block.
#[inline(always)]
fn each(r: &mut [f32], g: &mut [f32], b: &mut [f32], change: impl Fn([f32; 3]) -> [f32; 3]) {
    for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
        [*r, *g, *b] = change([*r, *g, *b]);
    }
}

/// Sum of the grays of a block, in 16 partial sums that need not wait for one another.
#[inline(always)]
fn gray_sum(r: &[f32], g: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0_f32; LANES];
    let chunks = r.chunks(LANES).zip(g.chunks(LANES)).zip(b.chunks(LANES));
    for ((r, g), b) in chunks {
        for (((sum, &r), &g), &b) in sums.iter_mut().zip(r).zip(g).zip(b) {
            *sum += gray([r, g, b]);
        }
    }
    sums.iter().sum()
}

#[inline(always)]
fn gray([r, g, b]: [f32; 3]) -> f32 {
    0.2989 * r + 0.587 * g + 0.114 * b
}

#[inline(always)]
fn blend(x: f32, with: f32, factor: f32) -> f32 {
    clamp(factor * x + (1.0 - factor) * with)
}

#[inline(always)]
fn clamp(x: f32) -> f32 {
    x.clamp(0.0, 1.0)
}

/// `f32::max` orders NaN, which costs an instruction that pixels do not need.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// Turns the hue by `turn` sixths of the circle, -3 to 3, leaving value and saturation of HSV.
///
/// With M the largest channel and c its distance to the smallest, the hue in sixths is
/// h = (G - B) / c, 2 + (B - R) / c or 4 + (R - G) / c for M = R, G or B, and back again
/// channel n is M - c clamp(min(k, 4 - k), 0, 1) with k = (n + h) mod 6 and n = 5, 3, 1 for
/// R, G, B. Without branches, so that it vectorizes.
#[inline(always)]
fn turn_hue([r, g, b]: [f32; 3], turn: f32) -> [f32; 3] {
    let most = larger(larger(r, g), b);
    let spread = most - smaller(smaller(r, g), b);
    let divisor = if spread == 0.0 { 1.0 } else { spread };
    let (difference, sector) = if most == r {
        (g - b, 0.0)
    } else if most == g {
        (b - r, 2.0)
    } else {
        (r - g, 4.0)
    };
    let hue = sector + difference / divisor + turn;
    let hue = if hue < 0.0 { hue + 6.0 } else { hue };
    let hue = if hue >= 6.0 { hue - 6.0 } else { hue };
    [5.0, 3.0, 1.0].map(|n| {
        let k = n + hue;
        let k = if k >= 6.0 { k - 6.0 } else { k };
        most - spread * clamp(smaller(k, 4.0 - k))
    })
}

vectorized! {
    /// Solarizes if asked, then subtracts the mean and divides by the standard deviation.
    pub(super) fn finish<'a>(pixels: &'a mut [f32], solarize: bool, mean: [f32; 3], std: [f32; 3]) {
        let area = pixels.len() / 3;
        for ((plane, mean), std) in pixels.chunks_exact_mut(area).zip(mean).zip(std) {
            let (scale, offset) = (1.0 / std, -mean / std);
            if solarize {
                plane
                    .iter_mut()
                    .for_each(|x| *x = solarized(*x) * scale + offset);
            } else {
                plane.iter_mut().for_each(|x| *x = *x * scale + offset);
            }
        }
    }
}

#[inline(always)]
fn solarized(x: f32) -> f32 {
    if x >= SOLARIZE_FROM { 1.0 - x } else { x }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(pixel: [f32; 3], operation: ColorOperation) -> [f32; 3] {
        let mut pixels = pixel.to_vec();
        apply(&mut pixels, &[operation]);
        [pixels[0], pixels[1], pixels[2]]
    }

    #[test]
    fn a_third_of_the_circle_takes_red_to_green_to_blue() {
        assert_eq!(
            one([1.0, 0.0, 0.0], ColorOperation::Hue(1.0 / 3.0)),
            [0.0, 1.0, 0.0]
        );
        assert_eq!(
            one([0.0, 1.0, 0.0], ColorOperation::Hue(1.0 / 3.0)),
            [0.0, 0.0, 1.0]
        );
        assert_eq!(
            one([1.0, 0.0, 0.0], ColorOperation::Hue(-1.0 / 3.0)),
            [0.0, 0.0, 1.0]
        );
    }

    #[test]
    fn contrast_zero_leaves_the_mean_gray_of_what_came_before() {
        // More pixels than a block, halved in brightness before the contrast.
        let area = 2 * BLOCK + 17;
        let mut pixels: Vec<f32> = (0..3 * area)
            .map(|i| (i % area) as f32 / area as f32)
            .collect();
        apply(
            &mut pixels,
            &[
                ColorOperation::Brightness(0.5),
                ColorOperation::Contrast(0.0),
                ColorOperation::Gray,
            ],
        );
        let mean = 0.5 * (area - 1) as f32 / 2.0 / area as f32 * (0.2989 + 0.587 + 0.114);
        assert!(
            pixels.iter().all(|x| (x - mean * 0.9999).abs() < 1e-4),
            "{} and {mean}",
            pixels[0]
        );
    }

    #[test]
    fn solarizing_inverts_the_upper_half() {
        let mut pixels = vec![0.0, 127.0 / 255.0, 128.0 / 255.0, 0.25, 0.75, 1.0];
        finish(&mut pixels, true, [0.0; 3], [1.0; 3]);
        let expected = [0.0, 127.0 / 255.0, 127.0 / 255.0, 0.25, 0.25, 0.0];
        assert!(
            pixels
                .iter()
                .zip(expected)
                .all(|(x, e)| (x - e).abs() < 1e-6),
            "{pixels:?}"
        );
    }

    fn pixel() -> impl Strategy<Value = [f32; 3]> {
        prop::array::uniform3(prop_oneof![
            Just(0.0_f32),
            Just(1.0),
            Just(0.5),
            0.0_f32..=1.0
        ])
    }

    proptest! {
        #[test]
        fn factors_of_one_change_nothing(pixel in pixel()) {
            for operation in [ColorOperation::Brightness(1.0), ColorOperation::Contrast(1.0), ColorOperation::Saturation(1.0), ColorOperation::Hue(0.0)] {
                for (x, e) in one(pixel, operation).into_iter().zip(pixel) {
                    prop_assert!((x - e).abs() < 2e-6, "{operation:?} took {e} to {x}");
                }
            }
        }

        #[test]
        fn colors_stay_within_0_and_1(pixel in pixel(), factor in 0.0_f32..=2.0, turn in -0.5_f32..=0.5) {
            for operation in [ColorOperation::Brightness(factor), ColorOperation::Contrast(factor), ColorOperation::Saturation(factor), ColorOperation::Hue(turn), ColorOperation::Gray] {
                prop_assert!(one(pixel, operation).iter().all(|x| (0.0..=1.0).contains(x)));
            }
        }

        #[test]
        fn a_hue_turned_back_is_the_same(pixel in pixel(), turn in -0.5_f32..=0.5) {
            let there = one(pixel, ColorOperation::Hue(turn));
            for (x, e) in one(there, ColorOperation::Hue(-turn)).into_iter().zip(pixel) {
                prop_assert!((x - e).abs() < 1e-5, "{e} came back as {x}");
            }
        }
    }
}
