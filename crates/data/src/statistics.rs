//! Statistics of a source: how many images of which formats and sizes.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;

use crate::image::{Limits, decode, format_of};
use crate::source::{Source, UnreadableImages};

/// Images decoded at a time, which bounds the memory.
const CHUNK: usize = 128;

/// Formats and sizes of the images of a source.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SourceStatistics {
    /// Images that can be decoded.
    pub images: u64,
    /// Bytes of those as they are stored.
    pub bytes: u64,
    /// How many there are of each format.
    pub formats: BTreeMap<String, u64>,
    /// Widths in pixels.
    pub width: LengthStatistics,
    /// Heights in pixels.
    pub height: LengthStatistics,
    /// Width over height, in hundredths.
    pub aspect_percent: LengthStatistics,
    /// Images by height: those of `from` up to, not including, twice that.
    pub heights: Vec<HeightBin>,
    /// Images that cannot be decoded.
    pub unreadable: UnreadableImages,
}

/// The spread of a length over the images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LengthStatistics {
    /// Smallest.
    pub min: usize,
    /// Median; the lower of two.
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

impl LengthStatistics {
    fn of(mut sides: Vec<usize>) -> Self {
        sides.sort_unstable();
        match (sides.first(), sides.last()) {
            (Some(&min), Some(&max)) => LengthStatistics {
                min,
                median: sides[(sides.len() - 1) / 2],
                mean: sides.iter().sum::<usize>() as f64 / sides.len() as f64,
                max,
            },
            _ => LengthStatistics::default(),
        }
    }
}

/// Decodes every image of a source. `progress` gets the number of images done and their total.
pub fn statistics(
    source: &Source,
    limits: &Limits,
    progress: &mut dyn FnMut(usize, usize),
) -> SourceStatistics {
    let mut stats = SourceStatistics::default();
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
    stats.width = LengthStatistics::of(widths);
    stats.height = LengthStatistics::of(heights);
    stats.aspect_percent = LengthStatistics::of(aspects);
    let bins = bins.into_iter();
    stats.heights = bins
        .map(|(from, images)| HeightBin { from, images })
        .collect();
    stats
}

#[cfg(test)]
mod tests {
    use fs_err as fs;

    use super::*;
    use crate::image::{Rgb, encode_png};

    /// 25 images of growing height, every tenth unreadable.
    fn people() -> (tempfile::TempDir, Source) {
        let folder = tempfile::tempdir().unwrap();
        for i in 0..25_usize {
            let bytes = match i % 10 {
                9 => b"text".to_vec(),
                _ => encode_png(&Rgb::filled(10, 20 + i, [i as u8, 0, 0])),
            };
            fs::write(folder.path().join(format!("{i:02}.png")), bytes).unwrap();
        }
        let source = Source::open(folder.path().to_str().unwrap()).unwrap();
        (folder, source)
    }
    #[test]
    fn statistics_count_what_is_there() {
        let (_folder, source) = people();
        let stats = statistics(&source, &Limits::default(), &mut |_, _| {});
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
