//! Cross-entropy of attributes: groups of exclusive values, and pairs of no and yes.
//!
//! A pair has two logits like a group of two. With target [1−p, p] the cross-entropy of their
//! softmax is the binary cross-entropy of sigmoid(yes − no) with p, so one formula serves both.

use std::ops::Range;

use burn::tensor::{Tensor, activation::log_softmax};

/// Sum of weights of an image below which it counts as having none.
const LEAST_WEIGHT: f64 = 1e-6;

/// Weighted mean over the attributes of each image, Σ w·loss / Σ w; 0 for an image without any
/// weight: `[batch]`.
///
/// # Shapes
/// - logits, targets: [batch, values]; targets sum to 1 over each attribute's values
/// - weights: [batch, attributes], from 0 up; 0 where a target is ignored
/// - ranges: the values of each attribute
pub fn attribute_loss(
    logits: Tensor<2>,
    targets: Tensor<2>,
    weights: Tensor<2>,
    ranges: &[Range<usize>],
) -> Tensor<1> {
    check(&logits, &targets, &weights, ranges);
    let losses = ranges
        .iter()
        .map(|range| {
            let log_p = log_softmax(logits.clone().narrow(1, range.start, range.len()), 1);
            let target = targets.clone().narrow(1, range.start, range.len());
            (log_p * target).sum_dim(1).neg()
        })
        .collect();
    let losses = Tensor::cat(losses, 1) * weights.clone();
    (losses.sum_dim(1) / weights.sum_dim(1).clamp_min(LEAST_WEIGHT)).squeeze_dim(1)
}

/// Per attribute, how many images have the target's likeliest value as the logits', and how many
/// have a weight above 0, each counted once whatever its weight: [1, attributes] each. Shapes as in
/// [`attribute_loss`].
pub fn attribute_accuracy(
    logits: Tensor<2>,
    targets: Tensor<2>,
    weights: Tensor<2>,
    ranges: &[Range<usize>],
) -> [Tensor<2>; 2] {
    check(&logits, &targets, &weights, ranges);
    let counts = weights.greater_elem(0.0).float();
    let best = |values: &Tensor<2>, range: &Range<usize>| {
        values.clone().narrow(1, range.start, range.len()).argmax(1)
    };
    let right = ranges
        .iter()
        .map(|range| best(&logits, range).equal(best(&targets, range)).float())
        .collect();
    let right = Tensor::cat(right, 1) * counts.clone();
    [right, counts].map(|counted| counted.sum_dim(0))
}

fn check(logits: &Tensor<2>, targets: &Tensor<2>, weights: &Tensor<2>, ranges: &[Range<usize>]) {
    let [batch, values] = logits.dims();
    assert_eq!(
        targets.dims(),
        [batch, values],
        "targets do not fit the logits"
    );
    assert_eq!(
        weights.dims(),
        [batch, ranges.len()],
        "weights do not fit the attributes"
    );
    assert!(!ranges.is_empty(), "no attributes");
    assert!(
        ranges
            .iter()
            .all(|range| range.start < range.end && range.end <= values),
        "ranges {ranges:?} of {values} values"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn a_pair_is_binary_cross_entropy_and_weights_hold() {
        let device = Device::flex();
        let (no, yes, p) = (0.3f32, 1.1f32, 0.8f32);
        let logits = Tensor::<2>::from_data(
            [[no, yes, 1.0, 2.0, 3.0], [0.0, 0.0, 0.0, 0.0, 0.0]],
            &device,
        );
        let targets = Tensor::<2>::from_data(
            [[1.0 - p, p, 0.0, 1.0, 0.0], [0.5, 0.5, 1.0, 0.0, 0.0]],
            &device,
        );
        let ranges = [0..2, 2..5];
        let loss = |weights: [[f32; 2]; 2]| {
            let weights = Tensor::<2>::from_data(weights, &device);
            attribute_loss(logits.clone(), targets.clone(), weights, &ranges)
                .into_data()
                .try_into_vec::<f32>()
                .unwrap()
        };
        let sigmoid = 1.0 / (1.0 + (no - yes).exp());
        let pair = -(p * sigmoid.ln() + (1.0 - p) * (1.0 - sigmoid).ln());
        let group = (1f32.exp() + 2f32.exp() + 3f32.exp()).ln() - 2.0;

        let both = loss([[1.0, 1.0], [0.0, 1.0]]);
        assert!((both[0] - (pair + group) / 2.0).abs() < 1e-6, "{both:?}");
        assert!((both[1] - 3f32.ln()).abs() < 1e-6, "{both:?}");
        let one = loss([[1.0, 0.0], [0.0, 0.0]]);
        assert!((one[0] - pair).abs() < 1e-6 && one[1] == 0.0, "{one:?}");

        // A mean by weight, also where the weights' sum is below 1.
        let weighed = loss([[0.6, 1.8], [0.0, 0.2]]);
        let expected = (0.6 * pair + 1.8 * group) / 2.4;
        assert!((weighed[0] - expected).abs() < 1e-6, "{weighed:?}");
        assert!((weighed[1] - 3f32.ln()).abs() < 1e-6, "{weighed:?}");

        let weights = Tensor::<2>::from_data([[0.3, 1.7], [0.0, 0.0]], &device);
        let accuracy = attribute_accuracy(logits, targets, weights, &ranges);
        let accuracy = accuracy.map(|counts| counts.try_into_vec_as::<f32>().unwrap());
        assert_eq!(accuracy, [[1.0, 0.0], [1.0, 1.0]]);
    }
}
