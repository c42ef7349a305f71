//! `clasp merge`.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clasp_data::atomic::atomic_write;
use clasp_data::missing::require;
use clasp_tasks::embed::merge_features;
use fs_err as fs;
use serde_json::{Value, json};

use super::{Input, check_writable, claim_outputs, print_result};
use crate::Outcome;
use crate::args::{GlobalOptions, MergeArguments};

/// Runs the command.
pub fn run(common: &GlobalOptions, arguments: &MergeArguments) -> Result<Outcome> {
    let out = &arguments.out;
    check_writable(out)?;
    for part in &arguments.parts {
        require(part, "a part that `clasp embed` or `clasp predict` wrote")?;
        // Parts are read twice, and a pipe gives its content once.
        ensure!(
            fs::metadata(part)?.is_file(),
            "{}: expected a file, found a folder, a device or a pipe\nhint: write it to a file first",
            part.display()
        );
        ensure!(
            part.extension() == out.extension(),
            "{}: expected a file of the format of --out {}",
            part.display(),
            out.display()
        );
        claim_outputs(&[("--out", out)], &[Input::Files(part)])?;
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
            let mut part = fs::File::open(path)?;
            let ends = ends_in_line_break(&mut part)?;
            std::io::copy(&mut part, file)?;
            if !ends {
                file.write_all(b"\n")?;
            }
        }
        Ok(())
    })?;
    Ok(images.len())
}

/// Whether a file is empty or ends with a line break, without which the next part would continue
/// its last line. Leaves the file at its beginning.
fn ends_in_line_break(file: &mut (impl Read + Seek)) -> std::io::Result<bool> {
    let mut last = [b'\n'];
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(last == [b'\n'])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last line of such a part and the first of the next used to become one.
    #[test]
    fn parts_without_their_last_line_break_are_joined_as_lines() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("p"), "{\"image\": \"a\"}").unwrap();
        fs::write(at("empty"), "").unwrap();
        fs::write(at("q"), "{\"image\": \"b\"}\n").unwrap();
        let parts = [at("p"), at("empty"), at("q")];
        assert_eq!(merge_lines(&parts, &at("out")).unwrap(), 2);
        let joined = fs::read_to_string(at("out")).unwrap();
        assert_eq!(joined, "{\"image\": \"a\"}\n{\"image\": \"b\"}\n");
    }
}
