//! One step of CLIP training.

use burn::module::Module;
use burn::tensor::Device;
use clasp_model::Replicas;
use clasp_model::clip::{Clip, ClipConfig};
use clasp_model::optim::{GradientClip, Norms, Optimizer, OptimizerConfig, Rates, decays, ema};
use clasp_run::recipe::Auto;
use clasp_run::{Metrics, NonFinite};

use super::batch::{ClassPhrases, PairBatch, draw_patches};
use super::config::ClipTrainConfig;
use super::error::ClipTrainError;
use super::gradients::{BatchGradients, ClipStep};
use super::objectives::{AttributeObjective, PartObjective};

/// CLIP's bound of the factor on cosines.
const LARGEST_SCALE: f64 = 100.0;

/// A CLIP in training.
pub(super) struct ClipTrainer {
    /// The resolved recipe.
    pub config: ClipTrainConfig,
    /// Sizes of the model.
    pub model: ClipConfig,
    /// The trained weights.
    pub clip: Clip,
    /// The moving average of the weights.
    pub average: Clip,
    /// The optimizer with its state.
    pub optimizer: Optimizer,
    /// Steps that are done.
    pub step: u64,
    /// Texts for part classes and attribute values.
    pub phrases: ClassPhrases,
    /// Without autodiff.
    pub device: Device,
    replicas: Replicas,
    replica_count: usize,
}

impl ClipTrainer {
    /// A trainer at step 0, from the weights of `clip`; `config` is resolved.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub(super) fn new(
        config: ClipTrainConfig,
        clip: Clip,
        phrases: ClassPhrases,
    ) -> Result<Self, ClipTrainError> {
        let model = clip.config().clone();
        let clip = clip.valid();
        let replica_count = match config.run.replicas {
            Auto::Value(replicas) => replicas,
            Auto::Auto => 1,
        };
        Ok(Self {
            device: clip.logit_scale.val().device(),
            optimizer: Optimizer::new(optimizer_config(&config)),
            average: clip.clone(),
            clip,
            model,
            step: 0,
            phrases,
            replicas: Replicas::new(replica_count)?,
            replica_count,
            config,
        })
    }

    /// One step on a batch.
    ///
    /// # Errors
    /// A loss or the norm of the gradients is not finite; the step then has no effect.
    pub(super) fn step(&mut self, batch: &PairBatch) -> Result<Metrics, NonFinite> {
        let (config, model, phrases) = (&self.config, &self.model, &self.phrases);
        let step = self.step as usize;
        let patches = draw_patches(config.seed, step, config.stage(step), model);
        let patches = patches.as_deref();
        let part = PartObjective::new(config, step, &phrases.parts, batch, patches, model);
        let attribute = AttributeObjective::new(config, step, phrases, batch, patches, model);
        let clip_step = ClipStep {
            batch,
            patches,
            part: part.as_ref(),
            attribute: attribute.as_ref(),
            device: &self.device,
        };
        let BatchGradients {
            contrastive,
            contrastive_floor,
            part,
            attribute,
            mut gradients,
        } = clip_step.gradients(&self.clip, &self.replicas, self.replica_count);
        let total = f64::from(contrastive)
            + config.loss.part_weight * f64::from(part)
            + config.loss.attribute_weight * f64::from(attribute.total);
        let losses = [
            ("contrastive", f64::from(contrastive)),
            ("part", f64::from(part)),
            ("attribute", f64::from(attribute.total)),
            ("total", total),
        ];
        for (name, value) in losses {
            NonFinite::check(|| format!("{name} loss"), value)?;
        }
        let norms = Norms::of(&gradients);
        let norm = norms.total();
        NonFinite::check(|| "norm of the gradients".to_owned(), norm)?;

        let lr = config.learning_rate(step);
        let rates = |name: &str, shape: &[usize]| {
            let decay = match decays(name, shape) {
                true => config.optimizer.weight_decay,
                false => 0.0,
            };
            Some(Rates { lr, decay })
        };
        let clip = self.clip.clone();
        let mut clip = self
            .optimizer
            .step("", clip, &mut gradients, &norms, &rates);
        clip.logit_scale = clip
            .logit_scale
            .map(|scale| scale.clamp(0.0, LARGEST_SCALE.ln()));
        self.average = ema(self.average.clone(), &clip, config.momentum(step));
        self.clip = clip;
        self.step += 1;

        let mut metrics: Metrics = { losses.into_iter() }
            .map(|(name, value)| (format!("loss/{name}"), value))
            .collect();
        let scale = self.clip.scale().into_scalar::<f32>();
        metrics.extend(
            [
                ("loss/contrastive_floor", f64::from(contrastive_floor)),
                ("loss/attribute_images", f64::from(attribute.images)),
                ("schedule/lr", lr),
                ("gradient/norm", norm),
                ("scale", f64::from(scale)),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        Ok(metrics)
    }
}

/// The optimizer of the recipe.
pub(super) fn optimizer_config(config: &ClipTrainConfig) -> OptimizerConfig {
    OptimizerConfig {
        beta2: 0.98,
        epsilon: 1e-6,
        clip: GradientClip::Global(config.optimizer.clip_grad),
        ..OptimizerConfig::default()
    }
}
