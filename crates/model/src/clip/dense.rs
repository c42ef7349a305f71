//! Variants of dense features.

use serde::{Deserialize, Serialize};

/// Which dense features the last block of the image tower gives. In all three, the tokens then pass
/// the final layer norm and the projection, and are L2-normalized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dense {
    /// ClearCLIP: `softmax(q qᵀ / √d) v`, with no residual and no MLP.
    #[default]
    Clear,
    /// MaskCLIP: the value projection alone (and the output projection that belongs to it): no
    /// attention, no residual, no MLP.
    Mask,
    /// SCLIP: `(softmax(q qᵀ / √d) + softmax(k kᵀ / √d)) v`, with residual and MLP.
    #[serde(rename = "self")]
    SelfSelf,
}

impl std::str::FromStr for Dense {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "clear" => Ok(Self::Clear),
            "mask" => Ok(Self::Mask),
            "self" => Ok(Self::SelfSelf),
            _ => Err(format!(
                "dense features `{name}`: expected clear, mask or self"
            )),
        }
    }
}

impl std::fmt::Display for Dense {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Clear => "clear",
            Self::Mask => "mask",
            Self::SelfSelf => "self",
        })
    }
}
