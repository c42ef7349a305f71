//! The network whose features images are searched by.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::Device;
use clasp_model::prompt::PromptWeights;
use clasp_model::{Precision, Shares};
use clasp_weights::finetuned::read_meta;
use clasp_weights::import::load_backbone;
use clasp_weights::state::state_dict;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::embed::FeatureOrigin;
use crate::features::{Extractor, FeatureBatch, InputBatch, Preprocess};
use crate::reid::{ReidConfig, ReidTask, SamePersonThreshold};
use crate::task::{FinetunedModel, Task as _};
use crate::{BackboneExtractor, TaskError};

/// A fine-tuned re-identification model, which compares its features, or a backbone under a prompt.
#[derive(Debug, Clone)]
pub enum Searcher {
    /// The model.
    Reid(Arc<FinetunedModel<ReidTask>>),
    /// The backbone, and how an image becomes its input.
    Backbone(Arc<BackboneExtractor>, Preprocess),
}

impl Searcher {
    /// Reads the file of a re-identification model or of a backbone, or that of a run's folder.
    /// `size`: [height, width] of the input, else that of the file. A backbone gets the prompt of
    /// re-identification.
    ///
    /// # Errors
    /// There is no such file, it is damaged, or of another task.
    pub fn load(
        path: &Path,
        size: Option<[usize; 2]>,
        precision: Precision,
        device: &Device,
    ) -> Result<Self, TaskError> {
        match read_meta(path)? {
            None => Self::of_backbone(path, size, ReidTask::default_prompt(), precision, device),
            Some(meta) if meta.task == ReidTask::NAME => {
                let mut model = FinetunedModel::<ReidTask>::load(path, device)?;
                model.precision = precision;
                model.preprocess.resize(size);
                Ok(Self::Reid(Arc::new(model)))
            }
            Some(meta) => Err(TaskError::Mismatch {
                file: path.display().to_string(),
                expected: "a model of task reid or a backbone".to_owned(),
                found: format!("one of task {}", meta.task),
            }),
        }
    }

    /// As [`Searcher::load`], of a backbone under a prompt; of a fine-tuned model, its backbone.
    ///
    /// # Errors
    /// There is no such file, or it is damaged.
    pub fn of_backbone(
        path: &Path,
        size: Option<[usize; 2]>,
        prompt: PromptWeights,
        precision: Precision,
        device: &Device,
    ) -> Result<Self, TaskError> {
        let (backbone, meta) = load_backbone(path, device)?;
        let mut preprocess = Preprocess::of(&meta);
        preprocess.resize(size);
        let extractor = BackboneExtractor::new(backbone, prompt, device.clone());
        let extractor = Arc::new(extractor.with_precision(precision));
        Ok(Self::Backbone(extractor, preprocess))
    }

    /// Whether its features depend on a prompt.
    pub fn has_prompts(&self) -> bool {
        let backbone = match self {
            Self::Reid(model) => &model.backbone,
            Self::Backbone(extractor, _) => extractor.backbone(),
        };
        backbone.has_prompts()
    }

    /// What its features come from.
    pub fn origin(&self) -> FeatureOrigin {
        let (backbone, prompt) = match self {
            Self::Reid(model) => (&model.backbone, model.prompt),
            Self::Backbone(extractor, _) => (extractor.backbone(), extractor.prompt()),
        };
        let mut weights = state_dict(backbone);
        let mut settings = json!(null);
        if let Self::Reid(model) = self {
            weights.extend(state_dict(&model.head));
            let ReidConfig {
                feature, flip_test, ..
            } = &model.task.config;
            settings = json!([feature, flip_test]);
        }
        let Preprocess {
            height,
            width,
            mean,
            std,
            filter,
        } = self.preprocess();
        let settings = json!([mean, std, format!("{filter:?}"), settings]);
        let mut digest = Sha256::new();
        digest.update(settings.to_string());
        for (name, tensor) in &weights {
            digest.update(name);
            digest.update([0]);
            for value in &*tensor.data {
                digest.update(value.to_le_bytes());
            }
        }
        let digest = digest.finalize();
        FeatureOrigin {
            model: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            prompt,
            size: [height, width],
        }
    }

    /// How an image becomes an input.
    pub fn preprocess(&self) -> Preprocess {
        match self {
            Self::Reid(model) => model.task.test_preprocess(&model.preprocess),
            Self::Backbone(_, preprocess) => preprocess.clone(),
        }
    }

    /// Whether its images have another size than those that the threshold of [`Searcher::same_person`] was measured on.
    pub fn is_resized(&self) -> bool {
        match self {
            Self::Reid(model) => {
                let (now, own) = (&model.preprocess, &model.meta);
                (now.height, now.width) != (own.height, own.width)
            }
            Self::Backbone(..) => false,
        }
    }

    /// From which cosine on two images show the same person, where that was calibrated.
    pub fn same_person(&self) -> Option<&SamePersonThreshold> {
        match self {
            Self::Reid(model) => model.task.same_person.as_ref(),
            Self::Backbone(..) => None,
        }
    }
}

impl Extractor for Searcher {
    fn shares(&self, threads: usize) -> Shares {
        match self {
            Self::Reid(model) => model.shares(threads),
            Self::Backbone(extractor, _) => extractor.shares(threads),
        }
    }

    fn extract(&self, images: InputBatch, stages: usize) -> Result<FeatureBatch, TaskError> {
        match self {
            Self::Reid(model) => model.extract(images, stages),
            Self::Backbone(extractor, _) => extractor.extract(images, stages),
        }
    }
}
