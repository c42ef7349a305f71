//! Re-identification: BNNeck with identity and triplet loss (Luo et al., CVPR Workshops 2019), as SOLIDER fine-tunes it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Tensor, TensorData};
use clasp_data::Rng as DataRng;
use clasp_data::augment::{erase, shift};
use clasp_data::image::{Filter, Rgb, flip, resize};
use clasp_data::layouts::LayoutError;
use clasp_data::layouts::reid::{MsmtVal, ReidDataset as People, ReidImage, people};
use clasp_data::rng_for;
use clasp_metrics::reid;
use clasp_metrics::rerank::{self, Rerank};
use clasp_metrics::verify;
use clasp_model::backbone::Features;
use clasp_model::heads::{ReidHead, Training};
use clasp_model::layers::Rng;
use clasp_model::losses::{batch_hard_triplet, cross_entropy};
use clasp_model::mix::{ATTRIBUTE, Mix};
use rand::RngExt;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::picture;
use crate::TaskError;
use crate::features::{Extracted, Extractor, Inputs, Preprocess, read_image};
use crate::finetune::check;
use crate::finetune::model::{check_finite, values};
use crate::finetune::recipe::setting;
use crate::finetune::{Example, Losses, Model, Report, Running, Split, Stages, Task};
use crate::reid::Described;
use clasp_weights::onnx::Output;

/// Ranks of the CMC that are kept.
const RANKS: usize = 50;
/// Gallery images named for each query in the predictions.
const NAMED: usize = 50;
/// Shares of different people that may be taken for the same, at which thresholds are told.
const FALSE_RATES: [f64; 3] = [1e-2, 1e-3, 1e-4];

/// Which feature is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Feature {
    /// The pooled feature, before the neck: SOLIDER's way.
    Before,
    /// After the neck: the way of the paper.
    After,
}

/// Section `[task]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Images of an identity in a batch, K; a batch holds batch / K identities.
    pub instances: usize,
    /// Margin of the triplet loss; 0 for the soft margin.
    pub margin: f64,
    /// Weight of the cross-entropy over identities.
    pub identity_weight: f64,
    /// Weight of the triplet loss.
    pub triplet_weight: f64,
    /// Label smoothing.
    pub smoothing: f64,
    /// Probability of mirroring.
    pub flip: f64,
    /// Most pixels that an image is shifted by.
    pub padding: usize,
    /// Probability of random erasing.
    pub erasing: f64,
    /// Share of the training identities kept apart to choose models by (`run.select = "val"`).
    pub holdout: f64,
    /// Which feature is compared.
    pub feature: Feature,
    /// Resize test images bilinearly, as SOLIDER does, not with the filter of training.
    pub test_bilinear: bool,
    /// Add the feature of the mirrored image.
    pub flip_test: bool,
    /// Share of pairs of two people that may be taken for one, at which a threshold to keep is read off.
    pub false_rate: f64,
    /// Also re-rank by k-reciprocal encoding.
    pub rerank: bool,
    /// Nearest neighbours that may be reciprocal in it, k1.
    pub rerank_k1: usize,
    /// Nearest neighbours whose encodings are averaged in it, k2.
    pub rerank_k2: usize,
    /// Share of the original distance in it.
    pub rerank_lambda: f64,
    /// Where MSMT17's validation images go: into training, as published, or apart to choose models by.
    pub msmt_val: MsmtValidation,
}

/// Where MSMT17's validation images go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MsmtValidation {
    /// Into training.
    Train,
    /// Apart.
    Holdout,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            instances: 4,
            margin: 0.0,
            identity_weight: 1.0,
            triplet_weight: 1.0,
            smoothing: 0.0,
            flip: 0.5,
            padding: 10,
            erasing: 0.5,
            holdout: 0.0,
            feature: Feature::Before,
            test_bilinear: false,
            flip_test: false,
            false_rate: 1e-3,
            rerank: false,
            rerank_k1: Rerank::default().k1,
            rerank_k2: Rerank::default().k2,
            rerank_lambda: Rerank::default().lambda,
            msmt_val: MsmtValidation::Train,
        }
    }
}

/// Where two people's likeness ends: read off labelled images, kept with a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamePerson {
    /// Images of at least this cosine are taken to show one person.
    pub cosine: f64,
    /// Share of pairs of two people that reach it.
    pub false_rate: f64,
    /// Share of pairs of one person that reach it.
    pub true_rate: f64,
    /// What it was read off.
    pub data: String,
}

/// Re-identification.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reid {
    /// The settings.
    pub settings: Settings,
    /// Training identities, in the order of the classifier.
    pub identities: Vec<i64>,
    /// The threshold, once it was read off.
    #[serde(default)]
    pub same_person: Option<SamePerson>,
}

/// Images to train on, and the class of each.
#[derive(Debug)]
pub struct Data {
    crops: Vec<(PathBuf, usize)>,
    /// Positions in `crops` of the images of each class.
    images: Vec<Vec<u32>>,
}

/// Queries and gallery.
#[derive(Debug)]
pub struct Eval {
    /// What they are.
    pub name: String,
    /// Queries.
    pub query: Vec<ReidImage>,
    /// Gallery.
    pub gallery: Vec<ReidImage>,
}

impl Reid {
    /// Features of images, row-major, one an image.
    ///
    /// # Errors
    /// An image that cannot be read, or features that are not finite.
    pub fn features(
        model: &Model<Self>,
        images: &[Rgb],
        first: usize,
    ) -> Result<Vec<f32>, TaskError> {
        let settings = &model.task.settings;
        let preprocess = model.task.test_preprocess(&model.preprocess);
        let (height, width) = (preprocess.height, preprocess.width);
        let of = |images: &mut dyn Iterator<Item = Rgb>| -> Result<Vec<f32>, TaskError> {
            let pixels: Vec<f32> = images.flat_map(|image| preprocess.apply(&image)).collect();
            let batch = pixels.len() / (3 * height * width);
            let pooled = model.features(pixels, [batch, height, width]).pooled;
            values(model.task.compared(model, pooled))
        };
        let mut features = of(&mut images.iter().cloned())?;
        if settings.flip_test {
            let mirrored = of(&mut images.iter().map(flip))?;
            features.iter_mut().zip(mirrored).for_each(|(a, b)| *a += b);
        }
        check_finite(&features, features.len() / images.len().max(1), first)?;
        Ok(features)
    }

    /// How an image to be compared becomes an input.
    pub fn test_preprocess(&self, preprocess: &Preprocess) -> Preprocess {
        let mut preprocess = preprocess.clone();
        if self.settings.test_bilinear {
            preprocess.filter = Filter::Bilinear;
        }
        preprocess
    }

    fn rerank(&self) -> Rerank {
        Rerank {
            k1: self.settings.rerank_k1,
            k2: self.settings.rerank_k2,
            lambda: self.settings.rerank_lambda,
        }
    }

    /// The feature that is compared: [batch, channels] → [batch, channels].
    fn compared(&self, model: &Model<Self>, pooled: Tensor<2>) -> Tensor<2> {
        match self.settings.feature {
            Feature::Before => pooled,
            Feature::After => model.head.forward(pooled, None),
        }
    }

    fn protocol(&self, preprocess: &Preprocess, eval: &Eval) -> String {
        let settings = &self.settings;
        let filter = if settings.test_bilinear {
            ", Bilinear at test"
        } else {
            ""
        };
        let feature = match settings.feature {
            Feature::Before => "before the neck",
            Feature::After => "after the neck",
        };
        let mirrored = if settings.flip_test {
            ", plus that of the mirrored image"
        } else {
            ""
        };
        let rerank = self.rerank();
        let rerank = if settings.rerank {
            format!(
                " Also re-ranked by k-reciprocal encoding, k1 {}, k2 {}, lambda {}.",
                rerank.k1, rerank.k2, rerank.lambda
            )
        } else {
            String::new()
        };
        format!(
            "Re-identification, fine-tuned: {}; the whole image resized to {preprocess}{filter}, mean {:?}, std {:?}; the feature {feature}{mirrored}, \
             L2-normalised, ranked by distance. Market-1501 rules: the same person from the same camera is left out, person -1 is dropped, \
             person 0 stays as a distractor; a query without a match from another camera is skipped. Ties keep the order of file names.{rerank}",
            eval.name, preprocess.mean, preprocess.std,
        )
    }
}

impl Task for Reid {
    const NAME: &'static str = "reid";
    type Settings = Settings;
    type Data = Data;
    type Eval = Eval;
    type Head = ReidHead;
    type Target = usize;

    fn default_mix() -> Mix {
        // The best on development people of `runs/evidence.py`, ahead of identity itself: attributes tell people apart.
        Mix::single(ATTRIBUTE)
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    fn check(settings: &Settings) -> Result<(), TaskError> {
        check::count("task.instances", settings.instances, [1, 1024])?;
        check::count("task.padding", settings.padding, [0, 1024])?;
        check::count("task.rerank_k1", settings.rerank_k1, [1, 10_000])?;
        check::count(
            "task.rerank_k2",
            settings.rerank_k2,
            [1, settings.rerank_k1],
        )?;
        let shares = [
            ("task.flip", settings.flip),
            ("task.erasing", settings.erasing),
            ("task.holdout", settings.holdout),
            ("task.smoothing", settings.smoothing),
            ("task.rerank_lambda", settings.rerank_lambda),
            ("task.false_rate", settings.false_rate),
        ];
        check::within(&shares, [0.0, 1.0])?;
        let weights = [
            ("task.margin", settings.margin),
            ("task.identity_weight", settings.identity_weight),
            ("task.triplet_weight", settings.triplet_weight),
        ];
        Ok(check::within(&weights, [0.0, 1e4])?)
    }

    fn open(
        settings: &Settings,
        folder: &Path,
        choose_by: Option<&Split>,
    ) -> Result<(Self, Data), TaskError> {
        let market = open(folder, settings)?;
        let held = held_out(&market.train, settings.holdout);
        if choose_by == Some(&Split::Val) && held.is_empty() && market.val.is_empty() {
            let expected =
                "a share above 0 for `run.select = \"val\"`: there is no other validation split";
            return Err(setting("task.holdout", expected, settings.holdout));
        }
        if settings.instances == 0 {
            return Err(setting("task.instances", "at least 1", 0));
        }
        let crops: Vec<&ReidImage> = { market.train.iter() }
            .filter(|crop| crop.person > 0 && !held.contains(&crop.person))
            .collect();
        let identities: BTreeSet<i64> = crops.iter().map(|crop| crop.person).collect();
        let identities: Vec<i64> = identities.into_iter().collect();
        let class: BTreeMap<i64, usize> = { identities.iter().enumerate() }
            .map(|(class, person)| (*person, class))
            .collect();
        let mut images = vec![Vec::new(); identities.len()];
        for (position, crop) in crops.iter().enumerate() {
            images[class[&crop.person]].push(position as u32);
        }
        let place = format!("training images of {}", market.root.display());
        if identities.len() < 2 {
            return Err(TaskError::TooFew {
                what: place,
                expected: "images of at least 2 people to train on",
                found: identities.len(),
            });
        }
        if images.iter().all(|images| images.len() < 2) {
            return Err(TaskError::Mismatch {
                file: place,
                expected: "people with at least 2 images each, which triplets need".to_owned(),
                found: format!("1 image of each of {} people", identities.len()),
            });
        }
        let crops = { crops.iter() }
            .map(|crop| (crop.path.clone(), class[&crop.person]))
            .collect();
        let task = Self {
            settings: settings.clone(),
            identities,
            same_person: None,
        };
        Ok((task, Data { crops, images }))
    }

    fn open_eval(&self, folder: &Path, split: &Split) -> Result<Eval, TaskError> {
        let market = open(folder, &self.settings)?;
        if let Split::Named(name) = split {
            return Err(TaskError::Layout(LayoutError::NoSplit {
                file: folder.display().to_string(),
                wanted: name.clone(),
                splits: vec!["val".to_owned(), "test".to_owned()],
            }));
        }
        if *split == Split::Val {
            let held = held_out(&market.train, self.settings.holdout);
            let gallery: Vec<ReidImage> = if held.is_empty() {
                market.val
            } else {
                let train = market.train.into_iter();
                train.filter(|crop| held.contains(&crop.person)).collect()
            };
            let mut seen = BTreeSet::new();
            let query: Vec<ReidImage> = { gallery.iter() }
                .filter(|crop| seen.insert((crop.person, crop.camera)))
                .cloned()
                .collect();
            if query.is_empty() {
                let expected =
                    "a share above 0: split `val` is made of training identities kept apart";
                return Err(setting("task.holdout", expected, self.settings.holdout));
            }
            let people = people(&gallery);
            let name = format!(
                "{}, {people} people kept apart from training, the first image of each camera as query",
                market.layout
            );
            return Ok(Eval {
                name,
                query,
                gallery,
            });
        }
        let val = match (market.layout, self.settings.msmt_val) {
            ("MSMT17", MsmtValidation::Train) => " (trained with list_val, as published)",
            ("MSMT17", MsmtValidation::Holdout) => " (list_val kept out of training)",
            _ => "",
        };
        Ok(Eval {
            name: format!("{}, queries against the test gallery{val}", market.layout),
            query: market.query,
            gallery: market.gallery,
        })
    }

    fn files<'a>(&self, data: &'a Data) -> Vec<&'a Path> {
        { data.crops.iter() }
            .map(|(path, _)| path.as_path())
            .collect()
    }

    fn examples(&self, data: &Data) -> usize {
        // Whole groups of K, as the published sampler counts; a smaller identity makes up one group.
        let k = self.settings.instances;
        let groups = |images: &Vec<u32>| (images.len() / k).max(1) * k;
        data.images.iter().map(groups).sum()
    }

    fn order(&self, data: &Data, batch: usize, seed: u64, epoch: u64) -> Option<Vec<u32>> {
        let mut rng = rng_for(seed, epoch, "identities of batches");
        let k = self.settings.instances;
        let order =
            batches_of_identities(&data.images, batch / k, k, self.examples(data), &mut rng);
        Some(order)
    }

    fn check_batch(&self, data: &Data, batch: usize) -> Result<(), TaskError> {
        let k = self.settings.instances;
        let (identities, people) = (batch / k, data.images.len());
        if !batch.is_multiple_of(k) || identities < 2 || identities > people {
            let expected = format!(
                "a multiple of task.instances = {k} for 2 to {people} identities, those that there are to train on"
            );
            return Err(setting("run.batch", &expected, batch));
        }
        Ok(())
    }

    fn example(
        &self,
        data: &Data,
        index: usize,
        preprocess: &Preprocess,
        rng: &mut DataRng,
    ) -> Result<Example<usize>, TaskError> {
        let (path, class) = &data.crops[index];
        let settings = &self.settings;
        let image = read_image(path)?;
        let image = resize(
            &image,
            preprocess.height,
            preprocess.width,
            preprocess.filter,
        );
        let image = if rng.random_bool(settings.flip) {
            flip(&image)
        } else {
            image
        };
        let image = shift(&image, settings.padding, rng);
        let mut pixels = preprocess.normalise(&image);
        erase(
            &mut pixels,
            preprocess.height,
            preprocess.width,
            settings.erasing as f32,
            rng,
        );
        Ok(Example {
            pixels,
            size: [preprocess.height, preprocess.width],
            target: *class,
            key: path.display().to_string(),
        })
    }

    fn head(&self, stages: &Stages, rng: &mut Rng, device: &Device) -> Result<ReidHead, TaskError> {
        Ok(ReidHead::init(
            stages.pooled,
            self.identities.len(),
            rng,
            device,
        ))
    }

    fn outputs(&self, head: &ReidHead, features: Features) -> Vec<(String, Output)> {
        let feature = match self.settings.feature {
            Feature::Before => features.pooled,
            Feature::After => head.forward(features.pooled, None),
        };
        vec![("feature".to_owned(), feature.into())]
    }

    fn loss(
        &self,
        head: &ReidHead,
        features: &Features,
        targets: &[usize],
        training: &mut Training<'_>,
    ) -> Losses {
        let settings = &self.settings;
        let pooled = features.pooled.clone();
        let logits = head.classify(head.forward(pooled.clone(), Some(training)));
        let guesses = logits.clone().inner().argmax(1).into_data();
        let right = guesses
            .iter::<i64>()
            .zip(targets)
            .filter(|(g, t)| *g == **t as i64)
            .count();
        let margin = (settings.margin > 0.0).then_some(settings.margin);
        let mut losses = Losses::sum([
            (
                "identity",
                cross_entropy(logits, targets, settings.smoothing),
                settings.identity_weight,
            ),
            (
                "triplet",
                batch_hard_triplet(pooled, targets, margin),
                settings.triplet_weight,
            ),
        ]);
        losses
            .terms
            .push(("accuracy", right as f64 / targets.len() as f64));
        losses
    }

    fn evaluate(
        &self,
        model: &Model<Self>,
        eval: &Eval,
        running: &Running<'_>,
    ) -> Result<Report, TaskError> {
        let crops: Vec<&ReidImage> = eval.query.iter().chain(&eval.gallery).collect();
        let rows = model.batches(
            "query and gallery images",
            crops.len(),
            running,
            |model, items| {
                let images = { crops[items.clone()].iter() }
                    .map(|crop| read_image(&crop.path))
                    .collect::<Result<Vec<_>, _>>()?;
                let features = Self::features(model, &images, items.start)?;
                let channels = features.len() / images.len();
                Ok(features
                    .chunks_exact(channels)
                    .map(<[f32]>::to_vec)
                    .collect())
            },
        )?;
        let described = Described::new(rows, &crops);
        let queries = eval.query.len();
        let query = described.rows(0..queries);
        let gallery = described.rows(queries..crops.len());
        let metrics = reid::evaluate(&query, &gallery, RANKS)?;
        let rank = |k: usize| metrics.cmc.get(k - 1).copied().unwrap_or(1.0);
        let mut figures = vec![
            ("mAP".to_owned(), metrics.map),
            ("rank-1".to_owned(), rank(1)),
            ("rank-5".to_owned(), rank(5)),
            ("rank-10".to_owned(), rank(10)),
            ("mINP".to_owned(), metrics.minp),
        ];
        let mut nearest = reid::nearest(&query, &gallery, NAMED)?;
        let reranked = if self.settings.rerank {
            let rerank = self.rerank();
            let (metrics, order) =
                rerank::evaluate_with_nearest(&query, &gallery, rerank, RANKS, NAMED)?;
            nearest = order;
            let first = metrics.cmc.first().copied().unwrap_or(0.0);
            figures.push(("re-ranked mAP".to_owned(), metrics.map));
            figures.push(("re-ranked rank-1".to_owned(), first));
            Some(metrics)
        } else {
            None
        };
        // A data set may have one kind of pairs only; it is no less evaluated for that.
        let rates = [&[self.settings.false_rate], FALSE_RATES.as_slice()].concat();
        let mut verification = verify::roc(&query, &gallery, &rates).ok();
        // The first is the one to keep; the others are told of.
        let kept = verification.as_mut().and_then(|roc| roc.at.remove(0));
        let same_person = kept.map(|at| SamePerson {
            cosine: at.similarity,
            false_rate: at.false_positive_rate,
            true_rate: at.true_positive_rate,
            data: eval.name.clone(),
        });
        let mut predictions = String::new();
        for (i, nearest) in nearest.into_iter().enumerate() {
            let gallery = nearest.into_iter().map(|j| &eval.gallery[j].name);
            let names: Vec<&String> = gallery.collect();
            let line = json!({"query": eval.query[i].name, "gallery": names});
            predictions.push_str(&format!("{line}\n"));
        }
        let compared = format!(
            "{} of {} queries count, {} skipped (no image of the person by another camera); {} gallery images\n",
            metrics.queries - metrics.skipped,
            metrics.queries,
            metrics.skipped,
            metrics.gallery
        );
        let thresholds = verification.iter().flat_map(|roc| &roc.at).flatten();
        let table = std::iter::once(compared)
            .chain(thresholds.map(|at| {
                format!(
                    "same person from cosine {:.4}: {:.1} % of matches found, {:.3} % of others taken for one\n",
                    at.similarity,
                    100.0 * at.true_positive_rate,
                    100.0 * at.false_positive_rate
                )
            }))
            .collect();
        Ok(Report {
            task: Self::NAME,
            protocol: self.protocol(&model.preprocess, eval),
            data: eval.name.clone(),
            loss: None,
            notes: Vec::new(),
            details: json!({
                "skipped": metrics.skipped,
                "queries": metrics.queries,
                "gallery": metrics.gallery,
                "chance_map": metrics.chance_map,
                "cmc": metrics.cmc,
                "reranked": reranked.map(|metrics| json!({"map": metrics.map, "cmc": metrics.cmc})),
                "verification": verification,
                "same_person": same_person,
            }),
            figures,
            table,
            predictions: predictions.into_bytes(),
        })
    }

    fn predict(&self, model: &Model<Self>, image: &Rgb) -> Result<Value, TaskError> {
        let feature = Self::features(model, std::slice::from_ref(image), 0)?;
        let norm = feature.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
        let feature: Vec<f32> = feature.into_iter().map(|v| v / norm).collect();
        Ok(json!({ "feature": feature }))
    }

    fn draw(&self, image: &Rgb, _: &Value) -> Rgb {
        image.clone()
    }

    fn draw_person(&self, photo: &mut Rgb, crop: [usize; 4], _: &Value) {
        picture::boxed(photo, crop.map(|at| at as f64), "", picture::colour(3));
    }
}

/// Features to be compared, for `clasp search`; there are no maps.
impl Extractor for Model<Reid> {
    fn extract(&self, images: Inputs, _: usize) -> Result<Extracted, TaskError> {
        let shape = [images.batch, 3, images.height, images.width];
        let data = TensorData::new(images.values, shape);
        let images = Tensor::<4>::from_data(data, &self.device);
        let of = |images| self.task.compared(self, self.features_of(images).pooled);
        let mut features = of(images.clone());
        if self.task.settings.flip_test {
            features = features + of(images.flip([3]));
        }
        Ok(Extracted {
            pooled: values(features)?,
            maps: Vec::new(),
        })
    }
}

fn open(folder: &Path, settings: &Settings) -> Result<People, TaskError> {
    let msmt_val = match settings.msmt_val {
        MsmtValidation::Train => MsmtVal::Train,
        MsmtValidation::Holdout => MsmtVal::Holdout,
    };
    Ok(People::open_with(folder, msmt_val)?)
}

/// The identities kept apart: a share of them, evenly spaced.
fn held_out(train: &[ReidImage], share: f64) -> BTreeSet<i64> {
    let people: BTreeSet<i64> = { train.iter() }
        .map(|crop| crop.person)
        .filter(|person| *person > 0)
        .collect();
    let people: Vec<i64> = people.into_iter().collect();
    let count = (share.clamp(0.0, 1.0) * people.len() as f64).ceil() as usize;
    (0..count)
        .map(|i| people[i * people.len() / count])
        .collect()
}

/// Batches of P identities with K images each, in one row of `length` images, after the published sampler (Hermans et al.
/// 2017, as in TransReID): the images of each identity are shuffled and cut into groups of K (drawn with replacement where
/// there are fewer than K); a batch takes a group of each of P random identities that have one left. Where fewer than P
/// are left, everything is dealt anew.
fn batches_of_identities(
    images: &[Vec<u32>],
    p: usize,
    k: usize,
    length: usize,
    rng: &mut DataRng,
) -> Vec<u32> {
    let mut row = Vec::with_capacity(length);
    while row.len() < length {
        let mut groups: Vec<Vec<Vec<u32>>> = Vec::with_capacity(images.len());
        for images in images {
            let dealt: Vec<u32> = if images.len() < k {
                (0..k)
                    .map(|_| images[rng.random_range(0..images.len())])
                    .collect()
            } else {
                let mut shuffled = images.clone();
                shuffled.shuffle(rng);
                shuffled
            };
            groups.push(dealt.chunks_exact(k).map(<[u32]>::to_vec).collect());
        }
        let mut left: Vec<usize> = (0..images.len()).collect();
        while left.len() >= p && row.len() < length {
            left.shuffle(rng);
            for &identity in &left[..p] {
                row.extend(groups[identity].pop().unwrap_or_default());
            }
            left.retain(|identity| !groups[*identity].is_empty());
        }
    }
    row.truncate(length);
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_p_identities_with_k_images_each() {
        // Identity i has i + 1 images.
        let mut next = 0;
        let images: Vec<Vec<u32>> = (1..=9)
            .map(|count| {
                next += count;
                (next - count..next).collect()
            })
            .collect();
        let owner = |image: u32| {
            images
                .iter()
                .position(|list| list.contains(&image))
                .unwrap()
        };
        let order = |seed| batches_of_identities(&images, 3, 2, 40, &mut rng_for(seed, 0, "t"));
        let row = order(1);
        assert_eq!(row.len(), 40);
        for batch in row.chunks_exact(6) {
            let owners: Vec<usize> = batch.chunks_exact(2).map(|group| owner(group[0])).collect();
            assert_eq!(
                owners.iter().collect::<BTreeSet<_>>().len(),
                3,
                "{owners:?}"
            );
            assert!(
                batch
                    .chunks_exact(2)
                    .all(|group| owner(group[0]) == owner(group[1]))
            );
        }
        assert_eq!(row, order(1));
        assert_ne!(row, order(2));
    }

    #[test]
    fn identities_kept_apart_are_spread() {
        let crop = |person| ReidImage {
            path: PathBuf::new(),
            name: String::new(),
            person,
            camera: 1,
        };
        let train: Vec<ReidImage> = (0..=10).map(crop).collect();
        assert_eq!(held_out(&train, 0.2), BTreeSet::from([1, 6]));
        assert!(held_out(&train, 0.0).is_empty());
    }
}
