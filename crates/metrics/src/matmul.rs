//! A blocked single-precision matrix product without `unsafe`.
//!
//! The usual three-level scheme (Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008): panels
//! of both operands are packed so that the innermost loop reads them in order, and a register tile of 6 rows by two vectors
//! stays in registers through that loop. Vector width is chosen when the program runs.
//!
//! An element of the result is always summed in the same order, whatever the number of threads: equal inputs give equal
//! bits on one kind of processor.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Rows of the register tile: 6 rows by 2 vectors leave room for operands in 16 registers.
const TILE_ROWS: usize = 6;
/// Rows of a packed block of the left operand, a multiple of `TILE_ROWS`.
const BLOCK_ROWS: usize = 96;
/// Depth of a packed block.
const BLOCK_DEPTH: usize = 256;
/// Columns of a packed block of the right operand, a multiple of every tile width.
const BLOCK_COLUMNS: usize = 1024;
/// Most rows that one task computes; bounds the imbalance at the end.
const TASK_ROWS: usize = 16 * BLOCK_ROWS;

/// A matrix in memory of someone else, seen through strides.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A row-major matrix `[rows, columns]`.
    ///
    /// # Panics
    /// If `data` does not hold exactly that many values.
    pub fn new(data: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(
            data.len(),
            rows * columns,
            "a [{rows}, {columns}] matrix in {} values",
            data.len()
        );
        Self {
            data,
            rows,
            columns,
            row_stride: columns,
            column_stride: 1,
        }
    }

    /// The same memory with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    fn at(&self, row: usize, column: usize) -> f32 {
        self.data[row * self.row_stride + column * self.column_stride]
    }
}

/// `out = a · b`, with `a` `[rows, depth]`, `b` `[depth, columns]` and `out` row-major `[rows, columns]`, on rayon's threads.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul(a: Matrix, b: Matrix, out: &mut [f32]) {
    let share = a.rows.div_ceil(rayon::current_num_threads());
    let rows = share.next_multiple_of(TILE_ROWS).min(TASK_ROWS);
    if check_shapes(&a, &b, out) {
        let arch = Arch::new();
        out.par_chunks_mut(rows * b.columns)
            .enumerate()
            .for_each(|(task, out)| {
                arch.dispatch(RowBlock {
                    a,
                    b,
                    first: task * rows,
                    out,
                });
            });
    }
}

/// [`matmul`] on the calling thread, for pieces of work that are spread over threads already.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul_here(a: Matrix, b: Matrix, out: &mut [f32]) {
    if check_shapes(&a, &b, out) {
        Arch::new().dispatch(RowBlock {
            a,
            b,
            first: 0,
            out,
        });
    }
}

/// Whether there is anything to compute.
fn check_shapes(a: &Matrix, b: &Matrix, out: &[f32]) -> bool {
    assert_eq!(
        a.columns, b.rows,
        "left operand is {}x{}, right {}x{}",
        a.rows, a.columns, b.rows, b.columns
    );
    assert_eq!(
        out.len(),
        a.rows * b.columns,
        "result of {}x{} in {} values",
        a.rows,
        b.columns,
        out.len()
    );
    !out.is_empty()
}

/// The rows of a product from `first` on, as many as `out` holds.
struct RowBlock<'a> {
    a: Matrix<'a>,
    b: Matrix<'a>,
    first: usize,
    out: &'a mut [f32],
}

impl WithSimd for RowBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { a, b, first, out } = self;
        let width = 2 * S::F32_LANES;
        let (rows, columns, depth) = (out.len() / b.columns, b.columns, a.columns);
        let block_columns = BLOCK_COLUMNS.min(columns.next_multiple_of(width));
        let mut packed_a =
            vec![0.0; BLOCK_ROWS.min(rows.next_multiple_of(TILE_ROWS)) * BLOCK_DEPTH.min(depth)];
        let mut packed_b = vec![0.0; block_columns * BLOCK_DEPTH.min(depth)];
        out.fill(0.0);
        for column in (0..columns).step_by(block_columns) {
            let block_columns = block_columns.min(columns - column);
            for k in (0..depth).step_by(BLOCK_DEPTH) {
                let block_depth = BLOCK_DEPTH.min(depth - k);
                // The packed form of b is that of its transpose: panels of `width` columns, depth-major inside.
                pack(
                    b.transposed(),
                    column,
                    block_columns,
                    k,
                    block_depth,
                    width,
                    &mut packed_b,
                );
                for row in (0..rows).step_by(BLOCK_ROWS) {
                    let block_rows = BLOCK_ROWS.min(rows - row);
                    pack(
                        a,
                        first + row,
                        block_rows,
                        k,
                        block_depth,
                        TILE_ROWS,
                        &mut packed_a,
                    );
                    for j in (0..block_columns).step_by(width) {
                        let panel_b = &packed_b[j * block_depth..][..width * block_depth];
                        let tile_columns = width.min(block_columns - j);
                        for i in (0..block_rows).step_by(TILE_ROWS) {
                            let panel_a = &packed_a[i * block_depth..][..TILE_ROWS * block_depth];
                            let tile = tile(simd, panel_a, panel_b);
                            for (r, values) in tile.iter().enumerate().take(block_rows - i) {
                                let values: &[f32] = pulp::bytemuck::cast_slice(values);
                                let start = (row + i + r) * columns + column + j;
                                for (out, value) in
                                    out[start..start + tile_columns].iter_mut().zip(values)
                                {
                                    *out += value;
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Copies `rows` x `depth` values of `m` from (`row`, `k`) into panels of `panel` rows, each stored depth-major and padded
/// with zeros.
#[inline(always)]
fn pack(
    m: Matrix,
    row: usize,
    rows: usize,
    k: usize,
    depth: usize,
    panel: usize,
    packed: &mut [f32],
) {
    for (p, packed) in packed
        .chunks_exact_mut(panel * depth)
        .take(rows.div_ceil(panel))
        .enumerate()
    {
        let filled = panel.min(rows - p * panel);
        if filled < panel {
            packed.fill(0.0);
        }
        if m.row_stride == 1 {
            for (d, packed) in packed.chunks_exact_mut(panel).enumerate() {
                let start = row + p * panel + (k + d) * m.column_stride;
                packed[..filled].copy_from_slice(&m.data[start..start + filled]);
            }
        } else if m.column_stride == 1 {
            for r in 0..filled {
                let start = (row + p * panel + r) * m.row_stride + k;
                for (packed, value) in packed[r..]
                    .iter_mut()
                    .step_by(panel)
                    .zip(&m.data[start..start + depth])
                {
                    *packed = *value;
                }
            }
        } else {
            for (d, packed) in packed.chunks_exact_mut(panel).enumerate() {
                for (r, packed) in packed[..filled].iter_mut().enumerate() {
                    *packed = m.at(row + p * panel + r, k + d);
                }
            }
        }
    }
}

/// The product of a panel of `a` and a panel of `b`: `[TILE_ROWS, 2 vectors]`.
#[inline(always)]
fn tile<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> [[S::f32s; 2]; TILE_ROWS] {
    let mut sums = [[simd.splat_f32s(0.0); 2]; TILE_ROWS];
    let (b, _) = S::as_simd_f32s(b);
    for (a, b) in a.chunks_exact(TILE_ROWS).zip(b.chunks_exact(2)) {
        for (sum, a) in sums.iter_mut().zip(a) {
            let a = simd.splat_f32s(*a);
            sum[0] = simd.mul_add_e_f32s(a, b[0], sum[0]);
            sum[1] = simd.mul_add_e_f32s(a, b[1], sum[1]);
        }
    }
    sums
}

/// Sum of products of two rows of one length, in `f64`.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    let product = |(a, b): (&f32, &f32)| f64::from(*a) * f64::from(*b);
    // Eight sums side by side: one alone waits for each addition.
    let (left, right) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest = left.remainder().iter().zip(right.remainder());
    let rest: f64 = rest.map(product).sum();
    let mut sums = [0.0; 8];
    for (a, b) in left.zip(right) {
        for (sum, pair) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += product(pair);
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: u32) -> Vec<f32> {
        // Small integers: every order of summation gives the same bits.
        (0..count as u32)
            .map(|i| ((i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 13) % 9) as f32 - 4.0)
            .collect()
    }

    fn naive(a: Matrix, b: Matrix) -> Vec<f32> {
        let mut out = Vec::new();
        for i in 0..a.rows {
            for j in 0..b.columns {
                out.push((0..a.columns).map(|k| a.at(i, k) * b.at(k, j)).sum());
            }
        }
        out
    }

    #[test]
    fn equals_the_definition_at_awkward_sizes() {
        for (m, n, k) in [
            (1, 1, 1),
            (5, 7, 3),
            (6, 32, 256),
            (7, 33, 257),
            (97, 65, 300),
            (200, 1030, 20),
            (2, 3, 0),
        ] {
            let (a, b) = (values(m * k, 1), values(k * n, 2));
            let forms = [
                (Matrix::new(&a, m, k), Matrix::new(&b, k, n)),
                (Matrix::new(&a, k, m).transposed(), Matrix::new(&b, k, n)),
                (Matrix::new(&a, m, k), Matrix::new(&b, n, k).transposed()),
                (
                    Matrix::new(&a, k, m).transposed(),
                    Matrix::new(&b, n, k).transposed(),
                ),
            ];
            for (left, right) in forms {
                let mut out = vec![f32::NAN; m * n];
                matmul(left, right, &mut out);
                assert_eq!(out, naive(left, right), "{m}x{k} by {k}x{n}");
                out.fill(f32::NAN);
                matmul_here(left, right, &mut out);
                assert_eq!(out, naive(left, right), "{m}x{k} by {k}x{n}");
            }
        }
    }

    #[test]
    fn the_same_bits_on_any_number_of_threads() {
        let a: Vec<f32> = (0..301 * 77).map(|i| (i as f32 * 0.37).sin()).collect();
        let b: Vec<f32> = (0..77 * 130).map(|i| (i as f32 * 0.11).cos()).collect();
        let run = |threads| {
            let mut out = vec![0.0; 301 * 130];
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| matmul(Matrix::new(&a, 301, 77), Matrix::new(&b, 77, 130), &mut out));
            out
        };
        assert_eq!(run(1), run(3));
    }
}
