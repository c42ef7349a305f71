//! Operations for GPUs as CubeCL kernels, in place of many of Burn's each; those of the network have their own
//! backward pass. Only with the feature `gpu`, together with one of Burn's GPU backends.
//!
//! | operation | computes |
//! |---|---|
//! | [`window_attention`] | softmax(q kᵀ / √d + bias + mask) v, within windows |
//! | [`layer_norm`] | γ (x − mean) / √(variance + ε) + β |
//! | [`add_branch`] | x + f · (branch + bias) |
//! | [`gelu`] | GELU of product + bias |
//! | [`square_sums`], [`adam_steps`], [`weighted_sums`] | the optimizer's part of a step, several parameters in a launch |
//! | [`casts`] | several parameters in another number format, in a launch |
//!
//! The rest of the network is Burn's graph there, and so are these within [`crate::kernels::unfused`];
//! `clasp bench compare` compares them with the CPU.

mod attention;
mod branch;
mod branch_kernels;
mod norm;
mod norm_kernels;
mod parameter_kernels;
mod parameters;
mod window_kernels;

use burn::{
    backend::{
        Autodiff, Backend, DispatchDevice,
        autodiff::{
            NodeId,
            checkpoint::strategy::CheckpointStrategy,
            grads::Gradients,
            ops::{Backward, OpsKind},
        },
        tensor::FloatTensor,
    },
    tensor::{DType, Device, Shape},
};
use burn_cubecl::{ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor};
use cubecl::ir::HardwareProperties;

use crate::kernels;

pub use attention::{WindowPlaces, supports_window_attention, window_attention};
pub use branch::{add_branch, gelu, supports_branch};
pub use norm::{layer_norm, supports_layer_norm};
pub use parameters::{
    AdamScalars, AdamState, AdamUpdate, PARTS, adam_steps, casts, square_sums, supports_casts,
    supports_parameters, weighted_sums,
};

/// Elements of the largest tensor that kernels compute: see [`limits`].
const MOST_ELEMENTS: usize = u32::MAX as usize - (1 << 24);

/// The limits of a device on which kernels compute in this thread, if they can address a tensor of so
/// many elements: their addresses have 32 bits, and go up to 2²³ elements past the end.
fn limits(device: &Device, elements: usize) -> Option<HardwareProperties> {
    if !kernels::fuses_anywhere() || elements > MOST_ELEMENTS {
        return None;
    }
    match device.clone().inner().as_dispatch() {
        DispatchDevice::Cube(device) => Some(device.client().properties().hardware.clone()),
        _ => None,
    }
}

/// Computes an operation that was prepared as a node of Burn's graph. Where one of the inputs is tracked,
/// `state` gives what the backward pass needs; its argument keeps the input of a place for it.
fn finish<B: Backend, C: CheckpointStrategy, K: Backward<B, N>, const N: usize>(
    prepared: OpsKind<K, B, K::State, C, N>,
    inputs: [FloatTensor<Autodiff<B, C>>; N],
    state: impl FnOnce(&mut dyn FnMut(usize) -> NodeId) -> K::State,
    compute: impl FnOnce([FloatTensor<B>; N]) -> FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    match prepared {
        OpsKind::Tracked(mut prepared) => {
            let state = state(&mut |place| prepared.checkpoint(&inputs[place]));
            let output = compute(inputs.map(|input| input.into_primitive()));
            prepared.finish(state, output)
        }
        OpsKind::UnTracked(prepared) => {
            prepared.finish(compute(inputs.map(|input| input.into_primitive())))
        }
    }
}

/// Registers the gradient of a parameter of this shape, from sums of it over parts of a batch, [parts, ...].
fn register_sum<B: Backend>(
    gradients: &mut Gradients,
    node: Option<NodeId>,
    partial: FloatTensor<B>,
    shape: Shape,
) {
    if let Some(node) = node {
        let sum = B::float_reshape(B::float_sum_dim(partial, 0), shape);
        gradients.register::<B>(node, sum);
    }
}

/// An uninitialized tensor beside another one.
fn empty(beside: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(beside.client.clone(), beside.device.clone(), shape, dtype)
}
