//! Which features each loss is computed on, with every view under all prompts and with each under one.

use clasp_model::prompt::ATTRIBUTE;

use super::*;

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
        let trainer = trainer(&[&["method=clasp", "loss.other_prompt_weight=0"], set].concat());
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
        "loss.other_prompt_weight=0.5",
    ];
    assert_eq!(rows(&gradients(&set)), [true, true, false]);
}

#[test]
fn the_label_losses_on_identity_features_count_lambda_times() {
    let total = |lambda: &str| {
        let trainer = trainer(&[
            "method=clasp",
            &format!("loss.other_prompt_weight={lambda}"),
        ]);
        let batch = trainer.batch_gradients(&samples(&trainer), false).unwrap();
        let of = |measurement| batch.measurements.mean(measurement).unwrap_or(0.0);
        let labels = of(Measurement::Loss("part_other")) + of(Measurement::Loss("attribute_other"));
        (of(Measurement::Total), labels)
    };
    let ([none, half, whole], labels) = (["0", "0.5", "1"].map(|l| total(l).0), total("1").1);
    assert!((half - none - 0.5 * labels).abs() < 1e-4);
    assert!((whole - none - labels).abs() < 1e-4);
    assert_eq!(total("0").1, 0.0);
}

/// With the prompts' tables at zero, features are the same under every prompt: the mean loss of the views
/// under the own prompt and of the others together is that of all views, and with λ both are added.
#[test]
fn one_prompt_for_each_view_has_the_losses_of_all_views() {
    let of = |set: &[&str]| {
        let trainer = trainer(&[&["method=clasp", "run.batch=7"], set].concat());
        let samples = samples(&trainer);
        trainer
            .batch_gradients(&samples, true)
            .unwrap()
            .measurements
    };
    let one = "loss.prompts_per_view=one";
    let (all, found) = (of(&[]), of(&[one, "loss.other_prompt_weight=0.5"]));
    let mean = |of: &Measurements, loss| of.mean(Measurement::Loss(loss)).unwrap();
    let mut total = mean(&found, DINO);
    // Of 14 rows half are under each prompt.
    for (own, other) in [("part", "part_other"), ("attribute", "attribute_other")] {
        let views = (mean(&found, own) + mean(&found, other)) / 2.0;
        let expected = mean(&all, own);
        assert!((views - expected).abs() < 1e-5, "{own}: {views} {expected}");
        assert_ne!(mean(&found, own), mean(&found, other));
        total += mean(&found, own) + 0.5 * mean(&found, other);
    }
    let found = found.mean(Measurement::Total).unwrap();
    assert!((total - found).abs() < 1e-5, "{total} {found}");
}

#[test]
fn one_prompt_for_each_view_trains_every_prompt_that_a_loss_is_computed_under() {
    // The gradient of the prompts' rows in a table.
    let rows = |set: &[&str]| -> [Vec<f32>; 3] {
        let one = ["method=clasp", "loss.prompts_per_view=one"];
        let trainer = trainer(&[&one[..], set].concat());
        let (_, gradients) = trainer.gradients(&samples(&trainer)).unwrap();
        let table = "trunk.backbone.layers.3.blocks.1.moe.prompts.hidden_scale";
        let gradient = numbers(&gradients[table]);
        let rows: Vec<Vec<f32>> = { gradient.chunks(gradient.len() / 3) }
            .map(<[f32]>::to_vec)
            .collect();
        rows.try_into().unwrap()
    };
    let trained = |set: &[&str]| rows(set).map(|row| row.iter().any(|value| *value != 0.0));
    // Self-distillation is of the local views, under identity.
    let no_dino = "loss.dino_weight=0";
    assert_eq!(trained(&[]), [true; 3]);
    assert_eq!(trained(&[no_dino]), [false, true, true]);
    // With one label all views are under its prompt.
    let one = [no_dino, "loss.attribute_weight=0"];
    assert_eq!(trained(&one), [false, true, false]);
    // λ: whether the part loss reaches the views under attribute.
    for (lambda, is_reached) in [("0", false), ("1", true)] {
        let lambda = format!("loss.other_prompt_weight={lambda}");
        let [one, more] = ["1", "3"].map(|weight| {
            let weight = format!("loss.part_weight={weight}");
            rows(&[&lambda, &weight])[ATTRIBUTE].clone()
        });
        assert_eq!(one != more, is_reached, "{lambda}");
    }
}

/// What is measured only is measured there too: the distance that prompts make.
#[test]
fn one_prompt_for_each_view_measures_what_prompts_change() {
    let mut trainer = trainer(&["method=clasp", "loss.prompts_per_view=one"]);
    let samples = samples(&trainer);
    let distances = |metrics: &Metrics| {
        ["features/prompt_distance", "features/image_distance"].map(|name| metrics[name])
    };
    let first = trainer.step(&samples, true).unwrap().metrics;
    let [prompts, images] = distances(&first);
    assert!(prompts.abs() < 1e-6 && images > 1e-3, "{prompts} {images}");
    let unobserved = trainer.step(&samples, false).unwrap().metrics;
    assert!(!unobserved.contains_key("features/prompt_distance"));
    let later = trainer.step(&samples, true).unwrap().metrics;
    assert!(distances(&later)[0] > prompts);
}
