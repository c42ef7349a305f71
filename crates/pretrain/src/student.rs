//! The networks of pre-training: backbone and projection head, which student and teacher both have,
//! the heads of part and attribute labels, and projections for a frozen teacher, which only the
//! student has.
//!
//! Each loss is computed on features under the prompt of its purpose. The shared blocks (T) run
//! once for a view, the conditional blocks (B) once for each prompt:
//!
//! ```text
//! L = w_d·L_dino(B_identity(T(v))) + w_p·L_part(B_part(T(v_global))) + w_a·L_attr(B_attribute(T(v_global)))
//!     + λ·(w_p·L_part + w_a·L_attr)(B_identity(T(v_global)))
//!     + w_i·L_ibot(B_identity(T(v_masked))) + w_k·L_koleo(B_identity(T(v_global)))
//!     + w_c·L_pooled(B_identity(T(v_global))) + w_m·L_dense(B_identity(T(v_global)))
//! ```
//!
//! With iBOT, self-distillation sees the global views with masked patches; labels and the frozen
//! teacher are learned from whole views.
//!
//! The teacher always has the prompt `identity`: if student and teacher shared a random prompt,
//! recognizing the prompt would be the easiest way to lower L_dino.

use std::collections::BTreeSet;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use clasp_data::vocabulary::Vocabulary;
use clasp_model::backbone::{Adapter, Backbone, Features, SharedFeatures};
use clasp_model::heads::{
    AttributeHead, AttributeHeadConfig, DinoHead, DinoHeadConfig, DistillationHead,
    DistillationOutputs, PartHead, PartHeadConfig,
};
use clasp_model::layers::Rng;
use clasp_model::optim;
use clasp_model::prompt::{ATTRIBUTE, IDENTITY, PART, PromptWeights, prompt_weights_tensor};

use crate::batch::BatchTensors;
use crate::distillation::FrozenTeacher;
use crate::plan::PretrainPlan;
use crate::recipe::Method;

/// The network of self-distillation: backbone and projection head. The teacher is one, the average
/// of the student's.
#[derive(Module, Debug)]
pub struct DinoNetwork {
    /// The backbone.
    pub backbone: Backbone,
    /// DINO's projection head.
    pub dino: DinoHead,
}

/// All that is trained.
#[derive(Module, Debug)]
pub struct Student {
    /// Backbone and projection head; `trunk.` begins their names in checkpoints.
    pub trunk: DinoNetwork,
    /// Head of the part of each patch position, if parts are learned.
    pub part: Option<PartHead>,
    /// Head of the attributes of the image, if they are learned.
    pub attribute: Option<AttributeHead>,
    /// Projections to the features of a frozen teacher, if there is one.
    pub distillation: Option<DistillationHead>,
    /// Whether there is self-distillation: without it nothing needs local views and logits.
    has_teacher: bool,
    /// Whether the last blocks depend on prompts.
    prompted: bool,
    /// Whether the part and attribute losses are also computed under the identity prompt.
    labels_on_identity: bool,
    /// Whether the gradient of DINO's loss stops before the conditional blocks.
    detach_shared: bool,
}

/// The output of a label head under its own prompt (`part` or `attribute`) and under `identity`.
/// Without prompts there is one output only, `own`.
pub struct LabelHeadOutputs<T> {
    /// Under the prompt of the head.
    pub own: T,
    /// Under the identity prompt, if the losses use it.
    pub identity: Option<T>,
}

/// Outputs of the student for a share of a batch.
pub struct StudentOutputs {
    /// Logits of the projection head: [batch, prototypes] of each global view, then those of all
    /// local views in one tensor, [local views · batch, prototypes]. Empty without self-distillation.
    pub logits: Vec<Tensor<2>>,
    /// Logits at the masked patches of the global views, [masked, prototypes]; none without masked
    /// patches.
    pub patches: Option<Tensor<2>>,
    /// Pooled features of the global views under the identity prompt: [global views · batch,
    /// channels].
    pub pooled: Tensor<2>,
    /// The same of views without masked patches; none if nothing is learned from such.
    pub whole: Option<Tensor<2>>,
    /// The same under each of the prompts `part` and `attribute` that is learned; empty without
    /// prompts.
    pub prompted: Vec<Tensor<2>>,
    /// Part logits of the global views, [views · batch, classes, rows, columns]; for SOLIDER
    /// followed by those of the masked global views.
    pub parts: Option<LabelHeadOutputs<Tensor<4>>>,
    /// Attribute logits of the global views: [global views · batch, values].
    pub attributes: Option<LabelHeadOutputs<Tensor<2>>>,
    /// Features of the global views in the channels of a frozen teacher, if there is one.
    pub distilled: Option<DistillationOutputs>,
}

impl Student {
    /// A student with random weights on the autodiff side of `device`, for `teacher` if there is
    /// distillation.
    pub fn new(
        plan: &PretrainPlan,
        vocabulary: Option<&Vocabulary>,
        teacher: Option<&FrozenTeacher>,
        rng: &mut Rng,
        device: &Device,
    ) -> Self {
        let device = device.clone().autodiff();
        let backbone = plan.backbone.init(rng, &device);
        let backbone = match plan.recipe.loss.masks_patches() {
            true => backbone.with_mask_token(&device),
            false => backbone,
        };
        let channels = backbone.channels();
        let dino = DinoHeadConfig {
            hidden: plan.recipe.projection_head.hidden_dim,
            bottleneck: plan.recipe.projection_head.bottleneck_dim,
            ..DinoHeadConfig::new(channels, plan.prototypes)
        };
        let dino = dino.init(rng, &device);
        // Drawn whether it is learned or not, so that the other heads start alike.
        let part = vocabulary.map(|vocabulary| {
            PartHeadConfig::new(channels, vocabulary.parts.len()).init(rng, &device)
        });
        let part = part.filter(|_| plan.prompts[PART]);
        let attribute = vocabulary
            .filter(|_| plan.prompts[ATTRIBUTE])
            .map(|vocabulary| {
                AttributeHeadConfig::new(channels, vocabulary.logits()).init(rng, &device)
            });
        let section = &plan.recipe.distillation;
        let distillation = teacher.map(|teacher| teacher.head(section, channels, rng, &device));
        let loss = &plan.recipe.loss;
        Self {
            trunk: DinoNetwork { backbone, dino },
            part,
            attribute,
            distillation,
            has_teacher: loss.has_teacher(),
            prompted: matches!(plan.backbone.adapter, Adapter::Moe(_)),
            labels_on_identity: loss.identity_label_weight > 0.0,
            detach_shared: loss.detach_shared,
        }
    }

    /// See [`Backbone::with_cast_weights`].
    pub(crate) fn with_cast_weights(self) -> Self {
        Self {
            trunk: self.trunk.with_cast_weights(),
            ..self
        }
    }

    /// One forward pass over all views, the local ones by `local_backbone`: the backbone, or one of the same
    /// weights. `masked` is the part that SOLIDER masks, if any. `cut` may cut the graph at the outputs of
    /// the shared blocks.
    pub fn forward(
        &self,
        local_backbone: &Backbone,
        inputs: &BatchTensors,
        masked: Option<u8>,
        rng: &mut Rng,
        cut: &mut dyn FnMut(SharedFeatures) -> SharedFeatures,
    ) -> StudentOutputs {
        let batch = inputs.batch;
        let device = self.device();
        let backbone = &self.trunk.backbone;
        let globals = inputs.globals.clone();
        let weights = inputs.prompt_weights(globals.dims()[0] / batch, &device);
        let mask = inputs.masks.as_ref().map(|masks| &masks.mask);
        let seen = cut(backbone.shared_masked(globals.clone(), mask, &weights, Some(rng)));
        let features = backbone.conditional(self.detached(seen.clone()), &weights, Some(rng));
        // Labels and the frozen teacher are of whole views.
        let whole = self.part.is_some() || self.attribute.is_some() || self.distillation.is_some();
        let is_masked = mask.is_some() && whole;
        let shared = match is_masked {
            true => cut(backbone.shared(globals.clone(), &weights, Some(rng))),
            false => seen,
        };
        // The features of the label losses and of distillation under the identity prompt.
        let used = self.labels_on_identity || !self.prompted || self.distillation.is_some();
        let identity = if (self.detach_shared || is_masked) && used {
            backbone.conditional(shared.clone(), &weights, Some(rng))
        } else {
            features.clone()
        };
        let mut pooled = vec![features.pooled.clone()];

        let locals = inputs.locals.as_ref().filter(|_| self.has_teacher);
        if let Some(locals) = locals {
            let weights = inputs.prompt_weights(locals.dims()[0] / batch, &device);
            let shared = cut(local_backbone.shared(locals.clone(), &weights, Some(rng)));
            let features = local_backbone.conditional(self.detached(shared), &weights, Some(rng));
            pooled.push(features.pooled);
        }

        let mut prompted = Vec::new();
        let mut under = |prompt: usize, rng: &mut Rng| {
            let weights = PromptWeights::single(prompt).tensor(&device);
            let features = backbone.conditional(shared.clone(), &weights, Some(rng));
            prompted.push(features.pooled.clone());
            features
        };
        let parts = self.part.as_ref().map(|head| {
            if self.prompted {
                let own = under(PART, rng).map;
                let on_identity = self.labels_on_identity.then(|| identity.map.clone());
                return LabelHeadOutputs {
                    own: head.forward(own),
                    identity: on_identity.map(|map| head.forward(map)),
                };
            }
            let mut maps = vec![identity.map.clone()];
            if let (Some(part), Some(labels)) = (masked, &inputs.parts) {
                let masked = mask_part(globals, labels.clone(), part);
                let shared = cut(backbone.shared(masked, &weights, Some(rng)));
                maps.push(backbone.conditional(shared, &weights, Some(rng)).map);
            }
            LabelHeadOutputs {
                own: head.forward(Tensor::cat(maps, 0)),
                identity: None,
            }
        });
        let attributes = self.attribute.as_ref().map(|head| {
            if self.prompted {
                let own = under(ATTRIBUTE, rng).pooled;
                let on_identity = self.labels_on_identity.then(|| identity.pooled.clone());
                return LabelHeadOutputs {
                    own: head.forward(own),
                    identity: on_identity.map(|pooled| head.forward(pooled)),
                };
            }
            LabelHeadOutputs {
                own: head.forward(identity.pooled.clone()),
                identity: None,
            }
        });
        let distilled = self
            .distillation
            .as_ref()
            .map(|head| head.forward(&identity));
        let patches = { inputs.masks.as_ref() }.map(|masks| masks.select(features.map.clone()));
        let (logits, patches) = match self.has_teacher {
            true => self.trunk.logits(pooled, patches, batch),
            false => (Vec::new(), None),
        };
        StudentOutputs {
            logits,
            patches,
            parts,
            attributes,
            distilled,
            pooled: features.pooled,
            whole: (!is_masked || used).then_some(identity.pooled),
            prompted,
        }
    }

    /// The shared features of the self-distillation branch, without gradient if the recipe says so.
    fn detached(&self, shared: SharedFeatures) -> SharedFeatures {
        if self.detach_shared {
            shared.detach()
        } else {
            shared
        }
    }

    /// The names of the parameters of the shared blocks: those that the gradient of their outputs
    /// reaches.
    pub(crate) fn shared_parameters(&self, [height, width]: [usize; 2]) -> BTreeSet<String> {
        let (device, backbone) = (self.device(), &self.trunk.backbone);
        let image = Tensor::zeros([1, 3, height, width], &device);
        let weights = PromptWeights::single(IDENTITY).tensor(&device);
        let [rows, columns] = backbone.grid(height, width);
        let mask = { backbone.has_mask_token() }.then(|| Tensor::ones([1, rows, columns], &device));
        let shared = backbone.shared_masked(image, mask.as_ref(), &weights, None);
        let mut graph = shared.sum().backward();
        optim::gradients(self, &mut graph).into_keys().collect()
    }

    fn device(&self) -> Device {
        self.trunk.dino.last_layer.weight_v.device()
    }
}

impl DinoNetwork {
    /// See [`Backbone::with_cast_weights`].
    pub(crate) fn with_cast_weights(self) -> Self {
        Self {
            backbone: self.backbone.with_cast_weights(),
            ..self
        }
    }

    /// Logits of the global views, one tensor [batch, prototypes] a view, and at their masked
    /// patches, [masked, prototypes], which this network sees.
    pub fn project(&self, inputs: &BatchTensors) -> (Vec<Tensor<2>>, Option<Tensor<2>>) {
        let features = self.features(inputs);
        let patches = { inputs.masks.as_ref() }.map(|masks| masks.select(features.map));
        self.logits(vec![features.pooled], patches, inputs.batch)
    }

    /// Logits of features, in one call, as the last layer has by far the most weights to read.
    ///
    /// # Shapes
    /// - pooled: of the global views [views · batch, channels], and then perhaps of the local views
    /// - patches: features at masked patches, [masked, channels]
    /// - returns [batch, prototypes] of each global view and [local views · batch, prototypes], and
    ///   [masked, prototypes]
    fn logits(
        &self,
        mut pooled: Vec<Tensor<2>>,
        patches: Option<Tensor<2>>,
        batch: usize,
    ) -> (Vec<Tensor<2>>, Option<Tensor<2>>) {
        let counts: Vec<usize> = pooled.iter().map(|pooled| pooled.dims()[0]).collect();
        let masked = patches.as_ref().map_or(0, |patches| patches.dims()[0]);
        pooled.extend(patches);
        let all = self.dino.forward(Tensor::cat(pooled, 0));
        let mut start = 0;
        let mut next = |count: usize| {
            start += count;
            all.clone().narrow(0, start - count, count)
        };
        let mut logits = Vec::new();
        for (index, &count) in counts.iter().enumerate() {
            match index {
                0 => logits.extend(split(next(count), batch)),
                _ => logits.push(next(count)),
            }
        }
        let patches = (masked > 0).then(|| next(masked));
        (logits, patches)
    }

    /// Pooled features of the global views under the identity prompt: [views · batch, channels].
    pub fn pool(&self, inputs: &BatchTensors) -> Tensor<2> {
        self.features(inputs).pooled
    }

    fn features(&self, inputs: &BatchTensors) -> Features {
        let images = inputs.globals.clone();
        let views = images.dims()[0] / inputs.batch;
        let weights = inputs.prompt_weights(views, &images.device());
        self.backbone.forward(images, weights, None)
    }
}

impl BatchTensors {
    /// Prompt weights of a pass over `views` views: `identity`, [1, prompts], or for SOLIDER those
    /// of each image's λ, [views · batch, prompts].
    fn prompt_weights(&self, views: usize, device: &Device) -> Tensor<2> {
        match &self.lambdas {
            None => PromptWeights::single(IDENTITY).tensor(device),
            Some(lambdas) => {
                let weights: Vec<PromptWeights> = lambdas
                    .iter()
                    .map(|lambda| lambda_weights(*lambda))
                    .collect();
                prompt_weights_tensor(&weights.repeat(views), device)
            }
        }
    }
}

/// λ as prompt weights: the controller takes λ as 1 − the weight of `identity`.
fn lambda_weights(lambda: f32) -> PromptWeights {
    match PromptWeights::new([1.0 - lambda, lambda, 0.0]) {
        Ok(weights) => weights,
        Err(_) => PromptWeights::single(IDENTITY),
    }
}

/// The part that SOLIDER masks in a step: any but the background (class 0), the same for all
/// images; none for other methods.
pub fn part_to_mask(method: Method, classes: usize, rng: &mut Rng) -> Option<u8> {
    use rand::RngExt;
    (method == Method::Solider && classes > 1)
        .then(|| u8::try_from(rng.random_range(1..classes)).ok())
        .flatten()
}

/// Images with the patch positions of one part set to 0, the mean color after normalization.
///
/// images: [views, 3, height, width], labels: [views, rows, columns].
fn mask_part(images: Tensor<4>, labels: Tensor<3, Int>, part: u8) -> Tensor<4> {
    let [views, _, height, width] = images.dims();
    let [_, rows, columns] = labels.dims();
    let kept = labels.not_equal_elem(i32::from(part)).float();
    let (patch_height, patch_width) = (height.div_ceil(rows), width.div_ceil(columns));
    let kept = kept
        .reshape([views, rows, 1, columns, 1])
        .repeat(&[1, 1, patch_height, 1, patch_width])
        .reshape([views, 1, rows * patch_height, columns * patch_width])
        .narrow(2, 0, height)
        .narrow(3, 0, width);
    images * kept
}

/// [views · batch, prototypes] as one [batch, prototypes] a view.
fn split(logits: Tensor<2>, batch: usize) -> Vec<Tensor<2>> {
    logits.split(batch, 0)
}
