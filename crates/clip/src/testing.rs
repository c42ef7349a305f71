//! Shared by the tests of this crate: a tiny CLIP with random weights, a small vocabulary.

use burn::tensor::Device;
use clasp_data::image;
use clasp_data::rng_for;
use clasp_data::vocabulary::Vocabulary;
use clasp_model::clip::{Activation, Clip, ClipConfig, TextConfig, VisionConfig};
use clasp_weights::clip::ClipInfo;

use clasp_label::{ClipLabeler, LabelConfig};

/// Three parts with four synonyms; a group of three values and a pair.
pub fn vocabulary() -> Vocabulary {
    Vocabulary::parse(
        r#"
        templates = ["{}", "a photo of {}"]
        part_templates = ["{}", "a close-up of {}"]
        parts = [
            { name = "background", synonyms = ["a street"] },
            { name = "head", synonyms = ["a head", "hair"] },
            { name = "legs", synonyms = ["legs"] },
        ]
        [[attributes]]
        name = "age"
        kind = "group"
        values = [
            { name = "child", prompts = ["a child", "a kid"] },
            { name = "adult", prompts = ["an adult"] },
            { name = "older", prompts = ["an old person"] },
        ]
        [[attributes]]
        name = "glasses"
        kind = "pair"
        values = [
            { name = "no", prompts = ["a person"] },
            { name = "yes", prompts = ["a person with glasses"] },
        ]
        "#,
        "the tests' vocabulary",
    )
    .unwrap()
}

/// A CLIP of 8 × 8 patches and two layers, with random weights.
pub fn tiny_clip(device: &Device) -> Clip {
    let config = ClipConfig {
        embed: 16,
        activation: Activation::QuickGelu,
        epsilon: 1e-5,
        vision: VisionConfig {
            image: [32, 32],
            patch: 8,
            width: 24,
            layers: 2,
            heads: 2,
            hidden: 48,
        },
        text: TextConfig {
            context: 16,
            vocabulary: 49_408,
            width: 16,
            layers: 1,
            heads: 2,
            hidden: 32,
        },
    };
    config.init(&mut rng_for(7, 0, "tiny clip"), device)
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
