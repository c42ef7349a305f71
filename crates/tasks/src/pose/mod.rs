//! Top-down pose: heatmaps by deconvolutions (Xiao et al., ECCV 2018), encoded as by MSRA, DARK or
//! UDP.
//!
//! | file | holds |
//! |---|---|
//! | [`mod@self`] | configuration, head, loss |
//! | [`heatmaps`] | joints to heatmaps and back |
//! | [`data`] | people to train on, augmentation |
//! | [`predict`] | poses of people in boxes, pictures |
//! | [`evaluate`] | OKS AP, PCK; poses of other programs |
//! | [`probe`] | the linear probe of frozen features |

pub mod data;
pub mod evaluate;
pub mod heatmaps;
pub mod linear_heatmaps;
pub mod predict;
pub mod probe;

use std::fmt::Display;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use clasp_model::backbone::Features;
use clasp_model::heads::{PoseHead, Training};
use clasp_model::layers::Rng;
use clasp_model::losses::heatmap_loss;
use clasp_model::prompt::{PART, PromptWeights};
use clasp_weights::onnx::Output;
use serde::{Deserialize, Serialize};

use crate::TaskError;
use crate::features::Preprocess;
use crate::task::check::{self, setting};
use crate::task::{BatchLoss, FeatureLayout, HeadInput, Objective, Task, WrongList};

use heatmaps::{HeatmapCodec, HeatmapGrid};

/// Most joints of a model's file.
const MOST_JOINTS: usize = 10_000;

/// A region of more pixels than this is not a person.
const MAX_REGION: f64 = 1e9;

/// Pixels of the input per position of a heatmap.
const STRIDE: usize = 4;

/// Section `[task]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PoseConfig {
    /// Split to train on.
    pub train_split: String,
    /// How joints are encoded as heatmaps.
    pub codec: HeatmapCodec,
    /// Standard deviation of a target in positions of the heatmap.
    pub sigma: f64,
    /// Kernel size of the blur of DARK and UDP in positions, odd; 11 for σ = 2.
    pub blur_kernel: usize,
    /// Channels of the deconvolutions.
    pub width: usize,
    /// Factor by which a box is enlarged.
    pub box_padding: f64,
    /// Probability of a horizontal flip.
    pub flip: f64,
    /// Probability of cropping the upper or the lower half of a body.
    pub half_body: f64,
    /// Standard deviation of the scale about 1, and its largest difference from 1.
    pub scale_std: f64,
    /// Standard deviation of the rotation in degrees, clamped to twice that.
    pub rotation_std: f64,
    /// Probability of a rotation.
    pub rotation_probability: f64,
    /// Average with the flipped image.
    pub flip_test: bool,
    /// Shift the flipped heatmap by a position, as MSRA's code does (not with UDP).
    pub shift_heatmap: bool,
    /// File of detected boxes in COCO's results format. Empty: the ground truth.
    pub box_file: PathBuf,
    /// Detected boxes below this score are not used.
    pub box_threshold: f64,
    /// OKS with a pose of a higher score above which a pose is dropped.
    pub oks_nms: f64,
}

impl Default for PoseConfig {
    fn default() -> Self {
        Self {
            train_split: "train".to_owned(),
            codec: HeatmapCodec::Msra,
            sigma: 2.0,
            blur_kernel: 11,
            width: 256,
            box_padding: 1.25,
            flip: 0.5,
            half_body: 0.3,
            scale_std: 0.5,
            rotation_std: 40.0,
            rotation_probability: 0.6,
            flip_test: true,
            shift_heatmap: true,
            box_file: PathBuf::new(),
            box_threshold: 0.0,
            oks_nms: 0.9,
        }
    }
}

/// Top-down pose.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoseTask {
    /// The configuration.
    pub config: PoseConfig,
    /// Names of the joints.
    pub joints: Vec<String>,
    /// Bones, as pairs of joints.
    pub skeleton: Vec<[usize; 2]>,
    /// Joints that change places in a flipped image.
    pub flip_pairs: Vec<[usize; 2]>,
    /// σ of each joint for OKS.
    pub sigmas: Option<Vec<f64>>,
}

/// Targets of a crop.
#[derive(Debug, Clone)]
pub struct PoseTarget {
    /// `[joints, rows, columns]`.
    pub(super) heatmaps: Vec<f32>,
    /// `[joints]`; 0 for joints without a label.
    pub(super) weights: Vec<f32>,
}

/// The box (x, y, width, height), enlarged about its center to the aspect (width / height) and by
/// `padding`.
fn region([x, y, w, h]: [f64; 4], aspect: f64, padding: f64) -> [f64; 4] {
    let (cx, cy) = (x + w / 2.0, y + h / 2.0);
    let (w, h) = (w.max(h * aspect) * padding, h.max(w / aspect) * padding);
    [cx - w / 2.0, cy - h / 2.0, w, h]
}

/// Checks a region of the box of a person, both x, y, width, height: a huge one has no view. `file` and
/// `entry` name the box.
///
/// # Errors
/// [`TaskError::Mismatch`].
fn check_region(
    region: [f64; 4],
    bbox: [f64; 4],
    file: &Path,
    entry: impl Display,
) -> Result<(), TaskError> {
    // Not so for NaN either.
    if region[2] * region[3] <= MAX_REGION {
        return Ok(());
    }
    Err(TaskError::Mismatch {
        file: file.display().to_string(),
        expected: "boxes about the size of their images".to_owned(),
        found: format!("{bbox:?} (x, y, width, height) of {entry}"),
    })
}

/// A ground-truth box (x, y, width, height) clipped to its image, as the published protocol does;
/// none if nothing is left.
fn clip_box([x, y, w, h]: [f64; 4], height: usize, width: usize) -> Option<[f64; 4]> {
    let (left, top) = (x.max(0.0), y.max(0.0));
    let right = (left + (w - 1.0).max(0.0)).min(width as f64 - 1.0);
    let bottom = (top + (h - 1.0).max(0.0)).min(height as f64 - 1.0);
    (right > left && bottom > top).then_some([left, top, right - left, bottom - top])
}

impl PoseTask {
    pub(super) fn aspect(preprocess: &Preprocess) -> f64 {
        preprocess.width as f64 / preprocess.height as f64
    }

    pub(super) fn grid(preprocess: &Preprocess) -> HeatmapGrid {
        HeatmapGrid {
            rows: preprocess.height / STRIDE,
            columns: preprocess.width / STRIDE,
        }
    }
}

impl Task for PoseTask {
    const NAME: &'static str = "pose";
    const ABOUT: &'static str = "Pose: PCK, OKS AP";
    const HEAD: &'static str = "deconvolutions";
    const METRICS: &'static str = "OKS AP, PCK";
    const RECIPES: &'static [(&'static str, &'static str)] = &[
        (
            "pose",
            include_str!("../../../../recipes/finetune-pose.toml"),
        ),
        (
            "pose-mini",
            include_str!("../../../../recipes/finetune-pose-mini.toml"),
        ),
    ];

    type Config = PoseConfig;

    fn default_prompt() -> PromptWeights {
        PromptWeights::single(PART)
    }

    fn config(&self) -> &PoseConfig {
        &self.config
    }

    fn config_mut(&mut self) -> &mut PoseConfig {
        &mut self.config
    }

    fn check(config: &PoseConfig) -> Result<(), TaskError> {
        check::count("task.width", config.width, [1, 4096])?;
        check::count("task.blur_kernel", config.blur_kernel, [1, 255])?;
        if config.blur_kernel.is_multiple_of(2) {
            return Err(setting(
                "task.blur_kernel",
                "an odd number",
                config.blur_kernel,
            ));
        }
        let shares = [
            ("task.flip", config.flip),
            ("task.half_body", config.half_body),
            ("task.rotation_probability", config.rotation_probability),
            ("task.oks_nms", config.oks_nms),
        ];
        check::within(&shares, [0.0, 1.0])?;
        check::within(&[("task.scale_std", config.scale_std)], [0.0, 0.99])?;
        check::within(&[("task.rotation_std", config.rotation_std)], [0.0, 180.0])?;
        let lengths = [
            ("task.sigma", config.sigma),
            ("task.box_padding", config.box_padding),
        ];
        check::within(&lengths, [0.1, 100.0])?;
        Ok(check::within(
            &[("task.box_threshold", config.box_threshold)],
            [f64::MIN, f64::MAX],
        )?)
    }

    fn check_lists(&self) -> Result<(), WrongList> {
        let joints = self.joints.len();
        check::listed("joints", joints, [1, MOST_JOINTS])?;
        let what = format!("pairs of joints from 0 to {}", joints - 1);
        let are_joints = |pair: &[usize; 2]| pair.iter().all(|joint| *joint < joints);
        check::each("skeleton", &what, &self.skeleton, are_joints)?;
        check::each("flip_pairs", &what, &self.flip_pairs, are_joints)?;
        let Some(sigmas) = &self.sigmas else {
            return Ok(());
        };
        check::listed("sigmas", sigmas.len(), [joints; 2])?;
        check::each("sigmas", "numbers above 0", sigmas, |sigma| *sigma > 0.0)
    }

    /// Heatmaps have the stride that deconvolutions give the coarsest map.
    fn check_size(size: [usize; 2], strides: &[usize]) -> Result<(), TaskError> {
        check::size(size, strides.iter().copied().max().unwrap_or(1).max(STRIDE))
    }
}

impl Objective for PoseTask {
    type Head = PoseHead;
    type Target = PoseTarget;

    const HEAD_INPUT: HeadInput = HeadInput::Maps;

    fn head(
        &self,
        layout: &FeatureLayout,
        rng: &mut Rng,
        device: &Device,
    ) -> Result<PoseHead, TaskError> {
        let stride = layout.strides.last().copied().unwrap_or(STRIDE);
        if stride < STRIDE || !(stride / STRIDE).is_power_of_two() || !stride.is_multiple_of(STRIDE)
        {
            let expected = "a backbone whose last map has 4, 8, 16, ... pixels a position";
            return Err(setting("model.backbone", expected, stride));
        }
        let doublings = (stride / STRIDE).ilog2() as usize;
        let channels = layout.channels.last().copied().unwrap_or(layout.pooled);
        Ok(PoseHead::init(
            channels,
            self.config.width,
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
        targets: &[PoseTarget],
        training: &mut Training<'_>,
    ) -> BatchLoss {
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
        BatchLoss::sum([("heatmaps", heatmap_loss(predicted, heatmaps, weights), 1.0)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_clipped_and_enlarged_as_published() {
        assert_eq!(
            clip_box([-5.0, 2.0, 20.0, 10.0], 100, 50),
            Some([0.0, 2.0, 19.0, 9.0])
        );
        assert_eq!(
            clip_box([45.0, 2.0, 20.0, 10.0], 100, 50),
            Some([45.0, 2.0, 4.0, 9.0])
        );
        assert_eq!(clip_box([60.0, 2.0, 20.0, 10.0], 100, 50), None);
        assert_eq!(clip_box([10.0, 2.0, 1.0, 10.0], 100, 50), None);
        assert_eq!(
            region([10.0, 10.0, 30.0, 80.0], 0.75, 1.25),
            [-12.5, 0.0, 75.0, 100.0]
        );
    }
}
