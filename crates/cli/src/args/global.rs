//! Options of every command.

use clap::Args;
use clasp_run::check::MOST_THREADS;

use super::values::count;

/// Options of every command.
#[derive(Args, Debug, Clone)]
pub struct GlobalOptions {
    /// Device: cpu, cuda, rocm, metal or vulkan; cuda:1 is the second one. pretrain, finetune
    /// and bench exchange take several: cuda:0,cuda:1 or cuda:all [default: the first GPU that the
    /// build can use, by cuda, rocm, metal and vulkan in this order, else cpu]
    #[arg(
        long,
        global = true,
        value_name = "DEVICE",
        help_heading = "Global options"
    )]
    pub device: Option<String>,
    /// Threads for computing and loading [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = count(1, MOST_THREADS), help_heading = "Global options")]
    pub threads: Option<usize>,
    /// Print results as JSON
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
    /// Print no progress
    #[arg(long, short, global = true, help_heading = "Global options")]
    pub quiet: bool,
}
