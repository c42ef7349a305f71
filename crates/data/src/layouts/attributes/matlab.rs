//! Attribute annotation in MATLAB files.

use std::path::Path;

use super::annotation::Annotation;
use super::dataset::AttributeDataset;
use crate::layouts::{LayoutError, in_file, read_mat};
use crate::mat::{Array, MatError, MatFile};

/// Reads a MATLAB file that has a variable; none where it is another kind of file or has no such
/// variable.
pub(super) fn read(
    file: &Path,
    variable: &str,
    parse: fn(&MatFile) -> Result<Annotation, MatError>,
) -> Result<Option<AttributeDataset>, LayoutError> {
    if file.extension().is_none_or(|extension| extension != "mat") {
        return Ok(None);
    }
    let mat = read_mat(file)?;
    if !mat.variables().any(|(name, _)| name == variable) {
        return Ok(None);
    }
    let annotation = parse(&mat).map_err(in_file(file))?;
    annotation.attributes(file.to_owned()).map(Some)
}

/// The content of a file that no layout reads, for an error message.
pub(crate) fn describe_other(file: &Path) -> Result<String, LayoutError> {
    if file.extension().is_none_or(|extension| extension != "mat") {
        return Ok("a file of another kind".to_owned());
    }
    let mat = read_mat(file)?;
    let names: Vec<String> = mat.variables().map(|(name, _)| name).collect();
    Ok(format!("variables `{}`", names.join("`, `")))
}

/// Train, validation and test images of the first of several splits, counted from 1 in the file.
pub(super) fn first_split(cells: Array) -> Result<Vec<(String, Vec<f64>)>, MatError> {
    let first = cells.cells()?.next().unwrap_or_else(|| {
        Err(MatError {
            place: "splits".to_owned(),
            expected: "at least one".to_owned(),
            found: "none".to_owned(),
        })
    })?;
    let record = first.record()?;
    { ["train", "val", "test"].into_iter().enumerate() }
        .map(|(i, name)| {
            let members = record.at(i)?.numbers()?;
            Ok((
                name.to_owned(),
                members.iter().map(|from_one| from_one - 1.0).collect(),
            ))
        })
        .collect()
}

pub(super) fn texts(cells: Array) -> Result<Vec<String>, MatError> {
    cells.cells()?.map(|cell| cell?.text()).collect()
}

pub(super) fn rows(matrix: Array) -> Result<Vec<Vec<f64>>, MatError> {
    let ([count, columns], values) = (matrix.shape(), matrix.numbers()?);
    // Without columns the number of rows says nothing of what there is.
    if count > values.len() {
        return Err(MatError {
            place: "a matrix of labels".to_owned(),
            expected: "a column for each attribute".to_owned(),
            found: format!("{count} rows of {columns} columns"),
        });
    }
    let row = |r| values.iter().skip(r).step_by(count).copied().collect();
    Ok((0..count).map(row).collect())
}
