//! The store of pseudo-labels, which `clasp label` writes and pre-training reads.
//!
//! # Format
//!
//! A store is a folder of Parquet files, one for each input shard, that pandas, Polars, DuckDB
//! and Spark read directly. Files are written atomically, so a run that was stopped continues with
//! the shards that have no file, and several workers share a source by writing different shards
//! into one folder.
//!
//! | column | Parquet type | content |
//! |---|---|---|
//! | `key` | string | the image's key in its source |
//! | `width`, `height` | 32-bit integer marked unsigned 16 | size of the image in pixels |
//! | `parts` | fixed binary, rows x columns bytes | part class of each patch position, row by row; 255 is the ignore index |
//! | `part_confidence` | the same | round(255 p), p the probability of the best class |
//! | `attributes` | list of 32-bit floats | one raw logit for each value of the vocabulary, in its order |
//! | `image_sha256` | string | first 16 hexadecimal digits of the image file's SHA-256 ([`image_digest`]) |
//!
//! Parquet has no list of fixed length: each list has as many logits as the vocabulary has
//! values, which writer and reader check.
//!
//! To add a kind of label: its fields, columns and checks in `values`, its row in the table above,
//! and, where it needs metadata of its own, `meta`.
//!
//! Labels may be made and corrected by other programs. Any Parquet file with these columns is read,
//! found by their names: maps as binary or as lists of whole numbers, numbers of any width, columns
//! that allow missing values, further columns, any order, compression, encoding and row groups.
//! What such programs do not keep, the metadata below, stands in `_store.toml` beside the files; a
//! file without a matching digest was edited by another program and is listed in [`Store::edited`].
//! `image_sha256` may be missing or empty: then only the image's size is compared.
//!
//! The file's key-value metadata hold `clasp.format` (`2`),
//! `clasp.shard` (name of the input shard), `clasp.vocabulary` (TOML), `clasp.model`,
//! `clasp.model_sha256`, `clasp.rows`, `clasp.columns`, `clasp.method` (`clip`, `kmeans` or
//! `truth`), `clasp.dense`, `clasp.confidence`, and `clasp.digest`, a SHA-256 over the pages and
//! the metadata above. With the method `truth` (synthetic people) the logits are log-probabilities
//! up to a constant: 0 for the true value, a large negative number for the others, 0 for all values
//! of an attribute that is not known.
//!
//! Pages are not compressed: half of a row is logits, which hardly compress. An image takes about
//! 0.5 kB. What a file claims to hold is compared with its size before anything is allocated by it.
//!
//! `_calibration.json`, beside the files, holds the mean of each logit over all images and the
//! spread and the margins of each attribute ([`Calibration`]). It is a file of its own because it
//! can be known only when all shards are, and may be made again without touching them. Its name
//! begins with `_` because readers of Parquet folders pass over such names.
//!
//! `_corrections.jsonl` holds what people corrected ([`Correction`]); [`Store::open`] applies it.
//!
//! Reading a store in Python:
//!
//! ```python
//! frame = pandas.read_parquet("labels/")           # every shard
//! parts = numpy.frombuffer(frame.parts[0], numpy.uint8).reshape(rows, columns)
//! ```

mod calibration;
mod columns;
mod corrections;
mod error;
mod file_names;
mod meta;
mod row;
mod shard;
mod store;
#[cfg(test)]
mod tests;
mod values;

pub use calibration::{
    AttributeConfig, AttributeConfigError, AttributeRule, AttributeTargets, Calibration,
    GroupWeights, largest,
};
pub use corrections::{CorrectedAttribute, Correction, CorrectionCounts, PartCorrection};
pub use error::LabelError;
pub use file_names::shard_file;
pub use meta::{METHOD_TRUTH, StoreMeta};
pub use row::{LabelRef, Labels, image_digest};
pub use store::{Store, finished_shards, read_shard, shard_keys, write_shard};
pub use values::{GridLabels, LabelValues, LabelValuesRef, ViewLabels};
