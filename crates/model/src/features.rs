//! Outputs of a backbone.

use burn::tensor::Tensor;

/// Outputs of the shared blocks, those before the conditional ones.
#[derive(Debug, Clone)]
pub struct SharedFeatures {
    /// Tokens: [batch, height, width, channels] of a Swin, [batch, 1, tokens, channels] of a ViT.
    pub(crate) x: Tensor<4>,
    /// Maps of the stages that are complete.
    pub(crate) pyramid: Vec<Tensor<4>>,
    /// Rows and columns of the map.
    pub(crate) grid: [usize; 2],
}

impl SharedFeatures {
    /// The same detached from the graph, so that no gradient reaches the shared blocks.
    pub fn detach(self) -> Self {
        Self {
            x: self.x.detach(),
            pyramid: self.pyramid.into_iter().map(Tensor::detach).collect(),
            grid: self.grid,
        }
    }
}

/// Outputs of a backbone for a batch.
#[derive(Debug, Clone)]
pub struct Features {
    /// The last stage after the last norm: [batch, channels, height, width].
    pub map: Tensor<4>,
    /// The whole image: [batch, channels]. Mean of `map` over its positions; the class token of a
    /// ViT that has a trained one.
    pub pooled: Tensor<2>,
    /// The output of each of four stages: [batch, channels, height, width]. The strides are 4, 8,
    /// 16, 32 in a Swin, unless it has others, and the patch in a ViT, whose blocks count as four
    /// stages. The last is `map`; the others are not normalized.
    pub pyramid: Vec<Tensor<4>>,
}
