//! A file for each command: it turns arguments into library calls and results into text.

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::args::{ClaspCommand, Cli, GlobalOptions};
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
mod merge;
mod outputs;
mod partial;
mod predict;
mod pretrain;
mod ranks;
mod recipes;
mod runs;
mod score;
mod search;
mod serve;
mod synth;

use events::EventPrinter;
use inputs::{check_data, one_or_all, open_images, part_of};
use outputs::{
    Input, beside, check_writable, claim_outputs, first_replaced, print_result, print_text,
};

/// Runs the command with the number of threads that was asked for.
pub fn run(cli: Cli) -> Result<Outcome> {
    let common = &cli.common;
    start_threads(common)?;
    match cli.command {
        ClaspCommand::Demo(arguments) => demo::run(common, &arguments),
        ClaspCommand::Synth(arguments) => synth::run(common, &arguments),
        ClaspCommand::Data(arguments) => data::run(common, &arguments),
        ClaspCommand::Clip(arguments) => clip::run(common, &arguments),
        ClaspCommand::Label(arguments) => label::run(common, &arguments),
        ClaspCommand::Pretrain(arguments) => pretrain::run(common, &arguments),
        ClaspCommand::Finetune(arguments) => finetune::run(common, &arguments),
        ClaspCommand::Predict(arguments) => predict::run(common, &arguments),
        ClaspCommand::Search(arguments) => search::run(common, &arguments),
        ClaspCommand::Serve(arguments) => serve::run(common, &arguments),
        ClaspCommand::Eval(arguments) => eval::run(common, &arguments),
        ClaspCommand::Embed(arguments) => embed::run(common, &arguments),
        ClaspCommand::Merge(arguments) => merge::run(common, &arguments),
        ClaspCommand::Import(arguments) => import::run(common, &arguments),
        ClaspCommand::Export(arguments) => export::run(common, &arguments),
        ClaspCommand::Inspect(arguments) => inspect::run(common, &arguments),
        ClaspCommand::Bench(arguments) => bench::run(common, &arguments),
        ClaspCommand::Score(arguments) => score::run(common, &arguments),
        ClaspCommand::Recipes(arguments) => recipes::run(common, &arguments),
        ClaspCommand::Runs(arguments) => runs::run(common, &arguments),
        ClaspCommand::Completions { shell } => {
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
            format!(
                "--threads: the system does not start {}\nhint: ask for fewer",
                crate::progress::counted(threads, "thread")
            )
        })
}
