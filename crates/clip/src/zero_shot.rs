//! Zero-shot scores of a CLIP against ground truth: attributes and part maps of synthetic people,
//! and of photos in the layout of CCP (Clothing Co-Parsing).
//!
//! The labels are those of the labeling run, so this measures the quality of pseudo-labels. Each
//! score is given with that of guessing:
//!
//! * **attributes**: the share of right answers with raw logits, and with logits calibrated over
//!   the scored images (each value's logit minus its mean, over its standard deviation), and the
//!   mean over values of the recall, which does not reward answering the commonest value. Guessing
//!   has a recall of one over the number of values; always answering the commonest value has its
//!   share right;
//! * **AUC** of an attribute: for each value that some images have and others have not, the share
//!   of pairs of one image with the value and one without whose order is right by the value's
//!   probability among the attribute's values (one against the rest; a tie counts half), and the
//!   mean of that over the values. Guessing has 0.5 whatever the values' frequencies, and no bias
//!   for a value changes its order;
//! * **parts**: intersection over union of each class on the stored grid, over all images together,
//!   where the ground truth of a patch position is the class that covers most of it, and positions
//!   that are mostly unknown are ignored. Guessing each position evenly among K classes gives a
//!   class of share p an IoU of `p/K / (p + 1/K − p/K)` = `p / (K·p + 1 − p)`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use clasp_data::image::Rgb;
use clasp_data::layouts::ccp::ccp_parts;
use clasp_data::rng_for;

use clasp_data::vocabulary::Vocabulary;
use serde::{Deserialize, Serialize};

use clasp_label::{ClipLabeler, Labeler};
use clasp_synth::{self as synth, Shot, Style, SynthPerson, majority};

use crate::error::Error;
use crate::photos::{CcpPhotos, attributes_of_tags};

/// Height and width of rendered people.
const RENDER_SIZE: [usize; 2] = [256, 128];

/// Scores on one kind of images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ZeroShotScores {
    /// One for each attribute with ground truth, in the vocabulary's order.
    pub attributes: Vec<ZeroShotAttribute>,
    /// The part maps, where masks are known.
    pub parts: Option<ZeroShotParts>,
}

/// Zero-shot scores of an attribute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ZeroShotAttribute {
    /// The attribute.
    pub name: String,
    /// Images with ground truth.
    pub images: usize,
    /// Area under the ROC curve of each value against the rest, mean over the values; guessing has
    /// 0.5. Absent where all images have the same value.
    pub auc: Option<f64>,
    /// Share of right answers from raw logits.
    pub raw: f64,
    /// Share of right answers from calibrated logits.
    pub calibrated: f64,
    /// Mean recall over the values that occur, from calibrated logits.
    pub recall: f64,
    /// Mean recall of guessing.
    pub chance: f64,
    /// Share of right answers of always giving the commonest value.
    pub commonest: f64,
}

/// Zero-shot scores of part maps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ZeroShotParts {
    /// Images with ground truth.
    pub images: usize,
    /// Mean over the classes that occur in the ground truth.
    pub mean_iou: f64,
    /// The same of guessing.
    pub chance: f64,
    /// Share of patch positions with the right class.
    pub accuracy: f64,
    /// Intersection over union of each class, by name; absent where the class does not occur.
    pub iou: BTreeMap<String, f64>,
}

/// An image with its ground truth.
struct LabeledImage {
    image: Rgb,
    /// Attribute to value, as the vocabulary names them.
    attributes: BTreeMap<String, String>,
    /// Class of each pixel; 255 where unknown.
    parts: Option<Vec<u8>>,
}

/// Scores on `count` synthetic people of a style, whole and upright, drawn from `seed`. Training
/// uses the standard style only.
///
/// # Errors
///
/// The network failed.
pub fn score_synthetic(
    labeler: &ClipLabeler,
    count: usize,
    seed: u64,
    style: Style,
    progress: &mut dyn FnMut(usize),
) -> Result<ZeroShotScores, Error> {
    let people = (0..count).map(|index| {
        let mut rng = rng_for(seed, 0, &format!("clip score {index}"));
        let person = SynthPerson::sample_in(style, &mut rng);
        let shot = Shot::sample_in(style, &person, &mut rng);
        let rendered = synth::render(&person, &shot, RENDER_SIZE[0], RENDER_SIZE[1]);
        Ok(LabeledImage {
            image: rendered.image,
            attributes: rendered
                .attributes
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            parts: Some(rendered.parts),
        })
    });
    score(labeler, people, progress)
}

/// Scores on the `val` split of a folder in the layout of CCP. The ground truth of attributes
/// follows from the tags: lower type and footwear where exactly one kind is tagged, headwear and
/// glasses by the presence of their tags (a tag that was forgotten counts as absent).
///
/// # Errors
///
/// A file is missing or broken, or the network failed.
pub fn score_photos(
    labeler: &ClipLabeler,
    folder: &Path,
    progress: &mut dyn FnMut(usize),
) -> Result<ZeroShotScores, Error> {
    let photos = CcpPhotos::open(folder)?;
    let tagged = photos.tagged("val")?.map(|photo| {
        let photo = photo?;
        Ok(LabeledImage {
            attributes: attributes_of_tags(&photo.tags()),
            image: photo.image,
            parts: None,
        })
    });
    let masked = photos.masked("val")?.map(|photo| {
        let photo = photo?;
        let width = photo.image.width;
        Ok(LabeledImage {
            image: photo.image,
            attributes: BTreeMap::new(),
            parts: Some(ccp_parts(&photo.labels, width, photos.classes())),
        })
    });
    score(labeler, tagged.chain(masked), progress)
}

/// Labels images batch by batch and compares the labels with the ground truth.
fn score(
    labeler: &ClipLabeler,
    images: impl Iterator<Item = Result<LabeledImage, Error>>,
    progress: &mut dyn FnMut(usize),
) -> Result<ZeroShotScores, Error> {
    let meta = labeler.meta();
    let vocabulary = &meta.vocabulary;
    let grid = [meta.rows, meta.columns];
    let mut logits = Vec::new();
    let mut truths = Vec::new();
    let mut confusion = PartConfusion::new(vocabulary.parts.len());
    let mut images = images.peekable();
    while images.peek().is_some() {
        let batch: Vec<LabeledImage> = images
            .by_ref()
            .take(labeler.batch().max(1))
            .collect::<Result<_, _>>()?;
        let keys = vec![""; batch.len()];
        let pixels = batch
            .iter()
            .flat_map(|truth| labeler.prepare(&truth.image))
            .collect();
        for (truth, labels) in batch.into_iter().zip(labeler.label(&keys, pixels)?) {
            if let Some(parts) = &truth.parts {
                let size = [truth.image.height, truth.image.width];
                confusion.count(&position_classes(parts, size, grid), &labels.parts);
            }
            logits.push(labels.attributes);
            truths.push(truth.attributes);
        }
        progress(truths.len());
    }
    Ok(ZeroShotScores {
        attributes: attribute_scores(vocabulary, &logits, &truths),
        parts: confusion.score(vocabulary),
    })
}

/// The class that covers most of each patch position, 255 (ignore index) where most is unknown.
fn position_classes(parts: &[u8], image: [usize; 2], grid: [usize; 2]) -> Vec<u8> {
    let positions = majority(parts, image, grid).into_iter();
    positions.map(|(class, _)| class).collect()
}

/// Pixel counts by true class and predicted class; predictions have one more column for the ignore
/// index.
struct PartConfusion {
    classes: usize,
    images: usize,
    counts: Vec<u64>,
}

impl PartConfusion {
    fn new(classes: usize) -> Self {
        Self {
            classes,
            images: 0,
            counts: vec![0; classes * (classes + 1)],
        }
    }

    fn count(&mut self, truth: &[u8], found: &[u8]) {
        self.images += 1;
        for (&truth, &found) in truth.iter().zip(found) {
            let (truth, found) = (usize::from(truth), usize::from(found));
            if truth < self.classes {
                self.counts[truth * (self.classes + 1) + found.min(self.classes)] += 1;
            }
        }
    }

    fn score(&self, vocabulary: &Vocabulary) -> Option<ZeroShotParts> {
        let count = |truth: usize, found: usize| self.counts[truth * (self.classes + 1) + found];
        let total: u64 = self.counts.iter().sum();
        if total == 0 {
            return None;
        }
        let mut iou = BTreeMap::new();
        let mut chance = 0.0;
        let mut right = 0;
        for class in 0..self.classes {
            let of_truth: u64 = (0..=self.classes).map(|found| count(class, found)).sum();
            let of_found: u64 = (0..self.classes).map(|truth| count(truth, class)).sum();
            let both = count(class, class);
            right += both;
            if of_truth > 0 {
                let share = of_truth as f64 / total as f64;
                chance += share / (self.classes as f64 * share + 1.0 - share);
                let union = (of_truth + of_found - both) as f64;
                iou.insert(vocabulary.parts[class].name.clone(), both as f64 / union);
            }
        }
        Some(ZeroShotParts {
            images: self.images,
            mean_iou: iou.values().sum::<f64>() / iou.len() as f64,
            chance: chance / iou.len() as f64,
            accuracy: right as f64 / total as f64,
            iou,
        })
    }
}

fn attribute_scores(
    vocabulary: &Vocabulary,
    logits: &[Vec<f32>],
    truths: &[BTreeMap<String, String>],
) -> Vec<ZeroShotAttribute> {
    let calibrated = calibrate(logits);
    let mut scores = Vec::new();
    for (attribute, range) in vocabulary.attributes.iter().zip(vocabulary.ranges()) {
        let values = attribute.values.len();
        // Image and true value, where it is known and in the vocabulary.
        let known: Vec<(usize, usize)> = truths
            .iter()
            .enumerate()
            .filter_map(|(image, truth)| {
                let truth = truth.get(&attribute.name)?;
                let value = attribute
                    .values
                    .iter()
                    .position(|value| value.name == *truth)?;
                Some((image, value))
            })
            .collect();
        if known.is_empty() {
            continue;
        }
        let mut totals = vec![0usize; values];
        let mut hits = vec![0usize; values];
        let mut raw = 0;
        for &(image, value) in &known {
            totals[value] += 1;
            raw += usize::from(largest(&logits[image][range.clone()]) == value);
            hits[value] += usize::from(largest(&calibrated[image][range.clone()]) == value);
        }
        let recalls: Vec<f64> = hits
            .iter()
            .zip(&totals)
            .filter(|(_, total)| **total > 0)
            .map(|(hits, total)| *hits as f64 / *total as f64)
            .collect();
        let share = |count: usize| count as f64 / known.len() as f64;
        scores.push(ZeroShotAttribute {
            name: attribute.name.clone(),
            images: known.len(),
            auc: attribute_auc(logits, &range, &known),
            raw: share(raw),
            calibrated: share(hits.iter().sum()),
            recall: recalls.iter().sum::<f64>() / recalls.len() as f64,
            chance: 1.0 / values as f64,
            commonest: share(totals.iter().copied().max().unwrap_or(0)),
        });
    }
    scores
}

/// Mean over values of the area under the ROC curve of one value against the rest, by the value's
/// log-odds within the attribute: its logit minus the log of the sum of the others' exponentials.
/// `None` where no value has both kinds of images.
///
/// `logits`: [images][values of all attributes]; `range`: the attribute's; `known`: image and true
/// value.
fn attribute_auc(
    logits: &[Vec<f32>],
    range: &Range<usize>,
    known: &[(usize, usize)],
) -> Option<f64> {
    let areas: Vec<f64> = (0..range.len())
        .filter_map(|value| {
            let scores = known.iter().map(|&(image, truth)| {
                let row = &logits[image][range.clone()];
                let others = || {
                    (0..row.len())
                        .filter(|o| *o != value)
                        .map(|o| f64::from(row[o]))
                };
                let most = others().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = others().map(|x| (x - most).exp()).sum();
                (f64::from(row[value]) - most - sum.ln(), truth == value)
            });
            auc(scores.collect())
        })
        .collect();
    (!areas.is_empty()).then(|| areas.iter().sum::<f64>() / areas.len() as f64)
}

/// Share of pairs of a positive and a negative in which the positive has the higher score, ties
/// counting half; `None` without positives or without negatives. Each item is a score and whether
/// it is positive.
fn auc(mut scores: Vec<(f64, bool)>) -> Option<f64> {
    scores.sort_by(|a, b| a.0.total_cmp(&b.0));
    let positives = scores.iter().filter(|(_, positive)| *positive).count();
    let negatives = scores.len() - positives;
    if positives == 0 || negatives == 0 {
        return None;
    }
    let (mut below, mut won) = (0usize, 0.0);
    for equal in scores.chunk_by(|a, b| a.0 == b.0) {
        let here = equal.iter().filter(|(_, positive)| *positive).count();
        let others = equal.len() - here;
        won += here as f64 * (below as f64 + 0.5 * others as f64);
        below += others;
    }
    Some(won / (positives as f64 * negatives as f64))
}

/// Each logit minus its mean over the images, over its standard deviation.
fn calibrate(logits: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let count = logits.len().max(1) as f64;
    let values = logits.first().map_or(0, Vec::len);
    let moments: Vec<(f64, f64)> = (0..values)
        .map(|value| {
            let column = || logits.iter().map(move |row| f64::from(row[value]));
            let mean = column().sum::<f64>() / count;
            let variance = column().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
            (mean, variance.sqrt().max(1e-6))
        })
        .collect();
    logits
        .iter()
        .map(|row| {
            let scaled = row.iter().zip(&moments);
            scaled
                .map(|(x, (mean, deviation))| ((f64::from(*x) - mean) / deviation) as f32)
                .collect()
        })
        .collect()
}

/// Index of the largest number; the first of equals.
fn largest(values: &[f32]) -> usize {
    let mut best = 0;
    for (place, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = place;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{labeler, vocabulary};
    use clasp_label::LabelConfig;

    #[test]
    fn a_position_has_the_class_that_covers_most_of_it() {
        let parts = [
            1, 1, 2, 2, //
            1, 0, 2, 255, //
            3, 255, 0, 0, //
            255, 255, 0, 4,
        ];
        assert_eq!(position_classes(&parts, [4, 4], [2, 2]), [1, 2, 255, 0]);
        assert_eq!(position_classes(&[5], [1, 1], [2, 1]), [5, 255]);
    }

    #[test]
    fn intersection_over_union_by_hand() {
        let vocabulary = vocabulary();
        let mut confusion = PartConfusion::new(vocabulary.parts.len());
        assert_eq!(confusion.score(&vocabulary), None);
        // Class 2 does not occur; the unknown position does not count; "not sure" is wrong.
        confusion.count(&[0, 0, 0, 1, 1, 255], &[0, 0, 1, 1, 255, 0]);
        let score = confusion.score(&vocabulary).unwrap();
        let name = |class: usize| &vocabulary.parts[class].name;
        assert_eq!(score.iou.len(), 2);
        assert!((score.iou[name(0)] - 2.0 / 3.0).abs() < 1e-12);
        assert!((score.iou[name(1)] - 1.0 / 3.0).abs() < 1e-12);
        assert!((score.mean_iou - 0.5).abs() < 1e-12);
        assert!((score.accuracy - 0.6).abs() < 1e-12);
        let guess = |share: f64| share / (3.0 * share + 1.0 - share);
        assert!((score.chance - (guess(0.6) + guess(0.4)) / 2.0).abs() < 1e-12);
    }

    #[test]
    fn calibration_undoes_a_value_that_always_wins() {
        let vocabulary = vocabulary();
        let attribute = &vocabulary.attributes[0];
        let range = vocabulary.ranges()[0].clone();
        let mut logits = Vec::new();
        let mut truths = Vec::new();
        for image in 0..10 {
            let value = usize::from(image % 2 == 0);
            let mut row = vec![0.0f32; vocabulary.logits()];
            // The first value is far above, whatever the image; only the differences separate
            // images.
            row[range.start] = 9.0 + if value == 0 { 0.5 } else { 0.0 };
            row[range.start + 1] = if value == 1 { 0.5 } else { 0.0 };
            for other in range.clone().skip(2) {
                row[other] = -9.0 + image as f32 * 1e-3 - if image % 2 == 0 { 1.0 } else { 0.0 };
            }
            logits.push(row);
            truths.push(BTreeMap::from([(
                attribute.name.clone(),
                attribute.values[value].name.clone(),
            )]));
        }
        let scores = attribute_scores(&vocabulary, &logits, &truths);
        assert_eq!(scores.len(), 1);
        assert_eq!(
            (scores[0].images, scores[0].raw, scores[0].commonest),
            (10, 0.5, 0.5)
        );
        assert!(scores[0].calibrated > 0.5, "{:?}", scores[0]);
        assert_eq!(scores[0].chance, 1.0 / attribute.values.len() as f64);
    }

    #[test]
    fn auc_by_hand() {
        assert_eq!(auc(vec![(1.0, true), (2.0, true)]), None);
        let scores = vec![(0.9, true), (0.8, false), (0.7, true), (0.1, false)];
        assert_eq!(auc(scores), Some(0.75));
        // Equal scores count half.
        assert_eq!(
            auc(vec![(1.0, true), (1.0, false), (1.0, false)]),
            Some(0.5)
        );
        // Two values: the difference decides, not the height that both share.
        let logits = [[9.0, 8.0], [3.0, 1.0], [5.0, 6.0], [0.0, 0.0]].map(|row| row.to_vec());
        let known = [(0, 0), (1, 0), (2, 1), (3, 1)];
        assert_eq!(attribute_auc(&logits, &(0..2), &known), Some(1.0));
        assert_eq!(
            attribute_auc(&logits, &(0..2), &[(0, 0), (1, 1), (2, 0)]),
            Some(0.0)
        );
        assert_eq!(attribute_auc(&logits, &(0..2), &known[..2]), None);
    }

    #[test]
    fn scores_of_synthetic_people_are_reproducible() {
        let labeler = labeler(&LabelConfig::default());
        let mut seen = 0;
        let of = |style, progress: &mut dyn FnMut(usize)| {
            score_synthetic(&labeler, 5, 7, style, progress).unwrap()
        };
        let score = of(Style::Standard, &mut |done| seen = done);
        assert_eq!(seen, 5);
        assert_eq!(score, of(Style::Standard, &mut |_| {}));
        assert_ne!(score, of(Style::HeldOut, &mut |_| {}));
        let parts = score.parts.unwrap();
        assert_eq!(parts.images, 5);
        assert!(parts.mean_iou >= 0.0 && parts.chance > 0.0);
    }
}
