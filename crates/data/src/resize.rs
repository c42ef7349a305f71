//! Resizing with the arithmetic of Pillow, bit for bit.
//!
//! Models trained in Python saw images that Pillow resized; a different rounding shifts their
//! features. Pillow resizes 8-bit images in two passes, first along rows, then along columns, and
//! rounds to 8 bits after each. Pillow 13 takes columns first where that is cheaper, which
//! changes some pixels by a level or two; the order here is that of Pillow up to 12.
//!
//! An output pixel x of an axis with `scale` input pixels per output pixel is the weighted mean of
//! the input pixels around `(x + 1/2) * scale`:
//!
//! ```text
//! weight(i) = filter((i + 1/2 - (x + 1/2) * scale) / max(scale, 1)), normalised to sum 1
//! ```
//!
//! so that the filter widens when the image shrinks ("antialiased"). Weights are rounded to fixed
//! point with 22 fractional bits: 8 bits for the pixel and 2 for overshoot remain of 32.
//!
//! Both passes run over contiguous lanes, 64 rows at once along rows and 64 columns at once along columns; between them a plane
//! is transposed. They are compiled for the widest vectors of the machine they run on, and sum whole numbers that `f32` holds
//! exactly, so that the result does not depend on that choice.

use pulp::{Arch, Simd, WithSimd};

use crate::image::Rgb;
use crate::vectors::vectorised;

/// How a resized pixel is made from its neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Filter {
    /// The nearest pixel, without antialiasing: for label maps.
    Nearest,
    /// Triangle of half-width 1 input pixel.
    Bilinear,
    /// Keys' cubic of half-width 2 with a = -1/2 (Keys 1981), Pillow's `BICUBIC`.
    Bicubic,
}

impl Filter {
    /// Half-width in input pixels at scale 1.
    fn support(self) -> f64 {
        match self {
            Filter::Nearest => 0.5,
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Filter::Nearest => f64::from(x <= 0.5),
            Filter::Bilinear => (1.0 - x).max(0.0),
            Filter::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Filter::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Filter::Bicubic => 0.0,
        }
    }
}

/// Resizes to `height` x `width`, as Pillow's `image.resize((width, height), filter)`.
///
/// # Panics
/// If `height` or `width` is 0.
pub fn resize(image: &Rgb, height: usize, width: usize, filter: Filter) -> Rgb {
    let whole = [0, 0, image.width, image.height];
    resize_crop(image, whole, height, width, filter)
}

/// Resizes a rectangle of the image, as Pillow's `image.crop(..).resize((width, height), filter)`,
/// without copying the rectangle. Pixels outside of it have no influence.
///
/// `crop_xywh`: left, top, width, height in whole pixels, inside the image.
///
/// # Panics
/// If the rectangle is empty or not inside the image, or `height` or `width` is 0.
pub fn resize_crop(
    image: &Rgb,
    crop_xywh: [usize; 4],
    height: usize,
    width: usize,
    filter: Filter,
) -> Rgb {
    let [x, y, w, h] = crop_xywh;
    assert!(
        w > 0 && h > 0 && x + w <= image.width && y + h <= image.height,
        "crop {crop_xywh:?} (xywh) is not inside an image of {} x {} (width x height)",
        image.width,
        image.height
    );
    let columns = Span::whole(x, w);
    let rows = Span::whole(y, h);
    resample(image, columns, rows, height, width, filter)
}

/// Resizes a rectangle given to fractions of a pixel, as Pillow's
/// `image.resize((width, height), filter, box=...)`. Unlike in [`resize_crop`], the filter reads
/// pixels outside of the rectangle where it reaches over its border.
///
/// `box_xywh`: left, top, width, height in pixels, inside the image.
///
/// # Panics
/// If the rectangle is empty or not inside the image, or `height` or `width` is 0.
pub fn resize_box(
    image: &Rgb,
    box_xywh: [f32; 4],
    height: usize,
    width: usize,
    filter: Filter,
) -> Rgb {
    let [x, y, w, h] = box_xywh;
    let inside = |start: f32, length: f32, limit: usize| {
        start >= 0.0 && length > 0.0 && start + length <= limit as f32
    };
    assert!(
        inside(x, w, image.width) && inside(y, h, image.height),
        "box {box_xywh:?} (xywh) is not inside an image of {} x {} (width x height)",
        image.width,
        image.height
    );
    let columns = Span {
        offset: 0,
        length: image.width,
        start: x,
        end: x + w,
    };
    let rows = Span {
        offset: 0,
        length: image.height,
        start: y,
        end: y + h,
    };
    resample(image, columns, rows, height, width, filter)
}

/// What an axis is resized from: pixels `offset..offset + length` of the image may be read, and
/// `start..end`, counted from `offset`, is stretched over the output.
#[derive(Clone, Copy)]
struct Span {
    offset: usize,
    length: usize,
    start: f32,
    end: f32,
}

impl Span {
    fn whole(offset: usize, length: usize) -> Self {
        Span {
            offset,
            length,
            start: 0.0,
            end: length as f32,
        }
    }

    /// Input pixels per output pixel. Pillow subtracts in single precision.
    fn scale(&self, size: usize) -> f64 {
        f64::from(self.end - self.start) / size as f64
    }

    fn is_identity(&self, size: usize) -> bool {
        self.length == size && self.start == 0.0 && self.end == size as f32
    }
}

fn resample(
    image: &Rgb,
    columns: Span,
    rows: Span,
    height: usize,
    width: usize,
    filter: Filter,
) -> Rgb {
    assert!(
        height > 0 && width > 0,
        "cannot resize to {height} x {width} (height x width)"
    );
    if filter == Filter::Nearest {
        return nearest(image, columns, rows, height, width);
    }
    if columns.is_identity(width) && rows.is_identity(height) {
        let of_row = |y| &image.row(rows.offset + y)[3 * columns.offset..][..3 * width];
        return Rgb::new(
            width,
            height,
            (0..height).flat_map(of_row).copied().collect(),
        );
    }
    let by_columns = ByColumns::new(image, columns, rows);
    let mut pixels = vec![0; 3 * height * width];
    by_columns.resize(
        columns,
        rows,
        [height, width],
        filter,
        false,
        &mut Scratch::default(),
        |channel, y, x, lanes| {
            let row = &mut pixels[3 * (y * width + x)..];
            for (pixel, lane) in row.chunks_exact_mut(3).zip(lanes) {
                pixel[channel] = *lane as u8;
            }
        },
    );
    Rgb::new(width, height, pixels)
}

/// Values that are computed side by side: eight of the widest vectors with their two sums.
const LANES: usize = 64;

/// An image turned on its side, `[column, channel, row]`, so that the pass along rows runs over contiguous bytes. One serves
/// for any number of crops.
pub(crate) struct ByColumns {
    bytes: Vec<u8>,
    /// Bytes from one channel of a column to the next: the rows, and room to read on for [`LANES`].
    stride: usize,
    /// Height and width of what is there.
    pub(crate) size: [usize; 2],
    /// Column and row of the image that come first.
    offset: [usize; 2],
}

/// Memory that the passes use, for the next image to use again.
#[derive(Default)]
pub(crate) struct Scratch {
    /// A plane after the first pass, `[output column, row]`.
    narrowed: Vec<u8>,
    /// The same turned back, `[row, output column]`.
    turned: Vec<u8>,
    /// What a pass reads, as numbers: `[block of lanes, input, lane]`.
    cells: Vec<[f32; LANES]>,
}

impl ByColumns {
    /// The whole image.
    pub(crate) fn whole(image: &Rgb) -> Self {
        let [columns, rows] = [image.width, image.height].map(|side| Span::whole(0, side));
        Self::new(image, columns, rows)
    }

    /// The pixels that the spans may read.
    fn new(image: &Rgb, columns: Span, rows: Span) -> Self {
        let stride = (rows.length + LANES).next_multiple_of(8);
        let mut bytes = vec![0; 3 * columns.length * stride];
        let pixels = &image.pixels[3 * (rows.offset * image.width + columns.offset)..];
        let size = [rows.length, 3 * columns.length];
        transpose(pixels, 3 * image.width, size, &mut bytes, stride);
        Self {
            bytes,
            stride,
            size: [rows.length, columns.length],
            offset: [columns.offset, rows.offset],
        }
    }

    /// Resizes a rectangle of whole pixels of the image: [`resize_crop`], mirrored if asked.
    ///
    /// `sink` gets the result, whole numbers from 0 to 255: channel, row, first column, and as many pixels as are left of the
    /// row, [`LANES`] at most; row by row of the red plane, then of the green and the blue.
    pub(crate) fn resize_crop(
        &self,
        [x, y, w, h]: [usize; 4],
        size: [usize; 2],
        filter: Filter,
        flip: bool,
        scratch: &mut Scratch,
        sink: impl FnMut(usize, usize, usize, &[f32]),
    ) {
        let (columns, rows) = (Span::whole(x, w), Span::whole(y, h));
        self.resize(columns, rows, size, filter, flip, scratch, sink);
    }

    #[allow(clippy::too_many_arguments)]
    fn resize(
        &self,
        columns: Span,
        rows: Span,
        [height, width]: [usize; 2],
        filter: Filter,
        flip: bool,
        scratch: &mut Scratch,
        mut sink: impl FnMut(usize, usize, usize, &[f32]),
    ) {
        let column_taps = Taps::new(columns, width, filter);
        let row_taps = Taps::new(rows, height, filter);
        // Only the rows that the second pass reads.
        let (needed, read) = (row_taps.span(), column_taps.span());
        let first_row = rows.offset - self.offset[1] + needed.start;
        let first_column = columns.offset - self.offset[0] + read.start;
        // One output column after the other, then one row after the other.
        let (tall, wide) = (
            needed.len().next_multiple_of(LANES),
            width.next_multiple_of(LANES),
        );
        grow(&mut scratch.narrowed, width * tall, 0);
        grow(&mut scratch.turned, needed.len() * wide, 0);
        let most = (tall / LANES * read.len()).max(wide / LANES * needed.len());
        grow(&mut scratch.cells, most, [0.0; LANES]);
        for channel in 0..3 {
            let start = (3 * first_column + channel) * self.stride + first_row;
            let inputs = Inputs {
                bytes: &self.bytes[start..],
                stride: 3 * self.stride,
                count: read.len(),
                lanes: tall,
            };
            let narrowed = &mut scratch.narrowed[..width * tall];
            Arch::new().dispatch(AlongRows {
                inputs,
                taps: &column_taps,
                flip,
                cells: &mut scratch.cells,
                narrowed,
            });
            let size = [width, needed.len()];
            transpose(narrowed, tall, size, &mut scratch.turned, wide);
            let inputs = Inputs {
                bytes: &scratch.turned,
                stride: wide,
                count: needed.len(),
                lanes: wide,
            };
            Arch::new().dispatch(AlongColumns {
                inputs,
                taps: &row_taps,
                cells: &mut scratch.cells,
                sink: |y, x, lanes: &[f32; LANES]| {
                    sink(channel, y, x, &lanes[..LANES.min(width - x)]);
                },
            });
        }
    }
}

/// Makes room without clearing what is there.
fn grow<T: Copy>(memory: &mut Vec<T>, length: usize, fill: T) {
    if memory.len() < length {
        memory.resize(length, fill);
    }
}

/// What a pass reads: `count` inputs of `lanes` bytes.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    bytes: &'a [u8],
    /// Bytes from an input to the next.
    stride: usize,
    count: usize,
    /// A multiple of [`LANES`].
    lanes: usize,
}

impl Inputs<'_> {
    /// As numbers, `[block of lanes, input, lane]`.
    #[inline(always)]
    fn widen(&self, cells: &mut [[f32; LANES]]) {
        for input in 0..self.count {
            let bytes = &self.bytes[input * self.stride..][..self.lanes];
            for (block, bytes) in bytes.as_chunks::<LANES>().0.iter().enumerate() {
                let cell = &mut cells[block * self.count + input];
                for (value, byte) in cell.iter_mut().zip(bytes) {
                    *value = f32::from(*byte);
                }
            }
        }
    }
}

/// First pass, on one plane.
struct AlongRows<'a> {
    inputs: Inputs<'a>,
    taps: &'a Taps,
    flip: bool,
    cells: &'a mut [[f32; LANES]],
    /// `[output, lanes]`.
    narrowed: &'a mut [u8],
}

impl WithSimd for AlongRows<'_> {
    type Output = ();

    // Compiled once per instruction set, into which all of it must be inlined.
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let AlongRows {
            inputs,
            taps,
            flip,
            cells,
            narrowed,
        } = self;
        inputs.widen(cells);
        let (start, last) = (taps.span().start, taps.outputs.len() - 1);
        for block in 0..inputs.lanes / LANES {
            let cells = &cells[block * inputs.count..][..inputs.count];
            for (x, (first, weights)) in taps.outputs.iter().enumerate() {
                let values = taps.weigh(simd, weights.clone(), &cells[first - start..]);
                let x = if flip { last - x } else { x };
                let output = &mut narrowed[x * inputs.lanes + block * LANES..][..LANES];
                for (byte, value) in output.iter_mut().zip(values) {
                    *byte = to_byte(value);
                }
            }
        }
    }
}

/// Second pass, on one plane.
struct AlongColumns<'a, F> {
    inputs: Inputs<'a>,
    taps: &'a Taps,
    cells: &'a mut [[f32; LANES]],
    /// Gets row, first column and values.
    sink: F,
}

impl<F: FnMut(usize, usize, &[f32; LANES])> WithSimd for AlongColumns<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let AlongColumns {
            inputs,
            taps,
            cells,
            mut sink,
        } = self;
        inputs.widen(cells);
        let start = taps.span().start;
        for (y, (first, weights)) in taps.outputs.iter().enumerate() {
            for block in 0..inputs.lanes / LANES {
                let cells = &cells[block * inputs.count..][..inputs.count];
                let values = taps.weigh(simd, weights.clone(), &cells[first - start..]);
                sink(y, block * LANES, &values);
            }
        }
    }
}

/// The byte of a whole number from 0 to 255: adding 2^23 leaves it in the lowest bits. (`as` would look for NaN.)
#[inline(always)]
fn to_byte(value: f32) -> u8 {
    (value + 8_388_608.0).to_bits() as u8
}

/// Which input pixels, at what weight, make each output pixel of an axis.
struct Taps {
    /// Per output pixel: the first input pixel and where its weights are.
    outputs: Vec<(usize, std::ops::Range<usize>)>,
    /// Fixed point of [`FRACTION`] fractional bits, in two parts: `upper * PART + lower`, whole numbers.
    weights: Vec<[f32; 2]>,
}

/// Fractional bits of a weight: 32 less 8 of the pixel less 2 for overshoot and sign.
const FRACTION: u32 = 32 - 8 - 2;

/// What the upper part of a weight counts.
const PART: f32 = (1 << (FRACTION / 2)) as f32;

/// Weights after which the lower sum is carried into the upper one. A lower part is within 2^10 of 0 and a pixel below 2^8, so
/// that the sum of 31 and a rest below 2^11 stays below 2^23.
const CARRY: usize = 31;

impl Taps {
    fn new(span: Span, size: usize, filter: Filter) -> Self {
        let scale = span.scale(size);
        let widening = scale.max(1.0);
        let support = filter.support() * widening;
        let mut outputs = Vec::with_capacity(size);
        let mut weights = Vec::with_capacity(size * (2 * support.ceil() as usize + 1));
        let mut exact = Vec::new();
        for x in 0..size {
            let centre = f64::from(span.start) + (x as f64 + 0.5) * scale;
            // `as usize` truncates, and takes what is negative to 0.
            let first = (centre - support + 0.5) as usize;
            let end = ((centre + support + 0.5) as usize).min(span.length);
            exact.clear();
            exact.extend((first..end).map(|i| {
                let distance = i as f64 - centre + 0.5;
                filter.weight(distance * (1.0 / widening))
            }));
            let sum: f64 = exact.iter().sum();
            let start = weights.len();
            weights.extend(exact.iter().map(|&weight| {
                let normal = if sum == 0.0 { weight } else { weight / sum };
                let scaled = normal * f64::from(1 << FRACTION);
                let fixed = (scaled + 0.5_f64.copysign(scaled)) as i32;
                let part = PART as i32;
                let upper = (fixed + part / 2).div_euclid(part);
                [upper as f32, (fixed - upper * part) as f32]
            }));
            outputs.push((first, start..weights.len()));
        }
        Taps { outputs, weights }
    }

    /// The input pixels that any output pixel reads.
    fn span(&self) -> std::ops::Range<usize> {
        let ends = self.outputs.iter().map(|(first, w)| first + w.len());
        let start = self.outputs.first().map_or(0, |(first, _)| *first);
        start..ends.max().unwrap_or(start)
    }

    /// The sum of inputs times weights, rounded to a whole number from 0 to 255.
    ///
    /// Exact: with u and l the sums of the upper and lower parts, the fixed-point sum u 2^11 + l is rounded and shifted by 22
    /// bits as floor((u + 2^10 + floor(l / 2^11)) / 2^11), and every number in that has 24 bits at most. A product of integers
    /// would take twice the time.
    #[inline(always)]
    fn weigh<S: Simd>(
        &self,
        simd: S,
        weights: std::ops::Range<usize>,
        cells: &[[f32; LANES]],
    ) -> [f32; LANES] {
        // Vectors with two sums each that are in the registers at once.
        const GROUP: usize = 4;
        let weights = &self.weights[weights];
        let cells = &cells[..weights.len()];
        let mut values = [0.0; LANES];
        let (groups, _) = S::as_mut_simd_f32s(&mut values).0.as_chunks_mut::<GROUP>();
        for (index, group) in groups.iter_mut().enumerate() {
            let mut upper = [simd.splat_f32s(PART / 2.0); GROUP];
            let mut lower = [simd.splat_f32s(0.0); GROUP];
            for (weights, cells) in weights.chunks(CARRY).zip(cells.chunks(CARRY)) {
                for ([high, low], cell) in weights.iter().zip(cells) {
                    let (high, low) = (simd.splat_f32s(*high), simd.splat_f32s(*low));
                    let cell = &S::as_simd_f32s(cell).0.as_chunks::<GROUP>().0[index];
                    for v in 0..GROUP {
                        upper[v] = simd.mul_add_f32s(high, cell[v], upper[v]);
                        lower[v] = simd.mul_add_f32s(low, cell[v], lower[v]);
                    }
                }
                for v in 0..GROUP {
                    let carried = floor_of_part(simd, lower[v]);
                    upper[v] = simd.add_f32s(upper[v], carried);
                    lower[v] = simd.mul_add_f32s(carried, simd.splat_f32s(-PART), lower[v]);
                }
            }
            for v in 0..GROUP {
                let value = floor_of_part(simd, upper[v]);
                let value = simd.max_f32s(value, simd.splat_f32s(0.0));
                group[v] = simd.min_f32s(value, simd.splat_f32s(255.0));
            }
        }
        values
    }
}

/// floor(x / [`PART`]) of whole numbers below 2^23: less almost one half, then rounded to the nearest by adding and taking
/// away 1.5 * 2^23. What is rounded has 24 bits at most and never lies in the middle.
#[inline(always)]
fn floor_of_part<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let almost_half = simd.splat_f32s(0.5 / PART - 0.5);
    let moved = simd.mul_add_f32s(x, simd.splat_f32s(1.0 / PART), almost_half);
    let round = simd.splat_f32s(12_582_912.0);
    simd.sub_f32s(simd.add_f32s(moved, round), round)
}

/// Bytes `[rows, columns]`, `stride` from a row to the next, with rows and columns exchanged, `out_stride` bytes from a row to
/// the next. Of `out` up to seven bytes after each row are written over.
fn transpose(
    bytes: &[u8],
    stride: usize,
    [rows, columns]: [usize; 2],
    out: &mut [u8],
    out_stride: usize,
) {
    debug_assert!(out_stride >= rows.next_multiple_of(8));
    transpose_tiles(bytes, stride, [rows, columns], out, out_stride);
}

vectorised! {
    fn transpose_tiles<'a>(
        bytes: &'a [u8],
        stride: usize,
        size: [usize; 2],
        out: &'a mut [u8],
        out_stride: usize,
    ) {
        // Eight tiles of 8 x 8 bytes side by side.
        const WIDE: usize = 64;
        let [rows, columns] = size;
        for row in (0..rows).step_by(8) {
            for column in (0..columns).step_by(WIDE) {
                let wide = WIDE.min(columns - column);
                let mut tiles = [[0_u64; WIDE / 8]; 8];
                for (y, words) in tiles.iter_mut().enumerate().take(rows - row) {
                    let mut line = [0_u8; WIDE];
                    let source = &bytes[(row + y) * stride + column..][..wide];
                    if wide == WIDE {
                        line.copy_from_slice(source);
                    } else {
                        line[..wide].copy_from_slice(source);
                    }
                    for (word, bytes) in words.iter_mut().zip(line.as_chunks::<8>().0) {
                        *word = u64::from_le_bytes(*bytes);
                    }
                }
                exchange::<4>(&mut tiles, 32, 0x0000_0000_ffff_ffff);
                exchange::<2>(&mut tiles, 16, 0x0000_ffff_0000_ffff);
                exchange::<1>(&mut tiles, 8, 0x00ff_00ff_00ff_00ff);
                for x in 0..wide {
                    let word = tiles[x % 8][x / 8];
                    let to = (column + x) * out_stride + row;
                    out[to..to + 8].copy_from_slice(&word.to_le_bytes());
                }
            }
        }
    }
}

/// One of three steps that transpose tiles of 8 x 8 bytes, row `y` of which is `tiles[y]`: swaps the off-diagonal quarters of
/// the squares of 2 `HALF`. `bits` and `mask`: `HALF` bytes.
#[inline(always)]
fn exchange<const HALF: usize>(tiles: &mut [[u64; 8]; 8], bits: u32, mask: u64) {
    for y in (0..8).filter(|y| y & HALF == 0) {
        let (above, below) = tiles.split_at_mut(y + HALF);
        for (upper, lower) in above[y].iter_mut().zip(&mut below[0]) {
            let swapped = ((*upper >> bits) ^ *lower) & mask;
            *upper ^= swapped << bits;
            *lower ^= swapped;
        }
    }
}

fn nearest(image: &Rgb, columns: Span, rows: Span, height: usize, width: usize) -> Rgb {
    let x_of = nearest_inputs(columns, width);
    let y_of = nearest_inputs(rows, height);
    let mut pixels = Vec::with_capacity(3 * height * width);
    for y in y_of {
        for &x in &x_of {
            pixels.extend_from_slice(&image.pixel(x, y));
        }
    }
    Rgb::new(width, height, pixels)
}

/// The input pixel under the centre of each output pixel. Pillow steps by repeated addition, whose
/// rounding decides ties.
fn nearest_inputs(span: Span, size: usize) -> Vec<usize> {
    let scale = span.scale(size);
    let mut position = f64::from(span.start) + scale * 0.5;
    let inputs = (0..size).map(|_| {
        let input = (position as usize).min(span.length - 1);
        position += scale;
        span.offset + input
    });
    inputs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{self, CLIP_MEAN, CLIP_STD};
    use proptest::prelude::*;
    use safetensors::SafeTensors;

    const GOLDEN: &[u8] = include_bytes!("../tests/golden/resize.safetensors");
    const GOLDEN_CLIP: &[u8] = include_bytes!("../tests/golden/clip_preprocess.safetensors");

    fn rgb(tensors: &SafeTensors, name: &str) -> Rgb {
        let view = tensors.tensor(name).unwrap();
        let [height, width, 3] = *view.shape() else {
            panic!("{name}: shape {:?}", view.shape());
        };
        Rgb::new(width, height, view.data().to_vec())
    }

    /// Every tensor besides the source is named `how|filter|x,y,w,h|size` and has the output's shape.
    #[test]
    fn equals_pillow_bit_for_bit() {
        let tensors = SafeTensors::deserialize(GOLDEN).unwrap();
        let source = rgb(&tensors, "source");
        let mut cases = 0;
        for name in tensors.names() {
            let parts: Vec<&str> = name.split('|').collect();
            let [how, filter, area, _] = parts[..] else {
                continue;
            };
            let expected = rgb(&tensors, name);
            let filter = match filter {
                "nearest" => Filter::Nearest,
                "bilinear" => Filter::Bilinear,
                _ => Filter::Bicubic,
            };
            let area: Vec<f32> = area.split(',').map(|v| v.parse().unwrap()).collect();
            let area: [f32; 4] = area.try_into().unwrap();
            let (h, w) = (expected.height, expected.width);
            let actual = match how {
                "crop" => resize_crop(&source, area.map(|v| v as usize), h, w, filter),
                _ => resize_box(&source, area, h, w, filter),
            };
            assert!(actual == expected, "{name} to {h} x {w} differs");
            if area == [0.0, 0.0, source.width as f32, source.height as f32] {
                assert!(resize(&source, h, w, filter) == expected, "{name}");
            }
            cases += 1;
        }
        assert!(cases >= 40, "only {cases} cases");
    }

    #[test]
    fn sums_of_hundreds_of_pixels_are_exact() {
        let taps = Taps::new(Span::whole(0, 700), 5, Filter::Bicubic);
        // Flat black and white, and all bytes mixed.
        let byte = |input: usize, lane: usize| match lane {
            0 => 0,
            1 => 255,
            _ => (input * (37 + lane) + input * input * lane) as u8,
        };
        let cells: Vec<[f32; LANES]> = (0..700)
            .map(|input| std::array::from_fn(|lane| f32::from(byte(input, lane))))
            .collect();
        for (first, weights) in &taps.outputs {
            assert!(weights.len() > 4 * CARRY, "{} weights", weights.len());
            let found = taps.weigh(pulp::Scalar, weights.clone(), &cells[*first..]);
            for (lane, found) in found.into_iter().enumerate() {
                let terms = taps.weights[weights.clone()].iter().zip(*first..);
                let sum: i64 = terms
                    .map(|([upper, lower], input)| {
                        (*upper as i64 * PART as i64 + *lower as i64) * i64::from(byte(input, lane))
                    })
                    .sum();
                let expected = ((sum + (1 << (FRACTION - 1))) >> FRACTION).clamp(0, 255);
                assert_eq!(found as i64, expected, "lane {lane}");
            }
        }
    }

    #[test]
    fn transposing_any_size() {
        for [rows, columns] in [[1_usize, 1], [8, 64], [7, 65], [9, 63], [50, 130]] {
            let bytes: Vec<u8> = (0..rows * (columns + 3))
                .map(|i| (i * i / 7) as u8)
                .collect();
            let stride = rows.next_multiple_of(8);
            let mut out = vec![0; columns * stride];
            transpose(&bytes, columns + 3, [rows, columns], &mut out, stride);
            for (row, column) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
                assert_eq!(
                    out[column * stride + row],
                    bytes[row * (columns + 3) + column]
                );
            }
        }
    }

    /// The source of the CLIP golden values, the same formula as in the script.
    fn drawn(width: usize, height: usize) -> Rgb {
        let mut pixels = Vec::new();
        for y in 0..height {
            for x in 0..width {
                pixels.push(((x * 7 + y * 3) % 256) as u8);
                pixels.push((((x * y) >> 3) % 256) as u8);
                pixels.push((((x ^ y) * 5) % 256) as u8);
            }
        }
        Rgb::new(width, height, pixels)
    }

    #[test]
    fn clip_preprocessing_equals_torchvision() {
        let tensors = SafeTensors::deserialize(GOLDEN_CLIP).unwrap();
        let image = image::clip_crop(&drawn(290, 437), 224);
        assert_eq!((image.height, image.width), (224, 224));
        let every_fourth = rgb(&tensors, "rows");
        for (i, row) in every_fourth.pixels.chunks_exact(224 * 3).enumerate() {
            assert!(
                row == &image.pixels[4 * i * 224 * 3..][..224 * 3],
                "row {i}"
            );
        }
        // [3, 224 / 32, 224]
        let expected = tensors.tensor("normalised").unwrap();
        let expected = expected.data().as_chunks::<4>().0;
        let actual = image::normalise(&image, CLIP_MEAN, CLIP_STD);
        for channel in 0..3 {
            for row in 0..7 {
                for x in 0..224 {
                    let e = f32::from_le_bytes(expected[(channel * 7 + row) * 224 + x]);
                    let a = actual[(channel * 224 + 32 * row) * 224 + x];
                    assert!((a - e).abs() < 1e-6, "{a} {e}");
                }
            }
        }
    }

    #[test]
    fn one_pixel_grows_to_a_flat_image() {
        let image = Rgb::new(1, 1, vec![10, 200, 30]);
        for filter in [Filter::Nearest, Filter::Bilinear, Filter::Bicubic] {
            let large = resize(&image, 5, 3, filter);
            assert!(large.pixels.chunks(3).all(|p| p == [10, 200, 30]));
        }
    }

    #[test]
    #[should_panic(expected = "not inside an image of 4 x 3")]
    fn a_crop_outside_the_image_is_refused() {
        resize_crop(&drawn(4, 3), [2, 0, 3, 3], 2, 2, Filter::Bilinear);
    }

    fn images() -> impl Strategy<Value = Rgb> {
        (1_usize..40, 1_usize..40).prop_flat_map(|(w, h)| {
            proptest::collection::vec(any::<u8>(), 3 * w * h).prop_map(move |p| Rgb::new(w, h, p))
        })
    }

    fn filters() -> impl Strategy<Value = Filter> {
        prop_oneof![
            Just(Filter::Nearest),
            Just(Filter::Bilinear),
            Just(Filter::Bicubic)
        ]
    }

    proptest! {
        #[test]
        fn the_same_size_is_the_same_image(image in images(), filter in filters()) {
            let same = resize(&image, image.height, image.width, filter);
            prop_assert_eq!(same, image);
        }

        #[test]
        fn a_crop_equals_cropping_first(
            image in images(), filter in filters(),
            h in 1_usize..30, w in 1_usize..30, part in [0.0_f64..1.0, 0.0..1.0, 0.0..1.0, 0.0..1.0],
        ) {
            let x = (part[0] * image.width as f64) as usize;
            let y = (part[1] * image.height as f64) as usize;
            let cw = 1 + (part[2] * (image.width - x) as f64) as usize;
            let ch = 1 + (part[3] * (image.height - y) as f64) as usize;
            let (cw, ch) = (cw.min(image.width - x), ch.min(image.height - y));
            let direct = resize_crop(&image, [x, y, cw, ch], h, w, filter);
            let cropped = image::crop(&image, [x, y, cw, ch]);
            prop_assert_eq!(direct, resize(&cropped, h, w, filter));
        }

        #[test]
        fn resizing_a_flipped_image_flips_the_result_to_one_level(
            image in images(), h in 1_usize..30, w in 1_usize..30, bicubic: bool,
        ) {
            // Weights are rounded and summed in another order, so the last level may differ.
            let filter = if bicubic { Filter::Bicubic } else { Filter::Bilinear };
            let a = image::flip(&resize(&image, h, w, filter));
            let b = resize(&image::flip(&image), h, w, filter);
            for (a, b) in a.pixels.iter().zip(&b.pixels) {
                prop_assert!(a.abs_diff(*b) <= 1, "{} {}", a, b);
            }
        }

        #[test]
        fn a_flat_image_stays_flat(
            level: u8, sw in 1_usize..50, sh in 1_usize..50, w in 1_usize..50, h in 1_usize..50,
            filter in filters(),
        ) {
            let image = Rgb::new(sw, sh, vec![level; 3 * sw * sh]);
            prop_assert!(resize(&image, h, w, filter).pixels.iter().all(|p| *p == level));
        }
    }
}
