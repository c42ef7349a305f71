//! The configuration of person search.

use clasp_metrics::search::ContextMatching;
use serde::{Deserialize, Serialize};

use crate::TaskError;
use crate::detection::scenes::SceneConfig;
use crate::task::check;

/// The head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SearchHeadKind {
    /// SeqNet's two stages.
    TwoStage,
    /// CSP with an embedding.
    OneStage,
}

/// Section `[task]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SearchConfig {
    /// The head.
    pub head: SearchHeadKind,
    /// Channels of the one-stage head: up to 32, or a multiple of 32.
    pub width: usize,
    /// Dimension of embeddings.
    pub embedding_dim: usize,
    /// Length of the queue of unknown people in online instance matching: 5000 for CUHK-SYSU, 500
    /// for PRW.
    pub queue_size: usize,
    /// Weight of the old feature when the memory of a person is updated.
    pub memory_momentum: f64,
    /// Factor of the similarities in the loss (inverse temperature).
    pub similarity_scale: f64,
    /// Weight of the loss of centers.
    pub center_weight: f64,
    /// Weight of the loss of sizes.
    pub size_weight: f64,
    /// Weight of the loss of offsets.
    pub offset_weight: f64,
    /// Weight of the loss of identities.
    pub identity_weight: f64,
    /// Anchors and regions of the two-stage head.
    pub regions: RegionConfig,
    /// How scenes are scaled and augmented, and which boxes are kept.
    pub scenes: SceneConfig,
    /// Boxes below this score are not in the gallery.
    pub search_threshold: f64,
    /// Gallery frames of a query of CUHK-SYSU: 50, 100, 500, 1000, 2000 or 4000; 0 for all.
    pub gallery_size: usize,
    /// Search frames of other cameras only (PRW; not the published protocol).
    pub other_cameras: bool,
    /// Multiply similarities by the score of the box.
    pub weight_by_score: bool,
    /// Context matching: re-rank this many of the best boxes by the people beside the query; 0 for
    /// none.
    pub context_boxes: usize,
    /// People of the query's frame that context matching uses.
    pub context_people: usize,
}

impl Default for SearchConfig {
    fn default() -> Self {
        Self {
            head: SearchHeadKind::TwoStage,
            width: 256,
            embedding_dim: 256,
            queue_size: 5000,
            memory_momentum: 0.5,
            similarity_scale: 30.0,
            center_weight: 0.01,
            size_weight: 1.0,
            offset_weight: 0.1,
            identity_weight: 1.0,
            regions: RegionConfig::default(),
            scenes: SceneConfig {
                score_threshold: 0.05,
                ..SceneConfig::default()
            },
            search_threshold: 0.5,
            gallery_size: 100,
            other_cameras: false,
            weight_by_score: false,
            context_boxes: 0,
            context_people: 3,
        }
    }
}

impl SearchConfig {
    /// Context matching, if it is configured.
    pub(super) fn context(&self) -> Option<ContextMatching> {
        (self.context_boxes > 0).then_some(ContextMatching {
            boxes: self.context_boxes,
            people: self.context_people,
        })
    }
}

/// Section `[task.regions]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegionConfig {
    /// Sizes of anchors: square roots of their areas in pixels.
    pub anchor_sizes: Vec<f64>,
    /// Heights divided by widths of anchors.
    pub aspect_ratios: Vec<f64>,
    /// Best anchors before NMS, in training and in use.
    pub pre_nms_top_n: [usize; 2],
    /// Proposals of an image after NMS, in training and in use.
    pub post_nms_top_n: [usize; 2],
    /// Anchors and regions of an image that are sampled for the losses.
    pub samples_per_image: [usize; 2],
    /// Weight of the box loss of the first stage.
    pub box_weight: f64,
    /// IoU with a box of a higher score above which a box of the first stage is dropped;
    /// `scenes.nms_threshold` is that of the second stage.
    pub nms_threshold: f64,
}

impl Default for RegionConfig {
    fn default() -> Self {
        Self {
            anchor_sizes: vec![32.0, 64.0, 128.0, 256.0, 512.0],
            aspect_ratios: vec![0.5, 1.0, 2.0],
            pre_nms_top_n: [12_000, 6_000],
            post_nms_top_n: [2_000, 300],
            samples_per_image: [256, 128],
            box_weight: 10.0,
            nms_threshold: 0.4,
        }
    }
}

impl RegionConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// One is out of range.
    pub fn check(&self) -> Result<(), TaskError> {
        check::count(
            "number of task.regions.anchor_sizes",
            self.anchor_sizes.len(),
            [1, 32],
        )?;
        check::count(
            "number of task.regions.aspect_ratios",
            self.aspect_ratios.len(),
            [1, 32],
        )?;
        for size in &self.anchor_sizes {
            check::within(&[("task.regions.anchor_sizes", *size)], [1.0, 10_000.0])?;
        }
        for ratio in &self.aspect_ratios {
            check::within(&[("task.regions.aspect_ratios", *ratio)], [0.01, 100.0])?;
        }
        for (key, [one, other], most) in [
            ("task.regions.pre_nms_top_n", self.pre_nms_top_n, 1_000_000),
            ("task.regions.post_nms_top_n", self.post_nms_top_n, 100_000),
            (
                "task.regions.samples_per_image",
                self.samples_per_image,
                100_000,
            ),
        ] {
            check::count(key, one, [2, most])?;
            check::count(key, other, [2, most])?;
        }
        check::within(&[("task.regions.box_weight", self.box_weight)], [0.0, 1e4])?;
        Ok(check::within(
            &[("task.regions.nms_threshold", self.nms_threshold)],
            [0.0, 1.0],
        )?)
    }

    /// Anchors at each position of the feature map.
    pub fn anchors_per_position(&self) -> usize {
        self.anchor_sizes.len() * self.aspect_ratios.len()
    }
}
