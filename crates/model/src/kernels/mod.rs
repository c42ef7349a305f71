//! Fused operations for the CPU, each with its own backward pass.
//!
//! Burn's graph of a transformer block makes some sixty tensors, each written to memory and read back. The operations
//! here work on a run of tokens at a time, so that what lies between two matrix products stays in the cache, and
//! keep for the backward pass only what is dear to make again, or with [`recomputing`] nothing. Elsewhere than on the CPU,
//! for numbers other than f32 and within [`unfused`] the graph of Burn's operations is taken; tests compare the two.
//!
//! | operation | computes |
//! |---|---|
//! | [`norm::layer_norm`] | LN x |
//! | [`mlp::mlp`] | x + f · MLP(LN x) |
//! | [`attention::attention`] | x + f · Attn(LN x), within windows |
//! | [`conv::conv`], [`conv::conv_transposed`] | W ∗ x + b |
//! | [`regions::cut`] | regions of maps, sampled bilinearly |
//! | [`project::project`] | x · W, where nothing is trained |
//! | [`prototypes::prototypes`] | x · (g ∘ v / ǀvǀ)ᵀ |
//!
//! Work is shared out over the threads of the rayon pool that the caller is in. On one thread equal inputs give equal
//! bits; sums over tokens depend on the number of threads.

pub(crate) mod activation;
pub(crate) mod attention;
mod bf16;
pub(crate) mod conv;
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

pub(crate) use mode::can_fuse;
pub use mode::{Precision, fuses, recomputing, unfused};
