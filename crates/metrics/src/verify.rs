//! Same person or not: the ROC over all pairs of query and gallery, and the similarity from which
//! on to say yes.
//!
//! Pairs of one person under one camera are ignored, as in [`crate::reid`]. A pair is accepted if
//! its cosine similarity is at least the threshold; the true positive rate (TPR) is the share of
//! accepted pairs among those of one person, the false positive rate (FPR) that among those of two
//! people.
//!
//! The pairs of MSMT17 are a billion, but the ROC changes at the pairs of one person only, of which
//! there are some hundred thousand: those are kept and sorted, the others counted between them. The
//! result is exact. AUC counts a tie as half, as the area under the trapezoids does.

use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::MetricError;
use crate::reid::{NormalizedFeatures, ReidImages};

/// Bars of a histogram over similarities from -1 to 1.
pub const BARS: usize = 64;

/// A threshold and what it lets through.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RocPoint {
    /// Least cosine similarity that is accepted.
    pub similarity: f64,
    /// Share of pairs of one person accepted.
    pub true_positive_rate: f64,
    /// Share of pairs of two people accepted.
    pub false_positive_rate: f64,
}

/// Similarities of one kind of pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SimilarityDistribution {
    /// Pairs.
    pub pairs: u64,
    /// Their mean similarity.
    pub mean: f64,
    /// Standard deviation of their similarity.
    pub deviation: f64,
    /// Pairs in each of [`BARS`] equal parts of -1 to 1.
    pub histogram: Vec<u64>,
}

/// The receiver operating characteristic of similarities.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Roc {
    /// Area under the curve: how often a pair of one person is more similar than a pair of two.
    pub auc: f64,
    /// The threshold where false alarms and misses are nearest each other, and the mean of their
    /// two rates.
    pub equal_error: (RocPoint, f64),
    /// For each rate asked for the threshold of the largest TPR whose FPR does not exceed it;
    /// `None` where even the most similar pair of one person comes after too many pairs of two.
    pub at: Vec<Option<RocPoint>>,
    /// Pairs of one person.
    pub same: SimilarityDistribution,
    /// Pairs of two people.
    pub different: SimilarityDistribution,
}

/// The ROC of `query` against `gallery`, read at each false positive rate of `rates`.
///
/// # Errors
/// [`MetricError::NotFinite`]; [`MetricError::OneKindOfPairs`].
///
/// # Panics
/// As [`crate::reid::evaluate`].
pub fn roc(query: &ReidImages, gallery: &ReidImages, rates: &[f64]) -> Result<Roc, MetricError> {
    let features = NormalizedFeatures::new(query, gallery)?;
    let same = |i: usize, j: usize| query.persons[i] == gallery.persons[j];
    let sees = |i: usize, j: usize| query.cameras[i] != gallery.cameras[j];
    let mut matches: Vec<f32> = features
        .map_query_rows(|i, distances| {
            let pairs = (0..gallery.len()).filter(|&j| same(i, j) && sees(i, j));
            pairs.map(|j| distances[j]).collect::<Vec<_>>()
        })
        .concat();
    matches.par_sort_unstable_by(f32::total_cmp);
    let mut own = DistanceMoments::default();
    matches.iter().for_each(|d| own.add(*d));

    let ladder = Ladder::new(&matches);
    // Pairs of two people up to each step of the ladder, and at the step exactly.
    let counters =
        || -> Vec<AtomicU64> { ladder.steps.iter().map(|_| AtomicU64::new(0)).collect() };
    let (up_to, exactly) = (counters(), counters());
    let others = features.map_query_rows(|i, distances| {
        let mut moments = DistanceMoments::default();
        for (_, &distance) in distances.iter().enumerate().filter(|(j, _)| !same(i, *j)) {
            moments.add(distance);
            let step = ladder.first_at_least(distance);
            if let Some(reached) = ladder.steps.get(step) {
                up_to[step].fetch_add(1, Ordering::Relaxed);
                if *reached == distance {
                    exactly[step].fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        moments
    });
    let mut foreign = DistanceMoments::default();
    others.iter().for_each(|other| foreign.merge(other));
    if own.pairs == 0 || foreign.pairs == 0 {
        return Err(MetricError::OneKindOfPairs {
            same: own.pairs,
            different: foreign.pairs,
        });
    }

    let (positives, negatives) = (own.pairs as f64, foreign.pairs as f64);
    let (mut accepted, mut alarms, mut auc) = (0_u64, 0_u64, 0.0);
    let mut at = vec![None; rates.len()];
    let mut equal_error: Option<(f64, RocPoint)> = None;
    for (k, &distance) in ladder.steps.iter().enumerate() {
        let new = ladder.sizes[k];
        accepted += new;
        alarms += up_to[k].load(Ordering::Relaxed);
        let ties = exactly[k].load(Ordering::Relaxed) as f64;
        auc += new as f64 * (negatives - alarms as f64 + ties / 2.0);
        let threshold = RocPoint {
            similarity: similarity(distance),
            true_positive_rate: accepted as f64 / positives,
            false_positive_rate: alarms as f64 / negatives,
        };
        for (rate, at) in rates.iter().zip(&mut at) {
            if threshold.false_positive_rate <= *rate {
                *at = Some(threshold);
            }
        }
        let gap = (1.0 - threshold.true_positive_rate - threshold.false_positive_rate).abs();
        if equal_error.is_none_or(|(least, _)| gap < least) {
            equal_error = Some((gap, threshold));
        }
    }
    // There is a match, so the ladder has a step.
    let (_, balanced) = equal_error.ok_or(MetricError::OneKindOfPairs {
        same: 0,
        different: foreign.pairs,
    })?;
    let error = (1.0 - balanced.true_positive_rate + balanced.false_positive_rate) / 2.0;
    Ok(Roc {
        auc: auc / positives / negatives,
        equal_error: (balanced, error),
        at,
        same: own.finish(),
        different: foreign.finish(),
    })
}

/// Cosine from the squared distance of unit vectors.
fn similarity(distance: f32) -> f64 {
    1.0 - f64::from(distance) / 2.0
}

/// Different distances in ascending order, with an index that makes looking one up cheap.
struct Ladder {
    steps: Vec<f32>,
    /// How often each occurs.
    sizes: Vec<u64>,
    /// The first step in each of many equal parts of 0 to 4.
    index: Vec<usize>,
}

impl Ladder {
    const PARTS: usize = 1 << 16;

    fn new(sorted: &[f32]) -> Self {
        let groups = sorted.chunk_by(|a, b| a == b);
        let (steps, sizes): (Vec<f32>, Vec<u64>) =
            groups.map(|group| (group[0], group.len() as u64)).unzip();
        let index = (0..=Self::PARTS)
            .map(|part| steps.partition_point(|step| Self::part(*step) < part))
            .collect();
        Self {
            steps,
            sizes,
            index,
        }
    }

    /// Grows with the distance.
    fn part(distance: f32) -> usize {
        ((distance * (Self::PARTS / 4) as f32) as usize).min(Self::PARTS - 1)
    }

    fn first_at_least(&self, distance: f32) -> usize {
        let part = Self::part(distance);
        let (start, end) = (self.index[part], self.index[part + 1]);
        start + self.steps[start..end].partition_point(|step| *step < distance)
    }
}

#[derive(Clone)]
struct DistanceMoments {
    pairs: u64,
    sum: f64,
    squares: f64,
    histogram: [u64; BARS],
}

impl Default for DistanceMoments {
    fn default() -> Self {
        Self {
            pairs: 0,
            sum: 0.0,
            squares: 0.0,
            histogram: [0; BARS],
        }
    }
}

impl DistanceMoments {
    fn add(&mut self, distance: f32) {
        let value = similarity(distance);
        self.pairs += 1;
        self.sum += value;
        self.squares += value * value;
        let bar = ((value + 1.0) / 2.0 * BARS as f64) as usize;
        self.histogram[bar.min(BARS - 1)] += 1;
    }

    fn merge(&mut self, other: &Self) {
        self.pairs += other.pairs;
        self.sum += other.sum;
        self.squares += other.squares;
        for (bar, other) in self.histogram.iter_mut().zip(&other.histogram) {
            *bar += other;
        }
    }

    fn finish(self) -> SimilarityDistribution {
        let mean = self.sum / self.pairs as f64;
        SimilarityDistribution {
            pairs: self.pairs,
            mean,
            deviation: (self.squares / self.pairs as f64 - mean * mean)
                .max(0.0)
                .sqrt(),
            histogram: self.histogram.to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reid::tests::images;

    #[test]
    fn four_pairs_by_hand() {
        // Cosines 1 (another person), 0.8 (same), 0.6 (same) and 0.6 (another); the same shot is
        // ignored.
        let gallery = [1.0, 0.0, 0.8, 0.6, 0.6, 0.8, 0.6, -0.8, 1.0, 0.0];
        let gallery = images(&gallery, &[2, 1, 1, 3, 1], &[2, 2, 3, 2, 1]);
        let query = images(&[1.0, 0.0], &[1], &[1]);
        let roc = roc(&query, &gallery, &[0.1, 0.5, 1.0]).unwrap();
        assert_eq!((roc.same.pairs, roc.different.pairs), (2, 2));
        // 0.8 beats one of two; 0.6 ties with one and loses to the other.
        assert!((roc.auc - (1.0 + 0.5) / 4.0).abs() < 1e-12);
        assert_eq!(roc.at[0], None);
        let [half, all] = [roc.at[1].unwrap(), roc.at[2].unwrap()];
        assert!((half.similarity - 0.8).abs() < 1e-6 && (all.similarity - 0.6).abs() < 1e-6);
        assert_eq!(
            (half.true_positive_rate, half.false_positive_rate),
            (0.5, 0.5)
        );
        assert_eq!(
            (all.true_positive_rate, all.false_positive_rate),
            (1.0, 1.0)
        );
        assert_eq!(roc.equal_error, (half, 0.5));
        assert!((roc.same.mean - 0.7).abs() < 1e-6 && (roc.same.deviation - 0.1).abs() < 1e-6);
        assert_eq!(roc.same.histogram.iter().sum::<u64>(), 2);
    }

    #[test]
    fn one_kind_of_pairs_is_an_error() {
        let gallery = [1.0, 0.0];
        let error = roc(
            &images(&gallery, &[1], &[1]),
            &images(&gallery, &[1], &[1]),
            &[],
        );
        assert_eq!(
            error.unwrap_err(),
            MetricError::OneKindOfPairs {
                same: 0,
                different: 0
            }
        );
    }
}
