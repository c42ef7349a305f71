//! A file for each verb: it turns arguments into library calls and results into text.

use anyhow::Result;
use serde::Serialize;

use crate::Outcome;
use crate::args::{Cli, Verb};

mod bench;
mod clip;
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
