//! A picture with a caption and the annotations that training uses.

use clasp_data::image::Rgb;
use clasp_synth::AttributeValues;

/// A picture and a caption that is true of it.
#[derive(Clone, Debug)]
pub struct CaptionedImage {
    /// The picture, in any size.
    pub image: Rgb,
    /// The caption.
    pub caption: String,
    /// The part class that fills the picture; none for a person or half a person.
    pub part: Option<u8>,
    /// Part class of each pixel, `[height, width]` as the image; 255 (ignore index) where unknown.
    pub parts: Vec<u8>,
    /// Known attributes of a synthetic person: all of them where the whole person is shown, those
    /// that are visible on the shown half, `None` for a part.
    pub attributes: Option<AttributeValues>,
}
