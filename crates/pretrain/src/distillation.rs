//! Distillation of a frozen teacher: a backbone that is read from a file and never trained, beside
//! which that of self-distillation is the moving average of the student.
//!
//! The teacher processes the global views in its own normalization and size, under its identity
//! prompt if it has prompts. The student's features of the same views, under `identity` too, are
//! projected to the teacher's channels by [`DistillationHead`]; the losses are
//! [`clasp_model::losses::distillation`].

use burn::tensor::{Device, Tensor, TensorData};
use clasp_model::backbone::Backbone;
use clasp_model::heads::blocks::resize_bilinear;
use clasp_model::heads::{DistillationHead, DistillationHeadConfig};
use clasp_model::layers::Rng;
use clasp_model::prompt::{IDENTITY, PromptWeights};
use clasp_weights::backbone::digest;
use clasp_weights::import::{ImportOptions, ImportReport, import};

use crate::error::{PretrainError, Result};
use crate::recipe::{DistillationSection, PretrainRecipe};

/// A backbone whose features are learned. It is no part of a checkpoint; its file's digest is.
#[derive(Clone, Debug)]
pub struct FrozenTeacher {
    /// Outside autodiff, its prompts folded in.
    backbone: Backbone,
    /// Height and width of its input.
    size: [usize; 2],
    /// The factor and the summand of each channel that take a view from the normalization of the
    /// recipe to the teacher's; none if they are the same.
    renormalize: Option<[[f32; 3]; 2]>,
    /// SHA-256 of its file.
    sha256: String,
    /// What was read of its file.
    report: ImportReport,
}

/// Features of the teacher for a share of a batch.
pub(crate) struct TeacherFeatures {
    /// [global views · batch, channels]
    pub pooled: Tensor<2>,
    /// [global views · batch, channels, rows, columns]
    pub map: Tensor<4>,
}

impl FrozenTeacher {
    /// The teacher that `recipe` names, on `device`; none if it names none.
    ///
    /// # Errors
    ///
    /// The file is missing, or no backbone.
    pub fn load(recipe: &PretrainRecipe, device: &Device) -> Result<Option<Self>> {
        let DistillationSection { teacher, .. } = &recipe.distillation;
        if !recipe.distillation.is_on() {
            return Ok(None);
        }
        let options = ImportOptions {
            size: recipe.distillation.input_size(),
            ..ImportOptions::default()
        };
        let sha256 = digest(teacher).map_err(PretrainError::Teacher)?;
        let imported = import(teacher, &options, device).map_err(PretrainError::Teacher)?;
        let meta = imported.meta;
        Ok(Some(Self {
            backbone: imported.backbone.fold(PromptWeights::single(IDENTITY)),
            size: options.size.unwrap_or([meta.height, meta.width]),
            renormalize: renormalization(
                [recipe.views.mean, recipe.views.std],
                [meta.mean, meta.std],
            ),
            sha256,
            report: imported.report,
        }))
    }

    /// The network.
    pub fn backbone(&self) -> &Backbone {
        &self.backbone
    }

    /// Height and width of its input.
    pub fn size(&self) -> [usize; 2] {
        self.size
    }

    /// SHA-256 of its file, in hexadecimal.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Matched, missing and unexpected keys of its file.
    pub fn report(&self) -> &ImportReport {
        &self.report
    }

    /// Projections for a student of `channels` channels, for the losses that have a weight.
    pub(crate) fn head(
        &self,
        weights: &DistillationSection,
        channels: usize,
        rng: &mut Rng,
        device: &Device,
    ) -> DistillationHead {
        let [height, width] = self.size;
        let config = DistillationHeadConfig {
            input: channels,
            output: self.backbone.channels(),
            grid: self.backbone.grid(height, width),
            pooled: weights.pooled_weight() > 0.0,
            dense: weights.dense > 0.0,
        };
        config.init(rng, device)
    }

    /// Features of global views [views · batch, 3, height, width] in the recipe's normalization,
    /// without gradient.
    pub(crate) fn features(&self, globals: Tensor<4>) -> TeacherFeatures {
        let images = match self.renormalize {
            None => globals,
            Some([factor, summand]) => {
                let device = globals.device();
                let row = |values: [f32; 3]| {
                    Tensor::from_data(TensorData::new(values.to_vec(), [1, 3, 1, 1]), &device)
                };
                globals * row(factor) + row(summand)
            }
        };
        let images = resize_bilinear(images, self.size, false);
        let weights = PromptWeights::single(IDENTITY).tensor(&images.device());
        let features = self.backbone.forward(images, weights, None);
        TeacherFeatures {
            pooled: features.pooled,
            map: features.map,
        }
    }
}

/// The factor σ/σ' and the summand (μ − μ')/σ' of each channel from mean μ and standard deviation σ
/// to μ' and σ'; none if both are the same. Each of `from` and `to` is [mean, std].
fn renormalization(from: [[f32; 3]; 2], to: [[f32; 3]; 2]) -> Option<[[f32; 3]; 2]> {
    let ([mean, std], [mean_to, std_to]) = (from, to);
    (from != to).then(|| {
        let channel = |of: &dyn Fn(usize) -> f32| [of(0), of(1), of(2)];
        [
            channel(&|c| std[c] / std_to[c]),
            channel(&|c| (mean[c] - mean_to[c]) / std_to[c]),
        ]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_taken_to_the_teachers_normalization() {
        let (from, to) = ([[0.5; 3], [0.25; 3]], [[0.4, 0.5, 0.5], [0.2, 0.25, 0.5]]);
        let [factor, summand] = renormalization(from, to).unwrap();
        // A pixel of 0.8 is 1.2 in the recipe's normalization.
        let expected = [(0.8 - 0.4) / 0.2, (0.8 - 0.5) / 0.25, (0.8 - 0.5) / 0.5];
        for channel in 0..3 {
            let found = 1.2 * factor[channel] + summand[channel];
            assert!((found - expected[channel]).abs() < 1e-6, "{channel}");
        }
        assert!(renormalization(from, from).is_none());
    }
}
