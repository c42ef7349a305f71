//! The two passes of resizing, each over contiguous bytes.

use pulp::{Arch, Simd, WithSimd};

use super::span::Span;
use super::taps::{LANES, Taps};
use super::transpose::transpose;
use crate::image::filter::Filter;
use crate::image::rgb::Rgb;

/// A transposed image, `[column, channel, row]`, so that the pass along rows runs over contiguous
/// bytes. One serves for any number of crops.
pub(crate) struct ByColumns {
    bytes: Vec<u8>,
    /// Bytes from one channel of a column to the next: the rows, and room to read on for [`LANES`].
    stride: usize,
    /// Height and width in pixels.
    pub(crate) size: [usize; 2],
    /// First column and row of the image.
    offset: [usize; 2],
}

/// Buffers of the passes, reused for the next image.
#[derive(Default)]
pub(crate) struct ResizeScratch {
    /// A plane after the first pass, `[output column, row]`.
    narrowed: Vec<u8>,
    /// The same turned back, `[row, output column]`.
    turned: Vec<u8>,
    /// The input of a pass, as numbers: `[block of lanes, input, lane]`.
    inputs_by_lane: Vec<[f32; LANES]>,
}

impl ByColumns {
    /// The whole image.
    pub(crate) fn whole(image: &Rgb) -> Self {
        let [columns, rows] = [image.width, image.height].map(|side| Span::whole(0, side));
        Self::new(image, columns, rows)
    }

    /// The pixels that the spans may read.
    pub(super) fn new(image: &Rgb, columns: Span, rows: Span) -> Self {
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
    /// `sink` gets the result, whole numbers from 0 to 255: channel, row, first column, and as many
    /// pixels as are left of the row, [`LANES`] at most; row by row of the red plane, then of the
    /// green and the blue.
    pub(crate) fn resize_crop(
        &self,
        [x, y, w, h]: [usize; 4],
        size: [usize; 2],
        filter: Filter,
        flip: bool,
        scratch: &mut ResizeScratch,
        sink: impl FnMut(usize, usize, usize, &[f32]),
    ) {
        let (columns, rows) = (Span::whole(x, w), Span::whole(y, h));
        self.resize(columns, rows, size, filter, flip, scratch, sink);
    }

    #[allow(clippy::too_many_arguments)]
    pub(super) fn resize(
        &self,
        columns: Span,
        rows: Span,
        [height, width]: [usize; 2],
        filter: Filter,
        flip: bool,
        scratch: &mut ResizeScratch,
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
        grow(&mut scratch.inputs_by_lane, most, [0.0; LANES]);
        for channel in 0..3 {
            let start = (3 * first_column + channel) * self.stride + first_row;
            let inputs = PassInput {
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
                inputs_by_lane: &mut scratch.inputs_by_lane,
                narrowed,
            });
            let size = [width, needed.len()];
            transpose(narrowed, tall, size, &mut scratch.turned, wide);
            let inputs = PassInput {
                bytes: &scratch.turned,
                stride: wide,
                count: needed.len(),
                lanes: wide,
            };
            Arch::new().dispatch(AlongColumns {
                inputs,
                taps: &row_taps,
                inputs_by_lane: &mut scratch.inputs_by_lane,
                sink: |y, x, lanes: &[f32; LANES]| {
                    sink(channel, y, x, &lanes[..LANES.min(width - x)]);
                },
            });
        }
    }
}

/// Grows a buffer without clearing it.
fn grow<T: Copy>(memory: &mut Vec<T>, length: usize, fill: T) {
    if memory.len() < length {
        memory.resize(length, fill);
    }
}

/// The input of a pass: `count` inputs of `lanes` bytes.
#[derive(Clone, Copy)]
struct PassInput<'a> {
    bytes: &'a [u8],
    /// Bytes from an input to the next.
    stride: usize,
    count: usize,
    /// A multiple of [`LANES`].
    lanes: usize,
}

impl PassInput<'_> {
    /// As numbers, `[block of lanes, input, lane]`.
    #[inline(always)]
    fn widen(&self, inputs_by_lane: &mut [[f32; LANES]]) {
        for input in 0..self.count {
            let bytes = &self.bytes[input * self.stride..][..self.lanes];
            for (block, bytes) in bytes.as_chunks::<LANES>().0.iter().enumerate() {
                let cell = &mut inputs_by_lane[block * self.count + input];
                for (value, byte) in cell.iter_mut().zip(bytes) {
                    *value = f32::from(*byte);
                }
            }
        }
    }
}

/// First pass, on one plane.
struct AlongRows<'a> {
    inputs: PassInput<'a>,
    taps: &'a Taps,
    flip: bool,
    inputs_by_lane: &'a mut [[f32; LANES]],
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
            inputs_by_lane,
            narrowed,
        } = self;
        inputs.widen(inputs_by_lane);
        let (start, last) = (taps.span().start, taps.outputs.len() - 1);
        for block in 0..inputs.lanes / LANES {
            let inputs_by_lane = &inputs_by_lane[block * inputs.count..][..inputs.count];
            for (x, (first, weights)) in taps.outputs.iter().enumerate() {
                let values = taps.weigh(simd, weights.clone(), &inputs_by_lane[first - start..]);
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
    inputs: PassInput<'a>,
    taps: &'a Taps,
    inputs_by_lane: &'a mut [[f32; LANES]],
    /// Called with row, first column and values.
    sink: F,
}

impl<F: FnMut(usize, usize, &[f32; LANES])> WithSimd for AlongColumns<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let AlongColumns {
            inputs,
            taps,
            inputs_by_lane,
            mut sink,
        } = self;
        inputs.widen(inputs_by_lane);
        let start = taps.span().start;
        for (y, (first, weights)) in taps.outputs.iter().enumerate() {
            for block in 0..inputs.lanes / LANES {
                let inputs_by_lane = &inputs_by_lane[block * inputs.count..][..inputs.count];
                let values = taps.weigh(simd, weights.clone(), &inputs_by_lane[first - start..]);
                sink(y, block * LANES, &values);
            }
        }
    }
}

/// The byte of a whole number from 0 to 255: adding 2^23 leaves it in the lowest bits. (`as` would
/// look for NaN.)
#[inline(always)]
fn to_byte(value: f32) -> u8 {
    (value + 8_388_608.0).to_bits() as u8
}
