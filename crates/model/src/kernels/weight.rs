//! The weights of a layer in the precision of the thread.

use super::bf16::Rounded;
use super::matrix::{MatrixView, add_product};
use super::mode::Precision;

/// The weights of a layer, the right factor of many matrix products.
pub enum Weight<'a> {
    /// In f32.
    F32(MatrixView<'a>),
    /// Rounded to bf16.
    Bf16(Rounded),
}

impl<'a> Weight<'a> {
    /// Row-major [rows, columns]; rounded in inference where [`Precision`] is bf16.
    pub fn new(data: &'a [f32], columns: usize, trains: bool) -> Self {
        if !trains && Precision::current() == Precision::Bf16 {
            Self::Bf16(Rounded::new(data, columns))
        } else {
            Self::F32(MatrixView::new(data, columns))
        }
    }

    /// out += a · weights. a: row-major [n, rows], out: [n, columns].
    pub fn add_product(&self, out: &mut [f32], a: &[f32]) {
        match self {
            Self::F32(b) => add_product(out, b.columns(), MatrixView::new(a, b.rows()), *b, 1.0),
            Self::Bf16(b) => b.add_product(out, a),
        }
    }
}
