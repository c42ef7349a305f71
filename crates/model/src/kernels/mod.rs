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
//! | [`conv::conv`], [`conv::conv_transposed`] | W ∗ x + b |
//! | [`regions::cut`] | regions of maps, sampled bilinearly |
//! | [`prototypes::prototypes`] | x · (g ∘ v / ǀvǀ)ᵀ |
//!
//! Work is shared out over the threads of the rayon pool that the caller is in. On one thread equal inputs give equal
//! bits; sums over tokens depend on the number of threads.

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

pub(crate) mod attention;
mod bf16;
pub(crate) mod conv;
pub(crate) mod matrix;
pub(crate) mod mlp;
pub(crate) mod norm;
pub(crate) mod operation;
pub(crate) mod prototypes;
pub(crate) mod regions;
pub(crate) mod scalar;
#[cfg(test)]
pub(crate) mod tests;

/// Numbers that products of tokens with a block's weights are made of, on the CPU and where nothing is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 24 bits.
    #[default]
    F32,
    /// Both factors rounded to 8 bits, sums of 24: faster with Intel's AMX, slower elsewhere; equal but for the order of sums.
    Bf16,
}

thread_local! {
    static PRECISION: Cell<Precision> = const { Cell::new(Precision::F32) };
}

impl Precision {
    /// Runs `work` with products of this precision. They are those that `work` starts in this thread, wherever they are computed.
    pub fn within<T>(self, work: impl FnOnce() -> T) -> T {
        /// Sets back, whatever happens in between.
        struct Before(Precision);
        impl Drop for Before {
            fn drop(&mut self) {
                PRECISION.set(self.0);
            }
        }
        let _before = Before(PRECISION.replace(self));
        work()
    }

    /// That of the operation that begins in this thread.
    pub(crate) fn current() -> Self {
        PRECISION.get()
    }

    /// Whether this processor has products of its own for it.
    pub fn is_in_hardware(self) -> bool {
        self == Self::F32 || bf16::is_in_hardware()
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(format!("precision `{name}`: expected f32 or bf16")),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        })
    }
}

/// Whether the operations of this module can take the tensor.
pub(crate) fn can_fuse<const D: usize>(x: &Tensor<D>) -> bool {
    let device = x.device();
    // A graph that keeps less and computes again is not what these operations record.
    let keeps = device
        .gradient_checkpointing_strategy()
        .is_none_or(|strategy| strategy == burn::backend::GradientCheckpointingStrategy::Disabled);
    keeps && x.dtype() == DType::F32 && device.inner() == Device::flex()
}
