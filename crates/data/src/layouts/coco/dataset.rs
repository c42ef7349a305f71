//! Datasets in COCO's JSON, as read: boxes of people, and people with keypoints.

use std::path::PathBuf;

use super::image::CocoImage;
use crate::layouts::sides;

/// A person marked in an image.
#[derive(Debug, Clone, PartialEq)]
pub struct BoxAnnotation {
    /// Its number in the file.
    pub id: u64,
    /// Position of its image in [`BoxDataset::images`].
    pub image: usize,
    /// x, y, width, height in pixels; may reach beyond the image.
    pub bbox: [f64; 4],
    /// Area in pixels.
    pub area: f64,
    /// Height in pixels.
    pub height: f64,
    /// Visible share, 0 to 1.
    pub visibility: f64,
    /// Whether it is an ignore region: neither detecting nor missing it counts.
    pub ignored: bool,
    /// Whether it is a crowd.
    pub crowd: bool,
    /// The identity, where it is known.
    pub person: Option<i64>,
}

/// Images with boxes.
#[derive(Debug, Clone, PartialEq)]
pub struct BoxDataset {
    /// The JSON file.
    pub file: PathBuf,
    /// Images in the order of the file.
    pub images: Vec<CocoImage>,
    /// People in the order of the file.
    pub people: Vec<BoxAnnotation>,
    /// What was skipped, and why.
    pub problems: Vec<String>,
    /// The category of people; 1 where the file names none.
    pub category: u64,
}

impl BoxDataset {
    /// Whether these are the images of CityPersons, by their names.
    pub(crate) fn is_citypersons(&self) -> bool {
        let name = |image: &CocoImage| image.path.to_string_lossy().contains("_leftImg8bit.");
        self.images.first().is_some_and(name)
    }

    /// A note where no person is marked as occluded: the published subsets are then not
    /// informative.
    pub fn without_hidden(&self) -> Option<String> {
        let hidden = |marked: &BoxAnnotation| marked.visibility < 1.0;
        let all_visible = !self.people.is_empty() && !self.people.iter().any(hidden);
        all_visible.then(|| {
            "no box is marked as occluded (`vis_ratio`, `vis_bbox`): of the miss rates, Heavy has no person, and Reasonable \
             all from 50 pixels"
                .to_owned()
        })
    }
}

/// Whether a box (xywh) has no pixel in common with its image of `[height, width]`.
pub(crate) fn is_outside(bbox: [f64; 4], image: [usize; 2]) -> bool {
    share_inside(bbox, image) <= 0.0
}

/// The share of a box (xywh) inside its image of `[height, width]`; 0 for one without an area.
pub(crate) fn share_inside([x, y, width, height]: [f64; 4], image: [usize; 2]) -> f64 {
    let shared = |start: f64, size: f64, limit: usize| {
        let inside = (start + size).min(limit as f64) - start.max(0.0);
        if size > 0.0 {
            inside.max(0.0) / size
        } else {
            0.0
        }
    };
    shared(x, width, image[1]) * shared(y, height, image[0])
}

/// A person of the dataset.
#[derive(Debug, Clone, PartialEq)]
pub struct KeypointAnnotation {
    /// Its number in the file.
    pub id: u64,
    /// Position of its image in [`KeypointDataset::images`].
    pub image: usize,
    /// x, y, width, height in pixels.
    pub bbox: [f64; 4],
    /// Area in pixels.
    pub area: f64,
    /// Whether it is a crowd.
    pub crowd: bool,
    /// x, y, visibility (0 not labeled, 1 hidden, 2 visible) of each joint.
    pub keypoints: Vec<[f64; 3]>,
}

impl KeypointAnnotation {
    /// Whether this is a single person with an area and labeled joints: the people that HRNet's
    /// code trains and tests on.
    pub fn is_to_be_found(&self) -> bool {
        !self.crowd && self.area > 0.0 && self.labeled() > 0
    }

    /// Number of joints that are labeled.
    pub fn labeled(&self) -> usize {
        self.keypoints.iter().filter(|k| k[2] > 0.0).count()
    }
}

/// A dataset of people with keypoints.
#[derive(Debug, Clone, PartialEq)]
pub struct KeypointDataset {
    /// The JSON file.
    pub file: PathBuf,
    /// The category of people.
    pub category: u64,
    /// Names of the joints.
    pub joints: Vec<String>,
    /// Bones, as pairs of joints counted from 0.
    pub skeleton: Vec<[usize; 2]>,
    /// Joints that change places in a mirrored image, counted from 0.
    pub flip_pairs: Vec<[usize; 2]>,
    /// Joints with a side that has no counterpart, counted from 0, or all if none is known to have
    /// one; none if the file says what changes places.
    pub unpaired: Vec<usize>,
    /// σ of each joint for OKS.
    pub sigmas: Option<Vec<f64>>,
    /// Images in the order of the file.
    pub images: Vec<CocoImage>,
    /// People in the order of the file.
    pub people: Vec<KeypointAnnotation>,
    /// What was skipped, and why.
    pub problems: Vec<String>,
}

impl KeypointDataset {
    /// Position of a joint by name, whichever way it names its side.
    pub fn joint(&self, name: &str) -> Option<usize> {
        sides::position(&self.joints, name)
    }

    /// The two diagonals of the torso, from a shoulder to the opposite hip; none if the skeleton
    /// has no such joints.
    pub fn torso_diagonals(&self) -> Vec<[usize; 2]> {
        let pair = |shoulder, hip| Some([self.joint(shoulder)?, self.joint(hip)?]);
        [
            pair("left_shoulder", "right_hip"),
            pair("right_shoulder", "left_hip"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}
