//! Shared by the tests of this crate: a tiny CLIP with random weights, a small vocabulary.

use burn::tensor::Device;
use clasp_data::image;
use clasp_data::rng_for;
use clasp_data::vocabulary::Vocabulary;
use clasp_model::clip::{Clip, ClipConfig};
use clasp_weights::clip::ClipInfo;

use clasp_label::{ClipLabeler, LabelConfig};

/// Three parts with four synonyms; a group of three values and a pair.
pub fn vocabulary() -> Vocabulary {
    Vocabulary::parse(
        include_str!("../../label/tests/vocabulary.toml"),
        "the tests' vocabulary",
    )
    .unwrap()
}

/// A CLIP of 8 × 8 patches and two layers, with random weights.
pub fn tiny_clip(device: &Device) -> Clip {
    ClipConfig::tiny().init(&mut rng_for(7, 0, "tiny clip"), device)
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
