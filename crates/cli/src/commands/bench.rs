//! `clasp bench`: one line of JSON with what this machine does in a second. Weights and images are
//! random (but for `data`): only the work is measured.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::{Device, Tensor, TensorData};
use clasp_data::augment::{ViewsConfig, views};
use clasp_data::image::{CLIP_MEAN, CLIP_STD, Limits, Rgb, decode};
use clasp_data::labels::AttributeTargets;
use clasp_data::layouts::coco::COCO_SIGMAS;
use clasp_data::rng_for;
use clasp_data::source::Source;
use clasp_data::vocabulary::Vocabulary;
use clasp_label::{ClipLabeller, LabelConfig, Labeller};
use clasp_metrics::MetricError;
use clasp_metrics::parsing::Confusion;
use clasp_metrics::pose::{PredictedPose, TruePose, oks_ap};
use clasp_metrics::reid::{self, Images};
use clasp_metrics::rerank::{self, Rerank};
use clasp_model::Precision;
use clasp_model::backbone::BackboneConfig;
use clasp_model::clip::ClipConfig;
use clasp_model::mix::{Mix, PART};
use clasp_pretrain::Recipe;
use clasp_pretrain::step::Trainer;
use clasp_pretrain::views::Item;
use clasp_weights::clip::ClipInfo;
use rand::RngExt;
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::args::{
    Bench, BenchCoco, BenchData, BenchOptions, BenchParsing, BenchPretrain, BenchRank, BenchWork,
    Common,
};
use crate::{Outcome, device};

/// Runs the verb.
pub fn run(common: &Common, arguments: &Bench) -> Result<Outcome> {
    let device = device::pick(common.device.as_deref())?;
    let threads = device::threads(common.threads);
    let records = arguments.check.as_deref().map(read_records).transpose()?;
    let mut figures = match &arguments.work {
        BenchWork::Data(options) => data(options, threads)?,
        BenchWork::Label(options) => label(options, threads, &device)?,
        BenchWork::Pretrain(options) => pretrain(options, threads, &device)?,
        BenchWork::Embed(options) => embed(options, threads, &device)?,
        BenchWork::Rank(options) => rank(options)?,
        BenchWork::Coco(options) => coco(options)?,
        BenchWork::Parsing(options) => parsing(options)?,
    };
    if let (Some(figures), Some(mib)) = (figures.as_object_mut(), device::peak_mib()) {
        figures.insert("threads".to_owned(), json!(threads));
        figures.insert("peak_mib".to_owned(), json!(mib));
    }
    print_line(&figures);
    let Some(records) = records else {
        return Ok(Outcome::Done);
    };
    let fallen = fallen(&figures, &records)?;
    for line in &fallen {
        say(line);
    }
    Ok(if fallen.is_empty() {
        Outcome::Done
    } else {
        Outcome::CheckFailed
    })
}

/// A figure of this machine beside that of the peer, as it once was.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// `work` of the line that a benchmark prints.
    work: String,
    /// Name of the figure in that line: a rate, `images_per_s`, or seconds.
    figure: String,
    /// The peer's figure.
    peer: f64,
    /// How many times as fast as the peer clasp was.
    ratio: f64,
}

/// Part of a recorded ratio that a figure must reach.
const ENOUGH: f64 = 0.85;

fn read_records(path: &Path) -> Result<Vec<Record>> {
    let text = fs_err::read_to_string(path)?;
    let records: Vec<Record> = serde_json::from_str(&text)
        .with_context(|| format!("{}: not a list of records", path.display()))?;
    for record in &records {
        ensure!(
            record.peer > 0.0 && record.ratio > 0.0,
            "{}: {}: expected a peer and a ratio above 0, found {} and {}",
            path.display(),
            record.work,
            record.peer,
            record.ratio
        );
    }
    Ok(records)
}

/// What there is to say about figures that are too far below their records.
fn fallen(figures: &Value, records: &[Record]) -> Result<Vec<String>> {
    let mut known = 0;
    let mut lines = Vec::new();
    for record in records
        .iter()
        .filter(|record| figures["work"] == record.work.as_str())
    {
        let Some(found) = figures[&record.figure].as_f64() else {
            continue;
        };
        known += 1;
        let ratio = match record.figure.as_str() {
            "images_per_s" => found / record.peer,
            _ => record.peer / found,
        };
        if ratio < ENOUGH * record.ratio {
            lines.push(format!(
                "{}: {} is {found:.3}, {ratio:.2} times the peer's; recorded {:.2} times",
                record.work, record.figure, record.ratio
            ));
        }
    }
    ensure!(
        known > 0,
        "--check: the file has no record of {}",
        figures["work"]
    );
    Ok(lines)
}

#[allow(clippy::print_stderr)]
fn say(line: &str) {
    eprintln!("slower: {line}");
}

#[allow(clippy::print_stdout)]
fn print_line(figures: &Value) {
    println!("{figures}");
}

/// Median seconds of `iters` runs after one warm-up.
fn timed(iters: usize, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    run()?;
    let mut seconds = Vec::new();
    for _ in 0..iters.max(1) {
        let begun = Instant::now();
        run()?;
        seconds.push(begun.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    Ok(seconds[seconds.len() / 2])
}

/// JPEG bytes to 2 global and 8 local views.
fn data(options: &BenchData, threads: usize) -> Result<Value> {
    let source = Source::open(&options.images)?;
    let files: Vec<Vec<u8>> = (0..source.len().min(options.limit))
        .map(|i| source.read(i))
        .collect::<Result<_, _>>()?;
    let config = ViewsConfig::default();
    let make = |(index, bytes): (usize, &Vec<u8>)| -> Result<usize> {
        let image = decode(bytes, &Limits::default())?;
        let views = views(
            &image,
            None,
            &config,
            [8, 4],
            &mut rng_for(0, 0, &index.to_string()),
        );
        Ok(views.global.len() + views.local.len())
    };
    files
        .par_iter()
        .take(2 * threads)
        .enumerate()
        .try_for_each(|item| make(item).map(drop))?;
    let begun = Instant::now();
    files
        .par_iter()
        .enumerate()
        .try_for_each(|item| make(item).map(drop))?;
    let seconds = begun.elapsed().as_secs_f64();
    Ok(
        json!({ "work": "multicrop", "images": files.len(), "images_per_s": files.len() as f64 / seconds }),
    )
}

/// Runs `work` on `replicas` clones of `model`, each in a rayon pool of one thread, as labelling and embedding do.
fn on_replicas<M: Clone + Send>(
    model: &M,
    replicas: usize,
    work: impl Fn(M) -> Result<()> + Sync,
) -> Result<()> {
    let work = &work;
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..replicas)
            .map(|_| {
                let model = model.clone();
                scope.spawn(move || -> Result<()> {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
                    pool.install(|| work(model))
                })
            })
            .collect();
        for handle in handles {
            match handle.join() {
                Ok(result) => result?,
                Err(_) => bail!("a worker thread stopped unexpectedly"),
            }
        }
        Ok(())
    })
}

/// CLIP ViT-B/16 with random weights against the default vocabulary.
fn label(options: &BenchOptions, threads: usize, device: &Device) -> Result<Value> {
    let clip = ClipConfig::vit_b_16().init(&mut rng_for(0, 0, "bench"), device);
    let info = ClipInfo {
        name: "random".to_owned(),
        sha256: String::new(),
        image_size: [224, 224],
        mean: CLIP_MEAN,
        std: CLIP_STD,
    };
    let batch = options.batch.max(1);
    let replicas = replicas(threads, batch, device);
    let config = LabelConfig {
        precision: options.products.precision,
        batch: batch / replicas,
        ..LabelConfig::default()
    };
    let labeller = ClipLabeller::new(clip, &info, &Vocabulary::standard()?, &config, device)?;
    let pixels = noise((batch / replicas) * 3 * 224 * 224);
    let keys = vec!["image"; batch / replicas];
    let seconds = timed(options.iters, || {
        on_replicas(&labeller, replicas, |labeller| {
            Ok(labeller.label(&keys, pixels.clone()).map(drop)?)
        })
    })?;
    Ok(
        json!({ "work": named("clip_label", options), "batch": batch, "images_per_s": (batch / replicas * replicas) as f64 / seconds }),
    )
}

/// What is measured, with the precision where it is not the usual one.
fn named(work: &str, options: &BenchOptions) -> String {
    match options.products.precision {
        Precision::F32 => work.to_owned(),
        Precision::Bf16 => format!("{work}_bf16"),
    }
}

/// A Swin-T forward at 384x128 without gradient.
fn embed(options: &BenchOptions, threads: usize, device: &Device) -> Result<Value> {
    let (height, width) = (384, 128);
    let backbone = BackboneConfig::named("swin-tiny")?.init(&mut rng_for(0, 0, "bench"), device);
    let batch = options.batch.max(1);
    let replicas = replicas(threads, batch, device);
    let share = batch / replicas;
    let pixels = noise(share * 3 * height * width);
    let seconds = timed(options.iters, || {
        on_replicas(&backbone, replicas, |backbone| {
            let images = Tensor::from_data(
                TensorData::new(pixels.clone(), [share, 3, height, width]),
                device,
            );
            let mix = Mix::mean().tensor(share, device);
            let features =
                { options.products.precision }.within(|| backbone.forward(images, mix, None));
            features
                .pooled
                .try_into_vec_as::<f32>()
                .map(drop)
                .map_err(|error| anyhow::anyhow!("{error}"))
        })
    })?;
    Ok(json!({
        "work": named("embed", options), "model": "swin-tiny", "size": format!("{height}x{width}"), "batch": batch,
        "images_per_s": (share * replicas) as f64 / seconds,
    }))
}

/// One pre-training step: method `dino` without an adapter, as the peer's.
fn pretrain(options: &BenchPretrain, threads: usize, device: &Device) -> Result<Value> {
    let mut overrides = vec![
        "method=dino".to_owned(),
        format!("model.backbone={}", options.model),
        format!("head.outputs={}", options.out_dim),
        format!("views.local={}", options.local),
        format!("run.batch={}", options.batch),
        "run.steps=1000".to_owned(),
        "optimiser.freeze_last_layer=0.0".to_owned(),
    ];
    overrides.extend(options.set.iter().cloned());
    let recipe = Recipe::parse("", "bench", &overrides)?;
    let plan = recipe.plan(options.batch * 1000, threads, *device == Device::flex())?;
    let config = plan.recipe.views.clone();
    let plan_size = config.global_size;
    let mut trainer = Trainer::new(plan, None, device)?;
    let [height, width] = plan_size;
    let image = Rgb::new(
        width,
        height,
        noise(3 * height * width)
            .iter()
            .map(|x| (255.0 * x.abs().min(1.0)) as u8)
            .collect(),
    );
    let grid = trainer.grid();
    let items: Vec<Item> = (0..options.batch)
        .map(|i| Item {
            key: i.to_string(),
            mix: Mix::single(PART),
            views: views(
                &image,
                None,
                &config,
                grid,
                &mut rng_for(0, 0, &i.to_string()),
            ),
            attributes: None::<AttributeTargets>,
        })
        .collect();
    let seconds = timed(options.iters, || match trainer.step(&items, false) {
        Ok(_) => Ok(()),
        Err(error) => bail!("the loss `{}` is {}", error.term, error.value),
    })?;
    Ok(json!({
        "work": "pretrain_step", "model": options.model, "batch": options.batch, "out_dim": options.out_dim,
        "local": options.local, "s_per_step": seconds, "images_per_s": options.batch as f64 / seconds,
    }))
}

/// Market-1501-sized ranking with the peer's distribution of features.
fn rank(options: &BenchRank) -> Result<Value> {
    let mut rng = rng_for(0, 0, "rank");
    let mut normal = move || -> f32 {
        // Box and Muller; the peer draws from NumPy's normal distribution.
        let (u, v): (f32, f32) = (rng.random_range(f32::EPSILON..1.0), rng.random());
        (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
    };
    let centres: Vec<f32> = (0..options.identities * options.dim)
        .map(|_| normal())
        .collect();
    let mut rng = rng_for(0, 0, "people");
    let mut side = |count: usize| {
        let persons: Vec<i64> = (0..count)
            .map(|_| rng.random_range(0..options.identities as i64))
            .collect();
        let cameras: Vec<i64> = (0..count).map(|_| rng.random_range(0..6)).collect();
        let mut features = Vec::with_capacity(count * options.dim);
        for &person in &persons {
            let centre = &centres[person as usize * options.dim..][..options.dim];
            let row: Vec<f32> = centre.iter().map(|x| x + 4.0 * normal()).collect();
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            features.extend(row.iter().map(|x| x / length));
        }
        (features, persons, cameras)
    };
    let (query, gallery) = (side(options.queries), side(options.gallery));
    let query = Images {
        features: &query.0,
        channels: options.dim,
        persons: &query.1,
        cameras: &query.2,
    };
    let gallery = Images {
        features: &gallery.0,
        channels: options.dim,
        persons: &gallery.1,
        cameras: &gallery.2,
    };
    let begun = Instant::now();
    let metrics = reid::evaluate(&query, &gallery, 50)?;
    let mut figures = json!({
        "work": "rank", "queries": options.queries, "gallery": options.gallery, "dim": options.dim,
        "rank_s": begun.elapsed().as_secs_f64(), "mAP": metrics.map, "rank1": metrics.cmc.first(),
    });
    if options.rerank {
        let begun = Instant::now();
        let metrics = rerank::evaluate(&query, &gallery, Rerank::default(), 50)?;
        figures["rerank_s"] = json!(begun.elapsed().as_secs_f64());
        figures["rerank_mAP"] = json!(metrics.map);
    }
    Ok(figures)
}

/// COCO keypoint evaluation of random poses, 1 to 5 people an image and two predictions of each, with the peer's
/// distribution.
fn coco(options: &BenchCoco) -> Result<Value> {
    let mut rng = rng_for(0, 0, "coco");
    let (mut truth, mut predicted) = (Vec::new(), Vec::new());
    for image in 0..options.images as u64 {
        for _ in 0..rng.random_range(1..6) {
            let (x, y) = (rng.random_range(0.0..300.0), rng.random_range(0.0..200.0));
            let (width, height) = (rng.random_range(20.0..200.0), rng.random_range(40.0..250.0));
            let keypoints: Vec<[f64; 3]> = (0..COCO_SIGMAS.len())
                .map(|_| {
                    let (x, y) = (
                        x + width * rng.random::<f64>(),
                        y + height * rng.random::<f64>(),
                    );
                    [x, y, f64::from(rng.random_range(0..3))]
                })
                .collect();
            for _ in 0..2 {
                // Twelve uniform numbers are nearly normal.
                let mut noise =
                    || 0.08 * height * ((0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0);
                let keypoints = keypoints
                    .iter()
                    .map(|k| [k[0] + noise(), k[1] + noise()])
                    .collect();
                let score = rng.random();
                predicted.push(PredictedPose {
                    image,
                    keypoints,
                    score,
                });
            }
            truth.push(TruePose {
                image,
                keypoints,
                bbox: [x, y, width, height],
                area: 0.5 * width * height,
                crowd: false,
            });
        }
    }
    let mut ap = None;
    let seconds = timed(options.iters, || {
        ap = oks_ap(&truth, &predicted, &COCO_SIGMAS)?.ap;
        Ok(())
    })?;
    Ok(json!({ "work": "coco_eval", "images": options.images, "eval_s": seconds, "AP": ap }))
}

/// Masks of random blocks of labels, nine tenths of them found, counted mask by mask on all threads as an evaluation does.
fn parsing(options: &BenchParsing) -> Result<Value> {
    const BLOCK: usize = 16;
    let [height, width] = options.size;
    let classes = usize::from(options.classes);
    let mask = |index: usize| -> [Vec<u8>; 2] {
        let mut rng = rng_for(0, index as u64, "masks");
        let blocks: Vec<[u8; 2]> = (0..height.div_ceil(BLOCK) * width.div_ceil(BLOCK))
            .map(|_| {
                let label = rng.random_range(0..options.classes);
                let found = rng.random_bool(0.9);
                [
                    label,
                    if found {
                        label
                    } else {
                        rng.random_range(0..options.classes)
                    },
                ]
            })
            .collect();
        [0, 1].map(|side| {
            (0..height * width)
                .map(|at| {
                    let (row, column) = (at / width / BLOCK, at % width / BLOCK);
                    blocks[row * width.div_ceil(BLOCK) + column][side]
                })
                .collect()
        })
    };
    let begun = Instant::now();
    let confusion = (0..options.images)
        .into_par_iter()
        .try_fold(
            || Confusion::new(classes),
            |mut confusion, index| {
                let [truth, predicted] = mask(index);
                confusion.add(&truth, &predicted)?;
                Ok::<_, MetricError>(confusion)
            },
        )
        .try_reduce(
            || Confusion::new(classes),
            |mut all, part| {
                all.merge(&part);
                Ok(all)
            },
        )?;
    let seconds = begun.elapsed().as_secs_f64();
    Ok(json!({
        "work": "parsing_eval", "images": options.images, "size": options.size, "classes": classes,
        "eval_s": seconds, "masks_per_s": options.images as f64 / seconds, "mIoU": confusion.metrics().mean_iou,
    }))
}

/// On the CPU a replica a thread, but no more than images; elsewhere one.
fn replicas(threads: usize, batch: usize, device: &Device) -> usize {
    if *device == Device::flex() {
        threads.min(batch).max(1)
    } else {
        1
    }
}

fn noise(count: usize) -> Vec<f32> {
    let mut rng = rng_for(0, 0, "noise");
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_may_fall_by_15_percent() {
        let records: Vec<Record> = serde_json::from_str(
            r#"[{"work": "embed", "figure": "images_per_s", "peer": 10.0, "ratio": 2.0},
                {"work": "rank", "figure": "rank_s", "peer": 2.0, "ratio": 4.0}]"#,
        )
        .unwrap();
        let fallen = |figures: Value| fallen(&figures, &records).map(|lines| lines.len());
        assert_eq!(
            fallen(json!({ "work": "embed", "images_per_s": 17.1 })).unwrap(),
            0
        );
        assert_eq!(
            fallen(json!({ "work": "embed", "images_per_s": 16.9 })).unwrap(),
            1
        );
        assert_eq!(
            fallen(json!({ "work": "rank", "rank_s": 0.58 })).unwrap(),
            0
        );
        assert_eq!(fallen(json!({ "work": "rank", "rank_s": 0.6 })).unwrap(), 1);
        assert!(fallen(json!({ "work": "multicrop", "images_per_s": 1.0 })).is_err());
    }
}
