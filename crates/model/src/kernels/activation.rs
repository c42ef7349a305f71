//! The non-linearity of an MLP.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The non-linearity of an MLP. The two differ by up to 0.02, enough to spoil a checkpoint that was
/// trained with the other, so it is always read from the checkpoint's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x · σ(1.702 x): OpenAI's CLIP and a few of OpenCLIP's.
    QuickGelu,
    /// x · Φ(x), Φ the normal distribution (Hendrycks and Gimpel 2016), with the exact error
    /// function.
    Gelu,
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::QuickGelu => "QuickGELU",
            Self::Gelu => "GELU",
        })
    }
}
