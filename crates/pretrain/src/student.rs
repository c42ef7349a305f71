//! The networks of pre-training: backbone and projection head, which student and teacher both have, and the heads
//! that only the student has.
//!
//! Each loss sees features under the prompt of its own task. The blocks before the conditional ones (T) run once for a
//! view, the conditional ones (B) once for each prompt:
//!
//! ```text
//! L = w_d·L_dino(B_identity(T(v))) + w_p·L_part(B_part(T(v_global))) + w_a·L_attr(B_attribute(T(v_global)))
//!     + λ·(w_p·L_part + w_a·L_attr)(B_identity(T(v_global)))
//! ```
//!
//! The teacher is always under `identity`: were prompts drawn at random and shared by student and teacher, recognizing
//! the prompt would be the easiest way to lower L_dino.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use clasp_data::vocabulary::Vocabulary;
use clasp_model::backbone::{Adapter, Backbone, SharedFeatures};
use clasp_model::heads::{
    AttributeHead, AttributeHeadConfig, DinoHead, DinoHeadConfig, PartHead, PartHeadConfig,
};
use clasp_model::layers::Rng;
use clasp_model::mix::{ATTRIBUTE, IDENTITY, Mix, PART, mixes_tensor};

use crate::recipe::{Method, Plan};
use crate::views::Inputs;

/// What the teacher is an average of.
#[derive(Module, Debug)]
pub struct Trunk {
    /// The backbone.
    pub backbone: Backbone,
    /// DINO's projection head.
    pub dino: DinoHead,
}

/// Everything that is trained.
#[derive(Module, Debug)]
pub struct Student {
    /// Backbone and projection head.
    pub trunk: Trunk,
    /// Part of each token, where parts are learnt.
    pub part: Option<PartHead>,
    /// Attributes of the image, where they are learnt.
    pub attribute: Option<AttributeHead>,
    /// Whether the last blocks depend on prompts.
    prompted: bool,
    /// Whether the part and attribute losses also see the features under the identity prompt.
    labels_on_identity: bool,
    /// Whether the gradient of DINO's loss stops before the conditional blocks.
    detach_shared: bool,
}

/// The output of a label head under the prompt of its own task, and under that of identity. Without prompts there is
/// one output only, under `own`.
pub struct Heads<T> {
    /// Under the prompt of the task.
    pub own: T,
    /// Under the identity prompt, where the losses see it.
    pub identity: Option<T>,
}

/// What the student makes of a batch.
pub struct Forward {
    /// Projections: [batch, outputs] of each global view, then those of all local views in one.
    pub views: Vec<Tensor<2>>,
    /// Pooled features of the global views under the identity prompt: [global views · batch, channels].
    pub pooled: Tensor<2>,
    /// The same under the prompts of part and attribute, where these are learnt under prompts.
    pub prompted: Vec<Tensor<2>>,
    /// Part logits of the global views and, for SOLIDER, of the masked ones after them:
    /// [views · batch, classes, rows, columns].
    pub parts: Option<Heads<Tensor<4>>>,
    /// Attribute logits of the global views: [global views · batch, values].
    pub attributes: Option<Heads<Tensor<2>>>,
}

impl Student {
    /// A student with fresh weights, in training on `device`.
    pub fn new(
        plan: &Plan,
        vocabulary: Option<&Vocabulary>,
        rng: &mut Rng,
        device: &Device,
    ) -> Self {
        let device = device.clone().autodiff();
        let backbone = plan.backbone.init(rng, &device);
        let channels = backbone.channels();
        let dino = DinoHeadConfig {
            hidden: plan.recipe.head.hidden,
            bottleneck: plan.recipe.head.bottleneck,
            ..DinoHeadConfig::new(channels, plan.outputs)
        };
        let dino = dino.init(rng, &device);
        let part = vocabulary.filter(|_| plan.tasks[PART]).map(|vocabulary| {
            PartHeadConfig::new(channels, vocabulary.parts.len()).init(rng, &device)
        });
        let attribute = vocabulary
            .filter(|_| plan.tasks[ATTRIBUTE])
            .map(|vocabulary| {
                AttributeHeadConfig::new(channels, vocabulary.logits()).init(rng, &device)
            });
        let loss = &plan.recipe.loss;
        Self {
            trunk: Trunk { backbone, dino },
            part,
            attribute,
            prompted: matches!(plan.backbone.adapter, Adapter::Moe(_)),
            labels_on_identity: loss.identity_labels > 0.0,
            detach_shared: loss.detach_shared,
        }
    }

    /// One pass over all views of a batch. `masked` is SOLIDER's part to hide, if any.
    pub fn forward(&self, inputs: &Inputs, masked: Option<u8>, rng: &mut Rng) -> Forward {
        let batch = inputs.batch;
        let device = self.device();
        let backbone = &self.trunk.backbone;
        let globals = inputs.globals.clone();
        let mix = inputs.mix(globals.dims()[0] / batch, &device);
        let shared = backbone.shared(globals.clone(), &mix, Some(rng));
        let features = backbone.conditional(self.stop(shared.clone()), &mix, Some(rng));
        // The features that the label losses see without a prompt of their own.
        let identity = if self.detach_shared && (self.labels_on_identity || !self.prompted) {
            backbone.conditional(shared.clone(), &mix, Some(rng))
        } else {
            features.clone()
        };
        let mut pooled = vec![features.pooled.clone()];

        if let Some(locals) = &inputs.locals {
            let mix = inputs.mix(locals.dims()[0] / batch, &device);
            let shared = backbone.shared(locals.clone(), &mix, Some(rng));
            let features = backbone.conditional(self.stop(shared), &mix, Some(rng));
            pooled.push(features.pooled);
        }

        let mut prompted = Vec::new();
        let mut under = |task: usize, rng: &mut Rng| {
            let mix = Mix::single(task).tensor(&device);
            let features = backbone.conditional(shared.clone(), &mix, Some(rng));
            prompted.push(features.pooled.clone());
            features
        };
        let parts = self.part.as_ref().map(|head| {
            if self.prompted {
                let own = under(PART, rng).map;
                let also = self.labels_on_identity.then(|| identity.map.clone());
                return Heads {
                    own: head.forward(own),
                    identity: also.map(|map| head.forward(map)),
                };
            }
            let mut maps = vec![identity.map.clone()];
            if let (Some(part), Some(labels)) = (masked, &inputs.parts) {
                let hidden = hide(globals, labels.clone(), part);
                maps.push(backbone.forward(hidden, mix, Some(rng)).map);
            }
            Heads {
                own: head.forward(Tensor::cat(maps, 0)),
                identity: None,
            }
        });
        let attributes = self.attribute.as_ref().map(|head| {
            if self.prompted {
                let own = under(ATTRIBUTE, rng).pooled;
                let also = self.labels_on_identity.then(|| identity.pooled.clone());
                return Heads {
                    own: head.forward(own),
                    identity: also.map(|pooled| head.forward(pooled)),
                };
            }
            Heads {
                own: head.forward(identity.pooled.clone()),
                identity: None,
            }
        });
        // The last layer is the largest: it is read once for all views.
        let globals = features.pooled.dims()[0];
        let projections = self.trunk.dino.forward(Tensor::cat(pooled, 0));
        let locals = projections.dims()[0] - globals;
        let mut views = split(projections.clone().narrow(0, 0, globals), batch);
        if locals > 0 {
            views.push(projections.narrow(0, globals, locals));
        }
        Forward {
            views,
            parts,
            attributes,
            pooled: features.pooled,
            prompted,
        }
    }

    /// What DINO's branch goes on with.
    fn stop(&self, shared: SharedFeatures) -> SharedFeatures {
        if self.detach_shared {
            shared.detach()
        } else {
            shared
        }
    }

    fn device(&self) -> Device {
        self.trunk.dino.last_layer.weight_v.device()
    }
}

impl Trunk {
    /// Projections of the global views, one tensor [batch, outputs] a view: what the teacher's targets are made of.
    pub fn project(&self, inputs: &Inputs) -> Vec<Tensor<2>> {
        split(self.dino.forward(self.pool(inputs)), inputs.batch)
    }

    /// Pooled features of the global views under the identity prompt: [views · batch, channels].
    pub fn pool(&self, inputs: &Inputs) -> Tensor<2> {
        let images = inputs.globals.clone();
        let views = images.dims()[0] / inputs.batch;
        let mix = inputs.mix(views, &images.device());
        self.backbone.forward(images, mix, None).pooled
    }
}

impl Inputs {
    /// Prompt weights of a pass over `views` views: those of identity, [1, tasks], or SOLIDER's λ by image,
    /// [views · batch, tasks].
    fn mix(&self, views: usize, device: &Device) -> Tensor<2> {
        match &self.lambdas {
            None => Mix::single(IDENTITY).tensor(device),
            Some(lambdas) => {
                let mixes: Vec<Mix> = lambdas.iter().map(|lambda| lambda_mix(*lambda)).collect();
                mixes_tensor(&mixes.repeat(views), device)
            }
        }
    }
}

/// λ as prompt weights: the controller reads λ as 1 less the weight of identity.
fn lambda_mix(lambda: f32) -> Mix {
    match Mix::new([1.0 - lambda, lambda, 0.0]) {
        Ok(mix) => mix,
        Err(_) => Mix::single(IDENTITY),
    }
}

/// The part that SOLIDER hides in this step: any but the background, the same for all images.
pub fn part_to_hide(method: Method, classes: usize, rng: &mut Rng) -> Option<u8> {
    use rand::RngExt;
    (method == Method::Solider && classes > 1)
        .then(|| u8::try_from(rng.random_range(1..classes)).ok())
        .flatten()
}

/// Images with the grid positions of one part set to 0, which is the mean colour after normalisation.
/// images: [views, 3, height, width], labels: [views, rows, columns].
fn hide(images: Tensor<4>, labels: Tensor<3, Int>, part: u8) -> Tensor<4> {
    let [views, _, height, width] = images.dims();
    let [_, rows, columns] = labels.dims();
    let shown = labels.not_equal_elem(i32::from(part)).float();
    let (cell_height, cell_width) = (height.div_ceil(rows), width.div_ceil(columns));
    let shown = shown
        .reshape([views, rows, 1, columns, 1])
        .repeat(&[1, 1, cell_height, 1, cell_width])
        .reshape([views, 1, rows * cell_height, columns * cell_width])
        .narrow(2, 0, height)
        .narrow(3, 0, width);
    images * shown
}

/// [views · batch, outputs] as one [batch, outputs] a view.
fn split(projections: Tensor<2>, batch: usize) -> Vec<Tensor<2>> {
    projections.split(batch, 0)
}
