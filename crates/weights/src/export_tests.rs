//! Exported files: as timm loads and runs them, and back again.
//!
//! `tests/golden/export.py` loads the files `tests/golden/export/*.safetensors` in timm with
//! `strict=True` and keeps the features. They are what the tests here write; `CLASP_WRITE_EXPORTS=1
//! cargo test exported` writes them anew.

use burn::tensor::{Device, Tensor};
use clasp_model::backbone::{BackboneConfig, LambdaConfig};
use clasp_model::layers::Rng;
use clasp_model::moe::{MoeConfig, MoeKind};
use clasp_model::prompt::PromptWeights;
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
        mlp_ratio: 4,
        merging: Vec::new(),
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
    let of = |sizes| BackboneConfig::of_sizes(Sizes::Vit(sizes));
    for (name, config, size) in [
        ("swin", swin(WindowPadding::Classification), [100, 60]),
        ("swin_detection", swin(WindowPadding::Detection), [128, 64]),
        ("vit", of(vit()), [100, 60]),
        ("vit_registers", of(registers), [100, 60]),
        ("vit_mean", of(mean), [100, 60]),
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
        if name != "swin_detection" && name != "vit_mean" {
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
