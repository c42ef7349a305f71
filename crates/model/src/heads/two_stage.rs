//! The head of two-stage person search: SeqNet (Li and Miao, "Sequential End-to-end Network for
//! Efficient Person Search", AAAI 2021) on a Swin, as SOLIDER fine-tunes it.
//!
//! Regions are proposed on the map before the last stage (Ren et al., "Faster R-CNN", 2015), and a
//! copy of the last stage classifies each as a person or background and refines its box. A second
//! copy embeds the refined box with the norm-aware embedding (Chen et al., CVPR 2020): the
//! direction of the embedding is the identity, its length the person score.

use burn::{
    module::Module,
    nn::{LayerNorm, Linear},
    tensor::{Device, Tensor, activation::relu},
};

use super::blocks::{BatchNorm, Conv, Training, normalize_map};
use super::dino::l2_normalize;
use super::regions::{Region, cut};
use crate::layers::{self, Rng};
use crate::swin::LastStage;

/// Standard deviation of the weights of the layers that are published so.
const STD: f64 = 0.01;

/// Sizes of the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TwoStageConfig {
    /// Channels of the map that regions are cut from, and of the last stage.
    pub channels: [usize; 2],
    /// Anchors at each position.
    pub anchors: usize,
    /// Length of an embedding; at least 2, as each of two levels gives half.
    pub embedding: usize,
}

/// The head.
#[derive(Module, Debug)]
pub struct TwoStageHead {
    /// Of the map that regions are cut from.
    pub norm: LayerNorm,
    /// Region proposals.
    pub proposals: ProposalHead,
    /// Person or background, and the refined box.
    pub first: DetectionBranch,
    /// The embedding.
    pub second: EmbeddingBranch,
}

/// Region proposal network: 3x3 convolution, ReLU, objectness and box deltas for each anchor.
#[derive(Module, Debug)]
pub struct ProposalHead {
    /// channels → channels.
    pub conv: Conv,
    /// channels → anchors.
    pub objectness: Conv,
    /// channels → 4 · anchors.
    pub deltas: Conv,
}

/// The head of Faster R-CNN on a copy of the last stage.
#[derive(Module, Debug)]
pub struct DetectionBranch {
    /// The copy.
    pub stage: LastStage,
    /// → background, person.
    pub class: Linear,
    /// → box deltas.
    pub deltas: Linear,
}

/// Norm-aware embedding on another copy.
#[derive(Module, Debug)]
pub struct EmbeddingBranch {
    /// The copy.
    pub stage: LastStage,
    /// Of the map before the stage and of its output: → half of the embedding each.
    pub projections: Vec<Linear>,
    /// One after each.
    pub norms: Vec<BatchNorm>,
    /// Batch norm of the length: the person logit.
    pub rescaler: BatchNorm,
    /// → box deltas.
    pub deltas: Linear,
    /// After it.
    pub deltas_norm: BatchNorm,
}

/// Region proposals, for each anchor of each position.
#[derive(Debug, Clone)]
pub struct Proposals {
    /// Logits: [batch, anchors, rows, columns].
    pub objectness: Tensor<4>,
    /// x, y, width, height relative to the anchor: [batch, 4 · anchors, rows, columns], the four of
    /// an anchor beside each other.
    pub deltas: Tensor<4>,
}

/// Outputs of the detection head for regions.
#[derive(Debug, Clone)]
pub struct RegionDetections {
    /// Logits of background and person: [regions, 2].
    pub class: Tensor<2>,
    /// Box deltas x, y, width, height relative to the region: [regions, 4].
    pub deltas: Tensor<2>,
}

/// Outputs of the embedding head for regions.
#[derive(Debug, Clone)]
pub struct RegionEmbeddings {
    /// Of length 1: [regions, embedding].
    pub embedding: Tensor<2>,
    /// Person logit: `[regions]`.
    pub score: Tensor<1>,
    /// Box deltas x, y, width, height relative to the region: [regions, 4].
    pub deltas: Tensor<2>,
}

impl TwoStageConfig {
    /// A head with fresh weights but for the two copies of the last stage, which must not share
    /// tensors.
    pub fn init(&self, stages: [LastStage; 2], rng: &mut Rng, device: &Device) -> TwoStageHead {
        let [channels, last] = self.channels;
        let [first, second] = stages;
        let (anchors, half) = (self.anchors, self.embedding / 2);
        let mut conv = |sizes| Conv::normal(sizes, STD, 0.0, rng, device);
        let proposals = ProposalHead {
            conv: conv([channels, channels, 3]),
            objectness: conv([channels, anchors, 1]),
            deltas: conv([channels, 4 * anchors, 1]),
        };
        let mut normal = |inputs, outputs| Linear {
            weight: layers::trunc_normal([inputs, outputs], STD, rng, device),
            bias: Some(layers::constant([outputs], 0.0, device)),
        };
        let projections = vec![normal(channels, half), normal(last, self.embedding - half)];
        let second_deltas = normal(last, 4);
        // Their scales start near 0, as published.
        let mut norm = |channels| BatchNorm {
            weight: layers::trunc_normal([channels], STD, rng, device),
            ..BatchNorm::init(channels, device)
        };
        let norms = vec![norm(half), norm(self.embedding - half)];
        let deltas_norm = norm(4);
        TwoStageHead {
            norm: layers::layer_norm(channels, device),
            proposals,
            first: DetectionBranch {
                stage: first,
                class: layers::head_linear(last, 2, rng, device),
                deltas: layers::head_linear(last, 4, rng, device),
            },
            second: EmbeddingBranch {
                stage: second,
                projections,
                norms,
                rescaler: BatchNorm::init(1, device),
                deltas: second_deltas,
                deltas_norm,
            },
        }
    }
}

impl TwoStageHead {
    /// The map that regions are cut from: [batch, channels, rows, columns], normalized over the
    /// channels.
    pub fn map(&self, stage: Tensor<4>) -> Tensor<4> {
        normalize_map(stage, &self.norm)
    }

    /// Region proposals on a map of [`TwoStageHead::map`].
    pub fn propose(&self, map: Tensor<4>) -> Proposals {
        let x = relu(self.proposals.conv.forward(map));
        Proposals {
            objectness: self.proposals.objectness.forward(x.clone()),
            deltas: self.proposals.deltas.forward(x),
        }
    }

    /// Detection of regions of a map.
    pub fn detect(
        &self,
        map: Tensor<4>,
        regions: &[Region],
        training: Option<&mut Training<'_>>,
    ) -> RegionDetections {
        let maps = cut(map, regions, self.first.stage.region_size());
        let pooled = mean(
            self.first
                .stage
                .forward(maps, training.map(|t| &mut *t.rng)),
        );
        RegionDetections {
            class: self.first.class.forward(pooled.clone()),
            deltas: self.first.deltas.forward(pooled),
        }
    }

    /// Embeddings of regions of a map.
    pub fn embed(
        &self,
        map: Tensor<4>,
        regions: &[Region],
        mut training: Option<&mut Training<'_>>,
    ) -> RegionEmbeddings {
        let second = &self.second;
        let maps = cut(map, regions, second.stage.region_size());
        let rng = training.as_deref_mut().map(|training| &mut *training.rng);
        let pooled = mean(second.stage.forward(maps.clone(), rng));
        let levels = [mean(maps), pooled.clone()];
        let halves = { second.projections.iter().zip(&second.norms).zip(levels) }
            .map(|((projection, norm), level)| {
                norm.forward(projection.forward(level), training.as_deref_mut())
            })
            .collect();
        let embedding = Tensor::cat(halves, 1);
        // The bound stands inside the root, where a zero row has a finite gradient.
        let length = embedding
            .clone()
            .square()
            .sum_dim(1)
            .clamp_min(1e-24)
            .sqrt();
        let score = second.rescaler.forward(length, training.as_deref_mut());
        let deltas = second.deltas.forward(pooled);
        RegionEmbeddings {
            embedding: l2_normalize(embedding),
            score: score.squeeze_dim::<1>(1),
            deltas: second.deltas_norm.forward(deltas, training),
        }
    }
}

/// The mean over a map: [regions, channels, height, width] → [regions, channels].
fn mean(map: Tensor<4>) -> Tensor<2> {
    let [regions, channels, height, width] = map.dims();
    map.reshape([regions, channels, height * width])
        .mean_dim(2)
        .squeeze_dim::<2>(2)
}
