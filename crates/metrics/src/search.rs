//! Person search: who is found, and where a person is found again, as CUHK-SYSU and PRW are
//! evaluated (Xiao et al., "Joint Detection and Identification Feature Learning for Person Search",
//! CVPR 2017; Zheng et al., "Person Re-identification in the Wild", CVPR 2017).
//!
//! # Search
//! A query is a person; its gallery is a list of frames, with the box of that person in those that
//! show them. Found boxes of score 0.5 and above are ranked by the cosine of their feature and the
//! query's. In a frame that shows the person, the best ranked box of sufficient overlap is right,
//! every other box of every frame is wrong; sufficient is an IoU of min(0.5, w h / ((w + 10)(h +
//! 10))) for a true box of w x h. AP = Σ (R_n - R_{n-1}) P_n over the boxes, times the share of
//! showing frames in which a right box was found; top-k: a right box is among the k best.
//!
//! # Detection
//! A found box is right if it overlaps by IoU 0.5 the true box that it overlaps most, and overlaps
//! it most of all found boxes. Recall = right / true boxes, AP as above times recall.
//!
//! # Context graph
//! Context bipartite graph matching (Li and Miao, "Sequential End-to-end Network for Efficient
//! Person Search", AAAI 2021): in the frames of the `boxes` best ranked boxes, the query and those
//! around it are assigned to the found people such that the sum of their cosines is largest, and
//! that sum becomes the similarity of the box that the query is assigned to.

use std::collections::BTreeSet;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::MetricError;
use crate::attributes::average_precision;
use crate::detection::iou;
use crate::matmul::dot;
use crate::reid::{expected_average_precision, harmonic_numbers};

/// The k of the reported top-k.
pub const TOP: [usize; 3] = [1, 5, 10];

/// What a model found in one frame.
#[derive(Debug, Clone, Copy)]
pub struct GalleryFrame<'a> {
    /// x, y, width, height of each box.
    pub boxes: &'a [[f64; 4]],
    /// Confidence in each box.
    pub scores: &'a [f64],
    /// `[boxes, channels]`, row-major; need not be normalized.
    pub features: &'a [f32],
}

/// A person to be searched for.
#[derive(Debug, Clone)]
pub struct SearchQuery<'a> {
    /// `[channels]`; need not be normalized.
    pub feature: &'a [f32],
    /// `[people, channels]`: the other people in the query's frame, highest score first. Used by
    /// [`ContextMatching`] only.
    pub companions: &'a [f32],
    /// Frames that are searched, each once, and the box of the person where a frame shows them.
    pub gallery: Vec<(usize, Option<[f64; 4]>)>,
}

/// Context matching; published values are 10 boxes and 3 people for CUHK-SYSU, 30 and 4 for PRW.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContextMatching {
    /// The frames of this many best boxes are ranked again.
    pub boxes: usize,
    /// People of the query's frame, the query among them.
    pub people: usize,
}

/// A box of the ranking.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct SearchHit {
    /// Frame.
    pub frame: usize,
    /// Position of the box in its [`GalleryFrame`].
    pub index: usize,
    /// Cosine, or what [`ContextMatching`] made of it.
    pub similarity: f64,
    /// Whether it is the person's box.
    pub right: bool,
}

/// The metrics of one search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchMetrics {
    /// Mean average precision, 0 to 1.
    pub map: f64,
    /// Share of queries with a right box among the k best, for each k of [`TOP`].
    pub top: [f64; TOP.len()],
    /// Share of the frames that show a person in which a right box was found.
    pub recall: f64,
    /// Queries given.
    pub queries: usize,
    /// Queries that are skipped, because no frame of their gallery shows them.
    pub skipped: usize,
    /// mAP to expect of a random order of the same boxes.
    pub chance_map: f64,
    /// Average precision of each query; `None` where it was skipped.
    pub average_precision: Vec<Option<f64>>,
}

/// The boxes that are searched.
pub struct SearchGallery<'a> {
    frames: &'a [GalleryFrame<'a>],
    channels: usize,
    /// For each frame the boxes that are sure enough.
    kept: Vec<Vec<usize>>,
    /// Their features at unit length, weighted if asked for.
    features: Vec<Vec<f32>>,
}

impl<'a> SearchGallery<'a> {
    /// Boxes of score `lowest` and above (0.5 in the published protocol); `weighted` multiplies a
    /// box's feature by its score, the class-weighted similarity of NAE.
    ///
    /// # Errors
    /// [`MetricError::NotFinite`], with the frame as row.
    ///
    /// # Panics
    /// If boxes, scores and features of a frame disagree in number.
    pub fn new(
        frames: &'a [GalleryFrame<'a>],
        channels: usize,
        lowest: f64,
        weighted: bool,
    ) -> Result<Self, MetricError> {
        let (mut kept, mut features) = (Vec::new(), Vec::new());
        for (row, frame) in frames.iter().enumerate() {
            let count = frame.boxes.len();
            assert_eq!(
                [frame.scores.len(), frame.features.len()],
                [count, count * channels],
                "frame {row}: scores, and features of {channels} channels, of {count} boxes"
            );
            // Features are multiplied by them in f32.
            let scores = frame.scores.iter().map(|score| f64::from(*score as f32));
            finite("scores of frame", row, scores)?;
            finite("boxes of frame", row, frame.boxes.iter().flatten().copied())?;
            finite("features of frame", row, values(frame.features))?;
            let sure: Vec<usize> = (0..count).filter(|&i| frame.scores[i] >= lowest).collect();
            let feature = |&i: &usize| {
                let feature = unit(&frame.features[i * channels..(i + 1) * channels]);
                let weight = if weighted {
                    frame.scores[i] as f32
                } else {
                    1.0
                };
                feature.into_iter().map(move |v| v * weight)
            };
            features.push(sure.iter().flat_map(feature).collect());
            kept.push(sure);
        }
        Ok(Self {
            frames,
            channels,
            kept,
            features,
        })
    }

    /// The boxes of a query's gallery, most similar first; those of equal similarity in the order
    /// of the gallery.
    ///
    /// # Errors
    /// [`MetricError::NotFinite`].
    ///
    /// # Panics
    /// If a feature has another length than the gallery's or a frame is unknown.
    pub fn ranking(
        &self,
        query: &SearchQuery,
        context: Option<ContextMatching>,
    ) -> Result<Vec<SearchHit>, MetricError> {
        let mut hits = self.hits(query, context)?;
        hits.sort_by(|a, b| b.similarity.total_cmp(&a.similarity));
        Ok(hits)
    }

    /// The boxes of a query's gallery, in its order.
    fn hits(
        &self,
        query: &SearchQuery,
        context: Option<ContextMatching>,
    ) -> Result<Vec<SearchHit>, MetricError> {
        assert_eq!(query.feature.len(), self.channels, "channels of a query");
        assert!(
            query.companions.len().is_multiple_of(self.channels.max(1)),
            "{} values of companions of {} channels",
            query.companions.len(),
            self.channels
        );
        let all = query.feature.iter().chain(query.companions);
        finite("features of query", 0, all.map(|v| f64::from(*v)))?;
        let feature = unit(query.feature);
        let mut similarity: Vec<Vec<f64>> = { query.gallery.iter() }
            .map(|(frame, _)| self.cosines(*frame, &feature).collect())
            .collect();
        if let Some(context) = context {
            self.add_context(query, context, &feature, &mut similarity);
        }
        let mut hits = Vec::new();
        for ((frame, bbox), similarity) in query.gallery.iter().zip(similarity) {
            let first = hits.len();
            let boxes = self.kept[*frame].iter().zip(similarity);
            hits.extend(boxes.map(|(&index, similarity)| SearchHit {
                frame: *frame,
                index,
                similarity,
                right: false,
            }));
            let Some(bbox) = bbox else { continue };
            let enough = sufficient_overlap(*bbox);
            // Of equally similar boxes the first.
            let mut best: Option<usize> = None;
            for i in first..hits.len() {
                let better = best.is_none_or(|best| hits[i].similarity > hits[best].similarity);
                if better && iou(self.frames[*frame].boxes[hits[i].index], *bbox) >= enough {
                    best = Some(i);
                }
            }
            if let Some(best) = best {
                hits[best].right = true;
            }
        }
        Ok(hits)
    }

    /// Evaluates `queries` queries, each made when its turn comes, so that their galleries need not
    /// exist all at once.
    ///
    /// # Errors
    /// [`MetricError::NotFinite`]; [`MetricError::NoQueryWithMatch`] if no gallery shows its query.
    ///
    /// # Panics
    /// As [`SearchGallery::ranking`].
    pub fn evaluate<'q>(
        &self,
        queries: usize,
        query: impl Fn(usize) -> SearchQuery<'q> + Sync,
        context: Option<ContextMatching>,
    ) -> Result<SearchMetrics, MetricError> {
        let harmonic = harmonic_numbers(self.kept.iter().map(Vec::len).sum());
        // The boxes of a query are dropped when its metrics are computed.
        let results: Vec<Option<QueryOutcome>> = (0..queries)
            .into_par_iter()
            .map(|i| {
                let query = query(i);
                let showing = { query.gallery.iter() }.filter(|(_, bbox)| bbox.is_some());
                match showing.count() {
                    0 => Ok(None),
                    shown => {
                        let hits = self
                            .hits(&query, context)
                            .map_err(|error| error.in_row(i))?;
                        Ok(Some(QueryOutcome::new(&hits, shown, &harmonic)))
                    }
                }
            })
            .collect::<Result<_, MetricError>>()?;
        let valid = results.iter().flatten().count();
        if valid == 0 {
            return Err(MetricError::NoQueryWithMatch { queries });
        }
        let all = || results.iter().flatten();
        let found: usize = all().map(|outcome| outcome.found).sum();
        let shown: usize = all().map(|outcome| outcome.shown).sum();
        let top = TOP.map(|k| {
            all()
                .filter(|outcome| outcome.before_first.is_some_and(|b| b < k))
                .count()
        });
        let average_precision: Vec<Option<f64>> = { results.iter() }
            .map(|outcome| outcome.as_ref().map(|outcome| outcome.average_precision))
            .collect();
        Ok(SearchMetrics {
            map: average_precision.iter().flatten().sum::<f64>() / valid as f64,
            top: top.map(|queries| queries as f64 / valid as f64),
            recall: found as f64 / shown as f64,
            queries,
            skipped: queries - valid,
            chance_map: all().map(|outcome| outcome.chance).sum::<f64>() / valid as f64,
            average_precision,
        })
    }

    fn cosines(&self, frame: usize, feature: &[f32]) -> impl Iterator<Item = f64> {
        let features = self.features[frame].chunks_exact(self.channels.max(1));
        features.map(|other| dot(feature, other))
    }

    fn add_context(
        &self,
        query: &SearchQuery,
        context: ContextMatching,
        feature: &[f32],
        similarity: &mut [Vec<f64>],
    ) {
        let mut best: Vec<(f64, usize)> = { similarity.iter().enumerate() }
            .flat_map(|(place, values)| values.iter().map(move |value| (*value, place)))
            .collect();
        best.sort_by(|a, b| b.0.total_cmp(&a.0));
        let places: BTreeSet<usize> = { best.iter().take(context.boxes) }
            .map(|(_, place)| *place)
            .collect();
        let others = query
            .companions
            .chunks_exact(self.channels.max(1))
            .map(unit);
        let people: Vec<Vec<f32>> = std::iter::once(feature.to_vec())
            .chain(others.take(context.people.saturating_sub(1)))
            .collect();
        for place in places {
            let frame = query.gallery[place].0;
            let weights: Vec<f64> = { people.iter() }
                .flat_map(|person| self.cosines(frame, person))
                .collect();
            let found = self.kept[frame].len();
            let (assigned, sum) = assignment(&weights, people.len(), found);
            if let Some(found) = assigned[0] {
                similarity[place][found] = sum;
            }
        }
    }
}

/// What became of one query.
struct QueryOutcome {
    average_precision: f64,
    /// Boxes before the first right one.
    before_first: Option<usize>,
    /// Frames in which the person was found.
    found: usize,
    /// Frames that show the person.
    shown: usize,
    /// Expected average precision of a random order.
    chance: f64,
}

impl QueryOutcome {
    /// Nothing is sorted but the right boxes: the others are counted between them.
    fn new(hits: &[SearchHit], shown: usize, harmonic: &[f64]) -> Self {
        let mut right: Vec<(usize, f64)> = { hits.iter().enumerate() }
            .filter(|(_, hit)| hit.right)
            .map(|(place, hit)| (place, hit.similarity))
            .collect();
        right.sort_by(|a, b| b.1.total_cmp(&a.1));
        // seen[k]: boxes as similar as right box k or more, but less than right box k - 1.
        let mut seen = vec![0_usize; right.len()];
        let mut before_first = 0;
        for (place, hit) in hits.iter().enumerate() {
            let group = right.partition_point(|(_, similarity)| *similarity > hit.similarity);
            if let Some(seen) = seen.get_mut(group) {
                *seen += 1;
            }
            let is_before = |first: &(usize, f64)| {
                hit.similarity > first.1 || hit.similarity == first.1 && place < first.0
            };
            before_first += usize::from(right.first().is_some_and(is_before));
        }
        // Equal similarities enter together.
        let (mut boxes, mut count, mut sum) = (0, 0, 0.0);
        for group in right.chunk_by(|a, b| a.1 == b.1) {
            boxes += seen[count..count + group.len()].iter().sum::<usize>();
            count += group.len();
            sum += group.len() as f64 * count as f64 / boxes as f64;
        }
        Self {
            // Mean over the found, times the share found.
            average_precision: sum / shown as f64,
            before_first: (!right.is_empty()).then_some(before_first),
            found: count,
            shown,
            chance: match count {
                0 => 0.0,
                _ => {
                    let share = count as f64 / shown as f64;
                    share * expected_average_precision(count, hits.len(), harmonic)
                }
            },
        }
    }
}

/// The IoU at which a box counts as a person's: less than 0.5 for a small one.
pub fn sufficient_overlap(xywh: [f64; 4]) -> f64 {
    let [_, _, width, height] = xywh;
    (width * height / ((width + 10.0) * (height + 10.0))).min(0.5)
}

fn unit(feature: &[f32]) -> Vec<f32> {
    let length = values(feature).map(|v| v * v).sum::<f64>().sqrt();
    let scale = if length > 0.0 { length } else { 1.0 };
    values(feature).map(|v| (v / scale) as f32).collect()
}

fn values(feature: &[f32]) -> impl Iterator<Item = f64> {
    feature.iter().map(|v| f64::from(*v))
}

fn finite(
    what: &'static str,
    row: usize,
    mut values: impl Iterator<Item = f64>,
) -> Result<(), MetricError> {
    match values.find(|v| !v.is_finite()) {
        Some(found) => Err(MetricError::NotFinite { what, row, found }),
        None => Ok(()),
    }
}

/// One-to-one assignment of the largest sum of `weights`, `[rows, columns]`, in which every element
/// of the smaller side is assigned: the column of each row, and the sum (Kuhn, 1955; Munkres, 1957;
/// by shortest augmenting paths).
fn assignment(weights: &[f64], rows: usize, columns: usize) -> (Vec<Option<usize>>, f64) {
    if rows > columns {
        let turned: Vec<f64> = { 0..columns }
            .flat_map(|c| (0..rows).map(move |r| weights[r * columns + c]))
            .collect();
        let (of_column, sum) = assignment(&turned, columns, rows);
        let mut of_row = vec![None; rows];
        for (column, row) in of_column.iter().enumerate() {
            if let Some(row) = row {
                of_row[*row] = Some(column);
            }
        }
        return (of_row, sum);
    }
    // Costs are negative weights. Column `columns` is the row being added.
    let (mut row_price, mut column_price) = (vec![0.0; rows], vec![0.0; columns + 1]);
    let mut owner: Vec<Option<usize>> = vec![None; columns + 1];
    for row in 0..rows {
        owner[columns] = Some(row);
        let mut slack = vec![f64::INFINITY; columns];
        let mut previous = vec![columns; columns];
        let mut visited = vec![false; columns + 1];
        let mut here = columns;
        while let Some(r) = owner[here] {
            visited[here] = true;
            let (mut step, mut next) = (f64::INFINITY, columns);
            for c in (0..columns).filter(|&c| !visited[c]) {
                let cost = -weights[r * columns + c] - row_price[r] - column_price[c];
                if cost < slack[c] {
                    (slack[c], previous[c]) = (cost, here);
                }
                if slack[c] < step {
                    (step, next) = (slack[c], c);
                }
            }
            for c in 0..=columns {
                match owner[c] {
                    Some(r) if visited[c] => {
                        row_price[r] += step;
                        column_price[c] -= step;
                    }
                    _ if c < columns => slack[c] -= step,
                    _ => {}
                }
            }
            here = next;
        }
        // Back along the path, every column passes to the row before it.
        while here != columns {
            owner[here] = owner[previous[here]];
            here = previous[here];
        }
    }
    let mut of_row = vec![None; rows];
    let mut sum = 0.0;
    for (column, row) in owner[..columns].iter().enumerate() {
        if let Some(row) = row {
            of_row[*row] = Some(column);
            sum += weights[row * columns + column];
        }
    }
    (of_row, sum)
}

/// A frame with its truth, for [`detection`].
#[derive(Debug, Clone, Copy)]
pub struct SceneDetections<'a> {
    /// x, y, width, height of each person.
    pub truth: &'a [[f64; 4]],
    /// Whether the identity of each is known.
    pub known: &'a [bool],
    /// x, y, width, height of each found box.
    pub boxes: &'a [[f64; 4]],
    /// Confidence in each.
    pub scores: &'a [f64],
}

/// How well people are found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DetectionMetrics {
    /// Share of people found; `None` without people.
    pub recall: Option<f64>,
    /// Average precision of the found boxes, times `recall`; `None` without people.
    pub ap: Option<f64>,
    /// People.
    pub people: usize,
    /// Found boxes that are sure enough.
    pub found: usize,
}

/// Evaluates the detected boxes of score `lowest` and above. With `known_only`, people of unknown
/// identity do not count, and scenes without others are skipped.
///
/// # Errors
/// [`MetricError::NotFinite`], with the scene as row.
///
/// # Panics
/// If lists of a scene that belong together differ in length.
pub fn detection(
    scenes: &[SceneDetections],
    lowest: f64,
    known_only: bool,
) -> Result<DetectionMetrics, MetricError> {
    let (mut right, mut scores, mut people) = (Vec::new(), Vec::new(), 0);
    for (row, scene) in scenes.iter().enumerate() {
        assert_eq!(
            [scene.known.len(), scene.scores.len()],
            [scene.truth.len(), scene.boxes.len()],
            "scene {row}: lists that belong together"
        );
        finite("scores of scene", row, scene.scores.iter().copied())?;
        let boxes = scene.truth.iter().chain(scene.boxes);
        finite("boxes of scene", row, boxes.flatten().copied())?;
        let truth: Vec<[f64; 4]> = { scene.truth.iter().zip(scene.known) }
            .filter(|(_, known)| !known_only || **known)
            .map(|(bbox, _)| *bbox)
            .collect();
        if known_only && truth.is_empty() {
            continue;
        }
        people += truth.len();
        let found: Vec<usize> = { 0..scene.boxes.len() }
            .filter(|&i| scene.scores[i] >= lowest)
            .collect();
        let overlap = |t: usize, f: usize| iou(truth[t], scene.boxes[found[f]]);
        // Of the largest overlaps the first.
        let largest = |count: usize, value: &dyn Fn(usize) -> f64| {
            (0..count).reduce(|a, b| if value(b) > value(a) { b } else { a })
        };
        for f in 0..found.len() {
            let is_right = largest(truth.len(), &|t| overlap(t, f)).is_some_and(|t| {
                overlap(t, f) >= 0.5 && largest(found.len(), &|g| overlap(t, g)) == Some(f)
            });
            right.push(is_right);
            scores.push(scene.scores[found[f]]);
        }
    }
    let count = right.iter().filter(|right| **right).count();
    let recall = (people > 0).then(|| count as f64 / people as f64);
    let precision = average_precision(&right, &scores).unwrap_or(0.0);
    Ok(DetectionMetrics {
        recall,
        ap: recall.map(|recall| precision * recall),
        people,
        found: right.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERSON: [f64; 4] = [0.0, 0.0, 40.0, 90.0];
    const ELSEWHERE: [f64; 4] = [100.0, 0.0, 40.0, 90.0];

    fn frame<'a>(
        boxes: &'a [[f64; 4]],
        scores: &'a [f64],
        features: &'a [f32],
    ) -> GalleryFrame<'a> {
        GalleryFrame {
            boxes,
            scores,
            features,
        }
    }

    fn query(gallery: Vec<(usize, Option<[f64; 4]>)>) -> SearchQuery<'static> {
        SearchQuery {
            feature: &[1.0, 0.0],
            companions: &[0.0, 1.0],
            gallery,
        }
    }

    #[test]
    fn missed_frames_second_boxes_and_low_scores_by_hand() {
        let frames = [
            // Two boxes on the person: the less similar one is wrong. The third is not sure enough.
            frame(
                &[PERSON, PERSON, PERSON],
                &[0.9, 0.9, 0.4],
                &[0.6, 0.8, 3.0, 4.0, 1.0, 0.0],
            ),
            frame(&[], &[], &[]),
            frame(&[ELSEWHERE], &[0.9], &[0.8, 0.6]),
        ];
        let gallery = SearchGallery::new(&frames, 2, 0.5, false).unwrap();
        let shown = || query(vec![(0, Some(PERSON)), (1, Some(PERSON)), (2, None)]);
        let ranking = gallery.ranking(&shown(), None).unwrap();
        let order: Vec<_> = ranking
            .iter()
            .map(|h| (h.frame, h.index, h.right))
            .collect();
        assert_eq!(order, [(2, 0, false), (0, 0, true), (0, 1, false)]);
        // The two boxes of frame 0 tie and enter together: precision 1/3. Found in one of two
        // frames.
        let missing = || query(vec![(2, None)]);
        let metrics = gallery
            .evaluate(2, |i| [shown(), missing()][i].clone(), None)
            .unwrap();
        assert!((metrics.map - 1.0 / 6.0).abs() < 1e-12, "{metrics:?}");
        assert_eq!(
            (metrics.top, metrics.recall, metrics.skipped),
            ([0.0, 1.0, 1.0], 0.5, 1)
        );
        // In a random order one of three boxes is right: (1 + 1/2 + 1/3) / 3, in half of the frames.
        assert!(
            (metrics.chance_map - 11.0 / 36.0).abs() < 1e-12,
            "{metrics:?}"
        );
        let error = gallery.evaluate(1, |_| missing(), None).unwrap_err();
        assert_eq!(error, MetricError::NoQueryWithMatch { queries: 1 });
    }

    #[test]
    fn context_raises_a_box_beside_the_companion() {
        let frames = [
            frame(&[PERSON], &[1.0], &[0.8, 0.6]),
            frame(&[PERSON, ELSEWHERE], &[1.0, 1.0], &[0.6, 0.8, 0.0, 1.0]),
        ];
        let gallery = SearchGallery::new(&frames, 2, 0.5, false).unwrap();
        let query = query(vec![(0, None), (1, Some(PERSON))]);
        assert!(!gallery.ranking(&query, None).unwrap()[0].right);
        let context = Some(ContextMatching {
            boxes: 10,
            people: 2,
        });
        let best = gallery.ranking(&query, context).unwrap()[0];
        assert!(
            best.right && (best.similarity - 1.6).abs() < 1e-6,
            "{best:?}"
        );
    }

    #[test]
    fn weighting_and_small_people() {
        let frames = [frame(
            &[PERSON, ELSEWHERE],
            &[0.5, 1.0],
            &[1.0, 0.0, 0.8, 0.6],
        )];
        let gallery = SearchGallery::new(&frames, 2, 0.5, true).unwrap();
        let best = gallery
            .ranking(&query(vec![(0, Some(PERSON))]), None)
            .unwrap()[0];
        assert_eq!((best.index, best.right), (1, false));
        assert_eq!(sufficient_overlap([5.0, 5.0, 10.0, 20.0]), 200.0 / 600.0);
        assert_eq!(sufficient_overlap(PERSON.map(|v| 10.0 * v)), 0.5);
    }

    #[test]
    fn detection_is_one_to_one() {
        let near = [2.0, 0.0, 40.0, 90.0];
        let scene = SceneDetections {
            truth: &[PERSON, ELSEWHERE],
            known: &[true, false],
            boxes: &[near, PERSON, ELSEWHERE, ELSEWHERE],
            scores: &[0.9, 0.8, 0.7, 0.3],
        };
        // Unsure last box aside: wrong, right, right.
        let all = detection(&[scene], 0.5, false).unwrap();
        assert_eq!((all.recall, all.people, all.found), (Some(1.0), 2, 3));
        assert!((all.ap.unwrap() - (0.5 + 2.0 / 3.0) / 2.0).abs() < 1e-12);
        let known = detection(&[scene], 0.5, true).unwrap();
        assert_eq!((known.recall, known.people), (Some(1.0), 1));
        assert_eq!(detection(&[], 0.5, false).unwrap().ap, None);
    }

    #[test]
    fn nan_is_an_error() {
        let frames = [frame(&[PERSON], &[0.9], &[f32::NAN, 0.0])];
        let error = SearchGallery::new(&frames, 2, 0.5, false).err().unwrap();
        assert!(
            error
                .to_string()
                .starts_with("features of frame 0: expected finite")
        );
    }
}
