//! The backbone that training starts from: loaded from a file, or with fresh weights.

use std::collections::BTreeSet;

use burn::tensor::Device;
use clasp_data::image::{Filter, IMAGENET_MEAN, IMAGENET_STD};
use clasp_data::rng_for;
use clasp_model::ModelError;
use clasp_model::backbone::{Backbone, BackboneConfig};
use clasp_model::parameters::{ParameterGroup, ParameterGroups, ParameterKind};
use clasp_weights::backbone::{BackboneMeta, backbone_state};
use clasp_weights::import::{self, import};
use clasp_weights::state::load_state_dict;

use super::recipe::{FinetuneModelConfig, FinetunePlan, InputNormalization, Trainable};
use crate::TaskError;
use crate::features::Preprocess;
use crate::task::check::setting;

/// A backbone to start from.
pub(super) struct InitialBackbone {
    /// On the autodiff side of the device.
    pub backbone: Backbone,
    /// Metadata for the model's file.
    pub meta: BackboneMeta,
    /// How images become inputs.
    pub preprocess: Preprocess,
    /// Matched, missing and unexpected keys of `model.init`.
    pub loaded: Option<import::ImportReport>,
}

/// Checks that each entry of `model.freeze` is the prefix of the name of one of the backbone's
/// parameters.
///
/// # Errors
/// One does not.
pub(super) fn check_frozen(
    freeze: &[String],
    parameters: &ParameterGroups,
) -> Result<(), TaskError> {
    let names = || parameters.iter().map(|group| group.name.as_str());
    let known = |start: &&String| names().any(|name| name.starts_with(start.as_str()));
    match freeze.iter().find(|start| !known(start)) {
        Some(unknown) => {
            let first: BTreeSet<&str> = { names() }
                .filter_map(|name| name.split('.').next())
                .collect();
            let first: Vec<&str> = first.into_iter().collect();
            let expected = format!("a prefix of parameter names, such as {}", first.join(", "));
            Err(setting("model.freeze", &expected, unknown))
        }
        None => Ok(()),
    }
}

/// Checks that the backbone of these parameters has the prompts or the adapter that the recipe
/// trains.
///
/// # Errors
/// It has no prompts to learn, or no adapter.
pub(super) fn check_adapter(
    model: &FinetuneModelConfig,
    parameters: &ParameterGroups,
) -> Result<(), TaskError> {
    let prompt = |group: &ParameterGroup| group.kind == ParameterKind::Prompt;
    if model.prompt == "learn" && !parameters.iter().any(prompt) {
        let expected = "auto, a prompt or weights: this backbone has no prompts";
        return Err(setting("model.prompt", expected, &model.prompt));
    }
    if model.trainable == Trainable::Adapter && !parameters.iter().any(|group| group.adapter) {
        let expected = "full or head: this backbone has no adapter";
        return Err(setting("model.trainable", expected, "adapter"));
    }
    Ok(())
}

/// The backbone to start from, on the autodiff side of `device`, the metadata of its file, and the
/// preprocessing; and what was loaded from `model.init`, if there is one.
///
/// # Errors
/// `model.init` cannot be read, or its backbone does not have the configured strides.
pub(super) fn backbone<C>(
    plan: &FinetunePlan<C>,
    device: &Device,
) -> Result<InitialBackbone, TaskError> {
    let model = &plan.recipe.model;
    let [height, width] = model.size;
    let device = device.clone().inner();
    let mut rng = rng_for(plan.recipe.seed, 0, "backbone");
    let mut loaded = None;
    let (backbone, mut meta) = if model.init.as_os_str().is_empty() {
        let config = BackboneConfig {
            drop_path: model.drop_path,
            ..BackboneConfig::named(&model.backbone)?
        };
        let config = strided(config.for_images(model.size), &model.strides)?;
        let backbone = config.init(&mut rng, &device.autodiff());
        (backbone, fresh_meta(config))
    } else {
        let options = import::ImportOptions {
            size: Some(model.size),
            ..import::ImportOptions::default()
        };
        let imported = import(&model.init, &options, &device)?;
        let mut meta = imported.meta;
        meta.config.drop_path = model.drop_path;
        meta.config = strided(meta.config.for_images(model.size), &model.strides)?;
        let fresh = meta.config.init(&mut rng, &device.autodiff());
        let (backbone, report) = load_state_dict(fresh, &backbone_state(&imported.backbone));
        if !report.is_complete() {
            return Err(TaskError::Mismatch {
                file: model.init.display().to_string(),
                expected: "the tensors of its backbone".to_owned(),
                found: report.to_string(),
            });
        }
        loaded = Some(imported.report);
        (backbone, meta)
    };
    (meta.height, meta.width) = (height, width);
    match model.normalization {
        InputNormalization::Backbone => {}
        InputNormalization::Half => (meta.mean, meta.std) = ([0.5; 3], [0.5; 3]),
        InputNormalization::Imagenet => (meta.mean, meta.std) = (IMAGENET_MEAN, IMAGENET_STD),
    }
    let preprocess = Preprocess::of(&meta);
    Ok(InitialBackbone {
        backbone,
        meta,
        preprocess,
        loaded,
    })
}

/// The same backbone with the strides of the recipe, if it has any.
fn strided(config: BackboneConfig, strides: &[usize]) -> Result<BackboneConfig, TaskError> {
    if strides.is_empty() {
        return Ok(config);
    }
    let name = config.name;
    config.with_strides(strides).map_err(|error| {
        let expected = match error {
            ModelError::Setting { expected, .. } => format!(
                "[] for the default strides of {} (--set 'model.strides=[]'), or {expected}",
                name
            ),
            other => other.to_string(),
        };
        setting("model.strides", &expected, format!("{strides:?}"))
    })
}

fn fresh_meta(config: BackboneConfig) -> BackboneMeta {
    BackboneMeta {
        stage: "init".to_owned(),
        clasp: env!("CARGO_PKG_VERSION").to_owned(),
        config,
        height: 0,
        width: 0,
        mean: IMAGENET_MEAN,
        std: IMAGENET_STD,
        filter: Filter::Bicubic,
        method: "none".to_owned(),
        heads: Vec::new(),
        prompts: Vec::new(),
        step: 0,
        vocabulary: String::new(),
        recipe: String::new(),
        licenses: vec!["program: MIT OR Apache-2.0".to_owned()],
        origin: String::new(),
    }
}
