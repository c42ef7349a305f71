//! One step of the optimizer: gradients of a batch, over its parts and over replicas.
//!
//! A batch is computed in `run.accumulate` parts, one after the other, and each part is divided
//! among `run.replicas` replicas of the student, each on its own thread. All shares have the same
//! size, so that the mean over the batch is the mean over shares, and gradients are added in a
//! fixed order. The teacher processes all images before the student does, as Sinkhorn–Knopp needs
//! all samples of the step and the center is updated once from all of them.
//!
//! The replicas may be in several ranks ([`crate::ranks`]), processes or threads: gradients, the means from
//! which the center is updated, Sinkhorn–Knopp's sums and measurements are added up over all of
//! them, and every rank then does the same update. The gradients of heads and conditional blocks are
//! exchanged while those of the shared blocks are computed.

use std::collections::BTreeMap;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Device, Gradients as BackwardGradients, Tensor};
use clasp_data::rng_for;
use clasp_data::vocabulary::Vocabulary;
use clasp_model::backbone::{Backbone, GradientCut, SharedFeatures};
use clasp_model::layers::fork;
use clasp_model::losses::dino::{center_update, mean_entropy};
use clasp_model::optim::{
    self, FlatLayout, GradientClip, Gradients, Norms, Optimizer, OptimizerConfig, Rates, Squares,
    ema, read,
};
use clasp_model::parameters::ParameterGroups;
use clasp_model::{Replicas, fuses, recomputing};
use clasp_run::{Collective, CollectiveError, Local, Metrics, NonFinite, StepError};
use clasp_weights::import::{self, start_from};

use crate::batch::BatchTensors;
use crate::collapse::CollapseSignals;
use crate::dataset::ImageSample;
use crate::distillation::FrozenTeacher;
use crate::error::Result;
use crate::experts::ExpertUsage;
use crate::masking::{PatchTargets, ViewMasks};
use crate::metrics::{
    FEATURE_STD, MEAN_TARGET_ENTROPY, Measurement, Measurements, TARGET_ENTROPY, feature_moments,
    feature_std, observations,
};
use crate::objective::{DINO, ShareOutputs, objective};
use crate::plan::PretrainPlan;
use crate::ranks::{RankShare, RankSums};
use crate::recipe::{Auto, ClipGradMode};
use crate::schedule::ScheduledValues;
use crate::student::{DinoNetwork, Student, part_to_mask};
use crate::teacher::{BatchTargets, ShareTargets};

/// What begins the names of the backbone's parameters.
const BACKBONE: &str = "trunk.backbone.";
/// Name of the last layer of the projection head, which is not trained at first.
const LAST_LAYER: &str = "trunk.dino.last_layer";

/// Student, teacher, optimizer and all else that changes from step to step.
pub struct Pretrainer {
    /// The resolved recipe.
    pub plan: PretrainPlan,
    /// The network that is trained, on the autodiff side of the device.
    pub student: Student,
    /// The moving average of the student; without gradients.
    pub teacher: DinoNetwork,
    /// The frozen teacher of distillation, if there is one; it never changes.
    pub frozen_teacher: Option<FrozenTeacher>,
    /// Moving average of the teacher's logits: [1, prototypes].
    pub center: Tensor<2>,
    /// Moving average of the teacher's logits at masked patches, apart from that of whole views:
    /// [1, prototypes]. Zeros without masked patches.
    pub patch_center: Tensor<2>,
    /// Moving sum of the mean teacher targets, not normalized: [1, prototypes]. For the collapse
    /// monitor alone.
    pub target_sum: Tensor<2>,
    /// AdamW with its moments.
    pub optimizer: Optimizer,
    /// Steps that are done.
    pub step: u64,
    vocabulary: Option<Vocabulary>,
    /// Layer and kind of the backbone's parameters, by their names in the student.
    parameters: ParameterGroups,
    /// Rows and columns of the feature map of a global view.
    grid: [usize; 2],
    device: Device,
    /// The part of every batch that this process computes.
    share: RankShare,
    /// The ranks that compute the rest.
    ranks: RankSums,
    /// One thread a replica of this process; a single replica has all threads.
    replicas: Replicas,
}

/// What a step returns.
pub struct StepOutcome {
    /// Losses and other metrics of the step.
    pub metrics: Metrics,
    /// Input of the collapse monitor.
    pub collapse: CollapseSignals,
    /// Use of the experts, if the step was observed.
    pub usage: Vec<ExpertUsage>,
}

/// What the gradients of a share of a batch are computed from.
struct ShareInputs<'a> {
    samples: &'a [ImageSample],
    /// None without self-distillation.
    targets: Option<ShareTargets>,
    /// Teacher targets of its masked patches: [masked, prototypes].
    patches: Option<Tensor<2>>,
    masks: Option<ViewMasks>,
}

/// Gradients and measurements of a share of a batch, computed by one replica.
struct ShareGradients {
    /// Of all parameters; on one of several ranks without those of the shared blocks.
    gradients: Gradients,
    /// What gives those of the shared blocks.
    shared: Option<SharedPass>,
    measured: Vec<(Measurement, Tensor<1>)>,
    /// See [`feature_moments`].
    moments: Tensor<2>,
}

/// A student in a graph of its own.
struct StudentGraph {
    student: Student,
    /// The same backbone once more, for the local views: on GPUs the gradients of the two sizes of views
    /// are then added for several parameters in one launch, where Burn's graph has one for each. It costs
    /// the memory of the backbone's gradients. None on the CPU.
    local_backbone: Option<Backbone>,
}

impl StudentGraph {
    fn new(student: &Student, has_locals: bool, graph: &Device) -> Self {
        let separate = has_locals && !fuses(graph);
        Self {
            student: fork(student.clone(), graph),
            local_backbone: separate.then(|| fork(student.trunk.backbone.clone(), graph)),
        }
    }

    fn local_backbone(&self) -> &Backbone {
        self.local_backbone
            .as_ref()
            .unwrap_or(&self.student.trunk.backbone)
    }

    fn gradients(&self, backward: &mut BackwardGradients) -> Gradients {
        let mut gradients = optim::gradients(&self.student, backward);
        if let Some(backbone) = &self.local_backbone {
            let of_locals = { optim::gradients(backbone, backward).into_iter() }
                .map(|(name, gradient)| (format!("{BACKBONE}{name}"), gradient));
            optim::add(&mut gradients, of_locals.collect());
        }
        gradients
    }
}

/// The backward pass of the shared blocks, which several ranks do apart from the rest.
struct SharedPass {
    student: StudentGraph,
    /// See [`GradientCut::before`].
    before: Tensor<1>,
}

impl SharedPass {
    fn gradients(self) -> Gradients {
        self.student.gradients(&mut self.before.backward())
    }
}

/// Gradients and measurements of a batch.
struct BatchGradients {
    gradients: Gradients,
    norms: Norms,
    /// [`Pretrainer::center`] after this batch.
    center: Tensor<2>,
    /// [`Pretrainer::patch_center`] after this batch.
    patch_center: Tensor<2>,
    /// [`Pretrainer::target_sum`] with the targets of this batch: [1, prototypes].
    target_sum: Tensor<2>,
    /// [`FEATURE_STD`] and, with self-distillation, [`MEAN_TARGET_ENTROPY`], which are of the whole
    /// batch.
    of_batch: BTreeMap<&'static str, f64>,
    measurements: Measurements,
}

/// What a rank takes from the teacher in a step.
struct TeacherOutputs {
    /// By share, the targets of its views and of its masked patches; none without self-distillation.
    shares: Vec<(Option<ShareTargets>, Option<Tensor<2>>)>,
    /// [`Pretrainer::patch_center`] after this step.
    patch_center: Tensor<2>,
    /// Means of the teacher's logits and of the targets, [1, prototypes] each; none without
    /// self-distillation.
    means: Option<[Tensor<2>; 2]>,
}

impl Pretrainer {
    /// A trainer at step 0, with random weights; the frozen teacher, if the recipe has one, is
    /// read, and the size of its input resolved, as are the windows of the file to start from.
    ///
    /// # Errors
    ///
    /// A thread cannot be started, or the frozen teacher or the file to start from cannot be read.
    pub fn new(
        plan: PretrainPlan,
        vocabulary: Option<Vocabulary>,
        device: &Device,
    ) -> Result<Self> {
        Self::on_rank(plan, vocabulary, device, Arc::new(Local))
    }

    /// The same as one rank of several, on which `step` takes the samples of its share of a batch.
    /// All ranks must have the same plan, and the same weights.
    ///
    /// # Errors
    ///
    /// See [`Pretrainer::new`].
    pub fn on_rank(
        mut plan: PretrainPlan,
        vocabulary: Option<Vocabulary>,
        device: &Device,
        collective: Arc<dyn Collective>,
    ) -> Result<Self> {
        let device = device.clone().inner();
        let mut rng = rng_for(plan.recipe.seed, 0, "weights");
        let frozen_teacher = FrozenTeacher::load(&plan.recipe, &device)?;
        if let Some(teacher) = &frozen_teacher {
            plan.recipe.distillation.size.resolve(teacher.size());
        }
        let init = &plan.recipe.model.init;
        if !init.as_os_str().is_empty()
            && plan.recipe.is_swin()
            && plan.recipe.model.windows == Auto::Auto
        {
            let windows = import::window_padding(init)?;
            plan.backbone.padding = plan.recipe.model.windows.resolve(windows);
        }
        let (labels, frozen) = (vocabulary.as_ref(), frozen_teacher.as_ref());
        let student = Student::new(&plan, labels, frozen, &mut rng, &device);
        let teacher = student.trunk.valid();
        let parameters = teacher.backbone.parameter_groups()?;
        let [height, width] = plan.recipe.views.global_size;
        let share = RankShare::of(&plan, collective.rank());
        let layouts = match collective.is_alone() {
            true => Default::default(),
            false => FlatLayout::of(&student).split(&student.shared_parameters([height, width])),
        };
        Ok(Self {
            parameters: parameters.with_prefix(BACKBONE),
            grid: teacher.backbone.grid(height, width),
            center: Tensor::zeros([1, plan.prototypes], &device),
            patch_center: Tensor::zeros([1, plan.prototypes], &device),
            target_sum: Tensor::zeros([1, plan.prototypes], &device),
            optimizer: Optimizer::new(adamw(&plan)),
            step: 0,
            student,
            teacher,
            frozen_teacher,
            vocabulary,
            device,
            share,
            ranks: RankSums::new(collective, plan.recipe.run.exchange, layouts),
            replicas: Replicas::new(share.own_replicas())?,
            plan,
        })
    }

    /// The part of every batch that this process computes.
    pub fn share(&self) -> RankShare {
        self.share
    }

    /// Loads the backbone from the recipe's `model.init`, if it names a file, and returns which
    /// keys matched.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or holds another architecture.
    pub fn load_init(&mut self) -> Result<Option<import::ImportReport>> {
        let path = &self.plan.recipe.model.init;
        if path.as_os_str().is_empty() {
            return Ok(None);
        }
        // No file has a mask token.
        let (backbone, mask_token) = self.student.trunk.backbone.clone().split_mask_token();
        let (backbone, report) = start_from(backbone, path)?;
        self.student.trunk.backbone = backbone.join_mask_token(mask_token);
        self.teacher = self.student.trunk.valid();
        Ok(Some(report))
    }

    /// Rows and columns of the feature map of a global view.
    pub fn grid(&self) -> [usize; 2] {
        self.grid
    }

    /// Vocabulary of the labels; none if the method learns from no labels.
    pub fn vocabulary(&self) -> Option<&Vocabulary> {
        self.vocabulary.as_ref()
    }

    /// One step on the samples of a batch, or of this rank's share of it. With `observe`, what takes
    /// time is measured too.
    ///
    /// # Errors
    ///
    /// A loss or the norm of the gradients is not finite, or a rank is gone; nothing has changed
    /// then.
    ///
    /// # Panics
    ///
    /// The number of `samples` is not that of the recipe's batch, or of the share.
    pub fn step(
        &mut self,
        samples: &[ImageSample],
        observe: bool,
    ) -> Result<StepOutcome, StepError> {
        let batch = self.batch_gradients(samples, observe)?;
        batch.measurements.check()?;
        let norm = batch.norms.total();
        NonFinite::check(|| "norm of the gradients".to_owned(), norm)?;
        let scheduled = ScheduledValues::at(&self.plan, self.step);
        let metrics = metrics(&batch, norm, scheduled, observe.then_some(&self.parameters));
        let of_batch = |name| batch.of_batch.get(name).copied().unwrap_or(f64::NAN);
        let dino_loss = batch.measurements.mean(Measurement::Loss(DINO));
        let collapse = CollapseSignals {
            dino_loss: dino_loss.unwrap_or(f64::NAN),
            mean_target_entropy: of_batch(MEAN_TARGET_ENTROPY),
            feature_std: of_batch(FEATURE_STD),
        };
        self.update(batch, scheduled);
        self.step += 1;
        Ok(StepOutcome {
            metrics,
            collapse,
            usage: if observe {
                self.expert_usage()
            } else {
                Vec::new()
            },
        })
    }

    /// Updates student, teacher and center with the gradients of a batch.
    fn update(&mut self, mut batch: BatchGradients, scheduled: ScheduledValues) {
        let prompt_factor = self.plan.recipe.optimizer.prompt_lr_factor;
        let parameters = &self.parameters;
        let rates = |name: &str, shape: &[usize]| {
            Some(Rates {
                lr: if parameters.is_prompt(name) {
                    scheduled.lr * prompt_factor
                } else {
                    scheduled.lr
                },
                decay: if parameters.decays(name, shape) {
                    scheduled.weight_decay
                } else {
                    0.0
                },
            })
        };
        let (student, gradients) = (self.student.clone(), &mut batch.gradients);
        let optimizer = &mut self.optimizer;
        self.student = optimizer.step("", student, gradients, &batch.norms, &rates);
        // The student takes the teacher's place meanwhile, so that `ema` alone holds the memory of
        // the teacher and can update it in place.
        let teacher = std::mem::replace(&mut self.teacher, self.student.trunk.valid());
        self.teacher = ema(teacher, &self.student.trunk, scheduled.momentum);
        self.center = batch.center;
        self.patch_center = batch.patch_center;
        self.target_sum = batch.target_sum;
    }

    /// The loss of a batch and its gradients by parameter name; changes nothing.
    ///
    /// # Errors
    ///
    /// A loss is not finite, or a rank is gone.
    ///
    /// # Panics
    ///
    /// The number of `samples` is not that of the recipe's batch, or of the share.
    pub fn gradients(&self, samples: &[ImageSample]) -> Result<(f64, Gradients), StepError> {
        let batch = self.batch_gradients(samples, false)?;
        batch.measurements.check()?;
        let total = batch.measurements.mean(Measurement::Total).unwrap_or(0.0);
        Ok((total, batch.gradients))
    }

    /// The teacher's pooled features of the global views of a batch: [views · batch, channels].
    pub fn features(&self, samples: &[ImageSample]) -> Tensor<2> {
        let inputs = BatchTensors::of_globals(samples, self.plan.recipe.method, &self.device);
        self.plan.precision.within(|| self.teacher.pool(&inputs))
    }

    /// Losses and gradients of a batch; changes nothing.
    fn batch_gradients(
        &self,
        samples: &[ImageSample],
        observe: bool,
    ) -> Result<BatchGradients, CollectiveError> {
        assert_eq!(
            samples.len(),
            self.share.images(),
            "{} samples in a batch, or share of one, of {}",
            samples.len(),
            self.share.images()
        );
        let [part_size, share_size] = [self.share.images_of_part(), self.share.images_of_share()];
        let masks = self.masks(samples, share_size);
        let teacher = self.teacher_outputs(samples, &masks, part_size, share_size)?;
        let student = { self.plan.precision }.within(|| self.student.clone().with_cast_weights());
        let mut targets = teacher.shares.into_iter().zip(masks);
        let mut moments: Option<Tensor<2>> = None;
        let (mut gradients, mut shared) = (Gradients::new(), Gradients::new());
        let mut passes = Vec::new();
        let mut measured = Vec::new();
        let mut shares = 0;
        let add_shared = |sum: &mut Gradients, passes: Vec<SharedPass>| {
            let gradients = self.replicas.map(passes, |_, pass| pass.gradients());
            { gradients.into_iter() }.for_each(|gradients| optim::add(sum, gradients));
        };
        for (part, samples) in samples.chunks(part_size).enumerate() {
            let inputs: Vec<_> = { samples.chunks(share_size) }
                .zip(targets.by_ref())
                .map(|(samples, ((targets, patches), masks))| ShareInputs {
                    samples,
                    targets,
                    patches,
                    masks,
                })
                .collect();
            add_shared(&mut shared, std::mem::take(&mut passes));
            let results = self.replicas.map(inputs, |replica, inputs| {
                self.share_gradients(&student, &inputs, [part, replica], observe)
            });
            for result in results {
                optim::add(&mut gradients, result.gradients);
                passes.extend(result.shared);
                measured.extend(result.measured);
                moments = Some(match moments {
                    None => result.moments,
                    Some(sum) => sum + result.moments,
                });
                shares += 1;
            }
        }
        if self.step < self.plan.frozen_steps {
            gradients.retain(|name, _| !name.starts_with(LAST_LAYER));
        }
        if !self.ranks.collective().is_alone() {
            let shared_gradients = || {
                add_shared(&mut shared, passes);
                shared
            };
            gradients = self
                .ranks
                .gradients(gradients, shared_gradients, &self.device)?;
        }
        let (mut center, mut target_sum) = (self.center.clone(), self.target_sum.clone());
        let mut of_batch = Vec::new();
        if let Some(means) = teacher.means {
            let [mean_logits, mean_targets] = self.ranks.means(means)?;
            let momentum = self.plan.recipe.loss.center_momentum;
            center = center_update(center, mean_logits, momentum);
            let keep = 1.0 - 1.0 / self.target_memory();
            target_sum = target_sum * keep + mean_targets;
            let total = target_sum.clone().sum().reshape([1, 1]);
            let entropy = mean_entropy(&[target_sum.clone() / total]);
            of_batch.push((MEAN_TARGET_ENTROPY, entropy));
        }
        if let Some(moments) = moments {
            let [moments] = self.ranks.means([moments.div_scalar(shares as f64)])?;
            of_batch.push((FEATURE_STD, feature_std(moments)));
        }
        // All numbers of a step are read at once: the only wait for the device, unless ranks
        // exchange gradients.
        let (measurements, mut numbers): (Vec<_>, Vec<_>) = measured.into_iter().unzip();
        let (names, values): (Vec<_>, Vec<_>) = of_batch.into_iter().unzip();
        numbers.extend(values);
        let mut squares = Squares::of(&gradients);
        numbers.extend(squares.take());
        let numbers = read(numbers);
        let (values, rest) = numbers.split_at(measurements.len());
        let (of_batch, rest) = rest.split_at(names.len());
        let first = |values: &Vec<f64>| values.first().copied().unwrap_or(f64::NAN);
        let measured = measurements.into_iter().zip(values.iter().map(first));
        let measurements = Measurements::sum(measured, shares);
        Ok(BatchGradients {
            norms: squares.norms(rest),
            gradients,
            center,
            patch_center: teacher.patch_center,
            target_sum,
            of_batch: names.into_iter().zip(of_batch.iter().map(first)).collect(),
            measurements: measurements.over_ranks(self.ranks.collective())?,
        })
    }

    /// Steps over which the teacher targets are averaged for the collapse monitor: enough for
    /// several samples of each prototype.
    fn target_memory(&self) -> f64 {
        let recipe = &self.plan.recipe;
        let samples = (recipe.run.batch * recipe.views.global.max(1)) as f64;
        (4.0 * self.plan.prototypes as f64 / samples).clamp(20.0, 1000.0)
    }

    /// The masked patches of each share of a batch; none if nothing is masked.
    fn masks(&self, samples: &[ImageSample], share_size: usize) -> Vec<Option<ViewMasks>> {
        let recipe = &self.plan.recipe;
        let (loss, views) = (&recipe.loss, recipe.views.global);
        let draw = |share: usize| {
            let images = self.share.places_of_share(share);
            ViewMasks::draw(loss, [recipe.seed, self.step], images, views, self.grid)
        };
        { 0..samples.len() / share_size }
            .map(|share| loss.masks_patches().then(|| draw(share)))
            .collect()
    }

    /// The teacher's part in a step: targets of all images of a batch and of their masked patches, if
    /// anything is learned from them.
    fn teacher_outputs(
        &self,
        samples: &[ImageSample],
        masks: &[Option<ViewMasks>],
        part_size: usize,
        share_size: usize,
    ) -> Result<TeacherOutputs, CollectiveError> {
        if !self.plan.recipe.loss.has_teacher() {
            return Ok(TeacherOutputs {
                shares: masks.iter().map(|_| (None, None)).collect(),
                patch_center: self.patch_center.clone(),
                means: None,
            });
        }
        let temperature = ScheduledValues::at(&self.plan, self.step).teacher_temperature;
        let precision = self.plan.precision;
        let teacher = precision.within(|| self.teacher.clone().with_cast_weights());
        // By share, one tensor [batch, prototypes] a view.
        let mut logits: Vec<(Vec<Tensor<2>>, Option<Tensor<2>>)> = Vec::new();
        let mut masks = masks.iter();
        for samples in samples.chunks(part_size) {
            let shares: Vec<_> = samples.chunks(share_size).zip(masks.by_ref()).collect();
            logits.extend(self.replicas.map(shares, |_, (samples, masks)| {
                let method = self.plan.recipe.method;
                let inputs = BatchTensors::of_globals(samples, method, &self.device);
                let inputs = inputs.masked(masks.as_ref());
                precision.within(|| teacher.project(&inputs))
            }));
        }
        let loss = &self.plan.recipe.loss;
        let (views, patches): (Vec<_>, Vec<_>) = logits.into_iter().unzip();
        let (center, ranks) = (&self.center, &self.ranks);
        let targets = BatchTargets::new(views, loss.centering, center, temperature, ranks)?;
        let center = &self.patch_center;
        let patches = PatchTargets::new(patches, loss, center, temperature, ranks)?;
        let views = targets.shares.into_iter().map(Some);
        Ok(TeacherOutputs {
            shares: views.zip(patches.shares).collect(),
            patch_center: patches.center,
            means: Some([targets.mean_logits, targets.mean_targets]),
        })
    }

    /// Forward and backward pass of the student, with cast weights, over a share.
    fn share_gradients(
        &self,
        student: &Student,
        share: &ShareInputs<'_>,
        [part, replica]: [usize; 2],
        observe: bool,
    ) -> ShareGradients {
        let ShareInputs {
            samples,
            targets,
            patches,
            masks,
        } = share;
        let (seed, recipe) = (self.plan.recipe.seed, &self.plan.recipe);
        let (precision, checkpointing) = (self.plan.precision, recipe.run.gradient_checkpointing);
        let inputs = BatchTensors::new(samples, self.grid, recipe.method, &self.device);
        let inputs = inputs.masked(masks.as_ref());
        // Leaves of its own, so that replicas do not build one graph. The CPU's fused operations
        // recompute by themselves.
        let mut graph = self.device.clone().autodiff();
        if checkpointing && !fuses(&self.device) {
            graph = graph.gradient_checkpointing();
        }
        let student = StudentGraph::new(student, inputs.locals.is_some(), &graph);
        let classes = self
            .vocabulary
            .as_ref()
            .map_or(0, |vocabulary| vocabulary.parts.len());
        let masked = part_to_mask(
            recipe.method,
            classes,
            &mut rng_for(seed, self.step, "hidden part"),
        );
        let replica = self.share.replica(replica);
        let mut rng = rng_for(seed, self.step, &format!("drop path {part} {replica}"));
        let (cuts_graph, mut cuts) = (!self.ranks.collective().is_alone(), Vec::new());
        let mut cut = |shared: SharedFeatures| match cuts_graph {
            true => {
                let (shared, cut) = shared.cut();
                cuts.push(cut);
                shared
            }
            false => shared,
        };
        let outputs = precision.within(|| {
            recomputing(checkpointing, || {
                let locals = student.local_backbone();
                student
                    .student
                    .forward(locals, &inputs, masked, &mut rng, &mut cut)
            })
        });
        let distilled = { self.frozen_teacher.clone() }
            .map(|teacher| precision.within(|| teacher.features(inputs.globals.clone())));
        let ranges = { self.vocabulary.as_ref() }
            .map(Vocabulary::ranges)
            .unwrap_or_default();
        let share = ShareOutputs {
            student: &outputs,
            inputs: &inputs,
            targets: { targets.as_ref() }.map(|targets| &targets.probabilities[..]),
            patch_targets: patches.as_ref(),
            spreads: recipe.loss.koleo_weight > 0.0,
            distilled: distilled.as_ref(),
            student_temperature: recipe.loss.student_temperature,
            ranges: &ranges,
        };
        let (total, losses) = objective(&share, recipe);
        let losses = { losses.into_iter() }.map(|(name, value)| (Measurement::Loss(name), value));
        let mut measured: Vec<(Measurement, Tensor<1>)> = losses
            .chain([(Measurement::Total, total.clone())])
            .map(|(measurement, value)| (measurement, value.without_autodiff()))
            .collect();
        let entropy = targets.as_ref().map(|targets| targets.entropy.clone());
        measured.extend(entropy.map(|entropy| (Measurement::Mean(TARGET_ENTROPY), entropy)));
        if observe {
            measured.extend(observations(&share));
        }
        let shares = self.share.shares() as f64;
        let mut graph = (total / shares).backward();
        let before = GradientCut::before(cuts, &graph);
        ShareGradients {
            gradients: student.gradients(&mut graph),
            shared: before.map(|before| SharedPass { student, before }),
            measured,
            moments: feature_moments(outputs.pooled.inner()),
        }
    }

    /// The weights of merged experts under each prompt.
    fn expert_usage(&self) -> Vec<ExpertUsage> {
        let weights = self.student.trunk.backbone.expert_weights();
        let of_block = |(block, weights): (usize, Tensor<2>)| {
            let experts = weights.dims()[1];
            let values: Vec<f32> = weights.into_data().iter::<f32>().collect();
            let rows = values
                .chunks(experts)
                .map(|row| row.iter().map(|w| f64::from(*w)));
            let rows: Vec<Vec<f64>> = rows.map(Iterator::collect).collect();
            ExpertUsage::of_weights(self.step, block, rows)
        };
        weights.into_iter().enumerate().flat_map(of_block).collect()
    }
}

/// The metrics of a step; those of parts of the network only if it is
/// `observed`, by the kind of their parameters.
fn metrics(
    batch: &BatchGradients,
    norm: f64,
    scheduled: ScheduledValues,
    observed: Option<&ParameterGroups>,
) -> Metrics {
    let mut metrics = batch.measurements.metrics();
    let mut put = |name: &str, value: f64| metrics.insert(name.to_owned(), value);
    put("gradient/norm", norm);
    { batch.of_batch.iter() }.for_each(|(name, value)| _ = put(name, *value));
    if let Some(parameters) = observed {
        let backbone = |name: &str| parameters.get(name).is_some() && !parameters.is_prompt(name);
        put("gradient/backbone", batch.norms.total_of(backbone));
        let prompts = batch.norms.total_of(|name| parameters.is_prompt(name));
        if prompts > 0.0 {
            put("gradient/prompts", prompts);
        }
    }
    put("schedule/lr", scheduled.lr);
    put("schedule/weight_decay", scheduled.weight_decay);
    put("schedule/momentum", scheduled.momentum);
    put(
        "schedule/teacher_temperature",
        scheduled.teacher_temperature,
    );
    metrics
}

/// Constants of the recipe's optimizer.
pub(crate) fn adamw(plan: &PretrainPlan) -> OptimizerConfig {
    let optimizer = &plan.recipe.optimizer;
    let clip = match optimizer.clip_grad_mode {
        _ if optimizer.clip_grad == 0.0 => GradientClip::None,
        ClipGradMode::PerTensor => GradientClip::PerTensor(optimizer.clip_grad),
        ClipGradMode::Global => GradientClip::Global(optimizer.clip_grad),
    };
    OptimizerConfig {
        clip,
        ..OptimizerConfig::default()
    }
}

#[cfg(test)]
mod tests;
