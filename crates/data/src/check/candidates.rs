//! The datasets that a folder may hold, by the registry of layouts.

use std::path::{Path, PathBuf};

use super::datasets;
use super::report::LayoutCheck;
use crate::layouts::attributes::AttributeDataset;
use crate::layouts::layout::LayoutReader;
use crate::layouts::registry::LAYOUTS;
use crate::layouts::reid::MsmtVal;
use crate::layouts::search::GallerySize;
use crate::layouts::{LayoutError, TriedPath};

const SPLITS: [&str; 3] = ["train", "val", "test"];

/// What may be a dataset.
pub(super) struct DatasetCandidate {
    /// Name of its layout.
    pub(super) name: &'static str,
    /// Its file or folder.
    pub(super) place: PathBuf,
    /// Reads and checks it.
    pub(super) check: Box<dyn FnOnce() -> Result<LayoutCheck, LayoutError>>,
}

/// What may be datasets in a folder, and the paths where none is.
pub(super) struct Candidates {
    folder: PathBuf,
    pub(super) found: Vec<DatasetCandidate>,
    pub(super) tried: Vec<TriedPath>,
}

impl Candidates {
    /// Those of a folder. All are located first, as reading some takes long.
    pub(super) fn of(folder: &Path) -> Self {
        let mut all = Self {
            folder: folder.to_owned(),
            found: Vec::new(),
            tried: Vec::new(),
        };
        let mut has_attributes = false;
        for layout in &LAYOUTS {
            let name = layout.name;
            match layout.reader {
                LayoutReader::Reid { find, read } => all.add(name, find(folder), move |root| {
                    datasets::reid(read(root, MsmtVal::Holdout)?)
                }),
                // All layouts at once: which of them a file has is known when it is read.
                LayoutReader::Attributes { .. } => {
                    if !has_attributes {
                        all.add_attributes(folder);
                    }
                    has_attributes = true;
                }
                LayoutReader::Parsing { find, read } => {
                    all.add(name, find(folder), move |at| datasets::parsing(&read(at)?))
                }
                LayoutReader::Search { find, read } => {
                    let root = folder.to_owned();
                    all.add(name, find(folder), move |at| {
                        let is_json = at.extension().is_some_and(|extension| extension == "json");
                        match read(&root, at.clone(), GallerySize::Frames(50)) {
                            // Errors of a JSON file are reported where it is checked as boxes.
                            Err(LayoutError::Json { .. } | LayoutError::Entry { .. })
                                if is_json =>
                            {
                                Err(not_found(name, &at))
                            }
                            data => datasets::search(data?),
                        }
                    });
                }
                LayoutReader::Keypoints { find, read } => {
                    for split in SPLITS {
                        all.add(name, find(folder, split), move |file| {
                            Ok(datasets::keypoints(read(&file)?, &file, split))
                        });
                    }
                }
                LayoutReader::Boxes { find, read } => {
                    for split in SPLITS {
                        all.add(name, find(folder, split), move |file| {
                            Ok(datasets::boxes(read(&file)?, &file, split))
                        });
                    }
                }
            }
        }
        all
    }

    fn add(
        &mut self,
        name: &'static str,
        place: Result<PathBuf, LayoutError>,
        check: impl FnOnce(PathBuf) -> Result<LayoutCheck, LayoutError> + 'static,
    ) {
        match place {
            Ok(place) => self.found.push(DatasetCandidate {
                name,
                check: Box::new({
                    let place = place.clone();
                    move || check(place)
                }),
                place,
            }),
            Err(error) => self.fail(name, error),
        }
    }

    fn add_attributes(&mut self, folder: &Path) {
        const NAME: &str = "attribute annotation";
        match AttributeDataset::files(folder) {
            Ok(files) => {
                // The first is read where the folder is given.
                let first = files.first().cloned();
                for file in files {
                    let first = first.clone().filter(|first| *first != file);
                    self.add(NAME, Ok(file), move |file| {
                        datasets::attributes(AttributeDataset::read(&file)?, first)
                    });
                }
            }
            Err(error) => self.fail(NAME, error),
        }
    }

    fn fail(&mut self, name: &'static str, error: LayoutError) {
        match error.missing() {
            Ok(tried) => self.tried.extend(tried),
            Err(error) => self.found.push(DatasetCandidate {
                name,
                place: self.folder.clone(),
                check: Box::new(move || Err(error)),
            }),
        }
    }
}

/// A file that turns out to have another layout.
fn not_found(layout: &'static str, file: &Path) -> LayoutError {
    LayoutError::NotFound {
        folder: file.parent().unwrap_or(Path::new("")).display().to_string(),
        layout,
        expected: String::new(),
        tried: vec![file.to_owned().into()],
    }
}
