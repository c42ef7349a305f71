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

use burn::tensor::{DType, Shape};
use burn_cubecl::{ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor};

pub use attention::{WindowPlaces, supports_window_attention, window_attention};
pub use norm::{layer_norm, supports_layer_norm};

/// Whether a tensor of so many elements has addresses of 32 bits, as the kernels have.
fn addressable(elements: usize) -> bool {
    u32::try_from(elements).is_ok()
}

/// An uninitialized tensor beside another one.
fn empty(beside: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(beside.client.clone(), beside.device.clone(), shape, dtype)
}
