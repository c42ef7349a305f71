//! Specifications of sources: paths, braces and patterns.

use std::path::{Path, PathBuf};

use super::error::SourceError;
use crate::missing::{MissingPath, holdings};

/// Most paths that the braces of one specification may expand to.
const MAX_EXPANSION: usize = 1_000_000;

/// The paths that a specification expands to. An existing path is taken literally, so that names
/// with commas and braces stay usable.
pub(super) fn paths_of(spec: &str) -> Result<Vec<PathBuf>, SourceError> {
    if Path::new(spec).exists() {
        return Ok(vec![PathBuf::from(spec)]);
    }
    let mut paths = Vec::new();
    for part in split_outside_braces(spec) {
        let part = part.trim();
        if part.is_empty() {
            continue;
        }
        if Path::new(part).exists() {
            paths.push(PathBuf::from(part));
            continue;
        }
        for path in expand_braces(part)? {
            match path.contains(['*', '?', '[']) && !Path::new(&path).exists() {
                true => paths.extend(matches_of(&path)?),
                false => paths.push(PathBuf::from(path)),
            }
        }
    }
    Ok(paths)
}

/// The paths that match a pattern with `*`, `?`, `[…]` and `**`, sorted.
fn matches_of(pattern: &str) -> Result<Vec<PathBuf>, SourceError> {
    let wrong = |reason: String| SourceError::NoMatch {
        pattern: pattern.to_owned(),
        reason,
        hint: fixed_part(pattern),
    };
    let options = glob::MatchOptions {
        require_literal_leading_dot: true,
        ..glob::MatchOptions::default()
    };
    let found = glob::glob_with(pattern, options).map_err(|error| wrong(error.to_string()))?;
    let mut paths = found
        .collect::<Result<Vec<PathBuf>, _>>()
        .map_err(|error| SourceError::Io(error.into()))?;
    if paths.is_empty() {
        return Err(wrong("no file matches the pattern".to_owned()));
    }
    paths.sort();
    Ok(paths)
}

/// What the folder before the first wildcard of a pattern holds, or that there is no such folder.
fn fixed_part(pattern: &str) -> String {
    let fixed = &pattern[..pattern.find(['*', '?', '[']).unwrap_or(pattern.len())];
    let folder = match fixed.rfind('/') {
        Some(0) => Path::new("/"),
        Some(end) => Path::new(&fixed[..end]),
        None => Path::new("."),
    };
    match folder.is_dir() {
        true => holdings(folder),
        false => MissingPath::new(folder, "a folder").hint,
    }
}

fn split_outside_braces(spec: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    let at_comma = |c: char| {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    };
    spec.split(at_comma).collect()
}

/// Expands `{000..099}` (the width of the first number is kept) and `{a,b}`, left to right, any
/// number of them, not nested.
///
/// # Errors
/// [`SourceError::Braces`] for a brace without counterpart, a range that is none or runs
/// backwards, and more than a million results.
pub fn expand_braces(spec: &str) -> Result<Vec<String>, SourceError> {
    let wrong = |reason: String| SourceError::Braces {
        spec: spec.to_owned(),
        reason,
    };
    let mut results = vec![String::new()];
    let mut rest = spec;
    while let Some(open) = rest.find(['{', '}']) {
        let (before, braced) = rest.split_at(open);
        let (inside, after) = braced
            .strip_prefix('{')
            .and_then(|braced| braced.split_once('}'))
            .filter(|(inside, _)| !inside.contains('{'))
            .ok_or_else(|| wrong("a brace has no counterpart".to_owned()))?;
        let values: Vec<String> = match inside.split_once("..") {
            Some((first, last)) => number_range(first, last).map_err(wrong)?,
            None => inside.split(',').map(str::to_owned).collect(),
        };
        if results.len().saturating_mul(values.len()) > MAX_EXPANSION {
            return Err(wrong(format!("expands to more than {MAX_EXPANSION} files")));
        }
        let joined = results
            .iter()
            .flat_map(|start| values.iter().map(move |v| format!("{start}{before}{v}")));
        results = joined.collect();
        rest = after;
    }
    for result in &mut results {
        result.push_str(rest);
    }
    Ok(results)
}

fn number_range(first: &str, last: &str) -> Result<Vec<String>, String> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = text.parse::<u64>().ok().filter(|_| digits);
        number.ok_or_else(|| format!("`{text}` is not a number of a range"))
    };
    let (from, to) = (number(first)?, number(last)?);
    if from > to {
        return Err(format!("the range {first}..{last} runs backwards"));
    }
    if to - from >= MAX_EXPANSION as u64 {
        return Err(format!("expands to more than {MAX_EXPANSION} files"));
    }
    let width = first.len();
    Ok((from..=to).map(|n| format!("{n:0width$}")).collect())
}
