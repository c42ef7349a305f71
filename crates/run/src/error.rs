//! Errors of a training run that do not depend on what is trained.

use std::io;
use std::path::{Path, PathBuf};

use clasp_data::missing::MissingPath;
use clasp_data::text::shell_path;

use crate::check::InvalidValue;
use crate::collective::CollectiveError;
use crate::recipe::RecipeError;

/// An error of a training run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A recipe cannot be read.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A value of a recipe is out of range, or two values contradict each other.
    #[error(transparent)]
    Value(#[from] InvalidValue),
    /// A file of the run folder cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Another process of the training is gone, or has other settings or data.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// A new run would overwrite an existing one.
    #[error(
        "{folder}: expected a folder without a run, found `run.toml` in it\n  \
         hint: continue that run with `--resume {}`, or choose another folder with `--out`",
        shell_path(folder)
    )]
    Exists {
        /// Folder of the run.
        folder: PathBuf,
    },
    /// There is no run to resume.
    #[error(
        "{folder}: expected the folder of a run, found no run.toml in it\n  \
         hint: `clasp runs {}` lists the runs below a folder; without `--resume` a run is started",
        shell_path(folder)
    )]
    NothingToResume {
        /// Folder of the run.
        folder: PathBuf,
    },
    /// The run to resume is of another command.
    #[error(
        "{folder}: expected a run of `clasp {expected}`, found one of `clasp {found}`\n  \
         hint: resume it with `clasp {found} --resume {}`",
        shell_path(folder)
    )]
    OtherCommand {
        /// Folder of the run.
        folder: PathBuf,
        /// The command that was asked for.
        expected: String,
        /// The command of the run.
        found: String,
    },
    /// There is not even a folder to resume.
    #[error(transparent)]
    Missing(#[from] MissingPath),
    /// A checkpoint does not match the run, or is of another kind.
    #[error("{path}: `{what}`: expected {expected}, found {found}{}", hint_line(.hint))]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// Recipe key, metadata field or tensor.
        what: String,
        /// What the run needs.
        expected: String,
        /// What the file holds.
        found: String,
        /// What to do.
        hint: Option<String>,
    },
    /// A checkpoint cannot be read.
    #[error("{reason}\n  hint: {}", earlier_line(.path, .earlier))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why; it names the file.
        reason: String,
        /// The newest checkpoint before it.
        earlier: Option<PathBuf>,
    },
    /// A checkpoint could not be written.
    #[error("{path}: the checkpoint of step {step} could not be written: {reason}\n  {}", kept_line(.kept))]
    NotSaved {
        /// The file.
        path: PathBuf,
        /// Step of the checkpoint.
        step: u64,
        /// Message of the system.
        reason: String,
        /// The newest checkpoint that exists.
        kept: Option<PathBuf>,
    },
    /// A loss or the norm of the gradients is infinite or not a number.
    #[error(
        "step {step}: the {quantity} is {value}; the run has stopped and its last checkpoint is kept\n  \
         the images of the batch are listed in {keys}\n  \
         hint: lower `optimizer.lr`, lengthen `optimizer.warmup_epochs`, or inspect these images"
    )]
    NonFinite {
        /// Step that failed, counted from 1.
        step: u64,
        /// The loss or norm.
        quantity: String,
        /// Its value.
        value: f64,
        /// File with the keys of the images.
        keys: PathBuf,
    },
}

fn hint_line(hint: &Option<String>) -> String {
    hint.as_ref()
        .map(|hint| format!("\n  hint: {hint}"))
        .unwrap_or_default()
}

fn earlier_line(path: &Path, earlier: &Option<PathBuf>) -> String {
    match earlier {
        Some(earlier) => format!(
            "remove {} to resume from {}",
            path.display(),
            earlier.display()
        ),
        None => "there is no earlier checkpoint; start a new run".to_owned(),
    }
}

fn kept_line(kept: &Option<PathBuf>) -> String {
    match kept {
        Some(path) => format!(
            "hint: free some space and resume the run from {}",
            path.display()
        ),
        None => "hint: there is no earlier checkpoint; free some space and start again".to_owned(),
    }
}
