//! k-reciprocal re-ranking (Zhong et al., "Re-ranking Person Re-identification with k-reciprocal
//! Encoding", CVPR 2017).
//!
//! With X the queries and the gallery together and d the squared distances divided by the largest
//! of each row:
//!
//! 1. N(i, k) = { j among the k + 1 nearest of i : i among the k + 1 nearest of j };
//! 2. E(i) = N(i, k1), and N(c, k1/2) for each c of it that shares more than two thirds of N(c,
//!    k1/2) with N(i, k1);
//! 3. V_i = exp(-d(i, ·)) on E(i), scaled to sum 1, then averaged over the k2 nearest of i;
//! 4. with m = Σ_j min(V_qj, V_gj), the Jaccard distance is 1 - m / (2 - m);
//! 5. the result is (1 - λ) · Jaccard + λ · d.
//!
//! The published program holds three (queries + gallery)² matrices, 35 GB for MSMT17. Nothing of
//! the result needs them: step 1 needs the max(k1 + 1, k2) nearest of each row and its largest
//! distance, both found a block of rows at a time; V has a few dozen entries a row and is stored
//! sparse. This is exact, not an approximation. (The published program rounds V to half precision,
//! which this does not.)

use std::collections::BinaryHeap;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::MetricError;
use crate::matmul::dot;
use crate::reid::{
    GalleryByPerson, NormalizedFeatures, ReidImages, ReidMetrics, by_distance, nearest_of_query,
    summarize,
};

/// Parameters of the re-ranking.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rerank {
    /// Size of the reciprocal neighborhood.
    pub k1: usize,
    /// Neighbors that V is averaged over; 1 averages nothing.
    pub k2: usize,
    /// Weight of the plain distance.
    pub lambda: f64,
}

impl Default for Rerank {
    /// The published values: 20, 6 and 0.3.
    fn default() -> Self {
        Self {
            k1: 20,
            k2: 6,
            lambda: 0.3,
        }
    }
}

/// Evaluates `query` against `gallery` after re-ranking.
///
/// # Errors
/// As [`crate::reid::evaluate`].
///
/// # Panics
/// As [`crate::reid::evaluate`], and if `k1` or `k2` is 0.
pub fn evaluate(
    query: &ReidImages,
    gallery: &ReidImages,
    rerank: Rerank,
    ranks: usize,
) -> Result<ReidMetrics, MetricError> {
    let by_person = GalleryByPerson::new(query, gallery);
    let matches = map_rows(query, gallery, rerank, |i, row| by_person.matches(i, row))?;
    summarize(matches, query.len(), gallery.len(), ranks)
}

/// [`evaluate`], and the `count` nearest gallery images of each query, nearest first, without those
/// of the same person and camera.
///
/// # Errors
/// As [`evaluate`].
///
/// # Panics
/// As [`evaluate`].
pub fn evaluate_with_nearest(
    query: &ReidImages,
    gallery: &ReidImages,
    rerank: Rerank,
    ranks: usize,
    count: usize,
) -> Result<(ReidMetrics, Vec<Vec<usize>>), MetricError> {
    let by_person = GalleryByPerson::new(query, gallery);
    let rows = map_rows(query, gallery, rerank, |i, row| {
        let matches = by_person.matches(i, row);
        (matches, nearest_of_query(query, gallery, i, row, count))
    })?;
    let (matches, nearest) = rows.into_iter().unzip();
    let metrics = summarize(matches, query.len(), gallery.len(), ranks)?;
    Ok((metrics, nearest))
}

/// `f(i, re-ranked distances to every gallery image)` for each query, in order.
///
/// # Errors
/// [`MetricError::NotFinite`].
///
/// # Panics
/// As [`evaluate`].
pub fn map_rows<T: Send>(
    query: &ReidImages,
    gallery: &ReidImages,
    rerank: Rerank,
    f: impl Fn(usize, &[f32]) -> T + Sync,
) -> Result<Vec<T>, MetricError> {
    let Rerank { k1, k2, lambda } = rerank;
    assert!(
        k1 > 0 && k2 > 0,
        "k1 and k2 must be at least 1, found {k1} and {k2}"
    );
    let features = NormalizedFeatures::new(query, gallery)?;
    let all = features.len();
    let neighborhoods = neighborhoods(&features, (k1 + 1).max(k2));
    let weights: Vec<Sparse> = (0..all)
        .into_par_iter()
        .map(|i| encode(i, k1, &neighborhoods, &features))
        .collect();
    let weights = expand(weights, k2, &neighborhoods);
    let inverted = Inverted::new(&weights[query.len()..], all);

    Ok(features.map_query_rows(|i, distances| {
        let mut shared = vec![0.0_f32; distances.len()];
        for &(column, weight) in &weights[i] {
            for &(image, other) in inverted.column(column) {
                shared[image as usize] += weight.min(other);
            }
        }
        let farthest = neighborhoods[i].farthest;
        let row: Vec<f32> = shared
            .iter()
            .zip(distances)
            .map(|(shared, distance)| {
                let shared = f64::from(*shared);
                let jaccard = 1.0 - shared / (2.0 - shared);
                ((1.0 - lambda) * jaccard + lambda * f64::from(distance / farthest)) as f32
            })
            .collect();
        f(i, &row)
    }))
}

/// Column and value of the entries that are not zero, by column.
type Sparse = Vec<(u32, f32)>;

/// What one row of distances leaves behind.
struct Neighborhood {
    /// Nearest rows, nearest first, the row itself among them.
    nearest: Vec<u32>,
    /// Largest distance of the row, by which it is scaled; 1 where all are 0.
    farthest: f32,
}

/// A distance and its column, ordered for the heap.
#[derive(PartialEq)]
struct Far(f32, usize);

impl Eq for Far {}

impl PartialOrd for Far {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Far {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        by_distance((self.0, self.1), (other.0, other.1))
    }
}

/// The neighborhood of each row.
fn neighborhoods(features: &NormalizedFeatures, count: usize) -> Vec<Neighborhood> {
    /// Rows whose distances to others are read from the columns of a block together.
    const COLUMNS: usize = 512;
    let mut found: Vec<Nearest> = (0..features.len()).map(|_| Nearest::new(count)).collect();
    features.for_upper_blocks(|first, distances| {
        let width = found.len() - first;
        let rows = distances.len() / width;
        // A row gets its distances in the order of the columns: those to rows before its block from
        // the columns of blocks before, the others here.
        let (own, others) = found[first..].split_at_mut(rows);
        let lines = own.par_iter_mut().zip(distances.par_chunks(width));
        lines.for_each(|(nearest, row)| {
            Arch::new().dispatch(AddRow {
                nearest,
                first,
                row,
            });
        });
        let columns = others.par_chunks_mut(COLUMNS).enumerate();
        columns.for_each(|(chunk, others)| {
            let place = rows + chunk * COLUMNS;
            let length = others.len();
            let rows = distances.chunks_exact(width);
            Arch::new().dispatch(AddColumns {
                nearest: others,
                first,
                rows: rows.map(|row| &row[place..place + length]),
            });
        });
    });
    found.into_iter().map(Nearest::finish).collect()
}

/// The nearest rows and the farthest, while distances come in.
struct Nearest {
    heap: BinaryHeap<Far>,
    count: usize,
    farthest: f32,
}

/// Most distances are farther than what was found; a stretch without a nearer one is passed over as
/// a whole.
const STRETCH: usize = 64;

impl Nearest {
    fn new(count: usize) -> Self {
        Self {
            heap: BinaryHeap::with_capacity(count),
            count,
            farthest: 0.0,
        }
    }

    /// Distances below this belong to the nearest.
    fn limit(&self) -> f32 {
        match self.heap.peek() {
            Some(worst) if self.heap.len() >= self.count => worst.0,
            _ => f32::INFINITY,
        }
    }

    /// A distance below the limit, to a row after those before: an equal distance comes later, so
    /// it stays out.
    fn add(&mut self, distance: f32, j: usize) {
        if self.heap.len() < self.count {
            self.heap.push(Far(distance, j));
        } else if let Some(mut worst) = self.heap.peek_mut() {
            *worst = Far(distance, j);
        }
    }

    fn finish(self) -> Neighborhood {
        let nearest = self.heap.into_sorted_vec();
        Neighborhood {
            nearest: nearest.into_iter().map(|Far(_, j)| j as u32).collect(),
            farthest: if self.farthest > 0.0 {
                self.farthest
            } else {
                1.0
            },
        }
    }
}

/// Distances of one row to the rows from `first` on.
struct AddRow<'a> {
    nearest: &'a mut Nearest,
    first: usize,
    row: &'a [f32],
}

impl WithSimd for AddRow<'_> {
    type Output = ();

    // Compiled once per instruction set, into which all of it must be inlined.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let AddRow {
            nearest,
            first,
            row,
        } = self;
        for (index, stretch) in row.chunks(STRETCH).enumerate() {
            let (least, most) = extremes(stretch);
            nearest.farthest = nearest.farthest.max(most);
            if least >= nearest.limit() {
                continue;
            }
            for (j, &distance) in (first + index * STRETCH..).zip(stretch) {
                if distance < nearest.limit() {
                    nearest.add(distance, j);
                }
            }
        }
    }
}

/// The distances of each of `nearest` to the rows from `first` on, of which each of `rows` has one
/// for all of them.
struct AddColumns<'a, R> {
    nearest: &'a mut [Nearest],
    first: usize,
    rows: R,
}

impl<'a, R: Iterator<Item = &'a [f32]>> WithSimd for AddColumns<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self {
            nearest,
            first,
            rows,
        } = self;
        let mut limits: Vec<f32> = nearest.iter().map(Nearest::limit).collect();
        let mut farthest: Vec<f32> = nearest.iter().map(|nearest| nearest.farthest).collect();
        for (i, row) in (first..).zip(rows) {
            let stretches = row.chunks(STRETCH).zip(farthest.chunks_mut(STRETCH));
            for (index, (stretch, farthest)) in stretches.enumerate() {
                let limits = &mut limits[index * STRETCH..][..stretch.len()];
                let mut near = 0;
                for ((distance, limit), farthest) in stretch.iter().zip(&*limits).zip(farthest) {
                    near |= u32::from(distance < limit);
                    *farthest = if distance > farthest {
                        *distance
                    } else {
                        *farthest
                    };
                }
                if near == 0 {
                    continue;
                }
                let nearest = &mut nearest[index * STRETCH..];
                for ((distance, limit), nearest) in stretch.iter().zip(limits).zip(nearest) {
                    if distance < limit {
                        nearest.add(*distance, i);
                        *limit = nearest.limit();
                    }
                }
            }
        }
        for (nearest, farthest) in nearest.iter_mut().zip(farthest) {
            nearest.farthest = farthest;
        }
    }
}

impl Neighborhood {
    /// The first `count`, or as many as there are.
    fn first(&self, count: usize) -> &[u32] {
        &self.nearest[..count.min(self.nearest.len())]
    }
}

/// The least and the largest of some values, sixteen comparisons at a time.
#[inline(always)]
fn extremes(values: &[f32]) -> (f32, f32) {
    let (mut least, mut most) = ([f32::INFINITY; 16], [f32::NEG_INFINITY; 16]);
    for values in values.chunks(16) {
        for ((least, most), value) in least.iter_mut().zip(&mut most).zip(values) {
            *least = if *value < *least { *value } else { *least };
            *most = if *value > *most { *value } else { *most };
        }
    }
    let least = least.into_iter().fold(f32::INFINITY, f32::min);
    (least, most.into_iter().fold(f32::NEG_INFINITY, f32::max))
}

/// N(i, k), in the order of distance.
fn reciprocal(i: u32, k: usize, neighborhoods: &[Neighborhood]) -> Vec<u32> {
    let forward = neighborhoods[i as usize].first(k + 1).iter().copied();
    forward
        .filter(|&j| neighborhoods[j as usize].first(k + 1).contains(&i))
        .collect()
}

/// Steps 1 to 3, before the averaging.
fn encode(
    i: usize,
    k1: usize,
    neighborhoods: &[Neighborhood],
    features: &NormalizedFeatures,
) -> Sparse {
    // The published program halves with numpy.around, which rounds a half to even: 5 -> 2, 7 -> 4.
    let half = (k1 as f64 / 2.0).round_ties_even() as usize;
    let base = reciprocal(i as u32, k1, neighborhoods);
    let mut set = base.clone();
    for &candidate in &base {
        let near = reciprocal(candidate, half, neighborhoods);
        let shared = near.iter().filter(|j| base.contains(j)).count();
        if shared as f64 > 2.0 / 3.0 * near.len() as f64 {
            set.extend(near);
        }
    }
    set.sort_unstable();
    set.dedup();
    let weights: Vec<f64> = set
        .iter()
        .map(|&j| {
            let product = dot(features.row(i), features.row(j as usize)) as f32;
            let scaled = features.distance(i, j as usize, product) / neighborhoods[i].farthest;
            (-f64::from(scaled)).exp()
        })
        .collect();
    let sum: f64 = weights.iter().sum();
    set.into_iter()
        .zip(weights)
        .map(|(j, weight)| (j, (weight / sum) as f32))
        .collect()
}

/// The average of V over the `k2` nearest of each row.
fn expand(weights: Vec<Sparse>, k2: usize, neighborhoods: &[Neighborhood]) -> Vec<Sparse> {
    if k2 == 1 {
        return weights;
    }
    neighborhoods
        .par_iter()
        .map(|neighborhood| {
            let near = neighborhood.first(k2);
            let mut entries: Sparse = near
                .iter()
                .flat_map(|&j| weights[j as usize].iter().copied())
                .collect();
            // Stable: equal columns are summed in the order of the neighbors.
            entries.sort_by_key(|entry| entry.0);
            let mut sums: Sparse = Vec::with_capacity(entries.len());
            for chunk in entries.chunk_by(|a, b| a.0 == b.0) {
                let sum: f64 = chunk.iter().map(|entry| f64::from(entry.1)).sum();
                sums.push((chunk[0].0, (sum / near.len() as f64) as f32));
            }
            sums
        })
        .collect()
}

/// The gallery's part of V by columns.
struct Inverted {
    /// Start of each column in `entries`, and the end of the last.
    starts: Vec<usize>,
    /// Gallery image and value.
    entries: Vec<(u32, f32)>,
}

impl Inverted {
    fn new(rows: &[Sparse], columns: usize) -> Self {
        let mut starts = vec![0; columns + 1];
        for (column, _) in rows.iter().flatten() {
            starts[*column as usize + 1] += 1;
        }
        for column in 0..columns {
            starts[column + 1] += starts[column];
        }
        let mut next = starts.clone();
        let mut entries = vec![(0, 0.0); starts[columns]];
        for (image, row) in rows.iter().enumerate() {
            for &(column, value) in row {
                entries[next[column as usize]] = (image as u32, value);
                next[column as usize] += 1;
            }
        }
        Self { starts, entries }
    }

    fn column(&self, column: u32) -> &[(u32, f32)] {
        &self.entries[self.starts[column as usize]..self.starts[column as usize + 1]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fewer_images_than_k1_are_allowed() {
        let (query, gallery) = ([1.0, 0.0], [1.0, 0.1, 0.0, 1.0]);
        let query = ReidImages {
            features: &query,
            channels: 2,
            persons: &[1],
            cameras: &[1],
        };
        let gallery = ReidImages {
            features: &gallery,
            channels: 2,
            persons: &[1, 2],
            cameras: &[2, 2],
        };
        let metrics = evaluate(&query, &gallery, Rerank::default(), 2).unwrap();
        assert_eq!((metrics.map, metrics.cmc), (1.0, vec![1.0, 1.0]));
    }

    #[test]
    fn neighborhoods_over_several_blocks_equal_sorted_rows() {
        // Few different features: many distances are equal.
        let features: Vec<f32> = (0..1300_u32)
            .flat_map(|i| [i * i % 7, i % 5, 1].map(|x| x as f32))
            .collect();
        let side = |rows: std::ops::Range<usize>| ReidImages {
            features: &features[3 * rows.start..3 * rows.end],
            channels: 3,
            persons: &[0; 1300][rows.clone()],
            cameras: &[0; 1300][rows],
        };
        let features = NormalizedFeatures::new(&side(0..300), &side(300..1300)).unwrap();
        let rows = features.map_rows(0..1300, 0..1300, |_, row| row.to_vec());
        for (row, found) in rows.iter().zip(neighborhoods(&features, 21)) {
            let mut order: Vec<u32> = (0..1300).collect();
            order.sort_by(|a, b| row[*a as usize].total_cmp(&row[*b as usize]));
            assert_eq!(found.nearest, order[..21]);
            assert_eq!(found.farthest, row.iter().copied().fold(0.0, f32::max));
        }
    }

    #[test]
    fn lambda_one_is_the_plain_order() {
        let features: Vec<f32> = (0..60 * 5).map(|i| (i as f32 * 1.7).sin()).collect();
        let persons: Vec<i64> = (0..60).map(|i| i % 6).collect();
        let cameras: Vec<i64> = (0..60).map(|i| i / 20).collect();
        let side = |rows: std::ops::Range<usize>| ReidImages {
            features: &features[rows.start * 5..rows.end * 5],
            channels: 5,
            persons: &persons[rows.clone()],
            cameras: &cameras[rows],
        };
        let (query, gallery) = (side(0..20), side(20..60));
        let plain = crate::reid::evaluate(&query, &gallery, 10).unwrap();
        let rerank = Rerank {
            lambda: 1.0,
            ..Rerank::default()
        };
        assert_eq!(evaluate(&query, &gallery, rerank, 10).unwrap(), plain);
    }
}
