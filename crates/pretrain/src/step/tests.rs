use std::path::Path;

use clasp_data::image::Filter;
use clasp_model::backbone::BackboneConfig;
use clasp_model::{Precision, named, unfused};
use clasp_run::collective::ThreadRank;
use clasp_weights::backbone::{BackboneMeta, save_backbone};

use super::*;
use crate::batch::noise_batch;
use crate::objective::LOSSES;
use crate::plan::machine;
use crate::recipe::{Method, PretrainRecipe};

const TINY: [&str; 14] = [
    "model.backbone=swin-pico",
    "model.drop_path=0",
    "views.global_size=[64, 32]",
    "views.local_size=[32, 32]",
    "views.local=2",
    "projection_head.prototypes=64",
    "projection_head.hidden_dim=32",
    "projection_head.bottleneck_dim=16",
    "run.batch=8",
    "run.steps=20",
    "run.replicas=1",
    "optimizer.warmup_epochs=0",
    "optimizer.freeze_last_layer=0",
    "teacher.momentum=0.9",
];

fn trainer(more: &[&str]) -> Pretrainer {
    trainer_on(more, Arc::new(Local))
}

fn trainer_on(more: &[&str], collective: Arc<dyn Collective>) -> Pretrainer {
    let set: Vec<String> = TINY
        .iter()
        .chain(more)
        .map(|text| (*text).to_owned())
        .collect();
    let recipe = PretrainRecipe::parse("", "test", &set).unwrap();
    let vocabulary = match recipe.method {
        Method::Dino => None,
        Method::Solider => Some(Vocabulary::kmeans()),
        Method::Clasp => Some(Vocabulary::standard().unwrap()),
    };
    let plan = recipe.plan(80, machine(&Device::flex(), 1)).unwrap();
    Pretrainer::on_rank(plan, vocabulary, &Device::flex(), collective).unwrap()
}

/// Samples of noise.
fn samples(trainer: &Pretrainer) -> Vec<ImageSample> {
    let (recipe, vocabulary) = (&trainer.plan.recipe, trainer.vocabulary());
    noise_batch(recipe, trainer.grid(), vocabulary, 1)
}

fn numbers(tensor: &Tensor<1>) -> Vec<f32> {
    tensor.to_data().iter::<f32>().collect()
}

/// Largest difference between two sets of gradients, over the largest gradient.
fn difference(a: &Gradients, b: &Gradients) -> f32 {
    assert!(a.keys().eq(b.keys()));
    let (mut apart, mut largest) = (0.0_f32, 0.0_f32);
    for (a, b) in a.values().zip(b.values()) {
        for (a, b) in numbers(a).iter().zip(numbers(b)) {
            apart = apart.max((a - b).abs());
            largest = largest.max(a.abs());
        }
    }
    apart / largest
}

/// The parameter whose gradients are farthest apart, for their own length.
fn farthest<'a>(a: &'a Gradients, b: &Gradients) -> (&'a str, f64) {
    assert!(a.keys().eq(b.keys()));
    let difference = |(name, a): (&String, &Tensor<1>)| {
        assert_eq!(a.dims(), b[name].dims(), "{name}");
        (name.clone(), a.clone() - b[name].clone())
    };
    let [lengths, apart] = [Norms::of(a), Norms::of(&a.iter().map(difference).collect())];
    let apart = |name: &'a String| {
        let [length, apart] = [&lengths, &apart].map(|norms| norms.total_of(|it| it == name));
        // Equal gradients of zeros are no distance apart.
        (name.as_str(), apart / length.max(f64::MIN_POSITIVE))
    };
    { a.keys().map(apart) }
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap()
}

#[test]
fn parts_and_replicas_give_the_gradient_of_the_whole_batch() {
    for (set, change) in [
        (&["method=dino"][..], "run.accumulate=4"),
        (&["method=dino"], "run.replicas=2"),
        (&["method=solider"], "run.replicas=2"),
        (&["method=clasp"], "run.replicas=4"),
        (&["method=clasp", "model.adapter=merged"], "run.replicas=2"),
        (
            &[
                "method=dino",
                "views.global_size=[128, 64]",
                "loss.ibot_weight=1",
                "loss.mask_probability=1",
            ],
            "run.replicas=2",
        ),
        (
            &[
                "method=clasp",
                "model.backbone=vit-pico",
                "loss.ibot_weight=0.5",
            ],
            "run.accumulate=2",
        ),
    ] {
        // Sinkhorn–Knopp must use all samples of the step, not those of a part.
        for centering in ["center", "sinkhorn"] {
            let centering = [
                &format!("loss.centering={centering}"),
                "projection_head.prototypes=16",
            ];
            let set = [set, &centering].concat();
            let whole = trainer(&set);
            let samples = samples(&whole);
            let expected = whole.batch_gradients(&samples, true).unwrap();
            let divided = trainer(&[&set[..], &[change]].concat());
            let found = divided.batch_gradients(&samples, true).unwrap();
            let apart = difference(&expected.gradients, &found.gradients);
            assert!(apart < 1e-4, "{set:?} {change}: {apart}");
            for (expected, found) in [
                (expected.center, found.center),
                (expected.target_sum, found.target_sum),
                (expected.patch_center, found.patch_center),
            ] {
                let apart: f32 = (expected - found).abs().max().into_scalar();
                assert!(apart < 1e-5, "{set:?} {change}: {apart}");
            }
            for (name, expected) in &expected.of_batch {
                let apart = (expected - found.of_batch[name]).abs();
                assert!(apart < 1e-4, "{set:?} {change}: {name}");
            }
            let losses = LOSSES.iter().map(|term| Measurement::Loss(term.name));
            for loss in losses.chain([Measurement::Total]) {
                let [one, other] =
                    [&expected.measurements, &found.measurements].map(|m| m.mean(loss));
                let apart = one.zip(other).map_or(0.0, |(one, other)| one - other);
                assert_eq!(one.is_some(), other.is_some(), "{set:?} {change}: {loss:?}");
                assert!(apart.abs() < 1e-4, "{set:?} {change}: {loss:?}");
            }
        }
    }
}

#[test]
fn gradient_checkpointing_does_not_change_gradients() {
    for method in ["method=dino", "method=solider", "method=clasp"] {
        let plain = trainer(&[method, "model.drop_path=0.2"]);
        let again = trainer(&[
            method,
            "model.drop_path=0.2",
            "run.gradient_checkpointing=true",
        ]);
        let samples = samples(&plain);
        let [expected, found] = [&plain, &again].map(|one| one.gradients(&samples).unwrap());
        assert_eq!(found.0, expected.0, "{method}");
        // The fused operations of the CPU recompute exactly; the graph of Burn differs in rounding.
        for (name, gradient) in &expected.1 {
            let same = numbers(gradient) == numbers(&found.1[name]);
            assert!(same, "{method}: `{name}`");
        }
        let found = unfused(|| again.gradients(&samples).unwrap());
        let apart = difference(&expected.1, &found.1);
        assert!(apart < 1e-4, "{method}: {apart}");
        // Burn's `fork` leaves parameters without it, so that nothing was recomputed.
        let graph = Device::flex().autodiff().gradient_checkpointing();
        let forked = unfused(|| StudentGraph::new(&again.student, true, &graph));
        let weight = forked.student.trunk.dino.last_layer.weight_v.val();
        let strategy = graph.gradient_checkpointing_strategy();
        assert_eq!(weight.gradient_checkpointing_strategy(), strategy);
    }
}

/// Each method cuts its graph in other places. Two ranks, whose graph is cut, have the gradients of one
/// process with two replicas: to the bit, and with the graph of other devices, whose checkpoints are in
/// both parts of it, to rounding.
#[test]
fn gradients_of_a_graph_that_is_cut_are_those_of_the_whole() {
    let of_ranks = |set: &[&str], samples: &[ImageSample], fused: bool, precision: Precision| {
        let ranks = ThreadRank::on_each(2, |rank| {
            let mut one = trainer_on(set, Arc::new(rank));
            one.plan.precision = precision;
            let places = one.share().places();
            let own: Vec<_> = places.iter().map(|at| samples[*at].clone()).collect();
            let work = || one.gradients(&own).unwrap();
            if fused { work() } else { unfused(work) }
        });
        ranks.unwrap()
    };
    for more in [
        &["method=dino"][..],
        &["method=dino", "loss.ibot_weight=1"],
        &["method=solider"],
        &["method=clasp", "run.accumulate=2"],
        &[
            "method=clasp",
            "loss.ibot_weight=1",
            "loss.detach_shared=true",
        ],
    ] {
        let set = [more, &["model.drop_path=0.2", "run.replicas=2"]].concat();
        let mut whole = trainer(&set);
        let samples = samples(&whole);
        let (loss, expected) = whole.gradients(&samples).unwrap();
        for (found_loss, found) in of_ranks(&set, &samples, true, Precision::F32) {
            assert!(
                (found_loss - loss).abs() < 1e-6,
                "{more:?}: {found_loss} {loss}"
            );
            let apart = difference(&expected, &found);
            assert!(apart < 1e-6, "{more:?}: {apart}");
        }
        let again = [&set[..], &["run.gradient_checkpointing=true"]].concat();
        for (_, found) in of_ranks(&again, &samples, false, Precision::F32) {
            let apart = difference(&expected, &found);
            assert!(apart < 1e-4, "{more:?}: {apart}");
        }
        whole.plan.precision = Precision::Bf16;
        let (_, expected) = unfused(|| whole.gradients(&samples).unwrap());
        for (_, found) in of_ranks(&again, &samples, false, Precision::Bf16) {
            let (name, apart) = farthest(&expected, &found);
            assert!(apart < 1e-5, "{more:?} in bf16: {name}: {apart}");
        }
    }
}

/// With the fused operations of the CPU, and with the graph of other devices.
#[test]
fn a_run_in_bf16_learns_as_one_in_f32() {
    let losses = |precision, fused: bool| {
        let set = ["method=clasp", "optimizer.lr=0.002", "model.drop_path=0.1"];
        let mut trainer = trainer(&set);
        trainer.plan.precision = precision;
        let samples = samples(&trainer);
        let mut step = || trainer.step(&samples, false).unwrap().metrics["loss/total"];
        let mut steps = || (0..15).map(|_| step()).collect::<Vec<f64>>();
        if fused { steps() } else { unfused(steps) }
    };
    for fused in [true, false] {
        let [full, half] = [Precision::F32, Precision::Bf16].map(|one| losses(one, fused));
        assert!(full[14] < 0.9 * full[0], "nothing is learned: {full:?}");
        assert_ne!(full, half);
        let first = full[0];
        let apart = |full: &f64, half: &f64| (full - half).abs() / first;
        for (full, half) in full.iter().zip(&half) {
            assert!(apart(full, half) < 0.02, "{full} and {half}");
        }
    }
    // Weights and moments stay f32, so that small steps are not lost.
    let mut trainer = trainer(&["method=clasp"]);
    trainer.plan.precision = Precision::Bf16;
    let samples = samples(&trainer);
    unfused(|| trainer.step(&samples, false).unwrap());
    named::visit(&trainer.student, &mut |name, _, value| {
        assert_eq!(value.dtype(), burn::tensor::DType::F32, "{name}");
    });
}

#[test]
fn every_head_moves_and_the_teacher_follows_without_gradients() {
    for method in ["dino", "solider", "clasp"] {
        let mut trainer = trainer(&[&format!("method={method}")]);
        let samples = samples(&trainer);
        let values = |module: &Student| {
            let mut values = std::collections::BTreeMap::new();
            named::visit(module, &mut |name, _, value| {
                values.insert(name.to_owned(), numbers(&value));
            });
            values
        };
        let before = values(&trainer.student);
        trainer.step(&samples, false).unwrap();
        let after = values(&trainer.student);
        for (name, old) in &before {
            let head = ["trunk.dino.", "part.", "attribute."]
                .iter()
                .any(|head| name.starts_with(head));
            let moved = *old != after[name];
            // The gain of the last layer is frozen at 1.
            assert!(
                !head || moved != name.ends_with("weight_g"),
                "{method}: `{name}` moved: {moved}"
            );
        }
        assert_eq!(
            after.keys().any(|name| name.starts_with("part.")),
            method != "dino"
        );
        assert_eq!(
            after.keys().any(|name| name.starts_with("attribute.")),
            method == "clasp"
        );

        // momentum 0.9 of the old values, which were the student's first.
        named::visit(&trainer.teacher, &mut |name, _, value| {
            let name = format!("trunk.{name}");
            for ((teacher, old), new) in numbers(&value)
                .iter()
                .zip(&before[&name])
                .zip(&after[&name])
            {
                assert!((teacher - (0.9 * old + 0.1 * new)).abs() < 1e-6, "{name}");
            }
        });
        assert!(
            !trainer
                .teacher
                .dino
                .last_layer
                .weight_v
                .val()
                .is_require_grad()
        );
        assert!(!trainer.teacher.dino.last_layer.weight_v.val().is_autodiff());

        // All parameters move.
        trainer.step(&samples, false).unwrap();
        trainer.step(&samples, false).unwrap();
        let last = values(&trainer.student);
        let still: Vec<_> = before
            .keys()
            .filter(|name| before[*name] == last[*name])
            .collect();
        assert_eq!(still, ["trunk.dino.last_layer.weight_g"], "{method}");
    }
}

/// Gradients of the parameters whose names `of` accepts.
fn of(gradients: &Gradients, of: impl Fn(&str) -> bool) -> Gradients {
    let kept = gradients.iter().filter(|(name, _)| of(name));
    kept.map(|(name, gradient)| (name.clone(), gradient.clone()))
        .collect()
}

fn norm(gradients: &Gradients) -> f64 {
    Norms::of(gradients).total()
}

#[test]
fn student_and_teacher_share_no_random_prompt() {
    // Recognizing a random prompt that both share would lower the DINO loss. However much prompts
    // change features, teacher targets and student logits are those of the identity prompt alone.
    let mut trainer = trainer(&[
        "method=clasp",
        "loss.part_weight=0",
        "loss.attribute_weight=0",
    ]);
    let samples = samples(&trainer);
    let expected = trainer.batch_gradients(&samples, false).unwrap();
    let is_prompt_table = |name: &str| name.contains(".moe.prompts.");
    let student = trainer.student.clone();
    trainer.student = named::map(student, &mut |name, shape, value| {
        if !is_prompt_table(name) {
            return value;
        }
        // The rows of part and attribute.
        let width = shape[1];
        let rows = value.reshape([shape[0], width]);
        let first = rows.clone().narrow(0, 0, 1);
        let rest = rows.narrow(0, 1, shape[0] - 1) + 3.0;
        Tensor::cat(vec![first, rest], 0).reshape([shape[0] * width])
    });
    trainer.teacher = trainer.student.trunk.valid();
    let found = trainer.batch_gradients(&samples, false).unwrap();
    let dino = |batch: &BatchGradients| batch.measurements.mean(Measurement::Loss(DINO));
    assert_eq!(dino(&expected), dino(&found));
}

#[test]
fn each_loss_trains_its_own_prompt() {
    let gradients = |set: &[&str]| {
        let trainer = trainer(&[&["method=clasp", "loss.identity_label_weight=0"], set].concat());
        let samples = samples(&trainer);
        trainer.gradients(&samples).unwrap().1
    };
    // Rows of the prompt table that have a gradient.
    let rows = |gradients: &Gradients| -> Vec<bool> {
        let gradient =
            numbers(&gradients["trunk.backbone.layers.3.blocks.1.moe.prompts.hidden_scale"]);
        let row = |row: &[f32]| row.iter().any(|value| *value != 0.0);
        gradient.chunks(gradient.len() / 3).map(row).collect()
    };
    let none = [
        "loss.dino_weight=0",
        "loss.part_weight=0",
        "loss.attribute_weight=0",
    ];
    for (prompt, key) in ["dino", "part", "attribute"].iter().enumerate() {
        let set: Vec<String> = { none.iter() }
            .filter(|other| !other.contains(key))
            .map(|text| (*text).to_owned())
            .collect();
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        let expected: Vec<bool> = (0..3).map(|row| row == prompt).collect();
        assert_eq!(rows(&gradients(&set)), expected, "{key}");
    }
    // λ: label losses train the identity prompt too.
    let set = [
        "loss.dino_weight=0",
        "loss.attribute_weight=0",
        "loss.identity_label_weight=0.5",
    ];
    assert_eq!(rows(&gradients(&set)), [true, true, false]);
}

#[test]
fn losses_without_weight_are_not_computed() {
    let outcome = |set: &[&str]| {
        let mut trainer = trainer(&[&["method=clasp"], set].concat());
        let before = numbers(&trainer.center.clone().reshape([-1]));
        let samples = samples(&trainer);
        let gradients = trainer.gradients(&samples).unwrap().1;
        let metrics = trainer.step(&samples, true).unwrap().metrics;
        let moved = numbers(&trainer.center.clone().reshape([-1])) != before;
        let trained = |part: &str| gradients.keys().any(|name| name.starts_with(part));
        let of_dino = [
            trained("trunk.dino."),
            metrics.contains_key("loss/dino"),
            moved,
        ];
        let of_parts = [trained("part."), metrics.contains_key("loss/part")];
        let of_attributes = [
            trained("attribute."),
            metrics.contains_key("loss/attribute"),
        ];
        assert!(metrics["features/std"] > 0.0);
        (of_dino, of_parts, of_attributes)
    };
    assert_eq!(outcome(&[]), ([true; 3], [true; 2], [true; 2]));
    let found = outcome(&["loss.dino_weight=0"]);
    assert_eq!(found, ([false; 3], [true; 2], [true; 2]));
    let found = outcome(&["loss.part_weight=0"]);
    assert_eq!(found, ([true; 3], [false; 2], [true; 2]));
    let found = outcome(&["loss.attribute_weight=0"]);
    assert_eq!(found, ([true; 3], [true; 2], [false; 2]));
    // The other heads start alike.
    let start = |set: &str| {
        let student = trainer(&["method=clasp", set]).student;
        numbers(&student.attribute.unwrap().fc2.weight.val().reshape([-1]))
    };
    assert_eq!(start("loss.part_weight=0"), start("loss.part_weight=1"));
}

#[test]
fn the_label_losses_on_identity_features_count_lambda_times() {
    let total = |lambda: &str| {
        let trainer = trainer(&[
            "method=clasp",
            &format!("loss.identity_label_weight={lambda}"),
        ]);
        let batch = trainer.batch_gradients(&samples(&trainer), false).unwrap();
        let of = |measurement| batch.measurements.mean(measurement).unwrap_or(0.0);
        let labels =
            of(Measurement::Loss("part_identity")) + of(Measurement::Loss("attribute_identity"));
        (of(Measurement::Total), labels)
    };
    let ([none, half, whole], labels) = (["0", "0.5", "1"].map(|l| total(l).0), total("1").1);
    assert!((half - none - 0.5 * labels).abs() < 1e-4);
    assert!((whole - none - labels).abs() < 1e-4);
    assert_eq!(total("0").1, 0.0);
}

#[test]
fn detached_distillation_leaves_the_shared_blocks_to_labels() {
    let shared = |name: &str| name.contains("backbone.layers.0") || name.contains("patch_embed");
    let gradients = |set: &[&str]| {
        let trainer = trainer(&[&["method=clasp", "loss.detach_shared=true"], set].concat());
        let samples = samples(&trainer);
        trainer.gradients(&samples).unwrap().1
    };
    let [one, more] = ["1", "3"].map(|weight| gradients(&[&format!("loss.dino_weight={weight}")]));
    let [of_shared, of_last] = [&one, &more].map(|gradients| {
        let last = |name: &str| name.contains("layers.3.blocks.1");
        [norm(&of(gradients, shared)), norm(&of(gradients, last))]
    });
    assert!(of_shared[0] > 0.0);
    assert_eq!(difference(&of(&one, shared), &of(&more, shared)), 0.0);
    assert!((of_shared[1] - of_last[1]).abs() > 1e-3 * of_shared[1]);
}

/// The file of a frozen teacher of another architecture, size and normalization than the student.
fn frozen_teacher_file(folder: &Path) -> String {
    let config = BackboneConfig::named("vit-pico")
        .unwrap()
        .for_images([96, 48]);
    let backbone = config.init(&mut rng_for(5, 0, "teacher"), &Device::flex());
    let meta = BackboneMeta {
        stage: "import".to_owned(),
        clasp: String::new(),
        config,
        height: 96,
        width: 48,
        mean: [0.5; 3],
        std: [0.5, 0.25, 0.5],
        filter: Filter::Bicubic,
        method: String::new(),
        heads: Vec::new(),
        prompts: Vec::new(),
        step: 0,
        vocabulary: String::new(),
        recipe: String::new(),
        licenses: Vec::new(),
        origin: String::new(),
    };
    let path = folder.join("teacher.safetensors");
    save_backbone(&path, &backbone, &meta).unwrap();
    format!("distillation.teacher={}", path.display())
}

#[test]
fn distillation_trains_the_student_and_leaves_its_teacher() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = frozen_teacher_file(folder.path());
    let set = [
        &teacher,
        "method=dino",
        "loss.dino_weight=0",
        "distillation.dense=0.5",
        "optimizer.lr=0.003",
    ];
    let mut trainer = trainer(&set);
    assert_eq!(
        trainer.plan.recipe.distillation.size,
        crate::recipe::Auto::Value([96, 48])
    );
    let samples = samples(&trainer);
    let values = |trainer: &Pretrainer| {
        let mut values = std::collections::BTreeMap::new();
        let teacher = trainer.frozen_teacher.as_ref().unwrap();
        named::visit(teacher.backbone(), &mut |name, _, value| {
            assert!(!value.is_autodiff(), "{name}");
            values.insert(name.to_owned(), numbers(&value));
        });
        values
    };
    let before = values(&trainer);
    let batch = trainer.batch_gradients(&samples, false).unwrap();
    let mean = |name| batch.measurements.mean(Measurement::Loss(name)).unwrap();
    let (pooled, dense) = (mean("distill_pooled"), mean("distill_dense"));
    let total = batch.measurements.mean(Measurement::Total).unwrap();
    assert!((total - (pooled + 0.5 * dense)).abs() < 1e-6);
    // Gradients reach the projections and all of the backbone, and no projection head.
    let gradients = &batch.gradients;
    for part in [
        "distillation.pooled.",
        "distillation.dense.",
        "trunk.backbone.patch_embed.",
    ] {
        assert!(
            norm(&of(gradients, |name| name.starts_with(part))) > 0.0,
            "{part}"
        );
    }
    assert_eq!(
        norm(&of(gradients, |name| name.starts_with("trunk.dino."))),
        0.0
    );

    let first = trainer.step(&samples, false).unwrap().metrics;
    assert!((first["loss/distill_pooled"] - pooled).abs() < 1e-6);
    let mut last = first.clone();
    for _ in 0..15 {
        last = trainer.step(&samples, false).unwrap().metrics;
    }
    for loss in ["loss/distill_pooled", "loss/distill_dense"] {
        assert!(last[loss] < 0.8 * first[loss], "{loss}: {first:?} {last:?}");
    }
    assert_eq!(values(&trainer), before);
}

#[test]
fn distillation_goes_with_every_method_and_replicas() {
    let folder = tempfile::tempdir().unwrap();
    let teacher = frozen_teacher_file(folder.path());
    for method in ["dino", "solider", "clasp"] {
        let method = format!("method={method}");
        let set = [
            &method,
            &teacher,
            "loss.detach_shared=true",
            "distillation.dense=1",
        ];
        let whole = trainer(&set);
        let samples = samples(&whole);
        let expected = whole.gradients(&samples).unwrap();
        let divided = trainer(&[&set[..], &["run.replicas=2"]].concat());
        let found = divided.gradients(&samples).unwrap();
        let apart = difference(&expected.1, &found.1);
        assert!(apart < 1e-4, "{method}: {apart}");
        // `detach_shared` is of self-distillation, not of the frozen teacher.
        let first = of(&expected.1, |name| name.contains("patch_embed"));
        assert!(norm(&first) > 0.0, "{method}");
    }
}

#[test]
fn the_teachers_temperature_warms_up() {
    let trainer = trainer(&[
        "method=dino",
        "loss.teacher_temperature=0.04",
        "loss.teacher_temperature_start=0.02",
        "loss.teacher_temperature_warmup_epochs=1",
    ]);
    // 80 images, 8 a step.
    let at = |step| ScheduledValues::at(&trainer.plan, step).teacher_temperature;
    assert_eq!(at(0), 0.02);
    assert!((at(5) - 0.03).abs() < 1e-12);
    assert_eq!([at(10), at(19)], [0.04, 0.04]);
}

#[test]
fn a_loss_that_is_not_finite_is_named_and_changes_nothing() {
    let mut trainer = trainer(&["method=dino"]);
    let mut samples = samples(&trainer);
    samples[3].views.global[0].pixels[5] = f32::NAN;
    let Some(StepError::NonFinite(error)) = trainer.step(&samples, false).err() else {
        panic!("the step was done");
    };
    assert_eq!((error.quantity.as_str(), trainer.step), ("dino loss", 0));
    let mut finite = true;
    named::visit(&trainer.student, &mut |_, _, value| {
        finite &= numbers(&value).iter().all(|v| v.is_finite())
    });
    assert!(finite);
}

#[test]
fn solider_masks_one_part() {
    let trainer = trainer(&["method=solider"]);
    let samples = samples(&trainer);
    let inputs = BatchTensors::new(&samples, trainer.grid(), Method::Solider, &Device::flex());
    let mut rng = rng_for(0, 0, "drop path");
    let backbone = &trainer.student.trunk.backbone;
    let plain = trainer
        .student
        .forward(backbone, &inputs, None, &mut rng, &mut |shared| shared)
        .parts
        .unwrap()
        .own;
    let both = trainer
        .student
        .forward(backbone, &inputs, Some(2), &mut rng, &mut |shared| shared)
        .parts
        .unwrap()
        .own;
    assert_eq!((plain.dims()[0], both.dims()[0]), (16, 32));
    let hidden: Vec<_> = (0..20)
        .map(|step| part_to_mask(Method::Solider, 4, &mut rng_for(0, step, "hidden part")))
        .collect();
    assert!(
        (1..4).all(|part| hidden.contains(&Some(part))),
        "{hidden:?}"
    );
    assert!(part_to_mask(Method::Clasp, 4, &mut rng).is_none());
}

#[test]
fn masked_patches_and_spread_features_are_learned() {
    for (method, backbone) in [
        ("method=dino", "model.backbone=vit-pico"),
        ("method=clasp", "model.backbone=swin-pico"),
        ("method=solider", "model.backbone=swin-pico"),
    ] {
        let set = [
            method,
            backbone,
            "views.global_size=[128, 64]",
            "loss.ibot_weight=1",
            "loss.koleo_weight=0.1",
            "loss.mask_probability=1",
            "optimizer.lr=0.002",
        ];
        let mut trainer = trainer(&set);
        let samples = samples(&trainer);
        let plain = self::trainer(&set[..3]);
        let [with, without] = [&trainer, &plain].map(|one| one.gradients(&samples).unwrap().1);
        let added: Vec<&String> = with
            .keys()
            .filter(|name| !without.contains_key(*name))
            .collect();
        assert_eq!(added, ["trunk.backbone.mask_token"], "{method}");
        let mut losses = Vec::new();
        for _ in 0..8 {
            let metrics = trainer.step(&samples, true).unwrap().metrics;
            assert!(metrics["loss/koleo"].is_finite());
            losses.push(metrics["loss/ibot"]);
        }
        assert!(losses[7] < 0.95 * losses[0], "{method}: {losses:?}");
        let center: f32 = trainer.patch_center.clone().abs().max().into_scalar();
        assert!(center > 0.0);
        let metrics = plain
            .batch_gradients(&samples, false)
            .unwrap()
            .measurements
            .metrics();
        assert!(!metrics.contains_key("loss/ibot") && !metrics.contains_key("loss/koleo"));
    }
}

#[test]
fn masks_leave_labels_their_whole_views() {
    // With nothing but label losses, masked patches change no gradient.
    let set = [
        "method=clasp",
        "model.backbone=vit-pico",
        "loss.dino_weight=0",
        "loss.ibot_weight=1e-30",
        "loss.mask_probability=1",
    ];
    let masked = trainer(&set);
    let plain = trainer(&[set[0], set[1], set[2]]);
    let samples = samples(&plain);
    let [with, without] = [&masked, &plain].map(|one| one.gradients(&samples).unwrap().1);
    assert!(with.contains_key("trunk.backbone.mask_token"));
    for (name, gradient) in without
        .iter()
        .filter(|(name, _)| !name.contains("trunk.dino"))
    {
        let apart = (with[name].clone() - gradient.clone()).abs().max();
        let apart: f32 = apart.into_scalar();
        assert!(apart < 1e-6, "{name}: {apart}");
    }
}
