//! Checks of values of a recipe or `--set`, and of the lists of a model's file, before any memory is
//! allocated.

pub use clasp_run::check::{count, range, within};

use std::fmt::Debug;

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

/// A list of a model's file that does not fit the task or its other lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongList {
    /// What was expected.
    pub expected: String,
    /// What was found.
    pub found: String,
}

/// Checks the length of the list of that name.
///
/// # Errors
/// It is not from `from` to `to`.
pub fn listed(list: &str, length: usize, [from, to]: [usize; 2]) -> Result<(), WrongList> {
    if (from..=to).contains(&length) {
        return Ok(());
    }
    let wanted = match from == to {
        true => from.to_string(),
        false => format!("{from} to {to}"),
    };
    Err(WrongList {
        expected: format!("`{list}` of {wanted} entries"),
        found: length.to_string(),
    })
}

/// Checks that each entry of the list of that name fits; `what` says in words which do.
///
/// # Errors
/// Shows the first that does not.
pub fn each<V: Debug>(
    list: &str,
    what: &str,
    entries: &[V],
    fits: impl Fn(&V) -> bool,
) -> Result<(), WrongList> {
    match entries.iter().find(|entry| !fits(entry)) {
        None => Ok(()),
        Some(wrong) => Err(WrongList {
            expected: format!("`{list}` of {what}"),
            found: format!("{wrong:?}"),
        }),
    }
}
