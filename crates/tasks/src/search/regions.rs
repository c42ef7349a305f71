//! Boxes of two-stage person search: anchors, boxes relative to others, and which of them are trained on (Ren et al., "Faster
//! R-CNN", 2015). Numbers are those of torchvision's detectors.
//!
//! A box is x, y, width, height in pixels of the network's input.

use clasp_metrics::detection::{iou, nms};
use rand::seq::SliceRandom;

/// Boxes of lower sides are dropped, in pixels.
pub const SMALLEST: f64 = 1e-2;
/// A box grows by at most this factor.
const MOST_GROWTH: f64 = 1000.0 / 16.0;

/// Anchors of a map, for each position those of every ratio (height over width) and size (root of the area); positions by rows.
/// Their corners lie on whole pixels about the corner of the position.
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

/// How a box differs from another: its middle in lengths of the other, the logarithm of its lengths over those of the other, each
/// times a weight.
pub fn encode(bbox: [f64; 4], from: [f64; 4], weights: [f64; 4]) -> [f32; 4] {
    let middle = |bbox: [f64; 4], axis: usize| bbox[axis] + bbox[axis + 2] / 2.0;
    let place = |axis: usize| (middle(bbox, axis) - middle(from, axis)) / from[axis + 2];
    let length = |axis: usize| (bbox[axis + 2] / from[axis + 2]).ln();
    let found = [place(0), place(1), length(0), length(1)];
    std::array::from_fn(|i| (weights[i] * found[i]) as f32)
}

/// The box that differs from another so: the inverse of [`encode`].
pub fn decode(deltas: [f32; 4], from: [f64; 4], weights: [f64; 4]) -> [f64; 4] {
    let delta = |i: usize| f64::from(deltas[i]) / weights[i];
    let length = |axis: usize| delta(axis + 2).min(MOST_GROWTH.ln()).exp() * from[axis + 2];
    let middle = |axis: usize| from[axis] + from[axis + 2] / 2.0 + delta(axis) * from[axis + 2];
    let (w, h) = (length(0), length(1));
    [middle(0) - w / 2.0, middle(1) - h / 2.0, w, h]
}

/// The part of a box inside an image of that height and width.
pub fn clip([x, y, w, h]: [f64; 4], [height, width]: [usize; 2]) -> [f64; 4] {
    let (width, height) = (width as f64, height as f64);
    let (left, top) = (x.clamp(0.0, width), y.clamp(0.0, height));
    let (right, bottom) = ((x + w).clamp(0.0, width), (y + h).clamp(0.0, height));
    [left, top, right - left, bottom - top]
}

/// The boxes of the highest scores, best first: of the `candidates` best those that no better one overlaps by more than `overlap`, at
/// most `most`.
pub fn best(
    boxes: Vec<[f64; 4]>,
    scores: &[f32],
    overlap: f64,
    [candidates, most]: [usize; 2],
) -> Vec<[f64; 4]> {
    let mut order: Vec<usize> = (0..boxes.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(candidates);
    order.retain(|at| boxes[*at][2].min(boxes[*at][3]) >= SMALLEST);
    let (boxes, scores): (Vec<[f64; 4]>, Vec<f64>) = { order.into_iter() }
        .map(|at| (boxes[at], f64::from(scores[at])))
        .unzip();
    let kept = nms(&boxes, &scores, overlap).into_iter().take(most);
    kept.map(|at| boxes[at]).collect()
}

/// What a box stands for in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stands {
    /// For a person, by position.
    For(usize),
    /// For nobody.
    Nobody,
    /// For neither: it is not trained on.
    Neither,
}

/// What boxes stand for: the person of the largest overlap from `high` on, nobody below `low`. With `keep_best` the boxes that overlap
/// somebody most stand for whom they overlap most, however little that is.
pub fn stand(
    people: &[[f64; 4]],
    boxes: &[[f64; 4]],
    [low, high]: [f64; 2],
    keep_best: bool,
) -> Vec<Stands> {
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
                return Stands::Nobody;
            };
            let of_somebody = || (0..people.len()).any(|p| of(&p) == best[p] && best[p] > 0.0);
            let overlap = of(&nearest);
            if overlap >= high || (keep_best && of_somebody()) {
                Stands::For(nearest)
            } else if overlap < low {
                Stands::Nobody
            } else {
                Stands::Neither
            }
        })
        .collect()
}

/// Up to `count` boxes at random to train on, at most half of which stand for somebody; in order.
pub fn sample(stands: &[Stands], count: usize, rng: &mut impl rand::Rng) -> Vec<usize> {
    let mut pick = |somebody: bool, most: usize| {
        let fits = |stands: &Stands| match stands {
            Stands::For(_) => somebody,
            Stands::Nobody => !somebody,
            Stands::Neither => false,
        };
        let mut found: Vec<usize> = (0..stands.len()).filter(|at| fits(&stands[*at])).collect();
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

    /// What `tests/golden/regions.py` wrote.
    #[derive(Deserialize)]
    struct Golden {
        people: Vec<[f64; 4]>,
        anchors: Vec<[f64; 4]>,
        coders: std::collections::BTreeMap<String, Coder>,
        matched: std::collections::BTreeMap<String, Vec<i64>>,
        scores: Vec<f32>,
        deltas: Vec<[f32; 4]>,
        proposals: Vec<[f64; 4]>,
    }

    #[derive(Deserialize)]
    struct Coder {
        encoded: Vec<[f64; 4]>,
        deltas: Vec<[f32; 4]>,
        decoded: Vec<[f64; 4]>,
    }

    fn golden() -> Golden {
        serde_json::from_str(include_str!("../../tests/golden/regions.json")).unwrap()
    }

    #[track_caller]
    fn assert_near(found: [f64; 4], expected: [f64; 4], tolerance: f64) {
        let near =
            |i: usize| (found[i] - expected[i]).abs() <= tolerance * expected[i].abs().max(1.0);
        assert!((0..4).all(near), "{found:?}, expected {expected:?}");
    }

    #[test]
    fn anchors_are_those_of_torchvision() {
        let found = anchors(&[16.0, 45.0], &[0.5, 1.0, 2.0], 8, [9, 7]);
        assert_eq!(found, golden().anchors);
    }

    #[test]
    fn boxes_relative_to_others_are_those_of_torchvision() {
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
    fn boxes_stand_for_whom_torchvision_says() {
        let golden = golden();
        for (name, overlap, keep_best) in [
            ("anchors", [0.3, 0.7], true),
            ("regions", [0.5, 0.5], false),
        ] {
            let found = stand(&golden.people, &golden.anchors, overlap, keep_best);
            let found: Vec<i64> = { found.into_iter() }
                .map(|stands| match stands {
                    Stands::For(person) => person as i64,
                    Stands::Nobody => -1,
                    Stands::Neither => -2,
                })
                .collect();
            assert_eq!(found, golden.matched[name], "{name}");
        }
        assert_eq!(
            stand(&[], &golden.anchors[..2], [0.3, 0.7], true),
            [Stands::Nobody; 2]
        );
    }

    #[test]
    fn the_best_proposals_are_those_of_torchvision() {
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
    fn at_most_half_of_a_sample_stands_for_somebody() {
        let mut stands = vec![Stands::For(0); 10];
        stands.extend([Stands::Neither; 10]);
        stands.extend([Stands::Nobody; 10]);
        let mut rng = rng_for(0, 0, "sample");
        let found = sample(&stands, 8, &mut rng);
        let somebody = found.iter().filter(|at| **at < 10).count();
        assert_eq!((found.len(), somebody), (8, 4));
        assert!(found.iter().all(|at| stands[*at] != Stands::Neither));
        // Nobody fills what somebody leaves, and nothing is made up.
        assert_eq!(sample(&stands[9..], 8, &mut rng).len(), 8);
        assert_eq!(sample(&stands[..20], 30, &mut rng).len(), 10);
    }
}
