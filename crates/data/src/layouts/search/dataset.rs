//! Frames with people who are searched for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use rayon::prelude::*;

use crate::image::size_of;
use crate::layouts::coco::is_outside;

/// A frame with the people in it.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchFrame {
    /// The file.
    pub path: PathBuf,
    /// Height and width, where the annotation says.
    pub size: Option<[usize; 2]>,
    /// Camera, where the dataset has several.
    pub camera: Option<i64>,
    /// The people.
    pub people: Vec<FramePerson>,
}

/// A person in a frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FramePerson {
    /// x, y, width, height in pixels.
    pub bbox: [f64; 4],
    /// The identity; `None` where it is unknown.
    pub person: Option<i64>,
}

/// A person to be searched for.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchQuery {
    /// Its frame in [`SearchDataset::test`].
    pub frame: usize,
    /// x, y, width, height in the frame.
    pub bbox: [f64; 4],
    /// The identity.
    pub person: i64,
    /// Its published gallery, if the dataset has one.
    pub protocol: Option<QueryGallery>,
}

/// A published gallery of one query.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct QueryGallery {
    /// Frames in [`SearchDataset::test`].
    pub frames: Vec<u32>,
    /// Where the person is: position in `frames`, and the box (xywh).
    pub shown: Vec<(u32, [f64; 4])>,
}

/// A dataset for person search.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchDataset {
    /// Name of the layout.
    pub layout: &'static str,
    /// The folder that holds it.
    pub root: PathBuf,
    /// Frames to train on.
    pub train: Vec<SearchFrame>,
    /// Frames to search in.
    pub test: Vec<SearchFrame>,
    /// The people who are searched for.
    pub queries: Vec<SearchQuery>,
    /// What was skipped, and why.
    pub problems: Vec<String>,
}

/// Frames of CUHK-SYSU that each query is searched in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GallerySize {
    /// 50, 100, 500, 1000, 2000 or 4000.
    Frames(usize),
    /// All.
    Full,
}

impl Default for GallerySize {
    /// The published 100.
    fn default() -> Self {
        Self::Frames(100)
    }
}

impl SearchDataset {
    /// The frames that a query is searched in, and the box of the person in each: as published,
    /// else all test frames but the query's own, with `other_cameras` those of other cameras only.
    pub fn gallery(
        &self,
        query: &SearchQuery,
        other_cameras: bool,
    ) -> Vec<(usize, Option<[f64; 4]>)> {
        if let Some(protocol) = &query.protocol {
            let mut gallery: Vec<(usize, Option<[f64; 4]>)> = protocol
                .frames
                .iter()
                .map(|frame| (*frame as usize, None))
                .collect();
            for (place, bbox) in &protocol.shown {
                gallery[*place as usize].1 = Some(*bbox);
            }
            return gallery;
        }
        let camera = self.test[query.frame].camera;
        let is_searched = |(index, frame): &(usize, &SearchFrame)| {
            *index != query.frame && !(other_cameras && frame.camera == camera)
        };
        let shown = |frame: &SearchFrame| {
            let person = frame
                .people
                .iter()
                .find(|marked| marked.person == Some(query.person));
            person.map(|marked| marked.bbox)
        };
        { self.test.iter().enumerate() }
            .filter(is_searched)
            .map(|(index, frame)| (index, shown(frame)))
            .collect()
    }

    /// What prevents an evaluation: [`SearchDataset::problems`], and queries that no frame of their
    /// gallery has.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.problems.clone();
        let mut frames_of: BTreeMap<i64, BTreeSet<usize>> = BTreeMap::new();
        for (index, frame) in self.test.iter().enumerate() {
            for person in frame.people.iter().filter_map(|marked| marked.person) {
                frames_of.entry(person).or_default().insert(index);
            }
        }
        let nowhere = |query: &&SearchQuery| match &query.protocol {
            Some(protocol) => protocol.shown.is_empty(),
            None => { frames_of.get(&query.person) }
                .is_none_or(|frames| frames.iter().all(|frame| *frame == query.frame)),
        };
        let missing: Vec<&SearchQuery> = self.queries.iter().filter(nowhere).collect();
        if let Some(first) = missing.first() {
            problems.push(format!(
                "{} of {} queries are in no frame of their gallery, the first: person {} of {}",
                missing.len(),
                self.queries.len(),
                first.person,
                self.test[first.frame].path.display()
            ));
        }
        problems
    }

    /// Problems of boxes outside their frame. Where the annotation lacks the size of a frame, it is
    /// read from its file.
    pub fn outside(frames: &[SearchFrame]) -> Vec<String> {
        let of = |frame: &SearchFrame| -> Vec<String> {
            let Some(size) = frame.size.or_else(|| size_of(&frame.path)) else {
                return Vec::new();
            };
            let (place, [height, width]) = (frame.path.display(), size);
            { frame.people.iter() }
                .filter(|marked| is_outside(marked.bbox, size))
                .map(|marked| {
                    format!(
                        "the box {:?} (x, y, width, height) covers nothing of {place} of {width} x {height}",
                        marked.bbox
                    )
                })
                .collect()
        };
        frames.par_iter().flat_map_iter(of).collect()
    }

    /// Different people in frames.
    pub fn people(frames: &[SearchFrame]) -> usize {
        let marked = frames.iter().flat_map(|frame| &frame.people);
        marked
            .filter_map(|marked| marked.person)
            .collect::<BTreeSet<_>>()
            .len()
    }
}
