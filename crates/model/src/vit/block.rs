//! The blocks of a Vision Transformer.

use std::sync::Arc;

use burn::{
    module::{Module, Param},
    nn::{LayerNorm, LayerNormConfig, Linear},
    tensor::{Device, Tensor},
};

use super::{
    config::{Positions, VitConfig},
    rotary::Rotation,
};
use crate::{
    kernels::{self, activation::Activation, windows::WindowGrid},
    layers::{self, DropFactors, Mlp, PatchProjection, Rng, of_graph, project},
    moe::{Conditioned, Moe},
    parameters::{Claims, ParameterKind},
};

/// First value of LayerScale, DINOv2's.
const LAYER_SCALE: f64 = 1e-5;

impl Positions {
    /// Added to the variance in the norms, in every published ViT of these layouts.
    pub(super) fn epsilon(self) -> f64 {
        match self {
            Self::Learned => 1e-6,
            Self::Rotary => 1e-5,
        }
    }
}

pub(super) fn norm(width: usize, epsilon: f64, device: &Device) -> LayerNorm {
    LayerNormConfig::new(width)
        .with_epsilon(epsilon)
        .init(device)
}

/// Patches to tokens.
#[derive(Module, Debug)]
pub struct VitPatchEmbed {
    /// The projection.
    pub proj: PatchProjection,
}

/// Attention, an MLP and, in conditional blocks, the mixture of experts.
#[derive(Module, Debug)]
pub struct VitBlock {
    /// LN1.
    pub norm1: LayerNorm,
    /// Attention.
    pub attn: VitAttention,
    /// Scale of the attention's branch.
    pub ls1: Option<LayerScale>,
    /// LN2.
    pub norm2: LayerNorm,
    /// The MLP.
    pub mlp: Mlp,
    /// Scale of the MLP's branch.
    pub ls2: Option<LayerScale>,
    /// The mixture of experts of a conditional block.
    pub moe: Option<Moe>,
    pub(super) drop_path: f64,
    epsilon: f64,
}

impl VitBlock {
    /// The layers of attention and MLP.
    pub(super) fn layers_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let attention = [&mut self.attn.qkv, &mut self.attn.proj];
        self.mlp.layers_after(attention)
    }

    pub(super) fn claim(config: &VitConfig, block: usize, mut claims: Claims) {
        claims.norm("norm1");
        claims.norm("norm2");
        let mut attention = claims.field("attn");
        attention.linear("qkv", config.sizes.qkv_bias);
        attention.linear("proj", true);
        Mlp::claim(claims.field("mlp"), config.sizes.gated);
        if config.sizes.layer_scale {
            for name in ["ls1", "ls2"] {
                claims.field(name).parameter("gamma", ParameterKind::Norm);
            }
        }
        if let Some(experts) = config.experts(block) {
            experts.claim(claims.field("moe"));
        }
    }

    pub(super) fn init(
        config: &VitConfig,
        block: usize,
        drop_path: f64,
        rng: &mut Rng,
        device: &Device,
    ) -> Self {
        let sizes = &config.sizes;
        let width = sizes.embed_dim;
        let epsilon = sizes.positions.epsilon();
        let scale = || {
            sizes.layer_scale.then(|| LayerScale {
                gamma: layers::constant([width], LAYER_SCALE, device),
            })
        };
        let plain = Self {
            norm1: norm(width, epsilon, device),
            attn: VitAttention {
                qkv: layers::linear(width, 3 * width, sizes.qkv_bias, rng, device),
                proj: layers::linear(width, width, true, rng, device),
                heads: sizes.num_heads,
                key_bias: sizes.key_bias,
            },
            ls1: scale(),
            norm2: norm(width, epsilon, device),
            mlp: Mlp::init(width, sizes.hidden_dim, rng, device).with_activation(
                if sizes.quick_gelu {
                    Activation::QuickGelu
                } else {
                    Activation::Gelu
                },
            ),
            ls2: scale(),
            moe: None,
            drop_path,
            epsilon,
        };
        let plain = match sizes.gated {
            true => Self {
                mlp: plain.mlp.with_gate(rng, device),
                ..plain
            },
            false => plain,
        };
        // Drawn last, so that the plain part of a block is the same with and without experts.
        let moe = config
            .experts(block)
            .map(|moe| moe.init(width, sizes.hidden_dim, rng, device));
        Self { moe, ..plain }
    }

    /// The same for prompt weights [1, prompts], as a block without prompts.
    pub(super) fn fold(self, prompt_weights: &Tensor<2>) -> Self {
        let Some(moe) = &self.moe else {
            return self;
        };
        let conditioned = moe.condition([&self.norm1, &self.norm2], &self.mlp, prompt_weights);
        let Conditioned { norm1, norm2, mlp } = conditioned.detached();
        Self {
            norm1,
            norm2,
            mlp,
            moe: None,
            ..self
        }
    }

    /// x: [batch, tokens, width], prompt_weights: [1, prompts]; `rotation` is that of the tokens, of
    /// a network with rotary positions.
    pub(super) fn forward(
        &self,
        x: Tensor<3>,
        rotation: Option<&Rotation>,
        prompt_weights: &Tensor<2>,
        [factors, later]: [Option<DropFactors>; 2],
    ) -> Tensor<3> {
        let norms = [&self.norm1, &self.norm2];
        let conditioned =
            { self.moe.as_ref() }.map(|moe| moe.condition(norms, &self.mlp, prompt_weights));
        let (norm1, norm2, mlp) = match &conditioned {
            Some(Conditioned { norm1, norm2, mlp }) => (norm1, norm2, mlp),
            None => (&self.norm1, &self.norm2, &self.mlp),
        };
        let attn = &self.attn;
        let tokens = x.dims()[1];
        let fuse = kernels::can_fuse(&x) && self.ls1.is_none() && self.ls2.is_none();
        let x = if fuse && rotation.is_none() && attn.key_bias {
            let parameters =
                kernels::attention::AttentionParameters::new(norm1, &attn.qkv, &attn.proj, None);
            let grid = Arc::new(WindowGrid::whole(tokens, false));
            let factors = factors.map(|factors| factors.values);
            kernels::attention::attention(x, parameters, self.epsilon, attn.heads, grid, factors)
        } else {
            let attended = attn.forward(self.normalize(x.clone(), norm1), rotation);
            let attended = LayerScale::apply(&self.ls1, attended);
            x + DropFactors::scale(&factors, attended)
        };

        if fuse && mlp.fc1_g.is_none() {
            mlp.residual(x, norm2, self.epsilon, later)
        } else if self.ls2.is_none() {
            let normal = self.normalize(x.clone(), norm2);
            mlp.add_to(x, normal, &later)
        } else {
            let branch = mlp.forward(self.normalize(x.clone(), norm2));
            let branch = LayerScale::apply(&self.ls2, branch);
            x + DropFactors::scale(&later, branch)
        }
    }

    /// The norm of each token.
    fn normalize(&self, x: Tensor<3>, norm: &LayerNorm) -> Tensor<3> {
        kernels::norm::layer_norm(x, norm, self.epsilon)
    }
}

/// A factor per channel.
#[derive(Module, Debug)]
pub struct LayerScale {
    /// `[width]`.
    pub gamma: Param<Tensor<1>>,
}

impl LayerScale {
    /// x: [batch, tokens, width].
    fn apply(scale: &Option<Self>, x: Tensor<3>) -> Tensor<3> {
        match scale {
            None => x,
            Some(scale) => x * scale.gamma.val().unsqueeze::<3>(),
        }
    }
}

/// Multi-head attention with one projection for queries, keys and values.
#[derive(Module, Debug)]
pub struct VitAttention {
    /// width → 3·width: queries, keys, values.
    pub qkv: Linear,
    /// width → width.
    pub proj: Linear,
    heads: usize,
    key_bias: bool,
}

impl VitAttention {
    /// x: [batch, tokens, width], the same out.
    fn forward(&self, x: Tensor<3>, rotation: Option<&Rotation>) -> Tensor<3> {
        let [batch, tokens, width] = x.dims();
        let dim = width / self.heads;
        let qkv = match self.key_bias {
            true => project(x, &self.qkv),
            false => project(x, &self.without_key_bias()),
        };
        let qkv = qkv
            .reshape([batch, tokens, 3, self.heads, dim])
            .permute([2, 0, 3, 1, 4]);
        let part = |of: &Tensor<5>, index| of.clone().narrow(0, index, 1).squeeze_dim::<4>(0);
        let value = part(&qkv, 2);
        let queries_and_keys = match rotation {
            Some(rotation) => rotation.apply(qkv.narrow(0, 0, 2)),
            None => qkv,
        };
        let [query, key] = [0, 1].map(|index| part(&queries_and_keys, index));
        let output = layers::attend([query, key, value], None);
        let output = output.swap_dims(1, 2).reshape([batch, tokens, width]);
        project(output, &self.proj)
    }

    /// The projection with zeros for the bias of the keys, whose stored third then has no gradient.
    fn without_key_bias(&self) -> Linear {
        let bias = self.qkv.bias.as_ref().map(|bias| {
            let bias = bias.val();
            let width = bias.dims()[0] / 3;
            let [query, value] = [0, 2].map(|part| bias.clone().narrow(0, part * width, width));
            let key = Tensor::zeros([width], &bias.device());
            of_graph(Tensor::cat(vec![query, key, value], 0))
        });
        Linear {
            weight: self.qkv.weight.clone(),
            bias,
        }
    }
}
