//! Losses of the CSP head (Liu et al., CVPR 2019).

use burn::tensor::{Tensor, TensorData, activation::sigmoid};

use crate::heads::DetectionOutput;

/// Targets of a batch; row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct DetectionTargets {
    /// Gaussian around each center, 0 to 1: [batch, rows, columns].
    pub nearness: Vec<f32>,
    /// 1 at a center: [batch, rows, columns].
    pub middles: Vec<f32>,
    /// 1 where the center loss counts, 0 in ignored regions: [batch, rows, columns].
    pub counts: Vec<f32>,
    /// Logarithms of height and width in positions: [batch, 2, rows, columns].
    pub sizes: Vec<f32>,
    /// 1 where the size loss counts: [batch, rows, columns].
    pub sized: Vec<f32>,
    /// Offset of the center within its position, down and right: [batch, 2, rows, columns].
    pub offsets: Vec<f32>,
}

/// Losses of centers, sizes and offsets, without loss weights.
#[derive(Debug, Clone)]
pub struct DetectionLosses {
    /// Focal loss: −(1−p)² log p at a center, −p² (1−g)⁴ log(1−p) elsewhere with g the Gaussian,
    /// over the number of centers.
    pub center: Tensor<1>,
    /// Smooth L1 of predicted over true logarithm, mean over the positions that count.
    pub size: Tensor<1>,
    /// Smooth L1 at the centers, over the number of them.
    pub offset: Tensor<1>,
}

/// The losses of a batch.
pub fn detection_losses(output: &DetectionOutput, targets: &DetectionTargets) -> DetectionLosses {
    let [batch, _, rows, columns] = output.center.dims();
    let device = output.center.device();
    let map = |values: &[f32], channels: usize| {
        let shape = [batch, channels, rows, columns];
        Tensor::<4>::from_data(TensorData::new(values.to_vec(), shape), &device)
    };
    let total = |values: &[f32]| values.iter().map(|v| f64::from(*v)).sum::<f64>().max(1.0);
    let (middles, counts) = (map(&targets.middles, 1), map(&targets.counts, 1));
    let nearness = map(&targets.nearness, 1);
    let count = total(&targets.middles);

    let p = sigmoid(output.center.clone()).clamp(1e-6, 1.0 - 1e-6);
    let not_p = p.clone().neg() + 1.0;
    let at = not_p.clone().square() * p.clone().log() * middles.clone();
    let away = p.square()
        * not_p.log()
        * (nearness.neg() + 1.0).powf_scalar(4.0)
        * (middles.clone().neg() + 1.0);
    let center = ((at + away) * counts).sum().neg() / count;

    let sizes = map(&targets.sizes, 2);
    // Relative, so that a pixel counts the more the smaller a pedestrian is; the bound keeps the
    // gradient of a position finite.
    let scale = sizes.clone().abs().clamp_min(0.1);
    let size = smooth_l1((output.size.clone() - sizes) / scale) * map(&targets.sized, 1);
    let offset = smooth_l1(output.offset.clone() - map(&targets.offsets, 2)) * middles;
    DetectionLosses {
        center,
        size: size.sum() / total(&targets.sized),
        offset: offset.sum() / count,
    }
}

/// x²/2 up to 1, |x| − 1/2 beyond.
fn smooth_l1(x: Tensor<4>) -> Tensor<4> {
    let size = x.abs();
    let small = size.clone().clamp_max(1.0);
    // With s = min(|x|, 1): s·(|x| − s/2) is both branches.
    small.clone() * (size - small * 0.5)
}
