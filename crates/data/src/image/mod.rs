//! Images: decoding, resizing, normalizing, encoding.
//!
//! An image is 8-bit RGB, interleaved, row by row. Whatever a file holds (palette, gray, alpha, 16
//! bits, an orientation tag) becomes that on decoding. The size that a file claims is checked
//! before anything of that size is allocated.

mod decode;
mod encode;
mod filter;
mod jpeg;
mod preprocess;
mod resize;
mod rgb;
#[cfg(test)]
mod tests;

pub(crate) use decode::without_profile;
pub use decode::{ImageError, Limits, decode, format_of, is_turned, size_of};
pub use encode::{encode_jpeg, encode_label_png, encode_png};
pub use filter::{Filter, UnknownFilter};
pub use preprocess::{
    CLIP_MEAN, CLIP_STD, DEVIATIONS, IMAGENET_MEAN, IMAGENET_STD, MEANS, check_normalization,
    normalize,
};
pub(crate) use resize::{ByColumns, ResizeScratch};
pub use resize::{resize, resize_box, resize_crop};
pub use rgb::{Rgb, crop, flip};
