//! The networks of CLASP: backbones, prompt-controlled mixture of experts, heads, losses and the
//! optimizers.
//!
//! | file | holds |
//! |---|---|
//! | [`layers`] | initialization, drop path, small layers |
//! | [`prompt`] | prompt weights |
//! | [`moe`] | prompt-controlled mixture of experts |
//! | [`swin`], [`vit`] | Swin and Vision Transformer with adapters |
//! | [`backbone`] | the one interface that all stages use |
//! | [`clip`], [`tokenizer`] | CLIP's two towers and its tokens |
//! | [`heads`] | heads of pre-training and of the tasks |
//! | [`losses`] | losses of both |
//! | `kernels` | fused operations for the CPU |
//! | `gpu` | operations for GPUs, with the feature of that name |
//! | [`named`] | parameters by name |
//! | [`parameters`] | layer and kind of each parameter of a backbone |
//! | [`optim`] | SGD, Adam, AdamW with rates of their own for each parameter; moving averages |
//! | `shares` | replicas of a network and their threads |
//!
//! Nothing here reads or writes files.

pub mod adapter;
pub mod backbone;
pub mod clip;
pub mod error;
pub mod features;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod heads;
mod kernels;
pub mod layers;
pub mod losses;
pub mod moe;
pub mod named;
pub mod optim;
pub mod parameters;
pub mod prompt;
mod shares;
pub mod swin;
pub mod tokenizer;
pub mod vit;

pub use error::ModelError;
pub use kernels::{Precision, fuses, recomputing, unfused};
pub use shares::{Replicas, Shares};
