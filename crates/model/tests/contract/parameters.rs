//! Layer, kind and number of parameters; operations.

use burn::tensor::Device;
use clasp_model::{
    backbone::{Adapter, BackboneConfig, LambdaConfig, Sizes},
    layers::Rng,
    moe::MoeKind,
    named,
    parameters::ParameterKind,
    prompt::PromptWeights,
    swin::SwinSizes,
    vit::{Pool, Positions, VitSizes},
};
use rand_chacha::rand_core::SeedableRng;

use crate::cases::{FORMS, cases, every_config, moe, random};

#[test]
fn every_parameter_has_a_layer_and_a_kind() {
    let device = Device::flex();
    for config in every_config() {
        // The large ones have the same modules as these, and take long to draw.
        if config.parameters().unwrap() > 40_000_000 {
            continue;
        }
        let backbone = config.init(&mut Rng::seed_from_u64(1), &device);
        // An unclaimed parameter, or a claim without a parameter, is an error here.
        let groups = backbone
            .parameter_groups()
            .unwrap_or_else(|error| panic!("{} {:?}: {error}", config.name, config.adapter));
        assert_eq!(config.parameter_groups().unwrap(), groups);
        let [blocks, _] = config.blocks();
        assert_eq!(groups.layers(), blocks + 2);
        // No layer is empty.
        for layer in 0..groups.layers() {
            assert!(groups.iter().any(|group| group.layer == layer), "{layer}");
        }
        let adapted = groups.iter().any(|group| group.adapter);
        assert_eq!(
            adapted,
            config.adapter != Adapter::None,
            "{:?}",
            config.adapter
        );
        named::visit(&backbone, &mut |name, shape, _| {
            let group = groups.get(name).unwrap();
            // As the shapes and names of PyTorch's networks have it.
            let vector = shape.len() == 1 || name.ends_with(".bias");
            let expected = !vector && group.kind != ParameterKind::Prompt;
            assert_eq!(group.kind.decays(), expected, "{name}");
            let bias = group.kind == ParameterKind::Bias;
            assert_eq!(bias, name.ends_with(".bias"), "{name}");
        });
    }
}

#[test]
fn layers_are_counted_from_the_image() {
    let tiny = |adapter| {
        BackboneConfig::named("swin-tiny")
            .unwrap()
            .with_adapter(adapter)
            .parameter_groups()
            .unwrap()
    };
    let groups = tiny(Adapter::Lambda(LambdaConfig::default()));
    for (name, expected) in [
        ("patch_embed.proj.weight", 0),
        ("layers.0.blocks.0.norm1.weight", 1),
        ("layers.1.downsample.reduction.weight", 3),
        ("layers.2.blocks.5.mlp.fc1.weight", 10),
        ("layers.3.blocks.1.attn.qkv.bias", 12),
        ("norm.weight", 13),
        // SOLIDER's controller belongs to the stage that it feeds, and not to the patches, as it
        // did once.
        ("semantic_embed_w.0.weight", 3),
        ("semantic_embed_b.1.bias", 5),
        ("semantic_embed_w.2.weight", 11),
    ] {
        assert_eq!(groups.get(name).unwrap().layer, expected, "{name}");
    }
    let groups = tiny(moe(MoeKind::Gated));
    let prompt = groups.get("layers.3.blocks.1.moe.prompts.norm1_scale");
    assert_eq!(prompt.unwrap().layer, 12);
    let vit = BackboneConfig::named("vit-small").unwrap();
    let groups = vit.parameter_groups().unwrap();
    for (name, expected) in [
        ("cls_token", 0),
        ("pos_embed", 0),
        ("blocks.11.mlp.fc1.weight", 12),
        ("norm.bias", 13),
    ] {
        assert_eq!(groups.get(name).unwrap().layer, expected, "{name}");
    }
}

#[test]
#[should_panic(expected = "claims no parameter `layers.9.weight`")]
fn a_name_that_the_backbone_does_not_claim_has_no_group() {
    let config = BackboneConfig::named("swin-pico").unwrap();
    let groups = config.parameter_groups().unwrap().with_prefix("backbone.");
    assert!(groups.get("head.weight").is_none());
    groups.get("backbone.layers.9.weight");
}

#[test]
fn parameters_are_counted_without_building() {
    let device = Device::flex();
    let odd_vit = VitSizes {
        image_size: [50, 30],
        hidden_dim: 40,
        qkv_bias: false,
        class_token: false,
        registers: 3,
        layer_scale: true,
        pool: Pool::Mean,
        depth: 5,
        ..VitSizes::pico()
    };
    let odd_rotary = VitSizes {
        positions: Positions::Rotary,
        class_token: false,
        registers: 2,
        pool: Pool::Mean,
        ..VitSizes::pico()
    };
    let odd_swin = SwinSizes {
        patch_size: 8,
        embed_dim: 12,
        depths: vec![1, 3, 2],
        num_heads: vec![2, 3, 4],
        window_size: 5,
        windows: vec![[5, 5], [5, 3], [4, 2]],
        mlp_ratio: 3,
        merging: vec![2, 1],
    };
    let mut configs: Vec<BackboneConfig> = cases()
        .into_iter()
        .map(|(name, adapter)| BackboneConfig::named(name).unwrap().with_adapter(adapter))
        .collect();
    for sizes in [
        Sizes::Vit(odd_vit),
        Sizes::Vit(odd_rotary),
        Sizes::Swin(odd_swin),
    ] {
        for form in FORMS {
            configs.push(BackboneConfig::of_sizes(sizes.clone()).with_adapter(moe(form)));
        }
    }
    for config in configs {
        let backbone = config.init(&mut Rng::seed_from_u64(0), &device);
        assert_eq!(
            config.parameters().unwrap(),
            backbone.parameters(),
            "{config:?}"
        );
        // Any size is a backbone like the others.
        let images = random([1, 3, 70, 40], 1, &device);
        let features = backbone.forward(images, PromptWeights::mean().tensor(&device), None);
        assert_eq!(features.map.dims()[2..], backbone.grid(70, 40));
        assert_eq!(features.pooled.dims(), [1, backbone.channels()]);
    }
}

#[test]
fn operations_are_the_published_ones() {
    // timm's and torchvision's tables: multiplications, in billions, at 224x224.
    for (name, published) in [("swin-tiny", 4.5), ("swin-base", 15.4), ("vit-small", 4.6)] {
        let config = BackboneConfig::named(name).unwrap();
        let found = config.operations([224, 224]).unwrap() as f64 / 2e9;
        assert!((found / published - 1.0).abs() < 0.03, "{name}: {found}");
        // Experts that fold into the block cost nothing.
        let moe = config.clone().with_adapter(moe(MoeKind::Merged));
        let [one, other] = [moe, config].map(|c| c.operations([224, 224]).unwrap());
        assert_eq!(one, other);
    }
}
