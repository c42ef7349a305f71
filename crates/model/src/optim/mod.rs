//! SGD, Adam and AdamW over named parameters, each with rates of its own, and the teacher's moving
//! average.
//!
//! Gradients are tensors by name, so those of several replicas are averaged before the step and a
//! frozen parameter is one without an entry, or without rates. Rates are given anew at each step.
//! The state goes out and comes back as named arrays, for an exact resume. Formulas are PyTorch's.
//!
//! On the CPU a parameter, its gradient and its moments are read and written in one pass over
//! slices. GPUs that have the kernels (`groups`) compute several parameters in one launch. Elsewhere, and for
//! SGD, the same formulas are tensor operations on equal shapes and numbers of the host. Only [`read`] waits
//! for the device.

mod ema;
mod gradients;
mod groups;
mod host;
mod norms;
mod optimizer;
mod rules;
mod state;

pub use crate::named::Gradients;
pub use ema::ema;
pub use gradients::{FlatLayout, add, average, gradients};
pub use norms::{Norms, Squares, read};
pub use optimizer::{Optimizer, decays};
pub use rules::{GradientClip, OptimizerConfig, Rates, Rule};

#[cfg(test)]
mod tests;
