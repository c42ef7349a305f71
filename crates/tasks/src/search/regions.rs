//! Boxes of two-stage person search: anchors, encoded boxes, and which of them are trained on (Ren
//! et al., "Faster R-CNN", 2015). Constants are those of torchvision's detectors.
//!
//! Boxes are x, y, width, height in pixels of the network's input.

use clasp_metrics::detection::{iou, nms};
use rand::seq::SliceRandom;

use crate::detection::csp::MIN_SIDE;

/// Largest factor between the side of a decoded box and that of its anchor.
const MAX_GROWTH: f64 = 1000.0 / 16.0;

/// Anchors of a feature map of `[rows, columns]` positions, row by row: at each position one for
/// every ratio (height divided by width) and size (square root of the area), in that order. Their
/// corners are whole pixels about the corner of the position.
pub fn anchors(
    sizes: &[f64],
    ratios: &[f64],
    stride: usize,
    [rows, columns]: [usize; 2],
) -> Vec<[f64; 4]> {
    let half = |length: f64| (length / 2.0).round_ties_even();
    let shapes: Vec<[f64; 2]> = { ratios.iter() }
        .flat_map(|ratio| {
            sizes
                .iter()
                .map(move |size| [size / ratio.sqrt(), size * ratio.sqrt()])
        })
        .map(|shape| shape.map(half))
        .collect();
    let at = |place: usize| (place * stride) as f64;
    (0..rows * columns)
        .flat_map(|place| {
            let (x, y) = (at(place % columns), at(place / columns));
            shapes
                .iter()
                .map(move |[w, h]| [x - w, y - h, 2.0 * w, 2.0 * h])
        })
        .collect()
}

/// The regression target of a box relative to an anchor: the offset of the center divided by the
/// anchor's sides, and the logarithm of the ratio of the sides, each times a weight.
pub fn encode(bbox: [f64; 4], from: [f64; 4], weights: [f64; 4]) -> [f32; 4] {
    let center = |bbox: [f64; 4], axis: usize| bbox[axis] + bbox[axis + 2] / 2.0;
    let place = |axis: usize| (center(bbox, axis) - center(from, axis)) / from[axis + 2];
    let length = |axis: usize| (bbox[axis + 2] / from[axis + 2]).ln();
    let found = [place(0), place(1), length(0), length(1)];
    std::array::from_fn(|i| (weights[i] * found[i]) as f32)
}

/// The box of a regression output relative to an anchor: the inverse of [`encode`].
pub fn decode(deltas: [f32; 4], from: [f64; 4], weights: [f64; 4]) -> [f64; 4] {
    let delta = |i: usize| f64::from(deltas[i]) / weights[i];
    let length = |axis: usize| delta(axis + 2).min(MAX_GROWTH.ln()).exp() * from[axis + 2];
    let center = |axis: usize| from[axis] + from[axis + 2] / 2.0 + delta(axis) * from[axis + 2];
    let (w, h) = (length(0), length(1));
    [center(0) - w / 2.0, center(1) - h / 2.0, w, h]
}

/// The part of a box inside an image of that height and width.
pub fn clip([x, y, w, h]: [f64; 4], [height, width]: [usize; 2]) -> [f64; 4] {
    let (width, height) = (width as f64, height as f64);
    let (left, top) = (x.clamp(0.0, width), y.clamp(0.0, height));
    let (right, bottom) = ((x + w).clamp(0.0, width), (y + h).clamp(0.0, height));
    [left, top, right - left, bottom - top]
}

/// The boxes that NMS keeps, best first: of the `candidates` boxes of the highest scores, at most
/// `most` whose IoU with every better one is at most `overlap`.
pub fn best(
    boxes: Vec<[f64; 4]>,
    scores: &[f32],
    overlap: f64,
    [candidates, most]: [usize; 2],
) -> Vec<[f64; 4]> {
    let mut order: Vec<usize> = (0..boxes.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(candidates);
    order.retain(|at| boxes[*at][2].min(boxes[*at][3]) >= MIN_SIDE);
    let (boxes, scores): (Vec<[f64; 4]>, Vec<f64>) = { order.into_iter() }
        .map(|at| (boxes[at], f64::from(scores[at])))
        .unzip();
    let kept = nms(&boxes, &scores, overlap).into_iter().take(most);
    kept.map(|at| boxes[at]).collect()
}

/// The use of an anchor or region in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionLabel {
    /// Positive: it is trained to detect the person at this position.
    Positive(usize),
    /// Negative: it is trained as background.
    Negative,
    /// Ignored: it is not trained on.
    Ignored,
}

/// Labels of boxes: positive for the person of the largest IoU from `high` on, negative below
/// `low`, ignored between. With `keep_best`, the boxes of the largest IoU with any person are
/// positive too, however small that IoU is.
pub fn label_regions(
    people: &[[f64; 4]],
    boxes: &[[f64; 4]],
    [low, high]: [f64; 2],
    keep_best: bool,
) -> Vec<RegionLabel> {
    let overlaps: Vec<Vec<f64>> = { people.iter() }
        .map(|person| boxes.iter().map(|bbox| iou(*person, *bbox)).collect())
        .collect();
    let best: Vec<f64> = { overlaps.iter() }
        .map(|row| row.iter().copied().fold(0.0, f64::max))
        .collect();
    (0..boxes.len())
        .map(|at| {
            let of = |person: &usize| overlaps[*person][at];
            let first_best = |a: usize, b: usize| if of(&b) > of(&a) { b } else { a };
            let Some(nearest) = (0..people.len()).reduce(first_best) else {
                return RegionLabel::Negative;
            };
            let is_best = || (0..people.len()).any(|p| of(&p) == best[p] && best[p] > 0.0);
            let overlap = of(&nearest);
            if overlap >= high || (keep_best && is_best()) {
                RegionLabel::Positive(nearest)
            } else if overlap < low {
                RegionLabel::Negative
            } else {
                RegionLabel::Ignored
            }
        })
        .collect()
}

/// Up to `count` random boxes to train on, at most half of them positive; in order.
pub fn sample(labels: &[RegionLabel], count: usize, rng: &mut impl rand::Rng) -> Vec<usize> {
    let mut pick = |positive: bool, most: usize| {
        let fits = |labels: &RegionLabel| match labels {
            RegionLabel::Positive(_) => positive,
            RegionLabel::Negative => !positive,
            RegionLabel::Ignored => false,
        };
        let mut found: Vec<usize> = (0..labels.len()).filter(|at| fits(&labels[*at])).collect();
        if found.len() > most {
            found.shuffle(rng);
            found.truncate(most);
        }
        found
    };
    let mut picked = pick(true, count / 2);
    let rest = count - picked.len();
    picked.extend(pick(false, rest));
    picked.sort_unstable();
    picked
}

#[cfg(test)]
mod tests {
    use clasp_data::rng_for;
    use serde::Deserialize;

    use super::*;

    /// Written by `tests/golden/regions.py`.
    #[derive(Deserialize)]
    struct RegionGolden {
        people: Vec<[f64; 4]>,
        anchors: Vec<[f64; 4]>,
        coders: std::collections::BTreeMap<String, CoderGolden>,
        matched: std::collections::BTreeMap<String, Vec<i64>>,
        scores: Vec<f32>,
        deltas: Vec<[f32; 4]>,
        proposals: Vec<[f64; 4]>,
    }

    #[derive(Deserialize)]
    struct CoderGolden {
        encoded: Vec<[f64; 4]>,
        deltas: Vec<[f32; 4]>,
        decoded: Vec<[f64; 4]>,
    }

    fn golden() -> RegionGolden {
        serde_json::from_str(include_str!("../../tests/golden/regions.json")).unwrap()
    }

    #[track_caller]
    fn assert_near(found: [f64; 4], expected: [f64; 4], tolerance: f64) {
        let near =
            |i: usize| (found[i] - expected[i]).abs() <= tolerance * expected[i].abs().max(1.0);
        assert!((0..4).all(near), "{found:?}, expected {expected:?}");
    }

    #[test]
    fn anchors_equal_torchvision() {
        let found = anchors(&[16.0, 45.0], &[0.5, 1.0, 2.0], 8, [9, 7]);
        assert_eq!(found, golden().anchors);
    }

    #[test]
    fn encoded_boxes_equal_torchvision() {
        let golden = golden();
        for (name, weights) in [("anchors", [1.0; 4]), ("regions", [10.0, 10.0, 5.0, 5.0])] {
            let coder = &golden.coders[name];
            for i in 0..5 {
                let anchor = golden.anchors[100 + i];
                let found = encode(golden.people[i], anchor, weights);
                assert_near(found.map(f64::from), coder.encoded[i], 1e-5);
                assert_near(decode(found, anchor, weights), golden.people[i], 1e-5);
                let found = decode(coder.deltas[i], anchor, weights);
                assert_near(found, coder.decoded[i], 1e-5);
            }
        }
    }

    #[test]
    fn labels_equal_torchvision() {
        let golden = golden();
        for (name, overlap, keep_best) in [
            ("anchors", [0.3, 0.7], true),
            ("regions", [0.5, 0.5], false),
        ] {
            let found = label_regions(&golden.people, &golden.anchors, overlap, keep_best);
            let found: Vec<i64> = { found.into_iter() }
                .map(|labels| match labels {
                    RegionLabel::Positive(person) => person as i64,
                    RegionLabel::Negative => -1,
                    RegionLabel::Ignored => -2,
                })
                .collect();
            assert_eq!(found, golden.matched[name], "{name}");
        }
        assert_eq!(
            label_regions(&[], &golden.anchors[..2], [0.3, 0.7], true),
            [RegionLabel::Negative; 2]
        );
    }

    #[test]
    fn the_best_proposals_equal_torchvision() {
        let golden = golden();
        let moved = { golden.deltas.iter().zip(&golden.anchors) }
            .map(|(deltas, anchor)| clip(decode(*deltas, *anchor, [1.0; 4]), [70, 53]))
            .collect();
        let found = best(moved, &golden.scores, 0.7, [120, 25]);
        assert_eq!(found.len(), golden.proposals.len());
        for (found, expected) in found.into_iter().zip(golden.proposals) {
            assert_near(found, expected, 1e-4);
        }
    }

    #[test]
    fn at_most_half_of_a_sample_is_positive() {
        let mut labels = vec![RegionLabel::Positive(0); 10];
        labels.extend([RegionLabel::Ignored; 10]);
        labels.extend([RegionLabel::Negative; 10]);
        let mut rng = rng_for(0, 0, "sample");
        let found = sample(&labels, 8, &mut rng);
        let positives = found.iter().filter(|at| **at < 10).count();
        assert_eq!((found.len(), positives), (8, 4));
        assert!(found.iter().all(|at| labels[*at] != RegionLabel::Ignored));
        // Negatives fill up missing positives, and no box is repeated.
        assert_eq!(sample(&labels[9..], 8, &mut rng).len(), 8);
        assert_eq!(sample(&labels[..20], 30, &mut rng).len(), 10);
    }
}
