//! Re-identification: BNNeck with identity and triplet loss (Luo et al., CVPR Workshops 2019), as
//! SOLIDER fine-tunes it.
//!
//! | file | holds |
//! |---|---|
//! | [`mod@self`] | configuration, head, loss, features |
//! | [`data`] | training images, identities of a batch |
//! | [`evaluate`] | mAP, CMC, same-person thresholds; rankings of other programs |
//! | [`probe`] | the evaluation of frozen features |

pub mod data;
pub mod evaluate;
pub mod probe;

use burn::tensor::{Device, Tensor, TensorData};
use clasp_data::image::{Filter, Rgb, flip};
use clasp_metrics::rerank::Rerank;
use clasp_model::Shares;
use clasp_model::backbone::Features;
use clasp_model::heads::{ReidHead, Training};
use clasp_model::layers::Rng;
use clasp_model::losses::{batch_hard_triplet, cross_entropy};
use clasp_model::prompt::{ATTRIBUTE, PromptWeights};
use clasp_weights::onnx::Output;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::TaskError;
use crate::drawing;
use crate::features::{Extractor, FeatureBatch, InputBatch, Preprocess};
use crate::task::model::{check_finite, values};
use crate::task::{
    BatchLoss, FeatureLayout, FinetunedModel, HeadInput, Objective, Predictor, Task, WrongList,
    check,
};

/// Most training identities of a model's file.
const MOST_IDENTITIES: usize = 1_000_000;

/// The feature that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComparedFeature {
    /// The pooled feature before the neck, as SOLIDER does.
    Before,
    /// The feature after the neck, as the paper does.
    After,
}

/// Section `[task]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReidConfig {
    /// Images of an identity in a batch, K; a batch has batch / K identities.
    pub instances: usize,
    /// Margin of the triplet loss; 0 for the soft margin.
    pub triplet_margin: f64,
    /// Weight of the cross-entropy over identities.
    pub identity_weight: f64,
    /// Weight of the triplet loss.
    pub triplet_weight: f64,
    /// Label smoothing.
    pub label_smoothing: f64,
    /// Probability of a horizontal flip.
    pub flip: f64,
    /// Largest shift of an image in pixels.
    pub padding: usize,
    /// Probability of random erasing.
    pub random_erasing: f64,
    /// Fraction of the training identities held out to select checkpoints on
    /// (`run.checkpoint_selection = "val"`).
    pub holdout: f64,
    /// The feature that is compared.
    pub feature: ComparedFeature,
    /// Resize test images bilinearly, as SOLIDER does, instead of with the filter of training.
    pub test_bilinear: bool,
    /// Add the feature of the flipped image.
    pub flip_test: bool,
    /// Fraction of pairs of different people above the same-person threshold that is stored with
    /// the model.
    pub false_positive_rate: f64,
    /// Also re-rank by k-reciprocal encoding.
    pub rerank: bool,
    /// k1 of re-ranking: nearest neighbors that may be reciprocal.
    pub rerank_k1: usize,
    /// k2 of re-ranking: nearest neighbors whose encodings are averaged.
    pub rerank_k2: usize,
    /// λ of re-ranking: weight of the original distance.
    pub rerank_lambda: f64,
    /// MSMT17's validation images: part of training, as published, or held out to select
    /// checkpoints on.
    pub msmt_val: MsmtValidation,
}

/// The use of MSMT17's validation images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MsmtValidation {
    /// Part of training.
    Train,
    /// Held out.
    Holdout,
}

impl Default for ReidConfig {
    fn default() -> Self {
        Self {
            instances: 4,
            triplet_margin: 0.0,
            identity_weight: 1.0,
            triplet_weight: 1.0,
            label_smoothing: 0.0,
            flip: 0.5,
            padding: 10,
            random_erasing: 0.5,
            holdout: 0.0,
            feature: ComparedFeature::Before,
            test_bilinear: false,
            flip_test: false,
            false_positive_rate: 1e-3,
            rerank: false,
            rerank_k1: Rerank::default().k1,
            rerank_k2: Rerank::default().k2,
            rerank_lambda: Rerank::default().lambda,
            msmt_val: MsmtValidation::Train,
        }
    }
}

/// The cosine above which two images are taken to show the same person; measured on labeled images,
/// stored with a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamePersonThreshold {
    /// Pairs of images of at least this cosine are taken to show the same person.
    pub cosine: f64,
    /// Fraction of pairs of different people that reach it.
    pub false_positive_rate: f64,
    /// Fraction of pairs of the same person that reach it.
    pub true_positive_rate: f64,
    /// The data that it was measured on.
    pub data: String,
}

/// Re-identification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReidTask {
    /// The configuration.
    pub config: ReidConfig,
    /// Training identities, in the order of the classifier.
    pub identities: Vec<i64>,
    /// The same-person threshold, once it was measured.
    #[serde(default)]
    pub same_person: Option<SamePersonThreshold>,
}

impl ReidTask {
    /// Features to compare, one row an image: `[images, channels]`. `first` is the position of the
    /// first image, for errors.
    ///
    /// # Errors
    /// An image that cannot be read, or features that are not finite.
    pub fn features(
        model: &FinetunedModel<Self>,
        images: &[Rgb],
        first: usize,
    ) -> Result<Vec<f32>, TaskError> {
        let config = &model.task.config;
        let preprocess = model.task.test_preprocess(&model.preprocess);
        let (height, width) = (preprocess.height, preprocess.width);
        let of = |images: &mut dyn Iterator<Item = Rgb>| -> Result<Vec<f32>, TaskError> {
            let pixels: Vec<f32> = images.flat_map(|image| preprocess.apply(&image)).collect();
            let batch = pixels.len() / (3 * height * width);
            let pooled = model.features(pixels, [batch, height, width]).pooled;
            values(model.task.compared(model, pooled))
        };
        let mut features = of(&mut images.iter().cloned())?;
        if config.flip_test {
            let flipped = of(&mut images.iter().map(flip))?;
            features.iter_mut().zip(flipped).for_each(|(a, b)| *a += b);
        }
        check_finite(&features, features.len() / images.len().max(1), first)?;
        Ok(features)
    }

    /// How test images become inputs.
    pub fn test_preprocess(&self, preprocess: &Preprocess) -> Preprocess {
        let mut preprocess = preprocess.clone();
        if self.config.test_bilinear {
            preprocess.filter = Filter::Bilinear;
        }
        preprocess
    }

    /// The feature that is compared, of pooled features `[batch, channels]`: `[batch, channels]`.
    pub(super) fn compared(&self, model: &FinetunedModel<Self>, pooled: Tensor<2>) -> Tensor<2> {
        match self.config.feature {
            ComparedFeature::Before => pooled,
            ComparedFeature::After => model.head.forward(pooled, None),
        }
    }
}

impl Task for ReidTask {
    const NAME: &'static str = "reid";
    const ABOUT: &'static str = "Re-identification: mAP, CMC";
    const HEAD: &'static str = "BNNeck";
    const METRICS: &'static str = "mAP, CMC, mINP, same-person thresholds";
    const RECIPES: &'static [(&'static str, &'static str)] = &[
        (
            "reid",
            include_str!("../../../../recipes/finetune-reid.toml"),
        ),
        (
            "reid-mini",
            include_str!("../../../../recipes/finetune-reid-mini.toml"),
        ),
    ];

    type Config = ReidConfig;

    fn default_prompt() -> PromptWeights {
        // The best on development identities, ahead of `identity` itself: attributes distinguish
        // people.
        PromptWeights::single(ATTRIBUTE)
    }

    fn config(&self) -> &ReidConfig {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ReidConfig {
        &mut self.config
    }

    fn check(config: &ReidConfig) -> Result<(), TaskError> {
        check::count("task.instances", config.instances, [1, 1024])?;
        check::count("task.padding", config.padding, [0, 1024])?;
        check::count("task.rerank_k1", config.rerank_k1, [1, 10_000])?;
        check::count("task.rerank_k2", config.rerank_k2, [1, config.rerank_k1])?;
        let shares = [
            ("task.flip", config.flip),
            ("task.random_erasing", config.random_erasing),
            ("task.holdout", config.holdout),
            ("task.label_smoothing", config.label_smoothing),
            ("task.rerank_lambda", config.rerank_lambda),
            ("task.false_positive_rate", config.false_positive_rate),
        ];
        check::within(&shares, [0.0, 1.0])?;
        let weights = [
            ("task.triplet_margin", config.triplet_margin),
            ("task.identity_weight", config.identity_weight),
            ("task.triplet_weight", config.triplet_weight),
        ];
        Ok(check::within(&weights, [0.0, 1e4])?)
    }

    fn check_lists(&self) -> Result<(), WrongList> {
        check::listed("identities", self.identities.len(), [1, MOST_IDENTITIES])
    }
}

impl Objective for ReidTask {
    type Head = ReidHead;
    /// Class of the identity.
    type Target = usize;

    const HEAD_INPUT: HeadInput = HeadInput::Pooled;

    fn head(
        &self,
        layout: &FeatureLayout,
        rng: &mut Rng,
        device: &Device,
    ) -> Result<ReidHead, TaskError> {
        Ok(ReidHead::init(
            layout.pooled,
            self.identities.len(),
            rng,
            device,
        ))
    }

    fn outputs(&self, head: &ReidHead, features: Features) -> Vec<(String, Output)> {
        let feature = match self.config.feature {
            ComparedFeature::Before => features.pooled,
            ComparedFeature::After => head.forward(features.pooled, None),
        };
        vec![("feature".to_owned(), feature.into())]
    }

    fn loss(
        &self,
        head: &ReidHead,
        features: &Features,
        targets: &[usize],
        training: &mut Training<'_>,
    ) -> BatchLoss {
        let config = &self.config;
        let pooled = features.pooled.clone();
        let logits = head.classify(head.forward(pooled.clone(), Some(training)));
        let predicted = logits.clone().inner().argmax(1).into_data();
        let correct = predicted
            .iter::<i64>()
            .zip(targets)
            .filter(|(class, target)| *class == **target as i64)
            .count();
        let margin = (config.triplet_margin > 0.0).then_some(config.triplet_margin);
        let mut losses = BatchLoss::sum([
            (
                "identity",
                cross_entropy(logits, targets, config.label_smoothing),
                config.identity_weight,
            ),
            (
                "triplet",
                batch_hard_triplet(pooled, targets, margin),
                config.triplet_weight,
            ),
        ]);
        losses
            .terms
            .push(("accuracy", correct as f64 / targets.len() as f64));
        losses
    }
}

impl Predictor for ReidTask {
    const IS_DRAWN: bool = false;

    fn predict(&self, model: &FinetunedModel<Self>, image: &Rgb) -> Result<Value, TaskError> {
        let feature = Self::features(model, std::slice::from_ref(image), 0)?;
        let norm = feature.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
        let feature: Vec<f32> = feature.into_iter().map(|v| v / norm).collect();
        Ok(json!({ "feature": feature }))
    }

    fn draw(&self, image: &Rgb, _: &Value) -> Rgb {
        image.clone()
    }

    fn draw_person(&self, photo: &mut Rgb, crop: [usize; 4], _: &Value) {
        drawing::draw_box(photo, crop.map(|at| at as f64), "", drawing::color(3));
    }
}

/// Features to compare, for `clasp search`; feature maps are not extracted.
impl Extractor for FinetunedModel<ReidTask> {
    fn shares(&self, threads: usize) -> Shares {
        Shares::of(&self.device, threads)
    }

    fn extract(&self, images: InputBatch, _: usize) -> Result<FeatureBatch, TaskError> {
        let shape = [images.batch, 3, images.height, images.width];
        let data = TensorData::new(images.values, shape);
        let images = Tensor::<4>::from_data(data, &self.device);
        let of = |images| self.task.compared(self, self.features_of(images).pooled);
        let mut features = of(images.clone());
        if self.task.config.flip_test {
            features = features + of(images.flip([3]));
        }
        Ok(FeatureBatch {
            pooled: values(features)?,
            maps: Vec::new(),
        })
    }
}
