//! `clasp inspect FILE`: what a file of clasp, or a CLIP folder, holds.

use std::fmt::Write;

use anyhow::{Result, bail};
use burn::tensor::Device;
use clasp_data::labels::Store;
use clasp_weights::backbone::read_backbone_meta;
use serde_json::json;

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
    let backbone_error = match read_backbone_meta(path) {
        Ok(meta) => {
            let mut text = format!("backbone {} ({})\n", path.display(), meta.stage);
            let config = serde_json::to_string(&meta.config)?;
            let _ = writeln!(text, "  network        {config}");
            let _ = writeln!(
                text,
                "  preprocessing  {}x{} (height x width), {}, mean {:?}, std {:?}",
                meta.height, meta.width, meta.filter, meta.mean, meta.std
            );
            let _ = writeln!(
                text,
                "  method         {}, {} steps",
                meta.method, meta.step
            );
            let _ = writeln!(text, "  heads          {}", meta.heads.join(", "));
            let _ = writeln!(text, "  prompts        {}", meta.tasks.join(", "));
            if !meta.vocabulary.is_empty() {
                let _ = writeln!(text, "  vocabulary     {}", meta.vocabulary);
            }
            let _ = writeln!(text, "  written by     clasp {}", meta.clasp);
            for licence in &meta.licences {
                let _ = writeln!(text, "  licence        {licence}");
            }
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
