//! Person search in two stages, SeqNet (Li and Miao, AAAI 2021): the losses of its head, and its
//! inference on a scene.
//!
//! Constants are those of SOLIDER's person search and of torchvision's detectors, which it is built
//! on. Boxes are x, y, width, height in pixels of the network's input unless stated otherwise.

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

use super::config::{RegionConfig, SearchConfig};
use super::regions::{RegionLabel, anchors, best, clip, decode, encode, label_regions, sample};
use crate::TaskError;
use crate::detection::csp::{DetectedPerson, MIN_SIDE};
use crate::detection::scenes::{SceneConfig, SceneInput, SceneTarget, batch_size};
use crate::task::check::setting;
use crate::task::model::{check_finite, values};
use crate::task::objective::detached_values;
use crate::task::{BatchLoss, FeatureLayout, FinetunedModel, Objective};

/// IoU below which an anchor is negative, and from which it is positive.
const ANCHOR_OVERLAP: [f64; 2] = [0.3, 0.7];
/// The same for a region.
const REGION_OVERLAP: [f64; 2] = [0.5, 0.5];
/// IoU of proposals above which only the better is kept.
const PROPOSAL_NMS: f64 = 0.7;
/// Weights of the regression targets of anchors and of regions.
const ANCHOR_WEIGHTS: [f64; 4] = [1.0; 4];
const REGION_WEIGHTS: [f64; 4] = [10.0, 10.0, 5.0, 5.0];
/// β of the smooth L1 loss of anchors and of regions.
const ANCHOR_BETA: f64 = 1.0 / 9.0;
const REGION_BETA: f64 = 1.0;

/// The channels of the map that regions are cut from and of the last stage, and two copies of the
/// last stage.
///
/// # Errors
/// The backbone is no Swin of several stages.
pub fn last_stages(layout: &FeatureLayout) -> Result<([usize; 2], [LastStage; 2]), TaskError> {
    let copy = || layout.backbone.last_stage(layout.prompt);
    match (layout.channels.as_slice(), copy(), copy()) {
        ([.., before, last], Some(first), Some(second)) => Ok(([*before, *last], [first, second])),
        _ => {
            let expected = "one-stage for a backbone that is no Swin of several stages";
            Err(setting("task.head", expected, "two-stage"))
        }
    }
}

/// The outputs that do not depend on decoded boxes: proposals, and the feature map that regions are
/// cut from.
pub fn outputs(head: &TwoStageHead, pyramid: &[Tensor<4>]) -> Vec<(String, Output)> {
    let map = head.map(base(pyramid));
    let proposals = head.propose(map.clone());
    vec![
        ("objectness".to_owned(), proposals.objectness.into()),
        ("deltas".to_owned(), proposals.deltas.into()),
        ("map".to_owned(), map.into()),
    ]
}

/// The feature map before the last stage.
fn base(pyramid: &[Tensor<4>]) -> Tensor<4> {
    pyramid[pyramid.len() - 2].clone()
}

/// Proposals for a batch.
struct SceneProposals {
    /// `[images · positions · anchors]`.
    objectness: Tensor<1>,
    /// `[images · positions · anchors, 4]`.
    deltas: Tensor<2>,
    /// Anchors of an image.
    anchors: Vec<[f64; 4]>,
    /// Proposed boxes of each image, best first.
    boxes: Vec<Vec<[f64; 4]>>,
}

fn propose(
    head: &TwoStageHead,
    map: &Tensor<4>,
    sizes: &[[usize; 2]],
    stride: usize,
    config: &RegionConfig,
    [candidates, most]: [usize; 2],
) -> SceneProposals {
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
    let anchors = anchors(
        &config.anchor_sizes,
        &config.aspect_ratios,
        stride,
        [rows, columns],
    );
    let (scores, moved) = (detached_values(&objectness), detached_values(&deltas));
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
    SceneProposals {
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

/// The region of a box on the feature map.
fn region(image: usize, [x, y, w, h]: [f64; 4], stride: usize) -> Region {
    let corners = [x, y, x + w, y + h].map(|at| (at / stride as f64) as f32);
    Region { image, corners }
}

/// The ground truth of an image.
struct SceneTruth {
    people: Vec<[f64; 4]>,
    /// Boxes of ignored people: neither positives nor negatives.
    ignored: Vec<[f64; 4]>,
    /// Identities of the people, as classes.
    identities: Vec<Option<usize>>,
}

impl SceneTruth {
    fn of(target: &SceneTarget) -> Self {
        let mut truth = Self {
            people: Vec::new(),
            ignored: Vec::new(),
            identities: Vec::new(),
        };
        for one in &target.people {
            let bbox = clip(one.bbox, target.size);
            if one.ignored || bbox[2] < MIN_SIDE || bbox[3] < MIN_SIDE {
                truth.ignored.push(bbox);
            } else {
                truth.people.push(bbox);
                truth.identities.push(one.identity);
            }
        }
        truth
    }

    /// Labels of boxes; those that overlap an ignored person are not negatives.
    fn label(&self, boxes: &[[f64; 4]], overlap: [f64; 2], keep_best: bool) -> Vec<RegionLabel> {
        let mut labels = label_regions(&self.people, boxes, overlap, keep_best);
        for (label, bbox) in labels.iter_mut().zip(boxes) {
            let ignored = |other: &[f64; 4]| iou(*other, *bbox) >= overlap[0];
            if *label == RegionLabel::Negative && self.ignored.iter().any(ignored) {
                *label = RegionLabel::Ignored;
            }
        }
        labels
    }
}

/// Regions of a batch that are trained on.
#[derive(Default)]
struct SampledRegions {
    /// Image and box.
    boxes: Vec<(usize, [f64; 4])>,
    /// 1 for positives.
    labels: Vec<f32>,
    /// Positions of the positives in `boxes`, their regression targets and identities.
    positives: Vec<i32>,
    targets: Vec<[f32; 4]>,
    identities: Vec<Option<usize>>,
}

impl SampledRegions {
    /// Samples proposed and ground-truth boxes of each image.
    fn new(boxes: &[Vec<[f64; 4]>], truths: &[SceneTruth], count: usize, rng: &mut Rng) -> Self {
        let mut sampled = Self::default();
        for (image, (boxes, truth)) in boxes.iter().zip(truths).enumerate() {
            let boxes = [boxes.as_slice(), &truth.people].concat();
            let labels = truth.label(&boxes, REGION_OVERLAP, false);
            for at in sample(&labels, count, rng) {
                if let RegionLabel::Positive(person) = labels[at] {
                    sampled.positives.push(sampled.boxes.len() as i32);
                    let target = encode(truth.people[person], boxes[at], REGION_WEIGHTS);
                    sampled.targets.push(target);
                    sampled.identities.push(truth.identities[person]);
                }
                sampled
                    .labels
                    .push(f32::from(u8::from(labels[at] != RegionLabel::Negative)));
                sampled.boxes.push((image, boxes[at]));
            }
        }
        sampled
    }

    fn regions(&self, stride: usize) -> Vec<Region> {
        let boxes = self.boxes.iter();
        boxes
            .map(|(image, bbox)| region(*image, *bbox, stride))
            .collect()
    }

    /// The box loss of the positives.
    fn box_loss(&self, deltas: Tensor<2>) -> Tensor<1> {
        let loss = |deltas| box_loss(deltas, &self.targets, REGION_BETA, self.boxes.len());
        loss_of_rows(deltas, &self.positives, loss)
    }
}

/// The loss of some rows of a tensor `[rows, channels]`; 0 without rows.
fn loss_of_rows(
    rows: Tensor<2>,
    places: &[i32],
    loss: impl FnOnce(Tensor<2>) -> Tensor<1>,
) -> Tensor<1> {
    if places.is_empty() {
        return rows.sum() * 0.0;
    }
    let places = Tensor::<1, Int>::from_data(TensorData::from(places), &rows.device());
    loss(rows.select(0, places))
}

/// The losses of the class and of the boxes of sampled anchors, `count` an image.
fn anchor_losses(
    proposed: &SceneProposals,
    truths: &[SceneTruth],
    count: usize,
    rng: &mut Rng,
) -> [Tensor<1>; 2] {
    let (mut sampled, mut classes) = (Vec::new(), Vec::new());
    let (mut positives, mut targets) = (Vec::new(), Vec::new());
    let per_image = proposed.anchors.len();
    for (image, truth) in truths.iter().enumerate() {
        let labels = truth.label(&proposed.anchors, ANCHOR_OVERLAP, true);
        for at in sample(&labels, count, rng) {
            let place = (image * per_image + at) as i32;
            if let RegionLabel::Positive(person) = labels[at] {
                positives.push(place);
                let anchor = proposed.anchors[at];
                targets.push(encode(truth.people[person], anchor, ANCHOR_WEIGHTS));
            }
            classes.push(f32::from(u8::from(labels[at] != RegionLabel::Negative)));
            sampled.push(place);
        }
    }
    let device = proposed.objectness.device();
    let at = Tensor::<1, Int>::from_data(TensorData::from(sampled.as_slice()), &device);
    let class_loss = objectness_loss(proposed.objectness.clone().select(0, at), &classes);
    let of_boxes = |deltas| box_loss(deltas, &targets, ANCHOR_BETA, sampled.len());
    let boxes_loss = loss_of_rows(proposed.deltas.clone(), &positives, of_boxes);
    [class_loss, boxes_loss]
}

/// The loss of a batch; updates of the memory are collected in `training`.
pub fn losses(
    head: &TwoStageHead,
    memory: &OimMemory,
    features: &Features,
    batch: &[SceneTarget],
    config: &SearchConfig,
    training: &mut Training<'_>,
) -> BatchLoss {
    let regions = &config.regions;
    let truths: Vec<SceneTruth> = batch.iter().map(SceneTruth::of).collect();
    let sizes: Vec<[usize; 2]> = batch.iter().map(|target| target.size).collect();
    let map = head.map(base(&features.pyramid));
    let stride = stride(batch_size(batch), &map);
    let limits = [regions.pre_nms_top_n[0], regions.post_nms_top_n[0]];
    let proposed = propose(head, &map, &sizes, stride, regions, limits);

    let samples = regions.samples_per_image;
    let [anchor_class, anchor_box] = anchor_losses(&proposed, &truths, samples[0], training.rng);

    // The first stage, and its boxes.
    let first = SampledRegions::new(&proposed.boxes, &truths, samples[1], training.rng);
    let first_stage = head.detect(map.clone(), &first.regions(stride), Some(&mut *training));
    let class = first_stage.class;
    let logit = class.clone().narrow(1, 1, 1) - class.narrow(1, 0, 1);
    let first_class = objectness_loss(logit.squeeze_dim::<1>(1), &first.labels);
    let moved = detached_values(&first_stage.deltas);
    let mut refined = vec![Vec::new(); batch.len()];
    for ((image, bbox), deltas) in first.boxes.iter().zip(moved.as_chunks::<4>().0) {
        let bbox = clip(decode(*deltas, *bbox, REGION_WEIGHTS), sizes[*image]);
        if bbox[2] >= MIN_SIDE && bbox[3] >= MIN_SIDE {
            refined[*image].push(bbox);
        }
    }
    let first_box = first.box_loss(first_stage.deltas);

    // The second stage.
    let second = SampledRegions::new(&refined, &truths, samples[1], training.rng);
    let second_stage = head.embed(map, &second.regions(stride), Some(&mut *training));
    let second_class = objectness_loss(second_stage.score, &second.labels);
    let second_box = second.box_loss(second_stage.deltas);
    let identity = loss_of_rows(second_stage.embedding, &second.positives, |embedding| {
        let loss = memory.loss(
            embedding.clone(),
            &second.identities,
            config.similarity_scale,
        );
        memory.follow(
            embedding,
            &second.identities,
            config.memory_momentum,
            training,
        );
        loss
    });
    BatchLoss::sum([
        ("anchor class", anchor_class, 1.0),
        ("anchor box", anchor_box, 1.0),
        ("first class", first_class, 1.0),
        ("first box", first_box, regions.box_weight),
        ("second class", second_class, 1.0),
        ("second box", second_box, 1.0),
        ("identity", identity, config.identity_weight),
    ])
}

/// The features of a scene.
pub struct SceneFeatures<'a> {
    head: &'a TwoStageHead,
    map: Tensor<4>,
    stride: usize,
    size: [usize; 2],
    /// Pixels of the network's input per pixel of the scene, along x and y.
    scale: [f64; 2],
    index: usize,
}

impl<'a> SceneFeatures<'a> {
    /// Runs a model's backbone on a scene.
    ///
    /// # Errors
    /// The scene is too large.
    pub fn new<T: Objective>(
        model: &FinetunedModel<T>,
        head: &'a TwoStageHead,
        image: &Rgb,
        scenes: &SceneConfig,
        index: usize,
    ) -> Result<Self, TaskError> {
        let input = SceneInput::new(image, scenes, &model.preprocess)?;
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

    /// The detected people, best first, after NMS.
    ///
    /// # Errors
    /// [`TaskError::Device`], [`TaskError::NotFinite`].
    pub fn people(
        &self,
        scenes: &SceneConfig,
        config: &RegionConfig,
    ) -> Result<Vec<DetectedPerson>, TaskError> {
        let limits = [config.pre_nms_top_n[1], config.post_nms_top_n[1]];
        let sizes = [self.size];
        let proposed = propose(self.head, &self.map, &sizes, self.stride, config, limits);
        let proposals: Vec<[f64; 4]> = proposed.boxes.into_iter().flatten().collect();
        let regions = self.regions(&proposals);
        if regions.is_empty() {
            return Ok(Vec::new());
        }
        let first_stage = self.head.detect(self.map.clone(), &regions, None);
        let (class, deltas) = (values(first_stage.class)?, values(first_stage.deltas)?);
        check_finite(&class, class.len(), self.index)?;
        let score = |class: &[f32; 2]| 1.0 / (1.0 + f64::from(class[0] - class[1]).exp());
        let moved = self.moved(&proposals, &deltas);
        let (boxes, scores): (Vec<[f64; 4]>, Vec<f64>) = { moved.into_iter() }
            .zip(class.as_chunks::<2>().0.iter().map(score))
            .filter(|(bbox, score)| {
                *score > scenes.score_threshold && bbox[2].min(bbox[3]) >= MIN_SIDE
            })
            .unzip();
        let mut kept = nms(&boxes, &scores, config.nms_threshold);
        kept.truncate(scenes.max_boxes);
        if kept.is_empty() {
            return Ok(Vec::new());
        }
        let boxes: Vec<[f64; 4]> = kept.iter().map(|at| boxes[*at]).collect();
        // The score of the first stage is kept, as published.
        let scores: Vec<f64> = kept.into_iter().map(|at| scores[at]).collect();
        let second_stage = self
            .head
            .embed(self.map.clone(), &self.regions(&boxes), None);
        let (embedding, deltas) = (
            values(second_stage.embedding)?,
            values(second_stage.deltas)?,
        );
        check_finite(&embedding, embedding.len(), self.index)?;
        let length = embedding.len() / boxes.len();
        let boxes = self.moved(&boxes, &deltas);
        let mut kept = scenes.suppress(&boxes, &scores);
        kept.retain(|(at, _)| boxes[*at][2].min(boxes[*at][3]) >= MIN_SIDE);
        kept.truncate(scenes.max_boxes);
        let [across, down] = self.scale;
        let detected = |(at, score): (usize, f64)| DetectedPerson {
            bbox: {
                let [x, y, w, h] = boxes[at];
                [x / across, y / down, w / across, h / down]
            },
            score,
            embedding: embedding[at * length..][..length].to_vec(),
        };
        Ok(kept.into_iter().map(detected).collect())
    }

    /// The embeddings of the people in boxes, which are x, y, width, height in pixels of the scene.
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
        let second_stage = self
            .head
            .embed(self.map.clone(), &self.regions(&boxes), None);
        let embedding = values(second_stage.embedding)?;
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
