//! A transformer block of either tower.

use std::sync::Arc;

use burn::{
    module::Module,
    nn::{LayerNorm, LayerNormConfig, Linear},
    tensor::{Device, Tensor},
};

use super::{
    config::ClipConfig,
    dense::Dense,
    init::{BlockDraws, Fill, InitialDistribution},
};
use crate::{
    kernels::{self, activation::Activation, windows::WindowGrid},
    layers::{self, activated, project},
};

/// A stack of blocks.
#[derive(Module, Debug)]
pub struct Transformer {
    /// The blocks, in order.
    pub resblocks: Vec<ClipBlock>,
}

/// Pre-norm attention and MLP, each with a residual.
#[derive(Module, Debug)]
pub struct ClipBlock {
    /// Before the attention.
    pub ln_1: LayerNorm,
    /// The attention.
    pub attn: ClipAttention,
    /// Before the MLP.
    pub ln_2: LayerNorm,
    /// The MLP.
    pub mlp: ClipMlp,
    /// ε of the norms.
    #[module(skip)]
    epsilon: f64,
}

impl ClipBlock {
    pub(super) fn new(
        [width, heads, hidden]: [usize; 3],
        draws: &BlockDraws,
        config: &ClipConfig,
        fill: &mut Fill<'_>,
        device: &Device,
    ) -> Self {
        let norm = LayerNormConfig::new(width).with_epsilon(config.epsilon);
        Self {
            ln_1: norm.init(device),
            attn: ClipAttention {
                in_proj: fill.linear(
                    [width, 3 * width],
                    draws.in_proj,
                    InitialDistribution::Zero,
                    device,
                ),
                out_proj: fill.linear(
                    [width, width],
                    draws.out_proj,
                    InitialDistribution::Zero,
                    device,
                ),
                heads,
            },
            ln_2: norm.init(device),
            mlp: ClipMlp {
                c_fc: fill.linear([width, hidden], draws.c_fc, draws.c_fc_bias, device),
                c_proj: fill.linear([hidden, width], draws.c_proj, draws.c_proj_bias, device),
                activation: config.activation,
            },
            epsilon: config.epsilon,
        }
    }

    /// x: [batch, tokens, width]; mask: [1, 1, tokens, tokens], a [`causal_mask`], added to the
    /// scores.
    pub(super) fn forward(&self, x: Tensor<3>, mask: Option<&Tensor<4>>) -> Tensor<3> {
        if kernels::can_fuse(&x) {
            let ClipAttention {
                in_proj,
                out_proj,
                heads,
            } = &self.attn;
            let parameters =
                kernels::attention::AttentionParameters::new(&self.ln_1, in_proj, out_proj, None);
            let grid = Arc::new(WindowGrid::whole(x.dims()[1], mask.is_some()));
            let x = kernels::attention::attention(x, parameters, self.epsilon, *heads, grid, None);
            return self.feed(x);
        }
        let [q, k, v] = self.attn.project(self.ln_1.forward(x.clone()));
        let x = x + self.attn.output(attend(q, k, v, mask));
        self.feed(x)
    }

    fn feed(&self, x: Tensor<3>) -> Tensor<3> {
        if kernels::can_fuse(&x) {
            let ClipMlp {
                c_fc,
                c_proj,
                activation,
            } = &self.mlp;
            let parameters = kernels::mlp::MlpParameters::new(&self.ln_2, c_fc, c_proj);
            return kernels::mlp::mlp(x, parameters, self.epsilon, *activation, None);
        }
        x.clone() + self.mlp.forward(self.ln_2.forward(x))
    }

    /// The last block of dense features: every token by each variant, and the class token as in
    /// [`ClipBlock::forward`].
    ///
    /// Returns ([batch, tokens, width] for each variant, [batch, 1, width]).
    pub(super) fn dense<const N: usize>(
        &self,
        x: Tensor<3>,
        dense: [Dense; N],
    ) -> ([Tensor<3>; N], Tensor<3>) {
        let [batch, _, _] = x.dims();
        let [q, k, v] = self.attn.project(self.ln_1.forward(x.clone()));
        let [_, heads, _, _] = q.dims();
        let class_query = q.clone().slice([0..batch, 0..heads, 0..1]);
        let class = attend(class_query, k.clone(), v.clone(), None);
        let class = self.feed(x.clone().slice([0..batch, 0..1]) + self.attn.output(class));
        let itself = |x: &Tensor<4>| attend(x.clone(), x.clone(), v.clone(), None);
        let tokens = dense.map(|dense| match dense {
            Dense::Clear => self.attn.output(itself(&q)),
            Dense::Mask => self.attn.output(v.clone()),
            Dense::SelfSelf => {
                let both = self.attn.output(itself(&q) + itself(&k));
                self.feed(x.clone() + both)
            }
        });
        (tokens, class)
    }
}

/// Multi-head attention with one projection for queries, keys and values.
#[derive(Module, Debug)]
pub struct ClipAttention {
    /// [width, 3·width]: queries, keys, values.
    pub in_proj: Linear,
    /// [width, width].
    pub out_proj: Linear,
    #[module(skip)]
    heads: usize,
}

impl ClipAttention {
    /// [batch, tokens, width] to three times [batch, heads, tokens, width / heads].
    fn project(&self, x: Tensor<3>) -> [Tensor<4>; 3] {
        let [batch, tokens, width] = x.dims();
        let qkv = project(x, &self.in_proj);
        let part = |index: usize| {
            qkv.clone()
                .slice([0..batch, 0..tokens, index * width..(index + 1) * width])
                .reshape([batch, tokens, self.heads, width / self.heads])
                .swap_dims(1, 2)
        };
        [part(0), part(1), part(2)]
    }

    /// [batch, heads, tokens, width / heads] to [batch, tokens, width].
    fn output(&self, x: Tensor<4>) -> Tensor<3> {
        let [batch, heads, tokens, dim] = x.dims();
        let x = x.swap_dims(1, 2).reshape([batch, tokens, heads * dim]);
        project(x, &self.out_proj)
    }
}

/// Two linear layers with the activation between.
#[derive(Module, Debug)]
pub struct ClipMlp {
    /// [width, hidden].
    pub c_fc: Linear,
    /// [hidden, width].
    pub c_proj: Linear,
    #[module(skip)]
    activation: Activation,
}

impl ClipMlp {
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let active = activated(x, &self.c_fc, self.activation);
        project(active, &self.c_proj)
    }
}

/// `softmax(q kᵀ / √d + mask) v`, all [batch, heads, tokens, d].
fn attend(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, mask: Option<&Tensor<4>>) -> Tensor<4> {
    match mask {
        None => layers::attend([q, k, v], None),
        // Fused attention does not support scores of minus infinity.
        Some(mask) => layers::attend_in_steps([q, k, v], Some(mask.clone())),
    }
}
