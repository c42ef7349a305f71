//! The checkpoints of a run: `checkpoints/step-00000100.safetensors` in its folder.

use std::io;
use std::path::{Path, PathBuf};

use clasp_data::atomic::remove_abandoned;
use fs_err as fs;

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
        // Whatever else lies there, such as the temporary file of a killed process, is not ours to judge.
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

/// Removes what killed processes left half-written in the run's folder. A checkpoint of that kind may have gigabytes.
///
/// # Errors
/// A folder cannot be read, or a file cannot be removed.
pub fn tidy(folder: &Path) -> io::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_stay() {
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
}
