//! What a request may take, whatever it asks for.

use clasp_data::image::Limits;

/// What a request may take, whatever it asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServeLimits {
    /// Most bytes of a request's body.
    pub body_bytes: usize,
    /// Most pixels of an image, width times height.
    pub pixels: u64,
    /// Most images of a request.
    pub images: usize,
    /// Seconds from the head of a request to its answer.
    pub seconds: u64,
    /// Images that wait for the model, over all requests.
    pub queue: usize,
    /// Most images that the model takes at a time.
    pub batch: usize,
    /// Longest time in milliseconds that an image waits for others to be computed with it.
    pub wait_ms: u64,
    /// Connections at a time.
    pub connections: usize,
    /// Most images in the gallery.
    pub gallery: usize,
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            body_bytes: 32 << 20,
            pixels: 25_000_000,
            images: 64,
            seconds: 30,
            queue: 256,
            batch: 32,
            wait_ms: 5,
            connections: 256,
            gallery: 2_000_000,
        }
    }
}

/// Bodies of the largest size whose bytes are held at a time, over all requests.
const BODIES: usize = 16;

impl ServeLimits {
    /// The limits of a decoded image.
    pub fn of_images(&self) -> Limits {
        Limits {
            max_pixels: self.pixels,
            // 16 bits a channel with alpha take 8 bytes a pixel.
            max_bytes: self.pixels.saturating_mul(8),
            ..Limits::default()
        }
    }

    /// Most bytes of bodies that are held at a time, over all requests.
    pub fn held_bytes(&self) -> usize {
        self.body_bytes.saturating_mul(BODIES)
    }
}
