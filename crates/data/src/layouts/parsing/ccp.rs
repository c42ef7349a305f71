//! CCP (Yang et al., "Clothing Co-Parsing by Joint Image Segmentation and Labeling", CVPR 2014):
//! masks in MATLAB files, no splits.

use std::path::Path;

use super::folders::MaskFolders;
use crate::layouts::layout::{Layout, LayoutReader, OfficialCounts};
use crate::layouts::{LayoutError, in_file, read_mat};

const FOLDERS: MaskFolders = MaskFolders {
    roots: &["", "CCP"],
    places: &[["photos", "annotations/pixel-level", "", ""]],
    needs_lists: false,
};

pub(crate) const LAYOUT: Layout = Layout {
    name: "CCP",
    signature: "`photos/*.jpg`, `annotations/pixel-level/*.mat` and `label_list.mat`",
    official: &[OfficialCounts {
        dataset: "CCP",
        folder_words: &[],
        counts: &[("images", 1_004)],
    }],
    reader: LayoutReader::Parsing {
        find: |folder| FOLDERS.find(folder, &LAYOUT),
        read: |root| {
            FOLDERS.read(root, &LAYOUT, |root| {
                label_list(&root.join("label_list.mat"))
            })
        },
    },
};

fn label_list(path: &Path) -> Result<Vec<String>, LayoutError> {
    let mat = read_mat(path)?;
    let list = mat.get("label_list").and_then(|list| {
        let names = list.cells()?.map(|cell| cell?.text());
        names.collect::<Result<Vec<_>, _>>()
    });
    list.map_err(in_file(path))
}
