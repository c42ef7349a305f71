//! Person search in two stages, SeqNet (Li and Miao, AAAI 2021): how its head is trained, and what it finds in a scene.
//!
//! Numbers are those of SOLIDER's person search and of torchvision's detectors, which it is made of.

use burn::tensor::{Int, Tensor, TensorData};
use clasp_data::image::Rgb;
use clasp_metrics::detection::{iou, nms};
use clasp_model::backbone::Features;
use clasp_model::heads::regions::Region;
use clasp_model::heads::{Training, TwoStageHead};
use clasp_model::layers::Rng;
use clasp_model::losses::{OimMemory, box_loss, objectness_loss};
use clasp_model::swin::LastStage;
use clasp_weights::onnx::Output;
use serde::{Deserialize, Serialize};

use super::Settings;
use super::regions::{SMALLEST, Stands, anchors, best, clip, decode, encode, sample, stand};
use crate::TaskError;
use crate::detection::scenes::{Found, Input, Target, Views, batch_size};
use crate::finetune::check;
use crate::finetune::model::{check_finite, values};
use crate::finetune::recipe::setting;
use crate::finetune::{Losses, Model, Stages, Task, read};

/// Overlap below which an anchor stands for nobody, and from which for somebody.
const ANCHOR_OVERLAP: [f64; 2] = [0.3, 0.7];
/// The same of a region.
const REGION_OVERLAP: [f64; 2] = [0.5, 0.5];
/// Overlap of proposals above which only the better stays.
const PROPOSAL_NMS: f64 = 0.7;
/// Weights of deltas of anchors and of regions.
const ANCHOR_WEIGHTS: [f64; 4] = [1.0; 4];
const REGION_WEIGHTS: [f64; 4] = [10.0, 10.0, 5.0, 5.0];
/// Where the loss of an anchor's box becomes linear, and that of a region's.
const ANCHOR_BETA: f64 = 1.0 / 9.0;
const REGION_BETA: f64 = 1.0;

/// Section `[task.regions]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Regions {
    /// Sizes of anchors, roots of their areas in pixels.
    pub anchors: Vec<f64>,
    /// Heights over widths of anchors.
    pub ratios: Vec<f64>,
    /// Best anchors that are looked at before suppression, in training and in use.
    pub candidates: [usize; 2],
    /// Regions that are proposed for an image, in training and in use.
    pub proposals: [usize; 2],
    /// Anchors and regions of an image that the losses see.
    pub sampled: [usize; 2],
    /// Weight of the loss of boxes after the first look.
    pub box_weight: f64,
    /// Overlap with a better box above which a box is dropped after the first look; `views.nms` holds after the second.
    pub nms: f64,
}

impl Default for Regions {
    fn default() -> Self {
        Self {
            anchors: vec![32.0, 64.0, 128.0, 256.0, 512.0],
            ratios: vec![0.5, 1.0, 2.0],
            candidates: [12_000, 6_000],
            proposals: [2_000, 300],
            sampled: [256, 128],
            box_weight: 10.0,
            nms: 0.4,
        }
    }
}

impl Regions {
    /// Checks the values.
    ///
    /// # Errors
    /// One is out of range.
    pub fn check(&self) -> Result<(), TaskError> {
        check::count(
            "number of task.regions.anchors",
            self.anchors.len(),
            [1, 32],
        )?;
        check::count("number of task.regions.ratios", self.ratios.len(), [1, 32])?;
        for size in &self.anchors {
            check::within(&[("task.regions.anchors", *size)], [1.0, 10_000.0])?;
        }
        for ratio in &self.ratios {
            check::within(&[("task.regions.ratios", *ratio)], [0.01, 100.0])?;
        }
        for (key, [one, other], most) in [
            ("task.regions.candidates", self.candidates, 1_000_000),
            ("task.regions.proposals", self.proposals, 100_000),
            ("task.regions.sampled", self.sampled, 100_000),
        ] {
            check::count(key, one, [2, most])?;
            check::count(key, other, [2, most])?;
        }
        check::within(&[("task.regions.box_weight", self.box_weight)], [0.0, 1e4])?;
        Ok(check::within(
            &[("task.regions.nms", self.nms)],
            [0.0, 1.0],
        )?)
    }

    /// Anchors at each position.
    pub fn anchors_of_a_position(&self) -> usize {
        self.anchors.len() * self.ratios.len()
    }
}

/// The channels of the map that regions are cut from and of the last stage, and two copies of the last stage.
///
/// # Errors
/// The backbone is no Swin of several stages.
pub fn last_stages(stages: &Stages) -> Result<([usize; 2], [LastStage; 2]), TaskError> {
    let copy = || stages.backbone.last_stage(stages.mix);
    match (stages.channels.as_slice(), copy(), copy()) {
        ([.., before, last], Some(first), Some(second)) => Ok(([*before, *last], [first, second])),
        _ => {
            let expected = "one-stage for a backbone that is no Swin of several stages";
            Err(setting("task.head", expected, "two-stage"))
        }
    }
}

/// What is proposed, and the map that regions are cut from: all that does not depend on what is found.
pub fn outputs(head: &TwoStageHead, pyramid: &[Tensor<4>]) -> Vec<(String, Output)> {
    let map = head.map(base(pyramid));
    let proposals = head.propose(map.clone());
    vec![
        ("objectness".to_owned(), proposals.objectness.into()),
        ("deltas".to_owned(), proposals.deltas.into()),
        ("map".to_owned(), map.into()),
    ]
}

/// The map before the last stage.
fn base(pyramid: &[Tensor<4>]) -> Tensor<4> {
    pyramid[pyramid.len() - 2].clone()
}

/// What the first step makes of a batch: for each image the anchors, what the network says of them, and what they become.
struct Proposed {
    /// [images · positions · anchors].
    objectness: Tensor<1>,
    /// [images · positions · anchors, 4].
    deltas: Tensor<2>,
    anchors: Vec<[f64; 4]>,
    /// Of each image, best first.
    boxes: Vec<Vec<[f64; 4]>>,
}

fn propose(
    head: &TwoStageHead,
    map: &Tensor<4>,
    sizes: &[[usize; 2]],
    stride: usize,
    settings: &Regions,
    [candidates, most]: [usize; 2],
) -> Proposed {
    let proposals = head.propose(map.clone());
    let [batch, each, rows, columns] = proposals.objectness.dims();
    let count = rows * columns * each;
    let objectness = proposals
        .objectness
        .permute([0, 2, 3, 1])
        .reshape([batch * count]);
    let deltas = { proposals.deltas.reshape([batch, each, 4, rows, columns]) }
        .permute([0, 3, 4, 1, 2])
        .reshape([batch * count, 4]);
    let anchors = anchors(&settings.anchors, &settings.ratios, stride, [rows, columns]);
    let (scores, moved) = (read(&objectness), read(&deltas));
    let boxes = { sizes.iter().enumerate() }
        .map(|(image, size)| {
            let scores = &scores[image * count..][..count];
            let moved = &moved.as_chunks::<4>().0[image * count..][..count];
            let moved = moved
                .iter()
                .zip(&anchors)
                .map(|(deltas, anchor)| clip(decode(*deltas, *anchor, ANCHOR_WEIGHTS), *size));
            best(moved.collect(), scores, PROPOSAL_NMS, [candidates, most])
        })
        .collect();
    Proposed {
        objectness,
        deltas,
        anchors,
        boxes,
    }
}

/// Pixels of an input of that height and width per position of its map.
fn stride([height, _]: [usize; 2], map: &Tensor<4>) -> usize {
    height / map.dims()[2]
}

/// A region on the map of a box in pixels.
fn region(image: usize, [x, y, w, h]: [f64; 4], stride: usize) -> Region {
    let corners = [x, y, x + w, y + h].map(|at| (at / stride as f64) as f32);
    Region { image, corners }
}

/// The truth of an image.
struct Truth {
    people: Vec<[f64; 4]>,
    /// Neither to be found nor an error.
    ignored: Vec<[f64; 4]>,
    /// Who the people are, as classes.
    persons: Vec<Option<usize>>,
}

impl Truth {
    fn of(target: &Target) -> Self {
        let mut truth = Self {
            people: Vec::new(),
            ignored: Vec::new(),
            persons: Vec::new(),
        };
        for one in &target.people {
            let bbox = clip(one.bbox, target.size);
            if one.ignored || bbox[2] < SMALLEST || bbox[3] < SMALLEST {
                truth.ignored.push(bbox);
            } else {
                truth.people.push(bbox);
                truth.persons.push(one.person);
            }
        }
        truth
    }

    fn stand(&self, boxes: &[[f64; 4]], overlap: [f64; 2], keep_best: bool) -> Vec<Stands> {
        let mut found = stand(&self.people, boxes, overlap, keep_best);
        for (stands, bbox) in found.iter_mut().zip(boxes) {
            let ignored = |other: &[f64; 4]| iou(*other, *bbox) >= overlap[0];
            if *stands == Stands::Nobody && self.ignored.iter().any(ignored) {
                *stands = Stands::Neither;
            }
        }
        found
    }
}

/// Boxes of a batch to train on.
#[derive(Default)]
struct Chosen {
    /// The image and the box.
    boxes: Vec<(usize, [f64; 4])>,
    /// 1 for somebody.
    labels: Vec<f32>,
    /// Where somebody's boxes stand in `boxes`, what their deltas should be, and who they are.
    places: Vec<i32>,
    targets: Vec<[f32; 4]>,
    persons: Vec<Option<usize>>,
}

impl Chosen {
    /// Proposed and true boxes of each image, sampled.
    fn new(boxes: &[Vec<[f64; 4]>], truths: &[Truth], count: usize, rng: &mut Rng) -> Self {
        let mut chosen = Self::default();
        for (image, (boxes, truth)) in boxes.iter().zip(truths).enumerate() {
            let boxes = [boxes.as_slice(), &truth.people].concat();
            let stands = truth.stand(&boxes, REGION_OVERLAP, false);
            for at in sample(&stands, count, rng) {
                if let Stands::For(person) = stands[at] {
                    chosen.places.push(chosen.boxes.len() as i32);
                    let target = encode(truth.people[person], boxes[at], REGION_WEIGHTS);
                    chosen.targets.push(target);
                    chosen.persons.push(truth.persons[person]);
                }
                chosen
                    .labels
                    .push(f32::from(u8::from(stands[at] != Stands::Nobody)));
                chosen.boxes.push((image, boxes[at]));
            }
        }
        chosen
    }

    fn regions(&self, stride: usize) -> Vec<Region> {
        let boxes = self.boxes.iter();
        boxes
            .map(|(image, bbox)| region(*image, *bbox, stride))
            .collect()
    }

    /// The loss of the boxes of somebody.
    fn box_loss(&self, deltas: Tensor<2>) -> Tensor<1> {
        let loss = |deltas| box_loss(deltas, &self.targets, REGION_BETA, self.boxes.len());
        pick(deltas, &self.places, loss)
    }
}

/// What `loss` makes of some rows of a tensor; 0 with none.
fn pick(rows: Tensor<2>, places: &[i32], loss: impl FnOnce(Tensor<2>) -> Tensor<1>) -> Tensor<1> {
    if places.is_empty() {
        return rows.sum() * 0.0;
    }
    let places = Tensor::<1, Int>::from_data(TensorData::from(places), &rows.device());
    loss(rows.select(0, places))
}

/// The losses of a batch; what is remembered of people goes out through `training`.
pub fn losses(
    head: &TwoStageHead,
    memory: &OimMemory,
    features: &Features,
    batch: &[Target],
    settings: &Settings,
    training: &mut Training<'_>,
) -> Losses {
    let regions = &settings.regions;
    let truths: Vec<Truth> = batch.iter().map(Truth::of).collect();
    let sizes: Vec<[usize; 2]> = batch.iter().map(|target| target.size).collect();
    let map = head.map(base(&features.pyramid));
    let stride = stride(batch_size(batch), &map);
    let limits = [regions.candidates[0], regions.proposals[0]];
    let proposed = propose(head, &map, &sizes, stride, regions, limits);

    // Anchors.
    let (mut seen, mut labels) = (Vec::new(), Vec::new());
    let (mut places, mut targets) = (Vec::new(), Vec::new());
    let count = proposed.anchors.len();
    for (image, truth) in truths.iter().enumerate() {
        let stands = truth.stand(&proposed.anchors, ANCHOR_OVERLAP, true);
        for at in sample(&stands, regions.sampled[0], training.rng) {
            let place = (image * count + at) as i32;
            if let Stands::For(person) = stands[at] {
                places.push(place);
                let anchor = proposed.anchors[at];
                targets.push(encode(truth.people[person], anchor, ANCHOR_WEIGHTS));
            }
            labels.push(f32::from(u8::from(stands[at] != Stands::Nobody)));
            seen.push(place);
        }
    }
    let device = map.device();
    let at = Tensor::<1, Int>::from_data(TensorData::from(seen.as_slice()), &device);
    let anchor_class = objectness_loss(proposed.objectness.select(0, at), &labels);
    let of_boxes = |deltas| box_loss(deltas, &targets, ANCHOR_BETA, seen.len());
    let anchor_box = pick(proposed.deltas, &places, of_boxes);

    // The first look, and the boxes that it makes of regions.
    let first = Chosen::new(&proposed.boxes, &truths, regions.sampled[1], training.rng);
    let looked = head.look(map.clone(), &first.regions(stride), Some(&mut *training));
    let class = looked.class;
    let somebody = class.clone().narrow(1, 1, 1) - class.narrow(1, 0, 1);
    let first_class = objectness_loss(somebody.squeeze_dim::<1>(1), &first.labels);
    let moved = read(&looked.deltas);
    let mut better = vec![Vec::new(); batch.len()];
    for ((image, bbox), deltas) in first.boxes.iter().zip(moved.as_chunks::<4>().0) {
        let bbox = clip(decode(*deltas, *bbox, REGION_WEIGHTS), sizes[*image]);
        if bbox[2] >= SMALLEST && bbox[3] >= SMALLEST {
            better[*image].push(bbox);
        }
    }
    let first_box = first.box_loss(looked.deltas);

    // The second look.
    let second = Chosen::new(&better, &truths, regions.sampled[1], training.rng);
    let known = head.recognise(map, &second.regions(stride), Some(&mut *training));
    let second_class = objectness_loss(known.score, &second.labels);
    let second_box = second.box_loss(known.deltas);
    let identity = pick(known.embedding, &second.places, |embedding| {
        let loss = memory.loss(embedding.clone(), &second.persons, settings.scalar);
        memory.follow(embedding, &second.persons, settings.momentum, training);
        loss
    });
    Losses::sum([
        ("anchor class", anchor_class, 1.0),
        ("anchor box", anchor_box, 1.0),
        ("first class", first_class, 1.0),
        ("first box", first_box, regions.box_weight),
        ("second class", second_class, 1.0),
        ("second box", second_box, 1.0),
        ("identity", identity, settings.identity_weight),
    ])
}

/// A scene as the network sees it.
pub struct Seen<'a> {
    head: &'a TwoStageHead,
    map: Tensor<4>,
    stride: usize,
    size: [usize; 2],
    /// Pixels of the network's input per pixel of the scene, along x and y.
    scale: [f64; 2],
    index: usize,
}

impl<'a> Seen<'a> {
    /// Runs a model's backbone on a scene.
    ///
    /// # Errors
    /// The scene is too large.
    pub fn new<T: Task>(
        model: &Model<T>,
        head: &'a TwoStageHead,
        image: &Rgb,
        views: &Views,
        index: usize,
    ) -> Result<Self, TaskError> {
        let input = Input::new(image, views, &model.preprocess)?;
        let [height, width] = input.padded;
        let features = model.features(input.pixels, [1, height, width]);
        let map = head.map(base(&features.pyramid));
        Ok(Self {
            head,
            stride: stride(input.padded, &map),
            map,
            size: input.size,
            scale: input.scale,
            index,
        })
    }

    /// The people, best first, after suppression.
    ///
    /// # Errors
    /// [`TaskError::Device`], [`TaskError::NotFinite`].
    pub fn people(&self, views: &Views, settings: &Regions) -> Result<Vec<Found>, TaskError> {
        let limits = [settings.candidates[1], settings.proposals[1]];
        let sizes = [self.size];
        let proposed = propose(self.head, &self.map, &sizes, self.stride, settings, limits);
        let proposals: Vec<[f64; 4]> = proposed.boxes.into_iter().flatten().collect();
        let regions = self.regions(&proposals);
        if regions.is_empty() {
            return Ok(Vec::new());
        }
        let looked = self.head.look(self.map.clone(), &regions, None);
        let (class, deltas) = (values(looked.class)?, values(looked.deltas)?);
        check_finite(&class, class.len(), self.index)?;
        let score = |class: &[f32; 2]| 1.0 / (1.0 + f64::from(class[0] - class[1]).exp());
        let moved = self.moved(&proposals, &deltas);
        let (boxes, scores): (Vec<[f64; 4]>, Vec<f64>) = { moved.into_iter() }
            .zip(class.as_chunks::<2>().0.iter().map(score))
            .filter(|(bbox, score)| *score > views.score && bbox[2].min(bbox[3]) >= SMALLEST)
            .unzip();
        let mut kept = nms(&boxes, &scores, settings.nms);
        kept.truncate(views.most);
        if kept.is_empty() {
            return Ok(Vec::new());
        }
        let boxes: Vec<[f64; 4]> = kept.iter().map(|at| boxes[*at]).collect();
        // The score of the first look stays, as published.
        let scores: Vec<f64> = kept.into_iter().map(|at| scores[at]).collect();
        let known = self
            .head
            .recognise(self.map.clone(), &self.regions(&boxes), None);
        let (embedding, deltas) = (values(known.embedding)?, values(known.deltas)?);
        check_finite(&embedding, embedding.len(), self.index)?;
        let length = embedding.len() / boxes.len();
        let boxes = self.moved(&boxes, &deltas);
        let mut kept = views.suppress(&boxes, &scores);
        kept.retain(|(at, _)| boxes[*at][2].min(boxes[*at][3]) >= SMALLEST);
        kept.truncate(views.most);
        let [across, down] = self.scale;
        let found = |(at, score): (usize, f64)| Found {
            bbox: {
                let [x, y, w, h] = boxes[at];
                [x / across, y / down, w / across, h / down]
            },
            score,
            embedding: embedding[at * length..][..length].to_vec(),
        };
        Ok(kept.into_iter().map(found).collect())
    }

    /// What stands for the people in boxes of the scene.
    ///
    /// # Errors
    /// [`TaskError::Device`], [`TaskError::NotFinite`].
    pub fn embeddings(&self, boxes: &[[f64; 4]]) -> Result<Vec<Vec<f32>>, TaskError> {
        if boxes.is_empty() {
            return Ok(Vec::new());
        }
        let [across, down] = self.scale;
        let boxes: Vec<[f64; 4]> = { boxes.iter() }
            .map(|[x, y, w, h]| [x * across, y * down, w * across, h * down])
            .collect();
        let known = self
            .head
            .recognise(self.map.clone(), &self.regions(&boxes), None);
        let embedding = values(known.embedding)?;
        check_finite(&embedding, embedding.len(), self.index)?;
        let length = embedding.len() / boxes.len();
        Ok(embedding
            .chunks_exact(length)
            .map(<[f32]>::to_vec)
            .collect())
    }

    fn regions(&self, boxes: &[[f64; 4]]) -> Vec<Region> {
        boxes
            .iter()
            .map(|bbox| region(0, *bbox, self.stride))
            .collect()
    }

    fn moved(&self, boxes: &[[f64; 4]], deltas: &[f32]) -> Vec<[f64; 4]> {
        let deltas = deltas.as_chunks::<4>().0.iter();
        { boxes.iter().zip(deltas) }
            .map(|(bbox, deltas)| clip(decode(*deltas, *bbox, REGION_WEIGHTS), self.size))
            .collect()
    }
}
