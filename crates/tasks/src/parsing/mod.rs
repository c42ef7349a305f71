//! Human parsing: a light head or CE2P's, trained as Self-Correction for Human Parsing (Li et al.,
//! TPAMI 2020).
//!
//! | file | holds |
//! |---|---|
//! | [`mod@self`] | configuration, head, loss |
//! | [`data`] | images with label maps, augmentation |
//! | [`predict`] | label maps of images: flipped, at several scales |
//! | [`evaluate`] | mIoU; label maps of other programs |
//! | [`probe`] | the linear probe of frozen features |
//!
//! Self-Correction's consistency term compares two maps of argmaxes where both are 1: it is always
//! 0 and has no gradient, so it is left out.

pub mod data;
pub mod evaluate;
pub mod predict;
pub mod probe;

use burn::tensor::{Device, Tensor};
use clasp_data::layouts::parsing::IGNORE;
use clasp_model::backbone::Features;
use clasp_model::heads::blocks::resize_bilinear;
use clasp_model::heads::{Ce2pConfig, LightParsingHead, ParsingHead, Training};
use clasp_model::layers::Rng;
use clasp_model::losses::{
    edge_loss, edges_of, lovasz_softmax, pixel_cross_entropy, refined_divergence,
};
use clasp_model::prompt::{PART, PromptWeights};
use clasp_weights::onnx::Output;
use serde::{Deserialize, Serialize};

use crate::TaskError;
use crate::task::check::{self, setting};
use crate::task::{BatchLoss, FeatureLayout, HeadInput, LabelRefiner, Objective, Task, WrongList};

/// The head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ParsingHeadKind {
    /// The sum of all stages: fast.
    Light,
    /// Pyramid pooling, decoder, edge branch: the published one.
    Ce2p,
}

/// The classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ParsingClasses {
    /// Those of the dataset.
    #[serde(rename = "stored")]
    Stored,
    /// Eight body parts, derived from the clothes of Clothing Co-Parsing.
    #[serde(rename = "ccp_parts")]
    CcpParts,
}

/// Section `[task]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ParsingConfig {
    /// Splits to train on.
    pub train_splits: Vec<String>,
    /// The classes.
    pub classes: ParsingClasses,
    /// The head.
    pub head: ParsingHeadKind,
    /// Channels of the light head; of CE2P's decoder, whose context has twice as many.
    pub width: usize,
    /// Weight of the cross-entropy.
    pub cross_entropy_weight: f64,
    /// Weight of Lovász-softmax.
    pub lovasz_weight: f64,
    /// Weight of the edge loss (CE2P's head).
    pub edge_weight: f64,
    /// Probability of a horizontal flip.
    pub flip: f64,
    /// Standard deviation of the scale about 1.
    pub scale_std: f64,
    /// Largest difference of the scale from 1.
    pub scale_limit: f64,
    /// Standard deviation of the rotation in degrees, clamped to twice that.
    pub rotation_std: f64,
    /// Probability of a rotation.
    pub rotation_probability: f64,
    /// Scales of test images, whose logits are averaged.
    pub test_scales: Vec<f64>,
    /// Average with the flipped image.
    pub flip_test: bool,
    /// Map logits instead of labels back to the image: smoother borders, not the published
    /// protocol.
    pub warp_logits: bool,
}

impl Default for ParsingConfig {
    fn default() -> Self {
        Self {
            train_splits: vec!["train".to_owned()],
            classes: ParsingClasses::Stored,
            head: ParsingHeadKind::Light,
            width: 128,
            cross_entropy_weight: 0.5,
            lovasz_weight: 0.5,
            edge_weight: 1.0,
            flip: 0.5,
            scale_std: 0.25,
            scale_limit: 0.25,
            rotation_std: 30.0,
            rotation_probability: 0.6,
            test_scales: vec![1.0],
            flip_test: true,
            warp_logits: false,
        }
    }
}

/// Human parsing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ParsingTask {
    /// The configuration.
    pub config: ParsingConfig,
    /// Names of the classes; class 0 is the background.
    pub classes: Vec<String>,
    /// The class that each becomes in a flipped image.
    pub flipped: Vec<u8>,
}

impl ParsingTask {
    /// The loss of a batch. With a refiner, the divergence from a mean of its logits and the labels
    /// replaces the cross-entropies; the labels' weight in the mean is 1 / (cycles + 1).
    fn batch_loss(
        &self,
        head: &ParsingHead,
        features: &Features,
        targets: &[ParsingTarget],
        training: &mut Training<'_>,
        refiner: Option<&LabelRefiner<'_, ParsingHead>>,
    ) -> BatchLoss {
        let config = &self.config;
        let size @ [height, width] = targets.first().map_or([1, 1], |target| target.size);
        let labels: Vec<u8> = targets
            .iter()
            .flat_map(|target| target.labels.clone())
            .collect();
        let up = |map: Tensor<4>| resize_bilinear(map, size, true);
        let soft = refiner.map(|refiner| {
            let output = refiner.head.forward(&refiner.features.pyramid, None);
            let share = 1.0 / (refiner.cycles as f64 + 1.0);
            (up(output.logits), output.edges.map(up), share)
        });
        let classes = |logits: Tensor<4>| match &soft {
            None => pixel_cross_entropy(logits, &labels),
            Some((soft, _, share)) => {
                refined_divergence(logits, soft.clone(), &labels, &labels, *share)
            }
        };
        let output = head.forward(&features.pyramid, Some(training));
        let logits = up(output.logits);
        let mut cross_entropy = classes(logits.clone());
        let mut lovasz = lovasz_softmax(logits, &labels);
        if let Some(first) = output.first {
            let first = up(first);
            cross_entropy = cross_entropy + classes(first.clone());
            lovasz = lovasz + lovasz_softmax(first, &labels);
        }
        let (ce, lv) = (config.cross_entropy_weight, config.lovasz_weight);
        let terms = [("cross_entropy", cross_entropy, ce), ("lovasz", lovasz, lv)];
        let Some(edges) = output.edges.map(up) else {
            return BatchLoss::sum(terms);
        };
        let truth: Vec<u8> = { labels.chunks_exact(height * width) }
            .flat_map(|labels| edges_of(labels, height, width))
            .collect();
        let edges = match soft {
            Some((_, Some(soft), share)) => refined_divergence(edges, soft, &truth, &labels, share),
            _ => edge_loss(edges, &truth),
        };
        let [first, second] = terms;
        BatchLoss::sum([first, second, ("edges", edges, config.edge_weight)])
    }
}

/// The labels of an input.
#[derive(Clone, Debug)]
pub struct ParsingTarget {
    /// A class a pixel, `[height, width]`; 255 is ignored.
    pub labels: Vec<u8>,
    /// Height and width.
    pub size: [usize; 2],
}

impl Task for ParsingTask {
    const NAME: &'static str = "parsing";
    const ABOUT: &'static str = "Human parsing: mIoU";
    const HEAD: &'static str = "CE2P's with edges, or `light`";
    const METRICS: &'static str = "mIoU, accuracies, a table by class";
    const RECIPES: &'static [(&'static str, &'static str)] = &[
        (
            "parsing",
            include_str!("../../../../recipes/finetune-parsing.toml"),
        ),
        (
            "parsing-mini",
            include_str!("../../../../recipes/finetune-parsing-mini.toml"),
        ),
    ];

    type Config = ParsingConfig;

    fn default_prompt() -> PromptWeights {
        PromptWeights::single(PART)
    }

    fn config(&self) -> &ParsingConfig {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ParsingConfig {
        &mut self.config
    }

    fn check(config: &ParsingConfig) -> Result<(), TaskError> {
        check::count("task.width", config.width, [1, 4096])?;
        let shares = [
            ("task.flip", config.flip),
            ("task.rotation_probability", config.rotation_probability),
        ];
        check::within(&shares, [0.0, 1.0])?;
        let weights = [
            ("task.cross_entropy_weight", config.cross_entropy_weight),
            ("task.lovasz_weight", config.lovasz_weight),
            ("task.edge_weight", config.edge_weight),
        ];
        check::within(&weights, [0.0, 1e4])?;
        check::within(&[("task.scale_std", config.scale_std)], [0.0, 10.0])?;
        check::within(&[("task.scale_limit", config.scale_limit)], [0.0, 0.99])?;
        check::within(&[("task.rotation_std", config.rotation_std)], [0.0, 180.0])?;
        check::count(
            "number of task.test_scales",
            config.test_scales.len(),
            [1, 64],
        )?;
        for scale in &config.test_scales {
            check::within(&[("task.test_scales", *scale)], [0.1, 4.0])?;
        }
        Ok(())
    }

    fn check_lists(&self) -> Result<(), WrongList> {
        let classes = self.classes.len();
        check::listed("classes", classes, [1, usize::from(IGNORE)])?;
        check::listed("flipped", self.flipped.len(), [classes; 2])?;
        let what = format!("classes from 0 to {}", classes - 1);
        let is_class = |class: &u8| usize::from(*class) < classes;
        check::each("flipped", &what, &self.flipped, is_class)
    }
}

impl Objective for ParsingTask {
    type Head = ParsingHead;
    type Target = ParsingTarget;

    const HEAD_INPUT: HeadInput = HeadInput::Maps;

    const REFINES_LABELS: bool = true;

    fn head(
        &self,
        layout: &FeatureLayout,
        rng: &mut Rng,
        device: &Device,
    ) -> Result<ParsingHead, TaskError> {
        let (width, classes) = (self.config.width, self.classes.len());
        if width == 0 {
            return Err(setting("task.width", "at least 1", 0));
        }
        Ok(match self.config.head {
            ParsingHeadKind::Light => ParsingHead::Light(LightParsingHead::init(
                &layout.channels,
                width,
                classes,
                rng,
                device,
            )),
            ParsingHeadKind::Ce2p => {
                let channels =
                    <[usize; 4]>::try_from(layout.channels.clone()).map_err(|found| {
                        let expected = "light for a backbone without four stages";
                        setting(
                            "task.head",
                            expected,
                            format!("ce2p and {} stages", found.len()),
                        )
                    })?;
                let config = Ce2pConfig {
                    context: 2 * width,
                    decoder: width,
                    ..Ce2pConfig::new(channels, classes)
                };
                ParsingHead::Ce2p(config.init(rng, device))
            }
        })
    }

    fn outputs(&self, head: &ParsingHead, features: Features) -> Vec<(String, Output)> {
        let logits = head.forward(&features.pyramid, None).logits;
        vec![("logits".to_owned(), logits.into())]
    }

    fn loss(
        &self,
        head: &ParsingHead,
        features: &Features,
        targets: &[ParsingTarget],
        training: &mut Training<'_>,
    ) -> BatchLoss {
        self.batch_loss(head, features, targets, training, None)
    }

    fn refined_loss(
        &self,
        head: &ParsingHead,
        features: &Features,
        targets: &[ParsingTarget],
        training: &mut Training<'_>,
        refiner: &LabelRefiner<'_, ParsingHead>,
    ) -> BatchLoss {
        self.batch_loss(head, features, targets, training, Some(refiner))
    }
}
