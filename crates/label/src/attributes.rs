//! Attributes: cosines between the pooled image feature and the text feature of every value.
//!
//! The logits `s · cos` are stored as they are. They are only meaningful relative to all images, so
//! they become targets after calibration ([`clasp_data::labels::AttributeRule`]), which never runs
//! CLIP again.

use burn::tensor::Tensor;

/// Raw logits of all values, in the vocabulary's order.
///
/// # Shapes
///
/// - `pooled`: [batch, embed], rows of length 1
/// - `values`: [values, embed], rows of length 1
/// - returns [batch, values]
pub fn logits(pooled: Tensor<2>, values: Tensor<2>, scale: f32) -> Tensor<2> {
    pooled.matmul(values.transpose()) * scale
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn logits_are_scaled_cosines() {
        let device = Device::flex();
        let pooled = Tensor::<2>::from_data([[0.6f32, 0.8], [1.0, 0.0]], &device);
        let values = Tensor::<2>::from_data([[1.0f32, 0.0], [0.0, 1.0], [-1.0, 0.0]], &device);
        let found = logits(pooled, values, 100.0)
            .into_data()
            .try_into_vec_as::<f32>()
            .unwrap();
        let expected = [60.0, 80.0, -60.0, 100.0, 0.0, -100.0];
        assert!(
            found
                .iter()
                .zip(expected)
                .all(|(a, b)| (a - b).abs() < 1e-4),
            "{found:?}"
        );
    }
}
