//! Parameters by name.
//!
//! A name is the path of field names joined by dots, `layers.0.blocks.1.attn.qkv.weight`. Two
//! things differ from the paths that Burn walks, so that names are PyTorch's: a layer norm's
//! `gamma` and `beta` are `weight` and `bias`, and the variant of an enum has no part in the name.
//! Values keep Burn's layout: a linear layer's weight is [inputs, outputs].

use std::collections::BTreeMap;

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    tensor::{self, Tensor},
};

/// Values of one tensor, row-major.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HostTensor {
    /// Size of each axis; empty for a scalar.
    pub shape: Vec<usize>,
    /// As many values as the shape's product.
    pub data: Vec<f32>,
}

/// Tensors by name.
pub type StateDict = BTreeMap<String, HostTensor>;

/// Gradients by parameter name, flattened, outside autodiff.
pub type Gradients = BTreeMap<String, Tensor<1>>;

/// Where a walk through a module stands.
#[derive(Debug, Default)]
pub struct NamePath {
    /// Name and container of each level; no name for the variant of an enum.
    levels: Vec<(Option<String>, String)>,
}

impl NamePath {
    /// To be called from `enter_module`.
    pub fn enter(&mut self, name: &str, container: &str) {
        let name = (!container.starts_with("Enum:")).then(|| name.to_string());
        self.levels.push((name, container.to_string()));
    }

    /// To be called from `exit_module`.
    pub fn exit(&mut self) {
        self.levels.pop();
    }

    /// Name of the parameter where the walk stands.
    pub fn name(&self) -> String {
        let in_norm = self.container() == "Struct:LayerNorm";
        let names: Vec<&str> = self
            .levels
            .iter()
            .filter_map(|(name, _)| name.as_deref())
            .collect();
        let mut joined = names.join(".");
        for (burn, published) in [("gamma", "weight"), ("beta", "bias")] {
            if in_norm && let Some(prefix) = joined.strip_suffix(burn) {
                joined = format!("{prefix}{published}");
            }
        }
        joined
    }

    /// The container of that parameter, as Burn has it: `Struct:Linear`.
    pub fn container(&self) -> &str {
        self.levels.last().map_or("", |(_, container)| container)
    }
}

/// Calls `f` with the name, the shape and the flattened value of every float parameter, outside
/// autodiff.
pub fn visit<M: Module>(module: &M, f: &mut dyn FnMut(&str, &[usize], Tensor<1>)) {
    struct Visitor<'a> {
        path: NamePath,
        f: &'a mut dyn FnMut(&str, &[usize], Tensor<1>),
    }
    impl ModuleVisitor for Visitor<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val().inner();
            (self.f)(&self.path.name(), &value.dims(), flat(value));
        }
    }
    module.visit(&mut Visitor {
        path: NamePath::default(),
        f,
    });
}

/// Replaces every float parameter by the value that `f` returns for its name, shape and flattened
/// value. A parameter keeps its identity, its device and whether it is trained.
///
/// Where nothing else holds a value, `f` gets its only handle and can change it in place.
pub fn map<M: Module>(module: M, f: &mut dyn FnMut(&str, &[usize], Tensor<1>) -> Tensor<1>) -> M {
    struct ValueMapper<'a> {
        path: NamePath,
        f: &'a mut dyn FnMut(&str, &[usize], Tensor<1>) -> Tensor<1>,
    }
    impl ModuleMapper for ValueMapper<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let name = self.path.name();
            param.map(|value| {
                let (tracked, trained) = (value.is_autodiff(), value.is_require_grad());
                let shape = value.dims();
                let new = (self.f)(&name, &shape, flat(value.inner())).reshape(shape);
                let new = if tracked { new.autodiff() } else { new };
                if trained { new.require_grad() } else { new }
            })
        }
    }
    module.map(&mut ValueMapper {
        path: NamePath::default(),
        f,
    })
}

/// Gradients of a module's trained parameters by name, flattened, outside autodiff, in the number
/// formats of the parameters ([`crate::optim::gradients`] returns f32). A parameter that the loss did not
/// reach has no entry.
pub(crate) fn gradients<M: Module>(module: &M, gradients: &mut tensor::Gradients) -> Gradients {
    struct Visitor<'a> {
        path: NamePath,
        from: &'a mut tensor::Gradients,
        found: Gradients,
    }
    impl ModuleVisitor for Visitor<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad()
                && let Some(gradient) = param.val().grad_remove(self.from)
            {
                self.found.insert(self.path.name(), flat(gradient));
            }
        }
    }
    let mut visitor = Visitor {
        path: NamePath::default(),
        from: gradients,
        found: Gradients::new(),
    };
    module.visit(&mut visitor);
    visitor.found
}

fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let count = tensor.shape().num_elements();
    tensor.reshape([count])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backbone::{Adapter, BackboneConfig},
        layers::Rng,
        moe::MoeConfig,
    };
    use burn::tensor::Device;
    use rand_chacha::rand_core::SeedableRng;

    #[test]
    fn names_are_the_published_ones() {
        let config = BackboneConfig::named("swin-pico")
            .unwrap()
            .with_adapter(Adapter::Moe(MoeConfig::default()));
        let backbone = config.init(&mut Rng::seed_from_u64(0), &Device::flex());
        let mut names = Vec::new();
        visit(&backbone, &mut |name, shape, value| {
            assert_eq!(shape.iter().product::<usize>(), value.dims()[0]);
            names.push(name.to_string());
        });
        for name in [
            "patch_embed.proj.weight",
            "patch_embed.norm.weight",
            "layers.0.blocks.0.norm1.bias",
            "layers.0.blocks.1.attn.relative_position_bias_table",
            "layers.1.downsample.reduction.weight",
            "layers.3.blocks.1.mlp.fc2.bias",
            "layers.3.blocks.1.moe.prompts.norm1_scale",
            "layers.3.blocks.1.moe.prompts.hidden_scale",
            "norm.weight",
        ] {
            assert!(
                names.iter().any(|n| n == name),
                "{name} is not in {names:?}"
            );
        }
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count, "two parameters of one name");
    }

    #[test]
    fn mapping_keeps_training_state_and_changes_values() {
        let device = Device::flex().autodiff();
        let config = BackboneConfig::named("swin-pico").unwrap();
        let backbone = config.init(&mut Rng::seed_from_u64(0), &device);
        let mapped = map(backbone, &mut |_, _, value| value * 2.0 + 1.0);
        visit(&mapped, &mut |name, _, value| {
            if name == "norm.weight" {
                assert!(value.equal_scalar(3.0).all().into_scalar::<bool>());
            }
        });
        let crate::backbone::Backbone::Swin(swin) = &mapped else {
            panic!("not a Swin");
        };
        assert!(swin.patch_embed.proj.weight.is_require_grad());
    }
}
