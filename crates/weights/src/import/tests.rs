//! Every source, against the network that published it; and files that are none.

use std::collections::BTreeMap;

use burn::tensor::Device;
use clasp_model::backbone::{Adapter, Architecture, Sizes};
use clasp_model::moe::{MoeConfig, is_moe};
use clasp_model::swin::SwinSizes;
use clasp_model::vit::{Pool, VitSizes};
use fs_err as fs;

use super::*;
use crate::backbone::{read_backbone_meta, save_backbone};
use crate::checkpoint::{self, Metadata};
use crate::testing::{check_features, filled, golden, noise, parameter, worst};

mod families;
mod folders;

/// Names and shapes as a source publishes them.
fn shapes(source: &str) -> BTreeMap<String, Vec<usize>> {
    shapes_in("import.json", source)
}

/// The same of a file of names and shapes.
fn shapes_in(file: &str, source: &str) -> BTreeMap<String, Vec<usize>> {
    let text = fs::read_to_string(golden(file)).unwrap();
    let mut all: BTreeMap<String, BTreeMap<String, Vec<usize>>> =
        serde_json::from_str(&text).unwrap();
    all.remove(source).unwrap()
}

/// A checkpoint of a source, in memory.
fn state(source: &str) -> StateDict {
    filled_with_noise(shapes(source))
}

fn filled_with_noise(shapes: BTreeMap<String, Vec<usize>>) -> StateDict {
    let named = |(name, shape): (String, Vec<usize>)| {
        let array = parameter(&name, &shape);
        (name, array)
    };
    shapes.into_iter().map(named).collect()
}

fn import_state(state: &StateDict, options: &ImportOptions) -> Result<Imported, WeightsError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    checkpoint::write(&path, state, &Metadata::new()).unwrap();
    import(&path, options, &Device::flex())
}

#[test]
fn every_source_is_recognized_and_gives_its_features() {
    let upright = [128, 64];
    for (key, source, size) in [
        ("timm-swin", CheckpointSource::TimmSwin, upright),
        ("microsoft-swin", CheckpointSource::MicrosoftSwin, upright),
        ("solider-full", CheckpointSource::SoliderFull, upright),
        ("solider", CheckpointSource::Solider, upright),
        ("solider-task reid", CheckpointSource::SoliderTask, upright),
        (
            "solider-task attributes",
            CheckpointSource::SoliderTask,
            upright,
        ),
        ("openmmlab-swin", CheckpointSource::OpenMmlabSwin, upright),
        ("timm-vit", CheckpointSource::TimmVit, upright),
        ("dino", CheckpointSource::Dino, [112, 112]),
        ("dinov2", CheckpointSource::DinoV2, [70, 70]),
        ("dinov2 registers", CheckpointSource::DinoV2, [70, 70]),
        ("timm-vit registers", CheckpointSource::TimmVit, [64, 64]),
        (
            "timm-vit registers embedded",
            CheckpointSource::TimmVit,
            [64, 64],
        ),
        // It is of DINO's program; nothing in it says whose.
        ("transreid-ssl", CheckpointSource::Dino, upright),
        ("pass", CheckpointSource::Pass, upright),
        ("mae", CheckpointSource::Mae, [112, 112]),
        ("hap", CheckpointSource::Hap, upright),
        ("dinov2 hugging face", CheckpointSource::DinoV2, [70, 70]),
        (
            "dinov2 registers hugging face",
            CheckpointSource::DinoV2,
            [70, 70],
        ),
        ("vit hugging face", CheckpointSource::TimmVit, [112, 112]),
        ("mae hugging face", CheckpointSource::Mae, [112, 112]),
    ] {
        let state = state(key);
        let imported = import_state(&state, &ImportOptions::default())
            .unwrap_or_else(|error| panic!("{key}: {error}"));
        let report = &imported.report;
        assert_eq!(report.source, source.describe(), "{key}");
        assert!(
            report.is_complete() && !report.matched.is_empty(),
            "{key}: {report}"
        );
        let left_out: usize = report.left_out.values().map(Vec::len).sum();
        assert_eq!(imported.meta.licenses.len(), 3);
        assert!(left_out < report.tensors, "{key}: {report}");
        check_features("import.safetensors", key, &imported.backbone, size);
        // Whoever is named is taken at their word, and gives the same.
        let named = ImportOptions {
            source: Some(source),
            ..ImportOptions::default()
        };
        let named = import_state(&state, &named).unwrap();
        assert_eq!(named.meta, imported.meta, "{key}");
    }
}

#[test]
fn what_a_file_does_not_show_must_be_given() {
    let state = state("transreid-ssl");
    let imported = import_state(&state, &ImportOptions::default()).unwrap();
    let assumed = imported.report.assumed.join("\n");
    assert!(
        assumed.contains("attention heads") && assumed.contains("--heads N"),
        "{assumed}"
    );
    assert!(assumed.contains("--as transreid-ssl"), "{assumed}");
    assert!(imported.report.to_string().contains("assumed"));
    let Some(Sizes::Vit(sizes)) = imported.meta.config.sizes() else {
        panic!("{:?}", imported.meta.config)
    };
    let named = ImportOptions {
        source: Some(CheckpointSource::TransReidSsl),
        heads: Some(sizes.num_heads),
        ..ImportOptions::default()
    };
    let named = import_state(&state, &named).unwrap();
    assert!(
        named.report.assumed.is_empty(),
        "{:?}",
        named.report.assumed
    );
    assert!(named.meta.licenses[0].contains("TransReID-SSL"));
}

#[test]
fn numbers_that_are_not_finite_and_missing_tensors_are_named() {
    let mut state = state("timm-vit");
    let whole = state.clone();
    let name = state
        .keys()
        .find(|name| name.ends_with("mlp.fc1.weight"))
        .unwrap()
        .clone();
    state.get_mut(&name).unwrap().data[3] = f32::NAN;
    let error = import_state(&state, &ImportOptions::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("fc1") && error.contains("1 of its numbers are not finite"),
        "{error}"
    );
    let mut state = whole;
    let name = state
        .keys()
        .find(|name| name.ends_with("mlp.fc2.weight"))
        .unwrap()
        .clone();
    state.remove(&name);
    let error = import_state(&state, &ImportOptions::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("missing") && error.contains(&name),
        "{error}"
    );
}

#[test]
fn a_file_of_torch_save_gives_its_features_and_becomes_a_backbone_file() {
    let device = Device::flex();
    let path = golden("solider_full.pth");
    let imported = import(&path, &ImportOptions::default(), &device).unwrap();
    assert_eq!(
        imported.report.source,
        CheckpointSource::SoliderFull.describe()
    );
    assert_eq!(imported.report.prefix, "teacher.backbone.");
    check_features(
        "import.safetensors",
        "solider_full.pth",
        &imported.backbone,
        [128, 64],
    );

    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("backbone.safetensors");
    save_backbone(&out, &imported.backbone, &imported.meta).unwrap();
    let meta = read_backbone_meta(&out).unwrap();
    assert_eq!(meta, imported.meta);
    assert_eq!((meta.height, meta.width), (256, 128));
    assert!(meta.licenses[0].contains("Apache-2.0") && meta.origin.starts_with("solider_full.pth"));
    let again = import(&out, &ImportOptions::default(), &device).unwrap();
    assert_eq!(again.report.source, CheckpointSource::Clasp.describe());
    check_features(
        "import.safetensors",
        "solider_full.pth",
        &again.backbone,
        [128, 64],
    );
    // A published file is a model, too.
    let (_, direct) = load_backbone(&path, &device).unwrap();
    assert_eq!(direct, imported.meta);
}

#[test]
fn the_student_is_taken_when_asked_for() {
    let options = ImportOptions {
        student: true,
        ..ImportOptions::default()
    };
    let imported = import_state(&state("dino"), &options).unwrap();
    assert_eq!(imported.report.prefix, "student.module.backbone.");
    check_features(
        "import.safetensors",
        "dino student",
        &imported.backbone,
        [112, 112],
    );
    let message = import_state(&state("timm-vit"), &options)
        .unwrap_err()
        .to_string();
    assert!(message.contains("no student"), "{message}");
}

#[test]
fn sizes_and_preprocessing_follow_the_source() {
    let meta = |key: &str| {
        import_state(&state(key), &ImportOptions::default())
            .unwrap()
            .meta
    };
    let reid = meta("solider-task reid");
    assert_eq!((reid.height, reid.width, reid.mean), (384, 128, [0.5; 3]));
    assert!(matches!(reid.config.adapter, Adapter::Lambda(_)));
    let pass = meta("pass");
    assert_eq!((pass.height, pass.width), (128, 64));
    let Some(Sizes::Vit(sizes)) = pass.config.sizes() else {
        panic!("{:?}", pass.config)
    };
    assert_eq!(
        (sizes.registers, sizes.image_size, sizes.pool),
        (3, [128, 64], Pool::Class)
    );
    let Some(Sizes::Vit(sizes)) = meta("mae").config.sizes() else {
        panic!("no ViT")
    };
    assert_eq!(sizes.pool, Pool::Mean);
    let swin = meta("microsoft-swin");
    assert_eq!((swin.height, swin.config.name), (128, Architecture::Swin));
}

#[test]
fn a_size_resamples_position_embeddings_once_and_for_all() {
    let options = ImportOptions {
        size: Some([128, 64]),
        ..ImportOptions::default()
    };
    let imported = import_state(&state("timm-vit"), &options).unwrap();
    let change = &imported.report.resampled[0];
    assert_eq!(
        (change.from.clone(), change.to.clone()),
        (vec![1, 50, 64], vec![1, 33, 64])
    );
    let Some(Sizes::Vit(sizes)) = imported.meta.config.sizes() else {
        panic!("no ViT")
    };
    assert_eq!(sizes.image_size, [128, 64]);
    // What the network does while running with the stored ones.
    check_features(
        "import.safetensors",
        "timm-vit",
        &imported.backbone,
        [128, 64],
    );
    let text = imported.report.to_string();
    assert!(
        text.contains("pos_embed: [1, 50, 64] in the file, [1, 33, 64] here"),
        "{text}"
    );
}

#[test]
fn resampling_is_pytorchs() {
    let (reference, _) = checkpoint::read(&golden("import.safetensors")).unwrap();
    let swin = |window_size| {
        Sizes::Swin(SwinSizes {
            window_size,
            ..SwinSizes::tiny()
        })
    };
    let table = "layers.0.blocks.0.attn.relative_position_bias_table";
    let positions = VitSizes {
        embed_dim: 5,
        num_heads: 5,
        ..VitSizes::small()
    };
    let upright = VitSizes {
        image_size: [256, 128],
        ..positions.clone()
    };
    for (name, tensor, shape, noise_of, from, to) in [
        (
            "table 7 to 12",
            table,
            vec![169, 3],
            "table",
            swin(7),
            swin(12),
        ),
        (
            "table 7 to 4",
            table,
            vec![169, 3],
            "table",
            swin(7),
            swin(4),
        ),
        (
            "positions 14x14 to 16x8",
            "pos_embed",
            vec![1, 197, 5],
            "positions",
            Sizes::Vit(positions),
            Sizes::Vit(upright),
        ),
    ] {
        let array = HostTensor {
            data: noise(noise_of, shape.iter().product()),
            shape,
        };
        let mut state = StateDict::from([(tensor.to_owned(), array)]);
        let changes = resample::fit(&mut state, &from, &to);
        assert_eq!(changes.len(), 1);
        let expected = &reference[name];
        assert_eq!(state[tensor].shape, expected.shape, "{name}");
        let worst = worst(&state[tensor].data, &expected.data);
        println!("{name}: {worst:e}");
        assert!(worst < 1e-5, "{name}: {worst}");
    }
}

#[test]
fn a_published_checkpoint_starts_an_adapted_backbone_of_another_window_or_image() {
    let device = Device::flex();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    for (key, window) in [("solider-full", 3), ("timm-vit", 0), ("transreid-ssl", 0)] {
        checkpoint::write(&path, &state(key), &Metadata::new()).unwrap();
        let found = import(&path, &ImportOptions::default(), &device).unwrap();
        let sizes = match found.meta.config.sizes().unwrap() {
            Sizes::Swin(sizes) => Sizes::Swin(SwinSizes {
                window_size: window,
                ..sizes
            }),
            vit => vit,
        };
        let config = BackboneConfig::of_sizes(sizes)
            .for_images([128, 64])
            .with_adapter(Adapter::Moe(MoeConfig::default()));
        let backbone = config.init(&mut Rng::seed_from_u64(1), &device);
        let (started, report) = start_from(backbone, &path).unwrap();
        assert!(report.missing.iter().all(|name| is_moe(name)), "{report}");
        // TransReID-SSL's positions are those of the images already.
        assert_eq!(
            report.resampled.is_empty(),
            key == "transreid-ssl",
            "{report}"
        );
        if key != "solider-full" {
            check_features("import.safetensors", key, &started, [128, 64]);
        } else {
            assert!(
                report
                    .unexpected
                    .iter()
                    .all(|name| name.starts_with("semantic_embed"))
            );
        }
        let other = BackboneConfig::named("swin-pico").unwrap();
        let other = other.init(&mut Rng::seed_from_u64(1), &device);
        let message = start_from(other, &path).unwrap_err().to_string();
        assert!(message.contains("another architecture"), "{message}");
    }
}

#[test]
fn what_does_not_fit_is_an_error_unless_lenient() {
    let lenient = ImportOptions {
        lenient: true,
        ..ImportOptions::default()
    };
    let mut missing = state("timm-swin");
    missing.remove("norm.bias");
    let mut left_over = state("timm-vit");
    left_over.insert("fc_norm.weight".into(), parameter("fc_norm.weight", &[64]));
    let mut reshaped = state("timm-vit");
    reshaped.insert("norm.weight".into(), parameter("norm.weight", &[65]));
    for (state, words) in [
        (missing, ["missing          1", "norm.bias"]),
        (left_over, ["unexpected       1", "fc_norm.weight"]),
        (
            reshaped,
            [
                "other shape      1",
                "norm.weight: expected [64], found [65]",
            ],
        ),
    ] {
        let message = import_state(&state, &ImportOptions::default())
            .unwrap_err()
            .to_string();
        let table = import_state(&state, &lenient).unwrap().report.to_string();
        for word in words {
            assert!(table.contains(word), "{table}");
            assert!(
                message.contains(word) || message.contains("a network of"),
                "{message}"
            );
        }
    }
}

#[test]
fn the_image_tower_of_a_clip_is_a_backbone_once_its_activation_is_known() {
    for (key, source) in [
        ("clip hugging face", CheckpointSource::ClipOpenAi),
        ("clip open_clip", CheckpointSource::ClipOpen),
    ] {
        let state = state(key);
        let message = import_state(&state, &ImportOptions::default()).unwrap_err();
        let message = message.to_string();
        assert!(
            message.contains("--as clip-openai") && message.contains("clasp label"),
            "{message}"
        );
        let options = ImportOptions {
            source: Some(source),
            ..ImportOptions::default()
        };
        let imported = import_state(&state, &options).unwrap();
        assert!(imported.report.is_complete(), "{}", imported.report);
        check_features("import.safetensors", key, &imported.backbone, [112, 112]);
        assert_eq!(imported.meta.std[0], 0.268_629_54);
    }
}

#[test]
fn what_is_no_backbone_is_named() {
    let refused = |state: &StateDict, words: &[&str]| {
        for lenient in [false, true] {
            let options = ImportOptions {
                lenient,
                ..ImportOptions::default()
            };
            let message = import_state(state, &options).unwrap_err().to_string();
            for word in words {
                assert!(message.contains(word), "expected `{word}` in: {message}");
            }
        }
    };
    refused(&StateDict::new(), &["no tensors"]);
    let resnet = ["conv1.weight", "layer1.0.bn1.weight"];
    refused(
        &resnet
            .map(|name| (name.to_owned(), parameter(name, &[2])))
            .into(),
        &["not a backbone that clasp knows", "conv1.weight"],
    );
    let mut stem = state("transreid-ssl");
    stem.insert(
        "teacher.backbone.patch_embed.conv.0.weight".into(),
        parameter("conv", &[4, 3, 7, 7]),
    );
    refused(&stem, &["ICS"]);
    // Shapes that lie or leave something open.
    let changed = |key: &str, name: &str, shape: &[usize], words: &[&str]| {
        let mut state = state(key);
        assert!(state.contains_key(name), "{name}");
        state.insert(name.into(), parameter(name, shape));
        refused(&state, words);
    };
    changed(
        "timm-vit",
        "pos_embed",
        &[1, 193, 64],
        &["192 patches", "--size"],
    );
    changed("timm-vit", "pos_embed", &[50, 64], &["pos_embed"]);
    changed(
        "timm-vit",
        "patch_embed.proj.weight",
        &[64, 768],
        &["patch_embed"],
    );
    changed(
        "timm-vit",
        "blocks.0.mlp.fc1.weight",
        &[100, 64],
        &["--heads"],
    );
    let table = "layers.1.blocks.0.attn.relative_position_bias_table";
    changed("timm-swin", table, &[48, 2], &["two odd numbers"]);
    changed(
        "timm-swin",
        "layers.3.blocks.0.attn.relative_position_bias_table",
        &[33, 4],
        &["layers.3", "--size"],
    );
    changed(
        "timm-swin",
        "patch_embed.proj.weight",
        &[0, 3, 4, 4],
        &["embed_dim"],
    );
    // A block that only its name claims: the network would be larger than the file.
    let mut deep = state("timm-vit");
    for block in 4..40 {
        let name = format!("blocks.{block}.norm1.weight");
        deep.insert(name.clone(), parameter(&name, &[64]));
    }
    refused(&deep, &["a network of"]);
}

#[test]
fn heads_that_no_table_knows_are_asked_for() {
    let sizes = VitSizes {
        embed_dim: 48,
        num_heads: 4,
        hidden_dim: 96,
        ..VitSizes::pico()
    };
    let backbone = BackboneConfig::of_sizes(Sizes::Vit(sizes.clone()))
        .init(&mut Rng::seed_from_u64(0), &Device::flex());
    let state = crate::backbone::backbone_state(&filled(backbone));
    let message = import_state(&state, &ImportOptions::default())
        .unwrap_err()
        .to_string();
    assert!(message.contains("--heads"), "{message}");
    let options = ImportOptions {
        heads: Some(4),
        ..ImportOptions::default()
    };
    let imported = import_state(&state, &options).unwrap();
    assert_eq!(imported.meta.config.sizes(), Some(Sizes::Vit(sizes)));
    let wrong = ImportOptions {
        heads: Some(7),
        ..ImportOptions::default()
    };
    assert!(
        import_state(&state, &wrong)
            .unwrap_err()
            .to_string()
            .contains("heads")
    );
}

#[test]
fn names_of_sources_round_trip() {
    for source in CheckpointSource::ALL {
        assert_eq!(source.name().parse::<CheckpointSource>(), Ok(source));
        let licenses = source.licenses();
        assert!(licenses[0].starts_with("code: "), "{source}");
        assert!(licenses[1].starts_with("weights: ") && licenses[2].starts_with("data: "));
    }
    assert!(
        "resnet"
            .parse::<CheckpointSource>()
            .unwrap_err()
            .contains("dinov2")
    );
}
