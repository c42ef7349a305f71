//! Prompt weights: how much of each prompt is applied to the conditional blocks ([`crate::moe`]).

use std::{fmt, str::FromStr};

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::error::ModelError;

/// The tasks of pre-training, in the order of every tensor that has a tasks axis.
pub const TASKS: [&str; 3] = ["identity", "part", "attribute"];
/// Position of `identity` in [`TASKS`].
pub const IDENTITY: usize = 0;
/// Position of `part` in [`TASKS`].
pub const PART: usize = 1;
/// Position of `attribute` in [`TASKS`].
pub const ATTRIBUTE: usize = 2;

/// Non-negative weights over [`TASKS`] that sum to 1.
///
/// Text form: one task, `identity`, or weights, `identity=0.8,part=0.1,attribute=0.1`; a task that
/// is not named weighs 0, and weights are divided by their sum.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mix([f32; 3]);

impl Mix {
    /// A mix from weights in the order of [`TASKS`], divided by their sum.
    pub fn new(weights: [f32; 3]) -> Result<Self, ModelError> {
        let error = |problem: &str| ModelError::Mix {
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
        Ok(Self(weights.map(|w| w / sum)))
    }

    /// The mix of one task, by its position in [`TASKS`].
    pub fn single(task: usize) -> Self {
        assert!(task < TASKS.len(), "task {task} of {}", TASKS.len());
        let mut weights = [0.0; 3];
        weights[task] = 1.0;
        Self(weights)
    }

    /// All tasks alike.
    pub fn mean() -> Self {
        Self([1.0 / 3.0; 3])
    }

    /// One task with weight `weight`, the rest shared by the others.
    pub fn mostly(task: usize, weight: f32) -> Self {
        assert!(task < TASKS.len(), "task {task} of {}", TASKS.len());
        assert!(
            (0.0..=1.0).contains(&weight),
            "weight {weight} is not in [0, 1]"
        );
        let mut weights = [(1.0 - weight) / 2.0; 3];
        weights[task] = weight;
        Self(weights)
    }

    /// The weights, in the order of [`TASKS`].
    pub fn weights(&self) -> [f32; 3] {
        self.0
    }

    /// Weights [1, tasks], for all images of a batch.
    pub fn tensor(&self, device: &Device) -> Tensor<2> {
        mixes_tensor(&[*self], device)
    }
}

/// Panics unless there is one mix for a batch, or one for each of its images.
#[track_caller]
pub(crate) fn assert_rows(mixes: &Tensor<2>, batch: usize) {
    let rows = mixes.dims()[0];
    assert!(
        rows == 1 || rows == batch,
        "mix for {rows} images, batch of {batch}"
    );
}

/// Weights [batch, tasks] of one mix an image.
pub fn mixes_tensor(mixes: &[Mix], device: &Device) -> Tensor<2> {
    let weights: Vec<f32> = mixes.iter().flat_map(|mix| mix.0).collect();
    Tensor::from_data(TensorData::new(weights, [mixes.len(), TASKS.len()]), device)
}

impl FromStr for Mix {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        let error = |problem: String| ModelError::Mix {
            text: text.to_string(),
            problem,
        };
        let position = |name: &str| {
            TASKS
                .iter()
                .position(|task| *task == name)
                .ok_or_else(|| error(format!("`{name}` is none of {}", TASKS.join(", "))))
        };
        if !text.contains('=') {
            return Ok(Self::single(position(text.trim())?));
        }
        let mut weights = [None; 3];
        for part in text.split(',') {
            let (name, weight) = part
                .split_once('=')
                .ok_or_else(|| error(format!("`{part}` is not task=weight")))?;
            let task = position(name.trim())?;
            let weight: f32 = weight
                .trim()
                .parse()
                .map_err(|_| error(format!("`{}` is not a number", weight.trim())))?;
            if weights[task].replace(weight).is_some() {
                return Err(error(format!("`{}` is given twice", name.trim())));
            }
        }
        Self::new(weights.map(|w| w.unwrap_or(0.0))).map_err(|cause| match cause {
            ModelError::Mix { problem, .. } => error(problem),
            other => other,
        })
    }
}

impl TryFrom<String> for Mix {
    type Error = ModelError;

    fn try_from(text: String) -> Result<Self, ModelError> {
        text.parse()
    }
}

impl From<Mix> for String {
    fn from(mix: Mix) -> Self {
        mix.to_string()
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(task) = self.0.iter().position(|w| *w == 1.0) {
            return f.write_str(TASKS[task]);
        }
        let parts: Vec<String> = TASKS
            .iter()
            .zip(self.0)
            .map(|(task, weight)| format!("{task}={weight}"))
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
            let mix: Mix = text.parse().unwrap();
            assert_eq!(mix.to_string(), text);
        }
        let mix: Mix = "identity=2, part=2".parse().unwrap();
        assert_eq!(mix.weights(), [0.5, 0.5, 0.0]);
        assert_eq!(Mix::mostly(PART, 0.8).weights()[PART], 0.8);
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
            ("identity=1,part", "not task=weight"),
        ] {
            let message = text.parse::<Mix>().unwrap_err().to_string();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}
