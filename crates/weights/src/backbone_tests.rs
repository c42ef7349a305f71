//! Tests of backbone files: written, read, and begun from.

use burn::tensor::{Device, Tensor};
use clasp_model::backbone::{Adapter, Backbone, BackboneConfig};
use clasp_model::layers::Rng;
use clasp_model::moe::{MoeConfig, MoeKind};
use clasp_model::prompt::PromptWeights;
use rand_chacha::rand_core::SeedableRng;

use crate::backbone::*;
use crate::checkpoint::{self, Metadata};
use crate::error::WeightsError;
use crate::import::{load_backbone, start_from};
use crate::state::StateDict;

fn meta(config: BackboneConfig) -> BackboneMeta {
    BackboneMeta {
        stage: "pretrain".to_owned(),
        clasp: "0.1.0".to_owned(),
        config,
        height: 128,
        width: 64,
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
        filter: clasp_data::image::Filter::Bicubic,
        method: "clasp".to_owned(),
        heads: vec!["dino".to_owned()],
        prompts: vec!["identity".to_owned()],
        step: 3,
        vocabulary: String::new(),
        recipe: "seed = 0\n".to_owned(),
        licenses: Vec::new(),
        origin: String::new(),
    }
}

fn config(adapter: Adapter) -> BackboneConfig {
    BackboneConfig::named("swin-pico")
        .unwrap()
        .with_adapter(adapter)
}

#[test]
fn a_backbone_survives_the_way_there_and_back() {
    let (device, folder) = (Device::flex(), tempfile::tempdir().unwrap());
    let path = folder.path().join("backbone.safetensors");
    for adapter in [Adapter::None, Adapter::Moe(MoeConfig::default())] {
        let config = config(adapter);
        let backbone = config.init(&mut Rng::seed_from_u64(1), &device);
        save_backbone(&path, &backbone, &meta(config.clone())).unwrap();
        // The folder of a run does as well as the file.
        let (loaded, said) = load_backbone(folder.path(), &device).unwrap();
        assert_eq!(said, meta(config.clone()));
        assert_eq!(read_backbone_meta(&path).unwrap(), said);
        let images = Tensor::ones([1, 3, 64, 32], &device);
        let features = |backbone: &Backbone| {
            backbone
                .forward(images.clone(), PromptWeights::mean().tensor(&device), None)
                .pooled
                .into_data()
        };
        assert_eq!(features(&loaded), features(&backbone));
    }
}

#[test]
fn a_plain_backbone_starts_an_adapted_one_and_another_size_does_not() {
    let (device, folder) = (Device::flex(), tempfile::tempdir().unwrap());
    let path = folder.path().join("plain.safetensors");
    let plain = config(Adapter::None);
    let backbone = plain.init(&mut Rng::seed_from_u64(1), &device);
    save_backbone(&path, &backbone, &meta(plain)).unwrap();
    let adapted =
        config(Adapter::Moe(MoeConfig::default())).init(&mut Rng::seed_from_u64(2), &device);
    let (adapted, report) = start_from(adapted, &path).unwrap();
    assert!(report.unexpected.is_empty() && !report.missing.is_empty());
    let images = Tensor::ones([1, 3, 64, 32], &device);
    let prompt_weights = PromptWeights::single(1).tensor(&device);
    let features = |backbone: &Backbone| {
        backbone
            .forward(images.clone(), prompt_weights.clone(), None)
            .pooled
            .into_data()
    };
    features(&adapted).assert_approx_eq(
        &features(&backbone),
        burn::tensor::Tolerance::<f32>::absolute(1e-6),
    );

    let other = BackboneConfig::named("swin-nano")
        .unwrap()
        .init(&mut Rng::seed_from_u64(2), &device);
    let message = start_from(other, &path).unwrap_err().to_string();
    assert!(
        message.contains("another architecture") && message.contains("expected ["),
        "{message}"
    );
}

#[test]
fn preprocessing_out_of_range_is_neither_written_nor_read() {
    let (device, folder) = (Device::flex(), tempfile::tempdir().unwrap());
    let path = folder.path().join("backbone.safetensors");
    let config = config(Adapter::None);
    let backbone = config.init(&mut Rng::seed_from_u64(1), &device);
    let good = meta(config);
    type Change = fn(&mut BackboneMeta);
    let changes: [(&str, Change); 7] = [
        ("height", |meta| meta.height = 0),
        ("height", |meta| meta.height = 10_000_000_000_000),
        ("width", |meta| meta.width = 8193),
        ("mean", |meta| meta.mean[1] = 1e30),
        ("std", |meta| meta.std[2] = 0.0),
        ("std", |meta| meta.std[0] = -1.0),
        ("std", |meta| meta.std[0] = 1e-30),
    ];
    for (what, change) in changes {
        let mut bad = good.clone();
        change(&mut bad);
        let refused = |error: WeightsError| {
            let message = error.to_string();
            assert!(
                message.contains(what) && message.contains("backbone.safetensors"),
                "{message}"
            );
        };
        refused(save_backbone(&path, &backbone, &bad).unwrap_err());
        assert!(!path.exists());
        // As another program may have written it.
        let metadata = Metadata::from([
            ("format".to_owned(), FORMAT.to_owned()),
            ("backbone".to_owned(), serde_json::to_string(&bad).unwrap()),
        ]);
        checkpoint::write(&path, &backbone_state(&backbone), &metadata).unwrap();
        refused(load_backbone(&path, &device).unwrap_err());
        refused(read_backbone_meta(&path).unwrap_err());
        fs_err::remove_file(&path).unwrap();
        // The backbone of a fine-tuned model is no other.
        let tuned = crate::finetuned::FinetunedMeta {
            task: "reid".to_owned(),
            task_state: serde_json::Value::Null,
            backbone: bad,
            prompt_weights: PromptWeights::mean(),
            chosen_by: None,
        };
        let metadata = Metadata::from([
            ("format".to_owned(), crate::finetuned::FORMAT.to_owned()),
            ("model".to_owned(), serde_json::to_string(&tuned).unwrap()),
        ]);
        checkpoint::write(&path, &backbone_state(&backbone), &metadata).unwrap();
        refused(crate::finetuned::read_meta(&path).unwrap_err());
        refused(load_backbone(&path, &device).unwrap_err());
        fs_err::remove_file(&path).unwrap();
    }
}

#[test]
fn an_unknown_filter_is_refused_by_name() {
    let (device, folder) = (Device::flex(), tempfile::tempdir().unwrap());
    let path = folder.path().join("backbone.safetensors");
    let config = config(Adapter::None);
    let backbone = config.init(&mut Rng::seed_from_u64(1), &device);
    let json = serde_json::to_string(&meta(config)).unwrap();
    assert!(json.contains(r#""filter":"bicubic""#), "{json}");
    let metadata = Metadata::from([
        ("format".to_owned(), FORMAT.to_owned()),
        ("backbone".to_owned(), json.replace("bicubic", "lanczos")),
    ]);
    checkpoint::write(&path, &backbone_state(&backbone), &metadata).unwrap();
    let message = read_backbone_meta(&path).unwrap_err().to_string();
    assert!(
        message.contains("`lanczos`") && message.contains("`bicubic`"),
        "{message}"
    );
}

#[test]
fn other_files_are_refused() {
    let (device, folder) = (Device::flex(), tempfile::tempdir().unwrap());
    let message = load_backbone(folder.path(), &device)
        .unwrap_err()
        .to_string();
    assert!(message.contains("backbone.safetensors"), "{message}");
    let path = folder.path().join("other.safetensors");
    checkpoint::write(&path, &StateDict::new(), &Metadata::new()).unwrap();
    let message = load_backbone(&path, &device).unwrap_err().to_string();
    assert!(message.contains("no tensors"), "{message}");
    // A configuration that claims more than the file holds.
    let small = config(Adapter::Moe(MoeConfig::default()));
    let large = config(Adapter::Moe(MoeConfig {
        form: MoeKind::Merged,
        experts: 1024,
        ..MoeConfig::default()
    }));
    let backbone = small.init(&mut Rng::seed_from_u64(1), &device);
    save_backbone(&path, &backbone, &meta(large)).unwrap();
    let message = load_backbone(&path, &device).unwrap_err().to_string();
    assert!(message.contains("a network of"), "{message}");
}
