//! Evaluation by several processes: each computes the results of a shard of the test set and writes
//! them to a file, and one reads the files of all shards and computes the metrics.
//!
//! A file has lines of JSON: what was evaluated, then the result of each unit in order. Numbers are
//! written so that they are read again to the bit, and a shard is whole batches, so that the metrics
//! are those of one process to the bit.

use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::{Path, PathBuf};

use clasp_data::atomic::atomic_write;
use clasp_run::ranks::Digest;
use clasp_weights::state::state_dict;
use fs_err as fs;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::evaluation::mismatch;
use super::{Evaluate, FinetunedModel};
use crate::TaskError;
use crate::features::Preprocess;

/// Most characters of a value in a message.
const MOST_SHOWN: usize = 200;

/// What must be the same for all shards of an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Evaluated {
    /// Version of clasp.
    clasp: String,
    task: String,
    /// The split that was asked for.
    split: String,
    /// Units of the whole test set.
    units: usize,
    /// Digest of their names and labels or boxes.
    test_set: String,
    /// Digest of the weights.
    weights: String,
    /// What the results depend on besides: the state of the task, preprocessing, prompt, precision.
    settings: Value,
}

/// The first line of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Header {
    evaluated: Evaluated,
    /// The first unit of the shard, and the number of its units.
    first: usize,
    count: usize,
}

impl Evaluated {
    fn of<T: Evaluate>(model: &FinetunedModel<T>, data: &T::TestSet, split: &str) -> Self {
        let state = [state_dict(&model.backbone), state_dict(&model.head)];
        let tensors = state.iter().flatten();
        let weights = Digest::of_tensors(tensors.map(|(name, tensor)| (&**name, &*tensor.data)));
        let mut test_set = Digest::default();
        (0..T::units(data)).for_each(|unit| test_set.add_text(&T::unit_text(data, unit)));
        let mut task = serde_json::json!(model.task);
        for place in T::ONLY_SUMMARIZED {
            if let Some(value) = task.pointer_mut(place) {
                *value = Value::Null;
            }
        }
        let Preprocess {
            height,
            width,
            mean,
            std,
            filter,
        } = &model.preprocess;
        Self {
            clasp: env!("CARGO_PKG_VERSION").to_owned(),
            task: T::NAME.to_owned(),
            split: split.to_owned(),
            units: T::units(data),
            test_set: test_set.text(),
            weights,
            settings: serde_json::json!({
                "task": task,
                "size": [height, width],
                "mean": mean,
                "std": std,
                "filter": format!("{filter:?}"),
                "prompt": model.prompt,
                "precision": model.precision.to_string(),
            }),
        }
    }

    /// The first value that differs from that of `other`: its name, ours, theirs.
    fn difference(&self, other: &Self) -> Option<(String, String, String)> {
        let values = |one: &Self| {
            [
                ("version of clasp", one.clasp.clone()),
                ("task", one.task.clone()),
                ("split", one.split.clone()),
                ("images, people or scenes in number", one.units.to_string()),
                ("a test set of digest", one.test_set.clone()),
                ("weights of digest", one.weights.clone()),
            ]
        };
        { values(self).into_iter().zip(values(other)) }
            .find(|((_, own), (_, theirs))| own != theirs)
            .map(|((name, own), (_, theirs))| (name.to_owned(), own, theirs))
            .or_else(|| differing(&self.settings, &other.settings, "setting "))
    }
}

/// The first value in which two objects differ: its place, after `prefix`, ours, theirs.
fn differing(own: &Value, theirs: &Value, prefix: &str) -> Option<(String, String, String)> {
    if let (Value::Object(own), Value::Object(theirs)) = (own, theirs)
        && own.keys().eq(theirs.keys())
    {
        return { own.iter().zip(theirs.values()) }
            .find_map(|((key, own), theirs)| differing(own, theirs, &format!("{prefix}{key}.")));
    }
    let place = prefix.strip_suffix('.').unwrap_or(prefix).to_owned();
    let text = |value: &Value| value.to_string().chars().take(MOST_SHOWN).collect();
    (own != theirs).then(|| (place, text(own), text(theirs)))
}

/// The units of shard `index` of `of` of a test set: whole batches, each of at most `batch` units.
pub fn units_of<T: Evaluate>(data: &T::TestSet, batch: usize, shard: [usize; 2]) -> Range<usize> {
    units_of_shard(T::units(data), batch.min(T::MOST_AT_ONCE), shard)
}

fn units_of_shard(units: usize, batch: usize, [index, of]: [usize; 2]) -> Range<usize> {
    let batches = units.div_ceil(batch.max(1)) as u128;
    let place = |index: usize| {
        // Below the number of batches, so that it fits.
        let before = batches * index as u128 / of.max(1) as u128;
        (before as usize * batch.max(1)).min(units)
    };
    place(index)..place(index + 1)
}

/// Writes the results of a shard.
///
/// # Errors
/// The file cannot be written.
pub fn write<T: Evaluate>(
    path: &Path,
    model: &FinetunedModel<T>,
    data: &T::TestSet,
    split: &str,
    units: &Range<usize>,
    results: &[T::UnitResult],
) -> Result<(), TaskError> {
    let header = Header {
        evaluated: Evaluated::of(model, data, split),
        first: units.start,
        count: units.len(),
    };
    atomic_write(path, |file| {
        serde_json::to_writer(&mut *file, &header)?;
        file.write_all(b"\n")?;
        for result in results {
            serde_json::to_writer(&mut *file, result)?;
            file.write_all(b"\n")?;
        }
        Ok(())
    })?;
    Ok(())
}

/// The results of all units, in their order, from the files of all shards.
///
/// # Errors
/// A file is of another model or test set or is damaged, or a shard is missing or given twice.
pub fn read<T: Evaluate>(
    paths: &[PathBuf],
    model: &FinetunedModel<T>,
    data: &T::TestSet,
    split: &str,
) -> Result<Vec<T::UnitResult>, TaskError> {
    let expected = Evaluated::of(model, data, split);
    let mut shards: Vec<(usize, &Path, Vec<T::UnitResult>)> = Vec::with_capacity(paths.len());
    for path in paths {
        let (first, results) = read_file(path, model, data, &expected)?;
        shards.push((first, path, results));
    }
    shards.sort_by_key(|(first, _, results)| (*first, results.len()));
    let mut all = Vec::new();
    let mut last = Path::new("no file");
    for (first, path, results) in shards {
        if first != all.len() {
            let found = format!("that from {first}{HINT}");
            let expected = format!("the shard from number {} of {}", all.len(), expected.units);
            return Err(mismatch(path, expected, found));
        }
        all.extend(results);
        last = path;
    }
    if all.len() < expected.units {
        let wanted = format!(
            "a further shard, from number {} of {}",
            all.len(),
            expected.units
        );
        return Err(mismatch(last, wanted, format!("none{HINT}")));
    }
    Ok(all)
}

const HINT: &str = "\nhint: give the files of all shards, each once";

/// The first unit of a shard, and the results of its units.
fn read_file<T: Evaluate>(
    path: &Path,
    model: &FinetunedModel<T>,
    data: &T::TestSet,
    expected: &Evaluated,
) -> Result<(usize, Vec<T::UnitResult>), TaskError> {
    let what = "a file of `clasp eval --shard`";
    let mut lines = BufReader::new(fs::File::open(path)?).lines();
    let header = lines.next().transpose();
    let header = header.map_err(|error| mismatch(path, what, error))?;
    let header: Header = serde_json::from_str(&header.unwrap_or_default())
        .map_err(|error| mismatch(path, what, error))?;
    if let Some((name, own, theirs)) = expected.difference(&header.evaluated) {
        let hint =
            "\nhint: give --data, --model, --split, --set, --size and --precision as with --shard";
        return Err(mismatch(
            path,
            format!("{name} {own}"),
            format!("{theirs}{hint}"),
        ));
    }
    let Header { first, count, .. } = header;
    if first
        .checked_add(count)
        .is_none_or(|end| end > expected.units)
    {
        let wanted = format!("results of {} at most", expected.units);
        return Err(mismatch(
            path,
            wanted,
            format!("{count} from number {first}"),
        ));
    }
    let mut results = Vec::new();
    for (number, line) in (2..).zip(lines) {
        let what = format!("line {number}: a result of `clasp eval --shard`");
        let line = line.map_err(|error| mismatch(path, &what, error))?;
        let result = serde_json::from_str(&line).map_err(|error| mismatch(path, &what, error))?;
        if results.len() < count {
            let unit = first + results.len();
            let checked = model.task.check_result(model, data, unit, &result);
            checked.map_err(|wrong| {
                mismatch(
                    path,
                    format!("line {number}: {}", wrong.expected),
                    wrong.found,
                )
            })?;
        }
        results.push(result);
    }
    if results.len() != count {
        let expected = format!("{count} results, as its first line says");
        return Err(mismatch(path, expected, results.len()));
    }
    Ok((first, results))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_whole_batches_and_cover_each_unit_once() {
        for (units, batch, of) in [(120, 16, 4), (7, 16, 3), (0, 4, 2), (33, 1, 5), (64, 16, 1)] {
            let mut next = 0;
            for index in 0..of {
                let shard = units_of_shard(units, batch, [index, of]);
                assert_eq!(shard.start, next, "{units} {batch} {of}");
                assert!(shard.start.is_multiple_of(batch) || shard.start == units);
                next = shard.end;
            }
            assert_eq!(next, units);
        }
        // 120 images keep four processes busy.
        assert!((0..4).all(|index| units_of_shard(120, 16, [index, 4]).len() >= 24));
        assert_eq!(
            units_of_shard(usize::MAX, 1, [usize::MAX - 1, usize::MAX]).len(),
            1
        );
    }
}
