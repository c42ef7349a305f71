//! What conditions a backbone on prompt weights.

use serde::{Deserialize, Serialize};

use crate::moe::MoeConfig;

/// How the blocks of a backbone depend on prompt weights.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Adapter {
    /// The plain backbone; prompt weights are ignored.
    #[default]
    None,
    /// SOLIDER's controller (Chen et al. 2023): x·softplus(W s + b) + (W' s + b') between stages,
    /// s = (λ, 1−λ).
    Lambda(LambdaConfig),
    /// Prompt-controlled mixture of experts ([`crate::moe`]).
    Moe(MoeConfig),
}

impl Adapter {
    /// The adapter after prompt weights are folded in: a mixture of experts becomes part of the
    /// plain weights.
    pub fn folded(&self) -> Self {
        match self {
            Self::Moe(_) => Self::None,
            other => other.clone(),
        }
    }
}

/// Setting of SOLIDER's controller.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LambdaConfig {
    /// A fixed λ, SOLIDER's semantic weight. Without it, λ = 1 − the prompt weight of identity:
    /// appearance for identity, semantics for parts and attributes, which is this project's choice.
    pub lambda: Option<f32>,
}
