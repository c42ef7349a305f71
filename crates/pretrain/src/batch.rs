//! The tensors of a batch, or of a share of it.

use burn::tensor::{Device, Int, Tensor, TensorData};
use clasp_data::augment::{View, Views};
use clasp_data::labels::{AttributeTargets, ViewLabels};
use clasp_data::rng_for;
use clasp_data::vocabulary::{IGNORE, Vocabulary};
use rand::RngExt;

use crate::dataset::ImageSample;
use crate::masking::{MaskTensors, ViewMasks};
use crate::recipe::{Method, PretrainRecipe};

/// The tensors of a batch. Its views are stacked along the first axis: image `i` of view `v` is at
/// `v · batch + i`.
pub struct BatchTensors {
    /// [global views · batch, 3, height, width]
    pub globals: Tensor<4>,
    /// [local views · batch, 3, height, width]; none without local views.
    pub locals: Option<Tensor<4>>,
    /// Images of the batch.
    pub batch: usize,
    /// SOLIDER's λ of each image; none for other methods.
    pub lambdas: Option<Vec<f32>>,
    /// The masked patches of the global views, if there are any.
    pub masks: Option<MaskTensors>,
    /// Part classes, [global views · batch, rows, columns], 255 (the ignore index) where unknown.
    pub parts: Option<Tensor<3, Int>>,
    /// Attribute targets [batch, values] and their weights [batch, attributes], 0 where a target is
    /// not learned.
    pub attributes: Option<(Tensor<2>, Tensor<2>)>,
}

impl BatchTensors {
    /// The tensors of `samples` on `device`; `grid` is rows and columns of the feature map of a
    /// global view.
    pub fn new(samples: &[ImageSample], grid: [usize; 2], method: Method, device: &Device) -> Self {
        let views = samples.first().map(|sample| &sample.views);
        let [globals, locals] =
            views.map_or([0; 2], |views| [views.global.len(), views.local.len()]);
        let global = |view: usize| samples.iter().map(move |sample| &sample.views.global[view]);
        let local = |view: usize| samples.iter().map(move |sample| &sample.views.local[view]);
        let labeled = samples
            .iter()
            .any(|sample| sample.views.global.iter().any(|view| view.labels.is_some()));
        Self {
            locals: (locals > 0).then(|| pixels((0..locals).flat_map(local), device)),
            parts: labeled.then(|| part_labels((0..globals).flat_map(global), grid, device)),
            attributes: attribute_tensors(samples, device),
            ..Self::of_globals(samples, method, device)
        }
    }

    /// The same with masked patches.
    pub(crate) fn masked(self, masks: Option<&ViewMasks>) -> Self {
        let device = self.globals.device();
        Self {
            masks: masks.and_then(|masks| masks.tensors(&device)),
            ..self
        }
    }

    /// The inputs of the teacher: global views, without local views and labels.
    pub fn of_globals(samples: &[ImageSample], method: Method, device: &Device) -> Self {
        let globals = samples
            .first()
            .map_or(0, |sample| sample.views.global.len());
        let global = |view: usize| samples.iter().map(move |sample| &sample.views.global[view]);
        Self {
            globals: pixels((0..globals).flat_map(global), device),
            locals: None,
            batch: samples.len(),
            masks: None,
            lambdas: (method == Method::Solider)
                .then(|| samples.iter().map(|sample| sample.lambda).collect()),
            parts: None,
            attributes: None,
        }
    }
}

/// [views, 3, height, width]
fn pixels<'a>(views: impl Iterator<Item = &'a View>, device: &Device) -> Tensor<4> {
    let (mut values, mut count, mut size) = (Vec::new(), 0, [0, 0]);
    for view in views {
        values.extend_from_slice(&view.pixels);
        size = [view.height, view.width];
        count += 1;
    }
    Tensor::from_data(
        TensorData::new(values, [count, 3, size[0], size[1]]),
        device,
    )
}

/// [views, rows, columns]; a view without labels has the ignore index everywhere.
fn part_labels<'a>(
    views: impl Iterator<Item = &'a View>,
    grid: [usize; 2],
    device: &Device,
) -> Tensor<3, Int> {
    let (mut values, mut count) = (Vec::new(), 0);
    for view in views {
        match &view.labels {
            Some(labels) => values.extend(labels.parts.iter().map(|part| i32::from(*part))),
            None => values.resize(values.len() + grid[0] * grid[1], i32::from(IGNORE)),
        }
        count += 1;
    }
    Tensor::from_data(TensorData::new(values, [count, grid[0], grid[1]]), device)
}

/// Targets [batch, values] and weights [batch, attributes], 0 for an image without targets.
fn attribute_tensors(samples: &[ImageSample], device: &Device) -> Option<(Tensor<2>, Tensor<2>)> {
    let first = samples
        .iter()
        .find_map(|sample| sample.attributes.as_ref())?;
    let (values, attributes) = (first.target.len(), first.weight.len());
    let (mut targets, mut weights) = (Vec::new(), Vec::new());
    for sample in samples {
        match &sample.attributes {
            Some(one) => {
                targets.extend_from_slice(&one.target);
                weights.extend_from_slice(&one.weight);
            }
            None => {
                targets.resize(targets.len() + values, 0.0);
                weights.resize(weights.len() + attributes, 0.0);
            }
        }
    }
    Some((
        Tensor::from_data(TensorData::new(targets, [samples.len(), values]), device),
        Tensor::from_data(
            TensorData::new(weights, [samples.len(), attributes]),
            device,
        ),
    ))
}

/// A batch of noise with random labels, for benchmarks and tests: as much computation as for
/// images, and no files.
pub fn noise_batch(
    recipe: &PretrainRecipe,
    grid: [usize; 2],
    vocabulary: Option<&Vocabulary>,
    seed: u64,
) -> Vec<ImageSample> {
    let mut rng = rng_for(seed, 0, "noise");
    let mut view = |[height, width]: [usize; 2], labeled: bool| View {
        height,
        width,
        pixels: (0..3 * height * width)
            .map(|_| rng.random_range(-1.0..1.0))
            .collect(),
        labels: vocabulary.filter(|_| labeled).map(|vocabulary| {
            let classes = vocabulary.parts.len().min(usize::from(IGNORE)) as u8;
            let mut part = || {
                if rng.random_bool(0.2) {
                    IGNORE
                } else {
                    rng.random_range(0..classes)
                }
            };
            let parts = (0..grid[0] * grid[1]).map(|_| part()).collect();
            ViewLabels { parts }
        }),
    };
    let views = &recipe.views;
    let targets = |index: usize, vocabulary: &Vocabulary| {
        let mut target = vec![0.0; vocabulary.logits()];
        for range in vocabulary.ranges() {
            target[range.start + index % range.len()] = 1.0;
        }
        let mask: Vec<bool> = (0..vocabulary.attributes.len())
            .map(|attribute| !(attribute + index).is_multiple_of(3))
            .collect();
        let weight = mask.iter().map(|&counts| f32::from(u8::from(counts)));
        AttributeTargets {
            target,
            weight: weight.collect(),
            mask,
        }
    };
    (0..recipe.run.batch)
        .map(|index| ImageSample {
            key: format!("noise {index}"),
            lambda: f32::from(u8::from(index % 2 == 1)),
            views: Views {
                global: (0..views.global)
                    .map(|_| view(views.global_size, true))
                    .collect(),
                local: (0..views.local)
                    .map(|_| view(views.local_size, false))
                    .collect(),
            },
            attributes: vocabulary
                .filter(|vocabulary| vocabulary.logits() > 0)
                .map(|vocabulary| targets(index, vocabulary)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_stacked() {
        let view = |value: f32, parts: Option<Vec<u8>>| View {
            height: 1,
            width: 2,
            pixels: vec![value; 6],
            labels: parts.map(|parts| ViewLabels { parts }),
        };
        let sample = |value: f32, parts: Option<Vec<u8>>| ImageSample {
            key: value.to_string(),
            lambda: 0.0,
            views: Views {
                global: vec![view(value, parts.clone()), view(value + 10.0, parts)],
                local: Vec::new(),
            },
            attributes: None,
        };
        let inputs = BatchTensors::new(
            &[sample(1.0, Some(vec![3])), sample(2.0, None)],
            [1, 1],
            Method::Clasp,
            &Device::flex(),
        );
        let firsts: Vec<f32> = inputs
            .globals
            .slice([0..4, 0..1, 0..1, 0..1])
            .into_data()
            .iter::<f32>()
            .collect();
        assert_eq!(firsts, [1.0, 2.0, 11.0, 12.0]);
        let parts: Vec<i64> = inputs.parts.unwrap().into_data().iter::<i64>().collect();
        assert_eq!(parts, [3, 255, 3, 255]);
        assert!(inputs.locals.is_none() && inputs.attributes.is_none());
    }
}
