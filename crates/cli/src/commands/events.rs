//! Progress lines of the events of a training loop, the same for every kind of training.

use clasp_run::Event;

use crate::args::GlobalOptions;
use crate::progress::{Meter, rate};

/// Prints the events of a run.
pub struct EventPrinter {
    title: String,
    unit: &'static str,
    meter: Meter,
}

impl EventPrinter {
    /// Of the run of `command`, such as `finetune reid`, whose first line begins with `title`. A
    /// step counts `unit` ("images", "pairs").
    pub fn new(common: &GlobalOptions, command: &str, title: String, unit: &'static str) -> Self {
        Self {
            title,
            unit,
            meter: Meter::new(common, command, "steps"),
        }
    }

    /// Prints an event.
    pub fn print(&mut self, event: Event<'_>) {
        let Self { title, unit, meter } = self;
        match event {
            Event::Start {
                examples,
                batch,
                steps,
                from,
            } => meter.line(&format!(
                "{title}: {examples} examples, {steps} steps of {batch}, from step {from}"
            )),
            Event::WeightsLoaded { path, report } => {
                meter.line(&format!("starting from {}: {report}", path.display()));
            }
            Event::Step {
                step,
                steps,
                metrics,
            } => {
                let metric = |name: &str| metrics.get(name).copied();
                let loss = metric("loss/total").map(|loss| format!("loss {loss:.4}"));
                let speed = metric("speed/images_per_second").map(|speed| rate(speed, unit));
                let note: Vec<String> = loss.into_iter().chain(speed).collect();
                meter.set(step, steps, &note.join(", "));
            }
            Event::Evaluated { step, result, best } => {
                let best = if best { " (best so far)" } else { "" };
                meter.line(&format!("step {step}: {result}{best}"));
            }
            Event::Warning(text) => meter.message(&format!("warning: {text}")),
            Event::Note(text) => meter.message(&format!("note: {text}")),
            Event::CheckpointSaved(_) => {}
        }
    }
}
