//! Opening a dataset: the first layout of a task in the registry that a folder has.

use std::path::{Path, PathBuf};

use super::attributes::AttributeDataset;
use super::coco::{BoxDataset, KeypointDataset};
use super::layout::{Layout, LayoutReader};
use super::parsing::{self, ParsingDataset};
use super::registry::LAYOUTS;
use super::reid::{self, MsmtVal, ReidDataset};
use super::search::{GallerySize, SearchDataset};
use super::{LayoutError, find_all, with_splits};

/// The first of `attempts`, a layout each, that finds something, or an error that names all.
fn first<D>(
    folder: &Path,
    what: &'static str,
    attempts: impl Iterator<Item = (&'static Layout, Result<D, LayoutError>)>,
) -> Result<D, LayoutError> {
    let (mut expected, mut tried_all) = (Vec::new(), Vec::new());
    for (layout, attempt) in attempts {
        match attempt {
            Err(LayoutError::NotFound { tried, .. }) => {
                expected.push(format!("{} ({})", layout.signature, layout.name));
                tried_all.extend(tried);
            }
            other => return other,
        }
    }
    Err(LayoutError::NotFound {
        folder: folder.display().to_string(),
        layout: what,
        expected: expected.join("; "),
        tried: tried_all,
    })
}

impl ReidDataset {
    /// Opens the dataset in `path`, in one of the usual folders below it, or of the table `path`;
    /// MSMT17's validation images go into training.
    ///
    /// # Errors
    /// If there is none, or it is invalid.
    pub fn open(path: &Path) -> Result<Self, LayoutError> {
        Self::open_with(path, MsmtVal::default())
    }

    /// The same with a choice for MSMT17's validation images.
    ///
    /// # Errors
    /// As [`ReidDataset::open`].
    pub fn open_with(path: &Path, msmt_val: MsmtVal) -> Result<Self, LayoutError> {
        if path.is_file() {
            return reid::table::read(path);
        }
        let attempts = LAYOUTS.iter().filter_map(|layout| match layout.reader {
            LayoutReader::Reid { find, read } => {
                Some((layout, find(path).and_then(|at| read(at, msmt_val))))
            }
            _ => None,
        });
        first(path, "re-identification data", attempts)
    }
}

impl AttributeDataset {
    /// Opens a file of annotation, or the first in a folder.
    ///
    /// # Errors
    /// If there is none, or it is invalid.
    pub fn open(path: &Path) -> Result<Self, LayoutError> {
        if path.is_file() {
            return Self::read(path);
        }
        let mut files = Self::files(path)?.into_iter();
        let first = files.next().unwrap_or_else(|| path.to_owned());
        let mut data = Self::read(&first)?;
        data.others = files.collect();
        Ok(data)
    }

    /// All files of annotation in a folder; at least one.
    ///
    /// # Errors
    /// [`LayoutError::NotFound`].
    pub fn files(folder: &Path) -> Result<Vec<PathBuf>, LayoutError> {
        let (mut candidates, mut expected) = (Vec::new(), Vec::new());
        for layout in &LAYOUTS {
            if let LayoutReader::Attributes { files, .. } = layout.reader {
                candidates.extend(files());
                expected.push(format!("{} ({})", layout.signature, layout.name));
            }
        }
        find_all(
            folder,
            &candidates,
            "attribute annotation",
            &expected.join("; "),
        )
    }

    /// Reads a file of annotation, of whichever layout.
    ///
    /// # Errors
    /// If it has none of the layouts, or is invalid.
    pub fn read(file: &Path) -> Result<Self, LayoutError> {
        let mut readers = Vec::new();
        for layout in &LAYOUTS {
            if let LayoutReader::Attributes { files, read } = layout.reader {
                // Layouts whose files have this name first: the others need not read it then.
                let is_named = files()
                    .iter()
                    .any(|name| Path::new(name).file_name() == file.file_name());
                readers.push((!is_named, layout.name, read));
            }
        }
        readers.sort_by_key(|(is_other, ..)| *is_other);
        for (_, _, read) in &readers {
            if let Some(data) = read(file)? {
                return Ok(data);
            }
        }
        let names: Vec<&str> = readers.iter().map(|(_, name, _)| *name).collect();
        Err(LayoutError::File {
            file: file.display().to_string(),
            expected: format!("attribute annotation ({})", names.join(", ")),
            found: super::attributes::describe_other(file)?,
        })
    }
}

impl ParsingDataset {
    /// Opens a table with `labels.txt` beside it, or the dataset in a folder.
    ///
    /// # Errors
    /// If there is none, or it is invalid. Masks are read later.
    pub fn open(path: &Path) -> Result<Self, LayoutError> {
        if path.is_file() {
            return parsing::table::read(path.to_owned());
        }
        let attempts = LAYOUTS.iter().filter_map(|layout| match layout.reader {
            LayoutReader::Parsing { find, read } => Some((layout, find(path).and_then(read))),
            _ => None,
        });
        first(path, "label maps", attempts)
    }
}

impl KeypointDataset {
    /// Opens a JSON file, or that of `split` in a folder: `person_keypoints_<split>.json`, also
    /// with `2017` and in `annotations`, `pose` or `keypoints`.
    ///
    /// # Errors
    /// If there is none, or it is invalid.
    pub fn open(path: &Path, split: &str) -> Result<Self, LayoutError> {
        if path.is_file() {
            return Self::read(path);
        }
        let place = |split: &str| {
            let attempts = LAYOUTS.iter().filter_map(|layout| match layout.reader {
                LayoutReader::Keypoints { find, read } => {
                    Some((layout, find(path, split).map(|file| (file, read))))
                }
                _ => None,
            });
            first(path, "keypoints", attempts)
        };
        let found = place(split)
            .map_err(|error| with_splits(error, split, |split| place(split).map(|(file, _)| file)));
        let (file, read) = found?;
        read(&file)
    }
}

impl BoxDataset {
    /// Opens a JSON file, or that of `split` in a folder: `instances_<split>.json`, also with
    /// `2017`, or the names of CityPersons.
    ///
    /// # Errors
    /// If there is none, or it is invalid.
    pub fn open(path: &Path, split: &str) -> Result<Self, LayoutError> {
        if path.is_file() {
            return Self::read(path);
        }
        let place = |split: &str| {
            let attempts = LAYOUTS.iter().filter_map(|layout| match layout.reader {
                LayoutReader::Boxes { find, read } => {
                    Some((layout, find(path, split).map(|file| (file, read))))
                }
                _ => None,
            });
            first(path, "boxes of people", attempts)
        };
        let found = place(split)
            .map_err(|error| with_splits(error, split, |split| place(split).map(|(file, _)| file)));
        let (file, read) = found?;
        read(&file)
    }
}

impl SearchDataset {
    /// Opens the dataset in `folder` or in one of the usual folders below it.
    ///
    /// # Errors
    /// If there is none, or it is invalid.
    pub fn open(folder: &Path, gallery: GallerySize) -> Result<Self, LayoutError> {
        let attempts = LAYOUTS.iter().filter_map(|layout| match layout.reader {
            LayoutReader::Search { find, read } => Some((
                layout,
                find(folder).and_then(|at| read(folder, at, gallery)),
            )),
            _ => None,
        });
        first(folder, "person search data", attempts)
    }
}
