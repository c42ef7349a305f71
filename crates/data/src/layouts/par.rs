//! Published annotation of pedestrian attributes.
//!
//! | data set | file | images | attributes in use |
//! |---|---|---|---|
//! | PA-100K | `annotation.mat` | `data/` or `release_data/release_data/` | all 26 |
//! | PETA | `PETA.mat` | `images/` | the first 35 of 105, first of five splits |
//! | RAPv2 | `RAP_annotation/RAP_annotation.mat` | `RAP_dataset/` beside it | the 54 selected of 152, first of five splits |
//! | any split | `dataset_all.json`, `dataset_zs_run0.json` | one of the folders above beside it | all that the file has |
//!
//! The zero-shot splits, in which no person of the test set was seen in training, exist as Python pickles only;
//! `runs/par_split.py` makes JSON of them without running what they hold:
//!
//! ```text
//! {"image_name": ["00001.png", ..], "attr_name": ["hat", ..], "label": [[0, 1, ..], ..],
//!  "partition": {"train": [0, ..], "val": [..], "test": [..]}}
//! ```
//!
//! A label of 2 (RAP: not to be seen) is read as 0. Images of no split are left out.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::Deserialize;

use super::attributes::{Attributed, Attributes};
use super::{LayoutError, find, in_file, read_mat};
use crate::mat::{Array, MatError, MatFile};

const FILES: [&str; 13] = [
    "annotation.mat",
    "PA100k/annotation.mat",
    "PA-100K/annotation.mat",
    "pa100k/annotation.mat",
    "PETA.mat",
    "PETA/PETA.mat",
    "peta/PETA.mat",
    "RAP_annotation/RAP_annotation.mat",
    "RAP2/RAP_annotation/RAP_annotation.mat",
    "rap2/RAP_annotation/RAP_annotation.mat",
    "RAP_annotation.mat",
    "dataset_all.json",
    "dataset_zs_run0.json",
];
const IMAGE_FOLDERS: [&str; 5] = [
    "data",
    "images",
    "RAP_dataset",
    "release_data/release_data",
    "",
];
/// Attributes of PETA that are frequent enough to be evaluated.
const PETA_ATTRIBUTES: usize = 35;
/// Columns of PETA's table before the attributes: numbers of image, person, data set, and person there.
const PETA_NUMBERS: usize = 4;

/// Published numbers of attributes and of images to train, validate and test.
pub const PUBLISHED: [(&str, [u64; 4]); 3] = [
    ("PA-100K", [26, 80_000, 10_000, 10_000]),
    ("PETA", [35, 9_500, 1_900, 7_600]),
    ("RAPv2", [54, 50_957, 16_986, 16_985]),
];

/// Opens a file of these, or the one in a folder.
pub(super) fn open(path: &Path) -> Result<Attributes, LayoutError> {
    let expected = "`annotation.mat` (PA-100K), `PETA.mat`, `RAP_annotation.mat` or a JSON split";
    let file = match path.is_file() {
        true => path.to_owned(),
        false => find(
            path,
            &FILES.map(String::from),
            "attribute annotation",
            expected,
        )?,
    };
    if file
        .extension()
        .is_some_and(|extension| extension == "json")
    {
        return json(&file);
    }
    let mat = read_mat(&file)?;
    let names: Vec<String> = mat.variables().map(|(name, _)| name).collect();
    let has = |name: &str| names.iter().any(|other| other == name);
    let raw = if has("train_images_name") {
        pa100k(&mat)
    } else if has("peta") {
        mat.get("peta").and_then(peta)
    } else if has("RAP_annotation") {
        mat.get("RAP_annotation").and_then(rap2)
    } else {
        return Err(LayoutError::File {
            file: file.display().to_string(),
            expected: "the variables of PA-100K, PETA or RAPv2".to_owned(),
            found: format!("`{}`", names.join("`, `")),
        });
    };
    let raw = raw.map_err(in_file(&file))?;
    raw.attributes(file)
}

/// What a file holds, before it is checked.
struct Raw {
    layout: &'static str,
    images: Vec<String>,
    names: Vec<String>,
    /// `[images, names]`.
    labels: Vec<Vec<f64>>,
    /// Images of each split, from 0.
    splits: Vec<(String, Vec<f64>)>,
}

impl Raw {
    fn attributes(self, file: PathBuf) -> Result<Attributes, LayoutError> {
        let error = |entry: String, expected: String, found: String| LayoutError::Entry {
            file: file.display().to_string(),
            entry,
            expected,
            found,
        };
        let count = self.images.len();
        if self.labels.len() != count {
            let found = self.labels.len().to_string();
            return Err(error(
                "labels".into(),
                format!("{count} rows, as many as images"),
                found,
            ));
        }
        let mut folder = file.parent().unwrap_or(Path::new("")).to_owned();
        if folder.ends_with("RAP_annotation") {
            folder.pop();
        }
        // Where no place has the first image, opening it reports the usual one.
        let first = self.images.first().map_or("", String::as_str);
        let place = |name: &&&str| folder.join(name).join(first).is_file();
        let place = IMAGE_FOLDERS
            .iter()
            .find(place)
            .unwrap_or(&IMAGE_FOLDERS[0]);
        let mut images = Vec::new();
        for (split, members) in &self.splits {
            for &member in members {
                let index = member as usize;
                if !(member >= 0.0 && member.fract() == 0.0 && index < count) {
                    let expected = format!("images 0 to {}", count.saturating_sub(1));
                    return Err(error(
                        format!("split {split}"),
                        expected,
                        member.to_string(),
                    ));
                }
                let row = &self.labels[index];
                let entry = || format!("labels of `{}`", self.images[index]);
                if row.len() != self.names.len() {
                    let expected = format!("{} values", self.names.len());
                    return Err(error(entry(), expected, row.len().to_string()));
                }
                if let Some(odd) = row.iter().find(|value| ![0.0, 1.0, 2.0].contains(*value)) {
                    return Err(error(entry(), "0, 1 or 2".into(), odd.to_string()));
                }
                images.push(Attributed {
                    path: folder.join(place).join(&self.images[index]),
                    split: split.clone(),
                    values: row.iter().map(|value| *value == 1.0).collect(),
                });
            }
        }
        Ok(Attributes {
            layout: self.layout,
            file,
            names: self.names,
            images,
        })
    }
}

fn pa100k(mat: &MatFile) -> Result<Raw, MatError> {
    let mut raw = Raw {
        layout: "PA-100K",
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

fn peta(variable: Array) -> Result<Raw, MatError> {
    let record = variable.record()?;
    let labels = rows(record.at(0)?)?;
    let mut names = texts(record.at(1)?)?;
    names.truncate(PETA_ATTRIBUTES);
    let used = |row: Vec<f64>| {
        row.into_iter()
            .skip(PETA_NUMBERS)
            .take(PETA_ATTRIBUTES)
            .collect()
    };
    Ok(Raw {
        layout: "PETA",
        images: (1..=labels.len()).map(|i| format!("{i:05}.png")).collect(),
        names,
        labels: labels.into_iter().map(used).collect(),
        splits: first_split(record.at(3)?)?,
    })
}

fn rap2(variable: Array) -> Result<Raw, MatError> {
    let record = variable.record()?;
    let (labels, names) = (rows(record.at(1)?)?, texts(record.at(2)?)?);
    let selected = record.at(3)?.numbers()?;
    let from_zero = |from_one: &f64| (*from_one as usize).wrapping_sub(1);
    let selected: Vec<usize> = selected.iter().map(from_zero).collect();
    let pick = |row: &Vec<f64>| {
        selected
            .iter()
            .filter_map(|i| row.get(*i).copied())
            .collect()
    };
    Ok(Raw {
        layout: "RAPv2",
        images: texts(record.at(0)?)?,
        labels: labels.iter().map(pick).collect(),
        names: selected
            .iter()
            .filter_map(|i| names.get(*i).cloned())
            .collect(),
        splits: first_split(record.at(4)?)?,
    })
}

/// Train, validation and test images of the first of several splits, counted from 1 in the file.
fn first_split(cells: Array) -> Result<Vec<(String, Vec<f64>)>, MatError> {
    let first = cells.cells()?.next().unwrap_or_else(|| {
        Err(MatError {
            place: "splits".to_owned(),
            expected: "at least one".to_owned(),
            found: "none".to_owned(),
        })
    })?;
    let record = first.record()?;
    { ["train", "val", "test"].into_iter().enumerate() }
        .map(|(i, name)| {
            let members = record.at(i)?.numbers()?;
            Ok((
                name.to_owned(),
                members.iter().map(|from_one| from_one - 1.0).collect(),
            ))
        })
        .collect()
}

fn texts(cells: Array) -> Result<Vec<String>, MatError> {
    cells.cells()?.map(|cell| cell?.text()).collect()
}

fn rows(matrix: Array) -> Result<Vec<Vec<f64>>, MatError> {
    let ([count, _], values) = (matrix.shape(), matrix.numbers()?);
    let row = |r| values.iter().skip(r).step_by(count).copied().collect();
    Ok((0..count).map(row).collect())
}

#[derive(Deserialize)]
struct Split {
    image_name: Vec<String>,
    attr_name: Vec<String>,
    label: Vec<Vec<f64>>,
    partition: BTreeMap<String, Vec<f64>>,
}

fn json(file: &Path) -> Result<Attributes, LayoutError> {
    let split: Split =
        serde_json::from_slice(&fs::read(file)?).map_err(|error| LayoutError::Json {
            file: file.display().to_string(),
            expected: "a split of attributes",
            reason: error.to_string(),
        })?;
    // `trainval` is train and val again.
    let splits = split
        .partition
        .into_iter()
        .filter(|(name, _)| name != "trainval");
    let raw = Raw {
        layout: "attribute split",
        images: split.image_name,
        names: split.attr_name,
        labels: split.label,
        splits: splits.collect(),
    };
    raw.attributes(file.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layouts::tests::assert_refused;

    /// The values of one split, as text.
    fn values(data: &Attributes, split: &str) -> Vec<(String, String)> {
        let digits = |values: &[bool]| values.iter().map(|v| if *v { '1' } else { '0' }).collect();
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        let images = data.split(split).unwrap().into_iter();
        images
            .map(|image| (name(&image.path), digits(&image.values)))
            .collect()
    }

    fn pair(name: &str, values: &str) -> (String, String) {
        (name.to_owned(), values.to_owned())
    }

    fn golden(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/golden/mat")
            .join(name)
    }

    #[test]
    fn pa100k_in_file_order() {
        let data = Attributes::open(&golden("pa100k")).unwrap();
        assert_eq!(
            (data.layout, &data.names[..]),
            ("PA-100K", &["Female".to_owned(), "Hat".into()][..])
        );
        assert_eq!(
            values(&data, "train"),
            [pair("000001.jpg", "10"), pair("000002.jpg", "01")]
        );
        assert_eq!(values(&data, "trainval").len(), 3);
        assert_eq!(values(&data, "test"), [pair("000004.jpg", "00")]);
        assert!(data.images[0].path.ends_with("pa100k/data/000001.jpg"));
    }

    #[test]
    fn peta_uses_35_and_counts_images_from_1() {
        let data = Attributes::open(&golden("peta")).unwrap();
        assert_eq!((data.layout, data.names.len()), ("PETA", 35));
        let first: Vec<_> = { values(&data, "train").into_iter() }
            .map(|(name, digits)| (name, digits[..3].to_owned()))
            .collect();
        assert_eq!(first, [pair("00001.png", "000"), pair("00003.png", "010")]);
        assert_eq!(values(&data, "test")[0].1[..2], *"11");
    }

    #[test]
    fn rap2_uses_the_selected_and_reads_2_as_0() {
        let data = Attributes::open(&golden("rap2")).unwrap();
        assert_eq!(
            (data.layout, &data.names[..]),
            ("RAPv2", &["Female".to_owned(), "hat".into()][..])
        );
        assert_eq!(values(&data, "train"), [pair("a.png", "10")]);
        assert_eq!(values(&data, "val"), [pair("b.png", "00")]);
        assert_eq!(values(&data, "test"), [pair("c.png", "01")]);
        assert!(data.images[0].path.ends_with("rap2/data/a.png"));
    }

    #[test]
    fn json_splits_and_their_mistakes() {
        let good = r#"{"image_name": ["a.png", "b.png", "c.png"], "attr_name": ["hat", "bag"], "label": [[0, 1], [1, 2], [1, 1]],
            "partition": {"train": [2], "val": [0], "trainval": [2, 0], "test": [1]}}"#;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dataset_zs_run0.json");
        let open = |text: &str| {
            fs::write(&file, text).unwrap();
            fs::create_dir_all(folder.path().join("RAP_dataset")).unwrap();
            fs::write(folder.path().join("RAP_dataset/a.png"), b"").unwrap();
            Attributes::open(folder.path())
        };
        let data = open(good).unwrap();
        assert_eq!(values(&data, "test"), [pair("b.png", "10")]);
        assert_eq!(data.images.len(), 3);
        assert!(
            data.images[0].path.ends_with("RAP_dataset/b.png"),
            "{:?}",
            data.images
        );
        let changes = [
            (
                "[2], \"val\"",
                "[3], \"val\"",
                "split train: expected images 0 to 2, found 3",
            ),
            (
                "[1, 1]]",
                "[1]]",
                "labels of `c.png`: expected 2 values, found 1",
            ),
            (
                "[1, 2]",
                "[1, 7]",
                "labels of `b.png`: expected 0, 1 or 2, found 7",
            ),
            (
                ", [1, 1]]",
                "]",
                "labels: expected 3 rows, as many as images, found 2",
            ),
            (
                "attr_name",
                "names",
                "not a split of attributes: missing field `attr_name`",
            ),
        ];
        assert_refused(good, &changes, open);
        let error = Attributes::open(Path::new("nowhere"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("nowhere/attributes.csv") && error.contains("nowhere/PETA/PETA.mat"),
            "{error}"
        );
        let error = Attributes::open(&golden("values.mat"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("expected the variables of PA-100K, PETA or RAPv2, found `doubles`"),
            "{error}"
        );
    }
}
