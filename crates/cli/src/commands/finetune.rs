//! `clasp finetune TASK RECIPE`.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::{Result, bail};
use clasp_tasks::finetune::recipe::Recipe;
use clasp_tasks::finetune::{Control, Event, Task, train};

use super::tuned::with_task;
use super::{check_data, eval, print_result};
use crate::args::{Common, Finetune};
use crate::progress::{Meter, duration, warn};
use crate::{Outcome, device, interrupt};

/// Runs the verb.
pub fn run(common: &Common, arguments: &Finetune) -> Result<Outcome> {
    with_task!(arguments.task, T => finetune::<T>(common, arguments))
}

fn finetune<T: Task>(common: &Common, arguments: &Finetune) -> Result<Outcome> {
    let name = eval::name(arguments.task);
    let (recipe, folder, resume) = match &arguments.resume {
        Some(folder) => {
            let given = [
                ("RECIPE", arguments.recipe.is_some()),
                ("--out", arguments.out.is_some()),
                ("--data", arguments.data.is_some()),
                ("--init", arguments.init.is_some()),
            ];
            if let Some((what, _)) = given.iter().find(|(_, given)| *given) {
                bail!("--resume RUN takes everything from the run; leave out {what}");
            }
            if arguments
                .set
                .iter()
                .any(|set| set.starts_with("run.epochs"))
            {
                bail!(
                    "--resume: a run that has begun counts steps\n  hint: change them with --set run.steps=N, or leave out run.epochs"
                );
            }
            let recipe = Recipe::<T::Settings>::of_run(folder, &arguments.set)?;
            (recipe, folder.clone(), true)
        }
        None => {
            let path = arguments.recipe.clone().unwrap_or_else(|| name.to_owned());
            let mut recipe = Recipe::<T::Settings>::load(&path, &arguments.set)?;
            if let Some(data) = &arguments.data {
                recipe.data.path.clone_from(data);
            }
            if let Some(init) = &arguments.init {
                recipe.model.init.clone_from(init);
            }
            if recipe.data.path.as_os_str().is_empty() {
                bail!(
                    "clasp finetune {name}: no data\n  hint: name the data set's folder with --data"
                );
            }
            check_data(&recipe.data.path)?;
            let seed = recipe.seed;
            let folder = { arguments.out.clone() }
                .unwrap_or_else(|| PathBuf::from("runs").join(format!("{name}-{seed}")));
            (recipe, folder, false)
        }
    };
    let stop = interrupt::flag()?;
    let meter = Mutex::new(Meter::new(common, &format!("finetune {name}"), "steps"));
    let line = |text: &str| {
        if let Ok(meter) = meter.lock() {
            meter.line(text);
        }
    };
    let mut report = |event: Event<'_>| match event {
        Event::Start {
            examples,
            steps,
            batch,
            from,
        } => line(&format!(
            "{name} on {examples} examples, {steps} steps of {batch}, from step {from}; run folder {}",
            folder.display()
        )),
        Event::Note(note) => warn(note),
        Event::Loaded(report) => line(&format!(
            "starting from {}: {report}",
            recipe.model.init.display()
        )),
        Event::Step {
            step,
            steps,
            metrics,
        } => {
            let figure = |key: &str| metrics.get(key).copied().unwrap_or(f64::NAN);
            let note = format!(
                "loss {:.4} images/s {:.1}",
                figure("loss/total"),
                figure("speed/images_per_second")
            );
            if let Ok(mut meter) = meter.lock() {
                meter.set(step, steps, &note);
            }
        }
        Event::Evaluated { step, report, best } => {
            let figures: Vec<String> = { report.figures.iter() }
                .map(|(name, value)| format!("{name} {:.2}", 100.0 * value))
                .collect();
            let best = if best { " (best so far)" } else { "" };
            line(&format!("step {step}: {}{best}", figures.join("  ")));
        }
    };
    let evaluating = |_: clasp_tasks::Progress| -> ControlFlow<()> { interrupt::flow(&stop) };
    let mut control = Control {
        device: device::pick(common.device.as_deref())?,
        cores: device::threads(common.threads),
        stop: &stop,
        report: &mut report,
        evaluating: &evaluating,
    };
    let summary = train::<T>(&recipe, &folder, resume, &mut control)?;
    let text = match &summary.model {
        Some(model) => {
            let chosen = match &summary.best {
                Some(best) => format!(
                    "chosen by {} on {}: {:.2} after step {}",
                    best.metric,
                    best.data,
                    100.0 * best.value,
                    best.step
                ),
                None => "the last step's".to_owned(),
            };
            format!(
                "{} steps on {} examples in {}\nmodel: {} ({chosen})",
                summary.steps,
                summary.examples,
                duration(summary.seconds),
                model.display()
            )
        }
        None => format!(
            "stopped after step {}; go on with: clasp finetune {name} --resume {}",
            summary.steps,
            folder.display()
        ),
    };
    print_result(common.json, &summary, &text)?;
    Ok(Outcome::Done)
}
