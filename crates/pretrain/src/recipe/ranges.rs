//! Ranges of the values of a recipe.

use clasp_model::prompt::{IDENTITY, PROMPTS};
use clasp_run::{InvalidValue, check};

use super::PretrainRecipe;
use crate::error::Result;

/// Range of a learning rate.
pub(crate) const LEARNING_RATE: [f64; 2] = [0.0, 10.0];
/// Range of a temperature.
pub(crate) const TEMPERATURE: [f64; 2] = [1e-4, 100.0];
/// Range of the weight of a loss.
pub(crate) const LOSS_WEIGHT: [f64; 2] = [0.0, 1e4];
/// Range of a number of epochs.
pub(crate) const EPOCHS: [f64; 2] = [0.0, 1e6];
/// Longest run, a guard against typing errors.
pub(crate) const MAX_STEPS: usize = 1_000_000_000_000;
/// Largest batch.
const MAX_BATCH: usize = 1 << 20;
/// Most channels of a layer of the projection head.
const MAX_CHANNELS: usize = 1 << 14;

impl PretrainRecipe {
    /// Checks the values that are never automatic.
    ///
    /// # Errors
    ///
    /// Names the first value that is out of range or contradicts another.
    pub fn check(&self) -> Result<()> {
        self.views.check()?;
        self.attributes.config()?;
        let (run, optimizer, loss) = (&self.run, &self.optimizer, &self.loss);
        let head = &self.projection_head;
        for (key, value, most) in [
            ("run.batch", run.batch, MAX_BATCH),
            ("run.accumulate", run.accumulate, MAX_BATCH),
            ("run.keep_checkpoints", run.keep_checkpoints, usize::MAX),
            ("run.log_every", run.log_every as usize, usize::MAX),
            ("projection_head.hidden_dim", head.hidden_dim, MAX_CHANNELS),
            (
                "projection_head.bottleneck_dim",
                head.bottleneck_dim,
                MAX_CHANNELS,
            ),
        ] {
            check::count(key, value, [1, most])?;
        }
        if !run.batch.is_multiple_of(run.accumulate) {
            let found = format!("batch {} and accumulate {}", run.batch, run.accumulate);
            let expected = "a divisor of run.batch";
            return Err(InvalidValue::new("run.accumulate", expected, found).into());
        }
        if self.views.global + self.views.local < 2 {
            let expected = "two views of an image or more";
            return Err(InvalidValue::new("views.global", expected, "one").into());
        }
        self.check_prompts()?;
        let fractions = [
            ("model.drop_path", self.model.drop_path),
            ("loss.center_momentum", loss.center_momentum),
            ("loss.mask_probability", loss.mask_probability),
            ("loss.mask_ratio", loss.mask_ratio[0]),
            ("loss.mask_ratio", loss.mask_ratio[1]),
            ("teacher.momentum_end", self.teacher.momentum_end),
        ];
        check::within(&fractions, [0.0, 1.0])?;
        check::within(&loss.weights(), LOSS_WEIGHT)?;
        if loss.mask_ratio[0] > loss.mask_ratio[1] {
            let expected = "[least, largest]";
            let found = format!("{:?}", loss.mask_ratio);
            return Err(InvalidValue::new("loss.mask_ratio", expected, found).into());
        }
        if loss.masks_patches() && self.views.global == 0 {
            let expected = "0 without global views, whose patches are masked";
            return Err(InvalidValue::new("loss.ibot_weight", expected, loss.ibot_weight).into());
        }
        let temperatures = [
            ("loss.student_temperature", loss.student_temperature),
            ("loss.teacher_temperature", loss.teacher_temperature),
        ];
        check::within(&temperatures, TEMPERATURE)?;
        check::within(&[("optimizer.min_lr", optimizer.min_lr)], LEARNING_RATE)?;
        let factor = [("optimizer.prompt_lr_factor", optimizer.prompt_lr_factor)];
        check::within(&factor, [0.0, 1e3])?;
        let decays = [
            ("optimizer.weight_decay", optimizer.weight_decay),
            ("optimizer.weight_decay_end", optimizer.weight_decay_end),
        ];
        check::within(&decays, [0.0, 100.0])?;
        check::within(&[("optimizer.clip_grad", optimizer.clip_grad)], [0.0, 1e6])?;
        let epochs = [
            ("run.epochs", run.epochs),
            ("optimizer.freeze_last_layer", optimizer.freeze_last_layer),
            (
                "loss.teacher_temperature_warmup_epochs",
                loss.teacher_temperature_warmup_epochs,
            ),
        ];
        Ok(check::within(&epochs, EPOCHS)?)
    }

    fn check_prompts(&self) -> Result<(), InvalidValue> {
        let prompts = &self.model.prompts;
        let unknown = |name: &&String| !PROMPTS.contains(&name.as_str());
        if let Some(name) = prompts.iter().find(unknown) {
            let expected = format!("some of {}", PROMPTS.join(", "));
            return Err(InvalidValue::new(
                "model.prompts",
                expected,
                format!("`{name}`"),
            ));
        }
        if !self.model.has_prompt(IDENTITY) {
            let expected = "`identity`, which self-distillation needs, among them";
            let found = format!("[{}]", prompts.join(", "));
            return Err(InvalidValue::new("model.prompts", expected, found));
        }
        Ok(())
    }
}
