//! RAPv2: `RAP_annotation.mat`, images in `RAP_dataset/` beside its folder; the 54 selected of 152
//! attributes, the first of five splits.

use super::annotation::{Annotation, paths, positions};
use super::matlab::{first_split, read, rows, texts};
use crate::layouts::layout::{Layout, LayoutReader, OfficialCounts};
use crate::mat::{MatError, MatFile};

pub(crate) const LAYOUT: Layout = Layout {
    name: "RAPv2",
    signature: "`RAP_annotation.mat`",
    official: &[OfficialCounts {
        dataset: "RAPv2",
        folder_words: &[],
        counts: &[
            ("attributes", 54),
            ("train images", 50_957),
            ("val images", 16_986),
            ("test images", 16_985),
        ],
    }],
    reader: LayoutReader::Attributes {
        files: || {
            paths(
                &["RAP_annotation/RAP_annotation.mat", "RAP_annotation.mat"],
                &["", "RAP2", "rap2"],
            )
        },
        read: |file| read(file, "RAP_annotation", parse),
    },
};

fn parse(mat: &MatFile) -> Result<Annotation, MatError> {
    let record = mat.get("RAP_annotation")?.record()?;
    let (labels, names) = (rows(record.at(1)?)?, texts(record.at(2)?)?);
    let selected = record.at(3)?.numbers()?;
    let from_zero: Vec<f64> = selected.iter().map(|from_one| from_one - 1.0).collect();
    let selected = positions(&from_zero, names.len()).map_err(|found| MatError {
        place: "selected attributes, counted from 0".to_owned(),
        expected: format!("each of the {} attributes at most once", names.len()),
        found,
    })?;
    let pick = |row: &Vec<f64>| {
        selected
            .iter()
            .filter_map(|i| row.get(*i).copied())
            .collect()
    };
    Ok(Annotation {
        layout: LAYOUT.name,
        images: texts(record.at(0)?)?,
        labels: labels.iter().map(pick).collect(),
        names: selected.iter().map(|i| names[*i].clone()).collect(),
        splits: first_split(record.at(4)?)?,
    })
}
