//! What every backbone, adapter and head must do.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use burn::{
    module::Module,
    tensor::{Device, Int, Tensor, TensorData},
};
use clasp_model::{
    backbone::{Adapter, Architecture, Backbone, BackboneConfig, LambdaConfig, Sizes},
    heads::{
        AttributeHead, AttributeHeadConfig, DinoHead, DinoHeadConfig, PartHead, PartHeadConfig,
    },
    layers::{Resampling, Rng, uniform},
    losses::{Temperatures, attribute_loss, dino_loss, part_loss},
    moe::{MoeConfig, MoeKind},
    named,
    optim::{self, GradientClip, Gradients, Norms, Optimizer, OptimizerConfig, Rates},
    parameters::ParameterKind,
    prompt::{ATTRIBUTE, IDENTITY, PART, PROMPTS, PromptWeights},
    swin::{SwinSizes, WindowPadding},
    vit::{Pool, Positions, VitSizes},
};
use rand_chacha::rand_core::SeedableRng;

/// Each kind of backbone, with each adapter that it takes.
fn cases() -> Vec<(&'static str, Adapter)> {
    let mut cases = vec![("swin-pico", Adapter::Lambda(LambdaConfig::default()))];
    for name in KINDS {
        cases.push((name, Adapter::None));
        cases.extend(FORMS.map(|form| (name, moe(form))));
    }
    cases
}

/// Every form of the mixture of experts.
const FORMS: [MoeKind; 2] = [MoeKind::Gated, MoeKind::Merged];

fn moe(form: MoeKind) -> Adapter {
    Adapter::Moe(MoeConfig {
        form,
        ..MoeConfig::default()
    })
}

/// The smallest backbone of each kind.
const KINDS: [&str; 3] = ["swin-pico", "vit-pico", "vit-pico-dinov3"];

fn pico(name: &str, adapter: Adapter, seed: u64, device: &Device) -> Backbone {
    BackboneConfig::named(name)
        .unwrap()
        .with_adapter(adapter)
        .init(&mut Rng::seed_from_u64(seed), device)
}

fn random<const D: usize>(shape: [usize; D], seed: u64, device: &Device) -> Tensor<D> {
    let mut rng = Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| 2.0 * uniform(&mut rng) as f32 - 1.0)
        .collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// All parameters random, so that nothing is zero by initialization.
fn shaken<M: Module>(module: M, seed: u64) -> M {
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

fn values<M: Module>(module: &M) -> BTreeMap<String, Vec<f32>> {
    let mut values = BTreeMap::new();
    named::visit(module, &mut |name, _, value| {
        values.insert(name.to_string(), value.into_data().iter::<f32>().collect());
    });
    values
}

fn difference<const D: usize>(one: Tensor<D>, other: Tensor<D>) -> f32 {
    (one - other).abs().max().into_scalar()
}

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

/// Every registered backbone with each adapter that it takes, and the options of a ViT that no
/// preset has.
fn every_config() -> Vec<BackboneConfig> {
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
fn an_untrained_mixture_leaves_the_plain_backbone() {
    let device = Device::flex();
    for (name, form) in KINDS
        .into_iter()
        .flat_map(|name| FORMS.map(|form| (name, form)))
    {
        let plain = pico(name, Adapter::None, 1, &device);
        let adapted = pico(name, moe(form), 1, &device);
        // The plain weights load by name; the rest keeps its initialization.
        let published = values(&plain);
        let mut loaded = 0;
        let mut experts = Vec::new();
        let adapted = named::map(adapted, &mut |name, _, value| match published.get(name) {
            Some(values) => {
                loaded += 1;
                Tensor::from_floats(values.as_slice(), &device)
            }
            None => {
                experts.push(name.to_string());
                value
            }
        });
        assert_eq!(loaded, published.len());
        // The last block has experts.
        let last = if name.starts_with("swin") {
            "layers.3.blocks.1.moe."
        } else {
            "blocks.3.moe."
        };
        assert!(
            experts.iter().all(|name| name.starts_with(last)),
            "{experts:?}"
        );
        let images = random([2, 3, 128, 64], 2, &device);
        for prompt_weights in [
            PromptWeights::mean(),
            PromptWeights::single(PART),
            "identity=0.7,part=0.3".parse().unwrap(),
        ] {
            let [one, other] = [&plain, &adapted].map(|backbone| {
                backbone
                    .forward(images.clone(), prompt_weights.tensor(&device), None)
                    .map
            });
            // The differences of merged experts cancel to rounding.
            assert!(difference(one, other) < 1e-5, "{name} {form:?}");
        }
    }
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
fn the_mix_matters_once_trained_and_folds_away() {
    let device = Device::flex();
    let images = random([2, 3, 97, 45], 2, &device);
    for (name, adapter) in cases() {
        let backbone = shaken(pico(name, adapter.clone(), 1, &device), 3);
        let forward = |backbone: &Backbone, prompt_weights: PromptWeights| {
            backbone
                .forward(images.clone(), prompt_weights.tensor(&device), None)
                .pooled
        };
        let prompt_weights: PromptWeights = "identity=0.7,part=0.3".parse().unwrap();
        let features = forward(&backbone, prompt_weights);
        let depends = !matches!(&adapter, Adapter::None);
        let other = forward(&backbone, PromptWeights::single(ATTRIBUTE));
        assert_eq!(
            difference(features.clone(), other.clone()) > 1e-4,
            depends,
            "{name} {adapter:?}"
        );

        let folded = backbone.fold(prompt_weights);
        // What is left is a plain backbone, with SOLIDER's controller where it had one.
        let solider = matches!(&adapter, Adapter::Lambda(_));
        let groups = folded.parameter_groups().unwrap();
        assert_eq!(groups.iter().any(|group| group.adapter), solider);
        // Folded, the prompt weights that are given no longer matter.
        for given in [prompt_weights, PromptWeights::single(ATTRIBUTE)] {
            let found = forward(&folded, given);
            assert!(difference(found, features.clone()) < 1e-5, "{adapter:?}");
        }
    }
}

#[test]
fn gradients_of_prompts_count_beside_the_backbones() {
    // Once, gradients of prompts were 1e-5 of the backbone's, so that prompts changed nothing.
    let device = Device::flex().autodiff();
    for (name, form) in KINDS
        .into_iter()
        .flat_map(|name| FORMS.map(|form| (name, form)))
    {
        // LayerScale begins at 1e-5, which holds every gradient within a block back alike.
        let backbone =
            named::map(
                pico(name, moe(form), 1, &device),
                &mut |name, _, value| match name.ends_with(".gamma") {
                    true => value.ones_like(),
                    false => value,
                },
            );
        let images = random([4, 3, 64, 32], 2, &device);
        let prompt_weights = PromptWeights::single(PART).tensor(&device);
        let pooled = backbone.forward(images, prompt_weights, None).pooled;
        let direction = random([1, backbone.channels()], 3, &device);
        let gradients = optim::gradients(&backbone, &mut (pooled * direction).sum().backward());
        let norms = Norms::of(&gradients);
        let groups = backbone.parameter_groups().unwrap();
        let prompts = norms.total_of(|name| groups.is_prompt(name));
        let rest = norms.total_of(|name| !groups.is_adapter(name));
        let least = if form == MoeKind::Gated { 2e-3 } else { 1e-4 };
        assert!(
            prompts > least * rest,
            "{name} {form:?}: {prompts} beside {rest}"
        );
    }
}

#[derive(Module, Debug)]
struct Student {
    backbone: Backbone,
    dino: DinoHead,
    part: PartHead,
    attribute: AttributeHead,
}

fn student(name: &str, adapter: Adapter, device: &Device) -> Student {
    let backbone = pico(name, adapter, 1, device);
    let rng = &mut Rng::seed_from_u64(2);
    let channels = backbone.channels();
    let dino = DinoHeadConfig {
        input: channels,
        hidden: 32,
        bottleneck: 16,
        output: 64,
    };
    Student {
        backbone,
        dino: dino.init(rng, device),
        part: PartHeadConfig::new(channels, 5).init(rng, device),
        attribute: AttributeHeadConfig::new(channels, 5).init(rng, device),
    }
}

/// All losses of a step on two views.
fn loss(student: &Student, device: &Device) -> Tensor<1> {
    let mut rng = Rng::seed_from_u64(5);
    let prompts = ["identity=0.6,part=0.4", "part=0.3,attribute=0.7"];
    let views = [0, 1].map(|view| {
        let images = random([3, 3, 128, 64], 6 + view as u64, device);
        let prompt_weights: PromptWeights = prompts[view].parse().unwrap();
        student
            .backbone
            .forward(images, prompt_weights.tensor(device), Some(&mut rng))
    });
    let logits = views
        .each_ref()
        .map(|view| student.dino.forward(view.pooled.clone()));
    let teacher = [8, 9].map(|seed| random([3, 64], seed, device));
    let center = Tensor::zeros([1, 64], device);
    let dino = dino_loss(&logits, &teacher, center, &Temperatures::default());
    let [rows, columns] = student.backbone.grid(128, 64);
    let labels: Vec<i64> = (0..(3 * rows * columns) as i64)
        .map(|i| if i % 7 == 0 { 255 } else { i % 5 })
        .collect();
    let labels = Tensor::<3, Int>::from_data(TensorData::new(labels, [3, rows, columns]), device);
    let part = part_loss(student.part.forward(views[0].map.clone()), labels).mean();
    let targets = [0.3, 0.7, 0.0, 1.0, 0.0].repeat(3);
    let targets = Tensor::<2>::from_data(TensorData::new(targets, [3, 5]), device);
    let attribute = attribute_loss(
        student.attribute.forward(views[0].pooled.clone()),
        targets,
        Tensor::ones([3, 2], device),
        &[0..2, 2..5],
    )
    .mean();
    dino + part + attribute
}

/// One step of AdamW; what begins with one of `frozen` stays.
fn step(
    optimizer: &mut Optimizer,
    student: Student,
    mut gradients: Gradients,
    frozen: &[&str],
) -> Student {
    let norms = Norms::of(&gradients);
    let groups = student.backbone.parameter_groups().unwrap();
    let groups = groups.with_prefix("backbone.");
    let rates = |name: &str, shape: &[usize]| {
        let trained = !frozen.iter().any(|prefix| name.starts_with(prefix));
        trained.then(|| Rates {
            lr: 1e-3,
            decay: if groups.decays(name, shape) {
                0.04
            } else {
                0.0
            },
        })
    };
    optimizer.step("", student, &mut gradients, &norms, &rates)
}

#[test]
fn every_parameter_moves_and_the_loss_falls() {
    let device = Device::flex().autodiff();
    for (name, adapter) in cases() {
        let mut student = student(name, adapter.clone(), &device);
        let before = values(&student);
        let mut optimizer = Optimizer::new(OptimizerConfig::default());
        let mut losses = Vec::new();
        for _ in 0..4 {
            let loss = loss(&student, &device);
            losses.push(loss.clone().into_scalar::<f32>());
            let gradients = optim::gradients(&student, &mut loss.backward());
            student = step(&mut optimizer, student, gradients, &[]);
        }
        assert!(
            losses.windows(2).all(|pair| pair[1] < pair[0]),
            "{name} {adapter:?} {losses:?}"
        );
        for (parameter, after) in values(&student) {
            let moved = after != before[&parameter];
            let frozen = parameter.ends_with("weight_g");
            assert_eq!(moved, !frozen, "{name} {adapter:?}: `{parameter}`");
        }
    }
}

#[test]
fn frozen_names_stay_and_their_history_does_not_start() {
    let device = Device::flex().autodiff();
    let student = student(KINDS[0], Adapter::None, &device);
    let before = values(&student);
    let mut optimizer = Optimizer::new(OptimizerConfig {
        clip: GradientClip::Global(1.0),
        ..OptimizerConfig::default()
    });
    let gradients = optim::gradients(&student, &mut loss(&student, &device).backward());
    let frozen = ["dino.last_layer", "backbone.layers.0"];
    let student = step(&mut optimizer, student, gradients, &frozen);
    for (name, after) in values(&student) {
        let frozen = name.starts_with("dino.last_layer") || name.starts_with("backbone.layers.0");
        assert_eq!(after == before[&name], frozen, "`{name}`");
        let steps = format!("{name}.steps");
        assert_eq!(optimizer.state().contains_key(&steps), !frozen, "`{name}`");
    }
}

#[test]
fn a_resumed_run_is_the_same_run() {
    let device = Device::flex().autodiff();
    let train = |mut student: Student, mut optimizer: Optimizer, steps: usize| {
        for _ in 0..steps {
            let gradients = optim::gradients(&student, &mut loss(&student, &device).backward());
            student = step(&mut optimizer, student, gradients, &[]);
        }
        (student, optimizer)
    };
    let adapter = Adapter::Moe(MoeConfig::default());
    let start = || {
        (
            student(KINDS[0], adapter.clone(), &device),
            Optimizer::new(OptimizerConfig::default()),
        )
    };
    let (whole, _) = train(start().0, start().1, 4);

    let (half, optimizer) = train(start().0, start().1, 2);
    let (saved, state) = (values(&half), optimizer.state());
    let fresh = named::map(
        student(KINDS[0], adapter.clone(), &device),
        &mut |name, _, value| Tensor::from_floats(saved[name].as_slice(), &value.device()),
    );
    let optimizer =
        Optimizer::from_state(OptimizerConfig::default(), &state, &Device::flex()).unwrap();
    optimizer.check("", &fresh).unwrap();
    let (resumed, _) = train(fresh, optimizer, 2);
    assert!(values(&whole) == values(&resumed));
}

#[test]
fn a_broken_optimizer_state_is_an_error() {
    let device = Device::flex().autodiff();
    let student = student(KINDS[0], Adapter::None, &device);
    let mut optimizer = Optimizer::new(OptimizerConfig::default());
    let gradients = optim::gradients(&student, &mut loss(&student, &device).backward());
    let _ = step(&mut optimizer, student.clone(), gradients, &[]);
    let state = optimizer.state();
    let load = |state| Optimizer::from_state(OptimizerConfig::default(), state, &Device::flex());

    let mut missing = state.clone();
    missing.remove("part.layers.0.bias.second");
    assert!(
        load(&missing)
            .unwrap_err()
            .to_string()
            .contains("part.layers.0.bias.second")
    );
    let mut short = state.clone();
    short
        .get_mut("part.layers.0.bias.second")
        .unwrap()
        .data
        .pop();
    assert!(load(&short).unwrap_err().to_string().contains("needs"));
    let other = load(&state).unwrap().check("", &student.part).unwrap_err();
    assert!(other.to_string().contains("not a parameter"), "{other}");
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

#[test]
fn replicas_average_to_the_whole_batch() {
    let device = Device::flex().autodiff();
    let backbone = pico(KINDS[0], Adapter::None, 1, &device);
    let images = random([4, 3, 64, 32], 2, &device);
    let gradients = |images: Tensor<4>| {
        let prompt_weights = PromptWeights::mean().tensor(&device);
        let pooled = backbone.forward(images, prompt_weights, None).pooled;
        let direction = random([1, backbone.channels()], 3, &device);
        optim::gradients(
            &backbone,
            &mut (pooled.tanh() * direction).mean().backward(),
        )
    };
    let whole = gradients(images.clone());
    let halves = images.chunk(2, 0).into_iter().map(gradients).collect();
    let averaged = optim::average(halves);
    assert_eq!(whole.len(), averaged.len());
    for (name, gradient) in whole {
        let worst = difference(gradient, averaged[&name].clone());
        assert!(worst < 1e-6, "`{name}`: {worst}");
    }
}

#[test]
fn the_teacher_follows_the_student() {
    let device = Device::flex();
    let adapter = Adapter::Moe(MoeConfig::default());
    let teacher = pico(KINDS[0], adapter.clone(), 1, &device);
    let student = pico(KINDS[0], adapter, 2, &device.clone().autodiff());
    let (old, new) = (values(&teacher), values(&student));
    let after = values(&optim::ema(teacher, &student, 0.9));
    for (name, values) in after {
        for ((after, old), new) in values.iter().zip(&old[&name]).zip(&new[&name]) {
            assert!((after - (0.9 * old + 0.1 * new)).abs() < 1e-6, "`{name}`");
        }
    }
}

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
