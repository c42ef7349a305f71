//! How operations compute that a thread starts: their precision, and whether they are fused. The threads
//! of [`Replicas`](crate::Replicas) compute as the one that starts them.

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::bf16;

/// Matmul precision: the number format of the factors of matrix products, of tokens with weights
/// and of queries, keys and values. Everything else is f32: the weights that are trained, the
/// optimizer's state, norms, softmaxes and losses.
///
/// The CPU's fused operations round the tokens and weights of a block, and in training their
/// gradients too. Other devices cast the factors of matrix products, or the weights beforehand
/// ([`Backbone::with_cast_weights`](crate::backbone::Backbone::with_cast_weights)), and round the
/// result to bf16 before it becomes f32 again; where a kernel for GPUs attends, q, k and v are bf16
/// and their products f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 24 significant bits.
    #[default]
    F32,
    /// Both factors with 8 significant bits, sums in f32. On the CPU faster with Intel's AMX or
    /// AMD's AVX512-BF16, elsewhere mostly slower; results differ by the order of sums only.
    Bf16,
}

/// How operations compute that a thread starts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mode {
    precision: Precision,
    fuses: bool,
    recomputes: bool,
    /// See [`half_format`].
    #[cfg(test)]
    half: DType,
}

thread_local! {
    static MODE: Cell<Mode> = const {
        Cell::new(Mode {
            precision: Precision::F32,
            fuses: true,
            recomputes: false,
            #[cfg(test)]
            half: DType::BF16,
        })
    };
}

impl Mode {
    /// The mode of this thread.
    pub(crate) fn current() -> Self {
        MODE.get()
    }

    /// Runs `work` in this mode.
    pub(crate) fn within<T>(self, work: impl FnOnce() -> T) -> T {
        /// Restores the mode, also after a panic.
        struct Before(Mode);
        impl Drop for Before {
            fn drop(&mut self) {
                MODE.set(self.0);
            }
        }
        let _before = Before(MODE.replace(self));
        work()
    }
}

/// Runs `work` with the graph of Burn's operations instead of fused ones, as on a device that is
/// not the CPU, for the operations that `work` starts in this thread. For comparisons.
pub fn unfused<T>(work: impl FnOnce() -> T) -> T {
    let mode = Mode {
        fuses: false,
        ..MODE.get()
    };
    mode.within(work)
}

/// Runs `work`; with `recompute`, fused operations that it starts in this thread save only their
/// inputs for the backward pass and recompute the rest there (activation checkpointing). The
/// gradients are the same to the bit.
pub fn recomputing<T>(recompute: bool, work: impl FnOnce() -> T) -> T {
    let mode = Mode {
        recomputes: recompute,
        ..MODE.get()
    };
    mode.within(work)
}

/// Runs `work` with another [`half_format`], for devices that have f16 alone: kernels are the same for both
/// formats, and sum in f32.
#[cfg(test)]
pub(crate) fn instead_of_bf16<T>(half: DType, work: impl FnOnce() -> T) -> T {
    let mode = Mode { half, ..MODE.get() };
    mode.within(work)
}

/// The number format of the factors of 16-bit products on devices other than the CPU: bf16, in tests perhaps f16.
pub(crate) fn half_format() -> DType {
    #[cfg(test)]
    return MODE.get().half;
    #[cfg(not(test))]
    DType::BF16
}

/// Whether operations on that device that this thread starts are the CPU's fused ones.
pub fn fuses(device: &Device) -> bool {
    fuses_anywhere() && device.clone().inner() == Device::flex()
}

/// Whether operations that this thread starts are fused ones, on devices that have them.
pub(crate) fn fuses_anywhere() -> bool {
    MODE.get().fuses
}

/// Whether operations that this thread starts save only their inputs.
pub(crate) fn recomputes() -> bool {
    MODE.get().recomputes
}

impl Precision {
    /// Runs `work` in this precision, which holds for the matrix products that `work` starts in
    /// this thread, on whichever thread or device they are computed.
    pub fn within<T>(self, work: impl FnOnce() -> T) -> T {
        let mode = Mode {
            precision: self,
            ..MODE.get()
        };
        mode.within(work)
    }

    /// The precision of operations that this thread starts.
    pub(crate) fn current() -> Self {
        MODE.get().precision
    }

    /// Whether this processor has matrix instructions for it.
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
    // Burn's own strategy of keeping less makes graphs of another kind than these operations do.
    let keeps = device
        .gradient_checkpointing_strategy()
        .is_none_or(|strategy| strategy == burn::backend::GradientCheckpointingStrategy::Disabled);
    keeps && x.dtype() == DType::F32 && fuses(&device)
}
