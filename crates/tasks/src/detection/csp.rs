//! The CSP head (Liu et al., CVPR 2019): its targets for a batch of scenes, and boxes from its
//! outputs.

use burn::tensor::{Device, Tensor};
use clasp_data::image::Rgb;
use clasp_model::heads::{DetectionHead, DetectionHeadConfig, DetectionOutput};
use clasp_model::layers::Rng;
use clasp_model::losses::DetectionTargets;
use clasp_weights::onnx::Output;
use serde::{Deserialize, Serialize};

use super::scenes::{MULTIPLE, SceneConfig, SceneInput, SceneTarget, batch_size};
use crate::TaskError;
use crate::task::check::setting;
use crate::task::evaluation::WrongResult;
use crate::task::model::{check_finite, values};
use crate::task::{FeatureLayout, FinetunedModel, Objective};

/// Pixels of the input per position of the head's grid.
pub const STRIDE: usize = 4;

/// Feature maps that are inputs of the head: the coarsest ones.
const MAPS: usize = 3;

/// Boxes with a shorter side, in pixels, are dropped, as torchvision's detectors do.
pub const MIN_SIDE: f64 = 1e-2;

/// Best positions before NMS.
const CANDIDATES: usize = 1000;

/// A detected person.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DetectedPerson {
    /// x, y, width, height in pixels of the scene.
    pub bbox: [f64; 4],
    /// Confidence, 0 to 1.
    pub score: f64,
    /// Embedding of the person, of length 1; empty without embeddings.
    pub embedding: Vec<f32>,
}

impl DetectedPerson {
    /// Checks the people of a scene that were read from a file.
    pub(crate) fn check(people: &[Self], embedding: usize) -> Result<(), WrongResult> {
        let is_right = |one: &Self| {
            one.bbox.iter().all(|value| value.is_finite())
                && one.bbox[2..].iter().all(|size| *size >= 0.0)
                && (0.0..=1.0).contains(&one.score)
                && one.embedding.len() == embedding
                && one.embedding.iter().all(|value| value.is_finite())
        };
        let Some(number) = people.iter().position(|one| !is_right(one)) else {
            return Ok(());
        };
        let Self { bbox, score, .. } = &people[number];
        Err(WrongResult {
            expected: format!(
                "people with a finite box whose size is not negative, a score from 0 to 1, and an \
                 embedding of {embedding} finite numbers"
            ),
            found: format!(
                "person {number} with the box {bbox:?}, the score {score} and {} numbers",
                people[number].embedding.len()
            ),
        })
    }
}

/// A head for a backbone.
///
/// # Errors
/// A stride is not 4 times a power of two, or the width is not divisible into 32 groups.
pub fn head(
    layout: &FeatureLayout,
    width: usize,
    embedding: Option<usize>,
    rng: &mut Rng,
    device: &Device,
) -> Result<DetectionHead, TaskError> {
    if width == 0 || width > 4096 || (width > 32 && !width.is_multiple_of(32)) {
        let expected = "1 to 32 or a multiple of 32 (groups of its normalization)";
        return Err(setting("task.width", expected, width));
    }
    let from = layout.channels.len().saturating_sub(MAPS);
    let strides: Vec<usize> = layout.strides[from..].iter().map(|s| s / STRIDE).collect();
    let fits = |stride: &usize| stride.is_multiple_of(STRIDE) && *stride <= MULTIPLE;
    if let Some(wrong) = layout.strides[from..].iter().find(|stride| !fits(stride)) {
        let expected = "a backbone whose maps have 4, 8, 16 or 32 pixels a position";
        return Err(setting("model.backbone", expected, wrong));
    }
    let config = DetectionHeadConfig {
        channels: layout.channels[from..].to_vec(),
        strides,
        width,
        embedding,
    };
    Ok(config.init(rng, device))
}

/// The feature maps that are inputs of the head.
pub fn maps(pyramid: &[Tensor<4>]) -> &[Tensor<4>] {
    &pyramid[pyramid.len().saturating_sub(MAPS)..]
}

/// The outputs of the head by name.
pub fn outputs(output: DetectionOutput) -> Vec<(String, Output)> {
    let mut outputs: Vec<(String, Output)> = vec![
        ("center".to_owned(), output.center.into()),
        ("size".to_owned(), output.size.into()),
        ("offset".to_owned(), output.offset.into()),
    ];
    outputs.extend(
        output
            .embedding
            .map(|map| ("embedding".to_owned(), map.into())),
    );
    outputs
}

/// The position (row, column) of the center of a box (x, y, width, height) on the grid; none
/// outside.
pub fn center_of([x, y, w, h]: [f64; 4], rows: usize, columns: usize) -> Option<[usize; 2]> {
    let (cx, cy) = ((x + w / 2.0) / STRIDE as f64, (y + h / 2.0) / STRIDE as f64);
    let inside = cx >= 0.0 && cy >= 0.0 && cx < columns as f64 && cy < rows as f64;
    inside.then_some([cy as usize, cx as usize])
}

/// Targets of a batch of inputs.
///
/// The target of centers is a Gaussian about each center with σ = 0.3·((length − 1)/2 − 1) + 0.8
/// along each axis; sizes are trained within two positions of a center.
pub fn targets(batch: &[SceneTarget]) -> DetectionTargets {
    const RADIUS: i64 = 2;
    let [height, width] = batch_size(batch);
    let (rows, columns) = (height / STRIDE, width / STRIDE);
    let area = rows * columns;
    let zeros = |channels: usize| vec![0.0; batch.len() * channels * area];
    let mut targets = DetectionTargets {
        nearness: zeros(1),
        middles: zeros(1),
        counts: vec![1.0; batch.len() * area],
        sizes: zeros(2),
        sized: zeros(1),
        offsets: zeros(2),
    };
    for (index, SceneTarget { people, .. }) in batch.iter().enumerate() {
        let plane = index * area;
        // First and last position of a box along an axis.
        let ends = |bbox: [f64; 4], axis: usize| {
            let start = bbox[axis] / STRIDE as f64;
            (start, start + bbox[axis + 2] / STRIDE as f64)
        };
        let range = |start: f64, end: f64, size: usize| {
            let start = start.clamp(0.0, size as f64);
            start as usize..end.clamp(start, size as f64) as usize
        };
        let touched = |bbox: [f64; 4], axis: usize, size: usize| {
            let (start, end) = ends(bbox, axis);
            range(start.floor(), end.ceil(), size)
        };
        let span = |bbox: [f64; 4], axis: usize, size: usize| {
            let (start, end) = ends(bbox, axis);
            range(start.ceil(), end.floor(), size)
        };
        for one in people.iter().filter(|one| one.ignored) {
            for row in touched(one.bbox, 1, rows) {
                for column in touched(one.bbox, 0, columns) {
                    targets.counts[plane + row * columns + column] = 0.0;
                }
            }
        }
        for one in people.iter().filter(|one| !one.ignored) {
            let Some([row, column]) = center_of(one.bbox, rows, columns) else {
                continue;
            };
            let [x, y, w, h] = one.bbox.map(|v| v / STRIDE as f64);
            let sigma = |length: f64| 0.3 * ((length.floor().max(1.0) - 1.0) * 0.5 - 1.0) + 0.8;
            let square = |sigma: f64| 2.0 * sigma.max(0.3).powi(2);
            let (wide, high) = (square(sigma(w)), square(sigma(h)));
            for r in span(one.bbox, 1, rows) {
                for c in span(one.bbox, 0, columns) {
                    let (dy, dx) = (r as f64 - row as f64, c as f64 - column as f64);
                    let near = (-dx * dx / wide - dy * dy / high).exp() as f32;
                    let at = plane + r * columns + c;
                    targets.nearness[at] = targets.nearness[at].max(near);
                    targets.counts[at] = 1.0;
                }
            }
            let at = row * columns + column;
            targets.nearness[plane + at] = 1.0;
            targets.middles[plane + at] = 1.0;
            targets.counts[plane + at] = 1.0;
            let offset = [
                y + h / 2.0 - row as f64 - 0.5,
                x + w / 2.0 - column as f64 - 0.5,
            ];
            for (axis, offset) in offset.into_iter().enumerate() {
                targets.offsets[(2 * index + axis) * area + at] = offset as f32;
            }
            for r in (row as i64 - RADIUS).max(0)..=(row as i64 + RADIUS).min(rows as i64 - 1) {
                for c in (column as i64 - RADIUS).max(0)
                    ..=(column as i64 + RADIUS).min(columns as i64 - 1)
                {
                    let at = r as usize * columns + c as usize;
                    targets.sized[plane + at] = 1.0;
                    targets.sizes[2 * index * area + at] = h.max(0.1).ln() as f32;
                    targets.sizes[(2 * index + 1) * area + at] = w.max(0.1).ln() as f32;
                }
            }
        }
    }
    targets
}

/// The outputs of the head for a whole scene.
pub struct CspOutputs {
    center: Vec<f32>,
    size: Vec<f32>,
    offset: Vec<f32>,
    embedding: Vec<f32>,
    length: usize,
    rows: usize,
    columns: usize,
    /// Pixels of the network's input per pixel of the scene, along x and y.
    scale: [f64; 2],
    limits: [f64; 2],
}

impl CspOutputs {
    /// Runs a model on a scene, scaled and padded.
    ///
    /// # Errors
    /// [`TaskError::Device`], [`TaskError::NotFinite`].
    pub fn new<T: Objective>(
        model: &FinetunedModel<T>,
        head: impl Fn(&[Tensor<4>]) -> DetectionOutput,
        image: &Rgb,
        config: &SceneConfig,
        index: usize,
    ) -> Result<Self, TaskError> {
        let input = SceneInput::new(image, config, &model.preprocess)?;
        let [height, width] = input.padded;
        let features = model.features(input.pixels, [1, height, width]);
        let output = head(maps(&features.pyramid));
        let [_, _, rows, columns] = output.center.dims();
        let length = output.embedding.as_ref().map_or(0, |map| map.dims()[1]);
        let outputs = Self {
            center: values(output.center)?,
            size: values(output.size)?,
            offset: values(output.offset)?,
            embedding: match output.embedding {
                Some(map) => values(map)?,
                None => Vec::new(),
            },
            length,
            rows,
            columns,
            scale: input.scale,
            limits: [image.width as f64, image.height as f64],
        };
        for part in [
            &outputs.center,
            &outputs.size,
            &outputs.offset,
            &outputs.embedding,
        ] {
            check_finite(part, part.len(), index)?;
        }
        Ok(outputs)
    }

    /// The detected people, best first, after NMS.
    pub fn boxes(&self, config: &SceneConfig) -> Vec<DetectedPerson> {
        let area = self.rows * self.columns;
        let score = |at: usize| 1.0 / (1.0 + f64::from(-self.center[at]).exp());
        let mut order: Vec<usize> = (0..area)
            .filter(|at| score(*at) >= config.score_threshold)
            .collect();
        order.sort_by(|a, b| self.center[*b].total_cmp(&self.center[*a]));
        order.truncate(CANDIDATES);
        let bbox = |at: usize| {
            let of = |values: &[f32], axis: usize| f64::from(values[axis * area + at]);
            let length = |axis: usize| of(&self.size, axis).clamp(-3.0, 10.0).exp() * STRIDE as f64;
            let center_at = |place: usize, axis: usize| {
                (place as f64 + 0.5 + of(&self.offset, axis).clamp(-0.5, 0.5)) * STRIDE as f64
            };
            let (h, w) = (length(0) / self.scale[1], length(1) / self.scale[0]);
            let y = center_at(at / self.columns, 0) / self.scale[1];
            let x = center_at(at % self.columns, 1) / self.scale[0];
            // Clipped to the scene.
            let (left, top) = ((x - w / 2.0).max(0.0), (y - h / 2.0).max(0.0));
            let right = (x + w / 2.0).min(self.limits[0]);
            let bottom = (y + h / 2.0).min(self.limits[1]);
            [left, top, (right - left).max(0.0), (bottom - top).max(0.0)]
        };
        // Of a center in the padding, or far outside, nothing is left.
        let (order, boxes): (Vec<usize>, Vec<[f64; 4]>) = { order.into_iter() }
            .map(|at| (at, bbox(at)))
            .filter(|(_, [_, _, width, height])| width.min(*height) >= MIN_SIDE)
            .unzip();
        let scores: Vec<f64> = order.iter().map(|at| score(*at)).collect();
        let mut kept = config.suppress(&boxes, &scores);
        kept.truncate(config.max_boxes);
        { kept.into_iter() }
            .map(|(index, score)| DetectedPerson {
                bbox: boxes[index],
                score,
                embedding: self.at(order[index]),
            })
            .collect()
    }

    /// The embedding of the person in a box (x, y, width, height in pixels of the scene): that at
    /// its center.
    pub fn embedding_of(&self, bbox: [f64; 4]) -> Vec<f32> {
        let [x, y, w, h] = bbox;
        let [sx, sy] = self.scale;
        let scaled = [x * sx, y * sy, w * sx, h * sy];
        let center = center_of(scaled, self.rows, self.columns);
        let [row, column] = center.unwrap_or([self.rows / 2, self.columns / 2]);
        self.at(row * self.columns + column)
    }

    fn at(&self, position: usize) -> Vec<f32> {
        let area = self.rows * self.columns;
        (0..self.length)
            .map(|channel| self.embedding[channel * area + position])
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenes::ScenePerson;
    use super::super::scenes::tests::person;
    use super::*;

    fn target(people: &[ScenePerson]) -> SceneTarget {
        SceneTarget {
            people: people.to_vec(),
            size: [160, 96],
            input: [160, 96],
        }
    }

    #[test]
    fn targets_are_at_the_centers_of_people() {
        // 40 x 24 positions; a person whose center is (50, 82) in pixels, (12.5, 20.5) in
        // positions.
        let people = [
            person([40.0, 62.0, 20.0, 40.0]),
            ScenePerson {
                ignored: true,
                ..person([0.0, 0.0, 16.0, 16.0])
            },
        ];
        let targets = targets(&[target(&people)]);
        let at = 20 * 24 + 12;
        assert_eq!(targets.middles.iter().sum::<f32>(), 1.0);
        assert_eq!((targets.middles[at], targets.nearness[at]), (1.0, 1.0));
        assert!(targets.nearness[at + 1] < 1.0 && targets.nearness[at + 1] > 0.1);
        assert_eq!(targets.offsets[at], 0.0);
        assert!((targets.sizes[at] - 10.0_f32.ln()).abs() < 1e-6);
        assert!((targets.sizes[24 * 40 + at] - 5.0_f32.ln()).abs() < 1e-6);
        assert_eq!(targets.sized.iter().sum::<f32>(), 25.0);
        assert_eq!(targets.counts.iter().filter(|c| **c == 0.0).count(), 16);
    }

    /// What a perfect head gives for people in a scene of that width and height.
    fn outputs_of(people: &[ScenePerson], limits: [f64; 2]) -> CspOutputs {
        let found = targets(&[target(people)]);
        CspOutputs {
            center: found.middles.iter().map(|m| 20.0 * m - 10.0).collect(),
            size: found.sizes,
            offset: found.offsets,
            embedding: Vec::new(),
            length: 0,
            rows: 40,
            columns: 24,
            scale: [1.0; 2],
            limits,
        }
    }

    /// Once a center in the padding gave a box of width 0, a false positive that `clasp score` refused.
    #[test]
    fn boxes_of_which_nothing_is_in_the_scene_are_dropped() {
        let people = [
            person([40.0, 62.0, 20.0, 40.0]),
            // In the padding: right of the scene, and below it.
            person([84.0, 20.0, 8.0, 16.0]),
            person([40.0, 150.0, 8.0, 6.0]),
        ];
        let boxes = outputs_of(&people, [80.0, 144.0]).boxes(&SceneConfig::default());
        assert_eq!(boxes.len(), 1, "{boxes:?}");
        assert!((boxes[0].bbox[0] - 40.0).abs() < 1e-3, "{boxes:?}");
    }

    #[test]
    fn boxes_are_decoded_from_their_targets() {
        let people = [
            person([40.0, 62.0, 20.0, 40.0]),
            person([5.0, 20.0, 31.0, 77.0]),
        ];
        let outputs = outputs_of(&people, [96.0, 160.0]);
        let boxes = outputs.boxes(&SceneConfig::default());
        assert_eq!(boxes.len(), 2);
        for one in &people {
            let near =
                |found: &DetectedPerson| (0..4).all(|i| (found.bbox[i] - one.bbox[i]).abs() < 1e-3);
            assert!(boxes.iter().any(near), "{boxes:?}");
        }
    }
}
