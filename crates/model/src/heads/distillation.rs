//! The projections of distillation: linear layers from the student's features to the channels of a
//! frozen teacher.

use burn::{
    module::Module,
    nn::Linear,
    tensor::{Device, Tensor},
};

use super::blocks::resize_bilinear;
use crate::{
    features::Features,
    layers::{self, Rng},
};

/// Sizes of the projections.
#[derive(Debug, Clone, PartialEq)]
pub struct DistillationHeadConfig {
    /// Channels of the student's features.
    pub input: usize,
    /// Channels of the teacher's features.
    pub output: usize,
    /// Rows and columns of the teacher's map.
    pub grid: [usize; 2],
    /// Whether pooled features are projected.
    pub pooled: bool,
    /// Whether the map is projected.
    pub dense: bool,
}

impl DistillationHeadConfig {
    /// Projections with fresh weights.
    pub fn init(&self, rng: &mut Rng, device: &Device) -> DistillationHead {
        let mut layer =
            |used: bool| used.then(|| layers::head_linear(self.input, self.output, rng, device));
        DistillationHead {
            pooled: layer(self.pooled),
            dense: layer(self.dense),
            grid: self.grid,
        }
    }
}

/// One linear layer for pooled features, and one for the positions of the map.
#[derive(Module, Debug)]
pub struct DistillationHead {
    /// Student channels → teacher channels.
    pub pooled: Option<Linear>,
    /// Student channels → teacher channels, the same at every position.
    pub dense: Option<Linear>,
    /// Rows and columns of the teacher's map.
    #[module(skip)]
    grid: [usize; 2],
}

/// Projected features of the student; none of those that are not learned.
#[derive(Debug, Clone)]
pub struct DistillationOutputs {
    /// [batch, teacher channels]
    pub pooled: Option<Tensor<2>>,
    /// [batch, teacher channels, teacher rows, teacher columns]
    pub dense: Option<Tensor<4>>,
}

impl DistillationHead {
    /// Projections of a student's features; its map is resized bilinearly to the teacher's grid
    /// where that is another.
    pub fn forward(&self, features: &Features) -> DistillationOutputs {
        let dense = |layer: &Linear| {
            let map = resize_bilinear(features.map.clone(), self.grid, false);
            layers::project(map.permute([0, 2, 3, 1]), layer).permute([0, 3, 1, 2])
        };
        DistillationOutputs {
            pooled: { self.pooled.as_ref() }
                .map(|layer| layers::project(features.pooled.clone(), layer)),
            dense: self.dense.as_ref().map(dense),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::SeedableRng;

    #[test]
    fn outputs_have_the_teachers_channels_and_grid() {
        let device = Device::flex();
        let head = DistillationHeadConfig {
            input: 3,
            output: 5,
            grid: [4, 2],
            pooled: true,
            dense: true,
        };
        let features = Features {
            map: Tensor::ones([2, 3, 2, 2], &device),
            pooled: Tensor::ones([2, 3], &device),
            pyramid: Vec::new(),
        };
        let rng = &mut Rng::seed_from_u64(0);
        let found = head.init(rng, &device).forward(&features);
        assert_eq!(found.pooled.map(|tensor| tensor.dims()), Some([2, 5]));
        assert_eq!(found.dense.map(|tensor| tensor.dims()), Some([2, 5, 4, 2]));
        let pooled_only = DistillationHeadConfig {
            dense: false,
            ..head
        };
        let found = pooled_only.init(rng, &device).forward(&features);
        assert!(found.pooled.is_some() && found.dense.is_none());
    }
}
