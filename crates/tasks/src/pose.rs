//! Frozen pose: a linear heatmap for each joint. See [`protocol`].
//!
//! Each heatmap has a bias per position, so that the usual pose in a box comes free: what a backbone scores above
//! [`PoseReport::mean_pose`] is what its features tell.

use std::ops::ControlFlow;
use std::path::Path;

use clasp_data::image::{self, Rgb};
use clasp_data::layouts::LayoutError;
use clasp_data::layouts::coco::{KeypointAnnotation, KeypointDataset};
use clasp_metrics::pose::{
    OksAp, Pck, PosePair, PredictedPose, TruePose, box_length, oks_ap, pck, torso_length,
};
use serde::{Deserialize, Serialize};

use crate::TaskError;
use crate::features::{Extractor, Features, Pass, Preprocess, each_image, read_image};
use crate::frozen::{Chosen, Examples, Options, Progress, Tokens, first_tokens};
use crate::linear::{Linear, Loss, Standardiser};

/// Share of the reference length within which a joint is correct.
const PCK_THRESHOLD: f64 = 0.2;
/// The box is enlarged by this, as in the published top-down protocol.
const PADDING: f64 = 1.25;
/// Standard deviation of the target around a joint, in positions of the grid.
const SIGMA: f64 = 1.0;
/// Most pixels of an enlarged box.
const MAX_REGION: f64 = 1e8;

/// How a heatmap becomes a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decoder {
    /// The largest logit, moved to the top of the parabola through it and its neighbours along each axis.
    Peak,
    /// The mean of the softmax over positions.
    Mean,
}

/// The figures of one set of predictions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoseScores {
    /// PCK with the longer diagonal of the torso; nobody is counted where the skeleton has no shoulders and hips.
    pub pck_torso: Pck,
    /// PCK with the longer side of the box.
    pub pck_box: Pck,
    /// OKS AP with the given boxes; `None` without sigmas.
    pub oks: Option<OksAp>,
}

/// The result, with its protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoseReport {
    /// What was done, in words.
    pub protocol: String,
    /// Names of the joints.
    pub joints: Vec<String>,
    /// Training people used.
    pub train_people: usize,
    /// Training people there are; more than those used if memory did not suffice.
    pub train_people_available: usize,
    /// People evaluated.
    pub eval_people: usize,
    /// Rows and columns of the heatmaps.
    pub grid: [usize; 2],
    /// Strength of the weight decay that was chosen.
    pub strength: f64,
    /// Decoder that was chosen.
    pub decoder: Decoder,
    /// The figures.
    pub scores: PoseScores,
    /// The figures of the mean training pose in every box: what the box alone tells.
    pub mean_pose: PoseScores,
}

/// The protocol in words.
pub fn protocol(
    preprocess: &Preprocess,
    options: &Options,
    grid: [usize; 2],
    decoder: Decoder,
    eval: &Path,
) -> String {
    let decoded = match decoder {
        Decoder::Peak => "the largest logit, refined by a parabola along each axis",
        Decoder::Mean => "the mean of the softmax over positions",
    };
    format!(
        "Frozen linear pose (our protocol): people in their given boxes, enlarged to the input's aspect and by {PADDING}, \
         resized to {preprocess}, the mean colour beyond the image; feature maps of the last {} stage(s) brought to {}x{} \
         positions (rows x columns, bilinear) and concatenated, standardised over split `{}`; a linear map per joint and a bias per joint and \
         position by L-BFGS (at most {} iterations, gradient to {:.0e} of the first) under a cross-entropy over positions, target a \
         Gaussian of {SIGMA} position; L2 strength and decoder are the best on every fifth training person and then used on \
         all. Decoded by {decoded}. No flip test. Evaluated on {}: PCK@{PCK_THRESHOLD} of the longer torso diagonal and of the \
         longer box side, mean over joints; OKS AP with the given boxes, score the mean of the largest probabilities.",
        options.stages,
        grid[0],
        grid[1],
        options.train_split,
        options.solver.iterations,
        options.solver.tolerance,
        eval.file_name().unwrap_or_default().display(),
    )
}

/// Opens the training split and the split to evaluate on (`test`, or else `val`) of a folder.
///
/// # Errors
/// If one of them is missing, or they have different joints.
pub fn open(
    folder: &Path,
    options: &Options,
) -> Result<(KeypointDataset, KeypointDataset), TaskError> {
    let train = KeypointDataset::open(folder, &options.train_split)?;
    let eval = match &options.eval_split {
        Some(split) => KeypointDataset::open(folder, split)?,
        None => match KeypointDataset::open(folder, "test") {
            Err(LayoutError::NotFound { .. } | LayoutError::NoSplitFile { .. }) => {
                KeypointDataset::open(folder, "val")?
            }
            other => other?,
        },
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
/// Fewer than five people, an image that cannot be read or is not as large as its file says, features that are not finite,
/// or a stop through `progress`.
pub fn evaluate<E: Extractor>(
    extractor: &E,
    preprocess: &Preprocess,
    train: &KeypointDataset,
    eval: &KeypointDataset,
    options: &Options,
    progress: &(dyn Fn(Progress) -> ControlFlow<()> + Sync),
) -> Result<PoseReport, TaskError> {
    let (joints, size, stages) = (
        train.joints.len(),
        [preprocess.height, preprocess.width],
        options.stages.max(1),
    );
    let (train_people, eval_people) = (usable(train, size), usable(eval, size));
    let too_few = |data: &KeypointDataset, found| TaskError::TooFew {
        what: data.file.display().to_string(),
        expected: "at least 5 people with a box and a labelled joint that fit into memory",
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
        |data: &KeypointDataset, subject: &Subject| -> Result<Option<Vec<f32>>, TaskError> {
            let picture = &data.images[subject.person.image];
            let image = read_image(&picture.path)?;
            if [image.height, image.width] != [picture.height, picture.width] {
                return Err(TaskError::Mismatch {
                    file: picture.path.display().to_string(),
                    expected: format!(
                        "{}x{} (height x width) as in the JSON",
                        picture.height, picture.width
                    ),
                    found: format!("{}x{}", image.height, image.width),
                });
            }
            Ok(Some(preprocess.apply(&padded_crop(
                &image,
                subject.region,
                preprocess.mean,
            ))))
        };
    let name = |data: &KeypointDataset, subject: &Subject| {
        let path = &data.images[subject.person.image].path;
        path.display().to_string()
    };
    let pass = Pass {
        stage: "first person",
        count: 1,
        size,
        stages,
        name: &|_| name(train, &train_people[0]),
    };
    let Tokens {
        height,
        width,
        channels,
        ..
    } = first_tokens(extractor, pass, options, |_| input(train, &train_people[0]))?;
    let (grid, positions) = ([height, width], height * width);
    let bytes = positions * (channels + joints) * size_of::<f32>();
    let used = options.training(train_people.len(), bytes);
    if used.len() < 5 {
        return Err(too_few(train, used.len()));
    }
    let subjects: Vec<&Subject> = used.iter().map(|&i| &train_people[i]).collect();
    let rows = each_image(
        extractor,
        Pass {
            stage: "training people",
            count: subjects.len(),
            name: &|i| name(train, subjects[i]),
            ..pass
        },
        options,
        |i| input(train, subjects[i]),
        |_, features| Ok(Tokens::new(features).values),
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
    let standardiser = Standardiser::fit(&features, channels);
    standardiser.apply(&mut features);

    let examples = Examples {
        features: &features,
        targets: &targets,
        positions,
        channels,
        outputs: joints,
        loss: &|targets| loss(targets, positions),
    };
    let (strength, start, decoder) = {
        let Chosen {
            strength,
            model,
            held,
            held_features,
        } = examples.choose(Linear::with_positions(channels, joints, positions), options);
        let held_subjects: Vec<&Subject> = held.iter().map(|&i| subjects[i]).collect();
        let logits = model.apply(&held_features);
        let score = |decoder| {
            let poses = logits.chunks_exact(positions * joints).zip(&held_subjects);
            let poses: Vec<Decoded> = poses
                .map(|(logits, subject)| {
                    decode(logits, grid, joints, decoder).placed(subject.region, grid)
                })
                .collect();
            scores(train, &held_subjects, &poses)
                .map(|s| s.pck_torso.mean.or(s.pck_box.mean).unwrap_or(0.0))
        };
        let decoder = if score(Decoder::Mean)? > score(Decoder::Peak)? {
            Decoder::Mean
        } else {
            Decoder::Peak
        };
        (strength, model, decoder)
    };
    let model = examples.fit(start, strength, &options.solver);
    drop((features, targets));

    let poses = each_image(
        extractor,
        Pass {
            stage: "evaluation people",
            count: eval_people.len(),
            name: &|i| name(eval, &eval_people[i]),
            ..pass
        },
        options,
        |i| input(eval, &eval_people[i]),
        |i, features: &Features| {
            let mut tokens = Tokens::new(features).values;
            standardiser.apply(&mut tokens);
            Ok(decode(&model.apply(&tokens), grid, joints, decoder)
                .placed(eval_people[i].region, grid))
        },
        progress,
    )?;
    let poses: Vec<Decoded> = poses.into_iter().flatten().collect();
    let judged: Vec<&Subject> = eval_people.iter().collect();
    let mean = mean_pose(&subjects, joints);
    let constant: Vec<Decoded> = judged
        .iter()
        .map(|subject| mean.placed(subject.region, [1, 1]))
        .collect();
    Ok(PoseReport {
        protocol: protocol(preprocess, options, grid, decoder, &eval.file),
        joints: train.joints.clone(),
        train_people: subjects.len(),
        train_people_available: train_people.len(),
        eval_people: judged.len(),
        grid,
        strength,
        decoder,
        scores: scores(eval, &judged, &poses)?,
        mean_pose: scores(eval, &judged, &constant)?,
    })
}

/// A person and the rectangle of the image that the backbone sees.
struct Subject<'a> {
    person: &'a KeypointAnnotation,
    /// x, y, width, height in whole pixels; may reach beyond the image.
    region: [i64; 4],
}

/// The people that can be evaluated: no crowds, with a labelled joint, and with a box that meets the image.
fn usable(data: &KeypointDataset, size: [usize; 2]) -> Vec<Subject<'_>> {
    let aspect = size[1] as f64 / size[0] as f64;
    let people = data
        .people
        .iter()
        .filter(|person| !person.crowd && person.labeled() > 0);
    people
        .filter_map(|person| {
            let image = &data.images[person.image];
            let region = region(person.bbox, [image.height, image.width], aspect)?;
            Some(Subject { person, region })
        })
        .collect()
}

/// The box, cut to the image as COCO's protocol does, enlarged to the aspect (width / height) and by [`PADDING`].
fn region(bbox: [f64; 4], image: [usize; 2], aspect: f64) -> Option<[i64; 4]> {
    let (left, top) = (bbox[0].max(0.0), bbox[1].max(0.0));
    let (right, bottom) = (
        (bbox[0] + bbox[2]).min(image[1] as f64),
        (bbox[1] + bbox[3]).min(image[0] as f64),
    );
    let (width, height) = (right - left, bottom - top);
    if !(width > 0.0 && height > 0.0) {
        return None;
    }
    let (x, y) = (left + width / 2.0, top + height / 2.0);
    let (width, height) = (
        width.max(height * aspect) * PADDING,
        height.max(width / aspect) * PADDING,
    );
    if width * height > MAX_REGION {
        return None;
    }
    let whole = |value: f64| value.round() as i64;
    Some([
        whole(x - width / 2.0),
        whole(y - height / 2.0),
        whole(width).max(1),
        whole(height).max(1),
    ])
}

/// A rectangle of an image, the mean colour where it reaches beyond.
fn padded_crop(image: &Rgb, [x, y, width, height]: [i64; 4], mean: [f32; 3]) -> Rgb {
    let colour = mean.map(|m| (m * 255.0).round() as u8);
    let mut crop = Rgb::filled(width as usize, height as usize, colour);
    let (from, to) = (
        x.clamp(0, image.width as i64),
        (x + width).clamp(0, image.width as i64),
    );
    for row in y.max(0)..(y + height).min(image.height as i64) {
        let source = &image.row(row as usize)[3 * from as usize..3 * to.max(from) as usize];
        let start = 3 * ((row - y) as usize * width as usize + (from - x).max(0) as usize);
        if !source.is_empty() {
            crop.pixels[start..start + source.len()].copy_from_slice(source);
        }
    }
    crop
}

fn loss(targets: &[f32], positions: usize) -> Loss<'_> {
    Loss::Positions {
        rows: positions,
        targets,
        total: targets.iter().map(|t| f64::from(*t)).sum(),
    }
}

/// Where a joint lies on the grid, in positions, the centre of the first at 0.
fn on_grid(joint: &[f64; 3], [x, y, width, height]: [i64; 4], grid: [usize; 2]) -> [f64; 2] {
    let place = |value: f64, start: i64, length: i64, cells: usize| {
        (value - start as f64) / length as f64 * cells as f64 - 0.5
    };
    [
        place(joint[0], x, width, grid[1]),
        place(joint[1], y, height, grid[0]),
    ]
}

/// Targets [positions, joints]: for each labelled joint a Gaussian that sums to 1, nothing for the others.
fn heatmaps(subject: &Subject, grid: [usize; 2]) -> Vec<f32> {
    let joints = subject.person.keypoints.len();
    let mut targets = vec![0.0; grid[0] * grid[1] * joints];
    for (j, joint) in subject
        .person
        .keypoints
        .iter()
        .enumerate()
        .filter(|(_, joint)| joint[2] > 0.0)
    {
        let [x, y] = on_grid(joint, subject.region, grid);
        let inside =
            |place: f64, cells: usize| place > -0.5 - SIGMA && place < cells as f64 - 0.5 + SIGMA;
        if !inside(x, grid[1]) || !inside(y, grid[0]) {
            continue;
        }
        let weight = |i: usize| {
            let (dx, dy) = ((i % grid[1]) as f64 - x, (i / grid[1]) as f64 - y);
            (-(dx * dx + dy * dy) / (2.0 * SIGMA * SIGMA)).exp()
        };
        let sum: f64 = (0..grid[0] * grid[1]).map(weight).sum();
        for i in 0..grid[0] * grid[1] {
            targets[i * joints + j] = (weight(i) / sum) as f32;
        }
    }
    targets
}

/// A pose on the grid, or, once placed, in the image.
struct Decoded {
    /// x, y of each joint.
    points: Vec<[f64; 2]>,
    /// Confidence in the pose.
    score: f64,
}

impl Decoded {
    /// From the grid to the image.
    fn placed(&self, [x, y, width, height]: [i64; 4], grid: [usize; 2]) -> Self {
        let place = |value: f64, start: i64, length: i64, cells: usize| {
            start as f64 + (value + 0.5) / cells as f64 * length as f64
        };
        let point = |p: &[f64; 2]| {
            [
                place(p[0], x, width, grid[1]),
                place(p[1], y, height, grid[0]),
            ]
        };
        Self {
            points: self.points.iter().map(point).collect(),
            score: self.score,
        }
    }
}

/// The points of heatmap logits [positions, joints].
fn decode(logits: &[f32], grid: [usize; 2], joints: usize, decoder: Decoder) -> Decoded {
    let (mut points, mut score) = (Vec::with_capacity(joints), 0.0);
    for j in 0..joints {
        let logit =
            |row: usize, column: usize| f64::from(logits[(row * grid[1] + column) * joints + j]);
        let places = || (0..grid[0]).flat_map(|row| (0..grid[1]).map(move |column| (row, column)));
        let mut best = (0, 0);
        for place in places() {
            if logit(place.0, place.1) > logit(best.0, best.1) {
                best = place;
            }
        }
        let largest = logit(best.0, best.1);
        let (mut sum, mut mean) = (0.0, [0.0; 2]);
        for (row, column) in places() {
            let weight = (logit(row, column) - largest).exp();
            sum += weight;
            mean[0] += weight * column as f64;
            mean[1] += weight * row as f64;
        }
        score += 1.0 / (sum * joints as f64);
        points.push(match decoder {
            Decoder::Mean => mean.map(|m| m / sum),
            Decoder::Peak => [
                best.1 as f64 + top_of_parabola(best.1, grid[1], |column| logit(best.0, column)),
                best.0 as f64 + top_of_parabola(best.0, grid[0], |row| logit(row, best.1)),
            ],
        });
    }
    Decoded { points, score }
}

/// How far from `place` the parabola through three neighbouring logits is highest: exact for a Gaussian, whose logarithm is
/// one. 0 at the border.
fn top_of_parabola(place: usize, cells: usize, logit: impl Fn(usize) -> f64) -> f64 {
    if place == 0 || place + 1 == cells {
        return 0.0;
    }
    let (before, at, after) = (logit(place - 1), logit(place), logit(place + 1));
    let bend = 2.0 * at - before - after;
    if bend > 0.0 {
        ((after - before) / (2.0 * bend)).clamp(-0.5, 0.5)
    } else {
        0.0
    }
}

/// The mean of the labelled joints as shares of the region; the middle for a joint that is never labelled.
fn mean_pose(subjects: &[&Subject], joints: usize) -> Decoded {
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
    Decoded {
        points: (0..joints).map(point).collect(),
        score: 1.0,
    }
}

/// The figures of predictions for `subjects`, in the image's coordinates.
fn scores(
    data: &KeypointDataset,
    subjects: &[&Subject],
    poses: &[Decoded],
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
            // Everybody in the images that were looked at, those who were not predicted included.
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

/// The part of an image that the backbone sees of a person, for pictures of it.
pub fn view(image: &Rgb, bbox: [f64; 4], preprocess: &Preprocess) -> Option<Rgb> {
    let aspect = preprocess.width as f64 / preprocess.height as f64;
    let region = region(bbox, [image.height, image.width], aspect)?;
    let crop = padded_crop(image, region, preprocess.mean);
    Some(image::resize(
        &crop,
        preprocess.height,
        preprocess.width,
        preprocess.filter,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fake, people, quiet};

    #[test]
    fn colours_find_joints_and_noise_does_not() {
        let folder = tempfile::tempdir().unwrap();
        people(folder.path());
        let options = Options::default();
        let (train, eval) = open(folder.path(), &options).unwrap();
        let run = |fake: Fake| {
            evaluate(
                &fake,
                &Preprocess::imagenet(64, 32),
                &train,
                &eval,
                &options,
                &quiet,
            )
            .unwrap()
        };
        let good = run(Fake::Colours);
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
        assert_eq!(run(Fake::Colours), good);
    }

    #[test]
    fn wrong_sizes_and_joints_are_named() {
        let folder = tempfile::tempdir().unwrap();
        people(folder.path());
        let options = Options::default();
        let (train, mut eval) = open(folder.path(), &options).unwrap();
        eval.images[0].width += 1;
        let run = evaluate(
            &Fake::Colours,
            &Preprocess::imagenet(64, 32),
            &train,
            &eval,
            &options,
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
            &Fake::Colours,
            &Preprocess::imagenet(64, 32),
            &train,
            &none,
            &options,
            &quiet,
        );
        assert!(matches!(run, Err(TaskError::TooFew { found: 0, .. })));
    }

    #[test]
    fn regions_keep_the_aspect_and_stay_finite() {
        // A box of 10 x 10 in the middle: the height becomes 20 for aspect 1/2, and both grow by a quarter.
        assert_eq!(
            region([45.0, 45.0, 10.0, 10.0], [100, 100], 0.5),
            Some([44, 38, 13, 25])
        );
        assert_eq!(region([200.0, 0.0, 10.0, 10.0], [100, 100], 0.5), None);
        assert_eq!(
            region([0.0, 0.0, 1e300, 1e300], [60_000, 60_000], 0.5),
            None
        );
    }

    #[test]
    fn crops_are_padded_with_the_mean_colour() {
        let image = Rgb::new(2, 2, (0..12).collect());
        let crop = padded_crop(&image, [-1, 1, 4, 2], [1.0, 0.0, 1.0]);
        let grey = [255, 0, 255];
        let expected = [grey, [6, 7, 8], [9, 10, 11], grey, grey, grey, grey, grey].concat();
        assert_eq!(crop, Rgb::new(4, 2, expected));
        assert_eq!(
            padded_crop(&image, [5, 5, 1, 1], [1.0, 0.0, 1.0]).pixels,
            grey
        );
    }

    #[test]
    fn a_gaussian_is_decoded_exactly() {
        let person = KeypointAnnotation {
            id: 1,
            image: 0,
            bbox: [0.0; 4],
            area: 1.0,
            crowd: false,
            keypoints: vec![[37.0, 90.0, 2.0], [0.0, 0.0, 0.0]],
        };
        let subject = Subject {
            person: &person,
            region: [0, 0, 100, 200],
        };
        let targets = heatmaps(&subject, [20, 10]);
        assert!((targets.iter().step_by(2).sum::<f32>() - 1.0).abs() < 1e-5);
        assert!(targets.iter().skip(1).step_by(2).all(|t| *t == 0.0));
        let logits: Vec<f32> = targets.iter().map(|t| t.max(1e-30).ln()).collect();
        for decoder in [Decoder::Peak, Decoder::Mean] {
            let [x, y] = decode(&logits, [20, 10], 2, decoder)
                .placed(subject.region, [20, 10])
                .points[0];
            assert!(
                (x - 37.0).abs() < 0.1 && (y - 90.0).abs() < 0.1,
                "{decoder:?}: {x} {y}"
            );
        }
    }
}
