//! Passes over tensors in the host's memory.

use burn::tensor::{Device, Tensor};

/// Values per task of a parallel pass. Partial sums are added in the order of the chunks, so that a
/// norm does not depend on the number of threads.
pub const CHUNK: usize = 1 << 15;

/// Whether the tensor's memory is the host's.
pub fn on_host(tensor: &Tensor<1>) -> bool {
    tensor.device() == Device::flex()
}
