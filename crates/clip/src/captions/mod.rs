//! Captions for contrastive training, in varied wordings and always true.
//!
//! [`pair`] draws the n-th image-caption pair: whole people in loose crops, halves of people, and crops that one
//! part fills, with a caption about that part. The last kind is what teaches an image tower to tell parts apart, so
//! the eight part classes come equally often. [`ccp_caption`] and [`ccp_pair`] do the same for the photos of
//! Clothing Co-Parsing from their tags and masks, with [`ccp_parts`] as the mapping from its labels to part classes.

mod ccp;
mod crops;
mod describe;
mod facts;
mod synthetic;
mod templates;
#[cfg(test)]
mod tests;

use clasp_data::image::Rgb;
use clasp_synth::Attributes;

pub use ccp::{ccp_caption, ccp_pair};
pub use describe::caption;
pub use synthetic::pair;

/// A picture and a caption that is true of it.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The picture, in any size.
    pub image: Rgb,
    /// The caption.
    pub caption: String,
    /// The part class that fills the picture; none for a person or half a person.
    pub part: Option<u8>,
    /// Part class of each pixel, [height, width] as the image; 255 where it is not known.
    pub parts: Vec<u8>,
    /// What is known of a drawn person: all attributes where the whole person is shown, those that can be read off the
    /// shown half where half is shown, `None` for a part.
    pub attributes: Option<Attributes>,
}
