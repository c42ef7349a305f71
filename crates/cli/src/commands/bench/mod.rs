//! `clasp bench`: one line of JSON with what this machine does in a second.

mod compare;
mod metrics;
mod networks;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use serde::Deserialize;
use serde_json::{Value, json};

use self::networks::On;
use super::print_text;
use crate::args::{Bench, BenchWork, Common};
use crate::{Outcome, device};

/// Runs the verb.
pub fn run(common: &Common, arguments: &Bench) -> Result<Outcome> {
    let device = device::pick(common.device.as_deref())?;
    let threads = device::threads(common.threads);
    let check = arguments.check.as_deref();
    if matches!(arguments.work, BenchWork::Compare(_)) {
        ensure!(check.is_none(), "--check: a comparison has no record");
    }
    let records = check.map(read_records).transpose()?;
    let bench = On {
        common,
        device: &device,
        threads,
    };
    let mut found = match &arguments.work {
        BenchWork::Data(options) => bench.data(options)?,
        BenchWork::Label(options) => bench.label(options)?,
        BenchWork::Pretrain(options) => bench.pretrain(options)?,
        BenchWork::Embed(options) => bench.embed(options)?,
        BenchWork::Rank(options) => metrics::rank(options)?,
        BenchWork::Coco(options) => metrics::coco(options)?,
        BenchWork::Parsing(options) => metrics::parsing(options)?,
        BenchWork::Detection(options) => metrics::detection(options)?,
        BenchWork::Search(options) => metrics::search(options)?,
        BenchWork::Compare(options) => return compare::run(options, &device),
    };
    found.settings["threads"] = json!(threads);
    // A figure of the network's device is there already.
    add_peak(&mut found.figures, &Device::flex());
    print_text(&found.line().to_string())?;
    let Some(records) = records else {
        return Ok(Outcome::Done);
    };
    let fallen = fallen(&found, &records)?;
    for line in &fallen {
        say(&format!("slower: {line}"));
    }
    Ok(if fallen.is_empty() {
        Outcome::Done
    } else {
        Outcome::CheckFailed
    })
}

/// Adds the peak memory of this process, which is not that of an accelerator, where it is not among the figures yet.
fn add_peak(figures: &mut Value, device: &Device) {
    let names = ["peak_mib", "host_peak_mib"];
    let name = names[usize::from(*device != Device::flex())];
    if let Some(mib) = device::peak_mib()
        && names.iter().all(|name| figures[name].is_null())
    {
        figures[name] = json!(mib);
    }
}

/// What a benchmark found.
struct Found {
    work: &'static str,
    /// What the figures depend on: a record holds for equal settings alone. An object.
    settings: Value,
    /// An object.
    figures: Value,
}

impl Found {
    /// One line for programs: the work, the figures, and the settings as an object of their own.
    fn line(&self) -> Value {
        let mut line = json!({ "work": self.work, "settings": self.settings });
        if let (Some(line), Some(figures)) = (line.as_object_mut(), self.figures.as_object()) {
            line.extend(figures.clone());
        }
        line
    }
}

/// A figure of this machine beside that of the peer, as it once was.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// `work` of the line that a benchmark prints.
    work: String,
    /// Its `settings`.
    settings: BTreeMap<String, Value>,
    /// Name of the figure in that line: a rate, `images_per_s`, or seconds.
    figure: String,
    /// The peer's figure.
    peer: f64,
    /// How many times as fast as the peer clasp was.
    ratio: f64,
}

impl Record {
    /// The settings that differ from those of a run, and how.
    fn differences(&self, found: &Found) -> Vec<String> {
        let names = self.settings.keys().cloned();
        let more =
            { found.settings.as_object().into_iter().flatten() }.map(|(name, _)| name.clone());
        let names: BTreeSet<String> = names.chain(more).collect();
        let show = |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
        { names.into_iter() }
            .filter_map(|name| {
                let (record, here) = (self.settings.get(&name), found.settings.get(&name));
                let text = format!("{name} {} in the record, {} here", show(record), show(here));
                (record != here).then_some(text)
            })
            .collect()
    }
}

/// Part of a recorded ratio that a figure must reach.
const ENOUGH: f64 = 0.85;

fn read_records(path: &Path) -> Result<Vec<Record>> {
    let text = fs_err::read_to_string(path)?;
    let records: Vec<Record> = serde_json::from_str(&text)
        .with_context(|| format!("{}: not a list of records", path.display()))?;
    for record in &records {
        ensure!(
            record.peer > 0.0 && record.ratio > 0.0,
            "{}: {}: expected a peer and a ratio above 0, found {} and {}",
            path.display(),
            record.work,
            record.peer,
            record.ratio
        );
    }
    Ok(records)
}

/// What there is to say about figures that are too far below their records.
///
/// # Errors
///
/// There is no record of this work with these settings; the message says what differs from the nearest one.
fn fallen(found: &Found, records: &[Record]) -> Result<Vec<String>> {
    let of_work = || {
        records
            .iter()
            .filter(|record| record.work == found.work && found.figures[&record.figure].is_number())
    };
    let mut known = 0;
    let mut lines = Vec::new();
    for record in of_work().filter(|record| record.differences(found).is_empty()) {
        let Some(figure) = found.figures[&record.figure].as_f64() else {
            continue;
        };
        known += 1;
        let ratio = match record.figure.as_str() {
            name if name.ends_with("_per_s") => figure / record.peer,
            _ => record.peer / figure,
        };
        if ratio < ENOUGH * record.ratio {
            lines.push(format!(
                "{}: {} is {figure:.3}, {ratio:.2} times the peer's; recorded {:.2} times",
                record.work, record.figure, record.ratio
            ));
        }
    }
    if known == 0 {
        let nearest = of_work()
            .map(|record| record.differences(found))
            .min_by_key(Vec::len);
        match nearest {
            None => bail!("--check: the file has no record of {}", found.work),
            Some(differences) => bail!(
                "--check: the file has no record of {} with these settings; the nearest differs: {}\n\
                 hint: benchmark what was recorded, or record this with runs/speed.py --record",
                found.work,
                differences.join("; ")
            ),
        }
    }
    Ok(lines)
}

#[allow(clippy::print_stderr)]
fn say(line: &str) {
    eprintln!("{line}");
}

/// Median seconds of `iters` runs after one warm-up.
fn timed(iters: usize, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    run()?;
    let mut seconds = Vec::new();
    for _ in 0..iters.max(1) {
        let begun = Instant::now();
        run()?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        serde_json::from_str(
            r#"[{"work": "embed", "settings": {"model": "swin-tiny", "batch": 8}, "figure": "images_per_s", "peer": 10.0, "ratio": 2.0},
                {"work": "rank", "settings": {}, "figure": "rank_s", "peer": 2.0, "ratio": 4.0}]"#,
        )
        .unwrap()
    }

    fn embed(batch: usize, images_per_s: f64) -> Found {
        Found {
            work: "embed",
            settings: json!({ "model": "swin-tiny", "batch": batch }),
            figures: json!({ "images_per_s": images_per_s }),
        }
    }

    #[test]
    fn a_figure_may_fall_by_15_percent() {
        let fallen = |found: Found| fallen(&found, &records()).map(|lines| lines.len());
        let rank = |seconds: f64| Found {
            work: "rank",
            settings: json!({}),
            figures: json!({ "rank_s": seconds }),
        };
        assert_eq!(fallen(embed(8, 17.1)).unwrap(), 0);
        assert_eq!(fallen(embed(8, 16.9)).unwrap(), 1);
        assert_eq!(fallen(rank(0.58)).unwrap(), 0);
        assert_eq!(fallen(rank(0.6)).unwrap(), 1);
        let other = Found {
            work: "multicrop",
            ..rank(1.0)
        };
        assert!(fallen(other).is_err());
    }

    #[test]
    fn a_record_of_other_settings_is_no_record() {
        let error = fallen(&embed(1, 1000.0), &records())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("batch 8 in the record, 1 here") && !error.contains("model"),
            "{error}"
        );
        // What a record does not name differs too.
        let mut found = embed(8, 1000.0);
        found.settings["device"] = json!("cuda");
        let error = fallen(&found, &records()).unwrap_err().to_string();
        assert!(
            error.contains("device nothing in the record, \"cuda\" here"),
            "{error}"
        );
    }
}
