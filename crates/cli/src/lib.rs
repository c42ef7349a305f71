//! `clasp`: human-centric visual pre-training from the command line.
//!
//! Results go to standard output, progress and messages to standard error. Exit status: 0 done,
//! 1 ran but a check failed, 2 error, 130 stopped by Ctrl-C, 143 by SIGTERM.

#![cfg_attr(not(test), deny(clippy::unwrap_used))]

use std::ffi::OsString;

use clap::Parser;
use clasp_tasks::TaskError;

pub mod allocator;
mod args;
mod commands;
mod device;
mod error_text;
mod feature_map;
mod interrupt;
#[cfg(feature = "gpu")]
mod kernel_cache;
mod mini;
#[cfg(any(test, feature = "cuda-nvrtc"))]
mod nvrtc;
mod outcome;
mod plot;
mod progress;
mod report;

pub(crate) use outcome::Outcome;

/// Runs the program with these arguments, its own name first, and returns its exit status.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    clasp_data::contained::silence();
    clasp_run::origin::set_commit(env!("CLASP_COMMIT"));
    let cli = match args::Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are such errors, too. A reader that is gone changes nothing.
            let _ = error.print();
            return u8::try_from(error.exit_code()).unwrap_or(2);
        }
    };
    let stopped = || interrupt::status().unwrap_or(130);
    match commands::run(cli) {
        Ok(Outcome::Done) => 0,
        Ok(Outcome::CheckFailed) => 1,
        Ok(Outcome::Stopped) => stopped(),
        Err(error) if matches!(error.downcast_ref(), Some(TaskError::Stopped)) => {
            progress::tell("stopped");
            stopped()
        }
        Err(error) => {
            progress::tell(&error_text::error_text(&error));
            2
        }
    }
}
