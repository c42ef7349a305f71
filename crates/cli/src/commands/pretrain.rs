//! `clasp pretrain RECIPE`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clasp_pretrain::recipe::of_run;
use clasp_pretrain::{Control, Event, Recipe, Summary, train};

use super::print_result;
use crate::args::{Common, Pretrain};
use crate::progress::{Meter, duration, rate};
use crate::{Outcome, device, interrupt};

/// Runs the verb.
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
            "stopped after step {}; go on with: clasp pretrain --resume {}",
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

/// Runs a recipe with progress lines; Ctrl-C stops after the step and leaves a checkpoint.
pub fn pretrain(common: &Common, recipe: &Recipe, folder: &Path, resume: bool) -> Result<Summary> {
    let stop = interrupt::flag()?;
    let mut meter = Meter::new(common, "pretrain", "steps");
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
        Event::Warning(text) => meter.line(&format!("warning: {text}")),
        Event::Saved(_) => {}
    };
    let mut control = Control {
        device: device::pick(common.device.as_deref())?,
        cores: device::threads(common.threads),
        stop: &stop,
        report: &mut report,
    };
    Ok(train(recipe, folder, resume, &mut control)?)
}
