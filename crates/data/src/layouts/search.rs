//! People for person search, in any layout: [`super::cuhk_sysu`], [`super::prw`], or COCO boxes with a `pid`
//! ([`super::detection`]) in `instances_train.json` and `instances_test.json` (or `val`).
//!
//! In COCO boxes every person who is seen in two frames or more is searched for by the first of the boxes, in all other frames.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::detection::{Boxes, is_outside};
use super::{LayoutError, cuhk_sysu, prw};
use crate::image::size_of;

/// A frame with the people in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// The file.
    pub path: PathBuf,
    /// Height and width, where the annotation says.
    pub size: Option<[usize; 2]>,
    /// Camera, where the data set has several.
    pub camera: Option<i64>,
    /// The people.
    pub people: Vec<Marked>,
}

/// A person in a frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Marked {
    /// x, y, width, height in pixels.
    pub bbox: [f64; 4],
    /// Who it is; `None` for somebody unknown.
    pub person: Option<i64>,
}

/// A person to be searched for.
#[derive(Debug, Clone, PartialEq)]
pub struct Query {
    /// Its frame in [`Search::test`].
    pub frame: usize,
    /// x, y, width, height in the frame.
    pub bbox: [f64; 4],
    /// Who it is.
    pub person: i64,
    /// Where it is searched for, if the data set says so.
    pub protocol: Option<Protocol>,
}

/// A published gallery of one query.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Protocol {
    /// Frames in [`Search::test`].
    pub frames: Vec<u32>,
    /// Where the person is: position in `frames`, and x, y, width, height.
    pub shown: Vec<(u32, [f64; 4])>,
}

/// A data set for person search.
#[derive(Debug, Clone, PartialEq)]
pub struct Search {
    /// Name of the layout.
    pub layout: &'static str,
    /// The folder that holds it.
    pub root: PathBuf,
    /// Frames to train on.
    pub train: Vec<Frame>,
    /// Frames to search in.
    pub test: Vec<Frame>,
    /// Who is searched for.
    pub queries: Vec<Query>,
    /// What was left out, in words.
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

/// Published counts: frames to train on and to search in, queries, people to train on.
pub const PUBLISHED: [(&str, [u64; 4]); 2] = [
    ("CUHK-SYSU", [11_206, 6_978, 2_900, 5_532]),
    ("PRW", [5_704, 6_112, 2_057, 482]),
];

impl Search {
    /// Opens the data set in `folder` or in one of the usual folders below it.
    ///
    /// # Errors
    /// If there is none, or something in it cannot be.
    pub fn open(folder: &Path, gallery: GallerySize) -> Result<Self, LayoutError> {
        let mut tried_all = Vec::new();
        let cuhk_sysu = || cuhk_sysu::read(cuhk_sysu::place(folder)?, gallery);
        let prw = || prw::read(prw::place(folder)?);
        let boxes = || boxes(folder);
        let layouts: [&dyn Fn() -> Result<Self, LayoutError>; 3] = [&cuhk_sysu, &prw, &boxes];
        for open in layouts {
            match open() {
                Err(LayoutError::NotFound { tried, .. }) => tried_all.extend(tried),
                other => return other,
            }
        }
        Err(LayoutError::NotFound {
            folder: folder.display().to_string(),
            layout: "person search data",
            expected: "`annotation/Images.mat` (CUHK-SYSU), `frame_test.mat` (PRW), or `instances_test.json` with `pid`",
            tried: tried_all,
        })
    }

    /// The frames that a query is searched in, and where they show the person: as published, else all test frames but the
    /// query's own, with `other_cameras` those of other cameras only.
    pub fn gallery(&self, query: &Query, other_cameras: bool) -> Vec<(usize, Option<[f64; 4]>)> {
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
        let is_searched = |(index, frame): &(usize, &Frame)| {
            *index != query.frame && !(other_cameras && frame.camera == camera)
        };
        let shown = |frame: &Frame| {
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

    /// What stands in the way of an evaluation, besides what was left out: queries that no frame of their gallery shows.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.problems.clone();
        let mut frames_of: BTreeMap<i64, BTreeSet<usize>> = BTreeMap::new();
        for (index, frame) in self.test.iter().enumerate() {
            for person in frame.people.iter().filter_map(|marked| marked.person) {
                frames_of.entry(person).or_default().insert(index);
            }
        }
        let nowhere = |query: &&Query| match &query.protocol {
            Some(protocol) => protocol.shown.is_empty(),
            None => { frames_of.get(&query.person) }
                .is_none_or(|frames| frames.iter().all(|frame| *frame == query.frame)),
        };
        let missing: Vec<&Query> = self.queries.iter().filter(nowhere).collect();
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

    /// What to tell of boxes that cover nothing of their frame. Where the annotation does not say how large a frame is, its
    /// file does.
    pub fn outside(frames: &[Frame]) -> Vec<String> {
        let of = |frame: &Frame| -> Vec<String> {
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
    pub fn people(frames: &[Frame]) -> usize {
        let marked = frames.iter().flat_map(|frame| &frame.people);
        marked
            .filter_map(|marked| marked.person)
            .collect::<BTreeSet<_>>()
            .len()
    }
}

/// The file of boxes to search in.
pub(crate) fn boxes_place(folder: &Path) -> Result<PathBuf, LayoutError> {
    match Boxes::place(folder, "test") {
        Err(LayoutError::NotFound { .. }) => Boxes::place(folder, "val"),
        other => other,
    }
}

/// Says that a file of boxes is for no person search.
pub(crate) fn no_persons(file: &Path) -> LayoutError {
    let folder = file.parent().unwrap_or(Path::new(""));
    LayoutError::NotFound {
        folder: folder.display().to_string(),
        layout: "person search data",
        expected: "annotations with `pid`",
        tried: vec![format!("{} (annotations without `pid`)", file.display())],
    }
}

/// Reads boxes with persons.
pub(crate) fn boxes(folder: &Path) -> Result<Search, LayoutError> {
    let test = Boxes::read(&boxes_place(folder)?)?;
    if test.people.iter().all(|marked| marked.person.is_none()) {
        return Err(no_persons(&test.file));
    }
    let (train, mut problems) = match Boxes::open(folder, "train") {
        Err(LayoutError::NotFound { .. } | LayoutError::NoSplitFile { .. }) => {
            (Vec::new(), Vec::new())
        }
        other => {
            let train = other?;
            (frames(&train), train.problems)
        }
    };
    problems.extend(test.problems.iter().cloned());
    let test_frames = frames(&test);
    let mut seen: BTreeMap<i64, Vec<(usize, [f64; 4])>> = BTreeMap::new();
    for (index, frame) in test_frames.iter().enumerate() {
        for marked in &frame.people {
            if let Some(person) = marked.person {
                seen.entry(person).or_default().push((index, marked.bbox));
            }
        }
    }
    let several = |places: &[(usize, [f64; 4])]| places.iter().any(|place| place.0 != places[0].0);
    let queries = { seen.into_iter() }
        .filter(|(_, places)| several(places))
        .map(|(person, places)| Query {
            frame: places[0].0,
            bbox: places[0].1,
            person,
            protocol: None,
        })
        .collect();
    Ok(Search {
        layout: "COCO boxes with persons",
        root: test.file.parent().unwrap_or(folder).to_owned(),
        train,
        test: test_frames,
        queries,
        problems,
    })
}

/// Ignored boxes and crowds are nobody.
fn frames(boxes: &Boxes) -> Vec<Frame> {
    let mut frames: Vec<Frame> = { boxes.images.iter() }
        .map(|image| Frame {
            path: image.path.clone(),
            size: Some([image.height, image.width]),
            camera: None,
            people: Vec::new(),
        })
        .collect();
    for marked in boxes
        .people
        .iter()
        .filter(|marked| !marked.ignored && !marked.crowd)
    {
        frames[marked.image].people.push(Marked {
            bbox: marked.bbox,
            person: marked.person,
        });
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coco_boxes_with_persons() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |text: &str| fs_err::write(folder.path().join("instances_val.json"), text).unwrap();
        let text = r#"{"images": [{"id": 1, "file_name": "a.jpg", "width": 90, "height": 90}, {"id": 2, "file_name": "b.jpg", "width": 90, "height": 90}],
            "annotations": [{"id": 1, "image_id": 1, "bbox": [0, 0, 9, 9], "pid": 4}, {"id": 2, "image_id": 2, "bbox": [5, 0, 9, 9], "pid": 4},
              {"id": 3, "image_id": 2, "bbox": [50, 0, 9, 9], "pid": 5}, {"id": 4, "image_id": 2, "bbox": [70, 0, 9, 9], "pid": 6, "ignore": 1}]}"#;
        write(text);
        let data = Search::open(folder.path(), GallerySize::default()).unwrap();
        assert_eq!(
            (
                data.queries.len(),
                data.queries[0].person,
                Search::people(&data.test)
            ),
            (1, 4, 2)
        );
        assert_eq!(
            data.gallery(&data.queries[0], false),
            [(1, Some([5.0, 0.0, 9.0, 9.0]))]
        );
        assert!(data.problems().is_empty());
        write(&text.replace("\"pid\"", "\"track\""));
        let error = Search::open(folder.path(), GallerySize::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("instances_val.json (annotations without `pid`)"),
            "{error}"
        );
        assert!(
            error.contains("annotation/Images.mat") && error.contains("PRW/frame_test.mat"),
            "{error}"
        );
    }
}
