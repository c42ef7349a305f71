//! The KoLeo regularizer (Sablayrolles et al., ICLR 2019, arXiv 1806.03198), as DINOv2 uses it
//! (Oquab et al. 2023, arXiv 2304.07193): features of a batch spread out, because each is pushed
//! away from its nearest neighbor. It is the estimator of Kozachenko and Leonenko for the entropy
//! of their distribution, but for constants.
//!
//! ```text
//! L = −1/n · Σ_i ln(min_{j≠i} ‖x_i − x_j‖ + ε),   x = f / ‖f‖
//! ```

use burn::tensor::{Int, Tensor};

/// Added to distances and norms, as in DINOv2.
const EPSILON: f64 = 1e-8;

/// The loss of features [n, channels] of different images: `[1]`. The gradient goes to both
/// features of a pair.
///
/// # Panics
/// With fewer than two features.
pub fn koleo_loss(features: Tensor<2>) -> Tensor<1> {
    let [n, _] = features.dims();
    assert!(n > 1, "KoLeo needs two images, found {n}");
    let norm = features
        .clone()
        .square()
        .sum_dim(1)
        .sqrt()
        .clamp_min(EPSILON);
    let x = features / norm;
    let neighbors = nearest(x.clone().detach());
    let difference = x.clone() - x.select(0, neighbors) + EPSILON;
    let distance = difference.square().sum_dim(1).sqrt();
    (distance + EPSILON).log().mean().neg()
}

/// The nearest other row of each of normalized rows [n, channels]: [n].
fn nearest(x: Tensor<2>) -> Tensor<1, Int> {
    let [n, _] = x.dims();
    let cosines = x.clone().matmul(x.transpose());
    // No row is its own neighbor: cosines are at least −1.
    let own = Tensor::<2>::eye(n, &cosines.device()) * 4.0;
    (cosines - own).argmax(1).reshape([n])
}
