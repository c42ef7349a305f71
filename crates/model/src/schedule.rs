//! What changes over a run, as pure functions of the step.

use std::f64::consts::PI;

/// A cosine from one value to another after a linear warm-up: learning rate, weight decay and the
/// teacher's momentum in DINO, whose `cosine_scheduler` this equals at every step
/// (tests/golden.rs).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cosine {
    /// Value after the warm-up.
    pub from: f64,
    /// Value at the end.
    pub to: f64,
    /// Steps of the run, warm-up included.
    pub steps: u64,
    /// Steps of the warm-up.
    pub warmup: u64,
    /// Value at step 0 of a warm-up.
    pub start: f64,
}

impl Cosine {
    /// Without a warm-up.
    pub fn new(from: f64, to: f64, steps: u64) -> Self {
        Self {
            from,
            to,
            steps,
            warmup: 0,
            start: 0.0,
        }
    }

    /// With a warm-up from 0.
    pub fn with_warmup(self, warmup: u64) -> Self {
        Self { warmup, ..self }
    }

    /// The value at a step, counted from 0. From the last step on it stays near `to`, which it
    /// reaches at `steps`.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            // The last step of the warm-up has the full value, so a warm-up of one step is at
            // `start` only.
            let share = step as f64 / (self.warmup - 1).max(1) as f64;
            return self.start + (self.from - self.start) * share;
        }
        let length = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let done = ((step - self.warmup) as f64 / length).min(1.0);
        self.to + 0.5 * (self.from - self.to) * (1.0 + (PI * done).cos())
    }
}

/// DINO's rule: a learning rate for a batch of 256 images times batch / 256.
pub fn scaled_learning_rate(per_256: f64, batch: usize) -> f64 {
    per_256 * batch as f64 / 256.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_where_it_should() {
        let rate = Cosine::new(5e-4, 1e-6, 21).with_warmup(7);
        assert_eq!(rate.at(0), 0.0);
        assert_eq!(rate.at(6), 5e-4);
        assert_eq!(rate.at(7), 5e-4);
        assert!((rate.at(21) - 1e-6).abs() < 1e-15);
        assert_eq!(rate.at(1000), rate.at(21));
        let momentum = Cosine::new(0.996, 1.0, 100);
        assert_eq!(momentum.at(0), 0.996);
        assert!((momentum.at(50) - 0.998).abs() < 1e-12);
        assert_eq!(momentum.at(100), 1.0);
        assert_eq!(momentum.at(1000), 1.0);
    }
}
