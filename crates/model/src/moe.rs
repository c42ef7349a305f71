//! Prompt-controlled mixture of experts (PC-MoE): small experts beside a block's MLP, chosen for each
//! token by a router that hears the token and the mix of tasks.
//!
//! ```text
//! x ← x + MLP(LN2 x) + γ ⊙ Σ_{e ∈ top-k} softmax_top-k(g)_e · Expert_e(LN3 x)
//! g = (1−a)·W_x LN3(x) + a·W_p p,   p = Σ_t m_t P_t
//! Expert_e(h) = U_e ReLU(D_e h),    D_e: d → d/r,  U_e: d/r → d
//! ```
//!
//! The abstract of CLASP (arXiv 2601.13133) names a prompt-controlled mixture of experts; these equations,
//! the sizes and the initialisation are this project's choice. U starts at zero, so an adapted network
//! equals the plain one until it is trained. Prompts start with unit variance, as the normalised tokens
//! have it, so that at a = 0.5 the two voices of the router are equally loud.
//!
//! All experts are evaluated and the unchosen weigh zero: Σ_e w_e U_e ReLU(D_e h) is one product with the
//! D_e side by side, a scaling of each expert's chunk by its weight, and one product with the U_e stacked.
//! The graph is static, so it exports, and on dense hardware two wide products beat E narrow ones.

use burn::{
    module::{Module, Param},
    nn::{LayerNorm, Linear},
    tensor::{
        Device, Int, Tensor,
        activation::{relu, softmax},
        module::linear,
    },
};
use serde::{Deserialize, Serialize};

use crate::{
    error::ModelError,
    layers::{self, Rng},
    mix::{Mix, TASKS},
};

/// Sizes of the mixture of experts and the stages that hold it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MoeConfig {
    /// Number of experts, E.
    pub experts: usize,
    /// Experts that serve a token, k.
    pub top_k: usize,
    /// Channels over hidden channels of an expert, r.
    pub reduction: usize,
    /// Stages whose blocks hold experts, counted from 0; a ViT has four of equal depth.
    pub stages: Vec<usize>,
    /// Whether the router hears the mix; without, it hears the token alone.
    pub prompts: bool,
}

impl Default for MoeConfig {
    fn default() -> Self {
        Self {
            experts: 6,
            top_k: 2,
            reduction: 8,
            stages: vec![2, 3],
            prompts: true,
        }
    }
}

impl MoeConfig {
    /// Checks that the sizes can work.
    pub fn check(&self) -> Result<(), ModelError> {
        let setting = |field, expected: String, found: usize| ModelError::Setting {
            field,
            expected,
            found: found.to_string(),
        };
        if self.experts == 0 || self.experts > 1024 {
            return Err(setting("experts", "1 to 1024".into(), self.experts));
        }
        if self.top_k == 0 || self.top_k > self.experts {
            let expected = format!("1 to the number of experts, {}", self.experts);
            return Err(setting("top_k", expected, self.top_k));
        }
        if self.reduction == 0 {
            return Err(setting("reduction", "at least 1".into(), 0));
        }
        Ok(())
    }

    /// Number of parameters of a mixture over `channels` channels.
    pub fn parameters(&self, channels: usize) -> usize {
        let width = self.experts * (channels / self.reduction).max(1);
        let prompts = if self.prompts {
            channels * (TASKS.len() + self.experts) + 1
        } else {
            0
        };
        channels * (3 + self.experts + 2 * width) + prompts
    }

    /// Floating-point operations of its products for one token of `channels` channels.
    pub(crate) fn operations(&self, channels: usize) -> usize {
        let width = self.experts * (channels / self.reduction).max(1);
        2 * channels * (self.experts + 2 * width)
    }

    /// A mixture over `channels` channels.
    pub fn init(&self, channels: usize, rng: &mut Rng, device: &Device) -> Moe {
        let hidden = (channels / self.reduction).max(1);
        let width = self.experts * hidden;
        let prompts = self.prompts.then(|| Prompts {
            vectors: layers::trunc_normal([TASKS.len(), channels], 1.0, rng, device),
            router: layers::linear(channels, self.experts, false, rng, device),
            a: layers::constant([1], 0.5, device),
        });
        Moe {
            norm: layers::layer_norm(channels, device),
            router: layers::linear(channels, self.experts, false, rng, device),
            prompts,
            // Kaiming-uniform for ReLU (He et al. 2015): bound = sqrt(6 / inputs).
            down: Linear {
                weight: layers::uniform_symmetric(
                    [channels, width],
                    (6.0 / channels as f64).sqrt(),
                    rng,
                    device,
                ),
                bias: None,
            },
            up: Linear {
                weight: layers::constant([width, channels], 0.0, device),
                bias: None,
            },
            gamma: layers::constant([channels], 0.1, device),
            experts: self.experts,
            top_k: self.top_k,
        }
    }
}

/// The task prompts of one block and what turns them into the router's second voice.
#[derive(Module, Debug)]
pub struct Prompts {
    /// P: [tasks, channels].
    pub vectors: Param<Tensor<2>>,
    /// W_p: channels → experts, without bias.
    pub router: Linear,
    /// The share of the prompt in the router: [1].
    pub a: Param<Tensor<1>>,
}

/// The mixture of experts of one block.
#[derive(Module, Debug)]
pub struct Moe {
    /// LN3.
    pub norm: LayerNorm,
    /// W_x: channels → experts. Has a bias only when a prompt was folded into it.
    pub router: Linear,
    /// The prompts; none when the router does not hear the mix or after [`Moe::fold`].
    pub prompts: Option<Prompts>,
    /// The D_e side by side: channels → experts · hidden.
    pub down: Linear,
    /// The U_e stacked: experts · hidden → channels.
    pub up: Linear,
    /// γ: [channels].
    pub gamma: Param<Tensor<1>>,
    experts: usize,
    top_k: usize,
}

/// Where the tokens of one block went.
#[derive(Debug, Clone)]
pub struct Routing {
    /// Softmax of the router over all experts: [batch, tokens, experts]. Carries gradients.
    pub probabilities: Tensor<3>,
    /// 1 where an expert is in the token's top k, else 0: [batch, tokens, experts]. No gradient.
    pub chosen: Tensor<3>,
    /// The weights used: softmax over the top k, 0 elsewhere: [batch, tokens, experts].
    pub weights: Tensor<3>,
}

impl Moe {
    /// What the experts add to the block, γ included, and the routing.
    ///
    /// # Shapes
    /// - tokens: [batch, tokens, channels], before LN3
    /// - mix: [batch, tasks]
    /// - output: [batch, tokens, channels]
    pub fn forward(&self, tokens: Tensor<3>, mix: Tensor<2>) -> (Tensor<3>, Routing) {
        let hidden = layers::normalise(tokens, &self.norm);
        let routing = self.route(hidden.clone(), mix);
        let [batch, count, channels] = hidden.dims();

        let hidden = relu(layers::project(hidden, &self.down));
        let width = hidden.dims()[2];
        let per_expert = [batch, count, self.experts, width / self.experts];
        let weighted = hidden.reshape(per_expert) * routing.weights.clone().unsqueeze_dim::<4>(3);
        let output = layers::project(weighted.reshape([batch, count, width]), &self.up);
        let gamma = self.gamma.val().reshape([1, 1, channels]);
        (output * gamma, routing)
    }

    /// hidden: [batch, tokens, channels], after LN3.
    fn route(&self, hidden: Tensor<3>, mix: Tensor<2>) -> Routing {
        let logits = self.router.forward(hidden);
        let logits = match &self.prompts {
            None => logits,
            Some(prompts) => {
                let a = prompts.a.val().reshape([1, 1, 1]);
                let voice = prompts.voice(mix).unsqueeze_dim::<3>(1);
                logits * (a.clone().neg() + 1.0) + voice * a
            }
        };
        // The choice has no gradient; the weights and the probabilities have.
        let mut rest = logits.clone().detach();
        let experts = Tensor::<1, Int>::arange(0..self.experts as i64, &rest.device()).reshape([
            1,
            1,
            self.experts,
        ]);
        for _ in 0..self.top_k {
            let best = rest.clone().argmax(2);
            let hit = experts
                .clone()
                .expand(rest.dims())
                .equal(best.expand(rest.dims()));
            rest = rest.mask_fill(hit, f32::NEG_INFINITY);
        }
        let chosen = rest.equal_scalar(f32::NEG_INFINITY);
        let top = logits
            .clone()
            .mask_fill(chosen.clone().bool_not(), f32::NEG_INFINITY);
        Routing {
            probabilities: softmax(logits, 2),
            chosen: chosen.float(),
            weights: softmax(top, 2),
        }
    }

    /// The same mixture for one mix, without prompts: (1−a)·W_x, and a·W_p p as the router's bias.
    pub fn fold(self, mix: Mix) -> Self {
        let Some(prompts) = self.prompts else {
            return self;
        };
        let a = prompts.a.val();
        let voice = prompts
            .voice(mix.tensor(1, &a.device()))
            .squeeze_dim::<1>(0);
        let share = (a.clone().neg() + 1.0).reshape([1, 1]);
        let router = Linear {
            weight: self.router.weight.map(|weight| weight * share),
            bias: Some(Param::from_tensor(voice * a)),
        };
        Self {
            router,
            prompts: None,
            ..self
        }
    }
}

impl Prompts {
    /// W_p p: [batch, experts], of mix: [batch, tasks].
    fn voice(&self, mix: Tensor<2>) -> Tensor<2> {
        linear(
            mix.matmul(self.vectors.val()),
            self.router.weight.val(),
            None,
        )
    }
}
