//! The checkpoints of a run: `checkpoints/step-00000100.safetensors` in its folder. Which exist,
//! when one is written, which are kept, and the checks of the metadata when one is read. What a
//! checkpoint contains is up to each training loop.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use clasp_data::atomic::remove_abandoned;
use fs_err as fs;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::RunError;
use crate::recipe::difference;

/// The file of the checkpoint after `step` steps.
pub fn path(folder: &Path, step: u64) -> PathBuf {
    folder
        .join("checkpoints")
        .join(format!("step-{step:08}.safetensors"))
}

/// Checkpoints of the run in `folder`, oldest first.
///
/// # Errors
/// The folder cannot be read.
pub fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let checkpoints = folder.join("checkpoints");
    if !checkpoints.is_dir() {
        return Ok(Vec::new());
    }
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(checkpoints)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        // Other files, such as the temporary file of a killed process, are no checkpoints.
        if name.starts_with("step-") && name.ends_with(".safetensors") && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The newest checkpoint of the run in `folder`.
///
/// # Errors
/// The folder cannot be read.
pub fn latest(folder: &Path) -> io::Result<Option<PathBuf>> {
    Ok(list(folder)?.pop())
}

/// Removes what killed processes left half-written in the run's folder: a checkpoint of that kind
/// may have gigabytes.
///
/// # Errors
/// A folder cannot be read, or a file cannot be removed.
pub fn remove_incomplete(folder: &Path) -> io::Result<()> {
    remove_abandoned(folder)?;
    remove_abandoned(&folder.join("checkpoints"))
}

/// Removes all but the newest `keep`.
///
/// # Errors
/// The folder cannot be read, or a file cannot be removed.
pub fn prune(folder: &Path, keep: usize) -> io::Result<()> {
    let all = list(folder)?;
    all[..all.len().saturating_sub(keep)]
        .iter()
        .try_for_each(fs::remove_file)
}

/// The error of a checkpoint whose tensor `name` is infinite or not a number: the file `path` is
/// not written.
pub fn diverged(path: &Path, name: &str) -> RunError {
    let hint = "training has diverged: resume from the last checkpoint with a lower `optimizer.lr`";
    RunError::Checkpoint {
        path: path.to_owned(),
        what: name.to_owned(),
        expected: "finite numbers".to_owned(),
        found: "infinite ones or NaN; nothing was written".to_owned(),
        hint: Some(hint.to_owned()),
    }
}

/// The error of a checkpoint that cannot be read for a `reason` that names it.
pub fn damaged(path: &Path, reason: &dyn fmt::Display) -> RunError {
    let folder = path.ancestors().nth(2).unwrap_or(Path::new("."));
    let mut all = list(folder).unwrap_or_default().into_iter();
    RunError::Damaged {
        path: path.to_owned(),
        reason: reason.to_string(),
        earlier: all.rfind(|other| other.as_path() < path),
    }
}

/// Writes the checkpoints of a run on schedule and keeps the newest.
pub struct CheckpointSchedule {
    folder: PathBuf,
    every: u64,
    keep: usize,
    /// Step and file of the newest checkpoint that this process wrote or resumed from.
    newest: Option<(u64, PathBuf)>,
}

impl CheckpointSchedule {
    /// Checkpoints in the run's `folder`, every `every` steps, of which `keep` are kept. A resumed
    /// run gives the step and the file that it `resumed` from.
    pub fn new(folder: &Path, every: u64, keep: usize, resumed: Option<(u64, PathBuf)>) -> Self {
        Self {
            folder: folder.to_owned(),
            every,
            keep,
            newest: resumed,
        }
    }

    /// Makes the next [`Self::save`] write the checkpoint of the current step even if it exists:
    /// the state of the run has changed without a step, by an evaluation.
    pub fn mark_outdated(&mut self) {
        self.newest = None;
    }

    /// Whether a checkpoint is due after `step` steps.
    pub fn is_due(&self, step: u64) -> bool {
        step.is_multiple_of(self.every) && !self.has(step)
    }

    fn has(&self, step: u64) -> bool {
        self.newest
            .as_ref()
            .is_some_and(|(newest, _)| *newest == step)
    }

    /// Writes the checkpoint after `step` steps with `write`, which must write the whole file or
    /// nothing, and then removes older ones. Returns its path; if it exists already, nothing is
    /// written.
    ///
    /// # Errors
    ///
    /// The file cannot be written (a full disk): earlier checkpoints stay, and the message names
    /// the newest.
    pub fn save<E: fmt::Display>(
        &mut self,
        step: u64,
        write: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, RunError> {
        if let Some((newest, path)) = &self.newest
            && *newest == step
        {
            return Ok(path.clone());
        }
        let path = path(&self.folder, step);
        let written = fs::create_dir_all(self.folder.join("checkpoints"))
            .map_err(|error| error.to_string())
            .and_then(|()| write(&path).map_err(|error| error.to_string()));
        if let Err(reason) = written {
            return Err(RunError::NotSaved {
                path,
                step,
                reason,
                kept: latest(&self.folder).ok().flatten(),
            });
        }
        prune(&self.folder, self.keep)?;
        self.newest = Some((step, path.clone()));
        Ok(path)
    }
}

/// The metadata of a checkpoint, with errors that name the file.
#[derive(Clone, Copy)]
pub struct CheckpointMetadata<'a> {
    path: &'a Path,
    fields: &'a BTreeMap<String, String>,
}

impl<'a> CheckpointMetadata<'a> {
    /// The metadata `fields` of the checkpoint `path`.
    pub fn new(path: &'a Path, fields: &'a BTreeMap<String, String>) -> Self {
        Self { path, fields }
    }

    /// A field; empty if there is none.
    pub fn get(&self, name: &str) -> &'a str {
        self.fields.get(name).map_or("", String::as_str)
    }

    /// Checks that a field has the value that the run needs.
    ///
    /// # Errors
    ///
    /// It has another; `hint` says what to do.
    pub fn expect(&self, name: &str, expected: &str, hint: &str) -> Result<(), RunError> {
        match self.get(name) == expected {
            true => Ok(()),
            false => Err(self.mismatch(name, expected, self.get(name), hint)),
        }
    }

    /// A field that holds a number.
    ///
    /// # Errors
    ///
    /// It does not.
    pub fn number(&self, name: &str) -> Result<u64, RunError> {
        let text = self.get(name);
        text.parse()
            .map_err(|_| self.mismatch(name, "a number", text, ""))
    }

    /// A field that holds JSON.
    ///
    /// # Errors
    ///
    /// It does not hold what `expected` describes.
    pub fn json<T: DeserializeOwned>(&self, name: &str, expected: &str) -> Result<T, RunError> {
        let text = self.get(name);
        serde_json::from_str(text).map_err(|_| self.mismatch(name, expected, text, ""))
    }

    /// Checks that the recipe of a resumed run and that of its checkpoint agree in `fixed`, keys or
    /// sections that shape tensors or the order of the data.
    ///
    /// # Errors
    ///
    /// They differ; the first key is named with both values.
    pub fn expect_recipe<R: Serialize>(
        &self,
        now: &R,
        saved: &R,
        fixed: &[&str],
    ) -> Result<(), RunError> {
        match difference(now, saved, fixed) {
            None => Ok(()),
            Some((key, expected, found)) => {
                let hint = "a run keeps its recipe; start a new run to change this key";
                Err(self.mismatch(&key, &expected, &found, hint))
            }
        }
    }

    /// The error of a field or tensor that is not what the run needs; `hint` may be empty.
    pub fn mismatch(&self, what: &str, expected: &str, found: &str, hint: &str) -> RunError {
        RunError::Checkpoint {
            path: self.path.to_owned(),
            what: what.to_owned(),
            expected: expected.to_owned(),
            found: match found.is_empty() {
                true => "none".to_owned(),
                false => found.to_owned(),
            },
            hint: (!hint.is_empty()).then(|| hint.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_checkpoints_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(latest(folder.path()).unwrap(), None);
        fs::create_dir(folder.path().join("checkpoints")).unwrap();
        for step in [5, 100, 20] {
            fs::write(path(folder.path(), step), b"").unwrap();
        }
        fs::write(folder.path().join("checkpoints/.step-00000200.tmp"), b"").unwrap();
        prune(folder.path(), 2).unwrap();
        let kept = list(folder.path()).unwrap();
        assert_eq!(kept, [path(folder.path(), 20), path(folder.path(), 100)]);
        assert_eq!(latest(folder.path()).unwrap(), kept.last().cloned());
    }

    #[test]
    fn the_error_of_a_damaged_checkpoint_names_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("checkpoints")).unwrap();
        let paths = [100, 200].map(|step| path(folder.path(), step));
        paths.iter().for_each(|path| fs::write(path, b"").unwrap());
        let error = damaged(&paths[1], &"no header").to_string();
        let [earlier, last] = paths.each_ref().map(|path| path.display());
        assert_eq!(
            error,
            format!("no header\n  hint: remove {last} to resume from {earlier}")
        );
        let error = damaged(&paths[0], &"no header").to_string();
        assert!(error.contains("start a new run"), "{error}");
    }

    #[test]
    fn checkpoints_are_written_on_schedule_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let resumed = Some((4, path(folder.path(), 4)));
        let mut schedule = CheckpointSchedule::new(folder.path(), 4, 2, resumed);
        assert_eq!(
            [4, 6, 8].map(|step| schedule.is_due(step)),
            [false, false, true]
        );
        let write = |path: &Path| fs::write(path, b"x");
        let written = schedule.save(8, write).unwrap();
        assert_eq!(written, path(folder.path(), 8));
        assert!(!schedule.is_due(8));
        let again = schedule.save(8, |_| Err("written twice"));
        assert_eq!(again.unwrap(), written);
        let error = schedule.save(12, |_| Err("disk full")).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("step 12 could not be written: disk full") && text.contains("00000008"),
            "{text}"
        );
    }

    #[test]
    fn metadata_that_do_not_match_are_named() {
        let fields = BTreeMap::from([("format".to_owned(), "a/1".to_owned())]);
        let metadata = CheckpointMetadata::new(Path::new("x.safetensors"), &fields);
        metadata.expect("format", "a/1", "").unwrap();
        let error = metadata.expect("format", "a/2", "start a new run");
        assert_eq!(
            error.unwrap_err().to_string(),
            "x.safetensors: `format`: expected a/2, found a/1\n  hint: start a new run"
        );
        let error = metadata.number("step").unwrap_err().to_string();
        assert!(
            error.contains("`step`: expected a number, found none"),
            "{error}"
        );
    }
}
