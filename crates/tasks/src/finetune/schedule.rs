//! Learning rates of a step and of each parameter: pure functions.

use std::f64::consts::PI;

use clasp_model::optim::{Rates, decays};
use clasp_model::parameters::{ParameterGroup, ParameterGroups, ParameterKind};

use super::recipe::{
    FinetuneModelConfig, FinetuneOptimizerConfig, FinetunePlan, LrSchedule, Trainable,
};

/// The learning rate at a step, counted from 0, divided by `optimizer.lr`; plateaus come on top.
///
/// The cosine starts at the first step and the warm-up replaces its beginning, as in timm's
/// schedules without `warmup_prefix`; multistep milestones are in epochs.
pub fn lr_factor<C>(plan: &FinetunePlan<C>, step: u64) -> f64 {
    let optimizer = &plan.recipe.optimizer;
    let per_epoch = plan.steps_per_epoch as f64;
    // By epoch, the first one is number 1, as in the published code; the cyclic schedule counts
    // from 0.
    let first = u64::from(optimizer.lr_schedule != LrSchedule::Cyclic);
    let epoch = if optimizer.lr_by_epoch {
        (step / plan.steps_per_epoch + first) as f64
    } else {
        step as f64 / per_epoch
    };
    let (warmup, run) = (plan.warmup as f64 / per_epoch, &plan.recipe.run);
    let epochs = run.epochs;
    let end = match optimizer.lr {
        0.0 => 0.0,
        lr => optimizer.min_lr / lr,
    };
    let cosine = |from: f64, done: f64| end + 0.5 * (from - end) * (1.0 + (PI * done).cos());
    if epoch < warmup {
        let start = optimizer.warmup_start_factor;
        return start + (1.0 - start) * epoch / warmup;
    }
    match optimizer.lr_schedule {
        LrSchedule::Cosine => cosine(1.0, (epoch / epochs).min(1.0)),
        LrSchedule::Multistep => {
            // Milestones count finished epochs.
            let finished = step as f64 / per_epoch;
            let passed = optimizer
                .milestones
                .iter()
                .filter(|m| finished >= **m)
                .count();
            optimizer.gamma.powi(passed as i32)
        }
        LrSchedule::Cyclic => {
            let (first, every) = (
                run.self_correction_start as f64,
                run.self_correction_interval as f64,
            );
            if epoch < first {
                cosine(1.0, (epoch - warmup) / (first - warmup))
            } else {
                cosine(optimizer.cycle_lr_factor, (epoch - first) % every / every)
            }
        }
        LrSchedule::Plateau | LrSchedule::Constant => 1.0,
    }
}

/// Whether a parameter of the backbone is trained.
pub(super) fn is_trained(model: &FinetuneModelConfig, group: &ParameterGroup) -> bool {
    let frozen = { model.freeze.iter() }.any(|start| group.name.starts_with(start));
    let selected = match model.trainable {
        _ if group.kind == ParameterKind::Prompt => model.learns_prompt(),
        Trainable::Full => true,
        Trainable::Head => false,
        Trainable::Adapter => group.adapter,
    };
    selected && !frozen
}

/// Learning rates and weight decay of the parameters of a network.
#[derive(Debug)]
pub struct ParameterRates<'a> {
    /// `[optimizer]`
    pub optimizer: &'a FinetuneOptimizerConfig,
    /// `[model]`
    pub model: &'a FinetuneModelConfig,
    /// Layer and kind of the backbone's parameters, called `backbone.` and their name.
    pub parameters: &'a ParameterGroups,
    /// Learning rate of this step.
    pub lr: f64,
}

impl ParameterRates<'_> {
    /// The rates of a parameter, whose name begins with `backbone.` or `head.`; none if it is
    /// frozen.
    pub fn rates(&self, name: &str, shape: &[usize]) -> Option<Rates> {
        let mut lr = self.lr;
        let group = self.parameters.get(name);
        match group {
            None => lr *= self.optimizer.head_lr_factor,
            Some(group) => {
                if !is_trained(self.model, group) {
                    return None;
                }
                let below = self.parameters.layers() - 1 - group.layer;
                lr *= self.optimizer.layer_decay.powi(below as i32);
            }
        }
        if group.map_or(name.ends_with(".bias"), |group| {
            group.kind == ParameterKind::Bias
        }) {
            lr *= self.optimizer.bias_lr_factor;
        }
        let plain = match group.map(|group| group.kind) {
            None => decays(name, shape),
            Some(kind) => kind.decays() && kind != ParameterKind::PositionBias,
        };
        let except = { self.optimizer.no_weight_decay.iter() }.any(|end| name.ends_with(end));
        let decay = if !except && (plain || self.optimizer.decay_norm_and_bias) {
            self.optimizer.weight_decay
        } else {
            0.0
        };
        Some(Rates { lr, decay })
    }
}

#[cfg(test)]
mod tests {
    use super::super::recipe::FinetuneRecipe;
    use super::*;
    use clasp_model::backbone::{Adapter, BackboneConfig, Sizes};
    use clasp_model::moe::{MoeConfig, MoeKind};
    use clasp_model::swin::SwinSizes;
    use clasp_run::Machine;

    fn plan(text: &str) -> FinetunePlan<()> {
        #[derive(Default, Clone, serde::Serialize, serde::Deserialize)]
        struct Empty {}
        let recipe = FinetuneRecipe::<Empty>::parse(text, "r", &[]).unwrap();
        let plan = recipe.plan(640, Machine::alone(1, true)).unwrap();
        FinetunePlan {
            recipe: FinetuneRecipe {
                seed: 0,
                data: plan.recipe.data,
                model: plan.recipe.model,
                optimizer: plan.recipe.optimizer,
                run: plan.recipe.run,
                task: (),
            },
            steps: plan.steps,
            steps_per_epoch: plan.steps_per_epoch,
            save_every: plan.save_every,
            eval_every: plan.eval_every,
            warmup: plan.warmup,
            replicas: plan.replicas,
            workers: plan.workers,
        }
    }

    #[test]
    fn the_published_reid_schedule() {
        let plan = plan(
            "[optimizer]\nlr = 2e-4\nmin_lr = 4e-7\nwarmup_epochs = 20\nwarmup_start_factor = 0.01\nlr_by_epoch = true\n[run]\nepochs = 120\n",
        );
        assert_eq!((plan.steps_per_epoch, plan.steps), (10, 1200));
        // timm's CosineLRScheduler(t_initial=120, lr_min=.002, warmup_t=20, warmup_lr_init=.01) at
        // epochs 1, 19, 20, 120.
        let cosine = |t: f64| 0.002 + 0.5 * 0.998 * (1.0 + (PI * t / 120.0).cos());
        for (step, expected) in [
            (0, 0.01 + 0.99 / 20.0),
            (9, 0.01 + 0.99 / 20.0),
            (180, 0.01 + 0.99 * 19.0 / 20.0),
            (190, cosine(20.0)),
            (1199, 0.002),
        ] {
            assert!(
                (lr_factor(&plan, step) - expected).abs() < 1e-12,
                "step {step}"
            );
        }
    }

    /// The scheduler of Self-Correction for 150 epochs, warm-up 30, cycles of 10 from 120, in
    /// SOLIDER's parsing.
    #[test]
    fn the_published_cyclic_schedule_of_parsing() {
        let plan = plan(
            "[optimizer]\nlr_schedule = \"cyclic\"\nlr = 7e-3\nmin_lr = 1.4e-5\nwarmup_epochs = 30\nwarmup_start_factor = 0.002\n\
             lr_by_epoch = true\n[run]\nepochs = 150\nself_correction_start = 120\n",
        );
        let cosine = |from: f64, t: f64| 0.002 + 0.5 * (from - 0.002) * (1.0 + (PI * t).cos());
        for (epoch, expected) in [
            (0, 0.002),
            (15, 0.501),
            (30, 1.0),
            (75, 0.501),
            (119, cosine(1.0, 89.0 / 90.0)),
            (120, 0.5),
            (125, cosine(0.5, 0.5)),
            (130, 0.5),
        ] {
            let found = lr_factor(&plan, epoch * plan.steps_per_epoch);
            assert!((found - expected).abs() < 1e-12, "epoch {epoch}: {found}");
        }
    }

    #[test]
    fn multistep_decreases_at_the_milestones() {
        let plan = plan(
            "[optimizer]\nlr_schedule = \"multistep\"\nmilestones = [2, 3]\n[run]\nepochs = 4\n",
        );
        let rates: Vec<f64> = [0, 19, 20, 29, 30]
            .map(|step| lr_factor(&plan, step))
            .into();
        assert_eq!(
            rates,
            [1.0, 1.0, 0.1, 0.1, 0.1 * 0.1].map(|r: f64| r).to_vec()
        );
    }

    #[test]
    fn groups_follow_the_recipe() {
        let mut optimizer = FinetuneOptimizerConfig {
            weight_decay: 0.5,
            bias_lr_factor: 2.0,
            head_lr_factor: 10.0,
            layer_decay: 0.5,
            ..FinetuneOptimizerConfig::default()
        };
        let mut model = FinetuneModelConfig {
            freeze: vec!["patch_embed".to_owned()],
            ..FinetuneModelConfig::default()
        };
        let sizes = SwinSizes {
            depths: vec![1, 1],
            num_heads: vec![1, 1],
            ..SwinSizes::pico()
        };
        let parameters = BackboneConfig::of_sizes(Sizes::Swin(sizes))
            .with_adapter(Adapter::Moe(MoeConfig {
                form: MoeKind::Merged,
                ..MoeConfig::default()
            }))
            .parameter_groups()
            .unwrap()
            .with_prefix("backbone.");
        let rates =
            |optimizer: &FinetuneOptimizerConfig, model: &FinetuneModelConfig, name: &str| {
                let groups = ParameterRates {
                    optimizer,
                    model,
                    parameters: &parameters,
                    lr: 1.0,
                };
                groups
                    .rates(
                        name,
                        if name.ends_with("bias") {
                            &[3]
                        } else {
                            &[3, 3]
                        },
                    )
                    .map(|rates| (rates.lr, rates.decay))
            };
        assert_eq!(
            rates(&optimizer, &model, "head.fc.weight"),
            Some((10.0, 0.5))
        );
        assert_eq!(rates(&optimizer, &model, "head.fc.bias"), Some((20.0, 0.0)));
        assert_eq!(
            rates(&optimizer, &model, "backbone.patch_embed.proj.weight"),
            None
        );
        assert_eq!(
            rates(
                &optimizer,
                &model,
                "backbone.layers.0.blocks.0.mlp.fc1.weight"
            ),
            Some((0.25, 0.5))
        );
        let prompt = "backbone.layers.1.blocks.0.moe.prompts.gate";
        assert_eq!(rates(&optimizer, &model, prompt), None);
        model.trainable = Trainable::Adapter;
        assert_eq!(
            rates(
                &optimizer,
                &model,
                "backbone.layers.1.blocks.0.mlp.fc1.weight"
            ),
            None
        );
        let expert = "backbone.layers.1.blocks.0.moe.fc1.weight";
        assert_eq!(rates(&optimizer, &model, expert), Some((0.5, 0.5)));
        optimizer.decay_norm_and_bias = true;
        assert_eq!(rates(&optimizer, &model, "head.fc.bias"), Some((20.0, 0.5)));
    }
}
