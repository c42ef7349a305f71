//! A linear layer on the pooled features: the head of attribute recognition.

use burn::{
    module::Module,
    nn::Linear,
    tensor::{Device, Tensor},
};

use crate::layers::{self, Rng};

/// Pooled features to logits.
#[derive(Module, Debug)]
pub struct LinearHead {
    /// channels → outputs.
    pub logits: Linear,
}

impl LinearHead {
    /// Weights of standard deviation 1/√channels, bias zero.
    pub fn init(channels: usize, outputs: usize, rng: &mut Rng, device: &Device) -> Self {
        Self {
            logits: layers::head_linear(channels, outputs, rng, device),
        }
    }

    /// [batch, channels] → [batch, outputs].
    pub fn forward(&self, pooled: Tensor<2>) -> Tensor<2> {
        self.logits.forward(pooled)
    }
}
