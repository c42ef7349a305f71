//! `clasp inspect FILE`: the content of a file of clasp, a published checkpoint, an ONNX file or a
//! CLIP folder.

use std::path::Path;

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use clasp_data::labels::Store;
use clasp_data::missing::require;
use clasp_model::clip::Clip;
use clasp_weights::backbone::{BackboneMeta, read_backbone_meta};
use clasp_weights::clip::ClipInfo;
use clasp_weights::finetuned::{self, FinetunedMeta};
use clasp_weights::import;
use clasp_weights::onnx::Contents;
use serde::Serialize;
use serde_json::json;

use super::import::describe;
use super::print_text;
use crate::Outcome;
use crate::args::{GlobalOptions, InspectArguments};
use crate::mini;

/// The content of a file or folder, as JSON and as text.
struct FileDescription {
    json: String,
    text: String,
}

impl FileDescription {
    fn new(value: &impl Serialize, text: String) -> Result<Self> {
        let json = serde_json::to_string_pretty(value)?;
        Ok(Self { json, text })
    }
}

/// Runs the command.
pub fn run(common: &GlobalOptions, arguments: &InspectArguments) -> Result<Outcome> {
    let shown = look(&arguments.file)?;
    print_text(if common.json {
        &shown.json
    } else {
        &shown.text
    })?;
    Ok(Outcome::Done)
}

/// Tries the kinds of content in turn, first those that are recognized quickly.
fn look(path: &Path) -> Result<FileDescription> {
    if !mini::is_mini(&path.to_string_lossy()) {
        let expected = "a model, a checkpoint, an ONNX file, a CLIP or labels";
        require(path, expected)?;
    }
    if path.extension().is_some_and(|ending| ending == "onnx") {
        return onnx(path);
    }
    if let Ok(Some(meta)) = finetuned::read_meta(path) {
        return fine_tuned(path, &meta);
    }
    let as_backbone = match read_backbone_meta(path) {
        Ok(meta) => return backbone(path, &meta),
        Err(error) => error,
    };
    if let Ok(store) = Store::open(path) {
        return labels(path, &store);
    }
    if path.is_file() {
        return published(path).with_context(|| {
            format!(
                "{}: expected a backbone, a fine-tuned model, a published checkpoint or an ONNX file, found another file",
                path.display()
            )
        });
    }
    match mini::load(&path.to_string_lossy(), &Device::flex()) {
        Ok((model, info)) => clip(&model, &info),
        // A folder of the hub, or of a checkpoint in several files.
        Err(as_clip) => published(path).or_else(|as_checkpoint| {
            bail!(
                "{}: expected a backbone, labels or a CLIP\n  as a backbone: {as_backbone}\n  as a CLIP: {as_clip}\n  as a \
                 checkpoint: {as_checkpoint}",
                path.display()
            )
        }),
    }
}

fn onnx(path: &Path) -> Result<FileDescription> {
    let contents = Contents::read(path)?;
    FileDescription::new(&contents, in_words(path, &contents))
}

fn fine_tuned(path: &Path, meta: &FinetunedMeta) -> Result<FileDescription> {
    let chosen = match &meta.chosen_by {
        Some(metric) => metric.to_string(),
        None => "the last step".to_owned(),
    };
    let same = &meta.task_state["same_person"];
    let same = same["cosine"].as_f64().map_or(String::new(), |cosine| {
        let data = same["data"].as_str().unwrap_or_default();
        format!("  same person from cosine {cosine:.4}, calibrated on {data}\n")
    });
    let text = format!(
        "fine-tuned model {}\n  task        {}\n  prompt      {}\n  chosen by   {chosen}\n{same}{}",
        path.display(),
        meta.task,
        meta.prompt_weights,
        describe(&meta.backbone)?
    );
    FileDescription::new(meta, text)
}

fn backbone(path: &Path, meta: &BackboneMeta) -> Result<FileDescription> {
    let (stage, about) = (&meta.stage, describe(meta)?);
    let text = format!("backbone {} ({stage})\n{about}", path.display());
    FileDescription::new(meta, text)
}

fn labels(path: &Path, store: &Store) -> Result<FileDescription> {
    let meta = &store.meta;
    let parts: Vec<&str> = { meta.vocabulary.parts.iter() }
        .map(|part| part.name.as_str())
        .collect();
    let attributes: Vec<&str> = { meta.vocabulary.attributes.iter() }
        .map(|attribute| attribute.name.as_str())
        .collect();
    let lines = [
        format!("labels {}", path.display()),
        format!("  images      {}", store.len()),
        format!("  method      {} {}", meta.method, meta.dense),
        format!("  model       {} ({})", meta.model, meta.model_sha256),
        format!(
            "  grid        {} rows x {} columns",
            meta.rows, meta.columns
        ),
        format!("  parts       {}", parts.join(", ")),
        format!("  attributes  {}", attributes.join(", ")),
        match store.edited.len() {
            0 => "  no file was changed since labeling".to_owned(),
            count => format!("  {count} files were changed since, or written by other programs"),
        },
    ];
    let value = json!({
        "labels": path, "images": store.len(), "method": meta.method, "model": meta.model,
    });
    FileDescription::new(&value, lines.join("\n"))
}

/// A published checkpoint with its matched keys.
fn published(path: &Path) -> Result<FileDescription> {
    let lenient = import::ImportOptions {
        lenient: true,
        ..import::ImportOptions::default()
    };
    let found = import::import(path, &lenient, &Device::flex())?;
    let (report, meta) = (found.report, found.meta);
    let text = format!(
        "checkpoint {}\n{report}\nas a backbone:\n{}",
        path.display(),
        describe(&meta)?
    );
    let value = json!({ "report": report, "backbone": meta });
    FileDescription::new(&value, text)
}

fn clip(model: &Clip, info: &ClipInfo) -> Result<FileDescription> {
    let config = model.config();
    let sizes = config.to_string().replace('\n', "\n  ");
    let text = format!(
        "CLIP {}\n  sha256      {}\n  {sizes}",
        info.name, info.sha256
    );
    let value = json!({ "clip": info.name, "sha256": info.sha256, "config": config });
    FileDescription::new(&value, text)
}

fn in_words(path: &Path, contents: &Contents) -> String {
    let opset = { contents.opset }.map_or("none".to_owned(), |version| version.to_string());
    let mut lines = vec![
        format!("ONNX {}", path.display()),
        format!("  written by  {}", contents.written_by),
        format!("  opset       {opset}, {} operations", contents.operations),
    ];
    for (what, ports) in [("input", &contents.inputs), ("output", &contents.outputs)] {
        lines.extend(ports.iter().map(|port| format!("  {what:<10}  {port}")));
    }
    for (key, value) in &contents.metadata {
        lines.push(format!(
            "  {key:<10}  {}",
            value.replace('\n', "\n              ")
        ));
    }
    lines.join("\n")
}
