//! Frozen attribute recognition: a logistic regression on pooled features for each attribute. See [`protocol`].

use std::ops::ControlFlow;

use clasp_data::layouts::attributes::{AttributeDataset, AttributeImage};
use clasp_metrics::attributes::{self as metrics, AttributeMetrics};
use serde::{Deserialize, Serialize};

use crate::TaskError;
use crate::features::{Extractor, Features, Pass, Preprocess, each_image, read_image};
use crate::frozen::{Options, Progress, STRENGTHS, eval_split, rows_of};
use crate::linear::{Linear, Loss, Solver, Standardiser, logistic_losses};

/// Parts of the training split that are held out in turn.
const FOLDS: usize = 5;

/// The result, with its protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AttributeReport {
    /// What was done, in words.
    pub protocol: String,
    /// Names of the attributes.
    pub names: Vec<String>,
    /// Training images.
    pub train_images: usize,
    /// The split evaluated.
    pub eval_split: String,
    /// Strength of the weight decay that was chosen for each attribute.
    pub strengths: Vec<f64>,
    /// The figures.
    pub metrics: AttributeMetrics,
    /// mA of predicting nothing, which is also that of a coin.
    pub chance_ma: f64,
    /// Mean average precision of a random order.
    pub chance_map: Option<f64>,
}

/// The protocol in words.
pub fn protocol(preprocess: &Preprocess, options: &Options, split: &str) -> String {
    format!(
        "Frozen linear attributes (our protocol): the whole image resized to {preprocess}; pooled features of the last stage, \
         standardised over split `{}`; one logistic regression per attribute by L-BFGS (at most {} iterations, gradient to \
         {:.0e} of the first), positives and negatives weighted to count alike; the strength of its L2 penalty is the \
         best by {FOLDS}-fold cross-validation on that split. Evaluated on split `{split}`: \
         probability above 0.5 predicts; mA and instance metrics as in RAP; mAP needs no threshold.",
        options.train_split, options.solver.iterations, options.solver.tolerance,
    )
}

/// Trains on the training split and evaluates.
///
/// # Errors
/// A split that is missing or has fewer than ten images, an image that cannot be read, features that are not finite, or a
/// stop through `progress`.
pub fn evaluate<E: Extractor>(
    extractor: &E,
    preprocess: &Preprocess,
    data: &AttributeDataset,
    options: &Options,
    progress: &(dyn Fn(Progress) -> ControlFlow<()> + Sync),
) -> Result<AttributeReport, TaskError> {
    let split = eval_split(options, &data.splits(), &data.file)?;
    let (train, test) = (data.split(&options.train_split)?, data.split(&split)?);
    let used = options.training(train.len(), 1);
    let train: Vec<&AttributeImage> = used.into_iter().map(|i| train[i]).collect();
    if train.len() < 10 {
        let what = format!("split `{}` of {}", options.train_split, data.file.display());
        return Err(TaskError::TooFew {
            what,
            expected: "at least 10 images",
            found: train.len(),
        });
    }
    let size = [preprocess.height, preprocess.width];
    let features = |images: &[&AttributeImage], stage| -> Result<Vec<f32>, TaskError> {
        let load = |i: usize| Ok(Some(preprocess.apply(&read_image(&images[i].path)?)));
        let keep = |_: usize, features: &Features| Ok(features.pooled.to_vec());
        let pass = Pass {
            stage,
            count: images.len(),
            size,
            stages: 0,
            name: &|i| images[i].path.display().to_string(),
        };
        let rows = each_image(extractor, pass, options, load, keep, progress)?;
        Ok(rows.into_iter().flatten().flatten().collect())
    };
    let mut train_features = features(&train, "training images")?;
    let mut test_features = features(&test, "evaluation images")?;
    let channels = train_features.len() / train.len();
    let standardiser = Standardiser::fit(&train_features, channels);
    standardiser.apply(&mut train_features);
    standardiser.apply(&mut test_features);

    let count = data.names.len();
    let all: Vec<usize> = (0..train.len()).collect();
    let targets_of = |images: &[usize]| -> Vec<bool> {
        let values = images.iter().map(|&i| &train[i].values);
        values.flatten().copied().collect()
    };
    let weights = balanced(&targets_of(&all), count);
    let fit = |start: Linear, images: &[usize], strengths: &[f64], solver: Solver| {
        let targets = targets_of(images);
        let loss = Loss::Logistic {
            targets: &targets,
            weights: &weights,
            total: images.len() as f64,
        };
        let features = rows_of(images, &train_features, channels);
        let penalties: Vec<f64> = strengths.iter().map(|s| s / images.len() as f64).collect();
        start.fit(&features, &loss, &penalties, &solver).0
    };
    // Loss of each attribute on what each fold held out, for every strength.
    let mut losses = vec![vec![0.0; count]; STRENGTHS.len()];
    for fold in 0..FOLDS {
        let (held, fitted): (Vec<usize>, Vec<usize>) =
            all.iter().partition(|i| **i % FOLDS == fold);
        let held_features = rows_of(&held, &train_features, channels);
        let held_targets = targets_of(&held);
        let mut model = Linear::zeros(channels, count);
        for (strength, losses) in STRENGTHS.iter().zip(&mut losses) {
            model = fit(
                model,
                &fitted,
                &vec![*strength; count],
                options.selection_solver(),
            );
            let held = logistic_losses(&model.apply(&held_features), &held_targets, &weights);
            losses
                .iter_mut()
                .zip(held)
                .for_each(|(sum, loss)| *sum += loss);
        }
    }
    let best =
        |j: usize| (0..STRENGTHS.len()).min_by(|a, b| losses[*a][j].total_cmp(&losses[*b][j]));
    let strengths: Vec<f64> = (0..count)
        .map(|j| STRENGTHS[best(j).unwrap_or(0)])
        .collect();
    let model = fit(
        Linear::zeros(channels, count),
        &all,
        &strengths,
        options.solver,
    );

    let truth: Vec<bool> = test
        .iter()
        .flat_map(|image| image.values.iter().copied())
        .collect();
    let probabilities: Vec<f32> = model
        .apply(&test_features)
        .into_iter()
        .map(|l| 1.0 / (1.0 + (-l).exp()))
        .collect();
    let metrics = metrics::evaluate(&truth, &probabilities, count, 0.5)?;
    let nothing = metrics::evaluate(&truth, &vec![0.0; truth.len()], count, 0.5)?;
    Ok(AttributeReport {
        protocol: protocol(preprocess, options, &split),
        names: data.names.clone(),
        train_images: train.len(),
        eval_split: split,
        strengths,
        metrics,
        chance_ma: nothing.ma,
        chance_map: nothing.map,
    })
}

/// Weights of negatives and positives of each attribute that make both count half; an attribute that never changes counts
/// as it is.
fn balanced(targets: &[bool], attributes: usize) -> Vec<[f32; 2]> {
    let images = targets.len() / attributes;
    (0..attributes)
        .map(|j| {
            let positives = targets
                .iter()
                .skip(j)
                .step_by(attributes)
                .filter(|t| **t)
                .count();
            [images - positives, positives].map(|n| {
                if n == 0 {
                    0.0
                } else {
                    images as f32 / (2.0 * n as f32)
                }
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fake, people, quiet};

    #[test]
    fn colours_tell_attributes_and_noise_does_not() {
        let folder = tempfile::tempdir().unwrap();
        people(folder.path());
        let data = AttributeDataset::open(folder.path()).unwrap();
        let run = |fake: Fake| {
            evaluate(
                &fake,
                &Preprocess::imagenet(64, 32),
                &data,
                &Options::default(),
                &quiet,
            )
            .unwrap()
        };
        let good = run(Fake::Colours);
        assert!(
            good.metrics.ma > 0.95 && good.metrics.map > Some(0.95),
            "{:?}",
            good.metrics
        );
        assert_eq!(
            (good.train_images, good.eval_split.as_str(), good.chance_ma),
            (120, "val", 0.5)
        );
        assert!(good.protocol.contains("`val`") && good.protocol.contains("L-BFGS"));
        let noise = run(Fake::Noise);
        assert!((noise.metrics.ma - 0.5).abs() < 0.15, "{:?}", noise.metrics);
        assert_eq!(run(Fake::Colours), good);
    }

    #[test]
    fn weights_balance() {
        let targets = [true, false, false, false, false, false, false, false];
        assert_eq!(balanced(&targets, 2), [[4.0 / 6.0, 2.0], [0.5, 0.0]]);
    }

    #[test]
    fn missing_splits_and_small_ones_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        people(folder.path());
        let mut data = AttributeDataset::open(folder.path()).unwrap();
        let run = |data: &AttributeDataset, options: Options| {
            evaluate(
                &Fake::Colours,
                &Preprocess::imagenet(64, 32),
                data,
                &options,
                &quiet,
            )
            .unwrap_err()
            .to_string()
        };
        let error = run(
            &data,
            Options {
                eval_split: Some("public".into()),
                ..Options::default()
            },
        );
        assert!(
            error.contains("no image of split `public`") && error.contains("train, val"),
            "{error}"
        );
        data.images
            .retain(|image| image.split == "val" || image.path.ends_with("a000.jpg"));
        let error = run(&data, Options::default());
        assert!(
            error.contains("expected at least 10 images, found 1"),
            "{error}"
        );
    }
}
