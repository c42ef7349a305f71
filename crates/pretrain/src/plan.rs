//! What a recipe comes to for given data on a given machine: every `"auto"` resolved, epochs as
//! steps, and the configuration of the network.

use burn::tensor::{DType, Device};
use clasp_model::Precision;
use clasp_model::backbone::{Adapter, BackboneConfig, LambdaConfig};
use clasp_model::moe::{MoeConfig, MoeKind};
use clasp_model::prompt::{ATTRIBUTE, PART, PROMPTS};
use clasp_model::swin::WindowPadding;
use clasp_run::schedule::scaled_learning_rate;
use clasp_run::{InvalidValue, Machine, RunHeader, check};

use crate::error::{PretrainError, Result};
use crate::recipe::{
    AdapterKind, Auto, Centering, EPOCHS, LEARNING_RATE, MAX_STEPS, Method, PretrainRecipe,
    TEMPERATURE,
};

/// Batches below this size get a slower teacher and fewer prototypes where these are automatic.
const SMALL_BATCH: usize = 256;

/// The machine of one process with `cores` cores beside `device`.
pub fn machine(device: &Device, cores: usize) -> Machine {
    let on_cpu = *device == Device::flex();
    Machine {
        bf16: !on_cpu && device.supports_dtype(DType::BF16),
        ..Machine::alone(cores, on_cpu)
    }
}

/// A recipe with every `"auto"` resolved, and what follows from it.
#[derive(Clone, Debug)]
pub struct PretrainPlan {
    /// The resolved recipe.
    pub recipe: PretrainRecipe,
    /// Configuration of the network.
    pub backbone: BackboneConfig,
    /// Prototypes K, the outputs of the projection head.
    pub prototypes: usize,
    /// Which of the prompts identity, part and attribute are learned.
    pub prompts: [bool; 3],
    /// Learning rate after the warm-up.
    pub lr: f64,
    /// Momentum of the teacher at the start.
    pub momentum: f64,
    /// Steps in which the learning rate grows.
    pub warmup_steps: u64,
    /// Temperature of the teacher at the first step.
    pub teacher_temperature_start: f64,
    /// Steps in which the temperature of the teacher changes to that of the recipe.
    pub temperature_steps: u64,
    /// Steps in which the last layer of the projection head is not trained.
    pub frozen_steps: u64,
    /// Steps of the run.
    pub steps: u64,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Steps between checkpoints.
    pub save_every: u64,
    /// Replicas of the student, over all ranks.
    pub replicas: usize,
    /// Precision of matrix products.
    pub precision: Precision,
    /// Threads that load images.
    pub workers: usize,
}

impl PretrainPlan {
    /// The resolved recipe with the facts of this run as comments above it: `run.toml`.
    pub fn run_toml(&self, images: usize, device: &str) -> String {
        let header = RunHeader {
            command: "pretrain",
            version: env!("CARGO_PKG_VERSION"),
            seed: self.recipe.seed,
            device,
            images,
            steps_per_epoch: self.steps_per_epoch,
            steps: self.steps,
        };
        header.with_recipe(&self.recipe.to_toml())
    }
}

impl PretrainRecipe {
    /// Checks the values and resolves every `"auto"` for a dataset of `images` images on a machine.
    ///
    /// # Errors
    ///
    /// A value is out of range, two values contradict each other, or there are too few images.
    pub fn plan(mut self, images: usize, machine: Machine) -> Result<PretrainPlan> {
        self.check()?;
        if images < self.run.batch {
            return Err(PretrainError::TooFewImages {
                images: self.data.images.clone(),
                batch: self.run.batch,
                found: images,
            });
        }
        let steps_per_epoch = (images / self.run.batch) as u64;
        let steps = self.resolve_steps(steps_per_epoch)?;
        let small = self.run.batch < SMALL_BATCH;
        let lr = self
            .optimizer
            .lr
            .resolve(scaled_learning_rate(5e-4, self.run.batch));
        let warmup = self
            .optimizer
            .warmup_epochs
            .resolve(10.0_f64.min(self.run.epochs / 10.0));
        let momentum = self
            .teacher
            .momentum
            .resolve(if small { 0.9995 } else { 0.996 });
        let prototypes =
            { &mut self.projection_head.prototypes }.resolve(if small { 16384 } else { 65536 });
        let save_every = self.run.save_every.resolve(steps_per_epoch.clamp(50, 1000));
        let workers = self
            .data
            .workers
            .resolve(machine.cores.min(check::MOST_THREADS));
        let start = self.loss.teacher_temperature;
        let start = self.loss.teacher_temperature_start.resolve(start);
        check::within(&[("optimizer.lr", lr)], LEARNING_RATE)?;
        check::within(&[("optimizer.warmup_epochs", warmup)], EPOCHS)?;
        check::within(&[("teacher.momentum", momentum)], [0.0, 1.0])?;
        check::count("projection_head.prototypes", prototypes, [2, 1 << 20])?;
        check::count("run.save_every", save_every as usize, [1, MAX_STEPS])?;
        check::count("data.workers", workers, [1, check::MOST_THREADS])?;
        check::within(&[("loss.teacher_temperature_start", start)], TEMPERATURE)?;
        let replicas = self.resolve_replicas(machine)?;
        let precision = self.resolve_precision(machine)?;
        let prompts = self.resolve_prompts();
        let backbone = self.resolve_backbone()?;
        self.distillation.resolve(self.views.global_size)?;
        self.check_losses(prompts)?;
        self.check_positions(&backbone, prompts)?;
        self.check_prototypes(prototypes)?;
        let in_steps = |epochs: f64| (epochs * steps_per_epoch as f64).round() as u64;
        Ok(PretrainPlan {
            backbone,
            prototypes,
            prompts,
            lr,
            momentum,
            warmup_steps: in_steps(warmup),
            teacher_temperature_start: start,
            temperature_steps: in_steps(self.loss.teacher_temperature_warmup_epochs),
            frozen_steps: in_steps(self.optimizer.freeze_last_layer),
            steps,
            steps_per_epoch,
            save_every,
            replicas,
            precision,
            workers,
            recipe: self,
        })
    }

    /// Steps of the run; `run.epochs` becomes what they are in epochs.
    fn resolve_steps(&mut self, steps_per_epoch: u64) -> Result<u64> {
        let steps = (self.run.epochs * steps_per_epoch as f64).round() as u64;
        let steps = self.run.steps.resolve(steps.max(1));
        check::count("run.steps", steps as usize, [0, MAX_STEPS])?;
        self.run.epochs = steps as f64 / steps_per_epoch as f64;
        Ok(steps)
    }

    /// Replicas of the student over all ranks: on the CPU as many as cores, if they divide a
    /// part of the batch.
    fn resolve_replicas(&mut self, machine: Machine) -> Result<usize> {
        let part = self.run.batch / self.run.accumulate;
        let what = "run.batch / run.accumulate";
        // KoLeo compares the images of a share.
        let least = if self.loss.koleo_weight > 0.0 { 2 } else { 1 };
        let replicas = machine.replicas(&mut self.run.replicas, [part, least], what)?;
        if part / replicas < least {
            let expected = "two images or more for each replica and part, with loss.koleo_weight";
            return Err(InvalidValue::new("run.batch", expected, self.run.batch).into());
        }
        Ok(replicas)
    }

    /// Precision of matrix products.
    fn resolve_precision(&mut self, machine: Machine) -> Result<Precision> {
        // On the CPU by request only: a run gives nearly the same on every processor.
        let precision = self
            .run
            .precision
            .resolve(match machine.bf16 && !machine.on_cpu {
                true => Precision::Bf16,
                false => Precision::F32,
            });
        if precision == Precision::Bf16 && !machine.bf16 && !machine.on_cpu {
            let expected = "f32: the device does not compute in bf16";
            return Err(InvalidValue::new("run.precision", expected, precision).into());
        }
        Ok(precision)
    }

    /// The prompts that the method learns; those that it has no labels for are dropped, and those
    /// whose loss has no weight.
    fn resolve_prompts(&mut self) -> [bool; 3] {
        let (method, loss) = (self.method, &self.loss);
        let mut prompts = [true; 3];
        prompts[PART] = method != Method::Dino && loss.part_weight > 0.0;
        prompts[ATTRIBUTE] = method == Method::Clasp && loss.attribute_weight > 0.0;
        for (index, used) in prompts.iter_mut().enumerate() {
            *used &= self.model.has_prompt(index);
        }
        self.model.prompts = { PROMPTS.iter().zip(prompts) }
            .filter(|(_, learned)| *learned)
            .map(|(prompt, _)| (*prompt).to_owned())
            .collect();
        prompts
    }

    /// The backbone with its adapter.
    fn resolve_backbone(&mut self) -> Result<BackboneConfig> {
        let adapter = self.model.adapter.resolve(match self.method {
            Method::Dino => AdapterKind::None,
            Method::Solider => AdapterKind::Lambda,
            Method::Clasp => AdapterKind::Gated,
        });
        let plain = BackboneConfig::named(&self.model.backbone)?;
        let [blocks, last] = plain.blocks();
        let conditional = (blocks / 4).clamp(1, last);
        let conditional = self.model.conditional_blocks.resolve(conditional);
        check::count("model.conditional_blocks", conditional, [1, last])?;
        let moe = |form| {
            Adapter::Moe(MoeConfig {
                form,
                blocks: conditional,
                experts: self.model.experts,
            })
        };
        if self.method != Method::Solider && adapter == AdapterKind::Lambda {
            let expected =
                "none, gated or merged: the method `solider` alone trains under SOLIDER's λ";
            return Err(InvalidValue::new("model.adapter", expected, "lambda").into());
        }
        let adapter = match adapter {
            AdapterKind::None => Adapter::None,
            AdapterKind::Lambda => Adapter::Lambda(LambdaConfig::default()),
            AdapterKind::Gated => moe(MoeKind::Gated),
            AdapterKind::Merged => moe(MoeKind::Merged),
        };
        if self.method == Method::Solider && matches!(adapter, Adapter::Moe(_)) {
            let expected = "lambda or none, which SOLIDER is defined with";
            return Err(
                InvalidValue::new("model.adapter", expected, "a mixture of experts").into(),
            );
        }
        let backbone = BackboneConfig {
            drop_path: self.model.drop_path,
            padding: self.resolve_windows()?,
            ..plain
        }
        .for_images(self.views.global_size)
        .with_adapter(adapter);
        backbone.check()?;
        Ok(backbone)
    }

    /// How windows lie; those of a file to start from are resolved when it is read.
    fn resolve_windows(&mut self) -> Result<WindowPadding> {
        let is_swin = self.is_swin();
        if let (Auto::Value(windows), false) = (&self.model.windows, is_swin) {
            let expected = format!(
                "auto, as `{}` is no Swin and has no windows",
                self.model.backbone
            );
            let found = format!("{windows:?}").to_lowercase();
            return Err(InvalidValue::new("model.windows", expected, found).into());
        }
        let from_scratch = self.model.init.as_os_str().is_empty();
        Ok(match self.model.windows {
            Auto::Value(windows) => windows,
            Auto::Auto if from_scratch && is_swin => {
                self.model.windows.resolve(WindowPadding::default())
            }
            Auto::Auto => WindowPadding::default(),
        })
    }

    /// There is something to learn, and something of it reaches the shared blocks.
    fn check_losses(&self, prompts: [bool; 3]) -> Result<()> {
        let loss = &self.loss;
        let distills = !self.distillation.teacher.as_os_str().is_empty();
        let from_others = prompts[PART] || prompts[ATTRIBUTE] || distills;
        if !from_others && !loss.has_teacher() && loss.koleo_weight == 0.0 {
            let expected = "above 0, as nothing else is learned";
            return Err(InvalidValue::new("loss.dino_weight", expected, loss.dino_weight).into());
        }
        if loss.detach_shared && !from_others {
            let expected = "false without labels or a frozen teacher, as no gradient would reach the shared blocks";
            return Err(InvalidValue::new("loss.detach_shared", expected, true).into());
        }
        Ok(())
    }

    /// Part labels and masks are cut from a view in equal pieces, one for each position of the last map,
    /// which are what its positions see only if these have no padding and nothing is left out.
    fn check_positions(&self, backbone: &BackboneConfig, prompts: [bool; 3]) -> Result<()> {
        let stride = backbone.sizes().map_or(1, |sizes| sizes.stride());
        let size = self.views.global_size;
        let has_positions = prompts[PART] || self.loss.masks_patches();
        if has_positions && size.iter().any(|side| !side.is_multiple_of(stride)) {
            let name = &self.model.backbone;
            let expected = format!(
                "multiples of {stride}, the stride of `{name}`, with part labels or loss.ibot_weight"
            );
            let [height, width] = size;
            let found = format!("{height}x{width}");
            return Err(InvalidValue::new("views.global_size", expected, found).into());
        }
        Ok(())
    }

    /// Sinkhorn–Knopp gives each prototype an equal share of the samples: at least one.
    fn check_prototypes(&self, prototypes: usize) -> Result<()> {
        let samples = self.run.batch * self.views.global;
        if self.loss.centering == Centering::Sinkhorn && prototypes > samples {
            let expected = format!(
                "at most {samples} = run.batch · views.global with loss.centering = \"sinkhorn\", \
                 which gives each prototype an equal share of the samples"
            );
            return Err(
                InvalidValue::new("projection_head.prototypes", expected, prototypes).into(),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::BUILT_IN;
    fn cpu(cores: usize) -> Machine {
        machine(&Device::flex(), cores)
    }

    #[test]
    fn precision_follows_the_device() {
        let plan = |set: &str, on_cpu: bool, bf16: bool| {
            let machine = Machine {
                ranks: 1,
                cores: 1,
                on_cpu,
                bf16,
            };
            let set: Vec<String> = set.split_whitespace().map(str::to_owned).collect();
            let plan = PretrainRecipe::parse("", "test", &set)
                .unwrap()
                .plan(1000, machine);
            plan.map(|plan| plan.precision)
                .map_err(|error| error.to_string())
        };
        assert_eq!(plan("", true, true), Ok(Precision::F32));
        assert_eq!(plan("", false, true), Ok(Precision::Bf16));
        assert_eq!(plan("", false, false), Ok(Precision::F32));
        assert_eq!(plan("run.precision=f32", false, true), Ok(Precision::F32));
        let bf16 = "run.precision=bf16";
        assert_eq!(plan(bf16, true, false), Ok(Precision::Bf16));
        let error = plan(bf16, false, false).unwrap_err();
        assert!(
            error.contains("run.precision") && error.contains("device"),
            "{error}"
        );
    }

    #[test]
    fn every_built_in_recipe_parses_and_plans() {
        for (name, _) in BUILT_IN {
            let recipe = PretrainRecipe::load(name, &[]).unwrap();
            recipe
                .plan(100_000, cpu(2))
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    #[test]
    fn auto_follows_from_batch_and_dataset_and_is_resolved_once() {
        let mut recipe = PretrainRecipe::default();
        recipe.run.batch = 128;
        // Follows from the labels, which a plan does not see.
        recipe.attributes.temperature = Auto::Value(1.5);
        let plan = recipe.plan(12_800, cpu(3)).unwrap();
        assert_eq!((plan.steps_per_epoch, plan.steps), (100, 10_000));
        assert!((plan.lr - 2.5e-4).abs() < 1e-12);
        assert_eq!((plan.momentum, plan.prototypes), (0.9995, 16384));
        // 3 does not divide 128, 2 does.
        assert_eq!((plan.replicas, plan.workers), (2, 3));
        assert_eq!(
            (plan.warmup_steps, plan.frozen_steps, plan.save_every),
            (1000, 100, 100)
        );
        let text = plan.run_toml(12_800, "cpu");
        assert!(!text.contains("\"auto\""), "{text}");
        let again = PretrainRecipe::parse(&text, "run.toml", &[]).unwrap();
        assert_eq!(again, plan.recipe);
    }

    #[test]
    fn replicas_are_counted_over_all_ranks() {
        let plan = |ranks: usize, set: &[&str]| {
            let set: Vec<String> = set.iter().map(|set| (*set).to_owned()).collect();
            let machine = Machine { ranks, ..cpu(3) };
            let plan = PretrainRecipe::parse("", "test", &set)
                .unwrap()
                .plan(1000, machine);
            plan.map(|plan| plan.replicas)
                .map_err(|error| error.to_string())
        };
        // 3 · 4 does not divide 16, 2 · 4 does.
        assert_eq!(plan(4, &["run.batch=16"]), Ok(8));
        assert_eq!(plan(1, &["run.batch=12"]), Ok(3));
        assert_eq!(plan(4, &["run.batch=16", "run.replicas=16"]), Ok(16));
        for (set, expected) in [
            ("run.replicas=2", "a multiple of the 4 ranks"),
            ("run.batch=6", "a divisor of"),
        ] {
            let error = plan(4, &["run.batch=16", set]).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_learned_is_an_error() {
        let plan = |set: &[&str]| {
            let set: Vec<String> = set.iter().map(|set| (*set).to_owned()).collect();
            let recipe = PretrainRecipe::parse("", "test", &set).unwrap();
            let plan = recipe.plan(1000, cpu(4));
            plan.map_err(|error| error.to_string())
        };
        for (set, expected) in [
            // SOLIDER's λ is drawn by its method alone.
            (
                &["method=dino", "model.adapter=lambda"][..],
                "model.adapter",
            ),
            (
                &["method=dino", "loss.detach_shared=true"],
                "loss.detach_shared",
            ),
            (&["method=dino", "loss.dino_weight=0"], "loss.dino_weight"),
            // 112 / 32 is no whole number of positions.
            (&["views.global_size=[224, 112]"], "multiples of 32"),
            (
                &[
                    "method=dino",
                    "loss.ibot_weight=1",
                    "views.global_size=[224, 112]",
                ],
                "multiples of 32",
            ),
        ] {
            let error = plan(set).unwrap_err();
            assert!(error.contains(expected), "{set:?}: {error}");
        }
        assert!(plan(&["method=dino", "views.global_size=[224, 112]"]).is_ok());
        // A loss without weight has no prompt of its own.
        let found = plan(&["loss.part_weight=0"]).unwrap();
        assert_eq!(found.prompts, [true, false, true]);
        assert_eq!(found.recipe.model.prompts, ["identity", "attribute"]);
        // KoLeo needs two images in a share.
        assert_eq!(plan(&["run.batch=4"]).unwrap().replicas, 4);
        let found = plan(&["run.batch=4", "loss.koleo_weight=0.1"]).unwrap();
        assert_eq!(found.replicas, 2);
    }

    #[test]
    fn a_method_keeps_the_prompts_that_it_has_labels_for() {
        for (method, prompts) in [
            (Method::Dino, [true, false, false]),
            (Method::Solider, [true, true, false]),
            (Method::Clasp, [true, true, true]),
        ] {
            let recipe = PretrainRecipe {
                method,
                ..PretrainRecipe::default()
            };
            assert_eq!(recipe.plan(1000, cpu(1)).unwrap().prompts, prompts);
        }
    }

    #[test]
    fn values_out_of_range_name_their_key() {
        let set = |text: &str| {
            PretrainRecipe::parse("", "r", &[text.to_owned()])
                .unwrap()
                .plan(1000, cpu(2))
                .unwrap_err()
                .to_string()
        };
        for (key, values) in [
            (
                "projection_head.prototypes",
                &["0", "1", "100000000000000"][..],
            ),
            ("projection_head.hidden_dim", &["0", "100000000000"]),
            ("projection_head.bottleneck_dim", &["0", "100000000000"]),
            ("data.workers", &["0", "200000"]),
            ("run.batch", &["0", "100000000000"]),
            ("run.replicas", &["0", "2000"]),
            ("run.save_every", &["0"]),
            ("run.epochs", &["-1.0", "nan", "inf", "1e300"]),
            ("optimizer.lr", &["-5.0", "nan", "inf", "1e30"]),
            ("optimizer.min_lr", &["-5.0", "nan", "1e30"]),
            ("optimizer.warmup_epochs", &["-1.0", "nan", "1e30"]),
            ("optimizer.freeze_last_layer", &["-1.0", "1e30"]),
            ("optimizer.weight_decay", &["-1.0", "nan", "1e30"]),
            ("optimizer.clip_grad", &["-1.0", "nan"]),
            ("teacher.momentum", &["3.0", "-0.1", "nan"]),
            ("teacher.momentum_end", &["3.0"]),
            ("loss.dino_weight", &["-1.0", "1e30"]),
            ("loss.ibot_weight", &["-1.0", "nan"]),
            ("loss.koleo_weight", &["-1.0", "1e30"]),
            ("loss.mask_probability", &["-0.1", "1.5", "nan"]),
            (
                "loss.mask_ratio",
                &["[0.5, 0.1]", "[0.0, 1.5]", "[nan, 0.5]"],
            ),
            ("loss.student_temperature", &["0.0", "nan", "1e-30"]),
            ("loss.identity_label_weight", &["-1.0", "nan"]),
            ("loss.teacher_temperature_start", &["0.0", "nan"]),
            ("optimizer.prompt_lr_factor", &["-1.0", "nan"]),
            ("model.conditional_blocks", &["0", "3", "100000000000"]),
            ("distillation.pooled", &["-1.0", "nan", "1.0"]),
            ("distillation.dense", &["-1.0", "1e30", "0.5"]),
            ("distillation.size", &["[0, 64]", "[64, 100000]"]),
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
        let alone = ["loss.koleo_weight=1", "run.batch=2", "run.replicas=2"].map(str::to_owned);
        let alone = PretrainRecipe::parse("", "r", &alone)
            .unwrap()
            .plan(1000, cpu(2));
        let message = alone.unwrap_err().to_string();
        assert!(message.contains("two images or more"), "{message}");
        for (adapter, key, value) in [
            ("merged", "experts", "3"),
            ("merged", "experts", "100000000000"),
        ] {
            let set = [
                format!("model.adapter={adapter}"),
                format!("model.{key}={value}"),
            ];
            let recipe = PretrainRecipe::parse("", "r", &set).unwrap();
            let message = recipe.plan(1000, cpu(2)).unwrap_err().to_string();
            assert!(message.contains(&format!("`{key}`")), "{message}");
        }
        let message = set("distillation.dense=0.5");
        assert!(
            message.contains("without `distillation.teacher`"),
            "{message}"
        );
        assert!(set("model.prompts=[\"pose\"]").contains("`pose`"));
        assert!(set("loss.teacher_temperature=0").contains("`loss.teacher_temperature`"));
        let message = set("loss.centering=sinkhorn");
        assert!(
            message.contains("`projection_head.prototypes`"),
            "{message}"
        );
        assert!(set("run.batch=1001").contains("at least one batch of 1001"));
        assert!(set("run.replicas=3").contains("`run.replicas`"));
        assert!(set("model.backbone=\"swin-huge\"").contains("swin-huge"));
    }
}
