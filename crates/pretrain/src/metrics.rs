//! What is measured of a step beside its gradients: losses, accuracies, and the state of features
//! and teacher targets.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use clasp_model::losses::attribute::attribute_accuracy;
use clasp_model::losses::part::part_accuracy;
use clasp_run::{Collective, CollectiveError, Metrics, NonFinite};

use crate::objective::{LOSSES, ShareOutputs};

/// Name of the standard deviation of the features over a batch.
pub(crate) const FEATURE_STD: &str = "features/std";
/// Name of the entropy of the mean of the teacher targets.
pub(crate) const MEAN_TARGET_ENTROPY: &str = "teacher/mean_entropy";
/// Names of the means over shares.
pub(crate) const TARGET_ENTROPY: &str = "teacher/entropy";
const PROMPT_DISTANCE: &str = "features/prompt_distance";
const IMAGE_DISTANCE: &str = "features/image_distance";
/// Names of accuracies.
const PART: &str = "part";
const ATTRIBUTE: &str = "attribute";

/// All that can be measured, in the order in which ranks exchange it.
fn exchanged() -> Vec<Measurement> {
    let means = [TARGET_ENTROPY, PROMPT_DISTANCE, IMAGE_DISTANCE];
    { LOSSES.iter() }
        .map(|term| Measurement::Loss(term.name))
        .chain([Measurement::Total])
        .chain(means.map(Measurement::Mean))
        .chain([PART, ATTRIBUTE].map(Measurement::Right))
        .chain([PART, ATTRIBUTE].map(Measurement::Labeled))
        .collect()
}

/// What is measured of a share of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Measurement {
    /// A loss of [`LOSSES`] by its name; `loss/{name}` in the log.
    Loss(&'static str),
    /// The weighted sum of the losses; `loss/total` in the log.
    Total,
    /// A mean over the share, by its name in the log.
    Mean(&'static str),
    /// Number of right predictions of parts or attributes.
    Right(&'static str),
    /// Number of predictions of parts or attributes that have a label.
    Labeled(&'static str),
}

/// Accuracies of the label heads under their own prompts, and distances between features; they take
/// time, so only logged steps have them.
pub(crate) fn observations(share: &ShareOutputs<'_>) -> Vec<(Measurement, Tensor<1>)> {
    let mut measured = Vec::new();
    if let Some(logits) = share.student.parts.as_ref().map(|heads| &heads.own)
        && let Some(labels) = share.part_labels(logits)
    {
        let counts = part_accuracy(logits.clone().inner(), labels);
        measured.extend(accuracy(PART, counts));
    }
    if let Some(logits) = share.student.attributes.as_ref().map(|heads| &heads.own)
        && let Some([targets, weights]) = share.attribute_targets(logits)
    {
        let logits = logits.clone().inner();
        let counts = attribute_accuracy(logits, targets, weights, share.ranges);
        measured.extend(accuracy(ATTRIBUTE, counts.map(Tensor::sum)));
    }
    let (prompted, batch) = (&share.student.prompted, share.inputs.batch);
    if let (Some(identity), false) = (&share.student.whole, prompted.is_empty()) {
        let [prompts, images] = feature_distances(identity, prompted, batch);
        measured.push((Measurement::Mean(PROMPT_DISTANCE), prompts));
        measured.push((Measurement::Mean(IMAGE_DISTANCE), images));
    }
    measured
}

fn accuracy(name: &'static str, [right, labeled]: [Tensor<1>; 2]) -> [(Measurement, Tensor<1>); 2] {
    [
        (Measurement::Right(name), right),
        (Measurement::Labeled(name), labeled),
    ]
}

/// Mean 1 − cos between the features of an image under `identity` and under another prompt, and
/// between those of two images under `identity`: [1] each.
fn feature_distances(identity: &Tensor<2>, prompted: &[Tensor<2>], batch: usize) -> [Tensor<1>; 2] {
    // The first view of each image: [batch, channels], normalized.
    let first_view = |pooled: &Tensor<2>| normalized(pooled.clone().inner().narrow(0, 0, batch));
    let identity = first_view(identity);
    let others: Vec<Tensor<1>> = { prompted.iter() }
        .map(|pooled| (identity.clone() * first_view(pooled)).sum_dim(1).mean())
        .collect();
    let prompts = Tensor::cat(others, 0).mean().neg() + 1.0;
    // Σ_{i≠j} cos = |Σ f|² − n.
    let n = batch as f64;
    let sum = identity.sum_dim(0).square().sum();
    let pairs = (n * (n - 1.0)).max(1.0);
    [prompts, (sum - n).div_scalar(pairs).neg() + 1.0]
}

/// Each row of [batch, channels] divided by its norm.
fn normalized(features: Tensor<2>) -> Tensor<2> {
    let norm = features.clone().square().sum_dim(1).sqrt().clamp_min(1e-12);
    features / norm
}

/// Mean and mean square over a share of each channel of the normalized features [views · batch,
/// channels]: [2, channels]. Their mean over shares gives [`feature_std`].
pub(crate) fn feature_moments(pooled: Tensor<2>) -> Tensor<2> {
    let features = normalized(pooled);
    let squares = features.clone().square();
    Tensor::cat(vec![features.mean_dim(0), squares.mean_dim(0)], 0)
}

/// Standard deviation over the batch of each channel of the normalized features, from their
/// `moments` ([`feature_moments`]), mean over channels, times the root of their number: 1 for
/// features spread evenly over all directions, 0 for equal features.
pub(crate) fn feature_std(moments: Tensor<2>) -> Tensor<1> {
    let channels = moments.dims()[1];
    let [mean, square] = [0, 1].map(|row| moments.clone().narrow(0, row, 1));
    let variance = (square - mean.square()).clamp_min(0.0);
    variance.sqrt().mean() * (channels as f64).sqrt()
}

/// Measurements of a batch: sums over its shares.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measurements {
    sums: BTreeMap<Measurement, f64>,
    shares: f64,
}

impl Measurements {
    /// The sums of the `values` of all shares, which are `shares` in number.
    pub(crate) fn sum(values: impl Iterator<Item = (Measurement, f64)>, shares: usize) -> Self {
        let mut sums = BTreeMap::new();
        for (measurement, value) in values {
            *sums.entry(measurement).or_insert(0.0) += value;
        }
        Self {
            sums,
            shares: shares as f64,
        }
    }

    /// The same over all ranks. What was measured on no rank stays so.
    ///
    /// # Errors
    ///
    /// A rank is gone.
    pub(crate) fn over_ranks(self, ranks: &dyn Collective) -> Result<Self, CollectiveError> {
        if ranks.is_alone() {
            return Ok(self);
        }
        let all = exchanged();
        debug_assert!(self.sums.keys().all(|measured| all.contains(measured)));
        // Shares, then by measurement: on how many ranks it was measured, and the sum.
        let mut numbers = vec![self.shares];
        for measurement in &all {
            let sum = self.sums.get(measurement).copied();
            numbers.extend([f64::from(u8::from(sum.is_some())), sum.unwrap_or(0.0)]);
        }
        ranks.sum(&mut numbers)?;
        let measured = all.into_iter().zip(numbers[1..].as_chunks::<2>().0);
        let sums = { measured.filter(|(_, [ranks, _])| *ranks > 0.0) }
            .map(|(measurement, [_, sum])| (measurement, *sum));
        Ok(Self {
            sums: sums.collect(),
            shares: numbers[0],
        })
    }

    /// Mean over the shares; none if it was not measured.
    pub(crate) fn mean(&self, measurement: Measurement) -> Option<f64> {
        Some(self.sums.get(&measurement)? / self.shares)
    }

    /// Checks that all losses and their sum are finite.
    ///
    /// # Errors
    ///
    /// Names the first that is not, in the order of [`LOSSES`].
    pub(crate) fn check(&self) -> Result<(), NonFinite> {
        let losses = LOSSES.iter().map(|term| Measurement::Loss(term.name));
        for measurement in losses.chain([Measurement::Total]) {
            let name = match measurement {
                Measurement::Loss(name) => name,
                _ => "total",
            };
            if let Some(&value) = self.sums.get(&measurement) {
                NonFinite::check(|| format!("{name} loss"), value)?;
            }
        }
        Ok(())
    }

    /// The metrics of the log.
    pub(crate) fn metrics(&self) -> Metrics {
        let metric = |(measurement, sum): (&Measurement, &f64)| {
            let mean = sum / self.shares;
            match *measurement {
                Measurement::Loss(name) => Some((format!("loss/{name}"), mean)),
                Measurement::Total => Some(("loss/total".to_owned(), mean)),
                Measurement::Mean(name) => Some((name.to_owned(), mean)),
                Measurement::Right(name) => {
                    let labeled = *self.sums.get(&Measurement::Labeled(name))?;
                    (labeled > 0.0).then(|| (format!("accuracy/{name}"), sum / labeled))
                }
                Measurement::Labeled(_) => None,
            }
        };
        self.sums.iter().filter_map(metric).collect()
    }
}
