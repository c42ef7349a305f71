//! Why a dataset was not written.

use std::io;

use clasp_data::labels::LabelError;
use clasp_data::vocabulary::VocabularyError;

/// Why a dataset was not written.
#[derive(Debug, thiserror::Error)]
pub enum SynthError {
    /// A file could not be written or read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The label store of the ground truth could not be written.
    #[error(transparent)]
    Labels(#[from] LabelError),
    /// The built-in vocabulary cannot be read.
    #[error(transparent)]
    Vocabulary(#[from] VocabularyError),
    /// A setting out of range.
    #[error("`{field}`: expected {expected}, found {found}")]
    Setting {
        /// Name of the setting.
        field: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        found: usize,
    },
    /// The folder holds a dataset with other settings.
    #[error(
        "`{folder}` holds synthetic people with other settings ({found})\nhint: choose another folder, or remove this one"
    )]
    OtherSettings {
        /// The folder.
        folder: String,
        /// Its settings.
        found: String,
    },
    /// `synth.json` is not what this program writes.
    #[error("`{file}` cannot be read: {reason}\nhint: choose another folder")]
    DatasetManifest {
        /// The file.
        file: String,
        /// What is wrong.
        reason: String,
    },
}
