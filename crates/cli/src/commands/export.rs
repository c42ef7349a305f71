//! `clasp export`: a backbone for other programs.

use anyhow::Result;
use burn::tensor::Device;
use clasp_weights::backbone::load_backbone;
use clasp_weights::checkpoint::Precision;
use clasp_weights::export;
use serde_json::json;

use super::print_result;
use crate::Outcome;
use crate::args::{Common, Export, ExportSafetensors};

/// Runs the verb.
pub fn run(common: &Common, arguments: &Export) -> Result<Outcome> {
    match arguments {
        Export::Safetensors(arguments) => safetensors(common, arguments),
    }
}

fn safetensors(common: &Common, arguments: &ExportSafetensors) -> Result<Outcome> {
    let (backbone, meta) = load_backbone(&arguments.model, &Device::flex())?;
    let options = export::Options {
        names: arguments.names,
        drop_adapter: arguments.drop_adapter,
        precision: if arguments.half {
            Precision::Half
        } else {
            Precision::Full
        },
    };
    let exported = export::export(&arguments.out, &backbone, &meta, options)?;
    let file = format!("{:?}", arguments.out.display().to_string());
    let python = exported.python.replace("FILE", &file);
    let mut text = format!(
        "{} tensors in {} names, written to {}\n\n{python}\n",
        exported.tensors,
        arguments.names,
        arguments.out.display()
    );
    for warning in &exported.warnings {
        text.push_str(&format!("\nwarning: {warning}"));
    }
    let value = json!({
        "out": arguments.out,
        "names": arguments.names.to_string(),
        "tensors": exported.tensors,
        "dropped": exported.dropped,
        "python": python,
        "warnings": exported.warnings,
    });
    print_result(common.json, &value, &text)?;
    Ok(Outcome::Done)
}
