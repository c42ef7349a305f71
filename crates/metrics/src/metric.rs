//! A named value with its unit and the direction in which it is better: what an evaluation quotes,
//! what a checkpoint is selected by, what reports print.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A metric as it is quoted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metric {
    /// Name as in the papers: `mAP`, `rank-1`, `MR Reasonable`.
    pub name: String,
    /// Value in `unit`.
    pub value: f64,
    /// What the value counts.
    pub unit: MetricUnit,
    /// Which direction is better.
    pub better: Direction,
}

/// What a value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricUnit {
    /// From 0 to 1, printed in percent.
    Fraction,
    /// A plain number, such as a loss.
    Number,
}

/// Which of two values is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The larger one: accuracies, precisions, recalls.
    Higher,
    /// The smaller one: error rates and losses.
    Lower,
}

impl Metric {
    /// A fraction of which more is better: accuracy, precision, recall.
    pub fn score(name: impl Into<String>, value: f64) -> Self {
        Self {
            name: name.into(),
            value,
            unit: MetricUnit::Fraction,
            better: Direction::Higher,
        }
    }

    /// A fraction of which less is better: a miss rate.
    pub fn error_rate(name: impl Into<String>, value: f64) -> Self {
        Self {
            better: Direction::Lower,
            ..Self::score(name, value)
        }
    }

    /// A loss.
    pub fn loss(value: f64) -> Self {
        Self {
            name: "loss".to_owned(),
            value,
            unit: MetricUnit::Number,
            better: Direction::Lower,
        }
    }

    /// Whether this value is better than another of the same metric; equal values are not.
    pub fn is_better_than(&self, other: f64) -> bool {
        match self.better {
            Direction::Higher => self.value > other,
            Direction::Lower => self.value < other,
        }
    }

    /// Whether this value is better than another by more than the fraction `threshold` of it
    /// (`threshold_mode='rel'` of PyTorch's `ReduceLROnPlateau`).
    pub fn improves_on(&self, other: f64, threshold: f64) -> bool {
        match self.better {
            Direction::Higher => self.value > other * (1.0 + threshold),
            Direction::Lower => self.value < other * (1.0 - threshold),
        }
    }

    /// The value as it is printed: fractions in percent with two digits.
    pub fn printed(&self) -> String {
        match self.unit {
            MetricUnit::Fraction => format!("{:.2}", 100.0 * self.value),
            MetricUnit::Number => format!("{:.4}", self.value),
        }
    }
}

/// Name and printed value: `mAP 35.30`.
impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.printed())
    }
}

/// Metrics on one line, two spaces apart.
pub fn line_of(metrics: &[Metric]) -> String {
    let words: Vec<String> = metrics.iter().map(Metric::to_string).collect();
    words.join("  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_direction_decides_which_value_is_better() {
        assert!(Metric::score("mAP", 0.5).is_better_than(0.4));
        assert!(!Metric::score("mAP", 0.5).is_better_than(0.5));
        assert!(Metric::error_rate("MR Reasonable", 0.3).is_better_than(0.4));
        assert!(!Metric::error_rate("MR Reasonable", 0.4).is_better_than(0.4));
        // PyTorch's plateau of a loss: lower by a ten-thousandth, or no improvement.
        assert!(Metric::loss(0.9998).improves_on(1.0, 1e-4));
        assert!(!Metric::loss(0.99995).improves_on(1.0, 1e-4));
        assert!(Metric::score("mA", 0.502).improves_on(0.5, 1e-3));
    }

    #[test]
    fn fractions_print_in_percent() {
        let metrics = [Metric::score("mAP", 0.35304), Metric::loss(1.5)];
        assert_eq!(line_of(&metrics), "mAP 35.30  loss 1.5000");
        let json = serde_json::to_string(&metrics[0]).unwrap();
        assert_eq!(
            json,
            r#"{"name":"mAP","value":0.35304,"unit":"fraction","better":"higher"}"#
        );
        assert_eq!(serde_json::from_str::<Metric>(&json).unwrap(), metrics[0]);
    }
}
