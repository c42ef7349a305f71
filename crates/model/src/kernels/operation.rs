//! Operations on slices as nodes of Burn's graph.

use std::fmt::Debug;

use burn::{
    backend::{
        Autodiff, AutodiffBackend, Flex,
        autodiff::{
            checkpoint::{base::Checkpointer, strategy::NoCheckpointing},
            grads::Gradients,
            ops::{Backward, Ops, OpsKind},
        },
        flex::FlexTensor,
        tensor::FloatTensor,
    },
    tensor::{Tensor, TensorData},
};

use super::mode::{Precision, recomputes};

/// An operation of `N` tensors.
pub trait FusedOperation<const N: usize>: Clone + Debug + Send + 'static {
    /// What the backward pass needs besides the inputs.
    type Saved: Clone + Debug + Send + 'static;

    /// The output; with `save`, what the backward pass needs, and without it too where that is
    /// small. On one thread the output has the same bits with and without.
    fn forward(&self, inputs: [&[f32]; N], save: bool) -> (Vec<f32>, Option<Self::Saved>);

    /// The gradients of the inputs, given that of the output. Those of inputs that are not tracked
    /// are ignored.
    fn backward(&self, inputs: [&[f32]; N], saved: Self::Saved, output: Vec<f32>) -> [Vec<f32>; N];
}

/// An input of any rank.
#[derive(Debug, Clone)]
pub enum Operand {
    /// Outside autodiff.
    Plain(FlexTensor),
    /// On the autodiff side of the CPU.
    Tracked(FloatTensor<Autodiff<Flex>>),
}

impl Operand {
    /// # Panics
    /// When [`super::can_fuse`] says no.
    pub fn new<const D: usize>(tensor: Tensor<D>) -> Self {
        let result = if tensor.is_autodiff() {
            tensor
                .try_into_primitive::<Autodiff<Flex>>()
                .map(Self::Tracked)
        } else {
            tensor.try_into_primitive::<Flex>().map(Self::Plain)
        };
        match result {
            Ok(operand) => operand,
            Err(error) => panic!("not a tensor of the CPU: {error:?}"),
        }
    }
}

/// Applies an operation; the output has the given shape.
pub fn apply<K: FusedOperation<N>, const N: usize, const D: usize>(
    operation: K,
    inputs: [Operand; N],
    shape: [usize; D],
) -> Tensor<D> {
    let plain = inputs.each_ref().map(|input| match input {
        Operand::Plain(tensor) => tensor.to_contiguous(),
        Operand::Tracked(tensor) => tensor.primitive().to_contiguous(),
    });
    let run = |save| {
        let (output, saved) = operation.forward(plain.each_ref().map(values), save);
        (FlexTensor::from_data(TensorData::new(output, shape)), saved)
    };
    if inputs
        .iter()
        .all(|input| matches!(input, Operand::Plain(_)))
    {
        return Tensor::from_primitive::<Flex>(run(false).0);
    }
    let nodes = inputs.map(|input| match input {
        Operand::Plain(tensor) => Autodiff::<Flex>::from_inner(tensor).node(),
        Operand::Tracked(tensor) => tensor.node(),
    });
    let node = GraphNode {
        operation: operation.clone(),
        precision: Precision::current(),
    };
    let prepared = node.prepare::<NoCheckpointing>(nodes);
    let output = match prepared.compute_bound().stateful() {
        OpsKind::UnTracked(prepared) => prepared.finish(run(false).0),
        OpsKind::Tracked(prepared) => {
            let (output, saved) = run(!recomputes());
            prepared.finish((plain, saved), output)
        }
    };
    Tensor::from_primitive::<Autodiff<Flex>>(output)
}

/// A tensor outside autodiff in the CPU's storage, contiguous; copied only where it is not.
///
/// # Panics
/// When [`super::can_fuse`] says no.
pub fn host<const D: usize>(tensor: Tensor<D>) -> FlexTensor {
    match tensor.try_into_primitive::<Flex>() {
        Ok(tensor) => tensor.to_contiguous(),
        Err(error) => panic!("not a tensor of the CPU: {error:?}"),
    }
}

/// The values of a contiguous tensor.
pub fn values(tensor: &FlexTensor) -> &[f32] {
    match tensor.as_slice::<f32>() {
        Some(values) => values,
        None => panic!("a contiguous tensor of f32 is not a slice"),
    }
}

/// An operation as a step of the backward pass.
#[derive(Debug)]
struct GraphNode<K> {
    operation: K,
    /// Of the thread that started the operation: the backward pass may run on another one.
    precision: Precision,
}

impl<K: FusedOperation<N>, const N: usize> Backward<Flex, N> for GraphNode<K> {
    type State = ([FlexTensor; N], Option<K::Saved>);

    fn backward(
        self,
        ops: Ops<Self::State, N>,
        gradients: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let output = gradients.consume::<Flex>(&ops.node).to_contiguous();
        let output = match output.into_data().try_into_vec_as::<f32>() {
            Ok(values) => values,
            Err(error) => panic!("a gradient is not f32: {error}"),
        };
        let (inputs, saved) = ops.state;
        let slices = inputs.each_ref().map(values);
        let found = self.precision.within(|| {
            let again = || self.operation.forward(slices, true).1;
            let Some(saved) = saved.or_else(again) else {
                panic!("an operation that saves nothing");
            };
            self.operation.backward(slices, saved, output)
        });
        for ((node, input), gradient) in ops.parents.into_iter().zip(&inputs).zip(found) {
            if let Some(node) = node {
                let data = TensorData::new(gradient, input.layout().shape().clone());
                gradients.register::<Flex>(node.id, FlexTensor::from_data(data));
            }
        }
    }
}
