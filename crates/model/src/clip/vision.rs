//! The image tower.

use burn::{
    module::{Module, Param},
    nn::LayerNorm,
    tensor::{Int, Tensor},
};

use super::block::Transformer;
use crate::layers::{Resampling, resample_grid};

/// The image tower.
#[derive(Module, Debug)]
pub struct VisionTransformer {
    /// Cuts and projects patches.
    pub conv1: PatchConvolution,
    /// `[width]`.
    pub class_embedding: Param<Tensor<1>>,
    /// [1 + rows·columns, width]: the class token's first, then the patches', row-major.
    pub positional_embedding: Param<Tensor<2>>,
    /// Layer norm before the blocks.
    pub ln_pre: LayerNorm,
    /// The blocks.
    pub transformer: Transformer,
    /// Layer norm behind the blocks.
    pub ln_post: LayerNorm,
    /// [width, embed].
    pub proj: Param<Tensor<2>>,
    #[module(skip)]
    pub(super) patch: usize,
    #[module(skip)]
    pub(super) grid: [usize; 2],
}

impl VisionTransformer {
    /// Images to tokens: [batch, 3, height, width] to [batch, 1 + patches, width].
    pub(super) fn embed(&self, images: Tensor<4>, patches: Option<Tensor<1, Int>>) -> Tensor<3> {
        let [batch, channels, height, width] = images.dims();
        assert_eq!(channels, 3, "images have {channels} channels; expected 3");
        let grid = [height / self.patch, width / self.patch];
        assert!(
            grid[0] > 0 && grid[1] > 0,
            "an image of {height}x{width} holds no patch of {}",
            self.patch
        );
        let positions = self.positions(grid);
        let [_, dim] = positions.dims();
        let count = grid[0] * grid[1];
        let (mut tokens, mut patch_positions) = (
            cut_patches(images, self.patch),
            positions.clone().slice([1..1 + count]),
        );
        if let Some(patches) = patches {
            tokens = tokens.select(1, patches.clone());
            patch_positions = patch_positions.select(0, patches);
        }
        let weight = self.conv1.weight.val();
        let [_, _, p, q] = weight.dims();
        let weight = weight.reshape([dim, 3 * p * q]).transpose();
        let tokens =
            burn::tensor::module::linear(tokens, weight, None) + patch_positions.unsqueeze::<3>();
        let class = (self.class_embedding.val().unsqueeze::<2>() + positions.slice([0..1]))
            .unsqueeze::<3>()
            .expand([batch, 1, dim]);
        self.ln_pre.forward(Tensor::cat(vec![class, tokens], 1))
    }

    /// Position embeddings for a grid: [1 + rows·columns, width].
    pub(super) fn positions(&self, grid: [usize; 2]) -> Tensor<2> {
        let all = self.positional_embedding.val();
        if grid == self.grid {
            return all;
        }
        let count = all.dims()[0];
        let patches = all.clone().slice([1..count]);
        let map = resample_grid(patches, self.grid, grid, Resampling::Antialiased);
        Tensor::cat(vec![all.slice([0..1]), map], 0)
    }

    /// The class token's feature, not normalized: [batch, tokens, width] to [batch, embed].
    pub(super) fn pool(&self, x: Tensor<3>) -> Tensor<2> {
        let [batch, _, width] = x.dims();
        let class = x.slice([0..batch, 0..1]).reshape([batch, width]);
        self.ln_post.forward(class).matmul(self.proj.val())
    }
}

/// The patch embedding's weight, in the convolution's layout.
#[derive(Module, Debug)]
pub struct PatchConvolution {
    /// [width, 3, patch, patch].
    pub weight: Param<Tensor<4>>,
}

/// [batch, 3, height, width] to [batch, rows·columns, 3·patch·patch], the convolution's order
/// inside a patch.
fn cut_patches(images: Tensor<4>, patch: usize) -> Tensor<3> {
    let [batch, channels, height, width] = images.dims();
    let [rows, columns] = [height / patch, width / patch];
    images
        .slice([0..batch, 0..channels, 0..rows * patch, 0..columns * patch])
        .reshape([batch, channels, rows, patch, columns, patch])
        .permute([0, 2, 4, 1, 3, 5])
        .reshape([batch, rows * columns, channels * patch * patch])
}
