//! Gaussian blur of small float images.

use crate::vectors::vectorized;

/// How many standard deviations the kernel reaches; what lies beyond weighs 0.3 %.
const REACH: f32 = 3.0;

/// Blurs each plane with a Gaussian of standard deviation `sigma` pixels, cut off at three of
/// them and normalized, the image mirrored at its borders (without repeating the border pixel):
/// torchvision's `gaussian_blur` with kernel size 2 ceil(3 sigma) + 1.
///
/// `pixels`: `[3, height, width]`. `scratch` is space that the next call may use again.
pub(super) fn gaussian(
    pixels: &mut [f32],
    height: usize,
    width: usize,
    sigma: f32,
    scratch: &mut Vec<f32>,
) {
    let kernel = Kernel::new(sigma);
    let reach = kernel.sides.len();
    // One plane, blurred along rows, between the mirrored rows above and below; then one row with
    // its mirrored ends.
    let plane_length = height * width;
    let needed = plane_length + width + 2 * reach;
    // What is there already will be written over.
    if scratch.len() < needed {
        scratch.resize(needed, 0.0);
    }
    let (blurred, row) = scratch[..needed].split_at_mut(plane_length);
    blur_planes(pixels, blurred, row, [height, width], &kernel);
}

vectorized! {
    fn blur_planes<'a>(
        pixels: &'a mut [f32],
        blurred: &'a mut [f32],
        row: &'a mut [f32],
        size: [usize; 2],
        kernel: &'a Kernel,
    ) {
        let [height, width] = size;
        for plane in pixels.chunks_exact_mut(height * width) {
            along_rows(plane, blurred, row, width, kernel);
            along_columns(blurred, plane, height, width, kernel);
        }
    }
}

/// Weights of the middle and of the pixels at distance 1, 2, ... on both sides.
struct Kernel {
    middle: f32,
    sides: Vec<f32>,
}

impl Kernel {
    fn new(sigma: f32) -> Self {
        let reach = (REACH * sigma).ceil() as usize;
        let weight = |distance: usize| (-0.5 * (distance as f32 / sigma).powi(2)).exp();
        let mut sides: Vec<f32> = (1..=reach).map(weight).collect();
        let sum = 1.0 + 2.0 * sides.iter().sum::<f32>();
        sides.iter_mut().for_each(|weight| *weight /= sum);
        Self {
            middle: 1.0 / sum,
            sides,
        }
    }
}

/// The pixel that stands at `position`, counted from 0, of an axis mirrored at both ends again and
/// again: 2 1 | 0 1 2 3 | 2 1 0 1 ...
#[inline(always)]
fn mirrored(position: isize, length: usize) -> usize {
    // Most are inside, and a division takes as long as a row of sums.
    if (0..length as isize).contains(&position) {
        return position as usize;
    }
    let period = (2 * length - 2).max(1) as isize;
    let place = position.rem_euclid(period) as usize;
    if place < length {
        place
    } else {
        2 * length - 2 - place
    }
}

#[inline(always)]
fn along_rows(plane: &[f32], out: &mut [f32], row: &mut [f32], width: usize, kernel: &Kernel) {
    let reach = kernel.sides.len();
    for (source, out) in plane.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        row[reach..reach + width].copy_from_slice(source);
        for i in 0..reach {
            row[i] = source[mirrored(i as isize - reach as isize, width)];
            row[reach + width + i] = source[mirrored((width + i) as isize, width)];
        }
        weigh(
            out,
            &row[reach..],
            |distance| (&row[reach - distance..], &row[reach + distance..]),
            kernel,
        );
    }
}

#[inline(always)]
fn along_columns(plane: &[f32], out: &mut [f32], height: usize, width: usize, kernel: &Kernel) {
    let row = |y: isize| {
        let start = mirrored(y, height) * width;
        &plane[start..start + width]
    };
    for (y, out) in out.chunks_exact_mut(width).enumerate() {
        let y = y as isize;
        weigh(
            out,
            row(y),
            |distance| (row(y - distance as isize), row(y + distance as isize)),
            kernel,
        );
    }
}

/// The kernel over a row: the middle, and for each distance the pixels before and after, as
/// slices of which the first `out.len()` count. 32 pixels at a time stay in registers.
#[inline(always)]
fn weigh<'a>(
    out: &mut [f32],
    middle: &[f32],
    pair: impl Fn(usize) -> (&'a [f32], &'a [f32]),
    kernel: &Kernel,
) {
    const LANES: usize = 32;
    let width = out.len();
    let whole = width - width % LANES;
    for start in (0..whole).step_by(LANES) {
        let mut sums = [0.0_f32; LANES];
        for (sum, x) in sums.iter_mut().zip(&middle[start..start + LANES]) {
            *sum = kernel.middle * x;
        }
        for (i, weight) in kernel.sides.iter().enumerate() {
            let (before, after) = pair(i + 1);
            let (before, after) = (&before[start..start + LANES], &after[start..start + LANES]);
            for ((sum, a), b) in sums.iter_mut().zip(before).zip(after) {
                *sum = weight.mul_add(a + b, *sum);
            }
        }
        out[start..start + LANES].copy_from_slice(&sums);
    }
    for x in whole..width {
        let mut sum = kernel.middle * middle[x];
        for (i, weight) in kernel.sides.iter().enumerate() {
            let (before, after) = pair(i + 1);
            sum = weight.mul_add(before[x] + after[x], sum);
        }
        out[x] = sum;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borders_are_mirrored_without_repeating_them() {
        let places: Vec<_> = (-5..9).map(|i| mirrored(i, 4)).collect();
        assert_eq!(
            places,
            [1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1, 2].map(|i: usize| i)
        );
        assert!((-3..4).all(|i| mirrored(i, 1) == 0));
    }

    #[test]
    fn an_even_image_of_any_size_stays_as_it_is() {
        let mut scratch = Vec::new();
        for [height, width] in [[1, 1], [2, 1], [1, 3], [3, 40], [70, 33]] {
            for sigma in [0.1, 1.0, 2.0, 7.5] {
                let mut pixels = vec![0.75; 3 * height * width];
                gaussian(&mut pixels, height, width, sigma, &mut scratch);
                assert!(
                    pixels.iter().all(|x| (x - 0.75).abs() < 1e-5),
                    "{height} x {width} at {sigma}"
                );
            }
        }
    }

    #[test]
    fn a_point_becomes_the_kernel_with_its_variance() {
        let (height, width, sigma) = (41, 45, 2.0);
        let mut pixels = vec![0.0; 3 * height * width];
        pixels[20 * width + 22] = 1.0;
        gaussian(&mut pixels, height, width, sigma, &mut Vec::new());
        let plane = &pixels[..height * width];
        assert!((plane.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        let variance: f32 = plane
            .iter()
            .enumerate()
            .map(|(i, p)| p * ((i % width) as f32 - 22.0).powi(2))
            .sum();
        // Cut off at three standard deviations: 2.7 % below sigma squared.
        assert!((variance - sigma * sigma).abs() < 0.15, "{variance}");
        assert!(pixels[height * width..].iter().all(|&x| x == 0.0));
    }
}
