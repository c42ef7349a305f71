//! The losses, as pure functions of tensors.

use std::collections::BTreeMap;

use burn::tensor::activation::log_softmax;
use burn::tensor::{Tensor, TensorData};

/// Scale of cosines in the part maps of pseudo-labels (docs/method.md).
const PART_SCALE: f64 = 50.0;

/// Symmetric cross-entropy between images and texts, and the smallest value it can take.
///
/// With s = scale and P the matrix that spreads each pair's target evenly over all pairs with the
/// same caption: `L = ½ (CE(P, s·I Tᵀ) + CE(Pᵀ, s·T Iᵀ))`. P is the identity where captions differ.
///
/// # Shapes
///
/// - images, texts: [batch, embed], rows of length 1
/// - scale: `[1]`
/// - captions: a number for each pair, equal for equal captions
/// - output: `[1]`
pub fn contrastive_loss(
    images: Tensor<2>,
    texts: Tensor<2>,
    scale: Tensor<1>,
    captions: &[usize],
) -> (Tensor<1>, f32) {
    let count = captions.len();
    let mut sizes = BTreeMap::<usize, usize>::new();
    for caption in captions {
        *sizes.entry(*caption).or_default() += 1;
    }
    let mut targets = vec![0f32; count * count];
    for (row, caption) in targets.chunks_exact_mut(count).zip(captions) {
        for (target, other) in row.iter_mut().zip(captions) {
            if caption == other {
                *target = 1.0 / sizes[caption] as f32;
            }
        }
    }
    // The entropy of the targets.
    let floor = captions
        .iter()
        .map(|caption| (sizes[caption] as f32).ln())
        .sum::<f32>()
        / count as f32;
    let targets =
        Tensor::<2>::from_data(TensorData::new(targets, [count, count]), &images.device());
    let logits = images.matmul(texts.transpose()) * scale.unsqueeze();
    let both = log_softmax(logits.clone(), 1) + log_softmax(logits, 0);
    ((both * targets).sum() / (-2.0 * count as f64), floor)
}

/// Cross-entropy between tokens and the phrases of their part class, a weighted sum over tokens of
/// `−log Σ_{t names the class of i} softmax_t(s · cos(u_i, t))`, s = 50, the rule by which part
/// maps are read. Any one of a class's phrases may take the probability, so a sleeve need not be "a
/// shirt" and "a coat" at once (as in MIL-NCE, arXiv 1912.06430).
///
/// # Shapes
///
/// - tokens: [tokens, embed], rows of length 1
/// - phrases: [phrases, embed], rows of length 1
/// - classes, weights: one for each token; phrase_class: one for each phrase
/// - output: `[1]`
pub fn part_loss(
    tokens: Tensor<2>,
    phrases: Tensor<2>,
    classes: &[usize],
    phrase_class: &[usize],
    weights: &[f32],
) -> Tensor<1> {
    /// Far below any score, far above minus infinity.
    const NOT_OWN: f32 = -1e4;
    let device = tokens.device();
    let shape = [classes.len(), phrase_class.len()];
    let others: Vec<f32> = classes
        .iter()
        .flat_map(|class| {
            phrase_class
                .iter()
                .map(move |other| if class == other { 0.0 } else { NOT_OWN })
        })
        .collect();
    let others = Tensor::<2>::from_data(TensorData::new(others, shape), &device);
    let weights = Tensor::<2>::from_data(TensorData::new(weights.to_vec(), [shape[0], 1]), &device);
    let logits = tokens.matmul(phrases.transpose()) * PART_SCALE;
    let own = log_softmax(logits, 1) + others;
    let most = own.clone().detach().max_dim(1);
    let own = (own - most.clone()).exp().sum_dim(1).log() + most;
    (own * weights).sum().neg()
}

/// Cross-entropy of zero-shot classification: the sum, over images and attributes, of `−log
/// softmax_v(s · cos(image, phrase of v))` at the true value, the softmax over the values of one
/// attribute.
///
/// # Shapes
///
/// - images: [images, embed], rows of length 1
/// - phrases: [values, embed], rows of length 1: those of the first attribute, then of the second,
///   …
/// - scale: `[1]`
/// - counts: how many values each attribute has
/// - truth: [images, attributes], 255 or any value that the attribute does not have where unknown
/// - output: `[1]`
pub fn attribute_loss(
    images: Tensor<2>,
    phrases: Tensor<2>,
    scale: Tensor<1>,
    counts: &[usize],
    truth: &[u8],
) -> Tensor<1> {
    let device = images.device();
    let losses = attribute_losses(images, phrases, scale, counts, truth);
    let first = Tensor::<1>::zeros([1], &device);
    losses.into_iter().fold(first, |sum, loss| sum + loss)
}

/// [`attribute_loss`] of each attribute.
pub(super) fn attribute_losses(
    images: Tensor<2>,
    phrases: Tensor<2>,
    scale: Tensor<1>,
    counts: &[usize],
    truth: &[u8],
) -> Vec<Tensor<1>> {
    let device = images.device();
    let count = images.dims()[0];
    let logits = images.matmul(phrases.transpose()) * scale.unsqueeze();
    let mut start = 0;
    let mut losses = Vec::new();
    for (attribute, &values) in counts.iter().enumerate() {
        let mut one_hot = vec![0f32; count * values];
        for (image, answers) in truth.chunks_exact(counts.len()).enumerate() {
            if let Some(cell) = Some(usize::from(answers[attribute])).filter(|&v| v < values) {
                one_hot[image * values + cell] = 1.0;
            }
        }
        let own = log_softmax(logits.clone().narrow(1, start, values), 1);
        let one_hot = Tensor::<2>::from_data(TensorData::new(one_hot, [count, values]), &device);
        losses.push((own * one_hot).sum().neg());
        start += values;
    }
    losses
}
