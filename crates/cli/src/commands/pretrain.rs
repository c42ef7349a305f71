//! `clasp pretrain RECIPE`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clasp_pretrain::{Control, Event, PretrainRecipe, PretrainSummary, train};

use super::print_result;
use crate::args::{GlobalOptions, PretrainArguments};
use crate::progress::{Meter, duration, rate};
use crate::{Outcome, device, interrupt};

/// Runs the command.
pub fn run(common: &GlobalOptions, arguments: &PretrainArguments) -> Result<Outcome> {
    let (recipe, folder, resume) = match &arguments.resume {
        Some(folder) => {
            if arguments.recipe.is_some() || arguments.out.is_some() {
                bail!(
                    "--resume RUN takes the recipe and the folder from the run; leave out RECIPE and --out"
                );
            }
            (
                PretrainRecipe::of_run(folder, &arguments.set)?,
                folder.clone(),
                true,
            )
        }
        None => {
            let name = arguments.recipe.as_deref().unwrap_or_default();
            let recipe = PretrainRecipe::load(name, &arguments.set)?;
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
        summary.run.steps,
        summary.images,
        duration(summary.run.seconds),
        summary.backbone.display(),
        folder.display()
    );
    if !summary.run.finished {
        text = format!(
            "stopped after step {}; resume with: clasp pretrain --resume {}",
            summary.run.steps,
            folder.display()
        );
    }
    print_result(common.json, &summary, &text)?;
    Ok(match summary.run.finished {
        true => Outcome::Done,
        false => Outcome::Stopped,
    })
}

fn default_folder(name: &str, recipe: &PretrainRecipe) -> PathBuf {
    let stem = Path::new(name)
        .file_stem()
        .map_or("run".into(), |stem| stem.to_string_lossy().into_owned());
    PathBuf::from("runs").join(format!("{stem}-{}-{}", recipe.method.name(), recipe.seed))
}

/// Runs a recipe with progress lines; Ctrl-C stops after the step and leaves a checkpoint.
pub fn pretrain(
    common: &GlobalOptions,
    recipe: &PretrainRecipe,
    folder: &Path,
    resume: bool,
) -> Result<PretrainSummary> {
    let stop = interrupt::flag()?;
    let mut meter = Meter::new(common, "pretrain", "steps");
    let mut on_event = |event: Event<'_>| {
        match event {
        Event::Start {
            examples,
            batch,
            steps,
            from,
        } => meter.line(&format!(
            "{} on {examples} images, {steps} steps of {batch} images, from step {from}; run folder {}",
            recipe.method.name(),
            folder.display()
        )),
        Event::Step {
            step,
            steps,
            metrics,
        } => {
            let metric = |name: &str| metrics.get(name).copied();
            let loss = metric("loss/total").map(|loss| format!("loss {loss:.3}"));
            let speed = metric("speed/images_per_second").map(|speed| rate(speed, "images"));
            let note: Vec<String> = loss.into_iter().chain(speed).collect();
            meter.set(step, steps, &note.join(", "));
        }
        Event::WeightsLoaded { path, report } => {
            meter.line(&format!("starting from {}: {report}", path.display()));
        }
        Event::Warning(text) => meter.line(&format!("warning: {text}")),
        Event::Note(text) => meter.line(text),
        Event::Evaluated { .. } | Event::CheckpointSaved(_) => {}
    }
    };
    let device = device::pick(common.device.as_deref())?;
    let mut control = Control {
        device_name: &device::name(&device),
        threads: device::threads(common.threads),
        stop: &stop,
        on_event: &mut on_event,
    };
    Ok(train(recipe, folder, resume, &device, &mut control)?)
}
