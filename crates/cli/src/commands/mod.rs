//! A file for each verb: it turns arguments into library calls and results into text.

use std::path::Path;

use anyhow::{Result, bail};
use serde::Serialize;

use crate::Outcome;
use crate::args::{Cli, Verb};

mod bench;
mod clip;
mod compare;
mod data;
mod demo;
mod embed;
pub mod eval;
mod export;
mod finetune;
mod import;
mod inspect;
mod label;
mod predict;
mod pretrain;
mod search;
mod synth;
mod tuned;

/// Runs the verb.
pub fn run(cli: Cli) -> Result<Outcome> {
    let common = &cli.common;
    match cli.verb {
        Verb::Demo(arguments) => demo::run(common, &arguments),
        Verb::Synth(arguments) => synth::run(common, &arguments),
        Verb::Data(arguments) => data::run(common, &arguments),
        Verb::Clip(arguments) => clip::run(common, &arguments),
        Verb::Label(arguments) => label::run(common, &arguments),
        Verb::Pretrain(arguments) => pretrain::run(common, &arguments),
        Verb::Finetune(arguments) => finetune::run(common, &arguments),
        Verb::Predict(arguments) => predict::run(common, &arguments),
        Verb::Search(arguments) => search::run(common, &arguments),
        Verb::Eval(arguments) => eval::run(common, &arguments),
        Verb::Embed(arguments) => embed::run(common, &arguments),
        Verb::Import(arguments) => import::run(common, &arguments),
        Verb::Export(arguments) => export::run(common, &arguments),
        Verb::Inspect(arguments) => inspect::run(common, &arguments),
        Verb::Bench(arguments) => bench::run(common, &arguments),
    }
}

/// Checks, before hours of work, that a file can be written there.
fn check_writable(path: &Path) -> Result<()> {
    if path.is_dir() {
        bail!(
            "{}: expected a file to write, found a folder",
            path.display()
        );
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        bail!(
            "{}: cannot be written, as there is no folder {}\n  hint: make it first",
            path.display(),
            folder.display()
        );
    }
    Ok(())
}

/// Checks that there is a data set's folder or file.
fn check_data(path: &Path) -> Result<()> {
    if !path.exists() {
        bail!("--data {}: no such folder", path.display());
    }
    Ok(())
}

/// A result on standard output: `value` as JSON if asked for, else `text`.
#[allow(clippy::print_stdout)]
fn print_result(json: bool, value: &impl Serialize, text: &str) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(value)?);
    } else {
        println!("{}", text.trim_end());
    }
    Ok(())
}
