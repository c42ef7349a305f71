//! Pose: PCK, OKS AP as the COCO keypoint evaluation computes it, and suppression of repeated
//! poses.
//!
//! # PCK
//! A joint is correct if it lies within `threshold` times a reference length of its place (Sapp and
//! Taskar, FLIC, CVPR 2013; Yang and Ramanan, 2013). Papers differ in the length, so it is given
//! per person: [`torso_length`] for PCK@0.2 torso, [`box_length`] for PCK@0.2 box.
//!
//! # OKS AP
//! OKS = Σ_i exp(-d_i² / (2 s² k_i²)) \[v_i > 0\] / Σ_i \[v_i > 0\], with s² the area of the person
//! and k_i = 2 σ_i. AP is the mean over OKS 0.50, 0.55 ... 0.95 of the precision interpolated at
//! 101 recalls; at most 20 detections an image. A person in a crowd annotation or without a visible
//! joint is ignored: matching it is neither right nor wrong. Details, such as the enlarged box that
//! stands in for joints that are not visible, follow pycocotools 2.0; so does the order of the
//! arithmetic, to the last bit where the platform's `exp` allows.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::coco::{ALL, Curve, Image, LARGE, MEDIUM, ScoredDetection, THRESHOLDS, True};
use crate::detection::suppress;
use crate::{MetricError, mean_of};

/// One person of the truth beside its prediction, for PCK.
#[derive(Debug, Clone, Copy)]
pub struct PosePair<'a> {
    /// x, y of each joint.
    pub truth: &'a [[f64; 2]],
    /// Joints that count.
    pub visible: &'a [bool],
    /// x, y of each predicted joint.
    pub predicted: &'a [[f64; 2]],
    /// Reference length in the unit of the coordinates; `None` or 0 leaves the person out.
    pub length: Option<f64>,
}

/// The result of [`pck`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pck {
    /// Share of the reference length within which a joint is correct.
    pub threshold: f64,
    /// Mean over joints of their rates: each joint weighs the same.
    pub mean: Option<f64>,
    /// Share of all visible joints that are correct: each instance weighs the same.
    pub overall: Option<f64>,
    /// Rate of each joint; `None` for one that is never visible.
    pub per_joint: Vec<Option<f64>>,
    /// People counted.
    pub people: usize,
    /// People that are not counted, because they have no reference length.
    pub skipped: usize,
}

/// Percentage (here: share) of correct keypoints. A joint at exactly the limit is correct.
///
/// # Panics
/// If the lists of one person differ in length, or people in their number of joints.
pub fn pck(people: &[PosePair], threshold: f64) -> Pck {
    let joints = people.first().map_or(0, |p| p.truth.len());
    let (mut correct, mut visible, mut skipped) = (vec![0_usize; joints], vec![0_usize; joints], 0);
    for person in people {
        let lengths = [
            person.truth.len(),
            person.visible.len(),
            person.predicted.len(),
        ];
        assert_eq!(lengths, [joints; 3], "joints of one person");
        let Some(length) = person.length.filter(|l| *l > 0.0) else {
            skipped += 1;
            continue;
        };
        for j in (0..joints).filter(|&j| person.visible[j]) {
            visible[j] += 1;
            if distance(person.truth[j], person.predicted[j]) <= threshold * length {
                correct[j] += 1;
            }
        }
    }
    let rate =
        |correct: usize, visible: usize| (visible > 0).then(|| correct as f64 / visible as f64);
    let per_joint: Vec<Option<f64>> = correct
        .iter()
        .zip(&visible)
        .map(|(c, v)| rate(*c, *v))
        .collect();
    Pck {
        threshold,
        mean: mean_of(per_joint.iter().copied()),
        overall: rate(correct.iter().sum(), visible.iter().sum()),
        per_joint,
        people: people.len() - skipped,
        skipped,
    }
}

/// The longer diagonal of the torso: left shoulder to right hip or right shoulder to left hip, of
/// those that are visible.
///
/// `diagonals` are the two pairs of joint indices. Papers take the first diagonal; the longer of
/// the two is our choice, because one of them all but vanishes when a person bends or turns.
pub fn torso_length(truth: &[[f64; 2]], visible: &[bool], diagonals: &[[usize; 2]]) -> Option<f64> {
    let known = diagonals.iter().filter(|[a, b]| visible[*a] && visible[*b]);
    known
        .map(|[a, b]| distance(truth[*a], truth[*b]))
        .reduce(f64::max)
}

/// The longer side of a box `[x, y, width, height]`.
pub fn box_length(xywh: [f64; 4]) -> Option<f64> {
    Some(xywh[2].max(xywh[3])).filter(|length| *length > 0.0)
}

fn distance(a: [f64; 2], b: [f64; 2]) -> f64 {
    (a[0] - b[0]).hypot(a[1] - b[1])
}

/// One person of the truth, for [`oks_ap`].
#[derive(Debug, Clone, PartialEq)]
pub struct TruePose {
    /// Image, any number.
    pub image: u64,
    /// x, y, visibility (0 not labeled, 1 hidden, 2 visible) of each joint.
    pub keypoints: Vec<[f64; 3]>,
    /// x, y, width, height.
    pub bbox: [f64; 4],
    /// Area of the person in pixels.
    pub area: f64,
    /// Whether this marks a crowd.
    pub crowd: bool,
}

/// One predicted person, for [`oks_ap`].
#[derive(Debug, Clone, PartialEq)]
pub struct PredictedPose {
    /// Image, as in [`TruePose`].
    pub image: u64,
    /// x, y of each joint.
    pub keypoints: Vec<[f64; 2]>,
    /// Confidence in the whole pose.
    pub score: f64,
}

/// The ten metrics of the COCO keypoint evaluation; `None` without people of that size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OksAp {
    /// AP over OKS 0.50 to 0.95.
    pub ap: Option<f64>,
    /// AP at OKS 0.50.
    pub ap50: Option<f64>,
    /// AP at OKS 0.75.
    pub ap75: Option<f64>,
    /// AP of people of 32² to 96² pixels.
    pub ap_medium: Option<f64>,
    /// AP of people of more than 96² pixels.
    pub ap_large: Option<f64>,
    /// Average recall over OKS 0.50 to 0.95.
    pub ar: Option<f64>,
    /// Recall at OKS 0.50.
    pub ar50: Option<f64>,
    /// Recall at OKS 0.75.
    pub ar75: Option<f64>,
    /// Average recall of medium people.
    pub ar_medium: Option<f64>,
    /// Average recall of large people.
    pub ar_large: Option<f64>,
    /// People that are not ignored.
    pub people: usize,
    /// Predicted poses.
    pub predictions: usize,
}

const MAX_DETECTIONS: usize = 20;

/// The COCO keypoint evaluation for one category and skeleton.
///
/// # Errors
/// [`MetricError::Joints`] for a pose with another number of joints than `sigmas`;
/// [`MetricError::NotFinite`].
pub fn oks_ap(
    truth: &[TruePose],
    predicted: &[PredictedPose],
    sigmas: &[f64],
) -> Result<OksAp, MetricError> {
    check(truth, predicted, sigmas.len())?;
    let mut images: BTreeMap<u64, (Vec<&TruePose>, Vec<&PredictedPose>)> = BTreeMap::new();
    for pose in truth {
        images.entry(pose.image).or_default().0.push(pose);
    }
    for pose in predicted {
        images.entry(pose.image).or_default().1.push(pose);
    }
    let images: Vec<(Vec<&TruePose>, Vec<&PredictedPose>)> = images.into_values().collect();
    let images: Vec<Image> = { images.into_par_iter() }
        .map(|(truth, predicted)| similarities(&truth, predicted, sigmas))
        .collect();
    let [all, medium, large] =
        [ALL, MEDIUM, LARGE].map(|area| Curve::new(&images, area, MAX_DETECTIONS));
    Ok(OksAp {
        ap: all.ap(0..THRESHOLDS),
        ap50: all.ap(0..1),
        ap75: all.ap(5..6),
        ap_medium: medium.ap(0..THRESHOLDS),
        ap_large: large.ap(0..THRESHOLDS),
        ar: all.ar(0..THRESHOLDS),
        ar50: all.ar(0..1),
        ar75: all.ar(5..6),
        ar_medium: medium.ar(0..THRESHOLDS),
        ar_large: large.ar(0..THRESHOLDS),
        people: all.instances,
        predictions: predicted.len(),
    })
}

fn check(
    truth: &[TruePose],
    predicted: &[PredictedPose],
    expected: usize,
) -> Result<(), MetricError> {
    for (index, pose) in truth.iter().enumerate() {
        let what = "true pose";
        if pose.keypoints.len() != expected {
            return Err(MetricError::Joints {
                what,
                index,
                expected,
                found: pose.keypoints.len(),
            });
        }
        let values = pose
            .keypoints
            .iter()
            .flatten()
            .chain(&pose.bbox)
            .chain([&pose.area]);
        if let Some(&found) = { values }.find(|v| !v.is_finite()) {
            return Err(MetricError::NotFinite {
                what,
                row: index,
                found,
            });
        }
    }
    for (index, pose) in predicted.iter().enumerate() {
        let what = "predicted pose";
        if pose.keypoints.len() != expected {
            return Err(MetricError::Joints {
                what,
                index,
                expected,
                found: pose.keypoints.len(),
            });
        }
        if let Some(&found) = pose
            .keypoints
            .iter()
            .flatten()
            .chain([&pose.score])
            .find(|v| !v.is_finite())
        {
            return Err(MetricError::NotFinite {
                what,
                row: index,
                found,
            });
        }
    }
    Ok(())
}

/// Object keypoint similarity of one prediction and one person.
pub fn oks(truth: &TruePose, predicted: &[[f64; 2]], sigmas: &[f64]) -> f64 {
    let visible = truth.keypoints.iter().filter(|k| k[2] > 0.0).count();
    let [x, y, width, height] = truth.bbox;
    // Distance to an interval three boxes wide, for a person without labeled joints.
    let outside = |value: f64, start: f64, size: f64| {
        (start - size - value).max(0.0) + (value - (start + size * 2.0)).max(0.0)
    };
    let mut sum = 0.0;
    for ((joint, found), sigma) in truth.keypoints.iter().zip(predicted).zip(sigmas) {
        let (dx, dy) = match visible {
            0 => (outside(found[0], x, width), outside(found[1], y, height)),
            _ if joint[2] > 0.0 => (found[0] - joint[0], found[1] - joint[1]),
            _ => continue,
        };
        let variance = (sigma * 2.0) * (sigma * 2.0);
        let e = (dx * dx + dy * dy) / variance / (truth.area + f64::EPSILON) / 2.0;
        sum += (-e).exp();
    }
    sum / if visible == 0 { sigmas.len() } else { visible } as f64
}

/// The best predictions of an image and their similarity to its people.
fn similarities(truth: &[&TruePose], mut predicted: Vec<&PredictedPose>, sigmas: &[f64]) -> Image {
    predicted.sort_by(|a, b| b.score.total_cmp(&a.score));
    predicted.truncate(MAX_DETECTIONS);
    Image {
        truth: { truth.iter() }
            .map(|t| True {
                area: t.area,
                ignored: t.crowd || t.keypoints.iter().all(|k| k[2] <= 0.0),
                crowd: t.crowd,
            })
            .collect(),
        found: { predicted.iter() }
            .map(|p| ScoredDetection {
                score: p.score,
                area: extent(&p.keypoints),
            })
            .collect(),
        similarity: { predicted.iter() }
            .flat_map(|p| truth.iter().map(|t| oks(t, &p.keypoints, sigmas)))
            .collect(),
    }
}

/// Area of the box around the joints: the size of a prediction.
fn extent(keypoints: &[[f64; 2]]) -> f64 {
    let side = |axis: usize| {
        let values = keypoints.iter().map(|k| k[axis]);
        values.clone().fold(f64::NEG_INFINITY, f64::max) - values.fold(f64::INFINITY, f64::min)
    };
    side(0) * side(1)
}

/// Poses left after those too similar to a better one are dropped, best first (Papandreou et al.,
/// "Towards Accurate Multi-person Pose Estimation in the Wild", CVPR 2017).
///
/// The similarity of two poses is the mean over all joints of exp(-d² / (2 s² k²)) with s² the mean
/// of their two `areas`; a pose is dropped if it exceeds `threshold`, 0.9 in the published
/// protocol. Poses of equal score keep their order.
///
/// # Panics
/// If the lists differ in length, or a pose has another number of joints than `sigmas`.
pub fn oks_nms(
    poses: &[&[[f64; 2]]],
    areas: &[f64],
    scores: &[f64],
    sigmas: &[f64],
    threshold: f64,
) -> Vec<usize> {
    assert_eq!(
        [areas.len(), scores.len()],
        [poses.len(); 2],
        "areas and scores of {} poses",
        poses.len()
    );
    let similarity = |a: usize, b: usize| {
        assert_eq!(
            [poses[a].len(), poses[b].len()],
            [sigmas.len(); 2],
            "joints of a pose"
        );
        let area = (areas[a] + areas[b]) / 2.0 + f64::EPSILON;
        let joints = poses[a].iter().zip(poses[b]).zip(sigmas);
        let sum: f64 = joints
            .map(|((p, q), sigma)| {
                let (dx, dy) = (q[0] - p[0], q[1] - p[1]);
                let e = (dx * dx + dy * dy) / (sigma * 2.0).powi(2) / area / 2.0;
                (-e).exp()
            })
            .sum();
        sum / sigmas.len() as f64
    };
    suppress(scores, |kept, other| similarity(kept, other) > threshold)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person(image: u64, keypoints: &[[f64; 3]], area: f64) -> TruePose {
        TruePose {
            image,
            keypoints: keypoints.to_vec(),
            bbox: [0.0, 0.0, 10.0, 10.0],
            area,
            crowd: false,
        }
    }

    #[test]
    fn one_joint_at_distance_s_k() {
        // d = s k, k = 2 sigma: OKS = exp(-1/2).
        let truth = person(0, &[[0.0, 0.0, 2.0], [50.0, 50.0, 0.0]], 2500.0);
        let value = oks(
            &truth,
            &[[50.0 * 2.0 * 0.05, 0.0], [0.0, 0.0]],
            &[0.05, 0.1],
        );
        assert!((value - (-0.5_f64).exp()).abs() < 1e-12, "{value}");
    }

    #[test]
    fn without_labeled_joints_the_enlarged_box_is_used() {
        let truth = person(0, &[[0.0, 0.0, 0.0]], 100.0);
        assert_eq!(oks(&truth, &[[20.0, -10.0]], &[0.1]), 1.0);
        assert!(oks(&truth, &[[20.1, 0.0]], &[0.1]) < 1.0);
    }

    #[test]
    fn perfect_missed_and_ignored() {
        let joints = [[0.0, 0.0, 2.0], [40.0, 90.0, 2.0]];
        let mut crowd = person(1, &joints, 5000.0);
        crowd.crowd = true;
        let truth = [person(0, &joints, 5000.0), crowd];
        let pose = |image, score| PredictedPose {
            image,
            keypoints: vec![[0.0, 0.0], [40.0, 90.0]],
            score,
        };
        let metrics = oks_ap(
            &truth,
            &[pose(0, 0.5), pose(1, 0.9), pose(1, 0.8)],
            &[0.1; 2],
        )
        .unwrap();
        assert_eq!((metrics.people, metrics.ap_large), (1, None));
        assert!(
            (metrics.ap.unwrap() - 1.0).abs() < 1e-12 && metrics.ar == Some(1.0),
            "{metrics:?}"
        );
        let none = oks_ap(&truth, &[], &[0.1; 2]).unwrap();
        assert_eq!((none.ap, none.ar), (Some(0.0), Some(0.0)));
        assert_eq!(oks_ap(&[], &[], &[0.1; 2]).unwrap().ap, None);
    }

    #[test]
    fn another_skeleton_and_nan_are_errors() {
        let truth = [person(0, &[[0.0, 0.0, 2.0]], 5000.0)];
        let error = oks_ap(&truth, &[], &[0.1; 2]).unwrap_err();
        assert_eq!(error.to_string(), "true pose 0: expected 2 joints, found 1");
        let pose = PredictedPose {
            image: 0,
            keypoints: vec![[f64::NAN, 0.0]],
            score: 1.0,
        };
        assert!(matches!(
            oks_ap(&truth, &[pose], &[0.1]),
            Err(MetricError::NotFinite { .. })
        ));
    }

    #[test]
    fn pck_by_hand() {
        let truth = [[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]];
        let predicted = [[2.0, 0.0], [12.1, 0.0], [0.0, 10.0]];
        let pair = |visible, length| PosePair {
            truth: &truth,
            visible,
            predicted: &predicted,
            length,
        };
        let all = pck(
            &[
                pair(&[true, true, false], Some(10.0)),
                pair(&[true; 3], None),
            ],
            0.2,
        );
        assert_eq!(all.per_joint, [Some(1.0), Some(0.0), None]);
        assert_eq!(
            (all.mean, all.overall, all.people, all.skipped),
            (Some(0.5), Some(0.5), 1, 1)
        );
        assert_eq!(
            torso_length(&truth, &[true; 3], &[[0, 1], [1, 2]]),
            Some(200.0_f64.sqrt())
        );
        assert_eq!(
            torso_length(&truth, &[true, false, true], &[[0, 1], [1, 2]]),
            None
        );
        assert_eq!(box_length([3.0, 4.0, 5.0, 7.0]), Some(7.0));
        assert_eq!(pck(&[], 0.2).mean, None);
    }
}
