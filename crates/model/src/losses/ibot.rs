//! iBOT's loss of masked patches (Zhou et al., ICLR 2022, arXiv 2111.07832): the student sees an
//! image with some patches replaced by a mask token, and predicts for these what the teacher, which
//! sees all of them, makes of them.
//!
//! ```text
//! L = −1/views · Σ_v 1/|M_v| Σ_{p ∈ M_v} Σ_k q_{v,p,k} ln softmax(z_{v,p} / τ)_k
//! ```
//!
//! z are the student's logits at the masked patches M_v of a view, and q the teacher targets there,
//! by centering ([`patch_targets`]) or Sinkhorn–Knopp over all masked patches of a step. A view
//! without a masked patch counts as 0, as in the published code.

use burn::tensor::{
    Tensor,
    activation::{log_softmax, softmax},
};

/// The loss over the masked patches of all views: `[1]`.
///
/// # Shapes
/// - student: logits at the masked patches, [masked, prototypes]
/// - targets: probabilities there, [masked, prototypes]
/// - weights: 1 / (views · |M_v|) of each masked patch, `[masked]`
///
/// # Panics
/// Without a masked patch.
pub fn ibot_loss(
    student: Tensor<2>,
    targets: Tensor<2>,
    weights: Tensor<1>,
    temperature: f64,
) -> Tensor<1> {
    let [masked, _] = student.dims();
    assert!(masked > 0, "ibot_loss needs a masked patch");
    let log_p = log_softmax(student.div_scalar(temperature), 1);
    let each = (log_p * targets).sum_dim(1).reshape([masked]);
    (each * weights).sum().neg()
}

/// The teacher's targets with centering, without gradient: softmax((z − c) / τ).
///
/// # Shapes
/// - teacher: logits at the masked patches, [masked, prototypes]
/// - center: the moving average of such logits, apart from that of whole images: [1, prototypes]
/// - returns [masked, prototypes]
pub fn patch_targets(teacher: Tensor<2>, center: &Tensor<2>, temperature: f64) -> Tensor<2> {
    softmax(
        (teacher - center.clone()).div_scalar(temperature).detach(),
        1,
    )
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Int, TensorData};
    use safetensors::SafeTensors;

    use super::*;
    use crate::losses::koleo_loss;

    /// A tensor of the golden file (tests/golden/masked_patches.py).
    fn golden<const D: usize>(name: &str, device: &Device) -> Tensor<D> {
        let bytes = include_bytes!("../../tests/golden/masked_patches.safetensors");
        let file = SafeTensors::deserialize(bytes).unwrap();
        let view = file.tensor(name).unwrap();
        let values = view.data().chunks_exact(4);
        let values = values.map(|b| f32::from_le_bytes(b.try_into().unwrap()));
        let values: Vec<f32> = values.collect();
        Tensor::from_data(TensorData::new(values, view.shape().to_vec()), device)
    }

    #[track_caller]
    fn check<const D: usize>(found: Tensor<D>, expected: Tensor<D>) {
        let apart: f32 = (found - expected).abs().max().into_scalar();
        assert!(apart < 1e-5, "{apart}");
    }

    #[test]
    fn the_loss_of_masked_patches_and_its_gradient_are_those_of_pytorch() {
        let plain = Device::flex();
        let device = plain.clone().autodiff();
        let student = golden::<3>("ibot.student", &device).require_grad();
        let [views, patches, prototypes] = student.dims();
        let mask: Vec<f32> = { golden::<2>("ibot.mask", &plain).into_data() }
            .iter::<f32>()
            .collect();
        let (mut positions, mut weights) = (Vec::new(), Vec::new());
        for (view, masked) in mask.chunks(patches).enumerate() {
            let count: f32 = masked.iter().sum();
            for at in (0..patches).filter(|at| masked[*at] == 1.0) {
                positions.push((view * patches + at) as i64);
                weights.push(1.0 / (views as f32 * count));
            }
        }
        let masked = |logits: Tensor<3>| {
            let device = logits.device();
            let data = TensorData::new(positions.clone(), [positions.len()]);
            let positions = Tensor::<1, Int>::from_data(data, &device);
            logits
                .reshape([views * patches, prototypes])
                .select(0, positions)
        };
        let center = golden("ibot.center", &device);
        let teacher = masked(golden("ibot.teacher", &device));
        let targets = patch_targets(teacher, &center, 0.05);
        let weights = Tensor::from_floats(weights.as_slice(), &device);
        let loss = ibot_loss(masked(student.clone()), targets, weights, 0.1);
        let gradient = student.grad(&loss.clone().backward()).unwrap();
        check(loss.inner(), golden("ibot.loss", &plain));
        check(gradient, golden("ibot.gradient", &plain));
    }

    #[test]
    fn koleo_and_its_gradient_are_those_of_pytorch() {
        let plain = Device::flex();
        let device = plain.clone().autodiff();
        let features = golden::<2>("koleo.features", &device).require_grad();
        let loss = koleo_loss(features.clone());
        let gradient = features.grad(&loss.clone().backward()).unwrap();
        check(loss.inner(), golden("koleo.loss", &plain));
        check(gradient, golden("koleo.gradient", &plain));
    }
}
