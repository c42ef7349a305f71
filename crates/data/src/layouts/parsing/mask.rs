//! Label maps in files: a PNG with one channel or a palette, 1 to 8 bits, or the matrix
//! `groundtruth` of a MATLAB file, as in CCP.

use std::io::Cursor;
use std::path::Path;

use crate::image::without_profile;
use crate::layouts::{LayoutError, in_file, read_mat};
use crate::source::{SourceError, read_file};

/// Most pixels of a mask.
const MAX_PIXELS: u64 = 100_000_000;
/// The ignore index: the label of pixels that neither train nor count.
pub const IGNORE: u8 = 255;

/// A label for each pixel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelMap {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Row-major, [height, width].
    pub labels: Vec<u8>,
}

impl LabelMap {
    /// Whether each label occurs.
    pub fn present(&self) -> [bool; 256] {
        let mut present = [false; 256];
        for label in &self.labels {
            present[usize::from(*label)] = true;
        }
        present
    }
}

/// The problem of masks for which [`is_black_and_white`] holds.
pub const BLACK_AND_WHITE: &str = "the masks hold 0 and 255 alone: 255 is the index of pixels that are ignored, so nothing \
     but class 0 would be learned; write the class (as 1) in place of 255";

/// Whether masks with these labels are of two colors, black and white, rather than of class
/// indices.
pub fn is_black_and_white(present: &[bool; 256]) -> bool {
    let there = (0..256).filter(|label| present[*label]);
    there.eq([0, 255])
}

/// Reads the indices of a PNG with one channel or a palette, or of the matrix `groundtruth` of a
/// MATLAB file.
///
/// # Errors
/// If it is another kind of file, a pipe or a device, has no pixel or more than 100 million.
pub fn read_label_map(path: &Path) -> Result<LabelMap, LayoutError> {
    if path.extension().is_some_and(|extension| extension == "mat") {
        return read_label_matrix(path);
    }
    let place = path.display().to_string();
    match read_file(path) {
        Ok(bytes) => label_map(bytes, &place),
        Err(SourceError::Io(error)) => Err(error.into()),
        Err(other) => Err(LayoutError::File {
            file: place,
            expected: "a file with a mask".to_owned(),
            found: other.to_string(),
        }),
    }
}

/// As [`read_label_map`], of the bytes of a PNG; `place` is for messages.
///
/// # Errors
/// As [`read_label_map`].
pub fn label_map(bytes: Vec<u8>, place: &str) -> Result<LabelMap, LayoutError> {
    let error = |expected: &str, found: String| LayoutError::File {
        file: place.to_owned(),
        expected: expected.to_owned(),
        found,
    };
    let expected = "a PNG of class indices (one channel or palette, 1 to 8 bits)";
    let mut decoder = png::Decoder::new(Cursor::new(without_profile(&bytes)));
    // Indices as stored: a palette must not become colors, nor 1 bit become 0 and 255.
    decoder.set_transformations(png::Transformations::IDENTITY);
    let mut reader = decoder
        .read_info()
        .map_err(|e| error(expected, e.to_string()))?;
    let info = reader.info();
    let (width, height, color) = (info.width as usize, info.height as usize, info.color_type);
    let bits = info.bit_depth as usize;
    if !matches!(color, png::ColorType::Grayscale | png::ColorType::Indexed) || bits > 8 {
        return Err(error(expected, format!("{color:?} of {bits} bits")));
    }
    if width as u64 * height as u64 > MAX_PIXELS {
        return Err(error(
            "at most 100 million pixels",
            format!("{width} x {height} (width x height)"),
        ));
    }
    let row_bytes = (width * bits).div_ceil(8);
    let mut packed = vec![0; row_bytes * height];
    reader
        .next_frame(&mut packed)
        .map_err(|e| error(expected, e.to_string()))?;
    let mut labels = Vec::with_capacity(width * height);
    let mask = ((1_u16 << bits) - 1) as u8;
    for row in packed.chunks_exact(row_bytes) {
        // Several indices in a byte, the first in the highest bits.
        labels.extend((0..width).map(|x| (row[x * bits / 8] >> (8 - bits - x * bits % 8)) & mask));
    }
    Ok(LabelMap {
        height,
        width,
        labels,
    })
}

fn read_label_matrix(path: &Path) -> Result<LabelMap, LayoutError> {
    let mat = read_mat(path)?;
    let matrix = mat.get("groundtruth").map_err(in_file(path))?;
    let [height, width] = matrix.shape();
    let pixels = (height as u64).saturating_mul(width as u64);
    if !(1..=MAX_PIXELS).contains(&pixels) {
        return Err(LayoutError::File {
            file: path.display().to_string(),
            expected: "1 to 100 million pixels".to_owned(),
            found: format!("{width} x {height} (width x height)"),
        });
    }
    let values = matrix.numbers().map_err(in_file(path))?;
    if let Some(odd) = values
        .iter()
        .find(|value| !(0.0..=255.0).contains(*value) || value.fract() != 0.0)
    {
        return Err(LayoutError::File {
            file: path.display().to_string(),
            expected: "labels 0 to 255".to_owned(),
            found: odd.to_string(),
        });
    }
    // Column by column in the file.
    let pixel = |i: usize| values[i % width * height + i / width] as u8;
    Ok(LabelMap {
        height,
        width,
        labels: (0..values.len()).map(pixel).collect(),
    })
}
