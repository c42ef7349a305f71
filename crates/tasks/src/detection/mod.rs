//! Pedestrian detection with the CSP head (Liu et al., CVPR 2019), as SOLIDER fine-tunes it on
//! CityPersons.
//!
//! | file | holds |
//! |---|---|
//! | [`mod@self`] | configuration, head, loss, predictions |
//! | [`scenes`] | how scenes are scaled, cropped and augmented |
//! | [`csp`] | targets of the CSP head, and boxes from its outputs |
//! | [`data`] | scenes to train and to test on |
//! | [`evaluate`] | log-average miss rate, AP; boxes of other programs |
//!
//! Person search uses `scenes` and `csp` too.

pub mod csp;
pub mod data;
pub mod evaluate;
pub mod scenes;

use burn::tensor::Device;
use clasp_data::image::Rgb;
use clasp_model::backbone::Features;
use clasp_model::heads::{DetectionHead, Training};
use clasp_model::layers::Rng;
use clasp_model::losses::detection_losses;
use clasp_model::prompt::{PART, PromptWeights};
use clasp_weights::onnx::Output;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::TaskError;
use crate::drawing;
use crate::task::{
    BatchLoss, FeatureLayout, FinetunedModel, HeadInput, InputKind, Objective, Predictor, Task,
    WrongList, check,
};

use csp::{CspOutputs, DetectedPerson};
use scenes::{SceneConfig, SceneTarget};

/// Boxes below this score are not in predictions and pictures.
pub const SHOWN_SCORE: f64 = 0.3;

/// Section `[task]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DetectionConfig {
    /// Split to train on.
    pub train_split: String,
    /// Channels of the head: up to 32, or a multiple of 32.
    pub width: usize,
    /// Weight of the loss of centers.
    pub center_weight: f64,
    /// Weight of the loss of sizes.
    pub size_weight: f64,
    /// Weight of the loss of offsets.
    pub offset_weight: f64,
    /// How scenes are scaled and augmented, and which boxes are kept.
    pub scenes: SceneConfig,
}

impl Default for DetectionConfig {
    fn default() -> Self {
        Self {
            train_split: "train".to_owned(),
            width: 256,
            center_weight: 0.01,
            size_weight: 1.0,
            offset_weight: 0.1,
            scenes: SceneConfig::default(),
        }
    }
}

/// Pedestrian detection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DetectionTask {
    /// The configuration.
    pub config: DetectionConfig,
}

impl DetectionTask {
    pub(super) fn detect(
        &self,
        model: &FinetunedModel<Self>,
        image: &Rgb,
        index: usize,
    ) -> Result<Vec<DetectedPerson>, TaskError> {
        let head = |maps: &[_]| model.head.forward(maps);
        let config = &self.config.scenes;
        Ok(CspOutputs::new(model, head, image, config, index)?.boxes(config))
    }
}

impl Task for DetectionTask {
    const NAME: &'static str = "detection";
    const ABOUT: &'static str = "Pedestrian detection: log-average miss rate, AP";
    const HEAD: &'static str = "CSP";
    const METRICS: &'static str = "log-average miss rate for the published subsets, AP";
    const RECIPES: &'static [(&'static str, &'static str)] = &[
        (
            "detection",
            include_str!("../../../../recipes/finetune-detection.toml"),
        ),
        (
            "detection-mini",
            include_str!("../../../../recipes/finetune-detection-mini.toml"),
        ),
    ];
    const INPUT: InputKind = InputKind::Scene;

    type Config = DetectionConfig;

    fn default_prompt() -> PromptWeights {
        PromptWeights::single(PART)
    }

    fn config(&self) -> &DetectionConfig {
        &self.config
    }

    fn config_mut(&mut self) -> &mut DetectionConfig {
        &mut self.config
    }

    fn check(config: &DetectionConfig) -> Result<(), TaskError> {
        config.scenes.check()?;
        let weights = [
            ("task.center_weight", config.center_weight),
            ("task.size_weight", config.size_weight),
            ("task.offset_weight", config.offset_weight),
        ];
        Ok(check::within(&weights, [0.0, 1e4])?)
    }

    /// There are none.
    fn check_lists(&self) -> Result<(), WrongList> {
        Ok(())
    }

    fn check_size(size: [usize; 2], strides: &[usize]) -> Result<(), TaskError> {
        check::size(
            size,
            strides.iter().copied().max().unwrap_or(scenes::MULTIPLE),
        )
    }
}

impl Objective for DetectionTask {
    type Head = DetectionHead;
    type Target = SceneTarget;

    const HEAD_INPUT: HeadInput = HeadInput::Maps;

    fn head(
        &self,
        layout: &FeatureLayout,
        rng: &mut Rng,
        device: &Device,
    ) -> Result<DetectionHead, TaskError> {
        csp::head(layout, self.config.width, None, rng, device)
    }

    fn outputs(&self, head: &DetectionHead, features: Features) -> Vec<(String, Output)> {
        csp::outputs(head.forward(csp::maps(&features.pyramid)))
    }

    fn loss(
        &self,
        head: &DetectionHead,
        features: &Features,
        targets: &[SceneTarget],
        _: &mut Training<'_>,
    ) -> BatchLoss {
        let output = head.forward(csp::maps(&features.pyramid));
        let losses = detection_losses(&output, &csp::targets(targets));
        let config = &self.config;
        BatchLoss::sum([
            ("center", losses.center, config.center_weight),
            ("size", losses.size, config.size_weight),
            ("offset", losses.offset, config.offset_weight),
        ])
    }
}

impl Predictor for DetectionTask {
    fn predict(&self, model: &FinetunedModel<Self>, image: &Rgb) -> Result<Value, TaskError> {
        let mut found = self.detect(model, image, 0)?;
        found.retain(|one| one.score >= SHOWN_SCORE);
        Ok(json!({"boxes": boxes_json(&found)}))
    }

    fn draw(&self, image: &Rgb, prediction: &Value) -> Rgb {
        draw_boxes(image, prediction)
    }
}

/// Boxes as JSON.
fn boxes_json(found: &[DetectedPerson]) -> Vec<Value> {
    { found.iter() }
        .map(|one| json!({"bbox": one.bbox, "score": one.score}))
        .collect()
}

/// A scene with the boxes of a prediction.
pub fn draw_boxes(image: &Rgb, prediction: &Value) -> Rgb {
    let mut drawn = image.clone();
    let boxes = prediction["boxes"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    for (index, one) in boxes.iter().enumerate() {
        let number = |at: usize| one["bbox"][at].as_f64().unwrap_or(0.0);
        let word = format!("{:.2}", one["score"].as_f64().unwrap_or(0.0));
        let bbox = [number(0), number(1), number(2), number(3)];
        drawing::draw_box(&mut drawn, bbox, &word, drawing::color(index));
    }
    drawn
}
