//! Part maps: from cosines between image tokens and part names to a class for each patch position.
//!
//! ```text
//! score[c, i] = max over synonyms t of c of  s · cos(u_i, t)   (+ log π_c(row of i))
//! P[:, i]     = softmax over c
//! P           → resampled to the stored grid, as probabilities
//! label       = argmax over c, or 255 where the largest probability is below the confidence
//! ```
//!
//! The cosines come off the device, a few planes instead of the whole embedding; the rest is plain
//! arithmetic on slices in f32. Planes are row-major, height before width.

use burn::tensor::Tensor;
pub use clasp_data::vocabulary::IGNORE;
use clasp_data::vocabulary::Vocabulary;

use crate::config::LabelConfig;

/// Least weight of a class far from the center of its band, so that the image can overrule the
/// prior. Our choice.
const PRIOR_FLOOR: f32 = 0.01;

/// A part map on the stored grid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartMap {
    /// Class of each position, [rows, columns]; [`IGNORE`] where the confidence is too low.
    pub parts: Vec<u8>,
    /// round(255 · largest probability) of each position, [rows, columns].
    pub confidence: Vec<u8>,
}

/// Turns cosines into part maps; holds what is the same for all images.
#[derive(Debug, Clone)]
pub struct PartMapper {
    classes: usize,
    class_of_synonym: Vec<usize>,
    scale: f32,
    confidence: f32,
    tokens: [usize; 2],
    grid: [usize; 2],
    /// [classes, rows of tokens]
    log_prior: Option<Vec<f32>>,
}

impl PartMapper {
    /// For images of `tokens` rows and columns and the classes of `vocabulary`, whose synonyms come
    /// in the order of `class_of_synonym` (see [`crate::prompts::TextFeatures`]).
    pub fn new(
        vocabulary: &Vocabulary,
        class_of_synonym: &[usize],
        tokens: [usize; 2],
        config: &LabelConfig,
    ) -> Self {
        let classes = vocabulary.parts.len();
        assert!(
            class_of_synonym.iter().all(|&class| class < classes),
            "a synonym's class is not below {classes}: {class_of_synonym:?}"
        );
        Self {
            classes,
            class_of_synonym: class_of_synonym.to_vec(),
            scale: config.part_scale,
            confidence: config.confidence,
            tokens,
            grid: config.grid,
            log_prior: log_prior(vocabulary, config, tokens[0]),
        }
    }

    /// The part map of one image.
    ///
    /// `cosines`: [synonyms, rows · columns of tokens]
    pub fn map(&self, cosines: &[f32]) -> PartMap {
        let tokens = self.tokens[0] * self.tokens[1];
        let mut planes = class_scores(cosines, &self.class_of_synonym, self.classes, self.scale);
        if let Some(prior) = &self.log_prior {
            for (plane, prior) in planes
                .chunks_exact_mut(tokens)
                .zip(prior.chunks_exact(self.tokens[0]))
            {
                for (row, prior) in plane.chunks_exact_mut(self.tokens[1]).zip(prior) {
                    row.iter_mut().for_each(|score| *score += prior);
                }
            }
        }
        softmax_over_planes(&mut planes, tokens);
        label(
            &resample(&planes, self.tokens, self.grid),
            self.grid,
            self.confidence,
        )
    }
}

/// Cosines of every token with every synonym.
///
/// # Shapes
///
/// - `dense`: [batch, embed, rows, columns], of length 1 over `embed`
/// - `synonyms`: [synonyms, embed], rows of length 1
/// - returns [batch, synonyms, rows · columns]
pub fn cosines(dense: Tensor<4>, synonyms: Tensor<2>) -> Tensor<3> {
    let [batch, embed, rows, columns] = dense.dims();
    let [count, _] = synonyms.dims();
    let synonyms = synonyms
        .reshape([1, count, embed])
        .expand([batch, count, embed]);
    synonyms.matmul(dense.reshape([batch, embed, rows * columns]))
}

/// Scores of classes: the largest of their synonyms' cosines, times `scale`.
///
/// `cosines`: [synonyms, tokens]; returns [classes, tokens]
pub fn class_scores(
    cosines: &[f32],
    class_of_synonym: &[usize],
    classes: usize,
    scale: f32,
) -> Vec<f32> {
    let synonyms = class_of_synonym.len().max(1);
    assert_eq!(
        cosines.len() % synonyms,
        0,
        "cosines do not divide into {synonyms} synonyms"
    );
    let tokens = cosines.len() / synonyms;
    let mut scores = vec![f32::NEG_INFINITY; classes * tokens];
    for (cosines, &class) in cosines.chunks_exact(tokens.max(1)).zip(class_of_synonym) {
        let scores = &mut scores[class * tokens..(class + 1) * tokens];
        for (score, &cosine) in scores.iter_mut().zip(cosines) {
            *score = score.max(scale * cosine);
        }
    }
    scores
}

/// Softmax over the first axis of [classes, positions], in place.
pub fn softmax_over_planes(planes: &mut [f32], positions: usize) {
    for position in 0..positions {
        let max = planes
            .iter()
            .skip(position)
            .step_by(positions)
            .copied()
            .fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0;
        for value in planes.iter_mut().skip(position).step_by(positions) {
            *value = (*value - max).exp();
            sum += *value;
        }
        for value in planes.iter_mut().skip(position).step_by(positions) {
            *value /= sum;
        }
    }
}

/// Most probable class of each position, with its probability. Ties go to the lower class.
///
/// `probabilities`: [classes, rows, columns]
pub fn label(probabilities: &[f32], grid: [usize; 2], confidence: f32) -> PartMap {
    let positions = grid[0] * grid[1];
    let mut map = PartMap {
        parts: vec![IGNORE; positions],
        confidence: vec![0; positions],
    };
    for position in 0..positions {
        let mut best = (0usize, f32::NEG_INFINITY);
        for (class, &p) in probabilities
            .iter()
            .skip(position)
            .step_by(positions)
            .enumerate()
        {
            if p > best.1 {
                best = (class, p);
            }
        }
        let (class, p) = best;
        // The cast saturates, and a NaN becomes 0: a broken network shows as a map without
        // confidence.
        map.confidence[position] = (255.0 * p).round() as u8;
        if p >= confidence {
            map.parts[position] = u8::try_from(class).unwrap_or(IGNORE);
        }
    }
    map
}

/// Resamples planes to another grid, each axis by itself: the mean over the covered interval where
/// the axis shrinks, linear interpolation between position centers (clamped at the edges) where it
/// grows. The weights of an output position sum to 1, so probabilities stay probabilities.
///
/// `planes`: [planes, from rows, from columns]; returns [planes, to rows, to columns]
pub fn resample(planes: &[f32], from: [usize; 2], to: [usize; 2]) -> Vec<f32> {
    assert_eq!(
        planes.len() % (from[0] * from[1]),
        0,
        "planes do not divide into positions of {from:?}"
    );
    if from == to {
        return planes.to_vec();
    }
    let (rows, columns) = (taps(from[0], to[0]), taps(from[1], to[1]));
    let mut out = Vec::with_capacity(planes.len() / (from[0] * from[1]) * to[0] * to[1]);
    for plane in planes.chunks_exact(from[0] * from[1]) {
        for row in &rows {
            for column in &columns {
                let mut sum = 0.0;
                for &(y, wy) in row {
                    let line = &plane[y * from[1]..(y + 1) * from[1]];
                    sum += wy * column.iter().map(|&(x, wx)| wx * line[x]).sum::<f32>();
                }
                out.push(sum);
            }
        }
    }
    out
}

/// Input positions and weights of every output position along one axis.
fn taps(from: usize, to: usize) -> Vec<Vec<(usize, f32)>> {
    let step = from as f64 / to as f64;
    (0..to)
        .map(|i| {
            if to < from {
                let (start, end) = (i as f64 * step, (i + 1) as f64 * step);
                (start as usize..from.min(end.ceil() as usize))
                    .map(|j| (j, (end.min((j + 1) as f64) - start.max(j as f64)) / step))
                    .filter(|&(_, weight)| weight > 0.0)
                    .map(|(j, weight)| (j, weight as f32))
                    .collect()
            } else {
                let center = ((i as f64 + 0.5) * step - 0.5).max(0.0);
                let left = (center as usize).min(from - 1);
                let right = (left + 1).min(from - 1);
                let weight = (center - left as f64) as f32;
                vec![(left, 1.0 - weight), (right, weight)]
            }
        })
        .collect()
}

/// log π_c(row) of the vertical prior, [classes, rows]; none if no class has a band.
///
/// π_c(row) is the bell of the class at the row's center (1 for a class without a band), at least
/// [`PRIOR_FLOOR`], over the sum of all classes.
fn log_prior(vocabulary: &Vocabulary, config: &LabelConfig, rows: usize) -> Option<Vec<f32>> {
    if config.vertical_prior.is_empty() {
        return None;
    }
    let bands: Vec<_> = vocabulary
        .parts
        .iter()
        .map(|part| config.vertical_prior.get(&part.name))
        .collect();
    let weight = |class: usize, row: usize| {
        bands[class].map_or(1.0, |band| {
            let y = (row as f32 + 0.5) / rows as f32;
            (-0.5 * ((y - band.center) / band.std).powi(2))
                .exp()
                .max(PRIOR_FLOOR)
        })
    };
    let total = |row: usize| {
        (0..bands.len())
            .map(|class| weight(class, row))
            .sum::<f32>()
    };
    Some(
        (0..bands.len())
            .flat_map(|class| (0..rows).map(move |row| (class, row)))
            .map(|(class, row)| (weight(class, row) / total(row)).ln())
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VerticalBand;

    /// Values that look random, from 0 to 1, without a generator.
    fn noise(count: usize) -> Vec<f32> {
        (0..count)
            .map(|i| ((i as f32 * 12.9898).sin() * 43758.547).fract().abs())
            .collect()
    }

    #[test]
    fn a_class_scores_as_its_best_synonym() {
        // Class 0 has two synonyms, class 1 one; two tokens.
        let cosines = [0.1, 0.5, 0.3, -0.2, 0.2, 0.2];
        assert_eq!(
            class_scores(&cosines, &[0, 0, 1], 2, 10.0),
            [3.0, 5.0, 2.0, 2.0]
        );
    }

    #[test]
    fn resampled_probabilities_sum_to_one() {
        for (from, to) in [
            ([14, 14], [16, 8]),
            ([7, 5], [3, 11]),
            ([1, 1], [16, 8]),
            ([32, 16], [1, 1]),
            ([16, 8], [16, 8]),
        ] {
            let positions = from[0] * from[1];
            let mut planes = noise(5 * positions);
            planes.iter_mut().for_each(|v| *v *= 20.0);
            softmax_over_planes(&mut planes, positions);
            let out = resample(&planes, from, to);
            let positions = to[0] * to[1];
            assert_eq!(out.len(), 5 * positions);
            for position in 0..positions {
                let sum: f32 = out.iter().skip(position).step_by(positions).sum();
                assert!(
                    (sum - 1.0).abs() < 1e-5,
                    "{from:?} to {to:?}, position {position}: {sum}"
                );
                assert!(
                    out.iter()
                        .skip(position)
                        .step_by(positions)
                        .all(|&p| (0.0..=1.0 + 1e-6).contains(&p))
                );
            }
        }
    }

    #[test]
    fn shrinking_is_the_mean_over_area_and_growing_is_linear() {
        assert_eq!(resample(&[1.0, 3.0, 5.0, 7.0], [1, 4], [1, 2]), [2.0, 6.0]);
        // Three positions onto two: the middle one counts half in each.
        let out = resample(&[0.0, 3.0, 6.0], [3, 1], [2, 1]);
        assert!(
            (out[0] - 1.0).abs() < 1e-6 && (out[1] - 5.0).abs() < 1e-6,
            "{out:?}"
        );
        // Half-pixel centers, clamped at the edges.
        assert_eq!(resample(&[0.0, 4.0], [1, 2], [1, 4]), [0.0, 1.0, 3.0, 4.0]);
    }

    #[test]
    fn unsure_cells_are_ignored_and_ties_go_to_the_lower_class() {
        // Two classes, three positions.
        let map = label(&[0.9, 0.45, 0.5, 0.1, 0.55, 0.5], [1, 3], 0.5);
        assert_eq!(map.parts, [0, 1, 0]);
        assert_eq!(map.confidence, [230, 140, 128]);
        assert_eq!(label(&[0.6, 0.4], [1, 1], 0.7).parts, [IGNORE]);
        assert_eq!(label(&[f32::NAN, f32::NAN], [1, 1], 0.0).parts, [IGNORE]);
    }

    #[test]
    fn the_prior_moves_a_class_to_its_band() {
        let vocabulary = Vocabulary::standard().unwrap();
        let head = vocabulary
            .parts
            .iter()
            .position(|part| part.name == "head")
            .unwrap();
        let mut config = LabelConfig {
            grid: [8, 1],
            confidence: 0.0,
            ..LabelConfig::default()
        };
        let classes: Vec<usize> = (0..vocabulary.parts.len()).collect();
        let mapper = |config: &LabelConfig| PartMapper::new(&vocabulary, &classes, [8, 1], config);
        // Only the prior distinguishes the classes.
        let cosines = vec![0.2; classes.len() * 8];
        assert!(
            mapper(&config)
                .map(&cosines)
                .parts
                .iter()
                .all(|&part| part == 0)
        );
        for part in &vocabulary.parts {
            if part.name != "head" {
                config.vertical_prior.insert(
                    part.name.clone(),
                    VerticalBand {
                        center: 0.8,
                        std: 0.2,
                    },
                );
            }
        }
        config.vertical_prior.insert(
            "head".into(),
            VerticalBand {
                center: 0.1,
                std: 0.1,
            },
        );
        let map = mapper(&config).map(&cosines);
        assert_eq!(usize::from(map.parts[0]), head);
        assert_ne!(usize::from(map.parts[7]), head);
        // π sums to 1 over the classes of a row.
        let prior = log_prior(&vocabulary, &config, 8).unwrap();
        for row in 0..8 {
            let sum: f32 = prior.iter().skip(row).step_by(8).map(|log| log.exp()).sum();
            assert!((sum - 1.0).abs() < 1e-5, "row {row}: {sum}");
        }
    }
}
