//! Checks of values of a recipe or `--set`, before any memory is allocated.

pub use clasp_run::check::{count, range, within};

use clasp_run::InvalidValue;

use crate::TaskError;

/// Largest height and width of an input.
const LARGEST: usize = 8192;
/// Smallest.
const SMALLEST: usize = 8;

/// Checks the height and width of inputs.
///
/// # Errors
/// They are not from 8 to 8192, or no multiples of `multiple`.
pub fn size([height, width]: [usize; 2], multiple: usize) -> Result<(), TaskError> {
    let fits = |side: usize| (SMALLEST..=LARGEST).contains(&side) && side.is_multiple_of(multiple);
    if fits(height) && fits(width) {
        return Ok(());
    }
    let mut expected = format!("height and width from {SMALLEST} to {LARGEST}");
    if multiple > 1 {
        expected.push_str(&format!(", multiples of {multiple}"));
    }
    Err(setting(
        "model.size",
        &expected,
        format!("{height}x{width}"),
    ))
}

/// An error about a value of a recipe.
pub fn setting(key: &'static str, expected: &str, found: impl ToString) -> TaskError {
    InvalidValue::new(key, expected, found).into()
}
