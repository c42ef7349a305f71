//! The recipe of a fine-tuning run: TOML, every key with a default, unknown keys an error.
//!
//! ```toml
//! seed = 0
//! [data]
//! path = "market1501"            # or --data
//! [model]
//! init = "backbone.safetensors"  # or --init
//! size = [256, 128]
//! prompt = "auto"                # the task's default; a prompt, prompt weights, or "learn"
//! trainable = "full"             # full | head | adapter
//! [optimizer]
//! name = "sgd"                   # sgd | adam | adamw
//! lr_schedule = "cosine"         # cosine | multistep | plateau | cyclic | constant
//! [run]
//! epochs = 60
//! checkpoint_selection = "last"  # last | val | test
//! [task]                         # the configuration of the task
//! ```

use std::path::{Path, PathBuf};

use clasp_model::optim::Rule;
use clasp_model::prompt::PromptWeights;
use clasp_run::folder::recipe_of_command;
use clasp_run::recipe::{self, Auto};
use clasp_run::{Machine, RunHeader, check};
use serde::{Deserialize, Serialize};

use crate::TaskError;
use crate::registry::built_in_recipes;
use crate::task::check::setting;
use crate::task::{SplitChoice, Task};

/// Which parameters are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Trainable {
    /// All, as in the published protocols; the best with thousands of images.
    Full,
    /// The head; the backbone is frozen.
    Head,
    /// The head and the adapter (experts and routers, or SOLIDER's controller), without its prompts:
    /// these are trained by `prompt = "learn"` only.
    Adapter,
}

/// Mean and standard deviation of the input normalization.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputNormalization {
    /// Those of pre-training.
    Backbone,
    /// 0.5 and 0.5, as in SOLIDER's re-identification.
    Half,
    /// ImageNet's.
    Imagenet,
}

/// How the learning rate decreases after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrSchedule {
    /// A cosine over the whole run.
    Cosine,
    /// Multiplied by `gamma` at each of the `milestones` (PyTorch's `MultiStepLR`).
    Multistep,
    /// Multiplied by `gamma` after more than `patience` evaluations without a lower loss, or
    /// without a better metric for tasks that evaluate no loss (PyTorch's `ReduceLROnPlateau`).
    Plateau,
    /// A cosine from the end of the warm-up to the first cycle of self-correction, then one in each
    /// cycle.
    Cyclic,
    /// Constant.
    Constant,
}

/// The recipe for a task with configuration `C`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    bound(
        serialize = "C: Serialize",
        deserialize = "C: Default + serde::de::DeserializeOwned"
    )
)]
pub struct FinetuneRecipe<C> {
    /// Seed of all random numbers.
    pub seed: u64,
    /// Labeled images.
    pub data: FinetuneData,
    /// Backbone and preprocessing.
    pub model: FinetuneModelConfig,
    /// The optimizer and its schedule.
    pub optimizer: FinetuneOptimizerConfig,
    /// Length, batch, evaluation, checkpoints.
    pub run: FinetuneRunConfig,
    /// The configuration of the task.
    pub task: C,
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FinetuneData {
    /// Folder of the dataset.
    pub path: PathBuf,
    /// Threads that decode and augment. Auto: one a core.
    pub workers: Auto<usize>,
}

impl Default for FinetuneData {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            workers: Auto::Auto,
        }
    }
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FinetuneModelConfig {
    /// Backbone file, run folder of pre-training or published checkpoint. Empty: fresh weights.
    pub init: PathBuf,
    /// Name of the backbone; used without `init` only.
    pub backbone: String,
    /// Strides of a Swin's patches and of the merging before each later stage, as in `[4, 2, 2,
    /// 1]`. Empty: those of `init`.
    pub strides: Vec<usize>,
    /// Height and width of the network's input in pixels.
    pub size: [usize; 2],
    /// The normalization of images.
    pub normalization: InputNormalization,
    /// Prompt weights: `auto` for the task's default, a prompt or weights, or `learn` for a new
    /// prompt that starts at the mean of all.
    pub prompt: String,
    /// Probability of dropping the residual branches of the last block; it grows linearly from 0 in
    /// the first block.
    pub drop_path: f64,
    /// Which parameters are trained.
    pub trainable: Trainable,
    /// Frozen parameters of the backbone: prefixes of their names, such as `patch_embed`.
    pub freeze: Vec<String>,
}

/// The prompt that is trained.
const LEARN: &str = "learn";

impl FinetuneModelConfig {
    /// Whether prompts are trained.
    pub fn learns_prompt(&self) -> bool {
        self.prompt == LEARN
    }
}

impl Default for FinetuneModelConfig {
    fn default() -> Self {
        Self {
            init: PathBuf::new(),
            backbone: "swin-tiny".to_owned(),
            strides: Vec::new(),
            size: [256, 128],
            normalization: InputNormalization::Backbone,
            prompt: "auto".to_owned(),
            drop_path: 0.1,
            trainable: Trainable::Full,
            freeze: Vec::new(),
        }
    }
}

/// `[optimizer]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FinetuneOptimizerConfig {
    /// `sgd` (with momentum), `adam` (weight decay added to the gradient) or `adamw` (decoupled
    /// weight decay).
    pub name: Rule,
    /// Learning rate at the end of the warm-up.
    pub lr: f64,
    /// Momentum of SGD, β₁ of Adam and AdamW.
    pub momentum: f64,
    /// β₂ of Adam and AdamW.
    pub beta2: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Weight decay also for biases, norms, position tables and prompts.
    pub decay_norm_and_bias: bool,
    /// Parameters without weight decay in any case: suffixes of names, such as
    /// `relative_position_bias_table`.
    pub no_weight_decay: Vec<String>,
    /// Learning rate of biases divided by `lr`.
    pub bias_lr_factor: f64,
    /// Learning rate of the head divided by `lr`.
    pub head_lr_factor: f64,
    /// Learning rate of each layer divided by that of the next deeper one; 1 for equal rates.
    pub layer_decay: f64,
    /// Largest global norm of the gradients; 0 for no clipping.
    pub clip_grad: f64,
    /// How the learning rate decreases.
    pub lr_schedule: LrSchedule,
    /// Learning rate at the end of a cosine.
    pub min_lr: f64,
    /// Learning rate at the start of a cycle divided by `lr`.
    pub cycle_lr_factor: f64,
    /// Epochs of linear warm-up.
    pub warmup_epochs: f64,
    /// Learning rate at the start of the warm-up divided by `lr`.
    pub warmup_start_factor: f64,
    /// Epochs at which a multistep schedule decreases.
    pub milestones: Vec<f64>,
    /// Factor of a multistep or plateau schedule.
    pub gamma: f64,
    /// Evaluations without improvement before a plateau schedule decreases.
    pub patience: u32,
    /// Change the learning rate between epochs only, as published re-identification does.
    pub lr_by_epoch: bool,
}

impl Default for FinetuneOptimizerConfig {
    fn default() -> Self {
        Self {
            name: Rule::AdamW,
            lr: 1e-4,
            momentum: 0.9,
            beta2: 0.999,
            weight_decay: 0.01,
            decay_norm_and_bias: false,
            no_weight_decay: Vec::new(),
            bias_lr_factor: 1.0,
            head_lr_factor: 1.0,
            layer_decay: 1.0,
            clip_grad: 0.0,
            lr_schedule: LrSchedule::Cosine,
            min_lr: 0.0,
            cycle_lr_factor: 0.5,
            warmup_epochs: 0.0,
            warmup_start_factor: 0.01,
            milestones: Vec::new(),
            gamma: 0.1,
            patience: 4,
            lr_by_epoch: false,
        }
    }
}

/// `[run]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FinetuneRunConfig {
    /// Passes over the training examples.
    pub epochs: f64,
    /// Optimizer steps. Auto: those of `epochs`.
    pub steps: Auto<u64>,
    /// Examples of a step.
    pub batch: usize,
    /// Copies of the backbone that a batch is divided among, each on one thread, over all
    /// ranks. Auto: for each rank one a core on the CPU, else 1.
    pub replicas: Auto<usize>,
    /// Momentum of the moving average of the weights that is evaluated and saved instead; 0 for
    /// none.
    pub ema: f64,
    /// Epochs before self-correction ([`super::self_correction`]), for parsing; 0 for none.
    pub self_correction_start: u64,
    /// Epochs of a cycle of self-correction.
    pub self_correction_interval: u64,
    /// Epochs between two evaluations; 0 for one at the end only.
    pub eval_every: f64,
    /// How the final model is selected: `last` for the last step, else by the first metric on a
    /// split. `test`, as some published protocols have it, is optimistic.
    pub checkpoint_selection: String,
    /// Steps between two checkpoints. Auto: an epoch, but between 50 and 1000 steps.
    pub save_every: Auto<u64>,
    /// Checkpoints that are kept.
    pub keep_checkpoints: usize,
    /// Steps between two entries of the log.
    pub log_every: u64,
}

impl Default for FinetuneRunConfig {
    fn default() -> Self {
        Self {
            epochs: 30.0,
            steps: Auto::Auto,
            batch: 64,
            replicas: Auto::Auto,
            ema: 0.0,
            self_correction_start: 0,
            self_correction_interval: 10,
            eval_every: 1.0,
            checkpoint_selection: "val".to_owned(),
            save_every: Auto::Auto,
            keep_checkpoints: 2,
            log_every: 10,
        }
    }
}

/// Recipe keys and sections that must not change when a run is resumed: they shape tensors, inputs
/// or the order of examples, or say what the best model so far was measured on.
pub const FIXED: [&str; 13] = [
    "seed",
    "model.size",
    "model.backbone",
    "model.strides",
    "model.normalization",
    "model.prompt",
    "model.trainable",
    "model.freeze",
    "optimizer.name",
    "run.batch",
    "run.replicas",
    "run.checkpoint_selection",
    "task",
];

impl<C> FinetuneRecipe<C>
where
    C: Default + Serialize + serde::de::DeserializeOwned,
{
    /// Reads the recipe file `path`, or the built-in recipe of that name, and applies `overrides`.
    ///
    /// # Errors
    /// The file cannot be read, a key is unknown or a value has another type.
    pub fn load(path: &str, overrides: &[String]) -> Result<Self, TaskError> {
        Ok(recipe::load(path, &built_in_recipes(), overrides)?)
    }

    /// Parses `text`; `place` names it in errors.
    ///
    /// # Errors
    /// A key is unknown or a value has another type.
    pub fn parse(text: &str, place: &str, overrides: &[String]) -> Result<Self, TaskError> {
        Ok(recipe::parse(text, place, overrides)?)
    }

    /// The recipe of the run of a task in `folder`.
    ///
    /// # Errors
    /// The folder holds no run, or one of another task, or its recipe cannot be read.
    pub fn of_run(folder: &Path, task: &str, overrides: &[String]) -> Result<Self, TaskError> {
        let (text, path) = recipe_of_command(folder, &command_of(task))?;
        Self::parse(&text, &path.display().to_string(), overrides)
    }

    /// The split that checkpoints are selected on; none for the last step.
    pub fn selection_split(&self) -> Option<SplitChoice> {
        let selection = &self.run.checkpoint_selection;
        (selection != "last").then(|| SplitChoice::named(selection))
    }

    /// The prompt weights for a task.
    ///
    /// # Errors
    /// The text is neither a prompt nor weights.
    pub fn prompt_weights<T: Task>(&self) -> Result<PromptWeights, TaskError> {
        Ok(match self.model.prompt.as_str() {
            "auto" => T::default_prompt(),
            // With equal weights all prompts of a block get the same gradient: one vector that
            // starts at their mean.
            LEARN => PromptWeights::mean(),
            text => text.parse()?,
        })
    }

    /// Checks the values and resolves every `"auto"` for that number of examples and machine.
    ///
    /// # Errors
    /// A value is out of range, or there are too few examples.
    pub fn plan(mut self, examples: usize, machine: Machine) -> Result<FinetunePlan<C>, TaskError> {
        self.check()?;
        let batch = self.run.batch;
        if examples < batch {
            return Err(TaskError::TooFew {
                what: self.data.path.display().to_string(),
                expected: "at least one batch of training examples (`run.batch`)",
                found: examples,
            });
        }
        let steps_per_epoch = (examples / batch) as u64;
        let steps = (self.run.epochs * steps_per_epoch as f64).round() as u64;
        let steps = self.run.steps.resolve(steps.max(1));
        self.run.epochs = steps as f64 / steps_per_epoch as f64;
        let workers = self
            .data
            .workers
            .resolve(machine.cores.min(check::MOST_THREADS));
        check::count("data.workers", workers, [1, check::MOST_THREADS])?;
        let save_every = self.run.save_every.resolve(steps_per_epoch.clamp(50, 1000));
        let replicas = machine.replicas(&mut self.run.replicas, [batch, 1], "run.batch")?;
        let of_epochs = |epochs: f64| (epochs * steps_per_epoch as f64).round() as u64;
        let eval_every = of_epochs(self.run.eval_every);
        Ok(FinetunePlan {
            steps,
            steps_per_epoch,
            save_every,
            eval_every: (self.run.eval_every > 0.0).then_some(eval_every.max(1)),
            warmup: of_epochs(self.optimizer.warmup_epochs),
            replicas,
            workers,
            recipe: self,
        })
    }

    fn check(&self) -> Result<(), TaskError> {
        let (optimizer, run, model) = (&self.optimizer, &self.run, &self.model);
        for (key, value) in [
            ("run.batch", run.batch),
            ("run.keep_checkpoints", run.keep_checkpoints),
            ("run.log_every", run.log_every as usize),
            ("model.size", model.size[0].min(model.size[1])),
        ] {
            if value == 0 {
                return Err(setting(key, "at least 1", value));
            }
        }
        for (key, value) in [
            ("optimizer.lr", optimizer.lr),
            ("optimizer.weight_decay", optimizer.weight_decay),
            ("optimizer.bias_lr_factor", optimizer.bias_lr_factor),
            ("optimizer.head_lr_factor", optimizer.head_lr_factor),
            ("optimizer.clip_grad", optimizer.clip_grad),
            ("optimizer.warmup_epochs", optimizer.warmup_epochs),
            (
                "optimizer.warmup_start_factor",
                optimizer.warmup_start_factor,
            ),
            ("optimizer.min_lr", optimizer.min_lr),
            ("optimizer.cycle_lr_factor", optimizer.cycle_lr_factor),
            ("optimizer.gamma", optimizer.gamma),
            ("run.epochs", run.epochs),
            ("run.eval_every", run.eval_every),
        ] {
            if !value.is_finite() || value < 0.0 {
                return Err(setting(key, "a number of at least 0", value));
            }
        }
        if optimizer.min_lr > optimizer.lr {
            let expected = format!("at most optimizer.lr = {}", optimizer.lr);
            return Err(setting("optimizer.min_lr", &expected, optimizer.min_lr));
        }
        if let Some(wrong) = optimizer
            .milestones
            .iter()
            .find(|at| at.is_nan() || **at < 0.0)
        {
            return Err(setting(
                "optimizer.milestones",
                "epochs of at least 0",
                wrong,
            ));
        }
        for (key, value, below) in [
            ("optimizer.momentum", optimizer.momentum, 1.0),
            ("optimizer.beta2", optimizer.beta2, 1.0),
            ("model.drop_path", model.drop_path, 1.0),
            ("run.ema", run.ema, 1.0),
        ] {
            if !(0.0..below).contains(&value) {
                return Err(setting(key, "a number from 0 to below 1", value));
            }
        }
        if !(optimizer.layer_decay > 0.0 && optimizer.layer_decay <= 1.0) {
            return Err(setting(
                "optimizer.layer_decay",
                "above 0, at most 1",
                optimizer.layer_decay,
            ));
        }
        self.check_run()
    }

    /// Checks the values of `[run]`, and the learning rate schedules that depend on them.
    fn check_run(&self) -> Result<(), TaskError> {
        let (optimizer, run) = (&self.optimizer, &self.run);
        if optimizer.lr_schedule == LrSchedule::Plateau
            && (run.checkpoint_selection == "last" || run.eval_every == 0.0)
        {
            let expected =
                "a split to evaluate on (`run.checkpoint_selection`) and `run.eval_every` above 0";
            return Err(setting(
                "optimizer.lr_schedule",
                expected,
                "plateau without them",
            ));
        }
        if run.self_correction_interval == 0 {
            return Err(setting("run.self_correction_interval", "at least 1", 0));
        }
        if optimizer.lr_schedule == LrSchedule::Cyclic && run.self_correction_start == 0 {
            let expected = "cyclic with run.self_correction_start above 0 only";
            return Err(setting(
                "optimizer.lr_schedule",
                expected,
                "cyclic without it",
            ));
        }
        if run.save_every == Auto::Value(0) {
            return Err(setting("run.save_every", "at least 1", 0));
        }
        Ok(())
    }
}

/// A recipe with every `"auto"` resolved, and what follows from it.
#[derive(Clone, Debug)]
pub struct FinetunePlan<C> {
    /// The resolved recipe.
    pub recipe: FinetuneRecipe<C>,
    /// Steps of the run.
    pub steps: u64,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Steps between checkpoints.
    pub save_every: u64,
    /// Steps between evaluations.
    pub eval_every: Option<u64>,
    /// Steps of the warm-up.
    pub warmup: u64,
    /// Copies of the backbone.
    pub replicas: usize,
    /// Threads that load examples.
    pub workers: usize,
}

impl<C: Serialize> FinetunePlan<C> {
    /// Text of the run's `run.toml`: the resolved recipe below a header.
    pub fn run_toml(&self, task: &str, examples: usize, device: &str) -> String {
        let header = RunHeader {
            command: &command_of(task),
            version: env!("CARGO_PKG_VERSION"),
            seed: self.recipe.seed,
            device,
            images: examples,
            steps_per_epoch: self.steps_per_epoch,
            steps: self.steps,
        };
        header.with_recipe(&recipe::to_toml(&self.recipe))
    }
}

/// The command that fine-tunes for a task, without the program's name.
fn command_of(task: &str) -> String {
    format!("finetune {task}")
}
