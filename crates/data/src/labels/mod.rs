//! The store of pseudo-labels: what labelling writes and pre-training reads.
//!
//! # Format
//!
//! A store is a folder of Parquet files, one for each input shard, that pandas, Polars, DuckDB
//! and Spark read as they are. A file appears whole or not at all, so the files that are there
//! tell a run that was stopped what is left to do, and several workers share a corpus by
//! writing different shards into one folder.
//!
//! | column | Parquet type | content |
//! |---|---|---|
//! | `key` | string | the image's key in its source |
//! | `width`, `height` | 32-bit integer marked unsigned 16 | size of the image in pixels |
//! | `parts` | fixed binary, rows x columns bytes | part class of each cell, row by row; 255 = not sure |
//! | `part_confidence` | the same | round(255 p), p the probability of the best class |
//! | `attributes` | list of 32-bit floats | one raw logit for each value of the vocabulary, in its order |
//! | `image_sha256` | string | first 16 hexadecimal digits of the image file's SHA-256 ([`image_digest`]) |
//!
//! Parquet has no list of fixed length: each list has as many logits as the vocabulary has
//! values, which writer and reader check.
//!
//! Labels may be made and corrected by other programs. Any Parquet file with these columns is read,
//! found by their names: maps as binary or as lists of whole numbers, numbers of any width, columns
//! that allow missing values, further columns, any order, compression, encoding and row groups. What
//! such programs do not keep, the metadata below, stands in `_store.toml` beside the files; a file
//! whose digest is missing or does not fit is one that was edited, which [`Store::edited`] tells.
//! `image_sha256` may be missing or empty: then only the image's size is compared.
//!
//! The file's key-value metadata hold `clasp.format` (`2`; `1` has no `image_sha256`), `clasp.shard` (name of the input
//! shard), `clasp.vocabulary` (TOML), `clasp.model`, `clasp.model_sha256`, `clasp.rows`,
//! `clasp.columns`, `clasp.method` (`clip`, `kmeans` or `truth`), `clasp.dense`,
//! `clasp.confidence`, and `clasp.digest`, a SHA-256 over the pages and the metadata above. With the method `truth` (drawn people) the logits are
//! log-probabilities up to a constant: 0 for the true value, a large negative number for the
//! others, 0 for all values of an attribute that is not known.
//!
//! Pages are not compressed: half of a row is logits, which hardly compress. An image takes about
//! 0.5 kB. What a file claims to hold is compared with its size before anything is allocated by it.
//!
//! `_calibration.json`, beside the files, holds the mean of each logit over the corpus and the
//! spread and the margins of each attribute ([`Calibration`]). It is a file of its own because it
//! can be known only when all shards are, and may be made again without touching them. Its name begins with `_` because
//! readers of Parquet folders pass over such names.
//!
//! Reading a store in Python:
//!
//! ```python
//! frame = pandas.read_parquet("labels/")           # every shard
//! parts = numpy.frombuffer(frame.parts[0], numpy.uint8).reshape(rows, columns)
//! ```

mod calibration;
mod pages;
mod shard;
mod store;

use std::path::{Path, PathBuf};

pub use calibration::{
    AttributeConfig, AttributeConfigError, AttributeRule, AttributeTargets, Calibration,
    GroupWeights,
};
pub use store::{
    LabelRef, Store, finished_shards, image_digest, read_shard, shard_file, shard_keys, write_shard,
};

use crate::vocabulary::{IGNORE, Vocabulary};

/// [`StoreMeta::method`] of a store that holds what is true of drawn people.
pub const METHOD_TRUTH: &str = "truth";

/// Most cells of a label grid; bounds what a file can claim.
const MOST_CELLS: usize = 1 << 16;

/// The pseudo-labels of one image.
#[derive(Clone, Debug, PartialEq)]
pub struct Labels {
    /// The image's key in its source.
    pub key: String,
    /// Width of the image in pixels.
    pub width: u16,
    /// Height of the image in pixels.
    pub height: u16,
    /// Part class of each cell: `[rows, columns]`, 255 where the labeller is not sure.
    pub parts: Vec<u8>,
    /// round(255 p) of the best class of each cell: `[rows, columns]`.
    pub part_confidence: Vec<u8>,
    /// Raw logits, one for each value of the vocabulary.
    pub attributes: Vec<f32>,
    /// [`image_digest`] of the file that was labelled; empty where it is not known.
    pub image_sha256: String,
}

impl Labels {
    /// A view of these labels.
    pub fn view(&self) -> LabelRef<'_> {
        LabelRef {
            key: &self.key,
            width: self.width,
            height: self.height,
            parts: &self.parts,
            part_confidence: &self.part_confidence,
            attributes: &self.attributes,
            image_sha256: &self.image_sha256,
        }
    }
}

/// What all labels of a store share. Shards that differ in any of it cannot be in one store.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreMeta {
    /// What was asked.
    pub vocabulary: Vocabulary,
    /// Name of the model that answered.
    pub model: String,
    /// SHA-256 of the model's weights, in hex.
    pub model_sha256: String,
    /// Rows of the label grid.
    pub rows: usize,
    /// Columns of the label grid.
    pub columns: usize,
    /// `clip`, `kmeans` or [`METHOD_TRUTH`].
    pub method: String,
    /// How dense features were taken: `clear`, `mask` or `self`; empty without CLIP.
    pub dense: String,
    /// Cells whose best probability lies below are 255.
    pub confidence: f32,
}

impl StoreMeta {
    /// Cells of the label grid.
    pub fn cells(&self) -> usize {
        self.rows * self.columns
    }

    /// Whether labels of `path` were made as these, of `first`.
    fn check_same(&self, first: &Path, other: &Self, path: &Path) -> Result<(), LabelError> {
        match self.difference(other) {
            None => Ok(()),
            Some((field, expected, found)) => Err(LabelError::Conflict {
                path: path.to_owned(),
                first: first.to_owned(),
                field,
                expected,
                found,
            }),
        }
    }

    /// Name of the first field in which two stores differ, with both values.
    fn difference(&self, other: &Self) -> Option<(&'static str, String, String)> {
        let words = |meta: &Self| {
            let v = &meta.vocabulary;
            let digest = v.digest();
            let short = digest.get(..12).unwrap_or(&digest).to_owned();
            format!(
                "{} parts, {} attribute values, digest {short}",
                v.parts.len(),
                v.logits()
            )
        };
        let fields: [(&'static str, fn(&Self) -> String); 6] = [
            ("model", |m| m.model.clone()),
            ("model SHA-256", |m| m.model_sha256.clone()),
            ("label grid", |m| {
                format!("{} rows x {} columns", m.rows, m.columns)
            }),
            ("method", |m| m.method.clone()),
            ("dense features", |m| m.dense.clone()),
            ("confidence", |m| m.confidence.to_string()),
        ];
        if self.vocabulary != other.vocabulary {
            return Some(("vocabulary", words(self), words(other)));
        }
        fields.into_iter().find_map(|(name, field)| {
            let (mine, others) = (field(self), field(other));
            (mine != others).then_some((name, mine, others))
        })
    }

    /// Checks what the types do not hold: a vocabulary that holds together, a grid of a possible
    /// size, a confidence within 0 to 1.
    fn fault(&self) -> Option<String> {
        if let Err(error) = self.vocabulary.check("vocabulary") {
            return Some(error.to_string());
        }
        let most = MOST_CELLS;
        let cells = self.rows.saturating_mul(self.columns);
        if cells == 0 || cells > most {
            return Some(format!(
                "label grid: expected 1 to {most} cells, found {} rows x {} columns",
                self.rows, self.columns
            ));
        }
        if !(0.0..=1.0).contains(&self.confidence) {
            return Some(format!(
                "confidence: expected 0 to 1, found {}",
                self.confidence
            ));
        }
        None
    }

    /// Checks one row against the grid and the vocabulary; names the field that does not fit.
    fn row_fault(&self, row: &LabelRef<'_>) -> Option<String> {
        let (cells, logits, classes) = (
            self.cells(),
            self.vocabulary.logits(),
            self.vocabulary.parts.len(),
        );
        if row.key.is_empty() {
            return Some("key: expected a name, found an empty string".into());
        }
        if row.width == 0 || row.height == 0 {
            return Some(format!(
                "size: expected at least 1x1, found {}x{}",
                row.width, row.height
            ));
        }
        for (name, found) in [
            ("parts", row.parts.len()),
            ("part_confidence", row.part_confidence.len()),
        ] {
            if found != cells {
                return Some(format!(
                    "{name}: expected {cells} cells ({} rows x {} columns), found {found}",
                    self.rows, self.columns
                ));
            }
        }
        if row.attributes.len() != logits {
            return Some(format!(
                "attributes: expected {logits} logits, found {}",
                row.attributes.len()
            ));
        }
        if let Some(part) = row
            .parts
            .iter()
            .find(|&&part| part != IGNORE && usize::from(part) >= classes)
        {
            return Some(format!(
                "parts: expected classes 0 to {} or {IGNORE}, found {part}",
                classes - 1
            ));
        }
        if let Some(logit) = row.attributes.iter().find(|logit| !logit.is_finite()) {
            return Some(format!("attributes: expected finite logits, found {logit}"));
        }
        None
    }
}

/// Why labels cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    /// The file system refused; the source names the file.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A folder without label files.
    #[error("{}: no label files (*.parquet) here\nhint: `clasp label IMAGES --out {}` makes them", folder.display(), folder.display())]
    Empty {
        /// The folder.
        folder: PathBuf,
    },
    /// A file that is damaged, or was not written by `clasp label`.
    #[error(
        "{}: not a label file that can be read: {problem}\n  \
         hint: mend it (docs/formats.md has the columns), or delete it and label again; the other shards are kept",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Labels, or their metadata, that do not hold together: nothing was written.
    #[error("labels of {key:?} in shard {shard:?}: {problem}")]
    Invalid {
        /// Name of the input shard.
        shard: String,
        /// The image's key, empty for the metadata.
        key: String,
        /// The field, what is expected and what was found.
        problem: String,
    },
    /// Shards of one folder that were made in different ways.
    #[error("{}: {field} differs from {}: expected {expected}, found {found}\nhint: a store has one vocabulary, model and grid; give each labelling its own folder", path.display(), first.display())]
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
    /// An image that is labelled twice.
    #[error("key {key:?} is in {} and in {}\nhint: were the shards labelled again under other names? keep one of the files", first.display(), second.display())]
    Duplicate {
        /// The image's key.
        key: String,
        /// The file that has it first.
        first: PathBuf,
        /// The file that has it again.
        second: PathBuf,
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
    fn damaged(path: &Path, problem: impl ToString) -> Self {
        Self::Damaged {
            path: path.to_owned(),
            problem: problem.to_string(),
        }
    }
}

#[cfg(test)]
mod tests;
