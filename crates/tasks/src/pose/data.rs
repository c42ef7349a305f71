//! People to train pose on, and their augmentation.

use std::collections::BTreeSet;
use std::path::Path;

use clasp_data::Rng as DataRng;
use clasp_data::augment::erase::normal;
use clasp_data::augment::warp;
use clasp_data::layouts::coco::{CocoImage, KeypointAnnotation, KeypointDataset};
use rand::RngExt;

use super::{PoseConfig, PoseTarget, PoseTask, check_region, clip_box, region};
use crate::TaskError;
use crate::features::{Preprocess, read_sized};
use crate::task::examples::skipped_note;
use crate::task::{Example, SplitChoice, TrainingExamples};

/// A half is cropped of people with more labeled joints than this only.
const HALF_BODY_JOINTS: usize = 8;

/// Factor by which the box of half a body is enlarged, instead of `box_padding`.
const HALF_BODY_PADDING: f64 = 1.5;

/// Probability of the upper half: published code takes it when a standard normal number is below
/// 0.5.
const UPPER_HALF: f64 = 0.6915;

/// Labeled people to train on.
#[derive(Debug)]
pub struct PoseTrainingSet {
    keypoints: KeypointDataset,
    /// Positions of the people with a box inside their image and labeled joints.
    usable: Vec<usize>,
}

impl PoseTask {
    /// Warnings about labeled people whose box does not overlap their image.
    pub(super) fn boxes_outside(&self, keypoints: &KeypointDataset) -> Vec<String> {
        let outside = |person: &&KeypointAnnotation| {
            let image = &keypoints.images[person.image];
            person.is_to_be_found() && clip_box(person.bbox, image.height, image.width).is_none()
        };
        let problems: Vec<String> = { keypoints.people.iter() }
            .filter(outside)
            .map(|person| {
                let CocoImage { width, height, .. } = keypoints.images[person.image];
                format!(
                    "the box {:?} (x, y, width, height) does not overlap its image of {width} x {height}: not used",
                    person.bbox
                )
            })
            .collect();
        Vec::from_iter(skipped_note(&keypoints.file, &problems))
    }

    /// A warning about joints without a counterpart on the other side, which flipped images label
    /// wrongly.
    fn unpaired(&self, keypoints: &KeypointDataset) -> Option<String> {
        let flips = self.config.flip > 0.0 || self.config.flip_test;
        if !flips || keypoints.unpaired.is_empty() {
            return None;
        }
        let names: Vec<&str> = { keypoints.unpaired.iter() }
            .map(|joint| keypoints.joints[*joint].as_str())
            .collect();
        Some(format!(
            "{}: no counterpart on the other side is known of {}, so that flipped images have wrong labels: add `flip_pairs` to the \
             category (pairs of joint indices from 0; [] if no joints change places), or set task.flip = 0 and task.flip_test = false",
            keypoints.file.display(),
            names.join(", ")
        ))
    }
}

impl TrainingExamples for PoseTask {
    type TrainingSet = PoseTrainingSet;

    fn open(
        config: &PoseConfig,
        folder: &Path,
        _: Option<&SplitChoice>,
    ) -> Result<(Self, PoseTrainingSet), TaskError> {
        let keypoints = KeypointDataset::open(folder, &config.train_split)?;
        let usable: Vec<usize> = { keypoints.people.iter().enumerate() }
            .filter(|(_, person)| {
                let image = &keypoints.images[person.image];
                person.is_to_be_found()
                    && clip_box(person.bbox, image.height, image.width).is_some()
            })
            .map(|(index, _)| index)
            .collect();
        let task = Self {
            config: config.clone(),
            joints: keypoints.joints.clone(),
            skeleton: keypoints.skeleton.clone(),
            flip_pairs: keypoints.flip_pairs.clone(),
            sigmas: keypoints.sigmas.clone(),
        };
        Ok((task, PoseTrainingSet { keypoints, usable }))
    }

    fn notes(&self, data: &PoseTrainingSet) -> Vec<String> {
        let mut notes = self.boxes_outside(&data.keypoints);
        notes.extend(self.unpaired(&data.keypoints));
        notes
    }

    fn files<'a>(&self, data: &'a PoseTrainingSet) -> Vec<&'a Path> {
        let PoseTrainingSet { keypoints, usable } = data;
        let images: BTreeSet<usize> = { usable.iter() }
            .map(|person| keypoints.people[*person].image)
            .collect();
        { images.into_iter() }
            .map(|image| keypoints.images[image].path.as_path())
            .collect()
    }

    fn count(&self, data: &PoseTrainingSet) -> usize {
        data.usable.len()
    }

    fn example(
        &self,
        data: &PoseTrainingSet,
        index: usize,
        preprocess: &Preprocess,
        rng: &mut DataRng,
    ) -> Result<Example<PoseTarget>, TaskError> {
        let config = &self.config;
        let person = &data.keypoints.people[data.usable[index]];
        let picture = &data.keypoints.images[person.image];
        let mut image = read_sized(&picture.path, [picture.height, picture.width])?;
        let mut joints = person.keypoints.clone();
        let mut bbox = clip_box(person.bbox, image.height, image.width).unwrap_or(person.bbox);
        let mut padding = config.box_padding;
        if rng.random::<f64>() < config.half_body
            && let Some(half) = half_body(&self.joints, &joints, rng)
        {
            (bbox, padding) = (half, HALF_BODY_PADDING);
        }
        if rng.random::<f64>() < config.flip {
            image = clasp_data::image::flip(&image);
            let last = image.width as f64 - 1.0;
            bbox[0] = last - bbox[0] - bbox[2];
            for joint in &mut joints {
                joint[0] = last - joint[0];
            }
            for [a, b] in &self.flip_pairs {
                joints.swap(*a, *b);
            }
        }
        let limit = config.scale_std;
        let scale = (f64::from(normal(rng)) * limit + 1.0).clamp(1.0 - limit, 1.0 + limit);
        let rotates = rng.random::<f64>() < config.rotation_probability;
        let most = 2.0 * config.rotation_std;
        let degrees = (f64::from(normal(rng)) * config.rotation_std).clamp(-most, most);
        let region = region(bbox, Self::aspect(preprocess), padding * scale);
        let entry = format_args!("annotation {}", person.id);
        check_region(region, person.bbox, &data.keypoints.file, entry)?;
        let (height, width) = (preprocess.height, preprocess.width);
        let degrees = if rotates { degrees } else { 0.0 };
        let forward = config
            .codec
            .input_from_image(region, height, width, degrees);
        let view = warp(
            &image,
            &forward.inverse(),
            height,
            width,
            preprocess.mean_color(),
        );
        let grid = Self::grid(preprocess);
        let area = grid.rows * grid.columns;
        let mut target = PoseTarget {
            heatmaps: vec![0.0; joints.len() * area],
            weights: vec![0.0; joints.len()],
        };
        for (index, joint) in joints
            .iter()
            .enumerate()
            .filter(|(_, joint)| joint[2] > 0.0)
        {
            let point = forward.apply([joint[0], joint[1]]);
            let point = config.codec.on_grid(point, grid, height, width);
            if let Some(map) = config.codec.encode(point, grid, config.sigma) {
                target.heatmaps[index * area..(index + 1) * area].copy_from_slice(&map);
                target.weights[index] = 1.0;
            }
        }
        Ok(Example {
            pixels: preprocess.normalize(&view),
            size: [preprocess.height, preprocess.width],
            target,
            key: format!("{} annotation {}", picture.path.display(), person.id),
        })
    }
}

/// Half of a person with enough joints, as x, y, width, height: the extent of the joints above or
/// below the hips, about their mean. Upper and lower joints are distinguished by COCO's names; a
/// skeleton without them has no halves.
fn half_body(names: &[String], joints: &[[f64; 3]], rng: &mut DataRng) -> Option<[f64; 4]> {
    let labeled = |index: &usize| joints[*index][2] > 0.0;
    if (0..joints.len()).filter(labeled).count() <= HALF_BODY_JOINTS {
        return None;
    }
    let low = |name: &str| {
        let name = name.to_lowercase();
        ["hip", "knee", "ankle"]
            .iter()
            .any(|part| name.contains(part))
    };
    let (lower, upper): (Vec<usize>, Vec<usize>) = (0..joints.len())
        .filter(labeled)
        .partition(|index| low(&names[*index]));
    let first = if rng.random_bool(UPPER_HALF) {
        [upper, lower]
    } else {
        [lower, upper]
    };
    let half = first.into_iter().find(|half| half.len() > 2)?;
    let range = |axis: usize| {
        let places = half.iter().map(|index| joints[*index][axis]);
        let (low, high) = (
            places.clone().fold(f64::MAX, f64::min),
            places.fold(f64::MIN, f64::max),
        );
        (low, high)
    };
    let ((left, right), (top, bottom)) = (range(0), range(1));
    let middle: Vec<f64> = (0..2)
        .map(|axis| half.iter().map(|index| joints[*index][axis]).sum::<f64>() / half.len() as f64)
        .collect();
    let (w, h) = ((right - left).max(1.0), (bottom - top).max(1.0));
    Some([middle[0] - w / 2.0, middle[1] - h / 2.0, w, h])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joints_without_a_counterpart_are_noted() {
        let folder = tempfile::tempdir().unwrap();
        let notes = |joints: &str, config: &PoseConfig| {
            let text = format!(
                r#"{{"images": [{{"id": 1, "file_name": "a.jpg", "width": 40, "height": 80}}],
                "annotations": [{{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40], "area": 6, "keypoints": [5, 6, 2, 7, 8, 2]}}],
                "categories": [{{"id": 1, "keypoints": {joints}}}]}}"#
            );
            fs_err::write(folder.path().join("person_keypoints_train.json"), text).unwrap();
            let (task, data) = PoseTask::open(config, folder.path(), None).unwrap();
            task.notes(&data).concat()
        };
        let usual = PoseConfig::default();
        let note = notes(r#"["left_hip", "head"]"#, &usual);
        assert!(
            note.contains("person_keypoints_train.json: no counterpart"),
            "{note}"
        );
        assert!(
            note.contains("left_hip, head") && note.contains("`flip_pairs`"),
            "{note}"
        );
        let still = PoseConfig {
            flip: 0.0,
            flip_test: false,
            ..PoseConfig::default()
        };
        assert_eq!(notes(r#"["left_hip", "head"]"#, &still), "");
        assert_eq!(notes(r#"["LHip", "RHip"]"#, &usual), "");
        assert_eq!(
            notes(r#"["left_hip", "head"], "flip_pairs": []"#, &usual),
            ""
        );
    }

    #[test]
    fn half_a_body_needs_labeled_joints() {
        let names: Vec<String> = clasp_data::layouts::coco::COCO_JOINTS
            .map(str::to_owned)
            .to_vec();
        let mut joints: Vec<[f64; 3]> = (0..17)
            .map(|i| [f64::from(i), 2.0 * f64::from(i), 2.0])
            .collect();
        let mut rng = clasp_data::rng_for(0, 0, "half");
        let [x, y, w, h] = half_body(&names, &joints, &mut rng).unwrap();
        // Joints 0 to 10 or 11 to 16.
        assert!(
            (x + w / 2.0 - 5.0).abs() < 1e-9 || (x + w / 2.0 - 13.5).abs() < 1e-9,
            "{x} {y} {w} {h}"
        );
        joints.iter_mut().skip(5).for_each(|joint| joint[2] = 0.0);
        assert_eq!(half_body(&names, &joints, &mut rng), None);
    }
}
