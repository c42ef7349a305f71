//! Matrix products on slices.

/// A matrix in a slice.
#[derive(Debug, Clone, Copy)]
pub struct MatrixView<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> MatrixView<'a> {
    /// Row-major [rows, columns], as many rows as `data` holds.
    pub fn new(data: &'a [f32], columns: usize) -> Self {
        Self::part(data, data.len() / columns, columns, columns)
    }

    /// The first `columns` of each of `rows` rows that are `row_stride` values apart.
    pub fn part(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(rows > 0 && columns > 0, "a matrix of {rows}x{columns}");
        let end = (rows - 1) * row_stride + columns;
        assert!(
            columns <= row_stride && end <= data.len(),
            "{rows}x{columns} with rows {row_stride} apart in {} values",
            data.len()
        );
        Self {
            data,
            rows,
            columns,
            row_stride,
            column_stride: 1,
        }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Rows and columns exchanged.
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// out = a·b on the calling thread, the rows of `out` `stride` values apart.
pub fn set_product(out: &mut [f32], stride: usize, a: MatrixView, b: MatrixView) {
    product(out, stride, a, b, None);
}

/// out += scale · a·b.
pub fn add_product(out: &mut [f32], stride: usize, a: MatrixView, b: MatrixView, scale: f32) {
    product(out, stride, a, b, Some(scale));
}

// `gemm` is the product that Burn's CPU backend calls too. It is as fast as MKL on one core
// (docs/LOG.md), 1.5 times as fast as the safe one of `clasp-metrics`, and takes pointers only.
#[allow(unsafe_code)]
fn product(out: &mut [f32], stride: usize, a: MatrixView, b: MatrixView, add: Option<f32>) {
    assert_eq!(
        a.columns, b.rows,
        "{}x{} by {}x{}",
        a.rows, a.columns, b.rows, b.columns
    );
    let end = (a.rows - 1) * stride + b.columns;
    assert!(
        b.columns <= stride && end <= out.len(),
        "{}x{} with rows {stride} apart in {} values",
        a.rows,
        b.columns,
        out.len()
    );
    // SAFETY: the strides are those of `Matrix`, whose extents were checked when it was made, and
    // of `out`, checked above; rows of `out` do not overlap, and `out` is borrowed alone.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.as_mut_ptr(),
            1,
            stride as isize,
            add.is_some(),
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            add.unwrap_or(1.0),
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_transposes_and_sums() {
        let a: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let b: Vec<f32> = (0..12).map(|i| (i as f32) - 3.0).collect();
        // Columns 1 and 2 of a [3, 4], times the transpose of columns 0 and 1 of b [3, 4].
        let (left, right) = (
            MatrixView::part(&a[1..], 3, 2, 4),
            MatrixView::part(&b, 3, 2, 4).t(),
        );
        let mut out = vec![1.0; 3 * 5];
        set_product(&mut out, 5, left, right);
        add_product(&mut out, 5, left, right, 0.5);
        for row in 0..3 {
            for column in 0..3 {
                let value = |k: usize| a[4 * row + 1 + k] * b[4 * column + k];
                assert_eq!(out[5 * row + column], 1.5 * (value(0) + value(1)));
            }
        }
        assert_eq!(out[3], 1.0);
    }

    #[test]
    #[should_panic(expected = "in 12 values")]
    fn a_matrix_stays_inside_its_slice() {
        MatrixView::part(&[0.0; 12], 4, 3, 4);
    }
}
