//! A file for each command: it turns arguments into library calls and results into text.

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::args::{Cli, GlobalOptions, Verb};
use crate::{Outcome, device};

mod bench;
mod calibrate;
mod clip;
mod config_lines;
mod data;
mod demo;
mod embed;
pub mod eval;
mod events;
mod export;
mod finetune;
mod import;
mod inputs;
mod inspect;
mod label;
mod load_model;
mod outputs;
mod partial;
mod predict;
mod pretrain;
mod recipes;
mod runs;
mod score;
mod search;
mod synth;

use events::EventPrinter;
use inputs::{check_data, one_or_all, open_images, open_labels};
use outputs::{beside, check_writable, print_result, print_text};

/// Runs the command with the number of threads that was asked for.
pub fn run(cli: Cli) -> Result<Outcome> {
    let common = &cli.common;
    start_threads(common)?;
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
        Verb::Score(arguments) => score::run(common, &arguments),
        Verb::Recipes(arguments) => recipes::run(common, &arguments),
        Verb::Runs(arguments) => runs::run(common, &arguments),
        Verb::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "clasp", &mut script);
            print_text(&String::from_utf8_lossy(&script))?;
            Ok(Outcome::Done)
        }
    }
}

/// Starts the global pool of threads: the optimizer, averages, ranking.
fn start_threads(common: &GlobalOptions) -> Result<()> {
    let threads = device::threads(common.threads);
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .with_context(|| {
            format!("--threads: the system does not start {threads} threads\nhint: ask for fewer")
        })
}
