//! The runs below a folder, with their state.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use clasp_data::atomic::FolderLock;
use fs_err as fs;
use serde::Serialize;
use serde_json::Value;

use crate::checkpoints;
use crate::error::RunError;
use crate::folder::{RECIPE_FILE, recipe_of};
use crate::origin::HeaderFacts;

/// Levels of folders that are searched.
const DEPTH: usize = 3;

/// Bytes at the end of a log that its last line is looked for in.
const LAST_BYTES: u64 = 1 << 16;

/// A run.
#[derive(Clone, Debug, Serialize)]
pub struct ListedRun {
    /// Its folder.
    pub folder: PathBuf,
    /// `pretrain`, `finetune TASK` or `clip train`; `unknown` without the header of this version.
    pub kind: String,
    /// `running`, `finished` or `stopped`; `unreadable` if its files cannot be read.
    pub state: &'static str,
    /// Step of the last logged metrics.
    pub step: u64,
    /// The metric that the model was selected by, or why it or the run cannot be read.
    pub chosen_by: Option<String>,
}

/// The runs below a folder, sorted by path. `chosen_by` reads the metric that a model's file was
/// selected by: this crate knows no networks.
///
/// # Errors
///
/// The folder cannot be read. A run or a folder below it that cannot be read does not hide the
/// others.
pub fn runs_below(
    folder: &Path,
    chosen_by: &dyn Fn(&Path) -> Option<String>,
) -> Result<Vec<ListedRun>, RunError> {
    let folders = run_folders(folder)?;
    let listed = |folder: &PathBuf| {
        describe(folder, chosen_by).unwrap_or_else(|error| ListedRun {
            folder: folder.clone(),
            kind: "unknown".to_owned(),
            state: "unreadable",
            step: 0,
            chosen_by: Some(error.to_string()),
        })
    };
    Ok(folders.iter().map(listed).collect())
}

/// The folders of runs below a folder, sorted by path.
///
/// # Errors
///
/// The folder cannot be read; one below it that cannot be read is passed over.
pub fn run_folders(folder: &Path) -> Result<Vec<PathBuf>, RunError> {
    let mut runs = Vec::new();
    find(folder, DEPTH, &mut runs)?;
    Ok(runs)
}

fn find(folder: &Path, depth: usize, runs: &mut Vec<PathBuf>) -> Result<(), RunError> {
    if folder.join(RECIPE_FILE).is_file() {
        runs.push(folder.to_owned());
        return Ok(());
    }
    if depth == 0 {
        return Ok(());
    }
    let mut below: Vec<PathBuf> = fs::read_dir(folder)?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    below.sort();
    for folder in &below {
        // Removed meanwhile, or of another user.
        let _ = find(folder, depth - 1, runs);
    }
    Ok(())
}

fn describe(
    folder: &Path,
    chosen_by: &dyn Fn(&Path) -> Option<String>,
) -> Result<ListedRun, RunError> {
    let (recipe, _) = recipe_of(folder)?;
    let header = HeaderFacts::read(&recipe);
    let model = folder.join("model.safetensors");
    let is_whole = model.is_file() || folder.join("backbone.safetensors").is_file();
    let step = last_step(&folder.join("metrics.jsonl"))?;
    let finished = match &header {
        // The trained CLIP lies beside its run folder.
        Some(header) if header.command == "clip train" => last_checkpoint(folder) >= header.steps,
        // A stopped pre-training writes its backbone too: what it lacks is the steps of its recipe.
        Some(header) => is_whole && step.unwrap_or(0) >= header.steps,
        None => is_whole,
    };
    // A model of another version, or a damaged one, must not hide the other runs.
    let chosen_by = model.is_file().then(|| chosen_by(&model)).flatten();
    Ok(ListedRun {
        folder: folder.to_owned(),
        kind: header.map_or("unknown".to_owned(), |header| header.command),
        state: match (FolderLock::is_held(folder), finished) {
            (true, _) => "running",
            (false, true) => "finished",
            (false, false) => "stopped",
        },
        step: step.unwrap_or_else(|| last_checkpoint(folder)),
        chosen_by,
    })
}

/// Step of the last whole line of a log.
fn last_step(log: &Path) -> Result<Option<u64>, RunError> {
    let mut file = match fs::File::open(log) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let start = file.metadata()?.len().saturating_sub(LAST_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    let lines = text.rsplit(|&byte| byte == b'\n');
    let step = |line| serde_json::from_slice::<Value>(line).ok()?["step"].as_u64();
    Ok(lines.filter(|line| !line.is_empty()).find_map(step))
}

/// Step of the last checkpoint; 0 without one.
fn last_checkpoint(folder: &Path) -> u64 {
    let path = checkpoints::latest(folder).ok().flatten();
    let stem = path.as_deref().and_then(Path::file_stem);
    let stem = stem.map(|stem| stem.to_string_lossy().into_owned());
    { stem.as_deref() }
        .and_then(|stem| stem.strip_prefix("step-"))
        .and_then(|step| step.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use crate::RunHeader;

    use super::*;

    #[test]
    fn runs_are_recognized_by_their_folders() {
        let folder = tempfile::tempdir().unwrap();
        let run = |name: &str, head: &str, log: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("run.toml"), head).unwrap();
            fs::write(path.join("metrics.jsonl"), log).unwrap();
            path
        };
        let head = |command: &str| {
            let header = RunHeader {
                command,
                version: "1.0.0",
                seed: 0,
                device: "cpu",
                images: 8,
                steps_per_epoch: 2,
                steps: 20,
            };
            header.with_recipe("")
        };
        let pretrain = head("pretrain");
        let done = run("a/done", &pretrain, "{\"step\":10}\n{\"step\":20}\n");
        fs::write(done.join("backbone.safetensors"), "").unwrap();
        let stopped = run("a/stopped", &pretrain, "{\"step\":7}\n");
        fs::write(stopped.join("backbone.safetensors"), "").unwrap();
        let busy = run("b", &head("finetune reid"), "");
        let clip = run("c.run", &head("clip train"), "{\"step\":20}\n");
        fs::create_dir(clip.join("checkpoints")).unwrap();
        fs::write(checkpoints::path(&clip, 20), "").unwrap();
        run("d", "seed = 0\n", "");
        let broken = run("e", &pretrain, "");
        fs::write(broken.join("metrics.jsonl"), b"{\"step\":3}\n\xff\xfe\n").unwrap();
        let unreadable = run("f", "", "");
        fs::write(unreadable.join("run.toml"), b"\xff").unwrap();
        let _lock = FolderLock::take(&busy).unwrap();
        let runs = runs_below(folder.path(), &|_| None).unwrap();
        let listed: Vec<_> = { runs.iter() }
            .map(|run| (run.kind.as_str(), run.state, run.step))
            .collect();
        let expected = [
            ("pretrain", "finished", 20),
            ("pretrain", "stopped", 7),
            ("finetune reid", "running", 0),
            ("clip train", "finished", 20),
            ("unknown", "stopped", 0),
            ("pretrain", "stopped", 3),
            ("unknown", "unreadable", 0),
        ];
        assert_eq!(listed, expected);
    }
}
