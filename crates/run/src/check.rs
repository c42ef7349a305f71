//! Range checks of the values of a recipe, before any memory is allocated.

/// Most threads of a kind: workers, replicas, `--threads`. More than any machine has cores, and
/// less than what an operating system refuses to start.
pub const MOST_THREADS: usize = 1024;

/// A value of a recipe that is out of range, or contradicts another value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("recipe: `{key}`: expected {expected}, found {found}")]
pub struct InvalidValue {
    /// Dotted path of the value.
    pub key: &'static str,
    /// What is accepted.
    pub expected: String,
    /// The value.
    pub found: String,
}

impl InvalidValue {
    /// An error about a value.
    pub fn new(key: &'static str, expected: impl ToString, found: impl ToString) -> Self {
        Self {
            key,
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}

/// Checks that numbers lie from `from` to `to`; NaN does not.
///
/// # Errors
/// Names the first number that does not.
pub fn within(values: &[(&'static str, f64)], [from, to]: [f64; 2]) -> Result<(), InvalidValue> {
    match values
        .iter()
        .find(|(_, value)| !(from..=to).contains(value))
    {
        Some((key, value)) => {
            let expected = format!("a number from {} to {}", number(from), number(to));
            Err(InvalidValue::new(key, expected, value))
        }
        None => Ok(()),
    }
}

/// Checks that a range [low, high] lies from `from` to `to`.
///
/// # Errors
/// It does not, or `low` is above `high`.
pub fn range(
    key: &'static str,
    [low, high]: [f64; 2],
    [from, to]: [f64; 2],
) -> Result<(), InvalidValue> {
    if (from..=to).contains(&low) && (low..=to).contains(&high) {
        return Ok(());
    }
    let expected = format!("[low, high] with {from} <= low <= high <= {to}");
    Err(InvalidValue::new(key, expected, format!("[{low}, {high}]")))
}

/// Checks a count.
///
/// # Errors
/// It is not from `from` to `to`.
pub fn count(key: &'static str, value: usize, [from, to]: [usize; 2]) -> Result<(), InvalidValue> {
    if (from..=to).contains(&value) {
        return Ok(());
    }
    Err(InvalidValue::new(key, format!("{from} to {to}"), value))
}

/// A bound in short form: 1e6 rather than 1000000.
fn number(value: f64) -> String {
    if value.abs() >= 1e5 || (value != 0.0 && value.abs() < 1e-3) {
        format!("{value:e}")
    } else {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_belong_to_a_range_and_nan_does_not() {
        for good in [0.0, 0.5, 1.0] {
            assert_eq!(within(&[("a", 0.0), ("b", good)], [0.0, 1.0]), Ok(()));
        }
        for bad in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let error = within(&[("a", 0.0), ("b", bad)], [0.0, 1.0]).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("recipe: `b`: expected a number from 0 to 1, found {bad}")
            );
        }
        let error = within(&[("a", 1e9)], [1e-6, 1e6]).unwrap_err();
        assert_eq!(error.expected, "a number from 1e-6 to 1e6");
        assert!(count("c", 8, [1, 8]).is_ok() && count("c", 9, [1, 8]).is_err());
        assert!(range("r", [0.5, 0.5], [0.0, 1.0]).is_ok());
        assert!(range("r", [0.6, 0.5], [0.0, 1.0]).is_err());
        assert!(range("r", [f64::NAN, 0.5], [0.0, 1.0]).is_err());
    }
}
