//! The attribute head: logits of every attribute value from the pooled features.

use burn::{
    module::Module,
    nn::Linear,
    tensor::{Device, Tensor},
};

use crate::layers::{self, Rng, gelu};

/// Sizes of the attribute head.
#[derive(Debug, Clone, PartialEq)]
pub struct AttributeHeadConfig {
    /// Channels of the pooled features.
    pub input: usize,
    /// Channels of the hidden layer.
    pub hidden: usize,
    /// Attribute values, all attributes together.
    pub values: usize,
}

impl AttributeHeadConfig {
    /// A hidden layer as wide as the features. Our choice.
    pub fn new(input: usize, values: usize) -> Self {
        Self {
            input,
            hidden: input,
            values,
        }
    }

    /// A head with fresh weights.
    pub fn init(&self, rng: &mut Rng, device: &Device) -> AttributeHead {
        AttributeHead {
            fc1: layers::head_linear(self.input, self.hidden, rng, device),
            fc2: layers::head_linear(self.hidden, self.values, rng, device),
        }
    }
}

/// Two layers with GELU between.
#[derive(Module, Debug)]
pub struct AttributeHead {
    /// input → hidden.
    pub fc1: Linear,
    /// hidden → values.
    pub fc2: Linear,
}

impl AttributeHead {
    /// Value logits of pooled features.
    ///
    /// # Shapes
    /// - pooled: [batch, input]
    /// - output: [batch, values]
    pub fn forward(&self, pooled: Tensor<2>) -> Tensor<2> {
        let hidden = gelu(layers::project(pooled, &self.fc1));
        layers::project(hidden, &self.fc2)
    }
}
