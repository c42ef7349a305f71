//! Errors of labeling.

use std::path::PathBuf;

use clasp_data::labels::LabelError;
use clasp_data::source::{SourceError, TooManyUnreadable};

/// An error of labeling. Each message names the place, what was expected and what was found.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The images cannot be found.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// More than 5 % of the images cannot be read.
    #[error(transparent)]
    TooManyUnreadable(#[from] TooManyUnreadable),
    /// A dataset cannot be read.
    #[error(transparent)]
    Layout(#[from] clasp_data::layouts::LayoutError),
    /// A vocabulary cannot be used.
    #[error(transparent)]
    Vocabulary(#[from] clasp_data::vocabulary::VocabularyError),
    /// The store of labels cannot be read or written.
    #[error(transparent)]
    Labels(#[from] LabelError),
    /// A file cannot be read or written; the message names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A setting out of range.
    #[error("label configuration: `{key}`: expected {expected}, found {found}")]
    Config {
        /// Name of the value.
        key: String,
        /// What would be right.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A shard of labels that exists holds keys that the images lack.
    #[error(
        "{}: the labels are of other images: shard `{shard}` has {found}\n  \
         hint: label into a new folder, or give the images that these labels were made from",
        folder.display()
    )]
    OtherImages {
        /// Folder of the labels.
        folder: PathBuf,
        /// Shard of the images.
        shard: String,
        /// The difference.
        found: String,
    },
    /// The folder's labels were made with other settings.
    #[error(
        "{}: the labels in this folder were made with other settings: `{key}`: expected {expected}, found {found}\n  \
         hint: label into a new folder, or use the settings of that file",
        path.display()
    )]
    OtherSettings {
        /// The file with the settings.
        path: PathBuf,
        /// Which setting.
        key: String,
        /// Its value in the folder.
        expected: String,
        /// Its value in this run.
        found: String,
    },
    /// There is nothing to work on.
    #[error("{place}: expected {expected}, found none")]
    Empty {
        /// Where.
        place: String,
        /// What was looked for.
        expected: &'static str,
    },
    /// The network returned an unexpected result, or the device failed.
    #[error("{place}: expected {expected}, found {found}")]
    Network {
        /// What was computed.
        place: &'static str,
        /// What would be right.
        expected: String,
        /// What came.
        found: String,
    },
    /// A worker thread ended before its work did.
    #[error(
        "a labeling thread stopped unexpectedly; the written shards are complete, and the same command resumes the run"
    )]
    Worker,
}
