//! Speed of networks and view generation. Weights are random, and so are images except for `data`.

use anyhow::{Result, anyhow, bail};
use burn::tensor::{DType, Device, Distribution, Tensor, TensorData};
use clasp_data::augment::{ViewsConfig, views as crop};
use clasp_data::image::{CLIP_MEAN, CLIP_STD, Limits, Rgb, decode};
use clasp_data::labels::{AttributeTargets, ViewLabels};
use clasp_data::rng_for;
use clasp_data::source::Source;
use clasp_data::vocabulary::Vocabulary;
use clasp_label::{ClipLabeler, LabelConfig, Labeler};
use clasp_model::backbone::BackboneConfig;
use clasp_model::clip::ClipConfig;
use clasp_model::prompt::PromptWeights;
use clasp_model::{Precision, Shares, unfused};
use clasp_pretrain::dataset::ImageSample;
use clasp_pretrain::step::Pretrainer;
use clasp_pretrain::{PretrainPlan, PretrainRecipe, machine};
use clasp_weights::clip::ClipInfo;
use rand::RngExt;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::ops::Range;
use std::time::Instant;

use super::measurement::{Measurement, add_peak, timed};
use crate::args::{BenchData, BenchOptions, BenchPretrain, GlobalOptions};
use crate::device;

/// Waits until the device has finished, so that the time is that of its work.
fn wait(device: &Device) -> Result<()> {
    let done = device.sync();
    done.map_err(|error| anyhow!("waiting for the device: {error:?}"))
}

/// Floating-point operations a second, in billions, of a product of square matrices so large that
/// it takes 50 ms, by Burn: what the device gives at best to a program that has no product of its
/// own.
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
pub struct On<'a> {
    pub common: &'a GlobalOptions,
    pub device: &'a Device,
    pub threads: usize,
}

impl On<'_> {
    /// Figures of `operations` of products in `seconds`, beside the device's rate, and what its
    /// allocator has taken.
    fn add_share(
        &self,
        figures: &mut Value,
        operations: usize,
        seconds: f64,
        precision: Precision,
    ) -> Result<()> {
        // Before the products below take memory of their own.
        add_peak(figures, self.device);
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
    pub fn data(&self, options: &BenchData) -> Result<Measurement> {
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
        Ok(Measurement {
            work: "multicrop",
            settings: json!({ "images": files.len() }),
            figures: json!({ "images_per_s": files.len() as f64 / seconds }),
        })
    }

    /// Runs `work` on the replicas of `model` that labeling and embedding would make, each in a
    /// rayon pool of its own.
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
    pub fn label(&self, options: &BenchOptions) -> Result<Measurement> {
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
        let precision = device::precision(self.common, options.precision, self.device)?;
        let shares = Shares::of(self.device, self.threads).at_most(options.batch);
        let share = options.batch.max(1) / shares.replicas;
        let config = LabelConfig {
            precision,
            batch: share,
            ..LabelConfig::default()
        };
        let vocabulary = Vocabulary::standard()?;
        let labeler = ClipLabeler::new(clip, &info, &vocabulary, &config, self.device)?;
        let pixels = noise(share * 3 * 224 * 224);
        let keys = vec!["image"; share];
        let seconds = timed(options.iters, || {
            self.on_replicas(&labeler, shares, |labeler| {
                Ok(labeler.label(&keys, pixels.clone()).map(drop)?)
            })
        })?;
        let batch = share * shares.replicas;
        let mut figures = json!({ "images_per_s": batch as f64 / seconds });
        self.add_share(&mut figures, batch * operations, seconds, precision)?;
        Ok(Measurement {
            work: "clip_label",
            settings: json!({
                "model": "vit-b-16", "size": "224x224", "batch": batch, "precision": precision, "device": device::name(self.device),
            }),
            figures,
        })
    }

    /// A Swin-T forward at 384x128 without gradient.
    pub fn embed(&self, options: &BenchOptions) -> Result<Measurement> {
        let (height, width) = (384, 128);
        let config = BackboneConfig::named("swin-tiny")?;
        let operations = config.operations([height, width])?;
        let backbone = config.init(&mut rng_for(0, 0, "bench"), self.device);
        let precision = device::precision(self.common, options.precision, self.device)?;
        let shares = Shares::of(self.device, self.threads).at_most(options.batch);
        let share = options.batch.max(1) / shares.replicas;
        let pixels = noise(share * 3 * height * width);
        let seconds = timed(options.iters, || {
            self.on_replicas(&backbone, shares, |backbone| {
                let images = Tensor::from_data(
                    TensorData::new(pixels.clone(), [share, 3, height, width]),
                    self.device,
                );
                let mix = PromptWeights::mean().tensor(self.device);
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
        Ok(Measurement {
            work: "embed",
            settings: json!({
                "model": "swin-tiny", "size": format!("{height}x{width}"), "batch": batch, "precision": precision,
                "device": device::name(self.device),
            }),
            figures,
        })
    }

    /// One pre-training step: by default of the method `dino` without an adapter, as the peer's. Other methods
    /// learn made-up labels.
    pub fn pretrain(&self, options: &BenchPretrain) -> Result<Measurement> {
        let mut overrides = vec![
            "method=dino".to_owned(),
            format!("model.backbone={}", options.model),
            format!("projection_head.prototypes={}", options.prototypes),
            format!("views.local={}", options.local),
            format!("run.batch={}", options.batch),
            "run.steps=1000".to_owned(),
            "optimizer.freeze_last_layer=0.0".to_owned(),
        ];
        overrides.extend(options.set.iter().cloned());
        let recipe = PretrainRecipe::parse("", "bench", &overrides)?;
        let machine = machine(self.device, self.threads);
        let plan = recipe.plan(options.batch * 1000, machine)?;
        let (views, run) = (plan.recipe.views.clone(), plan.recipe.run.clone());
        let [global, local] = [views.global_size, views.local_size];
        // The prompts other than `identity` are those of labels.
        let vocabulary = { plan.prompts[1..].contains(&true) }
            .then(Vocabulary::standard)
            .transpose()?;
        let mut trainer = Pretrainer::new(plan, vocabulary.clone(), self.device)?;
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
        let mut items: Vec<ImageSample> = (0..run.batch)
            .map(|i| ImageSample {
                key: i.to_string(),
                lambda: 1.0,
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
        if let Some(vocabulary) = &vocabulary {
            items
                .iter_mut()
                .for_each(|item| add_labels(item, vocabulary, grid));
        }
        let seconds = timed(options.iters, || {
            let mut step = || trainer.step(&items, false);
            match options.graph {
                true => unfused(step),
                false => step(),
            }?;
            wait(self.device)
        })?;
        let precision = trainer.plan.precision;
        let mut figures =
            json!({ "s_per_step": seconds, "images_per_s": run.batch as f64 / seconds });
        self.add_share(&mut figures, operations, seconds, precision)?;
        let size = |[height, width]: [usize; 2]| format!("{height}x{width}");
        let mut settings = json!({
                "model": trainer.plan.recipe.model.backbone, "method": trainer.plan.recipe.method, "batch": run.batch,
                "prototypes": trainer.plan.prototypes,
                "views": format!("{} of {}, {} of {}", views.global, size(global), views.local, size(local)),
                "accumulate": run.accumulate, "checkpointing": run.gradient_checkpointing, "precision": precision,
                "device": device::name(self.device),
        });
        if options.graph {
            settings["graph"] = json!(true);
        }
        // What else a recipe can change.
        if !options.set.is_empty() {
            settings["set"] = json!(options.set);
        }
        Ok(Measurement {
            work: "pretrain_step",
            settings,
            figures,
        })
    }
}

/// Gives an image labels that cost what real ones do: the part classes in turn, and all values of an
/// attribute equally likely.
fn add_labels(item: &mut ImageSample, vocabulary: &Vocabulary, [rows, columns]: [usize; 2]) {
    let classes = (0..vocabulary.parts.len()).filter_map(|class| u8::try_from(class).ok());
    let parts: Vec<u8> = classes.cycle().take(rows * columns).collect();
    for view in &mut item.views.global {
        view.labels = Some(ViewLabels {
            parts: parts.clone(),
        });
    }
    let even = |range: Range<usize>| vec![1.0 / range.len() as f32; range.len()];
    let attributes = vocabulary.attributes.len();
    item.attributes = Some(AttributeTargets {
        target: vocabulary.ranges().into_iter().flat_map(even).collect(),
        mask: vec![true; attributes],
        weight: vec![1.0; attributes],
    });
}

/// Floating-point operations of the products of a step: those of the student three times, for the
/// backward pass makes two products of each, and those of the teacher; not those of labels.
fn step_operations(plan: &PretrainPlan, channels: usize) -> Result<usize> {
    let (views, head) = (&plan.recipe.views, &plan.recipe.projection_head);
    let of_views =
        |count: usize, size| Ok::<_, anyhow::Error>(count * plan.backbone.operations(size)?);
    let global = of_views(views.global, views.global_size)?;
    let local = of_views(views.local, views.local_size)?;
    let layers = [
        (channels, head.hidden_dim),
        (head.hidden_dim, head.hidden_dim),
        (head.hidden_dim, head.bottleneck_dim),
        (head.bottleneck_dim, plan.prototypes),
    ];
    let projection: usize = layers
        .iter()
        .map(|(inputs, outputs)| 2 * inputs * outputs)
        .sum();
    let student = global + local + (views.global + views.local) * projection;
    let teacher = global + views.global * projection;
    Ok(plan.recipe.run.batch * (3 * student + teacher))
}

fn noise(count: usize) -> Vec<f32> {
    let mut rng = rng_for(0, 0, "noise");
    (0..count).map(|_| rng.random_range(-1.0..1.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_costs_three_students_and_a_teacher() {
        let set = [
            "run.batch=2",
            "views.local=0",
            "model.backbone=swin-pico",
            "projection_head.prototypes=64",
        ];
        let set: Vec<String> = set.map(str::to_owned).to_vec();
        let recipe = PretrainRecipe::parse("", "test", &set).unwrap();
        let plan = recipe.plan(2, machine(&Device::flex(), 1)).unwrap();
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

    /// A step of CLASP was once measured without labels, so without its passes under their prompts.
    #[test]
    fn made_up_labels_are_learned() {
        let set = ["method=clasp", "model.backbone=swin-pico", "run.batch=2"];
        let set = [&set[..], &["views.global_size=[64, 32]"]].concat();
        let set: Vec<String> = set.into_iter().map(str::to_owned).collect();
        let recipe = PretrainRecipe::parse("", "test", &set).unwrap();
        let (device, views) = (Device::flex(), recipe.views.clone());
        let vocabulary = Vocabulary::standard().unwrap();
        let plan = recipe.plan(2, machine(&device, 1)).unwrap();
        let mut trainer = Pretrainer::new(plan, Some(vocabulary.clone()), &device).unwrap();
        let image = Rgb::filled(32, 64, [9, 99, 199]);
        let items: Vec<ImageSample> = (0..2)
            .map(|index| {
                let rng = &mut rng_for(0, index, "view");
                let mut item = ImageSample {
                    key: index.to_string(),
                    lambda: 1.0,
                    views: crop(&image, None, &views, trainer.grid(), rng),
                    attributes: None,
                };
                add_labels(&mut item, &vocabulary, trainer.grid());
                item
            })
            .collect();
        let metrics = trainer.step(&items, false).unwrap().metrics;
        for loss in ["loss/part", "loss/attribute", "loss/part_identity"] {
            assert!(metrics[loss] > 0.0, "{loss}");
        }
    }
}
