//! What a check finds.

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
    /// Paths that were looked for and are not there.
    pub tried: Vec<String>,
    /// Images that were decoded; `None` if that was not asked for.
    pub decoded: Option<usize>,
    /// Where and why, for each image that cannot be decoded.
    pub unreadable: Vec<(String, String)>,
    /// Images with the same bytes as an earlier one, and that; known if images were decoded. No problem in itself.
    pub repeated: Vec<(String, String)>,
    /// What lies among the images and is not read, in words.
    pub left_out: Vec<String>,
    /// What keeps the images from being listed, if anything.
    pub problem: Option<String>,
}

/// A layout in the folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayoutCheck {
    /// Its name, for example `Market-1501 layout`.
    pub layout: String,
    /// Where it is.
    pub place: String,
    /// What it holds.
    pub counts: Vec<CheckedCount>,
    /// What is wrong with it; empty if nothing is.
    pub problems: Vec<String>,
    /// What to know of it.
    pub notes: Vec<String>,
}

/// A number of something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedCount {
    /// Of what, for example `query images`.
    pub what: String,
    /// The number found.
    pub found: u64,
    /// The number that the published data set has, where there is one.
    pub official: Option<u64>,
}

impl FolderCheck {
    /// Whether nothing is wrong. Counts other than the official ones are not wrong: it may be another data set.
    pub fn is_ok(&self) -> bool {
        self.problem.is_none()
            && self.unreadable.is_empty()
            && self.layouts.iter().all(|l| l.problems.is_empty())
    }

    /// Whether every count that has an official one equals it; `None` if there is none.
    pub fn is_official(&self) -> Option<bool> {
        let counts = self.layouts.iter().flat_map(|layout| &layout.counts);
        counts
            .filter_map(|count| count.official.map(|official| official == count.found))
            .reduce(|a, b| a && b)
    }
}
