//! `clasp export hub`: a folder that timm and transformers load, with a model card.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use burn::tensor::Device;
use clasp_metrics::Metric;
use clasp_model::prompt::{IDENTITY, PromptWeights};
use clasp_run::folder::RECIPE_FILE;
use clasp_weights::export::{CardMetrics, HubLibrary, ModelCard, export_hub, folded};
use clasp_weights::finetuned;
use clasp_weights::import::{ImportOptions, import};
use serde::Deserialize;

use super::super::{Input, claim_outputs, print_result};
use super::messages::{no_prompts, written_text};
use crate::Outcome;
use crate::args::{ExportHubArguments, GlobalOptions, HubFolder};

/// Runs the command.
pub fn run(common: &GlobalOptions, arguments: &ExportHubArguments) -> Result<Outcome> {
    let written = arguments.out.join("model.safetensors");
    ensure!(
        !arguments.out.join(RECIPE_FILE).exists(),
        "--out {}: expected a folder for the export, found that of a run\nhint: choose another folder",
        arguments.out.display()
    );
    claim_outputs(&[("--out", &written)], &[Input::Model(&arguments.model)])?;
    let options = ImportOptions {
        size: arguments.size,
        ..ImportOptions::default()
    };
    let imported = import(&arguments.model, &options, &Device::flex())?;
    let (mut backbone, mut meta) = (imported.backbone, imported.meta);
    if let Some([height, width]) = arguments.size {
        (meta.height, meta.width) = (height, width);
    }
    let tuned = finetuned::read_meta(&arguments.model)?;
    let mut prompt = None;
    let weights = match (&arguments.prompt, &tuned) {
        (Some(asked), _) => asked.parse()?,
        (None, Some(tuned)) => tuned.prompt_weights,
        (None, None) => PromptWeights::single(IDENTITY),
    };
    if let Some(folded) = folded(&backbone, &meta, weights) {
        (backbone, meta) = folded;
        prompt = Some(weights.to_string());
    } else if let Some(asked) = &arguments.prompt {
        return Err(no_prompts(asked, &arguments.model));
    }
    let mut metrics = Vec::new();
    for file in &arguments.metrics {
        metrics.extend(of_file(file)?);
    }
    if let Some(tuned) = tuned
        && let Some(metric) = tuned.chosen_by
    {
        metrics.push(CardMetrics {
            title: format!("Fine-tuned for {}, with its head", tuned.task),
            metrics: vec![metric],
            protocol: Some(
                "the metric by which the step was selected while training, on the data of the run. This folder holds the \
                 backbone without the head"
                    .to_owned(),
            ),
        });
    }
    let card = ModelCard {
        name: name_of(&arguments.out)?,
        prompt,
        metrics,
    };
    let ExportHubArguments { library, .. } = arguments;
    let library = match library {
        HubFolder::Timm => HubLibrary::Timm,
        HubFolder::Transformers => HubLibrary::Transformers,
    };
    let exported = export_hub(
        &arguments.out,
        &backbone,
        &meta,
        &card,
        library,
        arguments.drop_adapter,
    )?;
    let folder = arguments.out.display().to_string();
    let python = exported.python.replace("DIR", &folder);
    let first = format!("{} tensors, written to {folder}", exported.tensors);
    let text = written_text(first, &python, &exported.warnings);
    let value = serde_json::json!({
        "out": arguments.out,
        "files": exported.files,
        "tensors": exported.tensors,
        "dropped": exported.dropped,
        "python": python,
        "warnings": exported.warnings,
    });
    print_result(common.json, &value, &text)?;
    Ok(Outcome::Done)
}

/// The name of a model: that of its folder.
fn name_of(folder: &Path) -> Result<String> {
    let name = folder
        .file_name()
        .map(|name| name.to_string_lossy().into_owned());
    name.with_context(|| format!("-o {}: expected the name of a folder", folder.display()))
}

/// What `clasp eval … --json` prints: one evaluation or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum Printed {
    One(PrintedEvaluation),
    Several(Vec<PrintedEvaluation>),
}

/// What a card takes of it.
#[derive(Deserialize)]
struct PrintedEvaluation {
    task: String,
    metrics: Vec<Metric>,
    protocol: String,
    /// The split of a fine-tuned model.
    data: Option<String>,
    /// The prompt of a frozen backbone.
    mix: Option<String>,
}

fn of_file(file: &Path) -> Result<Vec<CardMetrics>> {
    let text = fs_err::read_to_string(file)?;
    let expected = || {
        format!(
            "{}: expected what `clasp eval TASK --json` prints: `task`, `metrics` and `protocol`",
            file.display()
        )
    };
    let printed: Printed = serde_json::from_str(&text).with_context(expected)?;
    let all = match printed {
        Printed::One(one) => vec![one],
        Printed::Several(several) => several,
    };
    ensure!(!all.is_empty(), "{}; found nothing", expected());
    Ok({ all.into_iter() }
        .map(|one| {
            let on = one.data.map(|data| format!(", {data}")).unwrap_or_default();
            let frozen = one
                .mix
                .map(|mix| format!(", frozen backbone, prompt {mix}"));
            CardMetrics {
                title: format!("{}{on}{}", one.task, frozen.unwrap_or_default()),
                metrics: one.metrics,
                protocol: Some(one.protocol),
            }
        })
        .collect())
}
