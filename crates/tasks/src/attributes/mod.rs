//! Attribute recognition: a linear layer on pooled features under weighted binary cross-entropy, as
//! in "Rethinking of Pedestrian Attribute Recognition" (Jia et al. 2021) and SOLIDER.
//!
//! | file | holds |
//! |---|---|
//! | [`mod@self`] | configuration, head, loss, predictions |
//! | [`data`] | training and test images |
//! | [`evaluate`] | mA, instance metrics; probabilities of other programs |
//! | [`probe`] | the linear probe of frozen features |

pub mod data;
pub mod evaluate;
pub mod probe;

use burn::tensor::Device;
use clasp_data::font;
use clasp_data::image::{Filter, Rgb};
use clasp_model::backbone::Features;
use clasp_model::heads::{LinearHead, Training};
use clasp_model::layers::Rng;
use clasp_model::losses::weighted_bce;
use clasp_model::prompt::{ATTRIBUTE, PromptWeights};
use clasp_weights::onnx::Output;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::TaskError;
use crate::drawing;
use crate::features::Preprocess;
use crate::task::model::{check_finite, values};
use crate::task::{
    BatchLoss, FeatureLayout, FinetunedModel, HeadInput, Objective, Predictor, Task, WrongList,
    check,
};

/// Most attributes of a model's file.
const MOST_ATTRIBUTES: usize = 10_000;

/// Section `[task]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttributesConfig {
    /// Splits to train on; the published protocol takes `train` and `val`.
    pub train_splits: Vec<String>,
    /// Weight the loss of each attribute by how rare its value is.
    pub weighted_loss: bool,
    /// Probability of a horizontal flip.
    pub flip: f64,
    /// Largest shift of an image in pixels.
    pub padding: usize,
    /// Resize bilinearly, as the published code does, instead of with the filter of pre-training.
    pub bilinear: bool,
    /// A probability above this predicts the attribute.
    pub threshold: f32,
}

impl Default for AttributesConfig {
    fn default() -> Self {
        Self {
            train_splits: vec!["train".to_owned()],
            weighted_loss: true,
            flip: 0.5,
            padding: 10,
            bilinear: false,
            threshold: 0.5,
        }
    }
}

/// Attribute recognition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttributeTask {
    /// The configuration.
    pub config: AttributesConfig,
    /// Names of the attributes.
    pub names: Vec<String>,
    /// Fraction of positives among the training images, per attribute.
    pub ratios: Vec<f64>,
}

impl AttributeTask {
    /// How images are resized.
    pub(super) fn preprocess(&self, preprocess: &Preprocess) -> Preprocess {
        let mut own = preprocess.clone();
        if self.config.bilinear {
            own.filter = Filter::Bilinear;
        }
        own
    }

    /// The predicted attributes with their probabilities, the most probable first.
    fn predicted(&self, prediction: &Value) -> Vec<String> {
        let probability = |name: &str| prediction["attributes"][name].as_f64().unwrap_or(0.0);
        let mut lines: Vec<(f64, &String)> = { self.names.iter() }
            .map(|name| (probability(name), name))
            .filter(|(p, _)| *p > f64::from(self.config.threshold))
            .collect();
        lines.sort_by(|a, b| b.0.total_cmp(&a.0));
        { lines.into_iter() }
            .map(|(p, name)| format!("{:3.0}% {name}", 100.0 * p))
            .collect()
    }

    /// Probabilities of the attributes, `[images, attributes]`. `first` is the position of the
    /// first image, for errors.
    pub(super) fn probabilities(
        model: &FinetunedModel<Self>,
        images: &[Rgb],
        first: usize,
    ) -> Result<Vec<f32>, TaskError> {
        let preprocess = &model.task.preprocess(&model.preprocess);
        let pixels = images
            .iter()
            .flat_map(|image| preprocess.apply(image))
            .collect();
        let size = [images.len(), preprocess.height, preprocess.width];
        let features = model.features(pixels, size);
        let logits = values(model.head.forward(features.pooled))?;
        check_finite(&logits, model.task.names.len(), first)?;
        Ok(logits
            .into_iter()
            .map(|x| 1.0 / (1.0 + (-x).exp()))
            .collect())
    }
}

impl Task for AttributeTask {
    const NAME: &'static str = "attributes";
    const ABOUT: &'static str = "Attribute recognition: mA, accuracy, precision, recall, F1";
    const HEAD: &'static str = "linear";
    const METRICS: &'static str = "mA, mAP, accuracy, precision, recall, F1, a table by attribute";
    const RECIPES: &'static [(&'static str, &'static str)] = &[
        (
            "attributes",
            include_str!("../../../../recipes/finetune-attributes.toml"),
        ),
        (
            "attributes-mini",
            include_str!("../../../../recipes/finetune-attributes-mini.toml"),
        ),
    ];

    type Config = AttributesConfig;

    fn default_prompt() -> PromptWeights {
        PromptWeights::single(ATTRIBUTE)
    }

    fn config(&self) -> &AttributesConfig {
        &self.config
    }

    fn config_mut(&mut self) -> &mut AttributesConfig {
        &mut self.config
    }

    fn check(config: &AttributesConfig) -> Result<(), TaskError> {
        check::count("task.padding", config.padding, [0, 1024])?;
        let shares = [
            ("task.flip", config.flip),
            ("task.threshold", f64::from(config.threshold)),
        ];
        Ok(check::within(&shares, [0.0, 1.0])?)
    }

    fn check_lists(&self) -> Result<(), WrongList> {
        check::listed("names", self.names.len(), [1, MOST_ATTRIBUTES])?;
        check::listed("ratios", self.ratios.len(), [self.names.len(); 2])?;
        let is_share = |ratio: &f64| (0.0..=1.0).contains(ratio);
        check::each("ratios", "numbers from 0 to 1", &self.ratios, is_share)
    }
}

impl Objective for AttributeTask {
    type Head = LinearHead;
    /// Whether each attribute is present.
    type Target = Vec<bool>;

    const HEAD_INPUT: HeadInput = HeadInput::Pooled;

    fn head(
        &self,
        layout: &FeatureLayout,
        rng: &mut Rng,
        device: &Device,
    ) -> Result<LinearHead, TaskError> {
        Ok(LinearHead::init(
            layout.pooled,
            self.names.len(),
            rng,
            device,
        ))
    }

    fn outputs(&self, head: &LinearHead, features: Features) -> Vec<(String, Output)> {
        vec![("logits".to_owned(), head.forward(features.pooled).into())]
    }

    fn loss(
        &self,
        head: &LinearHead,
        features: &Features,
        targets: &[Vec<bool>],
        _: &mut Training<'_>,
    ) -> BatchLoss {
        let logits = head.forward(features.pooled.clone());
        let targets: Vec<bool> = targets.iter().flatten().copied().collect();
        let ratios = self.config.weighted_loss.then_some(self.ratios.as_slice());
        BatchLoss::sum([("bce", weighted_bce(logits, &targets, ratios), 1.0)])
    }
}

impl Predictor for AttributeTask {
    fn predict(&self, model: &FinetunedModel<Self>, image: &Rgb) -> Result<Value, TaskError> {
        let probabilities = Self::probabilities(model, std::slice::from_ref(image), 0)?;
        let pairs = self.names.iter().zip(probabilities);
        let map: serde_json::Map<String, Value> =
            pairs.map(|(name, p)| (name.clone(), json!(p))).collect();
        Ok(json!({ "attributes": map }))
    }

    fn draw(&self, image: &Rgb, prediction: &Value) -> Rgb {
        drawing::beside(image, &self.predicted(prediction))
    }

    fn draw_person(&self, photo: &mut Rgb, crop: [usize; 4], prediction: &Value) {
        drawing::draw_box(photo, crop.map(|at| at as f64), "", drawing::color(3));
        let [x, y, width, _] = crop;
        let lines = self.predicted(prediction);
        for (row, line) in lines.iter().enumerate() {
            let top = y + row * font::SMALL;
            font::label(
                photo,
                x + width + 2,
                top,
                line,
                font::SMALL,
                drawing::color(3),
            );
        }
    }
}
