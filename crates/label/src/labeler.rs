//! Labelers: CLIP, or k-means on the features of a backbone.
//!
//! A labeler is cloned for each worker thread of a run (clones share the weights) and is a pure
//! function of the batch it is given.

use burn::tensor::{Device, Tensor, TensorData};
use clasp_data::image::{self, Filter, Rgb};
use clasp_data::labels::{LabelValues, StoreMeta};
use clasp_data::rng_for;
use clasp_data::vocabulary::Vocabulary;
use clasp_model::clip::{Clip, Dense};
use clasp_model::{Precision, Shares};
use clasp_weights::clip::ClipInfo;

use crate::attributes::logits;
use crate::config::LabelConfig;
use crate::parts::{PartMap, PartMapper, cosines};
use crate::prompts::TextFeatures;
use crate::{Error, kmeans, one_thread, read};

fn label_values(map: PartMap, attributes: Vec<f32>) -> LabelValues {
    LabelValues {
        parts: map.parts,
        part_confidence: map.confidence,
        attributes,
    }
}

/// A source of labels for images.
pub trait Labeler: Clone + Send + Sync {
    /// Metadata of the label store.
    fn meta(&self) -> &StoreMeta;

    /// All other settings on which the labels depend, by name: a store holds labels of one setting.
    fn settings(&self) -> toml::Table;

    /// Images that are labeled at once.
    fn batch(&self) -> usize;

    /// How many replicas of the network use how many threads each. On the CPU one for each thread.
    fn shares(&self, threads: usize) -> Shares {
        Shares::of_cpu(threads)
    }

    /// An image as the network's input: `[3, height, width]`, the same size for all images. The
    /// whole image is resized to CLIP's size by bicubic interpolation without keeping its aspect
    /// ratio; a crop would cut off heads and feet.
    fn prepare(&self, image: &Rgb) -> Vec<f32>;

    /// Labels of a batch. `pixels`: [batch, 3, height, width]; `keys`: `[batch]`
    ///
    /// # Errors
    ///
    /// The device failed or the network gave numbers that are not finite.
    fn label(&self, keys: &[&str], pixels: Vec<f32>) -> Result<Vec<LabelValues>, Error>;
}

/// Labels by CLIP: part maps from its dense features, attributes from the pooled one.
#[derive(Debug, Clone)]
pub struct ClipLabeler {
    clip: Clip,
    text: TextFeatures,
    mapper: PartMapper,
    dense: Dense,
    attribute_scale: f32,
    precision: Precision,
    size: [usize; 2],
    mean: [f32; 3],
    std: [f32; 3],
    batch: usize,
    meta: StoreMeta,
    settings: toml::Table,
    device: Device,
}

impl ClipLabeler {
    /// Encodes the vocabulary once and keeps it. The text features are computed on one thread, so
    /// that they do not depend on how many there are.
    ///
    /// # Errors
    ///
    /// A value of `config` makes no sense for `vocabulary` or for this CLIP, or the text tower
    /// failed.
    pub fn new(
        clip: Clip,
        info: &ClipInfo,
        vocabulary: &Vocabulary,
        config: &LabelConfig,
        device: &Device,
    ) -> Result<Self, Error> {
        config.check(vocabulary)?;
        let size = config.image_size.unwrap_or(info.image_size);
        let patch = clip.config().vision.patch;
        if size
            .iter()
            .any(|&side| side == 0 || !side.is_multiple_of(patch))
        {
            return Err(Error::Config {
                key: "image_size".into(),
                expected: format!(
                    "height and width that are multiples of this CLIP's patch of {patch} pixels"
                ),
                found: format!("{}x{}", size[0], size[1]),
            });
        }
        let text = one_thread()?.install(|| TextFeatures::new(&clip, vocabulary, device))?;
        let tokens = clip.config().grid(size[0], size[1]);
        Ok(Self {
            mapper: PartMapper::new(vocabulary, &text.class_of_synonym, tokens, config),
            text,
            dense: config.dense,
            attribute_scale: config.attribute_scale,
            precision: config.precision,
            size,
            mean: info.mean,
            std: info.std,
            batch: config.batch,
            settings: settings(config, size)?,
            meta: StoreMeta {
                vocabulary: vocabulary.clone(),
                model: info.name.clone(),
                model_sha256: info.sha256.clone(),
                rows: config.grid[0],
                columns: config.grid[1],
                method: "clip".into(),
                dense: dense_name(config.dense).into(),
                confidence: config.confidence,
            },
            device: device.clone(),
            clip,
        })
    }

    /// To test what another vocabulary does without another model.
    #[cfg(test)]
    pub(crate) fn meta_mut(&mut self) -> &mut StoreMeta {
        &mut self.meta
    }

    /// Cosines of a batch with everything that the vocabulary names.
    ///
    /// # Shapes
    ///
    /// - `images`: [batch, 3, height, width], normalized
    /// - returns parts [batch, synonyms, rows · columns] and attribute logits [batch, values]
    pub fn scores(&self, images: Tensor<4>) -> (Tensor<3>, Option<Tensor<2>>) {
        let tower = || self.clip.encode_image_dense(images, self.dense);
        let (dense, pooled) = self.precision.within(tower);
        let parts = cosines(dense, self.text.parts.clone());
        let attributes = self
            .text
            .attributes
            .clone()
            .map(|values| logits(pooled, values, self.attribute_scale));
        (parts, attributes)
    }
}

impl Labeler for ClipLabeler {
    fn meta(&self) -> &StoreMeta {
        &self.meta
    }

    fn settings(&self) -> toml::Table {
        self.settings.clone()
    }

    fn batch(&self) -> usize {
        self.batch
    }

    fn shares(&self, threads: usize) -> Shares {
        Shares::of(&self.device, threads)
    }

    fn prepare(&self, image: &Rgb) -> Vec<f32> {
        let [height, width] = self.size;
        image::normalize(
            &image::resize(image, height, width, Filter::Bicubic),
            self.mean,
            self.std,
        )
    }

    fn label(&self, keys: &[&str], pixels: Vec<f32>) -> Result<Vec<LabelValues>, Error> {
        let batch = keys.len();
        let shape = [batch, 3, self.size[0], self.size[1]];
        let (parts, attributes) = self.scores(Tensor::from_data(
            TensorData::new(pixels, shape),
            &self.device,
        ));
        let [_, synonyms, tokens] = parts.dims();
        let parts = read(parts, "part scores")?;
        let values = self.meta.vocabulary.logits();
        let attributes = match attributes {
            Some(attributes) => read(attributes, "attribute logits")?,
            None => Vec::new(),
        };
        Ok(parts
            .chunks_exact(synonyms * tokens)
            .enumerate()
            .map(|(i, cosines)| {
                label_values(
                    self.mapper.map(cosines),
                    attributes[i * values..(i + 1) * values].to_vec(),
                )
            })
            .collect())
    }
}

/// The settings as a table, with the image size that is used and without the batch, which decides
/// no label.
fn settings(config: &LabelConfig, size: [usize; 2]) -> Result<toml::Table, Error> {
    let config = LabelConfig {
        image_size: Some(size),
        ..config.clone()
    };
    let mut table = toml::Table::try_from(config).map_err(|error| Error::Config {
        key: "settings".into(),
        expected: "values that TOML can hold".into(),
        found: error.to_string(),
    })?;
    table.remove("batch");
    Ok(table)
}

/// The name of a dense variant, as on the command line and in the store.
pub fn dense_name(dense: Dense) -> &'static str {
    match dense {
        Dense::Clear => "clear",
        Dense::Mask => "mask",
        Dense::SelfSelf => "self",
    }
}

/// Labels by k-means on the last feature map of any network: SOLIDER's parts, no attributes.
#[derive(Clone)]
pub struct KMeansLabeler<F> {
    features: F,
    size: [usize; 2],
    config: LabelConfig,
    seed: u64,
    settings: toml::Table,
    meta: StoreMeta,
    device: Device,
}

impl<F> KMeansLabeler<F>
where
    F: Fn(Tensor<4>) -> Tensor<4> + Clone + Send + Sync,
{
    /// `features` gives the last feature map [batch, channels, rows, columns] of images [batch, 3,
    /// height, width], which come at `size` = height and width with ImageNet's mean and deviation.
    /// `model` and `sha256` name its weights. Of `config`, the grid, the confidence, the precision
    /// and the batch count; `seed` is that of k-means.
    ///
    /// # Errors
    ///
    /// A value of `config` makes no sense.
    pub fn new(
        features: F,
        size: [usize; 2],
        model: &str,
        sha256: &str,
        config: &LabelConfig,
        seed: u64,
        device: &Device,
    ) -> Result<Self, Error> {
        let vocabulary = Vocabulary::kmeans();
        config.check(&vocabulary)?;
        assert_eq!(
            vocabulary.parts.len(),
            kmeans::CLASSES,
            "the k-means vocabulary has as many parts as clusters"
        );
        // The scales, the dense variant and the prior have no part in k-means.
        let mut table = toml::Table::new();
        for (key, value) in settings(config, size)? {
            if ["image_size", "grid", "confidence"].contains(&key.as_str()) {
                table.insert(key, value);
            }
        }
        table.insert("seed".into(), toml::Value::String(seed.to_string()));
        Ok(Self {
            features,
            size,
            seed,
            settings: table,
            meta: StoreMeta {
                vocabulary,
                model: model.into(),
                model_sha256: sha256.into(),
                rows: config.grid[0],
                columns: config.grid[1],
                method: "kmeans".into(),
                dense: String::new(),
                confidence: config.confidence,
            },
            config: config.clone(),
            device: device.clone(),
        })
    }
}

impl<F> Labeler for KMeansLabeler<F>
where
    F: Fn(Tensor<4>) -> Tensor<4> + Clone + Send + Sync,
{
    fn meta(&self) -> &StoreMeta {
        &self.meta
    }

    fn settings(&self) -> toml::Table {
        self.settings.clone()
    }

    fn batch(&self) -> usize {
        self.config.batch
    }

    fn shares(&self, threads: usize) -> Shares {
        Shares::of(&self.device, threads)
    }

    fn prepare(&self, image: &Rgb) -> Vec<f32> {
        let [height, width] = self.size;
        let image = image::resize(image, height, width, Filter::Bicubic);
        image::normalize(&image, image::IMAGENET_MEAN, image::IMAGENET_STD)
    }

    fn label(&self, keys: &[&str], pixels: Vec<f32>) -> Result<Vec<LabelValues>, Error> {
        let shape = [keys.len(), 3, self.size[0], self.size[1]];
        let images = Tensor::from_data(TensorData::new(pixels, shape), &self.device);
        let maps = (self.config.precision).within(|| (self.features)(images));
        let [_, channels, rows, columns] = maps.dims();
        let maps = read(maps, "feature map")?;
        Ok(maps
            .chunks_exact(channels * rows * columns)
            .zip(keys)
            .map(|(map, key)| {
                // Drawn by the key alone, so that a label does not depend on the batch it came in.
                let mut rng = rng_for(self.seed, 0, key);
                let (from, to) = ([rows, columns], self.config.grid);
                let confidence = self.config.confidence;
                let map = kmeans::part_map(map, channels, from, to, confidence, &mut rng);
                label_values(map, Vec::new())
            })
            .collect())
    }
}
