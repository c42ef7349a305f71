//! People for re-identification, in any layout: that of [`super::market1501`], which DukeMTMC-reID, CUHK03 (new protocol) and
//! copies of MSMT17 share; that of [`super::msmt17`]; or a table:
//!
//! ```text
//! reid.csv      image,person,camera,split
//!               a/0001.jpg,anna,north,train
//! ```
//!
//! Paths are relative to the table; splits are `train`, `val`, `query` and `gallery`. Person and camera are whole numbers, or any
//! names; person -1 is dropped. Person 0 is a distractor where only the gallery shows it, as in Market-1501; in a table
//! that numbers its people from 0 (train or queries show person 0) it is a person like all others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::csv::{Table, check_lines};
use super::json::whole;
use super::{LayoutError, distinct, find, market1501, msmt17};

/// An image of one person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crop {
    /// The file.
    pub path: PathBuf,
    /// What the data set calls it: its path in the table or the list, else the file's name.
    pub name: String,
    /// Person; 0 for a distractor.
    pub person: i64,
    /// Camera, counted from 1 in published layouts.
    pub camera: i64,
}

/// A data set of people seen by several cameras.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reid {
    /// Name of the layout.
    pub layout: &'static str,
    /// The folder that holds it.
    pub root: PathBuf,
    /// Training images; may be none.
    pub train: Vec<Crop>,
    /// Images held out of training.
    pub val: Vec<Crop>,
    /// Queries.
    pub query: Vec<Crop>,
    /// Gallery, distractors included.
    pub gallery: Vec<Crop>,
    /// Images of person -1 that were dropped.
    pub junk: usize,
}

/// Where MSMT17's validation images go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MsmtVal {
    /// Into training, as most published figures have it (32,621 images).
    #[default]
    Train,
    /// Apart.
    Holdout,
}

impl std::str::FromStr for MsmtVal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "train" => Ok(Self::Train),
            "holdout" => Ok(Self::Holdout),
            other => Err(format!("expected `train` or `holdout`, found `{other}`")),
        }
    }
}

impl Reid {
    /// Opens the data set in `path`, in one of the usual folders below it, or of the table `path`; MSMT17's validation images
    /// go into training.
    ///
    /// # Errors
    /// If there is none, or something in it cannot be.
    pub fn open(path: &Path) -> Result<Self, LayoutError> {
        Self::open_with(path, MsmtVal::default())
    }

    /// The same with a say on MSMT17's validation images.
    ///
    /// # Errors
    /// As [`Reid::open`].
    pub fn open_with(path: &Path, msmt_val: MsmtVal) -> Result<Self, LayoutError> {
        if path.is_file() {
            return table(path);
        }
        let mut tried_all = Vec::new();
        let market = || market1501::read(market1501::place(path)?);
        let msmt = || msmt17::read(msmt17::place(path)?, msmt_val);
        let csv = || table(&table_place(path)?);
        let layouts: [&dyn Fn() -> Result<Self, LayoutError>; 3] = [&market, &msmt, &csv];
        for open in layouts {
            match open() {
                Err(LayoutError::NotFound { tried, .. }) => tried_all.extend(tried),
                other => return other,
            }
        }
        Err(LayoutError::NotFound {
            folder: path.display().to_string(),
            layout: "re-identification data",
            expected: "folders `query` and `bounding_box_test` (Market-1501), lists `list_query.txt` and others (MSMT17), or a \
                       table `reid.csv`",
            tried: tried_all,
        })
    }

    /// What stands in the way of an evaluation: queries without a match, images named twice.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut seen_by: BTreeMap<i64, BTreeSet<i64>> = BTreeMap::new();
        for crop in &self.gallery {
            seen_by.entry(crop.person).or_default().insert(crop.camera);
        }
        let alone = |crop: &&Crop| {
            let cameras = seen_by.get(&crop.person);
            cameras.is_none_or(|cameras| cameras.iter().all(|camera| *camera == crop.camera))
        };
        let unmatched: Vec<&Crop> = self.query.iter().filter(alone).collect();
        if let Some(first) = unmatched.first() {
            problems.push(format!(
                "{} of {} queries have no gallery image of the same person from another camera, the first: {}",
                unmatched.len(),
                self.query.len(),
                first.path.display()
            ));
        }
        for (split, crops) in [
            ("train", &self.train),
            ("query", &self.query),
            ("gallery", &self.gallery),
        ] {
            let mut paths = BTreeSet::new();
            let twice: Vec<&Crop> = { crops.iter() }
                .filter(|crop| !paths.insert(&crop.path))
                .collect();
            if let Some(first) = twice.first() {
                let first = first.path.display();
                problems.push(format!(
                    "{} images of {split} are listed twice, the first: {first}",
                    twice.len()
                ));
            }
        }
        problems
    }

    /// Name and published counts of the data set that this seems to be: by its folder's name, else by its counts.
    pub fn published(&self) -> Option<&'static Published> {
        // The last two folders: those above are named by the user.
        let ends: Vec<_> = self.root.components().rev().take(2).collect();
        let place = format!("{ends:?}").to_lowercase();
        let named = |set: &&Published| set.words.iter().all(|word| place.contains(word));
        let counts = [self.train.len(), self.query.len(), self.gallery.len()];
        let equal = |set: &&Published| {
            let [train, _, query, _, gallery, _] = set.counts;
            let published = [train, query, gallery];
            published.iter().zip(counts).any(|(a, b)| *a == b as u64)
        };
        PUBLISHED
            .iter()
            .find(named)
            .or_else(|| PUBLISHED.iter().find(equal))
    }
}

/// What a published data set holds.
#[derive(Debug, PartialEq, Eq)]
pub struct Published {
    /// Its name.
    pub name: &'static str,
    /// All of these are in its path.
    words: &'static [&'static str],
    /// Training images and people, query images and people, gallery images and people.
    pub counts: [u64; 6],
    /// Cameras, where the files name them.
    pub cameras: Option<u64>,
}

/// Images of MSMT17's `list_val.txt`, which are among those for training.
pub const MSMT17_VAL: u64 = 2_373;

/// Counts by the data sets' authors. Market-1501's gallery is without junk, its people with those of the queries alone.
pub const PUBLISHED: [Published; 5] = [
    published(
        "Market-1501",
        &["market"],
        [12_936, 751, 3_368, 750, 15_913, 750],
        Some(6),
    ),
    published(
        "DukeMTMC-reID",
        &["duke"],
        [16_522, 702, 2_228, 702, 17_661, 1_110],
        Some(8),
    ),
    published(
        "CUHK03 labelled",
        &["cuhk03", "label"],
        [7_368, 767, 1_400, 700, 5_328, 700],
        None,
    ),
    published(
        "CUHK03 detected",
        &["cuhk03", "detect"],
        [7_365, 767, 1_400, 700, 5_332, 700],
        None,
    ),
    published(
        "MSMT17",
        &["msmt17"],
        [32_621, 1_041, 11_659, 3_060, 82_161, 3_060],
        Some(15),
    ),
];

const fn published(
    name: &'static str,
    words: &'static [&'static str],
    counts: [u64; 6],
    cameras: Option<u64>,
) -> Published {
    Published {
        name,
        words,
        counts,
        cameras,
    }
}

/// Number of different people, distractors left out.
pub fn people(crops: &[Crop]) -> usize {
    let people: BTreeSet<i64> = crops.iter().map(|c| c.person).filter(|p| *p > 0).collect();
    people.len()
}

/// Number of different cameras.
pub fn cameras(crops: &[Crop]) -> usize {
    let cameras: BTreeSet<i64> = crops.iter().map(|c| c.camera).collect();
    cameras.len()
}

/// The table in a folder.
pub(crate) fn table_place(folder: &Path) -> Result<PathBuf, LayoutError> {
    let candidates = ["reid.csv".to_owned(), "reid/reid.csv".to_owned()];
    find(folder, &candidates, "re-identification table", "`reid.csv`")
}

/// Reads a table.
pub(crate) fn table(path: &Path) -> Result<Reid, LayoutError> {
    let table = Table::read(path, &["image", "person", "camera", "split"])?;
    let root = path.parent().unwrap_or(Path::new("")).to_owned();
    let column = |index: usize| numbers(table.rows.iter().map(|(_, cells)| cells[index].trim()));
    let (persons, cameras) = (column(1), column(2));
    let mut reid = Reid {
        layout: "re-identification table",
        root: root.clone(),
        train: Vec::new(),
        val: Vec::new(),
        query: Vec::new(),
        gallery: Vec::new(),
        junk: 0,
    };
    // Nobody is searched for, or trained on, who is a distractor.
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
            _ => split.push(Crop {
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

/// Names as numbers: as they are if all are numbers, else counted from 1 in the order of their occurrence, but for 0 and -1.
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
    use crate::layouts::tests::in_folder;

    fn open(text: &str) -> Result<Reid, LayoutError> {
        in_folder("reid.csv", text, Reid::open)
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
        assert!(data.problems().is_empty() && data.published().is_none());
        assert!(data.query[0].path.ends_with("c.jpg"));
    }

    #[test]
    fn people_numbered_from_zero_and_as_decimals_are_all_there() {
        let header = "image,person,camera,split\n";
        let data = open(&format!(
            "{header}a.jpg,0,1,train\nb.jpg,1,1,train\nc.jpg,5555,1,train\nd.jpg,2.0,1,gallery\ne.jpg,-1.0,1,gallery\n"
        ))
        .unwrap();
        let people = |crops: &[Crop]| crops.iter().map(|crop| crop.person).collect::<Vec<_>>();
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
        let error = Reid::open(Path::new("nowhere")).unwrap_err().to_string();
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

    #[test]
    fn published_sets_are_known_by_name_or_counts() {
        let mut data = open("image,person,camera,split\na.jpg,1,1,query\n").unwrap();
        data.root = "/data/cuhk03-np/detected".into();
        assert_eq!(data.published().unwrap().name, "CUHK03 detected");
        data.root = "/data/people".into();
        data.query = vec![data.query[0].clone(); 2_228];
        assert_eq!(data.published().unwrap().name, "DukeMTMC-reID");
    }
}
