//! `clasp`: human-centric visual pre-training from the command line.
//!
//! Results go to standard output, progress and messages to standard error. Exit status: 0 done,
//! 1 ran but a check failed, 2 error, 130 stopped by Ctrl-C, 143 by SIGTERM.

use std::process::ExitCode;

use clap::Parser;
use clasp_tasks::TaskError;

mod allocator;
mod args;
mod commands;
mod device;
mod error_text;
mod feature_map;
mod interrupt;
mod mini;
mod outcome;
mod plot;
mod progress;
mod report;

pub use outcome::Outcome;

fn main() -> ExitCode {
    allocator::keep_pages();
    clasp_data::contained::silence();
    clasp_run::origin::set_commit(env!("CLASP_COMMIT"));
    let cli = args::Cli::parse();
    match commands::run(cli) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::CheckFailed) => ExitCode::from(1),
        Ok(Outcome::Stopped) => ExitCode::from(interrupt::status().unwrap_or(130)),
        Err(error) if matches!(error.downcast_ref(), Some(TaskError::Stopped)) => {
            progress::tell("stopped");
            ExitCode::from(interrupt::status().unwrap_or(130))
        }
        Err(error) => {
            progress::tell(&error_text::error_text(&error));
            ExitCode::from(2)
        }
    }
}
