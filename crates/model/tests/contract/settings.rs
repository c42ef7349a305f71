//! Settings that come from outside.

use clasp_model::{
    backbone::{Adapter, Architecture, BackboneConfig, LambdaConfig, Sizes},
    moe::{MoeConfig, MoeKind},
    swin::SwinSizes,
    vit::{Positions, VitSizes},
};

use crate::cases::cases;

#[test]
fn settings_from_outside_are_checked_and_round_trip() {
    for architecture in Architecture::ALL {
        assert_eq!(
            architecture.name().parse::<Architecture>().unwrap(),
            architecture
        );
    }
    assert!(
        "resnet50"
            .parse::<Architecture>()
            .unwrap_err()
            .to_string()
            .contains("swin-tiny")
    );
    for (name, adapter) in cases() {
        let name = if name.starts_with("swin") {
            "swin-tiny"
        } else {
            "vit-small"
        };
        let config = BackboneConfig::named(name)
            .unwrap()
            .for_images([256, 128])
            .with_adapter(adapter);
        assert_eq!(config.sizes.is_some(), name == "vit-small");
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(
            serde_json::from_str::<BackboneConfig>(&text).unwrap(),
            config
        );
        config.check().unwrap();
    }
    let moe = |text: &str| {
        let text =
            format!(r#"{{"name":"swin-nano","adapter":{{"kind":"moe","form":"merged",{text}}}}}"#);
        serde_json::from_str::<BackboneConfig>(&text).map_err(|e| e.to_string())
    };
    assert_eq!(
        moe(r#""experts":4"#).unwrap().adapter,
        Adapter::Moe(MoeConfig {
            form: MoeKind::Merged,
            experts: 4,
            ..MoeConfig::default()
        })
    );
    assert!(moe(r#""expert":4"#).unwrap_err().contains("expert"));
    for (text, field) in [
        (r#""experts":0"#, "experts"),
        (r#""experts":3"#, "experts"),
        (r#""blocks":0"#, "blocks"),
        (r#""blocks":5"#, "blocks"),
    ] {
        let message = moe(text).unwrap().check().unwrap_err().to_string();
        assert!(message.contains(field), "{message}");
    }
}

#[test]
fn absurd_sizes_are_refused() {
    let vit = |change: fn(&mut VitSizes), field: &str| {
        let mut sizes = VitSizes::pico();
        change(&mut sizes);
        let message = BackboneConfig::of_sizes(Sizes::Vit(sizes))
            .check()
            .unwrap_err()
            .to_string();
        assert!(message.contains(field), "{message}");
    };
    vit(|s| s.embed_dim = usize::MAX, "embed_dim");
    vit(|s| s.image_size = [1 << 40, 16], "image_size");
    vit(|s| s.depth = 0, "depth");
    vit(|s| s.num_heads = 5, "num_heads");
    vit(|s| s.registers = usize::MAX - 1, "registers");
    vit(|s| s.class_token = false, "pool");
    let rotary_heads = |s: &mut VitSizes| (s.positions, s.num_heads) = (Positions::Rotary, 32);
    vit(rotary_heads, "num_heads");
    let swin = |change: fn(&mut SwinSizes), field: &str| {
        let mut sizes = SwinSizes::pico();
        change(&mut sizes);
        let message = BackboneConfig::of_sizes(Sizes::Swin(sizes))
            .check()
            .unwrap_err()
            .to_string();
        assert!(message.contains(field), "{message}");
    };
    swin(|s| s.embed_dim = usize::MAX, "embed_dim");
    swin(|s| s.depths = vec![2; 40], "depths");
    swin(|s| s.depths = vec![], "depths");
    swin(|s| s.num_heads = vec![1], "num_heads");
    swin(|s| s.num_heads = vec![3; 4], "num_heads");
    swin(|s| s.merging = vec![2, 1], "merging");
    swin(|s| s.merging = vec![2, 3, 1], "merging");
    let nameless = r#"{"name":"vit"}"#;
    let config = serde_json::from_str::<BackboneConfig>(nameless).unwrap();
    assert!(config.check().unwrap_err().to_string().contains("sizes"));
    let lambda = BackboneConfig::named("vit-small")
        .unwrap()
        .with_adapter(Adapter::Lambda(LambdaConfig::default()));
    assert!(lambda.check().unwrap_err().to_string().contains("adapter"));
}
