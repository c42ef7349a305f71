//! A module's parameters by name, in PyTorch's names and layout.
//!
//! Burn's own names and layout differ in two places, which is all that is translated here: a linear
//! layer's weight is [inputs, outputs] in Burn and [outputs, inputs] in PyTorch, and a norm's
//! `gamma` and `beta` are `weight` and `bias` there. Paths are the modules' field names joined by
//! dots.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Tensor, TensorData};
use clasp_model::named::NamePath;
pub use clasp_model::named::{HostTensor, StateDict};
use std::collections::BTreeSet;
use std::fmt;

/// How many numbers a state holds: a configuration that claims a larger network would fill the memory
/// before its tensors are missed.
pub fn held_values(state: &StateDict) -> usize {
    state.values().map(|array| array.data.len()).sum()
}

/// What [`load_state_dict`] did with each name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Names that were found with their shape.
    pub matched: Vec<String>,
    /// Names of the module that the state lacks; these parameters are unchanged.
    pub missing: Vec<String>,
    /// Names of the state that the module lacks.
    pub unexpected: Vec<String>,
    /// Names whose shapes differ, with the module's shape and the state's; these parameters are
    /// unchanged.
    pub reshaped: Vec<(String, Vec<usize>, Vec<usize>)>,
}

impl LoadReport {
    /// Whether every key matched.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.reshaped.is_empty()
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys matched", self.matched.len())?;
        for (name, expected, found) in self.reshaped.iter().take(5) {
            write!(f, "; `{name}`: expected {expected:?}, found {found:?}")?;
        }
        if self.reshaped.len() > 5 {
            write!(f, " and {} more of another shape", self.reshaped.len() - 5)?;
        }
        for (what, names) in [("missing", &self.missing), ("unexpected", &self.unexpected)] {
            if !names.is_empty() {
                write!(
                    f,
                    "; {} {what}: {}",
                    names.len(),
                    names[..names.len().min(5)].join(", ")
                )?;
                if names.len() > 5 {
                    write!(f, ", ...")?;
                }
            }
        }
        Ok(())
    }
}

/// All float parameters of a module by name.
pub fn state_dict<M: Module>(module: &M) -> StateDict {
    let mut visitor = Collect {
        path: NamePath::default(),
        state: StateDict::new(),
    };
    module.visit(&mut visitor);
    visitor.state
}

/// The module with the state's values where names and shapes agree, and what did and did not.
/// Parameters keep their device, their identity and whether they are trained.
pub fn load_state_dict<M: Module>(module: M, state: &StateDict) -> (M, LoadReport) {
    let mut mapper = Load {
        path: NamePath::default(),
        state,
        seen: BTreeSet::new(),
        report: LoadReport::default(),
    };
    let module = module.map(&mut mapper);
    let mut report = mapper.report;
    report.unexpected = state
        .keys()
        .filter(|name| !mapper.seen.contains(*name))
        .cloned()
        .collect();
    (module, report)
}

/// The tensors whose names begin with `prefix`, by the rest of their names.
pub fn with_prefix(state: &StateDict, prefix: &str) -> StateDict {
    { state.iter() }
        .filter_map(|(name, array)| Some((name.strip_prefix(prefix)?.to_owned(), array.clone())))
        .collect()
}

/// Adds the tensors of `part` to `state` under `prefix` and their names.
pub fn extend_prefixed(state: &mut StateDict, prefix: &str, part: StateDict) {
    let named = |(name, array)| (format!("{prefix}{name}"), array);
    state.extend(part.into_iter().map(named));
}

/// Name of the first tensor with a value that is infinite or not a number.
pub fn first_non_finite(state: &StateDict) -> Option<&str> {
    { state.iter() }
        .find(|(_, array)| array.data.iter().any(|value| !value.is_finite()))
        .map(|(name, _)| name.as_str())
}

/// Whether PyTorch stores the matrix at this place the other way round.
fn is_transposed(path: &NamePath, name: &str) -> bool {
    path.container() == "Struct:Linear" && name.ends_with("weight")
}

struct Collect {
    path: NamePath,
    state: StateDict,
}

impl ModuleVisitor for Collect {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let name = self.path.name();
        let transposed = is_transposed(&self.path, &name);
        let tensor = param.val().without_autodiff();
        let tensor = if transposed {
            tensor.swap_dims(0, 1)
        } else {
            tensor
        };
        let array = HostTensor {
            shape: tensor.dims().to_vec(),
            data: tensor.into_data().iter::<f32>().collect(),
        };
        self.state.insert(name, array);
    }
}

struct Load<'a> {
    path: NamePath,
    state: &'a StateDict,
    seen: BTreeSet<String>,
    report: LoadReport,
}

impl ModuleMapper for Load<'_> {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.enter(name, container_type);
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.path.name();
        let transposed = is_transposed(&self.path, &name);
        self.seen.insert(name.clone());
        let Some(array) = self.state.get(&name) else {
            self.report.missing.push(name);
            return param;
        };
        let mut expected = param.lazy_shape().to_vec();
        if transposed {
            expected.swap(0, 1);
        }
        // A scalar is a vector of one here; PyTorch keeps scalars without axes.
        let same = array.shape == expected || (array.shape.is_empty() && expected == [1]);
        let fills = array.data.len() == expected.iter().product::<usize>();
        if !same || !fills {
            let reshaped = (name, expected, array.shape.clone());
            self.report.reshaped.push(reshaped);
            return param;
        }
        self.report.matched.push(name);
        param.map(|old| {
            let device = old.device();
            let data = TensorData::new(array.data.clone(), expected);
            let tensor = Tensor::<D>::from_data(data, &device);
            let tensor = if transposed {
                tensor.swap_dims(0, 1)
            } else {
                tensor
            };
            // Plain storage in this layer's order, as a freshly initialized one has.
            let tensor = contiguous(tensor);
            if old.is_require_grad() {
                tensor.require_grad()
            } else {
                tensor
            }
        })
    }
}

/// The same values stored in the order of the axes.
fn contiguous<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    let device = tensor.device();
    Tensor::from_data(tensor.into_data(), &device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
    use burn::tensor::Device;

    #[derive(Module, Debug)]
    struct Small {
        layers: Vec<Linear>,
        norm: LayerNorm,
        table: Param<Tensor<2>>,
    }

    fn small(device: &Device) -> Small {
        Small {
            layers: vec![LinearConfig::new(3, 2).init(device)],
            norm: LayerNormConfig::new(2).init(device),
            table: Param::from_data([[1.0, 2.0, 3.0]], device),
        }
    }

    #[test]
    fn names_and_layout_are_pytorchs() {
        let state = state_dict(&small(&Device::flex()));
        let shapes: Vec<(&str, &[usize])> = state
            .iter()
            .map(|(name, array)| (name.as_str(), array.shape.as_slice()))
            .collect();
        assert_eq!(
            shapes,
            [
                ("layers.0.bias", [2].as_slice()),
                ("layers.0.weight", &[2, 3]),
                ("norm.bias", &[2]),
                ("norm.weight", &[2]),
                ("table", &[1, 3]),
            ]
        );
    }

    #[test]
    fn a_state_survives_the_way_there_and_back() {
        let device = Device::flex();
        let state = state_dict(&small(&device));
        for device in [device.clone(), device.autodiff()] {
            let (loaded, report) = load_state_dict(small(&device), &state);
            assert!(report.is_complete(), "{report}");
            assert_eq!(state_dict(&loaded), state);
            assert_eq!(loaded.table.is_require_grad(), device.is_autodiff());
        }
    }

    #[test]
    fn unmatched_keys_are_reported_and_their_parameters_unchanged() {
        let device = Device::flex();
        let before = small(&device);
        let mut state = state_dict(&before);
        state.remove("norm.bias");
        let array = |shape: &[usize]| HostTensor {
            shape: shape.to_vec(),
            data: vec![9.0; shape.iter().product()],
        };
        state.insert("table".into(), array(&[3, 1]));
        state.insert("head.weight".into(), array(&[1]));
        let (after, report) = load_state_dict(before.clone(), &state);
        assert_eq!(report.missing, ["norm.bias"]);
        assert_eq!(report.unexpected, ["head.weight"]);
        assert_eq!(
            report.reshaped,
            [("table".to_owned(), vec![1, 3], vec![3, 1])]
        );
        assert_eq!(state_dict(&after), state_dict(&before));
        assert!(
            report
                .to_string()
                .contains("`table`: expected [1, 3], found [3, 1]")
        );
    }
}
