//! Linear probes of features, fitted by L-BFGS on plain slices.
//!
//! A probe minimizes a convex loss of logits `x Wᵀ + b` plus `penalty / 2 · |w|²` for the weights w
//! of each output; b has no penalty and may differ between positions. A [`ProbeLoss`] replaces
//! logits by its derivative, so that one optimizer fits all three: logistic regression per
//! attribute, multinomial logistic regression with soft targets, and a softmax over positions. Sums
//! over rows are made in pieces of fixed size, in order: results do not depend on the number of
//! threads.

use std::ops::Range;

use clasp_metrics::matmul::{MatrixView, matmul_here};
use rayon::prelude::*;

use super::lbfgs::{Lbfgs, LbfgsResult, add};

/// Rows in a piece of a parallel sum: enough that packing the operands of a matrix product pays.
const PIECE: usize = 2048;

/// Mean and scale of each channel over a set of features.
#[derive(Debug, Clone, PartialEq)]
pub struct Standardizer {
    mean: Vec<f32>,
    /// 1 / standard deviation, 0 for a channel that does not vary.
    scale: Vec<f32>,
}

impl Standardizer {
    /// Mean and scale of rows of `channels` values.
    pub fn fit(values: &[f32], channels: usize) -> Self {
        let rows = (values.len() / channels.max(1)).max(1) as f64;
        let total = |f: &(dyn Fn(usize, f64) -> f64 + Sync)| -> Vec<f64> {
            let pieces: Vec<Vec<f64>> = { values.par_chunks(PIECE * channels.max(1)) }
                .map(|piece| {
                    let mut sums = vec![0.0; channels];
                    for row in piece.chunks_exact(channels.max(1)) {
                        for (channel, (sum, value)) in sums.iter_mut().zip(row).enumerate() {
                            *sum += f(channel, f64::from(*value));
                        }
                    }
                    sums
                })
                .collect();
            (0..channels)
                .map(|channel| pieces.iter().map(|sums| sums[channel]).sum::<f64>() / rows)
                .collect()
        };
        let mean = total(&|_, value| value);
        let variance = total(&|channel, value| (value - mean[channel]).powi(2));
        let scale = variance.iter().zip(&mean).map(|(variance, mean)| {
            // Rounding alone gives a constant channel a small standard deviation.
            let std = variance.sqrt();
            if std > 1e-6 * mean.abs() && std > 1e-12 {
                (1.0 / std) as f32
            } else {
                0.0
            }
        });
        let scale = scale.collect();
        Self {
            mean: mean.into_iter().map(|m| m as f32).collect(),
            scale,
        }
    }

    /// Standardizes rows in place: mean 0, standard deviation 1.
    pub fn apply(&self, values: &mut [f32]) {
        values
            .par_chunks_mut(PIECE * self.mean.len().max(1))
            .for_each(|piece| {
                for row in piece.chunks_exact_mut(self.mean.len()) {
                    for (value, (mean, scale)) in
                        row.iter_mut().zip(self.mean.iter().zip(&self.scale))
                    {
                        *value = (*value - mean) * scale;
                    }
                }
            });
    }
}

/// Linear functions of features.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearProbe {
    inputs: usize,
    outputs: usize,
    /// Rows after which the biases repeat.
    period: usize,
    /// Weights `[outputs, inputs]`, then biases `[period, outputs]`.
    parameters: Vec<f32>,
}

impl LinearProbe {
    /// All zero, with one bias per output.
    pub fn zeros(inputs: usize, outputs: usize) -> Self {
        Self::with_positions(inputs, outputs, 1)
    }

    /// All zero, with a bias for each output and each of the `positions` that follow one another in
    /// the rows.
    pub fn with_positions(inputs: usize, outputs: usize, positions: usize) -> Self {
        Self {
            inputs,
            outputs,
            period: positions,
            parameters: vec![0.0; outputs * (inputs + positions)],
        }
    }

    /// Rows in a piece of a parallel sum: whole periods, whole groups of a loss.
    fn piece(&self) -> usize {
        (PIECE / self.period).max(1) * self.period
    }

    /// Logits `[rows, outputs]` of features `[rows, inputs]`.
    pub fn apply(&self, features: &[f32]) -> Vec<f32> {
        let rows = features.len() / self.inputs;
        let mut logits = vec![0.0; rows * self.outputs];
        let pieces = logits.par_chunks_mut(self.piece() * self.outputs);
        pieces
            .zip(features.par_chunks(self.piece() * self.inputs))
            .for_each(|(logits, features)| self.logits(&self.parameters, features, logits));
        logits
    }

    /// Logits with other parameters, on the calling thread.
    fn logits(&self, parameters: &[f32], features: &[f32], logits: &mut [f32]) {
        let (weights, biases) = parameters.split_at(self.outputs * self.inputs);
        let weights = MatrixView::new(weights, self.outputs, self.inputs).transposed();
        let features = MatrixView::new(features, logits.len() / self.outputs, self.inputs);
        matmul_here(features, weights, logits);
        for period in logits.chunks_mut(biases.len()) {
            add(period, biases, 1.0);
        }
    }

    /// Fits to features `[rows, inputs]`, starting from `self`; `penalties` holds one value per
    /// output.
    ///
    /// # Panics
    /// If features or targets are no whole number of rows, or penalties not as many as outputs.
    pub fn fit(
        self,
        features: &[f32],
        loss: &ProbeLoss,
        penalties: &[f64],
        solver: &Lbfgs,
    ) -> (Self, LbfgsResult) {
        assert_eq!(penalties.len(), self.outputs, "one penalty per output");
        let (inputs, outputs) = (self.inputs, self.outputs);
        let objective = |parameters: &[f32], gradient: &mut [f32]| {
            let piece = |(features, loss): (&[f32], ProbeLoss)| {
                let rows = features.len() / inputs;
                let mut logits = vec![0.0; rows * outputs];
                self.logits(parameters, features, &mut logits);
                let value = loss.derivative(&mut logits, outputs);
                let mut gradient = vec![0.0; parameters.len()];
                let (weights, biases) = gradient.split_at_mut(outputs * inputs);
                let residual = MatrixView::new(&logits, rows, outputs).transposed();
                matmul_here(residual, MatrixView::new(features, rows, inputs), weights);
                for period in logits.chunks(biases.len()) {
                    add(biases, period, 1.0);
                }
                (value, gradient)
            };
            let pieces: Vec<_> = { self.pieces(features, loss).into_par_iter() }
                .map(piece)
                .collect();
            gradient.fill(0.0);
            let mut value = 0.0;
            for (part, part_gradient) in pieces {
                value += part;
                add(gradient, &part_gradient, 1.0);
            }
            let weights = parameters[..outputs * inputs].iter().zip(gradient);
            for (i, (weight, gradient)) in weights.enumerate() {
                let penalty = penalties[i / inputs];
                *gradient += (penalty * f64::from(*weight)) as f32;
                value += 0.5 * penalty * f64::from(*weight).powi(2);
            }
            value
        };
        let (parameters, fit) = solver.minimize(self.parameters.clone(), objective);
        (Self { parameters, ..self }, fit)
    }

    /// The loss on features `[rows, inputs]`, without a penalty.
    pub fn loss(&self, features: &[f32], loss: &ProbeLoss) -> f64 {
        let pieces: Vec<f64> = { self.pieces(features, loss).into_par_iter() }
            .map(|(features, loss)| {
                let mut logits = vec![0.0; features.len() / self.inputs * self.outputs];
                self.logits(&self.parameters, features, &mut logits);
                loss.derivative(&mut logits, self.outputs)
            })
            .collect();
        pieces.into_iter().sum()
    }

    /// Features and targets in pieces of whole groups.
    fn pieces<'a>(
        &self,
        features: &'a [f32],
        loss: &ProbeLoss<'a>,
    ) -> Vec<(&'a [f32], ProbeLoss<'a>)> {
        if let ProbeLoss::Positions { rows, .. } = loss {
            assert_eq!(
                self.period, *rows,
                "positions of the biases and of the loss"
            );
        }
        let (inputs, targets) = (self.piece() * self.inputs, self.piece() * self.outputs);
        assert_eq!(
            features.len() * self.outputs,
            loss.targets() * self.inputs,
            "rows of {} features and of {} targets",
            self.inputs,
            self.outputs
        );
        let pieces = features.chunks(inputs).enumerate();
        pieces
            .map(|(i, features)| {
                let start = i * targets;
                let end = start + features.len() / self.inputs * self.outputs;
                (features, loss.slice(start..end))
            })
            .collect()
    }
}

/// A loss of logits, as a mean.
#[derive(Debug, Clone, Copy)]
pub enum ProbeLoss<'a> {
    /// Logistic loss of each output by itself, summed over outputs.
    Logistic {
        /// `[rows, outputs]`.
        targets: &'a [bool],
        /// Weight of a row for each output where the target is false, and where it is true.
        weights: &'a [[f32; 2]],
        /// What the sum over rows is divided by: their number.
        total: f64,
    },
    /// Cross-entropy of a softmax over outputs.
    Classes {
        /// Share of each class, `[rows, outputs]`; a row sums to its weight, which may be 0.
        targets: &'a [f32],
        /// What the sum over rows is divided by: the sum of their weights.
        total: f64,
    },
    /// Cross-entropy of a softmax over the rows of a group, for each output by itself.
    Positions {
        /// Rows in a group: positions of one image.
        rows: usize,
        /// Share of each position, `[groups, rows, outputs]`; those of a group and an output sum to
        /// 1, or to 0 where there is nothing to find.
        targets: &'a [f32],
        /// What the sum is divided by: the number of groups and outputs whose shares sum to 1.
        total: f64,
    },
}

impl<'a> ProbeLoss<'a> {
    /// Number of targets.
    fn targets(&self) -> usize {
        match self {
            Self::Logistic { targets, .. } => targets.len(),
            Self::Classes { targets, .. } | Self::Positions { targets, .. } => targets.len(),
        }
    }

    /// The part of the loss that some of the targets make.
    fn slice(&self, range: Range<usize>) -> Self {
        let mut part = *self;
        match &mut part {
            Self::Logistic { targets, .. } => *targets = &targets[range],
            Self::Classes { targets, .. } | Self::Positions { targets, .. } => {
                *targets = &targets[range];
            }
        }
        part
    }

    /// The loss; `logits` become its derivative.
    fn derivative(&self, logits: &mut [f32], outputs: usize) -> f64 {
        assert_eq!(self.targets(), logits.len(), "targets of logits");
        match *self {
            Self::Logistic {
                targets,
                weights,
                total,
            } => {
                let share = 1.0 / total.max(1.0) as f32;
                let mut loss = 0.0;
                for (i, (logit, target)) in logits.iter_mut().zip(targets).enumerate() {
                    let weight = weights[i % outputs][usize::from(*target)] * share;
                    let sign = if *target { 1.0 } else { -1.0 };
                    let margin = sign * *logit;
                    loss += f64::from(weight) * logistic(margin);
                    // 1 / (1 + e^m) without overflow on either side.
                    let small = (-margin.abs()).exp();
                    let wrong = if margin > 0.0 {
                        small / (1.0 + small)
                    } else {
                        1.0 / (1.0 + small)
                    };
                    *logit = -sign * weight * wrong;
                }
                loss
            }
            Self::Classes { targets, total } => {
                let scale = 1.0 / total.max(f64::MIN_POSITIVE) as f32;
                let rows = logits
                    .chunks_exact_mut(outputs)
                    .zip(targets.chunks_exact(outputs));
                rows.map(|(logits, targets)| softmax(logits, targets, 1, outputs, scale))
                    .sum()
            }
            Self::Positions {
                rows,
                targets,
                total,
            } => {
                let scale = 1.0 / total.max(f64::MIN_POSITIVE) as f32;
                let groups = logits
                    .chunks_exact_mut(rows * outputs)
                    .zip(targets.chunks_exact(rows * outputs));
                let group = |(logits, targets): (&mut [f32], &[f32])| -> f64 {
                    (0..outputs)
                        .map(|j| softmax(&mut logits[j..], &targets[j..], outputs, rows, scale))
                        .sum()
                };
                groups.map(group).sum()
            }
        }
    }
}

/// log(1 + e^-margin) without overflow on either side.
fn logistic(margin: f32) -> f64 {
    f64::from((-margin).max(0.0) + (-margin.abs()).exp().ln_1p())
}

/// The weighted logistic loss of each output by itself, summed over rows: logits and targets
/// `[rows, outputs]`.
pub fn logistic_losses(logits: &[f32], targets: &[bool], weights: &[[f32; 2]]) -> Vec<f64> {
    assert_eq!(logits.len(), targets.len(), "targets of logits");
    let mut losses = vec![0.0; weights.len()];
    for (i, (logit, target)) in logits.iter().zip(targets).enumerate() {
        let output = i % weights.len();
        let margin = if *target { *logit } else { -logit };
        losses[output] += f64::from(weights[output][usize::from(*target)]) * logistic(margin);
    }
    losses
}

/// Cross-entropy of `count` logits, `stride` apart, against targets that sum to their weight;
/// logits become derivatives.
fn softmax(logits: &mut [f32], targets: &[f32], stride: usize, count: usize, scale: f32) -> f64 {
    let places = || (0..count).map(|i| i * stride);
    let weight: f32 = places().map(|i| targets[i]).sum();
    let largest = places()
        .map(|i| logits[i])
        .fold(f32::NEG_INFINITY, f32::max);
    let normalizer = places().map(|i| (logits[i] - largest).exp()).sum::<f32>();
    let log_normalizer = largest + normalizer.ln();
    let mut loss = 0.0;
    for i in places() {
        let log_probability = logits[i] - log_normalizer;
        loss -= f64::from(targets[i] * log_probability);
        logits[i] = scale * (weight * log_probability.exp() - targets[i]);
    }
    loss * f64::from(scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(i: usize) -> f32 {
        ((i as f32 + 1.0) * 12.9898).sin() * 43_758.547 % 1.0
    }

    /// The derivative against differences, for every loss.
    #[test]
    fn derivatives_are_derivatives() {
        let logits: Vec<f32> = (0..24).map(|i| 3.0 * wave(i)).collect();
        let bools: Vec<bool> = (0..24).map(|i| wave(i + 100) > 0.0).collect();
        let weights = [[1.0, 2.0], [0.5, 1.0], [1.0, 0.0]];
        let classes: Vec<f32> = (0..24)
            .map(|i| {
                if i / 3 == 2 {
                    0.0
                } else {
                    [0.25, 0.0, 0.75][i % 3]
                }
            })
            .collect();
        let positions: Vec<f32> = (0..24)
            .map(|i| {
                if i % 3 == 1 {
                    0.0
                } else {
                    [0.1, 0.2, 0.3, 0.4][i / 3 % 4]
                }
            })
            .collect();
        let losses = [
            ProbeLoss::Logistic {
                targets: &bools,
                weights: &weights,
                total: 8.0,
            },
            ProbeLoss::Classes {
                targets: &classes,
                total: 7.0,
            },
            ProbeLoss::Positions {
                rows: 4,
                targets: &positions,
                total: 4.0,
            },
        ];
        for loss in &losses {
            let mut derivative = logits.clone();
            let value = loss.derivative(&mut derivative, 3);
            assert!(value > 0.0);
            for i in 0..24 {
                let at = |h: f32| {
                    let mut logits = logits.clone();
                    logits[i] += h;
                    loss.derivative(&mut logits, 3)
                };
                let difference = (at(1e-2) - at(-1e-2)) / 2e-2;
                assert!(
                    (f64::from(derivative[i]) - difference).abs() < 1e-4,
                    "{loss:?} {i}: {} {difference}",
                    derivative[i]
                );
            }
        }
    }

    #[test]
    fn extreme_logits_stay_finite() {
        let mut logits = [1e4, -1e4, 1e4, -1e4];
        let loss = ProbeLoss::Logistic {
            targets: &[true, true, false, false],
            weights: &[[1.0, 1.0]],
            total: 4.0,
        };
        let value = loss.derivative(&mut logits, 1);
        assert!(
            (value - 5e3).abs() < 1e-6 && logits == [-0.0, -0.25, 0.25, 0.0],
            "{value} {logits:?}"
        );
    }

    /// The optimum of scikit-learn's LogisticRegression(C=1, tol=1e-10) on the same numbers, see
    /// `golden/linear.py`.
    #[test]
    fn logistic_regression_equals_scikit_learn() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/golden/linear.json")).unwrap();
        let floats = |key: &str| -> Vec<f32> {
            golden[key]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_f64().unwrap() as f32)
                .collect()
        };
        let (features, inputs) = (floats("features"), 4);
        let rows = features.len() / inputs;
        let solver = Lbfgs {
            iterations: 500,
            tolerance: 1e-6,
        };
        let close = |found: &[f32], key: &str| {
            for (found, expected) in found.iter().zip(floats(key)) {
                assert!((found - expected).abs() < 2e-3, "{key}: {found} {expected}");
            }
        };

        let targets: Vec<bool> = floats("binary").into_iter().map(|v| v == 1.0).collect();
        let loss = ProbeLoss::Logistic {
            targets: &targets,
            weights: &[[1.0, 1.0]],
            total: rows as f64,
        };
        let (model, _) =
            LinearProbe::zeros(inputs, 1).fit(&features, &loss, &[1.0 / rows as f64], &solver);
        close(&model.parameters, "binary_parameters");

        let classes = floats("classes");
        let targets: Vec<f32> = classes
            .iter()
            .flat_map(|c| (0..3).map(move |k| f32::from(u8::from(*c == k as f32))))
            .collect();
        let loss = ProbeLoss::Classes {
            targets: &targets,
            total: rows as f64,
        };
        let (model, _) =
            LinearProbe::zeros(inputs, 3).fit(&features, &loss, &[1.0 / rows as f64; 3], &solver);
        let logits = model.apply(&features);
        let probabilities: Vec<f32> = { logits.chunks(3) }
            .flat_map(|row| {
                let sum: f32 = row.iter().map(|l| l.exp()).sum();
                row.iter().map(move |l| l.exp() / sum)
            })
            .collect();
        close(&probabilities, "class_probabilities");
    }

    #[test]
    fn standardized_features_have_mean_0_and_std_1() {
        let mut values: Vec<f32> = (0..3000)
            .map(|i| if i % 3 == 1 { 7.3 } else { 5.0 + 3.0 * wave(i) })
            .collect();
        let standardizer = Standardizer::fit(&values, 3);
        standardizer.apply(&mut values);
        let after = Standardizer::fit(&values, 3);
        assert!(after.mean.iter().all(|m| m.abs() < 1e-5), "{after:?}");
        assert!(
            (after.scale[0] - 1.0).abs() < 1e-4 && after.scale[1] == 0.0,
            "{after:?}"
        );
        assert!(values.iter().skip(1).step_by(3).all(|v| *v == 0.0));
    }
}
