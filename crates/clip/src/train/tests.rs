//! Training on pictures of six colors.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::{Device, Tensor, TensorData};
use clasp_data::vocabulary::IGNORE;
use clasp_model::Replicas;
use clasp_model::clip::{ClipConfig, TextConfig, VisionConfig};
use clasp_model::tokenizer::tokenize_flat;
use clasp_run::RunError;
use clasp_run::recipe::Auto;
use clasp_weights::checkpoint;
use clasp_weights::state::{HostTensor, state_dict};
use fs_err as fs;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng};

use super::batch::{draw_patches, patch_classes};
use super::gradients::ClipStep;
use super::objectives::{AttributeObjective, PartObjective, own_values};
use super::tensors::{host, integers};
use super::*;

const SIZE: usize = 16;
const SQUARE: [usize; 2] = [SIZE, SIZE];

fn tiny() -> ClipConfig {
    ClipConfig {
        embed: 16,
        vision: VisionConfig {
            image: [SIZE, SIZE],
            patch: 8,
            width: 16,
            layers: 1,
            heads: 2,
            hidden: 32,
        },
        text: TextConfig {
            context: 8,
            width: 16,
            layers: 1,
            heads: 2,
            hidden: 32,
            ..ClipConfig::mini().text
        },
        ..ClipConfig::mini()
    }
}

fn config() -> ClipTrainConfig {
    let stage = |steps, patches| ResolutionStage {
        size: SQUARE,
        steps,
        patches,
    };
    ClipTrainConfig {
        stages: vec![stage(6, 0.5), stage(6, 1.0)],
        optimizer: ClipOptimizerConfig {
            warmup_steps: 2,
            lr: 3e-3,
            ..ClipOptimizerConfig::default()
        },
        run: ClipRunConfig {
            batch: 9,
            replicas: Auto::Value(2),
            log_every: 4,
            evaluate_every: 1000,
            save_every: 5,
            ..ClipRunConfig::default()
        },
        ..ClipTrainConfig::default()
    }
}

/// A picture of one of six colors, a little noisy, and its name.
fn pair(index: u64, [height, width]: [usize; 2]) -> TrainingPair {
    const COLORS: [(&str, [f32; 3]); 6] = [
        ("red", [1.0, -1.0, -1.0]),
        ("green", [-1.0, 1.0, -1.0]),
        ("blue", [-1.0, -1.0, 1.0]),
        ("yellow", [1.0, 1.0, -1.0]),
        ("white", [1.0, 1.0, 1.0]),
        ("black", [-1.0, -1.0, -1.0]),
    ];
    let mut rng = ChaCha8Rng::seed_from_u64(index);
    let (name, color) = COLORS[(rng.next_u64() % 6) as usize];
    let noise = |rng: &mut ChaCha8Rng| (rng.next_u32() as f32 / u32::MAX as f32 - 0.5) * 0.4;
    let image = color
        .iter()
        .flat_map(|&value| std::iter::repeat_n(value, height * width))
        .map(|value| value + noise(&mut rng))
        .collect();
    // The left half is the wall, of the class 1 or 2 by its color; the right half is unknown.
    let class = 1 + u8::from(name < "red");
    TrainingPair {
        image,
        caption: format!("a {name} wall"),
        parts: Some(
            (0..height * width)
                .map(|place| {
                    if place % width < width / 2 {
                        class
                    } else {
                        IGNORE
                    }
                })
                .collect(),
        ),
        // Of every third picture nothing else is known.
        values: match index % 3 {
            0 => Vec::new(),
            _ => vec![class - 1, IGNORE],
        },
    }
}

fn fresh() -> Clip {
    tiny().init(&mut ChaCha8Rng::seed_from_u64(5), &Device::flex())
}

fn words() -> ClassPhrases {
    let texts = |texts: &[&str]| texts.iter().map(|text| vec![(*text).to_owned()]).collect();
    ClassPhrases {
        parts: texts(&["nothing", "something bright", "something dark"]),
        attributes: vec![texts(&["light", "dark"]), texts(&["a", "b", "c"])],
        places: vec![vec![1, 2]],
    }
}

/// A run on two threads that is stopped after a step.
fn attempt(
    config: &ClipTrainConfig,
    pair: &(dyn Fn(u64, [usize; 2]) -> TrainingPair + Sync),
    phrases: &ClassPhrases,
    folder: &Path,
    resume: bool,
    stop_after: Option<u64>,
) -> Result<TrainedClip, ClipTrainError> {
    let stop = AtomicBool::new(false);
    let mut control = Control {
        device_name: "cpu",
        threads: 2,
        stop: &stop,
        on_event: &mut |event| {
            if let Event::Step { step, .. } = event
                && Some(step) == stop_after
            {
                stop.store(true, Ordering::Relaxed);
            }
        },
    };
    let data = ClipTrainData {
        pair,
        phrases,
        held_out: &[],
    };
    train(config, fresh(), &data, folder, resume, &mut control)
}

fn run(config: &ClipTrainConfig, folder: &Path, stop: Option<u64>) -> TrainedClip {
    attempt(config, &pair, &words(), folder, false, stop).unwrap()
}

/// The metrics of each line of a log.
fn log(folder: &Path) -> Vec<BTreeMap<String, f64>> {
    let log = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let lines = log.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn rows(values: &[[f32; 2]]) -> Tensor<2> {
    let flat: Vec<f32> = values.iter().flatten().copied().collect();
    Tensor::from_data(TensorData::new(flat, [values.len(), 2]), &Device::flex())
}

#[test]
fn more_replicas_than_pairs_are_as_many_as_pairs() {
    let of = |replicas| {
        let mut config = config();
        config.run.batch = 3;
        config.run.replicas = replicas;
        config.resolved(&tiny(), 100).unwrap().run.replicas
    };
    assert_eq!([of(Auto::Auto), of(Auto::Value(50))], [Auto::Value(3); 2]);
    assert_eq!(of(Auto::Value(2)), Auto::Value(2));
}

#[test]
fn the_loss_equals_clips_where_captions_differ() {
    let (images, texts) = ([[1.0, 0.0], [0.6, 0.8]], [[0.8, 0.6], [0.0, 1.0]]);
    let scale = Tensor::<1>::from_data([2.0f32], &Device::flex());
    let (loss, floor) = contrastive_loss(rows(&images), rows(&texts), scale, &[0, 1]);
    // Cosines: [[0.8, 0.0], [0.96, 0.8]]; twice that are the logits.
    let entropy = |right: f32, wrong: f32| ((right - wrong).exp().recip() + 1.0).ln();
    let expected = [(1.6, 0.0), (1.6, 1.92), (1.6, 1.92), (1.6, 0.0)];
    let expected: f32 = expected.iter().map(|(r, w)| entropy(*r, *w)).sum::<f32>() / 4.0;
    assert!((loss.into_scalar::<f32>() - expected).abs() < 1e-5);
    assert_eq!(floor, 0.0);
}

#[test]
fn equal_captions_are_positives_of_one_another() {
    let images = rows(&[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]);
    let scale = Tensor::<1>::from_data([100.0f32], &Device::flex());
    let (loss, floor) = contrastive_loss(images.clone(), images, scale, &[4, 4, 7]);
    let loss = loss.into_scalar::<f32>();
    assert!((floor - 2.0 / 3.0 * 2f32.ln()).abs() < 1e-6);
    assert!((loss - floor).abs() < 1e-5, "{loss} against {floor}");
}

#[test]
fn a_token_matches_any_phrase_of_its_class() {
    let tokens = rows(&[[1.0, 0.0], [0.0, 1.0]]);
    // Cosines with the first token: 0.1, 0.08, 0; with the second: about 0.995, 0.997, 0.1.
    let phrases = rows(&[[0.1, 0.994_987], [0.08, 0.996_795], [0.0, 0.1]]);
    let of = |classes: &[usize], weights: &[f32]| {
        let classes_of_phrases = [0, 0, 1];
        part_loss(
            tokens.clone(),
            phrases.clone(),
            classes,
            &classes_of_phrases,
            weights,
        )
        .into_scalar::<f32>()
    };
    let [a, b, c] = [5f32, 4.0, 0.0].map(f32::exp);
    let expected = -((a + b) / (a + b + c)).ln();
    assert!((of(&[0, 0], &[1.0, 0.0]) - expected).abs() < 1e-5);
    let expected = -(c / (a + b + c)).ln();
    assert!((of(&[1, 0], &[1.0, 0.0]) - expected).abs() < 1e-4);
    assert!(of(&[0, 0], &[0.0, 1.0]) < 1e-6);
    assert!(of(&[0, 1], &[0.0, 1.0]) > 40.0);
}

#[test]
fn the_attribute_loss_compares_the_values_of_one_attribute() {
    let images = rows(&[[1.0, 0.0], [0.0, 1.0]]);
    let phrases = rows(&[[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [0.8, 0.6], [1.0, 0.0]]);
    let of = |truth: &[u8]| {
        let scale = Tensor::<1>::from_data([2.0f32], &Device::flex());
        attribute_loss(images.clone(), phrases.clone(), scale, &[2, 3], truth).into_scalar::<f32>()
    };
    let softmax = |logits: &[f32], at: usize| {
        let sum: f32 = logits.iter().map(|logit| logit.exp()).sum();
        -(logits[at].exp() / sum).ln()
    };
    let first = softmax(&[2.0, 1.2], 1);
    let second = softmax(&[2.0, 1.2, 0.0], 0);
    assert!((of(&[1, 255, 255, 255]) - first).abs() < 1e-5);
    assert!((of(&[1, 255, 255, 0]) - first - second).abs() < 1e-5);
    assert_eq!(of(&[255, 255, 2, 3]).abs(), 0.0);
}

#[test]
fn phrases_of_values_separate_without_images() {
    assert_eq!(own_values(&[2, 1]), [0, 255, 1, 255, 255, 0]);
    // Images of noise: nothing can be learned from them, and yet the phrases of two values part.
    let noise = |index: u64, size: [usize; 2]| {
        let mut rng = ChaCha8Rng::seed_from_u64(index);
        let mut number = || rng.next_u32() as f32 / u32::MAX as f32 - 0.5;
        let image: Vec<f32> = (0..3 * size[0] * size[1]).map(|_| number()).collect();
        let value = u8::from(number() > 0.0);
        TrainingPair {
            image,
            caption: "noise".to_owned(),
            parts: None,
            values: vec![value],
        }
    };
    let phrases = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    let hats = phrases(&["a person with a hat", "a hat"]);
    let none = phrases(&["a person without a hat", "no hat"]);
    let words = ClassPhrases {
        parts: Vec::new(),
        attributes: vec![vec![hats, none]],
        places: Vec::new(),
    };
    let cosine = |clip: &Clip| {
        let texts = ["a person with a hat", "a person without a hat"];
        let (tokens, columns) = tokenize_flat(&texts, 8);
        let features = clip.encode_text(integers(tokens, [2, columns], &Device::flex()));
        host(features.clone().matmul(features.transpose()))[1]
    };
    let folder = tempfile::tempdir().unwrap();
    let config = ClipTrainConfig {
        stages: vec![ResolutionStage {
            size: SQUARE,
            steps: 60,
            patches: 1.0,
        }],
        ..config()
    };
    let trained = attempt(&config, &noise, &words, folder.path(), false, None);
    let (before, after) = (cosine(&fresh()), cosine(&trained.unwrap().clip));
    assert!(
        before > 0.8 && after < 0.5,
        "{before} before, {after} after"
    );
}

#[test]
fn a_patch_has_the_class_of_most_of_it() {
    let mut parts = vec![3u8; 16];
    parts[..2].fill(7);
    (parts[8], parts[9], parts[12]) = (1, 1, 1);
    // Of the upper left patch, half each; of the lower left, three quarters.
    assert_eq!(patch_classes(Some(&parts), [4, 4], 2), [3, 3, 1, 3]);
    // The same pixels as a picture of two rows: columns 0 and 1 of both rows make the first patch.
    assert_eq!(patch_classes(Some(&parts), [2, 8], 2), [1, 3, 3, 3]);
    assert_eq!(patch_classes(None, [4, 4], 2), [255; 4]);
    // Four classes with a quarter each: nothing covers two fifths.
    assert_eq!(patch_classes(Some(&[1, 2, 3, 4]), [2, 2], 2), [255]);
    parts.fill(IGNORE);
    assert_eq!(patch_classes(Some(&parts), [4, 4], 2), [255; 4]);
}

#[test]
fn the_gradient_does_not_depend_on_the_split() {
    let device = Device::flex();
    let clip = tiny().init(&mut ChaCha8Rng::seed_from_u64(1), &device);
    let phrases = words();
    let data = ClipTrainData {
        pair: &pair,
        phrases: &phrases,
        held_out: &[],
    };
    let batch = draw(&data, 0, &config(), &tiny(), 2).unwrap();
    let seen = [0, 3];
    let part = PartObjective::new(&config(), 0, &phrases.parts, &batch, Some(&seen), &tiny());
    let attribute = AttributeObjective::new(&config(), 0, &phrases, &batch, Some(&seen), &tiny());
    let of_tokens = attribute.as_ref().map(|step| step.token_known.clone());
    assert!(of_tokens.is_some_and(|known| known[0] > 0 && known[1] == 0));
    assert!(part.is_some() && attribute.is_some());
    let step = ClipStep {
        batch: &batch,
        patches: Some(&seen),
        part: part.as_ref(),
        attribute: attribute.as_ref(),
        device: &device,
    };
    let of = |count| {
        let found = step.gradients(&clip, &Replicas::new(count).unwrap(), count);
        let attribute = found.attribute;
        let losses = [
            found.contrastive,
            found.part,
            attribute.total,
            attribute.images,
        ];
        (losses, found.gradients)
    };
    let (losses, whole) = of(1);
    for threads in [2, 3, 4] {
        let (others, split) = of(threads);
        for (loss, other) in losses.iter().zip(others) {
            assert!((loss - other).abs() < 1e-5, "{loss} and {other}");
        }
        assert_eq!(whole.len(), split.len());
        for (name, gradient) in &whole {
            let scale = gradient.clone().abs().max().into_scalar::<f32>().max(1e-3);
            let difference = gradient.clone() - split[name].clone();
            let difference = difference.abs().max().into_scalar::<f32>();
            assert!(difference < 1e-4 * scale, "{name}: {difference} of {scale}");
        }
    }
    // Every parameter learns.
    assert_eq!(whole.len(), state_dict(&clip).len());
}

#[test]
fn six_colors_are_learned() {
    let folder = tempfile::tempdir().unwrap();
    let config = ClipTrainConfig {
        stages: vec![ResolutionStage {
            size: SQUARE,
            steps: 60,
            patches: 1.0,
        }],
        run: ClipRunConfig {
            batch: 24,
            ..config().run
        },
        ..config()
    };
    let clip = run(&config, folder.path(), None).clip;
    let held_out: Vec<TrainingPair> = (1000..1030).map(|index| pair(index, SQUARE)).collect();
    let found = retrieval(&clip, &held_out, SQUARE, &Device::flex());
    let lines = log(folder.path());
    let losses: Vec<[f64; 2]> = { lines.iter() }
        .map(|line| ["loss/part", "loss/attribute_images"].map(|name| line[name]))
        .collect();
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    for (first, last) in first.iter().zip(last) {
        assert!(*first > 0.5 && last < 0.2, "{losses:?}");
    }
    assert_eq!((found.image_to_text, found.text_to_image), (1.0, 1.0));
    assert!(found.chance > 0.1 && found.chance < 0.3, "{found:?}");
}

#[test]
fn a_stopped_run_resumes_to_the_same_result() {
    let folder = tempfile::tempdir().unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    let expected = run(&config(), &whole, None);
    let stopped = run(&config(), &parts, Some(4));
    assert_eq!((stopped.run.steps, stopped.run.finished), (4, false));
    let found = attempt(&config(), &pair, &words(), &parts, true, None).unwrap();
    assert_eq!((found.run.steps, found.run.finished), (12, true));
    assert_eq!(state_dict(&found.clip), state_dict(&expected.clip));
    let read = |run: &TrainedClip| checkpoint::read(&run.run.checkpoint).unwrap();
    assert_eq!(read(&expected), read(&found));
    let steps: Vec<f64> = log(&parts).iter().map(|line| line["step"]).collect();
    assert_eq!(steps, [1.0, 4.0, 8.0, 12.0]);
    let text = fs::read_to_string(parts.join("run.toml")).unwrap();
    let resolved: ClipTrainConfig = clasp_run::recipe::parse(&text, "run.toml", &[]).unwrap();
    assert_eq!(resolved, config());
    assert!(run_exists(&parts), "a run is not started over");
}

fn run_exists(folder: &Path) -> bool {
    let again = attempt(&config(), &pair, &words(), folder, false, None);
    matches!(again, Err(ClipTrainError::Run(RunError::Exists { .. })))
}

#[test]
fn a_checkpoint_of_another_run_is_refused_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = run(&config(), folder.path(), Some(4)).run.checkpoint;
    let before = fs::read(&path).unwrap();
    let resumed = |config: &ClipTrainConfig, words: &ClassPhrases| {
        attempt(config, &pair, words, folder.path(), true, None)
            .unwrap_err()
            .to_string()
    };
    let mut other = config();
    other.run.batch = 10;
    let error = resumed(&other, &words());
    assert!(
        error.contains("`run.batch`: expected 10, found 9"),
        "{error}"
    );
    assert!(resumed(&config(), &ClassPhrases::default()).contains("`phrases`"));
    fs::write(&path, &before[..before.len() / 2]).unwrap();
    assert!(resumed(&config(), &words()).contains("not a whole safetensors file"));
    let (mut state, metadata) = {
        fs::write(&path, &before).unwrap();
        checkpoint::read(&path).unwrap()
    };
    state.insert(
        "optimizer.ln_final.weight.first".into(),
        HostTensor {
            shape: vec![1],
            data: vec![0.0],
        },
    );
    checkpoint::write(&path, &state, &metadata).unwrap();
    assert!(resumed(&config(), &words()).contains("ln_final.weight"));
}

#[test]
fn settings_are_checked_before_files_are_made() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("run");
    let stages = |size, patches| {
        vec![ResolutionStage {
            size,
            steps: 1,
            patches,
        }]
    };
    let changes: [fn(&mut ClipTrainConfig); 4] = [
        |config| config.run.batch = 1,
        |config| config.stages = Vec::new(),
        |config| config.optimizer.lr = f64::NAN,
        |config| config.run.log_every = 0,
    ];
    let mut wrong: Vec<ClipTrainConfig> = { changes.iter() }
        .map(|change| {
            let mut config = config();
            change(&mut config);
            config
        })
        .collect();
    for stages in [stages([16, 4], 1.0), stages(SQUARE, 0.0)] {
        wrong.push(ClipTrainConfig { stages, ..config() });
    }
    for config in wrong {
        let error = attempt(&config, &pair, &words(), &folder, false, None).unwrap_err();
        let is_value = matches!(error, ClipTrainError::Run(RunError::Value(_)));
        assert!(is_value, "{error}");
    }
    assert!(!folder.exists());
}

#[test]
fn wrong_pairs_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let attempt = |name: &str, data: &(dyn Fn(u64, [usize; 2]) -> TrainingPair + Sync)| {
        attempt(
            &config(),
            data,
            &words(),
            &folder.path().join(name),
            false,
            None,
        )
        .unwrap_err()
    };
    assert!(matches!(
        attempt("size", &|index, _| pair(index, [8, 8])),
        ClipTrainError::Pair {
            expected: 768,
            found: 192,
            ..
        }
    ));
    let broken = |index, size| {
        let mut pair = pair(index, size);
        pair.image.fill(f32::NAN);
        pair
    };
    let error = attempt("nan", &broken);
    let ClipTrainError::Run(RunError::NonFinite { step: 1, keys, .. }) = &error else {
        panic!("{error}")
    };
    let keys = fs::read_to_string(keys).unwrap();
    assert!(keys.starts_with("pair 0: a ") && keys.lines().count() == 9);
    let panics = |_, _| -> TrainingPair { panic!("a test's data") };
    assert!(matches!(attempt("panic", &panics), ClipTrainError::Worker));
}

#[test]
fn the_learning_rate_follows_its_schedule_and_stages_their_order() {
    let config = config();
    assert_eq!(config.learning_rate(0), 1.5e-3);
    assert_eq!(config.learning_rate(1), 3e-3);
    assert_eq!(config.learning_rate(2), 3e-3);
    assert!((config.learning_rate(7) - 1.5e-3).abs() < 1e-12);
    assert!(config.learning_rate(11) > 0.0 && config.learning_rate(12) < 1e-12);
    assert_eq!(config.stage(5).patches, 0.5);
    assert_eq!(
        (config.stage(6).patches, config.stage(99).patches),
        (1.0, 1.0)
    );
    let patches = draw_patches(0, 3, &config.stages[0], &tiny()).unwrap();
    assert_eq!(patches.len(), 2);
    assert_eq!(draw_patches(0, 9, &config.stages[1], &tiny()), None);
}
