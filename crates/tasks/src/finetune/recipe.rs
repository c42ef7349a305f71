//! The recipe of a fine-tuning run: TOML, every key with a default, unknown keys an error.
//!
//! ```toml
//! seed = 0
//! [data]
//! path = "market1501"            # or --data
//! [model]
//! init = "backbone.safetensors"  # or --init
//! size = [256, 128]
//! mix = "auto"                   # the task's own; a task, weights, or "learn"
//! tune = "full"                  # full | head | experts
//! [optimiser]
//! rule = "sgd"                   # sgd | adam | adamw
//! [run]
//! epochs = 60
//! select = "last"                # last | val | test
//! [task]                         # the task's own settings: crate::tuned
//! ```

use std::path::{Path, PathBuf};

use clasp_model::mix::Mix;
use clasp_model::optim::Rule;
use clasp_run::recipe::{self, Auto};
use clasp_run::{InvalidValue, check};
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::{Split, Task};
use crate::TaskError;

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tune {
    /// Everything: the published protocols' way, and the best where there are thousands of images.
    Full,
    /// The head alone: the backbone stays what it is.
    Head,
    /// The head and the adapter (experts and routers, or SOLIDER's controller).
    Experts,
}

/// Mean and standard deviation that images are normalised with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Norm {
    /// What the backbone was pre-trained with.
    Backbone,
    /// 0.5 and 0.5, as SOLIDER's re-identification has it.
    Half,
    /// ImageNet's.
    Imagenet,
}

/// How the learning rate goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decline {
    /// By a cosine from the first step to the last.
    Cosine,
    /// By `gamma` at each of the `milestones`.
    Step,
    /// By `gamma` after more than `patience` evaluations without a lower loss, or a better metric where the task tells no loss.
    Plateau,
    /// By a cosine from the end of the warm-up to the first cycle of self-correction, then by one in each cycle, from `cycle_lr`.
    Cycles,
    /// Not at all.
    Constant,
}

/// A recipe for a task with settings `S`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    bound(
        serialize = "S: Serialize",
        deserialize = "S: Default + serde::de::DeserializeOwned"
    )
)]
pub struct Recipe<S> {
    /// Seed of everything that is drawn at random.
    pub seed: u64,
    /// Labelled images.
    pub data: Data,
    /// Backbone and preprocessing.
    pub model: ModelSection,
    /// The optimiser and its schedule.
    pub optimiser: OptimiserSection,
    /// Length, batch, evaluation, checkpoints.
    pub run: Run,
    /// The task's own settings.
    pub task: S,
}

/// `[data]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// Folder of the data set.
    pub path: PathBuf,
    /// Threads that decode and augment. Auto: the cores.
    pub workers: Auto<usize>,
}

impl Default for Data {
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
pub struct ModelSection {
    /// Backbone file, run folder of pre-training or published checkpoint. Empty: fresh weights.
    pub init: PathBuf,
    /// Name of the backbone; of use without `init` only.
    pub backbone: String,
    /// Strides of a Swin's patches and of the merging before each later stage, as in `[4, 2, 2, 1]`. Empty: those of `init`.
    pub strides: Vec<usize>,
    /// Height and width of the network's input in pixels.
    pub size: [usize; 2],
    /// What images are normalised with.
    pub norm: Norm,
    /// Mix of prompts: `auto` for the task's own, a task or weights, or `learn` for a prompt of the task's own that
    /// starts at the mean of all.
    pub mix: String,
    /// Share of residual branches dropped in the last block, growing from 0 linearly.
    pub drop_path: f64,
    /// What is trained.
    pub tune: Tune,
    /// Parameters of the backbone that are not trained: beginnings of their names, such as `patch_embed`.
    pub freeze: Vec<String>,
}

impl Default for ModelSection {
    fn default() -> Self {
        Self {
            init: PathBuf::new(),
            backbone: "swin-tiny".to_owned(),
            strides: Vec::new(),
            size: [256, 128],
            norm: Norm::Backbone,
            mix: "auto".to_owned(),
            drop_path: 0.1,
            tune: Tune::Full,
            freeze: Vec::new(),
        }
    }
}

/// `[optimiser]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OptimiserSection {
    /// SGD with momentum, Adam with the decay in the gradient, or AdamW.
    pub rule: Rule,
    /// Learning rate after the warm-up.
    pub lr: f64,
    /// Momentum of SGD, decay of the first moment of the others.
    pub momentum: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Weight decay on biases, norms, tables of relative positions and prompts too.
    pub decay_all: bool,
    /// Without weight decay whatever `decay_all` says: ends of names, such as `relative_position_bias_table`.
    pub decay_except: Vec<String>,
    /// Learning rate of biases, times `lr`.
    pub bias_lr: f64,
    /// Learning rate of the head, times `lr`.
    pub head_lr: f64,
    /// Learning rate of each layer, times that of the next deeper one; 1 for the same everywhere.
    pub layer_decay: f64,
    /// Largest norm of all gradients together; 0 for no limit.
    pub clip: f64,
    /// How the rate goes down.
    pub decline: Decline,
    /// Rate at the end of a cosine, times `lr`.
    pub lr_end: f64,
    /// Rate at the start of a cycle, times `lr`.
    pub cycle_lr: f64,
    /// Epochs in which the rate grows linearly.
    pub warmup_epochs: f64,
    /// Rate at the start of the warm-up, times `lr`.
    pub warmup_start: f64,
    /// Epochs after which a step goes down.
    pub milestones: Vec<f64>,
    /// Factor of a step or plateau.
    pub gamma: f64,
    /// Evaluations without a better metric that a plateau endures.
    pub patience: u32,
    /// Change the rate between epochs only, as the published re-identification does.
    pub by_epoch: bool,
}

impl Default for OptimiserSection {
    fn default() -> Self {
        Self {
            rule: Rule::AdamW,
            lr: 1e-4,
            momentum: 0.9,
            beta2: 0.999,
            weight_decay: 0.01,
            decay_all: false,
            decay_except: Vec::new(),
            bias_lr: 1.0,
            head_lr: 1.0,
            layer_decay: 1.0,
            clip: 0.0,
            decline: Decline::Cosine,
            lr_end: 0.0,
            cycle_lr: 0.5,
            warmup_epochs: 0.0,
            warmup_start: 0.01,
            milestones: Vec::new(),
            gamma: 0.1,
            patience: 4,
            by_epoch: false,
        }
    }
}

/// `[run]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Run {
    /// Times that every example is seen.
    pub epochs: f64,
    /// Steps of the optimiser. Auto: what `epochs` come to.
    pub steps: Auto<u64>,
    /// Examples of a step.
    pub batch: usize,
    /// Copies of the backbone that share a batch, each on one thread. Auto: one a core on the CPU, else 1.
    pub replicas: Auto<usize>,
    /// Share of the old weights in a moving average that is evaluated and kept instead; 0 for none.
    pub ema: f64,
    /// Epochs after which self-correction begins ([`super::correct`]), for parsing; 0 for none.
    pub correct_from: u64,
    /// Epochs of a cycle of it.
    pub correct_every: u64,
    /// Epochs between two evaluations; 0 for none before the end.
    pub eval_every: f64,
    /// What the kept model is chosen by: `last` for the last step, else the split that is evaluated. `test` is what some
    /// published protocols do; it flatters.
    pub select: String,
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
            epochs: 30.0,
            steps: Auto::Auto,
            batch: 64,
            replicas: Auto::Auto,
            ema: 0.0,
            correct_from: 0,
            correct_every: 10,
            eval_every: 1.0,
            select: "val".to_owned(),
            save_every: Auto::Auto,
            keep: 2,
            log_every: 10,
        }
    }
}

/// Recipes that come with the program: name and text. The name begins with the task's.
pub const BUILT_IN: [(&str, &str); 13] = [
    (
        "reid",
        include_str!("../../../../recipes/finetune-reid.toml"),
    ),
    (
        "reid-mini",
        include_str!("../../../../recipes/finetune-reid-mini.toml"),
    ),
    (
        "attributes",
        include_str!("../../../../recipes/finetune-attributes.toml"),
    ),
    (
        "attributes-mini",
        include_str!("../../../../recipes/finetune-attributes-mini.toml"),
    ),
    (
        "parsing",
        include_str!("../../../../recipes/finetune-parsing.toml"),
    ),
    (
        "parsing-mini",
        include_str!("../../../../recipes/finetune-parsing-mini.toml"),
    ),
    (
        "pose",
        include_str!("../../../../recipes/finetune-pose.toml"),
    ),
    (
        "pose-mini",
        include_str!("../../../../recipes/finetune-pose-mini.toml"),
    ),
    (
        "detection",
        include_str!("../../../../recipes/finetune-detection.toml"),
    ),
    (
        "detection-mini",
        include_str!("../../../../recipes/finetune-detection-mini.toml"),
    ),
    (
        "search",
        include_str!("../../../../recipes/finetune-search.toml"),
    ),
    (
        "search-one-stage",
        include_str!("../../../../recipes/finetune-search-one-stage.toml"),
    ),
    (
        "search-mini",
        include_str!("../../../../recipes/finetune-search-mini.toml"),
    ),
];

/// Recipe keys and sections that must not change when a run goes on: they shape tensors, the inputs or the order of examples.
pub const FIXED: [&str; 12] = [
    "seed",
    "model.size",
    "model.backbone",
    "model.strides",
    "model.norm",
    "model.mix",
    "model.tune",
    "model.freeze",
    "optimiser.rule",
    "run.batch",
    "run.replicas",
    "task",
];

impl<S> Recipe<S>
where
    S: Default + Serialize + serde::de::DeserializeOwned,
{
    /// Reads the recipe file `path`, or the built-in recipe of that name, and applies `overrides`.
    ///
    /// # Errors
    /// The file cannot be read, a key is unknown or a value has another type.
    pub fn load(path: &str, overrides: &[String]) -> Result<Self, TaskError> {
        Ok(recipe::load(path, &BUILT_IN, overrides)?)
    }

    /// Parses `text`; `place` says in errors where it comes from.
    ///
    /// # Errors
    /// A key is unknown or a value has another type.
    pub fn parse(text: &str, place: &str, overrides: &[String]) -> Result<Self, TaskError> {
        Ok(recipe::parse(text, place, overrides)?)
    }

    /// The recipe of the run in `folder`.
    ///
    /// # Errors
    /// The folder holds no run, or its recipe cannot be read.
    pub fn of_run(folder: &Path, overrides: &[String]) -> Result<Self, TaskError> {
        let path = folder.join("run.toml");
        if !path.is_file() {
            return Err(TaskError::Mismatch {
                file: folder.display().to_string(),
                expected: "a run with run.toml".to_owned(),
                found: if folder.is_dir() {
                    "none"
                } else {
                    "no such folder"
                }
                .to_owned(),
            });
        }
        let text = fs::read_to_string(&path)?;
        Self::parse(&text, &path.display().to_string(), overrides)
    }

    /// The split that models are chosen by; none for the last step.
    pub fn choose_by(&self) -> Option<Split> {
        (self.run.select != "last").then(|| Split::named(&self.run.select))
    }

    /// The mix of prompts for a task, and whether the prompts are trained.
    ///
    /// # Errors
    /// The mix is not one.
    pub fn mix<T: Task>(&self) -> Result<(Mix, bool), TaskError> {
        Ok(match self.model.mix.as_str() {
            "auto" => (T::default_mix(), false),
            // The mean mix moves all prompts of a block alike, as one vector that starts at their mean.
            "learn" => (Mix::mean(), true),
            text => (text.parse()?, false),
        })
    }

    /// Checks the values and resolves every `"auto"` for so many examples, on the CPU with `cores` cores or on another
    /// device.
    ///
    /// # Errors
    /// A value is out of range, or there are too few examples.
    pub fn plan(
        mut self,
        examples: usize,
        cores: usize,
        on_cpu: bool,
    ) -> Result<Plan<S>, TaskError> {
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
        let workers = self.data.workers.resolve(cores.min(check::MOST_THREADS));
        check::count("data.workers", workers, [1, check::MOST_THREADS])?;
        let save_every = self.run.save_every.resolve(steps_per_epoch.clamp(50, 1000));
        let most = if on_cpu {
            cores.clamp(1, check::MOST_THREADS)
        } else {
            1
        };
        let divisor = (1..=most).rev().find(|count| batch.is_multiple_of(*count));
        let replicas = self.run.replicas.resolve(divisor.unwrap_or(1));
        check::count("run.replicas", replicas, [1, check::MOST_THREADS])?;
        if !batch.is_multiple_of(replicas) {
            return Err(setting(
                "run.replicas",
                &format!("a divisor of run.batch = {batch}"),
                replicas,
            ));
        }
        let of_epochs = |epochs: f64| (epochs * steps_per_epoch as f64).round() as u64;
        let eval_every = of_epochs(self.run.eval_every);
        Ok(Plan {
            steps,
            steps_per_epoch,
            save_every,
            eval_every: (self.run.eval_every > 0.0).then_some(eval_every.max(1)),
            warmup: of_epochs(self.optimiser.warmup_epochs),
            replicas,
            workers,
            recipe: self,
        })
    }

    fn check(&self) -> Result<(), TaskError> {
        let (optimiser, run, model) = (&self.optimiser, &self.run, &self.model);
        for (key, value) in [
            ("run.batch", run.batch),
            ("run.keep", run.keep),
            ("run.log_every", run.log_every as usize),
            ("model.size", model.size[0].min(model.size[1])),
        ] {
            if value == 0 {
                return Err(setting(key, "at least 1", value));
            }
        }
        for (key, value) in [
            ("optimiser.lr", optimiser.lr),
            ("optimiser.weight_decay", optimiser.weight_decay),
            ("optimiser.bias_lr", optimiser.bias_lr),
            ("optimiser.head_lr", optimiser.head_lr),
            ("optimiser.clip", optimiser.clip),
            ("optimiser.warmup_epochs", optimiser.warmup_epochs),
            ("optimiser.warmup_start", optimiser.warmup_start),
            ("optimiser.lr_end", optimiser.lr_end),
            ("optimiser.cycle_lr", optimiser.cycle_lr),
            ("optimiser.gamma", optimiser.gamma),
            ("run.epochs", run.epochs),
            ("run.eval_every", run.eval_every),
        ] {
            if !value.is_finite() || value < 0.0 {
                return Err(setting(key, "a number of at least 0", value));
            }
        }
        if let Some(wrong) = optimiser
            .milestones
            .iter()
            .find(|at| at.is_nan() || **at < 0.0)
        {
            return Err(setting(
                "optimiser.milestones",
                "epochs of at least 0",
                wrong,
            ));
        }
        for (key, value, below) in [
            ("optimiser.momentum", optimiser.momentum, 1.0),
            ("optimiser.beta2", optimiser.beta2, 1.0),
            ("model.drop_path", model.drop_path, 1.0),
            ("run.ema", run.ema, 1.0),
        ] {
            if !(0.0..below).contains(&value) {
                return Err(setting(key, "a number from 0 to below 1", value));
            }
        }
        if !(optimiser.layer_decay > 0.0 && optimiser.layer_decay <= 1.0) {
            return Err(setting(
                "optimiser.layer_decay",
                "above 0, at most 1",
                optimiser.layer_decay,
            ));
        }
        if optimiser.decline == Decline::Plateau && (run.select == "last" || run.eval_every == 0.0)
        {
            let expected = "a split to watch (`run.select`) and `run.eval_every` above 0";
            return Err(setting(
                "optimiser.decline",
                expected,
                "plateau without them",
            ));
        }
        if run.correct_every == 0 {
            return Err(setting("run.correct_every", "at least 1", 0));
        }
        if optimiser.decline == Decline::Cycles && run.correct_from == 0 {
            let expected = "run.correct_from above 0 with it";
            return Err(setting("optimiser.decline", expected, "cycles without it"));
        }
        if run.save_every == Auto::Value(0) {
            return Err(setting("run.save_every", "at least 1", 0));
        }
        Ok(())
    }
}

/// An error about a value of a recipe.
pub fn setting(key: &'static str, expected: &str, found: impl ToString) -> TaskError {
    InvalidValue::new(key, expected, found).into()
}

/// A recipe with every `"auto"` resolved, and what follows from it.
#[derive(Clone, Debug)]
pub struct Plan<S> {
    /// The resolved recipe.
    pub recipe: Recipe<S>,
    /// Steps of the run.
    pub steps: u64,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Steps between checkpoints.
    pub save_every: u64,
    /// Steps between evaluations.
    pub eval_every: Option<u64>,
    /// Steps in which the learning rate grows.
    pub warmup: u64,
    /// Copies of the backbone.
    pub replicas: usize,
    /// Threads that load.
    pub workers: usize,
}

impl<S: Serialize> Plan<S> {
    /// The resolved recipe with the facts of this run as comments above it.
    pub fn to_toml(&self, task: &str, examples: usize, device: &str) -> String {
        format!(
            "# clasp finetune {task}: the recipe that this run resolved.\n{}# clasp {} · {examples} examples · {} steps an epoch · device {device}\n\n{}",
            clasp_run::origin::lines(env!("CARGO_PKG_VERSION")),
            env!("CARGO_PKG_VERSION"),
            self.steps_per_epoch,
            recipe::to_toml(&self.recipe),
        )
    }
}
