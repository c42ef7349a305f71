//! Losses of re-identification: cross-entropy over training identities, and the batch-hard triplet
//! loss.

use burn::tensor::{
    Tensor, TensorData,
    activation::{log_softmax, softplus},
};

/// Mean cross-entropy with label smoothing (Szegedy et al. 2016): the target gives 1 − s to the
/// label and s/classes to every class.
///
/// # Shapes
/// - logits: [batch, classes]
/// - labels: one an image
pub fn cross_entropy(logits: Tensor<2>, labels: &[usize], smoothing: f64) -> Tensor<1> {
    let [batch, classes] = logits.dims();
    assert_eq!(labels.len(), batch, "labels of a batch");
    let mut target = vec![(smoothing / classes as f64) as f32; batch * classes];
    for (image, &label) in labels.iter().enumerate() {
        assert!(label < classes, "label {label} of {classes} classes");
        target[image * classes + label] += (1.0 - smoothing) as f32;
    }
    let target = Tensor::from_data(TensorData::new(target, [batch, classes]), &logits.device());
    (log_softmax(logits, 1) * target).sum_dim(1).mean().neg()
}

/// Batch-hard triplet loss (Hermans et al., "In Defense of the Triplet Loss", 2017): for every
/// image its farthest image of the same label and its nearest of another, by Euclidean distance.
///
/// mean_i softplus(d⁺ − d⁻) without a margin, mean_i max(0, d⁺ − d⁻ + margin) with one.
///
/// # Shapes
/// - features: [batch, channels]
/// - labels: one an image, of at least two values
pub fn batch_hard_triplet(features: Tensor<2>, labels: &[usize], margin: Option<f64>) -> Tensor<1> {
    let batch = features.dims()[0];
    assert_eq!(labels.len(), batch, "labels of a batch");
    let same: Vec<f32> = { labels.iter() }
        .flat_map(|a| labels.iter().map(move |b| f32::from(u8::from(a == b))))
        .collect();
    let same = Tensor::<2>::from_data(TensorData::new(same, [batch, batch]), &features.device());
    let squares = features.clone().square().sum_dim(1);
    let products = features.clone().matmul(features.transpose());
    let distances = (squares.clone() + squares.transpose() - products * 2.0)
        .clamp_min(1e-12)
        .sqrt();
    // Distances are not negative, so those of others drop out of a maximum as zeros.
    let farthest = (distances.clone() * same.clone()).max_dim(1);
    let nearest = (distances + same * 1e9).min_dim(1);
    let gap = farthest - nearest;
    match margin {
        None => softplus(gap, 1.0).mean(),
        Some(margin) => (gap + margin).clamp_min(0.0).mean(),
    }
}
