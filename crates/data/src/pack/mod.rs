//! Packing images into tar shards.
//!
//! Millions of small files are slow to list, copy and open; a few thousand tars of a thousand
//! images are not. A packed shard is a plain tar whose members are the images, named by their keys,
//! as WebDataset has them. The same source and settings give the same bytes.
//!
//! `{prefix}.pack.json` beside the shards is their manifest: the settings, a digest of the keys and
//! sizes of the source's images, each shard's name, images and bytes, the skipped images, and
//! `complete`. A packing that was stopped has `"complete": false`; [`Source::open`] then refuses
//! its shards, and the same packing continues after the shards that are listed. The same packing of
//! a finished one writes nothing.

mod config;
mod manifest;
mod report;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::Path;

use fs_err as fs;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

pub use self::config::{PackConfig, PackError};
use self::manifest::{PackManifest, PackedShard};
pub use self::report::PackReport;
use crate::atomic::{FolderLock, atomic_write, remove_abandoned};
use crate::image::{Filter, Limits, decode, encode_jpeg, format_of, resize};
use crate::source::{PackProgress, Source, UnreadableImages, manifest_path};

/// Images decoded at a time, which bounds the memory.
const CHUNK: usize = 128;

/// Writes the images of a source to tar shards in the folder `out`, in order. Each shard is
/// written atomically; a packing that was stopped continues where it was, and one that is finished
/// is left as it is.
///
/// Every image is decoded, so that all packed images are readable; `progress` gets the number of
/// images done and their total, and stops the packing between two shards when it breaks.
///
/// # Errors
/// See [`PackError`]. Images that cannot be decoded are no error: they are skipped and listed.
pub fn pack(
    source: &Source,
    out: &Path,
    config: &PackConfig,
    limits: &Limits,
    progress: &mut dyn FnMut(usize, usize) -> ControlFlow<()>,
) -> Result<PackReport, PackError> {
    if config.images_per_shard == 0 || config.max_height == Some(0) {
        return Err(PackError::Config(
            "images per shard and the largest height must be at least 1".to_owned(),
        ));
    }
    if config.prefix.is_empty() || config.prefix.contains(['/', '\\']) {
        return Err(PackError::Config(format!(
            "the prefix `{}` cannot start a file name",
            config.prefix
        )));
    }
    fs::create_dir_all(out)?;
    let _lock = FolderLock::take(out)?;
    remove_abandoned(out)?;
    let path = manifest_path(out, &config.prefix);
    let mut manifest = PackManifest {
        progress: PackProgress {
            complete: false,
            total: source.len(),
            done: 0,
        },
        settings: config.clone(),
        source: digest(source),
        resized: 0,
        image_bytes: 0,
        shards: Vec::new(),
        unreadable: UnreadableImages::default(),
    };
    match PackManifest::read(&path)? {
        Some(there) if !there.progress.complete => {
            there.check_same(&manifest, &path)?;
            manifest = there;
            manifest.keep_whole(out, source)?;
        }
        Some(there) => {
            there.check_same(&manifest, &path)?;
            there.check_whole(out)?;
            return Ok(there.report(out, source.len(), false));
        }
        None => refuse_existing(out, &config.prefix)?,
    }
    let most = source.len().div_ceil(config.images_per_shard).max(1) - 1;
    let digits = most.to_string().len().max(3);
    let resumed = manifest.progress.done;
    let mut queue = PackQueue {
        source,
        config,
        limits,
        progress,
        next: manifest.progress.done,
        done: manifest.progress.done,
        stopped: false,
        ready: VecDeque::new(),
        unreadable: manifest.unreadable.clone(),
    };
    let failed = |queue: &PackQueue, done: usize| {
        let mut unreadable = queue.unreadable.clone();
        // Images read ahead of the shard belong to the next one.
        let ahead = |key: &String| queue.keys_after(done).any(|later| later == key);
        unreadable.failed.retain(|(key, _)| !ahead(key));
        unreadable.seen = done as u64;
        unreadable
    };
    let mut begun = resumed > 0;
    while queue.fill() && !queue.stopped {
        // A source without a single good image leaves nothing behind.
        if !begun {
            manifest.write(&path)?;
            begun = true;
        }
        let number = manifest.shards.len();
        let name = format!("{}-{number:0digits$}.tar", config.prefix);
        let mut shard = PackedShard {
            name,
            images: 0,
            bytes: 0,
        };
        let (mut resized, mut image_bytes) = (0, 0);
        atomic_write(&out.join(&shard.name), |writer| {
            let mut tar = tar::Builder::new(writer);
            for _ in 0..config.images_per_shard {
                let Some(image) = queue.take() else { break };
                let mut header = tar::Header::new_gnu();
                header.set_size(image.bytes.len() as u64);
                header.set_mode(0o644);
                header.set_mtime(0);
                tar.append_data(&mut header, &image.name, &image.bytes[..])?;
                shard.images += 1;
                image_bytes += image.bytes.len() as u64;
                resized += u64::from(image.resized);
            }
            tar.finish()
        })?;
        shard.bytes = fs::metadata(out.join(&shard.name))?.len();
        manifest.shards.push(shard);
        manifest.resized += resized;
        manifest.image_bytes += image_bytes;
        manifest.progress.done = queue.done;
        manifest.unreadable = failed(&queue, manifest.progress.done);
        manifest.write(&path)?;
    }
    let stopped = queue.stopped;
    if !stopped {
        manifest.progress.done = source.len();
        manifest.unreadable = queue.unreadable.clone();
    }
    let images = manifest.shards.iter().map(|shard| shard.images).sum();
    if let (Some((key, reason)), 0, false) = (manifest.unreadable.failed.first(), images, stopped) {
        return Err(PackError::Nothing {
            seen: manifest.unreadable.seen,
            key: key.clone(),
            reason: reason.clone(),
        });
    }
    if !stopped {
        manifest.progress.complete = true;
        manifest.write(&path)?;
    }
    Ok(manifest.report(out, resumed, stopped))
}

/// SHA-256 of the keys and sizes of a source's images, in hex.
fn digest(source: &Source) -> String {
    let mut hash = Sha256::new();
    for (i, key) in source.keys().enumerate() {
        hash.update(key.as_bytes());
        // An image that is away for a moment has no size.
        let size = source
            .size(i)
            .map_or(String::new(), |size| size.to_string());
        hash.update(format!("\t{size}\n"));
    }
    hash.finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn refuse_existing(out: &Path, prefix: &str) -> Result<(), PackError> {
    for entry in fs::read_dir(out)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let number = name
            .strip_prefix(prefix)
            .and_then(|name| name.strip_prefix('-'))
            .and_then(|name| name.strip_suffix(".tar"));
        if number.is_some_and(|n| n.bytes().all(|b| b.is_ascii_digit())) {
            return Err(PackError::Exists(entry.path()));
        }
    }
    Ok(())
}

/// An image ready for a shard.
struct PackedImage {
    name: String,
    bytes: Vec<u8>,
    resized: bool,
}

/// Images prepared a chunk at a time, on all cores, taken in order.
struct PackQueue<'a> {
    source: &'a Source,
    config: &'a PackConfig,
    limits: &'a Limits,
    progress: &'a mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    /// Images of the source that were prepared or skipped.
    next: usize,
    /// Images of the source up to the last one taken.
    done: usize,
    stopped: bool,
    ready: VecDeque<(usize, PackedImage)>,
    unreadable: UnreadableImages,
}

impl PackQueue<'_> {
    /// Prepares images until one is ready, if there is any left.
    fn fill(&mut self) -> bool {
        while self.ready.is_empty() && self.next < self.source.len() {
            let end = self.source.len().min(self.next + CHUNK);
            let chunk: Vec<Result<PackedImage, String>> = (self.next..end)
                .into_par_iter()
                .map(|i| prepare(self.source, i, self.config, self.limits))
                .collect();
            for (i, packed) in (self.next..end).zip(chunk) {
                match packed {
                    Ok(packed) => {
                        self.unreadable.ok();
                        self.ready.push_back((i, packed));
                    }
                    Err(reason) => self.unreadable.fail(self.source.key(i), reason),
                }
            }
            self.next = end;
            self.stopped |= (self.progress)(end, self.source.len()).is_break();
        }
        !self.ready.is_empty()
    }

    fn take(&mut self) -> Option<PackedImage> {
        self.fill();
        let (image, packed) = self.ready.pop_front()?;
        self.done = image + 1;
        Some(packed)
    }

    /// Keys of images that were prepared or skipped, from `done` on.
    fn keys_after(&self, done: usize) -> impl Iterator<Item = &str> {
        (done..self.next).map(|image| self.source.key(image))
    }
}

/// Image `i`, ready for a shard, or why it cannot be packed.
fn prepare(
    source: &Source,
    i: usize,
    config: &PackConfig,
    limits: &Limits,
) -> Result<PackedImage, String> {
    let key = source.key(i);
    let bytes = source.read(i).map_err(|e| e.to_string())?;
    let image = decode(&bytes, limits).map_err(|e| e.to_string())?;
    match config.max_height {
        Some(height) if image.height > height => {
            let scale = height as f64 / image.height as f64;
            let width = ((image.width as f64 * scale).round() as usize).max(1);
            if width.max(height) > usize::from(u16::MAX) {
                return Err(format!("{width} x {height} pixels are too many for a JPEG"));
            }
            let small = resize(&image, height, width, Filter::Bicubic);
            Ok(PackedImage {
                name: format!("{key}.jpg"),
                bytes: encode_jpeg(&small, config.quality.clamp(1, 100)),
                resized: true,
            })
        }
        _ => {
            let extension = match format_of(&bytes) {
                Some("PNG") => "png",
                Some("WebP") => "webp",
                Some("BMP") => "bmp",
                _ => "jpg",
            };
            Ok(PackedImage {
                name: format!("{key}.{extension}"),
                bytes,
                resized: false,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Rgb, encode_png};
    use tempfile::TempDir;

    /// 25 images of growing height, every tenth unreadable, in two folders.
    fn people() -> (TempDir, Source) {
        let folder = tempfile::tempdir().unwrap();
        for part in ["a", "b"] {
            fs::create_dir(folder.path().join(part)).unwrap();
        }
        for i in 0..25_usize {
            let part = if i % 2 == 0 { "a" } else { "b" };
            let path = folder.path().join(format!("{part}/{i:02}.png"));
            let image = Rgb::filled(10, 20 + i, [i as u8, 0, 0]);
            let bytes = if i % 10 == 9 {
                b"text".to_vec()
            } else {
                encode_png(&image)
            };
            fs::write(path, bytes).unwrap();
        }
        let source = Source::open(folder.path().to_str().unwrap()).unwrap();
        (folder, source)
    }

    fn pack_to(source: &Source, out: &Path, config: &PackConfig) -> Result<PackReport, PackError> {
        pack(source, out, config, &Limits::default(), &mut |_, _| {
            ControlFlow::Continue(())
        })
    }

    #[test]
    fn packed_shards_open_as_the_same_source() {
        let (_folder, source) = people();
        let out = tempfile::tempdir().unwrap();
        let config = PackConfig {
            images_per_shard: 10,
            max_height: Some(40),
            ..PackConfig::default()
        };
        let mut last = (0, 0);
        let limits = Limits::default();
        let to = &mut |done, total| {
            last = (done, total);
            ControlFlow::Continue(())
        };
        let report = pack(&source, out.path(), &config, &limits, to).unwrap();
        assert_eq!(last, (25, 25));
        assert_eq!((report.images, report.resized), (23, 4));
        assert_eq!(report.shards.len(), 3);
        let failed: Vec<&str> = report
            .unreadable
            .failed
            .iter()
            .map(|f| f.0.as_str())
            .collect();
        assert_eq!(failed, ["b/09", "b/19"]);

        let spec = format!("{}/images-{{000..002}}.tar", out.path().display());
        let packed = Source::open(&spec).unwrap();
        assert_eq!(
            Source::open(out.path().to_str().unwrap()).unwrap().len(),
            23
        );
        let kept = source.keys().filter(|key| !failed.contains(key));
        assert!(packed.keys().eq(kept));
        for i in 0..packed.len() {
            let bytes = packed.read(i).unwrap();
            let image = decode(&bytes, &limits).unwrap();
            let number: usize = packed.key(i)[2..].parse().unwrap();
            assert_eq!(image.height, (20 + number).min(40));
            let original = source.keys().position(|k| k == packed.key(i)).unwrap();
            assert_eq!(number <= 20, source.read(original).unwrap() == bytes);
        }
    }

    #[test]
    fn packing_twice_gives_the_same_bytes_and_never_overwrites() {
        let (folder, source) = people();
        let config = PackConfig::default();
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = pack_to(&source, a.path(), &config).unwrap();
        let second = pack_to(&source, b.path(), &config).unwrap();
        let bytes = |report: &PackReport| fs::read(&report.shards[0]).unwrap();
        assert!(bytes(&first) == bytes(&second));
        // The same once more is done already.
        let written = |report: &PackReport| fs::metadata(&report.shards[0]).unwrap().modified();
        let before = written(&first).unwrap();
        let again = pack_to(&source, a.path(), &config).unwrap();
        assert_eq!(
            (again.resumed, &again.shards),
            (source.len(), &first.shards)
        );
        assert_eq!((again.images, again.bytes), (first.images, first.bytes));
        assert_eq!(written(&again).unwrap(), before);
        // With other settings, of images that have changed since, and beside shards of others it is
        // refused.
        let refused = |source: &Source, out: &Path, config: &PackConfig, words: &str| {
            let error = pack_to(source, out, config).unwrap_err().to_string();
            assert!(error.contains(words), "expected {words} in {error}");
        };
        let smaller = PackConfig {
            max_height: Some(8),
            ..config.clone()
        };
        refused(
            &source,
            a.path(),
            &smaller,
            "a finished packing with another setting",
        );
        let image = encode_png(&Rgb::filled(40, 90, [1, 2, 3]));
        fs::write(folder.path().join("a/00.png"), image).unwrap();
        refused(
            &source,
            a.path(),
            &config,
            "a finished packing with another source",
        );
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("images-000.tar"), "").unwrap();
        refused(&source, other.path(), &config, "images-000.tar` exists");
    }

    #[test]
    fn a_stopped_packing_is_refused_as_a_source_and_resumes_to_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..300_u32 {
            // One in a hundred is unreadable, at the end of a shard and after one.
            let bytes = match i % 100 {
                49 | 50 => b"text".to_vec(),
                _ => encode_png(&Rgb::filled(4, 8, [i as u8, (i / 256) as u8, 0])),
            };
            fs::write(folder.path().join(format!("{i:03}.png")), bytes).unwrap();
        }
        let source = Source::open(folder.path().to_str().unwrap()).unwrap();
        let config = PackConfig {
            images_per_shard: 50,
            ..PackConfig::default()
        };
        let outs = tempfile::tempdir().unwrap();
        let (whole, broken) = (outs.path().join("whole"), outs.path().join("broken"));
        let once = pack_to(&source, &whole, &config).unwrap();
        let mut stop = |done: usize, _| match done {
            ..=CHUNK => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        };
        let limits = Limits::default();
        let part = pack(&source, &broken, &config, &limits, &mut stop).unwrap();
        assert!(part.stopped && part.images > 0 && part.images < once.images);
        for spec in [broken.clone(), part.shards[0].clone()] {
            let error = Source::open(spec.to_str().unwrap()).unwrap_err();
            assert!(
                matches!(error, crate::source::SourceError::Unfinished { .. }),
                "{error}"
            );
        }
        // A kill in the middle of the next shard, which is written again.
        let next = broken.join(format!("images-{:03}.tar", part.shards.len()));
        fs::write(&next, "part").unwrap();
        fs::write(
            broken.join(format!(".images-009.tar.{}-0.tmp", u32::MAX)),
            "part",
        )
        .unwrap();
        let other = PackConfig {
            images_per_shard: 60,
            ..config.clone()
        };
        let error = pack_to(&source, &broken, &other).unwrap_err().to_string();
        assert!(
            error.contains("another setting: expected 60 images"),
            "{error}"
        );
        let rest = pack_to(&source, &broken, &config).unwrap();
        assert_eq!(
            (rest.images, &rest.unreadable),
            (once.images, &once.unreadable)
        );
        assert!(rest.resumed > 0 && !rest.stopped);
        let files = |folder: &Path| {
            let mut names: Vec<_> = (fs::read_dir(folder).unwrap())
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            let read = |name: &std::ffi::OsString| fs::read(folder.join(name)).unwrap();
            (names.iter().map(read).collect::<Vec<_>>(), names)
        };
        assert!(files(&whole) == files(&broken));
        let packed = Source::open(broken.to_str().unwrap()).unwrap();
        assert_eq!(packed.len(), 294);
        // What is finished is not packed again, and a shard that went missing is noticed.
        let again = pack_to(&source, &broken, &config).unwrap();
        assert_eq!(
            (again.images, again.unreadable),
            (once.images, once.unreadable)
        );
        fs::remove_file(&next).unwrap();
        let error = pack_to(&source, &broken, &config).unwrap_err();
        assert!(matches!(error, PackError::Shard { .. }), "{error}");
    }

    #[test]
    fn nothing_readable_leaves_no_shard() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.png"), "text").unwrap();
        let source = Source::open(folder.path().to_str().unwrap()).unwrap();
        let out = folder.path().join("out");
        let error = pack_to(&source, &out, &PackConfig::default()).unwrap_err();
        assert!(matches!(error, PackError::Nothing { .. }), "{error}");
        let left = fs::read_dir(out)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        assert_eq!(left.collect::<Vec<_>>(), [".lock"]);
    }
}
