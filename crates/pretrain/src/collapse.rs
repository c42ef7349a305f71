//! The collapse monitor of self-distillation.

/// Steps over which signals are averaged before the rules are applied.
const AVERAGED_STEPS: f64 = 20.0;
/// H − L_dino below this fraction of ln K is uniform collapse: the student predicts no more than
/// the mean target.
const MIN_GAIN: f64 = 0.05;
/// H below this fraction of ln min(K, samples) is sharp collapse, if the std of the features falls
/// too.
const MIN_ENTROPY: f64 = 0.5;
/// A std of the features below this fraction of its largest value has fallen.
const FALLEN_STD: f64 = 0.8;
/// A std of the features below this (1 is that of independent features) counts as 0.
const MIN_STD: f64 = 0.02;

/// What the collapse monitor needs of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CollapseSignals {
    /// L_dino, the loss of self-distillation.
    pub dino_loss: f64,
    /// H, the entropy of the mean of the teacher targets over several batches.
    pub mean_target_entropy: f64,
    /// Standard deviation of the normalized features over the batch, 1 for independent features.
    pub feature_std: f64,
}

/// Warns when self-distillation learns nothing or collapses. The best constant prediction has a
/// loss of H, so that H − L_dino is what the student has learned of single images.
///
/// | warning | rule |
/// |---|---|
/// | no learning (uniform collapse) | H − L_dino ≤ 0.05 · ln K |
/// | sharp collapse | H < ½ · ln min(K, samples), and the std of the features has fallen |
/// | equal features | std of the features over the batch < 0.02 |
pub struct CollapseMonitor {
    /// ln K.
    log_prototypes: f64,
    /// ln min(K, samples of a step).
    log_samples: f64,
    /// First step with warnings: at the start of a run all signals are those of a collapse.
    from: u64,
    loss: MovingAverage,
    entropy: MovingAverage,
    std: MovingAverage,
    largest_std: f64,
    warned: [bool; 3],
    self_distillation: bool,
}

/// An exponential moving average with bias correction.
#[derive(Default)]
struct MovingAverage {
    sum: f64,
    weight: f64,
}

impl MovingAverage {
    fn add(&mut self, value: f64) -> f64 {
        let keep = 1.0 - 1.0 / AVERAGED_STEPS;
        self.sum = keep * self.sum + value;
        self.weight = keep * self.weight + 1.0;
        self.sum / self.weight
    }
}

impl CollapseMonitor {
    /// A monitor for `prototypes` prototypes and `samples` teacher targets a step, with warnings
    /// from step `from` on, for a process that begins after step `done`: its averages begin there.
    pub fn new(prototypes: usize, samples: usize, from: u64, done: u64) -> Self {
        Self {
            log_prototypes: (prototypes as f64).ln(),
            log_samples: (prototypes.min(samples) as f64).ln(),
            from: match done {
                0 => from,
                done => from.max(done + AVERAGED_STEPS as u64),
            },
            loss: MovingAverage::default(),
            entropy: MovingAverage::default(),
            std: MovingAverage::default(),
            largest_std: 0.0,
            warned: [false; 3],
            self_distillation: true,
        }
    }

    /// The same for a run with a self-distillation of this `weight`: at 0 its loss is not trained,
    /// and the rules about it do not apply.
    #[must_use]
    pub fn with_weight(self, weight: f64) -> Self {
        Self {
            self_distillation: weight > 0.0,
            ..self
        }
    }

    /// Warnings after `step`, each with what to change; each is given once, and again only after
    /// the run has recovered.
    pub fn check(&mut self, step: u64, signals: CollapseSignals) -> Vec<String> {
        let loss = self.loss.add(signals.dino_loss);
        let entropy = self.entropy.add(signals.mean_target_entropy);
        let std = self.std.add(signals.feature_std);
        self.largest_std = self.largest_std.max(std);
        if step < self.from {
            return Vec::new();
        }
        let full = self.log_prototypes;
        let rules = [
            (
                self.self_distillation && entropy - loss <= MIN_GAIN * full,
                format!(
                    "self-distillation does not learn: the DINO loss is {loss:.3}, where a constant prediction \
                     would have {entropy:.3} (ln K = {full:.3}); lower `loss.teacher_temperature` or \
                     `projection_head.prototypes`, or raise `teacher.momentum` or `optimizer.lr`"
                ),
            ),
            (
                self.self_distillation
                    && entropy < MIN_ENTROPY * self.log_samples
                    && std < FALLEN_STD * self.largest_std,
                format!(
                    "sharp collapse: the teacher assigns all images to few prototypes (entropy of the mean \
                     target {entropy:.3}, of at most {:.3}) and the std of the features fell from {:.3} to \
                     {std:.3}; raise `loss.teacher_temperature`, or lower `loss.center_momentum` or \
                     `optimizer.lr`",
                    self.log_samples, self.largest_std
                ),
            ),
            (
                std < MIN_STD,
                format!(
                    "collapse: the std of the features over the batch is {std:.4} (without collapse near 1): \
                     all images have the same features; lower `optimizer.lr` or raise `teacher.momentum`"
                ),
            ),
        ];
        let mut warnings = Vec::new();
        for (warned, (now, text)) in self.warned.iter_mut().zip(rules) {
            if now && !*warned {
                warnings.push(format!("step {step}: {text}"));
            }
            *warned = now;
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signals(dino_loss: f64, mean_target_entropy: f64, feature_std: f64) -> CollapseSignals {
        CollapseSignals {
            dino_loss,
            mean_target_entropy,
            feature_std,
        }
    }

    #[test]
    fn without_self_distillation_only_the_features_are_watched() {
        let mut monitor = CollapseMonitor::new(512, 64, 0, 0).with_weight(0.0);
        assert!(monitor.check(1, signals(6.2, 6.2, 0.8)).is_empty());
        let mut monitor = CollapseMonitor::new(512, 64, 0, 0).with_weight(0.0);
        let found = monitor.check(1, signals(6.2, 6.2, 0.001));
        assert!(
            found.len() == 1 && found[0].contains("same features"),
            "{found:?}"
        );
    }

    /// Warnings of 100 steps with signals that are functions of the step.
    fn warnings(of: impl Fn(f64) -> CollapseSignals) -> Vec<String> {
        let mut monitor = CollapseMonitor::new(512, 64, 30, 0);
        (1..=100)
            .flat_map(|step| monitor.check(step, of(step as f64)))
            .collect()
    }

    #[test]
    fn a_resumed_run_is_judged_by_averages_again() {
        let mut monitor = CollapseMonitor::new(512, 64, 30, 500);
        // One noisy step after the resume, within a run that learns.
        let noisy = |step: u64| if step == 501 { 6.2 } else { 4.0 };
        let found: Vec<String> = (501..=600)
            .flat_map(|step| monitor.check(step, signals(noisy(step), 6.2, 0.8)))
            .collect();
        assert!(found.is_empty(), "{found:?}");
        let mut monitor = CollapseMonitor::new(512, 64, 30, 500);
        let found: Vec<String> = (501..=600)
            .flat_map(|step| monitor.check(step, signals(6.2, 6.2, 0.8)))
            .collect();
        assert!(found[0].starts_with("step 520:"), "{found:?}");
    }

    #[test]
    fn uniform_collapse_is_no_learning_at_any_entropy_of_the_targets() {
        // A loss of 6.05 to 6.20 with K = 512 (ln K = 6.238) is no learning although it is not
        // within a hundredth of ln K.
        let found = warnings(|_| signals(6.05, 6.2, 0.8));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("step 30:"), "{found:?}");
        assert!(found[0].contains("does not learn"), "{found:?}");
        // Few prototypes are used, and the student predicts only their frequencies.
        let found = warnings(|_| signals(3.0, 3.1, 0.8));
        assert!(found[0].contains("does not learn"), "{found:?}");
        // 0.5 below a constant prediction: something is learned, also with few prototypes in use.
        assert!(warnings(|_| signals(5.5, 6.0, 0.8)).is_empty());
        assert!(warnings(|_| signals(2.5, 3.0, 0.8)).is_empty());
    }

    #[test]
    fn sharp_collapse_is_few_prototypes_and_a_falling_std() {
        let std = |step: f64| 0.8 * (1.0 - step / 120.0);
        let found = warnings(|step| signals(0.3, 1.0, std(step)));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("sharp collapse"), "{found:?}");
        // Few prototypes alone may be due to the images.
        assert!(warnings(|_| signals(0.3, 1.0, 0.8)).is_empty());
        // The std of the features alone may fall for a while.
        assert!(warnings(|step| signals(3.0, 5.0, std(step))).is_empty());
    }

    #[test]
    fn equal_features_are_named_and_a_warning_is_given_again_after_recovery() {
        let found = warnings(|_| signals(3.0, 5.0, 0.001));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("same features"), "{found:?}");

        let mut monitor = CollapseMonitor::new(512, 64, 0, 0);
        let mut count = |signals: CollapseSignals| -> usize {
            (0..200)
                .map(|step| monitor.check(step, signals).len())
                .sum()
        };
        let (bad, good) = (signals(6.2, 6.2, 0.8), signals(4.0, 6.0, 0.8));
        assert_eq!([count(bad), count(good), count(bad)], [1, 0, 1]);
    }
}
