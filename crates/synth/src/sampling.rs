//! Random draws from ranges and weighted lists.

use clasp_data::Rng;
use rand::RngExt;

/// A number from `low` to `high`.
pub(crate) fn between(rng: &mut Rng, [low, high]: [f32; 2]) -> f32 {
    low + (high - low) * rng.random::<f32>()
}

/// `center` plus or minus up to `spread`.
pub(crate) fn jitter(rng: &mut Rng, center: f32, spread: f32) -> f32 {
    center + spread * (2.0 * rng.random::<f32>() - 1.0)
}

/// Draws one of the choices with a probability proportional to its weight.
pub(crate) fn weighted<T: Copy>(rng: &mut Rng, choices: &[(T, f32)]) -> T {
    let total: f32 = choices.iter().map(|c| c.1).sum();
    let mut rest = rng.random::<f32>() * total;
    for &(value, weight) in choices {
        rest -= weight;
        if rest < 0.0 {
            return value;
        }
    }
    choices[choices.len() - 1].0
}
