//! The recipe of a run: plain data in TOML.
//!
//! Every key has a default (the ImageNet-style values of DINO and SOLIDER, see docs/method.md),
//! unknown keys are errors that name the nearest right one, and `"auto"` stands for a value that
//! follows from the others. [`PretrainRecipe::plan`] resolves `"auto"` once; the resolved recipe is
//! what `run.toml` in the run folder holds, so that `clasp pretrain run.toml` repeats a run.

mod attributes;
mod distillation;
mod ranges;

use std::path::{Path, PathBuf};

use clasp_data::augment::ViewsConfig;
use clasp_model::Precision;
use clasp_model::backbone::{BackboneConfig, Sizes};
use clasp_model::prompt::PROMPTS;
use clasp_model::swin::WindowPadding;
pub use clasp_run::recipe::Auto;
use clasp_run::{ExchangeFormat, folder, recipe};
use serde::{Deserialize, Serialize};

pub use self::attributes::AttributeTargetSection;
pub use self::distillation::DistillationSection;
use crate::error::Result;

pub(crate) use self::ranges::{EPOCHS, LEARNING_RATE, MAX_STEPS, TEMPERATURE};

/// What is learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// DINO (Caron et al., ICCV 2021): views of one image agree. No labels, no adapter.
    Dino,
    /// SOLIDER (Chen et al., CVPR 2023), in our reading: DINO, and part labels from k-means on
    /// plain and on masked views, under a controller of one number λ.
    Solider,
    /// DINO with part and attribute labels from CLIP under prompts and experts.
    Clasp,
}

impl Method {
    /// The name in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dino => "dino",
            Self::Solider => "solider",
            Self::Clasp => "clasp",
        }
    }
}

/// What conditions the last blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdapterKind {
    /// Nothing: the plain backbone.
    None,
    /// SOLIDER's controller.
    Lambda,
    /// Prompts that scale the hidden units of the MLP and modulate the norms.
    Gated,
    /// Experts that are averaged under prompts.
    Merged,
}

/// How the teacher's targets are kept from collapsing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Centering {
    /// A moving average of the teacher's logits is subtracted, as in DINO.
    Center,
    /// Sinkhorn–Knopp gives each prototype an equal share of the samples of a step, as in SwAV and
    /// DINOv2.
    Sinkhorn,
}

/// What to do with images that have no labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MissingLabels {
    /// Stop with their number.
    Error,
    /// Train on the others.
    Skip,
}

/// Which norm of the gradients is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClipGradMode {
    /// The norm of each parameter tensor, as in DINO.
    PerTensor,
    /// The norm of all gradients together.
    Global,
}

/// A recipe of pre-training. [`Default`] has the defaults of all keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainRecipe {
    /// What is learned.
    pub method: Method,
    /// Seed of all random draws.
    pub seed: u64,
    /// Images and labels.
    pub data: PretrainDataSection,
    /// Backbone, adapter and prompts.
    pub model: PretrainModelSection,
    /// Views of an image.
    pub views: ViewsConfig,
    /// Projection head of self-distillation.
    pub projection_head: ProjectionHeadSection,
    /// Weights and temperatures of the losses.
    pub loss: LossSection,
    /// Distillation of a frozen teacher's features.
    pub distillation: DistillationSection,
    /// How stored logits become attribute targets.
    pub attributes: AttributeTargetSection,
    /// AdamW and its schedules.
    pub optimizer: PretrainOptimizerSection,
    /// The moving average of the student.
    pub teacher: TeacherSection,
    /// Length, batch, log and checkpoints.
    pub run: PretrainRunSection,
}

impl Default for PretrainRecipe {
    fn default() -> Self {
        Self {
            method: Method::Clasp,
            seed: 0,
            data: PretrainDataSection::default(),
            model: PretrainModelSection::default(),
            views: ViewsConfig::default(),
            projection_head: ProjectionHeadSection::default(),
            loss: LossSection::default(),
            distillation: DistillationSection::default(),
            attributes: AttributeTargetSection::default(),
            optimizer: PretrainOptimizerSection::default(),
            teacher: TeacherSection::default(),
            run: PretrainRunSection::default(),
        }
    }
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainDataSection {
    /// File, folder, list file, tar shards (`people-{000..099}.tar`) or Parquet files; several with
    /// commas.
    pub images: String,
    /// Label store that `clasp label` wrote. Empty: none (`dino` only).
    pub labels: PathBuf,
    /// What to do with images that have no labels: `error` or `skip`.
    pub missing_labels: MissingLabels,
    /// A control for experiments: each image has the labels of another, drawn at random once.
    pub permute_labels: bool,
    /// Train on the rest although more than 5 % of the images cannot be read.
    pub skip_unreadable: bool,
    /// Threads that decode and augment. Auto: the cores.
    pub workers: Auto<usize>,
}

impl Default for PretrainDataSection {
    fn default() -> Self {
        Self {
            images: String::new(),
            labels: PathBuf::new(),
            missing_labels: MissingLabels::Error,
            permute_labels: false,
            skip_unreadable: false,
            workers: Auto::Auto,
        }
    }
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainModelSection {
    /// Name of a preset, such as `swin-tiny` or `vit-small`.
    pub backbone: String,
    /// Checkpoint that the backbone starts from: of clasp, or any that `clasp import` reads. Empty:
    /// random weights.
    pub init: PathBuf,
    /// How the windows of a Swin lie on a map that they do not divide: `detection`, `timm`,
    /// `transformers` (docs/weights.md). With `timm` it can be exported to timm at any size. Auto:
    /// as in the file of `init`, else `detection`; of a file with another rule no value is taken.
    pub windows: Auto<WindowPadding>,
    /// `none`, `lambda` (SOLIDER's), or a mixture of experts under prompts: `gated`, `merged`.
    /// Auto: `none` for `dino`, `lambda` for `solider`, `gated` for `clasp`.
    pub adapter: Auto<AdapterKind>,
    /// Prompts to learn; leave out `part` or `attribute` to train without their labels. `dino`
    /// learns `identity` only and `solider` no `attribute`, whatever this list has.
    pub prompts: Vec<String>,
    /// Conditional blocks, counted from the last block. Auto: a quarter of all blocks, at least
    /// one, and no more than the last stage has.
    pub conditional_blocks: Auto<usize>,
    /// Experts of a block (`merged`).
    pub experts: usize,
    /// Probability that the student drops the residual branches of the last block, growing linearly
    /// from 0 over the blocks.
    pub drop_path: f64,
}

impl Default for PretrainModelSection {
    fn default() -> Self {
        Self {
            backbone: "swin-tiny".to_owned(),
            init: PathBuf::new(),
            windows: Auto::Auto,
            adapter: Auto::Auto,
            prompts: PROMPTS.map(str::to_owned).to_vec(),
            conditional_blocks: Auto::Auto,
            experts: 6,
            drop_path: 0.1,
        }
    }
}

impl PretrainModelSection {
    /// Whether a prompt is among those to learn.
    pub(crate) fn has_prompt(&self, prompt: usize) -> bool {
        self.prompts.iter().any(|name| name == PROMPTS[prompt])
    }
}

/// `[projection_head]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProjectionHeadSection {
    /// Prototypes K, the outputs of the head. Auto: 65536, or 16384 for batches below 256.
    pub prototypes: Auto<usize>,
    /// Channels of the hidden layers.
    pub hidden_dim: usize,
    /// Channels before the last layer.
    pub bottleneck_dim: usize,
}

impl Default for ProjectionHeadSection {
    fn default() -> Self {
        Self {
            prototypes: Auto::Auto,
            hidden_dim: 2048,
            bottleneck_dim: 256,
        }
    }
}

/// `[loss]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossSection {
    /// Weight of the loss of self-distillation.
    pub dino_weight: f64,
    /// Weight of iBOT's loss of masked patches; 0 masks nothing.
    pub ibot_weight: f64,
    /// Weight of KoLeo, which spreads the features of a batch.
    pub koleo_weight: f64,
    /// Probability that patches of a global view are masked (`ibot_weight`).
    pub mask_probability: f64,
    /// Least and largest share of the patches of such a view that are masked.
    pub mask_ratio: [f64; 2],
    /// Weight of the part loss.
    pub part_weight: f64,
    /// Weight of the attribute loss.
    pub attribute_weight: f64,
    /// λ: factor of the part and attribute losses on features under the identity prompt, times
    /// their own weights; those under the part and attribute prompts have the factor 1. Without
    /// prompts there is one of each loss.
    pub identity_label_weight: f64,
    /// Whether the gradient of the loss of self-distillation stops before the conditional blocks,
    /// so that the shared blocks learn from labels alone.
    pub detach_shared: bool,
    /// How the teacher's targets are kept from collapsing: `center` or `sinkhorn`.
    pub centering: Centering,
    /// Temperature of the student.
    pub student_temperature: f64,
    /// Temperature of the teacher after its warm-up.
    pub teacher_temperature: f64,
    /// Temperature of the teacher at the start of its warm-up. Auto: the same.
    pub teacher_temperature_start: Auto<f64>,
    /// Epochs in which the temperature of the teacher changes linearly from the one to the other.
    pub teacher_temperature_warmup_epochs: f64,
    /// Factor of the old center in its moving average.
    pub center_momentum: f64,
}

impl Default for LossSection {
    fn default() -> Self {
        Self {
            dino_weight: 1.0,
            ibot_weight: 0.0,
            koleo_weight: 0.0,
            mask_probability: 0.5,
            mask_ratio: [0.1, 0.5],
            part_weight: 1.0,
            attribute_weight: 1.0,
            identity_label_weight: 1.0,
            detach_shared: false,
            centering: Centering::Center,
            student_temperature: 0.1,
            teacher_temperature: 0.04,
            teacher_temperature_start: Auto::Auto,
            teacher_temperature_warmup_epochs: 0.0,
            center_momentum: 0.9,
        }
    }
}

impl LossSection {
    /// Whether patches are masked, for which the backbone needs a mask token.
    pub(crate) fn masks_patches(&self) -> bool {
        self.ibot_weight > 0.0
    }

    /// Whether anything is learned from the moving-average teacher: self-distillation of views or of
    /// masked patches.
    pub(crate) fn has_teacher(&self) -> bool {
        self.dino_weight > 0.0 || self.masks_patches()
    }

    /// Weights of the losses by key, for the check of their range.
    pub(crate) fn weights(&self) -> [(&'static str, f64); 6] {
        [
            ("loss.dino_weight", self.dino_weight),
            ("loss.ibot_weight", self.ibot_weight),
            ("loss.koleo_weight", self.koleo_weight),
            ("loss.part_weight", self.part_weight),
            ("loss.attribute_weight", self.attribute_weight),
            ("loss.identity_label_weight", self.identity_label_weight),
        ]
    }
}

/// `[optimizer]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainOptimizerSection {
    /// Learning rate after the warm-up. Auto: 5e-4 · batch / 256.
    pub lr: Auto<f64>,
    /// Learning rate at the end of the cosine.
    pub min_lr: f64,
    /// Learning rate of prompts, times `lr`. Prompts are factors around 1 where weights are around
    /// 0.02, so that steps of the same size hardly change them.
    pub prompt_lr_factor: f64,
    /// Epochs in which the learning rate grows from 0. Auto: 10, but no more than a tenth of the
    /// run.
    pub warmup_epochs: Auto<f64>,
    /// Weight decay at the start.
    pub weight_decay: f64,
    /// Weight decay at the end.
    pub weight_decay_end: f64,
    /// Largest norm of a gradient; 0 for no limit.
    pub clip_grad: f64,
    /// Which norm: `per_tensor` or `global`.
    pub clip_grad_mode: ClipGradMode,
    /// Epochs in which the last layer of the projection head is not trained.
    pub freeze_last_layer: f64,
}

impl Default for PretrainOptimizerSection {
    fn default() -> Self {
        Self {
            lr: Auto::Auto,
            min_lr: 1e-6,
            prompt_lr_factor: 30.0,
            warmup_epochs: Auto::Auto,
            weight_decay: 0.04,
            weight_decay_end: 0.4,
            clip_grad: 3.0,
            clip_grad_mode: ClipGradMode::PerTensor,
            freeze_last_layer: 1.0,
        }
    }
}

/// `[teacher]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TeacherSection {
    /// Factor of the old teacher in its moving average, at the start. Auto: 0.996, or 0.9995 for
    /// batches below 256.
    pub momentum: Auto<f64>,
    /// The same at the end.
    pub momentum_end: f64,
}

impl Default for TeacherSection {
    fn default() -> Self {
        Self {
            momentum: Auto::Auto,
            momentum_end: 1.0,
        }
    }
}

/// `[run]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainRunSection {
    /// Passes over all images.
    pub epochs: f64,
    /// Steps of the optimizer. Auto: those of `epochs`. With 0 the run writes the network before
    /// the first step.
    pub steps: Auto<u64>,
    /// Images of a step, over all parts and replicas.
    pub batch: usize,
    /// Parts of a batch that are computed one after the other, to save memory (gradient
    /// accumulation).
    pub accumulate: usize,
    /// Replicas of the student that share a part, each on one thread, over all ranks. Auto: for
    /// each rank one a core on the CPU, else 1.
    pub replicas: Auto<usize>,
    /// Format in which processes send gradients to each other: `f32`, or `bf16`, half of the bytes with
    /// rounded sums.
    pub exchange: ExchangeFormat,
    /// Precision of matrix products: `f32`, or `bf16`, faster where the device has it, with trained
    /// weights, optimizer, norms and losses in f32. Auto: bf16 on other devices that compute in it,
    /// f32 on the CPU, where bf16 is faster with Intel's AMX or AMD's AVX512-BF16.
    pub precision: Auto<Precision>,
    /// Whether the backward pass computes activations again instead of keeping them: less memory,
    /// more time, the same gradients. Smaller parts (`accumulate`) save memory without taking time.
    pub gradient_checkpointing: bool,
    /// Steps between two checkpoints. Auto: an epoch, but between 50 and 1000 steps.
    pub save_every: Auto<u64>,
    /// Checkpoints that are kept, the newest ones.
    pub keep_checkpoints: usize,
    /// Steps between two lines of the log.
    pub log_every: u64,
}

impl Default for PretrainRunSection {
    fn default() -> Self {
        Self {
            epochs: 100.0,
            steps: Auto::Auto,
            batch: 256,
            accumulate: 1,
            replicas: Auto::Auto,
            exchange: ExchangeFormat::F32,
            precision: Auto::Auto,
            gradient_checkpointing: false,
            save_every: Auto::Auto,
            keep_checkpoints: 3,
            log_every: 10,
        }
    }
}

/// Recipes that come with the program, by name.
pub const BUILT_IN: [(&str, &str); 8] = [
    ("demo", include_str!("../../../../recipes/demo.toml")),
    ("mini", include_str!("../../../../recipes/mini.toml")),
    (
        "swin-tiny",
        include_str!("../../../../recipes/swin-tiny.toml"),
    ),
    (
        "swin-small",
        include_str!("../../../../recipes/swin-small.toml"),
    ),
    (
        "swin-base",
        include_str!("../../../../recipes/swin-base.toml"),
    ),
    (
        "vit-small",
        include_str!("../../../../recipes/vit-small.toml"),
    ),
    (
        "two-stage",
        include_str!("../../../../recipes/two-stage.toml"),
    ),
    (
        "distill-mini",
        include_str!("../../../../recipes/distill-mini.toml"),
    ),
];

impl PretrainRecipe {
    /// Reads the recipe file `path`, or the built-in recipe of that name, and applies `overrides`,
    /// each `dotted.key=value`.
    ///
    /// # Errors
    ///
    /// The file cannot be read, a key is unknown or a value has another type.
    pub fn load(path: &str, overrides: &[String]) -> Result<Self> {
        Ok(recipe::load(path, &BUILT_IN, overrides)?)
    }

    /// Parses `text` and applies `overrides`; errors name its `place`.
    ///
    /// # Errors
    ///
    /// A key is unknown or a value has another type.
    pub fn parse(text: &str, place: &str, overrides: &[String]) -> Result<Self> {
        Ok(recipe::parse(text, place, overrides)?)
    }

    /// The recipe of the run in `folder`, with `overrides`.
    ///
    /// # Errors
    ///
    /// The folder holds no run, or its recipe cannot be read.
    pub fn of_run(folder: &Path, overrides: &[String]) -> Result<Self> {
        let (text, path) = folder::recipe_of_command(folder, "pretrain")?;
        Ok(Self::parse(&text, &path.display().to_string(), overrides)?.with_windows_of_run())
    }

    /// The same recipe, which is that of a run: before it had `model.windows`, every run had those of
    /// `detection`.
    pub(crate) fn with_windows_of_run(mut self) -> Self {
        if self.is_swin() {
            self.model.windows.resolve(WindowPadding::Detection);
        }
        self
    }

    /// Whether the backbone is a Swin; not if there is none of that name.
    pub(crate) fn is_swin(&self) -> bool {
        let config = BackboneConfig::named(&self.model.backbone);
        config.is_ok_and(|config| matches!(config.sizes(), Some(Sizes::Swin(_))))
    }

    /// Rows and columns of the backbone's map of a global view.
    ///
    /// # Errors
    ///
    /// There is no backbone of that name.
    pub fn grid(&self) -> Result<[usize; 2]> {
        let sizes = BackboneConfig::named(&self.model.backbone)?.sizes();
        Ok(sizes.map_or([1, 1], |sizes| sizes.grid(self.views.global_size)))
    }

    /// The recipe as TOML.
    pub fn to_toml(&self) -> String {
        recipe::to_toml(self)
    }
}

#[cfg(test)]
mod tests;
