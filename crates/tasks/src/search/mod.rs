//! Person search under online instance matching (Xiao et al., CVPR 2017), with either of two heads.
//!
//! - Two stages ([`two_stage`]): SeqNet, which SOLIDER fine-tunes.
//! - One stage: the CSP head with an embedding at the center of every person, as AlignPS (Yan et
//!   al., CVPR 2021) and other anchor-free person search: one pass over a scene with no step per
//!   proposal.
//!
//! | file | holds |
//! |---|---|
//! | [`mod@self`] | heads, losses, predictions |
//! | [`config`] | the configuration |
//! | [`data`] | scenes to train on |
//! | [`regions`] | anchors, box encoding, sampling |
//! | [`two_stage`] | losses and inference of SeqNet |
//! | [`evaluate`] | mAP, top-k; boxes and embeddings of other programs |

pub mod config;
pub mod data;
pub mod evaluate;
pub mod regions;
pub mod two_stage;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use clasp_data::image::Rgb;
use clasp_model::backbone::Features;
use clasp_model::heads::{DetectionHead, DetectionOutput, Training, TwoStageConfig, TwoStageHead};
use clasp_model::layers::Rng;
use clasp_model::losses::{OimMemory, detection_losses};
use clasp_model::prompt::PromptWeights;
use clasp_weights::onnx::Output;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::TaskError;
use crate::detection::csp::{self, CspOutputs, DetectedPerson, center_of};
use crate::detection::scenes::{self, SceneTarget};
use crate::detection::{SHOWN_SCORE, draw_boxes};
use crate::task::{
    BatchLoss, FeatureLayout, FinetunedModel, HeadInput, InputKind, Objective, Predictor, Task,
    WrongList, check,
};

use config::{SearchConfig, SearchHeadKind};
use two_stage::SceneFeatures;

/// Most numbers of the embeddings of known people, and of those of unknown ones, in the memory: 1 GiB
/// each.
const MOST_REMEMBERED: usize = 1 << 28;

/// Person search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SearchTask {
    /// The configuration.
    pub config: SearchConfig,
    /// Training identities, in the order of the memory.
    pub people: Vec<i64>,
}

/// A detector with embeddings, and the memory of online instance matching.
#[derive(Module, Debug)]
pub struct SearchHead {
    /// Detects people and embeds them.
    pub detector: PersonDetector,
    /// Updated after every step; used in training only.
    pub memory: OimMemory,
}

/// One of the two heads.
// There is one head; a `Box`, for which Burn has no module, would save nothing.
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
pub enum PersonDetector {
    /// SeqNet's two stages.
    TwoStage(TwoStageHead),
    /// CSP with an embedding.
    OneStage(DetectionHead),
}

impl SearchTask {
    /// The people of a scene, and the embeddings of the people in the boxes `queries` (x, y, width,
    /// height). `index` is the position of the scene, for errors.
    pub(super) fn detect(
        &self,
        model: &FinetunedModel<Self>,
        image: &Rgb,
        index: usize,
        queries: &[[f64; 4]],
    ) -> Result<(Vec<DetectedPerson>, Vec<Vec<f32>>), TaskError> {
        let SearchConfig {
            scenes, regions, ..
        } = &self.config;
        match &model.head.detector {
            PersonDetector::TwoStage(head) => {
                let features = SceneFeatures::new(model, head, image, scenes, index)?;
                Ok((
                    features.people(scenes, regions)?,
                    features.embeddings(queries)?,
                ))
            }
            PersonDetector::OneStage(head) => {
                let head = |maps: &[_]| head.forward(maps);
                let outputs = CspOutputs::new(model, head, image, scenes, index)?;
                let embeddings = queries.iter().map(|bbox| outputs.embedding_of(*bbox));
                Ok((outputs.boxes(scenes), embeddings.collect()))
            }
        }
    }

    /// The loss of the one-stage head.
    fn one_stage(
        &self,
        head: &DetectionHead,
        memory: &OimMemory,
        features: &Features,
        targets: &[scenes::SceneTarget],
        training: &mut Training<'_>,
    ) -> BatchLoss {
        let output = head.forward(csp::maps(&features.pyramid));
        let losses = detection_losses(&output, &csp::targets(targets));
        let config = &self.config;
        let identity = match Self::at_centers(&output, targets) {
            Some((embeddings, persons)) => {
                let loss = memory.loss(embeddings.clone(), &persons, config.similarity_scale);
                memory.follow(embeddings, &persons, config.memory_momentum, training);
                loss
            }
            None => losses.center.clone() * 0.0,
        };
        BatchLoss::sum([
            ("center", losses.center, config.center_weight),
            ("size", losses.size, config.size_weight),
            ("offset", losses.offset, config.offset_weight),
            ("identity", identity, config.identity_weight),
        ])
    }

    /// Embeddings at the centers of a batch's people, `[people, embedding_dim]`, and their
    /// identities.
    fn at_centers(
        output: &DetectionOutput,
        targets: &[scenes::SceneTarget],
    ) -> Option<(Tensor<2>, Vec<Option<usize>>)> {
        let map = output.embedding.clone()?;
        let [batch, length, rows, columns] = map.dims();
        let (mut places, mut persons) = (Vec::new(), Vec::new());
        for (index, target) in targets.iter().enumerate() {
            for one in target.people.iter().filter(|one| !one.ignored) {
                if let Some([row, column]) = center_of(one.bbox, rows, columns) {
                    places.push(((index * rows + row) * columns + column) as i32);
                    persons.push(one.identity);
                }
            }
        }
        if places.is_empty() {
            return None;
        }
        let rows_of_map = map
            .permute([0, 2, 3, 1])
            .reshape([batch * rows * columns, length]);
        let places = TensorData::from(places.as_slice());
        let places = Tensor::<1, Int>::from_data(places, &rows_of_map.device());
        Some((rows_of_map.select(0, places), persons))
    }
}

impl Task for SearchTask {
    const NAME: &'static str = "search";
    const ABOUT: &'static str = "Person search: mAP, top-k";
    const HEAD: &'static str = "SeqNet's two stages, or `one-stage`: CSP with an embedding";
    const METRICS: &'static str = "mAP, top-k";
    const RECIPES: &'static [(&'static str, &'static str)] = &[
        (
            "search",
            include_str!("../../../../recipes/finetune-search.toml"),
        ),
        (
            "search-one-stage",
            include_str!("../../../../recipes/finetune-search-one-stage.toml"),
        ),
        (
            "search-mini",
            include_str!("../../../../recipes/finetune-search-mini.toml"),
        ),
    ];
    const INPUT: InputKind = InputKind::Scene;

    type Config = SearchConfig;

    fn default_prompt() -> PromptWeights {
        match PromptWeights::new([0.5, 0.5, 0.0]) {
            Ok(prompt) => prompt,
            Err(_) => PromptWeights::mean(),
        }
    }

    fn config(&self) -> &SearchConfig {
        &self.config
    }

    fn config_mut(&mut self) -> &mut SearchConfig {
        &mut self.config
    }

    fn check(config: &SearchConfig) -> Result<(), TaskError> {
        config.scenes.check()?;
        config.regions.check()?;
        check::count("task.embedding_dim", config.embedding_dim, [2, 65_536])?;
        check::count("task.queue_size", config.queue_size, [1, 1_000_000])?;
        let numbers = config.queue_size.saturating_mul(config.embedding_dim);
        let product = "task.queue_size times task.embedding_dim";
        check::count(product, numbers, [2, MOST_REMEMBERED])?;
        let shares = [
            ("task.memory_momentum", config.memory_momentum),
            ("task.search_threshold", config.search_threshold),
        ];
        check::within(&shares, [0.0, 1.0])?;
        check::within(
            &[("task.similarity_scale", config.similarity_scale)],
            [0.01, 1e4],
        )?;
        let weights = [
            ("task.center_weight", config.center_weight),
            ("task.size_weight", config.size_weight),
            ("task.offset_weight", config.offset_weight),
            ("task.identity_weight", config.identity_weight),
        ];
        Ok(check::within(&weights, [0.0, 1e4])?)
    }

    fn check_lists(&self) -> Result<(), WrongList> {
        let most = MOST_REMEMBERED / self.config.embedding_dim.max(1);
        check::listed("people", self.people.len(), [1, most])
    }

    fn check_size(size: [usize; 2], strides: &[usize]) -> Result<(), TaskError> {
        check::size(
            size,
            strides.iter().copied().max().unwrap_or(scenes::MULTIPLE),
        )
    }
}

impl Objective for SearchTask {
    type Head = SearchHead;
    type Target = SceneTarget;

    const HEAD_INPUT: HeadInput = HeadInput::Maps;

    fn head(
        &self,
        layout: &FeatureLayout,
        rng: &mut Rng,
        device: &Device,
    ) -> Result<SearchHead, TaskError> {
        let SearchConfig {
            width,
            embedding_dim: embedding,
            queue_size: queue,
            ..
        } = self.config;
        let detector = match self.config.head {
            SearchHeadKind::OneStage => {
                PersonDetector::OneStage(csp::head(layout, width, Some(embedding), rng, device)?)
            }
            SearchHeadKind::TwoStage => {
                let (channels, copies) = two_stage::last_stages(layout)?;
                let anchors = self.config.regions.anchors_per_position();
                let config = TwoStageConfig {
                    channels,
                    anchors,
                    embedding,
                };
                PersonDetector::TwoStage(config.init(copies, rng, device))
            }
        };
        let memory = OimMemory::init(self.people.len(), queue, embedding, device);
        Ok(SearchHead { detector, memory })
    }

    fn outputs(&self, head: &SearchHead, features: Features) -> Vec<(String, Output)> {
        match &head.detector {
            PersonDetector::TwoStage(head) => two_stage::outputs(head, &features.pyramid),
            PersonDetector::OneStage(head) => {
                csp::outputs(head.forward(csp::maps(&features.pyramid)))
            }
        }
    }

    fn missing_in_outputs(&self) -> Option<&'static str> {
        match self.config.head {
            SearchHeadKind::TwoStage => Some(
                "the second stage, which finds the boxes and embeddings of the regions that the first proposes",
            ),
            SearchHeadKind::OneStage => None,
        }
    }

    fn loss(
        &self,
        head: &SearchHead,
        features: &Features,
        targets: &[SceneTarget],
        training: &mut Training<'_>,
    ) -> BatchLoss {
        let (memory, config) = (&head.memory, &self.config);
        match &head.detector {
            PersonDetector::TwoStage(head) => {
                two_stage::losses(head, memory, features, targets, config, training)
            }
            PersonDetector::OneStage(head) => {
                self.one_stage(head, memory, features, targets, training)
            }
        }
    }
}

impl Predictor for SearchTask {
    fn predict(&self, model: &FinetunedModel<Self>, image: &Rgb) -> Result<Value, TaskError> {
        let (mut found, _) = self.detect(model, image, 0, &[])?;
        found.retain(|one| one.score >= SHOWN_SCORE);
        let boxes: Vec<Value> = { found.iter() }
            .map(|one| json!({"bbox": one.bbox, "score": one.score, "embedding": one.embedding}))
            .collect();
        Ok(json!({ "boxes": boxes }))
    }

    fn draw(&self, image: &Rgb, prediction: &Value) -> Rgb {
        draw_boxes(image, prediction)
    }
}
