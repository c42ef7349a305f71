//! Captions for contrastive training, in varied wordings; every caption is true of its picture.
//!
//! [`synthetic_pair`] gives the n-th image-caption pair: whole people in loose crops, halves of
//! people, and crops that one part fills, with a caption about that part. The last kind is what
//! teaches an image tower to distinguish parts, so the eight part classes are equally frequent.
//! [`ccp_caption`] and [`ccp_pair`] do the same for the photos of Clothing Co-Parsing from their
//! tags and masks.

mod captioned_image;
mod ccp;
mod crops;
mod describe;
mod facts;
mod synthetic;
mod templates;
#[cfg(test)]
mod tests;

pub use captioned_image::CaptionedImage;
pub use ccp::{ccp_caption, ccp_pair};
pub use describe::caption;
pub use synthetic::synthetic_pair;
