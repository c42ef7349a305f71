//! Splits of PA-100K, PETA and RAPv2 in files beside their images: pickles of "Rethinking of
//! Pedestrian Attribute Recognition" (Jia et al. 2021), and JSON for your own.
//!
//! The zero-shot splits, in which no person of the test set occurs in training, exist only as such
//! pickles; [`crate::pickle`] reads them as data. They have the attributes that are evaluated, and
//! the first split where there are several. A split of your own is:
//!
//! ```text
//! {"image_name": ["00001.png", ..], "attr_name": ["hat", ..], "label": [[0, 1, ..], ..],
//!  "partition": {"train": [0, ..], "val": [..], "test": [..]}}
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Deserialize;

use super::annotation::{Annotation, paths, positions};
use super::dataset::AttributeDataset;
use super::{pa100k, peta, rap2};
use crate::layouts::LayoutError;
use crate::layouts::layout::{Layout, LayoutReader, OfficialCounts};
use crate::pickle::{Pickle, PickleValue};
use crate::text::read_text;

const FOLDERS: [&str; 4] = ["", "PA100k", "PETA", "RAP2"];

pub(crate) const PICKLE: Layout = Layout {
    name: "attribute split (pickle)",
    signature: "`dataset_all.pkl` or `dataset_zs_run0.pkl` of Jia et al.",
    official: &[
        OfficialCounts {
            dataset: "PETA zero-shot",
            folder_words: &[],
            counts: &[
                ("attributes", 35),
                ("train images", 11_241),
                ("val images", 3_826),
                ("test images", 3_933),
            ],
        },
        OfficialCounts {
            dataset: "RAPv2 zero-shot",
            folder_words: &[],
            counts: &[
                ("attributes", 53),
                ("train images", 17_062),
                ("val images", 4_648),
                ("test images", 4_928),
            ],
        },
    ],
    reader: LayoutReader::Attributes {
        files: || paths(&["dataset_all.pkl", "dataset_zs_run0.pkl"], &FOLDERS),
        read: |file| match file.extension().is_some_and(|extension| extension == "pkl") {
            true => read_pickle(file.to_owned()).map(Some),
            false => Ok(None),
        },
    },
};

pub(crate) const JSON: Layout = Layout {
    name: "attribute split (JSON)",
    signature: "`dataset_all.json` or `dataset_zs_run0.json` with image_name, attr_name, label and partition",
    official: &[],
    reader: LayoutReader::Attributes {
        files: || paths(&["dataset_all.json", "dataset_zs_run0.json"], &FOLDERS),
        read: |file| match file
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            true => read_json(file).map(Some),
            false => Ok(None),
        },
    },
};

/// Most bytes of a pickle that is read; the largest published one has some ten million.
const LARGEST: u64 = 1 << 30;

fn read_pickle(file: PathBuf) -> Result<AttributeDataset, LayoutError> {
    let wrong = |found: String| LayoutError::File {
        file: file.display().to_string(),
        expected:
            "a pickle with image_name, attr_name, label and partition, as those of Jia et al."
                .to_owned(),
        found,
    };
    let length = fs::metadata(&file)?.len();
    if length > LARGEST {
        return Err(wrong(format!("{length} bytes")));
    }
    let bytes = fs::read(&file)?;
    let pickle = Pickle::read(&bytes).map_err(wrong)?;
    let raw = parse_pickle(pickle.root()).map_err(|missing| wrong(format!("no {missing}")))?;
    raw.attributes(file)
}

/// What a pickle says; what it does not say, as an error.
fn parse_pickle(root: PickleValue) -> Result<Annotation, &'static str> {
    let texts = |key| root.get(key).and_then(|texts| texts.texts());
    let images = texts("image_name").ok_or("list of texts `image_name`")?;
    let names = texts("attr_name").ok_or("list of texts `attr_name`")?;
    let label = root.get("label");
    let (Some([rows, columns]), Some(values)) = (
        label.and_then(|label| label.shape()),
        label.and_then(|label| label.numbers()),
    ) else {
        return Err("matrix of numbers `label`");
    };
    if *rows != images.len() || *columns != names.len() {
        return Err("`label` with a row for each image and a column for each attribute");
    }
    // Those to evaluate, in the order of the published tables.
    let used = match root.get("label_idx").and_then(|used| used.get("eval")) {
        None => (0..*columns).collect(),
        Some(used) => { used.numbers() }
            .and_then(|used| positions(&used, *columns).ok())
            .ok_or("columns of `label`, each at most once, in `label_idx.eval`")?,
    };
    let partition = root.get("partition").ok_or("`partition`")?;
    let mut splits = Vec::new();
    let mut several = false;
    for key in ["train", "val", "test"] {
        let members = partition
            .get(key)
            .ok_or("`partition` with train, val and test")?;
        let first = members.items().and_then(|mut splits| splits.next());
        let first = first.filter(|first| first.numbers().is_some());
        several |= first.is_some();
        let members = first.unwrap_or(members).numbers();
        let members = members.ok_or("lists of numbers in `partition`")?;
        splits.push((key.to_owned(), members));
    }
    let description = root.get("description").and_then(|text| text.text());
    Ok(Annotation {
        layout: match (description, several) {
            (Some("pa100k"), _) => pa100k::LAYOUT.name,
            (Some("peta"), true) => peta::LAYOUT.name,
            (Some("peta"), false) => "PETA zero-shot",
            (Some("rap2"), true) => rap2::LAYOUT.name,
            (Some("rap2"), false) => "RAPv2 zero-shot",
            _ => PICKLE.name,
        },
        images: images.into_iter().map(str::to_owned).collect(),
        names: used.iter().map(|i| names[*i].to_owned()).collect(),
        labels: { values.chunks_exact(columns.to_owned().max(1)) }
            .map(|row| used.iter().map(|i| row[*i]).collect())
            .collect(),
        splits,
    })
}

#[derive(Deserialize)]
struct JsonSplit {
    image_name: Vec<String>,
    attr_name: Vec<String>,
    label: Vec<Vec<f64>>,
    partition: BTreeMap<String, Vec<f64>>,
}

fn read_json(file: &Path) -> Result<AttributeDataset, LayoutError> {
    let split: JsonSplit =
        serde_json::from_str(&read_text(file)?).map_err(|error| LayoutError::Json {
            file: file.display().to_string(),
            expected: "a split of attributes",
            reason: error.to_string(),
        })?;
    // `trainval` is train and val again.
    let splits = split
        .partition
        .into_iter()
        .filter(|(name, _)| name != "trainval");
    let raw = Annotation {
        layout: JSON.name,
        images: split.image_name,
        names: split.attr_name,
        labels: split.label,
        splits: splits.collect(),
    };
    raw.attributes(file.to_owned())
}
