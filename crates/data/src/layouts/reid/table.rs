//! A table of images, people, cameras and splits:
//!
//! ```text
//! reid.csv      image,person,camera,split
//!               a/0001.jpg,anna,north,train
//! ```
//!
//! Paths are relative to the table; splits are `train`, `val`, `query` and `gallery`. Person and
//! camera are whole numbers, or any names; person -1 is dropped. Person 0 is a distractor where
//! only the gallery has it, as in Market-1501; in a table that numbers its people from 0 (train or
//! query images have person 0) it is a person like all others.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::dataset::{ReidDataset, ReidImage};
use crate::layouts::coco::json::whole;
use crate::layouts::csv::{Table, check_lines};
use crate::layouts::layout::{Layout, LayoutReader};
use crate::layouts::{LayoutError, distinct, find};

pub(crate) const LAYOUT: Layout = Layout {
    name: "re-identification table",
    signature: "`reid.csv` with columns image, person, camera, split",
    official: &[],
    reader: LayoutReader::Reid {
        find: place,
        read: |file, _| read(&file),
    },
};

/// The table in a folder.
fn place(folder: &Path) -> Result<PathBuf, LayoutError> {
    let candidates = ["reid.csv".to_owned(), "reid/reid.csv".to_owned()];
    find(folder, &candidates, LAYOUT.name, LAYOUT.signature)
}

/// Reads a table.
pub(crate) fn read(path: &Path) -> Result<ReidDataset, LayoutError> {
    let table = Table::read(path, &["image", "person", "camera", "split"])?;
    let root = path.parent().unwrap_or(Path::new("")).to_owned();
    let column = |index: usize| numbers(table.rows.iter().map(|(_, cells)| cells[index].trim()));
    let (persons, cameras) = (column(1), column(2));
    let mut reid = ReidDataset {
        layout: LAYOUT.name,
        root: root.clone(),
        train: Vec::new(),
        val: Vec::new(),
        query: Vec::new(),
        gallery: Vec::new(),
        junk: 0,
    };
    // Distractors are neither queries nor training images.
    let shown = |(_, cells): &(usize, Vec<String>)| cells[3].trim() != "gallery";
    let from_zero =
        { table.rows.iter().zip(&persons) }.any(|(row, person)| *person == 0 && shown(row));
    let mut faults = Vec::new();
    for (((line, cells), person), camera) in table.rows.iter().zip(persons).zip(cameras) {
        let error = |expected: &str, found: &str| LayoutError::Line {
            file: table.file.clone(),
            line: *line,
            expected: expected.to_owned(),
            found: format!("`{found}`"),
        };
        if let Some(empty) = cells[..4].iter().position(|cell| cell.trim().is_empty()) {
            faults.push(error("a value in each column", &table.header[empty]));
            continue;
        }
        let split = match cells[3].trim() {
            "train" => &mut reid.train,
            "val" => &mut reid.val,
            "query" => &mut reid.query,
            "gallery" => &mut reid.gallery,
            other => {
                faults.push(error("a split `train`, `val`, `query` or `gallery`", other));
                continue;
            }
        };
        match person {
            -1 => reid.junk += 1,
            _ if person < -1 => faults.push(error("a person from -1", &cells[1])),
            _ => split.push(ReidImage {
                path: root.join(cells[0].trim()),
                name: cells[0].trim().to_owned(),
                person: person + i64::from(from_zero),
                camera,
            }),
        }
    }
    check_lines(faults)?;
    Ok(reid)
}

/// Names as numbers: as they are if all are numbers, else counted from 1 in the order of their
/// occurrence, but for 0 and -1.
fn numbers<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Vec<i64> {
    if let Some(numbers) = names.clone().map(whole).collect() {
        return numbers;
    }
    let known: BTreeMap<String, i64> = { distinct(names.clone()).into_iter() }
        .filter(|name| !matches!(whole(name), Some(0 | -1)))
        .zip(1..)
        .collect();
    let number = |name: &str| {
        known
            .get(name)
            .copied()
            .or_else(|| whole(name))
            .unwrap_or(0)
    };
    names.map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layouts::reid::MsmtVal;
    use crate::layouts::tests::in_folder;

    fn open(text: &str) -> Result<ReidDataset, LayoutError> {
        in_folder("reid.csv", text, ReidDataset::open)
    }

    #[test]
    fn a_table_of_names() {
        let data = open(
            "image,person,camera,split\na.jpg,anna,north,train\nb.jpg,0,south,gallery\nc.jpg,bob,south,query\n\
             d.jpg,bob,north,gallery\ne.jpg,-1,north,gallery\nf.jpg,anna,south,val\n",
        )
        .unwrap();
        assert_eq!(
            (
                data.train[0].person,
                data.val[0].person,
                data.query[0].person
            ),
            (1, 1, 2)
        );
        let gallery: Vec<_> = data.gallery.iter().map(|c| (c.person, c.camera)).collect();
        assert_eq!((gallery, data.junk), (vec![(0, 2), (2, 1)], 1));
        assert!(data.problems().is_empty());
        assert!(data.query[0].path.ends_with("c.jpg"));
    }

    #[test]
    fn people_numbered_from_zero_and_as_decimals_are_all_there() {
        let header = "image,person,camera,split\n";
        let data = open(&format!(
            "{header}a.jpg,0,1,train\nb.jpg,1,1,train\nc.jpg,5555,1,train\nd.jpg,2.0,1,gallery\ne.jpg,-1.0,1,gallery\n"
        ))
        .unwrap();
        let people = |crops: &[ReidImage]| crops.iter().map(|crop| crop.person).collect::<Vec<_>>();
        assert_eq!(
            (people(&data.train), people(&data.gallery)),
            (vec![1, 2, 5556], vec![3])
        );
        assert_eq!(data.junk, 1);
        // Where only the gallery shows person 0 it is a distractor.
        let data = open(&format!(
            "{header}a.jpg,1.0,1,query\nb.jpg,0.0,1,gallery\nc.jpg,1,2,gallery\n"
        ));
        let data = data.unwrap();
        assert_eq!(
            (people(&data.query), people(&data.gallery)),
            (vec![1], vec![0, 1])
        );
        let error = open(&format!("{header}a.jpg,,2,train\nb.jpg,1,1,test\n")).unwrap_err();
        let told = error.to_string();
        assert!(told.contains("2 lines cannot be used"), "{told}");
        assert!(
            told.contains("line 2: expected a value in each column, found `person`"),
            "{told}"
        );
        assert!(told.contains("line 3: expected a split"), "{told}");
    }

    #[test]
    fn numbers_stay_and_problems_are_named() {
        let data = open(
            "image,person,camera,split\na.jpg,7,3,query\nb.jpg,9,3,query\nc.jpg,7,3,gallery\nd.jpg,9,4,gallery\nd.jpg,9,4,gallery\n",
        )
        .unwrap();
        assert_eq!((data.query[0].person, data.query[0].camera), (7, 3));
        let problems = data.problems();
        assert!(
            problems[0].starts_with("1 of 2 queries have no gallery image"),
            "{problems:?}"
        );
        assert!(problems[0].ends_with("a.jpg"), "{problems:?}");
        assert!(
            problems[1].starts_with("1 images of gallery are listed twice"),
            "{problems:?}"
        );
    }

    #[test]
    fn wrong_lines_are_named() {
        for (line, expected) in [
            (
                "a.jpg,1,2,test",
                "line 2: expected a split `train`, `val`, `query` or `gallery`, found `test`",
            ),
            (
                "a.jpg,,2,train",
                "line 2: expected a value in each column, found `person`",
            ),
            (
                "a.jpg,-5,2,train",
                "line 2: expected a person from -1, found `-5`",
            ),
        ] {
            let error = open(&format!("image,person,camera,split\n{line}\n")).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
        // The message shows some of the paths, the error has all.
        let error = format!("{:?}", ReidDataset::open(Path::new("nowhere")).unwrap_err());
        for tried in [
            "nowhere/bounding_box_test",
            "nowhere/MSMT17_V1/list_query.txt",
            "nowhere/reid.csv",
        ] {
            assert!(error.contains(tried), "{error}");
        }
        assert_eq!("holdout".parse(), Ok(MsmtVal::Holdout));
        assert!("off".parse::<MsmtVal>().is_err());
    }
}
