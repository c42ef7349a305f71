//! Prompt-controlled mixture of experts (PC-MoE): the last blocks of a backbone compute differently
//! under the prompt of each pre-training task.
//!
//! The abstract of CLASP (arXiv 2601.13133) names a prompt-controlled mixture of experts; the two
//! forms below, their sizes and their initialization are this project's choice. m are the prompt
//! weights, one for each task, with a sum of 1.
//!
//! *Gated* ([`Gated`], the default). Each hidden unit of the MLP is a rank-one expert, W₂[h, :] ⊗
//! act(W₁[:, h]·x); a prompt scales each of them, and the scale and shift of both layer norms
//! (feature-wise linear modulation, Perez et al. 2018):
//!
//! ```text
//! N(x; m) = (1 + Σ_t m_t s_t) ⊙ LN(x) + Σ_t m_t b_t            for both norms
//! MLP(x; m) = W₂ · ((1 + Σ_t m_t c_t) ⊙ act(W₁ x))              s, b, c start at zero
//! ```
//!
//! *Merged* ([`Merged`]). Experts are copies of the MLP whose weights are averaged before use (soft
//! merging, Muqeeth et al. 2023):
//!
//! ```text
//! W(m) = W + Σ_e w_e(m)·D_e,    w(m) = Σ_t m_t softmax(G_t)
//! ```
//!
//! D_e starts as noise with Σ_e w_te·D_e = 0 for every task t, and w is linear in m, so that the
//! block starts as the plain block for every m, to rounding. G_t starts as a mild preference for
//! the experts e with e mod prompts = t.
//!
//! Both start as the plain backbone, so published weights load without loss. For fixed prompt
//! weights both fold into a plain block, which other programs can load. Experts that are routed
//! token by token were compared and removed (docs/LOG.md). In a gated MLP (SwiGLU) the experts are W₁ and W₂;
//! they share the gate.

use burn::{
    module::{Module, Param},
    nn::{LayerNorm, Linear},
    tensor::{Device, Tensor, activation::softmax},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::ModelError,
    layers::{self, Mlp, Rng, detached, leaf, of_graph},
    parameters::{Claims, ParameterKind},
    prompt::PROMPTS,
};

/// Standard deviation of the differences between merged experts at the start, half of that of fresh
/// weights.
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
}

/// Form and sizes of the mixture of experts, and the blocks that hold it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MoeConfig {
    /// Its form.
    pub form: MoeKind,
    /// Conditional blocks, counted from the last.
    pub blocks: usize,
    /// Number of merged experts, E.
    pub experts: usize,
}

impl Default for MoeConfig {
    fn default() -> Self {
        Self {
            form: MoeKind::default(),
            blocks: 1,
            experts: 6,
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
        let least = PROMPTS.len() + 1;
        if self.form == MoeKind::Merged && !(least..=1024).contains(&self.experts) {
            return Err(setting("experts", format!("{least} to 1024"), self.experts));
        }
        Ok(())
    }

    /// Number of parameters that it adds to a block of `channels` channels whose MLP has `hidden`
    /// units.
    pub fn parameters(&self, channels: usize, hidden: usize) -> usize {
        let prompts = PROMPTS.len();
        match self.form {
            MoeKind::Gated => prompts * (4 * channels + hidden),
            MoeKind::Merged => self.experts * (prompts + 2 * channels * hidden + hidden + channels),
        }
    }

    /// Claims the parameters of the mixture of one block.
    pub(crate) fn claim(&self, claims: Claims) {
        let mut claims = claims.of_adapter();
        let mut prompts = claims.field("prompts");
        match self.form {
            MoeKind::Gated => {
                for name in [
                    "norm1_scale",
                    "norm1_shift",
                    "norm2_scale",
                    "norm2_shift",
                    "hidden_scale",
                ] {
                    prompts.parameter(name, ParameterKind::Prompt);
                }
            }
            MoeKind::Merged => {
                prompts.parameter("gate", ParameterKind::Prompt);
                claims.field("fc1").weight_and_bias();
                claims.field("fc2").weight_and_bias();
            }
        }
    }

    /// The mixture of a block of `channels` channels whose MLP has `hidden` units.
    pub fn init(&self, channels: usize, hidden: usize, rng: &mut Rng, device: &Device) -> Moe {
        let prompts = PROMPTS.len();
        match self.form {
            MoeKind::Gated => {
                let zero = |width| layers::constant([prompts, width], 0.0, device);
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
        }
    }
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

impl Conditioned {
    /// The same layers on their own: their tensors become leaves.
    pub(crate) fn detached(self) -> Self {
        let norm = |mut norm: LayerNorm| {
            norm.gamma = detached(norm.gamma);
            norm.beta = norm.beta.map(detached);
            norm
        };
        Self {
            norm1: norm(self.norm1),
            norm2: norm(self.norm2),
            mlp: self.mlp.detached(),
        }
    }
}

impl Moe {
    /// The norms and the MLP of a block under prompt weights [1, prompts], as tensors of the graph:
    /// gradients reach the weights and the prompts.
    pub(crate) fn condition(
        &self,
        [norm1, norm2]: [&LayerNorm; 2],
        mlp: &Mlp,
        prompt_weights: &Tensor<2>,
    ) -> Conditioned {
        match self {
            Self::Gated(gated) => gated.condition([norm1, norm2], mlp, prompt_weights),
            Self::Merged(merged) => Conditioned {
                norm1: norm1.clone(),
                norm2: norm2.clone(),
                mlp: merged.merge(mlp, prompt_weights),
            },
        }
    }

    /// How much each expert weighs under each prompt, [prompts, experts], of merged experts: w_t =
    /// softmax(G_t).
    pub fn expert_weights(&self) -> Option<Tensor<2>> {
        match self {
            Self::Merged(merged) => Some(softmax(merged.prompts.gate.val().inner(), 1)),
            Self::Gated(_) => None,
        }
    }
}

/// The prompts of gated hidden units, one row a task.
#[derive(Module, Debug)]
pub struct Modulation {
    /// s of LN1: [prompts, channels].
    pub norm1_scale: Param<Tensor<2>>,
    /// b of LN1: [prompts, channels].
    pub norm1_shift: Param<Tensor<2>>,
    /// s of LN2: [prompts, channels].
    pub norm2_scale: Param<Tensor<2>>,
    /// b of LN2: [prompts, channels].
    pub norm2_shift: Param<Tensor<2>>,
    /// c of the hidden units: [prompts, hidden].
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
        prompt_weights: &Tensor<2>,
    ) -> Conditioned {
        let prompts = &self.prompts;
        // [1, prompts] · [prompts, width] → [width].
        let mixed = |rows: &Param<Tensor<2>>| {
            prompt_weights
                .clone()
                .matmul(rows.val())
                .squeeze_dim::<1>(0)
        };
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
    /// G: [prompts, experts].
    pub gate: Param<Tensor<2>>,
}

impl Gate {
    /// 1 where the expert's number leaves the prompt's as its remainder, else 0.
    fn init(experts: usize, device: &Device) -> Self {
        let prompts = PROMPTS.len();
        let own = |prompt: usize, expert: usize| if expert % prompts == prompt { 1.0 } else { 0.0 };
        let values: Vec<f32> = (0..prompts)
            .flat_map(|prompt| (0..experts).map(move |expert| own(prompt, expert)))
            .collect();
        let values = Tensor::<1>::from_floats(values.as_slice(), device);
        Self {
            gate: leaf(values.reshape([prompts, experts])),
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
        let weight = without_class_means(noise.val(), PROMPTS.len());
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

/// values: [experts, n], less the mean over the experts of the same remainder. Every prompt weighs
/// these alike at the start, so Σ_e w_te·D_e = 0 for each prompt and for any weights of them.
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
    fn merge(&self, mlp: &Mlp, prompt_weights: &Tensor<2>) -> Mlp {
        let weights = prompt_weights
            .clone()
            .matmul(softmax(self.prompts.gate.val(), 1));
        mlp.with_layers(
            self.fc1.merge(&mlp.fc1, &weights),
            self.fc2.merge(&mlp.fc2, &weights),
        )
    }
}
