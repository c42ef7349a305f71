//! Distillation of features of another network: the student's projected features point where the
//! teacher's do.
//!
//! ```text
//! d(s, t) = 1 − ⟨s, t⟩ / (|s| |t|)
//! L_pooled = mean over images n of d(s_n, t_n)
//! L_dense  = mean over images n and patch positions p of d(s_n,p, t_n,p)
//! ```
//!
//! The cosine distance between projected student features and the features of a frozen teacher is
//! common in distillation of vision foundation models, such as AM-RADIO (Ranzinger et al., CVPR
//! 2024). The same distance alone at every patch position is our choice.

use burn::tensor::Tensor;

use crate::heads::dino::l2_normalize;

/// Mean cosine distance of pooled features: `[1]`.
///
/// # Shapes
/// - student, teacher: [batch, channels]
pub fn pooled_distillation_loss(student: Tensor<2>, teacher: Tensor<2>) -> Tensor<1> {
    cosine_distance(student, teacher).mean()
}

/// Mean cosine distance over images and patch positions: `[1]`.
///
/// # Shapes
/// - student, teacher: [batch, channels, rows, columns]
pub fn dense_distillation_loss(student: Tensor<4>, teacher: Tensor<4>) -> Tensor<1> {
    let by_position = |map: Tensor<4>| {
        let [batch, channels, rows, columns] = map.dims();
        map.permute([0, 2, 3, 1])
            .reshape([batch * rows * columns, channels])
    };
    cosine_distance(by_position(student), by_position(teacher)).mean()
}

/// 1 − cos of each row: [rows, channels] twice → [rows]. The teacher's has no gradient.
fn cosine_distance(student: Tensor<2>, teacher: Tensor<2>) -> Tensor<1> {
    assert_eq!(
        student.dims(),
        teacher.dims(),
        "features of the student do not fit those of the teacher"
    );
    let cosine = l2_normalize(student) * l2_normalize(teacher.detach());
    cosine.sum_dim(1).squeeze_dim::<1>(1).neg() + 1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().iter::<f32>().collect()
    }

    #[test]
    fn pooled_loss_and_gradient_are_those_by_hand() {
        let device = Device::flex().autodiff();
        let student = Tensor::<2>::from_data([[3.0, 4.0], [0.0, 2.0]], &device).require_grad();
        let teacher = Tensor::<2>::from_data([[1.0, 0.0], [0.0, 5.0]], &device).require_grad();
        // cos: 3/5 and 1.
        let loss = pooled_distillation_loss(student.clone(), teacher.clone());
        assert!((numbers(loss.clone())[0] - 0.2).abs() < 1e-6);
        // −(t/|t| − cos · s/|s|) / |s| / rows = −([1, 0] − 0.6 · [0.6, 0.8]) / 5 / 2.
        let gradients = loss.backward();
        let found = numbers(student.grad(&gradients).unwrap());
        for (found, expected) in found.iter().zip([-0.064, 0.048, 0.0, 0.0]) {
            assert!((found - expected).abs() < 1e-6, "{found}: {expected}");
        }
        assert!(teacher.grad(&gradients).is_none());
    }

    #[test]
    fn dense_loss_is_the_mean_over_positions() {
        let device = Device::flex();
        // One image, two channels, 1x2 positions: (3, 4) and (0, 2), with (1, 0) and (0, -5).
        let student = Tensor::<4>::from_data([[[[3.0, 0.0]], [[4.0, 2.0]]]], &device);
        let teacher = Tensor::<4>::from_data([[[[1.0, 0.0]], [[0.0, -5.0]]]], &device);
        let loss = numbers(dense_distillation_loss(student, teacher));
        assert!((loss[0] - (0.4 + 2.0) / 2.0).abs() < 1e-6, "{loss:?}");
    }

    #[test]
    fn features_of_zero_have_a_finite_gradient() {
        let device = Device::flex().autodiff();
        let student = Tensor::<2>::zeros([1, 2], &device).require_grad();
        let teacher = Tensor::<2>::from_data([[1.0, 1.0]], &device);
        let loss = pooled_distillation_loss(student.clone(), teacher);
        assert_eq!(numbers(loss.clone()), [1.0]);
        let gradient = numbers(student.grad(&loss.backward()).unwrap());
        assert!(
            gradient.iter().all(|value| value.is_finite()),
            "{gradient:?}"
        );
    }
}
