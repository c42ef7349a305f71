//! Cross-entropy of part classes on the last map.

use burn::tensor::{Int, Tensor, activation::log_softmax};

/// The label of a position that does not count.
pub const IGNORE: u8 = 255;

/// 1 at the class of a position, all 0 where the label is no class, as [`IGNORE`]: [batch, classes,
/// height, width].
fn one_hot(labels: Tensor<3, Int>, classes: usize) -> Tensor<4> {
    let [batch, height, width] = labels.dims();
    let shape = [batch, classes, height, width];
    let class = Tensor::<1, Int>::arange(0..classes as i64, &labels.device());
    class
        .reshape([1, classes, 1, 1])
        .expand(shape)
        .equal(labels.unsqueeze_dim::<4>(1).expand(shape))
        .float()
}

/// Mean cross-entropy over the positions of each image that count; 0 for an image without any:
/// `[batch]`.
///
/// # Shapes
/// - logits: [batch, classes, height, width]
/// - labels: [batch, height, width]; 255 is ignored
pub fn part_loss(logits: Tensor<4>, labels: Tensor<3, Int>) -> Tensor<1> {
    let [batch, classes, height, width] = logits.dims();
    assert_eq!(
        labels.dims(),
        [batch, height, width],
        "labels do not fit logits {:?}",
        logits.dims()
    );
    let target = one_hot(labels, classes);
    let counted: Tensor<1> = target
        .clone()
        .reshape([batch, classes * height * width])
        .sum_dim(1)
        .squeeze_dim(1);
    let log_p = log_softmax(logits, 1);
    let sum: Tensor<1> = (log_p * target)
        .reshape([batch, classes * height * width])
        .sum_dim(1)
        .squeeze_dim(1);
    sum.neg() / counted.clamp_min(1.0)
}

/// How many positions are right, and how many count: `[1]` each. Shapes as in [`part_loss`].
pub fn part_accuracy(logits: Tensor<4>, labels: Tensor<3, Int>) -> [Tensor<1>; 2] {
    let classes = logits.dims()[1];
    let target = one_hot(labels, classes);
    let guess = one_hot(logits.argmax(1).squeeze_dim::<3>(1), classes);
    [(guess * target.clone()).sum(), target.sum()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn ignored_positions_do_not_count() {
        let device = Device::flex();
        // Two images of 1×2 positions, two classes.
        let logits = Tensor::<4>::from_data(
            [[[[2.0, 0.0]], [[0.0, 0.0]]], [[[5.0, 1.0]], [[1.0, 5.0]]]],
            &device,
        );
        let labels = Tensor::<3, Int>::from_data([[[0, 255]], [[255, 255]]], &device);
        let loss = part_loss(logits.clone(), labels.clone())
            .into_data()
            .try_into_vec::<f32>()
            .unwrap();
        let expected = (1.0f32 + (-2.0f32).exp()).ln();
        assert!((loss[0] - expected).abs() < 1e-6, "{loss:?}");
        assert_eq!(loss[1], 0.0);
        let found = part_accuracy(logits, labels).map(Tensor::into_scalar::<f32>);
        assert_eq!(found, [1.0, 1.0]);
    }
}
