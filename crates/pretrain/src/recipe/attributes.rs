//! `[attributes]` of a recipe: how stored logits become attribute targets.

use clasp_data::labels::{AttributeConfig, AttributeConfigError, GroupWeights};
use clasp_run::InvalidValue;
use clasp_run::recipe::Auto;
use serde::{Deserialize, Serialize};

/// `[attributes]`: see [`AttributeConfig`]. None of it changes the stored labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttributeTargetSection {
    /// Share of the images that are not masked in the attribute of the largest spread; the
    /// automatic temperature follows from it.
    pub confident_share: f64,
    /// Temperature of all targets, in units of logits. Auto: from `confident_share`; 1 for labels
    /// that are ground truth.
    pub temperature: Auto<f64>,
    /// Attributes whose spread is below this share of the median spread are not learned.
    pub minimum_spread: f64,
    /// Weights of the others in an image's loss: by their `spread`, or `equal`.
    pub weights: GroupWeights,
    /// Targets above this and below `mask_high` are not learned.
    pub mask_low: f32,
    /// See `mask_low`.
    pub mask_high: f32,
}

impl Default for AttributeTargetSection {
    fn default() -> Self {
        let config = AttributeConfig::default();
        Self {
            confident_share: config.confident_share,
            temperature: Auto::Auto,
            minimum_spread: config.minimum_spread,
            weights: config.weights,
            mask_low: config.mask_low,
            mask_high: config.mask_high,
        }
    }
}

impl AttributeTargetSection {
    /// The checked configuration. An automatic temperature is `None`: it follows from the labels,
    /// which a recipe does not know.
    ///
    /// # Errors
    ///
    /// A value is out of range.
    pub fn config(&self) -> Result<AttributeConfig, InvalidValue> {
        let config = AttributeConfig {
            confident_share: self.confident_share,
            temperature: match self.temperature {
                Auto::Auto => None,
                Auto::Value(temperature) => Some(temperature),
            },
            minimum_spread: self.minimum_spread,
            weights: self.weights,
            mask_low: self.mask_low,
            mask_high: self.mask_high,
        };
        let named = |error: AttributeConfigError| {
            let key = match error.field {
                "confident_share" => "attributes.confident_share",
                "temperature" => "attributes.temperature",
                "minimum_spread" => "attributes.minimum_spread",
                "mask_low" => "attributes.mask_low",
                _ => "attributes.mask_high",
            };
            InvalidValue::new(key, error.expected, error.found)
        };
        config.check().map(|()| config).map_err(named)
    }
}
