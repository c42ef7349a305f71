//! `clasp inspect FILE`: what a file of clasp, a published checkpoint, an ONNX file or a CLIP folder holds.

use std::path::Path;

use anyhow::{Context, Result, bail};
use burn::tensor::Device;
use clasp_data::labels::Store;
use clasp_model::clip::Clip;
use clasp_weights::backbone::{BackboneMeta, read_backbone_meta};
use clasp_weights::clip::ClipInfo;
use clasp_weights::import;
use clasp_weights::onnx::Contents;
use clasp_weights::tuned::{self, TunedMeta};
use serde::Serialize;
use serde_json::json;

use super::import::describe;
use super::print_text;
use crate::Outcome;
use crate::args::{Common, Inspect};
use crate::mini;

/// What a file or folder holds, as JSON and in words.
struct Shown {
    json: String,
    text: String,
}

impl Shown {
    fn new(value: &impl Serialize, text: String) -> Result<Self> {
        let json = serde_json::to_string_pretty(value)?;
        Ok(Self { json, text })
    }
}

/// Runs the verb.
pub fn run(common: &Common, arguments: &Inspect) -> Result<Outcome> {
    let shown = look(&arguments.file)?;
    print_text(if common.json {
        &shown.json
    } else {
        &shown.text
    })?;
    Ok(Outcome::Done)
}

/// Tries one kind of content after the other, those first that are cheap to recognise.
fn look(path: &Path) -> Result<Shown> {
    if !path.exists() && !mini::is_mini(&path.to_string_lossy()) {
        bail!("{}: no such file or folder", path.display());
    }
    if path.extension().is_some_and(|ending| ending == "onnx") {
        return onnx(path);
    }
    if let Ok(Some(meta)) = tuned::read_meta(path) {
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
        Err(as_clip) => bail!(
            "{}: neither a backbone, nor labels, nor a CLIP\n  as a backbone: {as_backbone}\n  as a CLIP: {as_clip}",
            path.display()
        ),
    }
}

fn onnx(path: &Path) -> Result<Shown> {
    let contents = Contents::read(path)?;
    Shown::new(&contents, in_words(path, &contents))
}

fn fine_tuned(path: &Path, meta: &TunedMeta) -> Result<Shown> {
    let chosen = match &meta.chosen_by {
        Some(metric) => metric.to_string(),
        None => "the last step".to_owned(),
    };
    let same = &meta.task_state["same_person"];
    let same = same["cosine"].as_f64().map_or(String::new(), |cosine| {
        let data = same["data"].as_str().unwrap_or_default();
        format!("  same person from cosine {cosine:.4}, measured on {data}\n")
    });
    let text = format!(
        "fine-tuned model {}\n  task        {}\n  mix         {}\n  chosen by   {chosen}\n{same}{}",
        path.display(),
        meta.task,
        meta.mix,
        describe(&meta.backbone)?
    );
    Shown::new(meta, text)
}

fn backbone(path: &Path, meta: &BackboneMeta) -> Result<Shown> {
    let (stage, about) = (&meta.stage, describe(meta)?);
    let text = format!("backbone {} ({stage})\n{about}", path.display());
    Shown::new(meta, text)
}

fn labels(path: &Path, store: &Store) -> Result<Shown> {
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
            0 => "  as labelled; no file was changed since".to_owned(),
            count => format!("  {count} files were changed since, or written by other programs"),
        },
    ];
    let value = json!({
        "labels": path, "images": store.len(), "method": meta.method, "model": meta.model,
    });
    Shown::new(&value, lines.join("\n"))
}

/// A checkpoint of others, as far as it fits.
fn published(path: &Path) -> Result<Shown> {
    let lenient = import::Options {
        lenient: true,
        ..import::Options::default()
    };
    let found = import::import(path, &lenient, &Device::flex())?;
    let (report, meta) = (found.report, found.meta);
    let text = format!(
        "checkpoint {}\n{report}\nas a backbone:\n{}",
        path.display(),
        describe(&meta)?
    );
    let value = json!({ "report": report, "backbone": meta });
    Shown::new(&value, text)
}

fn clip(model: &Clip, info: &ClipInfo) -> Result<Shown> {
    let config = format!("{:?}", model.config());
    let text = format!("CLIP {}\n  sha256  {}\n  {config}", info.name, info.sha256);
    let value = json!({ "clip": info.name, "sha256": info.sha256, "config": config });
    Shown::new(&value, text)
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
