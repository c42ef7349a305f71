//! The demo, recipes and runs: `demo`, `recipes`, `runs`.

use std::path::PathBuf;

use clap::Args;

use super::values::count;

/// `clasp demo`
#[derive(Args, Debug)]
pub struct DemoArguments {
    /// Folder for everything that the demo writes
    #[arg(long, default_value = "clasp-demo")]
    pub out: PathBuf,
    /// People to pre-train on; a further 1/16 of that number, seen by 4 cameras, trains the linear
    /// probes and 1/32 tests them
    #[arg(long, default_value_t = 2400, value_parser = count(64, 1_000_000))]
    pub people: usize,
    /// Seed of the synthetic people and of the training
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Set a value of the demo's recipe
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// `clasp recipes`
#[derive(Args, Debug)]
pub struct RecipesArguments {
    /// Built-in recipe to print with its comments [default: list all]
    pub name: Option<String>,
    /// Print all keys with their values, defaults included
    #[arg(long, requires = "name")]
    pub keys: bool,
}

/// `clasp runs`
#[derive(Args, Debug)]
pub struct RunsArguments {
    /// Folder of runs
    #[arg(default_value = "runs")]
    pub folder: PathBuf,
}
