//! Tests of optimizers and their state.

use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor},
};

use super::rules::{Formula, ParameterMoments};
use super::*;
use crate::{
    kernels::operation::{host, values},
    named::{self, StateDict},
};
#[cfg(feature = "gpu")]
use {
    super::{optimizer::apply, rules::Update},
    crate::layers::cast_all,
    burn::tensor::DType,
};

#[derive(Module, Debug)]
struct Two {
    a: Param<Tensor<2>>,
    b: Param<Tensor<1>>,
}

fn config(rule: Rule) -> OptimizerConfig {
    OptimizerConfig {
        rule,
        clip: GradientClip::None,
        ..OptimizerConfig::default()
    }
}

fn optimizer(rule: Rule) -> Optimizer {
    Optimizer::new(config(rule))
}

fn step(
    optimizer: &mut Optimizer,
    module: Two,
    rates: &dyn Fn(&str, &[usize]) -> Option<Rates>,
) -> Two {
    let mut gradients = gradients();
    let norms = Norms::of(&gradients);
    optimizer.step("m.", module, &mut gradients, &norms, rates)
}

fn module() -> Two {
    let device = Device::flex();
    Two {
        a: Param::from_data([[1.0, -2.0]], &device),
        b: Param::from_data([0.5], &device),
    }
}

fn weights(module: &Two) -> Vec<f32> {
    let mut all = Vec::new();
    named::visit(module, &mut |_, _, value| {
        all.extend(value.into_data().iter::<f32>());
    });
    all
}

fn gradients() -> Gradients {
    let tensor = |values: &[f32]| Tensor::<1>::from_floats(values, &Device::flex());
    Gradients::from([
        ("m.a".to_owned(), tensor(&[0.5, 0.25])),
        ("m.b".to_owned(), tensor(&[-1.0])),
    ])
}

#[test]
fn each_parameter_has_its_own_rate_and_none_means_frozen() {
    let mut optimizer = optimizer(Rule::Sgd);
    let rates = |name: &str, _: &[usize]| {
        (name == "m.a").then_some(Rates {
            lr: 0.1,
            decay: 0.01,
        })
    };
    let mut module = module();
    for _ in 0..2 {
        module = step(&mut optimizer, module, &rates);
    }
    // By hand: m1 = 0.5 + 0.01, p1 = 1 − 0.051; m2 = 0.9·0.51 + 0.5 + 0.01·0.949.
    let p1 = 1.0 - 0.1 * 0.51;
    let p2 = p1 - 0.1 * (0.9 * 0.51 + 0.5 + 0.01 * p1);
    let found = weights(&module);
    assert!((found[0] - p2).abs() < 1e-6 && found[2] == 0.5, "{found:?}");
}

#[test]
fn a_saved_state_resumes_to_the_bit() {
    for rule in [Rule::Sgd, Rule::Adam, Rule::AdamW] {
        let rates = |_: &str, _: &[usize]| {
            Some(Rates {
                lr: 0.1,
                decay: 0.1,
            })
        };
        let mut whole = optimizer(rule);
        let mut module = module();
        for _ in 0..2 {
            module = step(&mut whole, module, &rates);
        }
        let load = |state: &StateDict| Optimizer::from_state(config(rule), state, &Device::flex());
        let mut again = load(&whole.state()).unwrap();
        again.check("m.", &module).unwrap();
        let expected = step(&mut whole, module.clone(), &rates);
        let found = step(&mut again, module, &rates);
        assert_eq!(weights(&found), weights(&expected));
        let mut broken = whole.state();
        broken.remove("m.a.first");
        assert!(load(&broken).is_err());
        // A state of one rule is not one of another.
        let other = if rule == Rule::Sgd {
            Rule::Adam
        } else {
            Rule::Sgd
        };
        assert!(Optimizer::from_state(config(other), &whole.state(), &Device::flex()).is_err());
    }
}

#[test]
fn clipping_keeps_small_gradients() {
    let norms = Norms::of(&gradients());
    let factor = |clip, name: &str| norms.factors(clip)(name);
    let total = (0.5_f64 * 0.5 + 0.25 * 0.25 + 1.0).sqrt();
    assert!((norms.total() - total).abs() < 1e-6);
    for (clip, name, expected) in [
        (GradientClip::None, "m.b", 1.0),
        (GradientClip::Global(10.0), "m.b", 1.0),
        (GradientClip::Global(0.1), "m.b", 0.1 / total),
        (GradientClip::PerTensor(0.9), "m.a", 1.0),
        (GradientClip::PerTensor(0.9), "m.b", 0.9),
    ] {
        let found = factor(clip, name);
        assert!((found - expected).abs() < 1e-5, "{clip:?} {name}: {found}");
    }
}

#[test]
fn an_incomplete_state_is_an_error() {
    let mut optimizer = optimizer(Rule::AdamW);
    let rates = |_: &str, _: &[usize]| {
        Some(Rates {
            lr: 0.1,
            decay: 0.0,
        })
    };
    step(&mut optimizer, module(), &rates);
    let whole = optimizer.state();
    let load = |state: &StateDict| {
        Optimizer::from_state(config(Rule::AdamW), state, &Device::flex()).map(drop)
    };
    load(&whole).unwrap();
    for name in whole.keys() {
        let mut state = whole.clone();
        state.remove(name);
        assert!(load(&state).is_err(), "without {name}");
    }
    for steps in [
        vec![1.5, 0.0],
        vec![-1.0, 0.0],
        vec![f32::NAN, 0.0],
        vec![1.0, 1e20],
    ] {
        let mut state = whole.clone();
        if let Some(array) = state.get_mut("m.a.steps") {
            array.data = steps.clone();
        }
        assert!(load(&state).is_err(), "{steps:?} steps");
    }
}

#[test]
fn tensor_operations_are_the_loops_over_slices() {
    let count = 1000;
    let tensor = |seed: f32| {
        let values: Vec<f32> = (0..count).map(|i| (i as f32 * 0.37 + seed).sin()).collect();
        Tensor::<1>::from_floats(values.as_slice(), &Device::flex())
    };
    for rule in [Rule::Sgd, Rule::Adam, Rule::AdamW] {
        let rates = Rates {
            lr: 0.03,
            decay: 0.2,
        };
        let formula = Formula::new(&config(rule), rates, 0.7, 3);
        let moments = || ParameterMoments {
            steps: 2,
            first: tensor(2.0),
            second: (rule != Rule::Sgd).then(|| tensor(3.0).square()),
        };
        let (value, after) = formula.on_host(tensor(0.0), tensor(1.0), moments());
        let (other, other_after) = formula.on_device(tensor(0.0), tensor(1.0), moments());
        let mut pairs = vec![(value, other), (after.first, other_after.first)];
        pairs.extend(after.second.zip(other_after.second));
        assert_eq!(pairs.len(), if rule == Rule::Sgd { 2 } else { 3 });
        for (one, other) in pairs {
            let apart: f32 = (one - other).abs().max().into_scalar();
            assert!(apart < 1e-5, "{rule:?}: {apart}");
        }
    }
}

#[test]
fn gradients_add_up_by_name() {
    let mut sum = Gradients::from([(
        "m.b".to_owned(),
        Tensor::from_floats([2.0], &Device::flex()),
    )]);
    let held = sum["m.b"].clone();
    add(&mut sum, gradients());
    add(&mut sum, gradients());
    let of = |name: &str| -> Vec<f32> { sum[name].clone().try_into_vec_as().unwrap() };
    assert_eq!((of("m.a"), of("m.b")), (vec![1.0, 0.5], vec![0.0]));
    assert_eq!(held.into_scalar::<f32>(), 2.0);
}

#[test]
fn the_average_is_made_in_place() {
    let place = |module: &Two| {
        let mut place = None;
        named::visit(module, &mut |name, _, value| {
            if name == "a" {
                place = Some(values(&host(value)).as_ptr() as usize);
            }
        });
        place
    };
    let (teacher, student) = (module(), module());
    let before = place(&teacher);
    let teacher = ema(teacher, &student, 0.5);
    assert_eq!(place(&teacher), before);
    // A tensor that is held elsewhere stays as it was.
    let held = teacher.clone();
    let moved = ema(teacher, &named::map(student, &mut |_, _, v| v + 1.0), 0.5);
    assert_ne!(place(&moved), before);
    assert_eq!(weights(&held)[0], 1.0);
}

/// Sizes of parameters: more than one launch, the last of them not full.
#[cfg(feature = "gpu")]
const SIZES: [usize; 11] = [3, 70_000, 1, 257, 1024, 16_500, 5, 300, 2, 40, 9_000];

#[cfg(feature = "gpu")]
fn tensors(seed: usize, device: &Device) -> Vec<Tensor<1>> {
    let of = |(place, count): (usize, usize)| {
        let value = |i: usize| (i as f32 * 0.37 + (seed * 31 + place * 7) as f32).sin();
        let values: Vec<f32> = (0..count).map(value).collect();
        Tensor::from_floats(values.as_slice(), device)
    };
    SIZES.into_iter().enumerate().map(of).collect()
}

#[cfg(feature = "gpu")]
#[test]
fn optimizers_of_a_gpu_are_those_of_the_cpu() {
    let device = Device::default();
    assert!(
        crate::gpu::supports_parameters([Tensor::zeros([1], &device)].iter()),
        "a build for GPUs is tested on one (docs/gpu.md): {device:?}"
    );
    let names: Vec<String> = (10..10 + SIZES.len()).map(|i| format!("p{i}")).collect();
    let run = |rule: Rule, device: &Device| -> Vec<Vec<f32>> {
        let [values, slopes, firsts, seconds] = [0, 1, 2, 3].map(|seed| tensors(seed, device));
        let gradients: Gradients = names.iter().cloned().zip(slopes.clone()).collect();
        let norms = Norms::of(&gradients);
        let rates = Rates {
            lr: 0.03,
            decay: 0.2,
        };
        let updates = (0..SIZES.len()).map(|place| Update {
            name: names[place].clone(),
            value: values[place].clone(),
            gradient: slopes[place].clone(),
            moments: ParameterMoments {
                steps: place as u64,
                first: firsts[place].clone(),
                second: (rule != Rule::Sgd).then(|| seconds[place].clone().square()),
            },
            formula: Formula::new(&config(rule), rates, 0.7, place as u64 + 1),
        });
        let mut found = Vec::new();
        for (place, (name, value, moments)) in apply(updates.collect()).into_iter().enumerate() {
            assert_eq!((&name, moments.steps), (&names[place], place as u64 + 1));
            found.extend([Some(value), Some(moments.first), moments.second]);
        }
        let list = |values: Tensor<1>| values.into_data().iter::<f32>().collect();
        let mut found: Vec<Vec<f32>> = found.into_iter().flatten().map(list).collect();
        found.push(
            names
                .iter()
                .map(|name| norms.total_of(|it| it == name) as f32)
                .collect(),
        );
        found
    };
    for rule in [Rule::Sgd, Rule::Adam, Rule::AdamW] {
        alike(&run(rule, &device), &run(rule, &Device::flex()));
    }
    // A whole step: one parameter without rates, gradients of which only one has the name of another.
    let moved = |device: &Device| -> Vec<Vec<f32>> {
        let module = || Two {
            a: Param::from_data([[1.0, -2.0]], device),
            b: Param::from_data([0.5], device),
        };
        let tensor = |values: &[f32]| Tensor::<1>::from_floats(values, device);
        let mut sum = Gradients::from([("m.a".to_owned(), tensor(&[0.5, 0.25]))]);
        let others = [("m.a", [0.125, 2.0].as_slice()), ("m.b", &[-1.0])];
        let others = others.map(|(name, values)| (name.to_owned(), tensor(values)));
        add(&mut sum, Gradients::from(others));
        let norms = Norms::of(&sum);
        let rates = |name: &str, _: &[usize]| {
            (name == "m.a").then_some(Rates {
                lr: 0.1,
                decay: 0.01,
            })
        };
        let mut optimizer = optimizer(Rule::AdamW);
        let student = optimizer.step("m.", module(), &mut sum, &norms, &rates);
        assert_eq!(optimizer.state().len(), 3);
        let teacher = ema(module(), &student, 0.9);
        vec![weights(&student), weights(&teacher)]
    };
    alike(&moved(&device), &moved(&Device::flex()));
}

/// To 16 bits and back.
#[cfg(feature = "gpu")]
#[test]
fn casts_of_a_gpu_are_those_of_the_cpu() {
    let device = Device::default();
    let mut formats = vec![DType::BF16, DType::F16];
    formats.retain(|format| device.supports_dtype(*format));
    assert!(!formats.is_empty());
    for half in formats {
        let rounded = |device: &Device| -> Vec<Vec<f32>> {
            let rounded = cast_all(cast_all(tensors(0, device), half), DType::F32);
            { rounded.into_iter() }
                .map(|values| values.into_data().iter::<f32>().collect())
                .collect()
        };
        alike(&rounded(&device), &rounded(&Device::flex()));
    }
}

/// Compares lists of values within the rounding of f32.
#[cfg(feature = "gpu")]
fn alike(found: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_eq!(found.len(), expected.len());
    for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.len(), expected.len(), "values of {place}");
        let pairs = found.iter().zip(expected);
        let apart = pairs.map(|(one, other)| (one - other).abs() / other.abs().max(1.0));
        let worst = apart.fold(0.0, f32::max);
        assert!(worst < 2e-6, "{place}: {worst}");
    }
}
