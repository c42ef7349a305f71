//! `clasp`: human-centric visual pre-training from the command line.
//!
//! Results go to standard output, progress and messages to standard error. Exit status: 0 done,
//! 1 ran but a check failed, 2 error.

use std::process::ExitCode;

use clap::Parser;

mod allocator;
mod args;
mod commands;
mod device;
mod feature_map;
mod interrupt;
mod mini;
mod plot;
mod progress;
mod report;

/// How a verb that did not fail ended.
pub enum Outcome {
    /// All is well.
    Done,
    /// It ran, but what it checked is not as it should be.
    CheckFailed,
}

fn main() -> ExitCode {
    allocator::keep_pages();
    let cli = args::Cli::parse();
    match commands::run(cli) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::CheckFailed) => ExitCode::from(1),
        Err(error) => {
            // The causes of an error follow it, unless the error already quotes them.
            let mut message = error.to_string();
            for cause in error.chain().skip(1) {
                let cause = cause.to_string();
                if !message.contains(&cause) {
                    message = format!("{message}\n  because: {cause}");
                }
            }
            report_error(&message);
            ExitCode::from(2)
        }
    }
}

#[allow(clippy::print_stderr)]
fn report_error(message: &str) {
    eprintln!("error: {message}");
}
