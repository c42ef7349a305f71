//! Steps of an optimizer on a student with all heads.

use burn::{
    module::Module,
    tensor::{Device, Int, Tensor, TensorData},
};
use clasp_model::{
    backbone::{Adapter, Backbone},
    heads::{
        AttributeHead, AttributeHeadConfig, DinoHead, DinoHeadConfig, PartHead, PartHeadConfig,
    },
    layers::Rng,
    losses::{Temperatures, attribute_loss, dino_loss, part_loss},
    moe::MoeConfig,
    named,
    optim::{self, GradientClip, Gradients, Norms, Optimizer, OptimizerConfig, Rates},
    prompt::PromptWeights,
};
use rand_chacha::rand_core::SeedableRng;

use crate::cases::{KINDS, cases, difference, pico, random, values};

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
