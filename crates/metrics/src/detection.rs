//! Boxes: overlap, suppression of repeated ones, the COCO box evaluation and the log-average miss
//! rate of pedestrian detection.
//!
//! A box is x, y, width, height in pixels, in `f64`.
//!
//! # Log-average miss rate
//! MR⁻² (Dollár et al., "Pedestrian Detection: An Evaluation of the State of the Art", PAMI 2012;
//! subsets by Zhang et al., "CityPersons", CVPR 2017). For a [`PedestrianSubset`] of heights and
//! visibilities:
//!
//! 1. A true box outside the subset is ignored, as one that is marked so.
//! 2. Of each image's 1000 best found boxes those of height lowest / 1.25 to highest · 1.25 count.
//! 3. Found boxes, best first, take the free true box of the largest overlap, at IoU 0.5 or above;
//!    an ignored one only if there is no other. With an ignored box the overlap is intersection /
//!    found area, it can be taken any number of times, and what takes it counts neither way.
//! 4. Over all images by score: recall = right / true boxes, FPPI = wrong / images.
//! 5. MR⁻² = exp(mean of ln(1 - recall)) at FPPI 10⁻², 10⁻¹·⁷⁵ ... 10⁰, the recall being that of
//!    the last found box whose FPPI does not exceed it.
//!
//! Two choices of ours where the published evaluator has none that makes sense. Where even the best
//! found box exceeds the FPPI the recall is 0; there it is that of the *last* box (an index of -1),
//! which matters below 100 images. And 1 - recall is at least 10⁻¹⁰; there one perfect point makes
//! the whole rate 0.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::MetricError;
use crate::coco::{self, ALL, Curve, LARGE, MEDIUM, SMALL, THRESHOLDS, Target, True, greedy};

/// Width and height of the intersection multiplied, 0 if there is none.
fn intersection(a: [f64; 4], b: [f64; 4]) -> f64 {
    let side =
        |axis: usize| (a[axis] + a[axis + 2]).min(b[axis] + b[axis + 2]) - a[axis].max(b[axis]);
    let (width, height) = (side(0), side(1));
    if width > 0.0 && height > 0.0 {
        width * height
    } else {
        0.0
    }
}

/// Intersection over union of two boxes; 0 if both are empty.
pub fn iou(a: [f64; 4], b: [f64; 4]) -> f64 {
    match intersection(a, b) {
        0.0 => 0.0,
        shared => shared / (a[2] * a[3] + b[2] * b[3] - shared),
    }
}

/// Share of box `a` that lies in `b`; 0 if `a` is empty.
pub fn covered(a: [f64; 4], b: [f64; 4]) -> f64 {
    match intersection(a, b) {
        0.0 => 0.0,
        shared => shared / (a[2] * a[3]),
    }
}

/// Boxes left after those that overlap a better one by more than `threshold` (IoU) are dropped,
/// best first. Boxes of equal score keep their order.
///
/// # Panics
/// If the lists differ in length.
pub fn nms(boxes: &[[f64; 4]], scores: &[f64], threshold: f64) -> Vec<usize> {
    assert_eq!(boxes.len(), scores.len(), "scores of the boxes");
    suppress(scores, |kept, other| {
        iou(boxes[kept], boxes[other]) > threshold
    })
}

/// Goes through items from the best to the worst and drops those that `repeats(better, item)` says
/// repeat a better one.
pub(crate) fn suppress(scores: &[f64], repeats: impl Fn(usize, usize) -> bool) -> Vec<usize> {
    let mut kept: Vec<usize> = Vec::new();
    for item in best_first(scores) {
        if !kept.iter().any(|&better| repeats(better, item)) {
            kept.push(item);
        }
    }
    kept
}

fn best_first(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order
}

/// How [`soft_nms`] lowers the score of a box that overlaps a better one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SoftNmsDecay {
    /// By 1 - IoU, if the IoU exceeds `threshold`.
    Linear {
        /// Overlap that changes nothing.
        threshold: f64,
    },
    /// By exp(-IoU² / `sigma`).
    Gaussian {
        /// Width; 0.5 in the paper.
        sigma: f64,
    },
}

/// Boxes with lowered scores instead of dropped boxes (Bodla et al., "Soft-NMS", ICCV 2017): index
/// and new score, best first, without those that fall below `lowest`. Boxes of equal score keep
/// their order.
///
/// # Panics
/// If the lists differ in length.
pub fn soft_nms(
    boxes: &[[f64; 4]],
    scores: &[f64],
    decay: SoftNmsDecay,
    lowest: f64,
) -> Vec<(usize, f64)> {
    assert_eq!(boxes.len(), scores.len(), "scores of the boxes");
    let mut left: Vec<(usize, f64)> = scores.iter().copied().enumerate().collect();
    left.retain(|item| item.1 >= lowest);
    let mut kept = Vec::with_capacity(left.len());
    while let Some(best) = (0..left.len()).reduce(|a, b| if left[b].1 > left[a].1 { b } else { a })
    {
        let best = left.remove(best);
        kept.push(best);
        for item in &mut left {
            let overlap = iou(boxes[best.0], boxes[item.0]);
            item.1 *= match decay {
                SoftNmsDecay::Linear { threshold } if overlap > threshold => 1.0 - overlap,
                SoftNmsDecay::Linear { .. } => 1.0,
                SoftNmsDecay::Gaussian { sigma } => (-overlap * overlap / sigma).exp(),
            };
        }
        left.retain(|item| item.1 >= lowest);
    }
    kept
}

/// A box that a detector found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FoundBox {
    /// Image, as in the truth.
    pub image: u64,
    /// x, y, width, height.
    pub bbox: [f64; 4],
    /// Confidence.
    pub score: f64,
}

/// A box of the truth, for [`box_ap`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrueBox {
    /// Image, any number.
    pub image: u64,
    /// x, y, width, height.
    pub bbox: [f64; 4],
    /// Area of the object, which decides on its size: that of its mask in COCO.
    pub area: f64,
    /// Whether this marks a crowd.
    pub crowd: bool,
}

/// The twelve metrics of the COCO box evaluation of one class; `None` without objects of that size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BoxAp {
    /// AP over IoU 0.50 to 0.95.
    pub ap: Option<f64>,
    /// AP at IoU 0.50.
    pub ap50: Option<f64>,
    /// AP at IoU 0.75.
    pub ap75: Option<f64>,
    /// AP of areas up to 32².
    pub ap_small: Option<f64>,
    /// AP of areas of 32² to 96².
    pub ap_medium: Option<f64>,
    /// AP of areas from 96².
    pub ap_large: Option<f64>,
    /// Average recall with the best box of each image.
    pub ar1: Option<f64>,
    /// Average recall with the ten best.
    pub ar10: Option<f64>,
    /// Average recall with the hundred best.
    pub ar100: Option<f64>,
    /// Average recall of small ones.
    pub ar_small: Option<f64>,
    /// Average recall of medium ones.
    pub ar_medium: Option<f64>,
    /// Average recall of large ones.
    pub ar_large: Option<f64>,
    /// True boxes that are not crowds.
    pub boxes: usize,
    /// Found boxes.
    pub found: usize,
}

const MAX_BOXES: usize = 100;

/// The COCO box evaluation of one class, of the hundred best boxes of an image.
///
/// # Errors
/// [`MetricError::NotFinite`], [`MetricError::NegativeSize`].
pub fn box_ap(truth: &[TrueBox], found: &[FoundBox]) -> Result<BoxAp, MetricError> {
    for (index, item) in truth.iter().enumerate() {
        check("true box", index, item.bbox, item.area)?;
    }
    check_found(found)?;
    let mut images: BTreeMap<u64, (Vec<&TrueBox>, Vec<&FoundBox>)> = BTreeMap::new();
    for item in truth {
        images.entry(item.image).or_default().0.push(item);
    }
    for item in found {
        images.entry(item.image).or_default().1.push(item);
    }
    let images: Vec<(Vec<&TrueBox>, Vec<&FoundBox>)> = images.into_values().collect();
    let images: Vec<coco::Image> = { images.into_par_iter() }
        .map(|(truth, mut found)| {
            found.sort_by(|a, b| b.score.total_cmp(&a.score));
            found.truncate(MAX_BOXES);
            overlaps(&truth, &found)
        })
        .collect();
    let [all, small, medium, large] =
        [ALL, SMALL, MEDIUM, LARGE].map(|area| Curve::new(&images, area, MAX_BOXES));
    Ok(BoxAp {
        ap: all.ap(0..THRESHOLDS),
        ap50: all.ap(0..1),
        ap75: all.ap(5..6),
        ap_small: small.ap(0..THRESHOLDS),
        ap_medium: medium.ap(0..THRESHOLDS),
        ap_large: large.ap(0..THRESHOLDS),
        ar1: Curve::new(&images, ALL, 1).ar(0..THRESHOLDS),
        ar10: Curve::new(&images, ALL, 10).ar(0..THRESHOLDS),
        ar100: all.ar(0..THRESHOLDS),
        ar_small: small.ar(0..THRESHOLDS),
        ar_medium: medium.ar(0..THRESHOLDS),
        ar_large: large.ar(0..THRESHOLDS),
        boxes: all.instances,
        found: found.len(),
    })
}

fn overlaps(truth: &[&TrueBox], found: &[&FoundBox]) -> coco::Image {
    let overlap = |f: &FoundBox, t: &TrueBox| match t.crowd {
        true => covered(f.bbox, t.bbox),
        false => iou(f.bbox, t.bbox),
    };
    coco::Image {
        truth: { truth.iter() }
            .map(|t| True {
                area: t.area,
                ignored: t.crowd,
                crowd: t.crowd,
            })
            .collect(),
        found: { found.iter() }
            .map(|f| coco::ScoredDetection {
                score: f.score,
                area: f.bbox[2] * f.bbox[3],
            })
            .collect(),
        similarity: { found.iter() }
            .flat_map(|f| truth.iter().map(|t| overlap(f, t)))
            .collect(),
    }
}

fn check(what: &'static str, index: usize, bbox: [f64; 4], other: f64) -> Result<(), MetricError> {
    if let Some(&found) = bbox.iter().chain([&other]).find(|v| !v.is_finite()) {
        return Err(MetricError::NotFinite {
            what,
            row: index,
            found,
        });
    }
    if bbox[2] < 0.0 || bbox[3] < 0.0 {
        return Err(MetricError::NegativeSize {
            what,
            index,
            found: [bbox[2], bbox[3]],
        });
    }
    Ok(())
}

fn check_found(found: &[FoundBox]) -> Result<(), MetricError> {
    { found.iter().enumerate() }
        .try_for_each(|(index, item)| check("found box", index, item.bbox, item.score))
}

/// A pedestrian of the truth, for [`miss_rate`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LabeledPedestrian {
    /// Image.
    pub image: u64,
    /// x, y, width, height of the whole body.
    pub bbox: [f64; 4],
    /// Height in pixels; CityPersons gives it beside the box.
    pub height: f64,
    /// Visible share of the body, 0 to 1.
    pub visibility: f64,
    /// Whether this is no single pedestrian to be found: a group, a rider, a poster.
    pub ignored: bool,
}

/// The pedestrians that a miss rate is about, bounds included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PedestrianSubset {
    /// Name in print.
    pub name: &'static str,
    /// Lowest and highest height in pixels.
    pub height: [f64; 2],
    /// Lowest and highest visible share.
    pub visibility: [f64; 2],
}

impl PedestrianSubset {
    const fn new(name: &'static str, height: [f64; 2], visibility: [f64; 2]) -> Self {
        Self {
            name,
            height,
            visibility,
        }
    }

    /// Whether a pedestrian belongs to it.
    pub fn holds(&self, pedestrian: &LabeledPedestrian) -> bool {
        let within = |value: f64, [low, high]: [f64; 2]| value >= low && value <= high;
        within(pedestrian.height, self.height) && within(pedestrian.visibility, self.visibility)
    }
}

impl std::fmt::Display for PedestrianSubset {
    /// With its bounds: `reasonable (height 50 and above, visible 0.65 and above)`.
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let bounds = |[low, high]: [f64; 2]| match high {
            f64::INFINITY => format!("{low} and above"),
            _ => format!("{low} to {high}"),
        };
        let (height, visible) = (bounds(self.height), bounds(self.visibility));
        write!(f, "{} (height {height}, visible {visible})", self.name)
    }
}

const ANY: f64 = f64::INFINITY;
/// The four subsets of the published CityPersons test, in its order; `heavy` as SOLIDER reports it.
pub const CITYPERSONS: [PedestrianSubset; 4] = [
    PedestrianSubset::new("reasonable", [50.0, ANY], [0.65, ANY]),
    PedestrianSubset::new("reasonable small", [50.0, 75.0], [0.65, ANY]),
    PedestrianSubset::new("heavy", [50.0, ANY], [0.2, 0.65]),
    PedestrianSubset::new("all", [20.0, ANY], [0.2, ANY]),
];
/// Other subsets in print: by occlusion (with a heavy one that begins at 0) and by height.
pub const OTHER_SUBSETS: [PedestrianSubset; 6] = [
    PedestrianSubset::new("bare", [50.0, ANY], [0.9, ANY]),
    PedestrianSubset::new("partial", [50.0, ANY], [0.65, 0.9]),
    PedestrianSubset::new("heavy from 0", [50.0, ANY], [0.0, 0.65]),
    PedestrianSubset::new("reasonable and heavy", [50.0, ANY], [0.2, ANY]),
    PedestrianSubset::new("reasonable middle", [75.0, 100.0], [0.65, ANY]),
    PedestrianSubset::new("reasonable large", [100.0, ANY], [0.65, ANY]),
];

/// False positives per image at which the miss rate is read.
pub const FPPI: [f64; 9] = [
    0.0100, 0.0178, 0.0316, 0.0562, 0.1000, 0.1778, 0.3162, 0.5623, 1.0000,
];
const MAX_PEDESTRIANS: usize = 1000;
const HEIGHT_SLACK: f64 = 1.25;
const LOWEST_MISS_RATE: f64 = 1e-10;

/// The miss rate on one subset.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MissRate {
    /// What it is about.
    pub subset: PedestrianSubset,
    /// MR⁻²; `None` without a pedestrian of the subset.
    pub value: Option<f64>,
    /// Miss rate at each of [`FPPI`]; empty without a pedestrian.
    pub at_fppi: Vec<f64>,
    /// Pedestrians of the subset.
    pub pedestrians: usize,
    /// Found boxes that counted, right or wrong.
    pub found: usize,
    /// Images.
    pub images: usize,
}

/// The log-average miss rate over `images`, each named once, those without a pedestrian too.
///
/// # Errors
/// [`MetricError::NotFinite`], [`MetricError::NegativeSize`] and, for a box on none of `images`,
/// [`MetricError::UnknownImage`].
pub fn miss_rate(
    images: &[u64],
    truth: &[LabeledPedestrian],
    found: &[FoundBox],
    subset: &PedestrianSubset,
) -> Result<MissRate, MetricError> {
    let mut scenes: BTreeMap<u64, (Vec<&LabeledPedestrian>, Vec<&FoundBox>)> =
        { images.iter().map(|image| (*image, Default::default())) }.collect();
    let unknown = |what, index, image| MetricError::UnknownImage { what, index, image };
    for (index, item) in truth.iter().enumerate() {
        check(
            "pedestrian",
            index,
            item.bbox,
            item.height + item.visibility,
        )?;
        let scene = scenes.get_mut(&item.image);
        let scene = scene.ok_or_else(|| unknown("pedestrian", index, item.image))?;
        scene.0.push(item);
    }
    check_found(found)?;
    for (index, item) in found.iter().enumerate() {
        let scene = scenes.get_mut(&item.image);
        let scene = scene.ok_or_else(|| unknown("found box", index, item.image))?;
        scene.1.push(item);
    }

    let pedestrians = { truth.iter() }
        .filter(|t| !t.ignored && subset.holds(t))
        .count();
    let images = scenes.len();
    let mut ranking: Vec<(f64, bool)> = { scenes.into_values().collect::<Vec<_>>() }
        .into_par_iter()
        .flat_map_iter(|(truth, found)| match_boxes(&truth, found, subset))
        .collect();
    ranking.sort_by(|a, b| b.0.total_cmp(&a.0));

    let (mut right, mut wrong) = (0_usize, 0_usize);
    // Recall of the last found box up to each FPPI.
    let mut recall = [0.0; FPPI.len()];
    for (_, is_right) in &ranking {
        right += usize::from(*is_right);
        wrong += usize::from(!is_right);
        let fppi = wrong as f64 / images as f64;
        for (limit, recall) in FPPI.iter().zip(&mut recall) {
            if fppi <= *limit {
                *recall = right as f64 / pedestrians as f64;
            }
        }
    }
    let at_fppi: Vec<f64> = match pedestrians {
        0 => Vec::new(),
        _ => recall
            .iter()
            .map(|r| (1.0 - r).max(LOWEST_MISS_RATE))
            .collect(),
    };
    let logs = at_fppi.iter().map(|rate| rate.ln()).sum::<f64>() / FPPI.len() as f64;
    Ok(MissRate {
        subset: *subset,
        value: (pedestrians > 0).then(|| logs.exp()),
        at_fppi,
        pedestrians,
        found: ranking.len(),
        images,
    })
}

/// Score and rightness of the found boxes of one image that count.
fn match_boxes(
    truth: &[&LabeledPedestrian],
    mut found: Vec<&FoundBox>,
    subset: &PedestrianSubset,
) -> Vec<(f64, bool)> {
    found.sort_by(|a, b| b.score.total_cmp(&a.score));
    found.truncate(MAX_PEDESTRIANS);
    let [low, high] = subset.height;
    found.retain(|f| f.bbox[3] >= low / HEIGHT_SLACK && f.bbox[3] < high * HEIGHT_SLACK);
    let targets: Vec<Target> = { truth.iter() }
        .map(|t| t.ignored || !subset.holds(t))
        .map(|ignored| Target {
            ignored,
            reusable: ignored,
        })
        .collect();
    let overlaps: Vec<f64> = { found.iter() }
        .flat_map(|f| {
            truth
                .iter()
                .zip(&targets)
                .map(|(t, target)| match target.ignored {
                    true => covered(f.bbox, t.bbox),
                    false => iou(f.bbox, t.bbox),
                })
        })
        .collect();
    greedy(&overlaps, &targets, found.len(), 0.5)
        .into_iter()
        .zip(found)
        .filter(|(choice, _)| choice.is_none_or(|t| !targets[t].ignored))
        .map(|(choice, f)| (f.score, choice.is_some()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pedestrian(image: u64, x: f64, ignored: bool) -> LabeledPedestrian {
        LabeledPedestrian {
            image,
            bbox: [x, 0.0, 40.0, 100.0],
            height: 100.0,
            visibility: 1.0,
            ignored,
        }
    }

    fn found(image: u64, x: f64, score: f64) -> FoundBox {
        FoundBox {
            image,
            bbox: [x, 0.0, 40.0, 100.0],
            score,
        }
    }

    fn reasonable(truth: &[LabeledPedestrian], found: &[FoundBox]) -> MissRate {
        miss_rate(&[1, 2, 3], truth, found, &CITYPERSONS[0]).unwrap()
    }

    #[test]
    fn boxes_on_an_ignored_pedestrian_are_neither_right_nor_wrong() {
        let truth = [
            pedestrian(1, 0.0, false),
            pedestrian(2, 0.0, true),
            pedestrian(3, 0.0, false),
        ];
        let boxes = [
            found(2, 0.0, 0.9),
            found(2, 5.0, 0.8),
            found(1, 0.0, 0.7),
            found(3, 500.0, 0.6),
            found(3, 0.0, 0.5),
        ];
        let metrics = reasonable(&truth, &boxes);
        assert_eq!((metrics.pedestrians, metrics.found), (2, 3));
        // FPPI 0 with recall 1/2, then 1/3 with recall 1/2 and 1.
        let expected = [0.5; 7].into_iter().chain([1e-10; 2]);
        assert_eq!(metrics.at_fppi, expected.collect::<Vec<_>>());
        let value = metrics.value.unwrap();
        let expected = (7.0 * 0.5_f64.ln() + 2.0 * 1e-10_f64.ln()) / 9.0;
        assert!((value - expected.exp()).abs() < 1e-15, "{value}");
    }

    #[test]
    fn a_false_alarm_at_the_top_leaves_nothing_at_low_rates() {
        let truth = [pedestrian(1, 0.0, false)];
        let metrics = reasonable(&truth, &[found(2, 0.0, 0.9), found(1, 0.0, 0.8)]);
        assert_eq!(
            metrics.at_fppi,
            [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1e-10, 1e-10]
        );
        assert_eq!(reasonable(&truth, &[]).value, Some(1.0));
        assert_eq!(reasonable(&[], &[found(1, 0.0, 0.9)]).value, None);
        // Too small for the subset even with slack: not evaluated.
        let small = FoundBox {
            bbox: [0.0, 0.0, 10.0, 39.0],
            ..found(1, 0.0, 0.9)
        };
        assert_eq!(reasonable(&truth, &[small]).found, 0);
    }

    #[test]
    fn subsets_print_their_bounds() {
        let printed = CITYPERSONS[2].to_string();
        assert_eq!(printed, "heavy (height 50 and above, visible 0.2 to 0.65)");
    }

    #[test]
    fn overlap_and_suppression_by_hand() {
        let boxes = [
            [0.0, 0.0, 10.0, 10.0],
            [0.0, 5.0, 10.0, 10.0],
            [20.0, 0.0, 10.0, 10.0],
            [0.0, 0.0, 0.0, 0.0],
        ];
        assert_eq!(iou(boxes[0], boxes[1]), 1.0 / 3.0);
        assert_eq!(covered(boxes[0], boxes[1]), 0.5);
        assert_eq!(
            (iou(boxes[0], boxes[2]), iou(boxes[3], boxes[3])),
            (0.0, 0.0)
        );
        let scores = [0.5, 0.9, 0.5, 0.1];
        assert_eq!(nms(&boxes, &scores, 0.3), [1, 2, 3]);
        // At exactly the threshold both stay.
        assert_eq!(nms(&boxes, &scores, 1.0 / 3.0), [1, 0, 2, 3]);
        let soft = soft_nms(
            &boxes,
            &scores,
            SoftNmsDecay::Linear { threshold: 0.3 },
            0.2,
        );
        assert_eq!(soft, [(1, 0.9), (2, 0.5), (0, 0.5 * (1.0 - 1.0 / 3.0))]);
        assert!(nms(&[], &[], 0.5).is_empty());
    }

    #[test]
    fn wrong_input_is_an_error() {
        let turned = FoundBox {
            bbox: [0.0, 0.0, -1.0, 2.0],
            ..found(1, 0.0, 0.5)
        };
        let error = box_ap(&[], &[turned]).unwrap_err().to_string();
        assert!(
            error.starts_with("found box 0: expected a width and a height"),
            "{error}"
        );
        let error = miss_rate(&[1], &[], &[found(9, 0.0, 0.5)], &CITYPERSONS[0]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "found box 0: image 9 is none of those evaluated"
        );
        let nan = found(1, f64::NAN, 0.5);
        assert!(matches!(
            box_ap(&[], &[nan]),
            Err(MetricError::NotFinite { .. })
        ));
    }
}
