//! Why the server does not start, or stops.

use std::net::SocketAddr;
use std::path::PathBuf;

use clasp_data::labels::LabelError;
use clasp_data::source::SourceError;
use clasp_tasks::TaskError;
use clasp_weights::WeightsError;

/// Why the server does not start, or stops.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A model cannot be loaded, or the gallery cannot be computed.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// A file of weights cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The labels cannot be read.
    #[error(transparent)]
    Labels(#[from] LabelError),
    /// The images of the gallery cannot be found.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Two models for one purpose.
    #[error(
        "--model: expected one {what}, found {first} and {second}\n  hint: leave one out, or start a second server",
        first = .first.display(), second = .second.display()
    )]
    TwoModels {
        /// What both are: `backbone`, `model of task reid`.
        what: String,
        /// The first.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// An address that others reach, without protection.
    #[error(
        "--listen {0}: expected a loopback address such as 127.0.0.1:8080, or --token\n  hint: with --token every request has to carry it; --insecure serves everybody who reaches this address"
    )]
    Unprotected(SocketAddr),
    /// A token that can be guessed.
    #[error(
        "--token: expected at least {least} characters from `!` to `~`, found {found}\n  hint: `openssl rand -hex 16` makes one"
    )]
    Token {
        /// Fewest characters.
        least: usize,
        /// What was found.
        found: String,
    },
    /// Something is needed for another thing.
    #[error("{what}: expected {expected}\n  hint: {hint}")]
    Missing {
        /// The option.
        what: String,
        /// What is missing.
        expected: String,
        /// What to do.
        hint: String,
    },
    /// The file of the gallery does not fit, or is damaged.
    #[error("{file}: expected {expected}, found {found}\n  hint: {hint}")]
    Store {
        /// The file.
        file: String,
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
        /// What to do.
        hint: String,
    },
    /// The address is taken or not of this machine.
    #[error(
        "--listen {address}: {error}\n  hint: choose another address or port; port 0 takes a free one"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        error: std::io::Error,
    },
    /// A file that cannot be read or written; the message names it.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
