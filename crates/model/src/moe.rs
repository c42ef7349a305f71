//! Prompt-controlled mixture of experts (PC-MoE): the last blocks of a backbone compute differently under the
//! prompt of each pre-training task.
//!
//! The abstract of CLASP (arXiv 2601.13133) names a prompt-controlled mixture of experts; the three forms below,
//! their sizes and their initialization are this project's choice. m are the prompt weights, one for each task,
//! with a sum of 1.
//!
//! *Gated* ([`Gated`], the default). Each hidden unit of the MLP is a rank-one expert, W₂[h, :] ⊗ act(W₁[:, h]·x);
//! a prompt scales each of them, and the scale and shift of both layer norms (feature-wise linear modulation,
//! Perez et al. 2018):
//!
//! ```text
//! N(x; m) = (1 + Σ_t m_t s_t) ⊙ LN(x) + Σ_t m_t b_t            for both norms
//! MLP(x; m) = W₂ · ((1 + Σ_t m_t c_t) ⊙ act(W₁ x))              s, b, c start at zero
//! ```
//!
//! *Merged* ([`Merged`]). Experts are copies of the MLP whose weights are averaged before use (soft merging,
//! Muqeeth et al. 2023):
//!
//! ```text
//! W(m) = W + Σ_e w_e(m)·D_e,    w(m) = Σ_t m_t softmax(G_t)
//! ```
//!
//! D_e starts as noise with Σ_e w_te·D_e = 0 for every task t, and w is linear in m, so that the block starts as the
//! plain block for every m, to rounding. G_t starts as a mild preference for the experts e with e mod tasks = t.
//!
//! *Routed* ([`Routed`]). Small experts beside the MLP, the top k chosen for each token:
//!
//! ```text
//! x ← x + MLP(LN2 x) + Σ_{e ∈ top-k} softmax_top-k(g)_e · Expert_e(LN3 x)
//! g = W_x LN3(x) + Σ_t m_t G_t,    Expert_e(h) = U_e ReLU(D_e h),   U starts at zero
//! ```
//!
//! All forms start as the plain backbone, so published weights load without loss. For fixed prompt weights the first
//! two fold into a plain block ([`Moe::condition`]), which other programs can load.

use burn::{
    module::{Module, Param, ParamId},
    nn::{LayerNorm, Linear},
    tensor::{
        Device, Int, Tensor,
        activation::{relu, softmax},
    },
};
use serde::{Deserialize, Serialize};

use crate::{
    error::ModelError,
    layers::{self, Rng},
    mix::TASKS,
    swin::Mlp,
};

/// Standard deviation of the differences between merged experts at the start, half of that of fresh weights.
const EXPERT_NOISE: f64 = 0.01;

/// Which form the mixture of experts has; see the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MoeKind {
    /// Prompts scale the hidden units of the MLP and modulate the norms.
    #[default]
    Gated,
    /// Prompts weigh copies of the MLP, whose weights are averaged.
    Merged,
    /// Prompt and token choose small experts beside the MLP.
    Routed,
}

/// Form and sizes of the mixture of experts, and the blocks that hold it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MoeConfig {
    /// Its form.
    pub form: MoeKind,
    /// Conditional blocks, counted from the last.
    pub blocks: usize,
    /// Number of experts, E (merged and routed).
    pub experts: usize,
    /// Experts of a token, k (routed).
    pub top_k: usize,
    /// Channels over hidden channels of an expert (routed).
    pub reduction: usize,
}

impl Default for MoeConfig {
    fn default() -> Self {
        Self {
            form: MoeKind::default(),
            blocks: 1,
            experts: 6,
            top_k: 2,
            reduction: 8,
        }
    }
}

impl MoeConfig {
    /// Checks the sizes for a backbone whose last stage has `blocks` blocks.
    ///
    /// # Errors
    /// A size is out of range.
    pub fn check(&self, blocks: usize) -> Result<(), ModelError> {
        let setting = |field, expected: String, found: usize| ModelError::Setting {
            field,
            expected,
            found: found.to_string(),
        };
        if !(1..=blocks).contains(&self.blocks) {
            let expected = format!("1 to {blocks}, the blocks of the last stage");
            return Err(setting("blocks", expected, self.blocks));
        }
        let least = match self.form {
            MoeKind::Gated => return Ok(()),
            MoeKind::Merged => TASKS.len() + 1,
            MoeKind::Routed => 1,
        };
        if !(least..=1024).contains(&self.experts) {
            return Err(setting("experts", format!("{least} to 1024"), self.experts));
        }
        if self.form == MoeKind::Merged {
            return Ok(());
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

    /// Number of parameters that it adds to a block of `channels` channels whose MLP has `hidden` units.
    pub fn parameters(&self, channels: usize, hidden: usize) -> usize {
        let tasks = TASKS.len();
        match self.form {
            MoeKind::Gated => tasks * (4 * channels + hidden),
            MoeKind::Merged => self.experts * (tasks + 2 * channels * hidden + hidden + channels),
            MoeKind::Routed => {
                channels * (2 + self.experts + 2 * self.width(channels)) + tasks * self.experts
            }
        }
    }

    /// Floating-point operations that it adds to the products of a block for one token of `channels` channels.
    pub(crate) fn operations(&self, channels: usize) -> usize {
        match self.form {
            MoeKind::Routed => 2 * channels * (self.experts + 2 * self.width(channels)),
            _ => 0,
        }
    }

    /// Hidden units of all routed experts together.
    fn width(&self, channels: usize) -> usize {
        self.experts * (channels / self.reduction).max(1)
    }

    /// The mixture of a block of `channels` channels whose MLP has `hidden` units.
    pub fn init(&self, channels: usize, hidden: usize, rng: &mut Rng, device: &Device) -> Moe {
        let tasks = TASKS.len();
        match self.form {
            MoeKind::Gated => {
                let zero = |width| layers::constant([tasks, width], 0.0, device);
                Moe::Gated(Gated {
                    prompts: Modulation {
                        norm1_scale: zero(channels),
                        norm1_shift: zero(channels),
                        norm2_scale: zero(channels),
                        norm2_shift: zero(channels),
                        hidden_scale: zero(hidden),
                    },
                })
            }
            MoeKind::Merged => Moe::Merged(Merged {
                prompts: Gate::init(self.experts, device),
                fc1: Differences::init([self.experts, channels, hidden], rng, device),
                fc2: Differences::init([self.experts, hidden, channels], rng, device),
            }),
            MoeKind::Routed => Moe::Routed(Routed {
                norm: layers::layer_norm(channels, device),
                router: layers::linear(channels, self.experts, false, rng, device),
                prompts: Some(Gate::init(self.experts, device)),
                // Kaiming-uniform for ReLU (He et al. 2015): bound = sqrt(6 / inputs).
                down: Linear {
                    weight: layers::uniform_symmetric(
                        [channels, self.width(channels)],
                        (6.0 / channels as f64).sqrt(),
                        rng,
                        device,
                    ),
                    bias: None,
                },
                up: Linear {
                    weight: layers::constant([self.width(channels), channels], 0.0, device),
                    bias: None,
                },
                experts: self.experts,
                top_k: self.top_k,
            }),
        }
    }
}

/// Whether a parameter of that name belongs to the prompts: what only prompts have, and no weight decay acts on.
pub fn is_prompt(name: &str) -> bool {
    name.contains(".moe.prompts.")
}

/// Whether a parameter of that name belongs to a mixture of experts, prompts included.
pub fn is_moe(name: &str) -> bool {
    name.contains(".moe.")
}

/// The mixture of experts of one block.
#[derive(Module, Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "parameters are handles, and a network has one of these a block"
)]
pub enum Moe {
    /// Gated hidden units.
    Gated(Gated),
    /// Merged experts.
    Merged(Merged),
    /// Routed experts.
    Routed(Routed),
}

/// The layers of a block that prompts change.
#[derive(Debug)]
pub struct Conditioned {
    /// LN1.
    pub norm1: LayerNorm,
    /// LN2.
    pub norm2: LayerNorm,
    /// The MLP.
    pub mlp: Mlp,
}

impl Moe {
    /// The norms and the MLP of a block under prompt weights [1, tasks], as tensors of the graph: gradients reach the
    /// weights and the prompts. Routed experts change neither.
    pub(crate) fn condition(
        &self,
        [norm1, norm2]: [&LayerNorm; 2],
        mlp: &Mlp,
        mix: &Tensor<2>,
    ) -> Conditioned {
        let plain = || Conditioned {
            norm1: norm1.clone(),
            norm2: norm2.clone(),
            mlp: mlp.clone(),
        };
        match self {
            Self::Gated(gated) => gated.condition([norm1, norm2], mlp, mix),
            Self::Merged(merged) => Conditioned {
                mlp: merged.merge(mlp, mix),
                ..plain()
            },
            Self::Routed(_) => plain(),
        }
    }

    /// What is left of it once prompt weights are folded into the block.
    pub(crate) fn fold(self, mix: &Tensor<2>) -> Option<Self> {
        match self {
            Self::Gated(_) | Self::Merged(_) => None,
            Self::Routed(routed) => Some(Self::Routed(routed.fold(mix))),
        }
    }

    /// Output of routed experts and their routing; none of the other forms.
    pub(crate) fn route(
        &self,
        tokens: &Tensor<3>,
        mix: &Tensor<2>,
    ) -> Option<(Tensor<3>, Routing)> {
        match self {
            Self::Routed(routed) => Some(routed.forward(tokens.clone(), mix)),
            _ => None,
        }
    }

    /// How much each expert weighs under each prompt, [tasks, experts], of merged experts: w_t = softmax(G_t).
    pub fn expert_weights(&self) -> Option<Tensor<2>> {
        match self {
            Self::Merged(merged) => Some(softmax(merged.prompts.gate.val().inner(), 1)),
            _ => None,
        }
    }
}

/// A parameter that holds a tensor of the graph, for layers that live for one pass.
fn of_graph<const D: usize>(tensor: Tensor<D>) -> Param<Tensor<D>> {
    Param::initialized(ParamId::new(), tensor)
}

/// A layer that lives for one pass, as one of its own: its tensors become leaves.
pub(crate) fn detached<const D: usize>(param: Param<Tensor<D>>) -> Param<Tensor<D>> {
    leaf(param.val())
}

/// A parameter with the values of a tensor, apart from the graph that made it.
fn leaf<const D: usize>(tensor: Tensor<D>) -> Param<Tensor<D>> {
    let tracked = tensor.is_autodiff();
    let values = tensor.without_autodiff();
    Param::from_tensor(if tracked { values.autodiff() } else { values })
}

/// As [`detached`], of a norm.
pub(crate) fn detached_norm(norm: LayerNorm) -> LayerNorm {
    let mut norm = norm;
    norm.gamma = detached(norm.gamma);
    norm.beta = norm.beta.map(detached);
    norm
}

/// The prompts of gated hidden units, one row a task.
#[derive(Module, Debug)]
pub struct Modulation {
    /// s of LN1: [tasks, channels].
    pub norm1_scale: Param<Tensor<2>>,
    /// b of LN1: [tasks, channels].
    pub norm1_shift: Param<Tensor<2>>,
    /// s of LN2: [tasks, channels].
    pub norm2_scale: Param<Tensor<2>>,
    /// b of LN2: [tasks, channels].
    pub norm2_shift: Param<Tensor<2>>,
    /// c of the hidden units: [tasks, hidden].
    pub hidden_scale: Param<Tensor<2>>,
}

/// Hidden units of the MLP scaled by prompts, and norms modulated by them.
#[derive(Module, Debug)]
pub struct Gated {
    /// The prompts.
    pub prompts: Modulation,
}

impl Gated {
    fn condition(
        &self,
        [norm1, norm2]: [&LayerNorm; 2],
        mlp: &Mlp,
        mix: &Tensor<2>,
    ) -> Conditioned {
        let prompts = &self.prompts;
        // [1, tasks] · [tasks, width] → [width].
        let mixed = |rows: &Param<Tensor<2>>| mix.clone().matmul(rows.val()).squeeze_dim::<1>(0);
        let modulate = |norm: &LayerNorm, scale, shift| {
            let factor = mixed(scale) + 1.0;
            let shift = mixed(shift);
            let mut norm = norm.clone();
            let beta = match &norm.beta {
                Some(beta) => beta.val() * factor.clone() + shift,
                None => shift,
            };
            norm.gamma = of_graph(norm.gamma.val() * factor);
            norm.beta = Some(of_graph(beta));
            norm
        };
        // Scaling a hidden unit scales its row of W₂: [hidden, channels].
        let factor = (mixed(&prompts.hidden_scale) + 1.0).unsqueeze_dim::<2>(1);
        let fc2 = Linear {
            weight: of_graph(mlp.fc2.weight.val() * factor),
            bias: mlp.fc2.bias.clone(),
        };
        Conditioned {
            norm1: modulate(norm1, &prompts.norm1_scale, &prompts.norm1_shift),
            norm2: modulate(norm2, &prompts.norm2_scale, &prompts.norm2_shift),
            mlp: mlp.with_layers(mlp.fc1.clone(), fc2),
        }
    }
}

/// How much each prompt prefers each expert.
#[derive(Module, Debug)]
pub struct Gate {
    /// G: [tasks, experts].
    pub gate: Param<Tensor<2>>,
}

impl Gate {
    /// 1 where the expert's number leaves the task's as its remainder, else 0.
    fn init(experts: usize, device: &Device) -> Self {
        let tasks = TASKS.len();
        let own = |task: usize, expert: usize| if expert % tasks == task { 1.0 } else { 0.0 };
        let values: Vec<f32> = (0..tasks)
            .flat_map(|task| (0..experts).map(move |expert| own(task, expert)))
            .collect();
        let values = Tensor::<1>::from_floats(values.as_slice(), device);
        Self {
            gate: leaf(values.reshape([tasks, experts])),
        }
    }
}

/// Copies of the MLP, averaged under prompts before use.
#[derive(Module, Debug)]
pub struct Merged {
    /// The prompts.
    pub prompts: Gate,
    /// D_e of the first layer.
    pub fc1: Differences,
    /// D_e of the second layer.
    pub fc2: Differences,
}

/// What the experts' copies of a layer differ by from the layer itself.
#[derive(Module, Debug)]
pub struct Differences {
    /// [experts, inputs, outputs].
    pub weight: Param<Tensor<3>>,
    /// [experts, outputs].
    pub bias: Param<Tensor<2>>,
}

impl Differences {
    fn init([experts, inputs, outputs]: [usize; 3], rng: &mut Rng, device: &Device) -> Self {
        let noise = layers::trunc_normal([experts, inputs * outputs], EXPERT_NOISE, rng, device);
        let weight = without_class_means(noise.val(), TASKS.len());
        Self {
            weight: leaf(weight.reshape([experts, inputs, outputs])),
            bias: layers::constant([experts, outputs], 0.0, device),
        }
    }

    /// The layer plus Σ_e w_e D_e; weights: [1, experts].
    fn merge(&self, layer: &Linear, weights: &Tensor<2>) -> Linear {
        let [experts, inputs, outputs] = self.weight.val().dims();
        let flat = self.weight.val().reshape([experts, inputs * outputs]);
        let difference = weights.clone().matmul(flat).reshape([inputs, outputs]);
        let shift = weights.clone().matmul(self.bias.val()).squeeze_dim::<1>(0);
        let bias = match &layer.bias {
            Some(bias) => bias.val() + shift,
            None => shift,
        };
        Linear {
            weight: of_graph(layer.weight.val() + difference),
            bias: Some(of_graph(bias)),
        }
    }
}

/// values: [experts, n], less the mean over the experts of the same remainder. Every prompt weighs these alike at the
/// start, so Σ_e w_te·D_e = 0 for each prompt and for each mix of them.
fn without_class_means(values: Tensor<2>, classes: usize) -> Tensor<2> {
    let experts = values.dims()[0];
    let rows: Vec<Tensor<2>> = (0..experts)
        .map(|expert| {
            let class: Vec<Tensor<2>> = (expert % classes..experts)
                .step_by(classes)
                .map(|other| values.clone().narrow(0, other, 1))
                .collect();
            values.clone().narrow(0, expert, 1) - Tensor::cat(class, 0).mean_dim(0)
        })
        .collect();
    Tensor::cat(rows, 0)
}

impl Merged {
    fn merge(&self, mlp: &Mlp, mix: &Tensor<2>) -> Mlp {
        let weights = mix.clone().matmul(softmax(self.prompts.gate.val(), 1));
        mlp.with_layers(
            self.fc1.merge(&mlp.fc1, &weights),
            self.fc2.merge(&mlp.fc2, &weights),
        )
    }
}

/// Small experts beside the MLP.
///
/// All are evaluated and the unchosen weigh zero: one product with the D_e side by side, a scaling of each expert's
/// units by its weight, and one product with the U_e stacked.
#[derive(Module, Debug)]
pub struct Routed {
    /// LN3.
    pub norm: LayerNorm,
    /// W_x: channels → experts. Has a bias only when prompt weights were folded into it.
    pub router: Linear,
    /// The prompts; none after [`Moe::fold`].
    pub prompts: Option<Gate>,
    /// The D_e side by side: channels → experts · hidden.
    pub down: Linear,
    /// The U_e stacked: experts · hidden → channels.
    pub up: Linear,
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

impl Routed {
    /// tokens: [batch, tokens, channels], before LN3; mix: [1, tasks].
    fn forward(&self, tokens: Tensor<3>, mix: &Tensor<2>) -> (Tensor<3>, Routing) {
        let hidden = layers::normalise(tokens, &self.norm);
        let routing = self.route(hidden.clone(), mix);
        let [batch, count, _] = hidden.dims();

        let hidden = relu(layers::project(hidden, &self.down));
        let width = hidden.dims()[2];
        let per_expert = [batch, count, self.experts, width / self.experts];
        let weighted = hidden.reshape(per_expert) * routing.weights.clone().unsqueeze_dim::<4>(3);
        let output = layers::project(weighted.reshape([batch, count, width]), &self.up);
        (output, routing)
    }

    /// hidden: [batch, tokens, channels], after LN3.
    fn route(&self, hidden: Tensor<3>, mix: &Tensor<2>) -> Routing {
        let logits = self.router.forward(hidden);
        let logits = match &self.prompts {
            None => logits,
            Some(prompts) => {
                let preference = mix.clone().matmul(prompts.gate.val());
                logits + preference.unsqueeze_dim::<3>(1)
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

    /// The same for fixed prompt weights: their preference becomes the router's bias.
    fn fold(self, mix: &Tensor<2>) -> Self {
        let Some(prompts) = self.prompts else {
            return self;
        };
        let preference = mix.clone().matmul(prompts.gate.val()).squeeze_dim::<1>(0);
        Self {
            router: Linear {
                bias: Some(leaf(preference)),
                ..self.router
            },
            prompts: None,
            ..self
        }
    }
}
