//! ATR (Liang et al., "Deep Human Parsing with Active Template Regression", TPAMI 2015).

use super::folders::MaskFolders;
use crate::layouts::layout::{Layout, LayoutReader, OfficialCounts};

const FOLDERS: MaskFolders = MaskFolders {
    roots: &["", "ATR", "ATR/humanparsing", "humanparsing"],
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
    needs_lists: true,
};

pub(crate) const LAYOUT: Layout = Layout {
    name: "ATR",
    signature: "`JPEGImages/*.jpg` and `SegmentationClassAug/*.png`; `train_id.txt`, `val_id.txt`, `test_id.txt`",
    official: &[OfficialCounts {
        dataset: "ATR",
        folder_words: &[],
        counts: &[
            ("train images", 16_000),
            ("val images", 700),
            ("test images", 1_000),
        ],
    }],
    reader: LayoutReader::Parsing {
        find: |folder| FOLDERS.find(folder, &LAYOUT),
        read: |root| FOLDERS.read(root, &LAYOUT, |_| Ok(CLASSES.map(String::from).to_vec())),
    },
};

/// Classes of ATR.
const CLASSES: [&str; 18] = [
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
