//! Linear probe of pose: a linear heatmap for each joint. See [`protocol`].
//!
//! Each heatmap has a bias per position, so that the mean pose in a box needs no features: what a
//! backbone scores above [`FrozenPose::mean_pose`] comes from its features.

use std::ops::ControlFlow;
use std::path::Path;

use clasp_data::layouts::coco::{KeypointAnnotation, KeypointDataset};
use clasp_metrics::Metric;
use clasp_metrics::pose::{
    OksAp, Pck, PosePair, PredictedPose, TruePose, box_length, oks_ap, pck, torso_length,
};
use serde::{Deserialize, Serialize};

use super::linear_heatmaps::{
    DecodedPose, HeatmapDecoder, PADDING, ProbedPerson, SIGMA, decode, heatmaps, on_grid,
    padded_crop, region,
};
use crate::TaskError;
use crate::features::{
    Extractor, ImageFeatures, ImagePass, PassProgress, Preprocess, each_image, read_sized,
};
use crate::probe::linear::{LinearProbe, ProbeLoss, Standardizer};
use crate::probe::selection::{PositionSamples, SelectedProbe, first_tokens};
use crate::probe::tokens::TokenGrid;
use crate::probe::{FrozenRequest, FrozenResult, ProbeConfig};
use crate::task::SplitChoice;

/// Fraction of the reference length within which a joint is correct.
const PCK_THRESHOLD: f64 = 0.2;

/// The metrics of one set of predictions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoseScores {
    /// PCK with the longer diagonal of the torso; empty where the skeleton has no shoulders and
    /// hips.
    pub pck_torso: Pck,
    /// PCK with the longer side of the box.
    pub pck_box: Pck,
    /// OKS AP with the given boxes; `None` without sigmas.
    pub oks: Option<OksAp>,
}

/// The result, with its protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrozenPose {
    /// What was done, in words.
    pub protocol: String,
    /// Names of the joints.
    pub joints: Vec<String>,
    /// Training people used.
    pub train_people: usize,
    /// Training people of the dataset; more than those used if memory was too small.
    pub train_people_available: usize,
    /// People evaluated.
    pub eval_people: usize,
    /// Rows and columns of the heatmaps.
    pub grid: [usize; 2],
    /// Weight decay that was selected.
    pub strength: f64,
    /// Decoder that was selected.
    pub decoder: HeatmapDecoder,
    /// The metrics.
    pub scores: PoseScores,
    /// The metrics of the mean training pose in every box.
    pub mean_pose: PoseScores,
}

/// The protocol in words.
pub fn protocol(
    preprocess: &Preprocess,
    config: &ProbeConfig,
    grid: [usize; 2],
    decoder: HeatmapDecoder,
    eval: &Path,
) -> String {
    let decoded = match decoder {
        HeatmapDecoder::Peak => "the largest logit, refined by a parabola along each axis",
        HeatmapDecoder::Mean => "the mean of the softmax over positions",
    };
    format!(
        "Linear probe of pose (our protocol): people in ground-truth boxes, enlarged to the input's aspect and by {PADDING}, \
         resized to {preprocess}, the mean color beyond the image; feature maps of the last {} stage(s) resized to {}x{} \
         positions (rows x columns, bilinear) and concatenated, standardized over split `{}`; a linear map per joint and a bias per joint and \
         position by L-BFGS (at most {} iterations, gradient to {:.0e} of the first) under a cross-entropy over positions, target a \
         Gaussian of {SIGMA} position; L2 strength and decoder are the best on every fifth training person and then used on \
         all. Decoded by {decoded}. No flip test. Evaluated on {}: PCK@{PCK_THRESHOLD} of the longer torso diagonal and of the \
         longer box side, mean over joints; OKS AP with the ground-truth boxes, score the mean of the largest probabilities.",
        config.stages,
        grid[0],
        grid[1],
        config.train_split,
        config.solver.iterations,
        config.solver.tolerance,
        eval.file_name().unwrap_or_default().display(),
    )
}

/// Opens the training split and the split to evaluate on (`test`, or else `val`) of a folder.
///
/// # Errors
/// If one of them is missing, or they have different joints.
pub fn open(
    folder: &Path,
    config: &ProbeConfig,
) -> Result<(KeypointDataset, KeypointDataset), TaskError> {
    let train = KeypointDataset::open(folder, &config.train_split)?;
    let eval = match &config.eval_split {
        Some(split) => KeypointDataset::open(folder, split)?,
        None => SplitChoice::Test.open(|name| KeypointDataset::open(folder, name))?,
    };
    if train.joints != eval.joints {
        return Err(TaskError::Mismatch {
            file: eval.file.display().to_string(),
            expected: format!(
                "the joints of {}: {}",
                train.file.display(),
                train.joints.join(", ")
            ),
            found: eval.joints.join(", "),
        });
    }
    Ok((train, eval))
}

/// Trains on `train` and evaluates on `eval`, which have the same joints.
///
/// # Errors
/// Fewer than five people, an image that cannot be read or is not as large as its file says,
/// features that are not finite, or a stop through `progress`.
pub fn evaluate<E: Extractor>(
    extractor: &E,
    preprocess: &Preprocess,
    train: &KeypointDataset,
    eval: &KeypointDataset,
    config: &ProbeConfig,
    progress: &(dyn Fn(PassProgress) -> ControlFlow<()> + Sync),
) -> Result<FrozenPose, TaskError> {
    let (joints, size, stages) = (
        train.joints.len(),
        [preprocess.height, preprocess.width],
        config.stages.max(1),
    );
    let (train_people, eval_people) = (usable(train, size), usable(eval, size));
    let too_few = |data: &KeypointDataset, found| TaskError::TooFew {
        what: data.file.display().to_string(),
        expected: "at least 5 people with a box and a labeled joint that fit into memory",
        found,
    };
    if train_people.len() < 5 || eval_people.is_empty() {
        let (data, found) = if eval_people.is_empty() {
            (eval, 0)
        } else {
            (train, train_people.len())
        };
        return Err(too_few(data, found));
    }
    let input =
        |data: &KeypointDataset, subject: &ProbedPerson| -> Result<Option<Vec<f32>>, TaskError> {
            let picture = &data.images[subject.person.image];
            let image = read_sized(&picture.path, [picture.height, picture.width])?;
            Ok(Some(preprocess.apply(&padded_crop(
                &image,
                subject.region,
                preprocess.mean,
            ))))
        };
    let name = |data: &KeypointDataset, subject: &ProbedPerson| {
        let path = &data.images[subject.person.image].path;
        path.display().to_string()
    };
    let pass = ImagePass {
        stage: "first person",
        count: 1,
        size,
        stages,
        name: &|_| name(train, &train_people[0]),
    };
    let TokenGrid {
        height,
        width,
        channels,
        ..
    } = first_tokens(extractor, pass, config, |_| input(train, &train_people[0]))?;
    let (grid, positions) = ([height, width], height * width);
    let bytes = positions * (channels + joints) * size_of::<f32>();
    let used = config.training(train_people.len(), bytes);
    if used.len() < 5 {
        return Err(too_few(train, used.len()));
    }
    let subjects: Vec<&ProbedPerson> = used.iter().map(|&i| &train_people[i]).collect();
    let rows = each_image(
        extractor,
        ImagePass {
            stage: "training people",
            count: subjects.len(),
            name: &|i| name(train, subjects[i]),
            ..pass
        },
        &config.batching,
        |i| input(train, subjects[i]),
        |_, features| Ok(TokenGrid::new(features).values),
        progress,
    )?;
    let mut features = Vec::new();
    rows.into_iter()
        .flatten()
        .for_each(|tokens| features.extend(tokens));
    let targets: Vec<f32> = subjects
        .iter()
        .flat_map(|subject| heatmaps(subject, grid))
        .collect();
    let standardizer = Standardizer::fit(&features, channels);
    standardizer.apply(&mut features);

    let examples = PositionSamples {
        features: &features,
        targets: &targets,
        positions,
        channels,
        outputs: joints,
        loss: &|targets| loss(targets, positions),
    };
    let (strength, start, decoder) = {
        let SelectedProbe {
            strength,
            model,
            held,
            held_features,
        } = examples.choose(
            LinearProbe::with_positions(channels, joints, positions),
            config,
        );
        let held_subjects: Vec<&ProbedPerson> = held.iter().map(|&i| subjects[i]).collect();
        let logits = model.apply(&held_features);
        let score = |decoder| {
            let poses = logits.chunks_exact(positions * joints).zip(&held_subjects);
            let poses: Vec<DecodedPose> = poses
                .map(|(logits, subject)| {
                    decode(logits, grid, joints, decoder).placed(subject.region, grid)
                })
                .collect();
            scores(train, &held_subjects, &poses)
                .map(|s| s.pck_torso.mean.or(s.pck_box.mean).unwrap_or(0.0))
        };
        let decoder = if score(HeatmapDecoder::Mean)? > score(HeatmapDecoder::Peak)? {
            HeatmapDecoder::Mean
        } else {
            HeatmapDecoder::Peak
        };
        (strength, model, decoder)
    };
    let model = examples.fit(start, strength, &config.solver);
    drop((features, targets));

    let poses = each_image(
        extractor,
        ImagePass {
            stage: "evaluation people",
            count: eval_people.len(),
            name: &|i| name(eval, &eval_people[i]),
            ..pass
        },
        &config.batching,
        |i| input(eval, &eval_people[i]),
        |i, features: &ImageFeatures| {
            let mut tokens = TokenGrid::new(features).values;
            standardizer.apply(&mut tokens);
            Ok(decode(&model.apply(&tokens), grid, joints, decoder)
                .placed(eval_people[i].region, grid))
        },
        progress,
    )?;
    let poses: Vec<DecodedPose> = poses.into_iter().flatten().collect();
    let evaluated: Vec<&ProbedPerson> = eval_people.iter().collect();
    let mean = mean_pose(&subjects, joints);
    let constant: Vec<DecodedPose> = evaluated
        .iter()
        .map(|subject| mean.placed(subject.region, [1, 1]))
        .collect();
    Ok(FrozenPose {
        protocol: protocol(preprocess, config, grid, decoder, &eval.file),
        joints: train.joints.clone(),
        train_people: subjects.len(),
        train_people_available: train_people.len(),
        eval_people: evaluated.len(),
        grid,
        strength,
        decoder,
        scores: scores(eval, &evaluated, &poses)?,
        mean_pose: scores(eval, &evaluated, &constant)?,
    })
}

/// The people that can be evaluated: no crowds, with a labeled joint, and with a box that overlaps
/// the image.
fn usable(data: &KeypointDataset, size: [usize; 2]) -> Vec<ProbedPerson<'_>> {
    let aspect = size[1] as f64 / size[0] as f64;
    let people = data
        .people
        .iter()
        .filter(|person| !person.crowd && person.labeled() > 0);
    people
        .filter_map(|person| {
            let image = &data.images[person.image];
            let region = region(person.bbox, [image.height, image.width], aspect)?;
            Some(ProbedPerson { person, region })
        })
        .collect()
}

/// The evaluation of a frozen backbone.
///
/// # Errors
/// The data cannot be opened, and those of [`evaluate`].
pub fn evaluate_frozen(request: &FrozenRequest<'_>) -> Result<FrozenResult, TaskError> {
    let (train, eval) = open(request.data, request.config)?;
    let report = evaluate(
        request.extractor,
        request.preprocess,
        &train,
        &eval,
        request.config,
        request.progress,
    )?;
    let pck = |scores: &PoseScores| scores.pck_torso.mean.or(scores.pck_box.mean).unwrap_or(0.0);
    let mut quoted = vec![Metric::score("PCK@0.2", pck(&report.scores))];
    let ap = report.scores.oks.as_ref().and_then(|oks| oks.ap);
    quoted.extend(ap.map(|ap| Metric::score("OKS AP", ap)));
    let chance = pck(&report.mean_pose);
    Ok(FrozenResult::new(quoted, chance, &report.protocol, &report))
}

fn loss(targets: &[f32], positions: usize) -> ProbeLoss<'_> {
    ProbeLoss::Positions {
        rows: positions,
        targets,
        total: targets.iter().map(|t| f64::from(*t)).sum(),
    }
}

/// The mean position of each joint as fractions of the region; the center for a joint that is never
/// labeled.
fn mean_pose(subjects: &[&ProbedPerson], joints: usize) -> DecodedPose {
    let point = |j: usize| {
        let known = subjects
            .iter()
            .map(|s| (s.person.keypoints[j], s.region))
            .filter(|(joint, _)| joint[2] > 0.0);
        let places: Vec<[f64; 2]> = known
            .map(|(joint, region)| on_grid(&joint, region, [1, 1]))
            .collect();
        let count = places.len().max(1) as f64;
        [0, 1].map(|axis| places.iter().map(|place| place[axis]).sum::<f64>() / count)
    };
    DecodedPose {
        points: (0..joints).map(point).collect(),
        score: 1.0,
    }
}

/// The metrics of predictions for `subjects`, in pixels of the image.
fn scores(
    data: &KeypointDataset,
    subjects: &[&ProbedPerson],
    poses: &[DecodedPose],
) -> Result<PoseScores, TaskError> {
    let diagonals = data.torso_diagonals();
    let truths: Vec<(Vec<[f64; 2]>, Vec<bool>)> = { subjects.iter() }
        .map(|s| {
            s.person
                .keypoints
                .iter()
                .map(|k| ([k[0], k[1]], k[2] > 0.0))
                .unzip()
        })
        .collect();
    let pairs = |length: &dyn Fn(usize) -> Option<f64>| -> Vec<PosePair> {
        let pair = |i: usize| PosePair {
            truth: &truths[i].0,
            visible: &truths[i].1,
            predicted: &poses[i].points,
            length: length(i),
        };
        (0..subjects.len()).map(pair).collect()
    };
    let torso = |i: usize| torso_length(&truths[i].0, &truths[i].1, &diagonals);
    let oks = match &data.sigmas {
        None => None,
        Some(sigmas) => {
            let truth = |person: &KeypointAnnotation| TruePose {
                image: person.image as u64,
                keypoints: person.keypoints.clone(),
                bbox: person.bbox,
                area: person.area,
                crowd: person.crowd,
            };
            // All people of the evaluated images, also those without a prediction.
            let seen: std::collections::BTreeSet<usize> =
                subjects.iter().map(|s| s.person.image).collect();
            let truths: Vec<TruePose> = data
                .people
                .iter()
                .filter(|p| seen.contains(&p.image))
                .map(truth)
                .collect();
            let predicted = subjects
                .iter()
                .zip(poses)
                .map(|(subject, pose)| PredictedPose {
                    image: subject.person.image as u64,
                    keypoints: pose.points.clone(),
                    score: pose.score,
                });
            Some(oks_ap(&truths, &predicted.collect::<Vec<_>>(), sigmas)?)
        }
    };
    Ok(PoseScores {
        pck_torso: pck(&pairs(&torso), PCK_THRESHOLD),
        pck_box: pck(
            &pairs(&|i| box_length(subjects[i].person.bbox)),
            PCK_THRESHOLD,
        ),
        oks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fake, people, quiet};

    #[test]
    fn color_features_locate_joints_and_noise_does_not() {
        let folder = tempfile::tempdir().unwrap();
        people(folder.path());
        let config = ProbeConfig::default();
        let (train, eval) = open(folder.path(), &config).unwrap();
        let run = |fake: Fake| {
            evaluate(
                &fake,
                &Preprocess::imagenet(64, 32),
                &train,
                &eval,
                &config,
                &quiet,
            )
            .unwrap()
        };
        let good = run(Fake::Colors);
        assert!(good.scores.pck_box.mean.unwrap() > 0.95, "{good:?}");
        assert!(
            good.scores.oks.as_ref().unwrap().ap50.unwrap() > 0.9,
            "{good:?}"
        );
        assert_eq!(
            (good.train_people, good.eval_people, good.grid),
            (120, 40, [8, 4])
        );
        assert!(good.protocol.contains("person_keypoints_val.json"));
        let noise = run(Fake::Noise);
        let (noise, mean) = (
            noise.scores.pck_box.mean.unwrap(),
            noise.mean_pose.pck_box.mean.unwrap(),
        );
        assert!(
            noise < mean + 0.05 && mean < 0.9,
            "noise {noise}, mean pose {mean}"
        );
        assert_eq!(run(Fake::Colors), good);
    }

    #[test]
    fn wrong_sizes_and_joints_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        people(folder.path());
        let config = ProbeConfig::default();
        let (train, mut eval) = open(folder.path(), &config).unwrap();
        eval.images[0].width += 1;
        let run = evaluate(
            &Fake::Colors,
            &Preprocess::imagenet(64, 32),
            &train,
            &eval,
            &config,
            &quiet,
        );
        let error = run.unwrap_err().to_string();
        assert!(
            error.contains("expected 64x33 (height x width) as in the JSON, found 64x32"),
            "{error}"
        );
        let none = KeypointDataset {
            people: Vec::new(),
            ..eval
        };
        let run = evaluate(
            &Fake::Colors,
            &Preprocess::imagenet(64, 32),
            &train,
            &none,
            &config,
            &quiet,
        );
        assert!(matches!(run, Err(TaskError::TooFew { found: 0, .. })));
    }
}
