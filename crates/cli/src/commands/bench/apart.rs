//! How far tensors are apart.

use burn::tensor::Tensor;

/// The values of a tensor.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// The largest absolute value.
pub fn largest(values: &[f32]) -> f64 {
    values
        .iter()
        .fold(0.0, |most, value| most.max(f64::from(value.abs())))
}

/// The largest difference. Infinite for tensors of different sizes, and where one holds no number.
pub fn farthest(one: &[f32], other: &[f32]) -> f64 {
    if one.len() != other.len() || one.iter().chain(other).any(|value| value.is_nan()) {
        return f64::INFINITY;
    }
    let apart = one.iter().zip(other).map(|(a, b)| f64::from((a - b).abs()));
    apart.fold(0.0, f64::max)
}
