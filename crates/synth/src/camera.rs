//! Cameras: position, light, lens, sensor and processing.

use rand::RngExt;
use rand::seq::IndexedRandom;

use crate::color::from_hsl;
use crate::sampling::jitter;
use crate::scenery::place::PlaceKind;
use clasp_data::Rng;
use clasp_data::image::Rgb;

/// Least and largest number of backgrounds of a camera.
const SCENES: [usize; 2] = [4, 8];

/// A background: a kind of place and the seed of its arrangement.
pub(crate) type Background = (PlaceKind, u64);

/// One camera at one moment. Pictures of one camera share its lens, its sensor and its processing;
/// its direction and the light change from shot to shot: see `Camera::moment`.
#[derive(Clone, Debug, PartialEq)]
pub struct Camera {
    /// Downward tilt, radians.
    pub pitch: f32,
    /// How far it is turned about its axis, radians.
    pub tilt: f32,
    /// Where the light comes from: -1 left, +1 right.
    pub light: f32,
    /// Factor on brightness.
    pub exposure: f32,
    /// Factor on contrast.
    pub contrast: f32,
    /// Factor on saturation.
    pub saturation: f32,
    /// Factor on red, green, blue.
    pub cast: [f32; 3],
    /// Blur, as the standard deviation in heights of the picture (0.004 = one pixel of 256).
    pub blur: f32,
    /// Standard deviation of the noise, 0 to 1.
    pub noise: f32,
    /// JPEG quality of what it writes.
    pub quality: u8,
    /// Place behind the people.
    pub place: PlaceKind,
    /// The arrangement of that place.
    pub place_seed: u64,
    /// The backgrounds of the camera; `place` and `place_seed` are one of these.
    pub scenes: Vec<(PlaceKind, u64)>,
}

impl Camera {
    /// A random camera with backgrounds of its own.
    pub fn sample(rng: &mut Rng) -> Self {
        let count = rng.random_range(SCENES[0]..=SCENES[1]);
        let scenes: Vec<Background> = (0..count)
            .map(|_| (PlaceKind::sample(rng), rng.random()))
            .collect();
        Self::with_scenes(scenes, rng)
    }

    /// The backgrounds of a site with several cameras: a few more than one camera has.
    pub(crate) fn site(rng: &mut Rng) -> Vec<Background> {
        { 0..SCENES[1] + 2 }
            .map(|_| (PlaceKind::sample(rng), rng.random()))
            .collect()
    }

    /// A random camera of a site: it has four to eight of the backgrounds `scenes`.
    pub(crate) fn sample_among(scenes: &[Background], rng: &mut Rng) -> Self {
        let count = rng.random_range(SCENES[0]..=SCENES[1]);
        let own = scenes.sample(rng, count).copied().collect();
        Self::with_scenes(own, rng)
    }

    /// The camera at another moment: another of its backgrounds, other light, other automatic
    /// exposure and white balance, and the angle to a person nearer or farther.
    ///
    /// With a single background for each camera, the background alone would identify the camera.
    pub(crate) fn moment(&self, rng: &mut Rng) -> Self {
        let (place, place_seed) =
            { self.scenes.choose(rng).copied() }.unwrap_or((self.place, self.place_seed));
        let tint = from_hsl(rng.random_range(0.0..360.0), 1.0, 0.5);
        let strength = 0.1 * rng.random::<f32>();
        Camera {
            place,
            place_seed,
            pitch: (self.pitch + jitter(rng, 0.0, 0.05)).clamp(0.03, 0.35),
            tilt: self.tilt + jitter(rng, 0.0, 0.02),
            light: if rng.random_bool(0.5) { -1.0 } else { 1.0 },
            exposure: (self.exposure * jitter(rng, 1.0, 0.15)).clamp(0.62, 1.25),
            contrast: (self.contrast * jitter(rng, 1.0, 0.08)).clamp(0.7, 1.2),
            saturation: (self.saturation * jitter(rng, 1.0, 0.08)).clamp(0.6, 1.15),
            cast: std::array::from_fn(|c| self.cast[c] * (1.0 + strength * (tint[c] - 0.5))),
            ..self.clone()
        }
    }

    fn with_scenes(scenes: Vec<Background>, rng: &mut Rng) -> Self {
        let (place, place_seed) =
            { scenes.first().copied() }.unwrap_or_else(|| (PlaceKind::sample(rng), rng.random()));
        let hue = rng.random_range(0.0..360.0);
        let strength = 0.12 * rng.random::<f32>();
        let tint = from_hsl(hue, 1.0, 0.5);
        Camera {
            pitch: rng.random_range(0.05..0.3),
            tilt: jitter(rng, 0.0, 0.04),
            light: if rng.random_bool(0.5) { -1.0 } else { 1.0 },
            exposure: rng.random_range(0.72..1.15),
            contrast: rng.random_range(0.78..1.12),
            saturation: rng.random_range(0.65..1.1),
            cast: tint.map(|v| 1.0 + strength * (v - 0.5)),
            blur: 0.0045 * rng.random::<f32>().powi(2),
            noise: 0.024 * rng.random::<f32>().powi(2),
            quality: rng.random_range(55..=92),
            place,
            place_seed,
            scenes,
        }
    }

    /// Applies lens blur, sensor noise, exposure, contrast and color of the camera to a picture.
    pub(crate) fn develop(&self, image: &mut Rgb, rng: &mut Rng) {
        let sigma = self.blur * image.height as f32;
        if sigma > 0.25 {
            blur(image, sigma);
        }
        let gain: [f32; 3] = std::array::from_fn(|c| self.exposure * self.cast[c]);
        let mut noise = Noise(rng.random::<u64>() | 1);
        let grain = self.noise * 255.0;
        for pixel in image.pixels.chunks_exact_mut(3) {
            let value: [f32; 3] = std::array::from_fn(|c| {
                let v = f32::from(pixel[c]) * gain[c];
                (v - 118.0) * self.contrast + 118.0
            });
            let gray = 0.299 * value[0] + 0.587 * value[1] + 0.114 * value[2];
            // Brightness noise is stronger than color noise, as in small sensors.
            let shared = grain * noise.next();
            for (out, value) in pixel.iter_mut().zip(value) {
                let v =
                    gray + (value - gray) * self.saturation + shared + 0.4 * grain * noise.next();
                *out = v.round().clamp(0.0, 255.0) as u8;
            }
        }
    }
}

/// A fast source of roughly normal numbers (sum of four uniform bytes, xorshift).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let bytes = self.0.to_le_bytes();
        let sum: i32 = bytes[2..6].iter().map(|b| i32::from(*b)).sum();
        // Four uniform bytes have the standard deviation 147.8.
        (sum - 510) as f32 / 147.8
    }
}

/// Gaussian blur, separable, edges repeated.
pub(crate) fn blur(image: &mut Rgb, sigma: f32) {
    let radius = (2.5 * sigma).ceil() as usize;
    let weights: Vec<f32> = {
        let raw: Vec<f32> = (0..=2 * radius)
            .map(|i| (-(i as f32 - radius as f32).powi(2) / (2.0 * sigma * sigma)).exp())
            .collect();
        let sum: f32 = raw.iter().sum();
        raw.into_iter().map(|w| w / sum).collect()
    };
    let (width, height) = (image.width, image.height);
    let pass =
        |from: &[u8], lines: usize, length: usize, line_step: usize, step: usize| -> Vec<u8> {
            let mut out = vec![0; from.len()];
            let mut padded = vec![[0f32; 3]; length + 2 * radius];
            for line in 0..lines {
                for (k, value) in padded.iter_mut().enumerate() {
                    let at = line * line_step + k.saturating_sub(radius).min(length - 1) * step;
                    *value = [
                        f32::from(from[at]),
                        f32::from(from[at + 1]),
                        f32::from(from[at + 2]),
                    ];
                }
                for i in 0..length {
                    let mut sum = [0.5f32; 3];
                    for (w, value) in weights.iter().zip(&padded[i..]) {
                        for (sum, v) in sum.iter_mut().zip(value) {
                            *sum += w * v;
                        }
                    }
                    let at = line * line_step + i * step;
                    out[at..at + 3].copy_from_slice(&sum.map(|s| s as u8));
                }
            }
            out
        };
    let rows = pass(&image.pixels, height, width, 3 * width, 3);
    image.pixels = pass(&rows, width, height, 3, 3 * width);
}
