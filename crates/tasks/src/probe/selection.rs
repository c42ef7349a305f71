//! Which images a probe is fitted to, and the selection of its weight decay on held-out images.

use std::ops::ControlFlow;

use super::config::{ProbeConfig, spaced};
use super::lbfgs::Lbfgs;
use super::linear::{LinearProbe, ProbeLoss};
use super::tokens::TokenGrid;
use crate::TaskError;
use crate::features::{Extractor, ImageFeatures, ImagePass, each_image};

/// Weight decays that are tried, strongest first. A strength s is a penalty of s/2 times the
/// squared weights, beside a loss that is a sum over the training images.
pub const STRENGTHS: [f64; 7] = [1e4, 1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2];

/// Every fifth image is held out while the weight decay is selected.
const HELD_OUT: usize = 5;

/// Indices to fit and indices that are held out.
pub(crate) fn hold_out(indices: &[usize]) -> (Vec<usize>, Vec<usize>) {
    let held = |i: usize| i % HELD_OUT == HELD_OUT - 1;
    let (held, fitted): (Vec<_>, Vec<_>) = indices.iter().enumerate().partition(|(i, _)| held(*i));
    let values = |list: Vec<(usize, &usize)>| list.into_iter().map(|(_, index)| *index).collect();
    (values(fitted), values(held))
}

/// The values of some groups, each of `group_size` values.
pub(crate) fn rows_of(groups: &[usize], values: &[f32], group_size: usize) -> Vec<f32> {
    groups
        .iter()
        .flat_map(|g| &values[g * group_size..(g + 1) * group_size])
        .copied()
        .collect()
}

/// Fits with every strength, each from where the stronger one ended, and returns the strength with
/// the smallest score and its model. Stops after two strengths in a row that are worse than the
/// best.
pub(crate) fn choose_strength<M: Clone>(
    start: M,
    mut fit: impl FnMut(M, f64) -> M,
    mut score: impl FnMut(&M) -> f64,
) -> (f64, M) {
    let mut model = fit(start, STRENGTHS[0]);
    let mut best = (score(&model), STRENGTHS[0], model.clone());
    let mut worse = 0;
    for strength in &STRENGTHS[1..] {
        model = fit(model, *strength);
        let value = score(&model);
        if value < best.0 {
            best = (value, *strength, model.clone());
            worse = 0;
        } else {
            worse += 1;
        }
        if worse == 2 {
            break;
        }
    }
    (best.1, best.2)
}

/// The tokens of the first image of a pass: their grid decides how many images fit into memory.
///
/// # Errors
/// Those of [`each_image`].
pub(crate) fn first_tokens<E: Extractor>(
    extractor: &E,
    pass: ImagePass<'_>,
    config: &ProbeConfig,
    load: impl Fn(usize) -> Result<Option<Vec<f32>>, TaskError> + Sync,
) -> Result<TokenGrid, TaskError> {
    let keep = |_: usize, features: &ImageFeatures| Ok(TokenGrid::new(features));
    let pass = ImagePass { count: 1, ..pass };
    let carry_on = |_| ControlFlow::Continue(());
    let first = each_image(extractor, pass, &config.batching, load, keep, &carry_on)?;
    first.into_iter().flatten().next().ok_or(TaskError::Stopped)
}

/// Features and targets that a probe of feature maps is fitted to.
pub(crate) struct PositionSamples<'a> {
    /// `[images, positions, channels]`.
    pub features: &'a [f32],
    /// `[images, positions, outputs]`.
    pub targets: &'a [f32],
    /// Positions of an image.
    pub positions: usize,
    /// Channels of a position.
    pub channels: usize,
    /// Targets of a position.
    pub outputs: usize,
    /// The loss for targets `[positions of some images, outputs]`.
    pub loss: &'a dyn for<'t> Fn(&'t [f32]) -> ProbeLoss<'t>,
}

/// A probe with the weight decay that was best on held-out images.
pub(crate) struct SelectedProbe {
    /// The strength.
    pub strength: f64,
    /// The probe fitted with it.
    pub model: LinearProbe,
    /// The images that were held out.
    pub held: Vec<usize>,
    /// Their features.
    pub held_features: Vec<f32>,
}

impl PositionSamples<'_> {
    /// Selects the strength on some of the images ([`ProbeConfig::selection`]).
    pub fn choose(&self, start: LinearProbe, config: &ProbeConfig) -> SelectedProbe {
        let images = self.features.len() / (self.positions * self.channels);
        let (fitted, held) = hold_out(&spaced(images, config.selection));
        let features_of =
            |images: &[usize]| rows_of(images, self.features, self.positions * self.channels);
        let targets_of =
            |images: &[usize]| rows_of(images, self.targets, self.positions * self.outputs);
        let (fitted_features, fitted_targets) = (features_of(&fitted), targets_of(&fitted));
        let (held_features, held_targets) = (features_of(&held), targets_of(&held));
        let fitted = PositionSamples {
            features: &fitted_features,
            targets: &fitted_targets,
            ..*self
        };
        let (strength, model) = choose_strength(
            start,
            |start, strength| fitted.fit(start, strength, &config.selection_solver()),
            |model| model.loss(&held_features, &(self.loss)(&held_targets)),
        );
        SelectedProbe {
            strength,
            model,
            held,
            held_features,
        }
    }

    /// Fits all of the images, from `start`.
    pub fn fit(&self, start: LinearProbe, strength: f64, solver: &Lbfgs) -> LinearProbe {
        let images = self.features.len() / (self.positions * self.channels);
        let penalties = vec![strength / images as f64; self.outputs];
        let loss = (self.loss)(self.targets);
        start.fit(self.features, &loss, &penalties, solver).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_spaced_and_held_out() {
        assert_eq!(spaced(10, 3), [0, 3, 6]);
        assert_eq!(spaced(2, 5), [0, 1]);
        assert_eq!(spaced(0, 5), [0; 0]);
        assert_eq!(
            hold_out(&[3, 4, 5, 6, 7, 8]),
            (vec![3, 4, 5, 6, 8], vec![7])
        );
    }

    #[test]
    fn the_best_strength_wins() {
        let mut tried = 0;
        let (strength, model) = choose_strength(
            0.0,
            |_, s| {
                tried += 1;
                s
            },
            |s: &f64| (s.log10() - 2.0).abs(),
        );
        assert_eq!((strength, model, tried), (1e2, 1e2, 5));
    }
}
