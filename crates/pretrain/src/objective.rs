//! The objective of pre-training: a weighted sum of losses, each a free function of tensors.
//!
//! [`LOSSES`] is the one list of them: name, weight and function of a loss are one row, and the
//! sum, the log and the check for values that are not finite all read the list.

use std::ops::Range;

use burn::tensor::{Int, Tensor, TensorData};
use clasp_model::losses::attribute::attribute_loss;
use clasp_model::losses::dino::{Temperatures, dino_loss_of};
use clasp_model::losses::distillation::{dense_distillation_loss, pooled_distillation_loss};
use clasp_model::losses::part::part_loss;
use clasp_model::losses::{ibot_loss, koleo_loss};

use crate::batch::BatchTensors;
use crate::distillation::TeacherFeatures;
use crate::recipe::PretrainRecipe;
use crate::student::StudentOutputs;

/// What the losses of a share of a batch are computed from.
pub(crate) struct ShareOutputs<'a> {
    /// Outputs of the student.
    pub student: &'a StudentOutputs,
    /// Images and labels.
    pub inputs: &'a BatchTensors,
    /// Teacher targets: probabilities [batch, prototypes] of each global view; none without
    /// self-distillation.
    pub targets: Option<&'a [Tensor<2>]>,
    /// Teacher targets of the masked patches, [masked, prototypes]; none without masked patches.
    pub patch_targets: Option<&'a Tensor<2>>,
    /// Whether features are spread by KoLeo.
    pub spreads: bool,
    /// Features of the frozen teacher, if there is one.
    pub distilled: Option<&'a TeacherFeatures>,
    /// Temperature of the student.
    pub student_temperature: f64,
    /// Range of the values of each attribute.
    pub ranges: &'a [Range<usize>],
}

/// A row of [`LOSSES`].
pub(crate) struct LossTerm {
    /// Name in the log (`loss/{name}`) and in errors.
    pub name: &'static str,
    /// Its weight in the sum.
    weight: fn(&PretrainRecipe) -> f64,
    /// Its value, [1]; none if the recipe has no such loss.
    value: fn(&ShareOutputs<'_>) -> Option<Tensor<1>>,
}

/// Name of the loss of self-distillation, which the collapse monitor needs.
pub(crate) const DINO: &str = "dino";

/// All losses, in the order in which they are added up.
pub(crate) const LOSSES: [LossTerm; 9] = [
    LossTerm {
        name: DINO,
        weight: |recipe| recipe.loss.dino_weight,
        value: dino,
    },
    LossTerm {
        name: "ibot",
        weight: |recipe| recipe.loss.ibot_weight,
        value: ibot,
    },
    LossTerm {
        name: "koleo",
        weight: |recipe| recipe.loss.koleo_weight,
        value: koleo,
    },
    LossTerm {
        name: "part",
        weight: |recipe| recipe.loss.part_weight,
        value: part,
    },
    LossTerm {
        name: "part_identity",
        weight: |recipe| recipe.loss.part_weight * recipe.loss.identity_label_weight,
        value: part_on_identity,
    },
    LossTerm {
        name: "attribute",
        weight: |recipe| recipe.loss.attribute_weight,
        value: attribute,
    },
    LossTerm {
        name: "attribute_identity",
        weight: |recipe| recipe.loss.attribute_weight * recipe.loss.identity_label_weight,
        value: attribute_on_identity,
    },
    LossTerm {
        name: "distill_pooled",
        weight: |recipe| recipe.distillation.pooled_weight(),
        value: distill_pooled,
    },
    LossTerm {
        name: "distill_dense",
        weight: |recipe| recipe.distillation.dense,
        value: distill_dense,
    },
];

/// Self-distillation (DINO, Caron et al., ICCV 2021): the mean over pairs of a global view g of the
/// teacher and another view v of the student of −Σₖ qₖ(g) · ln softmax(z(v) / τ)ₖ, where q are the
/// teacher targets, z the student's logits and τ its temperature.
fn dino(share: &ShareOutputs<'_>) -> Option<Tensor<1>> {
    let targets = share.targets?;
    let temperatures = Temperatures {
        student: share.student_temperature,
        ..Temperatures::default()
    };
    Some(dino_loss_of(&share.student.logits, targets, &temperatures))
}

/// Masked patches (iBOT, Zhou et al., ICLR 2022): the mean over global views of the mean over masked
/// patches of the cross-entropy between the teacher targets and the student's logits there
/// ([`ibot_loss`]).
fn ibot(share: &ShareOutputs<'_>) -> Option<Tensor<1>> {
    Some(ibot_loss(
        share.student.patches.clone()?,
        share.patch_targets?.clone(),
        share.inputs.masks.as_ref()?.weights.clone(),
        share.student_temperature,
    ))
}

/// KoLeo (Sablayrolles et al., ICLR 2019; DINOv2): the mean over global views of −ln of the distance
/// between the features of an image and the nearest other image of the share ([`koleo_loss`]).
/// Views of one image are never pushed apart.
fn koleo(share: &ShareOutputs<'_>) -> Option<Tensor<1>> {
    let batch = share.inputs.batch;
    if !share.spreads || batch < 2 {
        return None;
    }
    let views = share.student.pooled.clone().split(batch, 0);
    let losses: Vec<Tensor<1>> = views.into_iter().map(koleo_loss).collect();
    Some(Tensor::cat(losses, 0).mean())
}

/// Part labels under the prompt `part` (CLASP; SOLIDER has no prompts): the mean over global views
/// and images of the cross-entropy between part logits and part map over labeled patch positions
/// ([`part_loss`]).
fn part(share: &ShareOutputs<'_>) -> Option<Tensor<1>> {
    part_loss_of(share, &share.student.parts.as_ref()?.own)
}

/// The same under the prompt `identity`, so that these features learn from labels too (our choice).
fn part_on_identity(share: &ShareOutputs<'_>) -> Option<Tensor<1>> {
    part_loss_of(share, share.student.parts.as_ref()?.identity.as_ref()?)
}

/// logits: [views · batch, classes, rows, columns]
fn part_loss_of(share: &ShareOutputs<'_>, logits: &Tensor<4>) -> Option<Tensor<1>> {
    let labels = share.part_labels(logits)?;
    let losses = part_loss(logits.clone(), labels);
    Some(share.inputs.label_mean(losses))
}

/// Attribute labels under the prompt `attribute` (CLASP): the mean over global views and images of
/// the weighted cross-entropies between the logits of each attribute and its targets
/// ([`attribute_loss`]).
fn attribute(share: &ShareOutputs<'_>) -> Option<Tensor<1>> {
    attribute_loss_of(share, &share.student.attributes.as_ref()?.own)
}

/// The same under the prompt `identity`, so that these features learn from labels too (our choice).
fn attribute_on_identity(share: &ShareOutputs<'_>) -> Option<Tensor<1>> {
    attribute_loss_of(share, share.student.attributes.as_ref()?.identity.as_ref()?)
}

/// logits: [views · batch, values]
fn attribute_loss_of(share: &ShareOutputs<'_>, logits: &Tensor<2>) -> Option<Tensor<1>> {
    let [targets, weights] = share.attribute_targets(logits)?;
    let losses = attribute_loss(logits.clone(), targets, weights, share.ranges);
    Some(share.inputs.label_mean(losses))
}

/// Distillation of the frozen teacher's pooled features: the mean over global views and images of 1
/// − cos between the projected features of the student under `identity` and the teacher's
/// ([`pooled_distillation_loss`]).
fn distill_pooled(share: &ShareOutputs<'_>) -> Option<Tensor<1>> {
    let student = share.student.distilled.as_ref()?.pooled.clone()?;
    Some(pooled_distillation_loss(
        student,
        share.distilled?.pooled.clone(),
    ))
}

/// The same at every patch position of the teacher's map ([`dense_distillation_loss`]).
fn distill_dense(share: &ShareOutputs<'_>) -> Option<Tensor<1>> {
    let student = share.student.distilled.as_ref()?.dense.clone()?;
    Some(dense_distillation_loss(
        student,
        share.distilled?.map.clone(),
    ))
}

/// The weighted sum of all losses, [1], and the value of each by name; [`crate::student`] has the
/// equation.
pub(crate) fn objective(
    share: &ShareOutputs<'_>,
    recipe: &PretrainRecipe,
) -> (Tensor<1>, Vec<(&'static str, Tensor<1>)>) {
    let mut total: Option<Tensor<1>> = None;
    let mut values = Vec::new();
    for term in &LOSSES {
        let Some(value) = (term.value)(share) else {
            continue;
        };
        values.push((term.name, value.clone()));
        let weighted = value * (term.weight)(recipe);
        total = Some(match total {
            None => weighted,
            Some(total) => total + weighted,
        });
    }
    // Zero, in a graph: without self-distillation a share has no loss if none of its images has labels.
    let total = total.unwrap_or_else(|| share.student.pooled.clone().sum() * 0.0);
    (total, values)
}

impl ShareOutputs<'_> {
    /// The part map of each view in `logits` [views · batch, classes, rows, columns]: [views ·
    /// batch, rows, columns]. SOLIDER's masked views have the labels of the views before masking.
    pub(crate) fn part_labels(&self, logits: &Tensor<4>) -> Option<Tensor<3, Int>> {
        let labels = self.inputs.parts.as_ref()?;
        let copies = logits.dims()[0] / labels.dims()[0];
        Some(Tensor::cat(vec![labels.clone(); copies], 0))
    }

    /// Targets [views · batch, values] and weights [views · batch, attributes] of `logits` [views ·
    /// batch, values]: those of an image for all its views.
    pub(crate) fn attribute_targets(&self, logits: &Tensor<2>) -> Option<[Tensor<2>; 2]> {
        let (targets, weights) = self.inputs.attributes.as_ref()?;
        let views = logits.dims()[0] / targets.dims()[0];
        Some([targets, weights].map(|one| Tensor::cat(vec![one.clone(); views], 0)))
    }
}

impl BatchTensors {
    /// Mean of losses over views and images, [views · batch] → [1]; for SOLIDER each image is
    /// weighted with its λ, as in the published code.
    fn label_mean(&self, losses: Tensor<1>) -> Tensor<1> {
        let Some(lambdas) = &self.lambdas else {
            return losses.mean();
        };
        let views = losses.dims()[0] / lambdas.len();
        let weights = TensorData::new(lambdas.repeat(views), losses.dims());
        (losses.clone() * Tensor::from_data(weights, &losses.device())).mean()
    }
}
