//! `clasp inspect FILE`: what a file of clasp, a published checkpoint, an ONNX file or a CLIP folder holds.

use std::path::Path;

use anyhow::{Result, bail};
use burn::tensor::Device;
use clasp_data::labels::Store;
use clasp_weights::backbone::read_backbone_meta;
use clasp_weights::import;
use clasp_weights::onnx::Contents;
use clasp_weights::tuned;
use serde_json::json;

use super::import::describe;
use super::print_result;
use crate::Outcome;
use crate::args::{Common, Inspect};
use crate::mini;

/// Runs the verb.
pub fn run(common: &Common, arguments: &Inspect) -> Result<Outcome> {
    let path = &arguments.file;
    if !path.exists() && !mini::is_mini(&path.to_string_lossy()) {
        bail!("{}: no such file or folder", path.display());
    }
    if path.extension().is_some_and(|ending| ending == "onnx") {
        let contents = Contents::read(path)?;
        print_result(common.json, &contents, &in_words(path, &contents))?;
        return Ok(Outcome::Done);
    }
    if let Ok(Some(meta)) = tuned::read_meta(path) {
        let chosen = match &meta.chosen_by {
            Some((metric, value)) => format!("{metric} {:.2}", 100.0 * value),
            None => "the last step".to_owned(),
        };
        let text = format!(
            "fine-tuned model {}\n  task        {}\n  mix         {}\n  chosen by   {chosen}\n{}",
            path.display(),
            meta.task,
            meta.mix,
            describe(&meta.backbone)?
        );
        print_result(common.json, &meta, &text)?;
        return Ok(Outcome::Done);
    }
    let backbone_error = match read_backbone_meta(path) {
        Ok(meta) => {
            let text = format!(
                "backbone {} ({})\n{}",
                path.display(),
                meta.stage,
                describe(&meta)?
            );
            print_result(common.json, &meta, &text)?;
            return Ok(Outcome::Done);
        }
        Err(error) => error,
    };
    if let Ok(store) = Store::open(path) {
        let meta = &store.meta;
        let text = format!(
            "labels {}\n  images      {}\n  method      {} {}\n  model       {} ({})\n  grid        {} rows x {} columns\n  \
             parts       {}\n  attributes  {}",
            path.display(),
            store.len(),
            meta.method,
            meta.dense,
            meta.model,
            meta.model_sha256,
            meta.rows,
            meta.columns,
            meta.vocabulary
                .parts
                .iter()
                .map(|part| part.name.as_str())
                .collect::<Vec<_>>()
                .join(", "),
            meta.vocabulary
                .attributes
                .iter()
                .map(|attribute| attribute.name.as_str())
                .collect::<Vec<_>>()
                .join(", "),
        );
        let value = json!({ "labels": path, "images": store.len(), "method": meta.method, "model": meta.model });
        print_result(common.json, &value, &text)?;
        return Ok(Outcome::Done);
    }
    let mut backbone_error = backbone_error.to_string();
    if path.is_file() {
        let lenient = import::Options {
            lenient: true,
            ..import::Options::default()
        };
        match import::import(path, &lenient, &Device::flex()) {
            Ok(found) => {
                let (report, meta) = (found.report, found.meta);
                let text = format!(
                    "checkpoint {}\n{report}\nas a backbone:\n{}",
                    path.display(),
                    describe(&meta)?
                );
                let value = json!({ "report": report, "backbone": meta });
                print_result(common.json, &value, &text)?;
                return Ok(Outcome::Done);
            }
            Err(error) => backbone_error = error.to_string(),
        }
    }
    if path.is_file() {
        bail!(
            "{}: expected a backbone, a fine-tuned model, a published checkpoint or an ONNX file, found another file\n  as a checkpoint: {backbone_error}",
            path.display()
        );
    }
    match mini::load(&path.to_string_lossy(), &Device::flex()) {
        Ok((clip, info)) => {
            let text = format!(
                "CLIP {}\n  sha256  {}\n  {:?}",
                info.name,
                info.sha256,
                clip.config()
            );
            let value = json!({ "clip": info.name, "sha256": info.sha256, "config": format!("{:?}", clip.config()) });
            print_result(common.json, &value, &text)?;
            Ok(Outcome::Done)
        }
        Err(clip_error) => bail!(
            "{}: neither a backbone, nor labels, nor a CLIP\n  as a backbone: {backbone_error}\n  as a CLIP: {clip_error}",
            path.display()
        ),
    }
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
