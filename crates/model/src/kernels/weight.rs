//! The products of a layer: tokens with its weights and, in the backward pass, gradients with them
//! and with its tokens, in the precision of the thread that started the operation.

use super::bf16::{self, Rounded};
use super::matrix::{MatrixView, add_product, set_product};
use super::mode::Precision;

/// The weights of a layer, the right factor of many matrix products.
pub enum Weight<'a> {
    /// In f32.
    F32(MatrixView<'a>),
    /// Rounded to bf16.
    Bf16(Rounded),
}

impl<'a> Weight<'a> {
    /// Row-major [rows, columns], in the thread's [`Precision`].
    pub fn new(data: &'a [f32], columns: usize) -> Self {
        match Precision::current() {
            Precision::F32 => Self::F32(MatrixView::new(data, columns)),
            Precision::Bf16 => Self::Bf16(Rounded::new(data, columns)),
        }
    }

    /// The transpose of a row-major [rows, columns], in the thread's [`Precision`].
    pub fn transposed(data: &'a [f32], columns: usize) -> Self {
        match Precision::current() {
            Precision::F32 => Self::F32(MatrixView::new(data, columns).t()),
            Precision::Bf16 => Self::Bf16(Rounded::transposed(data, columns)),
        }
    }

    /// out += a · weights. a: row-major [n, rows], out: [n, columns].
    pub fn add_product(&self, out: &mut [f32], a: &[f32]) {
        match self {
            Self::F32(b) => add_product(out, b.columns(), MatrixView::new(a, b.rows()), *b, 1.0),
            Self::Bf16(b) => b.add_product(out, a),
        }
    }

    /// out = a · weights. a: row-major [n, rows], out: [n, columns].
    pub fn set_product(&self, out: &mut [f32], a: &[f32]) {
        match self {
            Self::F32(b) => set_product(out, b.columns(), MatrixView::new(a, b.rows()), *b),
            Self::Bf16(b) => {
                out.fill(0.0);
                b.add_product(out, a);
            }
        }
    }
}

/// sums += aᵀ · b, the gradient of weights from tokens `a` and the gradient of their products.
///
/// a: row-major [n, rows], b: [n, columns], sums: [rows, columns].
pub fn add_weight_gradient(
    precision: Precision,
    sums: &mut [f32],
    [a, b]: [&[f32]; 2],
    [rows, columns]: [usize; 2],
) {
    match precision {
        Precision::F32 => {
            let (a, b) = (MatrixView::new(a, rows), MatrixView::new(b, columns));
            add_product(sums, columns, a.t(), b, 1.0);
        }
        Precision::Bf16 => bf16::add_transposed_product(sums, [a, b], [rows, columns]),
    }
}
