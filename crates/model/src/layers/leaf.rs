//! Parameters that hold tensors of a graph, and parameters apart from it.

use burn::{
    module::{Param, ParamId},
    tensor::Tensor,
};

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
    let tracked = tensor.is_autodiff();
    let values = tensor.without_autodiff();
    Param::from_tensor(if tracked { values.autodiff() } else { values })
}
