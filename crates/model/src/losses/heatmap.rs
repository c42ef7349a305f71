//! Mean squared error of heatmaps, as in Simple Baselines (Xiao et al., ECCV 2018) and MMPose.

use burn::tensor::{Tensor, TensorData};

/// Mean over images, joints and positions of (w·(predicted − target))², w the weight of a joint in
/// an image.
///
/// # Shapes
/// - predicted: [batch, joints, rows, columns]
/// - target: the same, row-major
/// - weights: [batch, joints], 0 for a joint that is not labeled
pub fn heatmap_loss(predicted: Tensor<4>, target: Vec<f32>, weights: Vec<f32>) -> Tensor<1> {
    let shape @ [batch, joints, ..] = predicted.dims();
    let device = predicted.device();
    let target = Tensor::<4>::from_data(TensorData::new(target, shape), &device);
    let weights = Tensor::<4>::from_data(TensorData::new(weights, [batch, joints, 1, 1]), &device);
    ((predicted - target) * weights).square().mean()
}
