//! `clasp pretrain RECIPE`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clasp_pretrain::recipe::of_run;
use clasp_pretrain::{Control, Event, Recipe, Summary, train};

use super::print_result;
use crate::args::{Common, Pretrain};
use crate::progress::{Meter, duration, rate};
use crate::{Outcome, device, interrupt};

/// Runs the command.
pub fn run(common: &Common, arguments: &Pretrain) -> Result<Outcome> {
    let (recipe, folder, resume) = match &arguments.resume {
        Some(folder) => {
            if arguments.recipe.is_some() || arguments.out.is_some() {
                bail!(
                    "--resume RUN takes the recipe and the folder from the run; leave out RECIPE and --out"
                );
            }
            (of_run(folder, &arguments.set)?, folder.clone(), true)
        }
        None => {
            let name = arguments.recipe.as_deref().unwrap_or_default();
            let recipe = Recipe::load(name, &arguments.set)?;
            let folder = arguments
                .out
                .clone()
                .unwrap_or_else(|| default_folder(name, &recipe));
            (recipe, folder, false)
        }
    };
    let summary = pretrain(common, &recipe, &folder, resume)?;
    let mut text = format!(
        "{} steps on {} images in {}\nbackbone: {}\nnext: clasp finetune TASK --data DATA --init {}",
        summary.steps,
        summary.images,
        duration(summary.seconds),
        summary.backbone.display(),
        folder.display()
    );
    if !summary.finished {
        text = format!(
            "stopped after step {}; resume with: clasp pretrain --resume {}",
            summary.steps,
            folder.display()
        );
    }
    print_result(common.json, &summary, &text)?;
    Ok(match summary.finished {
        true => Outcome::Done,
        false => Outcome::Stopped,
    })
}

fn default_folder(name: &str, recipe: &Recipe) -> PathBuf {
    let stem = Path::new(name)
        .file_stem()
        .map_or("run".into(), |stem| stem.to_string_lossy().into_owned());
    PathBuf::from("runs").join(format!("{stem}-{}-{}", recipe.method.name(), recipe.seed))
}

/// Warnings of a run, a line each, in its folder: what was printed can be read again.
const WARNINGS: &str = "warnings.txt";

/// The warnings that training printed in a run's folder, each once, in the order of their first
/// appearance: a run that was killed and goes on may print one again.
///
/// # Errors
///
/// The file is there and cannot be read.
pub fn warnings(folder: &Path) -> Result<Vec<String>> {
    let path = folder.join(WARNINGS);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let mut found: Vec<String> = Vec::new();
    for line in fs_err::read_to_string(path)?.lines() {
        if !found.iter().any(|known| known == line) {
            found.push(line.to_owned());
        }
    }
    Ok(found)
}

/// Appends a warning to the list of a run.
fn keep_warning(folder: &Path, text: &str) -> std::io::Result<()> {
    let path = folder.join(WARNINGS);
    let mut file = fs_err::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)?;
    writeln!(file, "{}", text.replace('\n', " "))
}

/// Runs a recipe with progress lines; Ctrl-C stops after the step and leaves a checkpoint.
pub fn pretrain(common: &Common, recipe: &Recipe, folder: &Path, resume: bool) -> Result<Summary> {
    let stop = interrupt::flag()?;
    let mut meter = Meter::new(common, "pretrain", "steps");
    let mut unkept = None;
    let mut report = |event: Event<'_>| match event {
        Event::Start { plan, images, from } => meter.line(&format!(
            "{} on {images} images, {} steps of {} images, from step {from}; run folder {}",
            plan.recipe.method.name(),
            plan.steps,
            plan.recipe.run.batch,
            folder.display()
        )),
        Event::Step {
            step,
            steps,
            metrics,
        } => {
            let figure = |name: &str| metrics.get(name).copied();
            let loss = figure("loss/total").map(|loss| format!("loss {loss:.3}"));
            let speed = figure("speed/images_per_second").map(|speed| rate(speed, "images"));
            let note: Vec<String> = loss.into_iter().chain(speed).collect();
            meter.set(step, steps, &note.join(", "));
        }
        Event::Loaded(report) => meter.line(&format!(
            "starting from {}: {report}",
            recipe.model.init.display()
        )),
        Event::Warning(text) => {
            meter.line(&format!("warning: {text}"));
            if let Err(error) = keep_warning(folder, text) {
                unkept.get_or_insert(error);
            }
        }
        Event::Saved(_) => {}
    };
    let mut control = Control {
        device: device::pick(common.device.as_deref())?,
        cores: device::threads(common.threads),
        stop: &stop,
        report: &mut report,
    };
    let summary = train(recipe, folder, resume, &mut control)?;
    match unkept {
        Some(error) => Err(error).context("writing the list of warnings"),
        None => Ok(summary),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_kept_in_the_folder_and_listed_once() {
        let folder = tempfile::tempdir().unwrap();
        assert!(warnings(folder.path()).unwrap().is_empty());
        for text in ["step 3: a\nb", "step 9: c", "step 3: a\nb"] {
            keep_warning(folder.path(), text).unwrap();
        }
        assert_eq!(
            warnings(folder.path()).unwrap(),
            ["step 3: a b", "step 9: c"]
        );
    }
}
