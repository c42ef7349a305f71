//! The weights of a layer in the precision of the thread.

use super::bf16::Rounded;
use super::matrix::{MatrixView, add_product};
use super::mode::Precision;

/// The weights of a layer, the right factor of many products.
pub enum Weight<'a> {
    /// As they are.
    Full(MatrixView<'a>),
    /// Rounded to bf16.
    Half(Rounded),
}

impl<'a> Weight<'a> {
    /// Row-major [rows, columns]; rounded where nothing is trained and [`Precision`] says so.
    pub fn new(data: &'a [f32], columns: usize, trains: bool) -> Self {
        if !trains && Precision::current() == Precision::Bf16 {
            Self::Half(Rounded::new(data, columns))
        } else {
            Self::Full(MatrixView::new(data, columns))
        }
    }

    /// out += a · weights. a: row-major [n, rows], out: [n, columns].
    pub fn add_product(&self, out: &mut [f32], a: &[f32]) {
        match self {
            Self::Full(b) => add_product(out, b.columns(), MatrixView::new(a, b.rows()), *b, 1.0),
            Self::Half(b) => b.add_product(out, a),
        }
    }
}
