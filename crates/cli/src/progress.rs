//! Progress on standard error: a bar with a rate and the time left on a terminal, a plain line now
//! and then elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::args::Common;

/// Seconds between two plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// Shows how far a piece of work is.
pub struct Meter {
    what: String,
    unit: &'static str,
    bar: Option<ProgressBar>,
    quiet: bool,
    started: Instant,
    first: Option<u64>,
    printed: Instant,
}

impl Meter {
    /// `what` is being done, counted in `unit` ("images", "steps").
    pub fn new(common: &Common, what: &str, unit: &'static str) -> Self {
        let bar = (!common.quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template(
                "{msg:<28} {wide_bar} {human_pos}/{human_len} {per_sec:>14} {eta:>5}",
            );
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(what.to_owned());
            bar
        });
        let now = Instant::now();
        Self {
            what: what.to_owned(),
            unit,
            bar,
            quiet: common.quiet,
            started: now,
            first: None,
            printed: now,
        }
    }

    /// `done` of `total` are finished; `note` is shown beside them.
    pub fn set(&mut self, done: u64, total: u64, note: &str) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(if note.is_empty() {
                self.what.clone()
            } else {
                format!("{}: {note}", self.what)
            });
            return;
        }
        let first = *self.first.get_or_insert(done);
        if self.quiet || (self.printed.elapsed() < PLAIN_EVERY && done < total) {
            return;
        }
        self.printed = Instant::now();
        let seconds = self.started.elapsed().as_secs_f64().max(1e-9);
        let rate = (done.saturating_sub(first)) as f64 / seconds;
        let left = if rate > 0.0 {
            format!(
                ", {} left",
                duration((total.saturating_sub(done)) as f64 / rate)
            )
        } else {
            String::new()
        };
        let note = if note.is_empty() {
            String::new()
        } else {
            format!(", {note}")
        };
        self.line(&format!(
            "{}: {done}/{total} {}, {rate:.1} {}/s{left}{note}",
            self.what, self.unit, self.unit
        ));
    }

    /// A line of text that stays.
    #[allow(clippy::print_stderr)]
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None if self.quiet => {}
            None => eprintln!("{text}"),
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A line on standard error, unless quiet.
#[allow(clippy::print_stderr)]
pub fn say(common: &Common, text: &str) {
    if !common.quiet {
        eprintln!("{text}");
    }
}

/// Something that the user must know, with --quiet too.
#[allow(clippy::print_stderr)]
pub fn warn(text: &str) {
    eprintln!("note: {text}");
}

/// Seconds as `1 h 02 min`, `3 min 20 s` or `4.2 s`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        3600.. => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
        60.. => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{seconds:.1} s"),
    }
}
