//! The part of an axis that is resized.

/// What an axis is resized from: pixels `offset..offset + length` of the image may be read, and
/// `start..end`, counted from `offset`, is stretched over the output.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) offset: usize,
    pub(super) length: usize,
    pub(super) start: f32,
    pub(super) end: f32,
}

impl Span {
    pub(super) fn whole(offset: usize, length: usize) -> Self {
        Span {
            offset,
            length,
            start: 0.0,
            end: length as f32,
        }
    }

    /// Input pixels per output pixel. Pillow subtracts in single precision.
    pub(super) fn scale(&self, size: usize) -> f64 {
        f64::from(self.end - self.start) / size as f64
    }

    pub(super) fn is_identity(&self, size: usize) -> bool {
        self.length == size && self.start == 0.0 && self.end == size as f32
    }
}
