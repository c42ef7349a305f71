//! Whether the tars of a folder are complete, as the manifest of `clasp data pack` beside them
//! says.

use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::{Deserialize, Serialize};

/// How far a packing is: the part of its manifest that a reader of its shards needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PackProgress {
    /// Whether all images are packed.
    pub(crate) complete: bool,
    /// Images of the source.
    pub(crate) total: usize,
    /// Images of the source that are packed or were skipped as unreadable.
    pub(crate) done: usize,
}

/// The manifest of the shards `{prefix}-000.tar` and so on in a folder.
pub(crate) fn manifest_path(folder: &Path, prefix: &str) -> PathBuf {
    folder.join(format!("{prefix}.pack.json"))
}

/// The progress of an unfinished packing that the tar at `path` is a shard of; none where the
/// packing is complete or the tar was not packed.
///
/// # Errors
/// Where the manifest cannot be read.
pub(super) fn unfinished(path: &Path) -> io::Result<Option<PackProgress>> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let shard = stem.rsplit_once('-');
    let Some((prefix, _)) = shard.filter(|(_, number)| number.bytes().all(|b| b.is_ascii_digit()))
    else {
        return Ok(None);
    };
    let manifest = manifest_path(path.parent().unwrap_or(Path::new("")), prefix);
    let bytes = match fs::read(&manifest) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes?,
    };
    let progress: PackProgress = serde_json::from_slice(&bytes).map_err(|error| {
        io::Error::other(format!(
            "`{}`: not what `clasp data pack` writes: {error}\n  \
             hint: remove it and the shards beside it",
            manifest.display()
        ))
    })?;
    Ok((!progress.complete).then_some(progress))
}
