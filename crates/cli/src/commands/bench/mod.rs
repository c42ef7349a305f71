//! `clasp bench`: one line of JSON with what this machine does in a second. Weights and images are
//! random (but for `data`): only the work is measured.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use burn::tensor::{DType, Device, Distribution, Tensor, TensorData};
use clasp_data::augment::{ViewsConfig, views as crop};
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
use clasp_model::{Precision, Shares};
use clasp_model::backbone::BackboneConfig;
use clasp_model::clip::ClipConfig;
use clasp_model::mix::{Mix, PART};
use clasp_pretrain::step::Trainer;
use clasp_pretrain::views::Item;
use clasp_pretrain::{Machine, Plan, Recipe};
use clasp_weights::clip::ClipInfo;
use rand::RngExt;
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};

use super::compare;
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
    if let BenchWork::Compare(options) = &arguments.work {
        ensure!(records.is_none(), "--check: a comparison has no record");
        return compare::run(options, &device);
    }
    let bench = On {
        common,
        device: &device,
        threads,
    };
    let mut found = match &arguments.work {
        BenchWork::Data(options) => bench.data(options)?,
        BenchWork::Label(options) => bench.label(options)?,
        BenchWork::Pretrain(options) => bench.pretrain(options)?,
        BenchWork::Embed(options) => bench.embed(options)?,
        BenchWork::Rank(options) => rank(options)?,
        BenchWork::Coco(options) => coco(options)?,
        BenchWork::Parsing(options) => parsing(options)?,
        BenchWork::Compare(_) => unreachable!("seen to above"),
    };
    found.settings["threads"] = json!(threads);
    if let Some(mib) = device::peak_mib() {
        // What an accelerator holds is not this process's.
        let name = if device == Device::flex() {
            "peak_mib"
        } else {
            "host_peak_mib"
        };
        found.figures[name] = json!(mib);
    }
    print_line(&found.line());
    let Some(records) = records else {
        return Ok(Outcome::Done);
    };
    let fallen = fallen(&found, &records)?;
    for line in &fallen {
        say(line);
    }
    Ok(if fallen.is_empty() {
        Outcome::Done
    } else {
        Outcome::CheckFailed
    })
}

/// What a benchmark found.
struct Found {
    work: &'static str,
    /// What the figures depend on: a record holds for equal settings alone. An object.
    settings: Value,
    /// An object.
    figures: Value,
}

impl Found {
    /// One line for programs: the work, the figures, and the settings as an object of their own.
    fn line(&self) -> Value {
        let mut line = json!({ "work": self.work, "settings": self.settings });
        if let (Some(line), Some(figures)) = (line.as_object_mut(), self.figures.as_object()) {
            line.extend(figures.clone());
        }
        line
    }
}

/// A figure of this machine beside that of the peer, as it once was.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// `work` of the line that a benchmark prints.
    work: String,
    /// Its `settings`.
    settings: BTreeMap<String, Value>,
    /// Name of the figure in that line: a rate, `images_per_s`, or seconds.
    figure: String,
    /// The peer's figure.
    peer: f64,
    /// How many times as fast as the peer clasp was.
    ratio: f64,
}

impl Record {
    /// The settings that differ from those of a run, and how.
    fn differences(&self, found: &Found) -> Vec<String> {
        let names = self.settings.keys().cloned();
        let more =
            { found.settings.as_object().into_iter().flatten() }.map(|(name, _)| name.clone());
        let names: BTreeSet<String> = names.chain(more).collect();
        let show = |value: Option<&Value>| value.map_or("nothing".to_owned(), Value::to_string);
        { names.into_iter() }
            .filter_map(|name| {
                let (record, here) = (self.settings.get(&name), found.settings.get(&name));
                let text = format!("{name} {} in the record, {} here", show(record), show(here));
                (record != here).then_some(text)
            })
            .collect()
    }
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
///
/// # Errors
///
/// There is no record of this work with these settings; the message says what differs from the nearest one.
fn fallen(found: &Found, records: &[Record]) -> Result<Vec<String>> {
    let of_work = || {
        records
            .iter()
            .filter(|record| record.work == found.work && found.figures[&record.figure].is_number())
    };
    let mut known = 0;
    let mut lines = Vec::new();
    for record in of_work().filter(|record| record.differences(found).is_empty()) {
        let Some(figure) = found.figures[&record.figure].as_f64() else {
            continue;
        };
        known += 1;
        let ratio = match record.figure.as_str() {
            "images_per_s" => figure / record.peer,
            _ => record.peer / figure,
        };
        if ratio < ENOUGH * record.ratio {
            lines.push(format!(
                "{}: {} is {figure:.3}, {ratio:.2} times the peer's; recorded {:.2} times",
                record.work, record.figure, record.ratio
            ));
        }
    }
    if known == 0 {
        let nearest = of_work()
            .map(|record| record.differences(found))
            .min_by_key(Vec::len);
        match nearest {
            None => bail!("--check: the file has no record of {}", found.work),
            Some(differences) => bail!(
                "--check: the file has no record of {} with these settings; the nearest differs: {}\n  \
                 hint: benchmark what was recorded, or record this with runs/speed.py --record",
                found.work,
                differences.join("; ")
            ),
        }
    }
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

/// Waits until the device has done what it was given, so that the clock sees it.
fn wait(device: &Device) -> Result<()> {
    let done = device.sync();
    done.map_err(|error| anyhow!("waiting for the device: {error:?}"))
}

/// Floating-point operations a second, in billions, of a product of square matrices so large that it takes 50 ms, by Burn:
/// what the device gives at best to a program that has no product of its own.
fn product_rate(device: &Device, precision: Precision) -> Result<f64> {
    const LARGEST: usize = 8192;
    let mut size = 1024;
    loop {
        let dtype = match precision {
            Precision::Bf16 if *device != Device::flex() => DType::BF16,
            _ => DType::F32,
        };
        let square = || Tensor::<2>::random([size; 2], Distribution::Uniform(-1.0, 1.0), device);
        let (a, b) = (square().cast(dtype), square().cast(dtype));
        let seconds = timed(3, || {
            let product = a.clone().matmul(b.clone());
            wait(device)?;
            drop(product);
            Ok(())
        })?;
        if seconds > 0.05 || size == LARGEST {
            return Ok(2.0 * (size as f64).powi(3) / seconds / 1e9);
        }
        size *= 2;
    }
}

/// Where the networks are measured.
struct On<'a> {
    common: &'a Common,
    device: &'a Device,
    threads: usize,
}

impl On<'_> {
    /// The name of the device, as in `--device`.
    fn name(&self) -> &str {
        match (&self.common.device, *self.device == Device::flex()) {
            (Some(name), _) => name,
            (None, true) => "cpu",
            (None, false) => "default",
        }
    }

    /// Figures of `operations` of products in `seconds`, beside the device's rate, and what its allocator has taken.
    fn add_share(
        &self,
        figures: &mut Value,
        operations: usize,
        seconds: f64,
        precision: Precision,
    ) -> Result<()> {
        if let Some(usage) = self.device.memory_pool_usage() {
            figures["device_mib"] = json!(usage.bytes_reserved >> 20);
        }
        let (rate, product) = (
            operations as f64 / seconds / 1e9,
            product_rate(self.device, precision)?,
        );
        figures["gflop_per_s"] = json!(rate);
        figures["product_gflop_per_s"] = json!(product);
        figures["share_of_product"] = json!(rate / product);
        Ok(())
    }

    /// JPEG bytes to 2 global and 8 local views.
    fn data(&self, options: &BenchData) -> Result<Found> {
        let source = Source::open(&options.images)?;
        let files: Vec<Vec<u8>> = (0..source.len().min(options.limit))
            .map(|i| source.read(i))
            .collect::<Result<_, _>>()?;
        let config = ViewsConfig::default();
        let make = |(index, bytes): (usize, &Vec<u8>)| -> Result<usize> {
            let image = decode(bytes, &Limits::default())?;
            let views = crop(
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
            .take(2 * self.threads)
            .enumerate()
            .try_for_each(|item| make(item).map(drop))?;
        let begun = Instant::now();
        files
            .par_iter()
            .enumerate()
            .try_for_each(|item| make(item).map(drop))?;
        let seconds = begun.elapsed().as_secs_f64();
        Ok(Found {
            work: "multicrop",
            settings: json!({ "images": files.len() }),
            figures: json!({ "images_per_s": files.len() as f64 / seconds }),
        })
    }

    /// Runs `work` on the replicas of `model` that labelling and embedding would make, each in a rayon pool of its own.
    fn on_replicas<M: Clone + Send>(
        &self,
        model: &M,
        shares: Shares,
        work: impl Fn(M) -> Result<()> + Sync,
    ) -> Result<()> {
        let work = &work;
        std::thread::scope(|scope| {
            let handles: Vec<_> = (0..shares.replicas)
                .map(|_| {
                    let model = model.clone();
                    scope.spawn(move || -> Result<()> {
                        let pool = rayon::ThreadPoolBuilder::new()
                            .num_threads(shares.threads)
                            .build()?;
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
            wait(self.device)
        })
    }

    /// CLIP ViT-B/16 with random weights against the default vocabulary.
    fn label(&self, options: &BenchOptions) -> Result<Found> {
        let clip = ClipConfig::vit_b_16();
        let operations = clip.operations();
        let clip = clip.init(&mut rng_for(0, 0, "bench"), self.device);
        let info = ClipInfo {
            name: "random".to_owned(),
            sha256: String::new(),
            image_size: [224, 224],
            mean: CLIP_MEAN,
            std: CLIP_STD,
        };
        let precision = device::precision(self.common, options.products, self.device)?;
        let shares = Shares::of(self.device, self.threads).at_most(options.batch);
        let share = options.batch.max(1) / shares.replicas;
        let config = LabelConfig {
            precision,
            batch: share,
            ..LabelConfig::default()
        };
        let vocabulary = Vocabulary::standard()?;
        let labeller = ClipLabeller::new(clip, &info, &vocabulary, &config, self.device)?;
        let pixels = noise(share * 3 * 224 * 224);
        let keys = vec!["image"; share];
        let seconds = timed(options.iters, || {
            self.on_replicas(&labeller, shares, |labeller| {
                Ok(labeller.label(&keys, pixels.clone()).map(drop)?)
            })
        })?;
        let batch = share * shares.replicas;
        let mut figures = json!({ "images_per_s": batch as f64 / seconds });
        self.add_share(&mut figures, batch * operations, seconds, precision)?;
        Ok(Found {
            work: "clip_label",
            settings: json!({
                "model": "vit-b-16", "size": "224x224", "batch": batch, "precision": precision, "device": self.name(),
            }),
            figures,
        })
    }

    /// A Swin-T forward at 384x128 without gradient.
    fn embed(&self, options: &BenchOptions) -> Result<Found> {
        let (height, width) = (384, 128);
        let config = BackboneConfig::named("swin-tiny")?;
        let operations = config.operations([height, width])?;
        let backbone = config.init(&mut rng_for(0, 0, "bench"), self.device);
        let precision = device::precision(self.common, options.products, self.device)?;
        let shares = Shares::of(self.device, self.threads).at_most(options.batch);
        let share = options.batch.max(1) / shares.replicas;
        let pixels = noise(share * 3 * height * width);
        let seconds = timed(options.iters, || {
            self.on_replicas(&backbone, shares, |backbone| {
                let images = Tensor::from_data(
                    TensorData::new(pixels.clone(), [share, 3, height, width]),
                    self.device,
                );
                let mix = Mix::mean().tensor(share, self.device);
                let features = precision.within(|| backbone.forward(images, mix, None));
                features
                    .pooled
                    .try_into_vec_as::<f32>()
                    .map(drop)
                    .map_err(|error| anyhow!("{error}"))
            })
        })?;
        let batch = share * shares.replicas;
        let mut figures = json!({ "images_per_s": batch as f64 / seconds });
        self.add_share(&mut figures, batch * operations, seconds, precision)?;
        Ok(Found {
            work: "embed",
            settings: json!({
                "model": "swin-tiny", "size": format!("{height}x{width}"), "batch": batch, "precision": precision,
                "device": self.name(),
            }),
            figures,
        })
    }

    /// One pre-training step: method `dino` without an adapter, as the peer's.
    fn pretrain(&self, options: &BenchPretrain) -> Result<Found> {
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
        let machine = Machine::of(self.device, self.threads);
        let plan = recipe.plan(options.batch * 1000, machine)?;
        let (views, run) = (plan.recipe.views.clone(), plan.recipe.run.clone());
        let [global, local] = [views.global_size, views.local_size];
        let mut trainer = Trainer::new(plan, None, self.device)?;
        let operations = step_operations(&trainer.plan, trainer.teacher.backbone.channels())?;
        let [height, width] = global;
        let image = Rgb::new(
            width,
            height,
            noise(3 * height * width)
                .iter()
                .map(|x| (255.0 * x.abs().min(1.0)) as u8)
                .collect(),
        );
        let grid = trainer.grid();
        let items: Vec<Item> = (0..run.batch)
            .map(|i| Item {
                key: i.to_string(),
                mix: Mix::single(PART),
                views: crop(
                    &image,
                    None,
                    &views,
                    grid,
                    &mut rng_for(0, 0, &i.to_string()),
                ),
                attributes: None::<AttributeTargets>,
            })
            .collect();
        let seconds = timed(options.iters, || match trainer.step(&items, false) {
            Ok(_) => wait(self.device),
            Err(error) => bail!("the loss `{}` is {}", error.term, error.value),
        })?;
        let precision = trainer.plan.precision;
        let mut figures =
            json!({ "s_per_step": seconds, "images_per_s": run.batch as f64 / seconds });
        self.add_share(&mut figures, operations, seconds, precision)?;
        let size = |[height, width]: [usize; 2]| format!("{height}x{width}");
        Ok(Found {
            work: "pretrain_step",
            settings: json!({
                "model": trainer.plan.recipe.model.backbone, "method": trainer.plan.recipe.method, "batch": run.batch,
                "out_dim": trainer.plan.outputs,
                "views": format!("{} of {}, {} of {}", views.global, size(global), views.local, size(local)),
                "accumulate": run.accumulate, "checkpointing": run.checkpointing, "precision": precision,
                "device": self.name(),
            }),
            figures,
        })
    }
}

/// Floating-point operations of the products of a step: those of the student three times, for the backward pass makes two
/// products of each, and those of the teacher.
fn step_operations(plan: &Plan, channels: usize) -> Result<usize> {
    let (views, head) = (&plan.recipe.views, &plan.recipe.head);
    let of_views =
        |count: usize, size| Ok::<_, anyhow::Error>(count * plan.backbone.operations(size)?);
    let global = of_views(views.global, views.global_size)?;
    let local = of_views(views.local, views.local_size)?;
    let layers = [
        (channels, head.hidden),
        (head.hidden, head.hidden),
        (head.hidden, head.bottleneck),
        (head.bottleneck, plan.outputs),
    ];
    let projection: usize = layers
        .iter()
        .map(|(inputs, outputs)| 2 * inputs * outputs)
        .sum();
    let student = global + local + (views.global + views.local) * projection;
    let teacher = global + views.global * projection;
    Ok(plan.recipe.run.batch * (3 * student + teacher))
}

/// Market-1501-sized ranking with the peer's distribution of features.
fn rank(options: &BenchRank) -> Result<Found> {
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
        "rank_s": begun.elapsed().as_secs_f64(), "mAP": metrics.map, "rank1": metrics.cmc.first(),
    });
    if options.rerank {
        let begun = Instant::now();
        let metrics = rerank::evaluate(&query, &gallery, Rerank::default(), 50)?;
        figures["rerank_s"] = json!(begun.elapsed().as_secs_f64());
        figures["rerank_mAP"] = json!(metrics.map);
    }
    Ok(Found {
        work: "rank",
        settings: json!({
            "queries": options.queries, "gallery": options.gallery, "dim": options.dim, "identities": options.identities,
        }),
        figures,
    })
}

/// COCO keypoint evaluation of random poses, 1 to 5 people an image and two predictions of each, with the peer's
/// distribution.
fn coco(options: &BenchCoco) -> Result<Found> {
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
    Ok(Found {
        work: "coco_eval",
        settings: json!({ "images": options.images }),
        figures: json!({ "eval_s": seconds, "AP": ap }),
    })
}

/// Masks of random blocks of labels, nine tenths of them found, counted mask by mask on all threads as an evaluation does.
fn parsing(options: &BenchParsing) -> Result<Found> {
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
    Ok(Found {
        work: "parsing_eval",
        settings: json!({ "images": options.images, "size": options.size, "classes": classes }),
        figures: json!({
            "eval_s": seconds, "masks_per_s": options.images as f64 / seconds,
            "mIoU": confusion.metrics().mean_iou,
        }),
    })
}

fn noise(count: usize) -> Vec<f32> {
    let mut rng = rng_for(0, 0, "noise");
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        serde_json::from_str(
            r#"[{"work": "embed", "settings": {"model": "swin-tiny", "batch": 8}, "figure": "images_per_s", "peer": 10.0, "ratio": 2.0},
                {"work": "rank", "settings": {}, "figure": "rank_s", "peer": 2.0, "ratio": 4.0}]"#,
        )
        .unwrap()
    }

    fn embed(batch: usize, images_per_s: f64) -> Found {
        Found {
            work: "embed",
            settings: json!({ "model": "swin-tiny", "batch": batch }),
            figures: json!({ "images_per_s": images_per_s }),
        }
    }

    #[test]
    fn a_figure_may_fall_by_15_percent() {
        let fallen = |found: Found| fallen(&found, &records()).map(|lines| lines.len());
        let rank = |seconds: f64| Found {
            work: "rank",
            settings: json!({}),
            figures: json!({ "rank_s": seconds }),
        };
        assert_eq!(fallen(embed(8, 17.1)).unwrap(), 0);
        assert_eq!(fallen(embed(8, 16.9)).unwrap(), 1);
        assert_eq!(fallen(rank(0.58)).unwrap(), 0);
        assert_eq!(fallen(rank(0.6)).unwrap(), 1);
        let other = Found {
            work: "multicrop",
            ..rank(1.0)
        };
        assert!(fallen(other).is_err());
    }

    #[test]
    fn a_record_of_other_settings_is_no_record() {
        let error = fallen(&embed(1, 1000.0), &records())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("batch 8 in the record, 1 here") && !error.contains("model"),
            "{error}"
        );
        // What a record does not name differs too.
        let mut found = embed(8, 1000.0);
        found.settings["device"] = json!("cuda");
        let error = fallen(&found, &records()).unwrap_err().to_string();
        assert!(
            error.contains("device nothing in the record, \"cuda\" here"),
            "{error}"
        );
    }

    #[test]
    fn a_step_costs_three_students_and_a_teacher() {
        let set = [
            "run.batch=2",
            "views.local=0",
            "model.backbone=swin-pico",
            "head.outputs=64",
        ];
        let set: Vec<String> = set.map(str::to_owned).to_vec();
        let recipe = Recipe::parse("", "test", &set).unwrap();
        let plan = recipe.plan(2, Machine::of(&Device::flex(), 1)).unwrap();
        let one = plan
            .backbone
            .operations(plan.recipe.views.global_size)
            .unwrap();
        let head = 2 * (128 * 2048 + 2048 * 2048 + 2048 * 256 + 256 * 64);
        assert_eq!(
            step_operations(&plan, 128).unwrap(),
            2 * 4 * 2 * (one + head)
        );
    }
}
