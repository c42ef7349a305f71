//! Random draws of augmentations.

use rand::RngExt;

use crate::Rng;

/// True with a probability of 0 to 1.
pub(super) fn happens(probability: f32, rng: &mut Rng) -> bool {
    rng.random::<f32>() < probability
}

/// A number between `least` and `most`.
pub(super) fn uniform([least, most]: [f32; 2], rng: &mut Rng) -> f32 {
    least + (most - least) * rng.random::<f32>()
}
