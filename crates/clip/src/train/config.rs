//! How to train: sizes, schedule, optimizer, weights of the losses.

use clasp_model::clip::ClipConfig;
use serde::{Deserialize, Serialize};

use super::error::ClipTrainError;

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

/// Settings of CLIP training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClipTrainConfig {
    /// Seed of the patches and phrases of each step.
    pub seed: u64,
    /// Pairs in a step.
    pub batch: usize,
    /// Stages, in this order.
    pub stages: Vec<ResolutionStage>,
    /// Largest learning rate; reached after `warmup_steps` steps, then falling to zero by half a
    /// cosine.
    pub lr: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: usize,
    /// Weight decay (decoupled), on matrices only. The moments' constants are CLIP's: 0.9, 0.98,
    /// 1e-6.
    pub weight_decay: f64,
    /// Largest global norm of the gradient.
    pub clip_grad: f64,
    /// Weight of the part loss beside the contrastive one; 0 for none.
    pub part_weight: f64,
    /// Weight of the attribute loss beside the contrastive one; 0 for none.
    pub attribute_weight: f64,
    /// Momentum of the moving average of the weights (Polyak averaging), 0 for none. The average is
    /// evaluated on the held-out pairs and is the result of a run, finished or stopped.
    pub ema_momentum: f64,
    /// Threads among which a batch is split, at most one for each pair; 0 for one for each core.
    pub threads: usize,
    /// Steps between log lines.
    pub log_every: usize,
    /// Steps between evaluations on the held-out pairs.
    pub evaluate_every: usize,
    /// Steps between checkpoints.
    pub save_every: usize,
}

impl Default for ClipTrainConfig {
    fn default() -> Self {
        let stage = |size, steps, patches| ResolutionStage {
            size,
            steps,
            patches,
        };
        Self {
            seed: 0,
            batch: 128,
            stages: vec![stage([128, 64], 2000, 1.0)],
            lr: 1e-3,
            warmup_steps: 100,
            weight_decay: 0.1,
            clip_grad: 1.0,
            part_weight: 1.0,
            attribute_weight: 4.0,
            ema_momentum: 0.995,
            threads: 0,
            log_every: 10,
            evaluate_every: 200,
            save_every: 100,
        }
    }
}

impl ClipTrainConfig {
    /// Steps of all stages.
    pub fn steps(&self) -> usize {
        self.stages.iter().map(|stage| stage.steps).sum()
    }

    /// Learning rate of a step, counted from 0.
    pub fn learning_rate(&self, step: usize) -> f64 {
        if step < self.warmup_steps {
            return self.lr * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let rest = (self.steps() - self.warmup_steps.min(self.steps())).max(1);
        let done = (step - self.warmup_steps) as f64 / rest as f64;
        0.5 * self.lr * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos())
    }

    /// Momentum of the average at a step, counted from 0: smaller at first, so that the initial
    /// weights fade soon.
    pub(super) fn momentum(&self, step: usize) -> f64 {
        self.ema_momentum
            .min((1 + step) as f64 / (10 + step) as f64)
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

    pub(super) fn check(&self, model: &ClipConfig) -> Result<(), ClipTrainError> {
        model.validate()?;
        let wrong = |field, found: String, expected: &str| {
            Err(ClipTrainError::Setting {
                field,
                found,
                expected: expected.to_owned(),
            })
        };
        if !(2..=65_536).contains(&self.batch) {
            return wrong("batch", self.batch.to_string(), "2 to 65536 pairs");
        }
        if self.stages.is_empty() || self.steps() == 0 {
            return wrong("stages", "empty".into(), "at least one step");
        }
        for stage in &self.stages {
            let sides = model.vision.patch..=4096;
            if stage.size.iter().any(|side| !sides.contains(side)) {
                return wrong(
                    "stages.size",
                    format!("{} x {}", stage.size[0], stage.size[1]),
                    "one patch to 4096 pixels",
                );
            }
            if !(stage.patches > 0.0 && stage.patches <= 1.0) {
                return wrong(
                    "stages.patches",
                    stage.patches.to_string(),
                    "more than 0, at most 1",
                );
            }
        }
        for (field, value) in [
            ("part_weight", self.part_weight),
            ("attribute_weight", self.attribute_weight),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return wrong(field, value.to_string(), "0 or a positive number");
            }
        }
        if !(0.0..1.0).contains(&self.ema_momentum) {
            return wrong(
                "ema_momentum",
                self.ema_momentum.to_string(),
                "0 or more, below 1",
            );
        }
        for (field, value) in [("lr", self.lr), ("clip_grad", self.clip_grad)] {
            if !(value.is_finite() && value > 0.0) {
                return wrong(field, value.to_string(), "a positive number");
            }
        }
        if !(0.0..1.0).contains(&(self.weight_decay * self.lr)) {
            return wrong(
                "weight_decay",
                self.weight_decay.to_string(),
                "a small positive number",
            );
        }
        for (field, value) in [
            ("log_every", self.log_every),
            ("evaluate_every", self.evaluate_every),
            ("save_every", self.save_every),
        ] {
            if value == 0 {
                return wrong(field, "0".into(), "at least 1");
            }
        }
        Ok(())
    }
}
