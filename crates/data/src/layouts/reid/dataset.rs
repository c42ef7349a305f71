//! Images of people with identities and cameras.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// An image of one person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReidImage {
    /// The file.
    pub path: PathBuf,
    /// Its name in the dataset: the path in the table or the list, else the file's name.
    pub name: String,
    /// Person; 0 for a distractor.
    pub person: i64,
    /// Camera, counted from 1 in published layouts.
    pub camera: i64,
}

/// A dataset of people in images of several cameras.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReidDataset {
    /// Name of the layout.
    pub layout: &'static str,
    /// The folder that holds it.
    pub root: PathBuf,
    /// Training images; may be none.
    pub train: Vec<ReidImage>,
    /// Images held out of training.
    pub val: Vec<ReidImage>,
    /// Queries.
    pub query: Vec<ReidImage>,
    /// Gallery, distractors included.
    pub gallery: Vec<ReidImage>,
    /// Images of person -1 that were dropped.
    pub junk: usize,
}

/// Where MSMT17's validation images go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MsmtVal {
    /// Into training, as most published results have it (32,621 images).
    #[default]
    Train,
    /// Held out of training.
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

impl ReidDataset {
    /// What prevents an evaluation: queries without a match, images named twice.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut seen_by: BTreeMap<i64, BTreeSet<i64>> = BTreeMap::new();
        for crop in &self.gallery {
            seen_by.entry(crop.person).or_default().insert(crop.camera);
        }
        let alone = |crop: &&ReidImage| {
            let cameras = seen_by.get(&crop.person);
            cameras.is_none_or(|cameras| cameras.iter().all(|camera| *camera == crop.camera))
        };
        let unmatched: Vec<&ReidImage> = self.query.iter().filter(alone).collect();
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
            let twice: Vec<&ReidImage> = { crops.iter() }
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
}

/// Number of different people, without distractors.
pub fn people(crops: &[ReidImage]) -> usize {
    let people: BTreeSet<i64> = crops.iter().map(|c| c.person).filter(|p| *p > 0).collect();
    people.len()
}

/// Number of different cameras.
pub fn cameras(crops: &[ReidImage]) -> usize {
    let cameras: BTreeSet<i64> = crops.iter().map(|c| c.camera).collect();
    cameras.len()
}
