//! Schedules: pure functions of the step, counted from 0, so that a resumed run needs no state of
//! them.

use std::f64::consts::PI;

/// A cosine from one value to another after a linear warm-up: learning rate, weight decay and the
/// teacher's momentum of DINO, whose `cosine_scheduler` this equals at every step (golden test
/// below).
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

    /// The value at a step, counted from 0. `to` is reached at `steps`, one step after the last.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            // The last step of the warm-up has the value `from`; a warm-up of one step has `start`.
            let done = step as f64 / (self.warmup - 1).max(1) as f64;
            return self.start + (self.from - self.start) * done;
        }
        let length = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let done = ((step - self.warmup) as f64 / length).min(1.0);
        self.to + 0.5 * (self.from - self.to) * (1.0 + (PI * done).cos())
    }
}

/// A line from `from` at step 0 to `to` at step `steps`, and `to` from there on; `to` everywhere
/// for `steps` = 0.
pub fn linear(from: f64, to: f64, steps: u64, step: u64) -> f64 {
    let done = match steps {
        0 => 1.0,
        steps => (step as f64 / steps as f64).min(1.0),
    };
    from + (to - from) * done
}

/// The linear scaling rule (Goyal et al., arXiv 1706.02677) as DINO has it: a learning rate for a
/// batch of 256 images, times batch / 256.
pub fn scaled_learning_rate(per_256: f64, batch: usize) -> f64 {
    per_256 * batch as f64 / 256.0
}

/// Whether the metrics of the step that ends with `step` steps done are logged: the first, every
/// `every`th, and the last of `steps`.
pub fn is_logged(step: u64, every: u64, steps: u64) -> bool {
    step.is_multiple_of(every) || step == steps || step == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tensor of 64-bit numbers of the golden file that `model.py` beside it makes.
    fn golden(name: &str) -> Vec<f64> {
        let bytes = include_bytes!("../../model/tests/golden/model.safetensors");
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let (header, values) = bytes[8..].split_at(length);
        let header: serde_json::Value = serde_json::from_slice(header).unwrap();
        assert_eq!(header[name]["dtype"], "F64");
        let [start, end] =
            [0, 1].map(|at| header[name]["data_offsets"][at].as_u64().unwrap() as usize);
        { values[start..end].chunks_exact(8) }
            .map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap()))
            .collect()
    }

    #[test]
    fn cosine_is_that_of_dino() {
        let schedule = Cosine::new(5e-4, 1e-6, 42).with_warmup(14);
        let expected = golden("schedule");
        assert_eq!(expected.len(), 42);
        for (step, expected) in expected.into_iter().enumerate() {
            let found = schedule.at(step as u64);
            assert!(
                (found - expected).abs() < 1e-15,
                "step {step}: {found} {expected}"
            );
        }
    }

    #[test]
    fn a_line_ends_at_its_value() {
        let at = |step| linear(0.02, 0.04, 10, step);
        assert_eq!(at(0), 0.02);
        assert!((at(5) - 0.03).abs() < 1e-12);
        assert_eq!([at(10), at(19), linear(0.02, 0.04, 0, 0)], [0.04; 3]);
    }

    #[test]
    fn cosine_reaches_both_ends() {
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
