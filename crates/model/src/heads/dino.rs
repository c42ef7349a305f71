//! DINO's projection head (Caron et al. 2021, arXiv 2104.14294).

use burn::{
    module::{Module, Param},
    nn::Linear,
    tensor::{Device, Tensor},
};

use crate::{
    kernels,
    layers::{self, Rng, gelu},
};

/// Sizes of the projection head.
#[derive(Debug, Clone, PartialEq)]
pub struct DinoHeadConfig {
    /// Channels of the pooled features.
    pub input: usize,
    /// Channels of the two hidden layers; 2048 in DINO.
    pub hidden: usize,
    /// Channels before the last layer; 256 in DINO.
    pub bottleneck: usize,
    /// Prototypes, K; 65536 in DINO.
    pub output: usize,
}

impl DinoHeadConfig {
    /// DINO's sizes: 2048, 2048, 256, then `output` prototypes.
    pub fn new(input: usize, output: usize) -> Self {
        Self {
            input,
            hidden: 2048,
            bottleneck: 256,
            output,
        }
    }

    /// A head with fresh weights.
    pub fn init(&self, rng: &mut Rng, device: &Device) -> DinoHead {
        let mlp = [
            (self.input, self.hidden),
            (self.hidden, self.hidden),
            (self.hidden, self.bottleneck),
        ]
        .map(|(inputs, outputs)| layers::head_linear(inputs, outputs, rng, device));
        // PyTorch's default for a linear layer, which DINO keeps for the last one.
        let bound = 1.0 / (self.bottleneck as f64).sqrt();
        let shape = [self.output, self.bottleneck];
        DinoHead {
            mlp: mlp.to_vec(),
            last_layer: WeightNormLinear {
                weight_g: layers::constant([self.output, 1], 1.0, device).set_require_grad(false),
                weight_v: layers::uniform_symmetric(shape, bound, rng, device),
            },
        }
    }
}

/// Three layers with GELU, L2, then a weight-normed linear layer.
///
/// `mlp.{0,1,2}` are DINO's `mlp.{0,2,4}`; `last_layer.weight_g` and `weight_v` have DINO's names
/// and layout.
#[derive(Module, Debug)]
pub struct DinoHead {
    /// input → hidden → hidden → bottleneck.
    pub mlp: Vec<Linear>,
    /// bottleneck → prototypes.
    pub last_layer: WeightNormLinear,
}

/// A linear layer without bias whose rows have the norm `weight_g` (Salimans and Kingma 2016).
#[derive(Module, Debug)]
pub struct WeightNormLinear {
    /// Norms of the rows: [outputs, 1]. Frozen at 1.
    pub weight_g: Param<Tensor<2>>,
    /// Directions of the rows: [outputs, inputs].
    pub weight_v: Param<Tensor<2>>,
}

impl WeightNormLinear {
    /// x: [batch, inputs] → [batch, outputs].
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let v = self.weight_v.val();
        if kernels::can_fuse(&x) {
            return kernels::prototypes::prototypes(x, v, self.weight_g.val());
        }
        self.graph(x, v)
    }

    /// The same as a graph.
    fn graph(&self, x: Tensor<2>, v: Tensor<2>) -> Tensor<2> {
        let norms = v.clone().square().sum_dim(1).sqrt();
        let gain = self.weight_g.val() / norms;
        // Scaling the outputs instead of the rows needs no second copy of the weights.
        layers::matmul(x, v.transpose()) * gain.transpose()
    }
}

impl DinoHead {
    /// Prototype logits of pooled features. One call for all views of a kind costs less than one a
    /// view.
    ///
    /// # Shapes
    /// - pooled: [batch, input]
    /// - output: [batch, output]
    pub fn forward(&self, pooled: Tensor<2>) -> Tensor<2> {
        let last = self.mlp.len() - 1;
        let x = self
            .mlp
            .iter()
            .enumerate()
            .fold(pooled, |x, (index, layer)| {
                let x = layers::project(x, layer);
                if index < last { gelu(x) } else { x }
            });
        self.last_layer.forward(l2_normalize(x))
    }
}

/// Divides each row by its norm, at least 1e-12 as in PyTorch. x: [batch, channels].
pub fn l2_normalize(x: Tensor<2>) -> Tensor<2> {
    // The bound stands inside the root, where a zero row has a finite gradient.
    let norm = x.clone().square().sum_dim(1).clamp_min(1e-24).sqrt();
    x / norm
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::tests::{assert_alike, trace};
    use rand_chacha::rand_core::SeedableRng;

    /// The layer with its input.
    #[derive(Module, Debug)]
    struct Case {
        layer: WeightNormLinear,
        x: Param<Tensor<2>>,
    }

    #[test]
    fn the_fused_last_layer_is_the_graphs() {
        let device = Device::flex().autodiff();
        for (seed, [batch, inputs, outputs]) in
            [[1, 3, 2], [5, 8, 1300], [3, 40, 513], [20, 7, 3000]]
                .into_iter()
                .enumerate()
        {
            let mut rng = Rng::seed_from_u64(seed as u64);
            let case = Case {
                layer: WeightNormLinear {
                    weight_g: layers::trunc_normal([outputs, 1], 1.0, &mut rng, &device),
                    weight_v: layers::trunc_normal([outputs, inputs], 1.0, &mut rng, &device),
                },
                x: layers::trunc_normal([batch, inputs], 1.0, &mut rng, &device),
            };
            let graph = trace(&case, |case| {
                case.layer.graph(case.x.val(), case.layer.weight_v.val())
            });
            let fused = trace(&case, |case| case.layer.forward(case.x.val()));
            assert_alike(&graph, &fused, &format!("{batch} of {inputs} to {outputs}"));
        }
    }
}
