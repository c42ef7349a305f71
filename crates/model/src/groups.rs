//! SGD, Adam and AdamW with a learning rate and a decay of their own for every parameter: what fine-tuning needs and
//! [`crate::optim::AdamW`], which is made for one rate, has not.
//!
//! Formulas are PyTorch's. Gradients come by name as from [`crate::optim::gradients`]; the state goes out and comes back
//! as named arrays, for an exact resume.

use std::collections::BTreeMap;

use burn::{
    module::Module,
    tensor::{Tensor, TensorData},
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    error::ModelError,
    named::{self, Array, StateDict},
    optim::Gradients,
};

/// Values per task of a parallel pass.
const CHUNK: usize = 1 << 15;
/// Added to the root of the second moment.
const EPSILON: f32 = 1e-8;

/// How a gradient becomes a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// g ← g + decay·p;  m ← momentum·m + g, at first g;  p ← p − lr·m.
    Sgd,
    /// g ← g + decay·p, then Adam (Kingma and Ba 2015).
    Adam,
    /// p ← p·(1 − lr·decay), then Adam (Loshchilov and Hutter 2019).
    AdamW,
}

/// What a parameter's step is made with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Learning rate.
    pub lr: f64,
    /// Weight decay.
    pub decay: f64,
}

/// The optimiser with its state.
#[derive(Debug, Clone)]
pub struct Optimiser {
    rule: Rule,
    momentum: f64,
    beta2: f64,
    state: BTreeMap<String, State>,
}

#[derive(Debug, Clone)]
struct State {
    steps: u64,
    first: Vec<f32>,
    /// Empty for SGD.
    second: Vec<f32>,
}

impl Optimiser {
    /// Without a history. `momentum` is that of SGD, or the decay of Adam's first moment.
    pub fn new(rule: Rule, momentum: f64, beta2: f64) -> Self {
        Self {
            rule,
            momentum,
            beta2,
            state: BTreeMap::new(),
        }
    }

    /// One step: the module, whose parameters are called `prefix` and their name, with new values. A parameter without a
    /// gradient, or without `rates`, keeps its value and state. What was used is taken out of `gradients`.
    ///
    /// # Panics
    /// When a gradient's size is not its parameter's.
    pub fn step<M: Module>(
        &mut self,
        prefix: &str,
        module: M,
        gradients: &mut Gradients,
        rates: &dyn Fn(&str, &[usize]) -> Option<Rates>,
    ) -> M {
        named::map(module, &mut |name, shape, value| {
            let name = format!("{prefix}{name}");
            let Some(gradient) = gradients.remove(&name) else {
                return value;
            };
            let Some(rates) = rates(&name, shape) else {
                return value;
            };
            let device = value.device();
            let (mut value, gradient) = (host(value), host(gradient));
            assert_eq!(gradient.len(), value.len(), "gradient of `{name}`");
            let state = self.state.entry(name).or_insert_with(|| State {
                steps: 0,
                first: vec![0.0; value.len()],
                second: match self.rule {
                    Rule::Sgd => Vec::new(),
                    Rule::Adam | Rule::AdamW => vec![0.0; value.len()],
                },
            });
            state.steps += 1;
            match self.rule {
                Rule::Sgd => sgd(&mut value, &gradient, state, rates, self.momentum),
                Rule::Adam | Rule::AdamW => {
                    let coupled = self.rule == Rule::Adam;
                    let betas = [self.momentum, self.beta2];
                    adam(&mut value, &gradient, state, rates, betas, coupled);
                }
            }
            let count = value.len();
            Tensor::from_data(TensorData::new(value, [count]), &device)
        })
    }

    /// The state: `NAME.first`, `NAME.second` and `NAME.steps` of each parameter that has taken a step.
    pub fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        for (name, one) in &self.state {
            let array = |data: &[f32]| Array {
                shape: vec![data.len()],
                data: data.to_vec(),
            };
            // A count as two numbers below 2^24, which f32 holds exactly.
            let steps = [(one.steps & 0xff_ffff) as f32, (one.steps >> 24) as f32];
            state.insert(format!("{name}.first"), array(&one.first));
            state.insert(format!("{name}.second"), array(&one.second));
            state.insert(format!("{name}.steps"), array(&steps));
        }
        state
    }

    /// The same optimiser, going on where [`Optimiser::state`] was taken.
    ///
    /// # Errors
    /// When the state is not whole, or not one of this rule.
    pub fn with_state(mut self, state: &StateDict) -> Result<Self, ModelError> {
        let hint = "the optimiser's state in the checkpoint is not whole; start a new run from its weights";
        self.state.clear();
        for name in state.keys() {
            let Some(parameter) = name.strip_suffix(".steps") else {
                continue;
            };
            let get = |what: &str| {
                let name = format!("{parameter}.{what}");
                let array = state.get(&name).map(|array| array.data.clone());
                array.ok_or(ModelError::Missing { name, hint })
            };
            let (first, second, steps) = (get("first")?, get("second")?, get("steps")?);
            let needed = if self.rule == Rule::Sgd {
                0
            } else {
                first.len()
            };
            if second.len() != needed || steps.len() != 2 {
                return Err(ModelError::Values {
                    name: format!("{parameter}.second"),
                    shape: vec![second.len()],
                    needed,
                    found: second.len(),
                });
            }
            let steps = steps[0] as u64 + ((steps[1] as u64) << 24);
            let state = State {
                steps,
                first,
                second,
            };
            self.state.insert(parameter.to_owned(), state);
        }
        Ok(self)
    }
}

fn sgd(value: &mut [f32], gradient: &[f32], state: &mut State, rates: Rates, momentum: f64) {
    let (lr, decay) = (rates.lr as f32, rates.decay as f32);
    // The first step takes the gradient as it is, whatever the momentum: the history is 0.
    let momentum = momentum as f32;
    value
        .par_chunks_mut(CHUNK)
        .zip(gradient.par_chunks(CHUNK))
        .zip(state.first.par_chunks_mut(CHUNK))
        .for_each(|((values, gradients), moments)| {
            for ((p, g), m) in values.iter_mut().zip(gradients).zip(moments) {
                *m = momentum * *m + (g + decay * *p);
                *p -= lr * *m;
            }
        });
}

fn adam(
    value: &mut [f32],
    gradient: &[f32],
    state: &mut State,
    rates: Rates,
    [beta1, beta2]: [f64; 2],
    coupled: bool,
) {
    let steps = state.steps as f64;
    let rate = (rates.lr / (1.0 - beta1.powf(steps))) as f32;
    let inverse_root = (1.0 / (1.0 - beta2.powf(steps)).sqrt()) as f32;
    let (added, keep) = if coupled {
        (rates.decay as f32, 1.0)
    } else {
        (0.0, (1.0 - rates.lr * rates.decay) as f32)
    };
    let (new1, new2) = ((1.0 - beta1) as f32, (1.0 - beta2) as f32);
    let (beta1, beta2) = (beta1 as f32, beta2 as f32);
    let moments = { state.first.par_chunks_mut(CHUNK) }.zip(state.second.par_chunks_mut(CHUNK));
    value
        .par_chunks_mut(CHUNK)
        .zip(gradient.par_chunks(CHUNK))
        .zip(moments)
        .for_each(|((values, gradients), (firsts, seconds))| {
            let moments = firsts.iter_mut().zip(seconds);
            for ((p, g), (m, v)) in values.iter_mut().zip(gradients).zip(moments) {
                let g = g + added * *p;
                *m = beta1 * *m + new1 * g;
                *v = beta2 * *v + new2 * g * g;
                *p = *p * keep - rate * *m / (v.sqrt() * inverse_root + EPSILON);
            }
        });
}

/// The values; moved, not copied, when they lie in the memory of the CPU and nothing else holds the tensor.
fn host(tensor: Tensor<1>) -> Vec<f32> {
    match tensor.into_data().try_into_vec_as::<f32>() {
        Ok(values) => values,
        Err(error) => panic!("a float tensor is not f32: {error}"),
    }
}

/// Multiplies all gradients so that the norm of all together is at most `limit`, as PyTorch's `clip_grad_norm_`.
pub fn clip_global(gradients: Gradients, limit: f64) -> Gradients {
    let factor = (limit / (crate::optim::norm(&gradients) + 1e-6)).min(1.0);
    if factor >= 1.0 {
        return gradients;
    }
    gradients
        .into_iter()
        .map(|(name, gradient)| (name, gradient * factor))
        .collect()
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

    fn module() -> Two {
        let device = Device::flex();
        Two {
            a: Param::from_data([[1.0, -2.0]], &device),
            b: Param::from_data([0.5], &device),
        }
    }

    fn values(module: &Two) -> Vec<f32> {
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
        let mut optimiser = Optimiser::new(Rule::Sgd, 0.9, 0.0);
        let rates = |name: &str, _: &[usize]| {
            (name == "m.a").then_some(Rates {
                lr: 0.1,
                decay: 0.01,
            })
        };
        let mut module = module();
        for _ in 0..2 {
            module = optimiser.step("m.", module, &mut gradients(), &rates);
        }
        // By hand: m1 = 0.5 + 0.01, p1 = 1 − 0.051; m2 = 0.9·0.51 + 0.5 + 0.01·0.949.
        let p1 = 1.0 - 0.1 * 0.51;
        let p2 = p1 - 0.1 * (0.9 * 0.51 + 0.5 + 0.01 * p1);
        let found = values(&module);
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
            let mut whole = Optimiser::new(rule, 0.9, 0.999);
            let mut module = module();
            for _ in 0..2 {
                module = whole.step("m.", module, &mut gradients(), &rates);
            }
            let again = Optimiser::new(rule, 0.9, 0.999);
            let mut again = again.with_state(&whole.state()).unwrap();
            let expected = whole.step("m.", module.clone(), &mut gradients(), &rates);
            let found = again.step("m.", module, &mut gradients(), &rates);
            assert_eq!(values(&found), values(&expected));
            let mut broken = whole.state();
            broken.remove("m.a.first");
            assert!(whole.with_state(&broken).is_err());
        }
    }

    #[test]
    fn clipping_keeps_small_gradients() {
        let norm = |gradients: &Gradients| crate::optim::norm(gradients);
        let clipped = clip_global(gradients(), 0.1);
        assert!((norm(&clipped) - 0.1).abs() < 1e-5);
        assert_eq!(norm(&clip_global(gradients(), 10.0)), norm(&gradients()));
    }
}
