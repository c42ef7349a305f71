//! Tests of CLIP folders: against the two libraries that wrote them, and with files that are
//! broken.

use super::*;
use crate::state::HostTensor;
use burn::tensor::{Int, Tensor, TensorData};
use clasp_model::clip::{ClipConfig, Dense};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use std::path::PathBuf;

/// Largest difference between a feature of ours and the reference's: models, f32.
const TOLERANCE: f32 = 1e-4;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Without the check of the vocabulary, of which the golden models have only 63 tokens.
fn load(folder: &Path) -> Result<(Clip, ClipInfo), WeightsError> {
    let name = folder.file_name().unwrap().to_string_lossy();
    load_folder(folder, &name, &Device::flex())
}

fn tensor<const D: usize>(array: &HostTensor) -> Tensor<D> {
    let data = TensorData::new(array.data.clone(), array.shape.clone());
    Tensor::from_data(data, &Device::flex())
}

fn tokens() -> Tensor<2, Int> {
    let rows = [
        [61, 5, 9, 3, 62, 0, 0, 0],
        [61, 62, 0, 0, 0, 0, 0, 0],
        [61, 1, 2, 3, 4, 5, 6, 62],
    ];
    Tensor::from_data(rows, &Device::flex())
}

fn assert_close<const D: usize>(ours: Tensor<D>, reference: &HostTensor, what: &str) {
    assert_eq!(ours.dims().as_slice(), reference.shape, "{what}");
    let difference = (ours - tensor(reference)).abs().max().into_scalar::<f32>();
    println!("{what}: {difference:e}");
    assert!(difference < TOLERANCE, "{what}: {difference}");
}

fn compare(library: &str, sizes: &[&str]) {
    let (clip, _) = load(&golden().join(library)).unwrap();
    let (reference, _) = checkpoint::read(&golden().join("clip.safetensors")).unwrap();
    for size in sizes {
        let images = tensor::<4>(&reference[&format!("images.{size}")]);
        for dense in [Dense::Clear, Dense::Mask, Dense::SelfSelf] {
            let (map, pooled) = clip.encode_image_dense(images.clone(), dense);
            let [batch, embed, rows, columns] = map.dims();
            let map = map
                .permute([0, 2, 3, 1])
                .reshape([batch, rows * columns, embed]);
            let name = format!("{library}.{dense}.{size}");
            assert_close(map, &reference[&name], &name);
            let name = format!("{library}.pooled.{size}");
            assert_close(pooled, &reference[&name], &name);
        }
    }
    let name = format!("{library}.texts");
    assert_close(clip.encode_text(tokens()), &reference[&name], &name);
    let name = format!("{library}.scale");
    assert_close(clip.scale(), &reference[&name], &name);
}

#[test]
fn hugging_face_features_agree() {
    compare("hugging_face", &["square"]);
}

#[test]
fn open_clip_features_agree_at_every_size() {
    compare("open_clip", &["square", "tall", "small"]);
}

#[test]
fn what_belongs_to_the_weights_is_read() {
    let (clip, info) = load(&golden().join("hugging_face")).unwrap();
    assert_eq!(clip.config().activation, Activation::QuickGelu);
    assert_eq!(
        (info.name.as_str(), info.image_size),
        ("hugging_face", [32, 32])
    );
    assert_eq!((info.mean, info.std), ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3]));
    let (clip, info) = load(&golden().join("open_clip")).unwrap();
    assert_eq!(clip.config().activation, Activation::Gelu);
    assert_eq!((info.mean, info.std), (MEAN, STD));
    assert_eq!(info.sha256.len(), 64);
}

#[test]
fn saved_and_loaded_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (clip, before) = load(&golden().join("hugging_face")).unwrap();
    save_clip(folder.path(), &clip, false).unwrap();
    let (again, info) = load(folder.path()).unwrap();
    assert_eq!(again.config(), clip.config());
    assert_eq!(state_dict(&again), state_dict(&clip));
    assert_ne!(info.sha256, before.sha256);
}

#[test]
fn a_shipped_model_loads_from_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = ClipConfig::mini();
    (config.text.width, config.text.hidden, config.text.heads) = (8, 8, 1);
    let clip = config.init(&mut ChaCha8Rng::seed_from_u64(0), &Device::flex());
    save_clip(folder.path(), &clip, true).unwrap();
    let (from_folder, info) =
        load_clip(&folder.path().display().to_string(), &Device::flex()).unwrap();
    let [config, model] = OPEN_CLIP.map(|name| fs::read(folder.path().join(name)).unwrap());
    let (bytes, named) = from_bytes(&config, &model, "shipped", &Device::flex()).unwrap();
    assert_eq!(state_dict(&bytes), state_dict(&from_folder));
    assert_eq!(
        (named.name.as_str(), named.sha256),
        ("shipped", info.sha256)
    );
}

#[test]
fn a_model_that_does_not_know_all_tokens_is_refused() {
    let folder = golden().join("open_clip").display().to_string();
    let message = load_clip(&folder, &Device::flex()).unwrap_err().to_string();
    assert!(
        message.contains("`text.vocabulary` is 63; expected at least 49408"),
        "{message}"
    );
}

#[test]
fn half_precision_is_half_the_size_and_nearly_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (clip, _) = load(&golden().join("open_clip")).unwrap();
    let size = |half| {
        save_clip(folder.path(), &clip, half).unwrap();
        fs::metadata(folder.path().join(OPEN_CLIP[1]))
            .unwrap()
            .len()
    };
    let (full, half) = (size(false), size(true));
    assert!(half < full * 6 / 10, "{half} of {full}");
    let (again, _) = load(folder.path()).unwrap();
    let difference = clip.encode_text(tokens()) - again.encode_text(tokens());
    assert!(difference.abs().max().into_scalar::<f32>() < 5e-3);
}

#[test]
fn a_new_model_survives_the_way_there_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = ClipConfig::mini();
    config.text.vocabulary = 100;
    config.vision.image = [96, 48];
    // A hidden size that no short decimal times the width gives.
    config.vision.hidden = 331;
    let clip = config.init(&mut ChaCha8Rng::seed_from_u64(0), &Device::flex());
    save_clip(folder.path(), &clip, false).unwrap();
    let (again, _) = load(folder.path()).unwrap();
    assert_eq!(again.config(), &config);
    assert_eq!(state_dict(&again), state_dict(&clip));
}

/// A copy of a golden folder, changed, and the error that loading it gives.
fn broken(library: &str, change: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden().join(library)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    change(folder.path());
    load(folder.path()).unwrap_err().to_string()
}

fn edit(file: &str, change: impl FnOnce(&mut Value)) -> impl FnOnce(&Path) {
    move |folder: &Path| {
        let path = folder.join(file);
        let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut value);
        fs::write(&path, value.to_string()).unwrap();
    }
}

#[test]
fn broken_folders_are_refused_with_a_reason() {
    let cases = [
        (
            broken("open_clip", |f| {
                fs::remove_file(f.join(OPEN_CLIP[0])).unwrap()
            }),
            "expected a CLIP",
        ),
        (
            broken("open_clip", |f| {
                fs::write(f.join(OPEN_CLIP[0]), "{").unwrap()
            }),
            "open_clip_config.json",
        ),
        (
            broken("open_clip", |f| {
                fs::write(f.join(OPEN_CLIP[0]), vec![b' '; 2 << 20]).unwrap();
            }),
            "a configuration has at most",
        ),
        (
            broken("open_clip", |f| {
                let path = f.join(OPEN_CLIP[1]);
                let bytes = fs::read(&path).unwrap();
                fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
            }),
            "not a whole safetensors file",
        ),
        (
            broken(
                "open_clip",
                edit(OPEN_CLIP[0], |v| {
                    v["model_cfg"]["vision_cfg"]["width"] = json!(8192)
                }),
            ),
            "the configuration beside it describes",
        ),
        (
            broken(
                "open_clip",
                edit(OPEN_CLIP[0], |v| {
                    v["model_cfg"]["vision_cfg"]["layers"] = json!(1_000_000_000)
                }),
            ),
            "`vision.layers` is 1000000000; expected 1 to 128",
        ),
        (
            broken(
                "open_clip",
                edit(OPEN_CLIP[0], |v| {
                    v["model_cfg"]["vision_cfg"]["layers"] = json!([3, 4, 6, 3])
                }),
            ),
            "open_clip_config.json",
        ),
        (
            broken(
                "open_clip",
                edit(OPEN_CLIP[0], |v| {
                    v["model_cfg"]["vision_cfg"]["mlp_ratio"] = json!(1e300)
                }),
            ),
            "vision.hidden",
        ),
        (
            broken(
                "open_clip",
                edit(OPEN_CLIP[0], |v| {
                    v["model_cfg"]["vision_cfg"]["head_width"] = json!(0)
                }),
            ),
            "vision.heads",
        ),
        (
            broken(
                "open_clip",
                edit(OPEN_CLIP[0], |v| {
                    v["model_cfg"]["text_cfg"]["hf_model_name"] = json!("xlm-roberta-base")
                }),
            ),
            "model_cfg.text_cfg.hf_model_name",
        ),
        (
            broken(
                "open_clip",
                edit(OPEN_CLIP[0], |v| {
                    v["model_cfg"]["vision_cfg"]["timm_model_name"] = json!("convnext")
                }),
            ),
            "timm_model_name",
        ),
        (
            broken(
                "open_clip",
                edit(OPEN_CLIP[0], |v| {
                    v["preprocess_cfg"]["std"] = json!([0.2, 0.0, 0.2])
                }),
            ),
            "std: expected numbers from",
        ),
        (
            broken(
                "open_clip",
                edit(OPEN_CLIP[0], |v| {
                    v["model_cfg"]["text_cfg"]["context_length"] = json!(8)
                }),
            ),
            "`positional_embedding`: expected [8, 24], found [12, 24]",
        ),
        (
            broken(
                "hugging_face",
                edit("config.json", |v| {
                    v["text_config"]["hidden_act"] = json!("gelu")
                }),
            ),
            "the same in both",
        ),
        (
            broken(
                "hugging_face",
                edit("config.json", |v| {
                    v["text_config"]["hidden_act"] = json!("relu");
                    v["vision_config"]["hidden_act"] = json!("relu");
                }),
            ),
            "quick_gelu or gelu",
        ),
        (
            broken(
                "hugging_face",
                edit("config.json", |v| v["model_type"] = json!("siglip")),
            ),
            "`model_type` is siglip; expected clip",
        ),
        (
            broken(
                "hugging_face",
                edit("config.json", |v| {
                    v.as_object_mut().unwrap().remove("vision_config");
                }),
            ),
            "with both towers",
        ),
    ];
    for (message, expected) in cases {
        assert!(
            message.contains(expected),
            "expected `{expected}` in: {message}"
        );
    }
}

#[test]
fn missing_and_unexpected_tensors_are_named() {
    let change = |edit: fn(&mut StateDict)| {
        move |folder: &Path| {
            let path = folder.join(OPEN_CLIP[1]);
            let (mut state, metadata) = checkpoint::read(&path).unwrap();
            edit(&mut state);
            checkpoint::write(&path, &state, &metadata).unwrap();
        }
    };
    let extra = HostTensor {
        shape: vec![2],
        data: vec![0.0; 2],
    };
    let message = broken("open_clip", |folder| {
        let path = folder.join(OPEN_CLIP[1]);
        let (mut state, metadata) = checkpoint::read(&path).unwrap();
        state.insert("visual.head.weight".into(), extra);
        checkpoint::write(&path, &state, &metadata).unwrap();
    });
    assert!(
        message.contains("1 unexpected: visual.head.weight"),
        "{message}"
    );
    let message = broken(
        "open_clip",
        change(|state| {
            let array = state.remove("ln_final.weight").unwrap();
            state.insert("ln_finale.weight".into(), array);
        }),
    );
    assert!(message.contains("1 missing: ln_final.weight"), "{message}");
    let message = broken(
        "open_clip",
        change(|state| {
            state.remove("ln_final.weight");
        }),
    );
    assert!(
        message.contains("the configuration beside it describes"),
        "{message}"
    );
    let message = broken("hugging_face", |folder| {
        let path = folder.join(HUGGING_FACE[1]);
        let (mut state, metadata) = checkpoint::read(&path).unwrap();
        let name = "text_model.encoder.layers.0.self_attn.k_proj.bias";
        let array = state.remove(name).unwrap();
        state.insert("other".into(), array);
        checkpoint::write(&path, &state, &metadata).unwrap();
    });
    assert!(
        message.contains("self_attn.k_proj.bias` is missing"),
        "{message}"
    );
}

#[test]
fn queries_without_axes_are_refused() {
    let message = broken("hugging_face", |folder| {
        let path = folder.join(HUGGING_FACE[1]);
        let (mut state, metadata) = checkpoint::read(&path).unwrap();
        let array = |shape: &[usize]| HostTensor {
            shape: shape.to_vec(),
            data: vec![0.0; shape.iter().product()],
        };
        let name = "text_model.encoder.layers.0.self_attn.q_proj.bias";
        state.insert(name.into(), array(&[]));
        state.insert("padding".into(), array(&[64]));
        checkpoint::write(&path, &state, &metadata).unwrap();
    });
    assert!(
        message.contains("does not go with its neighbors'"),
        "{message}"
    );
}

#[test]
fn open_clips_other_names_load_too() {
    let folder = tempfile::tempdir().unwrap();
    let source = golden().join("open_clip");
    let (state, metadata) = checkpoint::read(&source.join(OPEN_CLIP[1])).unwrap();
    let mut renamed: StateDict = state
        .into_iter()
        .map(|(name, array)| {
            let inside = name.starts_with("visual.") || name == "logit_scale";
            (if inside { name } else { format!("text.{name}") }, array)
        })
        .collect();
    let mask = HostTensor {
        shape: vec![12, 12],
        data: vec![0.0; 144],
    };
    renamed.insert("text.attn_mask".into(), mask);
    checkpoint::write(&folder.path().join(OPEN_CLIP[1]), &renamed, &metadata).unwrap();
    fs::copy(source.join(OPEN_CLIP[0]), folder.path().join(OPEN_CLIP[0])).unwrap();
    let (clip, _) = load(folder.path()).unwrap();
    assert_eq!(state_dict(&clip), state_dict(&load(&source).unwrap().0));
}

#[test]
fn weights_in_several_files_are_one_model() {
    let whole = golden().join("hugging_face");
    let (clip, before) = load(&whole).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for name in [HUGGING_FACE[0], PREPROCESSOR] {
        if whole.join(name).is_file() {
            fs::copy(whole.join(name), folder.path().join(name)).unwrap();
        }
    }
    let (state, metadata) = crate::checkpoint::read(&whole.join(HUGGING_FACE[1])).unwrap();
    let names = [1, 2].map(|part| format!("model-0000{part}-of-00002.safetensors"));
    let mut parts = [StateDict::new(), StateDict::new()];
    let mut map = serde_json::Map::new();
    for (index, (name, array)) in state.into_iter().enumerate() {
        map.insert(name.clone(), names[index % 2].as_str().into());
        parts[index % 2].insert(name, array);
    }
    for (name, part) in names.iter().zip(&parts) {
        crate::checkpoint::write(&folder.path().join(name), part, &metadata).unwrap();
    }
    let index = serde_json::json!({ "weight_map": map }).to_string();
    let place = folder.path().join("model.safetensors.index.json");
    fs::write(place, index).unwrap();
    let (again, info) = load(folder.path()).unwrap();
    assert_eq!(state_dict(&again), state_dict(&clip));
    assert_ne!(info.sha256, before.sha256);
    fs::remove_file(folder.path().join(&names[1])).unwrap();
    let message = load(folder.path()).unwrap_err().to_string();
    assert!(message.contains(&names[1]), "{message}");
}
