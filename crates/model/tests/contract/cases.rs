//! The backbones and adapters that every test goes through, and random values.

use std::collections::BTreeMap;

use burn::{
    module::Module,
    tensor::{Device, Tensor, TensorData},
};
use clasp_model::{
    backbone::{Adapter, Architecture, Backbone, BackboneConfig, LambdaConfig, Sizes},
    layers::{Resampling, Rng, uniform},
    moe::{MoeConfig, MoeKind},
    named,
    swin::{SwinSizes, WindowPadding},
    vit::{Pool, VitSizes},
};
use rand_chacha::rand_core::SeedableRng;

/// Each kind of backbone, with each adapter that it takes.
pub fn cases() -> Vec<(&'static str, Adapter)> {
    let mut cases = vec![("swin-pico", Adapter::Lambda(LambdaConfig::default()))];
    for name in KINDS {
        cases.push((name, Adapter::None));
        cases.extend(FORMS.map(|form| (name, moe(form))));
    }
    cases
}

/// Every form of the mixture of experts.
pub const FORMS: [MoeKind; 2] = [MoeKind::Gated, MoeKind::Merged];

pub fn moe(form: MoeKind) -> Adapter {
    Adapter::Moe(MoeConfig {
        form,
        ..MoeConfig::default()
    })
}

/// The smallest backbone of each kind.
pub const KINDS: [&str; 3] = ["swin-pico", "vit-pico", "vit-pico-dinov3"];

pub fn pico(name: &str, adapter: Adapter, seed: u64, device: &Device) -> Backbone {
    BackboneConfig::named(name)
        .unwrap()
        .with_adapter(adapter)
        .init(&mut Rng::seed_from_u64(seed), device)
}

pub fn random<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    let mut rng = Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| 2.0 * uniform(&mut rng) as f32 - 1.0)
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// All parameters random, so that nothing is zero by initialization.
pub fn shaken<M: Module>(module: M, seed: u64) -> M {
    let mut rng = Rng::seed_from_u64(seed);
    named::map(module, &mut |name, _, value| {
        if name.ends_with("weight_g") {
            return value;
        }
        let noise: Vec<f32> = (0..value.dims()[0])
            .map(|_| 0.2 * uniform(&mut rng) as f32 - 0.1)
            .collect();
        value.clone() + Tensor::<1>::from_floats(noise.as_slice(), &value.device())
    })
}

pub fn values<M: Module>(module: &M) -> BTreeMap<String, Vec<f32>> {
    let mut values = BTreeMap::new();
    named::visit(module, &mut |name, _, value| {
        values.insert(name.to_string(), value.into_data().iter::<f32>().collect());
    });
    values
}

pub fn difference<const D: usize>(one: Tensor<D>, other: Tensor<D>) -> f32 {
    (one - other).abs().max().into_scalar()
}

/// Every registered backbone with each adapter that it takes, and the options of a ViT that no
/// preset has.
pub fn every_config() -> Vec<BackboneConfig> {
    let mut configs: Vec<BackboneConfig> = Architecture::ALL.map(BackboneConfig::new).into();
    configs.push(BackboneConfig::of_sizes(Sizes::Vit(VitSizes {
        registers: 3,
        layer_scale: true,
        qkv_bias: false,
        pre_norm: true,
        ..VitSizes::pico()
    })));
    configs.push(BackboneConfig::of_sizes(Sizes::Vit(VitSizes {
        class_token: false,
        pool: Pool::Mean,
        fc_norm: true,
        ..VitSizes::pico()
    })));
    configs.push(BackboneConfig::of_sizes(Sizes::Vit(VitSizes {
        registers: 1,
        pool: Pool::Distilled,
        crop: true,
        resampling: Resampling::Bicubic,
        ..VitSizes::pico()
    })));
    configs.push(BackboneConfig::of_sizes(Sizes::Vit(VitSizes {
        gated: true,
        key_bias: false,
        ..VitSizes::pico()
    })));
    configs.push(BackboneConfig {
        padding: WindowPadding::Timm,
        ..BackboneConfig::of_sizes(Sizes::Swin(SwinSizes {
            windows: vec![[4, 4], [4, 4], [4, 4], [4, 2]],
            ..SwinSizes::pico()
        }))
    });
    let adapters = || {
        let forms = FORMS.map(moe);
        [Adapter::None, Adapter::Lambda(LambdaConfig::default())]
            .into_iter()
            .chain(forms)
    };
    { configs.into_iter() }
        .flat_map(|config| adapters().map(move |adapter| config.clone().with_adapter(adapter)))
        .filter(|config| config.check().is_ok())
        .collect()
}
