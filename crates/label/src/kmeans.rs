//! Part maps without CLIP, as SOLIDER makes them (Chen et al. 2023, arXiv 2303.17602, semantic clustering).
//!
//! From the last feature map of a self-supervised backbone, for each image by itself: two-means on the norms of the
//! features tells the foreground (larger norms) from the background; an image whose foreground is half of the map or
//! less is skipped; three-means on the foreground's features, ordered by mean height, gives head, upper body and lower
//! body. No names are involved, so the parts are only as good as "the head is above" is true.
//!
//! Departures from SOLIDER's code, which changes nothing in what is asked for: two-means in one dimension is solved
//! exactly by trying every split; three-means starts from 10 seedings of k-means++, drawn by the image's key, and
//! keeps the best.

use clasp_data::Rng;
use rand::RngExt;

use crate::parts::{IGNORE, PartMap, label, resample};

/// Classes of the maps: background, head, upper body, lower body.
pub const CLASSES: usize = 4;

/// Seedings of three-means, as scikit-learn's default was when SOLIDER was published.
const SEEDINGS: usize = 10;

/// Rounds of one three-means; far above what maps of some hundred cells need.
const MOST_ROUNDS: usize = 300;

/// Class of every cell of one feature map, or none if the image is skipped.
///
/// Skipped are images whose foreground is half of the map or less, that have no two different norms, whose foreground
/// has fewer than three different features, or whose features are not finite.
///
/// `features`: [channels, cells], row-major with `columns` cells in a row; returns [cells]
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
    let cells = features.len() / channels;
    if !features.iter().all(|x| x.is_finite()) {
        return None;
    }
    // [cells, channels]: a cell's feature in one piece.
    let points: Vec<Vec<f64>> = (0..cells)
        .map(|cell| {
            features
                .iter()
                .skip(cell)
                .step_by(cells)
                .map(|&x| f64::from(x))
                .collect()
        })
        .collect();
    let norms: Vec<f64> = points
        .iter()
        .map(|p| p.iter().map(|x| x * x).sum::<f64>().sqrt())
        .collect();
    let threshold = two_means(&norms)?;
    let foreground: Vec<usize> = (0..cells)
        .filter(|&cell| norms[cell] >= threshold)
        .collect();
    if 2 * foreground.len() <= cells {
        return None;
    }
    let chosen: Vec<&[f64]> = foreground
        .iter()
        .map(|&cell| points[cell].as_slice())
        .collect();
    let cluster = three_means(&chosen, rng)?;

    let mut heights = [(0.0, 0usize); 3];
    for (&cell, &cluster) in foreground.iter().zip(&cluster) {
        heights[cluster].0 += (cell / columns) as f64;
        heights[cluster].1 += 1;
    }
    let mut order = [0usize, 1, 2];
    let mean = |cluster: usize| heights[cluster].0 / heights[cluster].1 as f64;
    order.sort_by(|&a, &b| mean(a).total_cmp(&mean(b)));
    let mut classes = vec![0u8; cells];
    for (&cell, &cluster) in foreground.iter().zip(&cluster) {
        // The place in the order from the top, plus one for the background.
        classes[cell] = 1 + order
            .iter()
            .position(|&c| c == cluster)
            .map_or(0, |place| place as u8);
    }
    Some(classes)
}

/// The part map on the stored grid of one image; all [`IGNORE`] with confidence 0 if it is skipped.
///
/// At the backbone's own grid it holds the clusters themselves. To another grid they are resampled as probabilities of
/// 0 and 1, the way CLIP's are, and a cell that no cluster fills to `confidence` is ignored.
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

/// The smallest value of the upper of two clusters, with the least sum of squared deviations; none if all are equal.
fn two_means(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let total: f64 = sorted.iter().sum();
    let mut below = 0.0;
    let mut best: Option<(f64, f64)> = None;
    for split in 1..sorted.len() {
        below += sorted[split - 1];
        if sorted[split] == sorted[split - 1] {
            continue; // equal values stay together
        }
        // The sum of squares is fixed, so the least deviation within is the most between the clusters.
        let (low, high) = (split as f64, (sorted.len() - split) as f64);
        let between = below * below / low + (total - below) * (total - below) / high;
        if best.is_none_or(|(most, _)| between > most) {
            best = Some((between, sorted[split]));
        }
    }
    best.map(|(_, threshold)| threshold)
}

/// Cluster of each point, the best of several runs; none with fewer than three different points.
fn three_means(points: &[&[f64]], rng: &mut Rng) -> Option<Vec<usize>> {
    let mut best: Option<(f64, Vec<usize>)> = None;
    for _ in 0..SEEDINGS {
        let centres = seeds(points, rng)?;
        let (inertia, clusters) = lloyd(points, centres);
        if best.as_ref().is_none_or(|(least, _)| inertia < *least) {
            best = Some((inertia, clusters));
        }
    }
    best.map(|(_, clusters)| clusters)
}

/// Three different points, each drawn with a probability that grows with the squared distance to those before it
/// (k-means++, Arthur and Vassilvitskii 2007).
fn seeds(points: &[&[f64]], rng: &mut Rng) -> Option<[Vec<f64>; 3]> {
    let first = points[rng.random_range(0..points.len())];
    let second = draw(points, &[first], rng)?;
    let third = draw(points, &[first, second], rng)?;
    Some([first.to_vec(), second.to_vec(), third.to_vec()])
}

fn draw<'a>(points: &[&'a [f64]], centres: &[&[f64]], rng: &mut Rng) -> Option<&'a [f64]> {
    let weights: Vec<f64> = points
        .iter()
        .map(|point| {
            centres
                .iter()
                .map(|centre| distance(point, centre))
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

/// Lloyd's rounds until no point changes its cluster; returns the sum of squared distances and the clusters, none
/// of which is empty.
fn lloyd(points: &[&[f64]], mut centres: [Vec<f64>; 3]) -> (f64, Vec<usize>) {
    let mut clusters = vec![usize::MAX; points.len()];
    for _ in 0..MOST_ROUNDS {
        let mut nearest: Vec<usize> = points
            .iter()
            .map(|point| {
                let d: [f64; 3] = std::array::from_fn(|i| distance(point, &centres[i]));
                (0..3).fold(0, |best, i| if d[i] < d[best] { i } else { best })
            })
            .collect();
        refill(points, &centres, &mut nearest);
        if nearest == clusters {
            break;
        }
        clusters = nearest;
        for (index, centre) in centres.iter_mut().enumerate() {
            let mut count = 0.0;
            centre.fill(0.0);
            for (point, _) in points
                .iter()
                .zip(&clusters)
                .filter(|&(_, &cluster)| cluster == index)
            {
                centre.iter_mut().zip(*point).for_each(|(sum, x)| *sum += x);
                count += 1.0;
            }
            centre.iter_mut().for_each(|sum| *sum /= count);
        }
    }
    let inertia = points
        .iter()
        .zip(&clusters)
        .map(|(point, &cluster)| distance(point, &centres[cluster]))
        .sum();
    (inertia, clusters)
}

/// Gives every empty cluster the point that is farthest from its centre, out of a cluster that has others.
fn refill(points: &[&[f64]], centres: &[Vec<f64>; 3], clusters: &mut [usize]) {
    for empty in 0..3 {
        let mut counts = [0usize; 3];
        clusters.iter().for_each(|&cluster| counts[cluster] += 1);
        if counts[empty] > 0 {
            continue;
        }
        let farthest = (0..points.len())
            .filter(|&i| counts[clusters[i]] > 1)
            .map(|i| (distance(points[i], &centres[clusters[i]]), i))
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

    /// A map of 6 × 4 cells and 3 channels: a person in three bands over the left three columns, weak features beside.
    fn person() -> (Vec<f32>, Vec<u8>) {
        let mut features = vec![0.0; 3 * 24];
        let mut expected = vec![0; 24];
        for row in 0..6 {
            for column in 0..4 {
                let cell = row * 4 + column;
                let wobble = 0.1 * ((cell * 7 % 5) as f32 - 2.0);
                if column == 3 {
                    features[cell] = 0.3 + 0.1 * wobble;
                } else {
                    let band = row / 2;
                    features[band * 24 + cell] = 4.0 + wobble;
                    expected[cell] = 1 + band as u8;
                }
            }
        }
        (features, expected)
    }

    #[test]
    fn bands_become_head_upper_and_lower() {
        let (features, expected) = person();
        for key in ["a", "b", "c"] {
            assert_eq!(
                clusters(&features, 3, 4, &mut rng_for(0, 0, key)).unwrap(),
                expected
            );
        }
        // At its own grid the map is the clusters; the channels' order does not matter.
        let map = part_map(&features, 3, [6, 4], [6, 4], 0.5, &mut rng_for(0, 0, "a"));
        assert_eq!(map.parts, expected);
        assert!(map.confidence.iter().all(|&c| c == 255));
        let turned: Vec<f32> = features.chunks_exact(24).rev().flatten().copied().collect();
        assert_eq!(
            clusters(&turned, 3, 4, &mut rng_for(0, 0, "a")).unwrap(),
            expected
        );
        // A finer grid repeats it.
        let map = part_map(&features, 3, [6, 4], [12, 8], 0.5, &mut rng_for(0, 0, "a"));
        assert_eq!((map.parts[0], map.parts[95], map.parts[11 * 8]), (1, 0, 3));
    }

    #[test]
    fn a_foreground_of_half_or_less_is_skipped() {
        let (mut features, _) = person();
        // Only rows 0 to 3 of the three columns stay strong: 12 of 24 cells.
        for cell in 16..24 {
            features[2 * 24 + cell] *= 0.02;
        }
        assert_eq!(clusters(&features, 3, 4, &mut rng_for(0, 0, "a")), None);
        let map = part_map(&features, 3, [6, 4], [2, 2], 0.5, &mut rng_for(0, 0, "a"));
        assert_eq!((map.parts, map.confidence), (vec![IGNORE; 4], vec![0; 4]));
    }

    #[test]
    fn degenerate_maps_are_skipped() {
        let mut rng = rng_for(0, 0, "a");
        assert_eq!(clusters(&[1.0; 24], 1, 4, &mut rng), None);
        assert_eq!(clusters(&[f32::NAN; 24], 1, 4, &mut rng), None);
        assert_eq!(clusters(&[1.0], 1, 1, &mut rng), None);
        // A foreground of two different features only.
        let two: Vec<f32> = (0..24)
            .map(|i| if i < 6 { 0.0 } else { 5.0 + (i % 2) as f32 })
            .collect();
        assert_eq!(clusters(&two, 1, 4, &mut rng), None);
    }

    #[test]
    fn two_means_is_the_best_split() {
        assert_eq!(two_means(&[1.0, 9.0, 1.5, 8.0, 2.0]), Some(8.0));
        assert_eq!(two_means(&[3.0, 3.0]), None);
        // By brute force on values without structure.
        let values: Vec<f64> = (0..40).map(|i| ((i * 37 % 101) as f64).sqrt()).collect();
        let cost = |threshold: f64| {
            let deviation = |part: Vec<f64>| {
                let mean = part.iter().sum::<f64>() / part.len().max(1) as f64;
                part.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>()
            };
            let (low, high): (Vec<f64>, Vec<f64>) = values.iter().partition(|&&x| x < threshold);
            deviation(low) + deviation(high)
        };
        let found = two_means(&values).unwrap();
        assert!(values.iter().all(|&x| cost(found) <= cost(x) + 1e-9));
    }

    #[test]
    fn an_empty_cluster_is_refilled() {
        let points: Vec<Vec<f64>> = vec![vec![0.0], vec![0.1], vec![5.0], vec![9.0]];
        let points: Vec<&[f64]> = points.iter().map(Vec::as_slice).collect();
        // The third centre is too far away for any point.
        let (_, clusters) = lloyd(&points, [vec![0.0], vec![6.0], vec![1000.0]]);
        for cluster in 0..3 {
            assert!(clusters.contains(&cluster), "{clusters:?}");
        }
    }
}
