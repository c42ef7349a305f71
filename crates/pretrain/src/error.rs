//! What can go wrong while pre-training, said so that it can be put right.

use std::io;
use std::path::PathBuf;

use clasp_data::augment::ViewsError;
use clasp_data::labels::LabelError;
use clasp_data::source::SourceError;
use clasp_model::ModelError;
use clasp_run::{RecipeError, Setting};
use clasp_weights::WeightsError;

/// `Result` of this crate.
pub type Result<T, E = PretrainError> = std::result::Result<T, E>;

/// Errors of pre-training.
#[derive(Debug, thiserror::Error)]
pub enum PretrainError {
    /// A recipe cannot be read.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A value of a recipe is out of range, or two values contradict each other.
    #[error(transparent)]
    Setting(#[from] Setting),
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
    /// A network cannot be made.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Weights cannot be read or written.
    #[error(transparent)]
    Weights(#[from] WeightsError),
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
        "method `{method}` learns from labels, and the recipe names none\n  \
         hint: make them with `clasp label` and set `data.labels`, or use `--set method=\"dino\"`"
    )]
    NeedsLabels {
        /// Method of the recipe.
        method: &'static str,
    },
    /// Some images have no labels.
    #[error(
        "{labels}: {missing} of {total} images have no labels, the first is `{example}`\n  \
         hint: finish `clasp label` on these images, or leave them out with `--set data.missing=\"skip\"`"
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
        "{labels}: made for other images: none of the {total} images is in it\n  \
         an image is called `{image}`, a label `{label}`\n  \
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
        /// Who needs it.
        expected_from: String,
        /// Digest of the labels.
        found: String,
    },
    /// Too many images cannot be read.
    #[error(
        "{failed} of {tried} images could not be read, more than 5 %; the first is `{example}`\n  \
         hint: all are listed in {list}; `--set data.keep_going=true` trains on the rest"
    )]
    Unreadable {
        /// Images that failed.
        failed: usize,
        /// Images that were tried.
        tried: usize,
        /// The first of them, and why.
        example: String,
        /// Where they are listed.
        list: PathBuf,
    },
    /// A new run would overwrite an old one.
    #[error(
        "{folder}: holds a run already\n  hint: go on with `--resume {folder}`, or choose another folder with `--out`"
    )]
    RunExists {
        /// Folder of the run.
        folder: PathBuf,
    },
    /// There is nothing to go on from.
    #[error("{folder}: expected a run with a checkpoint, found {found}")]
    NothingToResume {
        /// Folder of the run.
        folder: PathBuf,
        /// What is there.
        found: String,
    },
    /// A checkpoint does not fit the recipe.
    #[error("{path}: `{what}`: expected {expected}, found {found}{}", hint_line(.hint))]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// Recipe key or tensor.
        what: String,
        /// What the recipe asks for.
        expected: String,
        /// What the file holds.
        found: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A checkpoint could not be written.
    #[error("{path}: the checkpoint of step {step} could not be written: {reason}\n  {}", kept_line(.kept))]
    Save {
        /// The file.
        path: PathBuf,
        /// Step that it was to hold.
        step: u64,
        /// What the system says.
        reason: String,
        /// The last good checkpoint.
        kept: Option<PathBuf>,
    },
    /// A loss or the norm of the gradients is infinite or not a number.
    #[error(
        "step {step}: the {term} is {value}; the run has stopped and the last good checkpoint is kept\n  \
         the images of the batch are listed in {keys}\n  \
         hint: lower `optimiser.lr`, lengthen `optimiser.warmup_epochs`, or look at those images"
    )]
    NonFinite {
        /// Step that failed.
        step: u64,
        /// What it is.
        term: String,
        /// Its value.
        value: f64,
        /// File with the keys of the images.
        keys: PathBuf,
    },
    /// A worker thread could not be started.
    #[error("cannot start a worker thread: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

fn hint_line(hint: &Option<String>) -> String {
    hint.as_ref()
        .map(|hint| format!("\n  hint: {hint}"))
        .unwrap_or_default()
}

fn kept_line(kept: &Option<PathBuf>) -> String {
    match kept {
        Some(path) => format!(
            "the last good one is {}; free some space and resume the run",
            path.display()
        ),
        None => "no earlier checkpoint exists; free some space and start again".to_owned(),
    }
}
