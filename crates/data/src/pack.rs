//! Packing images into tar shards, and statistics of a source.
//!
//! Millions of small files are slow to list, copy and open; a few thousand tars of a thousand
//! images are not. A packed shard is a plain tar whose members are the images, named by their keys,
//! as WebDataset has them. The same source and settings give the same bytes.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};

use fs_err as fs;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::atomic_write;
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
}

/// Why packing failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// Shards of that name are there already; mixed with new ones they would be read as one set.
    #[error("`{}` exists\nhint: choose another folder or prefix, or remove it", .0.display())]
    Exists(PathBuf),
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

/// Writes the images of a source to tar shards in the folder `out`, in order. Each shard appears
/// whole or not at all.
///
/// Every image is decoded, so that what is packed is known to be readable; `progress` is told the
/// number of images done and their total.
///
/// # Errors
/// See [`PackError`]. Images that cannot be decoded are no error: they are left out and listed.
pub fn pack(
    source: &Source,
    out: &Path,
    config: &PackConfig,
    limits: &Limits,
    progress: &mut dyn FnMut(usize, usize),
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
    refuse_existing(out, &config.prefix)?;
    let most = source.len().div_ceil(config.images_per_shard).max(1) - 1;
    let digits = most.to_string().len().max(3);
    let mut feed = Feed {
        source,
        config,
        limits,
        progress,
        next: 0,
        ready: VecDeque::new(),
        report: PackReport::default(),
    };
    while feed.fill() {
        let number = feed.report.shards.len();
        let path = out.join(format!("{}-{number:0digits$}.tar", config.prefix));
        atomic_write(&path, |writer| {
            let mut tar = tar::Builder::new(writer);
            for _ in 0..config.images_per_shard {
                let Some(image) = feed.take() else { break };
                let mut header = tar::Header::new_gnu();
                header.set_size(image.bytes.len() as u64);
                header.set_mode(0o644);
                header.set_mtime(0);
                tar.append_data(&mut header, &image.name, &image.bytes[..])?;
            }
            tar.finish()
        })?;
        feed.report.shards.push(path);
    }
    let report = feed.report;
    match report.unreadable.failed.first() {
        Some((key, reason)) if report.images == 0 => Err(PackError::Nothing {
            seen: report.unreadable.seen,
            key: key.clone(),
            reason: reason.clone(),
        }),
        _ => Ok(report),
    }
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
    progress: &'a mut dyn FnMut(usize, usize),
    next: usize,
    ready: VecDeque<Packed>,
    report: PackReport,
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
                        self.report.unreadable.ok();
                        self.ready.push_back(packed);
                    }
                    Err(reason) => self.report.unreadable.fail(self.source.key(i), reason),
                }
            }
            self.next = end;
            (self.progress)(end, self.source.len());
        }
        !self.ready.is_empty()
    }

    fn take(&mut self) -> Option<Packed> {
        self.fill();
        let packed = self.ready.pop_front()?;
        self.report.images += 1;
        self.report.bytes += packed.bytes.len() as u64;
        self.report.resized += u64::from(packed.resized);
        Some(packed)
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
        pack(source, out, config, &Limits::default(), &mut |_, _| {})
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
        let to = &mut |done, total| last = (done, total);
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
    fn nothing_readable_leaves_no_shard() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.png"), "text").unwrap();
        let source = Source::open(folder.path().to_str().unwrap()).unwrap();
        let out = folder.path().join("out");
        let error = pack_to(&source, &out, &PackConfig::default()).unwrap_err();
        assert!(matches!(error, PackError::Nothing { .. }), "{error}");
        assert_eq!(fs::read_dir(out).unwrap().count(), 0);
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
