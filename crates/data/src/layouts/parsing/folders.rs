//! Published folders of images and masks, without a table.
//!
//! Where a list of ids is missing every mask of the folder counts; where no list says what is for
//! validation, every tenth mask is (our choice). Folders with other classes than the published ones
//! have a `labels.txt` beside them, one name a line.

use std::path::{Path, PathBuf};

use fs_err as fs;

use super::dataset::{MaskedImage, ParsingDataset};
use crate::layouts::LayoutError;
use crate::layouts::layout::Layout;
use crate::source::is_hidden;

/// Where images and masks of each split lie.
pub(super) struct MaskFolders {
    /// The usual folders below the one given.
    pub(super) roots: &'static [&'static str],
    /// Image folder, mask folder, list of ids and split; the places of one split one after the
    /// other. A place without list and split is for data without splits.
    pub(super) places: &'static [[&'static str; 4]],
    /// Whether one folder holds several splits, so that one without a list is skipped.
    pub(super) needs_lists: bool,
}

impl MaskFolders {
    /// The first root that has images with masks.
    pub(super) fn find(&self, folder: &Path, layout: &Layout) -> Result<PathBuf, LayoutError> {
        let mut tried = Vec::new();
        for root in self.roots {
            let root = match *root {
                "" => folder.to_owned(),
                root => folder.join(root),
            };
            if !self.images(&root)?.is_empty() {
                return Ok(root);
            }
            tried.push(root.join(self.places[0][1]).into());
        }
        Err(LayoutError::NotFound {
            folder: folder.display().to_string(),
            layout: layout.name,
            expected: layout.signature.to_owned(),
            tried,
        })
    }

    /// Reads the folder `root`; `classes` gives the classes where it has no `labels.txt`.
    pub(super) fn read(
        &self,
        root: PathBuf,
        layout: &Layout,
        classes: impl FnOnce(&Path) -> Result<Vec<String>, LayoutError>,
    ) -> Result<ParsingDataset, LayoutError> {
        let labels = root.join("labels.txt");
        let classes = if labels.is_file() {
            let text = crate::text::read_text(&labels)?;
            text.lines().map(|line| line.trim().to_owned()).collect()
        } else {
            classes(&root)?
        };
        Ok(ParsingDataset {
            layout: layout.name,
            stored: classes.clone(),
            classes,
            images: self.images(&root)?,
            file: root,
            relabel: None,
        })
    }

    fn images(&self, root: &Path) -> Result<Vec<MaskedImage>, LayoutError> {
        let mut images: Vec<MaskedImage> = Vec::new();
        for [image, mask, list, split] in self.places {
            let (image_folder, mask_folder) = (root.join(image), root.join(mask));
            let known = |split: &str| images.iter().any(|image| image.split == split);
            // A place without a list is the last resort.
            let is_needed = if split.is_empty() {
                images.is_empty()
            } else {
                !known(split)
            };
            if !is_needed || !image_folder.is_dir() || !mask_folder.is_dir() {
                continue;
            }
            let list = root.join(list);
            let masks = match list.is_file() {
                true => listed(&list, &mask_folder)?,
                false if self.needs_lists && !split.is_empty() => continue,
                false => masks(&mask_folder)?,
            };
            images.extend({ masks.into_iter().enumerate() }.map(|(i, mask)| {
                let image = image_of(&image_folder, &mask);
                MaskedImage {
                    name: (image.file_name().unwrap_or_default())
                        .to_string_lossy()
                        .into_owned(),
                    image,
                    mask,
                    split: match *split {
                        "" if i % 10 == 9 => "val".to_owned(),
                        "" => "train".to_owned(),
                        split => split.to_owned(),
                    },
                }
            }));
        }
        Ok(images)
    }
}

/// The masks of a folder by name.
fn masks(folder: &Path) -> Result<Vec<PathBuf>, LayoutError> {
    let mut masks = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "png" || e == "mat") && !is_hidden(&path) {
            masks.push(path);
        }
    }
    masks.sort();
    Ok(masks)
}

/// The masks of a list of ids, one a line.
fn listed(list: &Path, folder: &Path) -> Result<Vec<PathBuf>, LayoutError> {
    let text = crate::text::read_text(list)?;
    let ids = text.lines().map(str::trim).filter(|id| !id.is_empty());
    // LIP's ids have no extension, some copies have that of the image.
    let stem = |id: &str| {
        id.strip_suffix(".jpg")
            .or(id.strip_suffix(".png"))
            .unwrap_or(id)
            .to_owned()
    };
    Ok(ids.map(|id| folder.join(stem(id) + ".png")).collect())
}

/// The image of a mask: a JPEG, unless there is a PNG.
fn image_of(folder: &Path, mask: &Path) -> PathBuf {
    let name = mask.file_stem().unwrap_or_default();
    let with = |extension: &str| folder.join(name).with_extension(extension);
    let png = with("png");
    if png.is_file() { png } else { with("jpg") }
}
