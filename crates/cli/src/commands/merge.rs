//! `clasp merge`.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clasp_data::atomic::atomic_write;
use clasp_tasks::embed::merge_features;
use fs_err as fs;
use serde_json::{Value, json};

use super::{check_writable, print_result};
use crate::Outcome;
use crate::args::{GlobalOptions, MergeArguments};

/// Runs the command.
pub fn run(common: &GlobalOptions, arguments: &MergeArguments) -> Result<Outcome> {
    let out = &arguments.out;
    check_writable(out)?;
    for part in &arguments.parts {
        ensure!(
            part.extension() == out.extension(),
            "{}: expected a file of the format of --out {}",
            part.display(),
            out.display()
        );
        ensure!(part != out, "{}: is a part and the result", part.display());
    }
    let is_lines = out.extension().is_some_and(|ending| ending == "jsonl");
    let (rows, files) = match is_lines {
        true => (merge_lines(&arguments.parts, out)?, vec![out.clone()]),
        false => merge_features(&arguments.parts, out)?,
    };
    let names: Vec<String> = files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    let text = format!(
        "{rows} images of {} parts in {}",
        arguments.parts.len(),
        names.join(" and ")
    );
    let value = json!({ "images": rows, "parts": arguments.parts.len(), "files": files });
    print_result(common.json, &value, &text)?;
    Ok(Outcome::Done)
}

/// Joins files of predictions and returns their number of images.
fn merge_lines(parts: &[PathBuf], out: &Path) -> Result<usize> {
    let mut images = HashSet::new();
    for path in parts {
        // As lines, so that not even one part has to fit into memory.
        for (number, line) in BufReader::new(fs::File::open(path)?).lines().enumerate() {
            let line = line?;
            let value: Option<Value> = serde_json::from_str(&line).ok();
            let image = { value.as_ref() }.and_then(|value| value["image"].as_str());
            let image = image.with_context(|| {
                format!(
                    "{}: line {}: expected a prediction of `clasp predict`, {{\"image\": KEY, ...}}",
                    path.display(),
                    number + 1
                )
            })?;
            if !images.insert(image.to_owned()) {
                bail!(
                    "{}: expected other images than the parts before it, found `{image}` again",
                    path.display()
                );
            }
        }
    }
    atomic_write(out, |file| {
        for path in parts {
            std::io::copy(&mut fs::File::open(path)?, file)?;
        }
        Ok(())
    })?;
    Ok(images.len())
}
