//! Exported files: as timm loads and runs them, and back again.
//!
//! `tests/golden/export.py` loads the files `tests/golden/export/*.safetensors` in timm with
//! `strict=True` and keeps the features. They are what the tests here write; `CLASP_WRITE_EXPORTS=1
//! cargo test exported` writes them anew. `runs/hub.sh` loads folders of `clasp export hub` in timm and
//! transformers.

use burn::tensor::{Device, Tensor};
use clasp_model::backbone::{BackboneConfig, LambdaConfig};
use clasp_model::layers::Rng;
use clasp_model::moe::{MoeConfig, MoeKind};
use clasp_model::prompt::PromptWeights;
use clasp_model::vit::{Pool, Positions, VitSizes};
use rand_chacha::rand_core::SeedableRng;

use super::*;
use crate::import;
use crate::testing::{check_features, filled, golden};

const TIMM: ExportOptions = ExportOptions {
    names: NamingScheme::Timm,
    drop_adapter: false,
    precision: StorageFormat::F32,
};

fn swin(padding: WindowPadding) -> BackboneConfig {
    let sizes = SwinSizes {
        patch_size: 4,
        embed_dim: 4,
        depths: vec![1, 2, 1, 1],
        num_heads: vec![1, 1, 2, 2],
        window_size: 2,
        windows: Vec::new(),
        mlp_ratio: 4,
        merging: Vec::new(),
    };
    BackboneConfig {
        padding,
        ..BackboneConfig::of_sizes(Sizes::Swin(sizes))
    }
}

/// The last maps of 128×64 images, 8×4 and 4×2, are smaller than its windows.
fn swin_of_windows_4(padding: WindowPadding) -> BackboneConfig {
    let config = swin(padding);
    let sizes = match config.sizes() {
        Some(Sizes::Swin(sizes)) => SwinSizes {
            window_size: 4,
            ..sizes
        },
        other => panic!("{other:?}"),
    };
    BackboneConfig {
        padding,
        ..BackboneConfig::of_sizes(Sizes::Swin(sizes))
    }
}

fn vit() -> VitSizes {
    VitSizes {
        image_size: [48, 40],
        patch_size: 8,
        embed_dim: 16,
        depth: 2,
        num_heads: 2,
        hidden_dim: 24,
        ..VitSizes::small()
    }
}

/// As DINOv3.
fn rotary() -> VitSizes {
    VitSizes {
        positions: Positions::Rotary,
        key_bias: false,
        layer_scale: true,
        registers: 2,
        ..vit()
    }
}

fn meta(config: &BackboneConfig) -> BackboneMeta {
    BackboneMeta {
        stage: "pretrain".to_owned(),
        clasp: "0.1.0".to_owned(),
        config: config.clone(),
        height: 128,
        width: 64,
        mean: [0.5; 3],
        std: [0.25; 3],
        filter: clasp_data::image::Filter::Bicubic,
        method: "dino".to_owned(),
        heads: Vec::new(),
        prompts: Vec::new(),
        step: 1,
        vocabulary: String::new(),
        recipe: String::new(),
        licenses: vec!["code: one".to_owned(), "weights: two".to_owned()],
        origin: String::new(),
    }
}

fn backbone(config: &BackboneConfig) -> Backbone {
    filled(config.init(&mut Rng::seed_from_u64(0), &Device::flex()))
}

#[test]
fn exported_files_are_those_that_timm_loads_strictly_and_runs_alike() {
    let folder = tempfile::tempdir().unwrap();
    let registers = VitSizes {
        registers: 3,
        layer_scale: true,
        ..vit()
    };
    let mean = VitSizes {
        class_token: false,
        qkv_bias: false,
        pool: Pool::Mean,
        ..vit()
    };
    let gated = VitSizes {
        gated: true,
        layer_scale: false,
        qkv_bias: false,
        pool: Pool::Mean,
        fc_norm: true,
        ..rotary()
    };
    let of = |sizes| BackboneConfig::of_sizes(Sizes::Vit(sizes));
    for (name, config, size) in [
        ("swin", swin(WindowPadding::Classification), [100, 60]),
        (
            "swin_timm",
            swin_of_windows_4(WindowPadding::Timm),
            [128, 64],
        ),
        ("swin_detection", swin(WindowPadding::Detection), [128, 64]),
        ("vit", of(vit()), [100, 60]),
        ("vit_registers", of(registers), [100, 60]),
        ("vit_mean", of(mean), [100, 60]),
        ("vit_rotary", of(rotary()), [100, 60]),
        ("vit_rotary_gated", of(gated), [100, 60]),
    ] {
        let backbone = backbone(&config);
        let path = folder.path().join(format!("{name}.safetensors"));
        let exported = export(&path, &backbone, &meta(&config), TIMM).unwrap();
        assert_eq!(
            exported.warnings.len(),
            usize::from(name == "swin_detection")
        );
        let kept = golden("export").join(format!("{name}.safetensors"));
        if std::env::var_os("CLASP_WRITE_EXPORTS").is_some() {
            fs_err::create_dir_all(golden("export")).unwrap();
            fs_err::copy(&path, &kept).unwrap();
            continue;
        }
        let ((found, said), (expected, loaded)) = (
            checkpoint::read(&path).unwrap(),
            checkpoint::read(&kept).unwrap(),
        );
        assert_eq!(said["python"], loaded["python"], "{name}");
        assert_eq!(said["licenses"], "code: one\nweights: two");
        assert!(
            said["preprocessing"].contains("\"mean\":[0.5,0.5,0.5]"),
            "{said:?}"
        );
        assert!(found == expected, "{name}: other tensors than timm loaded");
        check_features("export.safetensors", name, &backbone, size);
        // And back.
        let options = import::ImportOptions {
            heads: Some(2),
            size: Some([48, 40]).filter(|_| name.starts_with("vit")),
            ..import::ImportOptions::default()
        };
        let again = import::import(&path, &options, &Device::flex()).unwrap();
        if !name.starts_with("vit") {
            let (size, expected) = ([again.meta.height, again.meta.width], meta(&config));
            assert_eq!(size, [expected.height, expected.width], "{name}");
        }
        let facts = |meta: &BackboneMeta| (meta.mean, meta.std, meta.filter, meta.licenses.clone());
        assert_eq!(facts(&again.meta), facts(&meta(&config)), "{name}");
        if name != "vit_mean" {
            check_features("export.safetensors", name, &again.backbone, size);
        }
    }
}

#[test]
fn soliders_names_come_back_with_the_controller() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("solider.safetensors");
    let options = ExportOptions {
        names: NamingScheme::Solider,
        ..TIMM
    };
    for adapter in [Adapter::None, Adapter::Lambda(LambdaConfig::default())] {
        let config = swin(WindowPadding::Detection).with_adapter(adapter.clone());
        let backbone = backbone(&config);
        export(&path, &backbone, &meta(&config), options).unwrap();
        let again =
            import::import(&path, &import::ImportOptions::default(), &Device::flex()).unwrap();
        assert!(again.report.is_complete());
        assert_eq!(again.meta.config, config);
        assert!(backbone_state(&again.backbone) == backbone_state(&backbone));
        let (state, _) = checkpoint::read(&path).unwrap();
        assert!(state.contains_key("backbone.norm0.weight"));
        let fourth = state.contains_key("backbone.semantic_embed_w.3.weight");
        assert_eq!(fourth, adapter != Adapter::None);
    }
    let config = BackboneConfig::of_sizes(Sizes::Vit(vit()));
    let message = export(&path, &backbone(&config), &meta(&config), options)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("a ViT") && message.contains("--names timm"),
        "{message}"
    );
}

#[test]
fn an_adapter_is_only_dropped_when_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plain.safetensors");
    let moe = Adapter::Moe(MoeConfig::default());
    let lambda = Adapter::Lambda(LambdaConfig::default());
    for (adapter, what) in [
        (moe, "the mixture of experts of 1 block"),
        (lambda, "SOLIDER's controller"),
    ] {
        let config = BackboneConfig {
            sizes: Some(Sizes::Swin(SwinSizes::pico())),
            ..swin(WindowPadding::Classification)
        }
        .with_adapter(adapter);
        let backbone = backbone(&config);
        let message = export(&path, &backbone, &meta(&config), TIMM)
            .unwrap_err()
            .to_string();
        let hint = match &config.adapter {
            Adapter::Moe(_) => "--prompt",
            _ => "--drop-adapter",
        };
        for words in [what, hint, "numbers would be lost"] {
            assert!(message.contains(words), "{message}");
        }
        assert!(!path.exists());
        let options = ExportOptions {
            drop_adapter: true,
            ..TIMM
        };
        let exported = export(&path, &backbone, &meta(&config), options).unwrap();
        assert!(!exported.dropped.is_empty() && exported.warnings[0].contains("adapter"));
        let again =
            import::import(&path, &import::ImportOptions::default(), &Device::flex()).unwrap();
        assert_eq!(again.meta.config.adapter, Adapter::None);
        fs_err::remove_file(&path).unwrap();
    }
}

#[test]
fn prompts_fold_into_a_file_of_the_plain_network() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("folded.safetensors");
    let device = Device::flex();
    let prompt_weights: PromptWeights = "part=0.7,attribute=0.3".parse().unwrap();
    // A square, as the file does not say how the patches lie.
    let square = VitSizes {
        image_size: [48, 48],
        ..vit()
    };
    for form in [MoeKind::Gated, MoeKind::Merged] {
        for sizes in [Sizes::Swin(SwinSizes::pico()), Sizes::Vit(square.clone())] {
            let adapter = Adapter::Moe(MoeConfig {
                form,
                ..MoeConfig::default()
            });
            let config = BackboneConfig {
                padding: WindowPadding::Classification,
                ..BackboneConfig::of_sizes(sizes)
            }
            .with_adapter(adapter.clone());
            let backbone = backbone(&config);
            let images = Tensor::<4>::ones([1, 3, 48, 40], &device);
            let map = |backbone: &Backbone, prompt_weights: PromptWeights| {
                backbone
                    .forward(images.clone(), prompt_weights.tensor(&device), None)
                    .map
            };
            let expected = map(&backbone, prompt_weights);
            let plain = BackboneConfig {
                adapter: adapter.folded(),
                ..config
            };
            let exported =
                export(&path, &backbone.fold(prompt_weights), &meta(&plain), TIMM).unwrap();
            assert!(exported.dropped.is_empty() && exported.warnings.is_empty());
            // A ViT's heads do not show in its shapes.
            let options = import::ImportOptions {
                heads: matches!(plain.sizes(), Some(Sizes::Vit(_))).then_some(2),
                ..import::ImportOptions::default()
            };
            let again = import::import(&path, &options, &device).unwrap();
            assert_eq!(again.meta.config.adapter, Adapter::None);
            let found = map(&again.backbone, PromptWeights::single(0));
            let apart: f32 = (found - expected).abs().max().into_scalar();
            assert!(apart < 1e-5, "{form:?}: {apart}");
            fs_err::remove_file(&path).unwrap();
        }
    }
}

/// What timm and transformers read of a folder.
fn config_of(folder: &Path) -> serde_json::Value {
    let text = fs_err::read_to_string(folder.join("config.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn card_with_metrics() -> ModelCard {
    let metric = clasp_metrics::Metric {
        name: "mAP".to_owned(),
        value: 0.5,
        unit: clasp_metrics::MetricUnit::Fraction,
        better: clasp_metrics::Direction::Higher,
    };
    ModelCard {
        name: "people".to_owned(),
        prompt: Some("identity".to_owned()),
        metrics: vec![CardMetrics {
            title: "reid".to_owned(),
            metrics: vec![metric],
            protocol: Some("Market-1501's".to_owned()),
        }],
    }
}

#[test]
fn a_folder_of_the_hub_has_weights_configuration_and_card() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("swin");
    let config = swin_of_windows_4(WindowPadding::Timm);
    let swin = backbone(&config);
    let meta = BackboneMeta {
        origin: "swin.pth: Swin of timm".to_owned(),
        licenses: vec![
            "code: timm, Apache-2.0".to_owned(),
            "weights: mit, as the config.json beside it states".to_owned(),
        ],
        ..meta(&config)
    };
    let card = card_with_metrics();
    let exported = export_hub(&at, &swin, &meta, &card, HubLibrary::Timm, false).unwrap();
    assert_eq!(exported.files.len(), 3);
    let (state, metadata) = checkpoint::read(&at.join("model.safetensors")).unwrap();
    assert_eq!(metadata["format"], "pt");
    let table = "layers.3.blocks.0.attn.relative_position_bias_table";
    // Windows of 4x2 in the last stage: timm's for such images.
    assert_eq!(state[table].shape, [7 * 3, 2]);
    let found = config_of(&at);
    assert_eq!(found["model_type"], "timm_wrapper");
    assert_eq!(
        found["model_args"]["img_size"],
        serde_json::json!([128, 64])
    );
    assert_eq!(found["model_args"]["window_size"], 4);
    let pretrained = &found["pretrained_cfg"];
    assert_eq!(pretrained["input_size"], serde_json::json!([3, 128, 64]));
    assert_eq!(
        (&pretrained["license"], &found["num_classes"]),
        (&"mit".into(), &0.into())
    );
    assert_eq!(pretrained["std"], serde_json::json!([0.25, 0.25, 0.25]));
    let text = fs_err::read_to_string(at.join("README.md")).unwrap();
    for words in [
        "license: mit",
        "library_name: timm",
        "- code: timm, Apache-2.0",
        "- weights: mit, as the config.json beside it states",
        "- data: unknown",
        "| mAP | 50.00 % |",
        "Protocol: Market-1501's",
        "local-dir:DIR",
        "128x64 pixels",
        "swin.pth",
        "identity",
    ] {
        assert!(text.contains(words), "expected `{words}` in:\n{text}");
    }
    // It comes back with the same features and preprocessing.
    let again = import::import(&at, &import::ImportOptions::default(), &Device::flex()).unwrap();
    assert_eq!(
        (again.meta.mean, again.meta.height, again.meta.width),
        ([0.5; 3], 128, 64)
    );
    check_features(
        "export.safetensors",
        "swin_timm",
        &again.backbone,
        [128, 64],
    );
    let again = export_hub(&at, &swin, &meta, &card, HubLibrary::Timm, false).unwrap_err();
    assert!(again.to_string().contains("another folder"), "{again}");
}

#[test]
fn windows_that_timm_does_not_have_leave_for_transformers_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let config = swin_of_windows_4(WindowPadding::Detection);
    let swin = backbone(&config);
    let (at, card) = (folder.path().join("one"), ModelCard::default());
    // The shifted blocks have a map of 15x8.
    let padded = BackboneMeta {
        height: 120,
        ..meta(&config)
    };
    let message = export_hub(&at, &swin, &padded, &card, HubLibrary::Timm, false)
        .unwrap_err()
        .to_string();
    for words in [
        "120x64",
        "--library transformers",
        "multiples of 128",
        "export onnx",
    ] {
        assert!(message.contains(words), "{message}");
    }
    assert!(!at.exists());
    // The size at which windows divide every map.
    let divided = BackboneMeta {
        width: 128,
        licenses: vec!["program: MIT OR Apache-2.0".to_owned()],
        ..meta(&config)
    };
    export_hub(&at, &swin, &divided, &card, HubLibrary::Timm, false).unwrap();
    assert_eq!(config_of(&at)["model_args"]["always_partition"], true);
    let text = fs_err::read_to_string(at.join("README.md")).unwrap();
    let licenses = "- code: MIT OR Apache-2.0\n- weights: unknown\n- data: unknown\n";
    assert!(text.ends_with(licenses), "{text}");
    let again = import::import(&at, &import::ImportOptions::default(), &Device::flex()).unwrap();
    assert_eq!(again.meta.config.padding, WindowPadding::Detection);

    let at = folder.path().join("two");
    let exported = export_hub(&at, &swin, &padded, &card, HubLibrary::Transformers, false).unwrap();
    assert!(
        exported.python.contains("always_partition=True"),
        "{}",
        exported.python
    );
    let found = config_of(&at);
    assert_eq!(
        (&found["model_type"], &found["window_size"]),
        (&"swin".into(), &4.into())
    );
    assert!(at.join("preprocessor_config.json").is_file());
    let text = fs_err::read_to_string(at.join("README.md")).unwrap();
    assert!(
        text.contains("license: unknown") && text.contains("None are known"),
        "{text}"
    );
    let again = import::import(&at, &import::ImportOptions::default(), &Device::flex()).unwrap();
    assert!(again.report.is_complete(), "{}", again.report);
    assert_eq!((again.meta.height, again.meta.config), (120, config));
    assert!(backbone_state(&again.backbone) == backbone_state(&swin));
}

#[test]
fn what_transformers_has_no_class_for_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let card = ModelCard::default();
    let rectangular = swin_of_windows_4(WindowPadding::Timm);
    let other = backbone(&rectangular);
    let at = folder.path().join("three");
    let message = export_hub(
        &at,
        &other,
        &meta(&rectangular),
        &card,
        HubLibrary::Transformers,
        false,
    );
    assert!(message.unwrap_err().to_string().contains("--library timm"));
    let vit = BackboneConfig::of_sizes(Sizes::Vit(vit()));
    let message = export_hub(
        &at,
        &backbone(&vit),
        &meta(&vit),
        &card,
        HubLibrary::Transformers,
        false,
    );
    assert!(message.unwrap_err().to_string().contains("--library timm"));
    assert!(!at.exists());
}

#[test]
fn a_table_that_timm_would_take_for_a_squares_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let config = swin_of_windows_4(WindowPadding::Timm);
    let sizes = match config.sizes() {
        Some(Sizes::Swin(sizes)) => SwinSizes {
            window_size: 5,
            ..sizes
        },
        other => panic!("{other:?}"),
    };
    let config = BackboneConfig {
        padding: WindowPadding::Timm,
        ..BackboneConfig::of_sizes(Sizes::Swin(sizes))
    };
    // Windows of 5x1 in the last stage: 9 rows, as windows of 2x2 have.
    let narrow = BackboneMeta {
        height: 160,
        width: 32,
        ..meta(&config)
    };
    let at = folder.path().join("narrow");
    let card = ModelCard::default();
    let swin = backbone(&config);
    let message = export_hub(&at, &swin, &narrow, &card, HubLibrary::Timm, false).unwrap_err();
    let message = message.to_string();
    assert!(
        message.contains("5x1") && message.contains("--size"),
        "{message}"
    );
}

#[test]
fn vits_leave_at_their_own_size_for_timm() {
    let folder = tempfile::tempdir().unwrap();
    let distilled = VitSizes {
        registers: 1,
        pool: Pool::Distilled,
        ..vit()
    };
    let after = VitSizes {
        pool: Pool::Mean,
        fc_norm: true,
        ..vit()
    };
    let mean = VitSizes {
        pool: Pool::Mean,
        ..vit()
    };
    for (index, (sizes, tensor, class)) in [
        (vit(), "norm.weight", "vit_base_patch16_224"),
        (mean, "norm.weight", "vit_base_patch16_224"),
        (distilled, "dist_token", "deit_base_distilled_patch16_224"),
        (after, "fc_norm.weight", "vit_base_patch16_224"),
    ]
    .into_iter()
    .enumerate()
    {
        let config = BackboneConfig::of_sizes(Sizes::Vit(sizes.clone()));
        let at = folder.path().join(index.to_string());
        let card = ModelCard::default();
        let vit = backbone(&config);
        export_hub(&at, &vit, &meta(&config), &card, HubLibrary::Timm, false).unwrap();
        let (state, _) = checkpoint::read(&at.join("model.safetensors")).unwrap();
        assert!(state.contains_key(tensor), "{tensor}");
        let tokens = 16 * 8 + 1 + usize::from(sizes.pool == Pool::Distilled);
        assert_eq!(state["pos_embed"].shape, [1, tokens, 16]);
        assert_eq!(config_of(&at)["architecture"], class);
        let again =
            import::import(&at, &import::ImportOptions::default(), &Device::flex()).unwrap();
        let found = match again.meta.config.sizes() {
            Some(Sizes::Vit(found)) => found,
            other => panic!("{other:?}"),
        };
        let expected = VitSizes {
            image_size: [128, 64],
            ..sizes
        };
        assert_eq!(found, expected);
        assert!(
            again
                .report
                .assumed
                .iter()
                .all(|line| !line.contains("heads"))
        );
    }
    // transformers crops such images, timm does not.
    let config = BackboneConfig::of_sizes(Sizes::Vit(VitSizes {
        crop: true,
        ..vit()
    }));
    let odd = BackboneMeta {
        height: 126,
        ..meta(&config)
    };
    let at = folder.path().join("odd");
    let card = ModelCard::default();
    let message = export_hub(
        &at,
        &backbone(&config),
        &odd,
        &card,
        HubLibrary::Timm,
        false,
    );
    assert!(message.unwrap_err().to_string().contains("multiples of 8"));
}

#[test]
fn rotary_vits_leave_for_timm_and_transformers_and_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let gated = VitSizes {
        gated: true,
        ..rotary()
    };
    let with_key_bias = VitSizes {
        key_bias: true,
        registers: 0,
        ..rotary()
    };
    let mean = VitSizes {
        pool: Pool::Mean,
        ..rotary()
    };
    let card = ModelCard::default();
    let leave = |sizes: &VitSizes, library, name: &str| {
        let config = BackboneConfig::of_sizes(Sizes::Vit(sizes.clone()));
        let at = folder.path().join(name);
        export_hub(
            &at,
            &backbone(&config),
            &meta(&config),
            &card,
            library,
            false,
        )
        .map(|_| at)
    };
    for (index, (sizes, library, tensor)) in [
        (rotary(), HubLibrary::Timm, "blocks.0.attn.q_bias"),
        (gated.clone(), HubLibrary::Timm, "blocks.1.mlp.fc1_x.weight"),
        (mean.clone(), HubLibrary::Timm, "blocks.1.gamma_2"),
        (
            rotary(),
            HubLibrary::Transformers,
            "embeddings.register_tokens",
        ),
        (
            gated,
            HubLibrary::Transformers,
            "layer.0.mlp.gate_proj.bias",
        ),
        (
            with_key_bias.clone(),
            HubLibrary::Transformers,
            "layer.1.attention.k_proj.bias",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let at = leave(&sizes, library, &index.to_string()).unwrap();
        let (state, _) = checkpoint::read(&at.join("model.safetensors")).unwrap();
        assert!(state.contains_key(tensor), "{tensor}");
        let again =
            import::import(&at, &import::ImportOptions::default(), &Device::flex()).unwrap();
        let expected = VitSizes {
            image_size: [128, 64],
            crop: library == HubLibrary::Transformers,
            ..sizes
        };
        assert_eq!(again.meta.config.sizes(), Some(Sizes::Vit(expected)));
        assert!(
            again.report.assumed.is_empty(),
            "{:?}",
            again.report.assumed
        );
    }
    for (sizes, library, words) in [
        (with_key_bias, HubLibrary::Timm, "bias of the keys"),
        (mean, HubLibrary::Transformers, "class token"),
        (
            VitSizes {
                gated: true,
                ..vit()
            },
            HubLibrary::Timm,
            "learned positions",
        ),
        (vit(), HubLibrary::Transformers, "--library timm"),
    ] {
        let message = leave(&sizes, library, "refused").unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
}
