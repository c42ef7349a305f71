//! Images with their labels, and the views that are made of them.
//!
//! [`PretrainDataset`] pairs every image with its labels by key, and a [`ViewGenerator`] makes the
//! [`ImageSample`]s of an epoch on the threads of the loader. All random draws of a sample follow
//! from (seed, epoch, key), so that neither threads nor a restart change them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use clasp_data::augment::{Views, ViewsConfig, views};
use clasp_data::image::{Limits, Rgb, decode};
use clasp_data::labels::{AttributeRule, AttributeTargets, Calibration, Store};
use clasp_data::rng_for;
use clasp_data::source::{Source, TRIED_FIRST, too_many_unreadable};
use clasp_data::vocabulary::Vocabulary;
use clasp_model::prompt::{ATTRIBUTE, PART};
use clasp_run::InvalidValue;
use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::error::{PretrainError, Result};
use crate::recipe::{Method, MissingLabels, PretrainRecipe};

/// Images with labels, opened once for a run.
pub struct PretrainDataset {
    source: Source,
    labels: Option<DatasetLabels>,
    /// Indices in the source of the images that are trained on.
    images: Vec<usize>,
    /// For each of these, the index of the image whose labels it has: its own, unless labels are
    /// permuted.
    labels_of: Vec<usize>,
}

struct DatasetLabels {
    store: Store,
    /// How logits become targets; none if no attributes are learned.
    rule: Option<AttributeRule>,
}

impl PretrainDataset {
    /// Opens the images and, if the method learns from labels, the label store of `recipe`.
    ///
    /// # Errors
    ///
    /// There are no images, or no labels, too few, or labels of other images.
    pub fn open(recipe: &PretrainRecipe) -> Result<Self> {
        let data = &recipe.data;
        if data.images.is_empty() {
            let expected =
                "a file, folder, list or tar shards of images, as in `--set data.images=people/`";
            return Err(InvalidValue::new("data.images", expected, "nothing").into());
        }
        let source = if data.skip_unreadable {
            Source::open_lenient(&data.images)
        } else {
            Source::open(&data.images)
        }?;
        let part = recipe.method != Method::Dino && recipe.model.has_prompt(PART);
        let attribute = recipe.method == Method::Clasp && recipe.model.has_prompt(ATTRIBUTE);
        if !part && !attribute {
            let images: Vec<usize> = (0..source.len()).collect();
            return Ok(Self {
                source,
                labels: None,
                labels_of: images.clone(),
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
        if missing > 0 && data.missing_labels == MissingLabels::Error {
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
            labels: Some(DatasetLabels { store, rule }),
            labels_of: if data.permute_labels {
                cyclic_permutation(&images, recipe.seed)
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

    /// Keys of the images that are trained on, in order.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.images.iter().map(|image| self.source.key(*image))
    }

    /// Temperature of the attribute targets in units of logits; none if no attributes are learned.
    pub fn temperature(&self) -> Option<f64> {
        let rule = self.labels.as_ref()?.rule.as_ref()?;
        // By way of its text: 0.6 rather than 0.6000000238418579 in `run.toml`.
        rule.temperature.to_string().parse().ok()
    }

    /// Vocabulary of the labels; none if the method learns from no labels.
    pub fn vocabulary(&self) -> Option<&Vocabulary> {
        self.labels
            .as_ref()
            .map(|labels| &labels.store.meta.vocabulary)
    }
}

/// A random cyclic permutation of `images` (Sattolo 1986): of two or more, none keeps its place.
fn cyclic_permutation(images: &[usize], seed: u64) -> Vec<usize> {
    let mut rng = rng_for(seed, 0, "permuted labels");
    let mut permuted = images.to_vec();
    for last in (1..permuted.len()).rev() {
        permuted.swap(last, rng.random_range(0..last));
    }
    permuted
}

/// The calibration beside the labels or, if there is none, one computed from the same logits.
fn calibration(store: &Store, folder: &Path) -> Result<Calibration> {
    if store.meta.vocabulary.logits() == 0 {
        let expected = "no `attribute`, as the labels have none; \
                        try --set model.prompts='[\"identity\", \"part\"]'";
        let found = format!("{} made by {}", folder.display(), store.meta.method);
        return Err(InvalidValue::new("model.prompts", expected, found).into());
    }
    Ok(Calibration::read_or_of_store(folder, store)?)
}

/// Images that could not be read. Every epoch tries each again, so they are counted by key.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ImageReads {
    /// Images that were tried, readable or not.
    pub tried: u64,
    /// Key and reason of each that could not be read.
    pub failed: BTreeMap<String, String>,
}

impl ImageReads {
    /// Whether more images of a dataset of `images` images cannot be read than a run tolerates;
    /// false until [`TRIED_FIRST`] images or all were tried.
    pub fn are_too_many(&self, images: usize) -> bool {
        let images = images as u64;
        let tried = self.tried.min(images);
        tried >= images.min(TRIED_FIRST) && too_many_unreadable(self.failed.len() as u64, tried)
    }

    /// The same of all ranks, each of which reads some of the images.
    pub(crate) fn of_ranks(ranks: Vec<Self>) -> Self {
        let mut all = Self::default();
        for one in ranks {
            all.tried += one.tried;
            all.failed.extend(one.failed);
        }
        all
    }

    /// The text of `unreadable.txt`: key and reason, separated by a tab, one image a line.
    pub fn to_lines(&self) -> String {
        { self.failed.iter() }
            .map(|(key, reason)| format!("{key}\t{}\n", reason.replace('\n', " ")))
            .collect()
    }
}

/// One image of a batch: its views and labels.
#[derive(Clone, Debug)]
pub struct ImageSample {
    /// The image's key.
    pub key: String,
    /// SOLIDER's λ, the same for student and teacher: 0 or 1.
    pub lambda: f32,
    /// The views, with the crops of the part map if there is one.
    pub views: Views,
    /// Attribute targets, if they are learned.
    pub attributes: Option<AttributeTargets>,
}

/// Makes the views of images and crops their labels along with them; shared by the threads of the
/// loader.
pub struct ViewGenerator {
    dataset: Arc<PretrainDataset>,
    config: ViewsConfig,
    /// Rows and columns of the feature map of a global view.
    grid: [usize; 2],
    solider: bool,
    seed: u64,
    unreadable: Arc<Mutex<ImageReads>>,
}

impl ViewGenerator {
    /// A generator for a recipe, whose backbone has `grid`, rows and columns, patch positions for a
    /// global view; images that cannot be read are added to `unreadable`.
    pub fn new(
        dataset: Arc<PretrainDataset>,
        recipe: &PretrainRecipe,
        grid: [usize; 2],
        unreadable: Arc<Mutex<ImageReads>>,
    ) -> Self {
        Self {
            dataset,
            config: recipe.views.clone(),
            grid,
            solider: recipe.method == Method::Solider,
            seed: recipe.seed,
            unreadable,
        }
    }

    /// The image, if it is the one that was labeled and not another of the same key.
    fn if_unchanged(
        &self,
        key: &str,
        bytes: &[u8],
        image: Rgb,
    ) -> std::result::Result<Rgb, String> {
        let row = (self.dataset.labels.as_ref()).and_then(|labels| labels.store.get(key));
        match row.and_then(|row| row.difference_from(bytes, [image.height, image.width])) {
            Some(changed) => Err(format!("{changed}; label it again")),
            None => Ok(image),
        }
    }

    /// The key of image `index`.
    pub fn key(&self, index: usize) -> &str {
        self.dataset.source.key(self.dataset.images[index])
    }

    /// The sample of image `index` in `epoch`; `None`, and an entry in the list, if the image
    /// cannot be read.
    pub fn sample(&self, index: usize, epoch: u64) -> Option<ImageSample> {
        let in_source = self.dataset.images[index];
        let key = self.dataset.source.key(in_source);
        let image = match self.dataset.source.read(in_source) {
            Ok(bytes) => decode(&bytes, &Limits::default())
                .map_err(|error| error.to_string())
                .and_then(|image| self.if_unchanged(key, &bytes, image)),
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
        // Drawn for every method, so that all have the same views of an image.
        let lambda = f32::from(u8::from(rng.random_bool(0.5)));
        let labels = self.dataset.labels.as_ref();
        let labeled_key = self.dataset.source.key(self.dataset.labels_of[index]);
        let row = labels.and_then(|labels| labels.store.get(labeled_key));
        let of_positions = labels
            .zip(row)
            .map(|(labels, row)| row.values.on_grid(&labels.store.meta));
        let views = views(&image, of_positions, &self.config, self.grid, &mut rng);
        let attributes = labels.zip(row).and_then(|(labels, row)| {
            let rule = labels.rule.as_ref()?;
            Some(rule.targets(&row, &labels.store.meta.vocabulary))
        });
        Some(ImageSample {
            key: key.to_owned(),
            lambda: if self.solider { lambda } else { 0.0 },
            views,
            attributes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permuted_labels_are_all_of_another_image() {
        let images: Vec<usize> = (3..40).collect();
        let permuted = cyclic_permutation(&images, 5);
        assert!(images.iter().zip(&permuted).all(|(a, b)| a != b));
        let mut sorted = permuted.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, images);
        assert_ne!(permuted, cyclic_permutation(&images, 6));
        assert_eq!(cyclic_permutation(&[4], 0), [4]);
    }
}
