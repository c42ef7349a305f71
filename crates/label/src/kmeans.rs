//! Part maps without CLIP, after SOLIDER (Chen et al. 2023, arXiv 2303.17602, semantic clustering).
//!
//! From the last feature map of a self-supervised backbone, for each image by itself:
//!
//! 1. k-means with twelve clusters on the features of the map;
//! 2. foreground are the clusters that hardly touch the border of the image: those whose positions
//!    lie on the border less than 0.45 times as often as the positions of the whole map;
//! 3. an image with less than 10 % or more than 80 % of foreground is skipped;
//! 4. three-means on the foreground's features; ordered by mean height, the clusters are head,
//!    upper body and lower body. The order of heights is the only criterion, so people must be
//!    upright.
//!
//! # Departures from SOLIDER
//!
//! SOLIDER takes the foreground from two-means on the norms of the features: larger norms are the
//! person, images with a foreground of half of the map or less are skipped. That does not hold
//! here. Measured on 200 synthetic people of 128 × 64 pixels, whose maps have 8 × 4 positions, 30 %
//! of them person; precision and recall of the foreground, and the share of images outside 10–80 %:
//!
//! | foreground | DINO, 400 steps | untrained | CLASP, 300 steps |
//! |---|---|---|---|
//! | larger norms | .36 .57 23 % | .26 .46 46 % | .07 .14 3 % |
//! | of two clusters of norms, the one that touches the border less | .42 .65 19 % | | |
//! | of two clusters of features, the one that touches the border less | .48 .65 9 % | .49 .71 7 % | .76 .94 0 % |
//! | of eight clusters of features, those that hardly touch it | .86 .70 14 % | .82 .68 15 % | .85 .84 1 % |
//! | of twelve clusters (this) | .85 .76 4 % | .82 .74 2 % | .83 .88 0 % |
//! | all positions that are not on the border, without any features | .75 .94 0 % | | |
//!
//! Two clusters mix person and place, as both have several colors; twelve are pure enough for the
//! border to separate them. Much of the result is due to the border and to the colors that an
//! untrained network separates: the last row and the untrained column show how much. At 256 × 128
//! pixels, 16 × 8 positions, a backbone trained with DINO reaches .80 .72 3 %.
//!
//! Each k-means starts from 10 seedings of k-means++, drawn by the image's key, and keeps the best.

use clasp_data::Rng;
use rand::RngExt;

use crate::parts::{IGNORE, PartMap, label, resample};

/// Classes of the maps: background, head, upper body, lower body.
pub const CLASSES: usize = 4;

/// Least and largest share of foreground of an image that is not skipped.
pub const FOREGROUND: [f64; 2] = [0.1, 0.8];

/// Number of clusters that the border divides into foreground and background.
const REGIONS: usize = 12;

/// A cluster is foreground if the share of its positions that lie on the border is below this many
/// times the share of all positions that do.
const BORDER: f64 = 0.45;

/// Clusters of the foreground.
const PARTS: usize = 3;

/// Seedings of k-means, as scikit-learn's default was when SOLIDER was published.
const SEEDINGS: usize = 10;

/// Rounds of one k-means; far above what maps of some hundred positions need.
const MOST_ROUNDS: usize = 300;

/// Class of every position of one feature map, or none if the image is skipped.
///
/// Skipped are images whose share of foreground is outside [`FOREGROUND`], whose map has fewer than
/// twelve different features or whose foreground fewer than three, or whose features are not
/// finite.
///
/// `features`: [channels, positions], row-major with `columns` positions in a row; returns
/// `[positions]`
pub fn clusters(
    features: &[f32],
    channels: usize,
    columns: usize,
    rng: &mut Rng,
) -> Option<Vec<u8>> {
    assert!(
        channels > 0 && columns > 0 && features.len().is_multiple_of(channels * columns),
        "{} features do not divide into {channels} channels of rows of {columns}",
        features.len()
    );
    let positions = features.len() / channels;
    if !features.iter().all(|x| x.is_finite()) {
        return None;
    }
    // [positions, channels]: the feature of a position in one piece.
    let points: Vec<Vec<f64>> = (0..positions)
        .map(|position| {
            features
                .iter()
                .skip(position)
                .step_by(positions)
                .map(|&x| f64::from(x))
                .collect()
        })
        .collect();
    let all: Vec<&[f64]> = points.iter().map(Vec::as_slice).collect();
    let foreground = foreground(&k_means(&all, REGIONS, rng)?, columns);
    let share = foreground.len() as f64 / positions as f64;
    if !(FOREGROUND[0]..=FOREGROUND[1]).contains(&share) {
        return None;
    }
    let chosen: Vec<&[f64]> = { foreground.iter() }
        .map(|&position| points[position].as_slice())
        .collect();
    let cluster = k_means(&chosen, PARTS, rng)?;

    let mut heights = [(0.0, 0usize); PARTS];
    for (&position, &cluster) in foreground.iter().zip(&cluster) {
        heights[cluster].0 += (position / columns) as f64;
        heights[cluster].1 += 1;
    }
    let mut order = [0usize, 1, 2];
    let mean = |cluster: usize| heights[cluster].0 / heights[cluster].1 as f64;
    order.sort_by(|&a, &b| mean(a).total_cmp(&mean(b)));
    let mut classes = vec![0u8; positions];
    for (&position, &cluster) in foreground.iter().zip(&cluster) {
        // The place in the order from the top, plus one for the background.
        classes[position] = 1 + order
            .iter()
            .position(|&c| c == cluster)
            .map_or(0, |place| place as u8);
    }
    Some(classes)
}

/// The positions, ascending, of the clusters that hardly touch the border of a map with `columns`
/// positions in a row.
///
/// `clusters`: [positions], each below [`REGIONS`]
fn foreground(clusters: &[usize], columns: usize) -> Vec<usize> {
    let rows = clusters.len() / columns;
    let on_border = |position: usize| {
        let (row, column) = (position / columns, position % columns);
        row == 0 || row + 1 == rows || column == 0 || column + 1 == columns
    };
    let border = (0..clusters.len()).filter(|&p| on_border(p)).count() as f64;
    let mut counts = [[0usize; 2]; REGIONS];
    for (position, &cluster) in clusters.iter().enumerate() {
        counts[cluster][usize::from(on_border(position))] += 1;
    }
    let inside = counts.map(|[within, border_of_it]| {
        let share = border_of_it as f64 / (within + border_of_it).max(1) as f64;
        share < BORDER * border / clusters.len() as f64
    });
    (0..clusters.len())
        .filter(|&position| inside[clusters[position]])
        .collect()
}

/// The part map on the stored grid of one image; all [`IGNORE`] with confidence 0 if it is skipped.
///
/// At the backbone's own grid it holds the clusters themselves. To another grid they are resampled
/// as probabilities of 0 and 1, the way CLIP's are, and a position that no cluster fills to
/// `confidence` is ignored.
///
/// `features`: [channels, rows, columns] with `from` = rows and columns
pub fn part_map(
    features: &[f32],
    channels: usize,
    from: [usize; 2],
    to: [usize; 2],
    confidence: f32,
    rng: &mut Rng,
) -> PartMap {
    let Some(classes) = clusters(features, channels, from[1], rng) else {
        return PartMap {
            parts: vec![IGNORE; to[0] * to[1]],
            confidence: vec![0; to[0] * to[1]],
        };
    };
    let planes: Vec<f32> = (0..CLASSES)
        .flat_map(|class| {
            classes
                .iter()
                .map(move |&c| if usize::from(c) == class { 1.0 } else { 0.0 })
        })
        .collect();
    label(&resample(&planes, from, to), to, confidence)
}

/// Cluster of each point, the best of several runs; none with fewer different points than
/// `clusters`.
fn k_means(points: &[&[f64]], clusters: usize, rng: &mut Rng) -> Option<Vec<usize>> {
    let mut best: Option<(f64, Vec<usize>)> = None;
    for _ in 0..SEEDINGS {
        let centers = seeds(points, clusters, rng)?;
        let (inertia, clusters) = lloyd(points, centers);
        if best.as_ref().is_none_or(|(least, _)| inertia < *least) {
            best = Some((inertia, clusters));
        }
    }
    best.map(|(_, clusters)| clusters)
}

/// Different points, the first drawn evenly and each other with a probability that grows with the
/// squared distance to those before it (k-means++, Arthur and Vassilvitskii 2007).
fn seeds(points: &[&[f64]], clusters: usize, rng: &mut Rng) -> Option<Vec<Vec<f64>>> {
    if points.is_empty() {
        return None;
    }
    let mut centers = vec![points[rng.random_range(0..points.len())]];
    while centers.len() < clusters {
        centers.push(draw(points, &centers, rng)?);
    }
    Some(centers.into_iter().map(<[f64]>::to_vec).collect())
}

fn draw<'a>(points: &[&'a [f64]], centers: &[&[f64]], rng: &mut Rng) -> Option<&'a [f64]> {
    let weights: Vec<f64> = points
        .iter()
        .map(|point| {
            centers
                .iter()
                .map(|center| distance(point, center))
                .fold(f64::INFINITY, f64::min)
        })
        .collect();
    let total: f64 = weights.iter().sum();
    if total.is_nan() || total <= 0.0 {
        return None;
    }
    let mut left = rng.random::<f64>() * total;
    let drawn = weights.iter().position(|&weight| {
        left -= weight;
        weight > 0.0 && left < 0.0
    });
    // Rounding may leave a rest after the last point.
    drawn
        .or_else(|| weights.iter().rposition(|&weight| weight > 0.0))
        .map(|index| points[index])
}

/// Lloyd's rounds until no point changes its cluster; returns the sum of squared distances and the
/// clusters, none of which is empty.
fn lloyd(points: &[&[f64]], mut centers: Vec<Vec<f64>>) -> (f64, Vec<usize>) {
    let mut clusters = vec![usize::MAX; points.len()];
    for _ in 0..MOST_ROUNDS {
        let mut nearest: Vec<usize> = points
            .iter()
            .map(|point| {
                let d: Vec<f64> = { centers.iter() }.map(|c| distance(point, c)).collect();
                (0..d.len()).fold(0, |best, i| if d[i] < d[best] { i } else { best })
            })
            .collect();
        refill(points, &centers, &mut nearest);
        if nearest == clusters {
            break;
        }
        clusters = nearest;
        for (index, center) in centers.iter_mut().enumerate() {
            let mut count = 0.0;
            center.fill(0.0);
            for (point, _) in points
                .iter()
                .zip(&clusters)
                .filter(|&(_, &cluster)| cluster == index)
            {
                center.iter_mut().zip(*point).for_each(|(sum, x)| *sum += x);
                count += 1.0;
            }
            center.iter_mut().for_each(|sum| *sum /= count);
        }
    }
    let inertia = points
        .iter()
        .zip(&clusters)
        .map(|(point, &cluster)| distance(point, &centers[cluster]))
        .sum();
    (inertia, clusters)
}

/// Gives every empty cluster the point that is farthest from its center, out of a cluster that has
/// others.
fn refill(points: &[&[f64]], centers: &[Vec<f64>], clusters: &mut [usize]) {
    for empty in 0..centers.len() {
        let mut counts = vec![0usize; centers.len()];
        clusters.iter().for_each(|&cluster| counts[cluster] += 1);
        if counts[empty] > 0 {
            continue;
        }
        let farthest = (0..points.len())
            .filter(|&i| counts[clusters[i]] > 1)
            .map(|i| (distance(points[i], &centers[clusters[i]]), i))
            .fold(
                (-1.0, None),
                |best, (d, i)| if d > best.0 { (d, Some(i)) } else { best },
            );
        if let (_, Some(i)) = farthest {
            clusters[i] = empty;
        }
    }
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clasp_data::rng_for;

    const ROWS: usize = 8;
    const COLUMNS: usize = 5;
    const POSITIONS: usize = ROWS * COLUMNS;

    /// A map of 8 × 5 positions and 9 channels. A person in bands of 1, 2 and 3 rows stands in the
    /// middle; the place around has five colors, of much larger norm: the top, the bottom in two,
    /// the left and the right side.
    fn person() -> (Vec<f32>, Vec<u8>) {
        let mut features = vec![0.0; 9 * POSITIONS];
        let mut expected = vec![0; POSITIONS];
        for row in 0..ROWS {
            for column in 0..COLUMNS {
                let position = row * COLUMNS + column;
                let wobble = 0.1 * ((position * 7 % 5) as f32 - 2.0);
                let inside = (1..7).contains(&row) && (1..4).contains(&column);
                let (channel, strength) = if inside {
                    let band = [0, 0, 1, 1, 2, 2, 2, 2][row];
                    expected[position] = 1 + band as u8;
                    (band, 3.0)
                } else {
                    let place = match (row, column) {
                        (0, _) => 3,
                        (7, 0..2) => 4,
                        (7, _) => 5,
                        (_, 0) => 6,
                        _ => 7,
                    };
                    (place, 9.0)
                };
                features[channel * POSITIONS + position] = strength + wobble;
            }
        }
        (features, expected)
    }

    #[test]
    fn bands_become_head_upper_and_lower() {
        let (features, expected) = person();
        let grid = [ROWS, COLUMNS];
        for key in ["a", "b", "c"] {
            let found = clusters(&features, 9, COLUMNS, &mut rng_for(0, 0, key));
            assert_eq!(found.unwrap(), expected);
        }
        // At its own grid the map is the clusters; the channels' order does not matter.
        let map = part_map(&features, 9, grid, grid, 0.5, &mut rng_for(0, 0, "a"));
        assert_eq!(map.parts, expected);
        assert!(map.confidence.iter().all(|&c| c == 255));
        let turned: Vec<f32> = { features.chunks_exact(POSITIONS).rev() }
            .flatten()
            .copied()
            .collect();
        let found = clusters(&turned, 9, COLUMNS, &mut rng_for(0, 0, "a"));
        assert_eq!(found.unwrap(), expected);
        // A finer grid repeats it.
        let finer = [2 * ROWS, 2 * COLUMNS];
        let map = part_map(&features, 9, grid, finer, 0.5, &mut rng_for(0, 0, "a"));
        let at = |row: usize, column: usize| map.parts[row * finer[1] + column];
        assert_eq!((at(0, 0), at(3, 5), at(12, 5)), (0, 1, 3));
    }

    #[test]
    fn the_foreground_is_what_touches_the_border_least_not_what_has_large_norms() {
        // In the person's map the place has three times the norm of the person.
        let (features, expected) = person();
        let found = clusters(&features, 9, COLUMNS, &mut rng_for(0, 0, "a")).unwrap();
        for (position, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found > 0, expected > 0, "position {position}");
        }
        // Three rows of three: clusters 0 and 1 lie on the border, 2 is the middle.
        let map = [0, 0, 1, 0, 2, 1, 0, 0, 1];
        assert_eq!(foreground(&map, 3), [4]);
        // 14 of 20 positions are on the border, so less than 0.315 of a cluster's may be.
        let map = [
            0, 0, 0, 0, //
            0, 3, 3, 0, //
            0, 3, 2, 0, //
            0, 3, 2, 0, //
            0, 3, 2, 0, //
        ];
        assert_eq!(foreground(&map, 4), [5, 6, 9, 13, 17]);
        assert_eq!(foreground(&map[..16], 4), [5, 6, 9, 13]);
    }

    #[test]
    fn a_foreground_of_less_than_a_tenth_or_more_than_four_fifths_is_skipped() {
        // Colors by row, of a map of 14 × 5, and one other position: only that one may keep off the
        // border.
        let mut rows = vec![0.0; 15 * 70];
        for position in 0..70 {
            let channel = if position == 32 { 14 } else { position / 5 };
            rows[channel * 70 + position] = 5.0;
        }
        assert_eq!(clusters(&rows, 15, 5, &mut rng_for(0, 0, "a")), None);
        let map = part_map(&rows, 15, [14, 5], [2, 2], 0.5, &mut rng_for(0, 0, "a"));
        assert_eq!((map.parts, map.confidence), (vec![IGNORE; 4], vec![0; 4]));
        // Four colors of the border and eight inside, which are 79 % of 18 × 18 positions and 81 %
        // of 20 × 20.
        let inside = |side: usize| {
            let mut features = vec![0.0; 12 * side * side];
            for position in 0..side * side {
                let (row, column) = (position / side, position % side);
                let channel = match (row, column) {
                    (0, _) => 0,
                    (_, 0) => 1,
                    _ if row + 1 == side => 2,
                    _ if column + 1 == side => 3,
                    _ => 4 + row % 8,
                };
                features[channel * side * side + position] = 5.0;
            }
            clusters(&features, 12, side, &mut rng_for(0, 0, "a"))
        };
        let found = inside(18).unwrap();
        assert_eq!(found.iter().filter(|&&class| class > 0).count(), 256);
        assert_eq!(inside(20), None);
        // A person of less than half of the map is not skipped.
        let (features, expected) = person();
        assert!(2 * expected.iter().filter(|&&c| c > 0).count() < POSITIONS);
        assert!(clusters(&features, 9, COLUMNS, &mut rng_for(0, 0, "a")).is_some());
    }

    #[test]
    fn degenerate_maps_are_skipped() {
        let mut rng = rng_for(0, 0, "a");
        assert_eq!(clusters(&[1.0; 24], 1, 4, &mut rng), None);
        assert_eq!(clusters(&[f32::NAN; 24], 1, 4, &mut rng), None);
        assert_eq!(clusters(&[1.0], 1, 1, &mut rng), None);
        // Eleven different features only.
        let few: Vec<f32> = (0..24).map(|i| (i % 11) as f32).collect();
        assert_eq!(clusters(&few, 1, 4, &mut rng), None);
    }

    #[test]
    fn an_empty_cluster_is_refilled() {
        let points: Vec<Vec<f64>> = vec![vec![0.0], vec![0.1], vec![5.0], vec![9.0]];
        let points: Vec<&[f64]> = points.iter().map(Vec::as_slice).collect();
        // The third center is too far away for any point.
        let (_, clusters) = lloyd(&points, vec![vec![0.0], vec![6.0], vec![1000.0]]);
        for cluster in 0..3 {
            assert!(clusters.contains(&cluster), "{clusters:?}");
        }
    }
}
