//! The recipe of a run: plain data in TOML.
//!
//! Every key has a default (METHOD: ImageNet-style figures of DINO and SOLIDER), unknown keys are
//! errors that name the nearest right one, and `"auto"` stands for a value that follows from the
//! others. [`Recipe::plan`] resolves `"auto"` once; below it nothing is automatic, and the resolved
//! recipe is what `run.toml` in the run's folder holds, so that `clasp pretrain run.toml` repeats a run.

use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device};
use clasp_data::augment::ViewsConfig;
use clasp_model::Precision;
use clasp_model::backbone::{Adapter, BackboneConfig, LambdaConfig};
use clasp_model::mix::TASKS;
use clasp_model::moe::{MoeConfig, MoeKind};
pub use clasp_run::recipe::Auto;
use clasp_run::{Setting, check, recipe};
use fs_err as fs;
use serde::{Deserialize, Serialize};

pub use crate::attributes::Attributes;
use crate::error::{PretrainError, Result};

/// What is learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// DINO (Caron et al., ICCV 2021): views of one image agree. No labels, no adapter.
    Dino,
    /// SOLIDER (Chen et al., CVPR 2023), in our reading: DINO, and part labels from k-means on plain
    /// and on masked views, under a controller of one number λ.
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

/// What adapts the features to a task.
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

/// What keeps the teacher's targets from collapsing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Centering {
    /// A moving mean of the teacher's projections is subtracted, as in DINO.
    Center,
    /// Sinkhorn–Knopp gives each output an equal share of the step's samples, as in SwAV and DINOv2.
    Sinkhorn,
}

/// What to do with an image that has no labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// Stop and say how many there are.
    Error,
    /// Train on the others.
    Skip,
}

/// How gradients are clipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClipBy {
    /// The norm of each parameter tensor, as DINO does.
    Tensor,
    /// The norm of all gradients together.
    Global,
}

/// A recipe; see the module for what its defaults are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// What is learnt.
    pub method: Method,
    /// Seed of everything that is drawn at random.
    pub seed: u64,
    /// Images and labels.
    pub data: Data,
    /// Backbone and adapter.
    pub model: Model,
    /// Views of an image.
    pub views: ViewsConfig,
    /// Projection head of DINO.
    pub head: Head,
    /// Which tasks are learnt.
    pub mix: Tasks,
    /// Weights and temperatures of the losses.
    pub loss: Loss,
    /// How stored logits become attribute targets.
    pub attributes: Attributes,
    /// AdamW and its schedules.
    pub optimiser: Optimiser,
    /// The moving average.
    pub teacher: Teacher,
    /// Length, batch, log and checkpoints.
    pub run: Run,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            method: Method::Clasp,
            seed: 0,
            data: Data::default(),
            model: Model::default(),
            views: ViewsConfig::default(),
            head: Head::default(),
            mix: Tasks::default(),
            loss: Loss::default(),
            attributes: Attributes::default(),
            optimiser: Optimiser::default(),
            teacher: Teacher::default(),
            run: Run::default(),
        }
    }
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// File, folder, list file or tar shards (`people-{000..099}.tar`); several with commas.
    pub images: String,
    /// Folder that `clasp label` wrote. Empty: none (`dino` only).
    pub labels: PathBuf,
    /// What to do with an image that has no labels.
    pub missing: Missing,
    /// A control for experiments: each image has the labels of another, drawn at random once.
    pub permute_labels: bool,
    /// Train on although more than 5 % of the images cannot be read.
    pub keep_going: bool,
    /// Threads that decode and augment. Auto: the cores.
    pub workers: Auto<usize>,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            images: String::new(),
            labels: PathBuf::new(),
            missing: Missing::Error,
            permute_labels: false,
            keep_going: false,
            workers: Auto::Auto,
        }
    }
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// Name of a preset, such as `swin-tiny` or `vit-small`.
    pub backbone: String,
    /// Checkpoint that the backbone starts from: of clasp, or any that `clasp import` reads. Empty: none.
    pub init: PathBuf,
    /// `none`, `lambda` (SOLIDER's), or a mixture of experts under prompts: `gated`, `merged`.
    /// Auto: `none` for `dino`, `lambda` for `solider`, `gated` for `clasp`.
    pub adapter: Auto<AdapterKind>,
    /// Blocks with a mixture of experts, counted from the last. Auto: a quarter of all blocks, at least one, and no more
    /// than the last stage has.
    pub conditional_blocks: Auto<usize>,
    /// Experts of a block (`merged`).
    pub experts: usize,
    /// Share of residual branches that the student drops in the last block, growing from 0 linearly.
    pub drop_path: f64,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            backbone: "swin-tiny".to_owned(),
            init: PathBuf::new(),
            adapter: Auto::Auto,
            conditional_blocks: Auto::Auto,
            experts: 6,
            drop_path: 0.1,
        }
    }
}

/// `[head]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Head {
    /// Outputs K. Auto: 65536, or 16384 for batches below 256.
    pub outputs: Auto<usize>,
    /// Width of the hidden layers.
    pub hidden: usize,
    /// Width before the last layer.
    pub bottleneck: usize,
}

impl Default for Head {
    fn default() -> Self {
        Self {
            outputs: Auto::Auto,
            hidden: 2048,
            bottleneck: 256,
        }
    }
}

/// `[mix]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tasks {
    /// Tasks to learn; leave out `part` or `attribute` to do without its labels. Auto in effect:
    /// `dino` learns `identity` only and `solider` no `attribute`, whatever stands here.
    pub tasks: Vec<String>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            tasks: TASKS.map(str::to_owned).to_vec(),
        }
    }
}

/// `[loss]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Loss {
    /// Weight of DINO's loss.
    pub dino: f64,
    /// Weight of the part loss.
    pub part: f64,
    /// Weight of the attribute loss.
    pub attribute: f64,
    /// λ: what the part and attribute losses on features under the identity prompt count, times their own weights; those
    /// under the prompts of part and attribute count 1. Without prompts there is one of each.
    pub identity_labels: f64,
    /// Whether the gradient of DINO's loss stops before the conditional blocks, so that the blocks before them learn from
    /// labels alone.
    pub detach_shared: bool,
    /// What keeps the teacher's targets from collapsing.
    pub centering: Centering,
    /// Temperature of the student.
    pub student_temperature: f64,
    /// Temperature of the teacher after its warm-up.
    pub teacher_temperature: f64,
    /// Temperature of the teacher at the start of its warm-up. Auto: the same.
    pub teacher_temperature_start: Auto<f64>,
    /// Epochs in which the teacher's temperature goes linearly from the one to the other.
    pub teacher_temperature_warmup: f64,
    /// Share of the old centre in the new one.
    pub centre_momentum: f64,
}

impl Default for Loss {
    fn default() -> Self {
        Self {
            dino: 1.0,
            part: 1.0,
            attribute: 1.0,
            identity_labels: 1.0,
            detach_shared: false,
            centering: Centering::Center,
            student_temperature: 0.1,
            teacher_temperature: 0.04,
            teacher_temperature_start: Auto::Auto,
            teacher_temperature_warmup: 0.0,
            centre_momentum: 0.9,
        }
    }
}

/// `[optimiser]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Optimiser {
    /// Learning rate after the warm-up. Auto: 5e-4 · batch / 256.
    pub lr: Auto<f64>,
    /// Learning rate at the end.
    pub lr_end: f64,
    /// Learning rate of prompts, times that of all else. Prompts are factors around 1 where weights are around 0.02, so
    /// steps of the same size change nothing.
    pub prompt_lr: f64,
    /// Epochs in which the rate grows from 0. Auto: 10, but no more than a tenth of the run.
    pub warmup_epochs: Auto<f64>,
    /// Weight decay at the start.
    pub weight_decay: f64,
    /// Weight decay at the end.
    pub weight_decay_end: f64,
    /// Largest norm of a gradient; 0 for no limit.
    pub clip: f64,
    /// What the norm is taken of.
    pub clip_by: ClipBy,
    /// Epochs in which the last layer of the projection head stays as it is.
    pub freeze_last_layer: f64,
}

impl Default for Optimiser {
    fn default() -> Self {
        Self {
            lr: Auto::Auto,
            lr_end: 1e-6,
            prompt_lr: 30.0,
            warmup_epochs: Auto::Auto,
            weight_decay: 0.04,
            weight_decay_end: 0.4,
            clip: 3.0,
            clip_by: ClipBy::Tensor,
            freeze_last_layer: 1.0,
        }
    }
}

/// `[teacher]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Teacher {
    /// Share of the old teacher in the new one at the start. Auto: 0.996, or 0.9995 for batches
    /// below 256.
    pub momentum: Auto<f64>,
    /// The same at the end.
    pub momentum_end: f64,
}

impl Default for Teacher {
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
pub struct Run {
    /// Times that every image is seen.
    pub epochs: f64,
    /// Steps of the optimiser. Auto: what `epochs` come to. With 0 the run writes the network as it
    /// is before the first step.
    pub steps: Auto<u64>,
    /// Images of a step, over all parts and replicas.
    pub batch: usize,
    /// Parts that the images of a step are taken in, one after the other, to save memory.
    pub accumulate: usize,
    /// Copies of the student that share a part, each on one thread. Auto: one a core on the CPU, else 1.
    pub replicas: Auto<usize>,
    /// Numbers that factors of products are rounded to: `f32`, or `bf16`, faster where the device has it, with weights, optimiser,
    /// norms and losses in f32. Auto: bf16 on devices that compute in it, f32 on the CPU.
    pub precision: Auto<Precision>,
    /// Whether what the backward pass needs is computed again instead of kept: less memory, more time, the same gradients.
    /// Smaller parts (`accumulate`) save memory too, and no time is lost.
    pub checkpointing: bool,
    /// Steps between two checkpoints. Auto: an epoch, but between 50 and 1000 steps.
    pub save_every: Auto<u64>,
    /// Checkpoints that are kept.
    pub keep: usize,
    /// Steps between two lines of the log.
    pub log_every: u64,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            epochs: 100.0,
            steps: Auto::Auto,
            batch: 256,
            accumulate: 1,
            replicas: Auto::Auto,
            precision: Auto::Auto,
            checkpointing: false,
            save_every: Auto::Auto,
            keep: 3,
            log_every: 10,
        }
    }
}

/// Range of a learning rate.
const RATE: [f64; 2] = [0.0, 10.0];
/// Range of a temperature.
const TEMPERATURE: [f64; 2] = [1e-4, 100.0];
/// Range of a number of epochs.
const EPOCHS: [f64; 2] = [0.0, 1e6];
/// Longest run, a guard against a slip in a recipe.
const MOST_STEPS: usize = 1_000_000_000_000;

/// Recipes that come with the program, by name.
pub const BUILT_IN: [(&str, &str); 7] = [
    ("demo", include_str!("../../../recipes/demo.toml")),
    ("mini", include_str!("../../../recipes/mini.toml")),
    ("swin-tiny", include_str!("../../../recipes/swin-tiny.toml")),
    (
        "swin-small",
        include_str!("../../../recipes/swin-small.toml"),
    ),
    ("swin-base", include_str!("../../../recipes/swin-base.toml")),
    ("vit-small", include_str!("../../../recipes/vit-small.toml")),
    ("two-stage", include_str!("../../../recipes/two-stage.toml")),
];

impl Recipe {
    /// Reads the recipe file `path`, or the built-in recipe of that name, and applies
    /// `overrides`, each `dotted.key=value`.
    ///
    /// # Errors
    ///
    /// The file cannot be read, a key is unknown or a value has another type.
    pub fn load(path: &str, overrides: &[String]) -> Result<Self> {
        Ok(recipe::load(path, &BUILT_IN, overrides)?)
    }

    /// Parses `text`; `place` says in errors where it comes from.
    ///
    /// # Errors
    ///
    /// A key is unknown or a value has another type.
    pub fn parse(text: &str, place: &str, overrides: &[String]) -> Result<Self> {
        Ok(recipe::parse(text, place, overrides)?)
    }

    /// The recipe as TOML.
    pub fn to_toml(&self) -> String {
        recipe::to_toml(self)
    }

    /// Checks the values and resolves every `"auto"` for a corpus of `images` images on a machine.
    ///
    /// # Errors
    ///
    /// A value is out of range, two values contradict each other, or there are too few images.
    pub fn plan(mut self, images: usize, machine: Machine) -> Result<Plan> {
        self.check()?;
        let Machine { cores, on_cpu, .. } = machine;
        if images < self.run.batch {
            return Err(PretrainError::TooFewImages {
                images: self.data.images.clone(),
                batch: self.run.batch,
                found: images,
            });
        }
        let steps_per_epoch = (images / self.run.batch) as u64;
        let steps = (self.run.epochs * steps_per_epoch as f64).round() as u64;
        let steps = self.run.steps.settle(steps.max(1));
        check::count("run.steps", steps as usize, [0, MOST_STEPS])?;
        let epochs = steps as f64 / steps_per_epoch as f64;
        self.run.epochs = epochs;

        let small = self.run.batch < 256;
        let lr = self
            .optimiser
            .lr
            .settle(5e-4 * self.run.batch as f64 / 256.0);
        let warmup = self
            .optimiser
            .warmup_epochs
            .settle(10.0_f64.min(epochs / 10.0));
        let momentum = self
            .teacher
            .momentum
            .settle(if small { 0.9995 } else { 0.996 });
        let outputs = self.head.outputs.settle(if small { 16384 } else { 65536 });
        let save_every = self.run.save_every.settle(steps_per_epoch.clamp(50, 1000));
        let workers = self.data.workers.settle(cores.min(check::MOST_THREADS));
        check::within(&[("optimiser.lr", lr)], RATE)?;
        check::within(&[("optimiser.warmup_epochs", warmup)], EPOCHS)?;
        check::within(&[("teacher.momentum", momentum)], [0.0, 1.0])?;
        check::count("head.outputs", outputs, [2, 1 << 20])?;
        check::count("run.save_every", save_every as usize, [1, MOST_STEPS])?;
        check::count("data.workers", workers, [1, check::MOST_THREADS])?;
        let adapter = self.model.adapter.settle(match self.method {
            Method::Dino => AdapterKind::None,
            Method::Solider => AdapterKind::Lambda,
            Method::Clasp => AdapterKind::Gated,
        });
        let part = self.run.batch / self.run.accumulate;
        let replicas = if on_cpu {
            (1..=cores.clamp(1, check::MOST_THREADS))
                .rev()
                .find(|count| part.is_multiple_of(*count))
                .unwrap_or(1)
        } else {
            1
        };
        let replicas = self.run.replicas.settle(replicas);
        check::count("run.replicas", replicas, [1, check::MOST_THREADS])?;
        let precision = self.run.precision.settle(if machine.bf16 && !on_cpu {
            Precision::Bf16
        } else {
            Precision::F32
        });
        if precision == Precision::Bf16 && (on_cpu || !machine.bf16) {
            let expected = if on_cpu {
                "f32 on the CPU, whose training has no faster one"
            } else {
                "f32: the device does not compute in bf16"
            };
            return Err(Setting::new("run.precision", expected.to_owned(), precision).into());
        }
        if !part.is_multiple_of(replicas) {
            let expected = format!("a divisor of run.batch / run.accumulate = {part}");
            return Err(Setting::new("run.replicas", expected, replicas).into());
        }
        // A method says which labels it has no use for.
        self.mix.tasks = TASKS
            .iter()
            .filter(|task| match self.method {
                Method::Dino => **task == "identity",
                Method::Solider => **task != "attribute",
                Method::Clasp => true,
            })
            .filter(|task| self.mix.tasks.iter().any(|wanted| wanted == *task))
            .map(|task| (*task).to_owned())
            .collect();
        let tasks = TASKS.map(|task| self.mix.tasks.iter().any(|wanted| wanted == task));
        let plain = BackboneConfig::named(&self.model.backbone)?;
        let [blocks, last] = plain.blocks();
        let conditional = (blocks / 4).clamp(1, last);
        let conditional = self.model.conditional_blocks.settle(conditional);
        check::count("model.conditional_blocks", conditional, [1, last])?;
        let moe = |form| {
            Adapter::Moe(MoeConfig {
                form,
                blocks: conditional,
                experts: self.model.experts,
            })
        };
        let adapter = match adapter {
            AdapterKind::None => Adapter::None,
            AdapterKind::Lambda => Adapter::Lambda(LambdaConfig::default()),
            AdapterKind::Gated => moe(MoeKind::Gated),
            AdapterKind::Merged => moe(MoeKind::Merged),
        };
        if self.method == Method::Solider && matches!(adapter, Adapter::Moe(_)) {
            let expected = "lambda or none, which SOLIDER is defined with";
            return Err(Setting::new("model.adapter", expected, "a mixture of experts").into());
        }
        if self.loss.centering == Centering::Sinkhorn {
            let samples = self.run.batch * self.views.global;
            if outputs > samples {
                let expected = format!(
                    "at most {samples} = run.batch · views.global with loss.centering = \"sinkhorn\", which gives \
                     each output a share of the samples"
                );
                return Err(Setting::new("head.outputs", expected, outputs).into());
            }
        }
        let start = self.loss.teacher_temperature;
        let start = self.loss.teacher_temperature_start.settle(start);
        check::within(&[("loss.teacher_temperature_start", start)], TEMPERATURE)?;
        let temperature_warmup = self.loss.teacher_temperature_warmup;
        let backbone = BackboneConfig {
            drop_path: self.model.drop_path,
            ..plain
        }
        .for_images(self.views.global_size)
        .with_adapter(adapter);
        backbone.check()?;
        Ok(Plan {
            backbone,
            outputs,
            tasks,
            lr,
            momentum,
            warmup_steps: (warmup * steps_per_epoch as f64).round() as u64,
            teacher_temperature_start: start,
            temperature_steps: (temperature_warmup * steps_per_epoch as f64).round() as u64,
            frozen_steps: (self.optimiser.freeze_last_layer * steps_per_epoch as f64).round()
                as u64,
            steps,
            steps_per_epoch,
            save_every,
            replicas,
            precision,
            workers,
            recipe: self,
        })
    }

    /// Ranges of the values that are never automatic.
    fn check(&self) -> Result<()> {
        self.views.check()?;
        self.attributes.config()?;
        let (run, optimiser, loss) = (&self.run, &self.optimiser, &self.loss);
        for (key, value, most) in [
            ("run.batch", run.batch, 1 << 20),
            ("run.accumulate", run.accumulate, 1 << 20),
            ("run.keep", run.keep, usize::MAX),
            ("run.log_every", run.log_every as usize, usize::MAX),
            ("head.hidden", self.head.hidden, 1 << 14),
            ("head.bottleneck", self.head.bottleneck, 1 << 14),
        ] {
            check::count(key, value, [1, most])?;
        }
        if !run.batch.is_multiple_of(run.accumulate) {
            let found = format!("batch {} and accumulate {}", run.batch, run.accumulate);
            return Err(Setting::new("run.accumulate", "a divisor of run.batch", found).into());
        }
        if self.views.global + self.views.local < 2 {
            let expected = "two views of an image or more";
            return Err(Setting::new("views.global", expected, "one").into());
        }
        let tasks = &self.mix.tasks;
        if let Some(task) = tasks.iter().find(|task| !TASKS.contains(&task.as_str())) {
            let expected = format!("some of {TASKS:?}");
            return Err(Setting::new("mix.tasks", expected, format!("`{task}`")).into());
        }
        if !tasks.iter().any(|task| task == "identity") {
            let expected = "`identity`, which DINO's loss is for, among them";
            return Err(Setting::new("mix.tasks", expected, format!("{tasks:?}")).into());
        }
        let shares = [
            ("model.drop_path", self.model.drop_path),
            ("loss.centre_momentum", loss.centre_momentum),
            ("teacher.momentum_end", self.teacher.momentum_end),
        ];
        check::within(&shares, [0.0, 1.0])?;
        let weights = [
            ("loss.dino", loss.dino),
            ("loss.part", loss.part),
            ("loss.attribute", loss.attribute),
            ("loss.identity_labels", loss.identity_labels),
        ];
        check::within(&weights, [0.0, 1e4])?;
        let temperatures = [
            ("loss.student_temperature", loss.student_temperature),
            ("loss.teacher_temperature", loss.teacher_temperature),
        ];
        check::within(&temperatures, TEMPERATURE)?;
        check::within(&[("optimiser.lr_end", optimiser.lr_end)], RATE)?;
        check::within(&[("optimiser.prompt_lr", optimiser.prompt_lr)], [0.0, 1e3])?;
        let decays = [
            ("optimiser.weight_decay", optimiser.weight_decay),
            ("optimiser.weight_decay_end", optimiser.weight_decay_end),
        ];
        check::within(&decays, [0.0, 100.0])?;
        check::within(&[("optimiser.clip", optimiser.clip)], [0.0, 1e6])?;
        let epochs = [
            ("run.epochs", run.epochs),
            ("optimiser.freeze_last_layer", optimiser.freeze_last_layer),
            (
                "loss.teacher_temperature_warmup",
                loss.teacher_temperature_warmup,
            ),
        ];
        Ok(check::within(&epochs, EPOCHS)?)
    }
}

/// What a plan depends on besides recipe and images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Cores that may be used.
    pub cores: usize,
    /// Whether the CPU computes.
    pub on_cpu: bool,
    /// Whether the device computes in bf16.
    pub bf16: bool,
}

impl Machine {
    /// `cores` cores beside `device`.
    pub fn of(device: &Device, cores: usize) -> Self {
        let on_cpu = *device == Device::flex();
        Self {
            cores,
            on_cpu,
            bf16: !on_cpu && device.supports_dtype(DType::BF16),
        }
    }
}

/// A recipe with every `"auto"` resolved, and what follows from it.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The resolved recipe.
    pub recipe: Recipe,
    /// The network.
    pub backbone: BackboneConfig,
    /// Outputs of the projection head.
    pub outputs: usize,
    /// Which tasks of [`TASKS`] are learnt.
    pub tasks: [bool; 3],
    /// Learning rate after the warm-up.
    pub lr: f64,
    /// Teacher's momentum at the start.
    pub momentum: f64,
    /// Steps in which the learning rate grows.
    pub warmup_steps: u64,
    /// Temperature of the teacher at the first step.
    pub teacher_temperature_start: f64,
    /// Steps in which the temperature of the teacher goes to that of the recipe.
    pub temperature_steps: u64,
    /// Steps in which the last layer is frozen.
    pub frozen_steps: u64,
    /// Steps of the run.
    pub steps: u64,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Steps between checkpoints.
    pub save_every: u64,
    /// Copies of the student.
    pub replicas: usize,
    /// Precision of products.
    pub precision: Precision,
    /// Threads that load.
    pub workers: usize,
}

/// The resolved recipe with the facts of this run as comments above it.
pub fn run_toml(plan: &Plan, images: usize, device: &str) -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "# The recipe that this run resolved; `clasp pretrain run.toml` repeats it.\n{}\
         # clasp {} · seed {} · {} {} · {cores} cores · device {device}\n\
         # {images} images · {} steps an epoch · {} steps\n\n{}",
        clasp_run::origin::lines(env!("CARGO_PKG_VERSION")),
        env!("CARGO_PKG_VERSION"),
        plan.recipe.seed,
        std::env::consts::OS,
        std::env::consts::ARCH,
        plan.steps_per_epoch,
        plan.steps,
        plan.recipe.to_toml(),
    )
}

/// The recipe of the run in `folder`.
///
/// # Errors
///
/// The folder holds no run, or its recipe cannot be read.
pub fn of_run(folder: &Path, overrides: &[String]) -> Result<Recipe> {
    let path = folder.join("run.toml");
    if !path.is_file() {
        return Err(PretrainError::NothingToResume {
            folder: folder.to_owned(),
            found: if folder.is_dir() {
                "no run.toml in it".to_owned()
            } else {
                "no such folder".to_owned()
            },
        });
    }
    Recipe::parse(
        &fs::read_to_string(&path)?,
        &path.display().to_string(),
        overrides,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(cores: usize) -> Machine {
        Machine::of(&Device::flex(), cores)
    }

    #[test]
    fn precision_follows_the_device() {
        let plan = |set: &str, on_cpu: bool, bf16: bool| {
            let machine = Machine {
                cores: 1,
                on_cpu,
                bf16,
            };
            let set: Vec<String> = set.split_whitespace().map(str::to_owned).collect();
            let plan = Recipe::parse("", "test", &set).unwrap().plan(1000, machine);
            plan.map(|plan| plan.precision)
                .map_err(|error| error.to_string())
        };
        assert_eq!(plan("", true, true), Ok(Precision::F32));
        assert_eq!(plan("", false, true), Ok(Precision::Bf16));
        assert_eq!(plan("", false, false), Ok(Precision::F32));
        assert_eq!(plan("run.precision=f32", false, true), Ok(Precision::F32));
        for (on_cpu, word) in [(true, "on the CPU"), (false, "device")] {
            let error = plan("run.precision=bf16", on_cpu, on_cpu).unwrap_err();
            assert!(
                error.contains("run.precision") && error.contains(word),
                "{error}"
            );
        }
    }

    fn error(text: &str, overrides: &[&str]) -> String {
        let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
        Recipe::parse(text, "r.toml", &overrides)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn every_built_in_recipe_parses_and_plans() {
        for (name, _) in BUILT_IN {
            let recipe = Recipe::load(name, &[]).unwrap();
            recipe
                .plan(100_000, cpu(2))
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    #[test]
    fn a_misspelt_key_is_named_with_the_right_one_and_its_line() {
        let text = "seed = 1\n[optimiser]\nwarmup_epoch = 3\n";
        let message = error(text, &[]);
        assert!(
            message.contains("line 3") && message.contains("`warmup_epoch`"),
            "{message}"
        );
        assert!(
            message.contains("hint: did you mean `warmup_epochs`?"),
            "{message}"
        );
        // A right key in the wrong place.
        let message = error("lr = 1e-3\n", &[]);
        assert!(
            message.contains("hint: `lr` is `optimiser.lr`"),
            "{message}"
        );
        let message = error("", &["model.expert=8"]);
        assert!(message.starts_with("--set model.expert=8"), "{message}");
        assert!(message.contains("did you mean `experts`?"), "{message}");
        assert!(error("", &["seed"]).contains("no `=`"));
        assert!(error("", &["seed.x=1"]).contains("--set seed.x=1"));
    }

    #[test]
    fn a_value_of_another_type_is_an_error_and_auto_is_not() {
        let message = error("[optimiser]\nlr = \"fast\"\n", &[]);
        assert!(
            message.contains("\"auto\"") && message.contains("fast"),
            "{message}"
        );
        let recipe = Recipe::parse("[optimiser]\nlr = 1\n", "r", &[]).unwrap();
        assert_eq!(recipe.optimiser.lr, Auto::Value(1.0));
        let set = [
            "method=dino".to_owned(),
            "optimiser.lr=auto".to_owned(),
            "run.batch=64".to_owned(),
        ];
        let recipe = Recipe::parse("[optimiser]\nlr = 1\n", "r", &set).unwrap();
        assert_eq!(
            (recipe.method, recipe.optimiser.lr, recipe.run.batch),
            (Method::Dino, Auto::Auto, 64)
        );
    }

    #[test]
    fn auto_follows_from_batch_and_corpus_and_is_resolved_once() {
        let mut recipe = Recipe::default();
        recipe.run.batch = 128;
        // Follows from the labels, which a plan does not see.
        recipe.attributes.temperature = Auto::Value(1.5);
        let plan = recipe.plan(12_800, cpu(3)).unwrap();
        assert_eq!((plan.steps_per_epoch, plan.steps), (100, 10_000));
        assert!((plan.lr - 2.5e-4).abs() < 1e-12);
        assert_eq!((plan.momentum, plan.outputs), (0.9995, 16384));
        // 3 does not divide 128, 2 does.
        assert_eq!((plan.replicas, plan.workers), (2, 3));
        assert_eq!(
            (plan.warmup_steps, plan.frozen_steps, plan.save_every),
            (1000, 100, 100)
        );
        let text = run_toml(&plan, 12_800, "cpu");
        assert!(!text.contains("\"auto\""), "{text}");
        let again = Recipe::parse(&text, "run.toml", &[]).unwrap();
        assert_eq!(again, plan.recipe);
    }

    #[test]
    fn a_method_keeps_the_tasks_that_it_knows() {
        for (method, tasks) in [
            (Method::Dino, [true, false, false]),
            (Method::Solider, [true, true, false]),
            (Method::Clasp, [true, true, true]),
        ] {
            let recipe = Recipe {
                method,
                ..Recipe::default()
            };
            assert_eq!(recipe.plan(1000, cpu(1)).unwrap().tasks, tasks);
        }
    }

    #[test]
    fn values_out_of_range_name_their_key() {
        let set = |text: &str| {
            Recipe::parse("", "r", &[text.to_owned()])
                .unwrap()
                .plan(1000, cpu(2))
                .unwrap_err()
                .to_string()
        };
        for (key, values) in [
            ("head.outputs", &["0", "1", "100000000000000"][..]),
            ("head.hidden", &["0", "100000000000"]),
            ("head.bottleneck", &["0", "100000000000"]),
            ("data.workers", &["0", "200000"]),
            ("run.batch", &["0", "100000000000"]),
            ("run.replicas", &["0", "2000"]),
            ("run.save_every", &["0"]),
            ("run.epochs", &["-1.0", "nan", "inf", "1e300"]),
            ("optimiser.lr", &["-5.0", "nan", "inf", "1e30"]),
            ("optimiser.lr_end", &["-5.0", "nan", "1e30"]),
            ("optimiser.warmup_epochs", &["-1.0", "nan", "1e30"]),
            ("optimiser.freeze_last_layer", &["-1.0", "1e30"]),
            ("optimiser.weight_decay", &["-1.0", "nan", "1e30"]),
            ("optimiser.clip", &["-1.0", "nan"]),
            ("teacher.momentum", &["3.0", "-0.1", "nan"]),
            ("teacher.momentum_end", &["3.0"]),
            ("loss.dino", &["-1.0", "1e30"]),
            ("loss.student_temperature", &["0.0", "nan", "1e-30"]),
            ("loss.identity_labels", &["-1.0", "nan"]),
            ("loss.teacher_temperature_start", &["0.0", "nan"]),
            ("optimiser.prompt_lr", &["-1.0", "nan"]),
            ("model.conditional_blocks", &["0", "3", "100000000000"]),
            ("attributes.mask_low", &["nan", "2.0"]),
            ("attributes.mask_high", &["0.2", "1.0"]),
            ("attributes.confident_share", &["0.0", "1.5"]),
            ("attributes.temperature", &["0.0", "nan"]),
            ("attributes.minimum_spread", &["-1.0", "nan"]),
            ("views.mean", &["[1e30, 0.5, 0.5]", "[nan, 0.5, 0.5]"]),
            ("views.std", &["[0.0, 0.5, 0.5]", "[1e-30, 0.5, 0.5]"]),
            ("model.drop_path", &["1.5", "nan"]),
        ] {
            for value in values {
                let message = set(&format!("{key}={value}"));
                let name = key.rsplit('.').next().unwrap();
                assert!(message.contains(name), "{key}={value}: {message}");
                assert!(message.contains("expected"), "{key}={value}: {message}");
            }
        }
        assert!(set("run.accumulate=3").contains("`run.accumulate`"));
        for (adapter, key, value) in [
            ("merged", "experts", "3"),
            ("merged", "experts", "100000000000"),
        ] {
            let set = [
                format!("model.adapter={adapter}"),
                format!("model.{key}={value}"),
            ];
            let recipe = Recipe::parse("", "r", &set).unwrap();
            let message = recipe.plan(1000, cpu(2)).unwrap_err().to_string();
            assert!(message.contains(&format!("`{key}`")), "{message}");
        }
        assert!(set("mix.tasks=[\"pose\"]").contains("`pose`"));
        assert!(set("loss.teacher_temperature=0").contains("`loss.teacher_temperature`"));
        let message = set("loss.centering=sinkhorn");
        assert!(message.contains("`head.outputs`"), "{message}");
        assert!(set("run.batch=1001").contains("at least one batch of 1001"));
        assert!(set("run.replicas=3").contains("`run.replicas`"));
        assert!(set("model.backbone=\"swin-huge\"").contains("swin-huge"));
    }
}
