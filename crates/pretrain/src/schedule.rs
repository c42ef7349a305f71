//! What changes from step to step: pure functions of the step.

use clasp_run::schedule::{Cosine, linear};

use crate::plan::PretrainPlan;

/// The scheduled values of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScheduledValues {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Factor of the old teacher in its moving average.
    pub momentum: f64,
    /// Temperature of the teacher.
    pub teacher_temperature: f64,
}

impl ScheduledValues {
    /// The values of `step`, counted from 0.
    pub fn at(plan: &PretrainPlan, step: u64) -> Self {
        let (optimizer, teacher) = (&plan.recipe.optimizer, &plan.recipe.teacher);
        let cosine = |from, to| Cosine::new(from, to, plan.steps);
        Self {
            lr: cosine(plan.lr, optimizer.min_lr)
                .with_warmup(plan.warmup_steps)
                .at(step),
            weight_decay: cosine(optimizer.weight_decay, optimizer.weight_decay_end).at(step),
            momentum: cosine(plan.momentum, teacher.momentum_end).at(step),
            teacher_temperature: linear(
                plan.teacher_temperature_start,
                plan.recipe.loss.teacher_temperature,
                plan.temperature_steps,
                step,
            ),
        }
    }
}
