//! AdamW (Loshchilov and Hutter 2019) over named parameters, and the teacher's moving average.
//!
//! Gradients are tensors by name, so those of several replicas are averaged before the step and a frozen
//! parameter is one without an entry. The rate and the decay are given anew at each step. The state goes out
//! and comes back as named arrays, for an exact resume.
//!
//! On the CPU a parameter, its gradient and its moments are read and written in one pass over slices; on other
//! devices the same formulas are tensor operations.

use std::collections::BTreeMap;

use burn::{
    backend::{Flex, flex::FlexTensor},
    module::Module,
    tensor::{Device, Tensor, TensorData},
};
use rayon::prelude::*;

use crate::{
    error::ModelError,
    kernels::scalar::{dot, vectorised},
    named::{self, Array, StateDict},
};

pub use crate::named::gradients;

/// Gradients by parameter name, flattened, outside autodiff.
pub type Gradients = BTreeMap<String, Tensor<1>>;

/// Values per task of a parallel pass. Partial sums are added in the order of the chunks, so that a norm does not
/// depend on the number of threads.
const CHUNK: usize = 1 << 15;

/// Limit of the gradient's norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Clip {
    /// No limit.
    None,
    /// Each tensor's norm, as DINO does.
    PerTensor(f64),
    /// The norm of all gradients together.
    Global(f64),
}

/// Constants of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Limit of the gradient's norm.
    pub clip: Clip,
}

impl Default for AdamWConfig {
    /// PyTorch's constants, and DINO's limit of 3 for each tensor.
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            clip: Clip::PerTensor(3.0),
        }
    }
}

/// What a step is made with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step<'a> {
    /// Learning rate.
    pub learning_rate: f64,
    /// Weight decay of the parameters that [`decays`].
    pub weight_decay: f64,
    /// Parameters whose name starts with one of these are left as they are, moments too.
    pub frozen: &'a [&'a str],
}

/// Whether weight decay acts on a parameter: not on vectors (biases, norms, γ, a) and prompts.
pub fn decays(name: &str, shape: &[usize]) -> bool {
    shape.len() > 1 && !name.ends_with(".bias") && !name.ends_with("prompts.vectors")
}

/// Moments of one parameter.
#[derive(Debug, Clone)]
struct Moments {
    /// Steps that this parameter has taken.
    steps: u64,
    first: Tensor<1>,
    second: Tensor<1>,
}

/// AdamW with its state.
#[derive(Debug, Clone)]
pub struct AdamW {
    config: AdamWConfig,
    moments: BTreeMap<String, Moments>,
}

impl AdamW {
    /// Without a history.
    pub fn new(config: AdamWConfig) -> Self {
        Self {
            config,
            moments: BTreeMap::new(),
        }
    }

    /// One step: the module with new values. A parameter without gradient, or frozen, keeps its value.
    ///
    /// p ← p·(1 − lr·decay);  m ← β₁m + (1−β₁)g;  v ← β₂v + (1−β₂)g²;
    /// p ← p − lr · m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + ε), t the parameter's own count, as in PyTorch.
    ///
    /// # Panics
    /// When a gradient's size is not its parameter's.
    pub fn step<M: Module>(&mut self, module: M, mut gradients: Gradients, step: &Step) -> M {
        gradients.retain(|name, _| !step.frozen.iter().any(|prefix| name.starts_with(prefix)));
        let clip = match self.config.clip {
            Clip::None => None,
            Clip::PerTensor(limit) => Some(ClipBy::OwnNorm(limit)),
            Clip::Global(limit) => Some(ClipBy::Factor(clip_factor(norm(&gradients), limit))),
        };
        named::map(module, &mut |name, shape, value| {
            let Some(gradient) = gradients.remove(name) else {
                return value;
            };
            assert_eq!(gradient.dims(), value.dims(), "gradient of `{name}`");
            let moments = self.moments.remove(name).unwrap_or_else(|| Moments {
                steps: 0,
                first: value.zeros_like(),
                second: value.zeros_like(),
            });
            let steps = moments.steps + 1;
            let decay = if decays(name, shape) {
                step.weight_decay
            } else {
                0.0
            };
            let rule = Rule {
                config: &self.config,
                clip,
                keep: 1.0 - step.learning_rate * decay,
                rate: step.learning_rate / (1.0 - self.config.beta1.powf(steps as f64)),
                root: (1.0 - self.config.beta2.powf(steps as f64)).sqrt(),
            };
            let [value, first, second] = if on_host(&value) {
                rule.on_host(value, gradient, moments.first, moments.second)
            } else {
                rule.on_device(value, gradient, moments.first, moments.second)
            };
            let moments = Moments {
                steps,
                first,
                second,
            };
            self.moments.insert(name.to_string(), moments);
            value
        })
    }

    /// The state: `NAME.first`, `NAME.second` and `NAME.steps` of each parameter that has taken a step.
    pub fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        for (name, moments) in &self.moments {
            let array = |tensor: &Tensor<1>| Array {
                shape: tensor.dims().to_vec(),
                data: tensor.to_data().iter::<f32>().collect(),
            };
            let steps = Array {
                shape: vec![2],
                data: split_count(moments.steps).to_vec(),
            };
            state.insert(format!("{name}.first"), array(&moments.first));
            state.insert(format!("{name}.second"), array(&moments.second));
            state.insert(format!("{name}.steps"), steps);
        }
        state
    }

    /// An optimiser that goes on where [`AdamW::state`] was taken.
    ///
    /// # Errors
    /// When a moment is missing, or the two of a parameter differ in size.
    pub fn from_state(
        config: AdamWConfig,
        state: &StateDict,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let hint = "the optimiser's state in the checkpoint is not whole; start a new run from its weights";
        let get = |name: String| state.get(&name).ok_or(ModelError::Missing { name, hint });
        let mut moments = BTreeMap::new();
        for name in state.keys() {
            let Some(parameter) = name.strip_suffix(".steps") else {
                if name.ends_with(".first") || name.ends_with(".second") {
                    continue;
                }
                return Err(ModelError::Unexpected { name: name.clone() });
            };
            let first = get(format!("{parameter}.first"))?;
            let second = get(format!("{parameter}.second"))?;
            for (moment, array) in [("first", first), ("second", second)] {
                if array.shape != [first.data.len()] || array.data.len() != first.data.len() {
                    return Err(ModelError::Values {
                        name: format!("{parameter}.{moment}"),
                        shape: array.shape.clone(),
                        needed: first.data.len(),
                        found: array.data.len(),
                    });
                }
            }
            let steps = get(name.clone())?;
            let [low, high] = steps.data[..] else {
                return Err(ModelError::Values {
                    name: name.clone(),
                    shape: steps.shape.clone(),
                    needed: 2,
                    found: steps.data.len(),
                });
            };
            let tensor = |array: &Array| Tensor::<1>::from_floats(array.data.as_slice(), device);
            let entry = Moments {
                steps: join_count([low, high]),
                first: tensor(first),
                second: tensor(second),
            };
            moments.insert(parameter.to_string(), entry);
        }
        Ok(Self { config, moments })
    }

    /// Checks a loaded state against the module that it is to train.
    ///
    /// # Errors
    /// When it holds a parameter that the module has not, or one of another size.
    pub fn check<M: Module>(&self, module: &M) -> Result<(), ModelError> {
        let mut sizes = BTreeMap::new();
        named::visit(module, &mut |name, shape, _| {
            sizes.insert(name.to_string(), shape.iter().product::<usize>());
        });
        for (name, moments) in &self.moments {
            let [found] = moments.first.dims();
            match sizes.get(name) {
                None => return Err(ModelError::Unexpected { name: name.clone() }),
                Some(size) if *size != found => {
                    return Err(ModelError::Shape {
                        name: name.clone(),
                        expected: vec![*size],
                        found: vec![found],
                    });
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

/// A count as two numbers below 2²⁴, which f32 holds exactly.
fn split_count(count: u64) -> [f32; 2] {
    [(count & 0xff_ffff) as f32, (count >> 24) as f32]
}

fn join_count([low, high]: [f32; 2]) -> u64 {
    low as u64 + ((high as u64) << 24)
}

/// Where a gradient's factor comes from.
#[derive(Debug, Clone, Copy)]
enum ClipBy {
    OwnNorm(f64),
    Factor(f64),
}

/// What a gradient of that norm is multiplied by, so that its norm is at most the limit.
fn clip_factor(norm: f64, limit: f64) -> f64 {
    (limit / (norm + 1e-6)).min(1.0)
}

/// AdamW's formula for one tensor at one step.
struct Rule<'a> {
    config: &'a AdamWConfig,
    clip: Option<ClipBy>,
    /// 1 − lr·decay.
    keep: f64,
    /// lr / (1 − β₁ᵗ).
    rate: f64,
    /// √(1 − β₂ᵗ).
    root: f64,
}

impl Rule<'_> {
    fn on_host(
        &self,
        value: Tensor<1>,
        gradient: Tensor<1>,
        first: Tensor<1>,
        second: Tensor<1>,
    ) -> [Tensor<1>; 3] {
        let [value, mut gradient, mut first, mut second] =
            [value, gradient, first, second].map(host);
        let factor = match self.clip {
            None => 1.0,
            Some(ClipBy::Factor(factor)) => factor,
            Some(ClipBy::OwnNorm(limit)) => clip_factor(square_sum(slice(&gradient)).sqrt(), limit),
        } as f32;
        let (beta1, beta2) = (self.config.beta1 as f32, self.config.beta2 as f32);
        let (new1, new2) = (
            (1.0 - self.config.beta1) as f32,
            (1.0 - self.config.beta2) as f32,
        );
        let (keep, rate) = (self.keep as f32, self.rate as f32);
        let (inverse_root, epsilon) = ((1.0 / self.root) as f32, self.config.epsilon as f32);

        // The gradient's memory becomes the new value's: the old value may be held elsewhere still.
        let moments = first
            .storage_mut::<f32>()
            .par_chunks_mut(CHUNK)
            .zip(second.storage_mut::<f32>().par_chunks_mut(CHUNK));
        gradient
            .storage_mut::<f32>()
            .par_chunks_mut(CHUNK)
            .zip(slice(&value).par_chunks(CHUNK))
            .zip(moments)
            .for_each(|((gradients, values), (firsts, seconds))| {
                let moments = firsts.iter_mut().zip(seconds);
                for ((g, p), (m, v)) in gradients.iter_mut().zip(values).zip(moments) {
                    let slope = *g * factor;
                    *m = beta1 * *m + new1 * slope;
                    *v = beta2 * *v + new2 * slope * slope;
                    *g = *p * keep - rate * *m / (v.sqrt() * inverse_root + epsilon);
                }
            });
        [gradient, first, second].map(Tensor::from_primitive::<Flex>)
    }

    fn on_device(
        &self,
        value: Tensor<1>,
        gradient: Tensor<1>,
        first: Tensor<1>,
        second: Tensor<1>,
    ) -> [Tensor<1>; 3] {
        let gradient = match self.clip {
            None => gradient,
            Some(ClipBy::Factor(factor)) => gradient * factor,
            Some(ClipBy::OwnNorm(limit)) => {
                // On the device, without waiting for the norm.
                let norm = gradient.clone().square().sum().sqrt();
                let factor = ((norm + 1e-6).recip() * limit).clamp_max(1.0);
                gradient * factor
            }
        };
        let AdamWConfig { beta1, beta2, .. } = *self.config;
        let first = first * beta1 + gradient.clone() * (1.0 - beta1);
        let second = second * beta2 + gradient.square() * (1.0 - beta2);
        let denominator = second.clone().sqrt() / self.root + self.config.epsilon;
        let value = value * self.keep - first.clone() / denominator * self.rate;
        [value, first, second]
    }
}

/// Norm of all gradients together.
pub fn norm(gradients: &Gradients) -> f64 {
    let squares: f64 = gradients
        .values()
        .map(|gradient| {
            if on_host(gradient) {
                square_sum(slice(&host(gradient.clone())))
            } else {
                f64::from(gradient.clone().square().sum().into_scalar::<f32>())
            }
        })
        .sum();
    squares.sqrt()
}

/// Mean of the replicas' gradients. What a replica has no gradient of counts as zero.
///
/// # Panics
/// Without replicas.
pub fn average(replicas: Vec<Gradients>) -> Gradients {
    let count = replicas.len();
    assert!(count > 0, "no replicas to average");
    let mut replicas = replicas.into_iter();
    let mut sum = replicas.next().unwrap_or_default();
    if count == 1 {
        return sum;
    }
    for replica in replicas {
        for (name, gradient) in replica {
            let total = match sum.remove(&name) {
                Some(total) => total + gradient,
                None => gradient,
            };
            sum.insert(name, total);
        }
    }
    sum.into_iter()
        .map(|(name, gradient)| (name, gradient.div_scalar(count as f64)))
        .collect()
}

/// The teacher's moving average: teacher ← momentum·teacher + (1 − momentum)·student, by name.
///
/// # Panics
/// When the student lacks a parameter of the teacher.
pub fn ema<T: Module, S: Module>(teacher: T, student: &S, momentum: f64) -> T {
    let mut values = BTreeMap::new();
    named::visit(student, &mut |name, _, value| {
        values.insert(name.to_string(), value);
    });
    named::map(teacher, &mut |name, _, old| {
        let Some(new) = values.remove(name) else {
            panic!("the student has no `{name}`");
        };
        if !on_host(&old) {
            return old * momentum + new * (1.0 - momentum);
        }
        let (keep, take) = (momentum as f32, (1.0 - momentum) as f32);
        let (old, new) = (host(old), host(new));
        let average: Vec<f32> = slice(&old)
            .par_iter()
            .zip(slice(&new))
            .with_min_len(CHUNK)
            .map(|(old, new)| keep * old + take * new)
            .collect();
        let count = average.len();
        Tensor::from_data(TensorData::new(average, [count]), &Device::flex())
    })
}

/// Whether slices of the tensor's memory can be had without a transfer.
fn on_host(tensor: &Tensor<1>) -> bool {
    tensor.device() == Device::flex()
}

/// The tensor as the CPU has it: in one piece, and copied only where it is not.
fn host(tensor: Tensor<1>) -> FlexTensor {
    match tensor.try_into_primitive::<Flex>() {
        Ok(tensor) => tensor.to_contiguous(),
        Err(error) => panic!("not a tensor of the CPU: {error:?}"),
    }
}

fn slice(tensor: &FlexTensor) -> &[f32] {
    match tensor.as_slice::<f32>() {
        Some(values) => values,
        None => panic!("a tensor of f32 in one piece is not a slice"),
    }
}

fn square_sum(values: &[f32]) -> f64 {
    let sums: Vec<f64> = values
        .par_chunks(CHUNK)
        .map(|chunk| {
            let mut sum = 0.0;
            square_sums(chunk, &mut sum);
            sum
        })
        .collect();
    sums.into_iter().sum()
}

vectorised! {
    /// sum += Σ values², in f64 over short stretches in f32.
    fn square_sums<'a>(values: &'a [f32], sum: &'a mut f64) {
        for stretch in values.chunks(256) {
            *sum += f64::from(dot(stretch, stretch));
        }
    }
}
