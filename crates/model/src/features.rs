//! Outputs of a backbone.

use burn::tensor::{Gradients, Tensor};

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
    /// The sum of the tokens, `[1]`.
    pub fn sum(self) -> Tensor<1> {
        self.x.sum()
    }

    /// The same as leaves of a graph of their own, so that there are two backward passes, first of what
    /// follows and then of the shared blocks ([`GradientCut::before`]). Maps of complete stages give
    /// no gradient.
    pub fn cut(self) -> (Self, GradientCut) {
        let leaf = self.x.clone().detach().require_grad();
        let cut = GradientCut {
            before: self.x,
            leaf: leaf.clone(),
        };
        let after = Self {
            x: leaf,
            pyramid: self.pyramid.into_iter().map(Tensor::detach).collect(),
            grid: self.grid,
        };
        (after, cut)
    }

    /// The same detached from the graph, so that no gradient reaches the shared blocks.
    pub fn detach(self) -> Self {
        Self {
            x: self.x.detach(),
            pyramid: self.pyramid.into_iter().map(Tensor::detach).collect(),
            grid: self.grid,
        }
    }
}

/// Where [`SharedFeatures::cut`] divides a graph.
#[derive(Debug)]
pub struct GradientCut {
    before: Tensor<4>,
    leaf: Tensor<4>,
}

impl GradientCut {
    /// What has to be differentiated for the gradients of the shared blocks, given those of the first
    /// backward pass: Σ feature · gradient over all cuts, `[1]`. None if no gradient reaches a cut.
    pub fn before(cuts: Vec<Self>, gradients: &Gradients) -> Option<Tensor<1>> {
        { cuts.into_iter() }
            .filter_map(|cut| Some(with_gradient(cut.before, cut.leaf.grad(gradients)?)))
            .reduce(|sum, term| sum + term)
    }
}

/// Σ value · gradient, `[1]`: differentiated, it continues a backward pass that ended with this gradient
/// of `tensor`.
pub fn with_gradient<const D: usize>(tensor: Tensor<D>, gradient: Tensor<D>) -> Tensor<1> {
    // The gradient, outside autodiff, is a constant.
    (tensor * gradient).sum()
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
