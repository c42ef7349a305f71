//! Overfit tests: every task learns a few synthetic people, and its model is the same after saving
//! and loading.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use burn::tensor::{Device, Distribution, Tensor};
use clasp_model::backbone::Backbone;
use clasp_synth::{SynthConfig, write_dataset};
use clasp_tasks::PassProgress;
use clasp_tasks::attributes::AttributeTask;
use clasp_tasks::detection::DetectionTask;
use clasp_tasks::finetune::{Control, FinetuneRecipe, train};
use clasp_tasks::parsing::ParsingTask;
use clasp_tasks::pose::PoseTask;
use clasp_tasks::reid::ReidTask;
use clasp_tasks::search::SearchTask;
use clasp_tasks::task::{
    DownstreamTask, Evaluate, Evaluation, FinetunedModel, Inference, Objective, Predictor,
    SplitChoice, Task, shard,
};
use clasp_weights::checkpoint;
use clasp_weights::onnx;
use clasp_weights::state::HostTensor;

#[path = "finetune/ranks.rs"]
mod ranks;
#[path = "finetune/stops.rs"]
mod stops;
#[path = "finetune/untrusted.rs"]
mod untrusted;

/// Six people by two cameras, and scenes.
fn drawn() -> PathBuf {
    static DRAWN: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = DRAWN.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let config = SynthConfig {
            train_identities: 6,
            test_identities: 2,
            cameras: 2,
            shots: 2,
            scenes: 8,
            height: 64,
            width: 32,
            scene_height: 128,
            scene_width: 192,
            ..SynthConfig::default()
        };
        write_dataset(folder.path(), &config, &mut |_, _| {}).unwrap();
        folder
    });
    folder.path().to_owned()
}

/// No augmentation, a small network, constant rate; `more` are further lines of the recipe.
fn recipe<T: Task>(
    data: &Path,
    size: [usize; 2],
    steps: u64,
    batch: usize,
    more: &str,
) -> FinetuneRecipe<T::Config> {
    let text = format!(
        "[data]\npath = {data:?}\n[model]\nbackbone = \"swin-pico\"\nsize = {size:?}\ndrop_path = 0.0\n\
         [optimizer]\nlr = 3e-3\nweight_decay = 0.0\nlr_schedule = \"constant\"\nclip_grad = 1.0\n\
         [run]\nsteps = {steps}\nbatch = {batch}\ncheckpoint_selection = \"last\"\nlog_every = 1\n[task]\n{more}"
    );
    FinetuneRecipe::parse(&text, "test", &[]).unwrap()
}

/// Trains, loads the model, and evaluates it on a split.
fn trained<T: DownstreamTask>(
    recipe: &FinetuneRecipe<T::Config>,
    split: &str,
) -> (f64, Evaluation, FinetunedModel<T>) {
    let run = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    let progress = |_: PassProgress| ControlFlow::Continue(());
    let mut control = Control {
        device_name: "cpu",
        threads: 2,
        stop: &stop,
        on_event: &mut |_| {},
    };
    let folder = run.path().join("run");
    let summary = train::<T>(recipe, &folder, false, &Device::flex(), &mut control).unwrap();
    let model = FinetunedModel::<T>::load(&run.path().join("run"), &Device::flex()).unwrap();
    exports_as_onnx(&model, run.path());
    let eval = model.task.clone();
    let eval = eval
        .open_test(&recipe.data.path, &SplitChoice::named(split))
        .unwrap();
    let inference = Inference {
        batch: 8,
        threads: 2,
        predictions: true,
        progress: &progress,
    };
    let report = model.task.evaluate(&model, &eval, &inference).unwrap();
    shards_give_the_same(&model, &eval, split, &inference, &report);
    (summary.run.metrics["loss/total"], report, model)
}

/// Evaluates in three shards, whose results go through files, and compares with `whole`.
fn shards_give_the_same<T: Evaluate>(
    model: &FinetunedModel<T>,
    data: &T::TestSet,
    split: &str,
    inference: &Inference<'_>,
    whole: &Evaluation,
) {
    let folder = tempfile::tempdir().unwrap();
    let mut files: Vec<PathBuf> = Vec::new();
    for index in 0..3 {
        let units = shard::units_of::<T>(data, inference.batch, [index, 3]);
        let results = model.task.results(model, data, units.clone(), inference);
        files.insert(0, folder.path().join(format!("{index}.jsonl")));
        shard::write(&files[0], model, data, split, &units, &results.unwrap()).unwrap();
    }
    let results = shard::read(&files, model, data, split).unwrap();
    let joined = model.task.summarize(model, data, results, true).unwrap();
    let text = |evaluation: &Evaluation| serde_json::to_string(evaluation).unwrap();
    assert_eq!(text(&joined), text(whole), "{}", T::NAME);
    assert!(joined.predictions == whole.predictions, "{}", T::NAME);

    // What does not belong together, or is damaged, is an error that names file and place.
    let error = |files: &[PathBuf], split: &str| match shard::read(files, model, data, split) {
        Ok(_) => panic!("{}: accepted {files:?}", T::NAME),
        Err(error) => error.to_string(),
    };
    assert!(error(&files[1..], split).contains("a further shard"));
    assert!(error(&files[..2], split).contains("the shard from number 0"));
    assert!(error(&files, "other").contains("split other"));
    let last = fs_err::read_to_string(&files[0]).unwrap();
    let lines: Vec<&str> = last.lines().collect();
    let mut extreme: Vec<String> = ["null", "[]", "{}", "[[1e39]]", "1", ""]
        .map(str::to_owned)
        .to_vec();
    // The numbers of a valid line made huge, negative, or fewer.
    let line = lines[1];
    extreme.extend([
        line.replacen('.', "9e300", 1),
        line.replacen('.', "9e30", 1),
    ]);
    extreme.extend(["score", "mask"].map(|key| {
        let value = |text: &str| text.split(',').next().map_or(0, str::len);
        match line.split_once(&format!("\"{key}\":")) {
            Some((before, after)) => {
                let bad = if key == "mask" { "\"\"}" } else { "1e300" };
                format!("{before}\"{key}\":{bad}{}", &after[value(after)..])
            }
            None => "null".to_owned(),
        }
    }));
    for damaged in extreme.iter().filter(|damaged| *damaged != line) {
        let text = [lines[0], damaged]
            .into_iter()
            .chain(lines[2..].iter().copied());
        fs_err::write(&files[0], text.collect::<Vec<_>>().join("\n")).unwrap();
        let error = match shard::read(&files, model, data, split) {
            // In a scene there may be nobody.
            Ok(_) => {
                let is_valid = damaged == "[]" || damaged.contains("9e30");
                assert!(is_valid && T::MOST_AT_ONCE == 1, "{}: {damaged}", T::NAME);
                continue;
            }
            Err(error) => error.to_string(),
        };
        assert!(
            error.contains("2.jsonl: expected line ") || damaged == "[]",
            "{}: {damaged}: {error}",
            T::NAME
        );
        assert!(error.len() < 1000, "{}: {error}", T::NAME);
    }
    fs_err::write(&files[0], lines[..lines.len() - 1].join("\n")).unwrap();
    assert!(error(&files, split).contains("as its first line says"));
}

/// Exports the model with its head, for any batch size, the prompts folded in; the export fails
/// unless another engine agrees.
fn exports_as_onnx<T: Objective>(model: &FinetunedModel<T>, folder: &Path) {
    type Both<T> = (Backbone, <T as Objective>::Head);
    let forward = |(backbone, head): &Both<T>, images: Tensor<4>, prompt_weights: Tensor<2>| {
        model
            .task
            .outputs(head, backbone.forward(images, prompt_weights, None))
    };
    let network = (model.backbone.clone(), model.head.clone());
    let folded = (
        model.backbone.clone().fold(model.prompt),
        model.head.clone(),
    );
    let reference = |images, prompt_weights| forward(&network, images, prompt_weights);
    let options = onnx::OnnxOptions {
        size: [model.preprocess.height, model.preprocess.width],
        batch: None,
        prompt: onnx::Prompt::Folded(model.prompt),
        bytes: false,
        mean: model.preprocess.mean,
        std: model.preprocess.std,
        fp16: false,
        external: false,
        metadata: BTreeMap::new(),
        samples: (String::new(), Vec::new()),
    };
    let path = folder.join("model.onnx");
    let exported = onnx::export(&path, &folded, &forward, &reference, &options);
    let exported = exported.unwrap_or_else(|error| panic!("{}: {error}", T::NAME));
    assert_eq!(exported.checks.len(), 2);
    // For `tests/golden/onnx_runtime.py` of clasp-weights.
    let Ok(kept) = std::env::var("CLASP_ONNX") else {
        return;
    };
    let kept = |ending: &str| Path::new(&kept).join(format!("{}-{ending}", T::NAME));
    fs_err::copy(&path, kept("head.onnx")).unwrap();
    for batch in [1, 8] {
        let [height, width] = options.size;
        let images = Tensor::<4>::random(
            [batch, 3, height, width],
            Distribution::Normal(0.0, 1.0),
            &Device::flex(),
        );
        let prompt_weights = model.prompt.tensor(&Device::flex());
        let mut outputs = reference(images.clone(), prompt_weights);
        outputs.push(("input images".to_owned(), images.into()));
        let state = outputs.into_iter().map(|(name, output)| {
            let data = output.into_data();
            let array = HostTensor {
                shape: data.shape().to_vec(),
                data: data.iter::<f32>().collect(),
            };
            (name, array)
        });
        let path = kept(&format!("head.{batch}.safetensors"));
        checkpoint::write(&path, &state.collect(), &BTreeMap::new()).unwrap();
    }
}

fn value(evaluation: &Evaluation, name: &str) -> f64 {
    let scores = &evaluation.scores;
    scores
        .value(name)
        .unwrap_or_else(|| panic!("no {name} in {:?}", scores.metrics))
}

/// A prediction and a picture of it, for an image of the data.
fn predicts<T: Predictor>(model: &FinetunedModel<T>, image: &Path) {
    let bytes = fs_err::read(image).unwrap();
    let image = clasp_data::image::decode(&bytes, &clasp_data::image::Limits::default()).unwrap();
    let prediction = model.task.predict(model, &image).unwrap();
    assert!(prediction.is_object());
    let picture = model.task.draw(&image, &prediction);
    assert!(picture.width >= image.width && picture.height >= image.height);
}

fn crop() -> PathBuf {
    let folder = drawn().join("market/bounding_box_train");
    fs_err::read_dir(folder)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path()
}

fn scene() -> PathBuf {
    let folder = drawn().join("scenes/images");
    fs_err::read_dir(folder)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path()
}

#[test]
fn reid_overfits() {
    // The images to train on are searched for one another.
    let folder = tempfile::tempdir().unwrap();
    for split in ["bounding_box_train", "query", "bounding_box_test"] {
        fs_err::create_dir_all(folder.path().join(split)).unwrap();
        for image in fs_err::read_dir(drawn().join("market/bounding_box_train")).unwrap() {
            let path = image.unwrap().path();
            let name = path.file_name().unwrap();
            fs_err::copy(&path, folder.path().join(split).join(name)).unwrap();
        }
    }
    let more =
        "instances = 2\nflip = 0.0\npadding = 0\nrandom_erasing = 0.0\nfeature = \"after\"\n";
    let recipe = recipe::<ReidTask>(folder.path(), [64, 32], 100, 8, more);
    let (loss, report, model) = trained::<ReidTask>(&recipe, "test");
    assert!(loss < 0.4, "{loss}");
    assert!(
        report.protocol.contains("after the neck"),
        "{}",
        report.protocol
    );
    let map = value(&report, "mAP");
    assert!(map > 0.9, "{loss} {map}");
    predicts(&model, &crop());
}

#[test]
fn attributes_overfit() {
    let more = "flip = 0.0\npadding = 0\n";
    let recipe = recipe::<AttributeTask>(&drawn(), [64, 32], 120, 24, more);
    let (loss, report, model) = trained::<AttributeTask>(&recipe, "train");
    let accuracy = value(&report, "accuracy");
    assert!(accuracy > 0.9, "{loss} {accuracy}");
    predicts(&model, &crop());
}

#[test]
fn parsing_overfits_with_either_head() {
    for (head, width, steps) in [("light", 32, 60), ("ce2p", 16, 130)] {
        let more = format!(
            "head = \"{head}\"\nwidth = {width}\nflip = 0.0\nscale_std = 0.0\nrotation_std = 0.0\nflip_test = false\n"
        );
        let recipe = recipe::<ParsingTask>(&drawn(), [64, 32], steps, 12, &more);
        let (loss, report, model) = trained::<ParsingTask>(&recipe, "train");
        let accuracy = value(&report, "pixel accuracy");
        assert!(accuracy > 0.88, "{head}: {loss} {accuracy}");
        predicts(&model, &crop());
    }
}

/// Several scales, the flipped image and logits mapped back give nearly the accuracy of a single
/// pass.
#[test]
fn variants_of_parsing_agree() {
    let more = "head = \"light\"\nwidth = 32\nflip = 0.5\nscale_std = 0.1\nrotation_std = 0.0\nflip_test = false\n";
    let recipe = recipe::<ParsingTask>(&drawn(), [64, 32], 80, 12, more);
    let (_, report, mut model) = trained::<ParsingTask>(&recipe, "train");
    let plain = value(&report, "pixel accuracy");
    let progress = |_: PassProgress| ControlFlow::Continue(());
    let inference = Inference {
        batch: 8,
        threads: 2,
        predictions: false,
        progress: &progress,
    };
    let data = model
        .task
        .open_test(&drawn(), &SplitChoice::named("train"))
        .unwrap();
    type Config = clasp_tasks::parsing::ParsingConfig;
    let ways: [(&str, fn(&mut Config), f64); 4] = [
        ("one scale twice", |s| s.test_scales = vec![1.0, 1.0], 1e-6),
        ("two scales", |s| s.test_scales = vec![1.0, 1.5], 0.1),
        ("mirrored", |s| s.flip_test = true, 0.05),
        ("logits", |s| s.warp_logits = true, 0.05),
    ];
    for (name, change, near) in ways {
        let before = model.task.config.clone();
        change(&mut model.task.config);
        let report = model.task.evaluate(&model, &data, &inference).unwrap();
        let found = value(&report, "pixel accuracy");
        assert!(
            (found - plain).abs() < near,
            "{name}: {found}, once {plain}"
        );
        model.task.config = before;
    }
}

#[test]
fn pose_overfits() {
    let more = "codec = \"udp\"\nsigma = 1.5\nblur_kernel = 5\nwidth = 32\nflip = 0.0\nhalf_body = 0.0\nscale_std = 0.0\nrotation_std = 0.0\nflip_test = false\n";
    let mut recipe = recipe::<PoseTask>(&drawn(), [64, 32], 250, 12, more);
    // At three times the rate the loss jumps, and where it ends is chance.
    recipe.optimizer.lr = 1e-3;
    let (loss, report, model) = trained::<PoseTask>(&recipe, "train");
    let pck = value(&report, "PCK@0.2");
    assert!(pck > 0.8, "{loss} {pck}");
    predicts(&model, &crop());

    // The same boxes as if a detector had found them, each twice: repeated poses are dropped, and
    // the metrics are the same.
    let keypoints = fs_err::read(drawn().join("person_keypoints_train.json")).unwrap();
    let keypoints: serde_json::Value = serde_json::from_slice(&keypoints).unwrap();
    let mut found = Vec::new();
    for one in keypoints["annotations"].as_array().unwrap() {
        // True boxes lose a pixel at the right and the bottom, as published.
        let number = |at: usize| one["bbox"][at].as_f64().unwrap();
        let bbox = [number(0), number(1), number(2) - 1.0, number(3) - 1.0];
        for score in [0.9, 0.8] {
            found.push(serde_json::json!({
                "image_id": one["image_id"], "category_id": 1, "bbox": bbox, "score": score,
            }));
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let boxes = folder.path().join("boxes.json");
    fs_err::write(&boxes, serde_json::Value::from(found).to_string()).unwrap();
    let progress = |_: PassProgress| ControlFlow::Continue(());
    let inference = Inference {
        batch: 8,
        threads: 2,
        predictions: true,
        progress: &progress,
    };
    let mut model = model;
    model.task.config.box_file = boxes;
    let data = model
        .task
        .open_test(&drawn(), &SplitChoice::named("train"))
        .unwrap();
    let given = model.task.evaluate(&model, &data, &inference).unwrap();
    let (once, twice) = (value(&report, "OKS AP"), value(&given, "OKS AP"));
    assert!((once - twice).abs() < 1e-3, "{once} {twice}");
    let poses: Vec<serde_json::Value> = serde_json::from_slice(&given.predictions).unwrap();
    assert_eq!(
        poses.len(),
        keypoints["annotations"].as_array().unwrap().len()
    );
}

const STILL: &str = "[task.scenes]\nscale = [1.0, 1.0]\nbrightness = [1.0, 1.0]\nflip = 0.0\n";

#[test]
fn detection_overfits() {
    let more = format!("width = 32\ncenter_weight = 0.2\n{STILL}");
    let recipe = recipe::<DetectionTask>(&drawn().join("scenes"), [128, 192], 120, 4, &more);
    let (loss, report, model) = trained::<DetectionTask>(&recipe, "train");
    let ap = value(&report, "AP.5");
    assert!(ap > 0.6, "{loss} {ap}");
    predicts(&model, &scene());
}

#[test]
fn search_overfits_and_fills_its_memory() {
    // The scenes to train on are searched in.
    let folder = tempfile::tempdir().unwrap();
    let scenes = drawn().join("scenes");
    for name in ["train", "test"] {
        let text = fs_err::read_to_string(scenes.join("train.json")).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(json["annotations"].as_array_mut().unwrap().len() > 20);
        let images = scenes.join("images").display().to_string();
        for image in json["images"].as_array_mut().unwrap() {
            let file = format!("{images}/{}", image["file_name"].as_str().unwrap());
            image["file_name"] = serde_json::json!(file);
        }
        fs_err::write(
            folder.path().join(format!("instances_{name}.json")),
            json.to_string(),
        )
        .unwrap();
    }
    let one = "head = \"one-stage\"\nwidth = 32\ncenter_weight = 0.2\nidentity_weight = 0.1\n";
    let two = "head = \"two-stage\"\nsimilarity_scale = 10.0\n[task.regions]\nanchor_sizes = [16.0, 40.0]\naspect_ratios = [2.0]\nsamples_per_image = [64, 16]\n";
    for (head, steps, lr) in [(one, 60, 3e-3), (two, 200, 5e-4)] {
        let more = format!(
            "embedding_dim = 16\nqueue_size = 8\nsearch_threshold = 0.1\n{head}{STILL}score_threshold = 0.1\n"
        );
        let mut recipe = recipe::<SearchTask>(folder.path(), [128, 192], steps, 4, &more);
        recipe.optimizer.lr = lr;
        let (loss, report, model) = trained::<SearchTask>(&recipe, "test");
        let (recall, map) = (value(&report, "recall of people"), value(&report, "mAP"));
        assert!(recall > 0.5 && map > 0.3, "{head}: {loss} {recall} {map}");
        let table = model.head.memory.table.val().into_data();
        assert!(
            table.iter::<f32>().any(|value| value != 0.0),
            "{head}: the memory is empty"
        );
        predicts(&model, &scene());
    }
}
