//! Evaluation of parsing: one confusion matrix, mIoU.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use clasp_data::image::encode_label_png;
use clasp_data::layouts::parsing::{IGNORE, MaskedImage, label_map};
use clasp_data::source::Source;
use clasp_metrics::Metric;
use clasp_metrics::parsing::ConfusionMatrix;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::data::{ParsingSet, open_data, read_pair};
use super::{ParsingHeadKind, ParsingTask, probe};
use crate::TaskError;
use crate::features::Preprocess;
use crate::probe::FrozenEvaluation;
use crate::task::evaluation::{PredictionScores, WrongResult, file_name, mismatch};
use crate::task::{
    Evaluate, Evaluation, FinetunedModel, ScoreRequest, SplitChoice, Task, TaskScores,
};

/// Most pixels of an image: 64 thousand by 64 thousand.
const MOST_PIXELS: u64 = 1 << 32;

/// The parts found in an image.
#[derive(Debug, Serialize, Deserialize)]
pub struct ParsedImage {
    /// Pixels of each pair of a true and a predicted class that the image has.
    confusion: Vec<(u8, u8, u64)>,
    /// The predicted classes as a PNG, if predictions are wanted.
    #[serde(with = "base64_text")]
    mask: Vec<u8>,
}

/// Bytes as base64 in text formats.
mod base64_text {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        STANDARD.decode(text).map_err(D::Error::custom)
    }
}

impl ParsingTask {
    fn protocol(&self, preprocess: &Preprocess, split: &str) -> String {
        let config = &self.config;
        let head = match config.head {
            ParsingHeadKind::Light => "light head",
            ParsingHeadKind::Ce2p => "CE2P head",
        };
        let flipped = if config.flip_test {
            ", each averaged with its flipped image (left and right classes exchanged)"
        } else {
            ""
        };
        let back = if config.warp_logits {
            "logits mapped back bilinearly, then the largest (not the published protocol)"
        } else {
            "the largest logit, mapped back to the image by the nearest pixel"
        };
        format!(
            "Human parsing, fine-tuned, {head}: the whole image centered in {}x{} (height x width), black beyond it; scales {:?}{flipped}; {back}. \
             Trained on split {}, evaluated on split `{split}`: one confusion matrix over all pixels but those of ignore index 255. mIoU is the mean over \
             all {} classes, as in LIP; the mean over the classes in the masks is given too.",
            preprocess.height,
            preprocess.width,
            config.test_scales,
            config.train_splits.join(" + "),
            self.classes.len(),
        )
    }
}

/// The metrics of a confusion matrix; `file` names the data in errors.
fn scores_of(
    classes: &[String],
    confusion: &ConfusionMatrix,
    file: &Path,
) -> Result<TaskScores, TaskError> {
    let metrics = confusion.metrics();
    if metrics.pixel_accuracy.is_none() {
        return Err(TaskError::Mismatch {
            file: file.display().to_string(),
            expected: format!("masks with pixels of a class: {}", classes.join(", ")),
            found: "ignored pixels only\n  hint: `task.classes` may not belong to these masks"
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
    Ok(TaskScores {
        chance: Some(metrics.constant_iou(classes.len())),
        metrics: vec![
            Metric::score("mIoU", metrics.mean_iou),
            Metric::score(
                "mIoU of classes present",
                metrics.mean_iou_present.unwrap_or(metrics.mean_iou),
            ),
            Metric::score("mean accuracy", metrics.mean_accuracy),
            Metric::score("pixel accuracy", metrics.pixel_accuracy.unwrap_or(0.0)),
        ],
        table,
        details: json!({"classes": classes, "metrics": metrics}),
    })
}

impl Evaluate for ParsingTask {
    type TestSet = ParsingSet;
    type UnitResult = ParsedImage;

    const FROZEN: Option<FrozenEvaluation> = Some(probe::evaluate_frozen);

    fn open_test(&self, folder: &Path, split: &SplitChoice) -> Result<ParsingSet, TaskError> {
        let parsing = open_data(folder, self.config.classes)?;
        if parsing.classes != self.classes {
            return Err(TaskError::Mismatch {
                file: parsing.file.display().to_string(),
                expected: format!("the classes of the model: {}", self.classes.join(", ")),
                found: parsing.classes.join(", "),
            });
        }
        let name = split.find(parsing.splits(), &parsing.file)?;
        let images = parsing.split(&name)?.into_iter().cloned().collect();
        Ok(ParsingSet {
            parsing,
            images,
            split: name,
        })
    }

    fn units(eval: &ParsingSet) -> usize {
        eval.images.len()
    }

    fn unit_text(eval: &ParsingSet, unit: usize) -> String {
        let image = &eval.images[unit];
        // Results compare with the mask; reading all of them for a digest would take as long as a pass.
        let bytes = fs_err::metadata(&image.mask).map_or(0, |found| found.len());
        format!("{} {} {bytes}", image.name, file_name(&image.mask))
    }

    fn results_of_batch(
        &self,
        model: &FinetunedModel<Self>,
        eval: &ParsingSet,
        units: Range<usize>,
        predictions: bool,
    ) -> Result<Vec<ParsedImage>, TaskError> {
        let parse = |index: usize| {
            let MaskedImage { image, mask, .. } = &eval.images[index];
            let (image, labels) = read_pair(&eval.parsing, image, mask)?;
            let found = self.parse(model, &image, index)?;
            let mut confusion = ConfusionMatrix::new(self.classes.len());
            confusion.add(&labels.labels, &found.labels)?;
            Ok(ParsedImage {
                confusion: confusion.nonzero().collect(),
                mask: match predictions {
                    true => encode_label_png(&found.labels, found.height, found.width),
                    false => Vec::new(),
                },
            })
        };
        units.map(parse).collect()
    }

    fn check_result(
        &self,
        _: &FinetunedModel<Self>,
        _: &ParsingSet,
        _: usize,
        parsed: &ParsedImage,
    ) -> Result<(), WrongResult> {
        let classes = self.classes.len();
        let known = |class: u8| usize::from(class) < classes;
        let mut counts = parsed.confusion.iter();
        if let Some((truth, found, pixels)) = counts.find(|(truth, found, pixels)| {
            !known(*truth) || !known(*found) || *pixels > MOST_PIXELS
        }) {
            return Err(WrongResult {
                expected: format!(
                    "numbers of pixels up to {MOST_PIXELS} for two of {classes} classes"
                ),
                found: format!("{pixels} pixels of class {truth} and predicted class {found}"),
            });
        }
        let mask = label_map(parsed.mask.clone(), "mask").map_err(|error| WrongResult {
            expected: "a mask as a PNG of class indices".to_owned(),
            found: error.to_string(),
        })?;
        match mask.labels.iter().find(|label| !known(**label)) {
            None => Ok(()),
            Some(label) => Err(WrongResult {
                expected: format!("a mask of the classes 0 to {}", classes - 1),
                found: format!("class {label}"),
            }),
        }
    }

    fn summarize(
        &self,
        model: &FinetunedModel<Self>,
        eval: &ParsingSet,
        results: Vec<ParsedImage>,
        predictions: bool,
    ) -> Result<Evaluation, TaskError> {
        let mut confusion = ConfusionMatrix::new(self.classes.len());
        let counts = results.iter().flat_map(|parsed| &parsed.confusion);
        counts.for_each(|(truth, found, pixels)| confusion.add_pixels(*truth, *found, *pixels));
        let masks = eval.images.iter().zip(results).map(|(image, parsed)| {
            let name = Path::new(&image.name).with_extension("png");
            (name, parsed.mask)
        });
        Ok(Evaluation {
            task: Self::NAME,
            protocol: self.protocol(&model.preprocess, &eval.split),
            data: format!("split `{}`", eval.split),
            loss: None,
            notes: Vec::new(),
            scores: scores_of(&self.classes, &confusion, &eval.parsing.file)?,
            predictions: match predictions {
                true => tar_of(masks)?,
                false => Vec::new(),
            },
        })
    }

    fn score(
        request: &ScoreRequest<'_>,
        config: &Self::Config,
    ) -> Result<PredictionScores, TaskError> {
        let predictions = request.predictions;
        let data = open_data(request.data, config.classes)?;
        let name = request.split.find(data.splits(), &data.file)?;
        let masks = Source::open(&predictions.display().to_string())?;
        let places: HashMap<&str, usize> = masks.keys().zip(0..).collect();
        let mut confusion = ConfusionMatrix::new(data.classes.len());
        for image in data.split(&name)? {
            let key = Path::new(&image.name).with_extension("");
            let key = key.to_string_lossy();
            let Some(&place) = places.get(&*key) else {
                return Err(mismatch(predictions, format!("a mask `{key}.png`"), "none"));
            };
            let truth = data.read_mask(&image.mask)?;
            let found = label_map(masks.read(place)?, &masks.place(place))?;
            let classes = data.classes.len();
            let foreign = |label: &&u8| **label != IGNORE && usize::from(**label) >= classes;
            if let Some(label) = found.labels.iter().find(foreign) {
                return Err(mismatch(
                    predictions,
                    format!("`{key}.png` with classes 0 to {}", classes - 1),
                    format!(
                        "class {label}\nhint: `--set task.classes=…` says which classes the masks have"
                    ),
                ));
            }
            if [found.height, found.width] != [truth.height, truth.width] {
                let size =
                    |height: usize, width: usize| format!("{width} x {height} (width x height)");
                return Err(mismatch(
                    predictions,
                    format!("`{key}.png` of {}", size(truth.height, truth.width)),
                    size(found.height, found.width),
                ));
            }
            confusion.add(&truth.labels, &found.labels)?;
        }
        Ok(PredictionScores {
            scores: scores_of(&data.classes, &confusion, &data.file)?,
            data: format!("split `{name}`"),
            notes: Vec::new(),
        })
    }
}

/// A tar of files; the same files give the same bytes.
fn tar_of(files: impl Iterator<Item = (PathBuf, Vec<u8>)>) -> Result<Vec<u8>, TaskError> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        // Names in a table may be absolute paths, those in an archive must not.
        let is_name = |part: &Component| matches!(part, Component::Normal(_));
        let name: PathBuf = name.components().filter(is_name).collect();
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes.as_slice())?;
    }
    Ok(archive.into_inner()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clasp_data::layouts::parsing::ParsingDataset;

    use crate::parsing::data::tests::folder;

    #[test]
    fn masks_of_different_folders_keep_different_names() {
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
    fn masks_of_other_programs_are_scored() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs_err::create_dir_all(at("found")).unwrap();
        fs_err::write(at("labels.txt"), "ground\nperson\n").unwrap();
        fs_err::write(at("parsing.csv"), "image,mask,split\na.jpg,m.png,val\n").unwrap();
        fs_err::write(at("m.png"), encode_label_png(&[0, 1, 1, 0], 2, 2)).unwrap();
        fs_err::write(at("found/a.png"), encode_label_png(&[0, 1, 0, 0], 2, 2)).unwrap();
        let score = || {
            ParsingTask::score(
                &ScoreRequest {
                    data: folder.path(),
                    split: &SplitChoice::Test,
                    predictions: &at("found"),
                    threshold: 0.5,
                },
                &Default::default(),
            )
        };
        let scored = score().unwrap();
        // A class that the data do not have is not counted as a wrong one of theirs.
        fs_err::write(at("found/a.png"), encode_label_png(&[0, 1, 7, 0], 2, 2)).unwrap();
        let error = score().unwrap_err().to_string();
        assert!(
            error.contains("classes 0 to 1") && error.contains("class 7"),
            "{error}"
        );
        // Ground 2 of 3, person 1 of 2.
        let iou = scored.scores.value("mIoU").unwrap();
        assert!((iou - (2.0 / 3.0 + 0.5) / 2.0).abs() < 1e-12, "{iou}");
    }
}
