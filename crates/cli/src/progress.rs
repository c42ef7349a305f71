//! Progress on standard error: a bar with a rate and the time left on a terminal, a plain line now
//! and then elsewhere.
//!
//! Work continues when progress cannot be written, for example to a full disk.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use clasp_data::text::printable;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use crate::args::GlobalOptions;

/// Seconds between two plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// A line on standard error; a failed write is ignored.
pub fn tell(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{}", printable(text));
}

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
    pub fn new(common: &GlobalOptions, what: &str, unit: &'static str) -> Self {
        let bar = (!common.quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template(
                "{msg:<28} {wide_bar} {human_pos}/{human_len} {unit} {speed} {left}",
            );
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            let style = style
                .with_key(
                    "unit",
                    move |_: &ProgressState, out: &mut dyn std::fmt::Write| {
                        let _ = write!(out, "{unit}");
                    },
                )
                .with_key(
                    "speed",
                    move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                        let _ = write!(out, "{}", rate(state.per_sec(), unit));
                    },
                )
                .with_key(
                    "left",
                    |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                        let _ = write!(out, "{} left", duration(state.eta().as_secs_f64()));
                    },
                );
            bar.set_style(style);
            bar.set_message(what.to_owned());
            // The time left is also shown while a long step runs.
            bar.enable_steady_tick(Duration::from_secs(1));
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
        let speed = (done.saturating_sub(first)) as f64 / seconds;
        let left = if speed > 0.0 && done < total {
            format!(", {} left", duration((total - done) as f64 / speed))
        } else {
            String::new()
        };
        let note = if note.is_empty() {
            String::new()
        } else {
            format!(", {note}")
        };
        let speed = match speed > 0.0 {
            true => format!(", {}", rate(speed, self.unit)),
            false => String::new(),
        };
        self.line(&format!(
            "{}: {done}/{total} {}{speed}{left}{note}",
            self.what, self.unit
        ));
    }

    /// A line of text that stays, printed with --quiet too.
    pub fn message(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(printable(text)),
            None => tell(text),
        }
    }

    /// A line of text that stays.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(printable(text)),
            None if self.quiet => {}
            None => tell(text),
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
pub fn say(common: &GlobalOptions, text: &str) {
    if !common.quiet {
        tell(text);
    }
}

/// A note that is printed with --quiet too.
pub fn warn(text: &str) {
    tell(&format!("note: {text}"));
}

/// Something to act on, printed with --quiet too.
pub fn warning(text: &str) {
    tell(&format!("warning: {text}"));
}

/// A rate with about three digits, as `24.3 images/s`; below one a second the time of one unit, as
/// `2.5 s per step`.
pub fn rate(per_second: f64, unit: &str) -> String {
    if !per_second.is_finite() || per_second <= 0.0 {
        return format!("0 {unit}/s");
    }
    match per_second {
        100.0.. => format!("{per_second:.0} {unit}/s"),
        1.0.. => format!("{per_second:.1} {unit}/s"),
        _ => {
            let one = unit.strip_suffix('s').unwrap_or(unit);
            format!("{} per {one}", duration(1.0 / per_second))
        }
    }
}

/// Seconds as `2 d 03 h`, `1 h 02 min`, `3 min 20 s` or `4.2 s`.
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        86_400.. => format!("{} d {:02} h", whole / 86_400, whole % 86_400 / 3600),
        3600.. => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
        60.. => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{seconds:.1} s"),
    }
}

/// A number with its noun, `1 shard` or `2 shards`. `noun` is the singular.
pub fn counted(number: impl TryInto<u64>, noun: &str) -> String {
    // A number above u64 is none of 1.
    let number = number.try_into().unwrap_or(u64::MAX);
    match (number, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        (_, None) => format!("{number} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_singular() {
        let said = [0, 1, 2].map(|number| counted(number, "shard"));
        assert_eq!(said, ["0 shards", "1 shard", "2 shards"]);
        assert_eq!(counted(1_usize, "query"), "1 query");
        assert_eq!(counted(3_u64, "query"), "3 queries");
    }

    #[test]
    fn rates_and_times_have_one_form() {
        assert_eq!(rate(24.25325760400074, "images"), "24.3 images/s");
        assert_eq!(rate(1234.5, "images"), "1234 images/s");
        assert_eq!(rate(0.4, "steps"), "2.5 s per step");
        assert_eq!(rate(0.004, "steps"), "4 min 10 s per step");
        assert_eq!(rate(0.0, "steps"), "0 steps/s");
        assert_eq!(duration(59.96), "1 min 00 s");
        assert_eq!(duration(3725.0), "1 h 02 min");
        assert_eq!(duration(183_600.0), "2 d 03 h");
    }
}
