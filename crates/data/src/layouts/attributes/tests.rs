//! Tests of published annotation.

use std::path::{Path, PathBuf};

use fs_err as fs;

use super::AttributeDataset;
use crate::layouts::tests::assert_refused;

/// The values of one split, as text.
fn values(data: &AttributeDataset, split: &str) -> Vec<(String, String)> {
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

fn pickled(name: &str) -> AttributeDataset {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pickles");
    AttributeDataset::open(&folder.join(name)).unwrap()
}

#[test]
fn pa100k_in_file_order() {
    let data = AttributeDataset::open(&golden("pa100k")).unwrap();
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
    let data = AttributeDataset::open(&golden("peta")).unwrap();
    assert_eq!((data.layout, data.names.len()), ("PETA", 35));
    let first: Vec<_> = { values(&data, "train").into_iter() }
        .map(|(name, digits)| (name, digits[..3].to_owned()))
        .collect();
    assert_eq!(first, [pair("00001.png", "000"), pair("00003.png", "010")]);
    assert_eq!(values(&data, "test")[0].1[..2], *"11");
}

#[test]
fn rap2_uses_the_selected_and_reads_2_as_0() {
    let data = AttributeDataset::open(&golden("rap2")).unwrap();
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
    let data = AttributeDataset::open(folder.path()).unwrap();
    assert_eq!((data.layout, data.others.len()), ("PETA zero-shot", 0));
    assert!(data.images[0].path.ends_with("PETA/images/00001.png"));
    let mat = folder.path().join("PETA/PETA.mat");
    fs::copy(golden.join("mat/peta/PETA.mat"), &mat).unwrap();
    let data = AttributeDataset::open(folder.path()).unwrap();
    assert_eq!((data.layout, &data.file), ("PETA", &mat));
    assert_eq!(data.others.as_slice(), std::slice::from_ref(&zero_shot));
    // The user's choice wins.
    let data = AttributeDataset::open(&zero_shot).unwrap();
    assert_eq!((data.layout, data.others.len()), ("PETA zero-shot", 0));
}

#[test]
fn pickles_of_something_else_are_listed() {
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
        let error = AttributeDataset::open(folder.path())
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
    let values = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pickles/values4.pkl");
    assert!(AttributeDataset::open(&values).is_err());
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
        AttributeDataset::open(folder.path())
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
            "split train: expected images 0 to 2, every image once, found 3",
        ),
        (
            "[2], \"val\"",
            "[2, 2], \"val\"",
            "split train: expected images 0 to 2, every image once, found 2 twice",
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
    // As Windows' editors save it.
    assert_eq!(open(&format!("\u{feff}{good}")).unwrap().images.len(), 3);
    // The message shows some of the paths, the error has all.
    let error = format!(
        "{:?}",
        AttributeDataset::open(Path::new("nowhere")).unwrap_err()
    );
    assert!(
        error.contains("nowhere/attributes.csv") && error.contains("nowhere/PETA/PETA.mat"),
        "{error}"
    );
    let error = AttributeDataset::open(&golden("values.mat"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("found variables `doubles`"), "{error}");
}

/// Positions that repeat, and rows without columns, used to take memory that no file has.
#[test]
fn repeated_positions_and_empty_rows_are_refused() {
    use super::annotation::positions;
    assert_eq!(positions(&[2.0, 0.0], 3), Ok(vec![2, 0]));
    for (numbers, found) in [
        (vec![1.0, 0.0, 1.0], "1 twice"),
        (vec![3.0], "3"),
        (vec![-1.0], "-1"),
        (vec![0.5], "0.5"),
        (vec![f64::NAN], "NaN"),
    ] {
        assert_eq!(positions(&numbers, 3), Err(found.to_owned()));
    }
    // One image in more splits than anyone makes.
    let splits: Vec<String> = (0..65).map(|i| format!("\"{i}\": [0]")).collect();
    let text = format!(
        r#"{{"image_name": ["a"], "attr_name": ["hat"], "label": [[0]], "partition": {{{}}}}}"#,
        splits.join(", ")
    );
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("dataset_all.json"), text).unwrap();
    let error = AttributeDataset::open(folder.path()).unwrap_err();
    let expected = "splits: expected each image in at most 64 of them, found 65 members";
    assert!(error.to_string().contains(expected), "{error}");

    // A variable `label` of 2^31 - 1 rows and no columns.
    let file = crate::mat::tests::file_of_matrix("label", [i32::MAX as u32, 0], &[]);
    let mat = crate::mat::MatFile::from_bytes(&file).unwrap();
    let error = super::matlab::rows(mat.get("label").unwrap()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("found 2147483647 rows of 0 columns"),
        "{error}"
    );
}
