//! Images with attributes.

use std::path::PathBuf;

use crate::layouts::{LayoutError, distinct, in_split};

/// An image and its attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttributeImage {
    /// The file.
    pub path: PathBuf,
    /// Its name in the table.
    pub name: String,
    /// Name of its split.
    pub split: String,
    /// One value per attribute.
    pub values: Vec<bool>,
}

/// A table of attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttributeDataset {
    /// Name of the layout.
    pub layout: &'static str,
    /// The table's file.
    pub file: PathBuf,
    /// Other files of the folder that could be read in its place.
    pub others: Vec<PathBuf>,
    /// Names of the attributes.
    pub names: Vec<String>,
    /// Rows in the order of the file.
    pub images: Vec<AttributeImage>,
}

impl AttributeDataset {
    /// Names of the splits, in the order of the file.
    pub fn splits(&self) -> Vec<String> {
        distinct(self.images.iter().map(|image| image.split.as_str()))
    }

    /// The images of a split; of `trainval`, unless a split has that name, those of train and val.
    ///
    /// # Errors
    /// If there is none.
    pub fn split(&self, name: &str) -> Result<Vec<&AttributeImage>, LayoutError> {
        if name == "trainval" && !self.images.iter().any(|image| image.split == name) {
            return Ok([self.split("train")?, self.split("val")?].concat());
        }
        in_split(&self.file, &self.images, |image| &image.split, name)
    }
}
