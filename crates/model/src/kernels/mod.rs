//! Fused operations for the CPU, each with its own backward pass.
//!
//! Burn's graph of a transformer block makes some sixty tensors, each written to memory and read back. The operations
//! here work on a run of tokens at a time, so that what lies between two matrix products stays in the cache, and
//! keep for the backward pass only what is dear to make again. Elsewhere than on the CPU, and for numbers other than f32,
//! the graph of Burn's operations is taken; tests compare the two.
//!
//! | operation | computes |
//! |---|---|
//! | [`norm::layer_norm`] | LN x |
//! | [`mlp::mlp`] | x + f · MLP(LN x) |
//! | [`attention::attention`] | x + f · Attn(LN x), within windows |
//! | [`prototypes::prototypes`] | x · (g ∘ v / ǀvǀ)ᵀ |
//!
//! Work is shared out over the threads of the rayon pool that the caller is in. On one thread equal inputs give equal
//! bits; sums over tokens depend on the number of threads.

use burn::tensor::{DType, Device, Tensor};

pub(crate) mod attention;
pub(crate) mod matrix;
pub(crate) mod mlp;
pub(crate) mod norm;
pub(crate) mod operation;
pub(crate) mod prototypes;
pub(crate) mod scalar;
#[cfg(test)]
pub(crate) mod tests;

/// Whether the operations of this module can take the tensor.
pub(crate) fn can_fuse<const D: usize>(x: &Tensor<D>) -> bool {
    let device = x.device();
    // A graph that keeps less and computes again is not what these operations record.
    let keeps = device
        .gradient_checkpointing_strategy()
        .is_none_or(|strategy| strategy == burn::backend::GradientCheckpointingStrategy::Disabled);
    keeps && x.dtype() == DType::F32 && device.inner() == Device::flex()
}
