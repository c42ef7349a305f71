use super::*;

use burn::nn::{BatchNormConfig, LinearConfig};
use burn::tensor::activation::{leaky_relu, log_softmax, sigmoid};
use burn::tensor::module::{
    adaptive_avg_pool2d, avg_pool2d, conv_transpose2d, conv2d, interpolate, max_pool2d,
};
use burn::tensor::ops::{
    AvgPoolOptions, ConvOptions, ConvTransposeOptions, InterpolateMode, InterpolateOptions,
    MaxPoolOptions,
};
use burn::tensor::{Bool, Int};
use clasp_model::backbone::{Adapter, Backbone, BackboneConfig, LambdaConfig};
use clasp_model::heads::{
    AttributeHead, AttributeHeadConfig, DinoHead, DinoHeadConfig, PartHead, PartHeadConfig,
};
use clasp_model::moe::{MoeConfig, MoeKind};
use clasp_model::swin::WindowPadding;

use crate::testing::{filled, noise};

fn options(prompt: Prompt) -> OnnxOptions {
    OnnxOptions {
        size: [64, 32],
        batch: None,
        prompt,
        bytes: false,
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
        fp16: false,
        external: false,
        metadata: BTreeMap::from([("licenses".to_owned(), "MIT".to_owned())]),
        samples: (String::new(), Vec::new()),
    }
}

fn backbone(name: &str, adapter: Adapter, padding: WindowPadding) -> Backbone {
    let config = BackboneConfig {
        padding,
        ..BackboneConfig::named(name).unwrap().with_adapter(adapter)
    };
    filled(config.init(&mut Rng::seed_from_u64(1), &Device::flex()))
}

/// All that a backbone gives.
fn features(
    backbone: &Backbone,
    images: Tensor<4>,
    prompt_weights: Tensor<2>,
) -> Vec<(String, Output)> {
    let features = backbone.forward(images, prompt_weights, None);
    let tokens = features.map.clone().flatten::<3>(2, 3).swap_dims(1, 2);
    let mut outputs = vec![
        ("pooled".to_owned(), features.pooled.into()),
        ("tokens".to_owned(), tokens.into()),
        // Of most backbones the last map of the pyramid, which once failed as a second output.
        ("map".to_owned(), features.map.into()),
    ];
    for (stage, map) in features.pyramid.into_iter().enumerate() {
        outputs.push((format!("stage{}", stage + 1), map.into()));
    }
    outputs
}

/// Exports and checks; the file lies in the folder.
fn export_backbone(
    backbone: &Backbone,
    options: &OnnxOptions,
    folder: &Path,
) -> Result<OnnxExport, OnnxError> {
    let network = match options.prompt {
        Prompt::Folded(prompt_weights) => backbone.clone().fold(prompt_weights),
        Prompt::Input => backbone.clone(),
    };
    let reference = |images, prompt_weights| features(backbone, images, prompt_weights);
    export(
        &folder.join("model.onnx"),
        &network,
        &features,
        &reference,
        options,
    )
}

/// The engine that checks agrees within 1e-4 or there is no file, so each of these is a comparison;
/// a prompt that was folded in is compared with the same prompt as input.
#[test]
fn backbones_leave_in_every_form() {
    let folder = tempfile::tempdir().unwrap();
    let moe = Adapter::Moe(MoeConfig {
        blocks: 2,
        ..MoeConfig::default()
    });
    let merged = Adapter::Moe(MoeConfig {
        form: MoeKind::Merged,
        ..MoeConfig::default()
    });
    let lambda = Adapter::Lambda(LambdaConfig::default());
    let folded = Prompt::Folded("identity=0.7,part=0.3".parse().unwrap());
    use WindowPadding::{Classification, Detection, Timm};
    let cases = [
        ("swin-pico", Adapter::None, Detection, folded, [64, 32]),
        ("swin-pico", moe.clone(), Detection, folded, [64, 32]),
        // Padded windows and odd sizes.
        ("swin-pico", moe.clone(), Detection, Prompt::Input, [50, 30]),
        (
            "swin-pico",
            moe.clone(),
            Classification,
            Prompt::Input,
            [50, 30],
        ),
        (
            "swin-pico",
            lambda.clone(),
            Detection,
            Prompt::Input,
            [64, 32],
        ),
        ("swin-pico", lambda, Detection, folded, [64, 32]),
        // Windows as small as the maps, with biases of their own.
        ("swin-pico", moe.clone(), Timm, Prompt::Input, [64, 32]),
        ("swin-pico", merged.clone(), Detection, folded, [64, 32]),
        (
            "vit-pico",
            merged.clone(),
            Detection,
            Prompt::Input,
            [64, 32],
        ),
        // Position embeddings of another size.
        ("vit-pico", merged.clone(), Detection, folded, [48, 48]),
        // Rotary positions and a gated MLP.
        (
            "vit-pico-dinov3",
            merged,
            Detection,
            Prompt::Input,
            [64, 48],
        ),
        (
            "vit-pico-dinov3",
            Adapter::Moe(MoeConfig::default()),
            Detection,
            folded,
            [64, 32],
        ),
    ];
    for (name, adapter, padding, prompt, size) in cases {
        let backbone = backbone(name, adapter, padding);
        for batch in [None, Some(2)] {
            let options = OnnxOptions {
                size,
                batch,
                samples: ("grey".to_owned(), vec![100; 2 * 3 * size[0] * size[1]]),
                ..options(prompt)
            };
            let exported = export_backbone(&backbone, &options, folder.path()).unwrap();
            let batches: Vec<usize> = exported.checks.iter().map(|check| check.batch).collect();
            let expected = if batch.is_none() {
                vec![1, 3, 2]
            } else {
                vec![2, 2]
            };
            assert_eq!(batches, expected);
            let outputs = exported.checks[0].differences.len();
            assert_eq!(
                exported.signature.len(),
                outputs + 1 + usize::from(prompt == Prompt::Input)
            );
        }
    }
    assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn bytes_halves_and_weights_beside() {
    let folder = tempfile::tempdir().unwrap();
    let backbone = backbone(
        "swin-pico",
        Adapter::Moe(MoeConfig::default()),
        WindowPadding::Detection,
    );
    let bytes = OnnxOptions {
        bytes: true,
        ..options(Prompt::Input)
    };
    let plain = export_backbone(&backbone, &bytes, folder.path()).unwrap();
    assert_eq!(
        plain.signature[..3],
        [
            "input images: u8 [batch, 64, 32, 3]",
            "input prompt_weights: f32 [1, 3]",
            "output pooled: f32 [batch, 128]",
        ]
    );
    assert!(plain.external.is_none());

    let half = OnnxOptions {
        fp16: true,
        ..bytes.clone()
    };
    let half = export_backbone(&backbone, &half, folder.path()).unwrap();
    assert!(
        10 * half.bytes < 6 * plain.bytes,
        "{} {}",
        half.bytes,
        plain.bytes
    );
    let worst = half.checks[0]
        .differences
        .values()
        .copied()
        .fold(0.0, f32::max);
    assert!(worst > 1e-5, "rounding does nothing: {worst}");

    let outside = OnnxOptions {
        external: true,
        ..bytes
    };
    let outside = export_backbone(&backbone, &outside, folder.path()).unwrap();
    assert_eq!(
        outside.external,
        Some(folder.path().join("model.onnx.data"))
    );
    assert!(outside.bytes < plain.bytes / 4);
    let names: Vec<_> = fs_err::read_dir(folder.path()).unwrap().collect();
    assert_eq!(names.len(), 2);
}

#[test]
fn what_does_not_agree_or_cannot_be_written_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    let backbone = backbone("vit-pico", Adapter::None, WindowPadding::Detection);
    let mean = Prompt::Folded(PromptWeights::mean());
    let export = |reference: &dyn Fn(Tensor<4>, Tensor<2>) -> Vec<(String, Output)>,
                  path: &Path,
                  options| {
        export(path, &backbone, &features, reference, &options)
            .unwrap_err()
            .to_string()
    };
    let another =
        |images: Tensor<4>, prompt_weights| features(&backbone, images * 1.01, prompt_weights);
    let message = export(&another, &path, options(mean));
    assert!(
        message.contains("1 random images") && message.contains("`pooled` differs"),
        "{message}"
    );
    let same = |images: Tensor<4>, prompt_weights| features(&backbone, images, prompt_weights);
    let nowhere = folder.path().join("nowhere").join("model.onnx");
    let message = export(&same, &nowhere, options(mean));
    assert!(message.contains("nowhere"), "{message}");
    assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0);

    let adapted = backbone_with_prompts();
    let error = super::export(&path, &adapted, &features, &same, &options(mean)).unwrap_err();
    assert!(error.to_string().contains("not folded in"), "{error}");
}

fn backbone_with_prompts() -> Backbone {
    backbone(
        "vit-pico",
        Adapter::Moe(MoeConfig::default()),
        WindowPadding::Detection,
    )
}

#[test]
fn heads_leave() {
    let folder = tempfile::tempdir().unwrap();
    let (mut rng, device) = (Rng::seed_from_u64(2), Device::flex());
    let backbone = backbone_with_prompts();
    let channels = backbone.channels();
    let heads = (
        PartHeadConfig::new(channels, 7).init(&mut rng, &device),
        AttributeHeadConfig::new(channels, 11).init(&mut rng, &device),
        DinoHeadConfig {
            hidden: 32,
            ..DinoHeadConfig::new(channels, 64)
        }
        .init(&mut rng, &device),
    );
    let network = (backbone, heads);
    let forward = |(backbone, (part, attribute, dino)): &(Backbone, _),
                   images: Tensor<4>,
                   prompt_weights: Tensor<2>| {
        let features = backbone.forward(images, prompt_weights, None);
        let (part, attribute, dino): (&PartHead, &AttributeHead, &DinoHead) =
            (part, attribute, dino);
        vec![
            ("part".to_owned(), part.forward(features.map).into()),
            (
                "attribute".to_owned(),
                attribute.forward(features.pooled.clone()).into(),
            ),
            ("dino".to_owned(), dino.forward(features.pooled).into()),
        ]
    };
    let reference = |images, prompt_weights| forward(&network, images, prompt_weights);
    let path = folder.path().join("model.onnx");
    let exported = export(
        &path,
        &network,
        &forward,
        &reference,
        &options(Prompt::Input),
    )
    .unwrap();
    assert!(
        exported
            .signature
            .contains(&"output part: f32 [batch, 7, 4, 2]".to_owned())
    );
}

/// Every row of the table on sizes that tell axes apart, beside Burn itself.
#[test]
fn each_operation_agrees_with_burn() {
    let folder = tempfile::tempdir().unwrap();
    let device = Device::flex();
    // The network only says on which device constants are made.
    let linear = LinearConfig::new(3, 3).init(&device);
    type Case = (&'static str, fn(Tensor<4>) -> Output);
    fn weight(name: &str, shape: [usize; 4], like: &Tensor<4>) -> Tensor<4> {
        let values = noise(name, shape.iter().product());
        Tensor::from_data(TensorData::new(values, shape), &like.device())
    }
    fn resized(x: Tensor<4>, size: [usize; 2], mode: InterpolateMode, corners: bool) -> Output {
        let options = InterpolateOptions::new(mode)
            .with_align_corners(corners)
            .with_output_size(size);
        interpolate(x, options).into()
    }
    let cases: &[Case] = &[
        ("convolution", |x| {
            let weight = weight("a", [4, 3, 3, 2], &x);
            conv2d(x, weight, None, ConvOptions::new([2, 1], [1, 0], [1, 2], 1)).into()
        }),
        ("grouped convolution with bias", |x| {
            let bias = Tensor::<1>::from_floats([0.1, 0.2, 0.3], &x.device());
            let weight = weight("b", [3, 1, 3, 3], &x);
            conv2d(
                x,
                weight,
                Some(bias),
                ConvOptions::new([1, 1], [1, 1], [1, 1], 3),
            )
            .into()
        }),
        ("transposed convolution", |x| {
            let weight = weight("c", [3, 2, 4, 4], &x);
            let options = ConvTransposeOptions::new([2, 2], [1, 1], [0, 0], [1, 1], 1);
            conv_transpose2d(x, weight, None, options).into()
        }),
        ("batch norm", |x| {
            BatchNormConfig::new(3).init(&x.device()).forward(x).into()
        }),
        ("nearest", |x| {
            resized(x, [24, 20], InterpolateMode::Nearest, false)
        }),
        ("bilinear", |x| {
            resized(x, [13, 7], InterpolateMode::Bilinear, false)
        }),
        ("bilinear, corners", |x| {
            resized(x, [13, 7], InterpolateMode::Bilinear, true)
        }),
        ("max pooling", |x| {
            max_pool2d(
                x,
                MaxPoolOptions::new([3, 2])
                    .with_stride([2, 1])
                    .with_padding([1, 0]),
            )
            .into()
        }),
        ("average pooling", |x| {
            avg_pool2d(
                x,
                AvgPoolOptions::new([3, 2])
                    .with_stride([2, 1])
                    .with_padding([1, 0]),
            )
            .into()
        }),
        ("bins that divide", |x| {
            adaptive_avg_pool2d(x, [3, 2]).into()
        }),
        ("bins that do not", |x| {
            adaptive_avg_pool2d(x, [5, 3]).into()
        }),
        ("slices", |x| {
            let tail = x.clone().slice([0..x.dims()[0], 1..3, 2..11, 0..5]);
            let steps = x
                .slice_dim(2, burn::tensor::s![1..11;2])
                .slice_dim(3, burn::tensor::s![0..5;1]);
            (tail.sum_dim(2) + steps.narrow(1, 0, 2).mean_dim(2)).into()
        }),
        ("flip, concatenation, repetition", |x| {
            Tensor::cat(vec![x.clone().flip([2, 3]), x.repeat_dim(2, 2)], 2).into()
        }),
        ("padding", |x| x.pad([(1, 2), (3, 0)], 0.5).into()),
        ("permutations", |x| {
            let moved = x
                .clone()
                .permute([0, 2, 3, 1])
                .swap_dims(1, 2)
                .reshape([-1, 10, 36]);
            moved.into()
        }),
        ("expansion and constants", |x| {
            let [batch, channels, height, width] = x.dims();
            let first = x
                .clone()
                .narrow(2, 0, 1)
                .expand([batch, channels, height, width]);
            let ones = Tensor::ones([batch, 1, 1, width], &x.device());
            (first * ones + x.zeros_like() + Tensor::full([batch, 1, 1, 1], 2.5, &x.device()))
                .into()
        }),
        ("gathering", |x| {
            let index = Tensor::<1, Int>::from_ints([2, 0, 2], &x.device());
            let chosen = x.clone().select(1, index);
            let order = x.clone().narrow(1, 0, 1).argmax(2);
            (chosen.narrow(2, 0, 1) + x.narrow(1, 0, 1).gather(2, order)).into()
        }),
        ("comparisons and masks", |x| {
            let positive: Tensor<4, Bool> = x.clone().greater_elem(0.0);
            let small = x.clone().abs().lower_equal_elem(0.5);
            let both = positive
                .clone()
                .bool_and(small.clone())
                .bool_or(positive.clone().bool_not());
            let masked = x
                .clone()
                .mask_fill(both, -3.0)
                .mask_where(small, x.clone() * 2.0);
            let equal = x.clone().floor().equal_elem(0.0).float()
                + x.clone().not_equal(x.clone().ceil()).float();
            (masked + equal + positive.int().float()).into()
        }),
        ("functions", |x| {
            let positive = x.clone().abs() + 0.1;
            let some = positive.clone().log()
                + positive.clone().log1p()
                + positive.clone().sqrt()
                + positive.clone().recip();
            let others = x.clone().exp().clamp_max(3.0)
                + x.clone().tanh()
                + x.clone().sin()
                + x.clone().cos();
            let powers = positive.powf_scalar(1.5) + x.clone().powi_scalar(2) - x.clone().erf();
            let rounded = x.clone().round() + x.clone().sign() + x.clamp(-0.4, 0.6).clamp_min(-0.2);
            (some + others + powers - rounded / 3.0).neg().into()
        }),
        ("activations", |x| {
            let soft = burn::tensor::activation::softmax(x.clone(), 1) + log_softmax(x.clone(), 3);
            let gates = sigmoid(x.clone()) + leaky_relu(x.clone(), 0.1);
            (soft + gates + burn::tensor::activation::gelu(x)).into()
        }),
        ("reductions", |x| {
            let most = x.clone().max_dim(2) - x.clone().min_dim(2) * x.clone().mean_dim(1);
            let all = x.clone().sum().reshape([1, 1, 1, 1]) * 0.01
                + x.clone().max().reshape([1, 1, 1, 1]);
            let (top, places) = x.topk_with_indices(2, 3);
            (most.sum_dim(3) + all + top.sum_dim(3) + places.float().mean_dim(3)).into()
        }),
    ];
    for (name, case) in cases {
        let forward = |_: &burn::nn::Linear, images: Tensor<4>, _: Tensor<2>| {
            vec![("output".to_owned(), case(images))]
        };
        let reference = |images, prompt_weights| forward(&linear, images, prompt_weights);
        let options = OnnxOptions {
            size: [12, 10],
            // A sum over everything mixes the images of a batch, which is nothing a network does;
            // it has one.
            batch: (*name == "reductions").then_some(1),
            ..options(Prompt::Folded(PromptWeights::mean()))
        };
        let path = folder.path().join("case.onnx");
        let exported = export(&path, &linear, &forward, &reference, &options)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!exported.checks.is_empty(), "{name}");
    }
}

/// With heads, each beside what the network makes of the same images, batches of one and eight.
/// With `CLASP_ONNX=FOLDER` the published sizes (350 MB), for `tests/golden/onnx_runtime.py`, which
/// asks ONNX's checker and ONNX Runtime.
#[test]
fn backbones_leave_with_heads() {
    let temporary = tempfile::tempdir().unwrap();
    let asked = std::env::var_os("CLASP_ONNX").map(PathBuf::from);
    let published = asked.is_some();
    let folder = asked.unwrap_or_else(|| temporary.path().to_owned());
    let device = Device::flex();
    let moe = Adapter::Moe(MoeConfig::default());
    let folded = Prompt::Folded("identity=0.7,part=0.3".parse().unwrap());
    for (name, file, prompt, bytes, half) in [
        ("swin-tiny", "swin-tiny-prompt", Prompt::Input, false, false),
        ("swin-tiny", "swin-tiny-folded-bytes", folded, true, false),
        ("swin-tiny", "swin-tiny-half", folded, false, true),
        ("vit-small", "vit-small-prompt", Prompt::Input, false, false),
        ("vit-small", "vit-small-folded-bytes", folded, true, false),
    ] {
        let small = match name {
            "swin-tiny" => "swin-pico",
            _ => "vit-pico",
        };
        let size = if published { [256, 128] } else { [64, 32] };
        let adapter = moe.clone();
        let backbone = backbone(
            if published { name } else { small },
            adapter,
            WindowPadding::Detection,
        );
        let rng = &mut Rng::seed_from_u64(2);
        let channels = backbone.channels();
        let part = PartHeadConfig::new(channels, 25).init(rng, &device);
        let attribute = AttributeHeadConfig::new(channels, 40).init(rng, &device);
        type Network = (Backbone, PartHead, AttributeHead);
        let forward = |(backbone, part, attribute): &Network,
                       images: Tensor<4>,
                       prompt_weights: Tensor<2>| {
            let made = backbone.forward(images.clone(), prompt_weights.clone(), None);
            let mut outputs = features(backbone, images, prompt_weights);
            outputs.push(("part".to_owned(), part.forward(made.map).into()));
            outputs.push((
                "attribute".to_owned(),
                attribute.forward(made.pooled).into(),
            ));
            outputs
        };
        let options = OnnxOptions {
            size,
            bytes,
            fp16: half,
            external: name == "vit-small" && bytes,
            ..options(prompt)
        };
        let plain: Network = (backbone, part, attribute);
        let mut network = plain.clone();
        if let Prompt::Folded(prompt_weights) = prompt {
            network.0 = network.0.fold(prompt_weights);
        }
        let reference = |images, prompt_weights| forward(&plain, images, prompt_weights);
        let path = folder.join(format!("{file}.onnx"));
        let exported = export(&path, &network, &forward, &reference, &options).unwrap();
        assert!(!exported.checks.is_empty(), "{file}");
        for batch in [1, 8] {
            let mut pixels = vec![0; batch * 3 * size[0] * size[1]];
            Rng::seed_from_u64(3).fill_bytes(&mut pixels);
            let prompt_weights = prompt_weights_of_run(prompt, 2);
            let images =
                TensorData::new(normalize(&pixels, &options), [batch, 3, size[0], size[1]]);
            let prompt_weights = TensorData::new(prompt_weights.data, prompt_weights.shape);
            let (images, prompt_weights) = (
                Tensor::from_data(images, &device),
                Tensor::from_data(prompt_weights, &device),
            );
            let pixels = Tensor::<4>::from_data(
                TensorData::new(
                    pixels.iter().map(|p| f32::from(*p)).collect(),
                    [batch, size[0], size[1], 3],
                ),
                &device,
            );
            let mut state = BTreeMap::new();
            let mut keep = |name: &str, data: TensorData| {
                let array = crate::state::HostTensor {
                    shape: data.shape().to_vec(),
                    data: data.iter::<f32>().collect(),
                };
                state.insert(name.to_owned(), array);
            };
            keep(
                "input images",
                if bytes {
                    pixels.into_data()
                } else {
                    images.to_data()
                },
            );
            if prompt == Prompt::Input {
                keep("input prompt_weights", prompt_weights.to_data());
            }
            for (name, output) in reference(images, prompt_weights) {
                keep(&name, output.into_data());
            }
            let path = folder.join(format!("{file}.{batch}.safetensors"));
            crate::checkpoint::write(&path, &state, &BTreeMap::new()).unwrap();
        }
    }
}
