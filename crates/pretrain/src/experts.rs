//! Which prompt uses which expert.

use clasp_model::prompt::PROMPTS;
use serde::Serialize;

/// How one prompt weights the merged experts of one block: a line of `experts.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpertUsage {
    /// Step of the measurement.
    pub step: u64,
    /// Index of the block among those with experts, from the input on.
    pub block: usize,
    /// Name of the prompt.
    pub prompt: &'static str,
    /// Weight of each expert; sums to 1.
    pub weights: Vec<f64>,
    /// Entropy of the weights divided by that of equal weights: 1 if all are equal.
    pub entropy: f64,
}

impl ExpertUsage {
    /// The usage of the merged experts of a block: their weights under each prompt, one row a
    /// prompt.
    pub fn of_weights(step: u64, block: usize, rows: Vec<Vec<f64>>) -> Vec<Self> {
        let usage = |(prompt, weights): (&'static str, Vec<f64>)| Self {
            step,
            block,
            prompt,
            entropy: relative_entropy(&weights),
            weights,
        };
        PROMPTS.into_iter().zip(rows).map(usage).collect()
    }
}

/// Mean relative entropy over the blocks of a prompt; none without experts.
pub(crate) fn mean_entropy(usage: &[ExpertUsage], prompt: &str) -> Option<f64> {
    let entropies: Vec<f64> = usage
        .iter()
        .filter(|one| one.prompt == prompt)
        .map(|one| one.entropy)
        .collect();
    (!entropies.is_empty()).then(|| entropies.iter().sum::<f64>() / entropies.len() as f64)
}

/// Entropy of weights that sum to 1, divided by that of equal weights.
fn relative_entropy(weights: &[f64]) -> f64 {
    let terms = weights.iter().filter(|weight| **weight > 0.0);
    let entropy = -terms.map(|weight| weight * weight.ln()).sum::<f64>();
    if weights.len() > 1 {
        entropy / (weights.len() as f64).ln()
    } else {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_of_merged_experts_has_a_row_a_prompt() {
        let rows = vec![vec![0.5, 0.5], vec![1.0, 0.0], vec![0.5, 0.5]];
        let usage = ExpertUsage::of_weights(7, 1, rows);
        let found: Vec<_> = usage
            .iter()
            .map(|u| (u.prompt, u.step, u.block, u.entropy))
            .collect();
        let expected = [("identity", 1.0), ("part", 0.0), ("attribute", 1.0)];
        assert_eq!(
            found,
            expected.map(|(prompt, entropy)| (prompt, 7, 1, entropy))
        );
    }
}
