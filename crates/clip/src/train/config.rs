//! The recipe: sizes, schedule, optimizer, weights of the losses.

use clasp_model::clip::ClipConfig;
use clasp_run::recipe::{Auto, to_toml};
use clasp_run::{InvalidValue, RunHeader, check};
use serde::{Deserialize, Serialize};

/// A stage of the training, at one image size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolutionStage {
    /// Height and width of the images in pixels.
    pub size: [usize; 2],
    /// Number of steps.
    pub steps: usize,
    /// Share of the patches that are used, drawn anew each step; 1 for all.
    pub patches: f32,
}

/// Recipe of CLIP training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClipTrainConfig {
    /// Seed of the patches and phrases of each step.
    pub seed: u64,
    /// `[optimizer]`
    pub optimizer: ClipOptimizerConfig,
    /// `[loss]`
    pub loss: ClipLossConfig,
    /// `[run]`
    pub run: ClipRunConfig,
    /// Stages, in this order.
    pub stages: Vec<ResolutionStage>,
}

/// `[optimizer]`: AdamW; the moments' constants are CLIP's: 0.9, 0.98, 1e-6.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClipOptimizerConfig {
    /// Largest learning rate; reached after `warmup_steps` steps, then falling to zero by half a
    /// cosine.
    pub lr: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: usize,
    /// Weight decay (decoupled), on matrices only.
    pub weight_decay: f64,
    /// Largest global norm of the gradient.
    pub clip_grad: f64,
}

/// `[loss]`: weights of the losses beside the contrastive one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClipLossConfig {
    /// Weight of the part loss; 0 for none.
    pub part_weight: f64,
    /// Weight of the attribute loss; 0 for none.
    pub attribute_weight: f64,
}

/// `[run]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClipRunConfig {
    /// Pairs in a step.
    pub batch: usize,
    /// Replicas among which a batch is split, at most one for each pair; `"auto"`: one a thread.
    pub replicas: Auto<usize>,
    /// Momentum of the moving average of the weights (Polyak averaging), 0 for none. The average is
    /// evaluated on the held-out pairs and is the result of a run, finished or stopped.
    pub ema: f64,
    /// Steps between log lines.
    pub log_every: u64,
    /// Steps between evaluations on the held-out pairs.
    pub evaluate_every: u64,
    /// Steps between checkpoints.
    pub save_every: u64,
    /// Checkpoints that are kept.
    pub keep_checkpoints: usize,
}

impl Default for ClipTrainConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            optimizer: ClipOptimizerConfig::default(),
            loss: ClipLossConfig::default(),
            run: ClipRunConfig::default(),
            stages: vec![ResolutionStage {
                size: [128, 64],
                steps: 2000,
                patches: 1.0,
            }],
        }
    }
}

impl Default for ClipOptimizerConfig {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            warmup_steps: 100,
            weight_decay: 0.1,
            clip_grad: 1.0,
        }
    }
}

impl Default for ClipLossConfig {
    fn default() -> Self {
        Self {
            part_weight: 1.0,
            attribute_weight: 4.0,
        }
    }
}

impl Default for ClipRunConfig {
    fn default() -> Self {
        Self {
            batch: 128,
            replicas: Auto::Auto,
            ema: 0.995,
            log_every: 10,
            evaluate_every: 200,
            save_every: 100,
            keep_checkpoints: 3,
        }
    }
}

/// Recipe keys that must not change when a run is resumed: the result depends on them.
pub(super) const FIXED: [&str; 6] = [
    "seed",
    "optimizer",
    "loss",
    "run.batch",
    "run.ema",
    "stages",
];

impl ClipTrainConfig {
    /// Steps of all stages.
    pub fn steps(&self) -> usize {
        self.stages.iter().map(|stage| stage.steps).sum()
    }

    /// Learning rate of a step, counted from 0. Unlike `clasp_run::schedule::Cosine`, the warm-up
    /// begins above 0, as in OpenCLIP.
    pub fn learning_rate(&self, step: usize) -> f64 {
        let ClipOptimizerConfig {
            lr, warmup_steps, ..
        } = self.optimizer;
        if step < warmup_steps {
            return lr * (step + 1) as f64 / warmup_steps as f64;
        }
        let rest = (self.steps() - warmup_steps.min(self.steps())).max(1);
        let done = (step - warmup_steps) as f64 / rest as f64;
        0.5 * lr * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
    }

    /// Momentum of the average at a step, counted from 0: smaller at first, so that the initial
    /// weights fade soon.
    pub(super) fn momentum(&self, step: usize) -> f64 {
        self.run.ema.min((1 + step) as f64 / (10 + step) as f64)
    }

    /// The stage of a step, counted from 0; the last one beyond the end.
    pub(super) fn stage(&self, step: usize) -> &ResolutionStage {
        let mut end = 0;
        let found = self.stages.iter().find(|stage| {
            end += stage.steps;
            step < end
        });
        match found.or(self.stages.last()) {
            Some(stage) => stage,
            None => unreachable!("checked: at least one stage"),
        }
    }

    /// Text of the run's `run.toml`: the recipe below a header. Pairs are a function of their index
    /// and may never repeat, so that the whole run counts as one epoch.
    pub(super) fn run_toml(&self, device: &str) -> String {
        let header = RunHeader {
            command: "clip train",
            version: env!("CARGO_PKG_VERSION"),
            seed: self.seed,
            device,
            images: self.steps() * self.run.batch,
            steps_per_epoch: self.steps() as u64,
            steps: self.steps() as u64,
        };
        header.with_recipe(&to_toml(self))
    }

    /// Checks the values and resolves the number of replicas on a machine with `threads` threads.
    pub(super) fn resolved(
        &self,
        model: &ClipConfig,
        threads: usize,
    ) -> Result<Self, InvalidValue> {
        let mut resolved = self.clone();
        let replicas = resolved.run.replicas.resolve(threads.max(1));
        check::count("run.batch", self.run.batch, [2, 65_536])?;
        check::count("run.replicas", replicas, [1, check::MOST_THREADS])?;
        resolved.run.replicas = Auto::Value(replicas.min(self.run.batch));
        if self.stages.is_empty() || self.steps() == 0 {
            return Err(InvalidValue::new("stages", "at least one step", "none"));
        }
        for stage in &self.stages {
            let sides = model.vision.patch..=4096;
            if stage.size.iter().any(|side| !sides.contains(side)) {
                let [height, width] = stage.size;
                let expected = "one patch to 4096 pixels";
                let found = format!("{height} x {width}");
                return Err(InvalidValue::new("stages.size", expected, found));
            }
            if !(stage.patches > 0.0 && stage.patches <= 1.0) {
                let expected = "more than 0, at most 1";
                return Err(InvalidValue::new("stages.patches", expected, stage.patches));
            }
        }
        let (optimizer, loss) = (&self.optimizer, &self.loss);
        for (key, value) in [
            ("loss.part_weight", loss.part_weight),
            ("loss.attribute_weight", loss.attribute_weight),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(InvalidValue::new(key, "0 or a positive number", value));
            }
        }
        if !(0.0..1.0).contains(&self.run.ema) {
            return Err(InvalidValue::new(
                "run.ema",
                "0 or more, below 1",
                self.run.ema,
            ));
        }
        for (key, value) in [
            ("optimizer.lr", optimizer.lr),
            ("optimizer.clip_grad", optimizer.clip_grad),
        ] {
            if !(value.is_finite() && value > 0.0) {
                return Err(InvalidValue::new(key, "a positive number", value));
            }
        }
        let decay = optimizer.weight_decay;
        if !(0.0..1.0).contains(&(decay * optimizer.lr)) {
            let expected = "a small positive number";
            return Err(InvalidValue::new("optimizer.weight_decay", expected, decay));
        }
        for (key, value) in [
            ("run.log_every", self.run.log_every),
            ("run.evaluate_every", self.run.evaluate_every),
            ("run.save_every", self.run.save_every),
            ("run.keep_checkpoints", self.run.keep_checkpoints as u64),
        ] {
            if value == 0 {
                return Err(InvalidValue::new(key, "at least 1", value));
            }
        }
        Ok(resolved)
    }
}
