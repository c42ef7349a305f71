//! One step of the optimiser: gradients of a batch, over its parts and over replicas.
//!
//! A batch is taken in `run.accumulate` parts, one after the other, and each part is shared out over
//! `run.replicas` copies of the student, each on one thread of its own. All shares are of one size,
//! so the mean over the batch is the mean over shares, and gradients are added up in a fixed order.
//! What needs the whole batch comes first: the teacher sees all images before the student does, so that
//! Sinkhorn–Knopp has all samples of the step, and the centre is updated once from all of them.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use clasp_data::rng_for;
use clasp_data::vocabulary::Vocabulary;
use clasp_model::losses::dino::{
    center_update, centered_targets, mean_entropy, sinkhorn_knopp, teacher_mean,
};
use clasp_model::optim::{
    self, GradientClip, Gradients, Norms, Optimizer, OptimizerConfig, ema, read, squares,
};
use clasp_model::parameters::ParameterGroups;
use clasp_model::schedule::Cosine;
use clasp_model::{Replicas, fuses, recomputing};
use clasp_run::Metrics;
use clasp_weights::import::{self, start_from};

use crate::error::Result;
use crate::monitor::Usage;
use crate::objective::{Measure, Setting, Targets, objective};
use crate::recipe::{Centering, ClipBy, Plan};
use crate::student::{Student, Trunk, part_to_hide};
use crate::views::{Inputs, Item};

/// Name of the projection head's last layer, which stays as it is at first.
const LAST_LAYER: &str = "trunk.dino.last_layer";
/// Iterations of Sinkhorn–Knopp, as in SwAV and DINOv2.
const SINKHORN_ITERATIONS: usize = 3;

/// Student, teacher and all that changes from step to step.
pub struct Trainer {
    /// The resolved recipe.
    pub plan: Plan,
    /// What is trained, on the autodiff side of the device.
    pub student: Student,
    /// Its moving average; without gradients.
    pub teacher: Trunk,
    /// Mean of the teacher's projections: [1, outputs].
    pub centre: Tensor<2>,
    /// Moving sum of the mean of the teacher's targets, not normalised: [1, outputs]. For the monitor alone.
    pub usual_targets: Tensor<2>,
    /// AdamW with its moments.
    pub optimiser: Optimizer,
    /// Steps that are done.
    pub step: u64,
    vocabulary: Option<Vocabulary>,
    /// Layer and kind of the backbone's parameters, by their names in the student.
    parameters: ParameterGroups,
    /// Rows and columns of the feature map of a global view.
    grid: [usize; 2],
    device: Device,
    /// One pool of one thread a replica; none for one replica, which has all threads.
    replicas: Replicas,
}

/// What a step found.
pub struct Outcome {
    /// Losses and other metrics of the step.
    pub metrics: Metrics,
    /// Use of the experts, where it was asked for.
    pub usage: Vec<Usage>,
}

/// A loss, or the norm of the gradients, that is infinite or not a number; the step has changed nothing.
#[derive(Debug, thiserror::Error)]
#[error("the {term} is {value}")]
pub struct NonFinite {
    /// What it is.
    pub term: String,
    /// Its value.
    pub value: f64,
}

/// A replica's share of a part after the backward pass.
struct ShareResult {
    gradients: Gradients,
    measured: Vec<(Measure, Tensor<1>)>,
}

/// The teacher's targets of a batch.
struct BatchTargets {
    /// By part and share.
    shares: Vec<Targets>,
    /// Mean projection over the batch: [1, outputs].
    mean: Tensor<2>,
    /// Mean of the targets over the batch: [1, outputs].
    usual: Tensor<2>,
}

/// Gradients of a batch and what was measured on the way.
struct BatchGradients {
    gradients: Gradients,
    norms: Norms,
    targets_mean: Tensor<2>,
    usual_targets: Tensor<2>,
    /// Entropy of the usual targets of this and earlier steps.
    usual_entropy: f64,
    measures: Measures,
}

/// Sums over shares.
#[derive(Clone, Debug, Default)]
struct Measures {
    sums: std::collections::BTreeMap<Measure, f64>,
    shares: f64,
}

impl Trainer {
    /// A trainer at step 0, with fresh weights.
    ///
    /// # Errors
    ///
    /// A thread cannot be started.
    pub fn new(plan: Plan, vocabulary: Option<Vocabulary>, device: &Device) -> Result<Self> {
        let device = device.clone().inner();
        let mut rng = rng_for(plan.recipe.seed, 0, "weights");
        let student = Student::new(&plan, vocabulary.as_ref(), &mut rng, &device);
        let teacher = student.trunk.valid();
        let parameters = teacher.backbone.parameter_groups()?;
        let [height, width] = plan.recipe.views.global_size;
        Ok(Self {
            parameters: parameters.with_prefix("trunk.backbone."),
            grid: teacher.backbone.grid(height, width),
            centre: Tensor::zeros([1, plan.outputs], &device),
            usual_targets: Tensor::zeros([1, plan.outputs], &device),
            optimiser: Optimizer::new(adamw(&plan)),
            step: 0,
            student,
            teacher,
            vocabulary,
            device,
            replicas: Replicas::new(plan.replicas)?,
            plan,
        })
    }

    /// Takes the backbone's weights from the recipe's `model.init`, if it names a file, and says what did and did
    /// not fit.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or is of another architecture.
    pub fn start_from_init(&mut self) -> Result<Option<import::ImportReport>> {
        let path = &self.plan.recipe.model.init;
        if path.as_os_str().is_empty() {
            return Ok(None);
        }
        let (backbone, report) = start_from(self.student.trunk.backbone.clone(), path)?;
        self.student.trunk.backbone = backbone;
        self.teacher = self.student.trunk.valid();
        Ok(Some(report))
    }

    /// Rows and columns of the feature map of a global view.
    pub fn grid(&self) -> [usize; 2] {
        self.grid
    }

    /// What the labels answer, where the method learns from labels.
    pub fn vocabulary(&self) -> Option<&Vocabulary> {
        self.vocabulary.as_ref()
    }

    /// One step on the items of a batch. With `observe`, what takes time is measured too.
    ///
    /// # Errors
    ///
    /// A loss is not finite; nothing has changed then.
    ///
    /// # Panics
    ///
    /// Where `items` are not as many as the recipe's batch.
    pub fn step(&mut self, items: &[Item], observe: bool) -> Result<Outcome, NonFinite> {
        let mut batch = self.batch_gradients(items, observe);
        batch.measures.check()?;
        let norm = batch.norms.total();
        if !norm.is_finite() {
            return Err(NonFinite {
                term: "norm of the gradients".to_owned(),
                value: norm,
            });
        }
        let mut metrics = batch.measures.metrics();
        let parameters = &self.parameters;
        let mut put = |name: &str, value: f64| metrics.insert(name.to_owned(), value);
        put("gradient/norm", norm);
        put("teacher/mean_entropy", batch.usual_entropy);
        if observe {
            put(
                "gradient/backbone",
                batch
                    .norms
                    .total_of(|name| parameters.get(name).is_some() && !parameters.is_prompt(name)),
            );
            let prompts = batch.norms.total_of(|name| parameters.is_prompt(name));
            if prompts > 0.0 {
                put("gradient/prompts", prompts);
            }
        }

        let rates = Scheduled::at(&self.plan, self.step);
        let prompt_lr = self.plan.recipe.optimiser.prompt_lr;
        let of_parameter = |name: &str, shape: &[usize]| {
            Some(optim::Rates {
                lr: if parameters.is_prompt(name) {
                    rates.lr * prompt_lr
                } else {
                    rates.lr
                },
                decay: if parameters.decays(name, shape) {
                    rates.weight_decay
                } else {
                    0.0
                },
            })
        };
        let (student, gradients) = (self.student.clone(), &mut batch.gradients);
        let optimiser = &mut self.optimiser;
        self.student = optimiser.step("", student, gradients, &batch.norms, &of_parameter);
        // The student stands in for the teacher meanwhile, so that nothing but the average holds its memory.
        let teacher = std::mem::replace(&mut self.teacher, self.student.trunk.valid());
        self.teacher = ema(teacher, &self.student.trunk, rates.momentum);
        let momentum = self.plan.recipe.loss.centre_momentum;
        self.centre = center_update(self.centre.clone(), batch.targets_mean, momentum);
        self.usual_targets = batch.usual_targets;
        self.step += 1;
        let mut put = |name: &str, value: f64| metrics.insert(name.to_owned(), value);
        put("schedule/lr", rates.lr);
        put("schedule/weight_decay", rates.weight_decay);
        put("schedule/momentum", rates.momentum);
        put("schedule/teacher_temperature", rates.teacher_temperature);
        let usage = if observe {
            self.merged_usage()
        } else {
            Vec::new()
        };
        Ok(Outcome { metrics, usage })
    }

    /// The loss of a batch and its gradients by name; changes nothing.
    ///
    /// # Errors
    ///
    /// A loss is not finite.
    ///
    /// # Panics
    ///
    /// Where `items` are not as many as the recipe's batch.
    pub fn gradients(&self, items: &[Item]) -> Result<(f64, Gradients), NonFinite> {
        let batch = self.batch_gradients(items, false);
        batch.measures.check()?;
        Ok((batch.measures.mean(Measure::Total), batch.gradients))
    }

    /// The teacher's pooled features of the global views of a batch: [views · batch, channels].
    pub fn features(&self, items: &[Item]) -> Tensor<2> {
        let inputs = Inputs::of_globals(items, self.plan.recipe.method, &self.device);
        self.plan.precision.within(|| self.teacher.pool(&inputs))
    }

    /// Losses and gradients of a batch; changes nothing.
    fn batch_gradients(&self, items: &[Item], observe: bool) -> BatchGradients {
        let run = &self.plan.recipe.run;
        assert_eq!(
            items.len(),
            run.batch,
            "{} items in a batch of {}",
            items.len(),
            run.batch
        );
        let part_size = run.batch / run.accumulate;
        let share_size = part_size / self.plan.replicas;
        let BatchTargets {
            shares: targets,
            mean,
            usual,
        } = self.targets(items, part_size, share_size);
        let mut targets = targets.into_iter();
        let mut gradients = Gradients::new();
        let mut measured = Vec::new();
        let mut count = 0.0;
        for (part, items) in items.chunks(part_size).enumerate() {
            let shares: Vec<(&[Item], Targets)> =
                { items.chunks(share_size) }.zip(targets.by_ref()).collect();
            let results = self.replicas.map(shares, |replica, (items, targets)| {
                self.share(items, &targets, [part, replica], observe)
            });
            for result in results {
                optim::add(&mut gradients, result.gradients);
                measured.extend(result.measured);
                count += 1.0;
            }
        }
        if self.step < self.plan.frozen_steps {
            gradients.retain(|name, _| !name.starts_with(LAST_LAYER));
        }
        let usual_targets = self.usual_targets.clone() * (1.0 - 1.0 / self.monitor_steps()) + usual;
        let total = usual_targets.clone().sum().reshape([1, 1]);
        let usual_entropy = mean_entropy(&[usual_targets.clone() / total]);
        // The only wait for the device in a step that is not observed.
        let (measures, mut numbers): (Vec<_>, Vec<_>) = measured.into_iter().unzip();
        numbers.push(usual_entropy);
        numbers.extend(squares(&gradients));
        let numbers = read(numbers);
        let (values, rest) = numbers.split_at(measures.len());
        let mut sums = std::collections::BTreeMap::new();
        for (measure, value) in measures.into_iter().zip(values) {
            *sums.entry(measure).or_insert(0.0) += value;
        }
        BatchGradients {
            norms: Norms::new(&gradients, &rest[1..]),
            gradients,
            targets_mean: mean,
            usual_targets,
            usual_entropy: rest[0],
            measures: Measures {
                sums,
                shares: count,
            },
        }
    }

    /// Steps over which the monitor averages the teacher's targets: enough that there are several samples for each
    /// output.
    fn monitor_steps(&self) -> f64 {
        let recipe = &self.plan.recipe;
        let samples = (recipe.run.batch * recipe.views.global.max(1)) as f64;
        (4.0 * self.plan.outputs as f64 / samples).clamp(20.0, 1000.0)
    }

    /// The teacher's targets of all images of a batch.
    fn targets(&self, items: &[Item], part_size: usize, share_size: usize) -> BatchTargets {
        let temperature = Scheduled::at(&self.plan, self.step).teacher_temperature;
        let precision = self.plan.precision;
        // By share, one tensor [batch, outputs] a view.
        let mut logits: Vec<Vec<Tensor<2>>> = Vec::new();
        for items in items.chunks(part_size) {
            let shares: Vec<&[Item]> = items.chunks(share_size).collect();
            logits.extend(self.replicas.map(shares, |_, items| {
                let inputs = Inputs::of_globals(items, self.plan.recipe.method, &self.device);
                precision.within(|| self.teacher.project(&inputs))
            }));
        }
        let means: Vec<Tensor<2>> = logits.iter().map(|views| teacher_mean(views)).collect();
        let probabilities: Vec<Vec<Tensor<2>>> = match self.plan.recipe.loss.centering {
            Centering::Center => { logits.iter() }
                .map(|views| centered_targets(views, &self.centre, temperature))
                .collect(),
            Centering::Sinkhorn => {
                let views = logits.first().map_or(1, Vec::len);
                let all = Tensor::cat(logits.into_iter().flatten().collect(), 0);
                let rows = all.dims()[0] / (views * means.len());
                let q = sinkhorn_knopp(all, temperature, SINKHORN_ITERATIONS);
                let each = q.split(rows, 0);
                each.chunks(views).map(<[_]>::to_vec).collect()
            }
        };
        let usual: Vec<Tensor<2>> = probabilities.iter().map(|q| teacher_mean(q)).collect();
        BatchTargets {
            shares: probabilities
                .into_iter()
                .map(|probabilities| Targets {
                    entropy: mean_entropy(&probabilities),
                    probabilities,
                })
                .collect(),
            mean: teacher_mean(&means),
            usual: teacher_mean(&usual),
        }
    }

    /// Forward and backward pass of the student over a share.
    fn share(
        &self,
        items: &[Item],
        targets: &Targets,
        [part, replica]: [usize; 2],
        observe: bool,
    ) -> ShareResult {
        let (seed, recipe) = (self.plan.recipe.seed, &self.plan.recipe);
        let (precision, checkpointing) = (self.plan.precision, recipe.run.checkpointing);
        let inputs = Inputs::new(items, self.grid, self.plan.recipe.method, &self.device);
        // Leaves of its own, so that replicas do not build one graph. The CPU's fused operations see to recomputing themselves.
        let mut graph = self.device.clone().autodiff();
        if checkpointing && !fuses(&self.device) {
            graph = graph.gradient_checkpointing();
        }
        let student = self.student.clone().fork(&graph);
        let classes = self
            .vocabulary
            .as_ref()
            .map_or(0, |vocabulary| vocabulary.parts.len());
        let hidden = part_to_hide(
            recipe.method,
            classes,
            &mut rng_for(seed, self.step, "hidden part"),
        );
        let mut rng = rng_for(seed, self.step, &format!("drop path {part} {replica}"));
        let forward = precision
            .within(|| recomputing(checkpointing, || student.forward(&inputs, hidden, &mut rng)));
        let ranges = { self.vocabulary.as_ref() }
            .map(Vocabulary::ranges)
            .unwrap_or_default();
        let setting = Setting {
            loss: &recipe.loss,
            ranges: &ranges,
            observe,
        };
        let (total, measured) = objective(&forward, &inputs, targets, &setting);
        let shares = (self.plan.replicas * recipe.run.accumulate) as f64;
        ShareResult {
            gradients: optim::gradients(&student, &mut (total / shares).backward()),
            measured,
        }
    }

    /// The weights of merged experts under each prompt.
    fn merged_usage(&self) -> Vec<Usage> {
        let weights = self.student.trunk.backbone.expert_weights();
        let of = |(block, weights): (usize, Tensor<2>)| {
            let experts = weights.dims()[1];
            let values: Vec<f32> = weights.into_data().iter::<f32>().collect();
            let rows = values
                .chunks(experts)
                .map(|row| row.iter().map(|w| f64::from(*w)));
            let rows: Vec<Vec<f64>> = rows.map(Iterator::collect).collect();
            Usage::of_weights(self.step, block, rows)
        };
        weights.into_iter().enumerate().flat_map(of).collect()
    }
}

/// Learning rate, weight decay, teacher's momentum and temperature of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scheduled {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Share of the old teacher in the new one.
    pub momentum: f64,
    /// Temperature of the teacher.
    pub teacher_temperature: f64,
}

impl Scheduled {
    /// The values of `step`, counted from 0.
    pub fn at(plan: &Plan, step: u64) -> Self {
        let (optimiser, teacher) = (&plan.recipe.optimiser, &plan.recipe.teacher);
        let cosine = |from, to| Cosine::new(from, to, plan.steps);
        Self {
            lr: cosine(plan.lr, optimiser.lr_end)
                .with_warmup(plan.warmup_steps)
                .at(step),
            weight_decay: cosine(optimiser.weight_decay, optimiser.weight_decay_end).at(step),
            momentum: cosine(plan.momentum, teacher.momentum_end).at(step),
            teacher_temperature: {
                let loss = &plan.recipe.loss;
                let done = match plan.temperature_steps {
                    0 => 1.0,
                    steps => (step as f64 / steps as f64).min(1.0),
                };
                let start = plan.teacher_temperature_start;
                start + (loss.teacher_temperature - start) * done
            },
        }
    }
}

/// The recipe's optimiser.
pub(crate) fn adamw(plan: &Plan) -> OptimizerConfig {
    let optimiser = &plan.recipe.optimiser;
    let clip = match optimiser.clip_by {
        _ if optimiser.clip == 0.0 => GradientClip::None,
        ClipBy::Tensor => GradientClip::PerTensor(optimiser.clip),
        ClipBy::Global => GradientClip::Global(optimiser.clip),
    };
    OptimizerConfig {
        clip,
        ..OptimizerConfig::default()
    }
}

impl Measures {
    fn of(&self, measure: Measure) -> Option<f64> {
        self.sums.get(&measure).copied()
    }

    /// Mean over shares; 0 where nothing was measured.
    fn mean(&self, measure: Measure) -> f64 {
        self.of(measure).unwrap_or(0.0) / self.shares
    }

    /// The loss that is not finite, if any.
    fn check(&self) -> Result<(), NonFinite> {
        let losses = Measure::LOSSES.into_iter();
        let mut values = losses.filter_map(|(loss, name)| Some((name, self.of(loss)?)));
        match values.find(|(_, value)| !value.is_finite()) {
            Some((name, value)) => Err(NonFinite {
                term: format!("{name} loss"),
                value,
            }),
            None => Ok(()),
        }
    }

    /// What was measured, by its name in the log.
    fn metrics(&self) -> Metrics {
        let losses =
            { Measure::LOSSES.into_iter() }.map(|(loss, name)| (loss, format!("loss/{name}")));
        let others = [
            (Measure::Entropy, "teacher/entropy"),
            (Measure::Spread, "features/std"),
            (Measure::PromptDistance, "features/prompt_distance"),
            (Measure::ImageDistance, "features/image_distance"),
        ];
        let others = { others.into_iter() }.map(|(measure, name)| (measure, name.to_owned()));
        let mut metrics: Metrics = losses
            .chain(others)
            .filter(|(measure, _)| self.of(*measure).is_some())
            .map(|(measure, name)| (name, self.mean(measure)))
            .collect();
        let shares = [
            ("part", Measure::PartRight, Measure::PartKnown),
            (
                "attribute",
                Measure::AttributeRight,
                Measure::AttributeKnown,
            ),
        ];
        for (name, right, known) in shares {
            if let (Some(right), Some(known)) = (self.of(right), self.of(known))
                && known > 0.0
            {
                metrics.insert(format!("accuracy/{name}"), right / known);
            }
        }
        metrics
    }
}

#[cfg(test)]
mod tests {
    use clasp_model::{Precision, named, unfused};

    use super::*;
    use crate::recipe::{Machine, Method, Recipe};
    use crate::views::noise;

    const TINY: [&str; 14] = [
        "model.backbone=swin-pico",
        "model.drop_path=0",
        "views.global_size=[64, 32]",
        "views.local_size=[32, 32]",
        "views.local=2",
        "head.outputs=64",
        "head.hidden=32",
        "head.bottleneck=16",
        "run.batch=8",
        "run.steps=20",
        "run.replicas=1",
        "optimiser.warmup_epochs=0",
        "optimiser.freeze_last_layer=0",
        "teacher.momentum=0.9",
    ];

    fn trainer(more: &[&str]) -> Trainer {
        let set: Vec<String> = TINY
            .iter()
            .chain(more)
            .map(|text| (*text).to_owned())
            .collect();
        let recipe = Recipe::parse("", "test", &set).unwrap();
        let vocabulary = match recipe.method {
            Method::Dino => None,
            Method::Solider => Some(Vocabulary::kmeans()),
            Method::Clasp => Some(Vocabulary::standard().unwrap()),
        };
        let plan = recipe.plan(80, Machine::of(&Device::flex(), 1)).unwrap();
        Trainer::new(plan, vocabulary, &Device::flex()).unwrap()
    }

    /// Items of noise.
    fn items(trainer: &Trainer) -> Vec<Item> {
        let (recipe, vocabulary) = (&trainer.plan.recipe, trainer.vocabulary());
        noise(recipe, trainer.grid(), vocabulary, 1)
    }

    fn numbers(tensor: &Tensor<1>) -> Vec<f32> {
        tensor.to_data().iter::<f32>().collect()
    }

    /// Largest difference between two sets of gradients, over the largest gradient.
    fn difference(a: &Gradients, b: &Gradients) -> f32 {
        assert!(a.keys().eq(b.keys()));
        let (mut apart, mut largest) = (0.0_f32, 0.0_f32);
        for (a, b) in a.values().zip(b.values()) {
            for (a, b) in numbers(a).iter().zip(numbers(b)) {
                apart = apart.max((a - b).abs());
                largest = largest.max(a.abs());
            }
        }
        apart / largest
    }

    #[test]
    fn parts_and_replicas_give_the_gradient_of_the_whole_batch() {
        for (set, change) in [
            (&["method=dino"][..], "run.accumulate=4"),
            (&["method=dino"], "run.replicas=2"),
            (&["method=solider"], "run.replicas=2"),
            (&["method=clasp"], "run.replicas=4"),
            (&["method=clasp", "model.adapter=merged"], "run.replicas=2"),
        ] {
            // Sinkhorn–Knopp needs all samples of the step; its equal shares are those of the whole batch, not of a part.
            for centering in ["center", "sinkhorn"] {
                let centering = [&format!("loss.centering={centering}"), "head.outputs=16"];
                let set = [set, &centering].concat();
                let whole = trainer(&set);
                let items = items(&whole);
                let expected = whole.batch_gradients(&items, true);
                let divided = trainer(&[&set[..], &[change]].concat());
                let found = divided.batch_gradients(&items, true);
                let apart = difference(&expected.gradients, &found.gradients);
                assert!(apart < 1e-4, "{set:?} {change}: {apart}");
                for (expected, found) in [
                    (expected.targets_mean, found.targets_mean),
                    (expected.usual_targets, found.usual_targets),
                ] {
                    let apart: f32 = (expected - found).abs().max().into_scalar();
                    assert!(apart < 1e-5, "{set:?} {change}: {apart}");
                }
                for (loss, name) in Measure::LOSSES {
                    let [one, other] = [&expected.measures, &found.measures].map(|m| m.mean(loss));
                    assert!((one - other).abs() < 1e-4, "{set:?} {change}: {name}");
                }
            }
        }
    }

    #[test]
    fn what_is_computed_again_has_the_same_gradients() {
        for method in ["method=dino", "method=solider", "method=clasp"] {
            let plain = trainer(&[method, "model.drop_path=0.2"]);
            let again = trainer(&[method, "model.drop_path=0.2", "run.checkpointing=true"]);
            let items = items(&plain);
            let [expected, found] = [&plain, &again].map(|one| one.gradients(&items).unwrap());
            assert_eq!(found.0, expected.0, "{method}");
            // The CPU's fused operations run once more as they ran first; Burn's graph has a way of its own.
            for (name, gradient) in &expected.1 {
                let same = numbers(gradient) == numbers(&found.1[name]);
                assert!(same, "{method}: `{name}`");
            }
            let found = unfused(|| again.gradients(&items).unwrap());
            let apart = difference(&expected.1, &found.1);
            assert!(apart < 1e-4, "{method}: {apart}");
        }
    }

    #[test]
    fn a_run_in_bf16_learns_as_one_in_f32() {
        // The graph of other devices, on the CPU.
        let losses = |precision| {
            let set = ["method=clasp", "optimiser.lr=0.002", "model.drop_path=0.1"];
            let mut trainer = trainer(&set);
            trainer.plan.precision = precision;
            let items = items(&trainer);
            let mut step = || trainer.step(&items, false).unwrap().metrics["loss/total"];
            unfused(|| (0..15).map(|_| step()).collect::<Vec<f64>>())
        };
        let (full, half) = (losses(Precision::F32), losses(Precision::Bf16));
        assert!(full[14] < 0.9 * full[0], "nothing is learned: {full:?}");
        assert_ne!(full, half);
        let first = full[0];
        let apart = |full: &f64, half: &f64| (full - half).abs() / first;
        for (full, half) in full.iter().zip(&half) {
            assert!(apart(full, half) < 0.02, "{full} and {half}");
        }
        // Weights and what the optimiser keeps stay f32, so that small steps are not lost.
        let mut trainer = trainer(&["method=clasp"]);
        trainer.plan.precision = Precision::Bf16;
        let items = items(&trainer);
        unfused(|| trainer.step(&items, false).unwrap());
        named::visit(&trainer.student, &mut |name, _, value| {
            assert_eq!(value.dtype(), burn::tensor::DType::F32, "{name}");
        });
    }

    #[test]
    fn every_head_moves_and_the_teacher_follows_without_gradients() {
        for method in ["dino", "solider", "clasp"] {
            let mut trainer = trainer(&[&format!("method={method}")]);
            let items = items(&trainer);
            let values = |module: &Student| {
                let mut values = std::collections::BTreeMap::new();
                named::visit(module, &mut |name, _, value| {
                    values.insert(name.to_owned(), numbers(&value));
                });
                values
            };
            let before = values(&trainer.student);
            trainer.step(&items, false).unwrap();
            let after = values(&trainer.student);
            for (name, old) in &before {
                let head = ["trunk.dino.", "part.", "attribute."]
                    .iter()
                    .any(|head| name.starts_with(head));
                let moved = *old != after[name];
                // The gain of the last layer is frozen at 1.
                assert!(
                    !head || moved != name.ends_with("weight_g"),
                    "{method}: `{name}` moved: {moved}"
                );
            }
            assert_eq!(
                after.keys().any(|name| name.starts_with("part.")),
                method != "dino"
            );
            assert_eq!(
                after.keys().any(|name| name.starts_with("attribute.")),
                method == "clasp"
            );

            // momentum 0.9 of the old values, which were the student's first.
            named::visit(&trainer.teacher, &mut |name, _, value| {
                let name = format!("trunk.{name}");
                for ((teacher, old), new) in numbers(&value)
                    .iter()
                    .zip(&before[&name])
                    .zip(&after[&name])
                {
                    assert!((teacher - (0.9 * old + 0.1 * new)).abs() < 1e-6, "{name}");
                }
            });
            assert!(
                !trainer
                    .teacher
                    .dino
                    .last_layer
                    .weight_v
                    .val()
                    .is_require_grad()
            );
            assert!(!trainer.teacher.dino.last_layer.weight_v.val().is_autodiff());

            // All parameters move.
            trainer.step(&items, false).unwrap();
            trainer.step(&items, false).unwrap();
            let last = values(&trainer.student);
            let still: Vec<_> = before
                .keys()
                .filter(|name| before[*name] == last[*name])
                .collect();
            assert_eq!(still, ["trunk.dino.last_layer.weight_g"], "{method}");
        }
    }

    /// Gradients of the parameters whose names `of` accepts.
    fn of(gradients: &Gradients, of: impl Fn(&str) -> bool) -> Gradients {
        let kept = gradients.iter().filter(|(name, _)| of(name));
        kept.map(|(name, gradient)| (name.clone(), gradient.clone()))
            .collect()
    }

    fn norm(gradients: &Gradients) -> f64 {
        Norms::of(gradients).total()
    }

    #[test]
    fn student_and_teacher_share_no_random_prompt() {
        // Once, both had the same random mix, and recognizing it lowered DINO's loss. With prompts that change features
        // much, the teacher's targets and the student's projections are now those of the identity prompt alone.
        let mut trainer = trainer(&["method=clasp", "loss.part=0", "loss.attribute=0"]);
        let items = items(&trainer);
        let expected = trainer.batch_gradients(&items, false);
        let shout = |name: &str, task: usize| name.contains(".moe.prompts.") && task > 0;
        let student = trainer.student.clone();
        trainer.student = named::map(student, &mut |name, shape, value| {
            if !shout(name, 1) {
                return value;
            }
            // The rows of part and attribute.
            let width = shape[1];
            let rows = value.reshape([shape[0], width]);
            let first = rows.clone().narrow(0, 0, 1);
            let rest = rows.narrow(0, 1, shape[0] - 1) + 3.0;
            Tensor::cat(vec![first, rest], 0).reshape([shape[0] * width])
        });
        trainer.teacher = trainer.student.trunk.valid();
        let found = trainer.batch_gradients(&items, false);
        let dino = |batch: &BatchGradients| batch.measures.mean(Measure::Dino);
        assert_eq!(dino(&expected), dino(&found));
    }

    #[test]
    fn each_loss_trains_the_prompt_of_its_task() {
        let gradients = |set: &[&str]| {
            let trainer = trainer(&[&["method=clasp", "loss.identity_labels=0"], set].concat());
            let items = items(&trainer);
            trainer.gradients(&items).unwrap().1
        };
        // Rows of tasks that have a gradient, in every prompt.
        let rows = |gradients: &Gradients| -> Vec<bool> {
            let gradient =
                numbers(&gradients["trunk.backbone.layers.3.blocks.1.moe.prompts.hidden_scale"]);
            let row = |row: &[f32]| row.iter().any(|value| *value != 0.0);
            gradient.chunks(gradient.len() / 3).map(row).collect()
        };
        let none = ["loss.dino=0", "loss.part=0", "loss.attribute=0"];
        for (task, key) in ["dino", "part", "attribute"].iter().enumerate() {
            let set: Vec<String> = { none.iter() }
                .filter(|other| !other.contains(key))
                .map(|text| (*text).to_owned())
                .collect();
            let set: Vec<&str> = set.iter().map(String::as_str).collect();
            let expected: Vec<bool> = (0..3).map(|row| row == task).collect();
            assert_eq!(rows(&gradients(&set)), expected, "{key}");
        }
        // λ: labels teach the identity prompt too.
        let set = [
            "loss.dino=0",
            "loss.attribute=0",
            "loss.identity_labels=0.5",
        ];
        assert_eq!(rows(&gradients(&set)), [true, true, false]);
    }

    #[test]
    fn the_label_losses_on_identity_features_count_lambda_times() {
        let total = |lambda: &str| {
            let trainer = trainer(&["method=clasp", &format!("loss.identity_labels={lambda}")]);
            let batch = trainer.batch_gradients(&items(&trainer), false);
            let of = |measure| batch.measures.mean(measure);
            let labels = of(Measure::PartIdentity) + of(Measure::AttributeIdentity);
            (of(Measure::Total), labels)
        };
        let ([none, half, whole], labels) = (["0", "0.5", "1"].map(|l| total(l).0), total("1").1);
        assert!((half - none - 0.5 * labels).abs() < 1e-4);
        assert!((whole - none - labels).abs() < 1e-4);
        assert_eq!(total("0").1, 0.0);
    }

    #[test]
    fn detached_distillation_leaves_the_shared_blocks_to_labels() {
        let shared =
            |name: &str| name.contains("backbone.layers.0") || name.contains("patch_embed");
        let gradients = |set: &[&str]| {
            let trainer = trainer(&[&["method=clasp", "loss.detach_shared=true"], set].concat());
            let items = items(&trainer);
            trainer.gradients(&items).unwrap().1
        };
        let dino = gradients(&["loss.part=0", "loss.attribute=0", "loss.identity_labels=0"]);
        assert_eq!(norm(&of(&dino, shared)), 0.0);
        assert!(norm(&of(&dino, |name| name.contains("layers.3.blocks.1"))) > 0.0);
        assert!(norm(&of(&gradients(&[]), shared)) > 0.0);
    }

    #[test]
    fn the_teachers_temperature_warms_up() {
        let trainer = trainer(&[
            "method=dino",
            "loss.teacher_temperature=0.04",
            "loss.teacher_temperature_start=0.02",
            "loss.teacher_temperature_warmup=1",
        ]);
        // 80 images, 8 a step.
        let at = |step| Scheduled::at(&trainer.plan, step).teacher_temperature;
        assert_eq!(at(0), 0.02);
        assert!((at(5) - 0.03).abs() < 1e-12);
        assert_eq!([at(10), at(19)], [0.04, 0.04]);
    }

    #[test]
    fn a_loss_that_is_not_finite_is_named_and_changes_nothing() {
        let mut trainer = trainer(&["method=dino"]);
        let mut items = items(&trainer);
        items[3].views.global[0].pixels[5] = f32::NAN;
        let error = trainer.step(&items, false).err().unwrap();
        assert_eq!((error.term.as_str(), trainer.step), ("dino loss", 0));
        let mut finite = true;
        named::visit(&trainer.student, &mut |_, _, value| {
            finite &= numbers(&value).iter().all(|v| v.is_finite())
        });
        assert!(finite);
    }

    #[test]
    fn solider_hides_one_part() {
        let trainer = trainer(&["method=solider"]);
        let items = items(&trainer);
        let inputs = Inputs::new(&items, trainer.grid(), Method::Solider, &Device::flex());
        let mut rng = rng_for(0, 0, "drop path");
        let plain = trainer
            .student
            .forward(&inputs, None, &mut rng)
            .parts
            .unwrap()
            .own;
        let both = trainer
            .student
            .forward(&inputs, Some(2), &mut rng)
            .parts
            .unwrap()
            .own;
        assert_eq!((plain.dims()[0], both.dims()[0]), (16, 32));
        let hidden: Vec<_> = (0..20)
            .map(|step| part_to_hide(Method::Solider, 4, &mut rng_for(0, step, "hidden part")))
            .collect();
        assert!(
            (1..4).all(|part| hidden.contains(&Some(part))),
            "{hidden:?}"
        );
        assert!(part_to_hide(Method::Clasp, 4, &mut rng).is_none());
    }
}
