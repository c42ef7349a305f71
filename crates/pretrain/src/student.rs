//! The networks of pre-training: the trunk, which student and teacher both have, and the heads
//! that only the student has.

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use clasp_data::vocabulary::Vocabulary;
use clasp_model::backbone::{Backbone, Routing};
use clasp_model::heads::{
    AttributeHead, AttributeHeadConfig, DinoHead, DinoHeadConfig, PartHead, PartHeadConfig,
};
use clasp_model::layers::Rng;
use clasp_model::mix::{ATTRIBUTE, Mix, PART, mixes_tensor};

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
}

/// What the student makes of a batch.
pub struct Forward {
    /// Projections: [batch, outputs] of each global view, then those of all local views in one.
    pub views: Vec<Tensor<2>>,
    /// Pooled features of the global views: [global views · batch, channels].
    pub pooled: Tensor<2>,
    /// Part logits of the global views and, for SOLIDER, of the masked ones after them:
    /// [views · batch, classes, rows, columns].
    pub parts: Option<Tensor<4>>,
    /// Attribute logits of the global views: [global views · batch, values].
    pub attributes: Option<Tensor<2>>,
    /// Routing of the blocks in the passes over global, local and masked views, each with the mix of
    /// every view.
    pub routing: Vec<(Vec<Routing>, Vec<Mix>)>,
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
        Self {
            trunk: Trunk { backbone, dino },
            part,
            attribute,
        }
    }

    /// One pass over all views of a batch. `masked` is SOLIDER's part to hide, if any.
    pub fn forward(&self, inputs: &Inputs, masked: Option<u8>, rng: &mut Rng) -> Forward {
        let batch = inputs.mixes.len();
        let device = self.device();
        let globals = inputs.globals.clone();
        let mixes = repeat(&inputs.mixes, globals.dims()[0] / batch);
        let features =
            self.trunk
                .backbone
                .forward(globals.clone(), mixes_tensor(&mixes, &device), Some(rng));
        let mut pooled = vec![features.pooled.clone()];
        let mut maps = vec![features.map];
        let mut routing = vec![(features.routing, mixes.clone())];

        if let Some(locals) = &inputs.locals {
            let mixes = repeat(&inputs.mixes, locals.dims()[0] / batch);
            let features = self.trunk.backbone.forward(
                locals.clone(),
                mixes_tensor(&mixes, &device),
                Some(rng),
            );
            pooled.push(features.pooled);
            routing.push((features.routing, mixes));
        }
        if let (Some(part), Some(labels)) = (masked, &inputs.parts) {
            let hidden = hide(globals, labels.clone(), part);
            let features =
                self.trunk
                    .backbone
                    .forward(hidden, mixes_tensor(&mixes, &device), Some(rng));
            maps.push(features.map);
            routing.push((features.routing, mixes));
        }
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
            parts: self
                .part
                .as_ref()
                .map(|head| head.forward(Tensor::cat(maps, 0))),
            attributes: self
                .attribute
                .as_ref()
                .map(|head| head.forward(features.pooled.clone())),
            pooled: features.pooled,
            routing,
        }
    }

    fn device(&self) -> Device {
        self.trunk.dino.last_layer.weight_v.device()
    }
}

impl Trunk {
    /// Projections of the global views, one tensor [batch, outputs] a view: what the teacher says.
    pub fn project(&self, inputs: &Inputs) -> Vec<Tensor<2>> {
        split(self.dino.forward(self.pool(inputs)), inputs.mixes.len())
    }

    /// Pooled features of the global views: [views · batch, channels].
    pub fn pool(&self, inputs: &Inputs) -> Tensor<2> {
        let views = inputs.globals.dims()[0] / inputs.mixes.len();
        let mix = mixes_tensor(&repeat(&inputs.mixes, views), &inputs.globals.device());
        let images = inputs.globals.clone();
        self.backbone.forward(images, mix, None).pooled
    }
}

/// The part that SOLIDER hides in this step: any but the background, the same for all images.
pub fn part_to_hide(method: Method, classes: usize, rng: &mut Rng) -> Option<u8> {
    use rand::RngExt;
    (method == Method::Solider && classes > 1)
        .then(|| u8::try_from(rng.random_range(1..classes)).ok())
        .flatten()
}

/// Images with the cells of one part set to 0, which is the mean colour after normalisation.
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

fn repeat(mixes: &[Mix], views: usize) -> Vec<Mix> {
    mixes.repeat(views)
}

/// [views · batch, outputs] as one [batch, outputs] a view.
fn split(projections: Tensor<2>, batch: usize) -> Vec<Tensor<2>> {
    projections.split(batch, 0)
}
