//! Window attention as an operation of Burn's graph.

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
        tensor::{FloatTensor, IntTensor},
    },
    tensor::{DType, Device, Int, Shape, Tensor},
};
use burn_cubecl::{CubeBackend, kernel::into_contiguous, tensor::CubeTensor};
use cubecl::prelude::{CubeCount, CubeDim};

use super::{
    empty, finish, limits, register_sum,
    window_kernels::{self, WindowShape},
};

/// The windows of a map, as the kernel takes them.
#[derive(Debug, Clone)]
pub struct WindowPlaces {
    /// [windows, 2, area]: the token of each position counted from 1, 0 for padding; then its
    /// region.
    pub places: Tensor<3, Int>,
    /// Rows and columns of a window.
    pub window: [usize; 2],
    /// What is added to the score of two positions of different regions.
    pub penalty: f32,
}

/// Whether the kernel computes windows of those rows and columns, with heads of `width` channels and
/// so many elements of q, k and v, in this thread and on that device: a GPU with the memory for it.
pub fn supports_window_attention(
    device: &Device,
    [rows, columns]: [usize; 2],
    width: usize,
    elements: usize,
) -> bool {
    let shape = WindowShape {
        rows,
        columns,
        heads: 1,
        width,
    };
    limits(device, elements).is_some_and(|limits| {
        shape.shared_bytes() <= limits.max_shared_memory_size
            && shape.units() <= limits.max_units_per_cube as usize
            && shape.units() >= width
    })
}

/// softmax(q kᵀ / √d + bias + mask) v within windows; a padding position is attended to with `bias`
/// as its key and value.
///
/// # Shapes
/// - qkv: [batch, tokens, 3·channels], queries, keys, values, each head by head, without their bias;
///   any floating-point format
/// - bias: [3·channels]; table: [(2·rows − 1)·(2·columns − 1), heads], biases of the scores
/// - output: [batch, tokens, channels], in the format of `qkv`
pub fn window_attention(
    qkv: Tensor<3>,
    bias: Tensor<1>,
    table: Tensor<2>,
    windows: &WindowPlaces,
) -> Tensor<3> {
    let heads = table.dims()[1];
    let [rows, columns] = windows.window;
    let options = WindowOptions {
        shape: WindowShape {
            rows,
            columns,
            heads,
            width: qkv.dims()[2] / (3 * heads),
        },
        penalty: windows.penalty,
    };
    Tensor::from_dispatch(Dispatch::window_attention(
        qkv.into_dispatch(),
        bias.into_dispatch(),
        table.into_dispatch(),
        windows.places.clone().into_dispatch(),
        options,
    ))
}

/// What is not a tensor.
#[derive(Debug, Clone, Copy)]
pub struct WindowOptions {
    shape: WindowShape,
    penalty: f32,
}

impl WindowOptions {
    fn scale(&self) -> f32 {
        (self.shape.width as f32).powf(-0.5)
    }

    fn units(&self) -> CubeDim {
        CubeDim::new_1d(self.shape.units() as u32)
    }

    /// Cubes for each head in the backward pass: enough to keep a device busy, and few, as each
    /// leaves a row of sums.
    fn cubes(&self, windows: usize) -> usize {
        windows.min(2048usize.div_ceil(self.shape.heads))
    }

    /// Shapes of the sums of the gradients of table and bias: [cubes, table rows, heads] and [cubes,
    /// 3·channels].
    fn partials(&self, windows: usize) -> [Shape; 2] {
        let WindowShape { heads, width, .. } = self.shape;
        let cubes = self.cubes(windows);
        [
            Shape::new([cubes, self.shape.table_rows(), heads]),
            Shape::new([cubes, 3 * heads * width]),
        ]
    }
}

/// [batch, tokens, 3·channels] → [batch, tokens, channels].
fn output_shape(qkv: &Shape) -> Shape {
    let [batch, tokens, channels] = qkv.dims();
    Shape::new([batch, tokens, channels / 3])
}

/// The operation on a backend. See [`window_attention`](fn@window_attention).
#[backend_extension(Cube, Fusion, Autodiff)]
pub trait WindowAttention: Backend {
    /// The output.
    #[fusion(dtype = qkv, shape = output_shape(qkv))]
    fn window_attention(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        table: FloatTensor<Self>,
        places: IntTensor<Self>,
        options: WindowOptions,
    ) -> FloatTensor<Self>;
}

/// Its gradients on a backend.
#[backend_extension(Cube, Fusion)]
pub trait WindowAttentionGradients: Backend {
    /// The gradient of `qkv`, and sums of those of table and bias: see
    /// [`window_kernels::window_attention_backward`].
    #[fusion(meta = gradient_specs)]
    fn window_attention_gradients(
        gradient: FloatTensor<Self>,
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        table: FloatTensor<Self>,
        places: IntTensor<Self>,
        options: WindowOptions,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>);
}

fn gradient_specs(
    gradient: &TensorSpec,
    qkv: &TensorSpec,
    _bias: &TensorSpec,
    _table: &TensorSpec,
    places: &TensorSpec,
    options: &WindowOptions,
) -> (TensorSpec, TensorSpec, TensorSpec) {
    let windows = gradient.shape[0] * places.shape[0];
    let [table, bias] =
        { options.partials(windows) }.map(|partial| TensorSpec::new(partial, DType::F32));
    (qkv.clone(), table, bias)
}

impl WindowAttention for CubeBackend {
    fn window_attention(
        qkv: CubeTensor,
        bias: CubeTensor,
        table: CubeTensor,
        places: CubeTensor,
        options: WindowOptions,
    ) -> CubeTensor {
        let [qkv, bias, table, places] = [qkv, bias, table, places].map(into_contiguous);
        let shape = output_shape(&qkv.shape());
        let [windows, batch] = [places.shape()[0], shape[0]];
        let output = empty(&qkv, shape, qkv.dtype);
        let types = [qkv.dtype, places.dtype].map(dtype_to_storage_type);
        window_kernels::window_attention::launch(
            &output.client,
            CubeCount::Static(windows as u32, options.shape.heads as u32, batch as u32),
            options.units(),
            qkv.into_tensor_arg(),
            bias.into_tensor_arg(),
            table.into_tensor_arg(),
            places.into_tensor_arg(),
            output.clone().into_tensor_arg(),
            options.penalty,
            options.scale(),
            options.shape,
            types,
        );
        output
    }
}

impl WindowAttentionGradients for CubeBackend {
    fn window_attention_gradients(
        gradient: CubeTensor,
        qkv: CubeTensor,
        bias: CubeTensor,
        table: CubeTensor,
        places: CubeTensor,
        options: WindowOptions,
    ) -> (CubeTensor, CubeTensor, CubeTensor) {
        let [gradient, qkv, bias, table, places] =
            [gradient, qkv, bias, table, places].map(into_contiguous);
        let windows = gradient.shape()[0] * places.shape()[0];
        let qkv_gradient = empty(&qkv, qkv.shape(), qkv.dtype);
        let [table_partial, bias_partial] =
            { options.partials(windows) }.map(|partial| empty(&qkv, partial, DType::F32));
        let types = [qkv.dtype, places.dtype].map(dtype_to_storage_type);
        window_kernels::window_attention_backward::launch(
            &qkv_gradient.client,
            CubeCount::Static(options.cubes(windows) as u32, options.shape.heads as u32, 1),
            options.units(),
            gradient.into_tensor_arg(),
            qkv.into_tensor_arg(),
            bias.into_tensor_arg(),
            table.into_tensor_arg(),
            places.into_tensor_arg(),
            qkv_gradient.clone().into_tensor_arg(),
            table_partial.clone().into_tensor_arg(),
            bias_partial.clone().into_tensor_arg(),
            options.penalty,
            options.scale(),
            options.shape,
            types,
        );
        (qkv_gradient, table_partial, bias_partial)
    }
}

impl<B: WindowAttention + WindowAttentionGradients, C: CheckpointStrategy> WindowAttention
    for Autodiff<B, C>
{
    fn window_attention(
        qkv: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        table: FloatTensor<Self>,
        places: IntTensor<Self>,
        options: WindowOptions,
    ) -> FloatTensor<Self> {
        let kept = places.clone();
        let inputs = [qkv, bias, table];
        let prepared =
            { WindowAttentionNode.prepare::<C>(inputs.each_ref().map(|input| input.node())) }
                .compute_bound()
                .stateful();
        finish(
            prepared,
            inputs,
            move |keep| ([0, 1, 2].map(keep), kept, options),
            move |[qkv, bias, table]| B::window_attention(qkv, bias, table, places, options),
        )
    }
}

/// The operation as a step of the backward pass.
#[derive(Debug)]
struct WindowAttentionNode;

impl<B: WindowAttentionGradients> Backward<B, 3> for WindowAttentionNode {
    type State = ([NodeId; 3], IntTensor<B>, WindowOptions);

    fn backward(
        self,
        ops: Ops<Self::State, 3>,
        gradients: &mut Gradients,
        checkpointer: &mut Checkpointer,
    ) {
        let (saved, places, options) = ops.state;
        let gradient = gradients.consume::<B>(&ops.node);
        let [qkv, bias, table] =
            saved.map(|id| checkpointer.retrieve_node_output::<B::FloatTensorPrimitive>(id));
        let (qkv_gradient, table_partial, bias_partial) =
            B::window_attention_gradients(gradient, qkv, bias, table, places, options);
        let WindowShape { heads, width, .. } = options.shape;
        let table_shape = Shape::new([options.shape.table_rows(), heads]);
        let bias_shape = Shape::new([3 * heads * width]);
        let [of_qkv, of_bias, of_table] = ops.parents;
        if let Some(node) = of_qkv {
            gradients.register::<B>(node.id, qkv_gradient);
        }
        let [of_table, of_bias] = [of_table, of_bias].map(|node| node.map(|node| node.id));
        register_sum::<B>(gradients, of_table, table_partial, table_shape);
        register_sum::<B>(gradients, of_bias, bias_partial, bias_shape);
    }
}
