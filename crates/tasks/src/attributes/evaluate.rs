//! Evaluation of attribute recognition: mA and instance metrics.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;

use clasp_data::layouts::attributes::AttributeDataset;
use clasp_data::layouts::csv::read_columns;
use clasp_metrics::Metric;
use clasp_metrics::attributes as metrics;
use serde_json::json;

use super::data::{AttributeSet, file_note, owned};
use super::{AttributeTask, probe};
use crate::TaskError;
use crate::features::{Preprocess, read_image};
use crate::probe::FrozenEvaluation;
use crate::task::evaluation::{PredictionScores, WrongResult, check_row, count_note, mismatch};
use crate::task::{
    Evaluate, Evaluation, FinetunedModel, ScoreRequest, SplitChoice, Task, TaskScores,
};

/// mA of the best constant prediction: it is right for one of the two values of each attribute, and
/// where a split has one value only, the undefined half counts as 0.
const CHANCE: f64 = 0.5;

impl AttributeTask {
    /// The training loss of probabilities: the sum over attributes, the mean over images.
    fn loss_of(&self, probabilities: &[f32], truth: &[bool]) -> f64 {
        let attributes = self.names.len();
        let cost = |(at, (p, present)): (usize, (&f32, &bool))| {
            let ratio = self.ratios[at % attributes];
            let (probability, share) = if *present {
                (f64::from(*p), 1.0 - ratio)
            } else {
                (1.0 - f64::from(*p), ratio)
            };
            let weight = if self.config.weighted_loss {
                share.exp()
            } else {
                1.0
            };
            -weight * probability.max(f64::from(f32::EPSILON)).ln()
        };
        let costs = probabilities.iter().zip(truth).enumerate().map(cost);
        costs.sum::<f64>() * attributes as f64 / probabilities.len().max(1) as f64
    }

    fn protocol(&self, preprocess: &Preprocess, split: &str) -> String {
        format!(
            "Attribute recognition, fine-tuned: the whole image resized to {preprocess}; pooled feature, linear layer; trained on split {}; \
             evaluated on split `{split}`; a probability above {} predicts. mA is the mean over attributes of the mean of true positive and \
             true negative rate; accuracy, precision and recall are means over images, F1 that of these means, as in RAP.",
            self.config.train_splits.join(" + "),
            self.config.threshold,
        )
    }
}

/// The metrics of probabilities `[images, attributes]` against the ground truth of the same shape.
fn scores_of(
    names: &[String],
    truth: &[bool],
    probabilities: &[f32],
    threshold: f32,
) -> Result<TaskScores, TaskError> {
    let measured = metrics::evaluate(truth, probabilities, names.len(), threshold)?;
    let mut table = format!(
        "{:<28} {:>9} {:>7} {:>7} {:>7} {:>7}\n",
        "attribute", "positives", "TPR", "TNR", "mean", "AP"
    );
    let percent =
        |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{:.2}", 100.0 * v));
    for (name, score) in names.iter().zip(&measured.per_attribute) {
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
    if !measured.degenerate.is_empty() {
        let names: Vec<&str> = { measured.degenerate.iter() }
            .map(|&j| names[j].as_str())
            .collect();
        let _ = writeln!(
            table,
            "with one value only in this split: {}",
            names.join(", ")
        );
    }
    Ok(TaskScores {
        metrics: measured.quoted(),
        chance: Some(CHANCE),
        table,
        details: json!({"names": names, "metrics": measured}),
    })
}

impl Evaluate for AttributeTask {
    type TestSet = AttributeSet;
    /// The probability of each attribute of an image.
    type UnitResult = Vec<f32>;

    const ONLY_SUMMARIZED: &'static [&'static str] = &["/config/threshold"];

    const FROZEN: Option<FrozenEvaluation> = Some(probe::evaluate_frozen);

    fn open_test(&self, folder: &Path, split: &SplitChoice) -> Result<AttributeSet, TaskError> {
        let data = AttributeDataset::open(folder)?;
        if data.names != self.names {
            return Err(TaskError::Mismatch {
                file: data.file.display().to_string(),
                expected: format!("the attributes of the model: {}", self.names.join(", ")),
                found: data.names.join(", "),
            });
        }
        let name = split.find(data.splits(), &data.file)?;
        Ok(AttributeSet {
            images: owned(data.split(&name)?),
            split: name,
            notes: file_note(&data).into_iter().collect(),
        })
    }

    fn units(eval: &AttributeSet) -> usize {
        eval.images.len()
    }

    fn unit_text(eval: &AttributeSet, unit: usize) -> String {
        let image = &eval.images[unit];
        format!("{} {:?}", image.name, image.values)
    }

    fn results_of_batch(
        &self,
        model: &FinetunedModel<Self>,
        eval: &AttributeSet,
        units: Range<usize>,
        _predictions: bool,
    ) -> Result<Vec<Vec<f32>>, TaskError> {
        let images = { eval.images[units.clone()].iter() }
            .map(|image| read_image(&image.path))
            .collect::<Result<Vec<_>, _>>()?;
        let probabilities = Self::probabilities(model, &images, units.start)?;
        Ok(probabilities
            .chunks_exact(self.names.len())
            .map(<[f32]>::to_vec)
            .collect())
    }

    fn check_result(
        &self,
        _: &FinetunedModel<Self>,
        _: &AttributeSet,
        _: usize,
        row: &Vec<f32>,
    ) -> Result<(), WrongResult> {
        let is_right = |p| (0.0..=1.0).contains(&p);
        check_row(row, self.names.len(), is_right, "probabilities from 0 to 1")
    }

    fn summarize(
        &self,
        model: &FinetunedModel<Self>,
        eval: &AttributeSet,
        results: Vec<Vec<f32>>,
        _predictions: bool,
    ) -> Result<Evaluation, TaskError> {
        let attributes = self.names.len();
        let probabilities: Vec<f32> = results.into_iter().flatten().collect();
        let truth: Vec<bool> = { eval.images.iter() }
            .flat_map(|image| image.values.iter().copied())
            .collect();
        let threshold = self.config.threshold;
        let scores = scores_of(&self.names, &truth, &probabilities, threshold)?;
        // Names may contain the separator of the table.
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
        Ok(Evaluation {
            task: Self::NAME,
            protocol: self.protocol(&self.preprocess(&model.preprocess), &eval.split),
            data: format!("split `{}`", eval.split),
            loss: Some(Metric::loss(self.loss_of(&probabilities, &truth))),
            notes: eval.notes.clone(),
            scores,
            predictions: predictions.into_bytes(),
        })
    }

    fn score(
        request: &ScoreRequest<'_>,
        _config: &Self::Config,
    ) -> Result<PredictionScores, TaskError> {
        let predictions = request.predictions;
        let data = AttributeDataset::open(request.data)?;
        let name = request.split.find(data.splits(), &data.file)?;
        let images = data.split(&name)?;
        let (header, lines) = read_columns(predictions, "image")?;
        let columns = { data.names.iter() }
            .map(|name| {
                let mut places = (0..header.len()).filter(|column| header[*column] == *name);
                match (places.next(), places.next()) {
                    (Some(column), None) => Ok(column),
                    _ => Err(mismatch(
                        predictions,
                        format!("one column `{name}`"),
                        header.join(","),
                    )),
                }
            })
            .collect::<Result<Vec<usize>, _>>()?;
        let mut rows: HashMap<&str, &(usize, Vec<String>)> = HashMap::new();
        for row in &lines {
            let image = row.1[0].trim();
            // A dataset may list an image twice, with the same predictions both times.
            let earlier = rows.insert(image, row);
            if let Some(earlier) = earlier.filter(|earlier| earlier.1 != row.1) {
                let found = format!("`{image}` in lines {} and {}", earlier.0, row.0);
                return Err(mismatch(predictions, "every image once", found));
            }
        }
        let mut probabilities = Vec::with_capacity(images.len() * columns.len());
        for image in &images {
            let Some((line, cells)) = rows.get(image.name.as_str()).copied() else {
                return Err(mismatch(
                    predictions,
                    format!("a row of `{}`", image.name),
                    "none",
                ));
            };
            for column in &columns {
                let cell = cells[*column].trim();
                let value = cell.parse::<f32>().ok().filter(|p| (0.0..=1.0).contains(p));
                let expected = || {
                    format!(
                        "line {line}: a probability from 0 to 1 in `{}`",
                        header[*column]
                    )
                };
                probabilities.push(
                    value.ok_or_else(|| mismatch(predictions, expected(), format!("`{cell}`")))?,
                );
            }
        }
        let truth: Vec<bool> = images
            .iter()
            .flat_map(|image| image.values.iter().copied())
            .collect();
        let known: BTreeSet<&str> = images.iter().map(|image| image.name.as_str()).collect();
        let others: Vec<String> = { rows.keys() }
            .filter(|name| !known.contains(**name))
            .map(|name| (*name).to_owned())
            .collect();
        Ok(PredictionScores {
            scores: scores_of(&data.names, &truth, &probabilities, request.threshold)?,
            data: format!("split `{name}`"),
            notes: Vec::from_iter(count_note("rows are of no image of the split", &others)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_err as fs;

    #[test]
    fn probabilities_of_other_programs_are_scored() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let table = "image,split,hat,bag\na.png,test,1,0\nb.png,test,0,1\n";
        fs::write(at("attributes.csv"), table).unwrap();
        // Columns in another order, and a row too many.
        fs::write(
            at("p.csv"),
            "image,bag,hat\nb.png,0.9,0.2\na.png,0.4,0.8\nc.png,0,0\n",
        )
        .unwrap();
        let scored = AttributeTask::score(
            &ScoreRequest {
                data: folder.path(),
                split: &SplitChoice::Test,
                predictions: &at("p.csv"),
                threshold: 0.5,
            },
            &Default::default(),
        )
        .unwrap();
        assert_eq!(
            (scored.scores.value("mA"), scored.notes.len()),
            (Some(1.0), 1)
        );
        // Of rows that differ the last one used to count, and of columns the first.
        for (table, expected) in [
            (
                "image,bag,hat\nb.png,0.9,0.2\na.png,0.4,0.8\nb.png,0,0\n",
                "expected every image once, found `b.png` in lines 2 and 4",
            ),
            (
                "image,bag,hat,hat\nb.png,0.9,0.2,0\na.png,0.4,0.8,0\n",
                "expected one column `hat`, found image,bag,hat,hat",
            ),
        ] {
            fs::write(at("p.csv"), table).unwrap();
            let request = ScoreRequest {
                data: folder.path(),
                split: &SplitChoice::Test,
                predictions: &at("p.csv"),
                threshold: 0.5,
            };
            let scored = AttributeTask::score(&request, &Default::default());
            let error = scored.err().unwrap().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
