//! `clasp finetune TASK RECIPE`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clasp_metrics::metric::line_of;
use clasp_tasks::finetune::{
    FinetuneControl, FinetuneEvent, FinetuneRecipe, FinetuneSummary, train,
};
use clasp_tasks::task::DownstreamTask;
use clasp_tasks::{PassProgress, with_task};

use super::{check_data, print_result};
use crate::args::{FinetuneArguments, GlobalOptions};
use crate::progress::{Meter, duration, rate, warn};
use crate::{Outcome, device, interrupt};

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
        Some(run) => go_on::<T>(arguments, run)?,
        None => begin::<T>(arguments)?,
    };
    let stop = interrupt::flag()?;
    let mut teller = Teller {
        title: format!("{}, run folder {}", T::NAME, folder.display()),
        init: recipe.model.init.clone(),
        meter: Meter::new(common, &format!("finetune {}", T::NAME), "steps"),
    };
    let evaluating = |_: PassProgress| -> ControlFlow<()> { interrupt::flow(&stop) };
    let mut control = FinetuneControl {
        device: device::pick(common.device.as_deref())?,
        cores: device::threads(common.threads),
        stop: &stop,
        report: &mut |event| teller.tell(event),
        evaluating: &evaluating,
    };
    let summary = train::<T>(&recipe, &folder, resume, &mut control)?;
    print_result(common.json, &summary, &describe(T::NAME, &summary, &folder))?;
    Ok(match summary.model {
        Some(_) => Outcome::Done,
        None => Outcome::Stopped,
    })
}

/// The recipe of a run that has begun.
fn go_on<T: DownstreamTask>(arguments: &FinetuneArguments, run: &Path) -> Result<Order<T::Config>> {
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
        recipe: FinetuneRecipe::of_run(run, &arguments.set)?,
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
    let default = || PathBuf::from("runs").join(format!("{name}-{}", recipe.seed));
    let folder = arguments.out.clone().unwrap_or_else(default);
    Ok(Order {
        recipe,
        folder,
        resume: false,
    })
}

/// Prints the progress of the run.
struct Teller {
    title: String,
    init: PathBuf,
    meter: Meter,
}

impl Teller {
    fn tell(&mut self, event: FinetuneEvent<'_>) {
        match event {
            FinetuneEvent::Start {
                examples,
                steps,
                batch,
                from,
            } => self.meter.line(&format!(
                "{}: {examples} examples, {steps} steps of {batch}, from step {from}",
                self.title
            )),
            FinetuneEvent::Note(note) => warn(note),
            FinetuneEvent::Loaded(report) => self
                .meter
                .line(&format!("starting from {}: {report}", self.init.display())),
            FinetuneEvent::Step {
                step,
                steps,
                metrics,
            } => {
                let metric = |key: &str| metrics.get(key).copied().unwrap_or(f64::NAN);
                let note = format!(
                    "loss {:.4}, {}",
                    metric("loss/total"),
                    rate(metric("speed/images_per_second"), "images")
                );
                self.meter.set(step, steps, &note);
            }
            FinetuneEvent::Evaluated {
                step,
                evaluation,
                best,
            } => {
                let metrics = line_of(&evaluation.scores.metrics);
                let best = if best { " (best so far)" } else { "" };
                self.meter.line(&format!("step {step}: {metrics}{best}"));
            }
        }
    }
}

fn describe(name: &str, summary: &FinetuneSummary, folder: &Path) -> String {
    let Some(model) = &summary.model else {
        return format!(
            "stopped after step {}; resume with: clasp finetune {name} --resume {}",
            summary.steps,
            folder.display()
        );
    };
    let chosen = match &summary.best {
        Some(best) => format!(
            "selected by {} on {}, after step {}",
            best.metric, best.data, best.step
        ),
        None => "the last step's".to_owned(),
    };
    format!(
        "{} steps on {} examples in {}\nmodel: {} ({chosen})\nnext: clasp eval {name} --data DATA --model {}",
        summary.steps,
        summary.examples,
        duration(summary.seconds),
        model.display(),
        folder.display()
    )
}
