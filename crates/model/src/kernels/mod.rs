//! Fused operations for the CPU, each with its own backward pass.
//!
//! Burn's graph of a transformer block makes some sixty tensors, each written to memory and read
//! back. The operations here work on a run of tokens at a time, so that intermediate values between
//! two matrix products stay in the cache, and save for the backward pass only what is expensive to
//! recompute, or with [`recomputing`] nothing. On other devices, for other number formats and
//! within [`unfused`], Burn's graph is used; tests compare the two.
//!
//! | operation | computes |
//! |---|---|
//! | [`norm::layer_norm`] | LN x |
//! | [`mlp::mlp`] | x + f · MLP(LN x) |
//! | [`attention::attention`] | x + f · Attn(LN x), within windows |
//! | [`conv::conv`], [`conv::conv_transposed`] | W ∗ x + b |
//! | [`regions::cut`] | regions of maps, sampled bilinearly |
//! | [`project::project`] | x · W, in inference |
//! | [`prototypes::prototypes`] | x · (g ∘ v / ǀvǀ)ᵀ |
//!
//! Work is divided among the threads of the caller's rayon pool. On one thread equal inputs give
//! equal bits; sums over tokens depend on the number of threads.

pub(crate) mod activation;
pub(crate) mod attention;
mod bf16;
pub(crate) mod conv;
pub(crate) mod gelu;
pub(crate) mod matrix;
pub(crate) mod mlp;
mod mode;
pub(crate) mod norm;
pub(crate) mod operation;
pub(crate) mod project;
pub(crate) mod prototypes;
pub(crate) mod regions;
pub(crate) mod scalar;
#[cfg(test)]
pub(crate) mod tests;
mod weight;
pub(crate) mod windows;

#[cfg(feature = "gpu")]
pub(crate) use mode::fuses_anywhere;
#[cfg(test)]
pub(crate) use mode::instead_of_bf16;
pub(crate) use mode::{Mode, can_fuse, half_format};
pub use mode::{Precision, fuses, recomputing, unfused};
