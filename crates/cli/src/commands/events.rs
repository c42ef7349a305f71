//! Progress lines of the events of a training loop, the same for every kind of training, with an
//! estimate of its duration after the first steps.

use std::time::Instant;

use burn::tensor::Device;
use clasp_model::backbone::BackboneConfig;
use clasp_run::Event;

use crate::args::GlobalOptions;
use crate::progress::{Meter, counted, duration, rate};

/// Steps that an estimate needs; the first is slower and is not counted.
const TIMED_STEPS: u64 = 3;
/// Seconds that an estimate needs, so that it is not one of a moment.
const TIMED_SECONDS: f64 = 5.0;
/// Seconds from which on a run counts as long.
const LONG: f64 = 3600.0;

/// What makes a run of steps shorter: the recipe `small`, if there is one, fewer steps, a GPU.
pub fn shorter_run(small: Option<&str>) -> String {
    let small = small.map_or(String::new(), |name| format!("the recipe `{name}`, "));
    format!("{small}fewer steps (--set run.steps=N) or a GPU")
}

/// Prints the events of a run.
pub struct EventPrinter {
    title: String,
    unit: &'static str,
    /// What makes the run shorter, in words.
    shorter: String,
    estimate: CostEstimate,
    meter: Meter,
}

impl EventPrinter {
    /// Of the run of `command`, such as `finetune reid`, whose first line begins with `title`. A
    /// step counts `unit` ("images", "pairs"); `shorter` says what makes a long run shorter.
    pub fn new(
        common: &GlobalOptions,
        command: &str,
        title: String,
        unit: &'static str,
        shorter: &str,
    ) -> Self {
        Self {
            title,
            unit,
            shorter: shorter.to_owned(),
            estimate: CostEstimate::default(),
            meter: Meter::new(common, command, "steps"),
        }
    }

    /// Says which recipe is meant for a CPU, if the run is on one.
    pub fn on_device(&mut self, device: &Device, small: &str) {
        if *device == Device::flex() {
            self.meter.message(&format!(
                "note: this recipe is meant for a GPU: a step takes minutes on most CPUs; the recipe `{small}` is meant \
                 for a CPU"
            ));
        }
    }

    /// Prints an event.
    pub fn print(&mut self, event: Event<'_>) {
        let Self {
            title,
            unit,
            shorter,
            estimate,
            meter,
        } = self;
        match event {
            Event::Start {
                examples,
                batch,
                steps,
                from,
            } => {
                estimate.begin(Instant::now());
                meter.line(&format!(
                    "{title}: {}, {} of {batch}, from step {from}",
                    counted(examples, "example"),
                    counted(steps, "step")
                ));
            }
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
                if let Some(seconds) = estimate.after_step(Instant::now(), step, steps) {
                    meter.line(&in_words(seconds, steps, shorter));
                }
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

/// Times the first steps of a process, once.
#[derive(Default)]
struct CostEstimate {
    /// When the first step of the process began.
    begun: Option<Instant>,
    /// When the first step of the process ended, and its number.
    first: Option<(Instant, u64)>,
    is_given: bool,
}

impl CostEstimate {
    /// The first step begins.
    fn begin(&mut self, now: Instant) {
        self.begun = Some(now);
    }

    /// The seconds that all `steps` of the run take, once enough of them were timed. After a first
    /// step of a minute or more, which is slower than the others, at most so many.
    fn after_step(&mut self, now: Instant, step: u64, steps: u64) -> Option<f64> {
        if self.first.is_none()
            && let Some(begun) = self.begun
        {
            let seconds = now.duration_since(begun).as_secs_f64();
            if seconds >= 12.0 * TIMED_SECONDS {
                self.first = Some((now, step));
                return Some(seconds * steps as f64);
            }
        }
        let (began, first) = *self.first.get_or_insert((now, step));
        let timed = step.saturating_sub(first);
        let seconds = now.duration_since(began).as_secs_f64();
        // Steps of a minute each are timed one by one.
        let is_enough = timed >= TIMED_STEPS && seconds >= TIMED_SECONDS;
        if self.is_given || !(is_enough || timed > 0 && seconds >= 12.0 * TIMED_SECONDS) {
            return None;
        }
        self.is_given = true;
        Some(seconds / timed as f64 * steps as f64)
    }
}

/// Whether a backbone has more than twice the parameters of another, by their names.
pub fn is_larger(backbone: &str, than: &str) -> bool {
    let parameters = |name| BackboneConfig::named(name).ok()?.parameters().ok();
    matches!((parameters(backbone), parameters(than)), (Some(large), Some(small)) if large > 2 * small)
}

/// The estimate as a line, with what makes a long run shorter.
fn in_words(seconds: f64, steps: u64, shorter: &str) -> String {
    let all = format!(
        "all {} take about {}",
        counted(steps, "step"),
        duration(seconds)
    );
    match seconds >= LONG {
        true => format!("{all}; shorter: {shorter}"),
        false => all,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_duration_of_a_run_is_estimated_once_from_all_steps_but_the_first() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut estimate = CostEstimate::default();
        // A resumed run: the first step of this process took 40 s, the others 2 s each.
        assert_eq!(estimate.after_step(at(40), 11, 100), None);
        assert_eq!(estimate.after_step(at(42), 12, 100), None);
        assert_eq!(estimate.after_step(at(44), 13, 100), None);
        assert_eq!(estimate.after_step(at(46), 14, 100), Some(200.0));
        assert_eq!(estimate.after_step(at(48), 15, 100), None);
        // A first step of two minutes, and then one of one.
        let mut estimate = CostEstimate::default();
        estimate.begin(at(0));
        assert_eq!(estimate.after_step(at(120), 1, 50), Some(6000.0));
        assert_eq!(estimate.after_step(at(180), 2, 50), Some(3000.0));
        assert_eq!(estimate.after_step(at(240), 3, 50), None);
        // Long steps.
        let mut estimate = CostEstimate::default();
        assert_eq!(estimate.after_step(at(0), 1, 50), None);
        assert_eq!(estimate.after_step(at(100), 2, 50), Some(5000.0));
    }

    #[test]
    fn only_a_long_run_is_told_what_makes_it_shorter() {
        assert_eq!(
            in_words(200.0, 100, "fewer"),
            "all 100 steps take about 3 min 20 s"
        );
        assert_eq!(
            in_words(46_800.0, 9000, "the recipe `mini`"),
            "all 9000 steps take about 13 h 00 min; shorter: the recipe `mini`"
        );
    }
}
