//! From stored logits to attribute targets.
//!
//! CLIP prefers the same value of most attributes for nearly all images, so the mean of a logit
//! over all images is subtracted from it. It is not divided by its standard deviation: most of that
//! is an offset which all values of an attribute share in one image, and which cancels in the
//! softmax. One temperature τ for the whole store turns differences into probabilities:
//!
//! ```text
//! target = softmax((logit − mean of the value over all images) / τ)    in a group
//! target = sigmoid((yes − its mean − no + its mean) / τ)               in a pair, which is the same
//! ```
//!
//! [`Calibration`] holds statistics of the stored logits only. Everything that is
//! a choice ([`AttributeConfig`]) is applied when targets are made ([`AttributeRule`]), so neither
//! labels nor statistics have to be made again for another choice.

use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::corrections::CorrectedAttribute;
use super::error::LabelError;
use super::meta::METHOD_TRUTH;
use super::row::LabelRef;
use super::store::{self, Store};
use crate::vocabulary::{AttributeKind, Vocabulary};

/// Intervals between the stored quantiles of a margin: percentiles.
const INTERVALS: usize = 100;

/// Halvings of the interval in which the temperature is searched, on a logarithmic scale.
const HALVINGS: usize = 60;

/// Statistics of the attribute logits of a store, `_calibration.json` in the store.
///
/// With l the logit of value v of an attribute with K values in image i, the residual is
/// r_iv = (l_iv − mean_u l_iu) − mean over images of the same: the image's offset is subtracted,
/// then the mean over all images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// Digest of the vocabulary whose values these are.
    pub vocabulary: String,
    /// Number of images.
    pub count: u64,
    /// Whether the logits are log-probabilities of the truth (up to a constant): they are used as
    /// they are, with no mean subtracted and, unless a temperature is given, at temperature 1.
    pub log_probabilities: bool,
    /// Mean of each value's logit; `[values]`.
    pub mean: Vec<f32>,
    /// Standard deviation of each attribute's residuals over images and values, in units of
    /// logits; `[attributes]`.
    pub spread: Vec<f32>,
    /// Percentiles 0 to 100 over all images of each attribute's margin, in units of logits:
    /// best minus second-best centered logit in a group, yes minus no in a pair;
    /// `[attributes, 101]`.
    pub margins: Vec<Vec<f32>>,
}

/// Calls `each` with the attribute logits of every image of one label file after the other.
type Visit<'a> = dyn FnMut(&mut dyn FnMut(&[f32])) -> Result<(), LabelError> + 'a;

impl Calibration {
    /// The calibration of a store in memory.
    ///
    /// # Errors
    ///
    /// A store without images: there is no mean.
    pub fn of_store(store: &Store) -> Result<Self, LabelError> {
        let mut visit = |each: &mut dyn FnMut(&[f32])| {
            store.iter().for_each(|row| each(row.values.attributes));
            Ok(())
        };
        let meta = &store.meta;
        Self::of_rows(&meta.vocabulary, meta.method == METHOD_TRUTH, &mut visit)?.ok_or_else(|| {
            LabelError::Calibration {
                path: PathBuf::from("calibration"),
                problem: "expected labels of at least one image, found none".into(),
            }
        })
    }

    /// The calibration of a folder of labels. Two passes over the files, holding one at a time,
    /// and one margin for each attribute of each image.
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
        let meta = store::read(first_path)?.meta;
        let mut visit = |each: &mut dyn FnMut(&[f32])| {
            for path in &paths {
                let shard = store::read(path)?;
                meta.check_same(first_path, &shard.meta, path)?;
                for row in 0..shard.columns.keys.len() {
                    each(shard.columns.row(row, &meta).values.attributes);
                }
            }
            Ok(())
        };
        Self::of_rows(&meta.vocabulary, meta.method == METHOD_TRUTH, &mut visit)?.ok_or_else(empty)
    }

    /// Statistics of the rows that `visit` gives, twice the same; none without a row.
    fn of_rows(
        vocabulary: &Vocabulary,
        log_probabilities: bool,
        visit: &mut Visit<'_>,
    ) -> Result<Option<Self>, LabelError> {
        let ranges = vocabulary.ranges();
        let logits = vocabulary.logits();
        let (mut raw, mut residual) = (LogitMoments::new(logits), LogitMoments::new(logits));
        let mut centered = vec![0.0; logits];
        visit(&mut |row| {
            raw.add(row);
            for range in &ranges {
                let group = &row[range.clone()];
                let offset = group.iter().map(|&x| f64::from(x)).sum::<f64>() / group.len() as f64;
                for (out, &x) in centered[range.clone()].iter_mut().zip(group) {
                    *out = (f64::from(x) - offset) as f32;
                }
            }
            residual.add(&centered);
        })?;
        if raw.count == 0 {
            return Ok(None);
        }
        let mean: Vec<f32> = raw.mean.iter().map(|&mean| mean as f32).collect();
        let spread = ranges.iter().map(|range| {
            let squares: f64 = residual.squares[range.clone()].iter().sum();
            (squares / (raw.count * range.len() as u64) as f64).sqrt() as f32
        });
        let spread = spread.collect();
        let mut margins: Vec<Vec<f32>> = vec![Vec::new(); ranges.len()];
        visit(&mut |row| {
            let score = |i: usize| row[i] - if log_probabilities { 0.0 } else { mean[i] };
            for ((attribute, range), margins) in
                (vocabulary.attributes.iter().zip(&ranges)).zip(&mut margins)
            {
                margins.push(margin(attribute.kind, range.clone().map(score)));
            }
        })?;
        Ok(Some(Self {
            vocabulary: vocabulary.digest(),
            count: raw.count,
            log_probabilities,
            mean,
            spread,
            margins: margins.into_iter().map(percentiles).collect(),
        }))
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
            serde_json::to_writer(&mut *out, self)?;
            out.write_all(b"\n")
        })?;
        Ok(path)
    }

    /// Reads `_calibration.json` and checks that it belongs to `vocabulary`.
    ///
    /// # Errors
    ///
    /// No such file, one of an older form, another vocabulary, a wrong number of values, or
    /// numbers that are no means, deviations and percentiles.
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
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| problem(error.to_string()))?;
        if value.get("std").is_some() && value.get("spread").is_none() {
            return Err(problem(
                "expected the spread and the margins of each attribute, found the older form with \
                 a standard deviation of each value"
                    .into(),
            ));
        }
        let calibration: Self =
            serde_json::from_value(value).map_err(|error| problem(error.to_string()))?;
        let (expected, found) = (vocabulary.digest(), &calibration.vocabulary);
        if *found != expected {
            return Err(problem(format!(
                "expected the calibration of vocabulary {expected}, found that of {found}"
            )));
        }
        calibration.check(vocabulary).map_err(problem)?;
        Ok(calibration)
    }

    /// That in the folder of a store or, if there is none, the one of its logits.
    ///
    /// # Errors
    ///
    /// As [`Calibration::read`] of one that is there, and [`Calibration::of_store`].
    pub fn read_or_of_store(folder: &Path, store: &Store) -> Result<Self, LabelError> {
        match Self::read(folder, &store.meta.vocabulary) {
            Err(LabelError::NoCalibration { .. }) => Self::of_store(store),
            calibration => calibration,
        }
    }

    /// Names what cannot be statistics of `vocabulary`.
    fn check(&self, vocabulary: &Vocabulary) -> Result<(), String> {
        let attributes = vocabulary.attributes.len();
        let lengths = [
            ("mean", self.mean.len(), vocabulary.logits()),
            ("spread", self.spread.len(), attributes),
            ("margins", self.margins.len(), attributes),
        ];
        for (name, found, expected) in lengths {
            if found != expected {
                return Err(format!("{name}: expected {expected} values, found {found}"));
            }
        }
        let not =
            |values: &[f32], good: fn(f32) -> bool| values.iter().copied().find(|&x| !good(x));
        if let Some(value) = not(&self.mean, f32::is_finite) {
            return Err(format!("mean: expected finite numbers, found {value}"));
        }
        if let Some(value) = not(&self.spread, |x| x.is_finite() && x >= 0.0) {
            return Err(format!("spread: expected numbers from 0 up, found {value}"));
        }
        for margins in &self.margins {
            let ordered = margins.windows(2).all(|pair| pair[0] <= pair[1]);
            if margins.len() != INTERVALS + 1 || !ordered || margins.iter().any(|x| !x.is_finite())
            {
                return Err(format!(
                    "margins: expected {} ascending numbers for each attribute, found {margins:?}",
                    INTERVALS + 1
                ));
            }
        }
        Ok(())
    }
}

/// Running mean and sum of squared deviations (Welford), one of each for every logit: one pass,
/// and no loss of digits where the mean is large against the deviation.
struct LogitMoments {
    count: u64,
    mean: Vec<f64>,
    squares: Vec<f64>,
}

impl LogitMoments {
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
}

/// Best minus second-best score in a group, yes minus no in a pair.
fn margin(kind: AttributeKind, scores: impl Iterator<Item = f32>) -> f32 {
    match kind {
        AttributeKind::Pair => scores.fold(0.0, |no, score| score - no),
        AttributeKind::Group => {
            let lowest = f32::NEG_INFINITY;
            let (best, second) = scores.fold((lowest, lowest), |(best, second), score| {
                if score > best {
                    (score, best)
                } else {
                    (best, second.max(score))
                }
            });
            if second == lowest { 0.0 } else { best - second }
        }
    }
}

/// Percentiles 0 to 100 by linear interpolation between order statistics; all 0 of nothing.
fn percentiles(mut values: Vec<f32>) -> Vec<f32> {
    values.sort_by(f32::total_cmp);
    let last = values.len().saturating_sub(1);
    (0..=INTERVALS)
        .map(|i| {
            let place = (last * i) as f64 / INTERVALS as f64;
            let (low, part) = (place as usize, place.fract() as f32);
            match (values.get(low), values.get((low + 1).min(last))) {
                (Some(a), Some(b)) => a + part * (b - a),
                _ => 0.0,
            }
        })
        .collect()
}

/// Share of a distribution, given by its percentiles, that lies at `limit` or above.
fn share_from(percentiles: &[f32], limit: f32) -> f64 {
    let below = percentiles.iter().filter(|&&x| x < limit).count();
    match (
        below.checked_sub(1).map(|i| percentiles[i]),
        percentiles.get(below),
    ) {
        (None, _) => 1.0,
        (_, None) => 0.0,
        (Some(low), Some(&high)) => {
            let part = f64::from(limit - low) / f64::from(high - low);
            1.0 - (below as f64 - 1.0 + part) / INTERVALS as f64
        }
    }
}

/// How groups weigh in the mean over the attributes of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GroupWeights {
    /// By their spread: what varies more from image to image is likelier to be seen.
    Spread,
    /// All the same.
    Equal,
}

/// How logits become targets.
#[derive(Clone, Debug, PartialEq)]
pub struct AttributeConfig {
    /// Without a `temperature`: share of the images that are not masked in the attribute of the
    /// largest spread. Of a normally distributed margin, 0.8 masks what lies within a quarter of
    /// a standard deviation of 0, and gives an image at one standard deviation a target of 0.92
    /// against 0.08: most images have a target that is neither soft nor certain.
    pub confident_share: f64,
    /// Temperature τ in units of logits; none: from `confident_share`.
    pub temperature: Option<f64>,
    /// Attributes of a spread below this share of the median spread are not learned.
    pub minimum_spread: f64,
    /// Weights of the others.
    pub weights: GroupWeights,
    /// Targets above this and below `mask_high` are not learned: see [`AttributeRule::targets`].
    pub mask_low: f32,
    /// See `mask_low`.
    pub mask_high: f32,
}

impl Default for AttributeConfig {
    fn default() -> Self {
        Self {
            confident_share: 0.8,
            temperature: None,
            minimum_spread: 0.25,
            weights: GroupWeights::Spread,
            mask_low: 0.35,
            mask_high: 0.65,
        }
    }
}

impl AttributeConfig {
    /// Checks the values; an error names the field, what is expected and what was found.
    ///
    /// # Errors
    ///
    /// A value is out of range, or `confident_share` can mean nothing as nothing is masked.
    pub fn check(&self) -> Result<(), AttributeConfigError> {
        let wrong = |field, expected, found: f64| {
            Err(AttributeConfigError {
                field,
                expected,
                found: found.to_string(),
            })
        };
        if !(self.confident_share > 0.0 && self.confident_share < 1.0) {
            return wrong(
                "confident_share",
                "a number above 0 and below 1",
                self.confident_share,
            );
        }
        if let Some(temperature) = self.temperature
            && !(1e-6..=1e6).contains(&temperature)
        {
            return wrong(
                "temperature",
                "a number from 1e-6 to 1e6, or \"auto\"",
                temperature,
            );
        }
        if !(0.0..=1e4).contains(&self.minimum_spread) {
            return wrong(
                "minimum_spread",
                "a number from 0 to 1e4",
                self.minimum_spread,
            );
        }
        let (low, high) = (f64::from(self.mask_low), f64::from(self.mask_high));
        if !(0.0..=0.5).contains(&low) {
            return wrong("mask_low", "a number from 0 to 0.5", low);
        }
        if !(0.5..=1.0).contains(&high) {
            return wrong("mask_high", "a number from 0.5 to 1", high);
        }
        if self.temperature.is_none() && (high <= 0.5 || high >= 1.0) {
            return wrong(
                "mask_high",
                "a number above 0.5 and below 1, or a number for `temperature`",
                high,
            );
        }
        Ok(())
    }
}

/// A value of [`AttributeConfig`] that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{field}`: expected {expected}, found {found}")]
pub struct AttributeConfigError {
    /// Name of the field.
    pub field: &'static str,
    /// What would do.
    pub expected: &'static str,
    /// What is there.
    pub found: String,
}

/// What an image's attributes are to teach.
#[derive(Clone, Debug, PartialEq)]
pub struct AttributeTargets {
    /// One probability for each value of the vocabulary; those of an attribute sum to 1. A
    /// pair's are `[1 - p, p]`.
    pub target: Vec<f32>,
    /// For each attribute, whether it is clear enough to be learned from this image: false where it
    /// is too close to call, and where the attribute is switched off.
    pub mask: Vec<bool>,
    /// Weight of each attribute in the mean over the attributes of this image; 0 where `mask` is
    /// false.
    pub weight: Vec<f32>,
}

/// How the logits of one store become targets: statistics and choices, settled.
#[derive(Clone, Debug, PartialEq)]
pub struct AttributeRule {
    /// What is subtracted from each value's logit.
    mean: Vec<f32>,
    /// Temperature τ, in units of logits.
    pub temperature: f32,
    /// Weight of each attribute, with mean 1 over those above 0; 0 = switched off.
    pub weight: Vec<f32>,
    low: f32,
    high: f32,
}

impl AttributeRule {
    /// Settles τ and the weights for a store.
    ///
    /// τ is the largest at which a share of at least `confident_share` of the images is not masked
    /// in the attribute of the largest spread. An attribute is switched off whose spread is 0 or
    /// below `minimum_spread` times the median spread. The weight of the others is their spread
    /// over the mean of their spreads. Log-probabilities of the truth are all equally sure: those
    /// attributes weigh 1.
    pub fn new(calibration: &Calibration, config: &AttributeConfig) -> Self {
        let spread = &calibration.spread;
        let least = config.minimum_spread as f32 * median(spread);
        let kept = |&spread: &f32| spread > 0.0 && spread >= least;
        let (count, sum) = { spread.iter() }
            .filter(|spread| kept(spread))
            .fold((0.0_f32, 0.0), |(count, sum), spread| {
                (count + 1.0, sum + spread)
            });
        let equal = calibration.log_probabilities || config.weights == GroupWeights::Equal;
        let weight = { spread.iter() }
            .map(|spread| match (kept(spread), equal) {
                (false, _) => 0.0,
                (true, true) => 1.0,
                (true, false) => spread * count / sum,
            })
            .collect();
        let temperature = match config.temperature {
            Some(temperature) => temperature as f32,
            None if calibration.log_probabilities => 1.0,
            None => auto_temperature(calibration, config),
        };
        Self {
            mean: if calibration.log_probabilities {
                vec![0.0; calibration.mean.len()]
            } else {
                calibration.mean.clone()
            },
            temperature,
            weight,
            low: config.mask_low,
            high: config.mask_high,
        }
    }

    /// Targets of one image from its logits and, where people corrected attributes, from their
    /// answers: the value that they named is certain, and an attribute that nobody can tell is
    /// masked. An attribute that is switched off, for the labeler cannot tell its values apart,
    /// is learned with weight 1 from the images where it was corrected.
    ///
    /// # Panics
    ///
    /// Where the logits, the calibration and the vocabulary differ in their number of values.
    pub fn targets(&self, labels: &LabelRef<'_>, vocabulary: &Vocabulary) -> AttributeTargets {
        let mut targets = self.targets_of_logits(labels.values.attributes, vocabulary);
        let ranges = vocabulary.ranges();
        for &CorrectedAttribute { attribute, value } in labels.corrected {
            targets.mask[attribute] = value.is_some();
            targets.weight[attribute] = match (value, self.weight[attribute]) {
                (None, _) => 0.0,
                (Some(_), 0.0) => 1.0,
                (Some(_), weight) => weight,
            };
            if let Some(value) = value {
                let target = &mut targets.target[ranges[attribute].clone()];
                target.fill(0.0);
                target[value] = 1.0;
            }
        }
        targets
    }

    /// Targets of one image from its logits alone.
    ///
    /// A pair is masked where its p lies strictly between `mask_low` and `mask_high`: too close to
    /// call. A group is judged by its best value against its second, p1 / (p1 + p2), which for two
    /// values is the same rule. The share of the best value alone would not do for large groups:
    /// of eleven colors a clear winner may have 0.4, and a target without any winner 0.15. (The
    /// rule for groups is this project's choice.)
    ///
    /// # Panics
    ///
    /// Where the logits, the calibration and the vocabulary differ in their number of values.
    fn targets_of_logits(&self, logits: &[f32], vocabulary: &Vocabulary) -> AttributeTargets {
        let expected = vocabulary.logits();
        assert_eq!(logits.len(), expected, "logits and the vocabulary's values");
        assert_eq!(
            (self.mean.len(), self.weight.len()),
            (expected, vocabulary.attributes.len()),
            "calibrated values and attributes, and the vocabulary's"
        );
        let mut target: Vec<f32> = { logits.iter().zip(&self.mean) }
            .map(|(logit, mean)| (logit - mean) / self.temperature)
            .collect();
        let mut mask = Vec::with_capacity(self.weight.len());
        for ((attribute, range), weight) in { vocabulary.attributes.iter() }
            .zip(vocabulary.ranges())
            .zip(&self.weight)
        {
            let scores = &mut target[range];
            let p = sigmoid(margin(attribute.kind, scores.iter().copied()));
            mask.push(*weight > 0.0 && !(self.low < p && p < self.high));
            softmax(scores);
        }
        let weight = { mask.iter().zip(&self.weight) }
            .map(|(&counts, &weight)| if counts { weight } else { 0.0 })
            .collect();
        AttributeTargets {
            target,
            mask,
            weight,
        }
    }
}

/// The largest τ at which the attribute of the largest spread keeps its share of the images, found
/// by bisection of ln τ: a margin m counts if σ(m/τ) reaches `mask_high` or, in a pair, falls to
/// `mask_low`, so the share falls with τ. 1 where no attribute has a spread.
fn auto_temperature(calibration: &Calibration, config: &AttributeConfig) -> f32 {
    let widest = { calibration.spread.iter().zip(&calibration.margins) }.fold(
        (0.0_f32, None),
        |(most, widest), (&spread, margins)| {
            if spread > most {
                (spread, Some(margins))
            } else {
                (most, widest)
            }
        },
    );
    let (spread, Some(margins)) = widest else {
        return 1.0;
    };
    let logit = |p: f32| (p / (1.0 - p)).ln();
    let (low, high) = (logit(config.mask_low), logit(config.mask_high));
    let kept = |temperature: f32| {
        let above = share_from(margins, temperature * high);
        let limit = temperature * low;
        let below = { margins.first() }
            .filter(|&&least| least < 0.0 && limit.is_finite())
            .map_or(0.0, |_| 1.0 - share_from(margins, limit));
        above + below
    };
    // Far from both ends: at 1e-3 of the spread all but ties count, at 1e3 nothing does.
    let (mut least, mut most) = ((1e-3 * spread).ln(), (1e3 * spread).ln());
    for _ in 0..HALVINGS {
        let middle = 0.5 * (least + most);
        if kept(middle.exp()) >= config.confident_share {
            least = middle;
        } else {
            most = middle;
        }
    }
    least.exp()
}

/// The middle value, or the mean of the two in the middle; 0 of nothing.
fn median(values: &[f32]) -> f32 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f32::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), sorted.len() % 2) {
        (Some(upper), 0) => 0.5 * (sorted[middle - 1] + upper),
        (Some(middle), _) => *middle,
        (None, _) => 0.0,
    }
}

/// The position of the largest value, the first of equal ones; 0 of nothing.
pub fn largest(values: &[f32]) -> usize {
    let best = |best: usize, i: usize| if values[i] > values[best] { i } else { best };
    (0..values.len()).fold(0, best)
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn softmax(scores: &mut [f32]) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores
        .iter_mut()
        .for_each(|score| *score = (*score - largest).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
}

#[cfg(test)]
mod tests;
