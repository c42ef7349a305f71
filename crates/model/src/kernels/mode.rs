//! How operations compute that begin in a thread: their precision, and whether they are fused.

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;

use burn::tensor::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::bf16;

/// Numbers that products of tokens with weights, and of queries, keys and values, are made of. All else, weights, what the
/// optimiser keeps, norms, softmaxes and losses among it, is f32.
///
/// The CPU's fused operations round what they multiply with a block's weights, where nothing is trained; the graph of other
/// devices casts every factor, in training too, and its results come out in bf16 before they are f32 again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 24 bits.
    #[default]
    F32,
    /// Both factors rounded to 8 bits, sums of 24: on the CPU faster with Intel's AMX, slower elsewhere; equal but for the order
    /// of sums.
    Bf16,
}

/// How operations compute that begin in a thread.
#[derive(Debug, Clone, Copy)]
struct Mode {
    precision: Precision,
    fuses: bool,
    recomputes: bool,
}

thread_local! {
    static MODE: Cell<Mode> = const {
        Cell::new(Mode {
            precision: Precision::F32,
            fuses: true,
            recomputes: false,
        })
    };
}

impl Mode {
    /// Runs `work` in this mode.
    fn within<T>(self, work: impl FnOnce() -> T) -> T {
        /// Sets back, whatever happens in between.
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

/// Runs `work` as on a device that is not the CPU: by the graph of Burn's operations instead of fused ones, for the operations
/// that `work` starts in this thread. For comparisons.
pub fn unfused<T>(work: impl FnOnce() -> T) -> T {
    let mode = Mode {
        fuses: false,
        ..MODE.get()
    };
    mode.within(work)
}

/// Runs `work`; with `recompute`, fused operations that it starts in this thread keep their inputs alone for the backward pass and
/// compute there once more what they would have kept. The gradients are the same to the bit.
pub fn recomputing<T>(recompute: bool, work: impl FnOnce() -> T) -> T {
    let mode = Mode {
        recomputes: recompute,
        ..MODE.get()
    };
    mode.within(work)
}

/// Whether operations that begin in this thread are the CPU's fused ones on that device.
pub fn fuses(device: &Device) -> bool {
    MODE.get().fuses && device.clone().inner() == Device::flex()
}

/// Whether the operation that begins in this thread keeps its inputs alone.
pub(crate) fn recomputes() -> bool {
    MODE.get().recomputes
}

impl Precision {
    /// Runs `work` with products of this precision. They are those that `work` starts in this thread, wherever they are computed.
    pub fn within<T>(self, work: impl FnOnce() -> T) -> T {
        let mode = Mode {
            precision: self,
            ..MODE.get()
        };
        mode.within(work)
    }

    /// That of the operation that begins in this thread.
    pub(crate) fn current() -> Self {
        MODE.get().precision
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
    // Burn's own strategy of keeping less makes graphs of another kind than these operations do.
    let keeps = device
        .gradient_checkpointing_strategy()
        .is_none_or(|strategy| strategy == burn::backend::GradientCheckpointingStrategy::Disabled);
    keeps && x.dtype() == DType::F32 && fuses(&device)
}
