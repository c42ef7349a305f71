//! Data sets as their authors lay them out, in miniature: every reader finds their images, and
//! `clasp data check` says what is there and what is wrong. What it says is kept in
//! `data_check.txt`; `BLESS=1 cargo test` writes it anew.

use fs_err as fs;
use std::path::{Path, PathBuf};

use clasp_data::image::{Limits, decode};
use clasp_data::layouts::attributes::AttributeDataset;
use clasp_data::layouts::coco::BoxDataset;
use clasp_data::layouts::coco::{KeypointDataset, read_boxes};
use clasp_data::layouts::parsing::ParsingDataset;
use clasp_data::layouts::reid::ReidDataset;
use clasp_data::layouts::search::{GallerySize, SearchDataset};

use crate::{command, miniatures};

/// How many of some images can be decoded, and the names of the others.
fn decoded(paths: impl IntoIterator<Item = PathBuf>) -> (usize, Vec<String>) {
    let (mut read, mut others) = (0, Vec::new());
    for path in paths {
        match fs::read(&path) {
            Ok(bytes) => {
                decode(&bytes, &Limits::default()).expect("an image");
                read += 1;
            }
            Err(_) => others.push(
                path.file_name()
                    .expect("a name")
                    .to_string_lossy()
                    .into_owned(),
            ),
        }
    }
    (read, others)
}

fn made() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    miniatures::make(folder.path());
    folder
}

#[test]
fn readers_find_the_images_of_official_folders() {
    let folder = made();
    let at = |name: &str| folder.path().join(name);
    let none = Vec::<String>::new();

    for (name, images, missing) in [
        ("market", 8, vec![]),
        ("duke", 5, vec![]),
        ("cuhk03", 4, vec![]),
        ("msmt17", 6, vec![]),
        (
            "msmt17/MSMT17_V2",
            4,
            vec![
                "0001_000_05_0303noon_0200_1.jpg",
                "0002_009_13_0302noon_0009_0.jpg",
            ],
        ),
        ("tables", 5, vec![]),
    ] {
        let data = ReidDataset::open(&at(name)).expect(name);
        let crops = [data.train, data.query, data.gallery].concat();
        let paths = crops.into_iter().map(|crop| crop.path);
        let missing: Vec<String> = missing.into_iter().map(str::to_owned).collect();
        assert_eq!(decoded(paths), (images, missing), "{name}");
    }
    for (name, layout, images, missing) in [
        ("pa100k", "PA-100K", 3, vec!["000003.jpg"]),
        ("peta", "PETA", 4, vec![]),
        ("peta/PETA/dataset_zs_run0.pkl", "PETA zero-shot", 4, vec![]),
        ("rap2", "RAPv2", 3, vec![]),
        (
            "rap2/RAP2/dataset_zs_run0.pkl",
            "RAPv2 zero-shot",
            4,
            vec![],
        ),
        ("split", "attribute split (JSON)", 4, vec![]),
        ("tables", "attribute table", 3, vec![]),
    ] {
        let data = AttributeDataset::open(&at(name)).expect(name);
        let paths = data.images.into_iter().map(|image| image.path);
        let missing: Vec<String> = missing.into_iter().map(str::to_owned).collect();
        assert_eq!(
            (data.layout, decoded(paths)),
            (layout, (images, missing)),
            "{name}"
        );
    }
    for (name, layout, images, readable) in [
        ("lip", "LIP", 4, 3),
        ("cihp", "CIHP", 2, 2),
        ("atr", "ATR", 3, 3),
        ("ccp", "CCP", 1, 1),
        ("tables", "label maps", 2, 2),
    ] {
        let data = ParsingDataset::open(&at(name)).expect(name);
        let paths = data.images.iter().map(|image| image.image.clone());
        assert_eq!(
            (data.layout, decoded(paths)),
            (layout, (images, none.clone()))
        );
        let masks = data
            .images
            .iter()
            .filter(|image| data.read_mask(&image.mask).is_ok());
        assert_eq!(masks.count(), readable, "{name}");
    }

    let data = KeypointDataset::open(&at("coco"), "val").expect("keypoints");
    assert_eq!(
        decoded(data.images.into_iter().map(|image| image.path)).0,
        2
    );
    let file = "coco/coco/person_detection_results/COCO_val2017_detections_AP_H_56_person.json";
    let boxes = read_boxes(&at(file), data.category).expect("boxes");
    // As given: beyond the left edge.
    assert_eq!((boxes.len(), boxes[0].bbox[0]), (1, -2.0));

    for (split, file, visibility) in [("train", "train.json", 1.0), ("val", "val_gt.json", 0.4)] {
        let data = BoxDataset::open(&at("citypersons"), split).expect(split);
        assert!(data.file.ends_with(file));
        assert_eq!(
            (data.people.len(), data.people[0].visibility),
            (2, visibility)
        );
        assert_eq!(
            decoded(data.images.into_iter().map(|image| image.path)).0,
            1
        );
    }

    for (name, frames, missing) in [
        ("cuhk-sysu", 5, vec![]),
        ("prw", 3, vec!["c1s1_000103.jpg".to_owned()]),
        ("tables", 4, vec![]),
    ] {
        let data = SearchDataset::open(&at(name), GallerySize::default()).expect(name);
        let all = data.train.into_iter().chain(data.test);
        assert_eq!(
            decoded(all.map(|frame| frame.path)),
            (frames, missing),
            "{name}"
        );
    }
}

/// What `clasp data check` prints, and its status.
fn check(folder: &Path, arguments: &[&str]) -> (String, i32) {
    let output = command(folder, &[&["data", "check"], arguments].concat())
        .output()
        .expect("the program starts");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    (text, output.status.code().expect("a status"))
}

fn found_layouts(report: &str) -> usize {
    let report: serde_json::Value = serde_json::from_str(report).expect("JSON");
    report["layouts"].as_array().expect("layouts").len()
}

#[test]
fn data_check_says_what_is_there_and_what_is_wrong() {
    let folder = made();
    let mut names: Vec<String> = { fs::read_dir(folder.path()).expect("a folder") }
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    let (mut found, mut layouts) = (String::new(), 0);
    for name in &names {
        let (text, code) = check(folder.path(), &[name]);
        found.push_str(&format!(
            "$ clasp data check {name}\n{text}(status {code})\n\n"
        ));
        layouts += found_layouts(&check(folder.path(), &[name, "--json"]).0);
    }
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/program/data_check.txt");
    if std::env::var_os("BLESS").is_some() {
        fs::write(&kept, &found).expect("a file");
    }
    let kept = fs::read_to_string(kept).expect("what was said before");
    for (found, kept) in found.split("\n\n").zip(kept.split("\n\n")) {
        assert_eq!(found, kept);
    }
    assert_eq!(found.len(), kept.len());

    // Of all side by side, each is found once.
    let all = check(folder.path(), &[".", "--json"]).0;
    assert_eq!(found_layouts(&all), layouts);
}
