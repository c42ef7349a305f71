//! Losses of two-stage detectors (Ren et al., "Faster R-CNN", 2015; Li and Miao, SeqNet, AAAI
//! 2021).

use burn::tensor::{Tensor, TensorData, activation::log_sigmoid};

/// Mean binary cross-entropy of logits: `[count]`, labels 0 or 1.
pub fn objectness_loss(logits: Tensor<1>, labels: &[f32]) -> Tensor<1> {
    assert_eq!(logits.dims()[0], labels.len(), "labels of logits");
    let labels = Tensor::<1>::from_data(TensorData::from(labels), &logits.device());
    let positive = log_sigmoid(logits.clone()) * labels.clone();
    let negative = log_sigmoid(logits.neg()) * (labels.neg() + 1.0);
    (positive + negative).mean().neg()
}

/// Σ smooth L1 of what is off by more or less than `beta`, over `count`; x²/2β up to β, |x| − β/2
/// beyond.
///
/// # Shapes
/// - deltas: [boxes, 4]; none gives 0
/// - targets: four a box
pub fn box_loss(deltas: Tensor<2>, targets: &[[f32; 4]], beta: f64, count: usize) -> Tensor<1> {
    let boxes = deltas.dims()[0];
    assert_eq!(boxes, targets.len(), "targets of boxes");
    let targets = TensorData::new(targets.concat(), [boxes, 4]);
    let targets = Tensor::<2>::from_data(targets, &deltas.device());
    let off = (deltas - targets).abs();
    let small = off.clone().clamp_max(beta);
    // With s = min(|x|, β): s·(|x| − s/2)/β is both branches.
    (small.clone() * (off - small * 0.5)).sum() / (beta * count.max(1) as f64)
}
