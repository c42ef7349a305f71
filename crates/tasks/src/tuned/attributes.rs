//! Attribute recognition: a linear layer on pooled features under weighted binary cross-entropy, as in "Rethinking of
//! Pedestrian Attribute Recognition" (Jia et al. 2021) and SOLIDER.

use std::fmt::Write as _;
use std::path::Path;

use burn::tensor::Device;
use clasp_data::Rng as DataRng;
use clasp_data::augment::shift;
use clasp_data::font;
use clasp_data::image::{Filter, Rgb, flip, resize};
use clasp_data::layouts::attributes::{AttributeDataset, AttributeImage};
use clasp_metrics::attributes as metrics;
use clasp_model::backbone::Features;
use clasp_model::heads::{LinearHead, Training};
use clasp_model::layers::Rng;
use clasp_model::losses::weighted_bce;
use clasp_model::mix::{ATTRIBUTE, Mix};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::picture;
use crate::TaskError;
use crate::features::{Preprocess, read_image};
use crate::finetune::check;
use crate::finetune::model::{check_finite, values};
use crate::finetune::{Example, Judged, Losses, Model, Report, Running, Split, Stages, Task};
use clasp_weights::onnx::Output;

/// Section `[task]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Splits to train on; the published protocol takes `train` and `val`.
    pub train: Vec<String>,
    /// Weigh rare answers more.
    pub weighted: bool,
    /// Probability of mirroring.
    pub flip: f64,
    /// Most pixels that an image is shifted by.
    pub padding: usize,
    /// Resize bilinearly, as the published code does, and not with the filter that the backbone was pre-trained with.
    pub bilinear: bool,
    /// A probability above this predicts the attribute.
    pub threshold: f32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            train: vec!["train".to_owned()],
            weighted: true,
            flip: 0.5,
            padding: 10,
            bilinear: false,
            threshold: 0.5,
        }
    }
}

/// Attribute recognition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttributeTask {
    /// The settings.
    pub settings: Settings,
    /// Names of the attributes.
    pub names: Vec<String>,
    /// Share of positives among the training images.
    pub ratios: Vec<f64>,
}

/// Images with answers, the name of their split, and what to tell of them.
#[derive(Debug)]
pub struct Labelled {
    images: Vec<AttributeImage>,
    split: String,
    notes: Vec<String>,
}

impl AttributeTask {
    /// How images are resized.
    fn preprocess(&self, preprocess: &Preprocess) -> Preprocess {
        let mut own = preprocess.clone();
        if self.settings.bilinear {
            own.filter = Filter::Bilinear;
        }
        own
    }

    /// The training loss of probabilities: sums over the attributes, the mean over the images.
    fn loss_of(&self, probabilities: &[f32], truth: &[bool]) -> f64 {
        let attributes = self.names.len();
        let cost = |(at, (p, is)): (usize, (&f32, &bool))| {
            let ratio = self.ratios[at % attributes];
            let (right, share) = if *is {
                (f64::from(*p), 1.0 - ratio)
            } else {
                (1.0 - f64::from(*p), ratio)
            };
            let weight = if self.settings.weighted {
                share.exp()
            } else {
                1.0
            };
            -weight * right.max(f64::from(f32::EPSILON)).ln()
        };
        let costs = probabilities.iter().zip(truth).enumerate().map(cost);
        costs.sum::<f64>() * attributes as f64 / probabilities.len().max(1) as f64
    }

    /// The attributes that a prediction says, the surest first, in words.
    fn predicted(&self, prediction: &Value) -> Vec<String> {
        let probability = |name: &str| prediction["attributes"][name].as_f64().unwrap_or(0.0);
        let mut lines: Vec<(f64, &String)> = { self.names.iter() }
            .map(|name| (probability(name), name))
            .filter(|(p, _)| *p > f64::from(self.settings.threshold))
            .collect();
        lines.sort_by(|a, b| b.0.total_cmp(&a.0));
        { lines.into_iter() }
            .map(|(p, name)| format!("{:3.0}% {name}", 100.0 * p))
            .collect()
    }

    fn probabilities(
        model: &Model<Self>,
        images: &[Rgb],
        first: usize,
    ) -> Result<Vec<f32>, TaskError> {
        let preprocess = &model.task.preprocess(&model.preprocess);
        let pixels = images
            .iter()
            .flat_map(|image| preprocess.apply(image))
            .collect();
        let size = [images.len(), preprocess.height, preprocess.width];
        let features = model.features(pixels, size);
        let logits = values(model.head.forward(features.pooled))?;
        check_finite(&logits, model.task.names.len(), first)?;
        Ok(logits
            .into_iter()
            .map(|x| 1.0 / (1.0 + (-x).exp()))
            .collect())
    }

    fn protocol(&self, preprocess: &Preprocess, split: &str) -> String {
        format!(
            "Attribute recognition, fine-tuned: the whole image resized to {preprocess}; pooled feature, linear layer; trained on split {}; \
             evaluated on split `{split}`; a probability above {} predicts. mA is the mean over attributes of the mean of true positive and \
             true negative rate; accuracy, precision and recall are means over images, F1 that of these means, as in RAP.",
            self.settings.train.join(" + "),
            self.settings.threshold,
        )
    }
}

/// Judges probabilities [images, attributes] by the truth of the same shape.
pub(crate) fn judge(
    names: &[String],
    truth: &[bool],
    probabilities: &[f32],
    threshold: f32,
) -> Result<Judged, TaskError> {
    let found = metrics::evaluate(truth, probabilities, names.len(), threshold)?;
    let mut table = format!(
        "{:<28} {:>9} {:>7} {:>7} {:>7} {:>7}\n",
        "attribute", "positives", "TPR", "TNR", "mean", "AP"
    );
    let percent =
        |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{:.2}", 100.0 * v));
    for (name, score) in names.iter().zip(&found.per_attribute) {
        let _ = writeln!(
            table,
            "{name:<28} {:>9} {:>7} {:>7} {:>7.2} {:>7}",
            score.positives,
            percent(score.true_positive_rate),
            percent(score.true_negative_rate),
            100.0 * score.balanced_accuracy,
            percent(score.average_precision),
        );
    }
    if !found.degenerate.is_empty() {
        let names: Vec<&str> = { found.degenerate.iter() }
            .map(|&j| names[j].as_str())
            .collect();
        let _ = writeln!(
            table,
            "always or never there in this split: {}",
            names.join(", ")
        );
    }
    let mut figures = vec![("mA".to_owned(), found.ma)];
    figures.extend(found.map.map(|map| ("mAP".to_owned(), map)));
    for (name, value) in [
        ("accuracy", found.accuracy),
        ("precision", found.precision),
        ("recall", found.recall),
        ("F1", found.f1),
    ] {
        figures.push((name.to_owned(), value));
    }
    Ok(Judged {
        figures,
        table,
        details: json!({"names": names, "metrics": found}),
    })
}

fn owned(images: Vec<&AttributeImage>) -> Vec<AttributeImage> {
    images.into_iter().cloned().collect()
}

/// Which file was read, where there are several.
fn chosen(data: &AttributeDataset) -> Option<String> {
    let others: Vec<String> = { data.others.iter() }
        .map(|file| file.display().to_string())
        .collect();
    (!others.is_empty()).then(|| {
        format!(
            "{} is read; there is also {}: give a file as the data to take that one",
            data.file.display(),
            others.join(", ")
        )
    })
}

/// Attributes that every training image answers alike, in words.
fn constant(names: &[String], ratios: &[f64], split: &str) -> Option<String> {
    let of = |ratio: f64| -> Vec<&str> {
        let all = names.iter().zip(ratios);
        all.filter(|(_, found)| **found == ratio)
            .map(|(name, _)| name.as_str())
            .collect()
    };
    let (never, always) = (of(0.0), of(1.0));
    let listed = [("nobody", never), ("everybody", always)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(word, names)| format!("{word} has {}", names.join(", ")));
    let listed: Vec<String> = listed.collect();
    (!listed.is_empty()).then(|| {
        let listed = listed.join("; ");
        format!("split {split}: {listed}; nothing can be learnt of these, though mA counts them")
    })
}

impl Task for AttributeTask {
    const NAME: &'static str = "attributes";
    type Settings = Settings;
    type Data = Labelled;
    type Eval = Labelled;
    type Head = LinearHead;
    type Target = Vec<bool>;

    fn default_mix() -> Mix {
        Mix::single(ATTRIBUTE)
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    fn check(settings: &Settings) -> Result<(), TaskError> {
        check::count("task.padding", settings.padding, [0, 1024])?;
        let shares = [
            ("task.flip", settings.flip),
            ("task.threshold", f64::from(settings.threshold)),
        ];
        Ok(check::within(&shares, [0.0, 1.0])?)
    }

    fn open(
        settings: &Settings,
        folder: &Path,
        _: Option<&Split>,
    ) -> Result<(Self, Labelled), TaskError> {
        let data = AttributeDataset::open(folder)?;
        let mut images = Vec::new();
        for split in &settings.train {
            images.extend(owned(data.split(split)?));
        }
        let count = images.len().max(1) as f64;
        let positives = |j: usize| images.iter().filter(|image| image.values[j]).count();
        let ratios: Vec<f64> = (0..data.names.len())
            .map(|j| positives(j) as f64 / count)
            .collect();
        if ratios.iter().all(|ratio| *ratio == 0.0 || *ratio == 1.0) {
            return Err(TaskError::Mismatch {
                file: data.file.display().to_string(),
                expected: format!(
                    "an attribute that split {} has both with and without",
                    settings.train.join(" + ")
                ),
                found: format!("{} attributes that never change", ratios.len()),
            });
        }
        let split = settings.train.join(" + ");
        let notes = { chosen(&data).into_iter() }
            .chain(constant(&data.names, &ratios, &split))
            .collect();
        let task = Self {
            settings: settings.clone(),
            names: data.names,
            ratios,
        };
        let data = Labelled {
            images,
            split,
            notes,
        };
        Ok((task, data))
    }

    fn open_eval(&self, folder: &Path, split: &Split) -> Result<Labelled, TaskError> {
        let data = AttributeDataset::open(folder)?;
        if data.names != self.names {
            return Err(TaskError::Mismatch {
                file: data.file.display().to_string(),
                expected: format!("the attributes of the model: {}", self.names.join(", ")),
                found: data.names.join(", "),
            });
        }
        let name = split.among(data.splits(), &data.file)?;
        Ok(Labelled {
            images: owned(data.split(&name)?),
            split: name,
            notes: chosen(&data).into_iter().collect(),
        })
    }

    fn notes(&self, data: &Labelled) -> Vec<String> {
        data.notes.clone()
    }

    fn files<'a>(&self, data: &'a Labelled) -> Vec<&'a Path> {
        { data.images.iter() }
            .map(|image| image.path.as_path())
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
    ) -> Result<Example<Vec<bool>>, TaskError> {
        let AttributeImage { path, values, .. } = &data.images[index];
        let image = read_image(path)?;
        let Preprocess {
            height,
            width,
            filter,
            ..
        } = self.preprocess(preprocess);
        let image = resize(&image, height, width, filter);
        let image = shift(&image, self.settings.padding, rng);
        let image = if rng.random_bool(self.settings.flip) {
            flip(&image)
        } else {
            image
        };
        Ok(Example {
            pixels: preprocess.normalise(&image),
            size: [preprocess.height, preprocess.width],
            target: values.clone(),
            key: path.display().to_string(),
        })
    }

    fn head(
        &self,
        stages: &Stages,
        rng: &mut Rng,
        device: &Device,
    ) -> Result<LinearHead, TaskError> {
        Ok(LinearHead::init(
            stages.pooled,
            self.names.len(),
            rng,
            device,
        ))
    }

    fn outputs(&self, head: &LinearHead, features: Features) -> Vec<(String, Output)> {
        vec![("logits".to_owned(), head.forward(features.pooled).into())]
    }

    fn loss(
        &self,
        head: &LinearHead,
        features: &Features,
        targets: &[Vec<bool>],
        _: &mut Training<'_>,
    ) -> Losses {
        let logits = head.forward(features.pooled.clone());
        let targets: Vec<bool> = targets.iter().flatten().copied().collect();
        let ratios = self.settings.weighted.then_some(self.ratios.as_slice());
        Losses::sum([("bce", weighted_bce(logits, &targets, ratios), 1.0)])
    }

    fn evaluate(
        &self,
        model: &Model<Self>,
        eval: &Labelled,
        running: &Running<'_>,
    ) -> Result<Report, TaskError> {
        let (count, attributes) = (eval.images.len(), self.names.len());
        let rows = model.batches("evaluation images", count, running, |model, items| {
            let images = { eval.images[items.clone()].iter() }
                .map(|image| read_image(&image.path))
                .collect::<Result<Vec<_>, _>>()?;
            let probabilities = Self::probabilities(model, &images, items.start)?;
            Ok(probabilities
                .chunks_exact(attributes)
                .map(<[f32]>::to_vec)
                .collect())
        })?;
        let probabilities: Vec<f32> = rows.into_iter().flatten().collect();
        let truth: Vec<bool> = { eval.images.iter() }
            .flat_map(|image| image.values.iter().copied())
            .collect();
        let threshold = self.settings.threshold;
        let Judged {
            figures,
            table,
            details,
        } = judge(&self.names, &truth, &probabilities, threshold)?;
        // A name may hold what separates cells.
        let quoted = |name: &String| match name.contains([',', '"', '\n']) {
            true => format!("\"{}\"", name.replace('"', "\"\"")),
            false => name.clone(),
        };
        let names: Vec<String> = self.names.iter().map(quoted).collect();
        let mut predictions = format!("image,{}\n", names.join(","));
        let rows = probabilities.chunks_exact(attributes);
        for (image, row) in eval.images.iter().zip(rows) {
            let cells: Vec<String> = row.iter().map(|p| format!("{p:.6}")).collect();
            let name = quoted(&image.name);
            let _ = writeln!(predictions, "{name},{}", cells.join(","));
        }
        Ok(Report {
            task: Self::NAME,
            protocol: self.protocol(&self.preprocess(&model.preprocess), &eval.split),
            data: format!("split `{}`", eval.split),
            loss: Some(self.loss_of(&probabilities, &truth)),
            notes: eval.notes.clone(),
            figures,
            details,
            table,
            predictions: predictions.into_bytes(),
        })
    }

    fn predict(&self, model: &Model<Self>, image: &Rgb) -> Result<Value, TaskError> {
        let probabilities = Self::probabilities(model, std::slice::from_ref(image), 0)?;
        let pairs = self.names.iter().zip(probabilities);
        let map: serde_json::Map<String, Value> =
            pairs.map(|(name, p)| (name.clone(), json!(p))).collect();
        Ok(json!({ "attributes": map }))
    }

    fn draw(&self, image: &Rgb, prediction: &Value) -> Rgb {
        picture::beside(image, &self.predicted(prediction))
    }

    fn draw_person(&self, photo: &mut Rgb, crop: [usize; 4], prediction: &Value) {
        picture::boxed(photo, crop.map(|at| at as f64), "", picture::colour(3));
        let [x, y, width, _] = crop;
        let lines = self.predicted(prediction);
        for (row, line) in lines.iter().enumerate() {
            let top = y + row * (font::HEIGHT + 1);
            font::draw(photo, x + width + 2, top, line, 1, picture::colour(3));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_never_change_and_the_file_that_was_read_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let table = |name: &str, rows: &str| {
            let text = format!("image,split,hat,bag,shoe\n{rows}");
            fs_err::write(folder.path().join(name), text).unwrap();
        };
        let rows = "a.jpg,train,0,1,1\nb.jpg,train,0,0,1\na/c.jpg,val,1,1,1\n";
        table("attributes.csv", rows);
        let open = || AttributeTask::open(&Settings::default(), folder.path(), None).unwrap();
        let (task, data) = open();
        let [note] = &task.notes(&data)[..] else {
            panic!("{:?}", data.notes)
        };
        assert!(
            note.starts_with("split train: nobody has hat; everybody has shoe; nothing"),
            "{note}"
        );
        fs_err::create_dir(folder.path().join("attributes")).unwrap();
        table("attributes/labels.csv", rows);
        let (task, data) = open();
        let note = &task.notes(&data)[0];
        assert!(
            note.contains("attributes.csv is read; there is also") && note.contains("labels.csv"),
            "{note}"
        );
        let eval = task.open_eval(folder.path(), &Split::Val).unwrap();
        assert_eq!(
            (eval.images[0].name.as_str(), eval.notes.len()),
            ("a/c.jpg", 1)
        );
    }
}
