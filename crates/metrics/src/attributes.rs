//! Attribute recognition: mA and the instance metrics of Li et al., "A Richly Annotated Dataset for
//! Pedestrian Attribute Recognition" (RAP, 2016), as PA-100K, PETA and RAP report them.
//!
//! With TP, TN, P, N counted over images for one attribute, and I = |true ∩ predicted|, U = |true ∪
//! predicted| counted over attributes for one image:
//!
//! - mA = mean over attributes of (TP/P + TN/N) / 2;
//! - accuracy = mean of I/U, precision = mean of I/|predicted|, recall = mean of I/|true| over
//!   images, where 0/0 is 0;
//! - F1 = 2 · precision · recall / (precision + recall), of those means.
//!
//! An attribute without a positive or without a negative in the split has 0 for that half, so that
//! metrics stay comparable with published ones; such attributes are listed, and `ma_defined` leaves
//! them out.

use serde::{Deserialize, Serialize};

use crate::{Metric, MetricError, mean_of};

/// The metrics of one evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttributeMetrics {
    /// Mean over attributes of the balanced accuracy.
    pub ma: f64,
    /// The same without the degenerate attributes; `None` if there is no other.
    pub ma_defined: Option<f64>,
    /// Mean intersection over union of the attributes of an image.
    pub accuracy: f64,
    /// Mean share of the predicted attributes that are true.
    pub precision: f64,
    /// Mean share of the true attributes that are predicted.
    pub recall: f64,
    /// Harmonic mean of `precision` and `recall`.
    pub f1: f64,
    /// Mean average precision over attributes with a positive: needs no threshold.
    pub map: Option<f64>,
    /// One entry per attribute.
    pub per_attribute: Vec<SingleAttributeMetrics>,
    /// Attributes without a positive or without a negative.
    pub degenerate: Vec<usize>,
    /// Number of images.
    pub images: usize,
}

impl AttributeMetrics {
    /// The metrics to quote, the main one first.
    pub fn quoted(&self) -> Vec<Metric> {
        let mut quoted = vec![Metric::score("mA", self.ma)];
        quoted.extend(self.map.map(|map| Metric::score("mAP", map)));
        quoted.extend([
            Metric::score("accuracy", self.accuracy),
            Metric::score("precision", self.precision),
            Metric::score("recall", self.recall),
            Metric::score("F1", self.f1),
        ]);
        quoted
    }
}

/// The metrics of one attribute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SingleAttributeMetrics {
    /// Images that have it.
    pub positives: usize,
    /// Images that do not.
    pub negatives: usize,
    /// TP/P; `None` without positives.
    pub true_positive_rate: Option<f64>,
    /// TN/N; `None` without negatives.
    pub true_negative_rate: Option<f64>,
    /// (TP/P + TN/N) / 2, an undefined half counted as 0.
    pub balanced_accuracy: f64,
    /// Average precision of the ranking by probability; `None` without positives.
    pub average_precision: Option<f64>,
}

/// Evaluates probabilities against the truth, both `[images, attributes]`. A probability strictly
/// above `threshold` (0.5 in the published protocol) predicts the attribute.
///
/// ```
/// // Two images, two attributes: hat, bag.
/// let truth = [true, false, false, true];
/// let metrics = clasp_metrics::attributes::evaluate(&truth, &[0.9, 0.2, 0.1, 0.4], 2, 0.5)?;
/// assert_eq!((metrics.ma, metrics.per_attribute[0].balanced_accuracy), (0.75, 1.0));
/// # Ok::<(), clasp_metrics::MetricError>(())
/// ```
///
/// # Errors
/// [`MetricError::NotFinite`], with the image as row.
///
/// # Panics
/// If the two lengths differ or are no multiple of `attributes`.
pub fn evaluate(
    truth: &[bool],
    probabilities: &[f32],
    attributes: usize,
    threshold: f32,
) -> Result<AttributeMetrics, MetricError> {
    assert_eq!(
        truth.len(),
        probabilities.len(),
        "true values and probabilities differ in number"
    );
    assert!(
        attributes > 0 && truth.len().is_multiple_of(attributes),
        "{} values of {attributes} attributes",
        truth.len()
    );
    if let Some(at) = probabilities.iter().position(|p| !p.is_finite()) {
        let found = f64::from(probabilities[at]);
        return Err(MetricError::NotFinite {
            what: "probabilities of image",
            row: at / attributes,
            found,
        });
    }
    let images = truth.len() / attributes;
    let per_attribute: Vec<SingleAttributeMetrics> = (0..attributes)
        .map(|j| score(truth, probabilities, attributes, j, threshold))
        .collect();
    let degenerate: Vec<usize> = (0..attributes)
        .filter(|&j| per_attribute[j].positives == 0 || per_attribute[j].negatives == 0)
        .collect();

    let (mut accuracy, mut precision, mut recall) = (0.0, 0.0, 0.0);
    for (truth, probabilities) in truth
        .chunks(attributes)
        .zip(probabilities.chunks(attributes))
    {
        let pairs = || {
            truth
                .iter()
                .zip(probabilities.iter().map(|p| *p > threshold))
        };
        let both = pairs().filter(|(t, p)| **t && *p).count();
        accuracy += ratio(both, pairs().filter(|(t, p)| **t || *p).count()).unwrap_or(0.0);
        precision += ratio(both, pairs().filter(|(_, p)| *p).count()).unwrap_or(0.0);
        recall += ratio(both, pairs().filter(|(t, _)| **t).count()).unwrap_or(0.0);
    }
    let count = images.max(1) as f64;
    let (accuracy, precision, recall) = (accuracy / count, precision / count, recall / count);
    let f1 = if precision + recall > 0.0 {
        2.0 * precision * recall / (precision + recall)
    } else {
        0.0
    };
    let defined = per_attribute
        .iter()
        .filter(|a| a.positives > 0 && a.negatives > 0);
    Ok(AttributeMetrics {
        ma: per_attribute
            .iter()
            .map(|a| a.balanced_accuracy)
            .sum::<f64>()
            / attributes as f64,
        ma_defined: mean_of(defined.map(|a| Some(a.balanced_accuracy))),
        accuracy,
        precision,
        recall,
        f1,
        map: mean_of(per_attribute.iter().map(|a| a.average_precision)),
        per_attribute,
        degenerate,
        images,
    })
}

fn score(
    truth: &[bool],
    probabilities: &[f32],
    attributes: usize,
    j: usize,
    threshold: f32,
) -> SingleAttributeMetrics {
    let truth: Vec<bool> = truth.iter().skip(j).step_by(attributes).copied().collect();
    let probabilities: Vec<f32> = probabilities
        .iter()
        .skip(j)
        .step_by(attributes)
        .copied()
        .collect();
    let positives = truth.iter().filter(|t| **t).count();
    let negatives = truth.len() - positives;
    let predicted = |t: bool| {
        truth
            .iter()
            .zip(&probabilities)
            .filter(|(u, p)| **u == t && **p > threshold)
            .count()
    };
    let true_positive_rate = ratio(predicted(true), positives);
    let true_negative_rate = ratio(negatives - predicted(false), negatives);
    SingleAttributeMetrics {
        positives,
        negatives,
        true_positive_rate,
        true_negative_rate,
        balanced_accuracy: (true_positive_rate.unwrap_or(0.0) + true_negative_rate.unwrap_or(0.0))
            / 2.0,
        average_precision: average_precision(&truth, &probabilities),
    }
}

/// Average precision Σ (R_n - R_{n-1}) P_n over the distinct scores, as scikit-learn defines it;
/// equal scores enter together. `None` without a positive.
///
/// # Panics
/// If the lengths differ.
pub fn average_precision<S: Copy + Into<f64>>(truth: &[bool], scores: &[S]) -> Option<f64> {
    assert_eq!(
        truth.len(),
        scores.len(),
        "truth and scores differ in number"
    );
    let positives = truth.iter().filter(|t| **t).count();
    let mut order: Vec<(f64, bool)> = { scores.iter().zip(truth) }
        .map(|(score, truth)| ((*score).into(), *truth))
        .collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut seen, mut hits, mut sum) = (0, 0, 0.0);
    for group in order.chunk_by(|a, b| a.0 == b.0) {
        let new = group.iter().filter(|item| item.1).count();
        (seen, hits) = (seen + group.len(), hits + new);
        sum += new as f64 * hits as f64 / seen as f64;
    }
    (positives > 0).then(|| sum / positives as f64)
}

fn ratio(part: usize, whole: usize) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_images_by_hand() {
        // Rows: one hit and one false alarm; nothing true and nothing predicted; one miss, one hit.
        // The last attribute is never true.
        let truth = [
            true, false, false, false, false, false, false, false, true, true, false, false,
        ];
        let probabilities = [0.9, 0.8, 0.1, 0.5, 0.2, 0.1, 0.0, 0.5, 0.3, 0.7, 0.4, 0.0];
        let metrics = evaluate(&truth, &probabilities, 4, 0.5).unwrap();
        // Attribute 0: P 2 TP 1, N 1 TN 1 -> 0.75. 1: P 1 TP 1, N 2 TN 1 -> 0.75. 2 and 3: P 0, TN
        // 3/3 -> 0.5.
        assert_eq!(metrics.ma, 0.625);
        assert_eq!(metrics.ma_defined, Some(0.75));
        assert_eq!(metrics.degenerate, [2, 3]);
        assert!((metrics.accuracy - (0.5 + 0.0 + 0.5) / 3.0).abs() < 1e-15);
        assert!((metrics.precision - (0.5 + 0.0 + 1.0) / 3.0).abs() < 1e-15);
        assert!((metrics.recall - (1.0 + 0.0 + 0.5) / 3.0).abs() < 1e-15);
        assert!((metrics.f1 - 0.5).abs() < 1e-15);
        assert_eq!(metrics.per_attribute[3].true_positive_rate, None);
    }

    #[test]
    fn one_half_is_not_above_one_half() {
        assert_eq!(evaluate(&[true], &[0.5], 1, 0.5).unwrap().recall, 0.0);
        assert_eq!(evaluate(&[true], &[0.500_001], 1, 0.5).unwrap().recall, 1.0);
    }

    #[test]
    fn nothing_and_nan() {
        let empty = evaluate(&[], &[], 3, 0.5).unwrap();
        assert_eq!(
            (empty.images, empty.ma, empty.map, empty.degenerate.len()),
            (0, 0.0, None, 3)
        );
        assert!(matches!(
            evaluate(&[true; 2], &[0.1, f32::NAN], 1, 0.5),
            Err(MetricError::NotFinite { row: 1, .. })
        ));
    }
}
