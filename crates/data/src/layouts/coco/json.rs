//! COCO's JSON as labeling tools write it: with a byte order mark, ids as texts or as `1.0`, flags
//! as true and false, and `NaN` where a number is missing.

use std::fmt;
use std::path::Path;

use serde::de::{DeserializeOwned, Error, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::layouts::LayoutError;
use crate::text::read_text;

/// Errors of a file that are listed one by one.
const LISTED: usize = 20;

/// Reads a file of JSON.
pub(super) fn read<T: DeserializeOwned>(
    path: &Path,
    expected: &'static str,
) -> Result<T, LayoutError> {
    let text = read_text(path)?;
    let first = match serde_json::from_str(&text) {
        Ok(value) => return Ok(value),
        Err(error) => error,
    };
    // Python writes these, which JSON does not have: read as null, an error where it is not
    // allowed.
    let retried = without_nan(&text).map(|text| serde_json::from_str(&text));
    let error = match retried {
        Some(Ok(value)) => return Ok(value),
        Some(Err(error)) => error,
        None => first,
    };
    Err(LayoutError::Json {
        file: path.display().to_string(),
        expected,
        reason: error.to_string(),
    })
}

/// The text with `null` in place of `NaN`, `Infinity` and `-Infinity` outside strings; none where
/// there is none of them.
fn without_nan(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let (mut rest, mut inside, mut found) = (text, false, false);
    while let Some(at) = rest.find(['"', '\\', 'N', 'I', '-']) {
        let (before, from) = rest.split_at(at);
        plain.push_str(before);
        let word = ["NaN", "Infinity", "-Infinity"];
        let word = word.iter().find(|word| !inside && from.starts_with(**word));
        let length = match (word, from.as_bytes()[0]) {
            (Some(word), _) => {
                found = true;
                plain.push_str("null");
                rest = &from[word.len()..];
                continue;
            }
            // What is escaped ends no string.
            (None, b'\\') => 1 + from[1..].chars().next().map_or(0, char::len_utf8),
            (None, b'"') => {
                inside = !inside;
                1
            }
            (None, _) => 1,
        };
        plain.push_str(&from[..length]);
        rest = &from[length..];
    }
    plain.push_str(rest);
    found.then_some(plain)
}

/// An entry of a list, or what is there in its place.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum JsonEntry<T> {
    Good(T),
    Bad(Value),
}

impl<T: DeserializeOwned> JsonEntry<T> {
    /// The entry, or its name and what is wrong with it.
    pub fn read(self, what: &str, index: usize) -> Result<T, EntryError> {
        let value = match self {
            Self::Good(entry) => return Ok(entry),
            Self::Bad(value) => value,
        };
        let name = match &value["id"] {
            Value::Null => format!("{what} at place {index}"),
            id => format!("{what} {}", id.to_string().trim_matches('"')),
        };
        let reason = serde_json::from_value::<T>(value).err();
        let reason = reason.map_or("an entry that cannot be read".to_owned(), |e| e.to_string());
        Err(EntryError {
            entry: name,
            expected: format!("an {what} as COCO has it"),
            found: format!("one with {reason}"),
        })
    }
}

/// An error of an entry.
pub(super) struct EntryError {
    pub entry: String,
    pub expected: String,
    pub found: String,
}

/// All errors of the entries of a file.
#[derive(Default)]
pub(super) struct EntryErrors(Vec<EntryError>);

impl EntryErrors {
    /// Adds an error.
    pub fn add(&mut self, entry: String, expected: &str, found: String) {
        self.push(EntryError {
            entry,
            expected: expected.to_owned(),
            found,
        });
    }

    pub fn push(&mut self, fault: EntryError) {
        self.0.push(fault);
    }

    /// # Errors
    /// If there is any fault: one by itself, several in a list.
    pub fn check(self, path: &Path) -> Result<(), LayoutError> {
        let file = path.display().to_string();
        let mut faults = self.0;
        if faults.len() > 1 {
            let line = |fault: &EntryError| {
                let EntryError {
                    entry,
                    expected,
                    found,
                } = fault;
                format!("{entry}: expected {expected}, found {found}")
            };
            let lines = faults.iter().take(LISTED).map(line).collect();
            return Err(LayoutError::Entries {
                file,
                count: faults.len(),
                lines,
            });
        }
        match faults.pop() {
            None => Ok(()),
            Some(fault) => Err(LayoutError::Entry {
                file,
                entry: fault.entry,
                expected: fault.expected,
                found: fault.found,
            }),
        }
    }
}

/// A whole number, also as `1.0` or `"1"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct WholeNumber(pub i64);

impl<'de> Deserialize<'de> for WholeNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = WholeNumber;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number")
            }

            fn visit_i64<E: Error>(self, value: i64) -> Result<WholeNumber, E> {
                Ok(WholeNumber(value))
            }

            fn visit_u64<E: Error>(self, value: u64) -> Result<WholeNumber, E> {
                let wrong = || E::custom(format!("expected a whole number, found {value}"));
                i64::try_from(value).map(WholeNumber).map_err(|_| wrong())
            }

            fn visit_f64<E: Error>(self, value: f64) -> Result<WholeNumber, E> {
                match value.fract() == 0.0 && value.abs() < 2_f64.powi(53) {
                    true => Ok(WholeNumber(value as i64)),
                    false => Err(E::custom(format!("expected a whole number, found {value}"))),
                }
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<WholeNumber, E> {
                let number = whole(text);
                number.map(WholeNumber).ok_or_else(|| {
                    E::custom(format!("expected a whole number, found the text `{text}`"))
                })
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// A text that is a whole number, also `1.0`.
pub(crate) fn whole(text: &str) -> Option<i64> {
    let text = text.trim();
    let plain = match text.split_once('.') {
        Some((plain, zeros)) if zeros.bytes().all(|digit| digit == b'0') => plain,
        Some(_) => return None,
        None => text,
    };
    plain.parse().ok()
}

/// A number, or a number missing (`null`, or `NaN`).
#[derive(Clone, Copy, Debug)]
pub(super) struct OptionalNumber(pub f64);

impl<'de> Deserialize<'de> for OptionalNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(
            Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN),
        ))
    }
}

/// 0 and 1, false and true, or their texts; nothing is false.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct JsonFlag(pub bool);

impl<'de> Deserialize<'de> for JsonFlag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Null => Ok(Self(false)),
            Value::Bool(set) => Ok(Self(set)),
            Value::Number(number) => Ok(Self(number.as_f64() != Some(0.0))),
            Value::String(text) if ["1", "true", "True"].contains(&&*text) => Ok(Self(true)),
            Value::String(text) if ["0", "false", "False", ""].contains(&&*text) => Ok(Self(false)),
            other => Err(D::Error::custom(format!("expected 0 or 1, found {other}"))),
        }
    }
}

/// Recognizes boxes in another format than COCO's, which would otherwise be learned silently: boxes
/// as xywh with the `[height, width]` of their images.
pub(super) fn other_form<'a>(
    boxes: impl Iterator<Item = ([f64; 4], [usize; 2])> + Clone + 'a,
) -> Option<&'static str> {
    /// Fewer boxes are not conclusive.
    const ENOUGH: usize = 3;
    let count = boxes.clone().count();
    if count < ENOUGH {
        return None;
    }
    let is_share = |bbox: [f64; 4]| bbox.iter().all(|value| (0.0..=1.0).contains(value));
    if boxes.clone().all(|(bbox, _)| is_share(bbox)) {
        return Some("all boxes lie between 0 and 1, as shares of the image");
    }
    // As corners they make sense; as sizes most of them leave the image.
    let corners = |([x, y, right, bottom], [height, width]): ([f64; 4], [usize; 2])| {
        right > x && bottom > y && right <= width as f64 + 1.0 && bottom <= height as f64 + 1.0
    };
    let leaves = |([x, y, w, h], [height, width]): ([f64; 4], [usize; 2])| {
        x + w > width as f64 + 1.0 || y + h > height as f64 + 1.0
    };
    let outside = boxes.clone().filter(|item| leaves(*item)).count();
    (2 * outside > count && boxes.clone().all(corners))
        .then_some("the boxes are of two corners (x, y, x, y): as sizes most would leave the image")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_other_tools_are_numbers() {
        let read = |text: &str| serde_json::from_str::<WholeNumber>(text).map(|whole| whole.0);
        for text in ["7", "7.0", "\"7\"", "\"7.0\"", "\"007\""] {
            assert_eq!(read(text).unwrap(), 7, "{text}");
        }
        assert_eq!(read("-1.0").unwrap(), -1);
        for text in ["7.5", "\"seven\"", "true", "[7]", "1e300", "\"7.5\""] {
            assert!(read(text).is_err(), "{text}");
        }
        let flag = |text: &str| serde_json::from_str::<JsonFlag>(text).map(|flag| flag.0);
        for text in ["1", "1.0", "true", "\"1\""] {
            assert!(flag(text).unwrap(), "{text}");
        }
        for text in ["0", "0.0", "false", "\"0\"", "null"] {
            assert!(!flag(text).unwrap(), "{text}");
        }
        assert!(flag("\"maybe\"").is_err() && flag("[]").is_err());
    }

    #[test]
    fn nan_outside_strings_is_null() {
        let text = r#"{"NaN": [NaN, -Infinity, -1], "a\"NaN\\": Infinity}"#;
        let plain = r#"{"NaN": [null, null, -1], "a\"NaN\\": null}"#;
        assert_eq!(without_nan(text).as_deref(), Some(plain));
        assert_eq!(without_nan(r#"{"NaN": "Infinity"}"#), None);
    }

    #[test]
    fn boxes_of_other_tools_are_known_by_their_numbers() {
        let image = [100, 200];
        let form = |boxes: &[[f64; 4]]| other_form(boxes.iter().map(|bbox| (*bbox, image)));
        let shares = [[0.1, 0.2, 0.3, 0.4]; 3];
        assert!(form(&shares).unwrap().contains("between 0 and 1"));
        let corners = [
            [120.0, 40.0, 190.0, 90.0],
            [100.0, 50.0, 180.0, 80.0],
            [5.0, 5.0, 30.0, 60.0],
        ];
        assert!(form(&corners).unwrap().contains("two corners"));
        // COCO has boxes that reach beyond the image, of truncated people.
        let cut = [
            [150.0, 40.0, 80.0, 70.0],
            [-5.0, 3.0, 20.0, 60.0],
            [90.0, 60.0, 30.0, 60.0],
        ];
        assert_eq!(form(&cut), None);
        assert_eq!(form(&shares[..2]), None);
    }
}
