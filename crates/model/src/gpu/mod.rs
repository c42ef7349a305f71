//! Operations for GPUs that Burn's graph has no counterpart for, as CubeCL kernels, each with its own
//! backward pass. Only with the feature `gpu`, together with one of Burn's GPU backends.
//!
//! | operation | computes |
//! |---|---|
//! | [`window_attention`] | softmax(q kᵀ / √d + bias + mask) v, within windows |
//! | [`layer_norm`] | γ (x − mean) / √(variance + ε) + β |
//!
//! The rest of the network is Burn's graph there, and so are these within [`crate::kernels::unfused`];
//! `clasp bench compare` compares them with the CPU.

mod attention;
mod norm;
mod norm_kernels;
mod window_kernels;

use burn::{
    backend::{
        Autodiff, Backend, DispatchDevice,
        autodiff::{
            NodeId,
            checkpoint::strategy::CheckpointStrategy,
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
pub use norm::{layer_norm, supports_layer_norm};

/// The limits of a device on which kernels compute in this thread, if they can address a tensor of so
/// many elements: their addresses have 32 bits.
fn limits(device: &Device, elements: usize) -> Option<HardwareProperties> {
    if !kernels::fuses_anywhere() || u32::try_from(elements).is_err() {
        return None;
    }
    match device.clone().inner().as_dispatch() {
        DispatchDevice::Cube(device) => Some(device.client().properties().hardware.clone()),
        _ => None,
    }
}

/// Computes an operation as a node of Burn's graph, which keeps the inputs for the backward pass where
/// one of them is tracked; `state` adds what else it needs.
fn record<B: Backend, C: CheckpointStrategy, K: Backward<B, N>, const N: usize>(
    node: K,
    inputs: [FloatTensor<Autodiff<B, C>>; N],
    state: impl FnOnce([NodeId; N]) -> K::State,
    compute: impl FnOnce([FloatTensor<B>; N]) -> FloatTensor<B>,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = inputs.each_ref().map(|input| input.node());
    match node.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(mut prepared) => {
            let kept = inputs.each_ref().map(|input| prepared.checkpoint(input));
            let output = compute(inputs.map(|input| input.into_primitive()));
            prepared.finish(state(kept), output)
        }
        OpsKind::UnTracked(prepared) => {
            prepared.finish(compute(inputs.map(|input| input.into_primitive())))
        }
    }
}

/// An uninitialized tensor beside another one.
fn empty(beside: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(beside.client.clone(), beside.device.clone(), shape, dtype)
}
