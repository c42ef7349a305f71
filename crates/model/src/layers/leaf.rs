//! Parameters that hold tensors of a graph, and parameters apart from it.

use burn::{
    module::{Module, ModuleMapper, Param, ParamId},
    tensor::{Device, GradientCheckpointingStrategy, Tensor},
};

/// A module whose parameters are leaves of a graph of their own, with the gradient checkpointing of `graph`.
/// Burn's `fork` keeps that which the parameters had.
pub fn fork<M: Module>(module: M, graph: &Device) -> M {
    struct Mapper(GradientCheckpointingStrategy);
    impl ModuleMapper for Mapper {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|value| value.with_gradient_checkpointing_strategy(self.0))
        }
    }
    let module = module.fork(graph);
    match graph.gradient_checkpointing_strategy() {
        Some(strategy) => module.map(&mut Mapper(strategy)),
        None => module,
    }
}

/// A parameter that holds a tensor of the graph, for layers that live for one pass.
pub(crate) fn of_graph<const D: usize>(tensor: Tensor<D>) -> Param<Tensor<D>> {
    Param::initialized(ParamId::new(), tensor)
}

/// A layer that lives for one pass, as one of its own: its tensors become leaves.
pub(crate) fn detached<const D: usize>(param: Param<Tensor<D>>) -> Param<Tensor<D>> {
    leaf(param.val())
}

/// A parameter with the values of a tensor, apart from the graph that made it.
pub(crate) fn leaf<const D: usize>(tensor: Tensor<D>) -> Param<Tensor<D>> {
    let strategy = tensor.gradient_checkpointing_strategy();
    leaf_of(tensor.without_autodiff(), strategy)
}

/// A leaf of other values, without a graph, with the gradient checkpointing of `param`, and trained if that is.
pub(super) fn with_values<const D: usize>(
    param: &Param<Tensor<D>>,
    values: Tensor<D>,
) -> Param<Tensor<D>> {
    let strategy = param.val().gradient_checkpointing_strategy();
    leaf_of(values, strategy).set_require_grad(param.is_require_grad())
}

fn leaf_of<const D: usize>(
    values: Tensor<D>,
    strategy: Option<GradientCheckpointingStrategy>,
) -> Param<Tensor<D>> {
    Param::from_tensor(match strategy {
        Some(strategy) => values
            .autodiff()
            .with_gradient_checkpointing_strategy(strategy),
        None => values,
    })
}
