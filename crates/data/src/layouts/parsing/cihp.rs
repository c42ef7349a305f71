//! CIHP (Gong et al., "Instance-level Human Parsing via Part Grouping Network", ECCV 2018).

use super::folders::MaskFolders;
use super::lip;
use crate::layouts::layout::{Layout, LayoutReader, OfficialCounts};

const FOLDERS: MaskFolders = MaskFolders {
    roots: &[
        "",
        "CIHP",
        "instance-level_human_parsing",
        "CIHP/instance-level_human_parsing",
    ],
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
    needs_lists: false,
};

pub(crate) const LAYOUT: Layout = Layout {
    name: "CIHP",
    signature: "`Training/Images` and `Training/Category_ids` (or `Categories`), the same in `Validation`",
    official: &[OfficialCounts {
        dataset: "CIHP",
        folder_words: &[],
        counts: &[("train images", 28_280), ("val images", 5_000)],
    }],
    reader: LayoutReader::Parsing {
        find: |folder| FOLDERS.find(folder, &LAYOUT),
        read: |root| FOLDERS.read(root, &LAYOUT, |_| Ok(classes())),
    },
};

/// Classes of CIHP: those of LIP, with skin of the torso in place of jumpsuits.
fn classes() -> Vec<String> {
    let mut classes = lip::CLASSES.map(String::from).to_vec();
    classes[10] = "Torso-skin".to_owned();
    classes
}
