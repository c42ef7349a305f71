//! The collapse monitor, and who uses which expert.

use clasp_model::mix::TASKS;
use serde::Serialize;

use clasp_run::Metrics;

/// Steps over which metrics are averaged before they are judged.
const MEMORY: f64 = 20.0;
/// H − L_dino below this share of ln K is uniform collapse: the student predicts no more than the mean target.
const NO_LEARNING: f64 = 0.05;
/// H below this share of ln min(K, samples) is sharp collapse, where the features' spread falls too.
const SHARP: f64 = 0.5;
/// A spread below this share of its largest value has fallen.
const FALLEN: f64 = 0.8;
/// A standard deviation of features below this (1 is what independent features have) counts as 0.
const FLAT: f64 = 0.02;

/// Warns of collapse. H is the entropy of the mean of the teacher's targets, over several batches
/// (`teacher/mean_entropy`); the best constant prediction has a DINO loss of H.
///
/// | warning | rule |
/// |---|---|
/// | no learning (uniform collapse) | H − L_dino ≤ 0.05 · ln K |
/// | sharp collapse | H < ½ · ln min(K, samples), and the features' standard deviation has fallen |
/// | features alike | standard deviation of features over the batch < 0.02 |
pub struct CollapseMonitor {
    /// ln K.
    log_outputs: f64,
    /// ln min(K, samples of a step).
    log_samples: f64,
    /// Step before which nothing is judged: everything looks collapsed when a run begins.
    from: u64,
    loss: Average,
    entropy: Average,
    spread: Average,
    largest_spread: f64,
    warned: [bool; 3],
}

/// An exponential average without the bias of its start.
#[derive(Default)]
struct Average {
    sum: f64,
    weight: f64,
}

impl Average {
    fn add(&mut self, value: f64) -> f64 {
        let keep = 1.0 - 1.0 / MEMORY;
        self.sum = keep * self.sum + value;
        self.weight = keep * self.weight + 1.0;
        self.sum / self.weight
    }
}

impl CollapseMonitor {
    /// A monitor of a head of `outputs` outputs that sees `samples` targets a step, and warns after step `from`.
    pub fn new(outputs: usize, samples: usize, from: u64) -> Self {
        Self {
            log_outputs: (outputs as f64).ln(),
            log_samples: (outputs.min(samples) as f64).ln(),
            from,
            loss: Average::default(),
            entropy: Average::default(),
            spread: Average::default(),
            largest_spread: 0.0,
            warned: [false; 3],
        }
    }

    /// Warnings after `step`, each with what to change; each is given once, and again only after
    /// the run had recovered.
    pub fn check(&mut self, step: u64, metrics: &Metrics) -> Vec<String> {
        let average =
            |average: &mut Average, name: &str| metrics.get(name).map(|value| average.add(*value));
        let (Some(loss), Some(entropy), Some(spread)) = (
            average(&mut self.loss, "loss/dino"),
            average(&mut self.entropy, "teacher/mean_entropy"),
            average(&mut self.spread, "features/std"),
        ) else {
            return Vec::new();
        };
        self.largest_spread = self.largest_spread.max(spread);
        if step < self.from {
            return Vec::new();
        }
        let full = self.log_outputs;
        let rules = [
            (
                entropy - loss <= NO_LEARNING * full,
                format!(
                    "self-distillation does not learn: the DINO loss is {loss:.3}, where a constant prediction \
                     would have {entropy:.3} (ln K = {full:.3}); lower `loss.teacher_temperature` or \
                     `head.outputs`, or raise `teacher.momentum` or `optimiser.lr`"
                ),
            ),
            (
                entropy < SHARP * self.log_samples && spread < FALLEN * self.largest_spread,
                format!(
                    "sharp collapse: the teacher gives few outputs to all images (entropy of its mean target \
                     {entropy:.3}, of at most {:.3}) and the features' standard deviation fell from {:.3} to \
                     {spread:.3}; raise `loss.teacher_temperature`, or lower `loss.centre_momentum` or \
                     `optimiser.lr`",
                    self.log_samples, self.largest_spread
                ),
            ),
            (
                spread < FLAT,
                format!(
                    "collapse: the features' standard deviation over the batch is {spread:.4} (1 is free of \
                     collapse): all images have the same features; lower `optimiser.lr` or raise `teacher.momentum`"
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

/// How one prompt weighs the merged experts of one block.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Usage {
    /// Step of the measurement.
    pub step: u64,
    /// Place of the block among those with experts, from the input on.
    pub block: usize,
    /// Name of the task whose prompt it is.
    pub task: &'static str,
    /// Weight of each expert; sums to 1.
    pub weights: Vec<f64>,
    /// Entropy of the weights, over that of equal ones: 1 when all weigh the same.
    pub entropy: f64,
}

impl Usage {
    /// The usage of merged experts: their weights under each prompt, one row a task.
    pub fn of_weights(step: u64, block: usize, rows: Vec<Vec<f64>>) -> Vec<Self> {
        let usage = |(task, weights): (&'static str, Vec<f64>)| Self {
            step,
            block,
            task,
            entropy: relative_entropy(&weights),
            weights,
        };
        TASKS.into_iter().zip(rows).map(usage).collect()
    }
}

/// Entropy of shares over that of equal ones: 1 when all are alike.
fn relative_entropy(shares: &[f64]) -> f64 {
    let terms = shares.iter().filter(|share| **share > 0.0);
    let entropy = -terms.map(|share| share * share.ln()).sum::<f64>();
    if shares.len() > 1 {
        entropy / (shares.len() as f64).ln()
    } else {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(loss: f64, entropy: f64, spread: f64) -> Metrics {
        Metrics::from([
            ("loss/dino".to_owned(), loss),
            ("teacher/mean_entropy".to_owned(), entropy),
            ("features/std".to_owned(), spread),
        ])
    }

    /// Warnings of 100 steps whose metrics are functions of the step.
    fn warnings(of: impl Fn(f64) -> Metrics) -> Vec<String> {
        let mut monitor = CollapseMonitor::new(512, 64, 30);
        (1..=100)
            .flat_map(|step| monitor.check(step, &of(step as f64)))
            .collect()
    }

    #[test]
    fn uniform_collapse_is_no_learning_whatever_the_entropy_of_a_target() {
        // Finding 2: a loss of 6.05 to 6.20 with K = 512 (ln K = 6.238) was taken for health, as it was not within a
        // hundredth of ln K.
        let found = warnings(|_| metrics(6.05, 6.2, 0.8));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("step 30:"), "{found:?}");
        assert!(found[0].contains("does not learn"), "{found:?}");
        // Few outputs in use, and a student that predicts their shares alone.
        let found = warnings(|_| metrics(3.0, 3.1, 0.8));
        assert!(found[0].contains("does not learn"), "{found:?}");
        // 0.5 below what a constant would have: something is learned, also where few outputs are in use.
        assert!(warnings(|_| metrics(5.5, 6.0, 0.8)).is_empty());
        assert!(warnings(|_| metrics(2.5, 3.0, 0.8)).is_empty());
    }

    #[test]
    fn sharp_collapse_is_few_outputs_and_features_that_come_together() {
        let spread = |step: f64| 0.8 * (1.0 - step / 120.0);
        let found = warnings(|step| metrics(0.3, 1.0, spread(step)));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("sharp collapse"), "{found:?}");
        // Few outputs alone may be what the images are like.
        assert!(warnings(|_| metrics(0.3, 1.0, 0.8)).is_empty());
        // Features alone may come together for a while.
        assert!(warnings(|step| metrics(3.0, 5.0, spread(step))).is_empty());
    }

    #[test]
    fn equal_features_are_named_and_a_warning_is_given_again_after_recovery() {
        let found = warnings(|_| metrics(3.0, 5.0, 0.001));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("same features"), "{found:?}");

        let mut monitor = CollapseMonitor::new(512, 64, 0);
        let mut count = |metrics: &Metrics| -> usize {
            (0..200)
                .map(|step| monitor.check(step, metrics).len())
                .sum()
        };
        let (bad, good) = (metrics(6.2, 6.2, 0.8), metrics(4.0, 6.0, 0.8));
        assert_eq!([count(&bad), count(&good), count(&bad)], [1, 0, 1]);
    }

    #[test]
    fn usage_of_merged_experts_has_a_row_a_task() {
        let rows = vec![vec![0.5, 0.5], vec![1.0, 0.0], vec![0.5, 0.5]];
        let usage = Usage::of_weights(7, 1, rows);
        let found: Vec<_> = usage
            .iter()
            .map(|u| (u.task, u.step, u.block, u.entropy))
            .collect();
        let expected = [("identity", 1.0), ("part", 0.0), ("attribute", 1.0)];
        assert_eq!(found, expected.map(|(task, entropy)| (task, 7, 1, entropy)));
    }
}
