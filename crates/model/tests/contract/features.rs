//! Shapes, gradients and masks of the features.

use std::collections::BTreeSet;

use burn::tensor::{DType, Device, Tensor, TensorData};
use clasp_model::{
    Precision,
    backbone::{Adapter, Backbone, BackboneConfig, Sizes},
    layers::{Resampling, Rng},
    moe::MoeConfig,
    named,
    optim::{self, Norms},
    parameters::ParameterKind,
    prompt::{IDENTITY, PART, PROMPTS, PromptWeights},
    swin::WindowPadding,
    unfused,
    vit::VitSizes,
};
use rand_chacha::rand_core::SeedableRng;

use crate::cases::{KINDS, cases, difference, pico, random, shaken, values};

#[test]
fn any_size_gives_features_and_finite_gradients() {
    let device = Device::flex().autodiff();
    for (name, adapter) in cases() {
        let backbone = shaken(pico(name, adapter.clone(), 1, &device), 2);
        for (height, width) in [(128, 64), (64, 32), (97, 45), (33, 70), (4, 4), (1, 1)] {
            let images = random([2, 3, height, width], 3, &device);
            let prompt_weights = PromptWeights::mean().tensor(&device);
            let mut rng = Rng::seed_from_u64(4);
            let features = backbone.forward(images, prompt_weights, Some(&mut rng));
            let [rows, columns] = backbone.grid(height, width);
            let channels = backbone.channels();
            assert_eq!(features.map.dims(), [2, channels, rows, columns]);
            assert_eq!(features.pooled.dims(), [2, channels]);
            let first = if name.starts_with("swin") { 4 } else { 16 };
            assert_eq!(features.pyramid.len(), 4, "{name}");
            assert_eq!(
                features.pyramid[0].dims()[2..],
                [height.div_ceil(first), width.div_ceil(first)]
            );
            assert_eq!(
                difference(features.pyramid[3].clone(), features.map.clone()),
                0.0
            );
            let mut backward = features.pooled.square().sum().backward();
            let gradients = optim::gradients(&backbone, &mut backward);
            assert!(
                Norms::of(&gradients).total().is_finite(),
                "{name} {adapter:?} {height}x{width}"
            );
        }
    }
}

#[test]
fn windows_and_images_of_other_programs_give_maps_of_their_grid_and_finite_gradients() {
    let device = Device::flex().autodiff();
    let swin = |padding| BackboneConfig {
        padding,
        ..BackboneConfig::named("swin-pico").unwrap()
    };
    let cropping = BackboneConfig::of_sizes(Sizes::Vit(VitSizes {
        crop: true,
        resampling: Resampling::Bicubic,
        ..VitSizes::pico()
    }));
    for config in [
        swin(WindowPadding::Timm),
        swin(WindowPadding::Transformers),
        cropping,
    ] {
        let backbone = config.init(&mut Rng::seed_from_u64(3), &device);
        for [height, width] in [[128, 64], [90, 35], [9, 7]] {
            let images = Tensor::<4>::ones([1, 3, height, width], &device);
            let mix = PromptWeights::mean().tensor(&device);
            let features = backbone.forward(images, mix, None);
            let [rows, columns] = backbone.grid(height, width);
            let channels = backbone.channels();
            assert_eq!(
                features.map.dims(),
                [1, channels, rows, columns],
                "{config:?}"
            );
            let mut backward = features.map.square().sum().backward();
            let gradients = optim::gradients(&backbone, &mut backward);
            let norm = Norms::of(&gradients).total();
            assert!(
                norm.is_finite() && norm > 0.0,
                "{config:?} {height}x{width}"
            );
        }
    }
}

/// Casting weights before a pass gives the same features and gradients as casting at each product.
#[test]
fn weights_that_are_cast_before_a_pass_change_nothing() {
    let device = Device::flex().autodiff();
    let images = random([2, 3, 64, 32], 2, &device);
    let pass = |backbone: &Backbone| {
        let prompt_weights = PromptWeights::mean().tensor(&device);
        let mut rng = Rng::seed_from_u64(4);
        let features = backbone.forward(images.clone(), prompt_weights, Some(&mut rng));
        let mut backward = features.map.clone().square().sum().backward();
        let gradients = optim::gradients(backbone, &mut backward);
        (features.map.inner(), gradients)
    };
    for (name, adapter) in cases() {
        let backbone = shaken(pico(name, adapter.clone(), 1, &device), 3);
        unfused(|| {
            Precision::Bf16.within(|| {
                let (map, gradients) = pass(&backbone);
                let cast = backbone.clone().with_cast_weights();
                assert_eq!(in_bf16(&cast), factors(&backbone), "{name} {adapter:?}");
                let (cast_map, cast_gradients) = pass(&cast);
                assert_eq!(difference(map, cast_map), 0.0, "{name} {adapter:?}");
                assert!(gradients.keys().eq(cast_gradients.keys()));
                for (parameter, gradient) in gradients {
                    let cast = cast_gradients[&parameter].clone();
                    assert_eq!(cast.dtype(), DType::F32);
                    assert_eq!(difference(gradient, cast), 0.0, "{name} {parameter}");
                }
            });
        });
        // Nothing is cast in f32, or for the fused operations, which round their inputs themselves.
        let in_f32 = unfused(|| backbone.clone().with_cast_weights());
        let fused = Precision::Bf16.within(|| backbone.clone().with_cast_weights());
        assert_eq!([in_f32, fused].map(|it| in_bf16(&it).len()), [0, 0]);
    }
}

fn in_bf16(backbone: &Backbone) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    named::visit(backbone, &mut |name, _, value| {
        if value.dtype() == DType::BF16 {
            names.insert(name.to_owned());
        }
    });
    names
}

/// Weights of the layers of shared blocks, and of the halvings between stages.
fn factors(backbone: &Backbone) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    named::visit(backbone, &mut |name, _, _| {
        names.insert(name.to_owned());
    });
    let is_factor = |name: &&String| {
        let layers = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc1_g", "mlp.fc2"];
        let of_shared = layers.iter().any(|layer| {
            let block = name.strip_suffix(&format!("{layer}.weight"));
            block.is_some_and(|block| {
                !names
                    .iter()
                    .any(|it| it.starts_with(&format!("{block}moe.")))
            })
        });
        of_shared || name.ends_with("downsample.reduction.weight")
    };
    names.iter().filter(is_factor).cloned().collect()
}

#[test]
fn shared_blocks_run_once_for_all_prompts() {
    let device = Device::flex();
    let images = random([2, 3, 97, 45], 2, &device);
    for (name, adapter) in cases() {
        let backbone = shaken(pico(name, adapter.clone(), 1, &device), 3);
        let first = PromptWeights::single(IDENTITY).tensor(&device);
        let shared = backbone.shared(images.clone(), &first, None);
        for task in 0..PROMPTS.len() {
            let prompt_weights = PromptWeights::single(task).tensor(&device);
            if task > 0 && matches!(adapter, Adapter::Lambda(_)) {
                continue;
            }
            let whole = backbone.forward(images.clone(), prompt_weights.clone(), None);
            let parts = backbone.conditional(shared.clone(), &prompt_weights, None);
            assert_eq!(
                difference(whole.pooled, parts.pooled),
                0.0,
                "{name} {adapter:?}"
            );
            assert_eq!(whole.pyramid.len(), parts.pyramid.len());
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_weights_and_drops() {
    let device = Device::flex();
    let adapter = Adapter::Moe(MoeConfig::default());
    let [one, other] = [1, 1].map(|seed| pico(KINDS[0], adapter.clone(), seed, &device));
    assert!(values(&one) == values(&other));
    assert!(values(&one) != values(&pico(KINDS[0], adapter, 2, &device)));
    let images = random([4, 3, 64, 32], 2, &device);
    let pooled = |backbone: &Backbone, seed: Option<u64>| {
        let mut rng = seed.map(Rng::seed_from_u64);
        let prompt_weights = PromptWeights::mean().tensor(&device);
        backbone
            .forward(images.clone(), prompt_weights, rng.as_mut())
            .pooled
    };
    assert_eq!(
        difference(pooled(&one, Some(3)), pooled(&other, Some(3))),
        0.0
    );
    assert!(difference(pooled(&one, Some(3)), pooled(&one, None)) > 0.0);
}

/// Where the mask is 1, the pixels of an image have no influence, and the token has; elsewhere it is
/// the network without a mask. The token is claimed.
#[test]
fn masked_patches_are_not_seen() {
    let device = Device::flex();
    let weights = PromptWeights::single(PART).tensor(&device);
    for name in KINDS {
        let plain = pico(name, Adapter::None, 1, &device);
        let groups = plain.parameter_groups().unwrap();
        let backbone = shaken(plain.clone().with_mask_token(&device), 4);
        let claimed = backbone.parameter_groups().unwrap();
        let token = claimed.get("mask_token").unwrap();
        assert_eq!((token.layer, token.kind), (0, ParameterKind::Embedding));
        assert!(claimed.decays("mask_token", &[64]));

        let images = random([2, 3, 64, 64], 2, &device);
        let [rows, columns] = backbone.grid(64, 64);
        let features = |backbone: &Backbone, images: &Tensor<4>, mask: Option<&Tensor<3>>| {
            let shared = backbone.shared_masked(images.clone(), mask, &weights, None);
            backbone.conditional(shared, &weights, None).map
        };
        let largest = |a: &Tensor<4>, b: &Tensor<4>| -> f32 {
            (a.clone() - b.clone()).abs().max().into_scalar()
        };
        // The first position of the first image.
        let mut values = vec![0.0_f32; 2 * rows * columns];
        values[0] = 1.0;
        let mask = Tensor::<3>::from_data(TensorData::new(values, [2, rows, columns]), &device);
        let masked = features(&backbone, &images, Some(&mask));
        let whole = features(&backbone, &images, None);
        assert!(largest(&masked, &whole) > 1e-4, "{name}");
        let second = |map: &Tensor<4>| map.clone().narrow(0, 1, 1);
        assert!(largest(&second(&masked), &second(&whole)) < 1e-6, "{name}");
        let side = backbone.stride();
        let other = random([2, 3, 64, 64], 9, &device);
        let place = [0..1, 0..3, 0..side, 0..side];
        let changed = images
            .clone()
            .slice_assign(place.clone(), other.slice(place));
        let unseen = features(&backbone, &changed, Some(&mask));
        assert!(largest(&masked, &unseen) < 1e-6, "{name}");
        assert!(
            largest(&features(&backbone, &changed, None), &whole) > 1e-4,
            "{name}"
        );

        let (without, token) = backbone.clone().split_mask_token();
        assert_eq!(without.parameter_groups().unwrap(), groups);
        let again = without.join_mask_token(token);
        assert!(
            largest(&features(&again, &images, Some(&mask)), &masked) == 0.0,
            "{name}"
        );
    }
}
