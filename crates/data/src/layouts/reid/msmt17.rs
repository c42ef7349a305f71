//! MSMT17: images in folders of people, and lists that say who is where.
//!
//! ```text
//! MSMT17/train/0000/0000_000_01_0303morning_0008_0.jpg       camera: the third part of the name
//!        test/0000/0000_000_01_0303morning_0008_0.jpg
//!        list_train.txt      0000/0000_000_01_0303morning_0008_0.jpg 0
//!        list_val.txt, list_query.txt, list_gallery.txt
//! ```
//!
//! `MSMT17_V1` and `MSMT17_V2` have the same; the images of V2 lie in `mask_train_v2` and
//! `mask_test_v2`. Persons are counted from 0 in the lists and from 1 here, where 0 is a
//! distractor. Copies in the layout of Market-1501 are read as such.

use std::path::{Path, PathBuf};

use super::dataset::{MsmtVal, ReidDataset, ReidImage};
use crate::layouts::layout::{Layout, LayoutReader, OfficialCounts};
use crate::layouts::{LayoutError, find};

pub(crate) const LAYOUT: Layout = Layout {
    name: "MSMT17",
    signature: "lists `list_train.txt`, `list_val.txt`, `list_query.txt` and `list_gallery.txt`",
    official: &[OfficialCounts {
        dataset: "MSMT17",
        folder_words: &["msmt17"],
        // Training with the validation images, as most published results have it.
        counts: &[
            ("training images", 32_621),
            ("of the training images in list_val.txt", 2_373),
            ("training people", 1_041),
            ("query images", 11_659),
            ("query people", 3_060),
            ("gallery images", 82_161),
            ("gallery people", 3_060),
            ("cameras", 15),
        ],
    }],
    reader: LayoutReader::Reid { find: place, read },
};

/// Folders below the one given where the lists are looked for.
const ROOTS: [&str; 8] = [
    "",
    "MSMT17",
    "msmt17",
    "MSMT17_V1",
    "MSMT17_V2",
    "msmt17/MSMT17_V1",
    "msmt17/MSMT17_V2",
    "msmt17/MSMT17",
];

/// The folder with the lists: `folder`, or one of the usual folders below it.
fn place(folder: &Path) -> Result<PathBuf, LayoutError> {
    let candidates = ROOTS.map(|root| Path::new(root).join("list_query.txt").display().to_string());
    let query = find(folder, &candidates, LAYOUT.name, LAYOUT.signature)?;
    Ok(query.parent().unwrap_or(folder).to_owned())
}

/// Reads the dataset in a folder.
fn read(root: PathBuf, val: MsmtVal) -> Result<ReidDataset, LayoutError> {
    let images = |plain: &str, masked: &str| match root.join(masked) {
        folder if folder.is_dir() => folder,
        _ => root.join(plain),
    };
    let (train_images, test_images) = (
        images("train", "mask_train_v2"),
        images("test", "mask_test_v2"),
    );
    let list = |name: &str, images: &PathBuf| crops(&root.join(name), images);
    let mut train = list("list_train.txt", &train_images)?;
    let mut held = match root.join("list_val.txt").exists() {
        true => list("list_val.txt", &train_images)?,
        false => Vec::new(),
    };
    if val == MsmtVal::Train {
        train.append(&mut held);
    }
    Ok(ReidDataset {
        layout: LAYOUT.name,
        train,
        val: held,
        query: list("list_query.txt", &test_images)?,
        gallery: list("list_gallery.txt", &test_images)?,
        root,
        junk: 0,
    })
}

fn crops(list: &Path, images: &Path) -> Result<Vec<ReidImage>, LayoutError> {
    let text = crate::text::read_text(list)?;
    let mut crops = Vec::new();
    for (number, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let crop = parse(line.trim(), images).ok_or_else(|| LayoutError::Line {
            file: list.display().to_string(),
            line: number + 1,
            expected: "a path and a person, as in `0000/0000_000_01_0303morning_0008_0.jpg 0`"
                .to_owned(),
            found: format!("`{line}`"),
        })?;
        crops.push(crop);
    }
    if crops.is_empty() {
        return Err(LayoutError::File {
            file: list.display().to_string(),
            expected: "images of people".to_owned(),
            found: "none".to_owned(),
        });
    }
    Ok(crops)
}

fn parse(line: &str, images: &Path) -> Option<ReidImage> {
    let (path, person) = line.rsplit_once(char::is_whitespace)?;
    let name = path.trim().rsplit('/').next()?;
    let person: u32 = person.parse().ok()?;
    Some(ReidImage {
        path: images.join(path.trim()),
        name: path.trim().to_owned(),
        person: i64::from(person) + 1,
        camera: name.split('_').nth(2)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layouts::reid::{cameras, people};
    use fs_err as fs;

    fn make(root: &str, folders: [&str; 2]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join(root);
        for (list, images, lines) in [
            (
                "train",
                folders[0],
                "0000/0000_000_01_0303morning_0008_0.jpg 0\n0001/0001_000_05_0303noon_1_0.jpg 1\n",
            ),
            (
                "val",
                folders[0],
                "0001/0001_001_15_0303noon_0009_1.jpg 1\n",
            ),
            (
                "query",
                folders[1],
                "0000/0000_000_01_0302morning_0001_0.jpg 0\r\n",
            ),
            (
                "gallery",
                folders[1],
                "0000/0000_001_03_0302morning_0001_0.jpg 0\n\n",
            ),
        ] {
            fs::create_dir_all(root.join(images)).unwrap();
            fs::write(root.join(format!("list_{list}.txt")), lines).unwrap();
        }
        folder
    }

    #[test]
    fn validation_images_train_or_are_held_out() {
        let folder = make("MSMT17_V1", ["train", "test"]);
        let data = ReidDataset::open(folder.path()).unwrap();
        assert_eq!(
            (
                data.layout,
                data.train.len(),
                people(&data.train),
                cameras(&data.train)
            ),
            ("MSMT17", 3, 2, 3)
        );
        assert!(data.val.is_empty() && data.problems().is_empty());
        assert_eq!((data.query[0].person, data.query[0].camera), (1, 1));
        let expected = "MSMT17_V1/test/0000/0000_001_03_0302morning_0001_0.jpg";
        assert!(data.gallery[0].path.ends_with(expected));
        let data = ReidDataset::open_with(folder.path(), MsmtVal::Holdout).unwrap();
        assert_eq!((data.train.len(), data.val.len()), (2, 1));
    }

    #[test]
    fn version_two_and_wrong_lines() {
        let folder = make("msmt17/MSMT17_V2", ["mask_train_v2", "mask_test_v2"]);
        let data = ReidDataset::open(folder.path()).unwrap();
        assert!(
            data.query[0]
                .path
                .to_string_lossy()
                .contains("mask_test_v2/0000/")
        );
        let list = data.root.join("list_gallery.txt");
        for (text, expected) in [
            (
                "0000/photo.jpg 0\n",
                "list_gallery.txt, line 1: expected a path and a person",
            ),
            (
                "\n",
                "list_gallery.txt: expected images of people, found none",
            ),
        ] {
            fs::write(&list, text).unwrap();
            let error = ReidDataset::open(folder.path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        fs::remove_file(list).unwrap();
        let error = ReidDataset::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("list_gallery.txt"), "{error}");
    }
}
