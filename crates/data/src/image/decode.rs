//! Decoding JPEG, PNG, WebP and BMP.

use std::borrow::Cow;
use std::io::{Cursor, Read};
use std::path::Path;

use fs_err as fs;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use super::jpeg::{jpeg_is_whole, with_tables};
use super::rgb::Rgb;
use crate::contained::contained;

/// Limits of the size that a file claims, checked before it is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most pixels, width times height.
    pub max_pixels: u64,
    /// Most bytes of the decoded image in its own format (3 a pixel for an ordinary photo).
    pub max_bytes: u64,
    /// Longest side in pixels: each row and column is padded for resizing, which for an image of one
    /// row is 24 times its bytes.
    pub max_side: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_pixels: 100_000_000,
            max_bytes: 256 << 20,
            // That of JPEG.
            max_side: 65_535,
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
        "image of {width} x {height} pixels (width x height), {bytes} bytes; \
         the limit is {} pixels, {} a side, and {} bytes", .limits.max_pixels, .limits.max_side, .limits.max_bytes
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

/// The format by the first bytes, whatever the file's name.
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

/// Decodes JPEG, PNG, WebP or BMP, recognized by content.
///
/// The EXIF orientation is applied, gray becomes RGB, transparency is blended with white, 16 bits
/// are rounded to 8, and of an animation the first picture is taken.
///
/// ```
/// use clasp_data::image::{Limits, Rgb, decode, encode_png};
///
/// let image = Rgb::filled(2, 3, [10, 20, 30]);
/// assert_eq!(decode(&encode_png(&image), &Limits::default())?, image);
/// # Ok::<(), clasp_data::image::ImageError>(())
/// ```
///
/// # Errors
/// See [`ImageError`]. A JPEG without its end is an error even though most of it could be shown:
/// a gray lower half would be learned as content.
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
    // A bug of a decoder must fail one image, not the run.
    contained(|| decode_as(bytes, format, name, limits)).unwrap_or_else(|| {
        Err(ImageError::Damaged {
            format: name,
            reason: "the decoder panicked".to_owned(),
        })
    })
}

/// Bytes at the start of a file that nearly always contain its size.
const HEAD: u64 = 1 << 16;

/// Height and width that an image file would be decoded to, from its head alone; none if it is no
/// image.
pub fn size_of(path: &Path) -> Option<[usize; 2]> {
    let size = |bytes: &[u8]| contained(|| header_size(bytes))?;
    // To open a pipe is to wait for a writer, and a device may have no end.
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
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
        let bytes = decodable(bytes, format);
        let reader = ImageReader::with_format(Cursor::new(&*bytes), format);
        reader.into_decoder().ok()?.orientation().ok()
    };
    let orientation = contained(orientation).flatten();
    orientation.is_some_and(|orientation| orientation != Orientation::NoTransforms)
}

fn header_size(bytes: &[u8]) -> Option<[usize; 2]> {
    let (format, _) = known_format(bytes)?;
    let bytes = decodable(bytes, format);
    let reader = ImageReader::with_format(Cursor::new(&*bytes), format);
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
    let bytes = &*decodable(bytes, format);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    // The decoders' own tables and rows come on top of the image.
    let mut allocation = image::Limits::no_limits();
    allocation.max_alloc = Some(limits.max_bytes.saturating_mul(2));
    reader.limits(allocation);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    let total = decoder.total_bytes();
    let pixels = u64::from(width) * u64::from(height);
    if pixels > limits.max_pixels || width.max(height) > limits.max_side || total > limits.max_bytes
    {
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

/// The bytes as the decoder of the format takes them.
fn decodable(bytes: &[u8], format: ImageFormat) -> Cow<'_, [u8]> {
    match format {
        ImageFormat::Png => without_profile(bytes),
        ImageFormat::Jpeg => with_tables(bytes),
        _ => Cow::Borrowed(bytes),
    }
}

/// A PNG without its color profiles, which are not used, and which the decoder would inflate
/// without a bound.
pub(crate) fn without_profile(bytes: &[u8]) -> Cow<'_, [u8]> {
    let mut at = 8;
    // What stays of the bytes before `at`, once there was a profile.
    let mut kept: Option<Vec<u8>> = None;
    while let Some(head) = bytes.get(at..at + 8) {
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let end = at.saturating_add(length).saturating_add(12);
        // Profiles stand before the pixels; there may be several, of which the decoder inflates all.
        let Some(chunk) = bytes.get(at..end).filter(|_| &head[4..] != b"IDAT") else {
            break;
        };
        match (&head[4..], &mut kept) {
            (b"iCCP", None) => kept = Some(bytes[..at].to_vec()),
            (b"iCCP", Some(_)) | (_, None) => {}
            (_, Some(kept)) => kept.extend_from_slice(chunk),
        }
        at = end;
    }
    match kept {
        Some(mut kept) => {
            kept.extend_from_slice(&bytes[at..]);
            Cow::Owned(kept)
        }
        None => Cow::Borrowed(bytes),
    }
}

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
