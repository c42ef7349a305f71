//! `clasp data check|pack|stats`.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::sync::Mutex;

use anyhow::Result;
use clasp_data::check::{FolderCheck, check};
use clasp_data::image::Limits;
use clasp_data::pack::{self, PackConfig};
use clasp_data::source::UnreadableImages;
use clasp_data::statistics::statistics;

use super::{open_images, print_result};
use crate::args::{DataCommand, GlobalOptions};
use crate::progress::{Meter, counted, say};
use crate::{Outcome, interrupt};

/// Unreadable files that are printed; `--json` has all.
const NAMED: usize = 10;

/// Runs the command.
pub fn run(common: &GlobalOptions, arguments: &DataCommand) -> Result<Outcome> {
    match arguments {
        DataCommand::Check { path } => {
            let meter = Mutex::new(Meter::new(common, "check", "images"));
            let report = check(&path.to_string_lossy(), true, &|done, total| {
                if let Ok(mut meter) = meter.lock() {
                    meter.set(done as u64, total as u64, "");
                }
            })?;
            drop(meter);
            print_result(common.json, &report, &describe(&report))?;
            Ok(if report.is_ok() {
                Outcome::Done
            } else {
                Outcome::CheckFailed
            })
        }
        DataCommand::Pack {
            images,
            out,
            per_shard,
            max_height,
            keep_going,
        } => {
            let source = open_images(images, *keep_going)?;
            let config = PackConfig {
                images_per_shard: *per_shard,
                max_height: *max_height,
                ..PackConfig::default()
            };
            let mut meter = Meter::new(common, "pack", "images");
            let stop = interrupt::flag()?;
            let report = pack::pack(
                &source,
                out,
                &config,
                &Limits::default(),
                &mut |done, total| {
                    meter.set(done as u64, total as u64, "");
                    interrupt::flow(&stop)
                },
            )?;
            drop(meter);
            if report.stopped {
                let packed = report.images;
                say(
                    common,
                    &format!(
                        "stopped after {}; run the same command to resume",
                        counted(packed, "image")
                    ),
                );
                return Ok(Outcome::Stopped);
            }
            let state = match report.resumed == source.len() {
                true => "already packed, nothing written: ",
                false => "",
            };
            let mut text = format!(
                "{state}{} ({:.1} MiB) in {} in {}",
                counted(report.images, "image"),
                mib(report.bytes),
                counted(report.shards.len(), "shard"),
                out.display()
            );
            if report.resized > 0 {
                let _ = write!(text, ", {} downscaled", report.resized);
            }
            list_unreadable(&mut text, &report.unreadable);
            print_result(common.json, &report, &text)?;
            unreadable_outcome(&report.unreadable, *keep_going)
        }
        DataCommand::Stats { images, keep_going } => {
            let source = open_images(images, *keep_going)?;
            let mut meter = Meter::new(common, "stats", "images");
            let stats = statistics(&source, &Limits::default(), &mut |done, total| {
                meter.set(done as u64, total as u64, "");
            });
            drop(meter);
            let mut text = format!(
                "{}, {:.1} MiB",
                counted(stats.images, "image"),
                mib(stats.bytes)
            );
            for (format, count) in &stats.formats {
                let _ = write!(text, ", {count} {format}");
            }
            for (name, sides) in [("height", stats.height), ("width", stats.width)] {
                let _ = write!(
                    text,
                    "\n{name:<6}  smallest {}, median {}, mean {:.1}, largest {}",
                    sides.min, sides.median, sides.mean, sides.max
                );
            }
            for bin in &stats.heights {
                let _ = write!(
                    text,
                    "\n  {:>5} to {:>5} px high: {:>8}",
                    bin.from,
                    2 * bin.from.max(1) - 1,
                    bin.images
                );
            }
            list_unreadable(&mut text, &stats.unreadable);
            print_result(common.json, &stats, &text)?;
            unreadable_outcome(&stats.unreadable, *keep_going)
        }
    }
}

/// The result of a check as text.
fn describe(report: &FolderCheck) -> String {
    let mut text = format!("{}: {}", report.path, counted(report.images, "image"));
    if let Some(decoded) = report.decoded {
        let _ = write!(text, ", {decoded} decoded");
    }
    for found in &report.layouts {
        let _ = write!(text, "\n{} in {}", found.layout, found.place);
        for count in &found.counts {
            let _ = write!(text, "\n  {:>8} {}", count.found, count.what);
            match count.official {
                Some(official) if official == count.found => text.push_str(" (as published)"),
                Some(official) => {
                    let _ = write!(text, " (published: {official})");
                }
                None => {}
            }
        }
        for (word, all) in [("problem", &found.problems), ("note", &found.notes)] {
            for one in all.iter().take(NAMED) {
                let _ = write!(text, "\n  {word}: {one}");
            }
            and_more(&mut text, "    ", all.len());
        }
    }
    if report.layouts.is_empty() {
        text.push_str("\nno known layout: usable for label, pretrain and embed");
    }
    for (key, reason) in report.unreadable.iter().take(NAMED) {
        let _ = write!(text, "\nunreadable: {key}: {reason}");
    }
    and_more(&mut text, "  ", report.unreadable.len());
    for (key, earlier) in report.repeated.iter().take(NAMED) {
        let _ = write!(text, "\nthe same image twice: {key} and {earlier}");
    }
    and_more(&mut text, "  ", report.repeated.len());
    for line in &report.skipped {
        let _ = write!(text, "\nnote: {line}");
    }
    if let Some(problem) = &report.problem {
        let _ = write!(text, "\nproblem: {problem}");
    }
    if report.layouts.is_empty() {
        let name = |path: &String| {
            let name = Path::new(path).file_name().unwrap_or_default();
            name.to_string_lossy().into_owned()
        };
        let names: BTreeSet<String> = report.tried.iter().map(name).collect();
        let names = Vec::from_iter(names).join(", ");
        let _ = write!(
            text,
            "\nnot found here or in the usual subfolders (--json lists the paths):\n  {names}"
        );
    }
    text
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 20) as f64
}

fn list_unreadable(text: &mut String, unreadable: &UnreadableImages) {
    if unreadable.failed.is_empty() {
        return;
    }
    let _ = write!(text, "\n{} unreadable:", unreadable.failed.len());
    for (key, reason) in unreadable.failed.iter().take(NAMED) {
        let _ = write!(text, "\n  {key}: {reason}");
    }
    and_more(text, "  ", unreadable.failed.len());
}

/// Says how many of `all` are not named.
fn and_more(text: &mut String, indent: &str, all: usize) {
    if all > NAMED {
        let more = all - NAMED;
        let _ = write!(text, "\n{indent}and {more} more (--json lists them)");
    }
}

fn unreadable_outcome(unreadable: &UnreadableImages, keep_going: bool) -> Result<Outcome> {
    if !keep_going {
        unreadable.check()?;
    }
    Ok(Outcome::Done)
}
