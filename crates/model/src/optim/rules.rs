//! Update rules of the optimizers: SGD, Adam, AdamW. To add one: a variant of [`Rule`].

use burn::{backend::Flex, tensor::Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::host::{CHUNK, on_host};
#[cfg(feature = "gpu")]
use crate::gpu::AdamScalars;
use crate::kernels::operation::{host, values};

/// Update rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// g ← g + decay·p;  m ← β₁m + g, at first g;  p ← p − lr·m.
    Sgd,
    /// g ← g + decay·p, then Adam (Kingma and Ba 2015): m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²;
    /// p ← p − lr · m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + ε), t the parameter's own count.
    Adam,
    /// p ← p·(1 − lr·decay), then Adam (Loshchilov and Hutter 2019).
    AdamW,
}

/// Limit of the gradient's norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum GradientClip {
    /// No limit.
    None,
    /// Each tensor's norm, as DINO does.
    PerTensor(f64),
    /// The norm of all gradients together.
    Global(f64),
}

/// Constants of an optimizer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerConfig {
    /// How a gradient becomes a step.
    pub rule: Rule,
    /// β₁: momentum of SGD, or decay of Adam's first moment.
    pub beta1: f64,
    /// β₂: decay of the second moment.
    pub beta2: f64,
    /// ε: added to the root of the second moment.
    pub epsilon: f64,
    /// Limit of the gradient's norm.
    pub clip: GradientClip,
}

impl Default for OptimizerConfig {
    /// AdamW with PyTorch's constants, and DINO's limit of 3 for each tensor.
    fn default() -> Self {
        Self {
            rule: Rule::AdamW,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            clip: GradientClip::PerTensor(3.0),
        }
    }
}

/// Learning rate and weight decay of a parameter in one step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay.
    pub decay: f64,
}

/// Moments of one parameter.
#[derive(Debug, Clone)]
pub(super) struct ParameterMoments {
    /// Steps that this parameter has taken.
    pub(super) steps: u64,
    pub(super) first: Tensor<1>,
    /// None for SGD.
    pub(super) second: Option<Tensor<1>>,
}

/// What a step changes of a parameter, and by what.
pub(super) struct Update {
    pub(super) name: String,
    pub(super) value: Tensor<1>,
    pub(super) gradient: Tensor<1>,
    pub(super) moments: ParameterMoments,
    pub(super) formula: Formula,
}

/// Name, value and moments of a parameter after a step.
pub(super) type Updated = (String, Tensor<1>, ParameterMoments);

impl Update {
    /// The parameter after the step.
    pub(super) fn apply(self) -> Updated {
        let Self {
            name,
            value,
            gradient,
            moments,
            formula,
        } = self;
        let (value, moments) = if on_host(&value) {
            formula.on_host(value, gradient, moments)
        } else {
            formula.on_device(value, gradient, moments)
        };
        (name, value, moments)
    }
}

/// The update rule of one parameter at one step, as scalars.
pub(super) struct Formula {
    rule: Rule,
    /// Factor on the gradient.
    factor: f64,
    /// Factor on the parameter that is added to the gradient.
    added: f64,
    /// Factor on the parameter.
    keep: f64,
    /// lr of SGD; lr / (1 − β₁ᵗ) of Adam.
    rate: f64,
    beta1: f64,
    beta2: f64,
    /// 1 / √(1 − β₂ᵗ).
    inverse_root: f64,
    epsilon: f64,
    steps: u64,
}

impl Formula {
    pub(super) fn new(config: &OptimizerConfig, rates: Rates, factor: f64, steps: u64) -> Self {
        let OptimizerConfig {
            rule,
            beta1,
            beta2,
            epsilon,
            clip: _,
        } = *config;
        let t = steps as f64;
        let (added, keep) = match rule {
            Rule::Sgd | Rule::Adam => (rates.decay, 1.0),
            Rule::AdamW => (0.0, 1.0 - rates.lr * rates.decay),
        };
        let rate = match rule {
            Rule::Sgd => rates.lr,
            Rule::Adam | Rule::AdamW => rates.lr / (1.0 - beta1.powf(t)),
        };
        Self {
            rule,
            factor,
            added,
            keep,
            rate,
            beta1,
            beta2,
            inverse_root: 1.0 / (1.0 - beta2.powf(t)).sqrt(),
            epsilon,
            steps,
        }
    }

    pub(super) fn on_host(
        &self,
        value: Tensor<1>,
        gradient: Tensor<1>,
        moments: ParameterMoments,
    ) -> (Tensor<1>, ParameterMoments) {
        let [value, mut gradient, mut first] = [value, gradient, moments.first].map(host);
        let mut second = moments.second.map(host);
        let (factor, added) = (self.factor as f32, self.added as f32);
        let (keep, rate) = (self.keep as f32, self.rate as f32);
        let (beta1, beta2) = (self.beta1 as f32, self.beta2 as f32);
        let (new1, new2) = ((1.0 - self.beta1) as f32, (1.0 - self.beta2) as f32);
        let (inverse_root, epsilon) = (self.inverse_root as f32, self.epsilon as f32);

        // The new value is written into the gradient's memory: the old value may still be held
        // elsewhere.
        let values = { gradient.storage_mut::<f32>().par_chunks_mut(CHUNK) }
            .zip(values(&value).par_chunks(CHUNK))
            .zip(first.storage_mut::<f32>().par_chunks_mut(CHUNK));
        match &mut second {
            None => values.for_each(|((gradients, values), firsts)| {
                for ((g, p), m) in gradients.iter_mut().zip(values).zip(firsts) {
                    *m = beta1 * *m + (*g * factor + added * *p);
                    *g = *p - rate * *m;
                }
            }),
            Some(second) => values
                .zip(second.storage_mut::<f32>().par_chunks_mut(CHUNK))
                .for_each(|(((gradients, values), firsts), seconds)| {
                    let moments = firsts.iter_mut().zip(seconds);
                    for ((g, p), (m, v)) in gradients.iter_mut().zip(values).zip(moments) {
                        let slope = *g * factor + added * *p;
                        *m = beta1 * *m + new1 * slope;
                        *v = beta2 * *v + new2 * slope * slope;
                        *g = *p * keep - rate * *m / (v.sqrt() * inverse_root + epsilon);
                    }
                }),
        }
        let [value, first] = [gradient, first].map(Tensor::from_primitive::<Flex>);
        let second = second.map(Tensor::from_primitive::<Flex>);
        (value, self.moments(first, second))
    }

    pub(super) fn on_device(
        &self,
        value: Tensor<1>,
        gradient: Tensor<1>,
        moments: ParameterMoments,
    ) -> (Tensor<1>, ParameterMoments) {
        let mut gradient = gradient * self.factor;
        if self.rule != Rule::AdamW {
            gradient = gradient + value.clone() * self.added;
        }
        let Some(second) = moments.second else {
            let first = moments.first * self.beta1 + gradient;
            let value = value - first.clone() * self.rate;
            return (value, self.moments(first, None));
        };
        let first = moments.first * self.beta1 + gradient.clone() * (1.0 - self.beta1);
        let second = second * self.beta2 + gradient.clone() * gradient * (1.0 - self.beta2);
        let denominator = second.clone().sqrt() * self.inverse_root + self.epsilon;
        let value = value * self.keep - first.clone() / denominator * self.rate;
        (value, self.moments(first, Some(second)))
    }

    /// For the kernel; none for SGD, which it does not compute.
    #[cfg(feature = "gpu")]
    pub(super) fn scalars(&self) -> Option<AdamScalars> {
        (self.rule != Rule::Sgd).then_some(AdamScalars {
            factor: self.factor as f32,
            added: self.added as f32,
            keep: self.keep as f32,
            rate: self.rate as f32,
            beta1: self.beta1 as f32,
            one_minus_beta1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            one_minus_beta2: (1.0 - self.beta2) as f32,
            inverse_root: self.inverse_root as f32,
            epsilon: self.epsilon as f32,
        })
    }

    pub(super) fn moments(&self, first: Tensor<1>, second: Option<Tensor<1>>) -> ParameterMoments {
        ParameterMoments {
            steps: self.steps,
            first,
            second,
        }
    }
}
