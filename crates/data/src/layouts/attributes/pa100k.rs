//! PA-100K: `annotation.mat`, images in `data/` or `release_data/release_data/`; all 26 attributes.

use super::annotation::{Annotation, paths};
use super::matlab::{read, rows, texts};
use crate::layouts::layout::{Layout, LayoutReader, OfficialCounts};
use crate::mat::{MatError, MatFile};

pub(crate) const LAYOUT: Layout = Layout {
    name: "PA-100K",
    signature: "`annotation.mat`",
    official: &[OfficialCounts {
        dataset: "PA-100K",
        folder_words: &[],
        counts: &[
            ("attributes", 26),
            ("train images", 80_000),
            ("val images", 10_000),
            ("test images", 10_000),
        ],
    }],
    reader: LayoutReader::Attributes {
        files: || paths(&["annotation.mat"], &["", "PA100k", "PA-100K", "pa100k"]),
        read: |file| read(file, "train_images_name", parse),
    },
};

fn parse(mat: &MatFile) -> Result<Annotation, MatError> {
    let mut raw = Annotation {
        layout: LAYOUT.name,
        images: Vec::new(),
        names: texts(mat.get("attributes")?)?,
        labels: Vec::new(),
        splits: Vec::new(),
    };
    for split in ["train", "val", "test"] {
        let start = raw.images.len();
        raw.images
            .extend(texts(mat.get(&format!("{split}_images_name"))?)?);
        raw.labels
            .extend(rows(mat.get(&format!("{split}_label"))?)?);
        let members = (start..raw.images.len()).map(|i| i as f64).collect();
        raw.splits.push((split.to_owned(), members));
    }
    Ok(raw)
}
