//! One step: the backbone runs in replicas, each on one thread, the head and the loss once on the whole batch.
//!
//! Features of all replicas become leaves of a second graph, that of the head and the loss; its gradients at these
//! leaves then go back through the replicas (Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory
//! Limited Setup", 2021, do the same to save memory). So the loss sees the whole batch, as triplets and batch
//! normalisation must, however many replicas there are.

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use clasp_data::rng_for;
use clasp_model::backbone::{Backbone, Features};
use clasp_model::heads::{Statistics, Training, update_statistics};
use clasp_model::mix::Mix;
use clasp_model::optim::{self, GradientClip, Gradients, Norms, Optimizer, OptimizerConfig, ema};
use clasp_model::parameters::ParameterGroups;
use clasp_model::{Precision, Replicas};
use clasp_run::Metrics;

use super::correct::{Corrected, Teacher};
use super::model::stages;
use super::recipe::{Plan, Tune};
use super::schedule::{Groups, factor};
use super::{Example, Model, Task, scalar};
use crate::TaskError;
use crate::features::Preprocess;
use clasp_weights::backbone::BackboneMeta;

/// A network in training.
pub struct Trainer<T: Task> {
    /// The resolved recipe.
    pub plan: Plan<T::Settings>,
    /// The task.
    pub task: T,
    /// On the autodiff side of the device.
    pub backbone: Backbone,
    /// On the autodiff side of the device.
    pub head: T::Head,
    /// The moving average, where there is one.
    pub average: Option<(Backbone, T::Head)>,
    /// The average of the ends of cycles, once there is one.
    pub corrected: Option<Corrected<T>>,
    /// The optimiser with its state.
    pub optimiser: Optimizer,
    /// Steps that are done.
    pub step: u64,
    /// What plateaus have multiplied the learning rate by.
    pub plateaus: f64,
    /// How an image becomes an input.
    pub preprocess: Preprocess,
    /// What the model's file will say of the backbone.
    pub meta: BackboneMeta,
    mix: Mix,
    prompts: bool,
    parameters: ParameterGroups,
    device: Device,
    replicas: Replicas,
}

/// A loss, or the norm of the gradients, that is infinite or not a number; the step has changed nothing.
#[derive(Debug)]
pub struct NonFinite {
    /// What it is.
    pub term: String,
    /// Its value.
    pub value: f64,
}

impl<T: Task> Trainer<T> {
    /// A trainer at step 0: `backbone` and its file's words, a head with fresh weights.
    ///
    /// # Errors
    /// The head does not go with the backbone, or a thread cannot be started.
    pub fn new(
        plan: Plan<T::Settings>,
        task: T,
        backbone: Backbone,
        meta: BackboneMeta,
        preprocess: Preprocess,
        device: &Device,
    ) -> Result<Self, TaskError> {
        let device = device.clone().inner();
        let (mix, prompts) = plan.recipe.mix::<T>()?;
        let size = [preprocess.height, preprocess.width];
        let shape = stages(&backbone, &mix, size, &device);
        let mut rng = rng_for(plan.recipe.seed, 0, "head");
        let head = task.head(&shape, &mut rng, &device.clone().autodiff())?;
        let average = (plan.recipe.run.ema > 0.0).then(|| (backbone.valid(), head.valid()));
        let parameters = backbone.parameter_groups()?.with_prefix("backbone.");
        let replicas = Replicas::new(plan.replicas)
            .map_err(|error| TaskError::Io(std::io::Error::other(error)))?;
        Ok(Self {
            optimiser: Optimizer::new(optimiser_config(&plan)),
            step: 0,
            plateaus: 1.0,
            plan,
            task,
            backbone,
            head,
            average,
            corrected: None,
            preprocess,
            meta,
            mix,
            prompts,
            parameters,
            device,
            replicas,
        })
    }

    /// The model as it is now, its moving average, or the average of the ends of cycles.
    pub fn model(&self) -> Model<T> {
        let (backbone, head) = match (&self.corrected, &self.average) {
            (Some(corrected), _) => (corrected.backbone.clone(), corrected.head.clone()),
            (None, Some((backbone, head))) => (backbone.clone(), head.clone()),
            (None, None) => (self.backbone.valid(), self.head.valid()),
        };
        Model {
            backbone,
            head,
            task: self.task.clone(),
            mix: self.mix,
            precision: Precision::F32,
            preprocess: self.preprocess.clone(),
            device: self.device.clone(),
            meta: BackboneMeta {
                step: self.step,
                ..self.meta.clone()
            },
        }
    }

    /// One step on a batch.
    ///
    /// # Errors
    /// A loss is not finite; nothing has changed then.
    ///
    /// # Panics
    /// When the replicas do not divide the batch.
    pub fn step(&mut self, examples: &[Example<T::Target>]) -> Result<Metrics, NonFinite> {
        let replicas = self.plan.replicas;
        assert!(
            examples.len().is_multiple_of(replicas) && !examples.is_empty(),
            "{} examples for {replicas} replicas",
            examples.len()
        );
        let shares: Vec<&[Example<T::Target>]> =
            examples.chunks(examples.len() / replicas).collect();
        let trained = self.plan.recipe.model.tune != Tune::Head || self.prompts;
        let size = size(examples);
        let teacher = self.corrected.as_ref().map(|corrected| {
            let features = self.replicas.map(shares.clone(), |_, share| {
                let (images, mix) = padded_inputs(share, size, &self.mix, &self.device);
                corrected.backbone.forward(images, mix, None)
            });
            (corrected, together(&features))
        });
        let drafts = self.replicas.map(shares, |replica, share| {
            self.draft(share, size, replica, trained)
        });

        let leaves = join(&drafts);
        let targets: Vec<T::Target> = examples.iter().map(|e| e.target.clone()).collect();
        let mut statistics = Statistics::new();
        let mut rng = rng_for(self.plan.recipe.seed, self.step, "dropout");
        let mut training = Training {
            statistics: &mut statistics,
            rng: &mut rng,
        };
        let losses = match &teacher {
            None => self.task.loss(&self.head, &leaves, &targets, &mut training),
            Some((corrected, features)) => {
                let teacher = Teacher {
                    head: &corrected.head,
                    features,
                    cycles: corrected.cycles,
                };
                let (head, task) = (&self.head, &self.task);
                task.refined_loss(head, &leaves, &targets, &mut training, &teacher)
            }
        };
        let total = scalar(&losses.total);
        let named = losses.terms.iter().map(|(name, value)| (*name, *value));
        let wrong = named
            .chain([("total", total)])
            .find(|(_, v)| !v.is_finite());
        if let Some((term, value)) = wrong {
            return Err(NonFinite {
                term: format!("loss `{term}`"),
                value,
            });
        }
        let mut graph = losses.total.backward();
        let mut gradients: Gradients = optim::gradients(&self.head, &mut graph)
            .into_iter()
            .map(|(name, gradient)| (format!("head.{name}"), gradient))
            .collect();
        if trained {
            let at_leaves = Gradient {
                pooled: leaves.pooled.grad(&graph),
                pyramid: leaves.pyramid.iter().map(|map| map.grad(&graph)).collect(),
            };
            drop(graph);
            let size = examples.len() / replicas;
            let back = self.replicas.map(drafts, |replica, draft| {
                draft.backward(&at_leaves.share(replica * size, size))
            });
            for share in back {
                let named = |(name, gradient)| (format!("backbone.{name}"), gradient);
                optim::add(&mut gradients, share.into_iter().map(named).collect());
            }
        }
        let mut metrics: Metrics = { losses.terms.iter() }
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

    /// Puts the weights as they are now into the average of the ends of cycles; `batches` are training images.
    pub fn correct(&mut self, batches: impl Iterator<Item = Vec<Example<T::Target>>>) {
        let (backbone, head) = (self.backbone.valid(), self.head.valid());
        let mut corrected = Corrected::with(self.corrected.take(), backbone, head);
        corrected.restate(&self.task, &self.mix, &self.device, batches);
        self.corrected = Some(corrected);
    }

    /// Where it computes.
    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    /// The learning rate of the next step.
    pub fn learning_rate(&self) -> f64 {
        self.plan.recipe.optimiser.lr * factor(&self.plan, self.step) * self.plateaus
    }

    /// Takes a step with the gradients of what is trained and returns their norm.
    fn update(
        &mut self,
        mut gradients: Gradients,
        lr: f64,
        statistics: Statistics,
    ) -> Result<f64, NonFinite> {
        let recipe = &self.plan.recipe;
        let groups = Groups {
            optimiser: &recipe.optimiser,
            model: &recipe.model,
            prompts: self.prompts,
            parameters: &self.parameters,
            lr,
        };
        let rates = |name: &str, shape: &[usize]| groups.rates(name, shape);
        // What is not trained has no part in the norm that is limited.
        gradients.retain(|name, _| rates(name, &[]).is_some());
        let norms = Norms::of(&gradients);
        let norm = norms.total();
        if !norm.is_finite() {
            return Err(NonFinite {
                term: "norm of the gradients".to_owned(),
                value: norm,
            });
        }
        let (optimiser, gradients) = (&mut self.optimiser, &mut gradients);
        let backbone = self.backbone.clone();
        self.backbone = optimiser.step("backbone.", backbone, gradients, &norms, &rates);
        let head = optimiser.step("head.", self.head.clone(), gradients, &norms, &rates);
        self.head = update_statistics(head, statistics);
        Ok(norm)
    }

    /// The forward pass over a share as inputs of one height and width, with a graph if it is `trained`.
    fn draft(
        &self,
        share: &[Example<T::Target>],
        size: [usize; 2],
        replica: usize,
        trained: bool,
    ) -> Draft {
        let (images, mix) = padded_inputs(share, size, &self.mix, &self.device);
        if !trained {
            let backbone = self.backbone.valid();
            let features = backbone.forward(images, mix, None);
            return Draft { backbone, features };
        }
        // Leaves of its own, so that replicas do not build one graph.
        let backbone = self.backbone.clone().fork(&self.device.clone().autodiff());
        let purpose = format!("drop path {replica}");
        let mut rng = rng_for(self.plan.recipe.seed, self.step, &purpose);
        let (images, mix) = (Tensor::from_inner(images), Tensor::from_inner(mix));
        let features = backbone.forward(images, mix, Some(&mut rng));
        Draft { backbone, features }
    }
}

/// The greatest height and width of examples.
fn size<T>(examples: &[Example<T>]) -> [usize; 2] {
    let most = |axis: usize| examples.iter().map(|example| example.size[axis]).max();
    [0, 1].map(|axis| most(axis).unwrap_or(0))
}

/// Examples as a batch of inputs: images [batch, 3, height, width], mix [batch, tasks].
pub(super) fn inputs<T>(
    examples: &[Example<T>],
    mix: &Mix,
    device: &Device,
) -> (Tensor<4>, Tensor<2>) {
    padded_inputs(examples, size(examples), mix, device)
}

fn padded_inputs<T>(
    examples: &[Example<T>],
    [height, width]: [usize; 2],
    mix: &Mix,
    device: &Device,
) -> (Tensor<4>, Tensor<2>) {
    let mut pixels = vec![0.0; examples.len() * 3 * height * width];
    for (input, example) in pixels.chunks_exact_mut(3 * height * width).zip(examples) {
        let [rows, columns] = example.size;
        let planes = input.chunks_exact_mut(height * width);
        for (plane, values) in planes.zip(example.pixels.chunks_exact(rows * columns)) {
            let lines = plane
                .chunks_exact_mut(width)
                .zip(values.chunks_exact(columns));
            lines.for_each(|(to, from)| to[..columns].copy_from_slice(from));
        }
    }
    let data = TensorData::new(pixels, [examples.len(), 3, height, width]);
    let images = Tensor::from_data(data, device);
    (images, mix.tensor(device))
}

/// The features of all shares in one.
fn together(parts: &[Features]) -> Features {
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

/// The recipe's optimiser.
pub(super) fn optimiser_config<S>(plan: &Plan<S>) -> OptimizerConfig {
    let optimiser = &plan.recipe.optimiser;
    OptimizerConfig {
        rule: optimiser.rule,
        beta1: optimiser.momentum,
        beta2: optimiser.beta2,
        clip: match optimiser.clip {
            0.0 => GradientClip::None,
            limit => GradientClip::Global(limit),
        },
        ..OptimizerConfig::default()
    }
}

/// A replica's share of a batch after the forward pass.
struct Draft {
    backbone: Backbone,
    features: Features,
}

/// Gradients of the loss at features.
struct Gradient {
    pooled: Option<Tensor<2>>,
    pyramid: Vec<Option<Tensor<4>>>,
}

impl Gradient {
    /// Those of some images.
    fn share(&self, start: usize, count: usize) -> Self {
        Self {
            pooled: (self.pooled.clone()).map(|gradient| gradient.narrow(0, start, count)),
            pyramid: { self.pyramid.iter() }
                .map(|map| map.clone().map(|gradient| gradient.narrow(0, start, count)))
                .collect(),
        }
    }
}

impl Draft {
    /// Gradients of the backbone, given those at its features: the gradient of Σ feature · gradient.
    fn backward(self, at: &Gradient) -> Gradients {
        let mut sum: Option<Tensor<1>> = None;
        let mut add = |term: Tensor<1>| {
            sum = Some(match sum.take() {
                Some(sum) => sum + term,
                None => term,
            });
        };
        if let Some(gradient) = &at.pooled {
            add((self.features.pooled * Tensor::from_inner(gradient.clone())).sum());
        }
        for (map, gradient) in self.features.pyramid.into_iter().zip(&at.pyramid) {
            if let Some(gradient) = gradient {
                add((map * Tensor::from_inner(gradient.clone())).sum());
            }
        }
        match sum {
            Some(sum) => optim::gradients(&self.backbone, &mut sum.backward()),
            None => Gradients::new(),
        }
    }
}

/// The features of all shares as leaves.
fn join(drafts: &[Draft]) -> Features {
    fn leaf<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
        Tensor::from_inner(tensor).require_grad()
    }
    // Off the replicas' graphs first: joined before, these become one graph, whose backward passes wait for one another.
    let parts: Vec<Features> = { drafts.iter() }
        .map(|Draft { features, .. }| Features {
            map: features.map.clone().without_autodiff(),
            pooled: features.pooled.clone().without_autodiff(),
            pyramid: { features.pyramid.iter() }
                .map(|map| map.clone().without_autodiff())
                .collect(),
        })
        .collect();
    let Features {
        pooled, pyramid, ..
    } = together(&parts);
    let pyramid: Vec<Tensor<4>> = pyramid.into_iter().map(leaf).collect();
    Features {
        // The map is the last of the pyramid, and so its gradient is found there.
        map: pyramid[pyramid.len() - 1].clone(),
        pooled: leaf(pooled),
        pyramid,
    }
}
