//! Initialization and the few layers that several models share.
//!
//! | file | holds |
//! |---|---|
//! | `init` | draws of fresh weights, layers with them |
//! | `norm` | layer norm |
//! | `matmul` | matrix products in the thread's precision, attention |
//! | `branch` | bias with activation or residual sum, after a product |
//! | `cast` | parameters and gradients in another number format |
//! | `mlp` | the MLP of a transformer block |
//! | `patches` | patches of an image to tokens |
//! | `drop_path` | stochastic depth |
//! | `mask` | the mask token |
//! | `leaf` | parameters apart from a graph, and of one |
//! | `resample` | position embeddings of another grid, position biases of another window |

mod branch;
mod cast;
mod drop_path;
mod init;
mod leaf;
mod mask;
mod matmul;
mod mlp;
mod norm;
mod patches;
mod resample;

pub use crate::kernels::gelu::gelu;
pub(crate) use branch::{activated, add_projected};
pub(crate) use cast::{cast_all, cast_weights};
#[cfg(test)]
pub(crate) use drop_path::scale_samples;
pub(crate) use drop_path::{DropFactors, DropPath};
pub use init::{Rng, constant, head_linear, linear, trunc_normal, uniform, uniform_symmetric};
pub use leaf::fork;
pub(crate) use leaf::{detached, leaf, of_graph};
pub(crate) use mask::{mask_patches, mask_token};
#[cfg(feature = "gpu")]
pub(crate) use matmul::product_as_computed;
pub(crate) use matmul::{attend, attend_in_steps, block_operations, matmul, product, project};
pub use mlp::Mlp;
pub(crate) use norm::normalize_for_product;
pub use norm::{EPSILON, layer_norm, normalize};
pub use patches::PatchProjection;
pub(crate) use patches::pad_end;
pub use resample::{
    BiasResampling, Resampling, bicubic_matrix, offset_matrix, resample_grid, resample_matrix,
};
