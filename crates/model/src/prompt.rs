//! The prompts of pre-training and their weights, which condition the last blocks of a backbone
//! ([`crate::moe`]).

use std::{fmt, str::FromStr};

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::error::ModelError;

/// The prompts of pre-training, in the order of every tensor that has a prompts axis.
pub const PROMPTS: [&str; 3] = ["identity", "part", "attribute"];
/// Position of `identity` in [`PROMPTS`].
pub const IDENTITY: usize = 0;
/// Position of `part` in [`PROMPTS`].
pub const PART: usize = 1;
/// Position of `attribute` in [`PROMPTS`].
pub const ATTRIBUTE: usize = 2;

/// Non-negative weights over [`PROMPTS`] that sum to 1.
///
/// Text form: one prompt, `identity`, or weights, `identity=0.8,part=0.1,attribute=0.1`; a prompt
/// that is not named has weight 0, and weights are divided by their sum.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PromptWeights([f32; 3]);

impl PromptWeights {
    /// Weights in the order of [`PROMPTS`], divided by their sum.
    pub fn new(weights: [f32; 3]) -> Result<Self, ModelError> {
        let error = |problem: &str| ModelError::PromptWeights {
            text: format!("{weights:?}"),
            problem: problem.into(),
        };
        if weights.iter().any(|w| !w.is_finite() || *w < 0.0) {
            return Err(error("weights must be finite and not negative"));
        }
        let sum: f32 = weights.iter().sum();
        if sum <= 0.0 || !sum.is_finite() {
            return Err(error("the weights' sum must be positive and finite"));
        }
        // Weights that were divided before stay as they are, so that what is written is what is read.
        if (sum - 1.0).abs() < 1e-6 {
            return Ok(Self(weights));
        }
        Ok(Self(weights.map(|w| w / sum)))
    }

    /// One prompt alone, by its position in [`PROMPTS`].
    pub fn single(prompt: usize) -> Self {
        assert!(
            prompt < PROMPTS.len(),
            "prompt {prompt} of {}",
            PROMPTS.len()
        );
        let mut weights = [0.0; 3];
        weights[prompt] = 1.0;
        Self(weights)
    }

    /// Equal weights.
    pub fn mean() -> Self {
        Self([1.0 / 3.0; 3])
    }

    /// The weights, in the order of [`PROMPTS`].
    pub fn weights(&self) -> [f32; 3] {
        self.0
    }

    /// A tensor [1, prompts], for all images of a batch.
    pub fn tensor(&self, device: &Device) -> Tensor<2> {
        prompt_weights_tensor(&[*self], device)
    }
}

/// Panics unless there is one row of prompt weights for a batch, or one for each of its images.
#[track_caller]
pub(crate) fn assert_rows(weights: &Tensor<2>, batch: usize) {
    let rows = weights.dims()[0];
    assert!(
        rows == 1 || rows == batch,
        "prompt weights for {rows} images, batch of {batch}"
    );
}

/// A tensor [batch, prompts] of the prompt weights of each image.
pub fn prompt_weights_tensor(images: &[PromptWeights], device: &Device) -> Tensor<2> {
    let weights: Vec<f32> = images.iter().flat_map(|weights| weights.0).collect();
    Tensor::from_data(
        TensorData::new(weights, [images.len(), PROMPTS.len()]),
        device,
    )
}

impl FromStr for PromptWeights {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        let error = |problem: String| ModelError::PromptWeights {
            text: text.to_string(),
            problem,
        };
        let position = |name: &str| {
            PROMPTS
                .iter()
                .position(|prompt| *prompt == name)
                .ok_or_else(|| error(format!("`{name}` is none of {}", PROMPTS.join(", "))))
        };
        if !text.contains('=') {
            return Ok(Self::single(position(text.trim())?));
        }
        let mut weights = [None; 3];
        for part in text.split(',') {
            let (name, weight) = part
                .split_once('=')
                .ok_or_else(|| error(format!("`{part}` is not prompt=weight")))?;
            let prompt = position(name.trim())?;
            let weight: f32 = weight
                .trim()
                .parse()
                .map_err(|_| error(format!("`{}` is not a number", weight.trim())))?;
            if weights[prompt].replace(weight).is_some() {
                return Err(error(format!("`{}` is given twice", name.trim())));
            }
        }
        Self::new(weights.map(|w| w.unwrap_or(0.0))).map_err(|cause| match cause {
            ModelError::PromptWeights { problem, .. } => error(problem),
            other => other,
        })
    }
}

impl TryFrom<String> for PromptWeights {
    type Error = ModelError;

    fn try_from(text: String) -> Result<Self, ModelError> {
        text.parse()
    }
}

impl From<PromptWeights> for String {
    fn from(weights: PromptWeights) -> Self {
        weights.to_string()
    }
}

impl fmt::Display for PromptWeights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(prompt) = self.0.iter().position(|w| *w == 1.0) {
            return f.write_str(PROMPTS[prompt]);
        }
        let parts: Vec<String> = PROMPTS
            .iter()
            .zip(self.0)
            .map(|(prompt, weight)| format!("{prompt}={weight}"))
            .collect();
        f.write_str(&parts.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips() {
        for text in [
            "identity",
            "part",
            "attribute",
            "identity=0.5,part=0.25,attribute=0.25",
        ] {
            let weights: PromptWeights = text.parse().unwrap();
            assert_eq!(weights.to_string(), text);
        }
        let weights: PromptWeights = "identity=2, part=2".parse().unwrap();
        assert_eq!(weights.weights(), [0.5, 0.5, 0.0]);
    }

    #[test]
    fn wrong_text_says_what_is_wrong() {
        for (text, expected) in [
            ("", "none of"),
            ("pose", "none of"),
            ("identity=x", "not a number"),
            ("identity=1,identity=1", "twice"),
            ("identity=-1,part=2", "not negative"),
            ("identity=0", "positive"),
            ("identity=inf", "finite"),
            ("identity=1,part", "not prompt=weight"),
        ] {
            let message = text.parse::<PromptWeights>().unwrap_err().to_string();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}
