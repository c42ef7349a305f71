//! What follows a product x · W in a transformer block, with the product's bias, as operations of Burn's graph.

use burn::{
    backend::{
        Autodiff, Backend, Dispatch, TensorMetadata,
        autodiff::{
            NodeId,
            checkpoint::{
                base::Checkpointer, retro_forward::RetroForward, state::BackwardStates,
                strategy::CheckpointStrategy,
            },
            grads::Gradients,
            ops::{Backward, Ops},
        },
        backend_extension,
        cubecl::dtype_to_storage_type,
        fusion::custom::TensorSpec,
        tensor::FloatTensor,
    },
    tensor::{DType, Device, Shape, Tensor},
};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use cubecl::prelude::{CubeCount, CubeDim};

use super::{
    branch_kernels::{self, UNITS},
    empty, finish, limits, register_sum,
};

/// Whether kernels compute branches of so many elements in this thread and on that device.
pub fn supports_branch(device: &Device, elements: usize) -> bool {
    limits(device, elements).is_some_and(|limits| UNITS <= limits.max_units_per_cube as usize)
}

/// x + f · (branch + bias), f a factor of each image or 1.
///
/// # Shapes
/// - x: [images, ..., channels], f32; branch: the same, in any format; bias: [channels]
/// - factors: [rows, images] and a row of it
pub fn add_branch<const D: usize>(
    x: Tensor<D>,
    branch: Tensor<D>,
    bias: Tensor<1>,
    factors: Option<(Tensor<2>, usize)>,
) -> Tensor<D> {
    let images = x.dims()[0];
    let (factors, start) = match factors {
        Some((factors, row)) => (factors, Some(row * images)),
        // Not read.
        None => (bias.clone().without_autodiff().unsqueeze(), None),
    };
    let [channels] = bias.dims();
    let options = BranchOptions {
        images,
        channels,
        start,
    };
    Tensor::from_dispatch(Dispatch::add_branch(
        x.into_dispatch(),
        branch.into_dispatch(),
        bias.into_dispatch(),
        factors.into_dispatch(),
        options,
    ))
}

/// GELU of product + bias, in the product's number format.
///
/// # Shapes
/// - product: [..., channels]; bias: [channels]
pub fn gelu<const D: usize>(product: Tensor<D>, bias: Tensor<1>) -> Tensor<D> {
    Tensor::from_dispatch(Dispatch::gelu_of_sum(
        product.into_dispatch(),
        bias.into_dispatch(),
    ))
}

/// What is not a tensor.
#[derive(Debug, Clone, Copy)]
pub struct BranchOptions {
    images: usize,
    channels: usize,
    /// Where the factors of the images begin, if there are any.
    start: Option<usize>,
}

impl BranchOptions {
    /// The arguments of the kernels: where the factors begin, values of an image, whether it is scaled.
    fn arguments(&self, elements: usize) -> (u32, u32, bool) {
        let start = self.start.unwrap_or(0);
        // Larger ones are not supported.
        let image = elements / self.images.max(1);
        (start as u32, image as u32, self.start.is_some())
    }
}

/// The operations on a backend. See the functions of these names.
#[backend_extension(Cube, Fusion, Autodiff)]
pub trait BranchOperations: Backend {
    /// See [`add_branch`].
    #[fusion(dtype = x, shape = x)]
    fn add_branch(
        x: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        factors: FloatTensor<Self>,
        options: BranchOptions,
    ) -> FloatTensor<Self>;

    /// See [`gelu`].
    #[fusion(dtype = product, shape = product)]
    fn gelu_of_sum(product: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;
}

/// Their gradients on a backend: that of the product, and sums of those of the bias, [cubes, channels].
#[backend_extension(Cube, Fusion)]
pub trait BranchGradients: Backend {
    /// See [`branch_kernels::add_branch_backward`].
    #[fusion(meta = |gradient, _factors, format, options| {
        let partial = partial_spec(&gradient.shape, options.channels);
        (TensorSpec::new(gradient.shape.clone(), *format), partial)
    })]
    fn add_branch_gradients(
        gradient: FloatTensor<Self>,
        factors: FloatTensor<Self>,
        format: DType,
        options: BranchOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);

    /// See [`branch_kernels::gelu_backward`].
    #[fusion(meta = |_gradient, product, bias| {
        (product.clone(), partial_spec(&product.shape, bias.shape[0]))
    })]
    fn gelu_of_sum_gradients(
        gradient: FloatTensor<Self>,
        product: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

fn partial_spec(shape: &Shape, channels: usize) -> TensorSpec {
    TensorSpec::new(partial(shape, channels), DType::F32)
}

/// [cubes, channels]: enough cubes to keep a device busy, and few, as each leaves a row of sums.
fn partial(shape: &Shape, channels: usize) -> Shape {
    let tokens = shape.num_elements() / channels.max(1);
    Shape::new([tokens.div_ceil(8).clamp(1, 512), channels])
}

/// Cubes and units forward, for so many elements: four values a unit, as far as cubes go.
fn grid(elements: usize) -> (CubeCount, CubeDim) {
    let cubes = elements.div_ceil(4 * UNITS).clamp(1, 1 << 15);
    (
        CubeCount::new_1d(cubes as u32),
        CubeDim::new_1d(UNITS as u32),
    )
}

/// Those backward: see [`partial`].
fn rows(partial: &Shape) -> (CubeCount, CubeDim) {
    let units = partial[1].next_multiple_of(32).clamp(32, UNITS);
    (
        CubeCount::new_1d(partial[0] as u32),
        CubeDim::new_1d(units as u32),
    )
}

impl BranchOperations for CubeBackend {
    fn add_branch(
        x: CubeTensor,
        branch: CubeTensor,
        bias: CubeTensor,
        factors: CubeTensor,
        options: BranchOptions,
    ) -> CubeTensor {
        let [x, branch, bias, factors] = [x, branch, bias, factors].map(into_contiguous);
        let elements = x.shape().num_elements();
        let output = empty(&x, x.shape(), DType::F32);
        let (cubes, units) = grid(elements);
        let (start, image, scaled) = options.arguments(elements);
        let format = dtype_to_storage_type(branch.dtype);
        branch_kernels::add_branch::launch(
            &output.client,
            cubes,
            units,
            x.into_tensor_arg(),
            branch.into_tensor_arg(),
            bias.into_tensor_arg(),
            factors.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            start,
            image,
            options.channels,
            scaled,
            format,
        );
        output
    }

    fn gelu_of_sum(product: CubeTensor, bias: CubeTensor) -> CubeTensor {
        let [product, bias] = [product, bias].map(into_contiguous);
        let output = empty(&product, product.shape(), product.dtype);
        let (cubes, units) = grid(output.shape().num_elements());
        let (channels, format) = (bias.shape()[0], dtype_to_storage_type(product.dtype));
        branch_kernels::gelu::launch(
            &output.client,
            cubes,
            units,
            product.into_tensor_arg(),
            bias.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            channels,
            format,
        );
        output
    }
}

impl BranchGradients for CubeBackend {
    fn add_branch_gradients(
        gradient: CubeTensor,
        factors: CubeTensor,
        format: DType,
        options: BranchOptions,
    ) -> (CubeTensor, CubeTensor) {
        let [gradient, factors] = [gradient, factors].map(into_contiguous);
        let shape = gradient.shape();
        let branch_gradient = empty(&gradient, shape.clone(), format);
        let partial = empty(&gradient, partial(&shape, options.channels), DType::F32);
        let (cubes, units) = rows(&partial.shape());
        let (start, image, scaled) = options.arguments(shape.num_elements());
        branch_kernels::add_branch_backward::launch(
            &partial.client,
            cubes,
            units,
            gradient.into_tensor_arg(),
            factors.into_tensor_arg(),
            branch_gradient.clone().into_tensor_arg(),
            partial.clone().into_tensor_arg(),
            start,
            image,
            options.channels,
            scaled,
            dtype_to_storage_type(format),
        );
        (branch_gradient, partial)
    }

    fn gelu_of_sum_gradients(
        gradient: CubeTensor,
        product: CubeTensor,
        bias: CubeTensor,
    ) -> (CubeTensor, CubeTensor) {
        let [gradient, product, bias] = [gradient, product, bias].map(into_contiguous);
        let shape = product.shape();
        let product_gradient = empty(&product, shape.clone(), product.dtype);
        let partial = empty(&product, partial(&shape, bias.shape()[0]), DType::F32);
        let (cubes, units) = rows(&partial.shape());
        let (channels, format) = (bias.shape()[0], dtype_to_storage_type(product.dtype));
        branch_kernels::gelu_backward::launch(
            &partial.client,
            cubes,
            units,
            gradient.into_tensor_arg(),
            product.into_tensor_arg(),
            bias.into_tensor_arg(),
            product_gradient.clone().into_tensor_arg(),
            partial.clone().into_tensor_arg(),
            channels,
            format,
        );
        (product_gradient, partial)
    }
}

impl<B: BranchOperations + BranchGradients, C: CheckpointStrategy> BranchOperations
    for Autodiff<B, C>
{
    fn add_branch(
        x: FloatTensor<Self>,
        branch: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        factors: FloatTensor<Self>,
        options: BranchOptions,
    ) -> FloatTensor<Self> {
        let factors = factors.into_primitive();
        let inputs = [x, branch, bias];
        let guards = inputs.each_ref().map(|input| input.node());
        let recompute = RecomputeAddBranch::<B> {
            inputs: guards.each_ref().map(|guard| guard.id()),
            factors: factors.clone(),
            options,
        };
        let format = inputs[1].primitive().dtype();
        let prepared = { AddBranchNode.prepare::<C>(guards) }
            .memory_bound()
            .retro_forward(recompute)
            .parents(&inputs)
            .stateful();
        let kept = factors.clone();
        finish(
            prepared,
            inputs,
            move |_| (kept, format, options),
            move |[x, branch, bias]| B::add_branch(x, branch, bias, factors, options),
        )
    }

    fn gelu_of_sum(product: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let inputs = [product, bias];
        let guards = inputs.each_ref().map(|input| input.node());
        let recompute = RecomputeGelu::<B> {
            inputs: guards.each_ref().map(|guard| guard.id()),
            backend: std::marker::PhantomData,
        };
        let prepared = { GeluNode.prepare::<C>(guards) }
            .memory_bound()
            .retro_forward(recompute)
            .parents(&inputs)
            .stateful();
        finish(
            prepared,
            inputs,
            |keep| [keep(0), keep(1)],
            |[product, bias]| B::gelu_of_sum(product, bias),
        )
    }
}

/// [`add_branch`] once more, in the backward pass.
#[derive(Debug)]
struct RecomputeAddBranch<B: Backend> {
    inputs: [NodeId; 3],
    factors: FloatTensor<B>,
    options: BranchOptions,
}

impl<B: BranchOperations> RetroForward for RecomputeAddBranch<B> {
    fn forward(&self, states: &mut BackwardStates, output: NodeId) {
        let [x, branch, bias] =
            { self.inputs }.map(|id| states.get_state::<B::FloatTensorPrimitive>(&id));
        let factors = self.factors.clone();
        let sum = B::add_branch(x, branch, bias, factors, self.options);
        states.save(output, sum);
    }
}

/// [`gelu`] once more, in the backward pass.
#[derive(Debug)]
struct RecomputeGelu<B: Backend> {
    inputs: [NodeId; 2],
    backend: std::marker::PhantomData<B>,
}

impl<B: BranchOperations> RetroForward for RecomputeGelu<B> {
    fn forward(&self, states: &mut BackwardStates, output: NodeId) {
        let [product, bias] =
            { self.inputs }.map(|id| states.get_state::<B::FloatTensorPrimitive>(&id));
        states.save(output, B::gelu_of_sum(product, bias));
    }
}

/// [`add_branch`] as a step of the backward pass.
#[derive(Debug)]
struct AddBranchNode;

impl<B: BranchGradients> Backward<B, 3> for AddBranchNode {
    /// The factors, the format of the branch.
    type State = (FloatTensor<B>, DType, BranchOptions);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        gradients: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let (factors, format, options) = ops.state;
        let gradient = gradients.consume::<B>(&ops.node);
        let [of_x, of_branch, of_bias] = ops.parents;
        if let Some(node) = of_x {
            gradients.register::<B>(node.id, gradient.clone());
        }
        if of_branch.is_none() && of_bias.is_none() {
            return;
        }
        let (branch_gradient, partial) =
            B::add_branch_gradients(gradient, factors, format, options);
        if let Some(node) = of_branch {
            gradients.register::<B>(node.id, branch_gradient);
        }
        let shape = Shape::new([options.channels]);
        register_sum::<B>(gradients, of_bias.map(|node| node.id), partial, shape);
    }
}

/// [`gelu`] as a step of the backward pass.
#[derive(Debug)]
struct GeluNode;

impl<B: BranchGradients> Backward<B, 2> for GeluNode {
    type State = [NodeId; 2];

    fn backward(
        self,
        ops: Ops<Self::State, 2>,
        gradients: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let gradient = gradients.consume::<B>(&ops.node);
        let [product, bias] = { ops.state }
            .map(|id| checkpointer.retrieve_node_output::<B::FloatTensorPrimitive>(id));
        let shape = bias.shape();
        let (product_gradient, partial) = B::gelu_of_sum_gradients(gradient, product, bias);
        let [of_product, of_bias] = ops.parents;
        if let Some(node) = of_product {
            gradients.register::<B>(node.id, product_gradient);
        }
        register_sum::<B>(gradients, of_bias.map(|node| node.id), partial, shape);
    }
}
