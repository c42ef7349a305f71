//! A file for each verb: it turns arguments into library calls and results into text.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::CommandFactory;
use clasp_data::source::Source;
use clasp_data::text::printable;
use serde::Serialize;

use crate::args::{Cli, Common, Verb};
use crate::progress::warn;
use crate::{Outcome, device};

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
mod partial;
mod predict;
mod pretrain;
mod recipes;
mod runs;
mod score;
mod search;
mod synth;
mod tuned;

/// Runs the verb, on as many threads as were asked for.
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

/// Starts the pool of threads that everything without a pool of its own computes in: the optimiser, averages, ranking.
fn start_threads(common: &Common) -> Result<()> {
    let threads = device::threads(common.threads);
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .with_context(|| {
            format!("--threads: the system does not start {threads} threads\n  hint: ask for fewer")
        })
}

/// The images that `specs` name, after telling what among them is not read; with `keep_going`, the
/// whole images of damaged tars are used.
///
/// # Errors
///
/// There are none, or they cannot be used.
fn open_images(specs: &[impl AsRef<str>], keep_going: bool) -> Result<Source> {
    let source = Source::open_several(specs, keep_going)?;
    source.damage().iter().for_each(|damage| warn(damage));
    source
        .skipped()
        .describe()
        .iter()
        .for_each(|line| warn(line));
    Ok(source)
}

/// Several arguments as one JSON value: a text where there is one, as earlier versions wrote.
fn one_or_all(specs: &[String]) -> serde_json::Value {
    match specs {
        [one] => one.clone().into(),
        all => all.to_vec().into(),
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

/// `path` with `suffix` after its name: another file of the same folder, and another for every `path`.
///
/// # Errors
///
/// `path` names no file, as `..` does.
fn beside(path: &Path, suffix: &str) -> Result<PathBuf> {
    let Some(name) = path.file_name() else {
        bail!("{}: expected a name, found none", path.display());
    };
    let mut name = name.to_owned();
    name.push(suffix);
    Ok(path.with_file_name(name))
}

/// Checks that there is a data set's folder or file.
fn check_data(path: &Path) -> Result<()> {
    if !path.exists() {
        bail!("--data {}: no such folder", path.display());
    }
    Ok(())
}

/// A result on standard output: `value` as JSON if asked for, else `text`.
fn print_result(json: bool, value: &impl Serialize, text: &str) -> Result<()> {
    if json {
        print_text(&serde_json::to_string_pretty(value)?)
    } else {
        print_text(&printable(text))
    }
}

/// Text on standard output. What nobody reads any more, as behind `head`, is no error.
fn print_text(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("standard output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_beside_differs_where_names_differ() {
        let run = |name: &str| beside(Path::new(name), ".run").unwrap();
        assert_eq!(run("m"), Path::new("m.run"));
        assert_eq!(run("a/m-0.1"), Path::new("a/m-0.1.run"));
        assert_ne!(run("m-0.1"), run("m-0.2"));
        assert_eq!(run("a/m/"), Path::new("a/m.run"));
        assert!(beside(Path::new(".."), ".run").is_err());
    }
}
