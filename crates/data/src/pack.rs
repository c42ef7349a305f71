//! Packing images into tar shards, and statistics of a source.
//!
//! Millions of small files are slow to list, copy and open; a few thousand tars of a thousand
//! images are not. A packed shard is a plain tar whose members are the images, named by their keys,
//! as WebDataset has them. The same source and settings give the same bytes.
//!
//! `{prefix}.pack.json` beside the shards says what they are: the settings, a digest of the source's
//! keys, each shard's name, images and bytes, the images left out, and `complete`. A packing that
//! was stopped has `"complete": false`; [`Source::open`] then refuses its shards, and the same
//! packing goes on after the shards that are listed.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use fs_err as fs;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::atomic::{FolderLock, atomic_write, remove_abandoned};
use crate::image::{Filter, Limits, decode, encode_jpeg, format_of, resize};
use crate::source::{Source, Unreadable};

/// Images decoded at a time, which bounds the memory.
const CHUNK: usize = 128;

/// How [`pack`] writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PackConfig {
    /// Shards are called `{prefix}-000.tar` and so on.
    pub prefix: String,
    /// Images in a shard; the last one may hold fewer.
    pub images_per_shard: usize,
    /// Images that are higher become JPEGs of this height; others keep their bytes.
    pub max_height: Option<usize>,
    /// JPEG quality of what is made smaller, 1 to 100.
    pub quality: u8,
}

impl Default for PackConfig {
    fn default() -> Self {
        PackConfig {
            prefix: "images".to_owned(),
            images_per_shard: 1000,
            max_height: None,
            quality: 92,
        }
    }
}

/// What [`pack`] wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PackReport {
    /// The shards in order.
    pub shards: Vec<PathBuf>,
    /// Images in them.
    pub images: u64,
    /// How many of those were made smaller.
    pub resized: u64,
    /// Bytes of the images as written.
    pub bytes: u64,
    /// Images left out because they cannot be decoded.
    pub unreadable: Unreadable,
    /// Images of the source that an earlier process had done.
    pub resumed: usize,
    /// Whether it was asked to stop before all was done.
    pub stopped: bool,
}

/// Why packing failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// Shards of that name are there already; mixed with new ones they would be read as one set.
    #[error("`{}` exists\nhint: choose another folder or prefix, or remove it", .0.display())]
    Exists(PathBuf),
    /// A packing that was stopped, of other images or with other settings.
    #[error(
        "`{}`: an unfinished packing with another {what}: expected {expected}, found {found}\n  \
         hint: give the same to go on with it, remove its shards and this file, or choose another folder",
        .path.display()
    )]
    Other {
        /// The manifest.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// What this packing has.
        expected: String,
        /// What the manifest says.
        found: String,
    },
    /// A manifest that is none.
    #[error("`{}`: {reason}\n  hint: remove it and the shards beside it", .path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The settings make no sense.
    #[error("{0}")]
    Config(String),
    /// No image of the source can be decoded.
    #[error("none of the {seen} images can be decoded; the first: `{key}`: {reason}")]
    Nothing {
        /// Images tried.
        seen: u64,
        /// Key of the first.
        key: String,
        /// Why it failed.
        reason: String,
    },
    /// The file system failed; the message names the file.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A finished shard, in the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Shard {
    name: String,
    images: u64,
    bytes: u64,
}

/// What lies beside the shards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    /// Whether all images are packed.
    complete: bool,
    settings: PackConfig,
    /// SHA-256 of the keys of the source.
    source: String,
    /// Images of the source.
    total: usize,
    /// Images of the source that are packed or left out.
    done: usize,
    /// Images in the shards that were made smaller.
    resized: u64,
    /// Bytes of the images in the shards.
    image_bytes: u64,
    shards: Vec<Shard>,
    unreadable: Unreadable,
}

impl Manifest {
    fn path(folder: &Path, prefix: &str) -> PathBuf {
        folder.join(format!("{prefix}.pack.json"))
    }

    fn read(path: &Path) -> Result<Option<Self>, PackError> {
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

    fn write(&self, path: &Path) -> Result<(), PackError> {
        let mut text = serde_json::to_vec_pretty(self).map_err(io::Error::other)?;
        text.push(b'\n');
        Ok(atomic_write(path, |file| file.write_all(&text))?)
    }

    /// Checks that an unfinished packing is this one.
    fn check_same(&self, now: &Self, path: &Path) -> Result<(), PackError> {
        let other = |what, expected: String, found: String| PackError::Other {
            path: path.to_owned(),
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
        if (&self.source, self.total) != (&now.source, now.total) {
            let words = |manifest: &Self| {
                let digest = manifest.source.get(..12).unwrap_or_default();
                format!("{} images, digest {digest}", manifest.total)
            };
            return Err(other("source", words(now), words(self)));
        }
        Ok(())
    }
}

/// Images done and to be done of an unfinished packing that the tar at `path` is a shard of; none
/// where it is whole or nothing says so.
pub(crate) fn unfinished(path: &Path) -> io::Result<Option<(usize, usize)>> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let digits = stem
        .rsplit_once('-')
        .map(|(prefix, number)| (prefix, number.as_bytes()));
    let Some((prefix, _)) = digits.filter(|(_, number)| number.iter().all(u8::is_ascii_digit))
    else {
        return Ok(None);
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    match Manifest::read(&Manifest::path(folder, prefix)) {
        Ok(Some(manifest)) if !manifest.complete => Ok(Some((manifest.done, manifest.total))),
        Ok(_) => Ok(None),
        Err(error) => Err(io::Error::other(error.to_string())),
    }
}

/// Writes the images of a source to tar shards in the folder `out`, in order. Each shard appears
/// whole or not at all; a packing that was stopped goes on where it was.
///
/// Every image is decoded, so that what is packed is known to be readable; `progress` is told the
/// number of images done and their total, and ends the work between two shards when it breaks.
///
/// # Errors
/// See [`PackError`]. Images that cannot be decoded are no error: they are left out and listed.
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
    let path = Manifest::path(out, &config.prefix);
    let mut manifest = Manifest {
        complete: false,
        settings: config.clone(),
        source: digest(source),
        total: source.len(),
        done: 0,
        resized: 0,
        image_bytes: 0,
        shards: Vec::new(),
        unreadable: Unreadable::default(),
    };
    match Manifest::read(&path)? {
        Some(there) if !there.complete => {
            there.check_same(&manifest, &path)?;
            manifest = there;
            manifest.keep_whole(out, source)?;
        }
        _ => refuse_existing(out, &config.prefix)?,
    }
    let most = source.len().div_ceil(config.images_per_shard).max(1) - 1;
    let digits = most.to_string().len().max(3);
    let resumed = manifest.done;
    let mut feed = Feed {
        source,
        config,
        limits,
        progress,
        next: manifest.done,
        done: manifest.done,
        stopped: false,
        ready: VecDeque::new(),
        unreadable: manifest.unreadable.clone(),
    };
    let failed = |feed: &Feed, done: usize| {
        let mut unreadable = feed.unreadable.clone();
        // Images read ahead of the shard belong to the next one.
        let ahead = |key: &String| feed.keys_after(done).any(|later| later == key);
        unreadable.failed.retain(|(key, _)| !ahead(key));
        unreadable.seen = done as u64;
        unreadable
    };
    let mut begun = resumed > 0;
    while feed.fill() && !feed.stopped {
        // A source without a single good image leaves nothing behind.
        if !begun {
            manifest.write(&path)?;
            begun = true;
        }
        let number = manifest.shards.len();
        let name = format!("{}-{number:0digits$}.tar", config.prefix);
        let mut shard = Shard {
            name,
            images: 0,
            bytes: 0,
        };
        let (mut resized, mut image_bytes) = (0, 0);
        atomic_write(&out.join(&shard.name), |writer| {
            let mut tar = tar::Builder::new(writer);
            for _ in 0..config.images_per_shard {
                let Some(image) = feed.take() else { break };
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
        manifest.done = feed.done;
        manifest.unreadable = failed(&feed, manifest.done);
        manifest.write(&path)?;
    }
    let stopped = feed.stopped;
    if !stopped {
        manifest.done = source.len();
        manifest.unreadable = feed.unreadable.clone();
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
        manifest.complete = true;
        manifest.write(&path)?;
    }
    let shards = manifest.shards.iter().map(|shard| out.join(&shard.name));
    Ok(PackReport {
        shards: shards.collect(),
        images,
        resized: manifest.resized,
        bytes: manifest.image_bytes,
        unreadable: manifest.unreadable.clone(),
        resumed,
        stopped,
    })
}

impl Manifest {
    /// Forgets the shards from the first that is not as it was written.
    fn keep_whole(&mut self, out: &Path, source: &Source) -> Result<(), PackError> {
        let whole = |shard: &Shard| match fs::metadata(out.join(&shard.name)) {
            Ok(metadata) => metadata.len() == shard.bytes,
            Err(_) => false,
        };
        if self.shards.iter().all(whole) {
            return Ok(());
        }
        // Which image the kept shards end with is known only from the beginning.
        self.shards.clear();
        (self.done, self.resized, self.image_bytes) = (0, 0, 0);
        self.total = source.len();
        self.unreadable = Unreadable::default();
        Ok(())
    }
}

/// SHA-256 of the keys of a source, in hex.
fn digest(source: &Source) -> String {
    let mut hash = Sha256::new();
    for key in source.keys() {
        hash.update(key.as_bytes());
        hash.update(b"\n");
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

/// An image as it goes into a shard.
struct Packed {
    name: String,
    bytes: Vec<u8>,
    resized: bool,
}

/// Images made ready a chunk at a time, on all cores, taken in order.
struct Feed<'a> {
    source: &'a Source,
    config: &'a PackConfig,
    limits: &'a Limits,
    progress: &'a mut dyn FnMut(usize, usize) -> ControlFlow<()>,
    /// Images of the source that were looked at.
    next: usize,
    /// Images of the source up to the last one taken.
    done: usize,
    stopped: bool,
    ready: VecDeque<(usize, Packed)>,
    unreadable: Unreadable,
}

impl Feed<'_> {
    /// Makes sure that an image is ready, if there is any left.
    fn fill(&mut self) -> bool {
        while self.ready.is_empty() && self.next < self.source.len() {
            let end = self.source.len().min(self.next + CHUNK);
            let chunk: Vec<Result<Packed, String>> = (self.next..end)
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

    fn take(&mut self) -> Option<Packed> {
        self.fill();
        let (image, packed) = self.ready.pop_front()?;
        self.done = image + 1;
        Some(packed)
    }

    /// Keys of images that were looked at, from `done` on.
    fn keys_after(&self, done: usize) -> impl Iterator<Item = &str> {
        (done..self.next).map(|image| self.source.key(image))
    }
}

/// The image as it goes into a shard, or why it does not.
fn prepare(
    source: &Source,
    i: usize,
    config: &PackConfig,
    limits: &Limits,
) -> Result<Packed, String> {
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
            Ok(Packed {
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
            Ok(Packed {
                name: format!("{key}.{extension}"),
                bytes,
                resized: false,
            })
        }
    }
}

/// What a source holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Images that can be decoded.
    pub images: u64,
    /// Bytes of those as they are stored.
    pub bytes: u64,
    /// How many there are of each format.
    pub formats: BTreeMap<String, u64>,
    /// Widths in pixels.
    pub width: Sides,
    /// Heights in pixels.
    pub height: Sides,
    /// Width over height, in hundredths.
    pub aspect_percent: Sides,
    /// Images by height: those of `from` up to, not including, twice that.
    pub heights: Vec<HeightBin>,
    /// Images that cannot be decoded.
    pub unreadable: Unreadable,
}

/// The spread of a length over the images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Sides {
    /// Smallest.
    pub min: usize,
    /// The one in the middle; the lower of two.
    pub median: usize,
    /// Mean.
    pub mean: f64,
    /// Largest.
    pub max: usize,
}

/// How many images are of about one height.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HeightBin {
    /// Smallest height of the bin, a power of two.
    pub from: usize,
    /// Images in it.
    pub images: u64,
}

impl Sides {
    fn of(mut sides: Vec<usize>) -> Self {
        sides.sort_unstable();
        match (sides.first(), sides.last()) {
            (Some(&min), Some(&max)) => Sides {
                min,
                median: sides[(sides.len() - 1) / 2],
                mean: sides.iter().sum::<usize>() as f64 / sides.len() as f64,
                max,
            },
            _ => Sides::default(),
        }
    }
}

/// Decodes every image of a source and counts. `progress` is told the number of images done and
/// their total.
pub fn stats(source: &Source, limits: &Limits, progress: &mut dyn FnMut(usize, usize)) -> Stats {
    let mut stats = Stats::default();
    let (mut widths, mut heights, mut aspects) = (Vec::new(), Vec::new(), Vec::new());
    let mut bins: BTreeMap<usize, u64> = BTreeMap::new();
    for start in (0..source.len()).step_by(CHUNK) {
        let end = source.len().min(start + CHUNK);
        let chunk: Vec<Result<_, String>> = (start..end)
            .into_par_iter()
            .map(|i| {
                let bytes = source.read(i).map_err(|e| e.to_string())?;
                let image = decode(&bytes, limits).map_err(|e| e.to_string())?;
                let format = format_of(&bytes).unwrap_or("unknown");
                Ok((bytes.len() as u64, format, image.width, image.height))
            })
            .collect();
        for (i, result) in (start..end).zip(chunk) {
            match result {
                Ok((bytes, format, width, height)) => {
                    stats.unreadable.ok();
                    stats.images += 1;
                    stats.bytes += bytes;
                    *stats.formats.entry(format.to_owned()).or_default() += 1;
                    *bins.entry(1 << height.ilog2()).or_default() += 1;
                    widths.push(width);
                    heights.push(height);
                    aspects.push((100 * width + height / 2) / height);
                }
                Err(reason) => stats.unreadable.fail(source.key(i), reason),
            }
        }
        progress(end, source.len());
    }
    stats.width = Sides::of(widths);
    stats.height = Sides::of(heights);
    stats.aspect_percent = Sides::of(aspects);
    let bins = bins.into_iter();
    stats.heights = bins
        .map(|(from, images)| HeightBin { from, images })
        .collect();
    stats
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
        let (_folder, source) = people();
        let config = PackConfig::default();
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let first = pack_to(&source, a.path(), &config).unwrap();
        let second = pack_to(&source, b.path(), &config).unwrap();
        let bytes = |report: &PackReport| fs::read(&report.shards[0]).unwrap();
        assert!(bytes(&first) == bytes(&second));
        let error = pack_to(&source, a.path(), &config).unwrap_err().to_string();
        assert!(error.contains("images-000.tar` exists"), "{error}");
    }

    #[test]
    fn a_stopped_packing_is_refused_as_a_source_and_goes_on_to_the_same_bytes() {
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
        let error = pack_to(&source, &broken, &config).unwrap_err();
        assert!(matches!(error, PackError::Exists(_)), "{error}");
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

    #[test]
    fn statistics_count_what_is_there() {
        let (_folder, source) = people();
        let stats = stats(&source, &Limits::default(), &mut |_, _| {});
        assert_eq!(stats.images, 23);
        assert_eq!(stats.formats["PNG"], 23);
        assert_eq!((stats.width.min, stats.width.max), (10, 10));
        assert_eq!((stats.height.min, stats.height.max), (20, 44));
        assert_eq!(stats.height.median, 32);
        let bins: Vec<_> = stats.heights.iter().map(|b| (b.from, b.images)).collect();
        assert_eq!(bins, [(16, 11), (32, 12)]);
        assert_eq!(stats.unreadable.failed.len(), 2);
        assert!(stats.unreadable.failed[0].1.contains("text starting with"));
        assert!(stats.unreadable.check().is_err());
        let json = serde_json::to_string(&stats).unwrap();
        assert!(json.contains("\"aspect_percent\""), "{json}");
    }
}
