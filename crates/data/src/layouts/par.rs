//! Published annotation of pedestrian attributes.
//!
//! | data set | file | images | attributes in use |
//! |---|---|---|---|
//! | PA-100K | `annotation.mat` | `data/` or `release_data/release_data/` | all 26 |
//! | PETA | `PETA.mat` | `images/` | the first 35 of 105, first of five splits |
//! | RAPv2 | `RAP_annotation/RAP_annotation.mat` | `RAP_dataset/` beside it | the 54 selected of 152, first of five splits |
//! | any of these, zero-shot | `dataset_all.pkl`, `dataset_zs_run0.pkl` | one of the folders above beside it | those to evaluate, first split |
//! | any split | `dataset_all.json`, `dataset_zs_run0.json` | the same | all that the file has |
//!
//! The zero-shot splits, in which no person of the test set was seen in training, exist only as pickles of "Rethinking of
//! Pedestrian Attribute Recognition" (Jia et al. 2021); [`crate::pickle`] reads them as data. A folder may hold several of these
//! files: the first is taken, in the order above, unless a file is given instead of the folder. A split of your own is:
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
use super::{LayoutError, in_file, read_mat};
use crate::mat::{Array, MatError, MatFile};
use crate::pickle::{Pickle, PickleValue};

/// Folders below the one given where a file of each name is looked for.
const PLACES: [(&[&str], &[&str]); 4] = [
    (&["annotation.mat"], &["", "PA100k", "PA-100K", "pa100k"]),
    (&["PETA.mat"], &["", "PETA", "peta"]),
    (
        &["RAP_annotation/RAP_annotation.mat", "RAP_annotation.mat"],
        &["", "RAP2", "rap2"],
    ),
    (
        &[
            "dataset_all.pkl",
            "dataset_all.json",
            "dataset_zs_run0.pkl",
            "dataset_zs_run0.json",
        ],
        &["", "PA100k", "PETA", "RAP2"],
    ),
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

/// Published numbers of attributes and of images to train, validate and test; of the zero-shot splits as Jia et al. give them.
pub const PUBLISHED: [(&str, [u64; 4]); 5] = [
    ("PA-100K", [26, 80_000, 10_000, 10_000]),
    ("PETA", [35, 9_500, 1_900, 7_600]),
    ("PETA zero-shot", [35, 11_241, 3_826, 3_933]),
    ("RAPv2", [54, 50_957, 16_986, 16_985]),
    ("RAPv2 zero-shot", [53, 17_062, 4_648, 4_928]),
];

/// Where the files are looked for in a folder.
pub(super) fn candidates() -> Vec<String> {
    let of = |(names, folders): (&[&str], &[&str])| {
        let pairs = names
            .iter()
            .flat_map(|name| folders.iter().map(move |folder| (folder, name)));
        let path = |(folder, name): (&&str, &&str)| Path::new(folder).join(name);
        Vec::from_iter(pairs.map(|pair| path(pair).display().to_string()))
    };
    PLACES.into_iter().flat_map(of).collect()
}

/// Opens a file of these.
pub(super) fn open(file: PathBuf) -> Result<Attributes, LayoutError> {
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("json") => return json(&file),
        Some("pkl") => return pickled(file),
        _ => {}
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
                let index = index(member, count).ok_or_else(|| {
                    let expected = format!("images 0 to {}", count.saturating_sub(1));
                    error(format!("split {split}"), expected, member.to_string())
                })?;
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
                    name: self.images[index].clone(),
                    split: split.clone(),
                    values: row.iter().map(|value| *value == 1.0).collect(),
                });
            }
        }
        Ok(Attributes {
            layout: self.layout,
            file,
            others: Vec::new(),
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

/// Most bytes of a pickle that is read; the largest published one has some ten million.
const LARGEST: u64 = 1 << 30;

fn pickled(file: PathBuf) -> Result<Attributes, LayoutError> {
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
    let raw = split_of(pickle.root()).map_err(|missing| wrong(format!("no {missing}")))?;
    raw.attributes(file)
}

/// What a pickle says; what it does not say, as an error.
fn split_of(root: PickleValue) -> Result<Raw, &'static str> {
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
            .and_then(|used| used.into_iter().map(|i| index(i, *columns)).collect())
            .ok_or("columns of `label` in `label_idx.eval`")?,
    };
    let used: Vec<usize> = used;
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
    Ok(Raw {
        layout: match (description, several) {
            (Some("pa100k"), _) => "PA-100K",
            (Some("peta"), true) => "PETA",
            (Some("peta"), false) => "PETA zero-shot",
            (Some("rap2"), true) => "RAPv2",
            (Some("rap2"), false) => "RAPv2 zero-shot",
            _ => "attribute split",
        },
        images: images.into_iter().map(str::to_owned).collect(),
        names: used.iter().map(|i| names[*i].to_owned()).collect(),
        labels: { values.chunks_exact(columns.to_owned().max(1)) }
            .map(|row| used.iter().map(|i| row[*i]).collect())
            .collect(),
        splits,
    })
}

/// A position below `count`.
fn index(number: f64, count: usize) -> Option<usize> {
    let index = number as usize;
    (number >= 0.0 && number.fract() == 0.0 && index < count).then_some(index)
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

    fn pickled(name: &str) -> Attributes {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pickles");
        Attributes::open(&folder.join(name)).unwrap()
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
    fn pickled_splits_have_the_attributes_to_evaluate_in_their_order() {
        let data = pickled("peta/dataset_zs_run0.pkl");
        let names = ["attribute1".to_owned(), "attribute0".into()];
        assert_eq!(
            (data.layout, &data.names[..]),
            ("PETA zero-shot", &names[..])
        );
        let train = [pair("00001.png", "00"), pair("00004.png", "11")];
        assert_eq!(values(&data, "train"), train);
        assert_eq!(values(&data, "test"), [pair("00003.png", "10")]);
        assert_eq!(values(&data, "trainval").len(), 3);
        // Of several splits the first.
        let data = pickled("peta/dataset_all.pkl");
        assert_eq!((data.layout, data.names.len()), ("PETA", 2));
        let train = [pair("00001.png", "00"), pair("00002.png", "01")];
        assert_eq!(values(&data, "train"), train);
        let data = pickled("rap2/dataset_zs_run0.pkl");
        assert_eq!((data.layout, data.names.len()), ("RAPv2 zero-shot", 3));
        assert_eq!(values(&data, "val"), [pair("00002.png", "100")]);
        assert_eq!(values(&data, "test"), [pair("00003.png", "010")]);
        // As many to evaluate as there are, in another order: names and labels go together.
        let data = pickled("pa100k/dataset_all.pkl");
        assert_eq!(
            (data.layout, data.names[3].as_str()),
            ("PA-100K", "attribute0")
        );
        assert_eq!(values(&data, "train")[1], pair("00002.png", "0001"));
    }

    #[test]
    fn of_several_files_the_first_is_taken_and_the_others_are_known() {
        let folder = tempfile::tempdir().unwrap();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        fs::create_dir_all(folder.path().join("PETA/images")).unwrap();
        fs::write(folder.path().join("PETA/images/00001.png"), b"").unwrap();
        let zero_shot = folder.path().join("PETA/dataset_zs_run0.pkl");
        fs::copy(golden.join("pickles/peta/dataset_zs_run0.pkl"), &zero_shot).unwrap();
        let data = Attributes::open(folder.path()).unwrap();
        assert_eq!((data.layout, data.others.len()), ("PETA zero-shot", 0));
        assert!(data.images[0].path.ends_with("PETA/images/00001.png"));
        let mat = folder.path().join("PETA/PETA.mat");
        fs::copy(golden.join("mat/peta/PETA.mat"), &mat).unwrap();
        let data = Attributes::open(folder.path()).unwrap();
        assert_eq!((data.layout, &data.file), ("PETA", &mat));
        assert_eq!(data.others.as_slice(), std::slice::from_ref(&zero_shot));
        // The user's choice wins.
        let data = Attributes::open(&zero_shot).unwrap();
        assert_eq!((data.layout, data.others.len()), ("PETA zero-shot", 0));
    }

    #[test]
    fn pickles_of_something_else_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("dataset_all.pkl");
        for (bytes, expected) in [
            (
                &b"\x80\x04}."[..],
                "dataset_all.pkl: expected a pickle with image_name",
            ),
            (b"\x80\x04}.", "found no list of texts `image_name`"),
            (b"PK\x03\x04", "found opcode 0x50"),
        ] {
            fs::write(&file, bytes).unwrap();
            let error = Attributes::open(folder.path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let values = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pickles/values4.pkl");
        assert!(Attributes::open(&values).is_err());
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
