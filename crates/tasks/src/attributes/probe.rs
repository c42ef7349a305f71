//! Linear probe of attributes: a logistic regression on pooled features for each attribute. See
//! [`protocol`].

use std::ops::ControlFlow;

use clasp_data::layouts::attributes::{AttributeDataset, AttributeImage};
use clasp_metrics::attributes::{self as metrics, AttributeMetrics};
use serde::{Deserialize, Serialize};

use crate::TaskError;
use crate::features::{
    Extractor, ImageFeatures, ImagePass, PassProgress, Preprocess, each_image, read_image,
};
use crate::probe::lbfgs::Lbfgs;
use crate::probe::linear::{LinearProbe, ProbeLoss, Standardizer, logistic_losses};
use crate::probe::selection::{STRENGTHS, rows_of};
use crate::probe::{FrozenRequest, FrozenResult, ProbeConfig, eval_split};

/// Folds of the cross-validation.
const FOLDS: usize = 5;

/// The result, with its protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrozenAttributes {
    /// What was done, in words.
    pub protocol: String,
    /// Names of the attributes.
    pub names: Vec<String>,
    /// Training images.
    pub train_images: usize,
    /// The split evaluated.
    pub eval_split: String,
    /// Weight decay that was selected for each attribute.
    pub strengths: Vec<f64>,
    /// The metrics.
    pub metrics: AttributeMetrics,
    /// mA of constant predictions, which is also that of random ones.
    pub chance_ma: f64,
    /// Mean average precision of a random order.
    pub chance_map: Option<f64>,
}

/// The protocol in words.
pub fn protocol(preprocess: &Preprocess, config: &ProbeConfig, split: &str) -> String {
    format!(
        "Linear probe of attributes (our protocol): the whole image resized to {preprocess}; pooled features of the last stage, \
         standardized over split `{}`; one logistic regression per attribute by L-BFGS (at most {} iterations, gradient to \
         {:.0e} of the first), positives and negatives weighted equally; the strength of its L2 penalty is the \
         best by {FOLDS}-fold cross-validation on that split. Evaluated on split `{split}`: \
         probability above 0.5 predicts; mA and instance metrics as in RAP; mAP needs no threshold.",
        config.train_split, config.solver.iterations, config.solver.tolerance,
    )
}

/// Trains on the training split and evaluates.
///
/// # Errors
/// A split that is missing or has fewer than ten images, an image that cannot be read, features
/// that are not finite, or a stop through `progress`.
pub fn evaluate<E: Extractor>(
    extractor: &E,
    preprocess: &Preprocess,
    data: &AttributeDataset,
    config: &ProbeConfig,
    progress: &(dyn Fn(PassProgress) -> ControlFlow<()> + Sync),
) -> Result<FrozenAttributes, TaskError> {
    let split = eval_split(config, &data.splits(), &data.file)?;
    let (train, test) = (data.split(&config.train_split)?, data.split(&split)?);
    let used = config.training(train.len(), 1);
    let train: Vec<&AttributeImage> = used.into_iter().map(|i| train[i]).collect();
    if train.len() < 10 {
        let what = format!("split `{}` of {}", config.train_split, data.file.display());
        return Err(TaskError::TooFew {
            what,
            expected: "at least 10 images",
            found: train.len(),
        });
    }
    let size = [preprocess.height, preprocess.width];
    let features = |images: &[&AttributeImage], stage| -> Result<Vec<f32>, TaskError> {
        let load = |i: usize| Ok(Some(preprocess.apply(&read_image(&images[i].path)?)));
        let keep = |_: usize, features: &ImageFeatures| Ok(features.pooled.to_vec());
        let pass = ImagePass {
            stage,
            count: images.len(),
            size,
            stages: 0,
            name: &|i| images[i].path.display().to_string(),
        };
        let rows = each_image(extractor, pass, &config.batching, load, keep, progress)?;
        Ok(rows.into_iter().flatten().flatten().collect())
    };
    let mut train_features = features(&train, "training images")?;
    let mut test_features = features(&test, "evaluation images")?;
    let channels = train_features.len() / train.len();
    let standardizer = Standardizer::fit(&train_features, channels);
    standardizer.apply(&mut train_features);
    standardizer.apply(&mut test_features);

    let count = data.names.len();
    let all: Vec<usize> = (0..train.len()).collect();
    let targets_of = |images: &[usize]| -> Vec<bool> {
        let values = images.iter().map(|&i| &train[i].values);
        values.flatten().copied().collect()
    };
    let weights = balanced(&targets_of(&all), count);
    let fit = |start: LinearProbe, images: &[usize], strengths: &[f64], solver: Lbfgs| {
        let targets = targets_of(images);
        let loss = ProbeLoss::Logistic {
            targets: &targets,
            weights: &weights,
            total: images.len() as f64,
        };
        let features = rows_of(images, &train_features, channels);
        let penalties: Vec<f64> = strengths.iter().map(|s| s / images.len() as f64).collect();
        start.fit(&features, &loss, &penalties, &solver).0
    };
    // Loss of each attribute on the held-out images of all folds, for every strength.
    let mut losses = vec![vec![0.0; count]; STRENGTHS.len()];
    for fold in 0..FOLDS {
        let (held, fitted): (Vec<usize>, Vec<usize>) =
            all.iter().partition(|i| **i % FOLDS == fold);
        let held_features = rows_of(&held, &train_features, channels);
        let held_targets = targets_of(&held);
        let mut model = LinearProbe::zeros(channels, count);
        for (strength, losses) in STRENGTHS.iter().zip(&mut losses) {
            model = fit(
                model,
                &fitted,
                &vec![*strength; count],
                config.selection_solver(),
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
        LinearProbe::zeros(channels, count),
        &all,
        &strengths,
        config.solver,
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
    let constant = metrics::evaluate(&truth, &vec![0.0; truth.len()], count, 0.5)?;
    Ok(FrozenAttributes {
        protocol: protocol(preprocess, config, &split),
        names: data.names.clone(),
        train_images: train.len(),
        eval_split: split,
        strengths,
        metrics,
        chance_ma: constant.ma,
        chance_map: constant.map,
    })
}

/// The evaluation of a frozen backbone.
///
/// # Errors
/// The data cannot be opened, and those of [`evaluate`].
pub fn evaluate_frozen(request: &FrozenRequest<'_>) -> Result<FrozenResult, TaskError> {
    let report = evaluate(
        request.extractor,
        request.preprocess,
        &AttributeDataset::open(request.data)?,
        request.config,
        request.progress,
    )?;
    let quoted = report.metrics.quoted();
    Ok(FrozenResult::new(
        quoted,
        report.chance_ma,
        &report.protocol,
        &report,
    ))
}

/// Weights of negatives and positives of each attribute that give both half of the loss; constant
/// attributes are not weighted.
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
    fn color_features_predict_attributes_and_noise_does_not() {
        let folder = tempfile::tempdir().unwrap();
        people(folder.path());
        let data = AttributeDataset::open(folder.path()).unwrap();
        let run = |fake: Fake| {
            evaluate(
                &fake,
                &Preprocess::imagenet(64, 32),
                &data,
                &ProbeConfig::default(),
                &quiet,
            )
            .unwrap()
        };
        let good = run(Fake::Colors);
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
        assert_eq!(run(Fake::Colors), good);
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
        let run = |data: &AttributeDataset, config: ProbeConfig| {
            evaluate(
                &Fake::Colors,
                &Preprocess::imagenet(64, 32),
                data,
                &config,
                &quiet,
            )
            .unwrap_err()
            .to_string()
        };
        let error = run(
            &data,
            ProbeConfig {
                eval_split: Some("public".into()),
                ..ProbeConfig::default()
            },
        );
        assert!(
            error.contains("no image of split `public`") && error.contains("train, val"),
            "{error}"
        );
        data.images
            .retain(|image| image.split == "val" || image.path.ends_with("a000.jpg"));
        let error = run(&data, ProbeConfig::default());
        assert!(
            error.contains("expected at least 10 images, found 1"),
            "{error}"
        );
    }
}
