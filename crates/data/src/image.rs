//! Decoding, encoding and normalising images.
//!
//! An image is 8-bit RGB, interleaved, row by row. Whatever a file holds (palette, grey, alpha, 16
//! bits, an orientation tag) becomes that on decoding. The size of what a file claims to hold is
//! checked before anything of that size is allocated.

use std::borrow::Cow;
use std::io::{Cursor, Read};
use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use fs_err as fs;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::metadata::Orientation;
use image::{
    DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder, ImageFormat, ImageReader,
};

pub use crate::resize::{Filter, UnknownFilter, resize, resize_box, resize_crop};

/// Mean of ImageNet's training images per channel, of values 0 to 1.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Standard deviation that goes with [`IMAGENET_MEAN`].
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];
/// Mean of CLIP's training images per channel, of values 0 to 1 (openai/CLIP).
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation that goes with [`CLIP_MEAN`].
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// What a mean of a channel may be, of values 0 to 1; the others are slips.
pub const MEANS: RangeInclusive<f32> = -1e3..=1e3;
/// What a standard deviation of a channel may be.
pub const DEVIATIONS: RangeInclusive<f32> = 1e-4..=1e3;

/// Checks what images are to be normalised with.
///
/// # Errors
/// What is expected and what was found, in words.
pub fn check_normalisation(mean: [f32; 3], std: [f32; 3]) -> Result<(), String> {
    for (what, values, range) in [("mean", mean, MEANS), ("std", std, DEVIATIONS)] {
        if !values.iter().all(|value| range.contains(value)) {
            let (from, to) = (range.start(), range.end());
            return Err(format!(
                "{what}: expected numbers from {from} to {to}, found {values:?}"
            ));
        }
    }
    Ok(())
}

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

    /// An image of one colour.
    pub fn filled(width: usize, height: usize, colour: [u8; 3]) -> Self {
        Rgb::new(width, height, colour.repeat(width * height))
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

/// What an image may claim before it is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most pixels, width times height.
    pub max_pixels: u64,
    /// Most bytes of the decoded image in its own format (3 a pixel for an ordinary photo).
    pub max_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_pixels: 100_000_000,
            max_bytes: 256 << 20,
        }
    }
}

/// Why an image cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The content is of no known format.
    #[error("not an image: expected JPEG, PNG, WebP or BMP, found {found}")]
    NotAnImage {
        /// The first bytes, or that there are none.
        found: String,
    },
    /// The file ends before the image does.
    #[error("{format} cut short: {bytes} bytes without the end of the image")]
    Truncated {
        /// Name of the format.
        format: &'static str,
        /// Length of what there is.
        bytes: usize,
    },
    /// The image is larger than the limits allow.
    #[error(
        "image of {width} x {height} pixels, {bytes} bytes; \
         the limit is {} pixels and {} bytes", .limits.max_pixels, .limits.max_bytes
    )]
    TooLarge {
        /// Width that the file claims.
        width: u32,
        /// Height that the file claims.
        height: u32,
        /// Bytes of the decoded image.
        bytes: u64,
        /// What was allowed.
        limits: Limits,
    },
    /// The content is damaged, or uses a feature that the decoder does not know.
    #[error("{format} cannot be decoded: {reason}")]
    Damaged {
        /// Name of the format.
        format: &'static str,
        /// What the decoder says.
        reason: String,
    },
}

/// The format that the content's first bytes tell, whatever the file's name.
pub fn format_of(bytes: &[u8]) -> Option<&'static str> {
    known_format(bytes).map(|(_, name)| name)
}

fn known_format(bytes: &[u8]) -> Option<(ImageFormat, &'static str)> {
    let format = image::guess_format(bytes).ok()?;
    let name = match format {
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Png => "PNG",
        ImageFormat::WebP => "WebP",
        ImageFormat::Bmp => "BMP",
        _ => return None,
    };
    Some((format, name))
}

/// Decodes JPEG, PNG, WebP or BMP, told apart by content.
///
/// The EXIF orientation is applied, grey becomes RGB, what is transparent shows white, 16 bits are
/// rounded to 8, and of an animation the first picture is taken.
///
/// # Errors
/// See [`ImageError`]. A JPEG without its end is an error even though most of it could be shown:
/// a grey lower half would be learnt as one.
pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Rgb, ImageError> {
    let (format, name) = known_format(bytes).ok_or_else(|| ImageError::NotAnImage {
        found: describe_start(bytes),
    })?;
    if format == ImageFormat::Jpeg && !jpeg_is_whole(bytes) {
        return Err(ImageError::Truncated {
            format: name,
            bytes: bytes.len(),
        });
    }
    // A decoder's bug must cost one image of millions, not the run.
    catch_unwind(AssertUnwindSafe(|| decode_as(bytes, format, name, limits))).unwrap_or_else(|_| {
        Err(ImageError::Damaged {
            format: name,
            reason: "the decoder panicked".to_owned(),
        })
    })
}

/// Bytes at the start of a file in which its size is nearly always told.
const HEAD: u64 = 1 << 16;

/// Height and width that an image file would be decoded to, from its head alone; none if it is no image.
pub fn size_of(path: &Path) -> Option<[usize; 2]> {
    let size = |bytes: &[u8]| catch_unwind(AssertUnwindSafe(|| told_size(bytes))).ok()?;
    let mut file = fs::File::open(path).ok()?;
    let mut bytes = Vec::new();
    file.by_ref().take(HEAD).read_to_end(&mut bytes).ok()?;
    if let Some(size) = size(&bytes) {
        return Some(size);
    }
    file.take(Limits::default().max_bytes)
        .read_to_end(&mut bytes)
        .ok()?;
    size(&bytes)
}

/// Whether an image file carries an EXIF orientation that turns or mirrors it.
pub fn is_turned(bytes: &[u8]) -> bool {
    let orientation = || {
        let (format, _) = known_format(bytes)?;
        let reader = ImageReader::with_format(Cursor::new(bytes), format);
        reader.into_decoder().ok()?.orientation().ok()
    };
    let orientation = catch_unwind(AssertUnwindSafe(orientation)).unwrap_or(None);
    orientation.is_some_and(|orientation| orientation != Orientation::NoTransforms)
}

fn told_size(bytes: &[u8]) -> Option<[usize; 2]> {
    let (format, _) = known_format(bytes)?;
    let reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut decoder = reader.into_decoder().ok()?;
    let (width, height) = decoder.dimensions();
    let size = [height as usize, width as usize];
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    Some(match decoder.orientation() {
        Ok(Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH) => [size[1], size[0]],
        _ => size,
    })
}

fn decode_as(
    bytes: &[u8],
    format: ImageFormat,
    name: &'static str,
    limits: &Limits,
) -> Result<Rgb, ImageError> {
    let damaged = |error: image::ImageError| match error {
        image::ImageError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            ImageError::Truncated {
                format: name,
                bytes: bytes.len(),
            }
        }
        error => ImageError::Damaged {
            format: name,
            reason: error.to_string(),
        },
    };
    let bytes = &*match format {
        ImageFormat::Png => without_profile(bytes),
        ImageFormat::Jpeg => with_tables(bytes),
        _ => Cow::Borrowed(bytes),
    };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    // The decoders' own tables and rows come on top of the image.
    let mut allocation = image::Limits::no_limits();
    allocation.max_alloc = Some(limits.max_bytes.saturating_mul(2));
    reader.limits(allocation);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    let total = decoder.total_bytes();
    if u64::from(width) * u64::from(height) > limits.max_pixels || total > limits.max_bytes {
        return Err(ImageError::TooLarge {
            width,
            height,
            bytes: total,
            limits: *limits,
        });
    }
    if width == 0 || height == 0 {
        return Err(ImageError::Damaged {
            format: name,
            reason: format!("it claims {width} x {height} pixels"),
        });
    }
    // A broken tag is no reason to refuse a whole image.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let image = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    let mut image = DynamicImage::ImageRgb8(match image {
        DynamicImage::ImageRgb8(rgb) => rgb,
        image if image.color().has_alpha() => over_white(&image.into_rgba8()),
        image => image.into_rgb8(),
    });
    image.apply_orientation(orientation);
    let (width, height) = (image.width() as usize, image.height() as usize);
    Ok(Rgb::new(width, height, image.into_rgb8().into_raw()))
}

/// A PNG without its colour profile, which is not used, and which the decoder would inflate without
/// a bound.
fn without_profile(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut at = 8;
    while let Some(head) = bytes.get(at..at + 8) {
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let end = at.saturating_add(length).saturating_add(12);
        match &head[4..] {
            b"iCCP" if end <= bytes.len() => {
                return Cow::Owned([&bytes[..at], &bytes[end..]].concat());
            }
            // Profiles stand before the pixels.
            b"IDAT" | b"iCCP" => break,
            _ => at = end,
        }
    }
    Cow::Borrowed(bytes)
}

/// A JPEG with the Huffman tables of the standard (ITU T.81, K.3 to K.6) if it has none, as frames of
/// motion-JPEG cameras leave them out.
fn with_tables(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut at = 2;
    while let Some(&[0xff, marker, high, low]) = bytes.get(at..at + 4).and_then(|s| s.first_chunk())
    {
        match marker {
            // Fill.
            0xff => at += 1,
            // Tables are there, or the frame is of another coding (arithmetic, or progressive without tables).
            0xc4 | 0xc2 | 0xc9..=0xcb => break,
            0xda => {
                return Cow::Owned([&bytes[..at], &standard_tables()[..], &bytes[at..]].concat());
            }
            0x01 | 0xd0..=0xd8 => at += 2,
            _ => at += 2 + usize::from(u16::from_be_bytes([high, low])),
        }
    }
    Cow::Borrowed(bytes)
}

/// The segment of the standard's four Huffman tables.
fn standard_tables() -> Vec<u8> {
    // Codes of each length, then what they stand for, of T.81's tables K.3, K.5, K.4 and K.6.
    let dc_values: Vec<u8> = (0..12).collect();
    let tables: [(u8, [u8; 16], &[u8]); 4] = [
        (
            0x00,
            [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0],
            &dc_values,
        ),
        (
            0x10,
            [0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125],
            &AC_LUMINANCE,
        ),
        (
            0x01,
            [0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0],
            &dc_values,
        ),
        (
            0x11,
            [0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 119],
            &AC_CHROMINANCE,
        ),
    ];
    let mut segment = vec![0xff, 0xc4, 0x01, 0xa2];
    for (class, lengths, values) in tables {
        segment.push(class);
        segment.extend(lengths);
        segment.extend(values);
    }
    segment
}

/// Table K.5: run and size of AC coefficients of luminance, by code.
#[rustfmt::skip]
const AC_LUMINANCE: [u8; 162] = [
    0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07,
    0x22, 0x71, 0x14, 0x32, 0x81, 0x91, 0xa1, 0x08, 0x23, 0x42, 0xb1, 0xc1, 0x15, 0x52, 0xd1, 0xf0,
    0x24, 0x33, 0x62, 0x72, 0x82, 0x09, 0x0a, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x25, 0x26, 0x27, 0x28,
    0x29, 0x2a, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49,
    0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69,
    0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89,
    0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7,
    0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3, 0xc4, 0xc5,
    0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xe1, 0xe2,
    0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8,
    0xf9, 0xfa,
];

/// Table K.6: run and size of AC coefficients of chrominance, by code.
#[rustfmt::skip]
const AC_CHROMINANCE: [u8; 162] = [
    0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71,
    0x13, 0x22, 0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xa1, 0xb1, 0xc1, 0x09, 0x23, 0x33, 0x52, 0xf0,
    0x15, 0x62, 0x72, 0xd1, 0x0a, 0x16, 0x24, 0x34, 0xe1, 0x25, 0xf1, 0x17, 0x18, 0x19, 0x1a, 0x26,
    0x27, 0x28, 0x29, 0x2a, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48,
    0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68,
    0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87,
    0x88, 0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3, 0xa4, 0xa5,
    0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3,
    0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda,
    0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8,
    0xf9, 0xfa,
];

fn over_white(image: &image::RgbaImage) -> image::RgbImage {
    let mut rgb = image::RgbImage::new(image.width(), image.height());
    for (to, from) in rgb.pixels_mut().zip(image.pixels()) {
        let alpha = u32::from(from[3]);
        to.0 = [0, 1, 2].map(|c| {
            let over = u32::from(from[c]) * alpha + 255 * (255 - alpha);
            ((over + 127) / 255) as u8
        });
    }
    rgb
}

fn describe_start(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "no bytes".to_owned();
    }
    let start = &bytes[..bytes.len().min(16)];
    if start
        .iter()
        .all(|b| matches!(b, 0x20..0x7f | b'\n' | b'\t' | b'\r'))
    {
        return format!("text starting with {:?}", String::from_utf8_lossy(start));
    }
    let hex: Vec<String> = start.iter().map(|b| format!("{b:02x}")).collect();
    format!("bytes starting with {}", hex.join(" "))
}

/// Whether the marker that ends a JPEG is there.
///
/// Segments are skipped by their length, so that the end of an embedded thumbnail does not count.
/// Inside compressed data a 0xff byte is followed by 0x00 or a restart marker. The decoder itself
/// fills what is missing with grey without a word.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    while at + 1 < bytes.len() {
        if bytes[at] != 0xff {
            match bytes[at..].iter().position(|b| *b == 0xff) {
                Some(step) => at += step,
                None => return false,
            }
            continue;
        }
        match bytes[at + 1] {
            0xd9 => return true,
            // A fill byte: the marker comes after it.
            0xff => at += 1,
            // Data byte, restart markers, and the two markers without a length.
            0x00 | 0x01 | 0xd0..=0xd8 => at += 2,
            _ => match bytes.get(at + 2..at + 4) {
                Some(length) => at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]])),
                None => return false,
            },
        }
    }
    false
}

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

/// Encodes a map of labels, [height, width], as PNG of one byte a pixel. The same labels always give the same bytes.
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

/// CLIP's preprocessing up to the normalisation: the short side to `size` with bicubic filtering,
/// then the `size` x `size` pixels in the middle, rounded as torchvision does.
pub fn clip_crop(image: &Rgb, size: usize) -> Rgb {
    let short = image.width.min(image.height);
    // u64: a side of many million pixels times the size must not wrap on a 32-bit machine.
    let scaled = |side: usize| (size as u64 * side as u64 / short as u64) as usize;
    let (width, height) = (scaled(image.width), scaled(image.height));
    let resized = resize(image, height, width, Filter::Bicubic);
    let middle = |side: usize| ((side - size) as f64 / 2.0).round_ties_even() as usize;
    crop(&resized, [middle(width), middle(height), size, size])
}

/// `(pixel / 255 - mean) / std` per channel. Returns [3, height, width].
pub fn normalise(image: &Rgb, mean: [f32; 3], std: [f32; 3]) -> Vec<f32> {
    let area = image.width * image.height;
    let mut planes = vec![0.0; 3 * area];
    for (channel, plane) in planes.chunks_exact_mut(area).enumerate() {
        let mut values = [0.0; 256];
        for (level, value) in values.iter_mut().enumerate() {
            *value = (level as f32 / 255.0 - mean[channel]) / std[channel];
        }
        let pixels = image.pixels.chunks_exact(3);
        for (value, pixel) in plane.iter_mut().zip(pixels) {
            *value = values[usize::from(pixel[channel])];
        }
    }
    planes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn gradient(width: usize, height: usize) -> Rgb {
        let mut pixels = Vec::new();
        for y in 0..height {
            for x in 0..width {
                pixels.extend([(255 * x / width) as u8, (255 * y / height) as u8, 90]);
            }
        }
        Rgb::new(width, height, pixels)
    }

    fn decoded(bytes: &[u8]) -> Rgb {
        decode(bytes, &Limits::default()).unwrap()
    }

    fn error(bytes: &[u8]) -> ImageError {
        decode(bytes, &Limits::default()).unwrap_err()
    }

    fn encoded(image: DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn dynamic(image: &Rgb) -> DynamicImage {
        let (width, height) = (image.width as u32, image.height as u32);
        let buffer = image::RgbImage::from_raw(width, height, image.pixels.clone()).unwrap();
        DynamicImage::ImageRgb8(buffer)
    }

    #[test]
    fn lossless_formats_come_back_equal() {
        let image = gradient(31, 17);
        for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp] {
            let bytes = encoded(dynamic(&image), format);
            assert!(decoded(&bytes) == image, "{format:?}");
        }
        assert!(decoded(&encode_png(&image)) == image);
    }

    #[test]
    fn jpeg_comes_back_close() {
        let image = gradient(64, 48);
        let back = decoded(&encode_jpeg(&image, 95));
        let far = |(a, b): (&u8, &u8)| a.abs_diff(*b) > 8;
        assert!(!image.pixels.iter().zip(&back.pixels).any(far));
    }

    #[test]
    fn a_single_pixel_is_an_image() {
        let image = Rgb::filled(1, 1, [200, 10, 10]);
        assert_eq!(decoded(&encode_png(&image)), image);
        assert_eq!(decoded(&encode_jpeg(&image, 90)).pixels.len(), 3);
    }

    #[test]
    fn grey_alpha_and_sixteen_bits_become_rgb() {
        let grey = image::GrayImage::from_raw(2, 1, vec![0, 200]).unwrap();
        let grey = encoded(DynamicImage::ImageLuma8(grey), ImageFormat::Png);
        assert_eq!(decoded(&grey).pixels, [0, 0, 0, 200, 200, 200]);

        let pixels = vec![255, 0, 0, 255, 10, 20, 30, 0, 0, 0, 0, 128];
        let alpha = image::RgbaImage::from_raw(3, 1, pixels).unwrap();
        for format in [ImageFormat::Png, ImageFormat::WebP] {
            let alpha = encoded(DynamicImage::ImageRgba8(alpha.clone()), format);
            let expected = [255, 0, 0, 255, 255, 255, 127, 127, 127];
            assert_eq!(decoded(&alpha).pixels, expected, "{format:?}");
        }

        let deep = image::ImageBuffer::from_raw(2, 1, vec![0, 65_535, 257, 300, 30_000, 12_850]);
        let deep = encoded(DynamicImage::ImageRgb16(deep.unwrap()), ImageFormat::Png);
        assert_eq!(decoded(&deep).pixels, [0, 255, 1, 1, 117, 50]);
    }

    /// A JPEG with an EXIF segment that holds only the orientation.
    fn with_orientation(jpeg: &[u8], orientation: u8) -> Vec<u8> {
        let mut exif = b"Exif\0\0MM\0\x2a\0\0\0\x08".to_vec();
        exif.extend([
            0,
            1,
            0x01,
            0x12,
            0,
            3,
            0,
            0,
            0,
            1,
            0,
            orientation,
            0,
            0,
            0,
            0,
            0,
            0,
        ]);
        let mut bytes = jpeg[..2].to_vec();
        bytes.extend([0xff, 0xe1]);
        bytes.extend(((exif.len() + 2) as u16).to_be_bytes());
        bytes.extend(exif);
        bytes.extend(&jpeg[2..]);
        bytes
    }

    #[test]
    fn a_jpeg_without_huffman_tables_is_decoded_with_those_of_the_standard() {
        let pixels = (0..3 * 40 * 24).map(|i| (i * i % 251) as u8).collect();
        let whole = encode_jpeg(&Rgb::new(40, 24, pixels), 90);
        // Leave the segments of tables out.
        let (mut bare, mut at) = (whole[..2].to_vec(), 2);
        while whole[at + 1] != 0xda {
            let end = at + 2 + usize::from(u16::from_be_bytes([whole[at + 2], whole[at + 3]]));
            if whole[at + 1] != 0xc4 {
                bare.extend_from_slice(&whole[at..end]);
            }
            at = end;
        }
        bare.extend_from_slice(&whole[at..]);
        assert!(bare.len() + 400 < whole.len());
        assert!(decoded(&bare) == decoded(&whole));
        assert!(matches!(with_tables(&whole), Cow::Borrowed(_)));
        for cut in 0..bare.len() {
            let _ = with_tables(&bare[..cut]);
        }
    }

    #[test]
    fn a_colour_profile_takes_no_memory() {
        let chunk = |kind: &[u8], data: &[u8]| {
            let length = (data.len() as u32).to_be_bytes();
            // The checksum is not right: the chunk is not looked into.
            [&length[..], kind, data, &[0; 4]].concat()
        };
        let png = encode_png(&Rgb::filled(5, 4, [9, 8, 7]));
        let header = 8 + 25;
        assert_eq!(&png[header - 21..header - 17], b"IHDR");
        let profile = chunk(b"iCCP", &[b"k\0\0", &[0; 1000][..]].concat());
        let with = [&png[..header], &profile, &png[header..]].concat();
        assert!(decoded(&with) == decoded(&png));
        for cut in 0..with.len() {
            let _ = without_profile(&with[..cut]);
        }
    }

    #[test]
    fn the_orientation_tag_is_applied() {
        // Four flat corners tell all eight orientations apart.
        let mut image = Rgb::filled(32, 16, [0, 0, 0]);
        for y in 0..16 {
            for x in 0..32 {
                let corner = 2 * usize::from(y >= 8) + usize::from(x >= 16);
                let start = 3 * (y * 32 + x);
                image.pixels[start..start + 3].fill([0, 80, 160, 240][corner]);
            }
        }
        let jpeg = encode_jpeg(&image, 95);
        let cases = [
            (1, [0, 1, 2, 3]),
            (2, [1, 0, 3, 2]),
            (3, [3, 2, 1, 0]),
            (4, [2, 3, 0, 1]),
            (5, [0, 2, 1, 3]),
            (6, [2, 0, 3, 1]),
            (7, [3, 1, 2, 0]),
            (8, [1, 3, 0, 2]),
        ];
        for (tag, expected) in cases {
            let turned = decoded(&with_orientation(&jpeg, tag));
            assert_eq!(is_turned(&with_orientation(&jpeg, tag)), tag != 1);
            let size = if tag < 5 { (32, 16) } else { (16, 32) };
            assert_eq!((turned.width, turned.height), size, "orientation {tag}");
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), with_orientation(&jpeg, tag)).unwrap();
            assert_eq!(size_of(file.path()), Some([size.1, size.0]), "{tag}");
            let (right, bottom) = (turned.width - 4, turned.height - 4);
            let corners = [(4, 4), (right, 4), (4, bottom), (right, bottom)];
            let found = corners.map(|(x, y)| (u16::from(turned.pixel(x, y)[0]) + 40) / 80);
            assert_eq!(found, expected, "orientation {tag}");
        }
        // A tag that means nothing is ignored.
        assert_eq!(decoded(&with_orientation(&jpeg, 77)).width, 32);
    }

    #[test]
    fn files_cut_short_are_errors_at_any_length() {
        let image = gradient(40, 30);
        let files = [
            encode_jpeg(&image, 80),
            with_orientation(&encode_jpeg(&image, 80), 6),
            encode_png(&image),
            encoded(dynamic(&image), ImageFormat::WebP),
            encoded(dynamic(&image), ImageFormat::Bmp),
        ];
        for bytes in &files {
            for tenth in 0..10 {
                let cut = &bytes[..bytes.len() * tenth / 10];
                assert!(decode(cut, &Limits::default()).is_err(), "{}", cut.len());
            }
        }
        let jpeg = &files[0];
        let cut = error(&jpeg[..jpeg.len() - 2]);
        assert!(matches!(cut, ImageError::Truncated { .. }), "{cut}");
    }

    #[test]
    fn what_is_not_an_image_says_what_was_found() {
        let text = error(b"name,label\na,b\n").to_string();
        assert!(text.contains("text starting with \"name,label"), "{text}");
        assert!(error(b"").to_string().contains("no bytes"));
        let gif = error(b"GIF89a\x01\0\x01\0").to_string();
        assert!(gif.contains("47 49 46"), "{gif}");
    }

    /// A PNG of nothing but a header with these sides.
    fn claiming(width: u32, height: u32) -> Vec<u8> {
        let mut bytes = encode_png(&gradient(8, 8));
        bytes[16..20].copy_from_slice(&width.to_be_bytes());
        bytes[20..24].copy_from_slice(&height.to_be_bytes());
        let crc = crc32(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.to_be_bytes());
        bytes
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let step = |crc: u32| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        !bytes.iter().fold(!0, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc))
        })
    }

    #[test]
    fn a_claim_of_thirty_thousand_squared_is_refused_unread() {
        let start = std::time::Instant::now();
        let error = error(&claiming(30_000, 30_000));
        assert!(matches!(error, ImageError::TooLarge { .. }), "{error}");
        assert!(error.to_string().contains("30000 x 30000"), "{error}");
        // Touching 2.7 GB takes far longer.
        assert!(start.elapsed().as_millis() < 200);
    }

    #[test]
    fn limits_are_the_callers() {
        let bytes = encode_png(&gradient(20, 10));
        let limits = |max_pixels, max_bytes| Limits {
            max_pixels,
            max_bytes,
        };
        assert!(decode(&bytes, &limits(200, 600)).is_ok());
        assert!(decode(&bytes, &limits(199, 600)).is_err());
        assert!(decode(&bytes, &limits(200, 599)).is_err());
    }

    #[test]
    fn normalises_to_planes() {
        let image = Rgb::new(2, 1, vec![0, 255, 51, 255, 0, 102]);
        let planes = normalise(&image, [0.5, 0.5, 0.0], [0.5, 0.25, 1.0]);
        let expected = [-1.0, 1.0, 2.0, -2.0, 0.2, 0.4];
        for (a, e) in planes.iter().zip(expected) {
            assert!((a - e).abs() < 1e-6, "{planes:?}");
        }
    }

    #[test]
    fn clip_crop_of_a_very_long_image() {
        assert_eq!(clip_crop(&gradient(1, 90), 16).height, 16);
        assert_eq!(
            clip_crop(&gradient(91, 7), 7).pixel(0, 3),
            gradient(91, 7).pixel(42, 3)
        );
    }

    proptest! {
        #[test]
        fn flipping_twice_changes_nothing(width in 1_usize..20, height in 1_usize..20) {
            let image = gradient(width, height);
            prop_assert_eq!(flip(&flip(&image)), image);
        }

        #[test]
        fn damaged_files_never_panic(
            which in 0_usize..4, at in 0.0_f64..1.0, value: u8, cut in 0.0_f64..1.0,
        ) {
            let image = gradient(24, 20);
            let mut bytes = match which {
                0 => encode_jpeg(&image, 70),
                1 => encode_png(&image),
                2 => encoded(dynamic(&image), ImageFormat::WebP),
                _ => encoded(dynamic(&image), ImageFormat::Bmp),
            };
            let at = (at * bytes.len() as f64) as usize;
            bytes[at] = value;
            if cut < 0.5 {
                bytes.truncate((2.0 * cut * bytes.len() as f64) as usize);
            }
            let limits = Limits { max_pixels: 1 << 20, max_bytes: 4 << 20 };
            let _ = decode(&bytes, &limits);
        }
    }
}
