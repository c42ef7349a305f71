//! From images and labels to the tensors of a step.
//!
//! [`Corpus`] pairs every image with its labels by key and makes [`Item`]s on loader threads;
//! [`Inputs`] lays the items of a batch side by side. Everything random about an item follows from
//! (seed, epoch, key), so neither threads nor a restart change it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{Device, Int, Tensor, TensorData};
use clasp_data::augment::{LabelGrid, View, Views, ViewsConfig, views};
use clasp_data::image::{Limits, Rgb, decode};
use clasp_data::labels::{AttributeRule, AttributeTargets, Calibration, LabelError, Store};
use clasp_data::rng_for;
use clasp_data::source::Source;
use clasp_data::vocabulary::{IGNORE, Vocabulary};
use clasp_model::mix::{ATTRIBUTE, PART, TASKS};
use clasp_run::Setting;
use rand::RngExt;

use crate::error::{PretrainError, Result};
use crate::recipe::{Method, Missing, Plan, Recipe};

/// Images with labels, opened once for a run.
pub struct Corpus {
    source: Source,
    labels: Option<Labels>,
    /// Places in the source of the images that are trained on.
    images: Vec<usize>,
    /// For each of these, the one whose labels it has: itself, unless labels are permuted.
    labelled_as: Vec<usize>,
}

struct Labels {
    store: Store,
    /// How logits become targets, where there are attributes to learn.
    rule: Option<AttributeRule>,
}

impl Corpus {
    /// Opens the images and, where the method learns from them, the labels of `recipe`.
    ///
    /// # Errors
    ///
    /// There are no images; there are no labels, too few, or labels of other images.
    pub fn open(recipe: &Recipe) -> Result<Self> {
        let data = &recipe.data;
        if data.images.is_empty() {
            let expected =
                "a file, folder, list or tar shards of images, as in `--set data.images=people/`";
            return Err(Setting::new("data.images", expected, "nothing").into());
        }
        let source = if data.keep_going {
            Source::open_lenient(&data.images)
        } else {
            Source::open(&data.images)
        }?;
        let wants = |task: &str| recipe.mix.tasks.iter().any(|wanted| wanted == task);
        let part = recipe.method != Method::Dino && wants(TASKS[PART]);
        let attribute = recipe.method == Method::Clasp && wants(TASKS[ATTRIBUTE]);
        if !part && !attribute {
            let images: Vec<usize> = (0..source.len()).collect();
            return Ok(Self {
                source,
                labels: None,
                labelled_as: images.clone(),
                images,
            });
        }
        if data.labels.as_os_str().is_empty() {
            return Err(PretrainError::NeedsLabels {
                method: recipe.method.name(),
            });
        }
        let store = Store::open(&data.labels)?;
        let images: Vec<usize> = (0..source.len())
            .filter(|&i| store.get(source.key(i)).is_some())
            .collect();
        if images.is_empty() {
            return Err(PretrainError::ForeignLabels {
                labels: data.labels.clone(),
                total: source.len(),
                image: source.keys().next().unwrap_or_default().to_owned(),
                label: store
                    .iter()
                    .next()
                    .map(|row| row.key.to_owned())
                    .unwrap_or_default(),
            });
        }
        let missing = source.len() - images.len();
        if missing > 0 && data.missing == Missing::Error {
            return Err(PretrainError::MissingLabels {
                labels: data.labels.clone(),
                missing,
                total: source.len(),
                example: source
                    .keys()
                    .find(|key| store.get(key).is_none())
                    .unwrap_or_default()
                    .to_owned(),
            });
        }
        let rule = if attribute {
            let config = recipe.attributes.config()?;
            let calibration = calibration(&store, &data.labels)?;
            Some(AttributeRule::new(&calibration, &config))
        } else {
            None
        };
        Ok(Self {
            source,
            labels: Some(Labels { store, rule }),
            labelled_as: if data.permute_labels {
                cycle(&images, recipe.seed)
            } else {
                images.clone()
            },
            images,
        })
    }

    /// Images that are trained on.
    pub fn len(&self) -> usize {
        self.images.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.images.is_empty()
    }

    /// Temperature of the attribute targets in units of logits, where attributes are learnt.
    pub fn temperature(&self) -> Option<f64> {
        let rule = self.labels.as_ref()?.rule.as_ref()?;
        Some(f64::from(rule.temperature))
    }

    /// What the labels answer, where the method learns from labels.
    pub fn vocabulary(&self) -> Option<&Vocabulary> {
        self.labels
            .as_ref()
            .map(|labels| &labels.store.meta.vocabulary)
    }
}

/// A random cyclic permutation of `images` (Sattolo 1986): where there are two or more, none stays in its place.
fn cycle(images: &[usize], seed: u64) -> Vec<usize> {
    let mut rng = rng_for(seed, 0, "permuted labels");
    let mut permuted = images.to_vec();
    for last in (1..permuted.len()).rev() {
        permuted.swap(last, rng.random_range(0..last));
    }
    permuted
}

/// The calibration beside the labels, or, where nobody has made one, that of the same logits now.
fn calibration(store: &Store, folder: &Path) -> Result<Calibration> {
    if store.meta.vocabulary.logits() == 0 {
        let expected = "no `attribute`, since the labels hold none; try --set mix.tasks='[\"identity\", \"part\"]'";
        let found = format!("{} made by {}", folder.display(), store.meta.method);
        return Err(Setting::new("mix.tasks", expected, found).into());
    }
    match Calibration::read(folder, &store.meta.vocabulary) {
        Err(LabelError::NoCalibration { .. }) => Ok(Calibration::of_store(store)?),
        calibration => Ok(calibration?),
    }
}

/// Images that could not be read. An epoch comes back to each, so they are counted by key.
#[derive(Clone, Debug, Default)]
pub struct Unreadable {
    /// Images tried, good and bad.
    pub tried: u64,
    /// Key of, and reason for, each that could not be read.
    pub failed: BTreeMap<String, String>,
}

/// One image as a step sees it.
#[derive(Clone, Debug)]
pub struct Item {
    /// The image's key.
    pub key: String,
    /// SOLIDER's λ, shared by student and teacher: 0 or 1.
    pub lambda: f32,
    /// The views, with part labels where there are any.
    pub views: Views,
    /// Attribute targets, where they are learnt.
    pub attributes: Option<AttributeTargets>,
}

/// Makes items; shared by the loader's threads.
pub struct Maker {
    corpus: Arc<Corpus>,
    config: ViewsConfig,
    /// Rows and columns of the feature map of a global view.
    grid: [usize; 2],
    solider: bool,
    seed: u64,
    unreadable: Arc<Mutex<Unreadable>>,
}

impl Maker {
    /// A maker for `plan`, whose backbone maps a global view to `grid` features; images that
    /// cannot be read are added to `unreadable`.
    pub fn new(
        corpus: Arc<Corpus>,
        plan: &Plan,
        grid: [usize; 2],
        unreadable: Arc<Mutex<Unreadable>>,
    ) -> Self {
        let recipe = &plan.recipe;
        Self {
            corpus,
            config: recipe.views.clone(),
            grid,
            solider: recipe.method == Method::Solider,
            seed: recipe.seed,
            unreadable,
        }
    }

    /// The image, if its labels are of it and not of one that had its name before.
    fn unchanged(&self, key: &str, bytes: &[u8], image: Rgb) -> std::result::Result<Rgb, String> {
        let row = (self.corpus.labels.as_ref()).and_then(|labels| labels.store.get(key));
        match row.and_then(|row| row.difference_from(bytes, [image.height, image.width])) {
            Some(changed) => Err(format!("{changed}; label it again")),
            None => Ok(image),
        }
    }

    /// The item of image `index` in `epoch`; `None`, and an entry in the list, where the image
    /// cannot be read.
    pub fn make(&self, index: usize, epoch: u64) -> Option<Item> {
        let place = self.corpus.images[index];
        let key = self.corpus.source.key(place);
        let image = match self.corpus.source.read(place) {
            Ok(bytes) => decode(&bytes, &Limits::default())
                .map_err(|error| error.to_string())
                .and_then(|image| self.unchanged(key, &bytes, image)),
            Err(error) => Err(error.to_string()),
        };
        let mut unreadable = self
            .unreadable
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        unreadable.tried += 1;
        let image = match image {
            Ok(image) => image,
            Err(reason) => {
                unreadable.failed.insert(key.to_owned(), reason);
                return None;
            }
        };
        drop(unreadable);
        let mut rng = rng_for(self.seed, epoch, key);
        // Drawn for every method, so that all see the same views of an image.
        let lambda = f32::from(u8::from(rng.random_bool(0.5)));
        let labels = self.corpus.labels.as_ref();
        let labelled_as = self.corpus.source.key(self.corpus.labelled_as[index]);
        let row = labels.and_then(|labels| labels.store.get(labelled_as));
        let grid = labels.zip(row).map(|(labels, row)| LabelGrid {
            rows: labels.store.meta.rows,
            columns: labels.store.meta.columns,
            parts: row.parts,
        });
        let views = views(&image, grid, &self.config, self.grid, &mut rng);
        let attributes = labels.zip(row).and_then(|(labels, row)| {
            let rule = labels.rule.as_ref()?;
            Some(rule.targets(row.attributes, &labels.store.meta.vocabulary))
        });
        Some(Item {
            key: key.to_owned(),
            lambda: if self.solider { lambda } else { 0.0 },
            views,
            attributes,
        })
    }
}

/// The tensors of a batch. Views lie one after the other: `[view · batch + image, …]`.
pub struct Inputs {
    /// [global views · batch, 3, height, width]
    pub globals: Tensor<4>,
    /// [local views · batch, 3, height, width], where there are local views.
    pub locals: Option<Tensor<4>>,
    /// Images.
    pub batch: usize,
    /// SOLIDER's λ, one an image.
    pub lambdas: Option<Vec<f32>>,
    /// [global views · batch, rows, columns], 255 where the part is not known.
    pub parts: Option<Tensor<3, Int>>,
    /// Targets [batch, values] and weights [batch, attributes], 0 where a target is not learnt.
    pub attributes: Option<(Tensor<2>, Tensor<2>)>,
}

impl Inputs {
    /// The tensors of `items` on `device`; `grid` is rows and columns of a global view's feature map.
    pub fn new(items: &[Item], grid: [usize; 2], method: Method, device: &Device) -> Self {
        let views = items.first().map(|item| &item.views);
        let [globals, locals] =
            views.map_or([0; 2], |views| [views.global.len(), views.local.len()]);
        let global = |view: usize| items.iter().map(move |item| &item.views.global[view]);
        let local = |view: usize| items.iter().map(move |item| &item.views.local[view]);
        let labelled = items
            .iter()
            .any(|item| item.views.global.iter().any(|view| view.parts.is_some()));
        Self {
            locals: (locals > 0).then(|| pixels((0..locals).flat_map(local), device)),
            parts: labelled.then(|| part_labels((0..globals).flat_map(global), grid, device)),
            attributes: attribute_tensors(items, device),
            ..Self::of_globals(items, method, device)
        }
    }

    /// What the teacher sees of `items`: their global views, without local ones and labels.
    pub fn of_globals(items: &[Item], method: Method, device: &Device) -> Self {
        let globals = items.first().map_or(0, |item| item.views.global.len());
        let global = |view: usize| items.iter().map(move |item| &item.views.global[view]);
        Self {
            globals: pixels((0..globals).flat_map(global), device),
            locals: None,
            batch: items.len(),
            lambdas: (method == Method::Solider)
                .then(|| items.iter().map(|item| item.lambda).collect()),
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

/// [views, rows, columns]; a view without labels is 255 all over.
fn part_labels<'a>(
    views: impl Iterator<Item = &'a View>,
    grid: [usize; 2],
    device: &Device,
) -> Tensor<3, Int> {
    let (mut values, mut count) = (Vec::new(), 0);
    for view in views {
        match &view.parts {
            Some(parts) => values.extend(parts.iter().map(|part| i32::from(*part))),
            None => values.resize(values.len() + grid[0] * grid[1], i32::from(IGNORE)),
        }
        count += 1;
    }
    Tensor::from_data(TensorData::new(values, [count, grid[0], grid[1]]), device)
}

/// Targets [batch, values] and weights [batch, attributes], 0 for an image without targets.
fn attribute_tensors(items: &[Item], device: &Device) -> Option<(Tensor<2>, Tensor<2>)> {
    let first = items.iter().find_map(|item| item.attributes.as_ref())?;
    let (values, attributes) = (first.target.len(), first.weight.len());
    let (mut targets, mut weights) = (Vec::new(), Vec::new());
    for item in items {
        match &item.attributes {
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
        Tensor::from_data(TensorData::new(targets, [items.len(), values]), device),
        Tensor::from_data(TensorData::new(weights, [items.len(), attributes]), device),
    ))
}

/// A batch of noise with labels at random, for benchmarks and tests: as much work as images, and
/// nothing to read.
pub fn noise(
    recipe: &Recipe,
    grid: [usize; 2],
    vocabulary: Option<&Vocabulary>,
    seed: u64,
) -> Vec<Item> {
    let mut rng = rng_for(seed, 0, "noise");
    let mut view = |[height, width]: [usize; 2], labelled: bool| View {
        height,
        width,
        pixels: (0..3 * height * width)
            .map(|_| rng.random_range(-1.0..1.0))
            .collect(),
        parts: vocabulary.filter(|_| labelled).map(|vocabulary| {
            let classes = vocabulary.parts.len().min(usize::from(IGNORE)) as u8;
            let mut part = || {
                if rng.random_bool(0.2) {
                    IGNORE
                } else {
                    rng.random_range(0..classes)
                }
            };
            (0..grid[0] * grid[1]).map(|_| part()).collect()
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
        .map(|index| Item {
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
    fn permuted_labels_are_all_of_another_image() {
        let images: Vec<usize> = (3..40).collect();
        let permuted = cycle(&images, 5);
        assert!(images.iter().zip(&permuted).all(|(a, b)| a != b));
        let mut sorted = permuted.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, images);
        assert_ne!(permuted, cycle(&images, 6));
        assert_eq!(cycle(&[4], 0), [4]);
    }

    #[test]
    fn views_lie_one_after_the_other() {
        let view = |value: f32, parts: Option<Vec<u8>>| View {
            height: 1,
            width: 2,
            pixels: vec![value; 6],
            parts,
        };
        let item = |value: f32, parts: Option<Vec<u8>>| Item {
            key: value.to_string(),
            lambda: 0.0,
            views: Views {
                global: vec![view(value, parts.clone()), view(value + 10.0, parts)],
                local: Vec::new(),
            },
            attributes: None,
        };
        let inputs = Inputs::new(
            &[item(1.0, Some(vec![3])), item(2.0, None)],
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
