//! What can go wrong with weights on disk or on the way to it.

use std::path::{Path, PathBuf};

use clasp_data::missing::MissingPath;

/// Errors of this crate. Each names the file and, where there is one, the tensor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The file system refused; the message names the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A file that is not what its name says.
    #[error("{}: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Tensors that the model needs and the file lacks, or the other way round.
    #[error("{}: {report}", path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// Matched, missing and unexpected keys.
        report: String,
    },
    /// A configuration that asks for something that this program's CLIP does not have.
    #[error("{}: `{field}` is {found}; expected {expected}", path.display())]
    Config {
        /// The configuration file.
        path: PathBuf,
        /// The field, as a path.
        field: String,
        /// Its value.
        found: String,
        /// What would be accepted.
        expected: String,
    },
    /// A backbone that another program's names have no place for.
    #[error("{what} has no place in {names} names: {lost}\nhint: {hint}")]
    Export {
        /// What has no place.
        what: String,
        /// Whose names.
        names: String,
        /// What that means.
        lost: String,
        /// What to do.
        hint: String,
    },
    /// A backbone whose configuration or parameters are not in order.
    #[error(transparent)]
    Model(#[from] clasp_model::ModelError),
    /// A network that could not be exported as ONNX.
    #[error(transparent)]
    Onnx(crate::onnx::error::OnnxError),
    /// There is nothing at the path.
    #[error(transparent)]
    Missing(#[from] MissingPath),
    /// Neither a folder with a model nor the name of one that could be fetched.
    #[error("{what}\nhint: {hint}")]
    NotFound {
        /// What was looked for and where.
        what: String,
        /// What to do.
        hint: String,
    },
}

impl WeightsError {
    /// What was `expected` at a path is not there; `hint` says where it comes from.
    pub(crate) fn not_at(path: &Path, expected: &str, hint: &str) -> Self {
        match path.exists() {
            false => MissingPath::new(path, expected).or_hint(hint).into(),
            true => Self::NotFound {
                what: format!("{}: expected {expected}, found none", path.display()),
                hint: hint.to_owned(),
            },
        }
    }

    pub(crate) fn format(path: &Path, problem: impl ToString) -> Self {
        Self::Format {
            path: path.to_owned(),
            problem: problem.to_string(),
        }
    }

    pub(crate) fn config(
        path: &Path,
        field: impl ToString,
        found: impl ToString,
        expected: impl ToString,
    ) -> Self {
        Self::Config {
            path: path.to_owned(),
            field: field.to_string(),
            found: found.to_string(),
            expected: expected.to_string(),
        }
    }
}
