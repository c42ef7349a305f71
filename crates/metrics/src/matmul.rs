//! The matrix product under the distances.
//!
//! It is `gemm`'s, which the models use too. An element of the result is always summed in the same
//! order, whatever the number of threads: equal inputs give equal bits on one kind of processor.

use gemm::Parallelism;

/// A matrix in memory of someone else, seen through strides.
#[derive(Debug, Clone, Copy)]
pub struct MatrixView<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> MatrixView<'a> {
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
}

/// `out = a · b`, with `a` `[rows, depth]`, `b` `[depth, columns]` and `out` row-major `[rows,
/// columns]`, on rayon's threads.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul(a: MatrixView, b: MatrixView, out: &mut [f32]) {
    product(a, b, out, Parallelism::Rayon(rayon::current_num_threads()));
}

/// [`matmul`] on the calling thread, for pieces of work that are spread over threads already.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul_here(a: MatrixView, b: MatrixView, out: &mut [f32]) {
    product(a, b, out, Parallelism::None);
}

// A safe product of our own took twice the time (docs/LOG.md); this one takes pointers only.
#[allow(unsafe_code)]
fn product(a: MatrixView, b: MatrixView, out: &mut [f32], parallelism: Parallelism) {
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
    // SAFETY: a `MatrixView` holds as many values as rows times columns, and its strides are those
    // of its row-major memory or of the transpose; `out` has the size checked above and is borrowed
    // alone.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.as_mut_ptr(),
            1,
            b.columns as isize,
            false,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
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

    fn at(m: &MatrixView, row: usize, column: usize) -> f32 {
        m.data[row * m.row_stride + column * m.column_stride]
    }

    fn naive(a: MatrixView, b: MatrixView) -> Vec<f32> {
        let mut out = Vec::new();
        for i in 0..a.rows {
            for j in 0..b.columns {
                out.push((0..a.columns).map(|k| at(&a, i, k) * at(&b, k, j)).sum());
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
                (MatrixView::new(&a, m, k), MatrixView::new(&b, k, n)),
                (
                    MatrixView::new(&a, k, m).transposed(),
                    MatrixView::new(&b, k, n),
                ),
                (
                    MatrixView::new(&a, m, k),
                    MatrixView::new(&b, n, k).transposed(),
                ),
                (
                    MatrixView::new(&a, k, m).transposed(),
                    MatrixView::new(&b, n, k).transposed(),
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
            pool.install(|| {
                matmul(
                    MatrixView::new(&a, 301, 77),
                    MatrixView::new(&b, 77, 130),
                    &mut out,
                )
            });
            out
        };
        assert_eq!(run(1), run(3));
    }
}
