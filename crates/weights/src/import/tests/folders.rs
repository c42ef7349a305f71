//! Checkpoints in several files, and what lies beside them.

use std::path::{Path, PathBuf};

use super::*;
use clasp_model::swin::WindowPadding;

/// Writes a state as a checkpoint of two files with its index; the names of all three.
fn sharded(folder: &Path, state: &StateDict) -> [PathBuf; 3] {
    let names = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ];
    let mut parts = [StateDict::new(), StateDict::new()];
    let mut map = serde_json::Map::new();
    for (index, (name, array)) in state.iter().enumerate() {
        parts[index % 2].insert(name.clone(), array.clone());
        map.insert(name.clone(), names[index % 2].into());
    }
    for (name, part) in names.iter().zip(&parts) {
        checkpoint::write(&folder.join(name), part, &Metadata::new()).unwrap();
    }
    let index = folder.join("model.safetensors.index.json");
    let text = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
    fs::write(&index, text).unwrap();
    [index, folder.join(names[0]), folder.join(names[1])]
}

#[test]
fn a_checkpoint_of_several_files_is_read_from_its_index_a_part_or_its_folder() {
    let folder = tempfile::tempdir().unwrap();
    let [index, first, second] = sharded(folder.path(), &state("dinov2 hugging face"));
    let read = |path: &Path| import(path, &ImportOptions::default(), &Device::flex());
    for path in [index.as_path(), &first, &second, folder.path()] {
        let imported = read(path).unwrap();
        assert!(imported.report.is_complete(), "{}", imported.report);
        let key = "dinov2 hugging face";
        check_features("import.safetensors", key, &imported.backbone, [70, 70]);
    }
    let digest = |path: &Path| crate::backbone::digest(path).unwrap();
    assert_eq!(digest(&index), digest(folder.path()));
    // Without the index the names of the parts say it.
    let text = fs::read_to_string(&index).unwrap();
    fs::remove_file(&index).unwrap();
    assert!(read(&first).unwrap().report.is_complete());
    let before = digest(&first);
    let refused = |path: &Path, words: &[&str]| {
        let message = read(path).unwrap_err().to_string();
        for word in words {
            assert!(message.contains(word), "expected `{word}` in: {message}");
        }
    };
    fs::rename(&second, folder.path().join("elsewhere")).unwrap();
    refused(
        &first,
        &["2 files", "model-00002-of-00002.safetensors", "same folder"],
    );
    fs::write(&index, &text).unwrap();
    refused(&index, &["2 files", "model-00002-of-00002.safetensors"]);
    fs::write(&second, "other").unwrap();
    refused(&index, &["model-00002-of-00002.safetensors"]);
    assert_ne!(digest(&first), before);
    // A part lies beside its index.
    fs::write(&index, text.replace("model-00002", "../model-00002")).unwrap();
    refused(&index, &["files beside it", "../model-00002"]);
    fs::write(&index, "{}").unwrap();
    refused(&index, &["weight_map"]);
    fs::write(&index, "{\"weight_map\": {}}").unwrap();
    refused(&index, &["found 0"]);
    // The same tensor twice.
    fs::copy(&first, &second).unwrap();
    fs::write(&index, &text).unwrap();
    refused(&index, &["in two of its 2 files"]);
}

#[test]
fn the_configuration_beside_a_clip_says_its_activation() {
    let folder = tempfile::tempdir().unwrap();
    for (key, name, config, source) in [
        (
            "clip hugging face",
            "config.json",
            r#"{"model_type": "clip", "vision_config": {"hidden_act": "quick_gelu", "num_attention_heads": 2}}"#,
            Some(CheckpointSource::ClipOpenAi),
        ),
        (
            "clip hugging face",
            "config.json",
            r#"{"model_type": "clip", "vision_config": {"num_attention_heads": 2}}"#,
            Some(CheckpointSource::ClipOpenAi),
        ),
        (
            "clip hugging face",
            "config.json",
            r#"{"model_type": "clip", "vision_config": {"hidden_act": "gelu"}}"#,
            Some(CheckpointSource::ClipOpen),
        ),
        (
            "clip open_clip",
            "open_clip_config.json",
            r#"{"model_cfg": {"vision_cfg": {"width": 64, "head_width": 32}}, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}}"#,
            Some(CheckpointSource::ClipOpen),
        ),
        (
            "clip hugging face",
            "config.json",
            r#"{"model_type": "clip", "vision_config": {"hidden_act": "gelu_new"}}"#,
            None,
        ),
        ("clip hugging face", "config.json", "{", None),
    ] {
        let path = folder.path().join("model.safetensors");
        checkpoint::write(&path, &state(key), &Metadata::new()).unwrap();
        let beside = folder.path().join(name);
        fs::write(&beside, config).unwrap();
        let found = import(&path, &ImportOptions::default(), &Device::flex());
        match source {
            Some(source) => {
                let found = found.unwrap_or_else(|error| panic!("{config}: {error}"));
                assert_eq!(found.report.source, source.describe(), "{config}");
                if config.contains("head") {
                    assert!(
                        found.report.assumed.is_empty(),
                        "{:?}",
                        found.report.assumed
                    );
                }
                if config.contains("quick_gelu") || name.starts_with("open") {
                    check_features("import.safetensors", key, &found.backbone, [112, 112]);
                }
                let mean = if config.contains("0.1") {
                    0.1
                } else {
                    0.481_454_66
                };
                assert_eq!(found.meta.mean[0], mean);
            }
            None => {
                let message = found.unwrap_err().to_string();
                assert!(
                    message.contains("gelu_new")
                        || message.contains("config.json: not a configuration"),
                    "{message}"
                );
            }
        }
        fs::remove_file(&beside).unwrap();
    }
}

#[test]
fn a_folder_of_timm_says_its_preprocessing_and_windows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    checkpoint::write(&path, &state("timm-swin"), &Metadata::new()).unwrap();
    let read = || {
        import(&path, &ImportOptions::default(), &Device::flex())
            .unwrap()
            .meta
    };
    // A file of that name that is not timm's says nothing.
    fs::write(folder.path().join("config.json"), "{\"mean\": [1, 2").unwrap();
    assert_eq!(read().mean, [0.485, 0.456, 0.406]);
    let config = r#"{"architecture": "swin_tiny_patch4_window7_224", "model_args": {"always_partition": true},
        "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "input_size": [3, 128, 64]}}"#;
    fs::write(folder.path().join("config.json"), config).unwrap();
    let meta = read();
    assert_eq!((meta.mean, meta.std), ([0.5; 3], [0.25; 3]));
    assert_eq!((meta.height, meta.width), (128, 64));
    assert_eq!(meta.config.padding, WindowPadding::Detection);
}
