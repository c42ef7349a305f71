//! Patches of an image to tokens.

use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor, module::linear},
};

use super::init::{self, Rng};
use crate::parameters::Claims;

/// A convolution whose stride is its kernel: a matrix product over patches, stored as a
/// convolution.
#[derive(Module, Debug)]
pub struct PatchProjection {
    /// [channels, 3, patch, patch].
    pub weight: Param<Tensor<4>>,
    /// `[channels]`.
    pub bias: Param<Tensor<1>>,
}

impl PatchProjection {
    pub(crate) fn claim(mut claims: Claims) {
        claims.weight_and_bias();
    }

    pub(crate) fn init(channels: usize, patch: usize, rng: &mut Rng, device: &Device) -> Self {
        // PyTorch's default for a convolution, which the published networks keep: 1 / sqrt(inputs).
        let bound = 1.0 / ((3 * patch * patch) as f64).sqrt();
        Self {
            weight: init::uniform_symmetric([channels, 3, patch, patch], bound, rng, device),
            bias: init::uniform_symmetric([channels], bound, rng, device),
        }
    }

    /// images: [batch, 3, height, width] → [batch, ⌈height/patch⌉, ⌈width/patch⌉, channels].
    pub(crate) fn forward(&self, images: Tensor<4>) -> Tensor<4> {
        let weight = self.weight.val();
        let [channels, _, patch, _] = weight.dims();
        let [batch, colors, height, width] = images.dims();
        assert_eq!(colors, 3, "images have {colors} channels, expected 3");
        assert!(height > 0 && width > 0, "images are {height}x{width}");
        let images = pad_end(pad_end(images, 2, patch), 3, patch);
        let [_, _, height, width] = images.dims();
        let (rows, columns) = (height / patch, width / patch);

        let patches = images
            .reshape([batch, 3, rows, patch, columns, patch])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([batch, rows * columns, 3 * patch * patch]);
        let weight = weight.reshape([channels, 3 * patch * patch]).transpose();
        linear(patches, weight, Some(self.bias.val())).reshape([batch, rows, columns, channels])
    }
}

/// Pads the end of an axis with zeros to a multiple.
pub(crate) fn pad_end(x: Tensor<4>, axis: usize, multiple: usize) -> Tensor<4> {
    let size = x.dims()[axis];
    let missing = size.next_multiple_of(multiple) - size;
    if missing == 0 {
        return x;
    }
    let mut shape = x.dims();
    shape[axis] = missing;
    let zeros = Tensor::zeros(shape, &x.device());
    Tensor::cat(vec![x, zeros], axis)
}
