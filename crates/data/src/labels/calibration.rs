//! From raw logits to targets: what is unusual in this corpus, rather than what CLIP likes to say.
//!
//! CLIP answers most questions the same way for nearly everybody. A logit therefore counts by
//! how far it lies from its mean over the corpus, in standard deviations. Both are taken from
//! the stored logits, so they can be made again without running CLIP.

use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::{LabelError, Store, store};
use crate::vocabulary::{AttributeKind, Vocabulary};

/// A logit with less spread than this over the corpus says nothing about anybody: it counts as
/// lying on its mean.
const LEAST_STD: f32 = 1e-6;

/// Mean and spread of every attribute logit over a corpus, `_calibration.json` in the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Digest of the vocabulary whose values these are.
    pub vocabulary: String,
    /// Number of images.
    pub count: u64,
    /// Mean of each value's logit.
    pub mean: Vec<f32>,
    /// Standard deviation of each value's logit, with the number of images as divisor.
    pub std: Vec<f32>,
}

impl Calibration {
    /// The calibration of a store in memory.
    ///
    /// # Errors
    ///
    /// A store without images: there is no mean.
    pub fn of_store(store: &Store) -> Result<Self, LabelError> {
        let mut moments = Moments::new(store.meta.vocabulary.logits());
        store.iter().for_each(|row| moments.add(row.attributes));
        moments
            .finish(&store.meta.vocabulary)
            .ok_or_else(|| LabelError::Calibration {
                path: PathBuf::from("calibration"),
                problem: "expected labels of at least one image, found none".into(),
            })
    }

    /// The calibration of a folder of labels, holding one file at a time.
    ///
    /// # Errors
    ///
    /// No label file, a damaged one, files made in different ways, or no image in any of them.
    pub fn of_folder(folder: &Path) -> Result<Self, LabelError> {
        let empty = || LabelError::Empty {
            folder: folder.to_owned(),
        };
        let paths = store::files(folder)?;
        let first_path = paths.first().ok_or_else(empty)?;
        let first = store::read(first_path)?;
        let logits = first.meta.vocabulary.logits();
        let mut moments = Moments::new(logits);
        let mut add = |attributes: &[f32]| {
            // Without attributes there is nothing to add, and no chunks of size 0.
            attributes
                .chunks_exact(logits.max(1))
                .for_each(|row| moments.add(row));
        };
        add(&first.columns.attributes);
        let mut count = first.columns.keys.len();
        for path in &paths[1..] {
            let shard = store::read(path)?;
            first.meta.check_same(first_path, &shard.meta, path)?;
            add(&shard.columns.attributes);
            count += shard.columns.keys.len();
        }
        moments.count = count as u64;
        moments.finish(&first.meta.vocabulary).ok_or_else(empty)
    }

    /// Where the calibration of a store lies.
    pub fn path(folder: &Path) -> PathBuf {
        folder.join("_calibration.json")
    }

    /// Writes `_calibration.json` into the store's folder, whole or not at all.
    ///
    /// # Errors
    ///
    /// The file system refuses; the error names the file.
    pub fn write(&self, folder: &Path) -> Result<PathBuf, LabelError> {
        let path = Self::path(folder);
        crate::atomic_write(&path, |out| {
            serde_json::to_writer_pretty(&mut *out, self)?;
            out.write_all(b"\n")
        })?;
        Ok(path)
    }

    /// Reads `_calibration.json` and checks that it belongs to `vocabulary`.
    ///
    /// # Errors
    ///
    /// No such file, another vocabulary, a wrong number of values, or numbers that are no means
    /// and deviations.
    pub fn read(folder: &Path, vocabulary: &Vocabulary) -> Result<Self, LabelError> {
        let path = Self::path(folder);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(LabelError::NoCalibration { path });
            }
            result => result?,
        };
        let problem = |problem: String| LabelError::Calibration {
            path: path.clone(),
            problem,
        };
        let calibration: Self =
            serde_json::from_str(&text).map_err(|error| problem(error.to_string()))?;
        let (expected, found) = (vocabulary.digest(), &calibration.vocabulary);
        if *found != expected {
            return Err(problem(format!(
                "expected the calibration of vocabulary {expected}, found that of {found}"
            )));
        }
        for (name, values, least) in [
            ("mean", &calibration.mean, f32::MIN),
            ("std", &calibration.std, 0.0),
        ] {
            if values.len() != vocabulary.logits() {
                return Err(problem(format!(
                    "{name}: expected {} values, found {}",
                    vocabulary.logits(),
                    values.len()
                )));
            }
            if let Some(value) = values
                .iter()
                .find(|value| !value.is_finite() || **value < least)
            {
                return Err(problem(format!("{name}: found {value}")));
            }
        }
        Ok(calibration)
    }
}

/// Running mean and sum of squared deviations (Welford), one of each for every logit: one pass,
/// and no loss of digits where the mean is large against the spread.
struct Moments {
    count: u64,
    mean: Vec<f64>,
    squares: Vec<f64>,
}

impl Moments {
    fn new(logits: usize) -> Self {
        Self {
            count: 0,
            mean: vec![0.0; logits],
            squares: vec![0.0; logits],
        }
    }

    fn add(&mut self, logits: &[f32]) {
        self.count += 1;
        let count = self.count as f64;
        for ((mean, squares), &logit) in self.mean.iter_mut().zip(&mut self.squares).zip(logits) {
            let before = f64::from(logit) - *mean;
            *mean += before / count;
            *squares += before * (f64::from(logit) - *mean);
        }
    }

    fn finish(self, vocabulary: &Vocabulary) -> Option<Calibration> {
        let count = self.count;
        (count > 0).then(|| Calibration {
            vocabulary: vocabulary.digest(),
            count,
            mean: self.mean.iter().map(|&mean| mean as f32).collect(),
            std: self
                .squares
                .iter()
                .map(|&squares| (squares / count as f64).sqrt() as f32)
                .collect(),
        })
    }
}

/// What the attribute head learns from one image.
#[derive(Clone, Debug, PartialEq)]
pub struct AttributeTargets {
    /// One probability for each value of the vocabulary; those of an attribute sum to 1. A
    /// pair's are `[1 - p, p]`.
    pub target: Vec<f32>,
    /// For each attribute, whether its target counts: true = it does, false = it is masked.
    pub mask: Vec<bool>,
}

/// Targets of one image from its raw logits.
///
/// Each logit, less its mean and over its standard deviation in the corpus, gives a score; a
/// group's target is the softmax of its scores at temperature 1, a pair's the sigmoid of yes
/// less no, which is the same.
///
/// A pair is masked where its p lies strictly between `low` and `high`: too close to call. A
/// group is judged by its best value against its second, p1 / (p1 + p2), which for two values
/// is the same rule. The share of the best value alone would not do for large groups: of eleven
/// colours a clear winner may have 0.4, and a target without any winner 0.15. (The rule for
/// groups is this project's choice.)
///
/// # Panics
///
/// Where the logits, the calibration and the vocabulary differ in their number of values.
pub fn attribute_targets(
    logits: &[f32],
    vocabulary: &Vocabulary,
    calibration: &Calibration,
    low: f32,
    high: f32,
) -> AttributeTargets {
    let expected = vocabulary.logits();
    assert_eq!(logits.len(), expected, "logits and the vocabulary's values");
    assert_eq!(
        calibration.mean.len(),
        expected,
        "calibrated means and the vocabulary's values"
    );
    assert_eq!(
        calibration.std.len(),
        expected,
        "calibrated deviations and the vocabulary's values"
    );
    let score = |i: usize| {
        let (mean, std) = (calibration.mean[i], calibration.std[i]);
        if std < LEAST_STD {
            0.0
        } else {
            (logits[i] - mean) / std
        }
    };
    let mut target: Vec<f32> = (0..expected).map(score).collect();
    let mut mask = Vec::with_capacity(vocabulary.attributes.len());
    for (attribute, range) in vocabulary.attributes.iter().zip(vocabulary.ranges()) {
        let probabilities = &mut target[range];
        softmax(probabilities);
        let certainty = match attribute.kind {
            AttributeKind::Pair => probabilities[1],
            AttributeKind::Group => best_against_second(probabilities),
        };
        mask.push(!(low < certainty && certainty < high));
    }
    AttributeTargets { target, mask }
}

fn softmax(scores: &mut [f32]) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores
        .iter_mut()
        .for_each(|score| *score = (*score - largest).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
}

fn best_against_second(probabilities: &[f32]) -> f32 {
    let (best, second) = probabilities
        .iter()
        .fold((0.0_f32, 0.0_f32), |(best, second), &p| {
            if p > best {
                (p, best)
            } else {
                (best, second.max(p))
            }
        });
    best / (best + second)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vocabulary::{Attribute, Value};

    /// A group of three, then a pair.
    fn vocabulary() -> Vocabulary {
        let value = |name: &str| Value {
            name: name.into(),
            prompts: vec![name.into()],
        };
        let attribute = |name: &str, kind, values: &[&str]| Attribute {
            name: name.into(),
            kind,
            values: values.iter().map(|name| value(name)).collect(),
        };
        Vocabulary {
            attributes: vec![
                attribute("age", AttributeKind::Group, &["child", "adult", "older"]),
                attribute("glasses", AttributeKind::Pair, &["no", "yes"]),
            ],
            ..Vocabulary::kmeans()
        }
    }

    fn plain(vocabulary: &Vocabulary) -> Calibration {
        let logits = vocabulary.logits();
        Calibration {
            vocabulary: vocabulary.digest(),
            count: 1,
            mean: vec![0.0; logits],
            std: vec![1.0; logits],
        }
    }

    #[test]
    fn moments_equal_two_passes_where_the_mean_is_large() {
        let values = [1000.0_f32, 1000.5, 1001.0, 999.5, 1000.25];
        let mut moments = Moments::new(1);
        values.iter().for_each(|&value| moments.add(&[value]));
        let calibration = moments.finish(&vocabulary()).unwrap();
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / 5.0;
        let variance = values
            .iter()
            .map(|&v| (f64::from(v) - mean).powi(2))
            .sum::<f64>()
            / 5.0;
        assert_eq!(calibration.mean[0], mean as f32);
        assert!((f64::from(calibration.std[0]) - variance.sqrt()).abs() < 1e-7);
        assert_eq!(calibration.count, 5);
    }

    #[test]
    fn targets_by_hand() {
        let vocabulary = vocabulary();
        let mut calibration = plain(&vocabulary);
        calibration.mean = vec![20.0, 30.0, 10.0, 5.0, 7.0];
        calibration.std = vec![2.0, 1.0, 4.0, 1.0, 2.0];
        // Scores 1, -1, 0 and 0, 1.
        let targets = attribute_targets(
            &[22.0, 29.0, 10.0, 5.0, 9.0],
            &vocabulary,
            &calibration,
            0.35,
            0.65,
        );
        let e = std::f32::consts::E;
        let sum = e + 1.0 / e + 1.0;
        let yes = e / (1.0 + e);
        for (found, expected) in
            targets
                .target
                .iter()
                .zip([e / sum, 1.0 / e / sum, 1.0 / sum, 1.0 - yes, yes])
        {
            assert!(
                (found - expected).abs() < 1e-6,
                "expected {expected}, found {found}"
            );
        }
        // e : 1 is above 0.65 : 0.35 in both.
        assert_eq!(targets.mask, [true, true]);
    }

    #[test]
    fn close_calls_are_masked() {
        let vocabulary = vocabulary();
        let mask = |logits: [f32; 5]| {
            attribute_targets(&logits, &vocabulary, &plain(&vocabulary), 0.35, 0.65).mask
        };
        // ln(0.65 / 0.35) = 0.619: below it a call is too close, on either side of a pair.
        assert_eq!(mask([0.6, 0.0, -5.0, 0.0, 0.6]), [false, false]);
        assert_eq!(mask([0.64, 0.0, -5.0, 0.0, 0.64]), [true, true]);
        assert_eq!(mask([0.0, 0.0, 0.64, 0.64, 0.0]), [true, true]);
        assert_eq!(mask([1.0, 1.0, 0.0, 0.6, 0.0]), [false, false]);
    }

    #[test]
    fn a_logit_that_never_varies_says_nothing() {
        let vocabulary = vocabulary();
        let mut calibration = plain(&vocabulary);
        calibration.std = vec![0.0; 5];
        let targets = attribute_targets(
            &[1e9, -1e9, 3.0, 0.0, 1e9],
            &vocabulary,
            &calibration,
            0.35,
            0.65,
        );
        assert_eq!(&targets.target[3..], [0.5, 0.5]);
        assert_eq!(targets.mask, [false, false]);
    }

    #[test]
    fn a_calibration_is_refused_for_another_vocabulary_or_length() {
        let folder = tempfile::tempdir().unwrap();
        let vocabulary = vocabulary();
        let error = Calibration::read(folder.path(), &vocabulary).unwrap_err();
        assert!(matches!(error, LabelError::NoCalibration { .. }), "{error}");

        let calibration = Calibration {
            mean: vec![0.1, 1e-8, 3.0, -7.25, 1e8],
            ..plain(&vocabulary)
        };
        calibration.write(folder.path()).unwrap();
        assert_eq!(
            Calibration::read(folder.path(), &vocabulary).unwrap(),
            calibration
        );

        let error = Calibration::read(folder.path(), &Vocabulary::kmeans())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&vocabulary.digest()) && error.contains("hint"),
            "{error}"
        );

        let cases: [(fn(&mut Calibration), &str); 3] = [
            (|c| c.mean.truncate(4), "mean: expected 5 values, found 4"),
            (|c| c.std.push(1.0), "std: expected 5 values, found 6"),
            (|c| c.std[0] = -1.0, "std: found -1"),
        ];
        for (damage, expected) in cases {
            let mut broken = calibration.clone();
            damage(&mut broken);
            broken.write(folder.path()).unwrap();
            let error = Calibration::read(folder.path(), &vocabulary)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(expected),
                "expected {expected:?} in {error:?}"
            );
        }
        fs::write(Calibration::path(folder.path()), "{\"mean\":").unwrap();
        assert!(Calibration::read(folder.path(), &vocabulary).is_err());
    }

    proptest! {
        #[test]
        fn targets_are_probabilities(logits in prop::collection::vec(-1e4_f32..1e4, 5), low in 0.0_f32..0.5) {
            let vocabulary = vocabulary();
            let targets = attribute_targets(&logits, &vocabulary, &plain(&vocabulary), low, 1.0 - low);
            for range in vocabulary.ranges() {
                let values = &targets.target[range];
                prop_assert!(values.iter().all(|p| (0.0..=1.0).contains(p)));
                prop_assert!((values.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            }
            prop_assert_eq!(targets.mask.len(), 2);
        }

        #[test]
        fn a_wider_band_masks_no_less(logits in prop::collection::vec(-3.0_f32..3.0, 5), low in 0.0_f32..0.4) {
            let vocabulary = vocabulary();
            let mask = |low: f32| attribute_targets(&logits, &vocabulary, &plain(&vocabulary), low, 1.0 - low).mask;
            for (wide, narrow) in mask(low).into_iter().zip(mask(low + 0.1)) {
                prop_assert!(narrow || !wide);
            }
        }
    }
}
