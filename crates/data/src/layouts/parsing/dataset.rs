//! Images with a class for each pixel.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::mask::{IGNORE, LabelMap, read_label_map};
use crate::layouts::sides::Sides;
use crate::layouts::{LayoutError, distinct, in_split};

/// An image and its mask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaskedImage {
    /// The image.
    pub image: PathBuf,
    /// Its name in the table, else the file's name.
    pub name: String,
    /// Its label map.
    pub mask: PathBuf,
    /// Name of its split.
    pub split: String,
}

/// A table of label maps.
#[derive(Debug, Clone)]
pub struct ParsingDataset {
    /// Name of the layout.
    pub layout: &'static str,
    /// The table's file, or the folder of a layout without one.
    pub file: PathBuf,
    /// Names of the classes; class 0 is the background.
    pub classes: Vec<String>,
    /// Rows in the order of the file.
    pub images: Vec<MaskedImage>,
    /// Names of the labels in the mask files.
    pub(super) stored: Vec<String>,
    /// Maps them to the classes, where these are others.
    pub(super) relabel: Option<Relabel>,
}

/// Maps the stored labels of a mask to classes or the ignore index, given its width and the names
/// of the labels.
pub type Relabel = fn(&[u8], usize, &[String]) -> Vec<u8>;

impl ParsingDataset {
    /// The same images with other classes, made of the stored labels by `relabel`: for example
    /// [`crate::layouts::ccp::ccp_parts`] for the parts of the body in CCP.
    ///
    /// # Panics
    /// If there is no class or more than 255.
    pub fn relabeled(self, classes: &[&str], relabel: Relabel) -> Self {
        assert!(
            (1..=usize::from(IGNORE)).contains(&classes.len()),
            "1 to 255 classes, found {}",
            classes.len()
        );
        Self {
            classes: classes.iter().map(|class| (*class).to_owned()).collect(),
            relabel: Some(relabel),
            ..self
        }
    }

    /// Classes that swap in a mirrored image, and those with a side but no counterpart.
    pub fn sides(&self) -> Sides {
        Sides::among(&self.classes)
    }

    /// Names of the splits, in the order of the file.
    pub fn splits(&self) -> Vec<String> {
        distinct(self.images.iter().map(|image| image.split.as_str()))
    }

    /// The images of a split.
    ///
    /// # Errors
    /// If there is none.
    pub fn split(&self, name: &str) -> Result<Vec<&MaskedImage>, LayoutError> {
        in_split(&self.file, &self.images, |image| &image.split, name)
    }

    /// Reads a mask; its labels are classes of this dataset, or 255.
    ///
    /// # Errors
    /// If it is no mask of the form above, or holds a label without a name.
    pub fn read_mask(&self, path: &Path) -> Result<LabelMap, LayoutError> {
        let mut map = read_label_map(path)?;
        let (width, names) = (map.width, self.stored.len());
        let nameless = |label: &u8| *label != IGNORE && usize::from(*label) >= names;
        if let Some(pixel) = map.labels.iter().position(nameless) {
            let (label, row, column) = (map.labels[pixel], pixel / width, pixel % width);
            return Err(LayoutError::File {
                file: path.display().to_string(),
                expected: format!("labels below {names} or 255"),
                found: format!("{label} at row {row}, column {column}"),
            });
        }
        if let Some(relabel) = self.relabel {
            map.labels = relabel(&map.labels, width, &self.stored);
        }
        Ok(map)
    }

    /// Classes without a pixel in `images`, ignoring masks that cannot be read; stops once all
    /// classes occurred.
    pub fn absent(&self, images: &[MaskedImage]) -> Vec<usize> {
        let mut seen = [false; 256];
        for some in images.chunks(64) {
            let masks = some
                .par_iter()
                .filter_map(|image| self.read_mask(&image.mask).ok());
            let present: Vec<[bool; 256]> = masks.map(|map| map.present()).collect();
            for present in present {
                seen.iter_mut()
                    .zip(present)
                    .for_each(|(seen, there)| *seen |= there);
            }
            if seen[..self.classes.len()].iter().all(|seen| *seen) {
                break;
            }
        }
        (0..self.classes.len())
            .filter(|class| !seen[*class])
            .collect()
    }

    /// Pixels of each label of the classes, over a split.
    ///
    /// # Errors
    /// As [`ParsingDataset::split`] and [`ParsingDataset::read_mask`].
    pub fn pixels(&self, split: &str) -> Result<BTreeMap<u8, u64>, LayoutError> {
        let mut counts = BTreeMap::new();
        for image in self.split(split)? {
            for label in self.read_mask(&image.mask)?.labels {
                *counts.entry(label).or_default() += 1;
            }
        }
        Ok(counts)
    }
}
