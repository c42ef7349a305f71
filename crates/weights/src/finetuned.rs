//! The file of a fine-tuned model: a backbone and the head of a task.
//!
//! A safetensors file whose tensors are `backbone.…` and `head.…`, in 32 bits. Its metadata hold
//! `format` = `clasp-task/2` and `model`, a JSON object with the fields of [`FinetunedMeta`].

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use clasp_metrics::Metric;
use clasp_model::backbone::Backbone;
use clasp_model::layers::Rng;
use clasp_model::prompt::PromptWeights;
use rand_chacha::rand_core::SeedableRng;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backbone::{BackboneMeta, backbone_state, load_backbone_state, sha256};
use crate::checkpoint::{self, Metadata};
use crate::error::WeightsError;
use crate::state::{StateDict, extend_prefixed, held_values, with_prefix};

/// Value of `format` in the metadata.
pub const FORMAT: &str = "clasp-task/2";

/// Metadata of a fine-tuned model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FinetunedMeta {
    /// Name of the task: `reid`, `attributes`, `parsing`, `pose`, `detection` or `search`.
    pub task: String,
    /// What the task needs to be rebuilt, as it wrote it: configuration, names of classes or
    /// joints.
    pub task_state: Value,
    /// The backbone, the preprocessing, where it comes from.
    pub backbone: BackboneMeta,
    /// Prompt weights of the backbone.
    pub prompt_weights: PromptWeights,
    /// The metric by which this step was selected; none for the last step.
    pub chosen_by: Option<Metric>,
}

/// Writes a model atomically: complete, or not at all.
///
/// # Errors
/// The file cannot be written, or the backbone's metadata are out of range.
pub fn save(
    path: &Path,
    backbone: &Backbone,
    head: &StateDict,
    meta: &FinetunedMeta,
) -> Result<(), WeightsError> {
    meta.backbone
        .check()
        .map_err(|problem| WeightsError::format(path, problem))?;
    let json = serde_json::to_string(meta).map_err(|error| WeightsError::format(path, error))?;
    let metadata = Metadata::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("model".to_owned(), json),
    ]);
    let mut state = StateDict::new();
    extend_prefixed(&mut state, "backbone.", backbone_state(backbone));
    extend_prefixed(&mut state, "head.", head.clone());
    checkpoint::write(path, &state, &metadata)
}

/// Whether a file, or `model.safetensors` of a run's folder, is a fine-tuned model, and what it
/// says.
///
/// # Errors
/// There is no such file, or what it says cannot be read.
pub fn read_meta(path: &Path) -> Result<Option<FinetunedMeta>, WeightsError> {
    // Published checkpoints of PyTorch are no safetensors, and no models of ours.
    let ours = |file: &PathBuf| {
        file.extension()
            .is_some_and(|ending| ending == "safetensors")
    };
    let Some(file) = model_file(path).filter(ours) else {
        return Ok(None);
    };
    parse(&file, &checkpoint::read_metadata(&file)?)
}

/// The metric that the model of a file was selected by, in words, or the first line of why the file
/// cannot be read; none for a file of another kind.
pub fn chosen_by(file: &Path) -> Option<String> {
    match read_meta(file) {
        Ok(meta) => meta?.chosen_by.map(|metric| metric.to_string()),
        Err(error) => error.to_string().lines().next().map(str::to_owned),
    }
}

/// Reads the backbone and the head's tensors of a file, or of `model.safetensors` in a run's
/// folder.
///
/// # Errors
/// There is no such file, it is another kind of file, or its backbone is not whole.
pub fn load(
    path: &Path,
    device: &Device,
) -> Result<(Backbone, StateDict, FinetunedMeta), WeightsError> {
    let file = existing(path)?;
    let (state, metadata) = checkpoint::read(&file)?;
    let meta = parse(&file, &metadata)?.ok_or_else(|| {
        let found = metadata.get("format").map_or("none", String::as_str);
        let problem = format!(
            "not a fine-tuned model: expected `format` {FORMAT}, found {found}\nhint: make one with `clasp finetune TASK`"
        );
        WeightsError::format(&file, problem)
    })?;
    // A configuration that claims more than the file holds would fill the memory first.
    let wrong = |problem: String| WeightsError::format(&file, problem);
    let needed = (meta.backbone.config)
        .parameters()
        .map_err(|error| wrong(error.to_string()))?;
    let held = held_values(&state);
    if needed > held {
        return Err(wrong(format!(
            "a backbone of {needed} values, but the file holds {held}"
        )));
    }
    // The weights are replaced at once; the generator only fills the memory.
    let fresh = meta
        .backbone
        .config
        .init(&mut Rng::seed_from_u64(0), device);
    let (backbone, report) = load_backbone_state(fresh, &with_prefix(&state, "backbone."));
    if !report.is_complete() {
        return Err(WeightsError::Keys {
            path: file,
            report: report.to_string(),
        });
    }
    Ok((backbone, with_prefix(&state, "head."), meta))
}

/// What metadata say of a fine-tuned model; none for those of other files.
pub(crate) fn parse(
    path: &Path,
    metadata: &Metadata,
) -> Result<Option<FinetunedMeta>, WeightsError> {
    match metadata.get("format").map(String::as_str) {
        Some(FORMAT) => {}
        Some(other) if other.starts_with("clasp-task/") => {
            let problem = format!(
                "a fine-tuned model of another version of clasp: expected `format` {FORMAT}, found {other}\n\
                 hint: fine-tune it again with this version"
            );
            return Err(WeightsError::format(path, problem));
        }
        _ => return Ok(None),
    }
    let json = metadata.get("model").map_or("", String::as_str);
    let meta: FinetunedMeta = serde_json::from_str(json)
        .map_err(|error| WeightsError::format(path, format!("metadata `model`: {error}")))?;
    meta.backbone
        .check()
        .map_err(|problem| WeightsError::format(path, problem))?;
    Ok(Some(meta))
}

/// SHA-256 of the file of a model, or of that of a run's folder, in hexadecimal.
///
/// # Errors
/// There is no such file, or it cannot be read.
pub fn digest(path: &Path) -> Result<String, WeightsError> {
    sha256(&existing(path)?)
}

/// The file of a model, or that of a run's folder.
///
/// # Errors
/// There is no such file.
pub fn existing(path: &Path) -> Result<PathBuf, WeightsError> {
    let expected = "a fine-tuned model or the folder of its run";
    let hint = match path.join("backbone.safetensors").is_file() {
        true => {
            "this is the run of a backbone: fine-tune it first, or evaluate it as it is with `clasp eval TASK --frozen`"
        }
        false => "`clasp finetune` writes model.safetensors into its run folder when it ends",
    };
    model_file(path).ok_or_else(|| WeightsError::not_at(path, expected, hint))
}

fn model_file(path: &Path) -> Option<PathBuf> {
    let file = if path.is_dir() {
        path.join("model.safetensors")
    } else {
        path.to_owned()
    };
    file.is_file().then_some(file)
}
