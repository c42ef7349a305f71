//! The pseudo-labels of one image.

use sha2::{Digest, Sha256};

use super::corrections::CorrectedAttribute;
use super::meta::StoreMeta;
use super::values::{LabelValues, LabelValuesRef};

/// The pseudo-labels of one image.
#[derive(Clone, Debug, PartialEq)]
pub struct Labels {
    /// The image's key in its source.
    pub key: String,
    /// Width of the image in pixels.
    pub width: u16,
    /// Height of the image in pixels.
    pub height: u16,
    /// The labels of each kind.
    pub values: LabelValues,
    /// [`image_digest`] of the file that was labeled; empty where it is not known.
    pub image_sha256: String,
}

impl Labels {
    /// A view of these labels.
    pub fn view(&self) -> LabelRef<'_> {
        LabelRef {
            key: &self.key,
            width: self.width,
            height: self.height,
            values: self.values.view(),
            image_sha256: &self.image_sha256,
            corrected: &[],
        }
    }
}

/// The labels of one image, borrowed from the store.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelRef<'a> {
    /// The image's key in its source.
    pub key: &'a str,
    /// Width of the image in pixels.
    pub width: u16,
    /// Height of the image in pixels.
    pub height: u16,
    /// The labels of each kind.
    pub values: LabelValuesRef<'a>,
    /// [`image_digest`] of the file that was labeled; empty where it is not known.
    pub image_sha256: &'a str,
    /// Attributes that people corrected; corrected positions are in the part map.
    pub corrected: &'a [CorrectedAttribute],
}

impl LabelRef<'_> {
    /// An owned copy, without corrected attributes.
    pub fn to_labels(&self) -> Labels {
        Labels {
            key: self.key.into(),
            width: self.width,
            height: self.height,
            values: self.values.to_values(),
            image_sha256: self.image_sha256.to_owned(),
        }
    }

    /// What is wrong with them, if anything: the field that does not fit `meta`.
    pub(super) fn fault(&self, meta: &StoreMeta) -> Option<String> {
        if self.key.is_empty() {
            return Some("key: expected a name, found an empty string".into());
        }
        if self.width == 0 || self.height == 0 {
            return Some(format!(
                "size: expected at least 1x1, found {}x{}",
                self.width, self.height
            ));
        }
        self.values.fault(meta)
    }

    /// What differs, if these labels are of another image than the one of `bytes` and `[height,
    /// width]`.
    pub fn difference_from(&self, bytes: &[u8], [height, width]: [usize; 2]) -> Option<String> {
        let size = [usize::from(self.height), usize::from(self.width)];
        if size != [height, width] {
            return Some(format!(
                "the image has changed since it was labeled: {width} x {height} pixels, the labels \
                 are of {} x {} (width x height)",
                size[1], size[0]
            ));
        }
        let changed = !self.image_sha256.is_empty() && self.image_sha256 != image_digest(bytes);
        changed.then(|| {
            "the image has changed since it was labeled: its file has another content".to_owned()
        })
    }
}

/// The digest of an image file in its labels: the first 16 hexadecimal digits of its SHA-256.
pub fn image_digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
