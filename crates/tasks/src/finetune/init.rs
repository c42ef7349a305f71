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
use super::schedule::is_trained;
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
/// trains, and that it trains some of them.
///
/// # Errors
/// It has no prompts to learn, or no adapter, or all of what is to be trained stays as it is.
pub(super) fn check_adapter(
    model: &FinetuneModelConfig,
    parameters: &ParameterGroups,
) -> Result<(), TaskError> {
    let learns = model.learns_prompt();
    let any = |is: &dyn Fn(&ParameterGroup) -> bool| parameters.iter().any(is);
    let prompt = |group: &ParameterGroup| group.kind == ParameterKind::Prompt;
    let trained = |group: &ParameterGroup| is_trained(model, group);
    if learns && !any(&prompt) {
        let expected = "auto, a prompt or weights: this backbone has no prompts";
        return Err(setting("model.prompt", expected, &model.prompt));
    }
    if learns && !any(&|group| prompt(group) && trained(group)) {
        let expected = "entries that leave prompts to learn (model.prompt)";
        return Err(setting("model.freeze", expected, model.freeze.join(", ")));
    }
    if model.trainable != Trainable::Adapter || any(&|group| group.adapter && trained(group)) {
        return Ok(());
    }
    let expected = if !any(&|group| group.adapter) {
        "full or head: this backbone has no adapter"
    } else if !learns && !any(&|group| group.adapter && !prompt(group)) {
        "full or head, or model.prompt = \"learn\" with it: the adapter of this backbone has prompts only, \
         and only that trains them"
    } else {
        "full or head: model.freeze freezes the whole adapter"
    };
    Err(setting("model.trainable", expected, "adapter"))
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

#[cfg(test)]
mod tests {
    use super::*;
    use clasp_model::backbone::{Adapter, Sizes};
    use clasp_model::moe::{MoeConfig, MoeKind};
    use clasp_model::swin::SwinSizes;

    /// Once `trainable = "adapter"` of a gated backbone trained the head alone, without a word.
    #[test]
    fn an_adapter_of_prompts_alone_is_trained_by_learning_them_only() {
        let check = |form: MoeKind, prompt: &str, freeze: &[&str]| {
            let config = BackboneConfig::of_sizes(Sizes::Swin(SwinSizes::pico()));
            let moe = MoeConfig {
                form,
                ..MoeConfig::default()
            };
            let parameters = { config.with_adapter(Adapter::Moe(moe)) }.parameter_groups();
            let model = FinetuneModelConfig {
                trainable: Trainable::Adapter,
                prompt: prompt.to_owned(),
                freeze: freeze.iter().map(|start| (*start).to_owned()).collect(),
                ..FinetuneModelConfig::default()
            };
            check_adapter(&model, &parameters.unwrap()).map_err(|error| error.to_string())
        };
        let error = check(MoeKind::Gated, "auto", &[]).unwrap_err();
        assert!(
            error.contains("`model.trainable`") && error.contains("model.prompt = \"learn\""),
            "{error}"
        );
        assert_eq!(check(MoeKind::Gated, "learn", &[]), Ok(()));
        assert_eq!(check(MoeKind::Merged, "part", &[]), Ok(()));
        // What is frozen is not trained either.
        let error = check(MoeKind::Merged, "part", &["layers"]).unwrap_err();
        assert!(error.contains("freezes the whole adapter"), "{error}");
        let error = check(MoeKind::Gated, "learn", &["layers"]).unwrap_err();
        assert!(error.contains("`model.freeze`"), "{error}");
    }
}
