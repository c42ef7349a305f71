//! `clasp embed IMAGES`.

use std::ops::Range;
use std::sync::Mutex;

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clasp_data::source::Source;
use clasp_model::prompt::{IDENTITY, PromptWeights};
use clasp_tasks::embed::{FeatureFile, embed_some, keys_file};
use clasp_tasks::reid::ReidTask;
use clasp_tasks::searcher::Searcher;
use clasp_tasks::task::Task as _;
use clasp_tasks::{Batching, PassProgress, TaskError};
use clasp_weights::finetuned::read_meta;
use serde_json::{Map, Value, json};

use super::partial::{self, Partial};
use super::{Input, check_writable, claim_outputs, one_or_all, open_images, part_of, print_result};
use crate::args::{EmbedArguments, GlobalOptions};
use crate::progress::{Meter, counted, say, warn};
use crate::{Outcome, device, interrupt};

/// Runs the command.
pub fn run(common: &GlobalOptions, arguments: &EmbedArguments) -> Result<Outcome> {
    check_writable(&arguments.out)?;
    let all_images = open_images(&arguments.images, arguments.keep_going)?;
    claim_outputs(
        &[
            ("--out", &arguments.out),
            ("--out", &keys_file(&arguments.out)),
        ],
        &[Input::Images(&all_images), Input::Model(&arguments.model)],
    )?;
    let source = part_of(&all_images, arguments.shard);
    // Another ending, or a name that does not fit, is an error now, not after hours.
    FeatureFile::create(&arguments.out, None)?.check_keys(&source)?;
    let prompt: Option<PromptWeights> = { arguments.prompt.as_ref() }
        .map(|prompt| prompt.parse())
        .transpose()?;
    let device = device::pick(common.device.as_deref())?;
    let precision = device::precision(common, arguments.precision, &device)?;
    let (path, size) = (&arguments.model, arguments.size);
    let compares = read_meta(path)?.is_some_and(|meta| meta.task == ReidTask::NAME);
    let searcher = if compares && prompt.is_none() {
        Searcher::load(path, size, precision, &device)?
    } else {
        let prompt = prompt.unwrap_or_else(|| PromptWeights::single(IDENTITY));
        Searcher::of_backbone(path, size, prompt, precision, &device)?
    };
    if let Some(prompt) = &arguments.prompt
        && !searcher.has_prompts()
    {
        warn(&format!(
            "--prompt {prompt}: the model has no prompts, so it changes nothing"
        ));
    }
    let origin = searcher.origin();
    let mut asked = json!({
        "clasp": env!("CARGO_PKG_VERSION"),
        "embed": one_or_all(&arguments.images),
        "model": origin.model,
        "prompt": origin.prompt,
        "size": arguments.size,
        "precision": precision.to_string(),
    });
    if let Some(part) = arguments.shard {
        asked["shard"] = json!(part);
    }
    let mut partial = Partial::open(&arguments.out, &asked, &source)?;
    if partial.done > 0 {
        say(
            common,
            &format!("resuming after {}", counted(partial.done, "image")),
        );
    }
    let finished = all(common, arguments, &searcher, &source, &mut partial)?;
    if !finished {
        say(common, &partial.stopped(source.len()));
        return Ok(Outcome::Stopped);
    }
    if !arguments.keep_going {
        partial.unreadable().check()?;
    }
    let mut file = FeatureFile::create(&arguments.out, Some(&origin))?;
    let mut channels = 0;
    partial.each(|_, line| {
        let (key, row) = from_line(line)?;
        channels = row.len();
        Ok(file.push(key, &row)?)
    })?;
    let files = file.finish()?;
    let unreadable = partial.unreadable();
    partial.remove()?;
    let images = source.len() - unreadable.failed.len();
    let text = format!(
        "{} of length {channels} in {}; {} unreadable",
        counted(images, "feature"),
        files
            .iter()
            .map(|file| file.display().to_string())
            .collect::<Vec<_>>()
            .join(" and "),
        counted(unreadable.failed.len(), "image")
    );
    let value = json!({
        "images": images,
        "channels": channels,
        "files": files,
        "unreadable": unreadable,
    });
    print_result(common.json, &value, &text)?;
    Ok(Outcome::Done)
}

/// Embeds the remaining images and writes rows after each chunk; false where Ctrl-C stopped it.
fn all(
    common: &GlobalOptions,
    arguments: &EmbedArguments,
    searcher: &Searcher,
    source: &Source,
    partial: &mut Partial,
) -> Result<bool> {
    let batching = Batching {
        threads: device::threads(common.threads),
        ..Batching::default()
    };
    let stop = interrupt::flag()?;
    let meter = Mutex::new(Meter::new(common, "embed", "images"));
    let progress = |progress: PassProgress| {
        if let Ok(mut meter) = meter.lock() {
            meter.set(progress.done as u64, progress.total as u64, "");
        }
        interrupt::flow(&stop)
    };
    let preprocess = searcher.preprocess();
    let some = |items: Range<usize>| -> Result<Option<Vec<partial::ImageResult>>> {
        match embed_some(searcher, &preprocess, source, items, &batching, &progress) {
            Err(TaskError::Stopped) => Ok(None),
            Err(error) => Err(anyhow::Error::from(error)),
            Ok(rows) => {
                let rows = rows.into_iter().map(|row| row.map(|row| to_fields(&row)));
                Ok(Some(rows.collect()))
            }
        }
    };
    partial.work(source, batching.chunk(), arguments.keep_going, some)
}

/// A feature as fields of a line, to the bit: base64 of its numbers, little endian.
fn to_fields(row: &[f32]) -> Map<String, Value> {
    let bytes: Vec<u8> = row.iter().flat_map(|value| value.to_le_bytes()).collect();
    Map::from_iter([("feature".to_owned(), json!(BASE64_STANDARD.encode(bytes)))])
}

/// The key and the feature of a line.
fn from_line(line: &Value) -> Result<(&str, Vec<f32>)> {
    let field = |name: &str| {
        line[name]
            .as_str()
            .context("a damaged line of finished results")
    };
    let bytes = BASE64_STANDARD.decode(field("feature")?)?;
    let (values, _) = bytes.as_chunks::<4>();
    let row = values.iter().map(|bytes| f32::from_le_bytes(*bytes));
    Ok((field("image")?, row.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_comes_back_to_the_bit() {
        let row = [0.1, -1.5e-38, 3.4e38, 0.0, -0.0];
        let mut line = to_fields(&row);
        line.insert("image".to_owned(), json!("a/b"));
        let line = Value::Object(line);
        let (key, back) = from_line(&line).unwrap();
        assert_eq!(key, "a/b");
        let bits = |row: &[f32]| row.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&back), bits(&row));
    }
}
