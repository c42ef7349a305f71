//! The part head: a class for every position of the last map.

use burn::{
    module::Module,
    nn::Linear,
    tensor::{Device, Tensor},
};

use crate::layers::{self, Rng, gelu};

/// Sizes of the part head.
#[derive(Debug, Clone, PartialEq)]
pub struct PartHeadConfig {
    /// Channels of the map.
    pub input: usize,
    /// Channels of the two hidden layers.
    pub hidden: usize,
    /// Part classes, the background included.
    pub classes: usize,
}

impl PartHeadConfig {
    /// Hidden layers as wide as the map. Our choice.
    pub fn new(input: usize, classes: usize) -> Self {
        Self {
            input,
            hidden: input,
            classes,
        }
    }

    /// A head with fresh weights.
    pub fn init(&self, rng: &mut Rng, device: &Device) -> PartHead {
        let sizes = [
            (self.input, self.hidden),
            (self.hidden, self.hidden),
            (self.hidden, self.classes),
        ];
        PartHead {
            layers: sizes
                .map(|(inputs, outputs)| layers::head_linear(inputs, outputs, rng, device))
                .to_vec(),
        }
    }
}

/// Three layers with GELU between, the same at every position.
#[derive(Module, Debug)]
pub struct PartHead {
    /// input → hidden → hidden → classes.
    pub layers: Vec<Linear>,
}

impl PartHead {
    /// Class logits of a map.
    ///
    /// # Shapes
    /// - map: [batch, channels, height, width]
    /// - output: [batch, classes, height, width]
    pub fn forward(&self, map: Tensor<4>) -> Tensor<4> {
        let last = self.layers.len() - 1;
        let tokens = map.permute([0, 2, 3, 1]);
        self.layers
            .iter()
            .enumerate()
            .fold(tokens, |x, (index, layer)| {
                let x = layers::project(x, layer);
                if index < last { gelu(x) } else { x }
            })
            .permute([0, 3, 1, 2])
    }
}
