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

/// The same of part I of N of the images.
pub fn open_part(
    specs: &[impl AsRef<str>],
    keep_going: bool,
    part: Option<(usize, usize)>,
) -> Result<Source> {
    let source = open_images(specs, keep_going)?;
    Ok(match part {
        Some((index, count)) => source.part(index, count),
        None => source,
    })
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
