//! Human parsing: a light head or CE2P's, trained as Self-Correction for Human Parsing (Li et al., TPAMI 2020), tested with mirroring
//! and at several scales.
//!
//! Self-Correction's consistency term compares two maps of argmaxes where both are 1: it is always 0 and has no gradient,
//! so it is left out.

use std::path::{Component, Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use clasp_data::Rng as DataRng;
use clasp_data::augment::erase::normal;
use clasp_data::augment::{Affine, warp, warp_labels};
use clasp_data::captions::ccp_parts;
use clasp_data::image::{Rgb, encode_label_png};
use clasp_data::layouts::parsing::{
    BLACK_AND_WHITE, IGNORE, LabelMap, MaskedImage, ParsingDataset, is_black_and_white,
};
use clasp_data::layouts::sides::twins;
use clasp_metrics::parsing::Confusion;
use clasp_model::backbone::Features;
use clasp_model::heads::blocks::resize_bilinear;
use clasp_model::heads::{Ce2pConfig, LightParsingHead, ParsingHead, Training};
use clasp_model::layers::Rng;
use clasp_model::losses::{
    edge_loss, edges_of, lovasz_softmax, pixel_cross_entropy, refined_divergence,
};
use clasp_model::mix::{Mix, PART};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::picture;
use crate::TaskError;
use crate::features::{Preprocess, read_image};
use crate::finetune::check;
use crate::finetune::model::{check_finite, values};
use crate::finetune::recipe::setting;
use crate::finetune::{
    Example, Judged, Losses, Model, Report, Running, Split, Stages, Task, Teacher,
};
use clasp_weights::onnx::Output;

/// What [`ccp_parts`] makes of clothes: the parts of the standard vocabulary.
const CCP_PARTS: [&str; 8] = [
    "background",
    "head",
    "upper body",
    "arms",
    "lower body",
    "legs",
    "feet",
    "bag",
];

/// Which head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Head {
    /// All stages added up: fast.
    Light,
    /// Pyramid pooling, decoder, edge branch: the published one.
    Ce2p,
}

/// Which classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Classes {
    /// Those of the data set.
    #[serde(rename = "stored")]
    Stored,
    /// Eight parts of the body, made of the clothes of Clothing Co-Parsing.
    #[serde(rename = "ccp_parts")]
    CcpParts,
}

/// Section `[task]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Splits to train on.
    pub train: Vec<String>,
    /// Which classes.
    pub classes: Classes,
    /// Which head.
    pub head: Head,
    /// Channels of the light head; of CE2P's decoder, whose context has twice as many.
    pub width: usize,
    /// Weight of the cross-entropy.
    pub cross_entropy: f64,
    /// Weight of Lovász-softmax.
    pub lovasz: f64,
    /// Weight of the edges (CE2P's head).
    pub edges: f64,
    /// Probability of mirroring.
    pub flip: f64,
    /// Standard deviation of the scale about 1.
    pub scale: f64,
    /// Most that the scale differs from 1.
    pub scale_limit: f64,
    /// Standard deviation of the rotation in degrees, cut at twice that.
    pub rotation: f64,
    /// Probability of a rotation.
    pub rotation_probability: f64,
    /// Scales of the test.
    pub test_scales: Vec<f64>,
    /// Mean with the mirrored image.
    pub flip_test: bool,
    /// Warp logits, not labels, back to the image: smoother borders, not the published protocol.
    pub warp_logits: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            train: vec!["train".to_owned()],
            classes: Classes::Stored,
            head: Head::Light,
            width: 128,
            cross_entropy: 0.5,
            lovasz: 0.5,
            edges: 1.0,
            flip: 0.5,
            scale: 0.25,
            scale_limit: 0.25,
            rotation: 30.0,
            rotation_probability: 0.6,
            test_scales: vec![1.0],
            flip_test: true,
            warp_logits: false,
        }
    }
}

/// Human parsing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ParsingTask {
    /// The settings.
    pub settings: Settings,
    /// Names of the classes; class 0 is the background.
    pub classes: Vec<String>,
    /// The class that each becomes in a mirrored image.
    pub mirrored: Vec<u8>,
}

/// Images with masks.
#[derive(Debug)]
pub struct Labelled {
    parsing: ParsingDataset,
    images: Vec<MaskedImage>,
    split: String,
}

/// Labels by which masks of Clothing Co-Parsing are known.
const CCP_NAMES: [&str; 3] = ["skin", "hair", "dress"];

fn open_data(folder: &Path, classes: Classes) -> Result<ParsingDataset, TaskError> {
    let parsing = ParsingDataset::open(folder)?;
    Ok(match classes {
        Classes::Stored => parsing,
        Classes::CcpParts => {
            let known = |name: &&str| parsing.classes.iter().any(|class| class == name);
            if let Some(missing) = CCP_NAMES.iter().find(|name| !known(name)) {
                let found = parsing.classes.iter().take(8).cloned();
                return Err(TaskError::Mismatch {
                    file: parsing.file.display().to_string(),
                    expected: format!(
                        "the labels of Clothing Co-Parsing for task.classes = \"ccp_parts\", `{missing}` among them"
                    ),
                    found: format!("{}, ...", found.collect::<Vec<_>>().join(", ")),
                });
            }
            parsing.relabeled(&CCP_PARTS, ccp_parts)
        }
    })
}

/// From the image to the network's input: the whole image in the middle, enlarged to the input's aspect, corners of the
/// map on middles of pixels.
fn input_from_image(
    [image_height, image_width]: [usize; 2],
    [height, width]: [usize; 2],
    scale: f64,
    degrees: f64,
) -> Affine {
    let (w, h) = ((image_width - 1) as f64, (image_height - 1) as f64);
    let aspect = width as f64 / height as f64;
    let wide = w.max(h * aspect) * scale;
    let zoom = (width - 1) as f64 / wide.max(1.0);
    let to = [(width - 1) as f64 / 2.0, (height - 1) as f64 / 2.0];
    Affine::about([w / 2.0, h / 2.0], to, [zoom, zoom], degrees)
}

impl ParsingTask {
    /// Logits of an image at the size of the input: [classes, height, width], row-major, the mean over scales and, if
    /// asked, the mirrored image.
    fn logits(&self, model: &Model<Self>, input: &Rgb) -> Result<Vec<f32>, TaskError> {
        let (height, width) = (input.height, input.width);
        let pixels = TensorData::new(model.preprocess.normalise(input), [1, 3, height, width]);
        let image = Tensor::<4>::from_data(pixels, &model.device);
        let one = |image: Tensor<4>| {
            let features = model.features_of(image);
            model.head.forward(&features.pyramid, None).logits
        };
        let mut sum: Option<Tensor<4>> = None;
        for scale in &self.settings.test_scales {
            let side = |length: usize| ((length as f64 * scale).round() as usize).max(1);
            let scaled = resize_bilinear(image.clone(), [side(height), side(width)], true);
            let mut logits = one(scaled.clone());
            if self.settings.flip_test {
                let order: Vec<i32> = self.mirrored.iter().map(|c| i32::from(*c)).collect();
                let order = Tensor::from_data(TensorData::from(order.as_slice()), &model.device);
                let other = one(scaled.flip([3])).flip([3]).select(1, order);
                logits = (logits + other) / 2.0;
            }
            let logits = resize_bilinear(logits, [height, width], true);
            sum = Some(match sum {
                Some(sum) => sum + logits,
                None => logits,
            });
        }
        let sum = sum.ok_or_else(|| setting("task.test_scales", "at least one scale", "none"))?;
        values(sum)
    }

    /// The classes of an image, at its size.
    fn parse(&self, model: &Model<Self>, image: &Rgb, index: usize) -> Result<LabelMap, TaskError> {
        let (height, width) = (model.preprocess.height, model.preprocess.width);
        let size = [image.height, image.width];
        let forward = input_from_image(size, [height, width], 1.0, 0.0);
        let input = warp(image, &forward.inverse(), height, width, [0; 3]);
        let logits = self.logits(model, &input)?;
        check_finite(&logits, logits.len(), index)?;
        let area = height * width;
        let best = |value: &dyn Fn(usize) -> f32| {
            let classes = 1..self.classes.len();
            classes.fold(0, |best, class| {
                if value(class) > value(best) {
                    class
                } else {
                    best
                }
            }) as u8
        };
        let labels = if self.settings.warp_logits {
            let mut labels = Vec::with_capacity(image.height * image.width);
            for row in 0..image.height {
                for column in 0..image.width {
                    let [x, y] = forward.apply([column as f64, row as f64]);
                    let x = x.clamp(0.0, (width - 1) as f64);
                    let y = y.clamp(0.0, (height - 1) as f64);
                    let (left, top) = (x as usize, y as usize);
                    let (right, low) = ((left + 1).min(width - 1), (top + 1).min(height - 1));
                    let (dx, dy) = ((x - left as f64) as f32, (y - top as f64) as f32);
                    labels.push(best(&|class| {
                        let at = |x: usize, y: usize| logits[class * area + y * width + x];
                        let upper = at(left, top) * (1.0 - dx) + at(right, top) * dx;
                        let lower = at(left, low) * (1.0 - dx) + at(right, low) * dx;
                        upper * (1.0 - dy) + lower * dy
                    }));
                }
            }
            labels
        } else {
            let labels: Vec<u8> = (0..area)
                .map(|at| best(&|class| logits[class * area + at]))
                .collect();
            warp_labels(
                &labels,
                [height, width],
                &forward,
                image.height,
                image.width,
                0,
            )
        };
        Ok(LabelMap {
            height: image.height,
            width: image.width,
            labels,
        })
    }

    /// The losses of a batch, whose labels a teacher refines if there is one: then the divergence from a mean of its logits and the
    /// labels, which count the less the more cycles it has, takes the place of the cross-entropies.
    fn losses(
        &self,
        head: &ParsingHead,
        features: &Features,
        targets: &[(Vec<u8>, [usize; 2])],
        training: &mut Training<'_>,
        teacher: Option<&Teacher<'_, ParsingHead>>,
    ) -> Losses {
        let settings = &self.settings;
        let size @ [height, width] = targets.first().map_or([1, 1], |(_, size)| *size);
        let labels: Vec<u8> = targets
            .iter()
            .flat_map(|(labels, _)| labels.clone())
            .collect();
        let up = |map: Tensor<4>| resize_bilinear(map, size, true);
        let soft = teacher.map(|teacher| {
            let output = teacher.head.forward(&teacher.features.pyramid, None);
            let share = 1.0 / (teacher.cycles as f64 + 1.0);
            (up(output.logits), output.edges.map(up), share)
        });
        let classes = |logits: Tensor<4>| match &soft {
            None => pixel_cross_entropy(logits, &labels),
            Some((soft, _, share)) => {
                refined_divergence(logits, soft.clone(), &labels, &labels, *share)
            }
        };
        let output = head.forward(&features.pyramid, Some(training));
        let logits = up(output.logits);
        let mut cross_entropy = classes(logits.clone());
        let mut lovasz = lovasz_softmax(logits, &labels);
        if let Some(first) = output.first {
            let first = up(first);
            cross_entropy = cross_entropy + classes(first.clone());
            lovasz = lovasz + lovasz_softmax(first, &labels);
        }
        let (ce, lv) = (settings.cross_entropy, settings.lovasz);
        let terms = [("cross_entropy", cross_entropy, ce), ("lovasz", lovasz, lv)];
        let Some(edges) = output.edges.map(up) else {
            return Losses::sum(terms);
        };
        let truth: Vec<u8> = { labels.chunks_exact(height * width) }
            .flat_map(|labels| edges_of(labels, height, width))
            .collect();
        let edges = match soft {
            Some((_, Some(soft), share)) => refined_divergence(edges, soft, &truth, &labels, share),
            _ => edge_loss(edges, &truth),
        };
        let [first, second] = terms;
        Losses::sum([first, second, ("edges", edges, settings.edges)])
    }

    fn protocol(&self, preprocess: &Preprocess, split: &str) -> String {
        let settings = &self.settings;
        let head = match settings.head {
            Head::Light => "light head",
            Head::Ce2p => "CE2P head",
        };
        let mirrored = if settings.flip_test {
            ", each with its mirror image (left and right classes exchanged)"
        } else {
            ""
        };
        let back = if settings.warp_logits {
            "logits mapped back bilinearly, then the largest (not the published protocol)"
        } else {
            "the largest logit, mapped back to the image by the nearest pixel"
        };
        format!(
            "Human parsing, fine-tuned, {head}: the whole image in the middle of {}x{} (height x width), black beyond it; scales {:?}{mirrored}; {back}. \
             Trained on split {}, evaluated on split `{split}`: one confusion matrix over all pixels but those labelled 255. mIoU is the mean over \
             all {} classes, as in LIP; over those that the masks hold it stands beside.",
            preprocess.height,
            preprocess.width,
            settings.test_scales,
            settings.train.join(" + "),
            self.classes.len(),
        )
    }
}

/// Judges the confusion of classes; `file` is the data's, for messages.
pub(crate) fn judge(
    classes: &[String],
    confusion: &Confusion,
    file: &Path,
) -> Result<Judged, TaskError> {
    let metrics = confusion.metrics();
    if metrics.pixel_accuracy.is_none() {
        return Err(TaskError::Mismatch {
            file: file.display().to_string(),
            expected: format!("masks with pixels of a class: {}", classes.join(", ")),
            found:
                "pixels to be ignored alone\nhint: `task.classes` may be for other masks than these"
                    .to_owned(),
        });
    }
    let mut table = format!(
        "{:<24} {:>8} {:>8} {:>12}\n",
        "class", "IoU", "accuracy", "pixels"
    );
    let percent =
        |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{:.2}", 100.0 * v));
    for (name, class) in classes.iter().zip(&metrics.per_class) {
        let (iou, accuracy) = (percent(class.iou), percent(class.accuracy));
        table.push_str(&format!(
            "{name:<24} {iou:>8} {accuracy:>8} {:>12}\n",
            class.pixels
        ));
    }
    Ok(Judged {
        figures: vec![
            ("mIoU".to_owned(), metrics.mean_iou),
            (
                "mIoU of classes present".to_owned(),
                metrics.mean_iou_present.unwrap_or(metrics.mean_iou),
            ),
            ("mean accuracy".to_owned(), metrics.mean_accuracy),
            (
                "pixel accuracy".to_owned(),
                metrics.pixel_accuracy.unwrap_or(0.0),
            ),
        ],
        table,
        details: json!({"classes": classes, "metrics": metrics}),
    })
}

impl Task for ParsingTask {
    const NAME: &'static str = "parsing";
    type Settings = Settings;
    type Data = Labelled;
    type Eval = Labelled;
    type Head = ParsingHead;
    /// Labels of the input, [height, width], and their size.
    type Target = (Vec<u8>, [usize; 2]);

    fn default_mix() -> Mix {
        Mix::single(PART)
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    fn check(settings: &Settings) -> Result<(), TaskError> {
        check::count("task.width", settings.width, [1, 4096])?;
        let shares = [
            ("task.flip", settings.flip),
            ("task.rotation_probability", settings.rotation_probability),
        ];
        check::within(&shares, [0.0, 1.0])?;
        let weights = [
            ("task.cross_entropy", settings.cross_entropy),
            ("task.lovasz", settings.lovasz),
            ("task.edges", settings.edges),
        ];
        check::within(&weights, [0.0, 1e4])?;
        check::within(&[("task.scale", settings.scale)], [0.0, 10.0])?;
        check::within(&[("task.scale_limit", settings.scale_limit)], [0.0, 0.99])?;
        check::within(&[("task.rotation", settings.rotation)], [0.0, 180.0])?;
        check::count(
            "number of task.test_scales",
            settings.test_scales.len(),
            [1, 64],
        )?;
        for scale in &settings.test_scales {
            check::within(&[("task.test_scales", *scale)], [0.1, 4.0])?;
        }
        Ok(())
    }

    fn open(
        settings: &Settings,
        folder: &Path,
        _: Option<&Split>,
    ) -> Result<(Self, Labelled), TaskError> {
        let parsing = open_data(folder, settings.classes)?;
        let mut images = Vec::new();
        for split in &settings.train {
            images.extend(parsing.split(split)?.into_iter().cloned());
        }
        let task = Self {
            settings: settings.clone(),
            mirrored: (twins(&parsing.sides().pairs, parsing.classes.len()).into_iter())
                .map(|twin| twin as u8)
                .collect(),
            classes: parsing.classes.clone(),
        };
        let split = settings.train.join(" + ");
        let data = Labelled {
            parsing,
            images,
            split,
        };
        Ok((task, data))
    }

    fn open_eval(&self, folder: &Path, split: &Split) -> Result<Labelled, TaskError> {
        let parsing = open_data(folder, self.settings.classes)?;
        if parsing.classes != self.classes {
            return Err(TaskError::Mismatch {
                file: parsing.file.display().to_string(),
                expected: format!("the classes of the model: {}", self.classes.join(", ")),
                found: parsing.classes.join(", "),
            });
        }
        let name = split.among(parsing.splits(), &parsing.file)?;
        let images = parsing.split(&name)?.into_iter().cloned().collect();
        Ok(Labelled {
            parsing,
            images,
            split: name,
        })
    }

    fn notes(&self, data: &Labelled) -> Vec<String> {
        let (settings, file) = (&self.settings, data.parsing.file.display());
        let names = |classes: &[usize]| -> String {
            let names: Vec<&str> = classes
                .iter()
                .map(|class| self.classes[*class].as_str())
                .collect();
            names.join(", ")
        };
        let mut notes = Vec::new();
        let absent = data.parsing.absent(&data.images);
        // Two colours: 255 is what is ignored, and all of one class would be learnt.
        if absent.len() + 1 == self.classes.len() && !absent.contains(&0) {
            let masks = data.images.iter().take(64).filter_map(|image| {
                let map = data.parsing.read_mask(&image.mask).ok()?;
                Some(map.present())
            });
            let mut present = [false; 256];
            masks.for_each(|mask| (0..256).for_each(|label| present[label] |= mask[label]));
            if is_black_and_white(&present) {
                notes.push(format!("{file}: {BLACK_AND_WHITE}"));
            }
        }
        if !absent.is_empty() {
            notes.push(format!(
                "{file}: no mask of split {} has a pixel of {}: nothing can be learnt of that, and mIoU counts it as 0 where it is evaluated",
                data.split,
                names(&absent)
            ));
        }
        let alone = data.parsing.sides().alone;
        if !alone.is_empty() && (settings.flip > 0.0 || settings.flip_test) {
            notes.push(format!(
                "{file}: there is no class for the other side of {}, so that mirrored images teach wrong labels: set task.flip = 0 and \
                 task.flip_test = false, or name both sides alike",
                names(&alone)
            ));
        }
        notes
    }

    fn files<'a>(&self, data: &'a Labelled) -> Vec<&'a Path> {
        { data.images.iter() }
            .flat_map(|one| [one.image.as_path(), one.mask.as_path()])
            .collect()
    }

    fn examples(&self, data: &Labelled) -> usize {
        data.images.len()
    }

    fn example(
        &self,
        data: &Labelled,
        index: usize,
        preprocess: &Preprocess,
        rng: &mut DataRng,
    ) -> Result<Example<Self::Target>, TaskError> {
        let settings = &self.settings;
        let MaskedImage { image, mask, .. } = &data.images[index];
        let key = image.display().to_string();
        let (image, labels) = read_pair(&data.parsing, image, mask)?;
        let limit = settings.scale_limit;
        let scale = 1.0 + (f64::from(normal(rng)) * settings.scale).clamp(-limit, limit);
        let turn = rng.random::<f64>() < settings.rotation_probability;
        let degrees = f64::from(normal(rng)) * settings.rotation;
        let degrees = degrees.clamp(-2.0 * settings.rotation, 2.0 * settings.rotation);
        let (height, width) = (preprocess.height, preprocess.width);
        let size = [image.height, image.width];
        let forward = input_from_image(
            size,
            [height, width],
            scale,
            if turn { degrees } else { 0.0 },
        );
        let back = forward.inverse();
        let mut image = warp(&image, &back, height, width, [0; 3]);
        let mut labels = warp_labels(&labels.labels, size, &back, height, width, IGNORE);
        if rng.random_bool(settings.flip) {
            image = clasp_data::image::flip(&image);
            for row in labels.chunks_exact_mut(width) {
                row.reverse();
                for label in row.iter_mut().filter(|label| **label != IGNORE) {
                    *label = self.mirrored[usize::from(*label)];
                }
            }
        }
        Ok(Example {
            pixels: preprocess.normalise(&image),
            size: [preprocess.height, preprocess.width],
            target: (labels, [height, width]),
            key,
        })
    }

    fn head(
        &self,
        stages: &Stages,
        rng: &mut Rng,
        device: &Device,
    ) -> Result<ParsingHead, TaskError> {
        let (width, classes) = (self.settings.width, self.classes.len());
        if width == 0 {
            return Err(setting("task.width", "at least 1", 0));
        }
        Ok(match self.settings.head {
            Head::Light => ParsingHead::Light(LightParsingHead::init(
                &stages.channels,
                width,
                classes,
                rng,
                device,
            )),
            Head::Ce2p => {
                let channels =
                    <[usize; 4]>::try_from(stages.channels.clone()).map_err(|found| {
                        let expected = "light for a backbone without four stages";
                        setting(
                            "task.head",
                            expected,
                            format!("ce2p and {} stages", found.len()),
                        )
                    })?;
                let config = Ce2pConfig {
                    context: 2 * width,
                    decoder: width,
                    ..Ce2pConfig::new(channels, classes)
                };
                ParsingHead::Ce2p(config.init(rng, device))
            }
        })
    }

    fn outputs(&self, head: &ParsingHead, features: Features) -> Vec<(String, Output)> {
        let logits = head.forward(&features.pyramid, None).logits;
        vec![("logits".to_owned(), logits.into())]
    }

    fn loss(
        &self,
        head: &ParsingHead,
        features: &Features,
        targets: &[Self::Target],
        training: &mut Training<'_>,
    ) -> Losses {
        self.losses(head, features, targets, training, None)
    }

    const CORRECTS: bool = true;

    fn refined_loss(
        &self,
        head: &ParsingHead,
        features: &Features,
        targets: &[Self::Target],
        training: &mut Training<'_>,
        teacher: &Teacher<'_, ParsingHead>,
    ) -> Losses {
        self.losses(head, features, targets, training, Some(teacher))
    }

    fn evaluate(
        &self,
        model: &Model<Self>,
        eval: &Labelled,
        running: &Running<'_>,
    ) -> Result<Report, TaskError> {
        let classes = self.classes.len();
        let batches = model.batches(
            "evaluation images",
            eval.images.len(),
            running,
            |model, items| {
                let mut confusion = Confusion::new(classes);
                let mut masks = Vec::new();
                for index in items {
                    let MaskedImage {
                        image, mask, name, ..
                    } = &eval.images[index];
                    let (image, labels) = read_pair(&eval.parsing, image, mask)?;
                    let found = self.parse(model, &image, index)?;
                    confusion.add(&labels.labels, &found.labels)?;
                    if running.predictions {
                        let png = encode_label_png(&found.labels, found.height, found.width);
                        masks.push((Path::new(name).with_extension("png"), png));
                    }
                }
                Ok(vec![(confusion, masks)])
            },
        )?;
        let mut confusion = Confusion::new(classes);
        batches.iter().for_each(|(batch, _)| confusion.merge(batch));
        let masks = batches.into_iter().flat_map(|(_, masks)| masks);
        let Judged {
            figures,
            table,
            details,
        } = judge(&self.classes, &confusion, &eval.parsing.file)?;
        Ok(Report {
            task: Self::NAME,
            protocol: self.protocol(&model.preprocess, &eval.split),
            data: format!("split `{}`", eval.split),
            loss: None,
            notes: Vec::new(),
            figures,
            details,
            table,
            predictions: tar_of(masks)?,
        })
    }

    fn predict(&self, model: &Model<Self>, image: &Rgb) -> Result<Value, TaskError> {
        let map = self.parse(model, image, 0)?;
        // Runs of [label, length] along the rows.
        let mut runs: Vec<[usize; 2]> = Vec::new();
        for label in &map.labels {
            match runs.last_mut() {
                Some([last, length]) if *last == usize::from(*label) => *length += 1,
                _ => runs.push([usize::from(*label), 1]),
            }
        }
        Ok(json!({
            "classes": self.classes,
            "height": map.height,
            "width": map.width,
            "runs": runs,
        }))
    }

    fn draw(&self, image: &Rgb, prediction: &Value) -> Rgb {
        let labels = labels_of(prediction);
        let mut shares = vec![0_usize; self.classes.len()];
        for label in &labels {
            if let Some(share) = shares.get_mut(usize::from(*label)) {
                *share += 1;
            }
        }
        let tinted = picture::tinted(image, &labels);
        let mut sheet = picture::beside(&tinted, &[]);
        let names: Vec<(usize, &String)> = { self.classes.iter().enumerate() }
            .filter(|(class, _)| *class > 0 && shares[*class] > 0)
            .collect();
        let lines: Vec<String> = names.iter().map(|(_, name)| (*name).clone()).collect();
        if !lines.is_empty() {
            sheet = picture::beside(&tinted, &lines);
            for (row, (class, _)) in names.iter().enumerate() {
                let line = clasp_data::font::HEIGHT * 2 + 2;
                let colour = picture::colour(class - 1);
                clasp_data::font::fill(
                    &mut sheet,
                    tinted.width,
                    6 + row * line,
                    4,
                    line - 2,
                    colour,
                );
            }
        }
        sheet
    }

    fn draw_person(&self, photo: &mut Rgb, crop: [usize; 4], prediction: &Value) {
        let part = clasp_data::image::crop(photo, crop);
        let tinted = picture::tinted(&part, &labels_of(prediction));
        picture::paste(photo, &tinted, crop[0], crop[1]);
    }
}

/// A tar of files; the same files always give the same bytes.
fn tar_of(files: impl Iterator<Item = (PathBuf, Vec<u8>)>) -> Result<Vec<u8>, TaskError> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        // A table may name images by their full path; an archive must not.
        let is_name = |part: &Component| matches!(part, Component::Normal(_));
        let name: PathBuf = name.components().filter(is_name).collect();
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes.as_slice())?;
    }
    Ok(archive.into_inner()?)
}

/// The labels of a prediction, [height, width].
pub fn labels_of(prediction: &Value) -> Vec<u8> {
    let runs = prediction["runs"].as_array().map_or(&[][..], Vec::as_slice);
    let run = |run: &Value| {
        let number = |at: usize| run[at].as_u64().unwrap_or(0) as usize;
        std::iter::repeat_n(number(0) as u8, number(1))
    };
    runs.iter().flat_map(run).collect()
}

/// An image and its mask, which must be as large.
fn read_pair(
    data: &ParsingDataset,
    image: &Path,
    mask: &Path,
) -> Result<(Rgb, LabelMap), TaskError> {
    let (picture, labels) = (read_image(image)?, data.read_mask(mask)?);
    if [picture.height, picture.width] != [labels.height, labels.width] {
        return Err(TaskError::Mismatch {
            file: mask.display().to_string(),
            expected: format!(
                "{}x{} (height x width) as its image",
                picture.height, picture.width
            ),
            found: format!("{}x{}", labels.height, labels.width),
        });
    }
    Ok((picture, labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_those_of_the_standard_vocabulary() {
        let vocabulary = clasp_data::vocabulary::Vocabulary::standard().unwrap();
        let names: Vec<String> = vocabulary.parts.into_iter().map(|part| part.name).collect();
        assert_eq!(names, CCP_PARTS);
    }

    /// A table of two images and masks, one in a folder below, with a class that no mask has and a side without the other.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        fs_err::create_dir(at.join("a")).unwrap();
        fs_err::write(at.join("labels.txt"), "null\nLArm\nRArm\nleft shoe\n").unwrap();
        let table = "image,mask,split\n1.png,1.png,train\na/1.png,a/1.png,train\n";
        fs_err::write(at.join("parsing.csv"), table).unwrap();
        for (name, labels) in [("1.png", [0, 1]), ("a/1.png", [3, 0])] {
            fs_err::write(at.join(name), encode_label_png(&labels, 1, 2)).unwrap();
        }
        folder
    }

    #[test]
    fn classes_that_mirrored_images_or_no_image_teaches_are_told() {
        let folder = folder();
        let open = |settings: &Settings| {
            let (task, data) = ParsingTask::open(settings, folder.path(), None).unwrap();
            let notes = task.notes(&data);
            (task, notes)
        };
        let (task, notes) = open(&Settings::default());
        assert_eq!(task.mirrored, [0, 2, 1, 3]);
        assert!(
            notes[0].contains("no mask of split train has a pixel of RArm:"),
            "{notes:?}"
        );
        assert!(
            notes[1].contains("the other side of left shoe, so"),
            "{notes:?}"
        );
        let still = Settings {
            flip: 0.0,
            flip_test: false,
            ..Settings::default()
        };
        assert_eq!(open(&still).1.len(), 1);
    }

    #[test]
    fn masks_of_different_folders_have_different_names() {
        let folder = folder();
        let data = ParsingDataset::open(folder.path()).unwrap();
        let names: Vec<&str> = { data.images.iter() }
            .map(|one| one.name.as_str())
            .collect();
        assert_eq!(names, ["1.png", "a/1.png"]);
        let files = ["1.png", "a/1.png", "/b/../1.png"].map(|name| (PathBuf::from(name), vec![7]));
        let bytes = tar_of(files.into_iter()).unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let names = { archive.entries().unwrap() }
            .map(|entry| entry.unwrap().path().unwrap().display().to_string());
        assert_eq!(Vec::from_iter(names), ["1.png", "a/1.png", "b/1.png"]);
    }

    #[test]
    fn the_input_is_that_of_the_published_code() {
        #[derive(Deserialize)]
        struct Case {
            image: [usize; 2],
            input: [usize; 2],
            scale: f64,
            degrees: f64,
            matrix: [[f64; 3]; 2],
        }
        #[derive(Deserialize)]
        struct Golden {
            parsing: Vec<Case>,
        }
        let golden: Golden =
            serde_json::from_str(include_str!("../../tests/golden/affine.json")).unwrap();
        for case in golden.parsing {
            let found = input_from_image(case.image, case.input, case.scale, case.degrees).0;
            for (found, expected) in found.iter().flatten().zip(case.matrix.iter().flatten()) {
                // OpenCV takes its points as f32.
                assert!((found - expected).abs() < 2e-3, "{found} {expected}");
            }
        }
    }

    /// The border of a mask was once lost on its way back: the image came a pixel over the edge of the input.
    #[test]
    fn every_pixel_of_an_image_comes_into_the_input_and_back() {
        for size in [[100, 30], [40, 90], [64, 32], [120, 100], [300, 200]] {
            let (height, width) = (57, 38);
            let map = input_from_image(size, [height, width], 1.0, 0.0);
            for corner in [[0.0, 0.0], [(size[1] - 1) as f64, (size[0] - 1) as f64]] {
                let [x, y] = map.apply(corner);
                let inside =
                    |at: f64, length: usize| (-1e-9..=length as f64 - 1.0 + 1e-9).contains(&at);
                assert!(inside(x, width) && inside(y, height), "{size:?}: {x} {y}");
            }
            let labels = vec![1; height * width];
            let back = warp_labels(&labels, [height, width], &map, size[0], size[1], 0);
            assert!(back.iter().all(|label| *label == 1), "{size:?}");
        }
    }

    #[test]
    fn runs_are_labels() {
        let value = json!({"runs": [[0, 2], [7, 1], [0, 1]]});
        assert_eq!(labels_of(&value), [0, 0, 7, 0]);
    }
}
