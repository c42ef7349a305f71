//! Layer norm as an operation of Burn's graph.

use burn::{
    backend::{
        Autodiff, Backend, Dispatch, TensorMetadata,
        autodiff::{
            NodeId,
            checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
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
    empty, finish, limits,
    norm_kernels::{self, LANES, ROWS},
};

/// Channels that the units of a row hold in registers.
const MOST_CHANNELS: usize = 2048;

/// Whether the kernel computes norms of so many channels, of a tensor of so many elements, in this
/// thread and on that device.
pub fn supports_layer_norm(device: &Device, channels: usize, elements: usize) -> bool {
    limits(device, elements).is_some_and(|limits| {
        channels <= MOST_CHANNELS && LANES * ROWS <= limits.max_units_per_cube as usize
    })
}

/// γ (x − mean) / √(variance + ε) + β over the last axis, in the number format `output`.
///
/// # Shapes
/// - x: [..., channels], any rank, f32; gamma, beta: [channels]
pub fn layer_norm<const D: usize>(
    x: Tensor<D>,
    gamma: Tensor<1>,
    beta: Tensor<1>,
    epsilon: f64,
    output: DType,
) -> Tensor<D> {
    let options = NormOptions {
        epsilon: epsilon as f32,
        output,
    };
    Tensor::from_dispatch(Dispatch::layer_norm_by_kernel(
        x.into_dispatch(),
        gamma.into_dispatch(),
        beta.into_dispatch(),
        options,
    ))
}

/// What is not a tensor.
#[derive(Debug, Clone, Copy)]
pub struct NormOptions {
    epsilon: f32,
    output: DType,
}

/// Rows and channels of a tensor of any rank.
fn rows_and_channels(shape: &Shape) -> [usize; 2] {
    let channels = shape[shape.num_dims() - 1];
    [shape.num_elements() / channels.max(1), channels]
}

/// Cubes of the backward pass: enough to keep a device busy, and few, as each leaves a row of sums.
fn cubes(rows: usize) -> usize {
    rows.div_ceil(ROWS).clamp(1, 512)
}

/// The operation on a backend. See [`layer_norm`](fn@layer_norm).
#[backend_extension(Cube, Fusion, Autodiff)]
pub trait LayerNormByKernel: Backend {
    /// The output.
    #[fusion(dtype = options.output, shape = x)]
    fn layer_norm_by_kernel(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        options: NormOptions,
    ) -> FloatTensor<Self>;
}

/// Its gradients on a backend.
#[backend_extension(Cube, Fusion)]
pub trait LayerNormGradients: Backend {
    /// The gradient of `x`, and sums of those of gamma and beta: see
    /// [`norm_kernels::layer_norm_backward`].
    #[fusion(meta = gradient_specs)]
    fn layer_norm_gradients(
        gradient: FloatTensor<Self>,
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        options: NormOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
}

fn gradient_specs(
    _gradient: &TensorSpec,
    x: &TensorSpec,
    _gamma: &TensorSpec,
    _options: &NormOptions,
) -> (TensorSpec, TensorSpec) {
    let [rows, channels] = rows_and_channels(&x.shape);
    let partial = Shape::new([cubes(rows), 2, channels]);
    (x.clone(), TensorSpec::new(partial, DType::F32))
}

impl LayerNormByKernel for CubeBackend {
    fn layer_norm_by_kernel(
        x: CubeTensor,
        gamma: CubeTensor,
        beta: CubeTensor,
        options: NormOptions,
    ) -> CubeTensor {
        let [x, gamma, beta] = [x, gamma, beta].map(into_contiguous);
        let [rows, channels] = rows_and_channels(&x.shape());
        let output = empty(&x, x.shape(), options.output);
        let types = [x.dtype, options.output].map(dtype_to_storage_type);
        // The most cubes of a device are at least 65,535.
        let cubes = rows.div_ceil(ROWS).clamp(1, 1 << 15);
        norm_kernels::layer_norm::launch(
            &output.client,
            CubeCount::Static(cubes as u32, 1, 1),
            CubeDim::new_2d(LANES as u32, ROWS as u32),
            x.into_tensor_arg(),
            gamma.into_tensor_arg(),
            beta.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            rows as u32,
            options.epsilon,
            channels,
            types,
        );
        output
    }
}

impl LayerNormGradients for CubeBackend {
    fn layer_norm_gradients(
        gradient: CubeTensor,
        x: CubeTensor,
        gamma: CubeTensor,
        options: NormOptions,
    ) -> (CubeTensor, CubeTensor) {
        let [gradient, x, gamma] = [gradient, x, gamma].map(into_contiguous);
        let [rows, channels] = rows_and_channels(&x.shape());
        let x_gradient = empty(&x, x.shape(), x.dtype);
        let partial = empty(&x, Shape::new([cubes(rows), 2, channels]), DType::F32);
        let types = [x.dtype, gradient.dtype].map(dtype_to_storage_type);
        norm_kernels::layer_norm_backward::launch(
            &partial.client,
            CubeCount::Static(cubes(rows) as u32, 1, 1),
            CubeDim::new_2d(LANES as u32, ROWS as u32),
            gradient.into_tensor_arg(),
            x.into_tensor_arg(),
            gamma.into_tensor_arg(),
            x_gradient.clone().into_tensor_arg(),
            partial.clone().into_tensor_arg(),
            rows as u32,
            options.epsilon,
            channels,
            types,
        );
        (x_gradient, partial)
    }
}

impl<B: LayerNormByKernel + LayerNormGradients, C: CheckpointStrategy> LayerNormByKernel
    for Autodiff<B, C>
{
    fn layer_norm_by_kernel(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        options: NormOptions,
    ) -> FloatTensor<Self> {
        let inputs = [x, gamma, beta];
        let prepared = { LayerNormNode.prepare::<C>(inputs.each_ref().map(|input| input.node())) }
            .compute_bound()
            .stateful();
        finish(
            prepared,
            inputs,
            move |keep| ([keep(0), keep(1)], options),
            move |[x, gamma, beta]| B::layer_norm_by_kernel(x, gamma, beta, options),
        )
    }
}

/// The operation as a step of the backward pass.
#[derive(Debug)]
struct LayerNormNode;

impl<B: LayerNormGradients> Backward<B, 3> for LayerNormNode {
    type State = ([NodeId; 2], NormOptions);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        gradients: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let (saved, options) = ops.state;
        let gradient = gradients.consume::<B>(&ops.node);
        let [x, gamma] =
            saved.map(|id| checkpointer.retrieve_node_output::<B::FloatTensorPrimitive>(id));
        let channels = gamma.shape()[0];
        let (x_gradient, partial) = B::layer_norm_gradients(gradient, x, gamma, options);
        let [of_x, of_gamma, of_beta] = ops.parents;
        if let Some(node) = of_x {
            gradients.register::<B>(node.id, x_gradient);
        }
        if of_gamma.is_none() && of_beta.is_none() {
            return;
        }
        let sums = B::float_reshape(B::float_sum_dim(partial, 0), Shape::new([2, channels]));
        for (part, node) in [of_gamma, of_beta].into_iter().enumerate() {
            if let Some(node) = node {
                let rows = [(part..part + 1).into(), (0..channels).into()];
                let sum = B::float_slice(sums.clone(), &rows);
                let sum = B::float_reshape(sum, Shape::new([channels]));
                gradients.register::<B>(node.id, sum);
            }
        }
    }
}
