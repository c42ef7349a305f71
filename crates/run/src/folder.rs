//! The folder of a run: created for a new run or opened to resume one, locked while a process
//! trains in it.
//!
//! | file | content |
//! |---|---|
//! | `run.toml` | the resolved recipe below a header of comments ([`crate::origin`]) |
//! | `metrics.jsonl`, `events.out.tfevents.*` | metrics by step ([`crate::log`]) |
//! | `checkpoints/` | the last checkpoints ([`crate::checkpoints`]) |
//! | `warnings.txt` | warnings, one a line; only if there were any |
//! | `nonfinite.txt` | keys of the batch with a loss that was not finite; only after that |

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clasp_data::atomic::{FolderLock, atomic_write};
use clasp_data::missing::MissingPath;
use fs_err as fs;

use crate::check::InvalidValue;
use crate::checkpoints;
use crate::control::{Control, Event};
use crate::error::RunError;
use crate::log::Log;
use crate::origin::{self, HeaderFacts};

/// Name of the file with the resolved recipe; a folder that has it holds a run.
pub const RECIPE_FILE: &str = "run.toml";
/// Name of the file with the warnings.
const WARNINGS_FILE: &str = "warnings.txt";
/// Name of the file with the keys of a batch whose loss was not finite.
const NON_FINITE_FILE: &str = "nonfinite.txt";

/// A loss, or the norm of the gradients, that is infinite or not a number. The step that returns it
/// has changed nothing.
#[derive(Debug, thiserror::Error)]
#[error("the {quantity} is {value}")]
pub struct NonFinite {
    /// What it is, such as `dino loss`.
    pub quantity: String,
    /// Its value.
    pub value: f64,
}

impl NonFinite {
    /// Checks a loss or norm.
    ///
    /// # Errors
    ///
    /// It is infinite or not a number.
    pub fn check(quantity: impl FnOnce() -> String, value: f64) -> Result<(), Self> {
        match value.is_finite() {
            true => Ok(()),
            false => Err(Self {
                quantity: quantity(),
                value,
            }),
        }
    }

    /// The error that ends the run in `folder`, in which the keys of the batch of `step` are listed.
    pub fn in_step(self, step: u64, folder: &Path) -> RunError {
        RunError::NonFinite {
            step,
            quantity: self.quantity,
            value: self.value,
            keys: folder.join(NON_FINITE_FILE),
        }
    }
}

/// The folder of a run that this process trains in. The lock is held until it is dropped.
pub struct RunFolder {
    path: PathBuf,
    warnings: Vec<String>,
    _lock: FolderLock,
}

impl RunFolder {
    /// Opens the folder of a run that exists.
    ///
    /// # Errors
    ///
    /// The folder holds no run, or another process trains in it.
    pub fn resume(path: &Path) -> Result<Self, RunError> {
        recipe_of(path)?;
        Self::locked(path)
    }

    /// Creates the folder of a new run with its `run.toml`.
    ///
    /// # Errors
    ///
    /// The folder holds a run already, another process trains in it, or it cannot be written.
    pub fn create(path: &Path, run_toml: &str) -> Result<Self, RunError> {
        fs::create_dir_all(path)?;
        let folder = Self::locked(path)?;
        let recipe = path.join(RECIPE_FILE);
        if recipe.exists() {
            return Err(RunError::Exists {
                folder: path.to_owned(),
            });
        }
        atomic_write(&recipe, |file| file.write_all(run_toml.as_bytes()))?;
        Ok(folder)
    }

    /// The folder of a run before its first step in this process: `resumed`, in whose `run.toml` other
    /// values are written, so that the next resume has them too, or else a new one. `done` and `steps`
    /// are the steps of its checkpoint and of the whole run. Call it last before training, so that a
    /// run that cannot start changes nothing.
    ///
    /// # Errors
    ///
    /// See [`RunFolder::create`]; the run is to end before its checkpoint; `run.toml` cannot be read
    /// or written.
    pub fn begin(
        resumed: Option<Self>,
        path: &Path,
        run_toml: &str,
        [done, steps]: [u64; 2],
    ) -> Result<Self, RunError> {
        let Some(folder) = resumed else {
            return Self::create(path, run_toml);
        };
        if done > steps {
            let expected = format!("at least {done}, the steps of its last checkpoint");
            return Err(InvalidValue::new("run.steps", expected, steps).into());
        }
        let (old, recipe) = recipe_of(&folder.path)?;
        if let Some(text) = origin::resumed(&old, run_toml) {
            atomic_write(&recipe, |file| file.write_all(text.as_bytes()))?;
        }
        Ok(folder)
    }

    fn locked(path: &Path) -> Result<Self, RunError> {
        Ok(Self {
            _lock: FolderLock::take(path)?,
            path: path.to_owned(),
            warnings: Vec::new(),
        })
    }

    /// Path of the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The newest checkpoint; none if the run was killed before its first one.
    ///
    /// # Errors
    ///
    /// The folder cannot be read.
    pub fn latest_checkpoint(&self) -> io::Result<Option<PathBuf>> {
        checkpoints::latest(&self.path)
    }

    /// Opens the logs, `metrics.jsonl` and further files of JSON lines called `others`, without
    /// what an earlier process logged after `step`. Also removes what killed processes left
    /// half-written in the folder.
    ///
    /// # Errors
    ///
    /// A file cannot be read, written or removed.
    pub fn open_log(&self, step: u64, others: &[&'static str]) -> io::Result<Log> {
        checkpoints::remove_incomplete(&self.path)?;
        Log::open(&self.path, step, others)
    }

    /// Reports a warning and appends it to `warnings.txt`.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn warn(&mut self, control: &mut Control<'_>, text: String) -> io::Result<()> {
        control.report(Event::Warning(&text));
        let mut file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path.join(WARNINGS_FILE))?;
        writeln!(file, "{}", text.replace('\n', " "))?;
        self.warnings.push(text);
        Ok(())
    }

    /// Warnings of this process.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The error of a step that was not finite, after the keys of its batch are written to
    /// `nonfinite.txt`. `step` is the number of the step that failed, counted from 1.
    pub fn refuse_step<'a>(
        &self,
        step: u64,
        cause: NonFinite,
        keys: impl IntoIterator<Item = &'a str>,
    ) -> RunError {
        let text: String = { keys.into_iter() }.map(|key| format!("{key}\n")).collect();
        let path = self.path.join(NON_FINITE_FILE);
        match atomic_write(&path, |file| file.write_all(text.as_bytes())) {
            Err(error) => error.into(),
            Ok(()) => cause.in_step(step, &self.path),
        }
    }
}

/// Text of the `run.toml` of the run in `folder`, with its path for messages.
///
/// # Errors
///
/// The folder holds no run, or the file cannot be read.
pub fn recipe_of(folder: &Path) -> Result<(String, PathBuf), RunError> {
    let path = folder.join(RECIPE_FILE);
    if !path.is_file() {
        let hint = "nothing to resume; start a run without `--resume`";
        return Err(match folder.exists() {
            true => RunError::NothingToResume {
                folder: folder.to_owned(),
            },
            false => MissingPath::new(folder, "the folder of a run")
                .or_hint(hint)
                .into(),
        });
    }
    Ok((fs::read_to_string(&path)?, path))
}

/// As [`recipe_of`], of a run that `clasp COMMAND` began: `pretrain`, `finetune reid`.
///
/// # Errors
///
/// As [`recipe_of`]; the run is of another command.
pub fn recipe_of_command(folder: &Path, command: &str) -> Result<(String, PathBuf), RunError> {
    let (text, path) = recipe_of(folder)?;
    match HeaderFacts::read(&text) {
        Some(header) if header.command != command => Err(RunError::OtherCommand {
            folder: folder.to_owned(),
            expected: command.to_owned(),
            found: header.command,
        }),
        _ => Ok((text, path)),
    }
}

/// The warnings of the run in `folder`, each once, in the order of their first appearance: a run
/// that was killed and resumed may give one again.
///
/// # Errors
///
/// The file exists and cannot be read.
pub fn warnings(folder: &Path) -> io::Result<Vec<String>> {
    let path = folder.join(WARNINGS_FILE);
    if !path.exists() {
        return Ok(Vec::new());
    }
    let mut known: Vec<String> = Vec::new();
    for line in fs::read_to_string(path)?.lines() {
        if !known.iter().any(|text| text == line) {
            known.push(line.to_owned());
        }
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn a_run_is_created_once_and_resumed_only_where_it_exists() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("run");
        let error = RunFolder::resume(&path).err().unwrap().to_string();
        assert!(
            error.contains("expected the folder of a run, found nothing there"),
            "{error}"
        );
        drop(RunFolder::create(&path, "seed = 1\n").unwrap());
        let error = RunFolder::create(&path, "").err().unwrap().to_string();
        assert!(error.contains("found `run.toml` in it"), "{error}");
        assert_eq!(recipe_of(&path).unwrap().0, "seed = 1\n");
        let run = RunFolder::resume(&path).unwrap();
        assert!(RunFolder::resume(&path).is_err(), "the folder is locked");
        drop(run);
        RunFolder::resume(&path).unwrap();
    }

    #[test]
    fn a_resume_with_other_values_keeps_them_for_the_next() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("run");
        let text = |lr: f64| format!("# started today\n# command: clasp\n\nlr = {lr}\n");
        drop(RunFolder::create(&path, &text(0.5)).unwrap());
        let resume = |lr: f64| {
            let run = RunFolder::resume(&path).unwrap();
            drop(RunFolder::begin(Some(run), &path, &text(lr), [2, 2]).unwrap());
        };
        resume(0.5);
        assert_eq!(recipe_of(&path).unwrap().0, text(0.5));
        resume(0.25);
        let kept = recipe_of(&path).unwrap().0;
        assert!(kept.starts_with("# started today\n"), "{kept}");
        assert!(kept.ends_with("\n\nlr = 0.25\n"), "{kept}");
        // Once the end of the run became a step that it had passed.
        let run = RunFolder::resume(&path).unwrap();
        let error = RunFolder::begin(Some(run), &path, &text(0.125), [3, 2])
            .err()
            .unwrap();
        assert!(error.to_string().contains("run.steps"), "{error}");
        assert!(error.to_string().contains("at least 3"), "{error}");
        assert_eq!(recipe_of(&path).unwrap().0, kept);
    }

    /// Once keys of the other command's recipe were unknown.
    #[test]
    fn a_run_of_another_command_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let header = crate::origin::RunHeader {
            command: "finetune reid",
            version: "1",
            seed: 1,
            device: "cpu",
            images: 2,
            steps_per_epoch: 1,
            steps: 1,
        };
        let path = folder.path().join("my run");
        drop(RunFolder::create(&path, &header.with_recipe("seed = 1\n")).unwrap());
        recipe_of_command(&path, "finetune reid").unwrap();
        let error = recipe_of_command(&path, "pretrain")
            .unwrap_err()
            .to_string();
        assert!(
            error
                .contains("expected a run of `clasp pretrain`, found one of `clasp finetune reid`"),
            "{error}"
        );
        let hint = format!("`clasp finetune reid --resume '{}'`", path.display());
        assert!(error.contains(&hint), "{error}");
    }

    #[test]
    fn warnings_are_kept_in_the_folder_and_listed_once() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("run");
        let mut run = RunFolder::create(&path, "").unwrap();
        assert!(warnings(&path).unwrap().is_empty());
        let (stop, mut reported) = (AtomicBool::new(false), 0);
        let mut control = Control {
            device_name: "cpu",
            threads: 1,
            stop: &stop,
            on_event: &mut |_| reported += 1,
        };
        for text in ["step 3: a\nb", "step 9: c", "step 3: a\nb"] {
            run.warn(&mut control, text.to_owned()).unwrap();
        }
        assert_eq!(warnings(&path).unwrap(), ["step 3: a b", "step 9: c"]);
        assert_eq!((run.warnings().len(), reported), (3, 3));
    }

    #[test]
    fn the_keys_of_a_refused_step_are_written() {
        let temporary = tempfile::tempdir().unwrap();
        let run = RunFolder::create(&temporary.path().join("run"), "").unwrap();
        let cause = NonFinite {
            quantity: "dino loss".to_owned(),
            value: f64::NAN,
        };
        let error = run.refuse_step(7, cause, ["a", "b"]);
        let RunError::NonFinite { step: 7, keys, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!(fs::read_to_string(keys).unwrap(), "a\nb\n");
        let text = error.to_string();
        assert!(text.contains("step 7: the dino loss is NaN"), "{text}");
    }
}
