//! Crops that one part fills.

use clasp_data::image::{Rgb, crop};
use clasp_data::vocabulary::IGNORE;
use clasp_data::{Rng, part};
use rand::RngExt;

/// The crop itself, or the whole picture with everything outside the crop in one color.
///
/// Dense features are read from pictures of whole people, where a part is small and off center: the
/// second kind shows a part in this way.
///
/// Returns the image and its classes; what is painted over is unknown.
pub(super) fn part_image(
    image: &Rgb,
    parts: &[u8],
    area: [usize; 4],
    rng: &mut Rng,
) -> (Rgb, Vec<u8>) {
    if rng.random_bool(0.5) {
        return (crop(image, area), crop_labels(parts, image.width, area));
    }
    let [x, y, w, h] = area;
    let color: [u8; 3] = if rng.random_bool(0.5) {
        let mut sum = [0u64; 3];
        for pixel in image.pixels.chunks_exact(3) {
            for (sum, value) in sum.iter_mut().zip(pixel) {
                *sum += u64::from(*value);
            }
        }
        let count = (image.width * image.height) as u64;
        sum.map(|s| (s / count) as u8)
    } else {
        [rng.random_range(60..200u8); 3]
    };
    let mut pixels = color.repeat(image.width * image.height);
    let mut labels = vec![IGNORE; image.width * image.height];
    for row in y..y + h {
        let at = row * image.width + x;
        labels[at..at + w].copy_from_slice(&parts[at..at + w]);
        let (from, to) = (3 * at, 3 * (at + w));
        pixels[from..to].copy_from_slice(&image.pixels[from..to]);
    }
    (Rgb::new(image.width, image.height, pixels), labels)
}

/// A rectangle of a map of classes: labels [rows, width], area x, y, width, height.
pub(super) fn crop_labels(labels: &[u8], width: usize, [x, y, w, h]: [usize; 4]) -> Vec<u8> {
    (y..y + h)
        .flat_map(|row| &labels[row * width + x..row * width + x + w])
        .copied()
        .collect()
}

/// A box that one class fills: at least half of it is the class and no other person's part is a
/// third of it. For the background, nearly all of it.
///
/// parts: [height, width], row-major. Returns x, y, width, height.
pub(super) fn part_crop(
    parts: &[u8],
    width: usize,
    class: u8,
    rng: &mut Rng,
) -> Option<[usize; 4]> {
    let height = parts.len() / width;
    let own: Vec<usize> = (0..parts.len()).filter(|i| parts[*i] == class).collect();
    if own.len() < 40 {
        return None;
    }
    // Integral images of the class and of all other parts.
    let stride = width + 1;
    let mut sums = vec![[0u32; 2]; stride * (height + 1)];
    for y in 0..height {
        let mut row = [0u32; 2];
        for x in 0..width {
            let label = parts[y * width + x];
            row[0] += u32::from(label == class);
            row[1] += u32::from(label != class && label != part::BACKGROUND);
            let above = sums[y * stride + x + 1];
            sums[(y + 1) * stride + x + 1] = [above[0] + row[0], above[1] + row[1]];
        }
    }
    let count = |[x, y, w, h]: [usize; 4], k: usize| {
        let at = |x: usize, y: usize| i64::from(sums[y * stride + x][k]);
        (at(x + w, y + h) - at(x, y + h) - at(x + w, y) + at(x, y)) as f32
    };
    let scale = (own.len() as f32).sqrt();
    let mut best: Option<(f32, [usize; 4])> = None;
    for _ in 0..40 {
        let middle = own[rng.random_range(0..own.len())];
        let size = if class == part::BACKGROUND {
            scale * rng.random_range(0.15..0.6f32)
        } else {
            scale * rng.random_range(0.45..1.5f32)
        };
        let stretch = rng.random_range(0.6..1.7f32).sqrt();
        let (w, h) = (
            ((size * stretch) as usize).clamp(10, width),
            ((size / stretch) as usize).clamp(10, height),
        );
        let x = (middle % width).saturating_sub(w / 2).min(width - w);
        let y = (middle / width).saturating_sub(h / 2).min(height - h);
        let area = [x, y, w, h];
        let total = (w * h) as f32;
        let (share, others) = (count(area, 0) / total, count(area, 1) / total);
        let enough = if class == part::BACKGROUND {
            share > 0.985
        } else {
            share >= 0.5 && others <= 0.3
        };
        // Larger boxes are preferred, with a random factor so that small ones occur too.
        let score = total * rng.random_range(0.3..1.0f32);
        if enough && best.is_none_or(|b| score > b.0) {
            best = Some((score, area));
        }
    }
    best.map(|b| b.1)
}
