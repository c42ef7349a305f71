//! Encoding JPEG and PNG.

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

use super::rgb::Rgb;

/// Encodes as JPEG of `quality` 1 to 100. The same pixels always give the same bytes.
///
/// # Panics
/// If a side is longer than the 65,535 pixels that the format allows.
pub fn encode_jpeg(image: &Rgb, quality: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoder = JpegEncoder::new_with_quality(&mut bytes, quality);
    encode(encoder, image, "JPEG");
    bytes
}

/// Encodes as PNG. The same pixels always give the same bytes.
pub fn encode_png(image: &Rgb) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(PngEncoder::new(&mut bytes), image, "PNG");
    bytes
}

/// Encodes a map of labels, [height, width], as PNG of one byte a pixel. The same labels always
/// give the same bytes.
///
/// # Panics
/// If the map does not hold height x width labels.
pub fn encode_label_png(labels: &[u8], height: usize, width: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (w, h) = (width as u32, height as u32);
    let result = PngEncoder::new(&mut bytes).write_image(labels, w, h, ExtendedColorType::L8);
    assert!(result.is_ok(), "PNG of {height} x {width}: {result:?}");
    bytes
}

/// Writing to memory fails only for sizes that the format cannot hold.
fn encode(encoder: impl ImageEncoder, image: &Rgb, format: &str) {
    let (width, height) = (image.width as u32, image.height as u32);
    let color = ExtendedColorType::Rgb8;
    let result = encoder.write_image(&image.pixels, width, height, color);
    assert!(
        result.is_ok(),
        "{format} of {width} x {height} pixels: {result:?}"
    );
}
