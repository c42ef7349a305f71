//! Settings of packing, and its errors.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How `pack` writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PackConfig {
    /// Shards are called `{prefix}-000.tar` and so on.
    pub prefix: String,
    /// Images in a shard; the last one may hold fewer.
    pub images_per_shard: usize,
    /// Taller images are downscaled to JPEGs of this height; others keep their bytes.
    pub max_height: Option<usize>,
    /// JPEG quality of downscaled images, 1 to 100.
    pub quality: u8,
}

impl Default for PackConfig {
    fn default() -> Self {
        PackConfig {
            prefix: "images".to_owned(),
            images_per_shard: 1000,
            max_height: None,
            quality: 92,
        }
    }
}

/// Why packing failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// Shards of that name are there already; mixed with new ones they would be read as one set.
    #[error("`{}` exists\nhint: choose another folder or prefix, or remove it", .0.display())]
    Exists(PathBuf),
    /// An earlier packing, of other images or with other settings.
    #[error(
        "`{}`: {state} packing with another {what}: expected {expected}, found {found}\n  \
         hint: give the same again, remove its shards and this file, or choose another folder",
        .path.display()
    )]
    Other {
        /// The manifest.
        path: PathBuf,
        /// `a finished` or `an unfinished`.
        state: &'static str,
        /// What differs.
        what: &'static str,
        /// The value of this packing.
        expected: String,
        /// The value of the manifest.
        found: String,
    },
    /// A finished packing with a shard that is missing or was changed.
    #[error(
        "`{}`: expected a shard of {expected} bytes, as its manifest says, found {found}\n  \
         hint: remove the shards and their manifest and pack again, or choose another folder",
        .shard.display()
    )]
    Shard {
        /// The shard.
        shard: PathBuf,
        /// Bytes that were written.
        expected: u64,
        /// What is there.
        found: String,
    },
    /// A malformed manifest.
    #[error("`{}`: {reason}\n  hint: remove it and the shards beside it", .path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Invalid settings.
    #[error("{0}")]
    Config(String),
    /// No image of the source can be decoded.
    #[error("none of the {seen} images can be decoded; the first: `{key}`: {reason}")]
    Nothing {
        /// Images tried.
        seen: u64,
        /// Key of the first.
        key: String,
        /// Why it failed.
        reason: String,
    },
    /// The file system failed; the message names the file.
    #[error(transparent)]
    Io(#[from] io::Error),
}
