//! The state of an optimizer as named arrays.

use std::collections::BTreeMap;

use burn::{
    module::Module,
    tensor::{Device, Tensor},
};

use super::{
    optimizer::Optimizer,
    rules::{OptimizerConfig, ParameterMoments, Rule},
};
use crate::{
    error::ModelError,
    named::{self, HostTensor, StateDict},
};

impl Optimizer {
    /// The state: `NAME.first`, `NAME.second` (not of SGD) and `NAME.steps` of each parameter that
    /// has taken a step.
    pub fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        for (name, moments) in &self.moments {
            let array = |tensor: &Tensor<1>| HostTensor {
                shape: tensor.dims().to_vec(),
                data: tensor.to_data().iter::<f32>().collect(),
            };
            let steps = HostTensor {
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

    /// The optimizer that [`Optimizer::state`] was taken of.
    ///
    /// # Errors
    /// When a moment is missing, the two of a parameter differ in size, or the state is one of
    /// another rule.
    pub fn from_state(
        config: OptimizerConfig,
        state: &StateDict,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let hint = "the optimizer's state in the checkpoint is incomplete; start a new run from its weights";
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
                // A moment without a count is an error: the optimizer would start that parameter
                // anew.
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
            let entry = ParameterMoments {
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

    /// Checks a loaded state against the module that it is to train, whose parameters are called
    /// `prefix` and their name. The state of other prefixes is not checked.
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

/// A count as two numbers below 2²⁴, which are exact in f32.
fn split_count(count: u64) -> [f32; 2] {
    [(count & 0xff_ffff) as f32, (count >> 24) as f32]
}

/// The inverse of [`split_count`]; none for anything else.
fn join_count(parts: &[f32]) -> Option<u64> {
    let whole = |part: f32| (0.0..16_777_216.0).contains(&part) && part.fract() == 0.0;
    match *parts {
        [low, high] if whole(low) && whole(high) => Some(low as u64 + ((high as u64) << 24)),
        _ => None,
    }
}
