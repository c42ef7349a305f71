//! The head of pedestrian detection, CSP (Liu et al., "High-level Semantic Feature Detection", CVPR
//! 2019): a heatmap of the centers of pedestrians, and height and width at each center. Person
//! search adds an embedding.

use burn::{
    module::{Module, Param},
    nn::LayerNorm,
    tensor::{Device, Tensor, activation::relu},
};

use super::blocks::{Conv, Deconv, GroupNorm, normalize_stages, stage_norms};
use super::dino::l2_normalize;
use crate::layers::{self, Rng};

/// Norm to which each position of a stage's map is brought at first.
const NORM: f64 = 10.0;
/// Groups of the normalization.
const GROUPS: usize = 32;
/// Initial probability of a center, so that the many negatives do not dominate the loss
/// (RetinaNet).
const PRIOR: f64 = 0.01;

/// Outputs of the head, on a grid of a quarter of the image's height and width.
#[derive(Debug, Clone)]
pub struct DetectionOutput {
    /// Logit of a center: [batch, 1, rows, columns].
    pub center: Tensor<4>,
    /// Natural logarithms of height and width in positions of the grid: [batch, 2, rows, columns].
    pub size: Tensor<4>,
    /// Offset of the center within its position, down and right, from −0.5 to 0.5: [batch, 2, rows,
    /// columns].
    pub offset: Tensor<4>,
    /// Embedding of the person whose center this is, of length 1: [batch, embedding, rows,
    /// columns].
    pub embedding: Option<Tensor<4>>,
}

/// Sizes of the head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetectionHeadConfig {
    /// Channels of each input map.
    pub channels: Vec<usize>,
    /// How many times as coarse as the output grid each of them is.
    pub strides: Vec<usize>,
    /// Channels inside; 256 as published.
    pub width: usize,
    /// Length of an embedding; none for detection alone.
    pub embedding: Option<usize>,
}

/// The CSP head.
#[derive(Module, Debug)]
pub struct DetectionHead {
    /// Of all maps but the last.
    pub norms: Vec<LayerNorm>,
    /// One a map, to the output grid.
    pub ups: Vec<Up>,
    /// One a map: `[width]`.
    pub scales: Vec<Param<Tensor<1>>>,
    /// 3x3 over all maps.
    pub mix: Conv,
    /// After it.
    pub norm: GroupNorm,
    /// width → 1.
    pub centre: Conv,
    /// width → 2.
    pub size: Conv,
    /// width → 2.
    pub offset: Conv,
    /// All maps → embedding.
    pub embedding: Option<Conv>,
}

/// Layer that brings a map to the output grid.
#[derive(Module, Debug)]
pub enum Up {
    /// To the same.
    Same(Conv),
    /// To a finer one.
    Finer(Deconv),
}

impl DetectionHeadConfig {
    /// A head with fresh weights of standard deviation 0.01.
    ///
    /// # Panics
    /// When there are not as many strides as maps, or the width is no multiple of 32.
    pub fn init(&self, rng: &mut Rng, device: &Device) -> DetectionHead {
        assert_eq!(self.channels.len(), self.strides.len(), "strides of maps");
        let (width, all) = (self.width, self.width * self.channels.len());
        let mut ups = Vec::new();
        for (&channels, &stride) in self.channels.iter().zip(&self.strides) {
            let std = 1.0 / (channels as f64).sqrt();
            ups.push(if stride == 1 {
                Up::Same(Conv::init([channels, width, 1], true, rng, device))
            } else {
                Up::Finer(Deconv::init(
                    [channels, width, stride],
                    std,
                    true,
                    rng,
                    device,
                ))
            });
        }
        let mut answer = |outputs, bias| Conv::normal([width, outputs, 1], 0.01, bias, rng, device);
        let centre = answer(1, -((1.0 - PRIOR) / PRIOR).ln());
        let (size, offset) = (answer(2, 0.0), answer(2, 0.0));
        DetectionHead {
            norms: stage_norms(&self.channels, device),
            scales: (0..ups.len())
                .map(|_| layers::constant([width], NORM, device))
                .collect(),
            ups,
            mix: Conv::init([all, width, 3], false, rng, device),
            norm: GroupNorm::init(width, GROUPS.min(width), device),
            centre,
            size,
            offset,
            embedding: (self.embedding)
                .map(|length| Conv::init([all, length, 1], true, rng, device)),
        }
    }
}

impl DetectionHead {
    /// # Shapes
    /// - maps: [batch, channels, rows / stride, columns / stride] each, finest first; the first
    ///   that is as fine as the output grid, or else the strides, determine the size of the output
    pub fn forward(&self, maps: &[Tensor<4>]) -> DetectionOutput {
        let maps = normalize_stages(maps, &self.norms);
        let mut joined: Vec<Tensor<4>> = Vec::new();
        for ((up, scale), map) in self.ups.iter().zip(&self.scales).zip(&maps) {
            let x = match up {
                Up::Same(conv) => conv.forward(map.clone()),
                Up::Finer(deconv) => deconv.forward(map.clone()),
            };
            // Odd maps are padded where they are merged, so that coarser ones reach a little
            // further.
            let x = match joined.first() {
                Some(first) => {
                    let [_, _, rows, columns] = first.dims();
                    x.narrow(2, 0, rows).narrow(3, 0, columns)
                }
                None => x,
            };
            let channels = scale.val().dims()[0];
            let norm = (x.clone().square().sum_dim(1) + 1e-10).sqrt();
            joined.push(x / norm * scale.val().reshape([1, channels, 1, 1]));
        }
        let joined = Tensor::cat(joined, 1);
        let x = relu(self.norm.forward(self.mix.forward(joined.clone())));
        DetectionOutput {
            center: self.centre.forward(x.clone()),
            size: self.size.forward(x.clone()),
            offset: self.offset.forward(x),
            embedding: self.embedding.as_ref().map(|conv| {
                let map = conv.forward(joined);
                let [batch, length, rows, columns] = map.dims();
                let rows_first = map
                    .permute([0, 2, 3, 1])
                    .reshape([batch * rows * columns, length]);
                l2_normalize(rows_first)
                    .reshape([batch, rows, columns, length])
                    .permute([0, 3, 1, 2])
            }),
        }
    }
}
