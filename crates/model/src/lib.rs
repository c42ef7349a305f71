//! The networks of CLASP and what trains them: backbones, prompt-controlled mixture of experts, heads,
//! losses and optimiser.
//!
//! | file | holds |
//! |---|---|
//! | [`layers`] | initialisation, drop path, small layers |
//! | [`mix`] | weights over the tasks of pre-training |
//! | [`moe`] | prompt-controlled mixture of experts |
//! | [`swin`], [`vit`] | Swin and Vision Transformer with adapters |
//! | [`backbone`] | the one interface that all stages use |
//! | [`clip`], [`tokenizer`] | CLIP's two towers and its tokens |
//! | [`heads`] | heads of pre-training and of the tasks |
//! | [`losses`] | losses of both |
//! | `kernels` | fused operations for the CPU |
//! | [`named`] | parameters by name |
//! | [`optim`] | SGD, Adam, AdamW with rates of their own for each parameter; moving averages |
//! | `shares` | copies of a network in use and in training, and threads of each |
//!
//! Nothing here reads or writes files.

pub mod backbone;
pub mod clip;
pub mod error;
pub mod heads;
mod kernels;
pub mod layers;
pub mod losses;
pub mod mix;
pub mod moe;
pub mod named;
pub mod optim;
mod shares;
pub mod swin;
pub mod tokenizer;
pub mod vit;

pub use error::ModelError;
pub use kernels::{Precision, fuses, recomputing, unfused};
pub use shares::{Replicas, Shares};
