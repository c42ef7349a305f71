//! COCO results: boxes and poses that a detector found.

use std::path::Path;

use serde::Deserialize;

use super::json::{self, EntryErrors, OptionalNumber, WholeNumber};
use crate::layouts::LayoutError;

/// A detected box.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DetectedBox {
    /// Number of its image, as in `CocoImage::id`.
    pub image: u64,
    /// x, y, width, height in pixels, as given.
    pub bbox: [f64; 4],
    /// Confidence.
    pub score: f64,
}

#[derive(Deserialize)]
struct RawDetection {
    image_id: WholeNumber,
    #[serde(default)]
    category_id: Option<WholeNumber>,
    bbox: [f64; 4],
    score: f64,
}

/// Reads the boxes of one category from a file of COCO results, such as
/// `COCO_val2017_detections_AP_H_56_person.json` (category 1): `[{"image_id": 139, "category_id":
/// 1, "bbox": [x, y, width, height], "score": 0.9}, ..]`. Without a category a box is of the one
/// asked for.
///
/// # Errors
/// If it is no such file, or a box is not finite or of no size.
pub fn read_boxes(path: &Path, category: u64) -> Result<Vec<DetectedBox>, LayoutError> {
    let file = path.display().to_string();
    let expected = "COCO results with boxes: [{image_id, bbox, score}, ...]";
    let raw: Vec<RawDetection> = json::read(path, expected)?;
    let mut boxes = Vec::new();
    for (index, item) in raw.iter().enumerate() {
        if item
            .category_id
            .is_some_and(|found| found.0 != category as i64)
        {
            continue;
        }
        let is_finite = item.bbox.iter().chain([&item.score]).all(|v| v.is_finite());
        if !is_finite || item.bbox[2] <= 0.0 || item.bbox[3] <= 0.0 {
            return Err(LayoutError::Entry {
                file,
                entry: format!("detection {index}"),
                expected: "[x, y, width, height] of a size, with a score".to_owned(),
                found: format!("{:?}, score {}", item.bbox, item.score),
            });
        }
        boxes.push(DetectedBox {
            image: item.image_id.0 as u64,
            bbox: item.bbox,
            score: item.score,
        });
    }
    Ok(boxes)
}

/// A detected pose.
#[derive(Debug, Clone, PartialEq)]
pub struct DetectedPose {
    /// Number of its image, as in `CocoImage::id`.
    pub image: u64,
    /// x, y of each joint in pixels.
    pub keypoints: Vec<[f64; 2]>,
    /// Confidence.
    pub score: f64,
}

/// Reads the poses of one category from a file of COCO results: `[{"image_id": 139, "category_id":
/// 1, "keypoints": [x, y, confidence, ...], "score": 0.9}, ..]`. Without a category a pose is of
/// the one asked for.
///
/// # Errors
/// If it is no such file, or a pose has not 3 finite numbers for each of `joints` joints.
pub fn read_poses(
    path: &Path,
    category: u64,
    joints: usize,
) -> Result<Vec<DetectedPose>, LayoutError> {
    #[derive(Deserialize)]
    struct RawPose {
        image_id: WholeNumber,
        #[serde(default)]
        category_id: Option<WholeNumber>,
        keypoints: Vec<OptionalNumber>,
        score: f64,
    }
    let expected = "COCO results with keypoints: [{image_id, keypoints, score}, ...]";
    let raw: Vec<RawPose> = json::read(path, expected)?;
    let mut faults = EntryErrors::default();
    let mut poses = Vec::new();
    for (index, item) in raw.iter().enumerate() {
        if item
            .category_id
            .is_some_and(|found| found.0 != category as i64)
        {
            continue;
        }
        let values: Vec<f64> = item.keypoints.iter().map(|value| value.0).collect();
        let finite = values
            .iter()
            .chain([&item.score])
            .all(|value| value.is_finite());
        if values.len() != 3 * joints || !finite {
            let expected = format!("3 finite numbers for each of {joints} joints, and a score");
            faults.add(
                format!("pose {index}"),
                &expected,
                format!("{} numbers", values.len()),
            );
            continue;
        }
        poses.push(DetectedPose {
            image: item.image_id.0 as u64,
            keypoints: values.chunks_exact(3).map(|k| [k[0], k[1]]).collect(),
            score: item.score,
        });
    }
    faults.check(path)?;
    Ok(poses)
}

#[cfg(test)]
mod tests {
    use fs_err as fs;

    use super::*;

    #[test]
    fn boxes_of_a_detector() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("boxes.json");
        let text = r#"[{"image_id": 3, "category_id": 1, "bbox": [1, 2, 3, 4.5], "score": 0.5},
            {"image_id": 3, "category_id": 18, "bbox": [1, 2, 3, 4], "score": 1}]"#;
        fs::write(&path, text).unwrap();
        let found = read_boxes(&path, 1).unwrap();
        let expected = DetectedBox {
            image: 3,
            bbox: [1.0, 2.0, 3.0, 4.5],
            score: 0.5,
        };
        assert_eq!(found, [expected]);
        fs::write(&path, text.replace("4.5", "-4.5")).unwrap();
        let error = read_boxes(&path, 1).unwrap_err().to_string();
        assert!(
            error.contains("detection 0: expected [x, y, width, height] of a size"),
            "{error}"
        );
    }
}
