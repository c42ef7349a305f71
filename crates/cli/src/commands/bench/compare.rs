//! `clasp bench compare`: the results of a device against those of the CPU.
//!
//! The same weights and the same noise go through a forward pass, the losses and their gradients,
//! and a step of the optimizer and the teacher, by the CPU's fused operations in f32 and as the device
//! computes: by clasp's kernels for GPUs, or by Burn's graph alone with `--graph`. With `--device cpu`
//! it is the graph on the CPU, which compares the two ways of computing alone.

use std::collections::BTreeMap;

use anyhow::Result;
use burn::tensor::Device;
use clasp_data::vocabulary::Vocabulary;
use clasp_model::{Precision, named, unfused};
use clasp_pretrain::batch::noise_batch;
use clasp_pretrain::dataset::ImageSample;
use clasp_pretrain::step::Pretrainer;
use clasp_pretrain::{PretrainRecipe, machine};
use serde_json::json;

use super::apart::{farthest, largest, values};
use super::measurement::say;
use super::operations;
use crate::args::BenchCompare;
use crate::commands::print_text;
use crate::{Outcome, device};

/// A recipe with every loss, whose step takes a second on one thread.
const TINY: [&str; 15] = [
    "method=clasp",
    "model.drop_path=0.1",
    "views.global_size=[64, 32]",
    "views.local_size=[32, 16]",
    "views.local=2",
    "projection_head.prototypes=256",
    "projection_head.hidden_dim=64",
    "projection_head.bottleneck_dim=32",
    "run.batch=6",
    "run.steps=10",
    "run.replicas=1",
    "optimizer.lr=0.01",
    "teacher.momentum=0.5",
    "optimizer.warmup_epochs=0.0",
    "optimizer.freeze_last_layer=0.0",
];

/// Compares `device` with the CPU.
pub fn run(options: &BenchCompare, device: &Device) -> Result<Outcome> {
    if options.operations {
        return operation_by_operation(device);
    }
    let cpu = Device::flex();
    let mut of_cpu = options.clone();
    // What the device is compared with, whatever it computes in.
    of_cpu.set.push("run.precision=f32".to_owned());
    let one = way(&of_cpu, &cpu)?;
    let other = if *device == cpu || options.graph {
        unfused(|| way(options, device))
    } else {
        way(options, device)
    }?;
    let found = differences(&one, &other);
    let name = device::name(device);
    let products = Products::of(&name, other.precision);
    let limits = products.limits();
    let mut line = json!({
        "work": "compare", "model": options.model, "precision": other.precision, "device": name, "loss": other.loss,
        "products": products.describe(), "worst_gradient": worst_gradient(&one, &other),
    });
    let mut too_far = Vec::new();
    for ((name, value), limit) in found.iter().zip(limits) {
        line[format!("{name}_apart")] = json!(value);
        line["limits"][*name] = json!(limit);
        // Not `value > limit`: what is not a number is too far too.
        if !matches!(value.partial_cmp(&limit), Some(std::cmp::Ordering::Less)) {
            too_far.push(format!(
                "{name} {value:.2e} apart, expected below {limit:e}"
            ));
        }
    }
    print_text(&line.to_string())?;
    if too_far.is_empty() {
        return Ok(Outcome::Done);
    }
    say(&format!("different: {}", too_far.join("; ")));
    Ok(Outcome::CheckFailed)
}

/// Compares single operations.
fn operation_by_operation(device: &Device) -> Result<Outcome> {
    let found = operations::differences(device);
    let mut line = json!({ "work": "compare operations", "device": device::name(device) });
    for (name, apart) in &found {
        line[*name] = json!(apart);
    }
    print_text(&line.to_string())?;
    Ok(Outcome::Done)
}

/// The results of one implementation.
struct Way {
    precision: Precision,
    /// Pooled features of the teacher: [views · batch, channels].
    features: Vec<f32>,
    loss: f64,
    gradients: BTreeMap<String, Vec<f32>>,
    /// Parameters before the step and after it.
    student: [Vec<Vec<f32>>; 2],
    teacher: [Vec<Vec<f32>>; 2],
}

fn way(options: &BenchCompare, device: &Device) -> Result<Way> {
    let mut set: Vec<String> = TINY.map(str::to_owned).to_vec();
    set.push(format!("model.backbone={}", options.model));
    set.extend(options.set.iter().cloned());
    let recipe = PretrainRecipe::parse("", "bench compare", &set)?;
    let batch = recipe.run.batch;
    let plan = recipe.plan(10 * batch, machine(device, 1))?;
    let precision = plan.precision;
    let mut trainer = Pretrainer::new(plan, Some(Vocabulary::standard()?), device)?;
    let recipe = trainer.plan.recipe.clone();
    let items: Vec<ImageSample> = noise_batch(&recipe, trainer.grid(), trainer.vocabulary(), 1);
    let features = values(trainer.features(&items));
    let (loss, gradients) = trainer.gradients(&items)?;
    let before = (parameters(&trainer.student), parameters(&trainer.teacher));
    trainer.step(&items, true)?;
    Ok(Way {
        precision,
        features,
        loss,
        gradients: { gradients.into_iter() }
            .map(|(name, gradient)| (name, values(gradient)))
            .collect(),
        student: [before.0, parameters(&trainer.student)],
        teacher: [before.1, parameters(&trainer.teacher)],
    })
}

fn parameters<M: burn::module::Module>(module: &M) -> Vec<Vec<f32>> {
    let mut all = Vec::new();
    named::visit(module, &mut |_, _, value| all.push(values(value)));
    all
}

/// Names of what is compared and how far it is apart: features and gradients by the largest
/// difference over the largest value of their tensor, the loss by the difference over it, the step
/// by the mean difference over the mean step. (AdamW's first step is nearly as long for a gradient
/// of nearly 0 as for others, and noise decides where it goes.)
fn differences(one: &Way, other: &Way) -> [(&'static str, f64); 5] {
    let gradients = if one.gradients.keys().eq(other.gradients.keys()) {
        gradient_differences(one, other)
            .map(|(_, apart)| apart)
            .fold(0.0, f64::max)
    } else {
        f64::INFINITY
    };
    let moved = |of: fn(&Way) -> &[Vec<Vec<f32>>; 2]| {
        let ([before, after], [_, after_other]) = (of(one), of(other));
        distance(after, after_other) / distance(before, after)
    };
    [
        (
            "features",
            farthest(&one.features, &other.features) / largest(&one.features),
        ),
        ("loss", (one.loss - other.loss).abs() / one.loss.abs()),
        ("gradients", gradients),
        ("step", moved(|way| &way.student)),
        ("teacher", moved(|way| &way.teacher)),
    ]
}

/// How far each gradient is apart, by name.
fn gradient_differences<'a>(one: &'a Way, other: &'a Way) -> impl Iterator<Item = (&'a str, f64)> {
    let steepest = { one.gradients.values() }
        .map(|gradient| largest(gradient))
        .fold(0.0, f64::max);
    { one.gradients.iter().zip(other.gradients.values()) }
        // What is nearly 0 in all of a tensor, as the keys' biases, is noise.
        .map(move |((name, a), b)| {
            let apart = farthest(a, b) / largest(a).max(1e-3 * steepest);
            (name.as_str(), apart)
        })
}

/// Name of the gradient that is farthest apart.
fn worst_gradient(one: &Way, other: &Way) -> Option<String> {
    gradient_differences(one, other)
        .max_by(|(_, a), (_, b)| a.total_cmp(b))
        .map(|(name, _)| name.to_owned())
}

/// How a device may multiply, from which follows how far its results may be from the CPU's.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Products {
    /// f32, in another order of sums.
    F32,
    /// f32 rounded to 11 significant bits.
    Tf32,
    /// 8 significant bits.
    Bf16,
}

impl Products {
    /// Those of a device that [`device::name`] calls so.
    fn of(device: &str, precision: Precision) -> Self {
        let kind = device.split(':').next().unwrap_or_default();
        match precision {
            Precision::Bf16 => Self::Bf16,
            // Which kernel is the fastest, and so whether it rounds, is measured on the device.
            Precision::F32 if matches!(kind, "cuda" | "rocm") => Self::Tf32,
            Precision::F32 => Self::F32,
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "f32, which may be rounded to tf32; attention without gradient to f16",
            Self::Bf16 => "bf16",
        }
    }

    /// What [`differences`] must stay below.
    fn limits(self) -> [f64; 5] {
        match self {
            Self::F32 => [1e-5, 1e-5, 5e-5, 1e-4, 1e-4],
            Self::Tf32 => [2e-3, 1e-3, 2e-2, 5e-2, 5e-2],
            Self::Bf16 => [5e-2, 2e-2, 0.3, 0.5, 0.5],
        }
    }
}

/// Sum of the absolute differences.
fn distance(one: &[Vec<f32>], other: &[Vec<f32>]) -> f64 {
    let pairs = one.iter().flatten().zip(other.iter().flatten());
    pairs.map(|(a, b)| f64::from((a - b).abs())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> BenchCompare {
        BenchCompare {
            model: "swin-pico".to_owned(),
            set: Vec::new(),
            operations: false,
            graph: false,
        }
    }

    #[test]
    fn limits_follow_from_how_a_device_may_multiply() {
        let of = |device: &str, precision| Products::of(device, precision);
        assert_eq!(of("vulkan:0", Precision::F32), Products::F32);
        assert_eq!(of("cuda:1", Precision::F32), Products::Tf32);
        assert_eq!(of("cuda:1", Precision::Bf16), Products::Bf16);
        let ordered = [Products::F32, Products::Tf32, Products::Bf16].map(Products::limits);
        for pair in ordered.windows(2) {
            assert!(
                pair[0]
                    .iter()
                    .zip(pair[1])
                    .all(|(tight, wide)| *tight < wide)
            );
        }
    }

    #[test]
    fn single_operations_of_the_cpu_are_finite_and_equal_themselves() {
        for (name, apart) in operations::differences(&Device::flex()) {
            assert_eq!(apart, 0.0, "{name}");
        }
    }

    #[test]
    fn the_graph_of_other_devices_is_the_fused_operations_on_the_cpu() {
        let cpu = Device::flex();
        let one = way(&options(), &cpu).unwrap();
        let other = unfused(|| way(&options(), &cpu)).unwrap();
        for ((name, value), limit) in differences(&one, &other).iter().zip(Products::F32.limits()) {
            assert!(value < &(0.1 * limit), "{name}: {value}");
        }
        // What differs is seen.
        let mut wrong = way(&options(), &cpu).unwrap();
        if let Some(mut entry) = wrong.gradients.first_entry() {
            let most = largest(entry.get());
            entry.get_mut()[0] += 0.1 * most as f32;
        }
        assert!(differences(&one, &wrong)[2].1 > 0.09);
        wrong.student[1][0][0] = f32::NAN;
        assert!(differences(&one, &wrong)[3].1.is_nan());
        wrong.gradients.pop_first();
        assert_eq!(differences(&one, &wrong)[2].1, f64::INFINITY);
    }
}
