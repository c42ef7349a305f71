//! Published folders of label maps, without a table.
//!
//! | layout | images and masks | splits |
//! |---|---|---|
//! | LIP | `<split>_images/*.jpg`, `<split>_segmentations/*.png`, also below `TrainVal_images` and `TrainVal_parsing_annotations` | `train_id.txt`, `val_id.txt` |
//! | CIHP | `Training/Images`, `Training/Category_ids` (or `Categories`), the same in `Validation` | the folders |
//! | ATR | `JPEGImages/*.jpg`, `SegmentationClassAug/*.png` | `train_id.txt`, `val_id.txt`, `test_id.txt` |
//! | CCP | `photos/*.jpg`, `annotations/pixel-level/*.mat`, names in `label_list.mat` | none |
//!
//! Where a list of ids is missing every mask of the folder counts; where no list of ATR or CCP says what is for validation, every
//! tenth mask is (our choice). Folders with LIP's names and other classes than its 20 have a `labels.txt` beside them, one
//! name a line.

use std::path::{Path, PathBuf};

use fs_err as fs;

use super::{Masked, Parsing};
use crate::layouts::{LayoutError, in_file, read_mat};
use crate::source::is_hidden;

/// Classes of LIP; also those of CIHP, whose class 10 is skin of the torso instead of jumpsuits.
const LIP: [&str; 20] = [
    "Background",
    "Hat",
    "Hair",
    "Glove",
    "Sunglasses",
    "Upper-clothes",
    "Dress",
    "Coat",
    "Socks",
    "Pants",
    "Jumpsuits",
    "Scarf",
    "Skirt",
    "Face",
    "Left-arm",
    "Right-arm",
    "Left-leg",
    "Right-leg",
    "Left-shoe",
    "Right-shoe",
];
const CIHP_TORSO: &str = "Torso-skin";
/// Classes of ATR.
const ATR: [&str; 18] = [
    "Background",
    "Hat",
    "Hair",
    "Sunglasses",
    "Upper-clothes",
    "Skirt",
    "Pants",
    "Dress",
    "Belt",
    "Left-shoe",
    "Right-shoe",
    "Face",
    "Left-leg",
    "Right-leg",
    "Left-arm",
    "Right-arm",
    "Bag",
    "Scarf",
];
/// Published numbers of images: of each split, or of all where the authors have no splits (CCP's with a mask).
pub const PUBLISHED: [(&str, &[(&str, u64)]); 4] = [
    ("LIP", &[("train images", 30_462), ("val images", 10_000)]),
    ("CIHP", &[("train images", 28_280), ("val images", 5_000)]),
    (
        "ATR",
        &[
            ("train images", 16_000),
            ("val images", 700),
            ("test images", 1_000),
        ],
    ),
    ("CCP", &[("images", 1_004)]),
];

/// The usual folders below the one given.
const ROOTS: [&str; 9] = [
    "",
    "LIP",
    "CIHP",
    "instance-level_human_parsing",
    "CIHP/instance-level_human_parsing",
    "ATR",
    "ATR/humanparsing",
    "humanparsing",
    "CCP",
];

/// A layout: where images and masks of a split lie.
struct Folders {
    name: &'static str,
    /// Image folder, mask folder, list of ids and split; the places of one split one after the other.
    places: &'static [[&'static str; 4]],
}

const LAYOUTS: [Folders; 4] = [
    Folders {
        name: "LIP",
        places: &[
            [
                "train_images",
                "train_segmentations",
                "train_id.txt",
                "train",
            ],
            ["val_images", "val_segmentations", "val_id.txt", "val"],
            ["train_images", "segmentations", "train_id.txt", "train"],
            ["val_images", "segmentations", "val_id.txt", "val"],
            [
                "TrainVal_images/train_images",
                "TrainVal_parsing_annotations/train_segmentations",
                "TrainVal_images/train_id.txt",
                "train",
            ],
            [
                "TrainVal_images/val_images",
                "TrainVal_parsing_annotations/val_segmentations",
                "TrainVal_images/val_id.txt",
                "val",
            ],
        ],
    },
    Folders {
        name: "CIHP",
        places: &[
            [
                "Training/Images",
                "Training/Category_ids",
                "Training/train_id.txt",
                "train",
            ],
            [
                "Validation/Images",
                "Validation/Category_ids",
                "Validation/val_id.txt",
                "val",
            ],
            [
                "Training/Images",
                "Training/Categories",
                "Training/train_id.txt",
                "train",
            ],
            [
                "Validation/Images",
                "Validation/Categories",
                "Validation/val_id.txt",
                "val",
            ],
        ],
    },
    Folders {
        name: "ATR",
        places: &[
            [
                "JPEGImages",
                "SegmentationClassAug",
                "train_id.txt",
                "train",
            ],
            ["JPEGImages", "SegmentationClassAug", "val_id.txt", "val"],
            ["JPEGImages", "SegmentationClassAug", "test_id.txt", "test"],
            ["JPEGImages", "SegmentationClassAug", "", ""],
        ],
    },
    Folders {
        name: "CCP",
        places: &[["photos", "annotations/pixel-level", "", ""]],
    },
];

/// Opens the first of these that `folder` or a usual folder below it has; what was tried, if there is none.
pub(crate) fn open(folder: &Path) -> Result<Result<Parsing, Vec<String>>, LayoutError> {
    let mut tried = Vec::new();
    for root in ROOTS {
        let root = match root {
            "" => folder.to_owned(),
            root => folder.join(root),
        };
        for layout in &LAYOUTS {
            let images = layout.images(&root)?;
            if !images.is_empty() {
                return layout.parsing(root, images).map(Ok);
            }
            tried.push(root.join(layout.places[0][1]).display().to_string());
        }
    }
    Ok(Err(tried))
}

impl Folders {
    fn images(&self, root: &Path) -> Result<Vec<Masked>, LayoutError> {
        let mut images: Vec<Masked> = Vec::new();
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
                // Folders that hold several splits need a list.
                false if self.name == "ATR" && !split.is_empty() => continue,
                false => masks(&mask_folder)?,
            };
            images.extend({ masks.into_iter().enumerate() }.map(|(i, mask)| {
                let image = image_of(&image_folder, &mask);
                Masked {
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

    fn parsing(&self, root: PathBuf, images: Vec<Masked>) -> Result<Parsing, LayoutError> {
        let labels = root.join("labels.txt");
        let classes = if labels.is_file() {
            let text = crate::text::read_text(&labels)?;
            text.lines().map(|line| line.trim().to_owned()).collect()
        } else {
            match self.name {
                "CCP" => label_list(&root.join("label_list.mat"))?,
                "ATR" => ATR.map(String::from).to_vec(),
                "CIHP" => {
                    let mut classes = LIP.map(String::from).to_vec();
                    classes[10] = CIHP_TORSO.to_owned();
                    classes
                }
                _ => LIP.map(String::from).to_vec(),
            }
        };
        Ok(Parsing {
            layout: self.name,
            file: root,
            stored: classes.clone(),
            classes,
            images,
            relabel: None,
        })
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

fn label_list(path: &Path) -> Result<Vec<String>, LayoutError> {
    let mat = read_mat(path)?;
    let list = mat.get("label_list").and_then(|list| {
        let names = list.cells()?.map(|cell| cell?.text());
        names.collect::<Result<Vec<_>, _>>()
    });
    list.map_err(in_file(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layouts::parsing::LabelMap;

    fn make(names: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in names {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn stems(data: &Parsing, split: &str) -> Vec<String> {
        let stem = |path: &Path| path.file_stem().unwrap().to_string_lossy().into_owned();
        let images = data.split(split).unwrap();
        assert!(
            images
                .iter()
                .all(|image| stem(&image.image) == stem(&image.mask))
        );
        images.iter().map(|image| stem(&image.mask)).collect()
    }

    #[test]
    fn lip_by_lists_and_in_its_official_folders() {
        let folder = make(&[
            ("LIP/train_id.txt", "b\r\na\r\n"),
            ("LIP/val_id.txt", "c\n"),
            ("LIP/train_images/a.jpg", ""),
            ("LIP/train_segmentations/a.png", ""),
            ("LIP/train_segmentations/z.png", ""),
            ("LIP/val_images/c.jpg", ""),
            ("LIP/val_segmentations/c.png", ""),
        ]);
        let data = Parsing::open(folder.path()).unwrap();
        assert_eq!((data.layout, data.classes.len()), ("LIP", 20));
        assert_eq!(
            (stems(&data, "train"), stems(&data, "val")),
            (vec!["b".into(), "a".into()], vec!["c".into()])
        );
        assert_eq!(data.sides().pairs, [[14, 15], [16, 17], [18, 19]]);
        assert!(data.images[0].image.ends_with("LIP/train_images/b.jpg"));

        let folder = make(&[
            ("TrainVal_images/train_images/a.jpg", ""),
            ("TrainVal_images/val_images/c.png", ""),
            ("TrainVal_parsing_annotations/train_segmentations/a.png", ""),
            ("TrainVal_parsing_annotations/val_segmentations/c.png", ""),
            ("labels.txt", "Background\nPerson\n"),
        ]);
        let data = Parsing::open(folder.path()).unwrap();
        assert_eq!(
            (stems(&data, "train"), data.classes.len()),
            (vec!["a".into()], 2)
        );
        assert!(data.images[1].image.ends_with("val_images/c.png"));
        // All masks in one folder.
        let folder = make(&[
            ("train_id.txt", "a\n"),
            ("val_id.txt", "b\n"),
            ("train_images/a.jpg", ""),
            ("val_images/b.jpg", ""),
            ("segmentations/a.png", ""),
        ]);
        let data = Parsing::open(folder.path()).unwrap();
        assert_eq!(
            (stems(&data, "train").len(), stems(&data, "val").len()),
            (1, 1)
        );
    }

    #[test]
    fn cihp_and_atr() {
        let folder = make(&[
            ("CIHP/Training/Images/0000006.jpg", ""),
            ("CIHP/Training/Category_ids/0000006.png", ""),
            ("CIHP/Validation/Images/0000001.jpg", ""),
            ("CIHP/Validation/Category_ids/0000001.png", ""),
        ]);
        let data = Parsing::open(folder.path()).unwrap();
        assert_eq!(
            (data.layout, data.classes[10].as_str()),
            ("CIHP", "Torso-skin")
        );
        assert_eq!(
            (stems(&data, "train").len(), stems(&data, "val").len()),
            (1, 1)
        );

        let masks: Vec<(String, &str)> = (0..20)
            .map(|i| (format!("SegmentationClassAug/{i:02}.png"), ""))
            .collect();
        let mut names: Vec<(&str, &str)> = masks
            .iter()
            .map(|(name, text)| (name.as_str(), *text))
            .collect();
        names.push(("JPEGImages/00.jpg", ""));
        let data = Parsing::open(make(&names).path()).unwrap();
        assert_eq!((data.layout, data.classes.len()), ("ATR", 18));
        assert_eq!(stems(&data, "val"), ["09", "19"]);
        names.extend([("train_id.txt", "00\n01\n"), ("test_id.txt", "02\n")]);
        let data = Parsing::open(make(&names).path()).unwrap();
        assert_eq!(
            (data.splits(), stems(&data, "test")),
            (vec!["train".into(), "test".into()], vec!["02".into()])
        );
    }

    #[test]
    fn ccp_has_its_masks_in_matlab_files() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mat/ccp");
        let folder = make(&[("photos/0001.jpg", "")]);
        for name in ["label_list.mat", "annotations/pixel-level/0001.mat"] {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::copy(golden.join(name), path).unwrap();
        }
        let data = Parsing::open(folder.path()).unwrap();
        assert_eq!(
            (data.layout, data.classes.len(), stems(&data, "train").len()),
            ("CCP", 3, 1)
        );
        let expected = LabelMap {
            height: 2,
            width: 3,
            labels: vec![0, 1, 1, 2, 2, 0],
        };
        assert_eq!(data.read_mask(&data.images[0].mask).unwrap(), expected);
    }
}
