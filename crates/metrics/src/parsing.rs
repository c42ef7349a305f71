//! Human parsing: pixel accuracy, mean accuracy and mIoU from a confusion matrix, as LIP reports
//! them.
//!
//! With M\[true, predicted\] over all pixels whose true label is not 255:
//!
//! - pixel accuracy = tr M / Σ M;
//! - mean accuracy = mean over classes of M_cc / max(1, row c);
//! - mIoU = mean over classes, background included, of M_cc / max(1, row c + column c - M_cc).
//!
//! The matrix is filled one image after the other, so that no prediction is kept.

use serde::{Deserialize, Serialize};

use crate::{MetricError, mean_of};

/// The label of pixels that do not count.
pub const IGNORE: u8 = 255;

/// Counts of pixels by true and predicted class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfusionMatrix {
    classes: usize,
    /// `[true, predicted]`, row-major.
    counts: Vec<u64>,
}

impl ConfusionMatrix {
    /// An empty matrix.
    ///
    /// # Panics
    /// If there is no class or more than 255.
    pub fn new(classes: usize) -> Self {
        assert!(
            (1..=255).contains(&classes),
            "1 to 255 classes, found {classes}"
        );
        Self {
            classes,
            counts: vec![0; classes * classes],
        }
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Counts the pixels of one label map; those of the ignore index ([`IGNORE`]) are not counted.
    ///
    /// # Errors
    /// [`MetricError::LabelOutOfRange`]; nothing is counted then.
    ///
    /// # Panics
    /// If the two maps differ in size.
    pub fn add(&mut self, truth: &[u8], predicted: &[u8]) -> Result<(), MetricError> {
        assert_eq!(
            truth.len(),
            predicted.len(),
            "true and predicted label map differ in size"
        );
        let classes = self.classes;
        let beyond = |label: u8| usize::from(label) >= classes;
        for (pixel, (&t, &p)) in truth.iter().zip(predicted).enumerate() {
            if t != IGNORE && beyond(t) {
                return Err(MetricError::LabelOutOfRange {
                    what: "true",
                    pixel,
                    classes,
                    found: t,
                });
            }
            if t != IGNORE && beyond(p) {
                return Err(MetricError::LabelOutOfRange {
                    what: "predicted",
                    pixel,
                    classes,
                    found: p,
                });
            }
        }
        for (&t, &p) in truth.iter().zip(predicted).filter(|(t, _)| **t != IGNORE) {
            self.counts[usize::from(t) * classes + usize::from(p)] += 1;
        }
        Ok(())
    }

    /// The counts that are not 0, with their true and predicted class.
    pub fn nonzero(&self) -> impl Iterator<Item = (u8, u8, u64)> {
        // `new` allows classes that a label can have only.
        let label = |class: usize| class as u8;
        let count = move |(at, pixels): (usize, &u64)| {
            let (truth, predicted) = (at / self.classes, at % self.classes);
            (label(truth), label(predicted), *pixels)
        };
        self.counts
            .iter()
            .enumerate()
            .map(count)
            .filter(|(.., pixels)| *pixels > 0)
    }

    /// Adds to one count.
    ///
    /// # Panics
    /// If there is no such class.
    pub fn add_pixels(&mut self, truth: u8, predicted: u8, pixels: u64) {
        let [truth, predicted] = [truth, predicted].map(usize::from);
        assert!(
            truth.max(predicted) < self.classes,
            "{} classes, found {}",
            self.classes,
            truth.max(predicted)
        );
        let count = &mut self.counts[truth * self.classes + predicted];
        *count = count.saturating_add(pixels);
    }

    /// Adds the counts of another matrix, so that threads can each fill one.
    ///
    /// # Panics
    /// If the numbers of classes differ.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(
            self.classes, other.classes,
            "confusion matrices of different classes"
        );
        for (count, other) in self.counts.iter_mut().zip(&other.counts) {
            *count += other;
        }
    }

    /// The metrics.
    pub fn metrics(&self) -> ParsingMetrics {
        let row = |c: usize| {
            self.counts[c * self.classes..(c + 1) * self.classes]
                .iter()
                .sum::<u64>()
        };
        let column = |c: usize| {
            self.counts
                .iter()
                .skip(c)
                .step_by(self.classes)
                .sum::<u64>()
        };
        let per_class: Vec<ClassScore> = (0..self.classes)
            .map(|c| {
                let (hits, pixels, predicted) =
                    (self.counts[c * self.classes + c], row(c), column(c));
                let union = pixels + predicted - hits;
                ClassScore {
                    pixels,
                    predicted,
                    accuracy: (pixels > 0).then(|| hits as f64 / pixels as f64),
                    iou: (union > 0).then(|| hits as f64 / union as f64),
                }
            })
            .collect();
        let pixels: u64 = self.counts.iter().sum();
        let hits: u64 = self.counts.iter().step_by(self.classes + 1).sum();
        let all = |f: fn(&ClassScore) -> Option<f64>| {
            per_class
                .iter()
                .map(|class| f(class).unwrap_or(0.0))
                .sum::<f64>()
                / self.classes as f64
        };
        ParsingMetrics {
            pixel_accuracy: (pixels > 0).then(|| hits as f64 / pixels as f64),
            mean_accuracy: all(|class| class.accuracy),
            mean_iou: all(|class| class.iou),
            mean_iou_present: mean_of(
                per_class
                    .iter()
                    .filter(|class| class.pixels > 0)
                    .map(|class| class.iou),
            ),
            absent: (0..self.classes)
                .filter(|&c| per_class[c].pixels == 0)
                .collect(),
            per_class,
            pixels,
        }
    }
}

/// The metrics of one evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ParsingMetrics {
    /// Share of pixels with the right label; `None` without a pixel.
    pub pixel_accuracy: Option<f64>,
    /// Mean over all classes of the share of their pixels found, absent classes counted as 0.
    pub mean_accuracy: f64,
    /// Mean IoU over all classes, absent ones counted as 0: the published metric where every class
    /// occurs.
    pub mean_iou: f64,
    /// Mean IoU over the classes that the truth holds.
    pub mean_iou_present: Option<f64>,
    /// Classes that the truth does not hold.
    pub absent: Vec<usize>,
    /// One entry per class.
    pub per_class: Vec<ClassScore>,
    /// Pixels counted.
    pub pixels: u64,
}

impl ParsingMetrics {
    /// Mean IoU over `classes` classes of predicting the most frequent class everywhere.
    pub fn constant_iou(&self, classes: usize) -> f64 {
        let largest = self.per_class.iter().map(|class| class.pixels).max();
        largest.unwrap_or(0) as f64 / (self.pixels.max(1) as f64 * classes.max(1) as f64)
    }
}

/// The metrics of one class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassScore {
    /// Pixels of this class.
    pub pixels: u64,
    /// Pixels predicted to be of this class.
    pub predicted: u64,
    /// Share of its pixels found; `None` if it has none.
    pub accuracy: Option<f64>,
    /// Intersection over union; `None` if it is neither true nor predicted anywhere.
    pub iou: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_maps_by_hand() {
        let mut confusion = ConfusionMatrix::new(3);
        confusion.add(&[0, 0, 1, 255], &[0, 1, 1, 9]).unwrap();
        let mut other = ConfusionMatrix::new(3);
        other.add(&[1, 1, 0, 255], &[1, 0, 0, 255]).unwrap();
        confusion.merge(&other);
        let metrics = confusion.metrics();
        // Class 0: 2 of 3, union 4. Class 1: 2 of 3, union 4. Class 2 never.
        assert_eq!(metrics.pixels, 6);
        assert_eq!(metrics.pixel_accuracy, Some(4.0 / 6.0));
        assert!((metrics.mean_accuracy - 4.0 / 9.0).abs() < 1e-15);
        assert!((metrics.mean_iou - 1.0 / 3.0).abs() < 1e-15);
        assert_eq!(
            (metrics.mean_iou_present, metrics.absent),
            (Some(0.5), vec![2])
        );
    }

    #[test]
    fn labels_out_of_range_are_refused_and_not_counted() {
        let mut confusion = ConfusionMatrix::new(3);
        let error = confusion.add(&[0, 3], &[0, 0]).unwrap_err();
        assert_eq!(
            error,
            MetricError::LabelOutOfRange {
                what: "true",
                pixel: 1,
                classes: 3,
                found: 3
            }
        );
        assert!(confusion.add(&[0, 0], &[0, 255]).is_err());
        assert_eq!(confusion, ConfusionMatrix::new(3));
        assert_eq!(confusion.metrics().pixel_accuracy, None);
        assert_eq!(confusion.metrics().mean_iou_present, None);
    }
}
