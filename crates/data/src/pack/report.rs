//! What a packing did.

use std::path::PathBuf;

use serde::Serialize;

use crate::source::UnreadableImages;

/// What [`super::pack()`] wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PackReport {
    /// The shards in order.
    pub shards: Vec<PathBuf>,
    /// Images in them.
    pub images: u64,
    /// How many of those were downscaled.
    pub resized: u64,
    /// Bytes of the images as written.
    pub bytes: u64,
    /// Images skipped because they cannot be decoded.
    pub unreadable: UnreadableImages,
    /// Images of the source that an earlier process packed.
    pub resumed: usize,
    /// Whether it was stopped before all images were packed.
    pub stopped: bool,
}
