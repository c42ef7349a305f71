//! SGD, Adam and AdamW over named parameters, each with rates of its own, and the teacher's moving average.
//!
//! Gradients are tensors by name, so those of several replicas are averaged before the step and a frozen
//! parameter is one without an entry, or without rates. Rates are given anew at each step. The state goes out
//! and comes back as named arrays, for an exact resume. Formulas are PyTorch's.
//!
//! On the CPU a parameter, its gradient and its moments are read and written in one pass over slices. On other devices
//! the same formulas are tensor operations on equal shapes and numbers of the host, which Burn's fusion makes one kernel
//! a parameter; nothing waits for the device but [`read`].

use std::collections::BTreeMap;

use burn::{
    backend::Flex,
    module::Module,
    tensor::{Device, Tensor, Transaction},
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    error::ModelError,
    kernels::{
        operation::{host, values},
        scalar::{dot, vectorised},
    },
    moe::is_prompt,
    named::{self, Array, StateDict},
};

pub use crate::named::gradients;

/// Gradients by parameter name, flattened, outside autodiff.
pub type Gradients = BTreeMap<String, Tensor<1>>;

/// Values per task of a parallel pass. Partial sums are added in the order of the chunks, so that a norm does not
/// depend on the number of threads.
const CHUNK: usize = 1 << 15;

/// How a gradient becomes a step.
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
pub enum Clip {
    /// No limit.
    None,
    /// Each tensor's norm, as DINO does.
    PerTensor(f64),
    /// The norm of all gradients together.
    Global(f64),
}

/// Constants of an optimiser.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimiserConfig {
    /// How a gradient becomes a step.
    pub rule: Rule,
    /// β₁: momentum of SGD, or decay of Adam's first moment.
    pub beta1: f64,
    /// β₂: decay of the second moment.
    pub beta2: f64,
    /// ε: added to the root of the second moment.
    pub epsilon: f64,
    /// Limit of the gradient's norm.
    pub clip: Clip,
}

impl Default for OptimiserConfig {
    /// AdamW with PyTorch's constants, and DINO's limit of 3 for each tensor.
    fn default() -> Self {
        Self {
            rule: Rule::AdamW,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            clip: Clip::PerTensor(3.0),
        }
    }
}

/// What a parameter's step is made with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay.
    pub decay: f64,
}

/// Whether weight decay acts on a parameter: not on biases, norms and prompts.
pub fn decays(name: &str, shape: &[usize]) -> bool {
    shape.len() > 1 && !name.ends_with(".bias") && !is_prompt(name)
}

/// Moments of one parameter.
#[derive(Debug, Clone)]
struct Moments {
    /// Steps that this parameter has taken.
    steps: u64,
    first: Tensor<1>,
    /// None for SGD.
    second: Option<Tensor<1>>,
}

/// An optimiser with its state.
#[derive(Debug, Clone)]
pub struct Optimiser {
    config: OptimiserConfig,
    moments: BTreeMap<String, Moments>,
}

impl Optimiser {
    /// Without a history.
    pub fn new(config: OptimiserConfig) -> Self {
        Self {
            config,
            moments: BTreeMap::new(),
        }
    }

    /// One step: the module, whose parameters are called `prefix` and their name, with new values. A parameter without a
    /// gradient, or without `rates`, keeps its value and its state. What was used is taken out of `gradients`; `norms` are
    /// theirs.
    ///
    /// # Panics
    /// When a gradient's size is not its parameter's.
    pub fn step<M: Module>(
        &mut self,
        prefix: &str,
        module: M,
        gradients: &mut Gradients,
        norms: &Norms,
        rates: &dyn Fn(&str, &[usize]) -> Option<Rates>,
    ) -> M {
        let factors = norms.factors(self.config.clip);
        named::map(module, &mut |name, shape, value| {
            let name = format!("{prefix}{name}");
            let Some(gradient) = gradients.remove(&name) else {
                return value;
            };
            let Some(rates) = rates(&name, shape) else {
                return value;
            };
            assert_eq!(gradient.dims(), value.dims(), "gradient of `{name}`");
            let moments = self.moments.remove(&name).unwrap_or_else(|| Moments {
                steps: 0,
                first: value.zeros_like(),
                second: (self.config.rule != Rule::Sgd).then(|| value.zeros_like()),
            });
            let formula = Formula::new(&self.config, rates, factors(&name), moments.steps + 1);
            let (value, moments) = if on_host(&value) {
                formula.on_host(value, gradient, moments)
            } else {
                formula.on_device(value, gradient, moments)
            };
            self.moments.insert(name, moments);
            value
        })
    }

    /// The state: `NAME.first`, `NAME.second` (not of SGD) and `NAME.steps` of each parameter that has taken a step.
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
            if let Some(second) = &moments.second {
                state.insert(format!("{name}.second"), array(second));
            }
            state.insert(format!("{name}.steps"), steps);
        }
        state
    }

    /// An optimiser that goes on where [`Optimiser::state`] was taken.
    ///
    /// # Errors
    /// When a moment is missing, the two of a parameter differ in size, or the state is one of another rule.
    pub fn from_state(
        config: OptimiserConfig,
        state: &StateDict,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let hint = "the optimiser's state in the checkpoint is not whole; start a new run from its weights";
        let get = |name: String| state.get(&name).ok_or(ModelError::Missing { name, hint });
        let kept = match config.rule {
            Rule::Sgd => &["first"][..],
            Rule::Adam | Rule::AdamW => &["first", "second"],
        };
        let mut moments = BTreeMap::new();
        for name in state.keys() {
            let Some(parameter) = name.strip_suffix(".steps") else {
                let moment = kept.iter().find_map(|moment| {
                    let parameter = name.strip_suffix(moment)?.strip_suffix('.')?;
                    Some(parameter)
                });
                let Some(parameter) = moment else {
                    return Err(ModelError::Unexpected { name: name.clone() });
                };
                // A moment without a count is not passed over: the optimiser would start from nothing there.
                get(format!("{parameter}.steps"))?;
                continue;
            };
            let size = get(format!("{parameter}.first"))?.data.len();
            let tensor = |moment: &str| {
                let name = format!("{parameter}.{moment}");
                let array = get(name.clone())?;
                if array.shape != [size] || array.data.len() != size {
                    return Err(ModelError::Values {
                        name,
                        shape: array.shape.clone(),
                        needed: size,
                        found: array.data.len(),
                    });
                }
                Ok(Tensor::<1>::from_floats(array.data.as_slice(), device))
            };
            let steps = get(name.clone())?;
            let Some(steps) = join_count(&steps.data) else {
                return Err(ModelError::Values {
                    name: name.clone(),
                    shape: steps.shape.clone(),
                    needed: 2,
                    found: steps.data.len(),
                });
            };
            let entry = Moments {
                steps,
                first: tensor("first")?,
                second: match config.rule {
                    Rule::Sgd => None,
                    Rule::Adam | Rule::AdamW => Some(tensor("second")?),
                },
            };
            moments.insert(parameter.to_string(), entry);
        }
        Ok(Self { config, moments })
    }

    /// Checks a loaded state against the module that it is to train, whose parameters are called `prefix` and their name.
    /// What other prefixes have is not looked at.
    ///
    /// # Errors
    /// When it holds a parameter that the module has not, or one of another size.
    pub fn check<M: Module>(&self, prefix: &str, module: &M) -> Result<(), ModelError> {
        let mut sizes = BTreeMap::new();
        named::visit(module, &mut |name, shape, _| {
            sizes.insert(format!("{prefix}{name}"), shape.iter().product::<usize>());
        });
        for (name, moments) in { self.moments.iter() }.filter(|(name, _)| name.starts_with(prefix))
        {
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

/// What [`split_count`] split; none of anything else.
fn join_count(parts: &[f32]) -> Option<u64> {
    let whole = |part: f32| (0.0..16_777_216.0).contains(&part) && part.fract() == 0.0;
    match *parts {
        [low, high] if whole(low) && whole(high) => Some(low as u64 + ((high as u64) << 24)),
        _ => None,
    }
}

/// A rule for one parameter at one step: numbers of the host alone.
struct Formula {
    rule: Rule,
    /// What the gradient is multiplied by.
    factor: f64,
    /// What of the parameter is added to the gradient.
    added: f64,
    /// What of the parameter stays.
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
    fn new(config: &OptimiserConfig, rates: Rates, factor: f64, steps: u64) -> Self {
        let OptimiserConfig {
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

    fn on_host(
        &self,
        value: Tensor<1>,
        gradient: Tensor<1>,
        moments: Moments,
    ) -> (Tensor<1>, Moments) {
        let [value, mut gradient, mut first] = [value, gradient, moments.first].map(host);
        let mut second = moments.second.map(host);
        let (factor, added) = (self.factor as f32, self.added as f32);
        let (keep, rate) = (self.keep as f32, self.rate as f32);
        let (beta1, beta2) = (self.beta1 as f32, self.beta2 as f32);
        let (new1, new2) = ((1.0 - self.beta1) as f32, (1.0 - self.beta2) as f32);
        let (inverse_root, epsilon) = (self.inverse_root as f32, self.epsilon as f32);

        // The gradient's memory becomes the new value's: the old value may be held elsewhere still.
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

    fn on_device(
        &self,
        value: Tensor<1>,
        gradient: Tensor<1>,
        moments: Moments,
    ) -> (Tensor<1>, Moments) {
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

    fn moments(&self, first: Tensor<1>, second: Option<Tensor<1>>) -> Moments {
        Moments {
            steps: self.steps,
            first,
            second,
        }
    }
}

/// Norms of gradients by name.
#[derive(Debug, Clone, Default)]
pub struct Norms(BTreeMap<String, f64>);

impl Norms {
    /// Waits for the device.
    pub fn of(gradients: &Gradients) -> Self {
        Self::new(gradients, &read(squares(gradients)))
    }

    /// From what [`read`] made of [`squares`].
    ///
    /// # Panics
    /// When they are not as many.
    pub fn new(gradients: &Gradients, squares: &[f64]) -> Self {
        assert_eq!(gradients.len(), squares.len(), "squares of the gradients");
        let norms = gradients.keys().zip(squares);
        Self(
            norms
                .map(|(name, sum)| (name.clone(), sum.sqrt()))
                .collect(),
        )
    }

    /// Norm of all gradients together.
    pub fn total(&self) -> f64 {
        self.total_of(|_| true)
    }

    /// Norm of the gradients whose names `of` accepts together.
    pub fn total_of(&self, of: impl Fn(&str) -> bool) -> f64 {
        let norms = self.0.iter().filter(|(name, _)| of(name));
        norms.map(|(_, norm)| norm * norm).sum::<f64>().sqrt()
    }

    /// What the gradient of a name is to be multiplied by.
    fn factors(&self, clip: Clip) -> impl Fn(&str) -> f64 + '_ {
        let factor = |norm: f64, limit: f64| (limit / (norm + 1e-6)).min(1.0);
        let whole = match clip {
            Clip::Global(limit) => factor(self.total(), limit),
            Clip::None | Clip::PerTensor(_) => 1.0,
        };
        move |name| match (clip, self.0.get(name)) {
            (Clip::PerTensor(limit), Some(norm)) => factor(*norm, limit),
            _ => whole,
        }
    }
}

/// Σ g² of each gradient, in the order of their names, where the gradient is: [1] each.
pub fn squares(gradients: &Gradients) -> Vec<Tensor<1>> {
    let square = |gradient: &Tensor<1>| {
        if on_host(gradient) {
            let sum = square_sum(values(&host(gradient.clone())));
            Tensor::from_floats([sum as f32], &gradient.device())
        } else {
            gradient.clone().square().sum()
        }
    };
    gradients.values().map(square).collect()
}

/// The first value of each tensor, for one wait of the host: reading them one by one would wait for each.
pub fn read(tensors: Vec<Tensor<1>>) -> Vec<f64> {
    let reads = tensors
        .into_iter()
        .fold(Transaction::default(), |reads, tensor| {
            reads.register(tensor.without_autodiff())
        });
    let first = |data: burn::tensor::TensorData| data.iter::<f64>().next().unwrap_or(f64::NAN);
    reads.execute().into_iter().map(first).collect()
}

/// Adds gradients to others: in their memory where nothing else holds it, by all threads, so that many replicas do not wait for
/// one.
///
/// # Panics
/// When two of a name differ in size.
pub fn add(sum: &mut Gradients, gradients: Gradients) {
    for (name, gradient) in gradients {
        let Some(before) = sum.remove(&name) else {
            sum.insert(name, gradient);
            continue;
        };
        assert_eq!(before.dims(), gradient.dims(), "gradients of `{name}`");
        let total = if on_host(&before) {
            let (mut before, gradient) = (host(before), host(gradient));
            { before.storage_mut::<f32>().par_chunks_mut(CHUNK) }
                .zip(values(&gradient).par_chunks(CHUNK))
                .for_each(|(before, gradient)| {
                    before
                        .iter_mut()
                        .zip(gradient)
                        .for_each(|(sum, g)| *sum += g);
                });
            Tensor::from_primitive::<Flex>(before)
        } else {
            before + gradient
        };
        sum.insert(name, total);
    }
}

/// Mean of the replicas' gradients. What a replica has no gradient of counts as zero.
///
/// # Panics
/// Without replicas.
pub fn average(replicas: Vec<Gradients>) -> Gradients {
    let count = replicas.len();
    assert!(count > 0, "no replicas to average");
    let mut sum = Gradients::new();
    for replica in replicas {
        add(&mut sum, replica);
    }
    if count == 1 {
        return sum;
    }
    sum.into_iter()
        .map(|(name, gradient)| (name, gradient.div_scalar(count as f64)))
        .collect()
}

/// The teacher's moving average: teacher ← momentum·teacher + (1 − momentum)·student, by name; in the teacher's memory where
/// nothing else holds it.
///
/// # Panics
/// When the student lacks a parameter of the teacher.
pub fn ema<T: Module, S: Module>(teacher: T, student: &S, momentum: f64) -> T {
    let mut news = BTreeMap::new();
    named::visit(student, &mut |name, _, value| {
        news.insert(name.to_string(), value);
    });
    named::map(teacher, &mut |name, _, old| {
        let Some(new) = news.remove(name) else {
            panic!("the student has no `{name}`");
        };
        if !on_host(&old) {
            return old * momentum + new * (1.0 - momentum);
        }
        let (keep, take) = (momentum as f32, (1.0 - momentum) as f32);
        let (mut old, new) = (host(old), host(new));
        { old.storage_mut::<f32>().par_iter_mut() }
            .zip(values(&new))
            .with_min_len(CHUNK)
            .for_each(|(old, new)| *old = keep * *old + take * new);
        Tensor::from_primitive::<Flex>(old)
    })
}

/// Whether slices of the tensor's memory can be had without a transfer.
fn on_host(tensor: &Tensor<1>) -> bool {
    tensor.device() == Device::flex()
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

#[cfg(test)]
mod tests {
    use super::*;
    use burn::{module::Param, tensor::Device};

    #[derive(Module, Debug)]
    struct Two {
        a: Param<Tensor<2>>,
        b: Param<Tensor<1>>,
    }

    fn config(rule: Rule) -> OptimiserConfig {
        OptimiserConfig {
            rule,
            clip: Clip::None,
            ..OptimiserConfig::default()
        }
    }

    fn optimiser(rule: Rule) -> Optimiser {
        Optimiser::new(config(rule))
    }

    fn step(
        optimiser: &mut Optimiser,
        module: Two,
        rates: &dyn Fn(&str, &[usize]) -> Option<Rates>,
    ) -> Two {
        let mut gradients = gradients();
        let norms = Norms::of(&gradients);
        optimiser.step("m.", module, &mut gradients, &norms, rates)
    }

    fn module() -> Two {
        let device = Device::flex();
        Two {
            a: Param::from_data([[1.0, -2.0]], &device),
            b: Param::from_data([0.5], &device),
        }
    }

    fn weights(module: &Two) -> Vec<f32> {
        let mut all = Vec::new();
        named::visit(module, &mut |_, _, value| {
            all.extend(value.into_data().iter::<f32>());
        });
        all
    }

    fn gradients() -> Gradients {
        let tensor = |values: &[f32]| Tensor::<1>::from_floats(values, &Device::flex());
        Gradients::from([
            ("m.a".to_owned(), tensor(&[0.5, 0.25])),
            ("m.b".to_owned(), tensor(&[-1.0])),
        ])
    }

    #[test]
    fn each_parameter_has_its_own_rate_and_none_means_frozen() {
        let mut optimiser = optimiser(Rule::Sgd);
        let rates = |name: &str, _: &[usize]| {
            (name == "m.a").then_some(Rates {
                lr: 0.1,
                decay: 0.01,
            })
        };
        let mut module = module();
        for _ in 0..2 {
            module = step(&mut optimiser, module, &rates);
        }
        // By hand: m1 = 0.5 + 0.01, p1 = 1 − 0.051; m2 = 0.9·0.51 + 0.5 + 0.01·0.949.
        let p1 = 1.0 - 0.1 * 0.51;
        let p2 = p1 - 0.1 * (0.9 * 0.51 + 0.5 + 0.01 * p1);
        let found = weights(&module);
        assert!((found[0] - p2).abs() < 1e-6 && found[2] == 0.5, "{found:?}");
    }

    #[test]
    fn a_state_goes_on_to_the_bit() {
        for rule in [Rule::Sgd, Rule::Adam, Rule::AdamW] {
            let rates = |_: &str, _: &[usize]| {
                Some(Rates {
                    lr: 0.1,
                    decay: 0.1,
                })
            };
            let mut whole = optimiser(rule);
            let mut module = module();
            for _ in 0..2 {
                module = step(&mut whole, module, &rates);
            }
            let load =
                |state: &StateDict| Optimiser::from_state(config(rule), state, &Device::flex());
            let mut again = load(&whole.state()).unwrap();
            again.check("m.", &module).unwrap();
            let expected = step(&mut whole, module.clone(), &rates);
            let found = step(&mut again, module, &rates);
            assert_eq!(weights(&found), weights(&expected));
            let mut broken = whole.state();
            broken.remove("m.a.first");
            assert!(load(&broken).is_err());
            // A state of one rule is not one of another.
            let other = if rule == Rule::Sgd {
                Rule::Adam
            } else {
                Rule::Sgd
            };
            assert!(Optimiser::from_state(config(other), &whole.state(), &Device::flex()).is_err());
        }
    }

    #[test]
    fn clipping_keeps_small_gradients() {
        let norms = Norms::of(&gradients());
        let factor = |clip, name: &str| norms.factors(clip)(name);
        let total = (0.5_f64 * 0.5 + 0.25 * 0.25 + 1.0).sqrt();
        assert!((norms.total() - total).abs() < 1e-6);
        for (clip, name, expected) in [
            (Clip::None, "m.b", 1.0),
            (Clip::Global(10.0), "m.b", 1.0),
            (Clip::Global(0.1), "m.b", 0.1 / total),
            (Clip::PerTensor(0.9), "m.a", 1.0),
            (Clip::PerTensor(0.9), "m.b", 0.9),
        ] {
            let found = factor(clip, name);
            assert!((found - expected).abs() < 1e-5, "{clip:?} {name}: {found}");
        }
    }

    #[test]
    fn a_state_that_is_not_whole_is_told() {
        let mut optimiser = optimiser(Rule::AdamW);
        let rates = |_: &str, _: &[usize]| {
            Some(Rates {
                lr: 0.1,
                decay: 0.0,
            })
        };
        step(&mut optimiser, module(), &rates);
        let whole = optimiser.state();
        let load = |state: &StateDict| {
            Optimiser::from_state(config(Rule::AdamW), state, &Device::flex()).map(drop)
        };
        load(&whole).unwrap();
        for name in whole.keys() {
            let mut state = whole.clone();
            state.remove(name);
            assert!(load(&state).is_err(), "without {name}");
        }
        for steps in [
            vec![1.5, 0.0],
            vec![-1.0, 0.0],
            vec![f32::NAN, 0.0],
            vec![1.0, 1e20],
        ] {
            let mut state = whole.clone();
            if let Some(array) = state.get_mut("m.a.steps") {
                array.data = steps.clone();
            }
            assert!(load(&state).is_err(), "{steps:?} steps");
        }
    }

    #[test]
    fn tensor_operations_are_the_loops_over_slices() {
        let count = 1000;
        let tensor = |seed: f32| {
            let values: Vec<f32> = (0..count).map(|i| (i as f32 * 0.37 + seed).sin()).collect();
            Tensor::<1>::from_floats(values.as_slice(), &Device::flex())
        };
        for rule in [Rule::Sgd, Rule::Adam, Rule::AdamW] {
            let rates = Rates {
                lr: 0.03,
                decay: 0.2,
            };
            let formula = Formula::new(&config(rule), rates, 0.7, 3);
            let moments = || Moments {
                steps: 2,
                first: tensor(2.0),
                second: (rule != Rule::Sgd).then(|| tensor(3.0).square()),
            };
            let (value, after) = formula.on_host(tensor(0.0), tensor(1.0), moments());
            let (other, other_after) = formula.on_device(tensor(0.0), tensor(1.0), moments());
            let mut pairs = vec![(value, other), (after.first, other_after.first)];
            pairs.extend(after.second.zip(other_after.second));
            assert_eq!(pairs.len(), if rule == Rule::Sgd { 2 } else { 3 });
            for (one, other) in pairs {
                let apart: f32 = (one - other).abs().max().into_scalar();
                assert!(apart < 1e-5, "{rule:?}: {apart}");
            }
        }
    }

    #[test]
    fn gradients_add_up_by_name() {
        let mut sum = Gradients::from([(
            "m.b".to_owned(),
            Tensor::from_floats([2.0], &Device::flex()),
        )]);
        let held = sum["m.b"].clone();
        add(&mut sum, gradients());
        add(&mut sum, gradients());
        let of = |name: &str| -> Vec<f32> { sum[name].clone().try_into_vec_as().unwrap() };
        assert_eq!((of("m.a"), of("m.b")), (vec![1.0, 0.5], vec![0.0]));
        assert_eq!(held.into_scalar::<f32>(), 2.0);
    }

    #[test]
    fn the_average_is_made_in_place() {
        let place = |module: &Two| {
            let mut place = None;
            named::visit(module, &mut |name, _, value| {
                if name == "a" {
                    place = Some(values(&host(value)).as_ptr() as usize);
                }
            });
            place
        };
        let (teacher, student) = (module(), module());
        let before = place(&teacher);
        let teacher = ema(teacher, &student, 0.5);
        assert_eq!(place(&teacher), before);
        // What somebody else holds stays as it was.
        let held = teacher.clone();
        let moved = ema(teacher, &named::map(student, &mut |_, _, v| v + 1.0), 0.5);
        assert_ne!(place(&moved), before);
        assert_eq!(weights(&held)[0], 1.0);
    }
}
