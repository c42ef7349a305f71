//! `clasp import FILE -o OUT`: a published checkpoint as a backbone file.

use std::fmt::Write;

use anyhow::{Result, bail};
use burn::tensor::Device;
use clasp_weights::backbone::{BackboneMeta, save_backbone};
use clasp_weights::hub::{self, HubOptions};
use clasp_weights::import;
use serde_json::json;

use super::config_lines::config_lines;
use super::{Input, claim_outputs, print_result};
use crate::Outcome;
use crate::args::{GlobalOptions, ImportArguments};
use crate::progress::warn;

/// Runs the command.
pub fn run(common: &GlobalOptions, arguments: &ImportArguments) -> Result<Outcome> {
    if arguments.std.is_some_and(|std| std.contains(&0.0)) {
        bail!("--std: expected numbers other than 0, they are divided by");
    }
    let options = import::ImportOptions {
        source: arguments.source,
        student: arguments.student,
        heads: arguments.heads,
        size: arguments.size,
        lenient: arguments.lenient,
    };
    let file = hub::existing_or_fetched(&arguments.file, &HubOptions::from_env())?;
    claim_outputs(&[("-o", &arguments.out)], &[Input::Model(&file)])?;
    let mut imported = import::import(&file, &options, &Device::flex())?;
    let meta = &mut imported.meta;
    if let Some([height, width]) = arguments.size {
        (meta.height, meta.width) = (height, width);
    }
    meta.mean = arguments.mean.unwrap_or(meta.mean);
    meta.std = arguments.std.unwrap_or(meta.std);
    save_backbone(&arguments.out, &imported.backbone, meta)?;
    imported
        .report
        .assumed
        .iter()
        .for_each(|assumed| warn(assumed));
    let mut text = format!("{}\n{}", imported.report, describe(meta)?);
    let _ = write!(text, "\nwritten to {}", arguments.out.display());
    let value = json!({ "report": imported.report, "backbone": meta, "out": arguments.out });
    print_result(common.json, &value, &text)?;
    Ok(Outcome::Done)
}

/// Values of red, green and blue.
fn channels(values: [f32; 3]) -> String {
    values.map(|value| value.to_string()).join(", ")
}

/// A backbone's metadata in readable lines.
pub fn describe(meta: &BackboneMeta) -> Result<String> {
    let mut text = String::new();
    let _ = writeln!(text, "  network\n{}", config_lines(&meta.config)?);
    let _ = writeln!(
        text,
        "  preprocessing  {}x{} (height x width), {}, mean {}, std {}",
        meta.height,
        meta.width,
        meta.filter,
        channels(meta.mean),
        channels(meta.std)
    );
    let _ = writeln!(
        text,
        "  method         {}, {} steps",
        meta.method, meta.step
    );
    for (what, names) in [("heads", &meta.heads), ("prompts", &meta.prompts)] {
        if !names.is_empty() {
            let _ = writeln!(text, "  {what:<15}{}", names.join(", "));
        }
    }
    for (what, value) in [("vocabulary", &meta.vocabulary), ("origin", &meta.origin)] {
        if !value.is_empty() {
            let _ = writeln!(text, "  {what:<15}{value}");
        }
    }
    let _ = writeln!(text, "  written by     clasp {}", meta.clasp);
    for license in &meta.licenses {
        let _ = writeln!(text, "  license        {license}");
    }
    Ok(text.trim_end().to_owned())
}
