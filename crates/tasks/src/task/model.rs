//! A fine-tuned model: features and outputs for batches of images, on all threads.

use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use clasp_metrics::Metric;
use clasp_model::backbone::{Backbone, Features};
use clasp_model::layers::Rng;
use clasp_model::prompt::PromptWeights;
use clasp_model::{Precision, Shares};
use clasp_weights::backbone::BackboneMeta;
use clasp_weights::finetuned::{self, FinetunedMeta};
use clasp_weights::state::{load_state_dict, state_dict};
use rand_chacha::rand_core::SeedableRng;

use super::check::setting;
use super::inference::Inference;
use super::objective::{FeatureLayout, Objective};
use crate::TaskError;
use crate::features::{Preprocess, on_replicas};

/// A backbone, a head and what is stored with them, without gradients.
#[derive(Debug, Clone)]
pub struct FinetunedModel<T: Objective> {
    /// The backbone.
    pub backbone: Backbone,
    /// The head.
    pub head: T::Head,
    /// The task.
    pub task: T,
    /// The prompt weights.
    pub prompt: PromptWeights,
    /// Precision of the backbone; not in the file.
    pub precision: Precision,
    /// How an image becomes an input.
    pub preprocess: Preprocess,
    /// Where it computes.
    pub device: Device,
    /// The metadata of the backbone's file.
    pub meta: BackboneMeta,
}

impl<T: Objective> FinetunedModel<T> {
    /// Reads the file of a model, or that of a run's folder.
    ///
    /// # Errors
    /// There is no such file, it is of another task, its values are out of range, or its lists or
    /// tensors do not fit.
    pub fn load(path: &Path, device: &Device) -> Result<Self, TaskError> {
        let (backbone, state, meta) = finetuned::load(path, device)?;
        let differs = |expected: String, found: String| TaskError::Mismatch {
            file: path.display().to_string(),
            expected,
            found,
        };
        if meta.task != T::NAME {
            return Err(differs(
                format!("a model of task {}", T::NAME),
                format!("one of task {}", meta.task),
            ));
        }
        let task: T = serde_json::from_value(meta.task_state).map_err(|error| {
            differs(
                "the configuration of the task".to_owned(),
                error.to_string(),
            )
        })?;
        let preprocess = Preprocess::of(&meta.backbone);
        let size = [preprocess.height, preprocess.width];
        // A file is untrusted input: its values decide what is allocated.
        T::check(task.config())
            .and_then(|()| T::check_size(size, &backbone.strides()))
            .map_err(|error| differs("a configuration in range".to_owned(), error.to_string()))?;
        { task.check_lists() }.map_err(|wrong| differs(wrong.expected, wrong.found))?;
        let layout = feature_layout(&backbone, &meta.prompt_weights, size, device);
        let head = task.head(&layout, &mut Rng::seed_from_u64(0), device)?;
        let (head, report) = load_state_dict(head, &state);
        if !report.is_complete() {
            return Err(differs(
                "the tensors of its head".to_owned(),
                report.to_string(),
            ));
        }
        Ok(Self {
            backbone,
            head,
            task,
            prompt: meta.prompt_weights,
            precision: Precision::F32,
            preprocess,
            device: device.clone(),
            meta: meta.backbone,
        })
    }

    /// Writes the file of a model.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn save(&self, path: &Path, chosen_by: Option<Metric>) -> Result<(), TaskError> {
        let meta = FinetunedMeta {
            task: T::NAME.to_owned(),
            task_state: serde_json::to_value(&self.task)
                .map_err(|error| TaskError::Device(error.to_string()))?,
            backbone: self.meta.clone(),
            prompt_weights: self.prompt,
            chosen_by,
        };
        Ok(finetuned::save(
            path,
            &self.backbone,
            &state_dict(&self.head),
            &meta,
        )?)
    }

    /// Checks a configuration and a size that were changed after loading.
    ///
    /// # Errors
    /// A value is out of range, or belongs to another head.
    pub fn check(&self) -> Result<(), TaskError> {
        T::check(self.task.config())?;
        let size = [self.preprocess.height, self.preprocess.width];
        T::check_size(size, &self.backbone.strides())?;
        let layout = feature_layout(&self.backbone, &self.prompt, size, &self.device);
        let head = self
            .task
            .head(&layout, &mut Rng::seed_from_u64(0), &self.device)?;
        let (_, report) = load_state_dict(head, &state_dict(&self.head));
        if report.is_complete() {
            return Ok(());
        }
        let expected = "keys that do not change the trained head";
        Err(setting("task", expected, "values that need another head"))
    }

    /// Features of normalized inputs `[batch, 3, height, width]`, row-major.
    pub fn features(&self, pixels: Vec<f32>, [batch, height, width]: [usize; 3]) -> Features {
        let data = TensorData::new(pixels, [batch, 3, height, width]);
        let images = Tensor::from_data(data, &self.device);
        self.features_of(images)
    }

    /// Features of normalized inputs `[batch, 3, height, width]`.
    pub fn features_of(&self, images: Tensor<4>) -> Features {
        let prompt = self.prompt.tensor(&self.device);
        (self.precision).within(|| self.backbone.forward(images, prompt, None))
    }

    /// Runs `work` on batches of `0..count`, on replicas of the model; results are in order.
    ///
    /// # Errors
    /// Those of `work`, and a stop.
    pub fn batches<R: Send>(
        &self,
        stage: &'static str,
        count: usize,
        inference: &Inference<'_>,
        work: impl Fn(&Self, std::ops::Range<usize>) -> Result<Vec<R>, TaskError> + Sync,
    ) -> Result<Vec<R>, TaskError> {
        let batch = inference.batch.max(1);
        let shares = Shares::of(&self.device, inference.threads);
        on_replicas(
            self,
            stage,
            [count, batch],
            shares,
            work,
            inference.progress,
        )
    }
}

/// The features that a backbone gives for inputs of that height and width.
pub fn feature_layout(
    backbone: &Backbone,
    prompt: &PromptWeights,
    [height, width]: [usize; 2],
    device: &Device,
) -> FeatureLayout {
    // Running the backbone once gives the channels.
    let device = device.clone().inner();
    let image = Tensor::zeros([1, 3, height.min(128), width.min(128)], &device);
    let features = backbone
        .valid()
        .forward(image, prompt.tensor(&device), None);
    let rows = |map: &Tensor<4>| height.min(128).div_ceil(map.dims()[2]);
    let mut exact = backbone.strides();
    // The maps of a ViT all have the same stride.
    let last = exact.last().copied().unwrap_or(1);
    exact.resize(features.pyramid.len(), last);
    debug_assert!(
        features
            .pyramid
            .iter()
            .zip(&exact)
            .all(|(map, stride)| rows(map) <= *stride)
    );
    FeatureLayout {
        backbone: backbone.clone(),
        prompt: *prompt,
        pooled: features.pooled.dims()[1],
        channels: features.pyramid.iter().map(|map| map.dims()[1]).collect(),
        strides: exact,
    }
}

/// The values of a tensor.
///
/// # Errors
/// [`TaskError::Device`].
pub fn values<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, TaskError> {
    tensor
        .try_into_vec_as::<f32>()
        .map_err(|error| TaskError::Device(error.to_string()))
}

/// Checks that rows of numbers are finite; `first` is the position of the first row among all
/// images.
///
/// # Errors
/// [`TaskError::NotFinite`], which names the image.
pub fn check_finite(values: &[f32], row: usize, first: usize) -> Result<(), TaskError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(at) => Err(TaskError::NotFinite {
            image: format!("image {}", first + at / row.max(1)),
            found: values[at],
        }),
    }
}
