//! Linear probe of parsing: a multinomial logistic regression on the features of each position. See
//! [`protocol`].

use std::ops::ControlFlow;
use std::sync::{Mutex, OnceLock, PoisonError};

use clasp_data::layouts::parsing::{IGNORE, LabelMap, MaskedImage, ParsingDataset};
use clasp_metrics::Metric;
use clasp_metrics::parsing::{ConfusionMatrix, ParsingMetrics};
use serde::{Deserialize, Serialize};

use crate::TaskError;
use crate::features::{
    Extractor, ImageFeatures, ImagePass, PassProgress, Preprocess, each_image, read_image,
};
use crate::probe::linear::{LinearProbe, ProbeLoss, Standardizer};
use crate::probe::selection::{PositionSamples, SelectedProbe, first_tokens};
use crate::probe::tokens::{LinearInterpolation, TokenGrid};
use crate::probe::{FrozenRequest, FrozenResult, ProbeConfig, eval_split};

/// The result, with its protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrozenParsing {
    /// What was done, in words.
    pub protocol: String,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Training images used.
    pub train_images: usize,
    /// Training images of the dataset; more than those used if memory was too small.
    pub train_images_available: usize,
    /// The split evaluated.
    pub eval_split: String,
    /// Images evaluated.
    pub eval_images: usize,
    /// Rows and columns of the grid on which positions are classified.
    pub grid: [usize; 2],
    /// Weight decay that was selected.
    pub strength: f64,
    /// The metrics. `mean_iou_present` is the one to quote.
    pub metrics: ParsingMetrics,
    /// `mean_iou_present` of predicting the most frequent class everywhere.
    pub constant_mean_iou: f64,
}

/// The protocol in words.
pub fn protocol(
    preprocess: &Preprocess,
    config: &ProbeConfig,
    split: &str,
    grid: [usize; 2],
) -> String {
    format!(
        "Linear probe of parsing (our protocol): the whole image resized to {preprocess}; feature maps of the last {} stage(s) \
         resized to {}x{} positions (rows x columns, bilinear) and concatenated, standardized over split `{}`; one \
         multinomial logistic regression for all positions by L-BFGS (at most {} iterations, gradient to {:.0e} of the \
         first), whose target is the share of each class among the mask's pixels of a position; the strength of the L2 \
         penalty is the best on every fifth training image and is then used on all of them. Evaluated on split `{split}`: \
         logits upsampled bilinearly to the mask's size, argmax, one confusion matrix over all pixels but those of ignore index 255. \
         mIoU is the mean over the classes in the evaluated masks.",
        config.stages,
        grid[0],
        grid[1],
        config.train_split,
        config.solver.iterations,
        config.solver.tolerance,
    )
}

/// Trains on the training split and evaluates.
///
/// # Errors
/// A split that is missing or has fewer than five images, an image or mask that cannot be read or
/// that differ in size, features that are not finite, or a stop through `progress`.
pub fn evaluate<E: Extractor>(
    extractor: &E,
    preprocess: &Preprocess,
    data: &ParsingDataset,
    config: &ProbeConfig,
    progress: &(dyn Fn(PassProgress) -> ControlFlow<()> + Sync),
) -> Result<FrozenParsing, TaskError> {
    let split = eval_split(config, &data.splits(), &data.file)?;
    let (train, test) = (data.split(&config.train_split)?, data.split(&split)?);
    let (classes, size, stages) = (
        data.classes.len(),
        [preprocess.height, preprocess.width],
        config.stages.max(1),
    );
    let confusion = Mutex::new(ConfusionMatrix::new(classes));

    let load_first = |_: usize| Ok(Some(preprocess.apply(&read_image(&train[0].image)?)));
    let pass = ImagePass {
        stage: "first image",
        count: 1,
        size,
        stages,
        name: &|_| train[0].image.display().to_string(),
    };
    let TokenGrid {
        height,
        width,
        channels,
        ..
    } = first_tokens(extractor, pass, config, load_first)?;
    let (grid, positions) = ([height, width], height * width);
    let bytes = positions * (channels + classes) * size_of::<f32>();
    let used = config.training(train.len(), bytes);
    if used.len() < 5 {
        let what = format!("split `{}` of {}", config.train_split, data.file.display());
        return Err(TaskError::TooFew {
            what,
            expected: "at least 5 images that fit into memory",
            found: used.len(),
        });
    }

    // Sizes of the images as they were decoded, height and width, for the masks to be compared
    // with.
    let sizes: Vec<OnceLock<[usize; 2]>> = vec![OnceLock::new(); used.len()];
    let load = |masked: &MaskedImage, size: &OnceLock<[usize; 2]>| {
        let image = read_image(&masked.image)?;
        size.get_or_init(|| [image.height, image.width]);
        Ok(Some(preprocess.apply(&image)))
    };
    let keep = |i: usize, features: &ImageFeatures| {
        let map = mask_of(data, train[used[i]], &sizes[i])?;
        Ok((TokenGrid::new(features).values, shares(&map, grid, classes)))
    };
    let load_train = |i: usize| load(train[used[i]], &sizes[i]);
    let rows = each_image(
        extractor,
        ImagePass {
            stage: "training images",
            count: used.len(),
            name: &|i| train[used[i]].image.display().to_string(),
            ..pass
        },
        &config.batching,
        load_train,
        keep,
        progress,
    )?;
    let (mut features, mut targets) = (Vec::new(), Vec::new());
    for (tokens, shares) in rows.into_iter().flatten() {
        features.extend(tokens);
        targets.extend(shares);
    }
    let standardizer = Standardizer::fit(&features, channels);
    standardizer.apply(&mut features);

    let examples = PositionSamples {
        features: &features,
        targets: &targets,
        positions,
        channels,
        outputs: classes,
        loss: &loss,
    };
    let SelectedProbe {
        strength, model, ..
    } = examples.choose(LinearProbe::zeros(channels, classes), config);
    let model = examples.fit(model, strength, &config.solver);
    drop((features, targets));

    let sizes: Vec<OnceLock<[usize; 2]>> = vec![OnceLock::new(); test.len()];
    let add = |i: usize, features: &ImageFeatures| {
        let map = mask_of(data, test[i], &sizes[i])?;
        let mut tokens = TokenGrid::new(features).values;
        standardizer.apply(&mut tokens);
        let predicted =
            upsampled_argmax(&model.apply(&tokens), grid, classes, map.height, map.width);
        // Counts are whole numbers, so the order in which threads add them does not matter.
        let mut confusion = confusion.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(confusion.add(&map.labels, &predicted)?)
    };
    let load_test = |i: usize| load(test[i], &sizes[i]);
    each_image(
        extractor,
        ImagePass {
            stage: "evaluation images",
            count: test.len(),
            name: &|i| test[i].image.display().to_string(),
            ..pass
        },
        &config.batching,
        load_test,
        add,
        progress,
    )?;
    let metrics = confusion
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .metrics();
    let present = metrics.per_class.len() - metrics.absent.len();
    Ok(FrozenParsing {
        protocol: protocol(preprocess, config, &split, grid),
        classes: data.classes.clone(),
        train_images: used.len(),
        train_images_available: train.len(),
        eval_split: split,
        eval_images: test.len(),
        grid,
        strength,
        constant_mean_iou: metrics.constant_iou(present),
        metrics,
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
        &ParsingDataset::open(request.data)?,
        request.config,
        request.progress,
    )?;
    let metrics = &report.metrics;
    let quoted = vec![
        Metric::score("mIoU", metrics.mean_iou_present.unwrap_or(metrics.mean_iou)),
        Metric::score("mean accuracy", metrics.mean_accuracy),
        Metric::score("pixel accuracy", metrics.pixel_accuracy.unwrap_or(0.0)),
    ];
    let chance = report.constant_mean_iou;
    Ok(FrozenResult::new(quoted, chance, &report.protocol, &report))
}

fn loss(targets: &[f32]) -> ProbeLoss<'_> {
    ProbeLoss::Classes {
        targets,
        total: targets.iter().map(|t| f64::from(*t)).sum(),
    }
}

/// The label map of an image, which must have its size.
fn mask_of(
    data: &ParsingDataset,
    image: &MaskedImage,
    size: &OnceLock<[usize; 2]>,
) -> Result<LabelMap, TaskError> {
    let map = data.read_mask(&image.mask)?;
    if let Some(&[height, width]) = size.get()
        && [map.height, map.width] != [height, width]
    {
        return Err(TaskError::Mismatch {
            file: image.mask.display().to_string(),
            expected: format!("{height}x{width} (height x width) as its image"),
            found: format!("{}x{}", map.height, map.width),
        });
    }
    Ok(map)
}

/// The fraction of each class among the pixels of each position: `[positions, classes]`. A position
/// sums to the fraction of its pixels that are labeled.
fn shares(map: &LabelMap, grid: [usize; 2], classes: usize) -> Vec<f32> {
    let mut counts = vec![0_u32; grid[0] * grid[1] * classes];
    let mut pixels = vec![0_u32; grid[0] * grid[1]];
    for (pixel, &label) in map.labels.iter().enumerate() {
        let (row, column) = (
            pixel / map.width * grid[0] / map.height,
            pixel % map.width * grid[1] / map.width,
        );
        let position = row * grid[1] + column;
        pixels[position] += 1;
        if label != IGNORE {
            counts[position * classes + usize::from(label)] += 1;
        }
    }
    let share = |(i, count): (usize, &u32)| *count as f32 / pixels[i / classes].max(1) as f32;
    counts.iter().enumerate().map(share).collect()
}

/// The class of the largest logit of each pixel, logits `[positions, classes]` interpolated
/// bilinearly.
fn upsampled_argmax(
    logits: &[f32],
    grid: [usize; 2],
    classes: usize,
    height: usize,
    width: usize,
) -> Vec<u8> {
    let (rows, columns) = (
        LinearInterpolation::new(grid[0], height),
        LinearInterpolation::new(grid[1], width),
    );
    let row_size = grid[1] * classes;
    let mut line = vec![0.0; row_size];
    let mut labels = Vec::with_capacity(height * width);
    for y in 0..height {
        let row = rows.at(y);
        let (low, high) = (
            &logits[row.low * row_size..][..row_size],
            &logits[row.high * row_size..][..row_size],
        );
        for (value, (low, high)) in line.iter_mut().zip(low.iter().zip(high)) {
            *value = low + (high - low) * row.weight;
        }
        for x in 0..width {
            let column = columns.at(x);
            let (low, high) = (
                &line[column.low * classes..][..classes],
                &line[column.high * classes..][..classes],
            );
            let mut best = (f32::NEG_INFINITY, 0);
            for (class, (low, high)) in low.iter().zip(high).enumerate() {
                let value = low + (high - low) * column.weight;
                if value > best.0 {
                    best = (value, class as u8);
                }
            }
            labels.push(best.1);
        }
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fake, people, quiet};

    #[test]
    fn color_features_predict_classes_and_noise_does_not() {
        let folder = tempfile::tempdir().unwrap();
        people(folder.path());
        let data = ParsingDataset::open(folder.path()).unwrap();
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
            good.metrics.mean_iou_present.unwrap() > 0.9,
            "{:?}",
            good.metrics
        );
        assert_eq!(
            (good.grid, good.metrics.absent.as_slice()),
            ([8, 4], [3].as_slice())
        );
        assert!(good.protocol.contains("8x4 positions"));
        let noise = run(Fake::Noise);
        assert!(
            noise.metrics.mean_iou_present.unwrap() < noise.constant_mean_iou + 0.1,
            "{noise:?}"
        );
        assert_eq!(run(Fake::Colors), good);
    }

    #[test]
    fn little_memory_uses_fewer_images() {
        let folder = tempfile::tempdir().unwrap();
        people(folder.path());
        let data = ParsingDataset::open(folder.path()).unwrap();
        let run = |memory| {
            let config = ProbeConfig {
                memory,
                ..ProbeConfig::default()
            };
            evaluate(
                &Fake::Colors,
                &Preprocess::imagenet(64, 32),
                &data,
                &config,
                &quiet,
            )
        };
        // 32 positions of 6 channels and 4 classes: 1280 bytes an image.
        let report = run(20 * 1280).unwrap();
        assert_eq!(
            (report.train_images, report.train_images_available),
            (20, 120)
        );
        assert!(matches!(run(1280), Err(TaskError::TooFew { found: 1, .. })));
    }

    #[test]
    fn a_mask_of_another_size_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        people(folder.path());
        let data = ParsingDataset::open(folder.path()).unwrap();
        let other = crate::testing::image([10, 20, 30], 30, 64);
        fs_err::write(&data.images[3].image, clasp_data::image::encode_png(&other)).unwrap();
        let run = evaluate(
            &Fake::Colors,
            &Preprocess::imagenet(64, 32),
            &data,
            &ProbeConfig::default(),
            &quiet,
        );
        let error = run.unwrap_err().to_string();
        assert!(
            error.contains("expected 64x30 (height x width) as its image, found 64x32"),
            "{error}"
        );
    }

    #[test]
    fn shares_count_pixels() {
        let map = LabelMap {
            height: 2,
            width: 4,
            labels: vec![0, 1, 1, 255, 0, 0, 255, 255],
        };
        assert_eq!(shares(&map, [1, 2], 2), [0.75, 0.25, 0.0, 0.25]);
    }

    #[test]
    fn upsampling_moves_the_border_to_the_middle() {
        let logits = [1.0, 0.0, 0.0, 1.0]; // two positions side by side
        assert_eq!(
            upsampled_argmax(&logits, [1, 2], 2, 1, 6),
            [0, 0, 0, 1, 1, 1]
        );
    }
}
