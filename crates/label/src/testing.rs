//! Shared by the tests of this crate: a tiny CLIP with random weights, a small vocabulary, drawn
//! files.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Device;
use clasp_data::image::{self, Rgb};
use clasp_data::labels::StoreMeta;
use clasp_data::rng_for;
use clasp_data::source::Source;
use clasp_data::vocabulary::Vocabulary;
use clasp_model::clip::{Clip, ClipConfig};
use clasp_weights::clip::ClipInfo;

use crate::config::LabelConfig;
use crate::labeler::ClipLabeler;

/// Three parts with four synonyms; a group of three values and a pair.
pub fn vocabulary() -> Vocabulary {
    Vocabulary::parse(
        include_str!("../tests/vocabulary.toml"),
        "the tests' vocabulary",
    )
    .unwrap()
}

/// Metadata of a store with the tests' vocabulary.
pub fn meta(grid: [usize; 2]) -> StoreMeta {
    StoreMeta {
        vocabulary: vocabulary(),
        model: "tiny".into(),
        model_sha256: "00".into(),
        rows: grid[0],
        columns: grid[1],
        method: "clip".into(),
        dense: "clear".into(),
        confidence: 0.5,
    }
}

/// A CLIP of 8 × 8 patches and two layers, with random weights.
pub fn tiny_clip(device: &Device) -> Clip {
    ClipConfig::tiny().init(&mut rng_for(7, 0, "tiny clip"), device)
}

/// `shards` folders of `count` images each, as one source with a shard for each folder.
pub fn images(folder: &Path, shards: usize, count: usize) -> Source {
    let mut spec = Vec::new();
    for shard in 0..shards {
        let place = folder.join(format!("shard{shard}"));
        fs_err::create_dir_all(&place).unwrap();
        for i in 0..count {
            // Bands of colors that differ from image to image.
            let (height, width) = (20 + 2 * i, 10 + i);
            let pixels = (0..height * width)
                .flat_map(|p| {
                    let (y, x) = (p / width, p % width);
                    [
                        (y * 9 + 40 * shard) as u8,
                        (x * 17 + 31 * i) as u8,
                        (y * x + 7 * i * i) as u8,
                    ]
                })
                .collect();
            let picture = Rgb::new(width, height, pixels);
            fs_err::write(
                place.join(format!("{shard}-{i:03}.png")),
                image::encode_png(&picture),
            )
            .unwrap();
        }
        spec.push(place.display().to_string());
    }
    Source::open(&spec.join(",")).unwrap()
}

/// A labeler with the tiny CLIP and batches of three.
pub fn labeler(config: &LabelConfig) -> ClipLabeler {
    let device = Device::flex();
    let info = ClipInfo {
        name: "tiny".into(),
        sha256: "00".into(),
        image_size: [32, 32],
        mean: image::CLIP_MEAN,
        std: image::CLIP_STD,
    };
    let config = LabelConfig {
        batch: 3,
        confidence: 0.34,
        grid: [4, 2],
        ..config.clone()
    };
    ClipLabeler::new(tiny_clip(&device), &info, &vocabulary(), &config, &device).unwrap()
}

/// Every file of a folder that is not hidden, by name.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fs_err::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                path,
            )
        })
        .filter(|(name, path)| !name.starts_with('.') && path.is_file())
        .map(|(name, path)| (name, fs_err::read(path).unwrap()))
        .collect()
}
