//! Tests of published folders of label maps.

use std::path::Path;

use fs_err as fs;

use super::{LabelMap, ParsingDataset};

fn make(names: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in names {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}

fn stems(data: &ParsingDataset, split: &str) -> Vec<String> {
    let stem = |path: &Path| path.file_stem().unwrap().to_string_lossy().into_owned();
    let images = data.split(split).unwrap();
    assert!(
        images
            .iter()
            .all(|image| stem(&image.image) == stem(&image.mask))
    );
    images.iter().map(|image| stem(&image.mask)).collect()
}

#[test]
fn lip_by_lists_and_in_its_official_folders() {
    let folder = make(&[
        ("LIP/train_id.txt", "b\r\na\r\n"),
        ("LIP/val_id.txt", "c\n"),
        ("LIP/train_images/a.jpg", ""),
        ("LIP/train_segmentations/a.png", ""),
        ("LIP/train_segmentations/z.png", ""),
        ("LIP/val_images/c.jpg", ""),
        ("LIP/val_segmentations/c.png", ""),
    ]);
    let data = ParsingDataset::open(folder.path()).unwrap();
    assert_eq!((data.layout, data.classes.len()), ("LIP", 20));
    assert_eq!(
        (stems(&data, "train"), stems(&data, "val")),
        (vec!["b".into(), "a".into()], vec!["c".into()])
    );
    assert_eq!(data.sides().pairs, [[14, 15], [16, 17], [18, 19]]);
    assert!(data.images[0].image.ends_with("LIP/train_images/b.jpg"));

    let folder = make(&[
        ("TrainVal_images/train_images/a.jpg", ""),
        ("TrainVal_images/val_images/c.png", ""),
        ("TrainVal_parsing_annotations/train_segmentations/a.png", ""),
        ("TrainVal_parsing_annotations/val_segmentations/c.png", ""),
        ("labels.txt", "Background\nPerson\n"),
    ]);
    let data = ParsingDataset::open(folder.path()).unwrap();
    assert_eq!(
        (stems(&data, "train"), data.classes.len()),
        (vec!["a".into()], 2)
    );
    assert!(data.images[1].image.ends_with("val_images/c.png"));
    // All masks in one folder.
    let folder = make(&[
        ("train_id.txt", "a\n"),
        ("val_id.txt", "b\n"),
        ("train_images/a.jpg", ""),
        ("val_images/b.jpg", ""),
        ("segmentations/a.png", ""),
    ]);
    let data = ParsingDataset::open(folder.path()).unwrap();
    assert_eq!(
        (stems(&data, "train").len(), stems(&data, "val").len()),
        (1, 1)
    );
}

#[test]
fn cihp_and_atr() {
    let folder = make(&[
        ("CIHP/Training/Images/0000006.jpg", ""),
        ("CIHP/Training/Category_ids/0000006.png", ""),
        ("CIHP/Validation/Images/0000001.jpg", ""),
        ("CIHP/Validation/Category_ids/0000001.png", ""),
    ]);
    let data = ParsingDataset::open(folder.path()).unwrap();
    assert_eq!(
        (data.layout, data.classes[10].as_str()),
        ("CIHP", "Torso-skin")
    );
    assert_eq!(
        (stems(&data, "train").len(), stems(&data, "val").len()),
        (1, 1)
    );

    let masks: Vec<(String, &str)> = (0..20)
        .map(|i| (format!("SegmentationClassAug/{i:02}.png"), ""))
        .collect();
    let mut names: Vec<(&str, &str)> = masks
        .iter()
        .map(|(name, text)| (name.as_str(), *text))
        .collect();
    names.push(("JPEGImages/00.jpg", ""));
    let data = ParsingDataset::open(make(&names).path()).unwrap();
    assert_eq!((data.layout, data.classes.len()), ("ATR", 18));
    assert_eq!(stems(&data, "val"), ["09", "19"]);
    names.extend([("train_id.txt", "00\n01\n"), ("test_id.txt", "02\n")]);
    let data = ParsingDataset::open(make(&names).path()).unwrap();
    assert_eq!(
        (data.splits(), stems(&data, "test")),
        (vec!["train".into(), "test".into()], vec!["02".into()])
    );
}

#[test]
fn ccp_has_its_masks_in_matlab_files() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/mat/ccp");
    let folder = make(&[("photos/0001.jpg", "")]);
    for name in ["label_list.mat", "annotations/pixel-level/0001.mat"] {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::copy(golden.join(name), path).unwrap();
    }
    let data = ParsingDataset::open(folder.path()).unwrap();
    assert_eq!(
        (data.layout, data.classes.len(), stems(&data, "train").len()),
        ("CCP", 3, 1)
    );
    let expected = LabelMap {
        height: 2,
        width: 3,
        labels: vec![0, 1, 1, 2, 2, 0],
    };
    assert_eq!(data.read_mask(&data.images[0].mask).unwrap(), expected);
}
