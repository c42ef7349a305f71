//! Attribute annotation as published files hold it, before it is checked.
//!
//! A label of 2 (RAP: not visible) is read as 0. Images of no split are skipped.

use std::path::{Path, PathBuf};

use super::dataset::{AttributeDataset, AttributeImage};
use crate::layouts::LayoutError;

/// Folders beside a file of annotation, or below them, that may hold its images.
const IMAGE_FOLDERS: [&str; 5] = [
    "data",
    "images",
    "RAP_dataset",
    "release_data/release_data",
    "",
];

/// Splits that an image may be in.
const MOST_SPLITS: usize = 64;

/// What a file holds, before it is checked.
pub(super) struct Annotation {
    pub(super) layout: &'static str,
    pub(super) images: Vec<String>,
    pub(super) names: Vec<String>,
    /// `[images, names]`.
    pub(super) labels: Vec<Vec<f64>>,
    /// Images of each split, from 0.
    pub(super) splits: Vec<(String, Vec<f64>)>,
}

impl Annotation {
    pub(super) fn attributes(self, file: PathBuf) -> Result<AttributeDataset, LayoutError> {
        let error = |entry: String, expected: String, found: String| LayoutError::Entry {
            file: file.display().to_string(),
            entry,
            expected,
            found,
        };
        let count = self.images.len();
        if self.labels.len() != count {
            let found = self.labels.len().to_string();
            return Err(error(
                "labels".into(),
                format!("{count} rows, as many as images"),
                found,
            ));
        }
        let mut folder = file.parent().unwrap_or(Path::new("")).to_owned();
        if folder.ends_with("RAP_annotation") {
            folder.pop();
        }
        // Where no place has the first image, opening it reports the usual one.
        let first = self.images.first().map_or("", String::as_str);
        let place = |name: &&&str| folder.join(name).join(first).is_file();
        let place = IMAGE_FOLDERS
            .iter()
            .find(place)
            .unwrap_or(&IMAGE_FOLDERS[0]);
        // An image may be of several splits, but each time its name and labels are copied.
        let members: usize = self.splits.iter().map(|(_, members)| members.len()).sum();
        if members > count.saturating_mul(MOST_SPLITS) {
            let expected = format!("each image in at most {MOST_SPLITS} of them");
            let found = format!("{members} members for {count} images");
            return Err(error("splits".into(), expected, found));
        }
        let mut images = Vec::new();
        for (split, members) in &self.splits {
            let members = positions(members, count).map_err(|found| {
                let last = count.saturating_sub(1);
                let expected = format!("images 0 to {last}, every image once");
                error(format!("split {split}"), expected, found)
            })?;
            for index in members {
                let row = &self.labels[index];
                let entry = || format!("labels of `{}`", self.images[index]);
                if row.len() != self.names.len() {
                    let expected = format!("{} values", self.names.len());
                    return Err(error(entry(), expected, row.len().to_string()));
                }
                if let Some(odd) = row.iter().find(|value| ![0.0, 1.0, 2.0].contains(*value)) {
                    return Err(error(entry(), "0, 1 or 2".into(), odd.to_string()));
                }
                images.push(AttributeImage {
                    path: folder.join(place).join(&self.images[index]),
                    name: self.images[index].clone(),
                    split: split.clone(),
                    values: row.iter().map(|value| *value == 1.0).collect(),
                });
            }
        }
        Ok(AttributeDataset {
            layout: self.layout,
            file,
            others: Vec::new(),
            names: self.names,
            images,
        })
    }
}

/// Positions below `count`, each once at most; else the number that is none.
pub(super) fn positions(numbers: &[f64], count: usize) -> Result<Vec<usize>, String> {
    let mut known = vec![false; count];
    let position = |number: &f64| {
        let index = *number as usize;
        let is_whole = *number >= 0.0 && number.fract() == 0.0;
        match known.get_mut(index).filter(|_| is_whole) {
            None => Err(number.to_string()),
            // What repeats would take memory for each time.
            Some(known) => match std::mem::replace(known, true) {
                true => Err(format!("{number} twice")),
                false => Ok(index),
            },
        }
    };
    numbers.iter().map(position).collect()
}

/// Paths of files of these names in these folders.
pub(super) fn paths(names: &[&str], folders: &[&str]) -> Vec<String> {
    let in_folders = |name| {
        folders
            .iter()
            .map(move |folder| Path::new(folder).join(name))
    };
    let paths = names.iter().flat_map(in_folders);
    paths.map(|path| path.display().to_string()).collect()
}
