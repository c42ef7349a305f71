//! Images that cannot be read, whichever reader finds them, and how many of them a run tolerates.

use std::io::Read;
use std::path::{Path, PathBuf};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::error::{MAX_FILE_BYTES, SourceError};
use crate::image::{ImageError, Limits, Rgb, decode};

/// Why an image could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadFailure {
    /// What is wrong.
    pub reason: String,
    /// Whether the content of the file is at fault, so that reading fails again. Otherwise the file
    /// could not be read (a network share that is away, too many open files), which may pass.
    pub permanent: bool,
}

impl std::fmt::Display for ReadFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.reason)
    }
}

impl From<SourceError> for ReadFailure {
    fn from(error: SourceError) -> Self {
        Self {
            reason: error.to_string(),
            permanent: matches!(error, SourceError::Row { .. }),
        }
    }
}

impl From<ImageError> for ReadFailure {
    fn from(error: ImageError) -> Self {
        Self {
            reason: error.to_string(),
            permanent: true,
        }
    }
}

/// An image file that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {failure}", .path.display())]
pub struct UnreadableImage {
    /// The file.
    pub path: PathBuf,
    /// Why, and whether it may pass.
    pub failure: ReadFailure,
}

/// Reads and decodes an image file: what [`super::Source::load`] is for files outside a source.
///
/// # Errors
/// Where the file cannot be read, is larger than [`MAX_FILE_BYTES`], or does not hold an image.
pub fn load_file(path: &Path, limits: &Limits) -> Result<Rgb, UnreadableImage> {
    let load = || -> Result<Rgb, ReadFailure> { Ok(decode(&read_file(path)?, limits)?) };
    load().map_err(|failure| UnreadableImage {
        path: path.to_owned(),
        failure,
    })
}

/// The bytes of an image file.
///
/// # Errors
/// It is a pipe or a device, cannot be read, or is larger than [`MAX_FILE_BYTES`].
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, SourceError> {
    let place = || path.display().to_string();
    let metadata = fs::metadata(path)?;
    // Before it is opened: to open a pipe is to wait for a writer, and a device may have no end.
    if !metadata.is_file() {
        return Err(SourceError::Special { place: place() });
    }
    let mut bytes = Vec::new();
    if metadata.len() <= MAX_FILE_BYTES {
        bytes.reserve_exact(metadata.len() as usize + 1);
        // It may grow meanwhile, and files of /proc do not say their length.
        let mut file = fs::File::open(path)?.take(MAX_FILE_BYTES + 1);
        file.read_to_end(&mut bytes)?;
    }
    match metadata.len().max(bytes.len() as u64) {
        bytes if bytes > MAX_FILE_BYTES => Err(SourceError::TooLarge {
            place: place(),
            bytes,
        }),
        _ => Ok(bytes),
    }
}

/// Images that were tried, and those among them that could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreadableImages {
    /// Images tried.
    pub seen: u64,
    /// Key and reason of each that could not be read.
    pub failed: Vec<(String, String)>,
}

/// More than 5 % of the images cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{failed} of {seen} images cannot be read, more than 5 %; the first: `{key}`: {reason}\n\
     hint: --keep-going uses the others"
)]
pub struct TooManyUnreadable {
    /// How many failed.
    pub failed: u64,
    /// How many were tried.
    pub seen: u64,
    /// Key of the first that failed.
    pub key: String,
    /// Why it failed.
    pub reason: String,
}

/// Whether more images failed than a run tolerates: 5 % of those that were tried.
pub fn too_many_unreadable(failed: u64, tried: u64) -> bool {
    20 * failed > tried
}

/// Images that are tried before [`too_many_unreadable`] ends a run, unless there are fewer: a
/// broken copy is noticed early, and a run does not stop at its first bad file.
pub const TRIED_FIRST: u64 = 1000;

impl UnreadableImages {
    /// Counts an image that was read.
    pub fn ok(&mut self) {
        self.seen += 1;
    }

    /// Counts an image that could not be read, with the reason.
    pub fn fail(&mut self, key: impl Into<String>, reason: impl ToString) {
        self.seen += 1;
        self.failed.push((key.into(), reason.to_string()));
    }

    /// Adds the counts of another part of a run.
    pub fn merge(&mut self, other: UnreadableImages) {
        self.seen += other.seen;
        self.failed.extend(other.failed);
    }

    /// The rule for a finished run: at most 5 % may fail.
    ///
    /// # Errors
    /// If more did.
    pub fn check(&self) -> Result<(), TooManyUnreadable> {
        let failed = self.failed.len() as u64;
        match self.failed.first() {
            Some((key, reason)) if too_many_unreadable(failed, self.seen) => {
                Err(TooManyUnreadable {
                    failed,
                    seen: self.seen,
                    key: key.clone(),
                    reason: reason.clone(),
                })
            }
            _ => Ok(()),
        }
    }

    /// The rule during a run: the same once [`TRIED_FIRST`] images were tried.
    ///
    /// # Errors
    /// If more failed.
    pub fn check_early(&self) -> Result<(), TooManyUnreadable> {
        if self.seen < TRIED_FIRST {
            return Ok(());
        }
        self.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// To open a pipe used to wait for a writer without end, and a device to be read without end.
    #[cfg(unix)]
    #[test]
    fn pipes_and_devices_are_no_images() {
        use crate::image::size_of;
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("a.png");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        for path in [&*pipe, Path::new("/dev/zero")] {
            let error = load_file(path, &Limits::default()).unwrap_err();
            assert!(
                error.failure.reason.contains("found a named pipe"),
                "{error}"
            );
            assert_eq!(size_of(path), None);
        }
        let image = Rgb::filled(3, 2, [1, 2, 3]);
        let file = folder.path().join("b.png");
        fs::write(&file, crate::image::encode_png(&image)).unwrap();
        assert_eq!(load_file(&file, &Limits::default()).unwrap(), image);
    }
}
