//! Binary cross-entropy of attributes, weighted by how rare they are (Li et al., "DeepMAR", 2015).

use burn::tensor::{Tensor, TensorData, activation::log_sigmoid};

/// Sum over attributes, mean over images, of the weighted binary cross-entropy.
///
/// With r the share of positives among the training images, a positive counts e^(1−r) and a
/// negative e^r.
///
/// # Shapes
/// - logits: [batch, attributes]
/// - targets: row-major, [batch, attributes]
/// - ratios: one an attribute; without, all count 1
pub fn weighted_bce(logits: Tensor<2>, targets: &[bool], ratios: Option<&[f64]>) -> Tensor<1> {
    let [batch, attributes] = logits.dims();
    assert_eq!(targets.len(), batch * attributes, "targets of a batch");
    let weight = |(index, &target): (usize, &bool)| {
        let Some(ratios) = ratios else { return 1.0 };
        let ratio = ratios[index % attributes];
        if target {
            (1.0 - ratio).exp()
        } else {
            ratio.exp()
        }
    };
    let weights: Vec<f32> = { targets.iter().enumerate() }
        .map(|item| weight(item) as f32)
        .collect();
    let targets: Vec<f32> = targets.iter().map(|t| f32::from(u8::from(*t))).collect();
    let device = logits.device();
    let tensor =
        |values| Tensor::<2>::from_data(TensorData::new(values, [batch, attributes]), &device);
    let (targets, weights) = (tensor(targets), tensor(weights));
    // −t·log σ(x) − (1−t)·log σ(−x) = x·(1−t) − log σ(x), as log σ(−x) = log σ(x) − x.
    let losses = logits.clone() * (targets.neg() + 1.0) - log_sigmoid(logits);
    (losses * weights).sum_dim(1).mean()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn large_logits_stay_finite() {
        let logits = [[-80.0_f64, 80.0, 0.3], [5.0, -5.0, 0.0]];
        let targets = [true, true, false, false, true, true];
        let tensor = Tensor::<2>::from_data(logits, &Device::flex());
        let found = weighted_bce(tensor, &targets, None).into_scalar::<f32>();
        let values = logits.iter().flatten().zip(targets);
        let loss =
            |(x, t): (&f64, bool)| x.max(0.0) - if t { *x } else { 0.0 } + (-x.abs()).exp().ln_1p();
        let expected: f64 = values.map(loss).sum();
        assert!((f64::from(found) - expected / 2.0).abs() < 1e-4, "{found}");
    }
}
