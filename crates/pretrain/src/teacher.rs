//! The teacher's targets of a batch.

use burn::tensor::Tensor;
use clasp_model::losses::dino::{centered_targets, mean_entropy, sinkhorn_knopp_of, teacher_mean};
use clasp_run::CollectiveError;

use crate::ranks::RankSums;
use crate::recipe::Centering;

/// Iterations of Sinkhorn–Knopp, as in SwAV and DINOv2.
pub(crate) const SINKHORN_ITERATIONS: usize = 3;

/// Teacher targets of a share of a batch.
pub(crate) struct ShareTargets {
    /// Probabilities [batch, prototypes] of each global view.
    pub probabilities: Vec<Tensor<2>>,
    /// Their mean entropy: [1].
    pub entropy: Tensor<1>,
}

/// Teacher targets of a rank's images in a batch.
pub(crate) struct BatchTargets {
    /// By share, in the order of the images.
    pub shares: Vec<ShareTargets>,
    /// Mean of the teacher's logits over these images, from which the center is updated: [1,
    /// prototypes].
    pub mean_logits: Tensor<2>,
    /// Mean of the targets over these images: [1, prototypes].
    pub mean_targets: Tensor<2>,
}

impl BatchTargets {
    /// Targets from the teacher's `logits`: for each share one tensor [batch, prototypes] a global
    /// view. All shares are needed at once, as Sinkhorn–Knopp normalizes over all samples of a
    /// step, those of other ranks included.
    ///
    /// # Errors
    ///
    /// A rank is gone.
    pub(crate) fn new(
        logits: Vec<Vec<Tensor<2>>>,
        centering: Centering,
        center: &Tensor<2>,
        temperature: f64,
        ranks: &RankSums,
    ) -> Result<Self, CollectiveError> {
        let means: Vec<Tensor<2>> = logits.iter().map(|views| teacher_mean(views)).collect();
        let probabilities: Vec<Vec<Tensor<2>>> = match centering {
            Centering::Center => { logits.iter() }
                .map(|views| centered_targets(views, center, temperature))
                .collect(),
            Centering::Sinkhorn => {
                let views = logits.first().map_or(1, Vec::len);
                let all = Tensor::cat(logits.into_iter().flatten().collect(), 0);
                let rows = all.dims()[0] / (views * means.len());
                let like = all.clone();
                let q =
                    sinkhorn_knopp_of(Some(all), &like, temperature, SINKHORN_ITERATIONS, ranks)?;
                let each = q.unwrap_or(like).split(rows, 0);
                each.chunks(views).map(<[_]>::to_vec).collect()
            }
        };
        let mean_targets: Vec<Tensor<2>> = probabilities.iter().map(|q| teacher_mean(q)).collect();
        Ok(Self {
            shares: probabilities
                .into_iter()
                .map(|probabilities| ShareTargets {
                    entropy: mean_entropy(&probabilities),
                    probabilities,
                })
                .collect(),
            mean_logits: teacher_mean(&means),
            mean_targets: teacher_mean(&mean_targets),
        })
    }
}
