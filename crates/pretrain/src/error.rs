//! Errors of pre-training.

use std::io;
use std::path::PathBuf;

use clasp_data::augment::ViewsError;
use clasp_data::labels::LabelError;
use clasp_data::source::SourceError;
use clasp_model::ModelError;
use clasp_run::{CollectiveError, InvalidValue, RecipeError, RunError};
use clasp_weights::WeightsError;

/// `Result` of this crate.
pub type Result<T, E = PretrainError> = std::result::Result<T, E>;

/// Errors of pre-training.
#[derive(Debug, thiserror::Error)]
pub enum PretrainError {
    /// The run folder, the recipe or a checkpoint; a step that is not finite; or another process of
    /// the training.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A value of `[views]` is out of range.
    #[error("recipe: {0}")]
    Views(#[from] ViewsError),
    /// A file cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The images cannot be listed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The labels cannot be read.
    #[error(transparent)]
    Labels(#[from] LabelError),
    /// The configuration of a network is wrong.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Weights cannot be read or written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The file of the frozen teacher is missing, or no backbone.
    #[error("`distillation.teacher`: {0}")]
    Teacher(#[source] WeightsError),
    /// A run is resumed with another frozen teacher.
    #[error(
        "{checkpoint}: expected the run's frozen teacher, SHA-256 {expected}, found {found} in \
         `distillation.teacher` = `{teacher}`\n  \
         hint: give the file that the run began with, or start a new run"
    )]
    OtherTeacher {
        /// The checkpoint.
        checkpoint: PathBuf,
        /// File of the recipe.
        teacher: PathBuf,
        /// Digest that the checkpoint has, or `none`.
        expected: String,
        /// Digest of the file, or `none`.
        found: String,
    },
    /// There are fewer images than a batch holds.
    #[error(
        "`{images}`: expected at least one batch of {batch} images, found {found}\n  \
         hint: give more images or lower `run.batch`"
    )]
    TooFewImages {
        /// Where the images come from.
        images: String,
        /// Images in a batch.
        batch: usize,
        /// Images found.
        found: usize,
    },
    /// The method learns from labels, and the recipe names none.
    #[error(
        "method `{method}` learns from labels: expected a label store in `data.labels`, found none\n  \
         hint: make them with `clasp label` and set `data.labels`, or use `--set method=\"dino\"`"
    )]
    NeedsLabels {
        /// Method of the recipe.
        method: &'static str,
    },
    /// Some images have no labels.
    #[error(
        "{labels}: {missing} of {total} images have no labels, the first is `{example}`\n  \
         hint: finish `clasp label` on these images, or leave them out with `--set data.missing_labels=\"skip\"`"
    )]
    MissingLabels {
        /// Folder of the labels.
        labels: PathBuf,
        /// Images without.
        missing: usize,
        /// Images in all.
        total: usize,
        /// Key of one of them.
        example: String,
    },
    /// No image at all has labels.
    #[error(
        "{labels}: expected labels of these images, found none for any of the {total} images\n  \
         the key of an image is `{image}`, that of a label `{label}`\n  \
         hint: give `clasp label` and `clasp pretrain` the same images in the same way"
    )]
    ForeignLabels {
        /// Folder of the labels.
        labels: PathBuf,
        /// Images in all.
        total: usize,
        /// Key of an image.
        image: String,
        /// Key of a label.
        label: String,
    },
    /// The labels were made with another vocabulary.
    #[error(
        "{labels}: expected labels of vocabulary {expected} ({expected_from}), found {found}\n  \
         hint: label the images again with that vocabulary, or start a new run"
    )]
    OtherVocabulary {
        /// Folder of the labels.
        labels: PathBuf,
        /// Digest that is needed.
        expected: String,
        /// The file that needs it.
        expected_from: String,
        /// Digest of the labels.
        found: String,
    },
    /// Too many images cannot be read.
    #[error(
        "{failed} of {tried} images could not be read, more than 5 %; the first is `{example}`\n  \
         hint: all are listed in {list}; `--set data.skip_unreadable=true` trains on the rest"
    )]
    Unreadable {
        /// Images that failed.
        failed: usize,
        /// Images that were tried.
        tried: usize,
        /// Key and reason of the first.
        example: String,
        /// File that lists them.
        list: PathBuf,
    },
    /// A worker thread could not be started.
    #[error("cannot start a worker thread: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

impl From<CollectiveError> for PretrainError {
    fn from(error: CollectiveError) -> Self {
        RunError::from(error).into()
    }
}

impl From<RecipeError> for PretrainError {
    fn from(error: RecipeError) -> Self {
        RunError::from(error).into()
    }
}

impl From<InvalidValue> for PretrainError {
    fn from(error: InvalidValue) -> Self {
        RunError::from(error).into()
    }
}
