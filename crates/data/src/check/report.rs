//! The result of a check.

use serde::{Deserialize, Serialize};

/// The result of a check.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FolderCheck {
    /// What was checked.
    pub path: String,
    /// Images of any kind, in any depth.
    pub images: usize,
    /// The layouts that were found.
    pub layouts: Vec<LayoutCheck>,
    /// Paths that were tried and do not exist.
    pub tried: Vec<String>,
    /// Images that were decoded; `None` if that was not asked for.
    pub decoded: Option<usize>,
    /// Where and why, for each image that cannot be decoded.
    pub unreadable: Vec<(String, String)>,
    /// Images with the same bytes as an earlier one, and that one; known if images were decoded. No
    /// problem in itself.
    pub repeated: Vec<(String, String)>,
    /// Files among the images that are not read.
    pub skipped: Vec<String>,
    /// Why the images cannot be listed, if they cannot.
    pub problem: Option<String>,
}

/// A layout in the folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayoutCheck {
    /// Its name, for example `Market-1501 layout`.
    pub layout: String,
    /// Where it is.
    pub place: String,
    /// Counts of its parts.
    pub counts: Vec<CheckedCount>,
    /// What prevents its use; empty if nothing does.
    pub problems: Vec<String>,
    /// What is worth knowing.
    pub notes: Vec<String>,
}

/// A count, beside the official one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedCount {
    /// What is counted, for example `query images`.
    pub what: String,
    /// The number found.
    pub found: u64,
    /// The number that the published dataset has, where there is one.
    pub official: Option<u64>,
}

impl FolderCheck {
    /// Whether there is no problem. Counts other than the official ones are none: it may be another
    /// dataset.
    pub fn is_ok(&self) -> bool {
        self.problem.is_none()
            && self.unreadable.is_empty()
            && self.layouts.iter().all(|l| l.problems.is_empty())
    }

    /// Whether every count that has an official one equals it; `None` if no count has one.
    pub fn is_official(&self) -> Option<bool> {
        let counts = self.layouts.iter().flat_map(|layout| &layout.counts);
        counts
            .filter_map(|count| count.official.map(|official| official == count.found))
            .reduce(|a, b| a && b)
    }
}
