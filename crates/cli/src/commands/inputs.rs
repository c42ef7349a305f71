//! Images and datasets that commands read.

use std::path::Path;

use anyhow::Result;
use clasp_data::missing::require;
use clasp_data::source::Source;

use crate::progress::warn;

/// The images that `specs` name, after notes about skipped files; with `keep_going` the intact
/// images of damaged tar and Parquet files are used.
///
/// # Errors
///
/// There is no image, or a source cannot be read.
pub fn open_images(specs: &[impl AsRef<str>], keep_going: bool) -> Result<Source> {
    let source = Source::open_several(specs, keep_going)?;
    source.damage().iter().for_each(|damage| warn(damage));
    source
        .skipped()
        .describe()
        .iter()
        .for_each(|line| warn(line));
    Ok(source)
}

/// The part of the images that `--shard` asks for: all without it.
pub fn part_of(images: &Source, shard: Option<(usize, usize)>) -> Source {
    match shard {
        Some((index, count)) => images.part(index, count),
        None => images.clone(),
    }
}

/// Checks that there is a dataset's folder or file.
pub fn check_data(path: &Path) -> Result<()> {
    Ok(require(path, "the folder of a dataset")?)
}

/// Several arguments as one JSON value: a text for a single one.
pub fn one_or_all(specs: &[String]) -> serde_json::Value {
    match specs {
        [one] => one.clone().into(),
        all => all.to_vec().into(),
    }
}
