//! The COCO evaluation for any similarity between a true and a found instance: greedy matching, and
//! precision over recall.
//!
//! Similarities are computed once for each image and serve every threshold and range of sizes. The
//! rules and the order of the arithmetic follow pycocotools 2.0.

use std::ops::Range;

use rayon::prelude::*;

/// Number of similarity thresholds: 0.50, 0.55 ... 0.95.
pub(crate) const THRESHOLDS: usize = 10;
/// Every size.
pub(crate) const ALL: [f64; 2] = [0.0, 1e10];
/// Areas in square pixels.
pub(crate) const SMALL: [f64; 2] = [0.0, 1024.0];
pub(crate) const MEDIUM: [f64; 2] = [1024.0, 9216.0];
pub(crate) const LARGE: [f64; 2] = [9216.0, 1e10];

const RECALLS: usize = 101;

/// What a true instance means to the matching.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// Matching it is neither right nor wrong.
    pub ignored: bool,
    /// It may be matched any number of times.
    pub reusable: bool,
}

/// The target that each found instance takes, best found first: the most similar one that is free,
/// at `threshold` or above, an ignored one only if no other is. `similarity` is `[found, targets]`;
/// of equally similar targets the last counts.
pub(crate) fn greedy(
    similarity: &[f64],
    targets: &[Target],
    found: usize,
    threshold: f64,
) -> Vec<Option<usize>> {
    // Ignored targets last.
    let mut order: Vec<usize> = (0..targets.len()).collect();
    order.sort_by_key(|&t| targets[t].ignored);
    let mut taken = vec![false; targets.len()];
    let choose = |d: usize| {
        let (mut best, mut choice) = (threshold.min(1.0 - 1e-10), None::<usize>);
        for &t in &order {
            if taken[t] && !targets[t].reusable {
                continue;
            }
            if targets[t].ignored && choice.is_some_and(|c| !targets[c].ignored) {
                break;
            }
            let value = similarity[d * targets.len() + t];
            if value >= best {
                (best, choice) = (value, Some(t));
            }
        }
        if let Some(t) = choice {
            taken[t] = true;
        }
        choice
    };
    (0..found).map(choose).collect()
}

/// A true instance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct True {
    pub area: f64,
    pub ignored: bool,
    pub crowd: bool,
}

/// A found instance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ScoredDetection {
    pub score: f64,
    pub area: f64,
}

/// An image with the similarities of its pairs.
pub(crate) struct Image {
    pub truth: Vec<True>,
    /// Best first.
    pub found: Vec<ScoredDetection>,
    /// `[found, truth]`.
    pub similarity: Vec<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum MatchOutcome {
    Right,
    Wrong,
    Ignored,
}

impl Image {
    /// Verdicts at a threshold on the first `limit` found instances.
    fn outcomes(&self, area: [f64; 2], limit: usize, threshold: f64) -> Vec<MatchOutcome> {
        let outside = |value: f64| value < area[0] || value > area[1];
        let targets: Vec<Target> = { self.truth.iter() }
            .map(|t| Target {
                ignored: t.ignored || outside(t.area),
                reusable: t.crowd,
            })
            .collect();
        let found = self.found.len().min(limit);
        greedy(&self.similarity, &targets, found, threshold)
            .into_iter()
            .zip(&self.found)
            .map(|(choice, found)| match choice {
                Some(t) if targets[t].ignored => MatchOutcome::Ignored,
                Some(_) => MatchOutcome::Right,
                None if outside(found.area) => MatchOutcome::Ignored,
                None => MatchOutcome::Wrong,
            })
            .collect()
    }
}

/// Thresholds as `numpy.linspace(0.5, 0.95, 10)` rounds them.
fn threshold(index: usize) -> f64 {
    if index == THRESHOLDS - 1 {
        0.95
    } else {
        0.5 + index as f64 * ((0.95 - 0.5) / 9.0)
    }
}

/// Precision over recall for one range of sizes.
pub(crate) struct Curve {
    /// `[thresholds, recalls]`.
    precision: Vec<[f64; RECALLS]>,
    /// Largest recall at each threshold.
    recall: Vec<f64>,
    /// True instances that are not ignored.
    pub instances: usize,
}

impl Curve {
    /// Evaluates the best `limit` found instances of each image.
    pub fn new(images: &[Image], area: [f64; 2], limit: usize) -> Self {
        let counts = |t: &True| !t.ignored && t.area >= area[0] && t.area <= area[1];
        let truth = images.iter().flat_map(|image| &image.truth);
        let instances = truth.filter(|t| counts(t)).count();
        let scores: Vec<f64> = { images.iter() }
            .flat_map(|image| image.found.iter().take(limit).map(|found| found.score))
            .collect();
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        let at = |index: usize| {
            let outcomes: Vec<MatchOutcome> = { images.iter() }
                .flat_map(|image| image.outcomes(area, limit, threshold(index)))
                .collect();
            curve(order.iter().map(|&d| outcomes[d]), instances)
        };
        let (precision, recall) = (0..THRESHOLDS).into_par_iter().map(at).unzip();
        Self {
            precision,
            recall,
            instances,
        }
    }

    /// Mean precision over thresholds and recalls; `None` without an instance.
    pub fn ap(&self, thresholds: Range<usize>) -> Option<f64> {
        let values = self.precision[thresholds].iter().flatten();
        (self.instances > 0).then(|| values.clone().sum::<f64>() / values.count() as f64)
    }

    /// Mean of the largest recall over thresholds; `None` without an instance.
    pub fn ar(&self, thresholds: Range<usize>) -> Option<f64> {
        let values = &self.recall[thresholds];
        (self.instances > 0).then(|| values.iter().sum::<f64>() / values.len() as f64)
    }
}

/// Interpolated precision at each recall, and the largest recall.
fn curve(outcomes: impl Iterator<Item = MatchOutcome>, instances: usize) -> ([f64; RECALLS], f64) {
    let (mut right, mut wrong) = (0.0, 0.0);
    let mut points: Vec<(f64, f64)> = outcomes
        .map(|outcome| {
            match outcome {
                MatchOutcome::Right => right += 1.0,
                MatchOutcome::Wrong => wrong += 1.0,
                MatchOutcome::Ignored => {}
            }
            (
                right / instances as f64,
                right / (right + wrong + f64::EPSILON),
            )
        })
        .collect();
    let recall = points.last().map_or(0.0, |p| p.0);
    for i in (1..points.len()).rev() {
        points[i - 1].1 = points[i - 1].1.max(points[i].1);
    }
    let precision = std::array::from_fn(|r| {
        // As numpy.linspace(0, 1, 101) rounds.
        let wanted = if r == RECALLS - 1 {
            1.0
        } else {
            r as f64 * 0.01
        };
        let reached = points.partition_point(|p| p.0 < wanted);
        points.get(reached).map_or(0.0, |p| p.1)
    });
    (precision, recall)
}
