//! PETA: `PETA.mat`, images in `images/`; the first 35 of 105 attributes, the first of five splits.

use super::annotation::{Annotation, paths};
use super::matlab::{first_split, read, rows, texts};
use crate::layouts::layout::{Layout, LayoutReader, OfficialCounts};
use crate::mat::{MatError, MatFile};

pub(crate) const LAYOUT: Layout = Layout {
    name: "PETA",
    signature: "`PETA.mat`",
    official: &[OfficialCounts {
        dataset: "PETA",
        folder_words: &[],
        counts: &[
            ("attributes", 35),
            ("train images", 9_500),
            ("val images", 1_900),
            ("test images", 7_600),
        ],
    }],
    reader: LayoutReader::Attributes {
        files: || paths(&["PETA.mat"], &["", "PETA", "peta"]),
        read: |file| read(file, "peta", parse),
    },
};

/// Attributes of PETA that are frequent enough to be evaluated.
const PETA_ATTRIBUTES: usize = 35;
/// Columns of PETA's table before the attributes: numbers of image, person, dataset, and person
/// there.
const PETA_NUMBERS: usize = 4;

fn parse(mat: &MatFile) -> Result<Annotation, MatError> {
    let record = mat.get("peta")?.record()?;
    let labels = rows(record.at(0)?)?;
    let mut names = texts(record.at(1)?)?;
    names.truncate(PETA_ATTRIBUTES);
    let used = |row: Vec<f64>| {
        row.into_iter()
            .skip(PETA_NUMBERS)
            .take(PETA_ATTRIBUTES)
            .collect()
    };
    Ok(Annotation {
        layout: LAYOUT.name,
        images: (1..=labels.len()).map(|i| format!("{i:05}.png")).collect(),
        names,
        labels: labels.into_iter().map(used).collect(),
        splits: first_split(record.at(3)?)?,
    })
}
