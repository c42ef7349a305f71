//! Checkpoints in several files, as Hugging Face's hub has large ones.
//!
//! `NAME.safetensors.index.json` (or `.bin.index.json`) maps each tensor to its file,
//! `NAME-00001-of-00003.safetensors`. The index, or any of the parts, stands for all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Deserialize;

use crate::error::WeightsError;

/// How the name of an index ends.
pub(crate) const INDEX: &str = ".index.json";

/// Longest index that is read, in bytes.
const LONGEST_INDEX: u64 = 64 << 20;

/// Most parts of a checkpoint.
const MOST_PARTS: usize = 4096;

/// The files of a checkpoint in several files; none where `path` is a file on its own.
///
/// # Errors
///
/// The index cannot be read; a part is missing.
pub fn parts(path: &Path) -> Result<Option<Vec<PathBuf>>, WeightsError> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return Ok(None);
    };
    if name.ends_with(INDEX) {
        return in_index(path).map(Some);
    }
    let Some(part) = PartName::of(name) else {
        return Ok(None);
    };
    let index = path.with_file_name(format!("{}.{}{INDEX}", part.stem, part.ending));
    if index.is_file() {
        return in_index(&index).map(Some);
    }
    let names = (1..=part.count).map(|number| part.numbered(number));
    all_there(path, names.map(|name| path.with_file_name(name)).collect()).map(Some)
}

/// `STEM-NUMBER-of-COUNT.ENDING`
struct PartName<'a> {
    stem: &'a str,
    digits: usize,
    count: usize,
    ending: &'a str,
}

impl<'a> PartName<'a> {
    fn of(name: &'a str) -> Option<Self> {
        let (rest, ending) = name.rsplit_once('.')?;
        let (rest, count) = rest.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        // Five digits, as the hub's tools write them: `fold-1-of-5.pth` is a file of its own.
        let is_number = |text: &str| text.len() >= 5 && text.bytes().all(|b| b.is_ascii_digit());
        if !is_number(number) || !is_number(count) {
            return None;
        }
        let count: usize = count.parse().ok()?;
        (1..=MOST_PARTS).contains(&count).then_some(Self {
            stem,
            digits: number.len(),
            count,
            ending,
        })
    }

    fn numbered(&self, number: usize) -> String {
        let Self {
            stem,
            digits,
            count,
            ending,
        } = self;
        format!("{stem}-{number:0digits$}-of-{count:0digits$}.{ending}")
    }
}

fn in_index(index: &Path) -> Result<Vec<PathBuf>, WeightsError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let wrong = |problem: String| WeightsError::format(index, problem);
    let mut text = String::new();
    let read = fs::File::open(index)?
        .take(LONGEST_INDEX + 1)
        .read_to_string(&mut text);
    read.map_err(|error| wrong(format!("not an index of tensors: {error}")))?;
    if text.len() as u64 > LONGEST_INDEX {
        return Err(wrong(format!(
            "not an index of tensors: longer than {LONGEST_INDEX} bytes"
        )));
    }
    let found: Index = serde_json::from_str(&text).map_err(|error| {
        wrong(format!(
            "not an index of tensors: expected `weight_map`, the file of each tensor ({error})"
        ))
    })?;
    let names: BTreeSet<String> = found.weight_map.into_values().collect();
    if names.is_empty() || names.len() > MOST_PARTS {
        let found = names.len();
        return Err(wrong(format!(
            "expected 1 to {MOST_PARTS} files, found {found}"
        )));
    }
    // A part lies beside its index: nothing else is opened for a file from outside.
    let is_plain = |name: &&String| {
        Path::new(name)
            .file_name()
            .is_some_and(|last| last == name.as_str())
    };
    if let Some(name) = names.iter().find(|name| !is_plain(name)) {
        return Err(wrong(format!(
            "expected names of files beside it, found `{name}`"
        )));
    }
    all_there(
        index,
        names
            .iter()
            .map(|name| index.with_file_name(name))
            .collect(),
    )
}

fn all_there(path: &Path, parts: Vec<PathBuf>) -> Result<Vec<PathBuf>, WeightsError> {
    let missing: Vec<String> = { parts.iter() }
        .filter(|part| !part.is_file())
        .filter_map(|part| Some(part.file_name()?.to_string_lossy().into_owned()))
        .collect();
    if missing.is_empty() {
        return Ok(parts);
    }
    Err(WeightsError::format(
        path,
        format!(
            "a checkpoint of {} files, of which {} are not beside it: {}\nhint: download them into the same folder",
            parts.len(),
            missing.len(),
            missing[..missing.len().min(5)].join(", ")
        ),
    ))
}
