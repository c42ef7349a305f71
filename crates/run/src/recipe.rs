//! Recipes: plain data in TOML, read the same way for every kind of training.
//!
//! Every key has a default, an unknown key is an error that names the nearest right one, and
//! `key=value` on the command line overrides the file.

use std::path::Path;

use clasp_data::missing::MissingPath;
use clasp_data::text::{edits, read_text};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use toml::{Table, Value};

/// A recipe that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {message}{}", hint_line(.hint))]
pub struct RecipeError {
    /// File, or the `--set` argument with the error.
    pub place: String,
    /// Message of the parser.
    pub message: String,
    /// What to write instead, if that can be guessed.
    pub hint: Option<String>,
}

fn hint_line(hint: &Option<String>) -> String {
    hint.as_ref()
        .map(|hint| format!("\n  hint: {hint}"))
        .unwrap_or_default()
}

/// A value, or `"auto"`: resolved from the other values and the data.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Auto<T> {
    /// To be resolved.
    Auto,
    /// Given, or resolved.
    Value(T),
}

impl<T: Clone> Auto<T> {
    /// Resolves `"auto"` to `default` and returns the value.
    pub fn resolve(&mut self, default: T) -> T {
        if let Self::Value(value) = self {
            return value.clone();
        }
        *self = Self::Value(default.clone());
        default
    }
}

impl<T: Serialize> Serialize for Auto<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Value(value) => value.serialize(serializer),
        }
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Auto<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        if value.as_str() == Some("auto") {
            return Ok(Self::Auto);
        }
        let found = value.to_string();
        T::deserialize(value).map(Self::Value).map_err(|error| {
            let message = error.message().trim_end();
            D::Error::custom(format!("{message}, or \"auto\" (found {found})"))
        })
    }
}

/// Reads the recipe file `path`, or the recipe of that name in `built_in` (name and text), and
/// applies `overrides`.
///
/// # Errors
/// There is no such file, it cannot be read, a key is unknown or a value has another type.
pub fn load<R>(
    path: &str,
    built_in: &[(&str, &str)],
    overrides: &[String],
) -> Result<R, RecipeError>
where
    R: DeserializeOwned + Serialize + Default,
{
    if let Some((name, text)) = built_in.iter().find(|(name, _)| *name == path) {
        return parse(text, &format!("recipe {name}"), overrides);
    }
    let error = |message: String| RecipeError {
        place: path.to_owned(),
        message,
        hint: None,
    };
    if !Path::new(path).is_file() {
        let names: Vec<&str> = built_in.iter().map(|(name, _)| *name).collect();
        let names = names.join(", ");
        let near = names_near(path, built_in).map(|name| format!("did you mean `{name}`?"));
        // A file with nearly this name, else where recipes are listed.
        let file = || {
            MissingPath::new(Path::new(path), "a recipe")
                .or_hint(
                    "`clasp recipes` lists them, `clasp recipes NAME > FILE` writes one to change",
                )
                .hint
        };
        return Err(RecipeError {
            hint: Some(near.unwrap_or_else(file)),
            ..error(format!(
                "expected the file of a recipe, or one of {names}, found no such file"
            ))
        });
    }
    let text = read_text(Path::new(path)).map_err(|cause| error(cause.to_string()))?;
    parse(&text, path, overrides)
}

/// The name that was probably meant: one with at most two letters changed, else one that begins or
/// ends with `path` (`mini` for `reid-mini`).
pub fn names_near<'a>(path: &str, built_in: &[(&'a str, &str)]) -> Option<&'a str> {
    let stem = path.strip_suffix(".toml").unwrap_or(path).replace('_', "-");
    let close = |name: &str| {
        let edits = edits(&stem, name);
        (edits <= 2.min(name.len() / 3)).then_some(edits)
    };
    let near = { built_in.iter() }.filter_map(|(name, _)| Some((close(name)?, *name)));
    let part = |name: &&str| {
        stem.len() > 2
            && (name.starts_with(&stem) || name.ends_with(&stem) || stem.starts_with(name))
    };
    let near = near.min().map(|(_, name)| name);
    near.or_else(|| built_in.iter().map(|(name, _)| *name).find(part))
}

/// Parses `text` and applies `overrides`, each `dotted.key=value`; errors name its `place`.
///
/// # Errors
/// A key is unknown or a value has another type.
pub fn parse<R>(text: &str, place: &str, overrides: &[String]) -> Result<R, RecipeError>
where
    R: DeserializeOwned + Serialize + Default,
{
    let error = |place: &str, parser: &str, message: &str| RecipeError {
        place: place.to_owned(),
        message: without_type_names(message),
        hint: nearest_key::<R>(parser),
    };
    // The text alone first: its errors then show the line.
    let recipe: R = toml::from_str(text)
        .map_err(|cause| error(place, cause.message(), cause.to_string().trim_end()))?;
    if overrides.is_empty() {
        return Ok(recipe);
    }
    let mut table: Table =
        toml::from_str(text).map_err(|cause| error(place, cause.message(), cause.message()))?;
    for assignment in overrides {
        let place = format!("--set {}", excerpt(assignment));
        set(&mut table, assignment).map_err(|message| error(&place, "", &message))?;
        let _: R = Value::Table(table.clone())
            .try_into()
            .map_err(|cause: toml::de::Error| error(&place, cause.message(), cause.message()))?;
    }
    Value::Table(table)
        .try_into()
        .map_err(|cause: toml::de::Error| error(place, cause.message(), cause.message()))
}

/// Rust's names of types in messages of the parser, and what a user calls them.
const TYPE_NAMES: [(&str, &str); 12] = [
    ("expected f32", "expected a number"),
    ("expected f64", "expected a number"),
    ("expected usize", "expected a whole number of 0 or more"),
    ("expected u64", "expected a whole number of 0 or more"),
    ("expected u32", "expected a whole number of 0 or more"),
    ("expected i64", "expected a whole number"),
    ("expected a sequence", "expected a list"),
    ("expected path string", "expected a path"),
    ("invalid type: floating point", "invalid type: number"),
    ("invalid type: integer", "invalid type: whole number"),
    ("invalid type: sequence", "invalid type: list"),
    ("invalid type: map", "invalid type: section"),
];

/// A message of the parser in the terms of a recipe: `expected f64` is `expected a number`.
fn without_type_names(message: &str) -> String {
    let mut text = TYPE_NAMES
        .iter()
        .fold(message.to_owned(), |text, (rust, user)| {
            text.replace(rust, user)
        });
    // `expected struct LossSection`: the section's name is in the place or the line already.
    while let Some(start) = text.find("expected struct ") {
        let name = start + "expected struct ".len();
        let end = text[name..]
            .find(|c: char| !c.is_alphanumeric() && c != '_')
            .map_or(text.len(), |length| name + length);
        text.replace_range(start..end, "expected a section");
    }
    text
}

/// A recipe as TOML.
pub fn to_toml<R: Serialize>(recipe: &R) -> String {
    toml::to_string_pretty(recipe).unwrap_or_default()
}

/// The value of a dotted key, as TOML; empty if there is none.
pub fn value<R: Serialize>(recipe: &R, key: &str) -> String {
    at(recipe, key).to_string()
}

/// A recipe as a TOML value. By way of its text, in which numbers stand as they were written: a
/// 32-bit 0.1 would become 0.10000000149011612 otherwise.
fn as_value<R: Serialize>(recipe: &R) -> Value {
    toml::from_str(&to_toml(recipe)).map_or(Value::Table(Table::new()), Value::Table)
}

fn at<R: Serialize>(recipe: &R, key: &str) -> Value {
    let mut value = as_value(recipe);
    for part in key.split('.') {
        value = value
            .get(part)
            .cloned()
            .unwrap_or(Value::String(String::new()));
    }
    value
}

/// The first of `keys`, or of the keys in sections among them, in which two recipes differ, with
/// both values.
pub fn difference<R: Serialize>(
    now: &R,
    saved: &R,
    keys: &[&str],
) -> Option<(String, String, String)> {
    let leaves = |key: &&str| match at(now, key) {
        Value::Table(section) => {
            let mut paths = Vec::new();
            flatten(key, &section, &mut paths);
            paths
        }
        _ => vec![(*key).to_owned()],
    };
    keys.iter().flat_map(leaves).find_map(|key| {
        let (expected, found) = (value(now, &key), value(saved, &key));
        (expected != found).then_some((key, expected, found))
    })
}

/// Most levels of a dotted key; recipes have three.
const MAX_LEVELS: usize = 16;

/// The start of a text, short enough for a message.
fn excerpt(text: &str) -> String {
    const MOST: usize = 120;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// The dotted keys of a recipe with their values as TOML, sorted by section.
pub fn keys<R: Serialize>(recipe: &R) -> Vec<(String, String)> {
    let mut paths = Vec::new();
    if let Value::Table(table) = as_value(recipe) {
        flatten("", &table, &mut paths);
    }
    let value = |path: String| {
        let value = at(recipe, &path).to_string();
        (path, value)
    };
    paths.into_iter().map(value).collect()
}

/// Writes `dotted.key=value` into a recipe. A value that is not TOML is taken as text, so that
/// `method=dino` needs no quotes.
fn set(table: &mut Table, assignment: &str) -> Result<(), String> {
    let (key, text) = assignment
        .split_once('=')
        .ok_or_else(|| "expected dotted.key=value, found no `=`".to_owned())?;
    let value = toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut parsed| parsed.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()));
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    // Nested tables are dropped, copied and written recursively: the stack is limited.
    if parts.len() > MAX_LEVELS {
        return Err(format!(
            "expected a key of at most {MAX_LEVELS} levels, found {}",
            parts.len()
        ));
    }
    let last = parts.pop().unwrap_or_default();
    let mut inner = table;
    for part in parts {
        inner = inner
            .entry(part)
            .or_insert_with(|| Value::Table(Table::new()))
            .as_table_mut()
            .ok_or_else(|| format!("`{part}` is a value, not a section"))?;
    }
    inner.insert(last.to_owned(), value);
    Ok(())
}

/// The key that was probably meant, out of serde's message
/// ``unknown field `x`, expected one of `a`, `b` ``.
fn nearest_key<R: Serialize + Default>(message: &str) -> Option<String> {
    let mut words = message.split('`').skip(1).step_by(2);
    let unknown = words.next().filter(|_| message.contains("unknown field"))?;
    let beside: Vec<&str> = words.collect();
    let mut everywhere = Vec::new();
    if let Ok(Value::Table(table)) = Value::try_from(R::default()) {
        flatten("", &table, &mut everywhere);
    }
    let leaf = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
    // A right key in the wrong section, then the nearest key of this section, then of any.
    if let Some(path) = everywhere.iter().find(|path| leaf(path) == unknown) {
        return Some(format!("`{unknown}` is `{path}`"));
    }
    let close = |name: &str| {
        let distance = edits(unknown, name);
        (distance <= 2.max(unknown.len() / 3)).then_some(distance)
    };
    let here = beside
        .iter()
        .filter_map(|name| Some((close(name)?, (*name).to_owned())))
        .min();
    let there = everywhere
        .iter()
        .filter_map(|path| Some((close(&leaf(path))?, path.clone())))
        .min();
    here.or(there)
        .map(|(_, name)| format!("did you mean `{name}`?"))
}

fn flatten(prefix: &str, table: &Table, paths: &mut Vec<String>) {
    for (key, value) in table {
        let path = if prefix.is_empty() {
            key.clone()
        } else {
            format!("{prefix}.{key}")
        };
        match value {
            Value::Table(inner) => flatten(&path, inner, paths),
            _ => paths.push(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct TestRecipe {
        seed: u64,
        run: TestSection,
    }

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct TestSection {
        steps: u64,
        ratio: f32,
    }

    #[test]
    fn messages_name_no_types_of_rust() {
        let message = |set: &str| {
            let error = parse::<TestRecipe>("", "x", &[set.to_owned()]).unwrap_err();
            error.message
        };
        let text = message("run.ratio=fast");
        assert!(text.contains("expected a number"), "{text}");
        let text = message("run.steps=1.5");
        assert!(text.contains("expected a whole number"), "{text}");
        let text = message("run=1");
        assert!(text.contains("expected a section"), "{text}");
    }

    #[test]
    fn numbers_are_listed_as_they_are_written() {
        let recipe = parse::<TestRecipe>("run.ratio = 0.1", "x", &[]).unwrap();
        assert_eq!(value(&recipe, "run.ratio"), "0.1");
        assert!(to_toml(&recipe).contains("ratio = 0.1\n"));
    }

    #[test]
    fn a_key_of_too_many_levels_is_refused() {
        let key = vec!["a"; 50_000].join(".");
        let error = parse::<TestRecipe>("", "x", &[format!("{key}=1")]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("at most 16 levels, found 50000"), "{text}");
        assert!(text.len() < 300, "{}", text.len());
        let set = ["run.steps=7".to_owned()];
        assert_eq!(parse::<TestRecipe>("", "x", &set).unwrap().run.steps, 7);
    }

    #[test]
    fn a_part_of_a_name_is_enough_to_guess_it() {
        let built_in = [("reid-mini", ""), ("swin-tiny", "")];
        assert_eq!(names_near("mini", &built_in), Some("reid-mini"));
        assert_eq!(names_near("swin_tiny.toml", &built_in), Some("swin-tiny"));
        assert_eq!(names_near("red-mini", &built_in), Some("reid-mini"));
        assert_eq!(names_near("x", &built_in), None);
    }

    #[test]
    fn keys_are_listed_with_their_values() {
        let keys = keys(&TestRecipe::default());
        let expected = [("run.ratio", "0.0"), ("run.steps", "0"), ("seed", "0")];
        assert_eq!(
            keys,
            expected.map(|(key, value)| (key.to_owned(), value.to_owned()))
        );
    }
}
