//! Recorded results of benchmarks, and the check against them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::measurement::Measurement;

/// A recorded result: the peer's value and the ratio of clasp to it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpeedRecord {
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
    /// The processor that both ran on: the peer's figure is of no other.
    processor: String,
}

impl SpeedRecord {
    /// The settings that differ from those of a run, and how.
    fn differences(&self, found: &Measurement) -> Vec<String> {
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

pub fn read_records(path: &Path) -> Result<Vec<SpeedRecord>> {
    let text = fs_err::read_to_string(path)?;
    let records: Vec<SpeedRecord> = serde_json::from_str(&text)
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
/// There is no record of this work with these settings; the message says what differs from the
/// nearest one.
pub fn fallen(found: &Measurement, records: &[SpeedRecord]) -> Result<Vec<String>> {
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
                "{}: {} is {figure:.3}, {ratio:.2} times the peer's; recorded {:.2} times on {}",
                record.work, record.figure, record.ratio, record.processor
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn records() -> Vec<SpeedRecord> {
        serde_json::from_str(
            r#"[{"work": "embed", "settings": {"model": "swin-tiny", "batch": 8}, "figure": "images_per_s", "peer": 10.0, "ratio": 2.0, "processor": "A"},
                {"work": "rank", "settings": {}, "figure": "rank_s", "peer": 2.0, "ratio": 4.0, "processor": "A"}]"#,
        )
        .unwrap()
    }

    fn embed(batch: usize, images_per_s: f64) -> Measurement {
        Measurement {
            work: "embed",
            settings: json!({ "model": "swin-tiny", "batch": batch }),
            figures: json!({ "images_per_s": images_per_s }),
        }
    }

    #[test]
    fn a_figure_may_fall_by_15_percent() {
        let fallen = |found: Measurement| fallen(&found, &records()).map(|lines| lines.len());
        let rank = |seconds: f64| Measurement {
            work: "rank",
            settings: json!({}),
            figures: json!({ "rank_s": seconds }),
        };
        assert_eq!(fallen(embed(8, 17.1)).unwrap(), 0);
        assert_eq!(fallen(embed(8, 16.9)).unwrap(), 1);
        assert_eq!(fallen(rank(0.58)).unwrap(), 0);
        assert_eq!(fallen(rank(0.6)).unwrap(), 1);
        let other = Measurement {
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
