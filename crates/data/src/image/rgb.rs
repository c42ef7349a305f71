//! The image buffer: 8-bit RGB, interleaved, row by row.

/// An 8-bit RGB image.
#[derive(Clone, PartialEq, Eq)]
pub struct Rgb {
    /// Pixels in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Interleaved and row by row, [height, width, 3].
    pub pixels: Vec<u8>,
}

impl Rgb {
    /// An image of `pixels`, [height, width, 3].
    ///
    /// # Panics
    /// If the length of `pixels` is not `3 * width * height`, or that is 0.
    pub fn new(width: usize, height: usize, pixels: Vec<u8>) -> Self {
        assert!(
            !pixels.is_empty() && pixels.len() == 3 * width * height,
            "{} bytes for an RGB image of {width} x {height} (width x height)",
            pixels.len()
        );
        Rgb {
            width,
            height,
            pixels,
        }
    }

    /// An image of one color.
    pub fn filled(width: usize, height: usize, color: [u8; 3]) -> Self {
        Rgb::new(width, height, color.repeat(width * height))
    }

    /// The pixel in column `x` of row `y`.
    #[inline]
    pub fn pixel(&self, x: usize, y: usize) -> [u8; 3] {
        let start = 3 * (y * self.width + x);
        [
            self.pixels[start],
            self.pixels[start + 1],
            self.pixels[start + 2],
        ]
    }

    /// Row `y`, [width * 3].
    #[inline]
    pub fn row(&self, y: usize) -> &[u8] {
        &self.pixels[3 * self.width * y..][..3 * self.width]
    }
}

/// The size, not the pixels: an image in a failed assertion should not fill the screen.
impl std::fmt::Debug for Rgb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rgb({} x {})", self.width, self.height)
    }
}

/// The rectangle `crop_xywh` (left, top, width, height) of an image.
///
/// # Panics
/// If the rectangle is empty or not inside the image.
pub fn crop(image: &Rgb, crop_xywh: [usize; 4]) -> Rgb {
    let [x, y, width, height] = crop_xywh;
    assert!(
        x + width <= image.width && y + height <= image.height,
        "crop {crop_xywh:?} (xywh) is not inside {image:?}"
    );
    let mut pixels = Vec::with_capacity(3 * width * height);
    for row in y..y + height {
        pixels.extend_from_slice(&image.row(row)[3 * x..3 * (x + width)]);
    }
    Rgb::new(width, height, pixels)
}

/// The image mirrored left to right.
pub fn flip(image: &Rgb) -> Rgb {
    let mut pixels = Vec::with_capacity(image.pixels.len());
    for row in image.pixels.chunks_exact(3 * image.width) {
        for pixel in row.chunks_exact(3).rev() {
            pixels.extend_from_slice(pixel);
        }
    }
    Rgb::new(image.width, image.height, pixels)
}
