//! Learning rates: of a step, and of a parameter in it. Pure functions.

use std::f64::consts::PI;

use clasp_model::optim::{Rates, decays};
use clasp_model::parameters::{ParameterGroups, ParameterKind};

use super::recipe::{Decline, ModelSection, OptimiserSection, Plan, Tune};

/// What a learning rate is multiplied by at a step, counted from 0, without plateaus.
///
/// The cosine runs from the first step and the warm-up takes the place of its beginning, as in timm's schedules without
/// `warmup_prefix`; steps count epochs.
pub fn factor<S>(plan: &Plan<S>, step: u64) -> f64 {
    let optimiser = &plan.recipe.optimiser;
    let per_epoch = plan.steps_per_epoch as f64;
    // By epoch, the first one is number 1, as the published code counts; the schedule of cycles counts from 0.
    let first = u64::from(optimiser.decline != Decline::Cycles);
    let epoch = if optimiser.by_epoch {
        (step / plan.steps_per_epoch + first) as f64
    } else {
        step as f64 / per_epoch
    };
    let (warmup, run) = (plan.warmup as f64 / per_epoch, &plan.recipe.run);
    let epochs = run.epochs;
    let cosine = |from: f64, done: f64| {
        optimiser.lr_end + 0.5 * (from - optimiser.lr_end) * (1.0 + (PI * done).cos())
    };
    if epoch < warmup {
        return optimiser.warmup_start + (1.0 - optimiser.warmup_start) * epoch / warmup;
    }
    match optimiser.decline {
        Decline::Cosine => cosine(1.0, (epoch / epochs).min(1.0)),
        Decline::Step => {
            // Milestones are epochs that are over.
            let over = step as f64 / per_epoch;
            let passed = optimiser.milestones.iter().filter(|m| over >= **m).count();
            optimiser.gamma.powi(passed as i32)
        }
        Decline::Cycles => {
            let (first, every) = (run.correct_from as f64, run.correct_every as f64);
            if epoch < first {
                cosine(1.0, (epoch - warmup) / (first - warmup))
            } else {
                cosine(optimiser.cycle_lr, (epoch - first) % every / every)
            }
        }
        Decline::Plateau | Decline::Constant => 1.0,
    }
}

/// Rates of the parameters of a network.
#[derive(Debug)]
pub struct Groups<'a> {
    /// The section of the recipe.
    pub optimiser: &'a OptimiserSection,
    /// What is trained.
    pub model: &'a ModelSection,
    /// Whether prompts are.
    pub prompts: bool,
    /// Layer and kind of the backbone's parameters, called `backbone.` and their name.
    pub parameters: &'a ParameterGroups,
    /// Learning rate of this step.
    pub lr: f64,
}

impl Groups<'_> {
    /// The rates of a parameter by name, which begins with `backbone.` or `head.`; none if it is not trained.
    pub fn rates(&self, name: &str, shape: &[usize]) -> Option<Rates> {
        let mut lr = self.lr;
        let group = self.parameters.get(name);
        match group {
            None => lr *= self.optimiser.head_lr,
            Some(group) => {
                let frozen =
                    { self.model.freeze.iter() }.any(|start| group.name.starts_with(start));
                let tuned = match self.model.tune {
                    // Prompts are trained when they are asked for, and only then.
                    _ if group.kind == ParameterKind::Prompt => self.prompts,
                    Tune::Full => true,
                    Tune::Head => false,
                    Tune::Experts => group.adapter,
                };
                if frozen || !tuned {
                    return None;
                }
                let below = self.parameters.layers() - 1 - group.layer;
                lr *= self.optimiser.layer_decay.powi(below as i32);
            }
        }
        if group.map_or(name.ends_with(".bias"), |group| {
            group.kind == ParameterKind::Bias
        }) {
            lr *= self.optimiser.bias_lr;
        }
        let plain = match group.map(|group| group.kind) {
            None => decays(name, shape),
            Some(kind) => kind.decays() && kind != ParameterKind::PositionBias,
        };
        let except = { self.optimiser.decay_except.iter() }.any(|end| name.ends_with(end));
        let decay = if !except && (plain || self.optimiser.decay_all) {
            self.optimiser.weight_decay
        } else {
            0.0
        };
        Some(Rates { lr, decay })
    }
}

#[cfg(test)]
mod tests {
    use super::super::recipe::Recipe;
    use super::*;
    use clasp_model::backbone::{Adapter, BackboneConfig, Sizes};
    use clasp_model::moe::{MoeConfig, MoeKind};
    use clasp_model::swin::SwinSizes;

    fn plan(text: &str) -> Plan<()> {
        #[derive(Default, Clone, serde::Serialize, serde::Deserialize)]
        struct Nothing {}
        let recipe = Recipe::<Nothing>::parse(text, "r", &[]).unwrap();
        let plan = recipe.plan(640, 1, true).unwrap();
        Plan {
            recipe: Recipe {
                seed: 0,
                data: plan.recipe.data,
                model: plan.recipe.model,
                optimiser: plan.recipe.optimiser,
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
            "[optimiser]\nlr_end = 0.002\nwarmup_epochs = 20\nwarmup_start = 0.01\nby_epoch = true\n[run]\nepochs = 120\n",
        );
        assert_eq!((plan.steps_per_epoch, plan.steps), (10, 1200));
        // timm's CosineLRScheduler(t_initial=120, lr_min=.002, warmup_t=20, warmup_lr_init=.01) at epochs 1, 19, 20, 120.
        let cosine = |t: f64| 0.002 + 0.5 * 0.998 * (1.0 + (PI * t / 120.0).cos());
        for (step, expected) in [
            (0, 0.01 + 0.99 / 20.0),
            (9, 0.01 + 0.99 / 20.0),
            (180, 0.01 + 0.99 * 19.0 / 20.0),
            (190, cosine(20.0)),
            (1199, 0.002),
        ] {
            assert!(
                (factor(&plan, step) - expected).abs() < 1e-12,
                "step {step}"
            );
        }
    }

    /// The scheduler of Self-Correction for 150 epochs, warm-up 30, cycles of 10 from 120, in SOLIDER's parsing.
    #[test]
    fn the_published_cycles_of_parsing() {
        let plan = plan(
            "[optimiser]\ndecline = \"cycles\"\nlr_end = 0.002\nwarmup_epochs = 30\nwarmup_start = 0.002\nby_epoch = true\n\
             [run]\nepochs = 150\ncorrect_from = 120\n",
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
            let found = factor(&plan, epoch * plan.steps_per_epoch);
            assert!((found - expected).abs() < 1e-12, "epoch {epoch}: {found}");
        }
    }

    #[test]
    fn steps_go_down_at_their_epochs() {
        let plan =
            plan("[optimiser]\ndecline = \"step\"\nmilestones = [2, 3]\n[run]\nepochs = 4\n");
        let rates: Vec<f64> = [0, 19, 20, 29, 30].map(|step| factor(&plan, step)).into();
        assert_eq!(
            rates,
            [1.0, 1.0, 0.1, 0.1, 0.1 * 0.1].map(|r: f64| r).to_vec()
        );
    }

    #[test]
    fn groups_follow_the_recipe() {
        let mut optimiser = OptimiserSection {
            weight_decay: 0.5,
            bias_lr: 2.0,
            head_lr: 10.0,
            layer_decay: 0.5,
            ..OptimiserSection::default()
        };
        let mut model = ModelSection {
            freeze: vec!["patch_embed".to_owned()],
            ..ModelSection::default()
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
        let rates = |optimiser: &OptimiserSection, model: &ModelSection, name: &str| {
            let groups = Groups {
                optimiser,
                model,
                prompts: false,
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
            rates(&optimiser, &model, "head.fc.weight"),
            Some((10.0, 0.5))
        );
        assert_eq!(rates(&optimiser, &model, "head.fc.bias"), Some((20.0, 0.0)));
        assert_eq!(
            rates(&optimiser, &model, "backbone.patch_embed.proj.weight"),
            None
        );
        assert_eq!(
            rates(
                &optimiser,
                &model,
                "backbone.layers.0.blocks.0.mlp.fc1.weight"
            ),
            Some((0.25, 0.5))
        );
        let prompt = "backbone.layers.1.blocks.0.moe.prompts.gate";
        assert_eq!(rates(&optimiser, &model, prompt), None);
        model.tune = Tune::Experts;
        assert_eq!(
            rates(
                &optimiser,
                &model,
                "backbone.layers.1.blocks.0.mlp.fc1.weight"
            ),
            None
        );
        let expert = "backbone.layers.1.blocks.0.moe.fc1.weight";
        assert_eq!(rates(&optimiser, &model, expert), Some((0.5, 0.5)));
        optimiser.decay_all = true;
        assert_eq!(rates(&optimiser, &model, "head.fc.bias"), Some((20.0, 0.5)));
    }
}
