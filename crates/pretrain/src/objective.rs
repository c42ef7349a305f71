//! The losses of a share of a batch, and what is measured beside them.

use std::ops::Range;

use burn::tensor::{Tensor, TensorData};
use clasp_model::losses::attribute::{attribute_accuracy, attribute_loss};
use clasp_model::losses::dino::{Temperatures, dino_loss_of};
use clasp_model::losses::part::{part_accuracy, part_loss};

use crate::recipe::Loss;
use crate::student::{Forward, Heads};
use crate::views::Inputs;

/// What is measured of a share. Losses come first, in the order in which one that is not finite is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Measure {
    Dino,
    Part,
    PartIdentity,
    Attribute,
    AttributeIdentity,
    Total,
    /// Mean entropy of the teacher's targets.
    Entropy,
    /// Standard deviation of features over the batch.
    Spread,
    /// 1 − cos between features of one image under two prompts.
    PromptDistance,
    /// 1 − cos between features of two images under one prompt.
    ImageDistance,
    PartRight,
    PartKnown,
    AttributeRight,
    AttributeKnown,
}

impl Measure {
    /// The losses: their name in the log and in errors.
    pub(crate) const LOSSES: [(Self, &'static str); 6] = [
        (Self::Dino, "dino"),
        (Self::Part, "part"),
        (Self::PartIdentity, "part_identity"),
        (Self::Attribute, "attribute"),
        (Self::AttributeIdentity, "attribute_identity"),
        (Self::Total, "total"),
    ];
}

/// The teacher's targets of a share.
pub(crate) struct Targets {
    /// [batch, outputs] of each global view.
    pub probabilities: Vec<Tensor<2>>,
    /// Their mean entropy: [1].
    pub entropy: Tensor<1>,
}

/// What the losses of a share need to know besides the tensors.
pub(crate) struct Setting<'a> {
    pub loss: &'a Loss,
    /// Values of each attribute.
    pub ranges: &'a [Range<usize>],
    /// Whether to measure what takes time too.
    pub observe: bool,
}

/// The loss of a share, [1], and all that was measured; see [`crate::student`] for the equation.
pub(crate) fn objective(
    forward: &Forward,
    inputs: &Inputs,
    targets: &Targets,
    setting: &Setting<'_>,
) -> (Tensor<1>, Vec<(Measure, Tensor<1>)>) {
    let loss = setting.loss;
    let temperatures = Temperatures {
        student: loss.student_temperature,
        ..Temperatures::default()
    };
    let dino = dino_loss_of(&forward.views, &targets.probabilities, &temperatures);
    let mut sum = Sum {
        total: dino.clone() * loss.dino,
        measured: vec![(Measure::Dino, dino)],
    };
    sum.measured.extend([
        (Measure::Entropy, targets.entropy.clone()),
        (Measure::Spread, spread(forward.pooled.clone().inner())),
    ]);
    if let (Some(logits), Some(labels)) = (&forward.parts, &inputs.parts) {
        let copies = logits.own.dims()[0] / labels.dims()[0];
        let all = Tensor::cat(vec![labels.clone(); copies], 0);
        let part = inputs.label_mean(part_loss(logits.own.clone(), all.clone()));
        sum.add(Measure::Part, part, loss.part);
        if let Some(identity) = &logits.identity {
            let part = inputs.label_mean(part_loss(identity.clone(), labels.clone()));
            let weight = loss.part * loss.identity_labels;
            sum.add(Measure::PartIdentity, part, weight);
        }
        if setting.observe {
            let counts = part_accuracy(logits.own.clone().inner(), all);
            let names = [Measure::PartRight, Measure::PartKnown];
            sum.measured.extend(names.into_iter().zip(counts));
        }
    }
    if let (Some(logits), Some((target, mask))) = (&forward.attributes, &inputs.attributes) {
        let views = logits.own.dims()[0] / target.dims()[0];
        let [target, mask] = [target, mask].map(|one| Tensor::cat(vec![one.clone(); views], 0));
        let of = |logits: &Tensor<2>| {
            let (target, mask) = (target.clone(), mask.clone());
            inputs.label_mean(attribute_loss(logits.clone(), target, mask, setting.ranges))
        };
        let Heads { own, identity } = logits;
        sum.add(Measure::Attribute, of(own), loss.attribute);
        if let Some(identity) = identity {
            let weight = loss.attribute * loss.identity_labels;
            sum.add(Measure::AttributeIdentity, of(identity), weight);
        }
        if setting.observe {
            let own = own.clone().inner();
            let counts = attribute_accuracy(own, target, mask, setting.ranges).map(Tensor::sum);
            let names = [Measure::AttributeRight, Measure::AttributeKnown];
            sum.measured.extend(names.into_iter().zip(counts));
        }
    }
    if setting.observe && !forward.prompted.is_empty() {
        let [prompts, images] = distances(forward, inputs.batch);
        sum.measured.push((Measure::PromptDistance, prompts));
        sum.measured.push((Measure::ImageDistance, images));
    }
    let Sum {
        total,
        mut measured,
    } = sum;
    measured.push((Measure::Total, total.clone()));
    let measured = { measured.into_iter() }
        .map(|(measure, value)| (measure, value.without_autodiff()))
        .collect();
    (total, measured)
}

/// The loss as far as it is summed up, and what was measured.
struct Sum {
    total: Tensor<1>,
    measured: Vec<(Measure, Tensor<1>)>,
}

impl Sum {
    /// Adds a loss with its weight, and keeps its value.
    fn add(&mut self, measure: Measure, value: Tensor<1>, weight: f64) {
        self.measured.push((measure, value.clone()));
        self.total = self.total.clone() + value * weight;
    }
}

impl Inputs {
    /// Mean of losses over views and images, [views · batch] → [1]; for SOLIDER each image counts with its λ, as in its
    /// code.
    fn label_mean(&self, losses: Tensor<1>) -> Tensor<1> {
        let Some(lambdas) = &self.lambdas else {
            return losses.mean();
        };
        let views = losses.dims()[0] / lambdas.len();
        let weights = TensorData::new(lambdas.repeat(views), losses.dims());
        (losses.clone() * Tensor::from_data(weights, &losses.device())).mean()
    }
}

/// Mean 1 − cos between the features of an image under identity and under another prompt, and between those of two
/// images under identity: [1] each.
fn distances(forward: &Forward, batch: usize) -> [Tensor<1>; 2] {
    // One view of each image: [batch, channels], of length 1.
    let one_view = |pooled: &Tensor<2>| unit(pooled.clone().inner().narrow(0, 0, batch));
    let identity = one_view(&forward.pooled);
    let others: Vec<Tensor<1>> = { forward.prompted.iter() }
        .map(|pooled| (identity.clone() * one_view(pooled)).sum_dim(1).mean())
        .collect();
    let prompts = Tensor::cat(others, 0).mean().neg() + 1.0;
    // Σ_{i≠j} cos = |Σ f|² − n.
    let n = batch as f64;
    let sum = identity.sum_dim(0).square().sum();
    let pairs = (n * (n - 1.0)).max(1.0);
    [prompts, (sum - n).div_scalar(pairs).neg() + 1.0]
}

/// Each row of [batch, channels] over its length.
fn unit(features: Tensor<2>) -> Tensor<2> {
    let norm = features.clone().square().sum_dim(1).sqrt().clamp_min(1e-12);
    features / norm
}

/// Standard deviation over the batch of each channel of the normalised features, mean over channels,
/// times the root of their number: 1 for features in all directions alike, 0 for equal features.
pub(crate) fn spread(pooled: Tensor<2>) -> Tensor<1> {
    let channels = pooled.dims()[1] as f64;
    let features = unit(pooled);
    let mean = features.clone().mean_dim(0);
    let std = (features - mean).square().mean_dim(0).sqrt().mean();
    std * channels.sqrt()
}
