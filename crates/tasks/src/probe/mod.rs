//! What the frozen protocols share.
//!
//! All protocols here are this project's choice, made for fast comparison of backbones. They have in common that the
//! backbone does not change, that its features are standardised per channel over the training split, that a read-out is
//! linear and convex ([`crate::probe::linear`]), and that the strength of its weight decay is chosen on training images that it was
//! not fitted to. Nothing is drawn at random: the same data and backbone give the same figures.

pub mod linear;

use std::ops::ControlFlow;
use std::path::Path;

use clasp_data::layouts::LayoutError;
use serde::{Deserialize, Serialize};

use crate::TaskError;
use crate::features::{Extractor, Features, Map, Pass, each_image};
use crate::probe::linear::{Linear, Loss, Solver};

/// How a frozen evaluation runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Options {
    /// Images in a batch.
    pub batch: usize,
    /// Threads, each with its own clone of the backbone.
    pub threads: usize,
    /// How many of the last stages a read-out of feature maps sees, brought to the finest grid and concatenated.
    pub stages: usize,
    /// Name of the training split.
    pub train_split: String,
    /// Name of the split to evaluate on; `None` takes `test`, or else `val`.
    pub eval_split: Option<String>,
    /// Most training images; `None` takes all. Fewer than there are means evenly spaced ones.
    pub train_images: Option<usize>,
    /// Most bytes of training features of feature maps; beyond that, too, evenly spaced training images are taken.
    pub memory: usize,
    /// Most training images on which the weight decay of read-outs of feature maps is chosen.
    pub selection: usize,
    /// The solver of the read-outs.
    pub solver: Solver,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            batch: 16,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            stages: 2,
            train_split: "train".to_owned(),
            eval_split: None,
            train_images: None,
            memory: 1 << 30,
            selection: 200,
            solver: Solver::default(),
        }
    }
}

impl Options {
    /// The solver while weight decay is chosen: each fit starts where the one with more decay ended, and the last digits
    /// decide nothing.
    pub(crate) fn selection_solver(&self) -> Solver {
        Solver {
            iterations: self.solver.iterations.min(30),
            ..self.solver
        }
    }

    /// Images of a long list that are worked on before their results are put away: enough batches for each thread that
    /// the wait for the slowest one is short beside them.
    pub fn chunk(&self) -> usize {
        16 * self.batch.max(1) * self.threads.max(1)
    }

    /// The training images to use, of so many, if each takes so many bytes.
    pub(crate) fn training(&self, count: usize, bytes: usize) -> Vec<usize> {
        let most = self.train_images.unwrap_or(count);
        spaced(count, most.min(self.memory / bytes.max(1)))
    }
}

/// How far an evaluation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done, for example `training images`.
    pub stage: &'static str,
    /// How many are done.
    pub done: usize,
    /// Of how many.
    pub total: usize,
}

/// Strengths of weight decay that are tried, strongest first. A strength s stands for a penalty of s/2 times the squared
/// weights against a loss that counts every training image once.
pub const STRENGTHS: [f64; 7] = [1e4, 1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2];

/// Every fifth image is held out while the weight decay is chosen.
const HELD_OUT: usize = 5;

/// The split to evaluate on: the one asked for, or `test`, or `val`.
pub(crate) fn eval_split(
    options: &Options,
    splits: &[String],
    file: &Path,
) -> Result<String, LayoutError> {
    let wanted = options.eval_split.clone();
    let usual = || {
        ["test", "val"]
            .map(str::to_owned)
            .into_iter()
            .find(|name| splits.contains(name))
    };
    wanted.or_else(usual).ok_or_else(|| LayoutError::NoSplit {
        file: file.display().to_string(),
        wanted: "test` or `val".to_owned(),
        splits: splits.to_vec(),
    })
}

/// Indices of at most `most` of `count` things, evenly spaced.
pub(crate) fn spaced(count: usize, most: usize) -> Vec<usize> {
    let most = most.min(count);
    (0..most).map(|i| i * count / most).collect()
}

/// Those to fit and those held out, of things given by index.
pub(crate) fn hold_out(indices: &[usize]) -> (Vec<usize>, Vec<usize>) {
    let held = |i: usize| i % HELD_OUT == HELD_OUT - 1;
    let (held, fitted): (Vec<_>, Vec<_>) = indices.iter().enumerate().partition(|(i, _)| held(*i));
    let values = |list: Vec<(usize, &usize)>| list.into_iter().map(|(_, index)| *index).collect();
    (values(fitted), values(held))
}

/// The rows that belong to some of the groups of rows.
pub(crate) fn rows_of(groups: &[usize], values: &[f32], group_size: usize) -> Vec<f32> {
    groups
        .iter()
        .flat_map(|g| &values[g * group_size..(g + 1) * group_size])
        .copied()
        .collect()
}

/// Fits with every strength, each from where the stronger one ended, and returns the strength with the smallest score and
/// its model. Stops after two strengths in a row that are worse than the best.
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

/// The tokens of the first image of a pass: they tell the grid, and so how many images fit into memory.
///
/// # Errors
/// Those of [`each_image`].
pub(crate) fn first_tokens<E: Extractor>(
    extractor: &E,
    pass: Pass<'_>,
    options: &Options,
    load: impl Fn(usize) -> Result<Option<Vec<f32>>, TaskError> + Sync,
) -> Result<Tokens, TaskError> {
    let keep = |_: usize, features: &Features| Ok(Tokens::new(features));
    let pass = Pass { count: 1, ..pass };
    let go_on = |_| ControlFlow::Continue(());
    let first = each_image(extractor, pass, options, load, keep, &go_on)?;
    first.into_iter().flatten().next().ok_or(TaskError::Stopped)
}

/// What a read-out of feature maps is fitted to.
pub(crate) struct Examples<'a> {
    /// [images, positions, channels].
    pub features: &'a [f32],
    /// [images, positions, outputs].
    pub targets: &'a [f32],
    /// Positions of an image.
    pub positions: usize,
    /// Channels of a position.
    pub channels: usize,
    /// Targets of a position.
    pub outputs: usize,
    /// The loss of targets [positions of some images, outputs].
    pub loss: &'a dyn for<'t> Fn(&'t [f32]) -> Loss<'t>,
}

/// A read-out with the strength of weight decay that was best on held-out images.
pub(crate) struct Chosen {
    /// The strength.
    pub strength: f64,
    /// The model that it gave.
    pub model: Linear,
    /// The images that were held out.
    pub held: Vec<usize>,
    /// Their features.
    pub held_features: Vec<f32>,
}

impl Examples<'_> {
    /// Chooses the strength on some of the images ([`Options::selection`]).
    pub fn choose(&self, start: Linear, options: &Options) -> Chosen {
        let images = self.features.len() / (self.positions * self.channels);
        let (fitted, held) = hold_out(&spaced(images, options.selection));
        let features_of =
            |images: &[usize]| rows_of(images, self.features, self.positions * self.channels);
        let targets_of =
            |images: &[usize]| rows_of(images, self.targets, self.positions * self.outputs);
        let (fitted_features, fitted_targets) = (features_of(&fitted), targets_of(&fitted));
        let (held_features, held_targets) = (features_of(&held), targets_of(&held));
        let fitted = Examples {
            features: &fitted_features,
            targets: &fitted_targets,
            ..*self
        };
        let (strength, model) = choose_strength(
            start,
            |start, strength| fitted.fit(start, strength, &options.selection_solver()),
            |model| model.loss(&held_features, &(self.loss)(&held_targets)),
        );
        Chosen {
            strength,
            model,
            held,
            held_features,
        }
    }

    /// Fits all of the images, from `start`.
    pub fn fit(&self, start: Linear, strength: f64, solver: &Solver) -> Linear {
        let images = self.features.len() / (self.positions * self.channels);
        let penalties = vec![strength / images as f64; self.outputs];
        let loss = (self.loss)(self.targets);
        start.fit(self.features, &loss, &penalties, solver).0
    }
}

/// The maps of an image on the grid of the finest, concatenated: rows of one feature per position, row by row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tokens {
    pub height: usize,
    pub width: usize,
    pub channels: usize,
    /// [height * width, channels].
    pub values: Vec<f32>,
}

impl Tokens {
    pub fn new(features: &Features) -> Self {
        let (height, width) = features
            .maps
            .first()
            .map_or((0, 0), |map| (map.height, map.width));
        let channels = features.maps.iter().map(|map| map.channels).sum();
        let mut values = vec![0.0; height * width * channels];
        let mut first = 0;
        for map in &features.maps {
            let (rows, columns) = (
                Weights::new(map.height, height),
                Weights::new(map.width, width),
            );
            for (position, token) in values.chunks_exact_mut(channels).enumerate() {
                let (row, column) = (rows.at(position / width), columns.at(position % width));
                for (channel, value) in token[first..first + map.channels].iter_mut().enumerate() {
                    *value = interpolate(map, channel, row, column);
                }
            }
            first += map.channels;
        }
        Self {
            height,
            width,
            channels,
            values,
        }
    }
}

fn interpolate(map: &Map, channel: usize, row: Between, column: Between) -> f32 {
    let plane = &map.values[channel * map.height * map.width..];
    let at = |r: usize| {
        let line = &plane[r * map.width..(r + 1) * map.width];
        line[column.low] + (line[column.high] - line[column.low]) * column.share
    };
    let (low, high) = (at(row.low), at(row.high));
    low + (high - low) * row.share
}

/// Two neighbours and the share of the second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Between {
    pub low: usize,
    pub high: usize,
    pub share: f32,
}

/// Bilinear interpolation along one axis, pixel centres at halves (PyTorch's `align_corners=False`).
pub(crate) struct Weights(Vec<Between>);

impl Weights {
    pub fn new(from: usize, to: usize) -> Self {
        let between = |i: usize| {
            let place =
                ((i as f32 + 0.5) * from as f32 / to as f32 - 0.5).clamp(0.0, from as f32 - 1.0);
            let low = place as usize;
            Between {
                low,
                high: (low + 1).min(from - 1),
                share: place - low as f32,
            }
        };
        Self((0..to).map(between).collect())
    }

    pub fn at(&self, i: usize) -> Between {
        self.0[i]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpolation_is_pytorchs() {
        // torch.nn.functional.interpolate([[0, 3]], size=4, mode="bilinear"): 0, 0.75, 2.25, 3.
        let weights = Weights::new(2, 4);
        let values: Vec<f32> = (0..4)
            .map(|i| weights.at(i))
            .map(|b| [0.0, 3.0][b.low] * (1.0 - b.share) + [0.0, 3.0][b.high] * b.share)
            .collect();
        assert_eq!(values, [0.0, 0.75, 2.25, 3.0]);
        assert_eq!(
            Weights::new(3, 3).at(1),
            Between {
                low: 1,
                high: 2,
                share: 0.0
            }
        );
    }

    #[test]
    fn tokens_are_brought_to_the_finest_grid() {
        let fine: Vec<f32> = (0..8).map(|v| v as f32).collect(); // [1, 4, 2]
        let coarse = [10.0, 20.0, 5.0, 5.0]; // [2, 2, 1]
        let features = Features {
            pooled: &[],
            maps: vec![
                Map {
                    values: &fine,
                    channels: 1,
                    height: 4,
                    width: 2,
                },
                Map {
                    values: &coarse,
                    channels: 2,
                    height: 2,
                    width: 1,
                },
            ],
        };
        let tokens = Tokens::new(&features);
        assert_eq!((tokens.height, tokens.width, tokens.channels), (4, 2, 3));
        assert_eq!(tokens.values[..6], [0.0, 10.0, 5.0, 1.0, 10.0, 5.0]);
        assert_eq!(tokens.values[6..9], [2.0, 12.5, 5.0]);
    }

    #[test]
    fn splits_and_spacing() {
        assert_eq!(spaced(10, 3), [0, 3, 6]);
        assert_eq!(spaced(2, 5), [0, 1]);
        assert_eq!(spaced(0, 5), [0; 0]);
        assert_eq!(
            hold_out(&[3, 4, 5, 6, 7, 8]),
            (vec![3, 4, 5, 6, 8], vec![7])
        );
        let names = ["train", "val"].map(str::to_owned);
        assert_eq!(
            eval_split(&Options::default(), &names, Path::new("a.csv")).unwrap(),
            "val"
        );
        let error = eval_split(&Options::default(), &names[..1], Path::new("a.csv"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`test` or `val`") && error.contains("train"),
            "{error}"
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
