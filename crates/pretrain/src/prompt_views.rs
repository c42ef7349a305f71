//! Which prompt each global view is processed under, where a view has one prompt
//! (`loss.prompts_per_view = "one"`).
//!
//! The prompts are those of the labels that are learned, `part` and `attribute`: `identity` is that of the local
//! views. View v of the image at place i of the batch has number (i + v + step) mod P of these P prompts, so
//! that every step has both in equal numbers, whatever the replicas and ranks, and every image and
//! view has each in turn.

use std::ops::Range;

use clasp_model::prompt::{ATTRIBUTE, PART};

/// The global views of a share of a batch by their prompts.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptViews {
    /// By prompt, rows among the global views of the share: image · view as in
    /// [`BatchTensors`](crate::batch::BatchTensors). Empty for `identity` and for a prompt that is not learned.
    pub rows: [Vec<usize>; 3],
    /// By prompt, the mean number of its rows over all shares of the batch.
    mean_rows: [f64; 3],
}

impl PromptViews {
    /// Those of the images at `places` of a batch of `batch` images in `shares` shares, with `views`
    /// global views each, at a step.
    pub fn new(
        learned: [bool; 3],
        step: u64,
        places: Range<usize>,
        views: usize,
        [batch, shares]: [usize; 2],
    ) -> Self {
        let prompts = [PART, ATTRIBUTE].into_iter();
        let prompts: Vec<usize> = prompts.filter(|prompt| learned[*prompt]).collect();
        let count = prompts.len().max(1);
        let turn = (step % count as u64) as usize;
        let assign = |places: Range<usize>| {
            let mut rows: [Vec<usize>; 3] = Default::default();
            for view in 0..views {
                for (image, place) in places.clone().enumerate() {
                    if let Some(prompt) = prompts.get((place + view + turn) % count) {
                        rows[*prompt].push(view * places.len() + image);
                    }
                }
            }
            rows
        };
        let mean_rows = assign(0..batch).map(|rows| rows.len() as f64 / shares as f64);
        Self {
            rows: assign(places),
            mean_rows,
        }
    }

    /// Whether no view of the batch has a prompt.
    pub fn is_empty(&self, prompt: usize) -> bool {
        self.mean_rows[prompt] == 0.0
    }

    /// What the mean of losses over this share's rows under `prompts` is multiplied with, so that the
    /// mean over shares is the mean over such rows of the batch.
    pub fn share_factor(&self, prompts: &[usize]) -> f64 {
        let own: usize = prompts.iter().map(|prompt| self.rows[*prompt].len()).sum();
        let mean: f64 = prompts.iter().map(|prompt| self.mean_rows[*prompt]).sum();
        own as f64 / mean.max(f64::MIN_POSITIVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_alternate_and_shares_add_up_to_the_batch() {
        let of = |step, places: Range<usize>, shares| {
            PromptViews::new([true; 3], step, places, 2, [4, shares])
        };
        // Rows 0 to 3 are the first views, 4 to 7 the second ones.
        let whole = of(0, 0..4, 1);
        assert_eq!(whole.rows, [vec![], vec![0, 2, 5, 7], vec![1, 3, 4, 6]]);
        assert_eq!(of(1, 0..4, 1).rows[PART], whole.rows[ATTRIBUTE]);
        assert_eq!(of(2, 0..4, 1), whole);
        assert_eq!(whole.share_factor(&[PART]), 1.0);
        // In unequal parts: the same prompts.
        let parts = [0..1, 1..4].map(|places| of(0, places, 2));
        assert_eq!(parts[0].rows, [vec![], vec![0], vec![1]]);
        assert_eq!(parts[1].rows, [vec![], vec![1, 3, 5], vec![0, 2, 4]]);
        for prompts in [&[PART][..], &[ATTRIBUTE], &[PART, ATTRIBUTE]] {
            let factors = parts.clone().map(|part| part.share_factor(prompts));
            assert_eq!(factors, [0.5, 1.5]);
        }
        // Parts are not learned.
        let one = PromptViews::new([true, false, true], 0, 0..2, 2, [2, 1]);
        assert_eq!(one.rows, [vec![], vec![], vec![0, 1, 2, 3]]);
        assert!(one.is_empty(PART) && !one.is_empty(ATTRIBUTE));
    }
}
