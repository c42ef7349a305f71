//! The images below a folder: every file once, by the first of its names in the order of paths.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use fs_err as fs;

use super::error::SourceError;
use super::kinds::{EXTENSIONS, extension, is_hidden, is_sidecar_field, starts_as_image};
use super::skipped::{SkippedFiles, describe_others};

/// Names of folders that hold masks of the photos in folders beside them, in lower case.
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

/// Most files without extension that are opened to see whether they are images.
const MOST_OPENED: usize = 4096;

/// The files below a folder.
pub(super) struct Folder {
    /// Path below the folder, and whole path, of every image, sorted.
    pub files: Vec<(PathBuf, PathBuf)>,
    /// Path of every tar and Parquet file, sorted.
    pub archives: Vec<PathBuf>,
    /// Other files by extension.
    others: BTreeMap<String, usize>,
    opened: usize,
}

impl Folder {
    /// Lists a folder. Linked folders are followed after all others, and each folder is read once,
    /// however many links lead to it; with `masks`, masks count as images.
    pub fn walk(root: &Path, masks: bool, skipped: &mut SkippedFiles) -> Result<Self, SourceError> {
        let mut folder = Self {
            files: Vec::new(),
            archives: Vec::new(),
            others: BTreeMap::new(),
            opened: 0,
        };
        let top = fs::canonicalize(root)?;
        let mut seen = HashSet::from([top.clone()]);
        let mut links = BTreeSet::new();
        folder.descend(root.to_owned(), PathBuf::new(), &mut links, skipped)?;
        // The folders that were read without a link are all below the top.
        while let Some((relative, path)) = links.pop_first() {
            let target = fs::canonicalize(&path)?;
            if target.starts_with(&top) || top.starts_with(&target) || !seen.insert(target) {
                skipped.linked_folders += 1;
                continue;
            }
            folder.descend(path, relative, &mut links, skipped)?;
        }
        folder.files.sort();
        folder.archives.sort();
        if !masks {
            folder.skip_masks(skipped);
        }
        if folder.files.is_empty() {
            return Ok(folder);
        }
        // Archives beside images are not opened.
        for (extension, &count) in &folder.others {
            skipped.others(extension, count);
        }
        Ok(folder)
    }

    fn descend(
        &mut self,
        root: PathBuf,
        relative: PathBuf,
        links: &mut BTreeSet<(PathBuf, PathBuf)>,
        skipped: &mut SkippedFiles,
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
                    // `._x.jpg` is metadata that macOS keeps beside an image.
                    let name = entry.file_name();
                    if is_image && !name.as_encoded_bytes().starts_with(b"._") {
                        skipped.hidden += 1;
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
                // A link is followed; a broken one stays, to be reported as unreadable.
                let is_special = match kind.is_symlink() {
                    true => fs::metadata(&path).is_ok_and(|target| !target.is_file()),
                    false => !kind.is_file(),
                };
                if is_special {
                    skipped.special += 1;
                } else if is_image {
                    self.files.push((relative, path));
                } else {
                    if extension.is_empty() && self.opened < MOST_OPENED {
                        self.opened += 1;
                        skipped.unnamed += usize::from(starts_as_image(&path).unwrap_or(false));
                    }
                    if matches!(extension.as_str(), "tar" | "parquet") {
                        self.archives.push(path);
                    }
                    *self.others.entry(extension).or_default() += 1;
                }
            }
        }
        Ok(())
    }

    /// Skips masks: `x.seg.png` beside `x.jpg`, and `masks/x.png` where `x` is an image of a
    /// folder that is not one of masks.
    fn skip_masks(&mut self, skipped: &mut SkippedFiles) {
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
                skipped.fields += 1;
                return false;
            }
            // Masks are stored without loss: a JPEG is a photo, in any folder.
            let is_mask = matches!(extension(path).as_str(), "png" | "bmp" | "webp")
                && mask_folder(path)
                && photos.contains(&name(path));
            skipped.masks += usize::from(is_mask);
            !is_mask
        });
    }

    pub fn describe(&self) -> String {
        describe_others(&self.others)
    }
}
