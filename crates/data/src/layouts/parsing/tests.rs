//! Tests of label maps and their table.

use std::collections::BTreeMap;
use std::path::Path;

use fs_err as fs;

use super::*;

fn write_png(
    path: &Path,
    width: u32,
    height: u32,
    color: png::ColorType,
    depth: png::BitDepth,
    data: &[u8],
) {
    let mut encoder = png::Encoder::new(fs::File::create(path).unwrap(), width, height);
    encoder.set_color(color);
    encoder.set_depth(depth);
    if color == png::ColorType::Indexed {
        encoder.set_palette(vec![200; 3 * 16]);
    }
    encoder
        .write_header()
        .unwrap()
        .write_image_data(data)
        .unwrap();
}

fn folder(labels: &str, csv: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("labels.txt"), labels).unwrap();
    fs::write(folder.path().join("parsing.csv"), csv).unwrap();
    folder
}

#[test]
fn indices_come_as_stored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    write_png(
        &path,
        3,
        2,
        png::ColorType::Grayscale,
        png::BitDepth::Eight,
        &[0, 1, 2, 255, 4, 5],
    );
    assert_eq!(
        read_label_map(&path).unwrap(),
        LabelMap {
            height: 2,
            width: 3,
            labels: vec![0, 1, 2, 255, 4, 5]
        }
    );
    write_png(
        &path,
        3,
        2,
        png::ColorType::Indexed,
        png::BitDepth::Four,
        &[0x12, 0x30, 0x45, 0x60],
    );
    assert_eq!(read_label_map(&path).unwrap().labels, [1, 2, 3, 4, 5, 6]);
    write_png(
        &path,
        3,
        1,
        png::ColorType::Grayscale,
        png::BitDepth::One,
        &[0b1010_0000],
    );
    assert_eq!(read_label_map(&path).unwrap().labels, [1, 0, 1]);
    write_png(
        &path,
        1,
        1,
        png::ColorType::Rgb,
        png::BitDepth::Eight,
        &[1, 2, 3],
    );
    let error = read_label_map(&path).unwrap_err().to_string();
    assert!(
        error.contains("a.png: expected a PNG of class indices") && error.contains("Rgb"),
        "{error}"
    );
    fs::write(&path, b"\x89PNG\r\n\x1a\nnot").unwrap();
    assert!(read_label_map(&path).is_err());
}

#[test]
fn labels_must_have_names_and_can_be_made_other_classes() {
    let folder = folder("null\nhat\nhair\n", "image,mask,split\nb.jpg,a.png,train\n");
    let path = folder.path().join("a.png");
    let data = ParsingDataset::open(folder.path()).unwrap();
    assert_eq!(
        (data.classes.len(), data.splits()),
        (3, vec!["train".to_owned()])
    );
    assert_eq!(data.split("train").unwrap()[0].mask, path);
    write_png(
        &path,
        4,
        1,
        png::ColorType::Grayscale,
        png::BitDepth::Eight,
        &[0, 1, 2, 255],
    );
    assert_eq!(data.read_mask(&path).unwrap().labels, [0, 1, 2, 255]);
    let heads = |labels: &[u8], _: usize, names: &[String]| -> Vec<u8> {
        let class = |label: &u8| match names.get(usize::from(*label)).map(String::as_str) {
            Some("null") => 0,
            Some("hair") => 1,
            _ => IGNORE,
        };
        labels.iter().map(class).collect()
    };
    let merged = data.clone().relabeled(&["background", "head"], heads);
    assert_eq!(merged.read_mask(&path).unwrap().labels, [0, 255, 1, 255]);
    assert_eq!(
        merged.pixels("train").unwrap(),
        BTreeMap::from([(0, 1), (1, 1), (255, 2)])
    );
    write_png(
        &path,
        2,
        2,
        png::ColorType::Grayscale,
        png::BitDepth::Eight,
        &[0, 0, 0, 3],
    );
    let error = data.read_mask(&path).unwrap_err().to_string();
    assert!(
        error.contains("expected labels below 3 or 255, found 3 at row 1, column 1"),
        "{error}"
    );
}

#[test]
fn tables_and_names_are_checked() {
    let error = ParsingDataset::open(Path::new("nowhere"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("nowhere/parsing.csv"), "{error}");
    for (labels, csv, expected) in [
        (
            "a\n\nb\n",
            "image,mask,split\n",
            "labels.txt, line 2: expected a class name",
        ),
        ("", "image,mask,split\n", "expected 1 to 255 class names"),
        (
            "a\n",
            "image,split\n",
            "parsing.csv, line 1: expected a header that begins `image,mask,split`",
        ),
    ] {
        let error = ParsingDataset::open(folder(labels, csv).path())
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
}

/// Labels of a mask without pixels used to panic, and those of a claimed size to take memory.
#[test]
fn masks_of_no_pixel_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.mat");
    let read = |height: u32, width: u32, values: &[u8]| {
        let file = crate::mat::tests::file_of_matrix("groundtruth", [height, width], values);
        fs::write(&path, file).unwrap();
        read_label_map(&path).map_err(|error| error.to_string())
    };
    assert_eq!(read(2, 1, &[3, 4]).unwrap().labels, [3, 4]);
    for (height, width) in [(0, 0), (3, 0), (0, 3), (20_000, 20_000)] {
        let error = read(height, width, &[]).unwrap_err();
        assert!(
            error.contains("expected 1 to 100 million pixels"),
            "{error}"
        );
    }
}

/// To open a pipe used to wait for a writer without end.
#[cfg(unix)]
#[test]
fn pipes_are_no_masks() {
    let folder = tempfile::tempdir().unwrap();
    for (name, expected) in [
        ("a.png", "found a named pipe"),
        ("a.mat", "expected a MATLAB file"),
    ] {
        let pipe = folder.path().join(name);
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        let error = read_label_map(&pipe).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
