//! `clasp finetune TASK RECIPE`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Result, bail};
use clasp_data::missing::require;
use clasp_data::text::shell_path;
use clasp_tasks::finetune::{Control, FinetuneRecipe, FinetuneSummary, train_on_ranks};
use clasp_tasks::task::DownstreamTask;
use clasp_tasks::with_task;

use super::events::{is_larger, shorter_run};
use super::ranks::Ranks;
use super::{EventPrinter, check_data, print_result};
use crate::args::{FinetuneArguments, GlobalOptions};
use crate::progress::{counted, duration};
use crate::{Outcome, interrupt};

/// Runs the command.
pub fn run(common: &GlobalOptions, arguments: &FinetuneArguments) -> Result<Outcome> {
    with_task!(arguments.task.0, T => finetune::<T>(common, arguments))
}

/// What is to be trained, and where.
struct Order<S> {
    recipe: FinetuneRecipe<S>,
    folder: PathBuf,
    resume: bool,
}

fn finetune<T: DownstreamTask>(
    common: &GlobalOptions,
    arguments: &FinetuneArguments,
) -> Result<Outcome> {
    let Order {
        recipe,
        folder,
        resume,
    } = match &arguments.resume {
        Some(run) => resumed::<T>(arguments, run)?,
        None => begin::<T>(arguments)?,
    };
    let stop = interrupt::flag()?;
    let Some(ranks) = Ranks::connect(common, &arguments.ranks, &stop)? else {
        return Ok(Outcome::Stopped);
    };
    let (summary, writes) = ranks.run(common, |rank| {
        let title = format!("{}, run folder {}", T::NAME, folder.display());
        let command = format!("finetune {}", T::NAME);
        let small = smaller::<T>(&recipe);
        let shorter = shorter_run(small);
        let mut printer = EventPrinter::new(&rank.options, &command, title, "images", &shorter);
        if let Some(small) = small.filter(|_| rank.writes()) {
            printer.on_device(&rank.device, small);
        }
        let mut control = Control {
            device_name: &rank.device_names,
            threads: rank.threads,
            stop: &stop,
            on_event: &mut |event| {
                if rank.writes() {
                    printer.print(event);
                }
            },
        };
        let collective = Arc::clone(&rank.collective);
        let device = &rank.device;
        let summary =
            train_on_ranks::<T>(&recipe, &folder, resume, device, &mut control, collective)?;
        Ok((summary, rank.writes()))
    })?;
    if writes {
        let text = describe::<T>(&recipe, &summary, &folder);
        print_result(common.json, &summary, &text)?;
    }
    Ok(match summary.model {
        Some(_) => Outcome::Done,
        None => Outcome::Stopped,
    })
}

/// The name of a recipe of the task with a smaller backbone than that of `recipe`, if there is one.
fn smaller<T: DownstreamTask>(recipe: &FinetuneRecipe<T::Config>) -> Option<&'static str> {
    let names = T::RECIPES.iter().map(|(name, _)| *name);
    { names.filter(|name| name.ends_with("-mini")) }.find(|name| {
        let small = FinetuneRecipe::<T::Config>::load(name, &[]);
        small.is_ok_and(|small| is_larger(&recipe.model.backbone, &small.model.backbone))
    })
}

/// The recipe of a run that has begun.
fn resumed<T: DownstreamTask>(
    arguments: &FinetuneArguments,
    run: &Path,
) -> Result<Order<T::Config>> {
    let given = [
        ("RECIPE", arguments.recipe.is_some()),
        ("--out", arguments.out.is_some()),
        ("--data", arguments.data.is_some()),
        ("--init", arguments.init.is_some()),
    ];
    if let Some((what, _)) = given.iter().find(|(_, given)| *given) {
        bail!("--resume RUN takes everything from the run; leave out {what}");
    }
    let mut set = arguments.set.iter();
    if set.any(|set| set.starts_with("run.epochs")) {
        bail!(
            "--resume: a run that has begun counts steps\nhint: change them with --set run.steps=N, or leave out run.epochs"
        );
    }
    Ok(Order {
        recipe: FinetuneRecipe::of_run(run, T::NAME, &arguments.set)?,
        folder: run.to_owned(),
        resume: true,
    })
}

/// The recipe of a new run.
fn begin<T: DownstreamTask>(arguments: &FinetuneArguments) -> Result<Order<T::Config>> {
    let name = T::NAME;
    let path = arguments.recipe.as_deref().unwrap_or(name);
    let mut recipe = FinetuneRecipe::<T::Config>::load(path, &arguments.set)?;
    if let Some(data) = &arguments.data {
        recipe.data.path.clone_from(data);
    }
    if let Some(init) = &arguments.init {
        recipe.model.init.clone_from(init);
    }
    if recipe.data.path.as_os_str().is_empty() {
        bail!("clasp finetune {name}: no data\nhint: name the dataset's folder with --data");
    }
    check_data(&recipe.data.path)?;
    if !recipe.model.init.as_os_str().is_empty() {
        // Before the data are read.
        require(
            &recipe.model.init,
            "a backbone or published checkpoint, or the folder of a run",
        )?;
    }
    let default = || PathBuf::from("runs").join(format!("{name}-{}", recipe.seed));
    let folder = arguments.out.clone().unwrap_or_else(default);
    Ok(Order {
        recipe,
        folder,
        resume: false,
    })
}

fn describe<T: DownstreamTask>(
    recipe: &FinetuneRecipe<T::Config>,
    summary: &FinetuneSummary,
    folder: &Path,
) -> String {
    let name = T::NAME;
    let Some(model) = &summary.model else {
        return format!(
            "stopped after step {}; resume with: clasp finetune {name} --resume {}",
            summary.run.steps,
            shell_path(folder)
        );
    };
    let eval = format!(
        "clasp eval {name} --data {} --model {}",
        shell_path(&recipe.data.path),
        shell_path(folder)
    );
    let why = match recipe.selection_split() {
        None => "none was computed while training (run.checkpoint_selection = \"last\")",
        Some(_) => "they were not evaluated",
    };
    let measured = match &summary.best {
        Some(best) => format!(
            "{} on {}, by which the weights of step {} were selected\nnext: {eval}",
            best.metric, best.data, best.step
        ),
        None => format!(
            "no metric: the weights are those of the last step, and {why}\n\
             next, for the metric of the test set: {eval}"
        ),
    };
    let (steps, images) = (summary.run.steps, summary.examples);
    let trained = match summary.had_ended {
        true => format!(
            "the run had ended before, after {}: nothing was trained",
            counted(steps, "step")
        ),
        false => format!(
            "{} on {} in {}",
            counted(steps, "step"),
            counted(images, "image"),
            duration(summary.run.seconds)
        ),
    };
    format!("{trained}\nmodel: {}\n{measured}", model.display())
}
