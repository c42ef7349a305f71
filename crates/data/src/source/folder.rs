//! The images below a folder: every file once, by the first of its names in the order of paths.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use fs_err as fs;

use super::error::SourceError;
use super::kinds::{EXTENSIONS, extension, is_hidden, is_sidecar_field, starts_as_image};
use super::skipped::{LeftOut, describe_others};

/// Names of folders that hold masks of the photos in folders beside them, in small letters.
const MASK_FOLDERS: [&str; 14] = [
    "annotation",
    "annotations",
    "gt",
    "label",
    "labels",
    "mask",
    "masks",
    "parsing",
    "seg",
    "segmentation",
    "segmentationclass",
    "segmentationobject",
    "segmentations",
    "segs",
];

/// Files without extension that are opened to see whether they are images.
const MOST_LOOKED_INTO: usize = 4096;

/// The files below a folder.
pub(super) struct Folder {
    /// Path below the folder, and whole path, of every image, sorted.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// Path of every tar, sorted.
    pub tars: Vec<PathBuf>,
    /// Other files by extension.
    others: BTreeMap<String, usize>,
    looked_into: usize,
}

impl Folder {
    /// Lists a folder. Linked folders are followed after all others, and each folder is read once,
    /// however many links lead to it; with `masks`, masks count as images.
    pub fn walk(root: &Path, masks: bool, left_out: &mut LeftOut) -> Result<Self, SourceError> {
        let mut folder = Self {
            files: Vec::new(),
            tars: Vec::new(),
            others: BTreeMap::new(),
            looked_into: 0,
        };
        let top = fs::canonicalize(root)?;
        let mut seen = HashSet::from([top.clone()]);
        let mut links = BTreeSet::new();
        folder.descend(root.to_owned(), PathBuf::new(), &mut links, left_out)?;
        // The folders that were read without a link are all below the top.
        while let Some((relative, path)) = links.pop_first() {
            let target = fs::canonicalize(&path)?;
            if target.starts_with(&top) || top.starts_with(&target) || !seen.insert(target) {
                left_out.linked_folders += 1;
                continue;
            }
            folder.descend(path, relative, &mut links, left_out)?;
        }
        folder.files.sort();
        folder.tars.sort();
        if !masks {
            folder.leave_out_masks(left_out);
        }
        if folder.files.is_empty() {
            return Ok(folder);
        }
        // Tars beside images are not opened.
        for (extension, &count) in &folder.others {
            left_out.others(extension, count);
        }
        Ok(folder)
    }

    fn descend(
        &mut self,
        root: PathBuf,
        relative: PathBuf,
        links: &mut BTreeSet<(PathBuf, PathBuf)>,
        left_out: &mut LeftOut,
    ) -> Result<(), SourceError> {
        let mut pending = vec![(root, relative)];
        while let Some((path, relative)) = pending.pop() {
            for entry in fs::read_dir(&path)? {
                let entry = entry?;
                let relative = relative.join(entry.file_name());
                let path = entry.path();
                let extension = extension(&path);
                let is_image = EXTENSIONS.contains(&extension.as_str());
                if is_hidden(&relative) {
                    // `._x.jpg` is not an image but what macOS keeps beside one.
                    let name = entry.file_name();
                    if is_image && !name.as_encoded_bytes().starts_with(b"._") {
                        left_out.hidden += 1;
                    }
                    continue;
                }
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    pending.push((path, relative));
                    continue;
                }
                if kind.is_symlink() && path.is_dir() {
                    links.insert((relative, path));
                    continue;
                }
                // A link is followed; one that leads nowhere stays, to be reported as unreadable.
                let is_special = match kind.is_symlink() {
                    true => fs::metadata(&path).is_ok_and(|target| !target.is_file()),
                    false => !kind.is_file(),
                };
                if is_special {
                    left_out.special += 1;
                } else if is_image {
                    self.files.push((relative, path));
                } else {
                    if extension.is_empty() && self.looked_into < MOST_LOOKED_INTO {
                        self.looked_into += 1;
                        left_out.unnamed += usize::from(starts_as_image(&path).unwrap_or(false));
                    }
                    if extension == "tar" {
                        self.tars.push(path);
                    }
                    *self.others.entry(extension).or_default() += 1;
                }
            }
        }
        Ok(())
    }

    /// Leaves out masks: `x.seg.png` beside `x.jpg`, and `masks/x.png` where `x` is an image of a
    /// folder that is not one of masks.
    fn leave_out_masks(&mut self, left_out: &mut LeftOut) {
        let stem = |path: &Path| path.with_extension("").to_string_lossy().into_owned();
        let stems: HashSet<String> = self.files.iter().map(|(path, _)| stem(path)).collect();
        let mask_folder = |path: &Path| {
            let parts = path.parent().into_iter().flat_map(Path::components);
            let mut parts = parts.map(|part| part.as_os_str().to_string_lossy().to_lowercase());
            parts.any(|part| MASK_FOLDERS.contains(&part.as_str()))
        };
        let name = |path: &Path| {
            let stem = path.file_stem().unwrap_or_default();
            stem.to_string_lossy().into_owned()
        };
        let photos: HashSet<String> = (self.files.iter())
            .filter(|(path, _)| !mask_folder(path))
            .map(|(path, _)| name(path))
            .collect();
        self.files.retain(|(path, _)| {
            let shown = path.to_string_lossy();
            if is_sidecar_field(&shown, |base| stems.contains(base), false) {
                left_out.fields += 1;
                return false;
            }
            // Masks have no loss of colours: a JPEG is a photo, wherever it lies.
            let is_mask = matches!(extension(path).as_str(), "png" | "bmp" | "webp")
                && mask_folder(path)
                && photos.contains(&name(path));
            left_out.masks += usize::from(is_mask);
            !is_mask
        });
    }

    pub fn describe(&self) -> String {
        describe_others(&self.others)
    }
}
