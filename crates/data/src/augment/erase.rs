//! Random erasing (Zhong et al., AAAI 2020) and shifted crops, the augmentations of
//! re-identification.

use rand::RngExt;

use super::draw::uniform;
use crate::Rng;
use crate::image::Rgb;

/// Draws before erasing is given up.
const ATTEMPTS: usize = 10;

/// Replaces a rectangle of a normalized image by noise from the standard normal distribution, with
/// some `probability`.
///
/// The rectangle covers 2 % to a third of the area, its height over width is 0.3 to 1/0.3 (uniform
/// in the logarithm), as in timm's mode `pixel`. `pixels`: [3, height, width].
pub fn erase(pixels: &mut [f32], height: usize, width: usize, probability: f32, rng: &mut Rng) {
    assert_eq!(pixels.len(), 3 * height * width, "values of an image");
    if rng.random::<f32>() >= probability {
        return;
    }
    for _ in 0..ATTEMPTS {
        let area = uniform([0.02, 1.0 / 3.0], rng) * (height * width) as f32;
        let aspect = uniform([0.3_f32.ln(), (1.0 / 0.3_f32).ln()], rng).exp();
        let h = (area * aspect).sqrt().round() as usize;
        let w = (area / aspect).sqrt().round() as usize;
        if h >= height || w >= width || h == 0 || w == 0 {
            continue;
        }
        let (top, left) = (
            rng.random_range(0..=height - h),
            rng.random_range(0..=width - w),
        );
        for plane in pixels.chunks_exact_mut(height * width) {
            for row in plane.chunks_exact_mut(width).skip(top).take(h) {
                row[left..left + w].fill_with(|| normal(rng));
            }
        }
        return;
    }
}

/// A number from the standard normal distribution (Box and Muller 1958).
pub fn normal(rng: &mut Rng) -> f32 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    (radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()) as f32
}

/// The image moved by up to `padding` pixels each way, black outside the image: torchvision's `Pad`
/// and `RandomCrop`.
pub fn shift(image: &Rgb, padding: usize, rng: &mut Rng) -> Rgb {
    let [dx, dy] = [(); 2].map(|()| rng.random_range(0..=2 * padding) as i64 - padding as i64);
    let mut shifted = Rgb::filled(image.width, image.height, [0; 3]);
    let (from, to) = (dx.max(0), (image.width as i64 + dx).min(image.width as i64));
    for row in dy.max(0)..(image.height as i64 + dy).min(image.height as i64) {
        if from >= to {
            break;
        }
        let source = image.row((row - dy) as usize);
        let start = 3 * (row as usize * image.width + from as usize);
        let bytes = 3 * (to - from) as usize;
        shifted.pixels[start..start + bytes]
            .copy_from_slice(&source[3 * (from - dx) as usize..][..bytes]);
    }
    shifted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng_for;

    #[test]
    fn one_rectangle_changes_and_no_more() {
        let (height, width) = (40, 20);
        for seed in 0..50 {
            let mut pixels = vec![9.0; 3 * height * width];
            erase(
                &mut pixels,
                height,
                width,
                1.0,
                &mut rng_for(seed, 0, "erase"),
            );
            let changed: Vec<usize> = (0..height * width).filter(|i| pixels[*i] != 9.0).collect();
            let share = changed.len() as f32 / (height * width) as f32;
            assert!((0.01..0.37).contains(&share), "{share}");
            let rows = changed[changed.len() - 1] / width - changed[0] / width + 1;
            assert_eq!(changed.len() % rows, 0, "no rectangle");
        }
        let mut pixels = vec![9.0; 3 * height * width];
        erase(&mut pixels, height, width, 0.0, &mut rng_for(0, 0, "erase"));
        assert!(pixels.iter().all(|p| *p == 9.0));
    }

    #[test]
    fn shifting_keeps_the_size_and_what_stays_inside() {
        let image = Rgb::new(3, 2, (1..=18).collect());
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let shifted = shift(&image, 4, &mut rng_for(seed, 0, "shift"));
            assert_eq!((shifted.width, shifted.height), (3, 2));
            let kept = shifted.pixels.chunks_exact(3).filter(|p| p[0] != 0).count();
            seen.insert(kept);
        }
        assert!(seen.contains(&0) && seen.contains(&6), "{seen:?}");
    }
}
