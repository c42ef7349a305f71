//! The mask token of masked image modeling.

use burn::{
    module::Param,
    tensor::{Device, Tensor},
};

use super::init;

/// A mask token for patches of so many channels, zeros as in iBOT: `[channels]`.
pub(crate) fn mask_token(channels: usize, device: &Device) -> Param<Tensor<1>> {
    init::constant([channels], 0.0, device)
}

/// Puts the mask token in the place of masked patches.
///
/// # Shapes
/// - patches: [batch, height, width, channels]
/// - mask: 1 where masked, else 0: [batch, rows, columns], the positions of the network's map, each
///   of which covers as many patches as its stages merge
///
/// # Panics
/// Without a token: the network was not made for masks.
pub(crate) fn mask_patches(
    patches: Tensor<4>,
    mask: &Tensor<3>,
    token: Option<&Param<Tensor<1>>>,
) -> Tensor<4> {
    let Some(token) = token else {
        panic!("a mask for a backbone without a mask token");
    };
    let [batch, height, width, channels] = patches.dims();
    let [_, rows, columns] = mask.dims();
    let (of_row, of_column) = (height.div_ceil(rows), width.div_ceil(columns));
    let mask = mask
        .clone()
        .reshape([batch, rows, 1, columns, 1])
        .repeat(&[1, 1, of_row, 1, of_column])
        .reshape([batch, rows * of_row, columns * of_column, 1])
        .narrow(1, 0, height)
        .narrow(2, 0, width);
    let token = token.val().reshape([1, 1, 1, channels]);
    let kept = mask.clone().neg() + 1.0;
    patches * kept + token * mask
}
