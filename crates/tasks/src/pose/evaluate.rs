//! Evaluation of pose: OKS AP and PCK.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use clasp_data::image::Rgb;
use clasp_data::layouts::coco::{
    CocoImage, KeypointAnnotation, KeypointDataset, read_boxes, read_poses,
};
use clasp_metrics::Metric;
use clasp_metrics::pose::{
    OksAp, Pck, PosePair, PredictedPose, TruePose, oks_ap, oks_nms, pck, torso_length,
};
use serde_json::{Value, json};

use super::heatmaps::HeatmapCodec;
use super::predict::{CONFIDENT, PoseEstimate};
use super::{PoseConfig, PoseTask, check_region, clip_box, probe, region};
use crate::TaskError;
use crate::features::{Preprocess, read_sized};
use crate::probe::FrozenEvaluation;
use crate::task::evaluation::{PredictionScores, WrongResult, count_note, file_name, mismatch};
use crate::task::{
    Evaluate, Evaluation, FinetunedModel, ScoreRequest, SplitChoice, Task, TaskScores,
};

/// Fraction of the reference length within which a joint is correct.
const PCK_THRESHOLD: f64 = 0.2;

/// People whose joints are evaluated.
#[derive(Debug)]
pub struct PoseTestSet {
    keypoints: KeypointDataset,
    /// Their boxes: ground truth or detected.
    boxes: Vec<PersonBox>,
}

#[derive(Debug, Clone)]
struct PersonBox {
    image: usize,
    /// x, y, width, height in pixels.
    bbox: [f64; 4],
    score: f64,
    /// The labeled person of a ground-truth box.
    person: Option<usize>,
}

impl PoseTask {
    fn check_joints(&self, other: &KeypointDataset) -> Result<(), TaskError> {
        if self.joints == other.joints {
            return Ok(());
        }
        Err(TaskError::Mismatch {
            file: other.file.display().to_string(),
            expected: format!("the joints of the model: {}", self.joints.join(", ")),
            found: other.joints.join(", "),
        })
    }

    fn protocol(&self, preprocess: &Preprocess, eval: &PoseTestSet) -> String {
        let config = &self.config;
        let boxes = if config.box_file.as_os_str().is_empty() {
            "ground-truth boxes clipped to the image".to_owned()
        } else {
            format!(
                "boxes of {} with scores from {}",
                config.box_file.file_name().unwrap_or_default().display(),
                config.box_threshold,
            )
        };
        let grid = Self::grid(preprocess);
        let flipped = match (
            config.flip_test,
            config.shift_heatmap && config.codec != HeatmapCodec::Udp,
        ) {
            (false, _) => "no flipped image",
            (true, false) => "mean with the flipped image",
            (true, true) => "mean with the flipped image, shifted by a position",
        };
        format!(
            "Top-down pose, fine-tuned: {boxes}, enlarged to the input's aspect and by {}; input {}x{} (height x width), heatmaps {}x{}, heatmaps as in {}, \
             {flipped}. Score: that of the box times the mean of the heatmap values above {CONFIDENT}; poses of OKS above {} to a better one dropped. Evaluated on {}: OKS AP with at most 20 \
             people an image; PCK@{PCK_THRESHOLD} of the longer torso diagonal, of all poses (ground-truth boxes only).",
            config.box_padding,
            preprocess.height,
            preprocess.width,
            grid.rows,
            grid.columns,
            config.codec.name(),
            config.oks_nms,
            eval.keypoints
                .file
                .file_name()
                .unwrap_or_default()
                .display(),
        )
    }
}

impl Evaluate for PoseTask {
    type TestSet = PoseTestSet;
    type UnitResult = PoseEstimate;

    const UNITS: &'static str = "people";
    const ONLY_SUMMARIZED: &'static [&'static str] = &["/config/oks_nms"];

    const FROZEN: Option<FrozenEvaluation> = Some(probe::evaluate_frozen);

    fn open_test(&self, folder: &Path, split: &SplitChoice) -> Result<PoseTestSet, TaskError> {
        let keypoints = split.open(|name| KeypointDataset::open(folder, name))?;
        self.check_joints(&keypoints)?;
        let config = &self.config;
        let boxes = if config.box_file.as_os_str().is_empty() {
            let people = keypoints.people.iter().enumerate();
            let labeled_box = |(index, person): (usize, &KeypointAnnotation)| {
                let image = &keypoints.images[person.image];
                let bbox = clip_box(person.bbox, image.height, image.width)?;
                person.is_to_be_found().then_some(PersonBox {
                    image: person.image,
                    bbox,
                    score: 1.0,
                    person: Some(index),
                })
            };
            people.filter_map(labeled_box).collect()
        } else {
            detected(config, &keypoints)?
        };
        if boxes.is_empty() {
            return Err(TaskError::TooFew {
                what: keypoints.file.display().to_string(),
                expected: "at least one person with a box",
                found: 0,
            });
        }
        Ok(PoseTestSet { keypoints, boxes })
    }

    fn units(eval: &PoseTestSet) -> usize {
        eval.boxes.len()
    }

    fn unit_text(eval: &PoseTestSet, unit: usize) -> String {
        let PersonBox {
            image,
            bbox,
            score,
            person,
        } = &eval.boxes[unit];
        let name = file_name(&eval.keypoints.images[*image].path);
        format!("{name} {bbox:?} {score} {person:?}")
    }

    fn results_of_batch(
        &self,
        model: &FinetunedModel<Self>,
        eval: &PoseTestSet,
        units: Range<usize>,
        _predictions: bool,
    ) -> Result<Vec<PoseEstimate>, TaskError> {
        let aspect = Self::aspect(&model.preprocess);
        // Boxes of an image are consecutive, so that it is read once.
        let mut images: Vec<(usize, Rgb)> = Vec::new();
        for candidate in &eval.boxes[units.clone()] {
            if images.iter().all(|(index, _)| *index != candidate.image) {
                let CocoImage {
                    path,
                    height,
                    width,
                    ..
                } = &eval.keypoints.images[candidate.image];
                images.push((candidate.image, read_sized(path, [*height, *width])?));
            }
        }
        let views: Vec<(&Rgb, [f64; 4])> = { eval.boxes[units.clone()].iter() }
            .filter_map(|candidate| {
                let image = images.iter().find(|(index, _)| *index == candidate.image)?;
                Some((
                    &image.1,
                    region(candidate.bbox, aspect, self.config.box_padding),
                ))
            })
            .collect();
        self.estimate(model, &views, units.start)
    }

    fn check_result(
        &self,
        _: &FinetunedModel<Self>,
        _: &PoseTestSet,
        _: usize,
        pose: &PoseEstimate,
    ) -> Result<(), WrongResult> {
        let joints = self.joints.len();
        let counts = [pose.points.len(), pose.confidences.len()];
        // Far beyond any image, and far below where squares of coordinates are infinite.
        let wrong = { pose.points.iter().flatten() }
            .chain(&pose.confidences)
            .chain([&pose.score, &pose.area])
            .find(|value| !(-1e9..=1e18).contains(*value));
        if counts == [joints; 2] && wrong.is_none() {
            return Ok(());
        }
        Err(WrongResult {
            expected: format!("points in pixels and confidences of {joints} joints"),
            found: wrong.map_or_else(
                || format!("{} points and {} confidences", counts[0], counts[1]),
                |value| value.to_string(),
            ),
        })
    }

    fn summarize(
        &self,
        model: &FinetunedModel<Self>,
        eval: &PoseTestSet,
        results: Vec<PoseEstimate>,
        _predictions: bool,
    ) -> Result<Evaluation, TaskError> {
        let data = &eval.keypoints;
        // σ is a property of the data: those of the test data come before those of the training
        // data.
        let sigmas = data.sigmas.as_deref().or(self.sigmas.as_deref());
        let MeasuredPoses { kept, oks, pck } =
            MeasuredPoses::new(eval, results, sigmas, self.config.oks_nms)?;
        let quoted = quoted(oks.as_ref(), pck.as_ref());
        let chance = chance(data, &eval.boxes, sigmas)?;
        let table = pck.as_ref().map_or(String::new(), |pck| {
            let rows = self.joints.iter().zip(&pck.per_joint);
            rows.map(|(name, value)| {
                let value = value.map_or("-".to_owned(), |v| format!("{:.2}", 100.0 * v));
                format!("PCK of {name:<20} {value:>7}\n")
            })
            .collect()
        });
        let results: Vec<Value> = { kept.iter() }
            .map(|(candidate, pose)| {
                let triples = pose.points.iter().zip(&pose.confidences);
                let triples = triples.flat_map(|(p, c)| [p[0], p[1], *c]);
                json!({
                    "image_id": data.images[candidate.image].id,
                    "category_id": data.category,
                    "keypoints": triples.collect::<Vec<f64>>(),
                    "score": pose.score,
                })
            })
            .collect();
        Ok(Evaluation {
            task: Self::NAME,
            protocol: self.protocol(&model.preprocess, eval),
            data: file_name(&data.file),
            loss: None,
            notes: self.boxes_outside(data),
            scores: TaskScores {
                metrics: quoted,
                chance,
                details: json!({"joints": self.joints, "oks": oks, "pck": pck, "people": kept.len()}),
                table,
            },
            predictions: Value::from(results).to_string().into_bytes(),
        })
    }

    fn score(
        request: &ScoreRequest<'_>,
        _config: &Self::Config,
    ) -> Result<PredictionScores, TaskError> {
        let predictions = request.predictions;
        let data = request
            .split
            .open(|name| KeypointDataset::open(request.data, name))?;
        let Some(sigmas) = &data.sigmas else {
            return Err(mismatch(
                &data.file,
                "`sigmas` of its joints, without which there is no OKS",
                "none",
            ));
        };
        let places: HashMap<u64, u64> = data.images.iter().map(|image| image.id).zip(0..).collect();
        let mut unknown = Vec::new();
        let mut found = Vec::new();
        for one in read_poses(predictions, data.category, data.joints.len())? {
            match places.get(&one.image) {
                Some(&image) => found.push(PredictedPose {
                    image,
                    keypoints: one.keypoints,
                    score: one.score,
                }),
                None => unknown.push(one.image.to_string()),
            }
        }
        let oks = oks_ap(&true_poses(&data), &found, sigmas)?;
        Ok(PredictionScores {
            scores: TaskScores {
                metrics: oks_metrics(&oks),
                chance: None,
                table: format!("{} poses in {} images\n", found.len(), data.images.len()),
                details: json!({"oks": oks}),
            },
            data: file_name(&data.file),
            notes: Vec::from_iter(count_note(
                "poses are of images that the data do not have",
                &unknown,
            )),
        })
    }
}

/// Detected boxes of people from a file in COCO's results format, in images of the data only.
fn detected(config: &PoseConfig, data: &KeypointDataset) -> Result<Vec<PersonBox>, TaskError> {
    let (path, threshold) = (config.box_file.as_path(), config.box_threshold);
    let images: HashMap<u64, usize> = { data.images.iter().enumerate() }
        .map(|(index, image)| (image.id, index))
        .collect();
    let expected = "detected boxes in COCO's results format (`task.box_file`)";
    clasp_data::missing::require(path, expected)?;
    let found = read_boxes(path, data.category)?;
    let all = found.len();
    let mut boxes: Vec<PersonBox> = { found.into_iter() }
        .filter(|one| one.score >= threshold)
        .filter_map(|one| {
            Some(PersonBox {
                image: *images.get(&one.image)?,
                bbox: one.bbox,
                score: one.score,
                person: None,
            })
        })
        .collect();
    if boxes.is_empty() {
        return Err(TaskError::Mismatch {
            file: path.display().to_string(),
            expected: format!(
                "boxes of category {} with scores from {threshold} in images of {}",
                data.category,
                data.file.display()
            ),
            found: format!("none among {all} detections of people"),
        });
    }
    // Before the first image is read. The aspect of the input, of which the data know nothing, is
    // not far from 1.
    for PersonBox { image, bbox, .. } in &boxes {
        let region = region(*bbox, 1.0, config.box_padding);
        let entry = format_args!("image {}", data.images[*image].id);
        check_region(region, *bbox, path, entry)?;
    }
    boxes.sort_by_key(|candidate| candidate.image);
    Ok(boxes)
}

/// The poses of a test set with their metrics.
struct MeasuredPoses<'a> {
    /// Those that OKS-NMS keeps, with the scores of their boxes.
    kept: Vec<(&'a PersonBox, PoseEstimate)>,
    oks: Option<OksAp>,
    pck: Option<Pck>,
}

impl<'a> MeasuredPoses<'a> {
    fn new(
        eval: &'a PoseTestSet,
        results: Vec<PoseEstimate>,
        sigmas: Option<&[f64]>,
        oks_nms: f64,
    ) -> Result<Self, TaskError> {
        let data = &eval.keypoints;
        let mut kept: Vec<(&PersonBox, PoseEstimate)> = eval.boxes.iter().zip(results).collect();
        for (candidate, pose) in &mut kept {
            pose.score *= candidate.score;
        }
        // Of everyone: people whose pose OKS-NMS drops would else not count as missed.
        let pck = correct_joints(data, &kept);
        if let Some(sigmas) = sigmas {
            kept = suppress(kept, sigmas, oks_nms);
        }
        let oks = average_precision(data, &kept, sigmas)?;
        Ok(Self { kept, oks, pck })
    }
}

/// The poses of each image that OKS-NMS keeps.
fn suppress<'a>(
    poses: Vec<(&'a PersonBox, PoseEstimate)>,
    sigmas: &[f64],
    threshold: f64,
) -> Vec<(&'a PersonBox, PoseEstimate)> {
    let mut images: BTreeMap<usize, Vec<(&PersonBox, PoseEstimate)>> = BTreeMap::new();
    for pose in poses {
        images.entry(pose.0.image).or_default().push(pose);
    }
    let mut kept = Vec::new();
    for poses in images.into_values() {
        let points: Vec<&[[f64; 2]]> = poses.iter().map(|(_, p)| p.points.as_slice()).collect();
        let areas: Vec<f64> = poses.iter().map(|(_, p)| p.area).collect();
        let scores: Vec<f64> = poses.iter().map(|(_, p)| p.score).collect();
        let best = oks_nms(&points, &areas, &scores, sigmas, threshold);
        let poses = poses.into_iter().enumerate();
        kept.extend(
            poses
                .filter(|(i, _)| best.contains(i))
                .map(|(_, pose)| pose),
        );
    }
    kept
}

/// The metrics to quote, the main one first.
fn quoted(oks: Option<&OksAp>, pck: Option<&Pck>) -> Vec<Metric> {
    let mut quoted = oks.map(oks_metrics).unwrap_or_default();
    let mean = pck.and_then(|pck| pck.mean);
    quoted.extend(mean.map(|value| Metric::score(format!("PCK@{PCK_THRESHOLD}"), value)));
    quoted
}

/// The main metric of one pose for everyone: the mean of the labeled people's, relative to their
/// boxes.
fn chance(
    data: &KeypointDataset,
    boxes: &[PersonBox],
    sigmas: Option<&[f64]>,
) -> Result<Option<f64>, TaskError> {
    let mean = mean_pose(data);
    let placed = |candidate: &PersonBox| {
        let [x, y, width, height] = candidate.bbox;
        let joint = |[u, v]: &[f64; 2]| [x + u * width, y + v * height];
        PoseEstimate {
            points: mean.iter().map(joint).collect(),
            confidences: vec![1.0; mean.len()],
            score: candidate.score,
            area: width * height,
        }
    };
    let found: Vec<_> = { boxes.iter() }
        .map(|candidate| (candidate, placed(candidate)))
        .collect();
    let oks = average_precision(data, &found, sigmas)?;
    let metrics = quoted(oks.as_ref(), correct_joints(data, &found).as_ref());
    Ok(metrics.first().map(|metric| metric.value))
}

/// The mean place of each labeled joint, x and y as fractions of the box; the center for a joint
/// that is never labeled.
fn mean_pose(data: &KeypointDataset) -> Vec<[f64; 2]> {
    let people = || { data.people.iter() }.filter(|person| person.bbox[2] * person.bbox[3] > 0.0);
    let mean = |joint: usize| {
        let places: Vec<[f64; 2]> = people()
            .filter(|person| person.keypoints[joint][2] > 0.0)
            .map(|person| {
                let ([x, y, width, height], at) = (person.bbox, person.keypoints[joint]);
                [(at[0] - x) / width, (at[1] - y) / height]
            })
            .collect();
        match places.len() {
            0 => [0.5; 2],
            count => [0, 1]
                .map(|axis| places.iter().map(|place| place[axis]).sum::<f64>() / count as f64),
        }
    };
    (0..data.joints.len()).map(mean).collect()
}

/// The metrics of OKS AP to quote.
fn oks_metrics(oks: &OksAp) -> Vec<Metric> {
    let parts = [
        ("OKS AP", oks.ap),
        ("AP.5", oks.ap50),
        ("AP.75", oks.ap75),
        ("AP(M)", oks.ap_medium),
        ("AP(L)", oks.ap_large),
        ("AR", oks.ar),
        ("AR.5", oks.ar50),
        ("AR.75", oks.ar75),
        ("AR(M)", oks.ar_medium),
        ("AR(L)", oks.ar_large),
    ];
    let measured = parts.into_iter();
    measured
        .filter_map(|(name, value)| Some(Metric::score(name, value?)))
        .collect()
}

/// The labeled people, for OKS AP.
fn true_poses(data: &KeypointDataset) -> Vec<TruePose> {
    { data.people.iter() }
        .map(|person| TruePose {
            image: person.image as u64,
            keypoints: person.keypoints.clone(),
            bbox: person.bbox,
            area: person.area,
            crowd: person.crowd,
        })
        .collect()
}

fn average_precision(
    data: &KeypointDataset,
    found: &[(&PersonBox, PoseEstimate)],
    sigmas: Option<&[f64]>,
) -> Result<Option<OksAp>, TaskError> {
    let Some(sigmas) = sigmas else {
        return Ok(None);
    };
    let truths = true_poses(data);
    let predicted: Vec<PredictedPose> = { found.iter() }
        .map(|(candidate, pose)| PredictedPose {
            image: candidate.image as u64,
            keypoints: pose.points.clone(),
            score: pose.score,
        })
        .collect();
    Ok(Some(oks_ap(&truths, &predicted, sigmas)?))
}

fn correct_joints(data: &KeypointDataset, found: &[(&PersonBox, PoseEstimate)]) -> Option<Pck> {
    let diagonals = data.torso_diagonals();
    type Truth<'a> = (Vec<[f64; 2]>, Vec<bool>, &'a PoseEstimate);
    let truths: Vec<Truth<'_>> = { found.iter() }
        .filter_map(|(candidate, pose)| {
            let joints = data.people[candidate.person?].keypoints.iter();
            let (points, visible) = joints.map(|k| ([k[0], k[1]], k[2] > 0.0)).unzip();
            Some((points, visible, pose))
        })
        .collect();
    if truths.is_empty() {
        return None;
    }
    let pairs: Vec<PosePair> = { truths.iter() }
        .map(|(points, visible, pose)| PosePair {
            truth: points,
            visible,
            predicted: &pose.points,
            length: torso_length(points, visible, &diagonals),
        })
        .collect();
    Some(pck(&pairs, PCK_THRESHOLD))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_similar_poses_the_better_is_kept() {
        let candidate = |image| PersonBox {
            image,
            bbox: [0.0; 4],
            score: 1.0,
            person: None,
        };
        let (here, there) = (candidate(0), candidate(1));
        let pose = |shift: f64, score| PoseEstimate {
            points: vec![[10.0 + shift, 10.0], [50.0 + shift, 90.0]],
            confidences: vec![1.0; 2],
            score,
            area: 100.0 * 100.0,
        };
        let poses = vec![
            (&here, pose(0.0, 0.5)),
            (&here, pose(0.5, 0.9)),
            (&there, pose(0.0, 0.4)),
            (&here, pose(40.0, 0.3)),
        ];
        let kept = suppress(poses, &[0.05, 0.05], 0.9);
        let scores: Vec<f64> = kept.iter().map(|(_, pose)| pose.score).collect();
        assert_eq!(scores, [0.9, 0.3, 0.4]);
    }

    /// A test set of one image with people of four joints, at `places` from its corner.
    fn people(folder: &Path, places: &[f64]) -> KeypointDataset {
        let person = |(id, x): (usize, &f64)| {
            let [left, right] = [x + 10.0, x + 50.0];
            format!(
                r#"{{"id": {id}, "image_id": 7, "category_id": 3, "bbox": [{x}, 0, 60, 100], "area": 6000,
                  "keypoints": [{left}, 10, 2, {right}, 10, 2, {left}, 90, 2, {right}, 90, 2]}}"#
            )
        };
        let people: Vec<String> = (1..).zip(places).map(person).collect();
        let text = format!(
            r#"{{"images": [{{"id": 7, "file_name": "a.jpg", "width": 500, "height": 200}}], "annotations": [{}],
              "categories": [{{"id": 3, "keypoints": ["left_shoulder", "right_shoulder", "left_hip", "right_hip"]}}]}}"#,
            people.join(",")
        );
        fs_err::write(folder.join("person_keypoints_val.json"), text).unwrap();
        KeypointDataset::open(folder, "val").unwrap()
    }

    /// Once PCK left out the people whose pose OKS-NMS dropped, which made it too high.
    #[test]
    fn a_dropped_pose_counts_in_pck() {
        let folder = tempfile::tempdir().unwrap();
        let keypoints = people(folder.path(), &[0.0, 300.0]);
        let boxes = { keypoints.people.iter().enumerate() }
            .map(|(index, person)| PersonBox {
                image: person.image,
                bbox: person.bbox,
                score: 1.0,
                person: Some(index),
            })
            .collect();
        let eval = PoseTestSet { keypoints, boxes };
        // Both are taken for the first.
        let first = eval.keypoints.people[0].keypoints.iter();
        let points: Vec<[f64; 2]> = first.map(|joint| [joint[0], joint[1]]).collect();
        let results = [0.9, 0.5].map(|score| PoseEstimate {
            points: points.clone(),
            confidences: vec![1.0; 4],
            score,
            area: 6000.0,
        });
        let measured = MeasuredPoses::new(&eval, results.into(), Some(&[0.1; 4]), 0.9).unwrap();
        assert_eq!(measured.kept.len(), 1);
        assert_eq!(measured.pck.unwrap().mean, Some(0.5));
    }

    /// Once the view of such a box ended the program: "no inverse of Affine".
    #[test]
    fn huge_detected_boxes_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let keypoints = people(folder.path(), &[0.0]);
        let config = PoseConfig {
            box_file: folder.path().join("boxes.json"),
            box_threshold: 0.5,
            ..PoseConfig::default()
        };
        let found = |side: &str, score: f64| {
            let text = format!(
                r#"[{{"image_id": 7, "category_id": 3, "bbox": [0, 0, {side}, {side}], "score": {score}}},
                  {{"image_id": 7, "category_id": 3, "bbox": [0, 0, 60, 100], "score": 0.8}}]"#
            );
            fs_err::write(&config.box_file, text).unwrap();
            detected(&config, &keypoints)
        };
        for side in ["1e200", "1e308", "1e6"] {
            let error = found(side, 0.9).unwrap_err().to_string();
            assert!(
                error.contains("boxes.json: expected boxes about the size of their images")
                    && error.contains("of image 7"),
                "{error}"
            );
        }
        // Of a box that is not used nothing is said.
        assert_eq!(found("1e200", 0.1).unwrap().len(), 1);
        assert_eq!(found("4000", 0.9).unwrap().len(), 2);
    }

    #[test]
    fn poses_of_other_programs_are_scored() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let text = r#"{"images": [{"id": 7, "file_name": "a.jpg", "width": 200, "height": 200}],
            "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 10, 40, 100], "area": 4000,
              "iscrowd": 0, "keypoints": [20, 20, 2, 30, 90, 2]}],
            "categories": [{"id": 3, "name": "person", "keypoints": ["head", "hip"], "skeleton": [], "sigmas": [0.1, 0.1]}]}"#;
        fs_err::write(at("person_keypoints_val.json"), text).unwrap();
        let poses = r#"[{"image_id": 7, "category_id": 3, "keypoints": [20, 20, 1, 30, 90, 1], "score": 0.5}]"#;
        fs_err::write(at("poses.json"), poses).unwrap();
        let scored = PoseTask::score(
            &ScoreRequest {
                data: folder.path(),
                split: &SplitChoice::Test,
                predictions: &at("poses.json"),
                threshold: 0.5,
            },
            &Default::default(),
        )
        .unwrap();
        let ap = scored.scores.value("OKS AP").unwrap();
        assert!((ap - 1.0).abs() < 1e-12, "{ap}");
    }
}
