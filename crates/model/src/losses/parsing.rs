//! Losses of parsing: cross-entropy, Lovász-softmax and the weighted cross-entropy of edges.

use burn::tensor::{
    Tensor, TensorData,
    activation::{log_softmax, softmax},
};
use rayon::prelude::*;

use super::part::IGNORE;

/// Mean cross-entropy over the pixels whose label is not the ignore index 255; 0 without any.
///
/// # Shapes
/// - logits: [batch, classes, height, width]
/// - labels: row-major, [batch, height, width]
pub fn pixel_cross_entropy(logits: Tensor<4>, labels: &[u8]) -> Tensor<1> {
    weighted_pixel_cross_entropy(logits, labels, |_| 1.0)
}

/// Cross-entropy of edges (0 or 1), each kind weighted by the share of the other, so that both
/// count alike. Shapes as in [`pixel_cross_entropy`], two classes.
pub fn edge_loss(logits: Tensor<4>, edges: &[u8]) -> Tensor<1> {
    let count = |class: u8| edges.iter().filter(|edge| **edge == class).count() as f64;
    let (no, yes) = (count(0), count(1));
    let all = (no + yes).max(1.0);
    weighted_pixel_cross_entropy(logits, edges, |class| {
        (if class == 1 { no } else { yes } / all) as f32
    })
}

fn weighted_pixel_cross_entropy(
    logits: Tensor<4>,
    labels: &[u8],
    weight: impl Fn(u8) -> f32,
) -> Tensor<1> {
    let [batch, classes, height, width] = logits.dims();
    let area = height * width;
    assert_eq!(labels.len(), batch * area, "labels of a batch");
    let mut target = vec![0.0; batch * classes * area];
    let mut total = 0.0;
    for (pixel, &label) in labels.iter().enumerate() {
        if label == IGNORE {
            continue;
        }
        let class = usize::from(label);
        assert!(class < classes, "label {label} of {classes} classes");
        let weight = weight(label);
        target[(pixel / area * classes + class) * area + pixel % area] = weight;
        total += f64::from(weight);
    }
    let target = TensorData::new(target, [batch, classes, height, width]);
    let target = Tensor::from_data(target, &logits.device());
    let sum = (log_softmax(logits, 1) * target).sum().neg();
    sum / if total > 0.0 { total } else { 1.0 }
}

/// Mean divergence Σ p (log p − log softmax logits) from refined labels, p = softmax((1 − share) ·
/// soft + share · one-hot label), over the pixels whose label in `counted` is not the ignore index
/// 255 (Li et al., "Self-Correction for Human Parsing", TPAMI 2020); 0 without any.
///
/// # Shapes
/// - logits, soft: [batch, classes, height, width]; soft are the logits of another model, to which
///   no gradient goes
/// - labels, counted: row-major, [batch, height, width]
pub fn refined_divergence(
    logits: Tensor<4>,
    soft: Tensor<4>,
    labels: &[u8],
    counted: &[u8],
    share: f64,
) -> Tensor<1> {
    let [batch, classes, height, width] = logits.dims();
    let area = height * width;
    assert_eq!(labels.len(), batch * area, "labels of a batch");
    assert_eq!(counted.len(), batch * area, "labels of a batch");
    let mut one_hot = vec![0.0; batch * classes * area];
    let mut counts = vec![0.0; batch * area];
    for (pixel, &label) in labels.iter().enumerate() {
        if counted[pixel] != IGNORE && usize::from(label) < classes {
            one_hot[(pixel / area * classes + usize::from(label)) * area + pixel % area] = 1.0;
            counts[pixel] = 1.0;
        }
    }
    let total = counts.iter().sum::<f32>().max(1.0);
    let device = soft.device();
    let map = |values: Vec<f32>, channels: usize| {
        let shape = [batch, channels, height, width];
        Tensor::<4>::from_data(TensorData::new(values, shape), &device)
    };
    let refined = log_softmax(soft * (1.0 - share) + map(one_hot, classes) * share, 1);
    let weights = refined.clone().exp() * map(counts, 1);
    let place = |tensor: Tensor<4>| {
        if logits.is_autodiff() {
            Tensor::from_inner(tensor)
        } else {
            tensor
        }
    };
    let (refined, weights) = (place(refined), place(weights));
    ((refined - log_softmax(logits.clone(), 1)) * weights).sum() / total
}

/// Lovász-softmax (Berman et al., CVPR 2018) over the classes that the batch holds: the convex
/// surrogate of 1 − IoU, with the batch as one image. Pixels of the ignore index 255 do not count;
/// 0 without any other.
///
/// The loss is linear between two changes of the order of the errors, so its coefficients are
/// computed outside the graph, for the current order.
///
/// Shapes as in [`pixel_cross_entropy`].
pub fn lovasz_softmax(logits: Tensor<4>, labels: &[u8]) -> Tensor<1> {
    let [batch, classes, height, width] = logits.dims();
    let area = height * width;
    assert_eq!(labels.len(), batch * area, "labels of a batch");
    let probabilities = softmax(logits, 1);
    let values: Vec<f32> = probabilities
        .clone()
        .inner()
        .into_data()
        .iter::<f32>()
        .collect();
    let counted: Vec<usize> = (0..labels.len())
        .filter(|pixel| labels[*pixel] != IGNORE)
        .collect();
    let place = |pixel: usize, class: usize| (pixel / area * classes + class) * area + pixel % area;
    let present: Vec<usize> = (0..classes)
        .filter(|class| {
            counted
                .iter()
                .any(|pixel| usize::from(labels[*pixel]) == *class)
        })
        .collect();
    // error = constant + sign · probability, so the loss is Σ coefficient·sign·probability + Σ
    // coefficient·constant. coefficients of a class: [batch, area]; returns its constant.
    let of_class = |class: usize, coefficients: &mut [f32]| -> f64 {
        let right = |pixel: usize| usize::from(labels[pixel]) == class;
        let mut errors: Vec<(f32, u32)> = { counted.iter() }
            .map(|&pixel| {
                let p = values[place(pixel, class)];
                (if right(pixel) { 1.0 - p } else { p }, pixel as u32)
            })
            .collect();
        // Equal errors in the order of their pixels.
        errors.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let total = { errors.iter() }.filter(|(_, pixel)| right(*pixel as usize));
        let total = total.count() as f64;
        let (mut missed, mut wrong, mut before, mut constant) = (0.0, 0.0, 0.0, 0.0);
        for pixel in errors.into_iter().map(|(_, pixel)| pixel as usize) {
            if right(pixel) {
                missed += 1.0;
            } else {
                wrong += 1.0;
            }
            let jaccard = 1.0 - (total - missed) / (total + wrong);
            let coefficient = (jaccard - before) / present.len() as f64;
            before = jaccard;
            coefficients[pixel] = if right(pixel) {
                constant += coefficient;
                -coefficient as f32
            } else {
                coefficient as f32
            };
        }
        constant
    };
    let mut by_class = vec![0.0_f32; present.len() * labels.len()];
    let constants: Vec<f64> = { by_class.par_chunks_mut(labels.len().max(1)) }
        .zip(&present)
        .map(|(coefficients, class)| of_class(*class, coefficients))
        .collect();
    let constant: f64 = constants.iter().sum();
    let mut coefficients = vec![0.0_f32; values.len()];
    for (class, of_class) in present.iter().zip(by_class.chunks(labels.len().max(1))) {
        for (image, of_image) in of_class.chunks(area).enumerate() {
            coefficients[(image * classes + class) * area..][..area].copy_from_slice(of_image);
        }
    }
    let shape = [batch, classes, height, width];
    let coefficients = Tensor::from_data(
        TensorData::new(coefficients, shape),
        &probabilities.device(),
    );
    (probabilities * coefficients).sum() + constant
}

/// Where neighboring classes differ, widened to 3 pixels; 255 is no neighbor. Labels and result:
/// [height, width].
pub fn edges_of(labels: &[u8], height: usize, width: usize) -> Vec<u8> {
    assert_eq!(labels.len(), height * width, "labels of a map");
    let mut thin = vec![false; labels.len()];
    let differ =
        |a: usize, b: usize| labels[a] != labels[b] && labels[a] != IGNORE && labels[b] != IGNORE;
    for row in 0..height {
        for column in 0..width {
            let at = row * width + column;
            let (up, right) = (row > 0, column + 1 < width);
            // The pixel itself is on the edge when it differs from the one above, the one to the
            // right, the one below to the right, or the one below to the left.
            thin[at] = (up && differ(at, at - width))
                || (right && differ(at, at + 1))
                || (row + 1 < height && right && differ(at, at + width + 1))
                || (row + 1 < height && column > 0 && differ(at, at + width - 1));
        }
    }
    let near = |row: usize, column: usize| {
        (row.saturating_sub(1)..(row + 2).min(height)).any(|r| {
            (column.saturating_sub(1)..(column + 2).min(width)).any(|c| thin[r * width + c])
        })
    };
    (0..height * width)
        .map(|at| u8::from(near(at / width, at % width)))
        .collect()
}
