//! Folder layouts of annotated datasets, a module for each task.
//!
//! [`registry::LAYOUTS`] is the table of all layouts: [`open`](reid::ReidDataset::open) of each
//! kind of dataset, [`crate::check`] and docs/data.md read it. Readers look in the usual places,
//! and an error lists where. [`sides`] finds left and right in names; the synthetic people have a
//! layout of most tasks in one folder.

pub mod attributes;
pub mod ccp;
pub mod coco;
pub mod csv;
pub mod layout;
mod open;
pub mod parsing;
pub mod registry;
pub mod reid;
pub mod search;
pub mod sides;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::mat::{MatError, MatFile};
use crate::text::shell_word;

/// Why a dataset cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// Nothing of this layout in the usual places.
    #[error(
        "`{folder}` holds no {layout}\n  expected {expected}\n  looked for: {}\n\
         hint: `clasp data check {}` lists the layouts that it recognizes; docs/data.md describes all",
        places(.tried), shell_word(.folder)
    )]
    NotFound {
        /// The folder that was given.
        folder: String,
        /// Name of the layout.
        layout: &'static str,
        /// What is expected.
        expected: String,
        /// Every path that was tried.
        tried: Vec<TriedPath>,
    },
    /// An invalid line of a table.
    #[error("{file}, line {line}: expected {expected}, found {found}")]
    Line {
        /// The table.
        file: String,
        /// Line, counted from 1.
        line: usize,
        /// What is expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A file that is not JSON of this layout.
    #[error("{file}: not {expected}: {reason}")]
    Json {
        /// The file.
        file: String,
        /// What it should be.
        expected: &'static str,
        /// What the parser says, with line and column.
        reason: String,
    },
    /// An invalid entry of a JSON file.
    #[error("{file}, {entry}: expected {expected}, found {found}")]
    Entry {
        /// The file.
        file: String,
        /// Which entry, for example `annotation 12`.
        entry: String,
        /// What is expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// Several invalid entries of a JSON file.
    #[error("{file}: {count} entries cannot be used:\n  {}{}", .lines.join("\n  "), more(*.count, .lines.len()))]
    Entries {
        /// The file.
        file: String,
        /// How many there are.
        count: usize,
        /// The first of them, each with what is expected and what was found.
        lines: Vec<String>,
    },
    /// Several invalid lines of a table.
    #[error("{file}: {count} lines cannot be used:\n  {}{}", .lines.join("\n  "), more(*.count, .lines.len()))]
    Lines {
        /// The table.
        file: String,
        /// How many there are.
        count: usize,
        /// The first of them, each with what is expected and what was found.
        lines: Vec<String>,
    },
    /// A layout with one file for each split, without the one that was asked for.
    #[error(
        "`{folder}` holds no {layout} of split `{wanted}`\n  expected one of its splits: {}\n  looked for: {}\n\
         hint: name an existing split (`--split` of eval and score, `--set task.train_split=` of finetune); if it is needed to choose the \
         best model, `--set run.checkpoint_selection=last` takes the last one",
        list(.splits),
        places(.tried)
    )]
    NoSplitFile {
        /// The folder that was given.
        folder: String,
        /// Name of the layout.
        layout: &'static str,
        /// The split asked for.
        wanted: String,
        /// The splits that are there.
        splits: Vec<String>,
        /// Every path that was tried.
        tried: Vec<TriedPath>,
    },
    /// A file with an invalid name, or with content of another kind.
    #[error("{file}: expected {expected}, found {found}")]
    File {
        /// The file.
        file: String,
        /// What is expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// A split without an image.
    #[error("{file} has no image of split `{wanted}`\nhint: its splits are {}", list(.splits))]
    NoSplit {
        /// The table.
        file: String,
        /// The split asked for.
        wanted: String,
        /// The splits that it has.
        splits: Vec<String>,
    },
    /// A file that cannot be read; the message names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

fn more(count: usize, listed: usize) -> String {
    match count.checked_sub(listed) {
        None | Some(0) => String::new(),
        Some(more) => format!("\n  and {more} more"),
    }
}

/// Names the splits that a folder has where the requested one is not among them; `place` finds the
/// file of a split.
fn with_splits(
    error: LayoutError,
    wanted: &str,
    place: impl Fn(&str) -> Result<PathBuf, LayoutError>,
) -> LayoutError {
    let LayoutError::NotFound {
        folder,
        layout,
        tried,
        expected,
    } = error
    else {
        return error;
    };
    let usual = ["train", "val", "test"].into_iter();
    let splits: Vec<String> = usual
        .filter(|split| *split != wanted && place(split).is_ok())
        .map(str::to_owned)
        .collect();
    match splits.is_empty() {
        true => LayoutError::NotFound {
            folder,
            layout,
            tried,
            expected,
        },
        false => LayoutError::NoSplitFile {
            folder,
            layout,
            wanted: wanted.to_owned(),
            splits,
            tried,
        },
    }
}

impl LayoutError {
    /// The paths that were tried, where nothing was found.
    pub fn missing(self) -> Result<Vec<TriedPath>, Self> {
        match self {
            Self::NotFound { tried, .. } | Self::NoSplitFile { tried, .. } => Ok(tried),
            other => Err(other),
        }
    }
}

/// A path at which a dataset was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TriedPath {
    /// The path.
    pub path: PathBuf,
    /// Why it cannot be used, if it exists.
    pub problem: Option<&'static str>,
}

impl From<PathBuf> for TriedPath {
    /// A path that does not exist.
    fn from(path: PathBuf) -> Self {
        Self {
            path,
            problem: None,
        }
    }
}

impl fmt::Display for TriedPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        match self.problem {
            Some(problem) => write!(f, " ({problem})"),
            None => Ok(()),
        }
    }
}

/// Paths that an error names before it counts the rest.
const MOST_PLACES: usize = 3;

/// The first of the paths that were tried, and how many more there are.
fn places(tried: &[TriedPath]) -> String {
    // Those that exist but cannot be used matter most.
    let (unusable, missing): (Vec<_>, Vec<_>) =
        tried.iter().partition(|place| place.problem.is_some());
    let named: Vec<String> = { unusable.into_iter().chain(missing) }
        .take(MOST_PLACES)
        .map(TriedPath::to_string)
        .collect();
    match tried.len().saturating_sub(MOST_PLACES) {
        0 => named.join(", "),
        more => format!("{} and {more} other paths", named.join(", ")),
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// The first of `candidates` below `folder` that exists, or an error that lists them all.
fn find(
    folder: &Path,
    candidates: &[String],
    layout: &'static str,
    expected: &str,
) -> Result<PathBuf, LayoutError> {
    Ok(find_all(folder, candidates, layout, expected)?.swap_remove(0))
}

/// Those of `candidates` below `folder` that exist, at least one, or an error that lists them all.
fn find_all(
    folder: &Path,
    candidates: &[String],
    layout: &'static str,
    expected: &str,
) -> Result<Vec<PathBuf>, LayoutError> {
    let paths = candidates.iter().map(|candidate| folder.join(candidate));
    // Where upper and lower case are the same, so are some of the candidates.
    let mut known = BTreeSet::new();
    let found: Vec<PathBuf> = { paths.clone() }
        .filter(|path| path.canonicalize().is_ok_and(|place| known.insert(place)))
        .collect();
    if found.is_empty() {
        return Err(LayoutError::NotFound {
            folder: folder.display().to_string(),
            layout,
            expected: expected.to_owned(),
            tried: paths.map(TriedPath::from).collect(),
        });
    }
    Ok(found)
}

/// The folders `near` a file of annotation that may hold its images: beside it, then beside its
/// folder.
fn around(file: &Path, near: &[String]) -> Vec<PathBuf> {
    let folder = file.parent().unwrap_or(Path::new(""));
    // A folder that is a link has two others above it: that of the link, and that of its target.
    let above = [
        { folder.file_name() }
            .and_then(|_| folder.parent())
            .map(Path::to_owned),
        Some(folder.join("..")),
    ];
    {
        [folder.to_owned()]
            .into_iter()
            .chain(above.into_iter().flatten())
    }
    .flat_map(|folder| near.iter().map(move |name| folder.join(name)))
    .collect()
}

/// Reads a MATLAB file.
fn read_mat(path: &Path) -> Result<MatFile, LayoutError> {
    MatFile::read(path)?.map_err(in_file(path))
}

/// Adds the file to an error about one of its values.
fn in_file(path: &Path) -> impl Fn(MatError) -> LayoutError {
    move |error| LayoutError::Entry {
        file: path.display().to_string(),
        entry: error.place,
        expected: error.expected,
        found: error.found,
    }
}

/// Names in the order of their first occurrence.
fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut known = BTreeSet::new();
    let first = names.filter(|name| known.insert(*name));
    first.map(str::to_owned).collect()
}

/// The items of `split`, of which there must be one.
fn in_split<'a, T>(
    file: &Path,
    items: &'a [T],
    split_of: impl Fn(&T) -> &str,
    split: &str,
) -> Result<Vec<&'a T>, LayoutError> {
    let chosen: Vec<&T> = items
        .iter()
        .filter(|item| split_of(item) == split)
        .collect();
    if chosen.is_empty() {
        return Err(LayoutError::NoSplit {
            file: file.display().to_string(),
            wanted: split.to_owned(),
            splits: distinct(items.iter().map(split_of)),
        });
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `text` as file `name` of a folder, read by `open`.
    pub(super) fn in_folder<T>(
        name: &str,
        text: &str,
        open: impl FnOnce(&Path) -> Result<T, LayoutError>,
    ) -> Result<T, LayoutError> {
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join(name), text).unwrap();
        open(folder.path())
    }

    /// Each of `changes`, from a piece of the `good` text to another, is refused with a message
    /// that contains the third.
    pub(super) fn assert_refused<T: std::fmt::Debug>(
        good: &str,
        changes: &[(&str, &str, &str)],
        read: impl Fn(&str) -> Result<T, LayoutError>,
    ) {
        for (from, to, expected) in changes {
            assert!(good.contains(from), "{from}");
            let error = read(&good.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(expected), "{to}: {error}");
        }
    }
}
