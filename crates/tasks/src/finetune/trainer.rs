//! One step: the backbone runs in replicas, each on one thread, the head and the loss once on the
//! whole batch. Of several ranks each has some of the replicas, and all compute the head.
//!
//! The features of all replicas are leaves of a second graph, that of the head and the loss; its
//! gradients at these leaves are then propagated through the replicas (as Gao et al., "Scaling Deep
//! Contrastive Learning Batch Size under Memory Limited Setup", 2021, do to save memory). The loss
//! is computed on the whole batch, as triplets and batch normalization need, whatever the number of
//! replicas.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use clasp_data::rng_for;
use clasp_model::backbone::{Backbone, Features, with_gradient};
use clasp_model::heads::{Statistics, Training, update_statistics};
use clasp_model::optim::{
    self, FlatLayout, GradientClip, Gradients, Norms, Optimizer, OptimizerConfig, ema,
};
use clasp_model::parameters::ParameterGroups;
use clasp_model::prompt::PromptWeights;
use clasp_model::{Precision, Replicas};
use clasp_run::{Collective, Metrics, NonFinite, StepError};
use clasp_weights::backbone::BackboneMeta;

use super::inputs::{padded_inputs, size};
use super::ranks::RankExchange;
use super::recipe::{FinetunePlan, Trainable};
use super::schedule::{ParameterRates, lr_factor};
use super::self_correction::CycleAverage;
use crate::TaskError;
use crate::features::Preprocess;
use crate::task::model::feature_layout;
use crate::task::objective::scalar;
use crate::task::{Example, FinetunedModel, LabelRefiner, Objective};

/// A network in training.
pub struct FinetuneTrainer<T: Objective> {
    /// The resolved recipe.
    pub plan: FinetunePlan<T::Config>,
    /// The task.
    pub task: T,
    /// On the autodiff side of the device.
    pub backbone: Backbone,
    /// On the autodiff side of the device.
    pub head: T::Head,
    /// The moving average, where there is one.
    pub average: Option<(Backbone, T::Head)>,
    /// The average of self-correction cycles, after the first one.
    pub cycle_average: Option<CycleAverage<T>>,
    /// The optimizer with its state.
    pub optimizer: Optimizer,
    /// Steps that are done.
    pub step: u64,
    /// Factor of the learning rate by plateaus.
    pub plateau_factor: f64,
    /// How an image becomes an input.
    pub preprocess: Preprocess,
    /// Metadata of the backbone for the model's file.
    pub meta: BackboneMeta,
    prompt: PromptWeights,
    /// Whether any parameter of the backbone is trained.
    trains_backbone: bool,
    /// Layer and kind of the backbone's parameters, called `backbone.` and their name.
    parameters: ParameterGroups,
    device: Device,
    /// The ranks that compute the rest of a batch.
    ranks: RankExchange,
    /// One thread a replica of this process.
    replicas: Replicas,
}

impl<T: Objective> FinetuneTrainer<T> {
    /// A trainer at step 0: `backbone` with the metadata of its file, a head with fresh weights. All
    /// ranks of `collective` must have the same plan and weights, and call [`Self::step`] with the same
    /// batches.
    ///
    /// # Errors
    /// The head cannot be built on the backbone, or a thread cannot be started.
    pub fn new(
        plan: FinetunePlan<T::Config>,
        task: T,
        backbone: Backbone,
        meta: BackboneMeta,
        preprocess: Preprocess,
        device: &Device,
        collective: Arc<dyn Collective>,
    ) -> Result<Self, TaskError> {
        let device = device.clone().inner();
        let prompt = plan.recipe.prompt_weights::<T>()?;
        let size = [preprocess.height, preprocess.width];
        let layout = feature_layout(&backbone, &prompt, size, &device);
        let mut rng = rng_for(plan.recipe.seed, 0, "head");
        let head = task.head(&layout, &mut rng, &device.clone().autodiff())?;
        let average = (plan.recipe.run.ema > 0.0).then(|| (backbone.valid(), head.valid()));
        let model = &plan.recipe.model;
        let trains_backbone = model.trainable != Trainable::Head || model.learns_prompt();
        let of_backbone = match trains_backbone {
            true => FlatLayout::of(&backbone).with_prefix("backbone."),
            false => FlatLayout::default(),
        };
        let layouts = [FlatLayout::of(&head).with_prefix("head."), of_backbone];
        let ranks = RankExchange::new(collective, layouts);
        let (_, own) = ranks.own_replicas(plan.replicas);
        let parameters = backbone.parameter_groups()?.with_prefix("backbone.");
        let replicas =
            Replicas::new(own).map_err(|error| TaskError::Io(std::io::Error::other(error)))?;
        Ok(Self {
            optimizer: Optimizer::new(optimizer_config(&plan)),
            step: 0,
            plateau_factor: 1.0,
            plan,
            task,
            backbone,
            head,
            average,
            cycle_average: None,
            preprocess,
            meta,
            prompt,
            trains_backbone,
            parameters,
            device,
            ranks,
            replicas,
        })
    }

    /// The current model: the average of self-correction cycles, the moving average, or the
    /// weights.
    pub fn model(&self) -> FinetunedModel<T> {
        let (backbone, head) = match (&self.cycle_average, &self.average) {
            (Some(average), _) => (average.backbone.clone(), average.head.clone()),
            (None, Some((backbone, head))) => (backbone.clone(), head.clone()),
            (None, None) => (self.backbone.valid(), self.head.valid()),
        };
        FinetunedModel {
            backbone,
            head,
            task: self.task.clone(),
            prompt: self.prompt,
            precision: Precision::F32,
            preprocess: self.preprocess.clone(),
            device: self.device.clone(),
            meta: BackboneMeta {
                step: self.step,
                ..self.meta.clone()
            },
        }
    }

    /// One step on a batch, of which this rank computes the backbone for its share.
    ///
    /// # Errors
    /// A loss is not finite, or a rank is gone; the step then has no effect.
    ///
    /// # Panics
    /// When the replicas do not divide the batch.
    pub fn step(&mut self, examples: &[Example<T::Target>]) -> Result<Metrics, StepError> {
        let replicas = self.plan.replicas;
        let (first, own) = self.ranks.own_replicas(replicas);
        assert!(
            examples.len().is_multiple_of(replicas) && !examples.is_empty(),
            "{} examples for {replicas} replicas",
            examples.len()
        );
        let share = examples.len() / replicas;
        let shares = examples.chunks(share).skip(first).take(own);
        let shares: Vec<&[Example<T::Target>]> = shares.collect();
        let trained = self.trains_backbone;
        let size = size(examples);
        let refined = match &self.cycle_average {
            None => None,
            Some(average) => {
                let features = self.replicas.map(shares.clone(), |_, share| {
                    let (images, prompt) = padded_inputs(share, size, &self.prompt, &self.device);
                    average.backbone.forward(images, prompt, None)
                });
                let features = self
                    .ranks
                    .features(concatenated(&features), T::HEAD_INPUT)?;
                Some((average, features))
            }
        };
        let outputs = self.replicas.map(shares, |replica, share| {
            self.forward(share, size, first + replica, trained)
        });

        let features = self.ranks.features(detached(&outputs), T::HEAD_INPUT)?;
        let leaves = leaves_of(features);
        let targets: Vec<T::Target> = examples.iter().map(|e| e.target.clone()).collect();
        let mut statistics = Statistics::new();
        let mut rng = rng_for(self.plan.recipe.seed, self.step, "dropout");
        let mut training = Training {
            statistics: &mut statistics,
            rng: &mut rng,
        };
        let loss = match &refined {
            None => self.task.loss(&self.head, &leaves, &targets, &mut training),
            Some((average, features)) => {
                let refiner = LabelRefiner {
                    head: &average.head,
                    features,
                    cycles: average.cycles,
                };
                let (head, task) = (&self.head, &self.task);
                task.refined_loss(head, &leaves, &targets, &mut training, &refiner)
            }
        };
        let total = scalar(&loss.total);
        let named = loss.terms.iter().map(|(name, value)| (*name, *value));
        for (term, value) in named.chain([("total", total)]) {
            NonFinite::check(|| format!("{term} loss"), value)?;
        }
        self.ranks.agree_on_loss(total)?;
        let mut graph = loss.total.backward();
        let of_head = optim::gradients(&self.head, &mut graph);
        let at_leaves = FeatureGradients {
            pooled: leaves.pooled.grad(&graph),
            pyramid: leaves.pyramid.iter().map(|map| map.grad(&graph)).collect(),
        };
        drop(graph);
        let of_backbone = || {
            let mut sum = Gradients::new();
            if trained {
                let gradients_of_replicas = self.replicas.map(outputs, |replica, output| {
                    output.backward(&at_leaves.share((first + replica) * share, share))
                });
                for gradients in gradients_of_replicas {
                    optim::add(&mut sum, gradients);
                }
            }
            sum
        };
        let gradients = self.ranks.gradients(of_head, of_backbone, &self.device)?;
        let mut metrics: Metrics = { loss.terms.iter() }
            .map(|(name, value)| (format!("loss/{name}"), *value))
            .collect();
        metrics.insert("loss/total".to_owned(), total);
        let lr = self.learning_rate();
        metrics.insert("schedule/lr".to_owned(), lr);
        let norm = self.update(gradients, lr, statistics)?;
        metrics.insert("gradient/norm".to_owned(), norm);
        self.average = self.average.take().map(|(backbone, head)| {
            let momentum = self.plan.recipe.run.ema;
            (
                ema(backbone, &self.backbone, momentum),
                ema(head, &self.head, momentum),
            )
        });
        self.step += 1;
        Ok(metrics)
    }

    /// Ends a cycle of self-correction: adds the current weights to the average; `batches` are
    /// training images.
    pub fn end_cycle(&mut self, batches: impl Iterator<Item = Vec<Example<T::Target>>>) {
        let (backbone, head) = (self.backbone.valid(), self.head.valid());
        let mut average = CycleAverage::with(self.cycle_average.take(), backbone, head);
        average.estimate_statistics(&self.task, &self.prompt, &self.device, batches);
        self.cycle_average = Some(average);
    }

    /// Where it computes.
    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// The learning rate of the next step.
    pub fn learning_rate(&self) -> f64 {
        self.plan.recipe.optimizer.lr * lr_factor(&self.plan, self.step) * self.plateau_factor
    }

    /// Updates the trained parameters and returns the norm of their gradients.
    fn update(
        &mut self,
        mut gradients: Gradients,
        lr: f64,
        statistics: Statistics,
    ) -> Result<f64, NonFinite> {
        let recipe = &self.plan.recipe;
        let groups = ParameterRates {
            optimizer: &recipe.optimizer,
            model: &recipe.model,
            parameters: &self.parameters,
            lr,
        };
        let rates = |name: &str, shape: &[usize]| groups.rates(name, shape);
        // Frozen parameters do not count in the norm that is clipped.
        gradients.retain(|name, _| rates(name, &[]).is_some());
        let norms = Norms::of(&gradients);
        let norm = norms.total();
        NonFinite::check(|| "norm of the gradients".to_owned(), norm)?;
        let (optimizer, gradients) = (&mut self.optimizer, &mut gradients);
        let backbone = self.backbone.clone();
        self.backbone = optimizer.step("backbone.", backbone, gradients, &norms, &rates);
        let head = optimizer.step("head.", self.head.clone(), gradients, &norms, &rates);
        self.head = update_statistics(head, statistics);
        Ok(norm)
    }

    /// The backbone's forward pass over a replica's share of the batch, padded to `size` (height,
    /// width); with a graph if it is `trained`.
    fn forward(
        &self,
        share: &[Example<T::Target>],
        size: [usize; 2],
        replica: usize,
        trained: bool,
    ) -> ReplicaOutput {
        let (images, prompt) = padded_inputs(share, size, &self.prompt, &self.device);
        if !trained {
            let backbone = self.backbone.valid();
            let features = backbone.forward(images, prompt, None);
            return ReplicaOutput { backbone, features };
        }
        // Forked, so that every replica has a graph of its own.
        let backbone = self.backbone.clone().fork(&self.device.clone().autodiff());
        let purpose = format!("drop path {replica}");
        let mut rng = rng_for(self.plan.recipe.seed, self.step, &purpose);
        let (images, prompt) = (Tensor::from_inner(images), Tensor::from_inner(prompt));
        let features = backbone.forward(images, prompt, Some(&mut rng));
        ReplicaOutput { backbone, features }
    }
}

/// The features of all replicas, concatenated along the batch.
fn concatenated(parts: &[Features]) -> Features {
    let stages = parts.first().map_or(0, |features| features.pyramid.len());
    let pyramid: Vec<Tensor<4>> = (0..stages)
        .map(|stage| {
            let maps = parts.iter().map(|features| features.pyramid[stage].clone());
            Tensor::cat(maps.collect(), 0)
        })
        .collect();
    let pooled = parts.iter().map(|features| features.pooled.clone());
    Features {
        map: pyramid[stages - 1].clone(),
        pooled: Tensor::cat(pooled.collect(), 0),
        pyramid,
    }
}

/// The optimizer of the recipe.
pub(super) fn optimizer_config<C>(plan: &FinetunePlan<C>) -> OptimizerConfig {
    let optimizer = &plan.recipe.optimizer;
    OptimizerConfig {
        rule: optimizer.name,
        beta1: optimizer.momentum,
        beta2: optimizer.beta2,
        clip: match optimizer.clip_grad {
            0.0 => GradientClip::None,
            limit => GradientClip::Global(limit),
        },
        ..OptimizerConfig::default()
    }
}

/// The forward pass of one replica: its copy of the backbone and the features of its share of the
/// batch.
struct ReplicaOutput {
    backbone: Backbone,
    features: Features,
}

/// Gradients of the loss with respect to the features.
struct FeatureGradients {
    pooled: Option<Tensor<2>>,
    pyramid: Vec<Option<Tensor<4>>>,
}

impl FeatureGradients {
    /// Those of `count` images from `start`.
    fn share(&self, start: usize, count: usize) -> Self {
        Self {
            pooled: (self.pooled.clone()).map(|gradient| gradient.narrow(0, start, count)),
            pyramid: { self.pyramid.iter() }
                .map(|map| map.clone().map(|gradient| gradient.narrow(0, start, count)))
                .collect(),
        }
    }
}

impl ReplicaOutput {
    /// Gradients of the backbone's parameters, given those of its features: the gradient of Σ
    /// feature · gradient.
    fn backward(self, at: &FeatureGradients) -> Gradients {
        let Features {
            pooled, pyramid, ..
        } = self.features;
        let pooled = at
            .pooled
            .clone()
            .map(|gradient| with_gradient(pooled, gradient));
        let maps = { pyramid.into_iter().zip(&at.pyramid) }
            .filter_map(|(map, gradient)| Some(with_gradient(map, gradient.clone()?)));
        match pooled
            .into_iter()
            .chain(maps)
            .reduce(|sum, term| sum + term)
        {
            Some(sum) => optim::gradients(&self.backbone, &mut sum.backward()),
            None => Gradients::new(),
        }
    }
}

/// The features of all replicas, concatenated, without their graphs.
fn detached(outputs: &[ReplicaOutput]) -> Features {
    // Detached first: concatenated before, the graphs of the replicas would become one, whose
    // backward passes are serial.
    let parts: Vec<Features> = { outputs.iter() }
        .map(|ReplicaOutput { features, .. }| Features {
            map: features.map.clone().without_autodiff(),
            pooled: features.pooled.clone().without_autodiff(),
            pyramid: { features.pyramid.iter() }
                .map(|map| map.clone().without_autodiff())
                .collect(),
        })
        .collect();
    concatenated(&parts)
}

/// Features as leaves of a new graph.
fn leaves_of(features: Features) -> Features {
    fn leaf<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
        Tensor::from_inner(tensor).require_grad()
    }
    let Features {
        pooled, pyramid, ..
    } = features;
    let pyramid: Vec<Tensor<4>> = pyramid.into_iter().map(leaf).collect();
    Features {
        // The map is the last of the pyramid, where its gradient is read.
        map: pyramid[pyramid.len() - 1].clone(),
        pooled: leaf(pooled),
        pyramid,
    }
}
