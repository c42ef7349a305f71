//! Top-down pose: heatmaps by deconvolutions (Xiao et al., ECCV 2018), with the codings of MSRA, DARK and UDP.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use clasp_data::Rng as DataRng;
use clasp_data::augment::erase::normal;
use clasp_data::augment::warp;
use clasp_data::image::Rgb;
use clasp_data::layouts::coco::{CocoImage, KeypointAnnotation, KeypointDataset, read_boxes};
use clasp_data::layouts::sides::twins;
use clasp_metrics::pose::{
    OksAp, Pck, PosePair, PredictedPose, TruePose, oks_ap, oks_nms, pck, torso_length,
};
use clasp_model::backbone::Features;
use clasp_model::heads::{PoseHead, Training};
use clasp_model::layers::Rng;
use clasp_model::losses::heatmap_loss;
use clasp_model::mix::{Mix, PART};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::heatmaps::{Coding, Grid};
use super::picture;
use crate::TaskError;
use crate::features::{Preprocess, read_sized};
use crate::finetune::check;
use crate::finetune::model::{check_finite, values};
use crate::finetune::recipe::setting;
use crate::finetune::{
    Example, Losses, Model, Report, Running, Split, Stages, Task, file_name, left_out,
};
use clasp_weights::onnx::Output;

/// Pixels of the input per position of a heatmap.
const STRIDE: usize = 4;
/// Share of the reference length within which a joint is correct.
const PCK_THRESHOLD: f64 = 0.2;
/// A joint below this heatmap value does not count in the score of a pose.
const CONFIDENT: f64 = 0.2;
/// Half may be taken of a person with more labelled joints than this.
const HALF_BODY_JOINTS: usize = 8;
/// What the box of half a body is enlarged by, in the place of `padding`.
const HALF_BODY_PADDING: f64 = 1.5;
/// Probability of the upper half: published code takes it where a standard normal number is below 0.5.
const UPPER_HALF: f64 = 0.6915;
/// A region of more pixels than this is not a person.
const MAX_REGION: f64 = 1e9;

/// Section `[task]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Split to train on.
    pub train: String,
    /// Coding of heatmaps.
    pub coding: Coding,
    /// Standard deviation of a target in positions of the heatmap.
    pub sigma: f64,
    /// Width of the blur of DARK and UDP in positions, odd; 11 for σ = 2.
    pub blur: usize,
    /// Channels of the deconvolutions.
    pub width: usize,
    /// What a box is enlarged by.
    pub padding: f64,
    /// Probability of mirroring.
    pub flip: f64,
    /// Probability of taking the upper or the lower half of a body.
    pub half_body: f64,
    /// Most that the scale differs from 1; drawn from a normal distribution with that standard deviation.
    pub scale: f64,
    /// Standard deviation of the rotation in degrees, cut at twice that.
    pub rotation: f64,
    /// Probability of a rotation.
    pub rotation_probability: f64,
    /// Mean with the mirrored image.
    pub flip_test: bool,
    /// Move the mirrored heatmap by a position, as suits MSRA's coding (never done with UDP).
    pub shift_heatmap: bool,
    /// File of detected boxes in COCO's results format. Empty: the true boxes.
    pub boxes: PathBuf,
    /// Detected boxes below this score are left out.
    pub box_threshold: f64,
    /// Poses with a larger OKS to a better one are dropped.
    pub nms: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            train: "train".to_owned(),
            coding: Coding::Msra,
            sigma: 2.0,
            blur: 11,
            width: 256,
            padding: 1.25,
            flip: 0.5,
            half_body: 0.3,
            scale: 0.5,
            rotation: 40.0,
            rotation_probability: 0.6,
            flip_test: true,
            shift_heatmap: true,
            boxes: PathBuf::new(),
            box_threshold: 0.0,
            nms: 0.9,
        }
    }
}

/// Top-down pose.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoseTask {
    /// The settings.
    pub settings: Settings,
    /// Names of the joints.
    pub joints: Vec<String>,
    /// Bones, as pairs of joints.
    pub skeleton: Vec<[usize; 2]>,
    /// Joints that change places in a mirrored image.
    pub flip_pairs: Vec<[usize; 2]>,
    /// σ of each joint for OKS.
    pub sigmas: Option<Vec<f64>>,
}

/// People to train on.
#[derive(Debug)]
pub struct Data {
    keypoints: KeypointDataset,
    /// Positions of the people that can be trained on.
    usable: Vec<usize>,
}

/// People to find joints of.
#[derive(Debug)]
pub struct Eval {
    keypoints: KeypointDataset,
    /// What is looked at: image, box x, y, width, height, score of the box, the person where the box is a true one.
    boxes: Vec<Candidate>,
}

#[derive(Debug, Clone)]
struct Candidate {
    image: usize,
    bbox: [f64; 4],
    score: f64,
    person: Option<usize>,
}

/// A pose in an image.
#[derive(Debug, Clone)]
struct Found {
    points: Vec<[f64; 2]>,
    confidences: Vec<f64>,
    score: f64,
    area: f64,
}

/// Targets of a crop: heatmaps [joints, rows, columns], weights [joints].
#[derive(Debug, Clone)]
pub struct Target {
    heatmaps: Vec<f32>,
    weights: Vec<f32>,
}

/// The box, enlarged about its middle to the aspect (width / height) and by `padding`.
fn region([x, y, w, h]: [f64; 4], aspect: f64, padding: f64) -> [f64; 4] {
    let (cx, cy) = (x + w / 2.0, y + h / 2.0);
    let (w, h) = (w.max(h * aspect) * padding, h.max(w / aspect) * padding);
    [cx - w / 2.0, cy - h / 2.0, w, h]
}

/// A true box cut to its image, as the published protocol does; none if nothing is left.
fn cut([x, y, w, h]: [f64; 4], height: usize, width: usize) -> Option<[f64; 4]> {
    let (left, top) = (x.max(0.0), y.max(0.0));
    let right = (left + (w - 1.0).max(0.0)).min(width as f64 - 1.0);
    let bottom = (top + (h - 1.0).max(0.0)).min(height as f64 - 1.0);
    (right > left && bottom > top).then_some([left, top, right - left, bottom - top])
}

impl PoseTask {
    /// What to tell of labelled people whose box covers nothing of their image.
    fn left_out(&self, keypoints: &KeypointDataset) -> Vec<String> {
        let outside = |person: &&KeypointAnnotation| {
            let image = &keypoints.images[person.image];
            person.is_to_be_found() && cut(person.bbox, image.height, image.width).is_none()
        };
        let problems: Vec<String> = { keypoints.people.iter() }
            .filter(outside)
            .map(|person| {
                let CocoImage { width, height, .. } = keypoints.images[person.image];
                format!(
                    "the box {:?} (x, y, width, height) covers nothing of its image of {width} x {height}: left out",
                    person.bbox
                )
            })
            .collect();
        Vec::from_iter(left_out(&keypoints.file, &problems))
    }

    /// What to tell of joints that mirrored images would teach wrongly.
    fn unpaired(&self, keypoints: &KeypointDataset) -> Option<String> {
        let mirrors = self.settings.flip > 0.0 || self.settings.flip_test;
        if !mirrors || keypoints.unpaired.is_empty() {
            return None;
        }
        let names: Vec<&str> = { keypoints.unpaired.iter() }
            .map(|joint| keypoints.joints[*joint].as_str())
            .collect();
        Some(format!(
            "{}: no counterpart on the other side is known of {}, so that mirrored images teach wrong places: give the category \
             `flip_pairs` (pairs of joints counted from 0; [] if none changes places), or set task.flip = 0 and task.flip_test = false",
            keypoints.file.display(),
            names.join(", ")
        ))
    }

    fn aspect(preprocess: &Preprocess) -> f64 {
        preprocess.width as f64 / preprocess.height as f64
    }

    fn grid(preprocess: &Preprocess) -> Grid {
        Grid {
            rows: preprocess.height / STRIDE,
            columns: preprocess.width / STRIDE,
        }
    }

    fn check(&self, other: &KeypointDataset) -> Result<(), TaskError> {
        if self.joints == other.joints {
            return Ok(());
        }
        Err(TaskError::Mismatch {
            file: other.file.display().to_string(),
            expected: format!("the joints of the model: {}", self.joints.join(", ")),
            found: other.joints.join(", "),
        })
    }

    /// The poses of the people in some regions of images.
    fn find(
        &self,
        model: &Model<Self>,
        views: &[(&Rgb, [f64; 4])],
        first: usize,
    ) -> Result<Vec<Found>, TaskError> {
        let (preprocess, settings) = (&model.preprocess, &self.settings);
        let (height, width) = (preprocess.height, preprocess.width);
        let inputs: Vec<Rgb> = { views.iter() }
            .map(|(image, region)| {
                let forward = settings
                    .coding
                    .input_from_image(*region, height, width, 0.0);
                warp(
                    image,
                    &forward.inverse(),
                    height,
                    width,
                    preprocess.mean_colour(),
                )
            })
            .collect();
        let heatmaps = |images: &mut dyn Iterator<Item = Rgb>| -> Result<Vec<f32>, TaskError> {
            let pixels = images
                .flat_map(|image| preprocess.normalise(&image))
                .collect();
            let features = model.features(pixels, [views.len(), height, width]);
            let maps = model.head.forward(features.map, None);
            values(maps)
        };
        let mut maps = heatmaps(&mut inputs.iter().cloned())?;
        let (grid, joints) = (Self::grid(preprocess), self.joints.len());
        let area = grid.rows * grid.columns;
        if settings.flip_test {
            let other = heatmaps(&mut inputs.iter().map(clasp_data::image::flip))?;
            let shift = usize::from(settings.shift_heatmap && settings.coding != Coding::Udp);
            let twin = twins(&self.flip_pairs, joints);
            for (index, value) in maps.iter_mut().enumerate() {
                let (map, at) = (index / area, index % area);
                let (row, column) = (at / grid.columns, at % grid.columns);
                // out[1:] = out[:-1]: the first column stays.
                let source = if column == 0 { 0 } else { column - shift };
                let mirrored = grid.columns - 1 - source;
                let from = map / joints * joints + twin[map % joints];
                *value = (*value + other[from * area + row * grid.columns + mirrored]) / 2.0;
            }
        }
        check_finite(&maps, joints * area, first)?;
        let people = maps.chunks_exact(joints * area).zip(views);
        let person = |(maps, (_, region)): (&[f32], &(&Rgb, [f64; 4]))| {
            let (mut points, mut confidences) = (Vec::new(), Vec::new());
            for map in maps.chunks_exact(area) {
                let (point, value) = settings.coding.decode(map, grid, settings.blur);
                points.push(settings.coding.in_image(point, *region, grid));
                confidences.push(f64::from(value));
            }
            let sure: Vec<f64> = { confidences.iter() }
                .copied()
                .filter(|value| *value > CONFIDENT)
                .collect();
            let score = sure.iter().sum::<f64>() / sure.len().max(1) as f64;
            Found {
                points,
                confidences,
                score,
                area: region[2] * region[3],
            }
        };
        Ok(people.map(person).collect())
    }

    fn protocol(&self, preprocess: &Preprocess, eval: &Eval) -> String {
        let settings = &self.settings;
        let boxes = if settings.boxes.as_os_str().is_empty() {
            "true boxes cut to the image".to_owned()
        } else {
            format!(
                "boxes of {} with scores from {}",
                settings.boxes.file_name().unwrap_or_default().display(),
                settings.box_threshold,
            )
        };
        let grid = Self::grid(preprocess);
        let mirrored = match (
            settings.flip_test,
            settings.shift_heatmap && settings.coding != Coding::Udp,
        ) {
            (false, _) => "no mirror image",
            (true, false) => "mean with the mirror image",
            (true, true) => "mean with the mirror image, moved by a position",
        };
        format!(
            "Top-down pose, fine-tuned: {boxes}, enlarged to the input's aspect and by {}; input {}x{} (height x width), heatmaps {}x{}, coding {:?}, \
             {mirrored}. Score: that of the box times the mean of the heatmap values above {CONFIDENT}; poses of OKS above {} to a better one dropped. Evaluated on {}: OKS AP with at most 20 \
             people an image; PCK@{PCK_THRESHOLD} of the longer torso diagonal (true boxes only).",
            settings.padding,
            preprocess.height,
            preprocess.width,
            grid.rows,
            grid.columns,
            settings.coding,
            settings.nms,
            eval.keypoints
                .file
                .file_name()
                .unwrap_or_default()
                .display(),
        )
    }
}

impl Task for PoseTask {
    const NAME: &'static str = "pose";
    type Settings = Settings;
    type Data = Data;
    type Eval = Eval;
    type Head = PoseHead;
    type Target = Target;

    fn default_mix() -> Mix {
        Mix::single(PART)
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    fn check(settings: &Settings) -> Result<(), TaskError> {
        check::count("task.width", settings.width, [1, 4096])?;
        check::count("task.blur", settings.blur, [1, 255])?;
        if settings.blur.is_multiple_of(2) {
            return Err(setting("task.blur", "an odd number", settings.blur));
        }
        let shares = [
            ("task.flip", settings.flip),
            ("task.half_body", settings.half_body),
            ("task.rotation_probability", settings.rotation_probability),
            ("task.nms", settings.nms),
        ];
        check::within(&shares, [0.0, 1.0])?;
        check::within(&[("task.scale", settings.scale)], [0.0, 0.99])?;
        check::within(&[("task.rotation", settings.rotation)], [0.0, 180.0])?;
        let lengths = [
            ("task.sigma", settings.sigma),
            ("task.padding", settings.padding),
        ];
        check::within(&lengths, [0.1, 100.0])?;
        Ok(check::within(
            &[("task.box_threshold", settings.box_threshold)],
            [f64::MIN, f64::MAX],
        )?)
    }

    /// Heatmaps are as fine as deconvolutions make the coarsest map.
    fn check_size(size: [usize; 2], strides: &[usize]) -> Result<(), TaskError> {
        check::size(size, strides.iter().copied().max().unwrap_or(1).max(STRIDE))
    }

    fn open(
        settings: &Settings,
        folder: &Path,
        _: Option<&Split>,
    ) -> Result<(Self, Data), TaskError> {
        let keypoints = KeypointDataset::open(folder, &settings.train)?;
        let usable: Vec<usize> = { keypoints.people.iter().enumerate() }
            .filter(|(_, person)| {
                let image = &keypoints.images[person.image];
                person.is_to_be_found() && cut(person.bbox, image.height, image.width).is_some()
            })
            .map(|(index, _)| index)
            .collect();
        let task = Self {
            settings: settings.clone(),
            joints: keypoints.joints.clone(),
            skeleton: keypoints.skeleton.clone(),
            flip_pairs: keypoints.flip_pairs.clone(),
            sigmas: keypoints.sigmas.clone(),
        };
        Ok((task, Data { keypoints, usable }))
    }

    fn notes(&self, data: &Data) -> Vec<String> {
        let mut notes = self.left_out(&data.keypoints);
        notes.extend(self.unpaired(&data.keypoints));
        notes
    }

    fn open_eval(&self, folder: &Path, split: &Split) -> Result<Eval, TaskError> {
        let keypoints = split.open(|name| KeypointDataset::open(folder, name))?;
        self.check(&keypoints)?;
        let settings = &self.settings;
        let boxes = if settings.boxes.as_os_str().is_empty() {
            let people = keypoints.people.iter().enumerate();
            let candidate = |(index, person): (usize, &KeypointAnnotation)| {
                let image = &keypoints.images[person.image];
                let bbox = cut(person.bbox, image.height, image.width)?;
                person.is_to_be_found().then_some(Candidate {
                    image: person.image,
                    bbox,
                    score: 1.0,
                    person: Some(index),
                })
            };
            people.filter_map(candidate).collect()
        } else {
            detected(&settings.boxes, &keypoints, settings.box_threshold)?
        };
        if boxes.is_empty() {
            return Err(TaskError::TooFew {
                what: keypoints.file.display().to_string(),
                expected: "at least one person to look at",
                found: 0,
            });
        }
        Ok(Eval { keypoints, boxes })
    }

    fn files<'a>(&self, data: &'a Data) -> Vec<&'a Path> {
        let Data { keypoints, usable } = data;
        let images: BTreeSet<usize> = { usable.iter() }
            .map(|person| keypoints.people[*person].image)
            .collect();
        { images.into_iter() }
            .map(|image| keypoints.images[image].path.as_path())
            .collect()
    }

    fn examples(&self, data: &Data) -> usize {
        data.usable.len()
    }

    fn example(
        &self,
        data: &Data,
        index: usize,
        preprocess: &Preprocess,
        rng: &mut DataRng,
    ) -> Result<Example<Target>, TaskError> {
        let settings = &self.settings;
        let person = &data.keypoints.people[data.usable[index]];
        let picture = &data.keypoints.images[person.image];
        let mut image = read_sized(&picture.path, [picture.height, picture.width])?;
        let mut joints = person.keypoints.clone();
        let mut bbox = cut(person.bbox, image.height, image.width).unwrap_or(person.bbox);
        let mut padding = settings.padding;
        if rng.random::<f64>() < settings.half_body
            && let Some(half) = half_body(&self.joints, &joints, rng)
        {
            (bbox, padding) = (half, HALF_BODY_PADDING);
        }
        if rng.random::<f64>() < settings.flip {
            image = clasp_data::image::flip(&image);
            let last = image.width as f64 - 1.0;
            bbox[0] = last - bbox[0] - bbox[2];
            for joint in &mut joints {
                joint[0] = last - joint[0];
            }
            for [a, b] in &self.flip_pairs {
                joints.swap(*a, *b);
            }
        }
        let limit = settings.scale;
        let scale = (f64::from(normal(rng)) * limit + 1.0).clamp(1.0 - limit, 1.0 + limit);
        let turn = rng.random::<f64>() < settings.rotation_probability;
        let most = 2.0 * settings.rotation;
        let degrees = (f64::from(normal(rng)) * settings.rotation).clamp(-most, most);
        let region = region(bbox, Self::aspect(preprocess), padding * scale);
        if region[2] * region[3] > MAX_REGION {
            return Err(TaskError::Mismatch {
                file: data.keypoints.file.display().to_string(),
                expected: "boxes about as large as their images".to_owned(),
                found: format!(
                    "{:?} (x, y, width, height) of annotation {}",
                    person.bbox, person.id
                ),
            });
        }
        let (height, width) = (preprocess.height, preprocess.width);
        let degrees = if turn { degrees } else { 0.0 };
        let forward = settings
            .coding
            .input_from_image(region, height, width, degrees);
        let view = warp(
            &image,
            &forward.inverse(),
            height,
            width,
            preprocess.mean_colour(),
        );
        let grid = Self::grid(preprocess);
        let area = grid.rows * grid.columns;
        let mut target = Target {
            heatmaps: vec![0.0; joints.len() * area],
            weights: vec![0.0; joints.len()],
        };
        for (index, joint) in joints
            .iter()
            .enumerate()
            .filter(|(_, joint)| joint[2] > 0.0)
        {
            let point = forward.apply([joint[0], joint[1]]);
            let point = settings.coding.on_grid(point, grid, height, width);
            if let Some(map) = settings.coding.encode(point, grid, settings.sigma) {
                target.heatmaps[index * area..(index + 1) * area].copy_from_slice(&map);
                target.weights[index] = 1.0;
            }
        }
        Ok(Example {
            pixels: preprocess.normalise(&view),
            size: [preprocess.height, preprocess.width],
            target,
            key: format!("{} annotation {}", picture.path.display(), person.id),
        })
    }

    fn head(&self, stages: &Stages, rng: &mut Rng, device: &Device) -> Result<PoseHead, TaskError> {
        let stride = stages.strides.last().copied().unwrap_or(STRIDE);
        if stride < STRIDE || !(stride / STRIDE).is_power_of_two() || !stride.is_multiple_of(STRIDE)
        {
            let expected = "a backbone whose last map has 4, 8, 16, ... pixels a position";
            return Err(setting("model.backbone", expected, stride));
        }
        let doublings = (stride / STRIDE).ilog2() as usize;
        let channels = stages.channels.last().copied().unwrap_or(stages.pooled);
        Ok(PoseHead::init(
            channels,
            self.settings.width,
            doublings,
            self.joints.len(),
            rng,
            device,
        ))
    }

    fn outputs(&self, head: &PoseHead, features: Features) -> Vec<(String, Output)> {
        let heatmaps = head.forward(features.map, None);
        vec![("heatmaps".to_owned(), heatmaps.into())]
    }

    fn loss(
        &self,
        head: &PoseHead,
        features: &Features,
        targets: &[Target],
        training: &mut Training<'_>,
    ) -> Losses {
        let last = features.pyramid.last().unwrap_or(&features.map).clone();
        let predicted = head.forward(last, Some(training));
        let heatmaps = targets
            .iter()
            .flat_map(|target| target.heatmaps.clone())
            .collect();
        let weights = targets
            .iter()
            .flat_map(|target| target.weights.clone())
            .collect();
        Losses::sum([("heatmaps", heatmap_loss(predicted, heatmaps, weights), 1.0)])
    }

    fn evaluate(
        &self,
        model: &Model<Self>,
        eval: &Eval,
        running: &Running<'_>,
    ) -> Result<Report, TaskError> {
        let data = &eval.keypoints;
        let aspect = Self::aspect(&model.preprocess);
        let found = model.batches("people", eval.boxes.len(), running, |model, items| {
            // Boxes of an image follow one another, so that it is read once.
            let mut images: Vec<(usize, Rgb)> = Vec::new();
            for candidate in &eval.boxes[items.clone()] {
                if images.iter().all(|(index, _)| *index != candidate.image) {
                    let CocoImage {
                        path,
                        height,
                        width,
                        ..
                    } = &data.images[candidate.image];
                    images.push((candidate.image, read_sized(path, [*height, *width])?));
                }
            }
            let views: Vec<(&Rgb, [f64; 4])> = { eval.boxes[items.clone()].iter() }
                .filter_map(|candidate| {
                    let image = images.iter().find(|(index, _)| *index == candidate.image)?;
                    Some((
                        &image.1,
                        region(candidate.bbox, aspect, self.settings.padding),
                    ))
                })
                .collect();
            self.find(model, &views, items.start)
        })?;
        let mut kept: Vec<(&Candidate, Found)> = eval.boxes.iter().zip(found).collect();
        for (candidate, pose) in &mut kept {
            pose.score *= candidate.score;
        }
        // OKS is a matter of the data: what they say of their joints comes before what the model was trained with.
        let sigmas = data.sigmas.as_deref().or(self.sigmas.as_deref());
        if let Some(sigmas) = sigmas {
            kept = suppress(kept, sigmas, self.settings.nms);
        }
        let oks = average_precision(data, &kept, sigmas)?;
        let pck = correct_joints(data, &kept);
        let mut figures = oks.as_ref().map(oks_figures).unwrap_or_default();
        let pck_mean = pck.as_ref().and_then(|pck| pck.mean);
        figures.extend(pck_mean.map(|value| (format!("PCK@{PCK_THRESHOLD}"), value)));
        let table = pck.as_ref().map_or(String::new(), |pck| {
            let rows = self.joints.iter().zip(&pck.per_joint);
            rows.map(|(name, value)| {
                let value = value.map_or("-".to_owned(), |v| format!("{:.2}", 100.0 * v));
                format!("PCK of {name:<20} {value:>7}\n")
            })
            .collect()
        });
        let results: Vec<Value> = { kept.iter() }
            .map(|(candidate, pose)| {
                let triples = pose.points.iter().zip(&pose.confidences);
                let triples = triples.flat_map(|(p, c)| [p[0], p[1], *c]);
                json!({
                    "image_id": data.images[candidate.image].id,
                    "category_id": data.category,
                    "keypoints": triples.collect::<Vec<f64>>(),
                    "score": pose.score,
                })
            })
            .collect();
        Ok(Report {
            task: Self::NAME,
            protocol: self.protocol(&model.preprocess, eval),
            data: file_name(&data.file),
            loss: None,
            notes: self.left_out(data),
            figures,
            details: json!({"joints": self.joints, "oks": oks, "pck": pck, "people": kept.len()}),
            table,
            predictions: Value::from(results).to_string().into_bytes(),
        })
    }

    fn predict(&self, model: &Model<Self>, image: &Rgb) -> Result<Value, TaskError> {
        let whole = [0.0, 0.0, image.width as f64, image.height as f64];
        let region = region(whole, Self::aspect(&model.preprocess), 1.0);
        let found = self.find(model, &[(image, region)], 0)?;
        let joints: Vec<Value> = { found.iter() }
            .flat_map(|pose| {
                let joints = self.joints.iter().zip(&pose.points).zip(&pose.confidences);
                joints.map(
                    |((name, p), c)| json!({"joint": name, "x": p[0], "y": p[1], "confidence": c}),
                )
            })
            .collect();
        Ok(json!({"joints": joints, "score": found.first().map_or(0.0, |pose| pose.score)}))
    }

    fn draw(&self, image: &Rgb, prediction: &Value) -> Rgb {
        let mut drawn = image.clone();
        let joint = |index: usize| {
            let joint = &prediction["joints"][index];
            let number = |name: &str| joint[name].as_f64().unwrap_or(0.0);
            ([number("x"), number("y")], number("confidence"))
        };
        let thick = picture::stroke(image);
        for (index, [a, b]) in self.skeleton.iter().enumerate() {
            let ((from, first), (to, second)) = (joint(*a), joint(*b));
            if first.min(second) > CONFIDENT {
                picture::line(&mut drawn, from, to, thick, picture::colour(index));
            }
        }
        for index in 0..self.joints.len() {
            let (point, confidence) = joint(index);
            if confidence > CONFIDENT {
                picture::dot(&mut drawn, point, 2 * thick + 1, [255; 3]);
            }
        }
        drawn
    }

    const MARGIN: f64 = 1.25;

    fn moved(&self, mut prediction: Value, at: [f64; 2]) -> Value {
        for joint in prediction["joints"].as_array_mut().into_iter().flatten() {
            for (axis, start) in ["x", "y"].into_iter().zip(at) {
                joint[axis] = json!(joint[axis].as_f64().unwrap_or(0.0) + start);
            }
        }
        prediction
    }
}

/// Half of a person with enough joints: a box as large as the joints above or below the hips, about their mean; the halves' names are
/// COCO's, and a skeleton without shoulders and ankles has none.
fn half_body(names: &[String], joints: &[[f64; 3]], rng: &mut DataRng) -> Option<[f64; 4]> {
    let labelled = |index: &usize| joints[*index][2] > 0.0;
    if (0..joints.len()).filter(labelled).count() <= HALF_BODY_JOINTS {
        return None;
    }
    let low = |name: &str| {
        let name = name.to_lowercase();
        ["hip", "knee", "ankle"]
            .iter()
            .any(|part| name.contains(part))
    };
    let (lower, upper): (Vec<usize>, Vec<usize>) = (0..joints.len())
        .filter(labelled)
        .partition(|index| low(&names[*index]));
    let first = if rng.random_bool(UPPER_HALF) {
        [upper, lower]
    } else {
        [lower, upper]
    };
    let half = first.into_iter().find(|half| half.len() > 2)?;
    let range = |axis: usize| {
        let places = half.iter().map(|index| joints[*index][axis]);
        let (low, high) = (
            places.clone().fold(f64::MAX, f64::min),
            places.fold(f64::MIN, f64::max),
        );
        (low, high)
    };
    let ((left, right), (top, bottom)) = (range(0), range(1));
    let middle: Vec<f64> = (0..2)
        .map(|axis| half.iter().map(|index| joints[*index][axis]).sum::<f64>() / half.len() as f64)
        .collect();
    let (w, h) = ((right - left).max(1.0), (bottom - top).max(1.0));
    Some([middle[0] - w / 2.0, middle[1] - h / 2.0, w, h])
}

/// Boxes of people in COCO's results format; those of other images than these are of no use here.
fn detected(
    path: &Path,
    data: &KeypointDataset,
    threshold: f64,
) -> Result<Vec<Candidate>, TaskError> {
    let images: HashMap<u64, usize> = { data.images.iter().enumerate() }
        .map(|(index, image)| (image.id, index))
        .collect();
    let found = read_boxes(path, data.category)?;
    let all = found.len();
    let mut boxes: Vec<Candidate> = { found.into_iter() }
        .filter(|one| one.score >= threshold)
        .filter_map(|one| {
            Some(Candidate {
                image: *images.get(&one.image)?,
                bbox: one.bbox,
                score: one.score,
                person: None,
            })
        })
        .collect();
    if boxes.is_empty() {
        return Err(TaskError::Mismatch {
            file: path.display().to_string(),
            expected: format!(
                "boxes of category {} with scores from {threshold} in images of {}",
                data.category,
                data.file.display()
            ),
            found: format!("none among {all} detections of people"),
        });
    }
    boxes.sort_by_key(|candidate| candidate.image);
    Ok(boxes)
}

/// Poses of each image left by OKS-NMS.
fn suppress<'a>(
    poses: Vec<(&'a Candidate, Found)>,
    sigmas: &[f64],
    threshold: f64,
) -> Vec<(&'a Candidate, Found)> {
    let mut images: BTreeMap<usize, Vec<(&Candidate, Found)>> = BTreeMap::new();
    for pose in poses {
        images.entry(pose.0.image).or_default().push(pose);
    }
    let mut kept = Vec::new();
    for poses in images.into_values() {
        let points: Vec<&[[f64; 2]]> = poses.iter().map(|(_, p)| p.points.as_slice()).collect();
        let areas: Vec<f64> = poses.iter().map(|(_, p)| p.area).collect();
        let scores: Vec<f64> = poses.iter().map(|(_, p)| p.score).collect();
        let best = oks_nms(&points, &areas, &scores, sigmas, threshold);
        let poses = poses.into_iter().enumerate();
        kept.extend(
            poses
                .filter(|(i, _)| best.contains(i))
                .map(|(_, pose)| pose),
        );
    }
    kept
}

/// The figures of OKS AP to quote.
pub(crate) fn oks_figures(oks: &OksAp) -> Vec<(String, f64)> {
    let parts = [
        ("OKS AP", oks.ap),
        ("AP.5", oks.ap50),
        ("AP.75", oks.ap75),
        ("AP(M)", oks.ap_medium),
        ("AP(L)", oks.ap_large),
        ("AR", oks.ar),
        ("AR.5", oks.ar50),
        ("AR.75", oks.ar75),
        ("AR(M)", oks.ar_medium),
        ("AR(L)", oks.ar_large),
    ];
    let known = parts.into_iter();
    known
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect()
}

/// The people of the data, for OKS AP.
pub(crate) fn true_poses(data: &KeypointDataset) -> Vec<TruePose> {
    { data.people.iter() }
        .map(|person| TruePose {
            image: person.image as u64,
            keypoints: person.keypoints.clone(),
            bbox: person.bbox,
            area: person.area,
            crowd: person.crowd,
        })
        .collect()
}

fn average_precision(
    data: &KeypointDataset,
    found: &[(&Candidate, Found)],
    sigmas: Option<&[f64]>,
) -> Result<Option<OksAp>, TaskError> {
    let Some(sigmas) = sigmas else {
        return Ok(None);
    };
    let truths = true_poses(data);
    let predicted: Vec<PredictedPose> = { found.iter() }
        .map(|(candidate, pose)| PredictedPose {
            image: candidate.image as u64,
            keypoints: pose.points.clone(),
            score: pose.score,
        })
        .collect();
    Ok(Some(oks_ap(&truths, &predicted, sigmas)?))
}

fn correct_joints(data: &KeypointDataset, found: &[(&Candidate, Found)]) -> Option<Pck> {
    let diagonals = data.torso_diagonals();
    let truths: Vec<(Vec<[f64; 2]>, Vec<bool>)> = { found.iter() }
        .filter_map(|(candidate, _)| {
            let joints = data.people[candidate.person?].keypoints.iter();
            Some(joints.map(|k| ([k[0], k[1]], k[2] > 0.0)).unzip())
        })
        .collect();
    if truths.is_empty() {
        return None;
    }
    let pairs: Vec<PosePair> = { truths.iter().zip(found) }
        .map(|((points, visible), (_, pose))| PosePair {
            truth: points,
            visible,
            predicted: &pose.points,
            length: torso_length(points, visible, &diagonals),
        })
        .collect();
    Some(pck(&pairs, PCK_THRESHOLD))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_cut_and_enlarged_as_published() {
        assert_eq!(
            cut([-5.0, 2.0, 20.0, 10.0], 100, 50),
            Some([0.0, 2.0, 19.0, 9.0])
        );
        assert_eq!(
            cut([45.0, 2.0, 20.0, 10.0], 100, 50),
            Some([45.0, 2.0, 4.0, 9.0])
        );
        assert_eq!(cut([60.0, 2.0, 20.0, 10.0], 100, 50), None);
        assert_eq!(cut([10.0, 2.0, 1.0, 10.0], 100, 50), None);
        assert_eq!(
            region([10.0, 10.0, 30.0, 80.0], 0.75, 1.25),
            [-12.5, 0.0, 75.0, 100.0]
        );
    }

    #[test]
    fn joints_that_mirrored_images_would_move_wrongly_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let told = |joints: &str, settings: &Settings| {
            let text = format!(
                r#"{{"images": [{{"id": 1, "file_name": "a.jpg", "width": 40, "height": 80}}],
                "annotations": [{{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40], "area": 6, "keypoints": [5, 6, 2, 7, 8, 2]}}],
                "categories": [{{"id": 1, "keypoints": {joints}}}]}}"#
            );
            fs_err::write(folder.path().join("person_keypoints_train.json"), text).unwrap();
            let (task, data) = PoseTask::open(settings, folder.path(), None).unwrap();
            task.notes(&data).concat()
        };
        let usual = Settings::default();
        let note = told(r#"["left_hip", "head"]"#, &usual);
        assert!(
            note.contains("person_keypoints_train.json: no counterpart"),
            "{note}"
        );
        assert!(
            note.contains("left_hip, head") && note.contains("`flip_pairs`"),
            "{note}"
        );
        let still = Settings {
            flip: 0.0,
            flip_test: false,
            ..Settings::default()
        };
        assert_eq!(told(r#"["left_hip", "head"]"#, &still), "");
        assert_eq!(told(r#"["LHip", "RHip"]"#, &usual), "");
        assert_eq!(
            told(r#"["left_hip", "head"], "flip_pairs": []"#, &usual),
            ""
        );
    }

    #[test]
    fn of_two_poses_alike_the_better_stays() {
        let candidate = |image| Candidate {
            image,
            bbox: [0.0; 4],
            score: 1.0,
            person: None,
        };
        let (here, there) = (candidate(0), candidate(1));
        let pose = |shift: f64, score| Found {
            points: vec![[10.0 + shift, 10.0], [50.0 + shift, 90.0]],
            confidences: vec![1.0; 2],
            score,
            area: 100.0 * 100.0,
        };
        let poses = vec![
            (&here, pose(0.0, 0.5)),
            (&here, pose(0.5, 0.9)),
            (&there, pose(0.0, 0.4)),
            (&here, pose(40.0, 0.3)),
        ];
        let kept = suppress(poses, &[0.05, 0.05], 0.9);
        let scores: Vec<f64> = kept.iter().map(|(_, pose)| pose.score).collect();
        assert_eq!(scores, [0.9, 0.3, 0.4]);
    }

    #[test]
    fn half_a_body_needs_joints() {
        let names: Vec<String> = clasp_data::layouts::coco::COCO_JOINTS
            .map(str::to_owned)
            .to_vec();
        let mut joints: Vec<[f64; 3]> = (0..17)
            .map(|i| [f64::from(i), 2.0 * f64::from(i), 2.0])
            .collect();
        let mut rng = clasp_data::rng_for(0, 0, "half");
        let [x, y, w, h] = half_body(&names, &joints, &mut rng).unwrap();
        // Joints 0 to 10 or 11 to 16.
        assert!(
            (x + w / 2.0 - 5.0).abs() < 1e-9 || (x + w / 2.0 - 13.5).abs() < 1e-9,
            "{x} {y} {w} {h}"
        );
        joints.iter_mut().skip(5).for_each(|joint| joint[2] = 0.0);
        assert_eq!(half_body(&names, &joints, &mut rng), None);
    }
}
