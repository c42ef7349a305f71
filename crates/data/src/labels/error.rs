//! Why labels cannot be written or read.

use std::path::{Path, PathBuf};

use crate::missing::MissingPath;
use crate::text::shell_path;

/// Why labels cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    /// The file system refused; the source names the file.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// There is no such folder.
    #[error(transparent)]
    Missing(#[from] MissingPath),
    /// A folder without label files.
    #[error("{}: no label files (*.parquet) here\nhint: `clasp label IMAGES --out {}` makes them", folder.display(), shell_path(folder))]
    Empty {
        /// The folder.
        folder: PathBuf,
    },
    /// A file that is damaged, or was not written by `clasp label`.
    #[error(
        "{}: not a label file that can be read: {problem}\n  \
         hint: repair it (docs/formats.md has the columns), or delete it and label again; the other shards are kept",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Inconsistent labels or metadata: nothing was written.
    #[error("labels of {key:?} in shard {shard:?}: {problem}")]
    Invalid {
        /// Name of the input shard.
        shard: String,
        /// The image's key, empty for the metadata.
        key: String,
        /// The field, what is expected and what was found.
        problem: String,
    },
    /// Shards of one folder with different vocabularies, models or part maps.
    #[error("{}: {field} differs from {}: expected {expected}, found {found}\nhint: a store has one vocabulary, model and size of part maps; give each labeling its own folder", path.display(), first.display())]
    Conflict {
        /// The file, or the folder for labels about to be written.
        path: PathBuf,
        /// What it is compared with.
        first: PathBuf,
        /// What differs.
        field: &'static str,
        /// The value in `first`.
        expected: String,
        /// The value in `path`.
        found: String,
    },
    /// An image that is labeled twice.
    #[error("key {key:?} is in {} and in {}\nhint: were the shards labeled again under other names? keep one of the files", first.display(), second.display())]
    Duplicate {
        /// The image's key.
        key: String,
        /// The file that has it first.
        first: PathBuf,
        /// The file that has it again.
        second: PathBuf,
    },
    /// A correction that does not fit the labels: nothing was written.
    #[error("correction of {key:?}: {problem}")]
    Correction {
        /// The image's key.
        key: String,
        /// What is expected and what was found.
        problem: String,
    },
    /// A file of corrections that cannot be read, or does not fit the labels.
    #[error("{}: {problem}\nhint: docs/formats.md has the form of a correction", path.display())]
    Corrections {
        /// The file.
        path: PathBuf,
        /// The line, what is expected and what was found.
        problem: String,
    },
    /// No calibration where one is needed.
    #[error("{}: no calibration\nhint: `clasp label calibrate` makes it from the stored logits", path.display())]
    NoCalibration {
        /// The file that is expected.
        path: PathBuf,
    },
    /// A calibration that cannot be used.
    #[error("{}: {problem}\nhint: `clasp label calibrate` makes it again from the stored logits", path.display())]
    Calibration {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl LabelError {
    pub(super) fn corrections(path: &Path, problem: String) -> Self {
        Self::Corrections {
            path: path.to_owned(),
            problem,
        }
    }

    pub(super) fn damaged(path: &Path, problem: impl ToString) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            problem: problem.to_string(),
        }
    }
}
