//! The manifest beside packed shards: settings, source, shards, images skipped, and progress.

use std::io;
use std::path::Path;

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::config::{PackConfig, PackError};
use super::report::PackReport;
use crate::atomic::atomic_write;
use crate::source::{PackProgress, Source, UnreadableImages};

/// A finished shard, in the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PackedShard {
    pub(super) name: String,
    pub(super) images: u64,
    pub(super) bytes: u64,
}

/// The manifest beside the shards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PackManifest {
    /// What a reader of the shards needs to know.
    #[serde(flatten)]
    pub(super) progress: PackProgress,
    pub(super) settings: PackConfig,
    /// SHA-256 of the keys and sizes of the source's images.
    pub(super) source: String,
    /// Images in the shards that were downscaled.
    pub(super) resized: u64,
    /// Bytes of the images in the shards.
    pub(super) image_bytes: u64,
    pub(super) shards: Vec<PackedShard>,
    pub(super) unreadable: UnreadableImages,
}

impl PackManifest {
    pub(super) fn read(path: &Path) -> Result<Option<Self>, PackError> {
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        let manifest = serde_json::from_slice(&bytes);
        manifest.map(Some).map_err(|error| PackError::Manifest {
            path: path.to_owned(),
            reason: format!("not what `clasp data pack` writes: {error}"),
        })
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), PackError> {
        let mut text = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        text.push(b'\n');
        Ok(atomic_write(path, |file| file.write_all(&text))?)
    }

    /// Checks that an earlier packing has the settings and the source of this one.
    pub(super) fn check_same(&self, now: &Self, path: &Path) -> Result<(), PackError> {
        let other = |what, expected: String, found: String| PackError::Other {
            path: path.to_owned(),
            state: match self.progress.complete {
                true => "a finished",
                false => "an unfinished",
            },
            what,
            expected,
            found,
        };
        if self.settings != now.settings {
            let words = |manifest: &Self| {
                let PackConfig {
                    images_per_shard,
                    max_height,
                    quality,
                    ..
                } = &manifest.settings;
                let height = max_height.map_or("none".to_owned(), |height| height.to_string());
                format!(
                    "{images_per_shard} images a shard, largest height {height}, quality {quality}"
                )
            };
            return Err(other("setting", words(now), words(self)));
        }
        if (&self.source, self.progress.total) != (&now.source, now.progress.total) {
            let words = |manifest: &Self| {
                let digest = manifest.source.get(..12).unwrap_or_default();
                format!("{} images, digest {digest}", manifest.progress.total)
            };
            return Err(other("source", words(now), words(self)));
        }
        Ok(())
    }

    /// Checks that the shards of a finished packing are there with the sizes that were written.
    pub(super) fn check_whole(&self, out: &Path) -> Result<(), PackError> {
        for PackedShard { name, bytes, .. } in &self.shards {
            let shard = out.join(name);
            let found = match fs::metadata(&shard) {
                Ok(metadata) if metadata.len() == *bytes => continue,
                Ok(metadata) => format!("{} bytes", metadata.len()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => "no such file".to_owned(),
                Err(error) => return Err(error.into()),
            };
            return Err(PackError::Shard {
                shard,
                expected: *bytes,
                found,
            });
        }
        Ok(())
    }

    /// What was packed; `resumed` images of the source were packed before.
    pub(super) fn report(&self, out: &Path, resumed: usize, stopped: bool) -> PackReport {
        let shards = self.shards.iter();
        PackReport {
            shards: shards.clone().map(|shard| out.join(&shard.name)).collect(),
            images: shards.map(|shard| shard.images).sum(),
            resized: self.resized,
            bytes: self.image_bytes,
            unreadable: self.unreadable.clone(),
            resumed,
            stopped,
        }
    }

    /// Starts over where a shard is missing or has another size than was written.
    pub(super) fn keep_whole(&mut self, out: &Path, source: &Source) -> Result<(), PackError> {
        let whole = |shard: &PackedShard| match fs::metadata(out.join(&shard.name)) {
            Ok(metadata) => metadata.len() == shard.bytes,
            Err(_) => false,
        };
        if self.shards.iter().all(whole) {
            return Ok(());
        }
        // The image that a prefix of the shards ends with is known only from the beginning.
        self.shards.clear();
        (self.progress.done, self.resized, self.image_bytes) = (0, 0, 0);
        self.progress.total = source.len();
        self.unreadable = UnreadableImages::default();
        Ok(())
    }
}
