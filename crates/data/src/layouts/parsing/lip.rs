//! LIP (Gong et al., "Look into Person", CVPR 2017).

use super::folders::MaskFolders;
use crate::layouts::layout::{Layout, LayoutReader, OfficialCounts};

const FOLDERS: MaskFolders = MaskFolders {
    roots: &["", "LIP"],
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
    needs_lists: false,
};

pub(crate) const LAYOUT: Layout = Layout {
    name: "LIP",
    signature: "`<split>_images/*.jpg` and `<split>_segmentations/*.png`, also below `TrainVal_images` and `TrainVal_parsing_annotations`; `train_id.txt`, `val_id.txt`",
    official: &[OfficialCounts {
        dataset: "LIP",
        folder_words: &[],
        counts: &[("train images", 30_462), ("val images", 10_000)],
    }],
    reader: LayoutReader::Parsing {
        find: |folder| FOLDERS.find(folder, &LAYOUT),
        read: |root| FOLDERS.read(root, &LAYOUT, |_| Ok(CLASSES.map(String::from).to_vec())),
    },
};

/// Classes of LIP; CIHP has them too, but for one.
pub(super) const CLASSES: [&str; 20] = [
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
