//! One step of the optimiser: losses of a batch, over its parts and over replicas.
//!
//! A batch is taken in `run.accumulate` parts, one after the other, and each part is shared out over
//! `run.replicas` copies of the student, each on one thread of its own. All shares are of one size,
//! so the mean over the batch is the mean over shares, and gradients are added up in a fixed order.
//! What needs the whole batch is exchanged: the centre is updated once a step from everything that
//! the teacher said, and the balance of the experts takes its fractions from all replicas of a part.
//!
//! ```text
//! L = L_dino + w_p · mean_i m_i,part · L_part,i + w_a · mean_i m_i,attribute · L_attr,i + w_b · L_bal
//! ```
//!
//! with the m scaled to a mean of 1: times the number of tasks, the inverse of their expected mean.
//! (The batch's own mean would differ between parts and replicas, and can be 0.) SOLIDER's λ is not
//! scaled, and its part loss is over plain and masked views, as in its code.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use clasp_data::rng_for;
use clasp_data::vocabulary::Vocabulary;
use clasp_model::backbone::Routing;
use clasp_model::losses::attribute::{attribute_accuracy, attribute_loss};
use clasp_model::losses::balance::{balance_loss, expert_load};
use clasp_model::losses::dino::{Answers, Temperatures, centre_update, dino_loss_of, teacher_mean};
use clasp_model::losses::part::{part_accuracy, part_loss};
use clasp_model::mix::{ATTRIBUTE, Mix, PART};
use clasp_model::optim::{
    self, Clip, Gradients, Norms, Optimiser, OptimiserConfig, decays, ema, read, squares,
};
use clasp_model::schedule::Cosine;
use clasp_model::{Replicas, fuses, recomputing};
use clasp_weights::import::{self, start_from};

use crate::error::Result;
use crate::monitor::{Usage, UsageSums};
use crate::recipe::{ClipBy, Method, Plan};
use crate::student::{Forward, Student, Trunk, part_to_hide};
use crate::views::{Inputs, Item};
use clasp_run::Metrics;

/// Name of the projection head's last layer, which stays as it is at first.
const LAST_LAYER: &str = "trunk.dino.last_layer";

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
    /// AdamW with its moments.
    pub optimiser: Optimiser,
    /// Steps that are done.
    pub step: u64,
    vocabulary: Option<Vocabulary>,
    /// Rows and columns of the feature map of a global view.
    grid: [usize; 2],
    device: Device,
    /// One pool of one thread a replica; none for one replica, which has all threads.
    replicas: Replicas,
}

/// What a step found.
pub struct Outcome {
    /// Losses and figures of the step.
    pub metrics: Metrics,
    /// Use of the experts, where it was asked for.
    pub usage: Vec<Usage>,
}

/// A loss, or the norm of the gradients, that is infinite or not a number; the step has changed nothing.
#[derive(Debug, thiserror::Error)]
#[error("the {term} is {value}")]
pub struct NonFinite {
    /// What it is.
    pub term: &'static str,
    /// Its value.
    pub value: f64,
}

/// A replica's share of a part after the forward passes.
struct Draft {
    student: Student,
    inputs: Inputs,
    teacher: Vec<Tensor<2>>,
    forward: Forward,
    /// Share of choices, [blocks, experts], where there are experts.
    load: Option<Tensor<2>>,
}

/// A replica's share of a part after the backward pass.
struct Verdict {
    gradients: Gradients,
    /// Mean projection of the teacher over the share: [1, outputs].
    teacher_mean: Tensor<2>,
    figures: Vec<(Figure, Tensor<1>)>,
    usage: UsageSums,
}

/// What a batch teaches.
struct Lesson {
    gradients: Gradients,
    norms: Norms,
    /// Mean projection of the teacher over the batch: [1, outputs].
    teacher_mean: Tensor<2>,
    terms: Terms,
    usage: UsageSums,
    /// Shares that the terms are sums over.
    shares: f64,
}

/// What is measured of a share: losses first, in the order in which one that is not finite is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Figure {
    Dino,
    Part,
    Attribute,
    Balance,
    Total,
    Entropy,
    Spread,
    PartRight,
    PartKnown,
    AttributeRight,
    AttributeKnown,
}

/// Sums of figures over shares.
#[derive(Clone, Copy, Debug, Default)]
struct Terms([f64; Figure::AttributeKnown as usize + 1]);

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
        let [height, width] = plan.recipe.views.global_size;
        Ok(Self {
            grid: teacher.backbone.grid(height, width),
            centre: Tensor::zeros([1, plan.outputs], &device),
            optimiser: Optimiser::new(adamw(&plan)),
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
    pub fn start_from_init(&mut self) -> Result<Option<import::Report>> {
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

    /// One step on the items of a batch. With `observe`, the use of the experts is measured too.
    ///
    /// # Errors
    ///
    /// A loss is not finite; nothing has changed then.
    ///
    /// # Panics
    ///
    /// Where `items` are not as many as the recipe's batch.
    pub fn step(&mut self, items: &[Item], observe: bool) -> Result<Outcome, NonFinite> {
        let mut lesson = self.lesson(items, observe);
        lesson.terms.check()?;
        let norm = lesson.norms.total();
        if !norm.is_finite() {
            return Err(NonFinite {
                term: "norm of the gradients",
                value: norm,
            });
        }
        let mut metrics = lesson.terms.metrics(lesson.shares, &self.plan);
        metrics.insert("gradient/norm".to_owned(), norm);

        let rates = Scheduled::at(&self.plan, self.step);
        let of_parameter = |name: &str, shape: &[usize]| {
            Some(optim::Rates {
                lr: rates.lr,
                decay: if decays(name, shape) {
                    rates.weight_decay
                } else {
                    0.0
                },
            })
        };
        let (student, gradients) = (self.student.clone(), &mut lesson.gradients);
        let optimiser = &mut self.optimiser;
        self.student = optimiser.step("", student, gradients, &lesson.norms, &of_parameter);
        // The student stands in for the teacher meanwhile, so that nothing but the average holds its memory.
        let teacher = std::mem::replace(&mut self.teacher, self.student.trunk.valid());
        self.teacher = ema(teacher, &self.student.trunk, rates.momentum);
        let momentum = self.plan.recipe.loss.centre_momentum;
        self.centre = centre_update(self.centre.clone(), lesson.teacher_mean, momentum);
        self.step += 1;
        metrics.insert("schedule/lr".to_owned(), rates.lr);
        metrics.insert("schedule/weight_decay".to_owned(), rates.weight_decay);
        metrics.insert("schedule/momentum".to_owned(), rates.momentum);
        Ok(Outcome {
            metrics,
            usage: lesson.usage.usage(self.step),
        })
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
        let lesson = self.lesson(items, false);
        lesson.terms.check()?;
        Ok((
            lesson.terms.of(Figure::Total) / lesson.shares,
            lesson.gradients,
        ))
    }

    /// The teacher's pooled features of the global views of a batch: [views · batch, channels].
    pub fn features(&self, items: &[Item]) -> Tensor<2> {
        let inputs = Inputs::new(items, self.grid, &self.device);
        self.plan.precision.within(|| self.teacher.pool(&inputs))
    }

    /// Losses and gradients of a batch; changes nothing.
    fn lesson(&self, items: &[Item], observe: bool) -> Lesson {
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
        let mut gradients = Gradients::new();
        let mut teacher_means = Vec::new();
        let (mut figures, mut usage) = (Vec::new(), UsageSums::default());
        for (part, items) in items.chunks(part_size).enumerate() {
            let shares: Vec<&[Item]> = items.chunks(share_size).collect();
            let drafts = self
                .replicas
                .map(shares, |replica, share| self.draft(share, part, replica));
            let load = mean_load(&drafts);
            let verdicts = self
                .replicas
                .map(drafts, |_, draft| self.judge(draft, load.as_ref(), observe));
            for verdict in verdicts {
                optim::add(&mut gradients, verdict.gradients);
                teacher_means.push(verdict.teacher_mean);
                figures.extend(verdict.figures);
                usage.add(&verdict.usage);
            }
        }
        if self.step < self.plan.frozen_steps {
            gradients.retain(|name, _| !name.starts_with(LAST_LAYER));
        }
        // The only wait for the device in a step that is not observed.
        let (figures, mut numbers): (Vec<_>, Vec<_>) = figures.into_iter().unzip();
        numbers.extend(squares(&gradients));
        let numbers = read(numbers);
        let (values, squares) = numbers.split_at(figures.len());
        let terms = Terms::sum(figures.into_iter().zip(values.iter().copied()));
        let shares = teacher_means.len() as f64;
        Lesson {
            norms: Norms::new(&gradients, squares),
            gradients,
            teacher_mean: teacher_mean(&teacher_means),
            terms,
            usage,
            shares,
        }
    }

    /// The forward passes of teacher and student over a share.
    fn draft(&self, items: &[Item], part: usize, replica: usize) -> Draft {
        let (seed, recipe) = (self.plan.recipe.seed, &self.plan.recipe);
        let (precision, checkpointing) = (self.plan.precision, recipe.run.checkpointing);
        let inputs = Inputs::new(items, self.grid, &self.device);
        let teacher = precision.within(|| self.teacher.project(&inputs));
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
        let load = expert_load(&passes(&forward));
        Draft {
            student,
            inputs,
            teacher,
            forward,
            load,
        }
    }

    /// The losses of a share, and their gradients.
    fn judge(&self, draft: Draft, load: Option<&Tensor<2>>, observe: bool) -> Verdict {
        let Draft {
            student,
            inputs,
            teacher,
            forward,
            ..
        } = draft;
        let loss = &self.plan.recipe.loss;
        let temperatures = Temperatures {
            student: loss.student_temperature,
            teacher: loss.teacher_temperature,
        };
        let answers = Answers::new(&teacher, &self.centre, &temperatures);
        let dino = dino_loss_of(&forward.views, &answers.probabilities, &temperatures);
        let mut total = dino.clone() * loss.dino;
        let mut figures = vec![
            (Figure::Dino, dino),
            (Figure::Entropy, answers.entropy),
            (Figure::Spread, spread(forward.pooled.clone().inner())),
        ];

        if let (Some(logits), Some(labels)) = (&forward.parts, &inputs.parts) {
            let weights = self.weights(&inputs.mixes, PART);
            let copies = logits.dims()[0] / labels.dims()[0];
            let labels = Tensor::cat(vec![labels.clone(); copies], 0);
            if observe {
                let counts = part_accuracy(logits.clone().inner(), labels.clone());
                figures.extend(
                    [Figure::PartRight, Figure::PartKnown]
                        .into_iter()
                        .zip(counts),
                );
            }
            let part = weighted_mean(part_loss(logits.clone(), labels), &weights);
            total = total + part.clone() * loss.part;
            figures.push((Figure::Part, part));
        }
        if let (Some(logits), Some((target, mask))) = (&forward.attributes, &inputs.attributes) {
            let weights = self.weights(&inputs.mixes, ATTRIBUTE);
            let views = logits.dims()[0] / target.dims()[0];
            let [target, mask] = [target, mask].map(|one| Tensor::cat(vec![one.clone(); views], 0));
            let ranges = { self.vocabulary.as_ref() }
                .map(Vocabulary::ranges)
                .unwrap_or_default();
            if observe {
                let (logits, target, mask) = (logits.clone().inner(), target.clone(), mask.clone());
                let counts = attribute_accuracy(logits, target, mask, &ranges).map(Tensor::sum);
                figures.extend(
                    [Figure::AttributeRight, Figure::AttributeKnown]
                        .into_iter()
                        .zip(counts),
                );
            }
            let losses = attribute_loss(logits.clone(), target, mask, &ranges);
            let attribute = weighted_mean(losses, &weights);
            total = total + attribute.clone() * loss.attribute;
            figures.push((Figure::Attribute, attribute));
        }
        if let Some(load) = load {
            let balance = balance_loss(&passes(&forward), load);
            total = total + balance.clone() * loss.balance;
            figures.push((Figure::Balance, balance));
        }
        figures.push((Figure::Total, total.clone()));
        let usage = if observe {
            usage(&forward)
        } else {
            UsageSums::default()
        };

        let shares = (self.plan.replicas * self.plan.recipe.run.accumulate) as f64;
        let figures = { figures.into_iter() }
            .map(|(figure, value)| (figure, value.without_autodiff()))
            .collect();
        Verdict {
            gradients: optim::gradients(&student, &mut (total / shares).backward()),
            teacher_mean: teacher_mean(&teacher),
            figures,
            usage,
        }
    }

    /// Weight of every image in the loss of `task`.
    fn weights(&self, mixes: &[Mix], task: usize) -> Vec<f32> {
        let tasks = self.plan.tasks.iter().filter(|used| **used).count() as f32;
        let scale = if self.plan.recipe.method == Method::Solider {
            1.0
        } else {
            tasks
        };
        mixes
            .iter()
            .map(|mix| mix.weights()[task] * scale)
            .collect()
    }
}

/// Learning rate, weight decay and teacher's momentum of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scheduled {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Share of the old teacher in the new one.
    pub momentum: f64,
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
        }
    }
}

/// The routing of a share by pass.
fn passes(forward: &Forward) -> Vec<&[Routing]> {
    forward
        .routing
        .iter()
        .map(|(blocks, _)| blocks.as_slice())
        .collect()
}

/// The load of the experts over all replicas; their shares are equal, so it is the mean.
fn mean_load(drafts: &[Draft]) -> Option<Tensor<2>> {
    let loads = drafts.iter().filter_map(|draft| draft.load.clone());
    let sum = loads.reduce(|sum, load| sum + load)?;
    Some(sum.div_scalar(drafts.len() as f64))
}

/// The recipe's optimiser.
pub(crate) fn adamw(plan: &Plan) -> OptimiserConfig {
    let optimiser = &plan.recipe.optimiser;
    let clip = match optimiser.clip_by {
        _ if optimiser.clip == 0.0 => Clip::None,
        ClipBy::Tensor => Clip::PerTensor(optimiser.clip),
        ClipBy::Global => Clip::Global(optimiser.clip),
    };
    OptimiserConfig {
        clip,
        ..OptimiserConfig::default()
    }
}

fn usage(forward: &Forward) -> UsageSums {
    let mut sums = UsageSums::default();
    for (blocks, mixes) in &forward.routing {
        sums.add(&UsageSums::new(blocks, mixes));
    }
    sums
}

/// Mean over views and images of weight · loss. losses: [views · batch], weights: one an image.
fn weighted_mean(losses: Tensor<1>, weights: &[f32]) -> Tensor<1> {
    let views = losses.dims()[0] / weights.len();
    let repeated = weights.repeat(views);
    let weights =
        Tensor::<1>::from_data(TensorData::new(repeated, losses.dims()), &losses.device());
    (losses * weights).mean()
}

/// Standard deviation over the batch of each channel of the normalised features, mean over channels,
/// times the root of their number: 1 for features in all directions alike, 0 for equal features.
fn spread(pooled: Tensor<2>) -> Tensor<1> {
    let channels = pooled.dims()[1] as f64;
    let norm = pooled.clone().square().sum_dim(1).sqrt().clamp_min(1e-12);
    let features = pooled / norm;
    let mean = features.clone().mean_dim(0);
    let std = (features - mean).square().mean_dim(0).sqrt().mean();
    std * channels.sqrt()
}

impl Terms {
    fn sum(figures: impl Iterator<Item = (Figure, f64)>) -> Self {
        let mut terms = Self::default();
        for (figure, value) in figures {
            terms.0[figure as usize] += value;
        }
        terms
    }

    fn of(&self, figure: Figure) -> f64 {
        self.0[figure as usize]
    }

    /// The term that is not finite, if any.
    fn check(&self) -> Result<(), NonFinite> {
        let terms = [
            ("DINO loss", Figure::Dino),
            ("part loss", Figure::Part),
            ("attribute loss", Figure::Attribute),
            ("balance loss", Figure::Balance),
            ("total loss", Figure::Total),
        ]
        .map(|(term, figure)| (term, self.of(figure)));
        match terms.into_iter().find(|(_, value)| !value.is_finite()) {
            Some((term, value)) => Err(NonFinite { term, value }),
            None => Ok(()),
        }
    }

    /// Means over `shares` shares, of the terms that the plan has and that were measured.
    fn metrics(&self, shares: f64, plan: &Plan) -> Metrics {
        let mut metrics = Metrics::new();
        let mut put = |name: &str, value: f64| metrics.insert(name.to_owned(), value);
        let mean = |figure| self.of(figure) / shares;
        put("loss/total", mean(Figure::Total));
        put("loss/dino", mean(Figure::Dino));
        put("teacher/entropy", mean(Figure::Entropy));
        put("features/std", mean(Figure::Spread));
        let tasks = [
            (
                PART,
                "part",
                Figure::Part,
                Figure::PartRight,
                Figure::PartKnown,
            ),
            (
                ATTRIBUTE,
                "attribute",
                Figure::Attribute,
                Figure::AttributeRight,
                Figure::AttributeKnown,
            ),
        ];
        for (task, name, loss, right, known) in tasks {
            if plan.tasks[task] {
                put(&format!("loss/{name}"), mean(loss));
                if self.of(known) > 0.0 {
                    put(&format!("accuracy/{name}"), self.of(right) / self.of(known));
                }
            }
        }
        if self.of(Figure::Balance) > 0.0 {
            put("loss/balance", mean(Figure::Balance));
        }
        metrics
    }
}

#[cfg(test)]
mod tests {
    use clasp_model::{Precision, named, unfused};

    use super::*;
    use crate::recipe::{Machine, Recipe};
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

    /// Items of noise with these mixes.
    fn items(trainer: &Trainer, mix: impl Fn(usize) -> Mix) -> Vec<Item> {
        let mut items = noise(
            &trainer.plan.recipe,
            trainer.grid(),
            trainer.vocabulary(),
            1,
        );
        for (index, item) in items.iter_mut().enumerate() {
            item.mix = mix(index);
        }
        items
    }

    fn three_mixes(index: usize) -> Mix {
        if index == 7 {
            Mix::mean()
        } else {
            Mix::single(index % 3)
        }
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
        // Balance is left out for parts: its fractions are those of a part.
        for (method, change) in [
            ("method=dino", "run.accumulate=4"),
            ("method=dino", "run.replicas=2"),
            ("method=solider", "run.replicas=2"),
            ("method=clasp", "run.replicas=4"),
        ] {
            let whole = trainer(&[method]);
            let items = items(&whole, three_mixes);
            let expected = whole.lesson(&items, true);
            let divided = trainer(&[method, change]);
            let found = divided.lesson(&items, true);
            let apart = difference(&expected.gradients, &found.gradients);
            assert!(apart < 1e-4, "{method} {change}: {apart}");
            let apart = (expected.teacher_mean - found.teacher_mean)
                .abs()
                .max()
                .into_scalar::<f32>();
            assert!(apart < 1e-5, "{method} {change}: centre {apart}");
            let [expected_loss, loss] =
                [&expected.terms, &found.terms].map(|terms| terms.of(Figure::Total));
            assert!(
                (expected_loss - loss / found.shares).abs() < 1e-4,
                "{method} {change}"
            );
            assert_eq!(expected.usage.usage(1).len(), found.usage.usage(1).len());
        }
    }

    #[test]
    fn what_is_computed_again_has_the_same_gradients() {
        for method in ["method=dino", "method=solider", "method=clasp"] {
            let plain = trainer(&[method, "model.drop_path=0.2"]);
            let again = trainer(&[method, "model.drop_path=0.2", "run.checkpointing=true"]);
            let items = items(&plain, three_mixes);
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
            let items = items(&trainer, three_mixes);
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
        let items = items(&trainer, three_mixes);
        unfused(|| trainer.step(&items, false).unwrap());
        named::visit(&trainer.student, &mut |name, _, value| {
            assert_eq!(value.dtype(), burn::tensor::DType::F32, "{name}");
        });
    }

    #[test]
    fn every_head_moves_and_the_teacher_follows_without_gradients() {
        for method in ["dino", "solider", "clasp"] {
            let mut trainer = trainer(&[&format!("method={method}")]);
            let items = items(&trainer, three_mixes);
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

            // Once U has left zero, γ, D and the router have a gradient too: all parameters move.
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

    #[test]
    fn the_mix_weighs_the_losses() {
        let trainer = trainer(&["method=clasp"]);
        let terms = |mix: Mix| {
            let terms = trainer.lesson(&items(&trainer, |_| mix), false).terms;
            [Figure::Dino, Figure::Part, Figure::Attribute].map(|figure| terms.of(figure))
        };
        let identity = terms(Mix::single(0));
        assert_eq!(identity[1..], [0.0, 0.0]);
        let part = terms(Mix::single(PART));
        assert!(part[1] > 0.0 && part[2] == 0.0);
        // At initialisation the adapter is silent, so only the weights differ: 3 · 1/3 against 3 · 1.
        let mean = terms(Mix::mean());
        assert!(
            (3.0 * mean[1] - part[1]).abs() < 1e-4,
            "{} {}",
            mean[1],
            part[1]
        );
        assert!((identity[0] - part[0]).abs() < 1e-5);
        // SOLIDER's λ is not scaled.
        let solider = super::tests::trainer(&["method=solider"]);
        assert_eq!(
            solider.weights(&[Mix::single(PART), Mix::single(0)], PART),
            [1.0, 0.0]
        );
        assert_eq!(
            trainer.weights(&[Mix::single(PART), Mix::mean()], PART),
            [3.0, 1.0]
        );
    }

    #[test]
    fn a_loss_that_is_not_finite_is_named_and_changes_nothing() {
        let mut trainer = trainer(&["method=dino"]);
        let mut items = items(&trainer, |_| Mix::single(0));
        items[3].views.global[0].pixels[5] = f32::NAN;
        let error = trainer.step(&items, false).err().unwrap();
        assert_eq!((error.term, trainer.step), ("DINO loss", 0));
        let mut finite = true;
        named::visit(&trainer.student, &mut |_, _, value| {
            finite &= numbers(&value).iter().all(|v| v.is_finite())
        });
        assert!(finite);
    }

    #[test]
    fn solider_hides_one_part() {
        let trainer = trainer(&["method=solider"]);
        let items = items(&trainer, |_| Mix::single(PART));
        let inputs = Inputs::new(&items, trainer.grid(), &Device::flex());
        let mut rng = rng_for(0, 0, "drop path");
        let plain = trainer
            .student
            .forward(&inputs, None, &mut rng)
            .parts
            .unwrap();
        let both = trainer
            .student
            .forward(&inputs, Some(2), &mut rng)
            .parts
            .unwrap();
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
