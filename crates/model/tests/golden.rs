//! Golden values: everything that has a published implementation, against it. `golden/model.py`
//! makes them.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use burn::{
    module::{Module, Param},
    tensor::{Device, Slice, Tensor, TensorData},
};
use clasp_model::{
    backbone::{Adapter, Backbone, BackboneConfig, LambdaConfig, Sizes},
    heads::DinoHeadConfig,
    layers::Rng,
    losses::{Temperatures, center_update, dino::teacher_mean, dino_loss},
    moe::{MoeConfig, MoeKind},
    named,
    optim::{GradientClip, Norms, Optimizer, OptimizerConfig, Rates, decays},
    prompt::PromptWeights,
    swin::{SwinConfig, SwinSizes, WindowPadding},
    vit::{Pool, VitConfig, VitSizes},
};
use rand_chacha::rand_core::SeedableRng;
use safetensors::SafeTensors;

const OPS: f64 = 1e-5;
const MODELS: f64 = 1e-4;

/// Numbers in [-1, 1) from a name alone: FNV-1a, then SplitMix64, as in `model.py`.
fn noise(name: &str, count: usize) -> Vec<f32> {
    let key = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |key, byte| {
        (key ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (1..=count as u64)
        .map(|index| {
            let mut z = key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^= z >> 31;
            ((z >> 11) as f64 * 2f64.powi(-52) - 1.0) as f32
        })
        .collect()
}

/// A parameter of that name, in the published layout.
fn parameter(name: &str, shape: &[usize]) -> Vec<f32> {
    let inputs: usize = shape[1..].iter().product();
    let (offset, scale) = if name.contains("norm") && name.ends_with("weight") {
        (1.0, 0.1)
    } else if name.ends_with("bias") {
        (0.0, 0.1)
    } else if ["relative_position_bias_table", "pos_embed", "_token"]
        .iter()
        .any(|end| name.ends_with(end))
    {
        (0.0, 0.5)
    } else {
        (0.0, (3.0 / inputs as f64).sqrt())
    };
    noise(name, shape.iter().product())
        .into_iter()
        .map(|u| (offset + scale * f64::from(u)) as f32)
        .collect()
}

/// Fills a module as `model.py` does; names get the prefix.
fn fill<M: Module>(module: M, prefix: &str) -> M {
    named::map(module, &mut |name, shape, old| {
        let name = format!("{prefix}{name}");
        let device = old.device();
        let values = match (name.as_str(), shape) {
            (name, _) if name.contains(".moe.prompts.") => noise(name, old.dims()[0]),
            (name, _) if name.ends_with("weight_g") => vec![1.0; old.dims()[0]],
            // A linear layer's weight is stored the other way round.
            (name, [inputs, outputs]) if name.ends_with(".weight") => {
                let published = parameter(name, &[*outputs, *inputs]);
                let index = |i: usize| (i % outputs) * inputs + i / outputs;
                (0..inputs * outputs).map(|i| published[index(i)]).collect()
            }
            (name, shape) => parameter(name, shape),
        };
        Tensor::from_data(TensorData::new(values, old.dims()), &device)
    })
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

struct Golden(Vec<u8>);

impl Golden {
    fn open() -> Self {
        Self(include_bytes!("golden/model.safetensors").to_vec())
    }

    fn get(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let view = file.tensor(name).unwrap();
        match view.dtype() {
            safetensors::Dtype::F32 => view
                .data()
                .chunks_exact(4)
                .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
                .collect(),
            safetensors::Dtype::F64 => view
                .data()
                .chunks_exact(8)
                .map(|b| f64::from_le_bytes(b.try_into().unwrap()))
                .collect(),
            other => panic!("{name}: {other:?}"),
        }
    }

    fn check<const D: usize>(&self, name: &str, found: Tensor<D>, tolerance: f64) {
        let expected = self.get(name);
        let found: Vec<f32> = found.into_data().iter::<f32>().collect();
        assert_eq!(found.len(), expected.len(), "{name}");
        let worst = expected
            .iter()
            .zip(&found)
            .map(|(e, f)| (e - f64::from(*f)).abs())
            .fold(0.0, f64::max);
        println!("{name}: {worst:.1e}");
        assert!(worst <= tolerance, "{name}: off by {worst:e}");
    }
}

fn backbone(padding: WindowPadding, adapter: Adapter) -> Backbone {
    let config = BackboneConfig {
        padding,
        ..BackboneConfig::named("swin-tiny")
            .unwrap()
            .with_adapter(adapter)
    };
    fill(config.init(&mut Rng::seed_from_u64(0), &Device::flex()), "")
}

fn check_features(golden: &Golden, backbone: &Backbone, name: &str, height: usize, width: usize) {
    let device = Device::flex();
    let images = noise(&format!("images {height}x{width}"), 3 * height * width);
    let images = tensor(images, [1, 3, height, width], &device) * 2.0;
    let features = backbone.forward(images, PromptWeights::mean().tensor(&device), None);
    assert_eq!(features.map.dims()[2..], backbone.grid(height, width));
    golden.check(
        &format!("{name} {height}x{width} pooled"),
        features.pooled,
        MODELS,
    );
    let channels = (0..24)
        .map(|i| features.map.clone().narrow(1, 32 * i, 1))
        .collect();
    golden.check(
        &format!("{name} {height}x{width} map"),
        Tensor::cat(channels, 1),
        MODELS,
    );
}

#[test]
fn swin_is_timms_and_the_detectors() {
    let golden = Golden::open();
    for (name, padding) in [
        ("classification", WindowPadding::Classification),
        ("detection", WindowPadding::Detection),
    ] {
        let backbone = backbone(padding, Adapter::None);
        for (height, width) in [(224, 224), (256, 128), (384, 128), (100, 60)] {
            check_features(&golden, &backbone, name, height, width);
        }
    }
}

/// The strides of SOLIDER's dense tasks.
#[test]
fn merging_of_stride_1_is_mmdetections() {
    let golden = Golden::open();
    let device = Device::flex();
    for strides in [[4, 2, 2, 1], [4, 2, 1, 1]] {
        let config = BackboneConfig::named("swin-tiny").unwrap();
        let config = config.with_strides(&strides).unwrap();
        let backbone = fill(config.init(&mut Rng::seed_from_u64(0), &device), "");
        for (height, width) in [(256, 128), (100, 60)] {
            let images = noise(&format!("images {height}x{width}"), 3 * height * width);
            let images = tensor(images, [1, 3, height, width], &device) * 2.0;
            let features = backbone.forward(images, PromptWeights::mean().tensor(&device), None);
            let [_, _, rows, columns] = features.map.dims();
            assert_eq!([rows, columns], backbone.grid(height, width));
            let name = format!("strides {} {} {height}x{width} map", strides[2], strides[3]);
            let map = { features.map }
                .slice_dim(1, Slice::new(0, None, 32))
                .slice_dim(2, Slice::new(0, None, 2))
                .slice_dim(3, Slice::new(0, None, 2));
            golden.check(&name, map, MODELS);
        }
    }
}

#[test]
fn lambda_is_soliders() {
    let adapter = Adapter::Lambda(LambdaConfig { lambda: Some(0.3) });
    let backbone = backbone(WindowPadding::Detection, adapter);
    check_features(&Golden::open(), &backbone, "solider", 256, 128);
}

#[test]
fn vit_is_timms() {
    let golden = Golden::open();
    let device = Device::flex();
    let registers = VitSizes {
        image_size: [112, 70],
        patch_size: 14,
        embed_dim: 48,
        depth: 4,
        num_heads: 3,
        hidden_dim: 96,
        registers: 4,
        layer_scale: true,
        ..VitSizes::small()
    };
    let mean = VitSizes {
        qkv_bias: false,
        class_token: false,
        registers: 0,
        layer_scale: false,
        pool: Pool::Mean,
        ..registers.clone()
    };
    for (name, sizes) in [
        ("vit-small", VitSizes::small()),
        ("vit registers", registers),
        ("vit mean", mean),
    ] {
        let config = VitConfig::new(sizes);
        let vit = fill(config.init(&mut Rng::seed_from_u64(0), &device), "");
        for (height, width) in [(256, 128), (100, 60)] {
            let images = noise(&format!("images {height}x{width}"), 3 * height * width);
            let images = tensor(images, [1, 3, height, width], &device) * 2.0;
            let features = Backbone::Vit(vit.clone()).forward(
                images,
                PromptWeights::mean().tensor(&device),
                None,
            );
            let name = format!("{name} {height}x{width}");
            golden.check(&format!("{name} pooled"), features.pooled, MODELS);
            let channels = (0..features.map.dims()[1] / 24)
                .map(|i| features.map.clone().narrow(1, 24 * i, 1))
                .collect();
            golden.check(&format!("{name} map"), Tensor::cat(channels, 1), MODELS);
            let second = features.pyramid[1].clone().narrow(1, 0, 1);
            golden.check(&format!("{name} half"), second, MODELS);
        }
    }
}

#[test]
fn parameter_counts_are_timms() {
    let golden = Golden::open();
    for (name, sizes) in [
        ("tiny", SwinSizes::tiny()),
        ("small", SwinSizes::small()),
        ("base", SwinSizes::base()),
    ] {
        let swin = SwinConfig::new(sizes).init(&mut Rng::seed_from_u64(0), &Device::flex());
        assert_eq!(
            swin.num_params() as f64,
            golden.get(&format!("parameters {name}"))[0],
            "{name}"
        );
    }
    for (name, sizes) in [
        ("vit-tiny", VitSizes::tiny()),
        ("vit-small", VitSizes::small()),
        ("vit-base", VitSizes::base()),
    ] {
        let count = golden.get(&format!("parameters {name}"))[0];
        assert_eq!(VitConfig::new(sizes).parameters() as f64, count, "{name}");
    }
    for (name, sizes) in [
        ("small", VitSizes::dinov3_small()),
        ("small_plus", VitSizes::dinov3_small_plus()),
        ("base", VitSizes::dinov3_base()),
        ("large", VitSizes::dinov3_large()),
    ] {
        let count = golden.get(&format!("parameters {name} dinov3"))[0];
        // The zeros that keys have here for a bias are no parameters of timm's.
        let keys = sizes.depth * sizes.embed_dim;
        let ours = VitConfig::new(sizes).parameters() - keys;
        assert_eq!(ours as f64, count, "{name}");
    }
}

#[test]
fn experts_are_those_of_the_reference() {
    let (golden, device) = (Golden::open(), Device::flex());
    let prompt_weights = PromptWeights::new([0.2, 0.3, 0.5]).unwrap();
    let images = tensor(
        noise("moe images", 2 * 3 * 32 * 16),
        [2, 3, 32, 16],
        &device,
    );
    let sizes = VitSizes {
        image_size: [32, 16],
        patch_size: 8,
        embed_dim: 16,
        depth: 1,
        num_heads: 2,
        hidden_dim: 24,
        ..VitSizes::pico()
    };
    for (name, form) in [("gated", MoeKind::Gated), ("merged", MoeKind::Merged)] {
        let adapter = Adapter::Moe(MoeConfig {
            form,
            ..MoeConfig::default()
        });
        let config = BackboneConfig::of_sizes(Sizes::Vit(sizes.clone())).with_adapter(adapter);
        let backbone = fill(config.init(&mut Rng::seed_from_u64(0), &device), "");
        let expected = format!("moe {name} map");
        let map = |backbone: &Backbone| {
            backbone
                .forward(images.clone(), prompt_weights.tensor(&device), None)
                .map
        };
        golden.check(&expected, map(&backbone), OPS);
        golden.check(&expected, map(&backbone.fold(prompt_weights)), OPS);
    }
}

#[test]
fn dino_loss_is_the_published_one() {
    let golden = Golden::open();
    let device = Device::flex().autodiff();
    let all = (tensor(noise("dino student", 18 * 11), [18, 11], &device) * 0.5).require_grad();
    let teacher = tensor(noise("dino teacher", 6 * 11), [6, 11], &device) * 0.5;
    let teacher = teacher.chunk(2, 0);
    let center = tensor(noise("dino centre", 11), [1, 11], &device);
    // Two global views and the four local ones stacked.
    let student = all.clone().split_with_sizes(vec![3, 3, 12], 0);
    let loss = dino_loss(&student, &teacher, center.clone(), &Temperatures::default());
    golden.check("dino loss", loss.clone(), OPS);
    let gradient = all.grad(&loss.backward()).unwrap();
    golden.check("dino gradient", gradient, OPS);
    golden.check(
        "dino centre",
        center_update(center, teacher_mean(&teacher), 0.9),
        OPS,
    );
}

#[test]
fn dino_head_is_the_published_one() {
    let device = Device::flex();
    let config = DinoHeadConfig {
        input: 12,
        hidden: 20,
        bottleneck: 8,
        output: 30,
    };
    let head = fill(config.init(&mut Rng::seed_from_u64(0), &device), "");
    let input = tensor(noise("head input", 4 * 12), [4, 12], &device);
    Golden::open().check("head output", head.forward(input), OPS);
}

#[test]
fn adamw_is_pytorchs() {
    #[derive(Module, Debug)]
    struct Layer {
        weight: Param<Tensor<2>>,
        bias: Param<Tensor<1>>,
    }
    let golden = Golden::open();
    let device = Device::flex().autodiff();
    let mut layer = Layer {
        weight: Param::from_tensor(tensor(noise("adamw weight", 35), [7, 5], &device)),
        bias: Param::from_tensor(tensor(noise("adamw bias", 7), [7], &device)),
    };
    let config = OptimizerConfig {
        clip: GradientClip::PerTensor(3.0),
        ..OptimizerConfig::default()
    };
    let mut optimizer = Optimizer::new(config);
    for step in 0..5 {
        if step == 3 {
            // A resume in the middle changes nothing.
            optimizer = Optimizer::from_state(config, &optimizer.state(), &Device::flex()).unwrap();
            optimizer.check("", &layer).unwrap();
        }
        let scale = if step < 2 { 4.0 } else { 0.1 };
        let mut gradients = [("weight", 35), ("bias", 7)]
            .map(|(name, count)| {
                let values = noise(&format!("adamw {name} gradient {step}"), count);
                (
                    name.to_string(),
                    tensor(values, [count], &Device::flex()) * scale,
                )
            })
            .into();
        let norms = Norms::of(&gradients);
        let rates = |name: &str, shape: &[usize]| {
            let decay = 0.04 + 0.05 * step as f64;
            Some(Rates {
                lr: 1e-2 / (step + 1) as f64,
                decay: if decays(name, shape) { decay } else { 0.0 },
            })
        };
        layer = optimizer.step("", layer, &mut gradients, &norms, &rates);
    }
    golden.check("adamw weight", layer.weight.val(), 1e-6);
    golden.check("adamw bias", layer.bias.val(), 1e-6);
}
