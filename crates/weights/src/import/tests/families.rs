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
