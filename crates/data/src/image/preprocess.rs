//! From images to the input of a network: normalization.

use std::ops::RangeInclusive;

use super::rgb::Rgb;

/// Mean of ImageNet's training images per channel, of values 0 to 1.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Standard deviation that goes with [`IMAGENET_MEAN`].
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];
/// Mean of CLIP's training images per channel, of values 0 to 1 (openai/CLIP).
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation that goes with [`CLIP_MEAN`].
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// Valid means of a channel of values 0 to 1.
pub const MEANS: RangeInclusive<f32> = -1e3..=1e3;
/// Valid standard deviations of a channel.
pub const DEVIATIONS: RangeInclusive<f32> = 1e-4..=1e3;

/// Checks mean and standard deviation of a normalization.
///
/// # Errors
/// What is expected and what was found.
pub fn check_normalization(mean: [f32; 3], std: [f32; 3]) -> Result<(), String> {
    for (what, values, range) in [("mean", mean, MEANS), ("std", std, DEVIATIONS)] {
        if !values.iter().all(|value| range.contains(value)) {
            let (from, to) = (range.start(), range.end());
            return Err(format!(
                "{what}: expected numbers from {from} to {to}, found {values:?}"
            ));
        }
    }
    Ok(())
}

/// `(pixel / 255 - mean) / std` per channel. Returns [3, height, width].
pub fn normalize(image: &Rgb, mean: [f32; 3], std: [f32; 3]) -> Vec<f32> {
    let area = image.width * image.height;
    let mut planes = vec![0.0; 3 * area];
    for (channel, plane) in planes.chunks_exact_mut(area).enumerate() {
        let mut values = [0.0; 256];
        for (level, value) in values.iter_mut().enumerate() {
            *value = (level as f32 / 255.0 - mean[channel]) / std[channel];
        }
        let pixels = image.pixels.chunks_exact(3);
        for (value, pixel) in plane.iter_mut().zip(pixels) {
            *value = values[usize::from(pixel[channel])];
        }
    }
    planes
}
