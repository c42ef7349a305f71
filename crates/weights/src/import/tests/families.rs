//! Checkpoints of timm and transformers against what these programs compute, at sizes other than
//! those they were made for.

use super::*;
use clasp_model::layers::Resampling;
use clasp_model::swin::WindowPadding;

const FEATURES: &str = "families.safetensors";

fn family(source: &str) -> StateDict {
    filled_with_noise(shapes_in("families.json", source))
}

/// Imports a family, compares its features at sizes, and gives what was imported.
fn check_family(key: &str, source: CheckpointSource, sizes: &[[usize; 2]]) -> Imported {
    let imported = import_state(&family(key), &ImportOptions::default())
        .unwrap_or_else(|error| panic!("{key}: {error}"));
    assert_eq!(imported.report.source, source.describe(), "{key}");
    assert!(imported.report.is_complete(), "{key}: {}", imported.report);
    for [height, width] in sizes {
        let name = format!("{key} {height}x{width}");
        check_features(FEATURES, &name, &imported.backbone, [*height, *width]);
    }
    imported
}

fn swin_sizes(imported: &Imported) -> SwinSizes {
    match imported.meta.config.sizes() {
        Some(Sizes::Swin(sizes)) => sizes,
        other => panic!("{other:?}"),
    }
}

fn vit_sizes(imported: &Imported) -> VitSizes {
    match imported.meta.config.sizes() {
        Some(Sizes::Vit(sizes)) => sizes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_swin_of_timm_has_timms_windows_at_every_size() {
    let every = [[224, 224], [256, 128], [384, 128], [236, 108], [96, 64]];
    let made = check_family("swin timm", CheckpointSource::TimmSwin, &every);
    assert_eq!(made.meta.config.padding, WindowPadding::Timm);
    assert_eq!((made.meta.height, made.meta.width), (224, 224));
    assert!(swin_sizes(&made).windows.is_empty() && made.report.assumed.is_empty());

    let people = [[256, 128], [384, 128], [224, 224]];
    let made = check_family("swin timm people", CheckpointSource::TimmSwin, &people);
    assert_eq!(swin_sizes(&made).windows[3], [7, 4]);
    assert_eq!((made.meta.height, made.meta.width), (256, 128));
    assert!(
        made.report.assumed[0].contains("7x4"),
        "{:?}",
        made.report.assumed
    );
    let wide = ImportOptions {
        size: Some([128, 256]),
        ..ImportOptions::default()
    };
    let made = import_state(&family("swin timm people"), &wide).unwrap();
    assert_eq!(swin_sizes(&made).windows[3], [4, 7]);
    assert!(made.report.assumed.is_empty());

    let made = check_family("swin timm s3", CheckpointSource::TimmSwin, &[[224, 224]]);
    assert_eq!(swin_sizes(&made).windows[2], [14, 14]);
}

#[test]
fn rectangular_windows_are_kept_in_a_backbone_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backbone.safetensors");
    let made = import_state(&family("swin timm people"), &ImportOptions::default()).unwrap();
    save_backbone(&path, &made.backbone, &made.meta).unwrap();
    let (again, meta) = load_backbone(&path, &Device::flex()).unwrap();
    assert_eq!(meta, made.meta);
    check_features(FEATURES, "swin timm people 256x128", &again, [256, 128]);
}

#[test]
fn a_swin_of_transformers_has_its_windows_at_every_size() {
    let sizes = [
        [224, 224],
        [384, 256],
        [246, 230],
        // What transformers computes with `always_partition=True`, and refuses without.
        [256, 128],
        [384, 128],
        [236, 108],
    ];
    let source = CheckpointSource::TransformersSwin;
    let made = check_family("swin transformers", source, &sizes);
    assert_eq!(made.meta.config.padding, WindowPadding::Transformers);
    let classifier = check_family("swin transformers classifier", source, &[]);
    assert_eq!(classifier.report.left_out["outside the backbone"].len(), 2);
    assert_eq!(classifier.meta.config, made.meta.config);

    let mut absolute = family("swin transformers");
    let name = "embeddings.position_embeddings";
    absolute.insert(name.to_owned(), parameter(name, &[1, 3136, 4]));
    let message = import_state(&absolute, &ImportOptions::default()).unwrap_err();
    assert!(
        message.to_string().contains("absolute position embeddings"),
        "{message}"
    );
}

#[test]
fn a_vit_whose_norm_follows_its_pooling_is_read_as_such() {
    let sizes = [[112, 112], [128, 64]];
    let made = check_family("vit fc_norm", CheckpointSource::TimmVit, &sizes);
    let found = vit_sizes(&made);
    assert!(found.fc_norm && found.pool == Pool::Mean);
    assert!(
        made.report
            .assumed
            .iter()
            .any(|line| line.contains("fc_norm"))
    );
}

#[test]
fn deit_of_every_version_is_read() {
    let sizes = [[112, 112], [128, 64]];
    let third = check_family("deit3", CheckpointSource::TimmVit, &sizes);
    assert!(vit_sizes(&third).layer_scale);
    assert_eq!(vit_sizes(&third).image_size, [112, 112]);
    let original = check_family("deit3 original", CheckpointSource::TimmVit, &sizes[..1]);
    assert_eq!(original.meta.config, third.meta.config);
    let distilled = check_family("deit distilled", CheckpointSource::TimmVit, &sizes);
    let found = vit_sizes(&distilled);
    assert_eq!((found.pool, found.registers), (Pool::Distilled, 1));
    assert_eq!(found.image_size, [112, 112]);
    check_family("deit transformers", CheckpointSource::TimmVit, &sizes[..1]);
}

#[test]
fn vits_of_transformers_take_images_of_other_sizes_as_it_does() {
    let source = CheckpointSource::DinoV2;
    let sizes = [[70, 70], [112, 56], [128, 64]];
    let made = check_family("dinov2 transformers", source, &sizes);
    let found = vit_sizes(&made);
    assert!(found.crop && found.resampling == Resampling::Bicubic);
    let made = check_family("dinov2 registers transformers", source, &sizes[1..]);
    let found = vit_sizes(&made);
    assert!(found.crop && found.resampling == Resampling::Antialiased);
    check_family("vit transformers", CheckpointSource::TimmVit, &[[136, 72]]);
    // Resampled once and for all, the same.
    let options = ImportOptions {
        size: Some([112, 56]),
        ..ImportOptions::default()
    };
    let made = import_state(&family("dinov2 transformers"), &options).unwrap();
    assert_eq!(vit_sizes(&made).image_size, [112, 56]);
    let key = "dinov2 transformers 112x56";
    check_features(FEATURES, key, &made.backbone, [112, 56]);
}

/// Sizes at which DINOv3 is compared; the patch does not divide the last.
const ROTARY: [[usize; 2]; 4] = [[128, 128], [256, 128], [384, 128], [100, 60]];

#[test]
fn dinov3_of_timm_and_transformers_is_read() {
    let source = CheckpointSource::DinoV3;
    for (key, gated, qkv_bias, key_bias) in [
        ("dinov3 timm", false, false, false),
        ("dinov3 timm biases", false, true, false),
        ("dinov3 timm gated", true, true, false),
        ("dinov3 transformers", false, true, false),
        ("dinov3 transformers gated", true, true, false),
        ("dinov3 transformers key bias", false, true, true),
    ] {
        let made = check_family(key, source, &ROTARY);
        let found = vit_sizes(&made);
        let of_transformers = key.contains("transformers");
        let expected = VitSizes {
            image_size: [256, 256],
            depth: 2,
            registers: if key_bias { 0 } else { 4 },
            gated,
            qkv_bias,
            key_bias,
            crop: of_transformers,
            ..VitSizes::dinov3_pico()
        };
        assert_eq!(found, expected, "{key}");
        // timm pools the mean by default; only its config.json shows another choice.
        let assumed = made.report.assumed.join("\n");
        assert_eq!(assumed.contains("global_pool"), !of_transformers, "{key}");
        // Names are no proof of whose weights they are.
        assert!(made.meta.licenses[1].contains("not stated in the file"));
    }
}

/// Meta's own file of the same network as timm's: one bias with a mask, and periods in 16 bits.
fn dinov3_original() -> StateDict {
    let mut state = family("dinov3 original");
    for block in 0..2 {
        let mask = HostTensor {
            shape: vec![192],
            data: [[1.0; 64], [0.0; 64], [1.0; 64]].concat(),
        };
        state.insert(format!("blocks.{block}.attn.qkv.bias_mask"), mask);
    }
    let periods = HostTensor {
        shape: vec![8],
        data: vec![1.0, 1.78125, 3.15625, 5.625, 10.0, 17.75, 31.625, 56.25],
    };
    state.insert("rope_embed.periods".to_owned(), periods);
    state
}

#[test]
fn dinov3_in_its_own_names_is_read() {
    let state = dinov3_original();
    let made = import_state(&state, &ImportOptions::default()).unwrap();
    assert_eq!(made.report.source, CheckpointSource::DinoV3.describe());
    assert!(made.report.is_complete(), "{}", made.report);
    for [height, width] in &ROTARY[..2] {
        let key = format!("dinov3 original {height}x{width}");
        check_features(FEATURES, &key, &made.backbone, [*height, *width]);
    }
    let refused = |change: &dyn Fn(&mut StateDict), words: &str| {
        let mut state = dinov3_original();
        change(&mut state);
        let message = import_state(&state, &ImportOptions::default()).unwrap_err();
        assert!(message.to_string().contains(words), "{message}");
    };
    let mask = "blocks.1.attn.qkv.bias_mask";
    refused(
        &|state| state.get_mut(mask).unwrap().data[64] = 1.0,
        "0 for keys",
    );
    let periods = "rope_embed.periods";
    refused(
        &|state| state.get_mut(periods).unwrap().data[7] = 57.0,
        "powers of 100",
    );
}

#[test]
fn other_rotary_vits_are_refused_with_the_reason() {
    let refused = |state: &StateDict, words: &str| {
        let message = import_state(state, &ImportOptions::default()).unwrap_err();
        assert!(message.to_string().contains(words), "{message}");
    };
    let mut without_registers = family("dinov3 timm");
    without_registers.remove("reg_token");
    refused(&without_registers, "--as dinov3");
    // Of EVA-02: positions of both kinds.
    let mut both = family("dinov3 timm biases");
    both.insert("pos_embed".into(), parameter("pos_embed", &[1, 65, 64]));
    refused(&both, "EVA-02");
    let mut half = family("dinov3 timm biases");
    half.remove("blocks.1.attn.v_bias");
    refused(&half, "v_bias");

    // What the configuration beside a file says otherwise.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for (key, config, words) in [
        (
            "dinov3 transformers",
            r#"{"model_type": "dinov3_vit", "num_attention_heads": 2, "rope_theta": 10000.0}"#,
            Some("rope_theta"),
        ),
        (
            "dinov3 transformers gated",
            r#"{"model_type": "dinov3_vit", "use_gated_mlp": true, "hidden_act": "gelu"}"#,
            Some("hidden_act"),
        ),
        (
            "dinov3 transformers",
            r#"{"model_type": "dinov3_vit", "image_size": 224, "rope_theta": 100.0}"#,
            None,
        ),
        (
            "dinov3 timm",
            r#"{"architecture": "vit_small_patch16_dinov3", "model_args": {"rope_temperature": 50}}"#,
            Some("rope_temperature"),
        ),
        (
            "dinov3 timm",
            r#"{"architecture": "vit_small_patch16_dinov3", "global_pool": "avg"}"#,
            None,
        ),
    ] {
        checkpoint::write(&path, &family(key), &Metadata::new()).unwrap();
        fs::write(folder.path().join("config.json"), config).unwrap();
        let read = import(&path, &ImportOptions::default(), &Device::flex());
        match (read, words) {
            (Err(message), Some(words)) => {
                assert!(message.to_string().contains(words), "{message}");
            }
            (Ok(made), None) if key == "dinov3 timm" => {
                assert_eq!(vit_sizes(&made).pool, Pool::Mean);
                assert!(
                    made.report
                        .assumed
                        .iter()
                        .all(|line| !line.contains("class token"))
                );
            }
            (Ok(made), None) => assert_eq!((made.meta.height, made.meta.width), (224, 224)),
            (read, words) => panic!("{key}: {words:?}, {read:?}"),
        }
    }
}

#[test]
fn a_rotary_vit_starts_from_one_without_biases() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    checkpoint::write(&path, &family("dinov3 timm"), &Metadata::new()).unwrap();
    let sizes = VitSizes {
        depth: 2,
        gated: false,
        ..VitSizes::dinov3_pico()
    };
    let config = BackboneConfig::of_sizes(Sizes::Vit(sizes));
    let backbone = config.init(&mut Rng::seed_from_u64(1), &Device::flex());
    let (started, report) = start_from(backbone, &path).unwrap();
    assert!(report.is_complete(), "{report}");
    check_features(FEATURES, "dinov3 timm 256x128", &started, [256, 128]);
}
