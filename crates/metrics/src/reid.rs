//! Person re-identification: mAP, CMC and mINP by the rules of Market-1501.
//!
//! Per query, gallery images of the same person *and* the same camera are ignored; a query without
//! another image of its person is skipped and counted. With r_1 < r_2 < ... < r_P the ranks (from
//! 1) of the P matches:
//!
//! - AP = (1/P) Σ_i i / r_i, not interpolated (Zheng et al., "Scalable Person Re-identification",
//!   ICCV 2015);
//! - CMC at k = 1 if r_1 <= k;
//! - INP = P / r_P (Ye et al., "Deep Learning for Person Re-identification", 2021).
//!
//! mAP, CMC and mINP are means over the queries that were not skipped.
//!
//! Distances are squared Euclidean distances of L2-normalized features, in `f32`, of a block of
//! queries at a time: the queries x gallery matrix never exists. The order of cosine similarity is
//! the same. Published evaluators sort with an unstable sort; here equal distances keep the
//! gallery's order.

use std::cmp::Ordering;
use std::collections::HashMap;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::matmul::{MatrixView, dot, matmul};
use crate::{Metric, MetricError};

/// Most values in one block of distances: 32 MiB of `f32`.
const BLOCK_VALUES: usize = 8 << 20;

/// Images of one side, query or gallery.
#[derive(Debug, Clone, Copy)]
pub struct ReidImages<'a> {
    /// `[images, channels]`, row-major; need not be normalized.
    pub features: &'a [f32],
    /// Length of one feature.
    pub channels: usize,
    /// Identity of each image. An identity that no query has (0, the distractors of Market-1501) is
    /// only ever wrong.
    pub persons: &'a [i64],
    /// Camera of each image.
    pub cameras: &'a [i64],
}

impl ReidImages<'_> {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.persons.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.persons.is_empty()
    }

    fn assert_consistent(&self, what: &str) {
        let (images, channels) = (self.len(), self.channels);
        assert_eq!(
            self.features.len(),
            images * channels,
            "{what}: features of {images} images of {channels} channels"
        );
        assert_eq!(
            self.cameras.len(),
            images,
            "{what}: cameras of {images} images"
        );
    }
}

/// The metrics of one evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReidMetrics {
    /// Mean average precision, 0 to 1.
    pub map: f64,
    /// Mean inverse negative penalty, 0 to 1.
    pub minp: f64,
    /// Share of queries with a match among the first k: `cmc[k - 1]`.
    pub cmc: Vec<f64>,
    /// Queries given.
    pub queries: usize,
    /// Queries that are skipped, because the gallery has no match from another camera.
    pub skipped: usize,
    /// Gallery images given.
    pub gallery: usize,
    /// mAP to expect of a random order of the gallery.
    pub chance_map: f64,
    /// Average precision of each query; `None` where it was skipped.
    pub average_precision: Vec<Option<f64>>,
}

impl ReidMetrics {
    /// The metrics to quote, the main one first.
    pub fn quoted(&self) -> Vec<Metric> {
        let rank = |k: usize| self.cmc.get(k - 1).copied().unwrap_or(1.0);
        vec![
            Metric::score("mAP", self.map),
            Metric::score("rank-1", rank(1)),
            Metric::score("rank-5", rank(5)),
            Metric::score("rank-10", rank(10)),
            Metric::score("mINP", self.minp),
        ]
    }
}

/// Evaluates `query` against `gallery`, with CMC up to `ranks`.
///
/// ```
/// use clasp_metrics::reid::{ReidImages, evaluate};
///
/// // Person 1 seen by camera 1; the gallery has persons 2 and 1, both seen by camera 2.
/// let query = ReidImages { features: &[1.0, 0.0], channels: 2, persons: &[1], cameras: &[1] };
/// let gallery = ReidImages {
///     features: &[1.0, 0.1, 0.6, 0.8],
///     channels: 2,
///     persons: &[2, 1],
///     cameras: &[2, 2],
/// };
/// let metrics = evaluate(&query, &gallery, 10)?;
/// assert_eq!((metrics.map, metrics.cmc[0]), (0.5, 0.0));
/// # Ok::<(), clasp_metrics::MetricError>(())
/// ```
///
/// # Errors
/// [`MetricError::NotFinite`] and [`MetricError::NoValidQuery`].
///
/// # Panics
/// If the lengths in a [`ReidImages`] disagree or the sides have features of different length.
pub fn evaluate(
    query: &ReidImages,
    gallery: &ReidImages,
    ranks: usize,
) -> Result<ReidMetrics, MetricError> {
    let features = NormalizedFeatures::new(query, gallery)?;
    let by_person = GalleryByPerson::new(query, gallery);
    let matches = features.map_query_rows(|i, distances| by_person.matches(i, distances));
    summarize(matches, query.len(), gallery.len(), ranks)
}

/// Evaluates rankings that were made elsewhere: `rankings` holds gallery images by position, the
/// best first, for each query. Persons and cameras are pairs. Images that a ranking does not name
/// come after those that it does, in their order.
///
/// # Errors
/// [`MetricError::NoValidQuery`].
///
/// # Panics
/// If there is not one ranking a query, or one names a position that the gallery does not have.
pub fn evaluate_rankings(
    query: &[[i64; 2]],
    gallery: &[[i64; 2]],
    rankings: &[Vec<usize>],
    ranks: usize,
) -> Result<ReidMetrics, MetricError> {
    assert_eq!(query.len(), rankings.len(), "rankings of the queries");
    let of = |([person, camera], ranking): (&[i64; 2], &Vec<usize>)| {
        let mut named = vec![false; gallery.len()];
        ranking.iter().for_each(|place| named[*place] = true);
        let rest = (0..gallery.len()).filter(|place| !named[*place]);
        let is_same_shot = |place: &usize| gallery[*place] == [*person, *camera];
        let order = ranking.iter().copied().chain(rest);
        let order: Vec<usize> = order.filter(|place| !is_same_shot(place)).collect();
        let hits: Vec<usize> = { order.iter().enumerate() }
            .filter(|(_, place)| gallery[**place][0] == *person)
            .map(|(rank, _)| rank)
            .collect();
        (!hits.is_empty()).then_some(Matches {
            ranks: hits,
            ranked: order.len(),
        })
    };
    let matches = query.iter().zip(rankings).map(of).collect();
    summarize(matches, query.len(), gallery.len(), ranks)
}

/// The `count` nearest gallery images of each query, nearest first, without those of the same
/// person and camera.
///
/// # Errors
/// [`MetricError::NotFinite`].
///
/// # Panics
/// As [`evaluate`].
pub fn nearest(
    query: &ReidImages,
    gallery: &ReidImages,
    count: usize,
) -> Result<Vec<Vec<usize>>, MetricError> {
    let features = NormalizedFeatures::new(query, gallery)?;
    Ok(features
        .map_query_rows(|i, distances| nearest_of_query(query, gallery, i, distances, count)))
}

/// [`nearest`] of query `i`, given its distance to every gallery image.
pub(crate) fn nearest_of_query(
    query: &ReidImages,
    gallery: &ReidImages,
    i: usize,
    distances: &[f32],
    count: usize,
) -> Vec<usize> {
    let mut kept: Vec<usize> = (0..gallery.len())
        .filter(|&j| !is_same_shot(query, i, gallery, j))
        .collect();
    let order = |a: &usize, b: &usize| by_distance((distances[*a], *a), (distances[*b], *b));
    if count < kept.len() && count > 0 {
        kept.select_nth_unstable_by(count - 1, order);
    }
    kept.truncate(count);
    kept.sort_unstable_by(order);
    kept
}

/// Where the matches of one query stand.
pub(crate) struct Matches {
    /// Ranks from 0, ascending.
    ranks: Vec<usize>,
    /// Gallery images that were ranked.
    ranked: usize,
}

/// Queries and a gallery whose images are found by person.
pub(crate) struct GalleryByPerson<'a> {
    query: &'a ReidImages<'a>,
    gallery: &'a ReidImages<'a>,
    /// The gallery's images of each person, ascending.
    of_person: HashMap<i64, Vec<usize>>,
}

impl<'a> GalleryByPerson<'a> {
    pub(crate) fn new(query: &'a ReidImages, gallery: &'a ReidImages) -> Self {
        let mut of_person: HashMap<i64, Vec<usize>> = HashMap::new();
        for (j, person) in gallery.persons.iter().enumerate() {
            of_person.entry(*person).or_default().push(j);
        }
        Self {
            query,
            gallery,
            of_person,
        }
    }

    /// Ranks the matches of query `i`, given its distance to every gallery image. `None` if it has
    /// no match.
    ///
    /// The gallery is not sorted: the rank of a match is the number of images before it, which is
    /// counted. That is one pass for each match, but of comparisons alone, many at a time.
    pub(crate) fn matches(&self, i: usize, distances: &[f32]) -> Option<Matches> {
        let Self { query, gallery, .. } = self;
        let same_person = self.of_person.get(&query.persons[i])?;
        let placed = same_person.iter().map(|j| (distances[*j], *j));
        let (shots, matches): (Vec<_>, Vec<_>) =
            placed.partition(|(_, j)| is_same_shot(query, i, gallery, *j));
        if matches.is_empty() {
            return None;
        }
        let all = Arch::new().dispatch(CountBefore {
            distances,
            of: &matches,
        });
        let rank = |(this, all): (&(f32, usize), usize)| {
            let left_out = shots
                .iter()
                .filter(|shot| by_distance(**shot, *this).is_lt());
            all - left_out.count()
        };
        let mut ranks: Vec<usize> = matches.iter().zip(all).map(rank).collect();
        ranks.sort_unstable();
        Some(Matches {
            ranks,
            ranked: gallery.len() - shots.len(),
        })
    }
}

/// For each pair of a distance and its place how many come before it.
struct CountBefore<'a> {
    distances: &'a [f32],
    of: &'a [(f32, usize)],
}

impl WithSimd for CountBefore<'_> {
    type Output = Vec<usize>;

    // Compiled once per instruction set, into which all of it must be inlined.
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Vec<usize> {
        /// Distances that stay in the nearest cache while all are compared with them.
        const STRETCH: usize = 2048;
        let mut counts = vec![0; self.of.len()];
        for (index, stretch) in self.distances.chunks(STRETCH).enumerate() {
            let start = index * STRETCH;
            for ((distance, place), total) in self.of.iter().zip(&mut counts) {
                // An equal distance is before this one if it is so in the gallery.
                let (before, after) =
                    stretch.split_at(place.saturating_sub(start).min(stretch.len()));
                *total += count(before, |other| other <= *distance);
                *total += count(after, |other| other < *distance);
            }
        }
        counts
    }
}

/// How many values `f` holds for; without branches, so that many are compared at a time.
#[inline(always)]
fn count(values: &[f32], f: impl Fn(f32) -> bool) -> usize {
    let ones = values.iter().map(|value| u32::from(f(*value)));
    ones.sum::<u32>() as usize
}

/// Means over queries.
pub(crate) fn summarize(
    matches: Vec<Option<Matches>>,
    queries: usize,
    gallery: usize,
    ranks: usize,
) -> Result<ReidMetrics, MetricError> {
    let valid = matches.iter().flatten().count();
    if valid == 0 {
        return Err(MetricError::NoValidQuery { queries, gallery });
    }
    let mut first_hits = vec![0_usize; ranks];
    let (mut minp, mut chance_map) = (0.0, 0.0);
    let harmonic = harmonic_numbers(gallery);
    let average_precision: Vec<Option<f64>> = matches
        .iter()
        .map(|matches| {
            let Matches {
                ranks: hits,
                ranked,
            } = matches.as_ref()?;
            if let Some(slot) = first_hits.get_mut(hits[0]) {
                *slot += 1;
            }
            minp += hits.len() as f64 / (hits[hits.len() - 1] + 1) as f64;
            chance_map += expected_average_precision(hits.len(), *ranked, &harmonic);
            let precisions = hits
                .iter()
                .enumerate()
                .map(|(i, rank)| (i + 1) as f64 / (rank + 1) as f64);
            Some(precisions.sum::<f64>() / hits.len() as f64)
        })
        .collect();
    let valid = valid as f64;
    let cmc = first_hits
        .iter()
        .scan(0, |sum, count| {
            *sum += count;
            Some(*sum as f64 / valid)
        })
        .collect();
    Ok(ReidMetrics {
        map: average_precision.iter().flatten().sum::<f64>() / valid,
        minp: minp / valid,
        cmc,
        queries,
        skipped: queries - valid as usize,
        gallery,
        chance_map: chance_map / valid,
        average_precision,
    })
}

/// Expected AP of a random order of `total` images, `hits` of which match: (1/n) Σ_k [ (h-1)/(n-1)
/// · (k-1)/k + 1/k ] = ( (h-1)/(n-1) · (n - H_n) + H_n ) / n, with H_n the harmonic number.
pub(crate) fn expected_average_precision(hits: usize, total: usize, harmonic: &[f64]) -> f64 {
    let harmonic = harmonic[total];
    let others = if total > 1 {
        (hits - 1) as f64 / (total - 1) as f64
    } else {
        0.0
    };
    (others * (total as f64 - harmonic) + harmonic) / total as f64
}

/// H_0 to H_n.
pub(crate) fn harmonic_numbers(n: usize) -> Vec<f64> {
    let mut sum = 0.0;
    let next = |k| {
        if k > 0 {
            sum += 1.0 / k as f64;
        }
        sum
    };
    (0..=n).map(next).collect()
}

/// The same person from the same camera: neither right nor wrong, ignored in the ranking.
fn is_same_shot(query: &ReidImages, i: usize, gallery: &ReidImages, j: usize) -> bool {
    gallery.persons[j] == query.persons[i] && gallery.cameras[j] == query.cameras[i]
}

/// Order by distance, then by position.
pub(crate) fn by_distance(a: (f32, usize), b: (f32, usize)) -> Ordering {
    // Features are checked to be finite, so distances are, and every pair compares.
    a.0.partial_cmp(&b.0)
        .unwrap_or(Ordering::Equal)
        .then(a.1.cmp(&b.1))
}

/// L2-normalized features of queries and gallery, one after the other.
pub(crate) struct NormalizedFeatures {
    pub(crate) features: Vec<f32>,
    channels: usize,
    /// Squared length of each row: 1, or 0 for a zero feature.
    squares: Vec<f32>,
    queries: usize,
}

impl NormalizedFeatures {
    pub(crate) fn new<'a>(
        query: &ReidImages<'a>,
        gallery: &ReidImages<'a>,
    ) -> Result<Self, MetricError> {
        query.assert_consistent("query");
        gallery.assert_consistent("gallery");
        assert_eq!(
            query.channels, gallery.channels,
            "query and gallery features have different lengths"
        );
        let channels = query.channels;
        if channels == 0 {
            return Err(MetricError::NoChannels);
        }
        let rows = |images: &ReidImages<'a>| images.features.par_chunks(channels);
        // Zeros that the threads overwrite: at the first write to a page the system clears it, which
        // one thread would do alone.
        let mut features = vec![0.0; query.features.len() + gallery.features.len()];
        // NaN marks a row that is not finite: squares of finite f32 do not overflow f64.
        let squares: Vec<f32> = features
            .par_chunks_mut(channels)
            .zip(rows(query).chain(rows(gallery)))
            .map(|(row, values)| {
                let length = dot(values, values).sqrt();
                if length > 0.0 {
                    for (normed, value) in row.iter_mut().zip(values) {
                        *normed = (f64::from(*value) / length) as f32;
                    }
                }
                if length.is_finite() {
                    dot(row, row) as f32
                } else {
                    f32::NAN
                }
            })
            .collect();
        if let Some(row) = squares.iter().position(|square| square.is_nan()) {
            let (what, images, row) = match row.checked_sub(query.len()) {
                None => ("query features", query, row),
                Some(row) => ("gallery features", gallery, row),
            };
            let values = &images.features[row * channels..][..channels];
            let found = values.iter().find(|value| !value.is_finite());
            let found = found.map_or(f64::NAN, |value| f64::from(*value));
            return Err(MetricError::NotFinite { what, row, found });
        }
        Ok(Self {
            features,
            channels,
            squares,
            queries: query.len(),
        })
    }

    /// Number of rows, queries and gallery.
    pub(crate) fn len(&self) -> usize {
        self.squares.len()
    }

    pub(crate) fn row(&self, i: usize) -> &[f32] {
        &self.features[i * self.channels..(i + 1) * self.channels]
    }

    /// Squared distance from its parts: |a|² + |b|² - 2 a·b, not below 0.
    pub(crate) fn distance(&self, i: usize, j: usize, dot: f32) -> f32 {
        (self.squares[i] + self.squares[j] - 2.0 * dot).max(0.0)
    }

    /// `f(i, distances to every gallery image)` for each query, in order.
    pub(crate) fn map_query_rows<T: Send>(&self, f: impl Fn(usize, &[f32]) -> T + Sync) -> Vec<T> {
        self.map_rows(0..self.queries, self.queries..self.len(), f)
    }

    /// `f(i, distances to every row of columns)` for each row of `rows`, a block at a time.
    pub(crate) fn map_rows<T: Send>(
        &self,
        rows: std::ops::Range<usize>,
        columns: std::ops::Range<usize>,
        f: impl Fn(usize, &[f32]) -> T + Sync,
    ) -> Vec<T> {
        let (channels, width) = (self.channels, columns.len());
        let right = &self.features[columns.start * channels..columns.end * channels];
        let block = (BLOCK_VALUES / width.max(1)).clamp(1, rows.len().max(1));
        let mut products = vec![0.0; block * width];
        let mut results = Vec::with_capacity(rows.len());
        for start in rows.clone().step_by(block) {
            let block = block.min(rows.end - start);
            let left = &self.features[start * channels..(start + block) * channels];
            let products = &mut products[..block * width];
            matmul(
                MatrixView::new(left, block, channels),
                MatrixView::new(right, width, channels).transposed(),
                products,
            );
            let row = |(r, row): (usize, &mut [f32])| {
                self.to_distances(start + r, columns.start, row);
                f(start + r, row)
            };
            if width == 0 {
                results.extend((start..start + block).map(|i| f(i, &[])));
            } else {
                results.par_extend(products.par_chunks_mut(width).enumerate().map(row));
            }
        }
        results
    }

    /// `f(first, distances)` for blocks of rows from `first` on, with the distances of each to that
    /// row and all that follow: `[rows of the block, len - first]`. With the transposed blocks,
    /// which have the same bits, these are all pairs.
    pub(crate) fn for_upper_blocks(&self, mut f: impl FnMut(usize, &[f32])) {
        // The corner of a block below the diagonal is computed twice: blocks of few rows.
        const MOST_ROWS: usize = 512;
        let mut products = Vec::new();
        let mut start = 0;
        while start < self.len() {
            let width = self.len() - start;
            let rows = (BLOCK_VALUES / width).clamp(1, MOST_ROWS.min(width));
            // The first blocks are the widest but for the rounding.
            products.resize(rows * width, 0.0);
            let right = &self.features[start * self.channels..];
            matmul(
                MatrixView::new(&right[..rows * self.channels], rows, self.channels),
                MatrixView::new(right, width, self.channels).transposed(),
                &mut products,
            );
            let lines = products.par_chunks_mut(width).enumerate();
            lines.for_each(|(r, row)| self.to_distances(start + r, start, row));
            f(start, &products);
            start += rows;
        }
    }

    /// Makes products of row `i` with the rows from `first` on distances.
    fn to_distances(&self, i: usize, first: usize, products: &mut [f32]) {
        Arch::new().dispatch(ToDistances {
            products,
            square: self.squares[i],
            squares: &self.squares[first..],
        });
    }
}

/// |a|² + |b|² - 2 a·b, not below 0, in place of a·b for one a and many b.
struct ToDistances<'a> {
    products: &'a mut [f32],
    square: f32,
    squares: &'a [f32],
}

impl WithSimd for ToDistances<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (value, square) in self.products.iter_mut().zip(self.squares) {
            let distance = self.square + square - 2.0 * *value;
            *value = if distance > 0.0 { distance } else { 0.0 };
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// One-dimensional look-alike: unit vectors whose angle to the first axis is `degrees`.
    fn at(degrees: &[f32]) -> Vec<f32> {
        degrees
            .iter()
            .flat_map(|d| [d.to_radians().cos(), d.to_radians().sin()])
            .collect()
    }

    /// Features of two channels.
    pub(crate) fn images<'a>(
        features: &'a [f32],
        persons: &'a [i64],
        cameras: &'a [i64],
    ) -> ReidImages<'a> {
        ReidImages {
            features,
            channels: 2,
            persons,
            cameras,
        }
    }

    #[test]
    fn rankings_have_the_metrics_of_the_features_they_come_from() {
        // Features on a circle, so that angles are the order.
        let turn = |degrees: &[f32]| -> Vec<f32> {
            let point = |angle: &f32| [angle.to_radians().cos(), angle.to_radians().sin()];
            degrees.iter().flat_map(point).collect()
        };
        let (query, gallery) = (
            turn(&[0.0, 90.0]),
            turn(&[3.0, 10.0, 40.0, 80.0, 85.0, 1.0]),
        );
        let of = |features: &'static [f32], persons, cameras| ReidImages {
            features,
            channels: 2,
            persons,
            cameras,
        };
        let query = of(query.leak(), &[1, 2], &[1, 1]);
        let gallery = of(gallery.leak(), &[2, 1, 2, 1, 2, 1], &[2, 2, 3, 3, 2, 1]);
        let expected = evaluate(&query, &gallery, 5).unwrap();
        let orders = nearest(&query, &gallery, 6).unwrap();
        let pairs = |images: &ReidImages| -> Vec<[i64; 2]> {
            let pairs = images.persons.iter().zip(images.cameras);
            pairs.map(|(person, camera)| [*person, *camera]).collect()
        };
        let found = evaluate_rankings(&pairs(&query), &pairs(&gallery), &orders, 5).unwrap();
        assert_eq!(found, expected);
        // The first two of six, the rest in the order of the gallery.
        let short = [vec![1, 5], vec![4]];
        let found = evaluate_rankings(&pairs(&query), &pairs(&gallery), &short, 5).unwrap();
        // Query 0: image 1, then 0, 2, 3, 4: hits at ranks 1 and 4. Query 1: 4, then 0, 1, 2: hits
        // at 1, 2 and 4.
        let map = ((1.0 + 2.0 / 4.0) / 2.0 + (1.0 + 1.0 + 3.0 / 4.0) / 3.0) / 2.0;
        assert!((found.map - map).abs() < 1e-12, "{} {map}", found.map);
    }

    #[test]
    fn two_queries_by_hand() {
        // Query 0 is person 7 from camera 1: the nearest image is the same shot (ignored), then a
        // distractor, a match, person 8, a match. Ranks of matches 2 and 4: AP = (1/2 + 2/4) / 2 =
        // 0.5, INP = 2/4. Query 1 is person 9, seen by no other camera: skipped.
        let gallery = at(&[1.0, 2.0, 3.0, 4.0, 5.0, 90.0]);
        let query = at(&[0.0, 90.0]);
        let gallery = images(&gallery, &[7, 0, 7, 8, 7, 9], &[1, 3, 2, 2, 3, 1]);
        let query = images(&query, &[7, 9], &[1, 1]);
        let metrics = evaluate(&query, &gallery, 4).unwrap();
        assert_eq!((metrics.map, metrics.minp), (0.5, 0.5));
        assert_eq!(metrics.cmc, [0.0, 1.0, 1.0, 1.0]);
        assert_eq!(
            (metrics.queries, metrics.skipped, metrics.gallery),
            (2, 1, 6)
        );
        assert_eq!(metrics.average_precision, [Some(0.5), None]);
        // Query 1 has no same-shot rule but its own image: the image at 90 degrees is ignored.
        assert_eq!(
            nearest(&query, &gallery, 3).unwrap(),
            [vec![1, 2, 3], vec![4, 3, 2]]
        );
    }

    #[test]
    fn images_before_a_match_are_counted_with_ties_in_the_order_of_the_gallery() {
        // Many equal distances, and places at the borders of stretches.
        let distances: Vec<f32> = (0..5000_usize).map(|i| (i * 7919 % 11) as f32).collect();
        let places = [0, 1, 2047, 2048, 2049, 4095, 4096, 4999, 3000];
        let matches = places.map(|place| (distances[place], place));
        let found = Arch::new().dispatch(CountBefore {
            distances: &distances,
            of: &matches,
        });
        let all = || distances.iter().copied().zip(0..);
        let expected = matches.map(|this| all().filter(|o| by_distance(*o, this).is_lt()).count());
        assert_eq!(found, expected);
    }

    #[test]
    fn ties_keep_the_order_of_the_gallery() {
        let same = at(&[10.0; 4]);
        let query = at(&[10.0]);
        let query = images(&query, &[1], &[1]);
        let last = evaluate(&query, &images(&same, &[2, 3, 4, 1], &[2; 4]), 4).unwrap();
        assert_eq!((last.map, last.cmc), (0.25, vec![0.0, 0.0, 0.0, 1.0]));
        let first = evaluate(&query, &images(&same, &[1, 2, 3, 4], &[2; 4]), 4).unwrap();
        assert_eq!(first.map, 1.0);
    }

    #[test]
    fn no_match_at_all_is_an_error_with_counts() {
        let (query, gallery) = (at(&[0.0]), at(&[0.0, 1.0]));
        let error = evaluate(
            &images(&query, &[1], &[1]),
            &images(&gallery, &[1, 2], &[1, 1]),
            5,
        )
        .unwrap_err();
        assert_eq!(
            error,
            MetricError::NoValidQuery {
                queries: 1,
                gallery: 2
            }
        );
        let error = evaluate(&images(&[], &[], &[]), &images(&[], &[], &[]), 5).unwrap_err();
        assert_eq!(
            error,
            MetricError::NoValidQuery {
                queries: 0,
                gallery: 0
            }
        );
    }

    #[test]
    fn nan_is_an_error_and_zero_features_give_no_nan() {
        let query = [0.0, 0.0];
        let gallery = [1.0, 0.0, f32::NAN, 0.0];
        let error = evaluate(
            &images(&query, &[1], &[1]),
            &images(&gallery, &[1, 2], &[2, 2]),
            5,
        )
        .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("gallery features 1: expected finite numbers"),
            "{error}"
        );
        let gallery = [1.0, 0.0, 0.0, 1.0];
        let metrics = evaluate(
            &images(&query, &[1], &[1]),
            &images(&gallery, &[1, 2], &[2, 2]),
            5,
        )
        .unwrap();
        assert_eq!(metrics.map, 1.0);
    }

    #[test]
    fn the_first_number_that_is_not_finite_is_named() {
        let side = |features: &[f32]| {
            let ids: Vec<i64> = (0..features.len() as i64 / 2).collect();
            (features.to_vec(), ids)
        };
        let normalized = |query: &[f32], gallery: &[f32]| {
            let (query, gallery) = (side(query), side(gallery));
            NormalizedFeatures::new(
                &images(&query.0, &query.1, &query.1),
                &images(&gallery.0, &gallery.1, &gallery.1),
            )
            .map(|features| features.features)
        };
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        for (query, gallery, named) in [
            (
                [1.0, 0.0, -inf, nan],
                [nan, 0.0],
                ("query features", 1, -f64::INFINITY),
            ),
            (
                [1.0, 0.0, 0.0, 1.0],
                [0.0, inf],
                ("gallery features", 0, f64::INFINITY),
            ),
        ] {
            match normalized(&query, &gallery) {
                Err(MetricError::NotFinite { what, row, found }) => {
                    assert_eq!((what, row, found), named);
                }
                other => panic!("{other:?}"),
            }
        }
        // The largest and the smallest numbers are finite, and have a length in f64.
        let features = normalized(&[f32::MAX, f32::MAX], &[f32::from_bits(1), 0.0]).unwrap();
        let half = 0.5_f32.sqrt();
        assert_eq!(features, [half, half, 1.0, 0.0]);
        assert_eq!(normalized(&[0.0, 0.0], &[]).unwrap(), [0.0, 0.0]);
    }

    /// Once an index out of bounds.
    #[test]
    fn features_without_channels_are_an_error() {
        let images = || ReidImages {
            features: &[],
            channels: 0,
            persons: &[1, 1],
            cameras: &[1, 2],
        };
        let result = NormalizedFeatures::new(&images(), &images());
        assert!(matches!(result.err(), Some(MetricError::NoChannels)));
    }

    #[test]
    fn chance_is_the_mean_over_all_orders() {
        // 2 matches among 4: the six placements have AP 1, 5/6, 3/4, 7/12, 1/2, 5/12.
        let expected = (1.0 + 5.0 / 6.0 + 0.75 + 7.0 / 12.0 + 0.5 + 5.0 / 12.0) / 6.0;
        assert!((expected_average_precision(2, 4, &harmonic_numbers(4)) - expected).abs() < 1e-12);
        assert_eq!(expected_average_precision(1, 1, &harmonic_numbers(1)), 1.0);
    }
}
