//! `clasp pretrain RECIPE`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use burn::tensor::Device;
use clasp_data::missing::require;
use clasp_data::text::shell_path;
use clasp_pretrain::{Control, PretrainRecipe, PretrainSummary, train_on_ranks};
use clasp_run::Local;

use super::events::{is_larger, shorter_run};
use super::ranks::{RankContext, Ranks};
use super::{EventPrinter, print_result};
use crate::args::{GlobalOptions, PretrainArguments};
use crate::progress::{counted, duration};
use crate::{Outcome, device, interrupt};

/// The recipe for a computer without a GPU.
const SMALL: &str = "mini";

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
    let stop = interrupt::flag()?;
    let Some(ranks) = Ranks::connect(common, &arguments.ranks, &stop)? else {
        return Ok(Outcome::Stopped);
    };
    let (summary, writes, on_cpu) = ranks.run(common, |rank| {
        let summary = pretrain_as(rank, &recipe, &folder, resume)?;
        Ok((summary, rank.writes(), rank.device == Device::flex()))
    })?;
    let outcome = match summary.run.finished {
        true => Outcome::Done,
        false => Outcome::Stopped,
    };
    if !writes {
        return Ok(outcome);
    }
    // The recipe of a task's own name is meant for a GPU.
    let small = if on_cpu { "TASK-mini " } else { "" };
    let mut text = format!(
        "{} on {} in {}\nbackbone: {}\nnext: clasp finetune TASK {small}--data DATA --init {}",
        counted(summary.run.steps, "step"),
        counted(summary.images, "image"),
        duration(summary.run.seconds),
        summary.backbone.display(),
        shell_path(&folder)
    );
    if !summary.run.finished {
        text = format!(
            "stopped after step {}; resume with: clasp pretrain --resume {}",
            summary.run.steps,
            shell_path(&folder)
        );
    }
    print_result(common.json, &summary, &text)?;
    Ok(outcome)
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
    device: &Device,
) -> Result<PretrainSummary> {
    let alone = RankContext {
        options: common.clone(),
        device: device.clone(),
        device_names: device::name(device),
        threads: device::threads(common.threads),
        collective: Arc::new(Local),
    };
    pretrain_as(&alone, recipe, folder, resume)
}

/// The same as one of several ranks.
fn pretrain_as(
    rank: &RankContext,
    recipe: &PretrainRecipe,
    folder: &Path,
    resume: bool,
) -> Result<PretrainSummary> {
    // Before the images are listed.
    for (path, expected) in [
        (&recipe.data.labels, "a folder with labels (`data.labels`)"),
        (&recipe.model.init, "a backbone (`model.init`)"),
        (
            &recipe.distillation.teacher,
            "a backbone (`distillation.teacher`)",
        ),
    ] {
        if !path.as_os_str().is_empty() {
            require(path, expected)?;
        }
    }
    let stop = interrupt::flag()?;
    let method = recipe.method.name();
    let title = format!("{method}, run folder {}", folder.display());
    let writes = rank.writes();
    let small = PretrainRecipe::load(SMALL, &[])?;
    let is_smaller = is_larger(&recipe.model.backbone, &small.model.backbone);
    let shorter = shorter_run(is_smaller.then_some(SMALL));
    let mut printer = EventPrinter::new(&rank.options, "pretrain", title, "images", &shorter);
    if is_smaller && writes {
        printer.on_device(&rank.device, SMALL);
    }
    let mut control = Control {
        device_name: &rank.device_names,
        threads: rank.threads,
        stop: &stop,
        on_event: &mut |event| {
            if writes {
                printer.print(event);
            }
        },
    };
    Ok(train_on_ranks(
        recipe,
        folder,
        resume,
        &rank.device,
        &mut control,
        Arc::clone(&rank.collective),
    )?)
}
