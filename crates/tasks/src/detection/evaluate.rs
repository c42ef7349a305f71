//! Evaluation of pedestrian detection: log-average miss rates and AP.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

use clasp_data::layouts::coco::BoxDataset;
use clasp_data::layouts::coco::read_boxes;
use clasp_metrics::detection::{
    CITYPERSONS, FoundBox, LabeledPedestrian, OTHER_SUBSETS, TrueBox, box_ap, miss_rate,
};
use clasp_metrics::{Direction, Metric};
use serde_json::{Value, json};

use super::DetectionTask;
use super::csp::DetectedPerson;
use super::data::DetectionSet;
use crate::TaskError;
use crate::task::evaluation::{PredictionScores, WrongResult, count_note, file_name};
use crate::task::examples::skipped_note;
use crate::task::{
    Evaluate, Evaluation, FinetunedModel, ScoreRequest, SplitChoice, Task, TaskScores,
};

/// The ground truth for COCO's AP. Ignored people are crowds there: boxes on them are neither
/// correct nor wrong.
fn truth(boxes: &BoxDataset) -> Vec<TrueBox> {
    { boxes.people.iter() }
        .map(|one| TrueBox {
            image: boxes.images[one.image].id,
            bbox: one.bbox,
            area: one.area,
            crowd: one.crowd || one.ignored,
        })
        .collect()
}

/// Miss rates and AP of detected boxes, in any order.
fn scores_of(boxes: &BoxDataset, found: &[FoundBox]) -> Result<TaskScores, TaskError> {
    let ids: Vec<u64> = boxes.images.iter().map(|image| image.id).collect();
    let people = &boxes.people;
    let pedestrians: Vec<LabeledPedestrian> = { people.iter() }
        .map(|one| LabeledPedestrian {
            image: ids[one.image],
            bbox: one.bbox,
            height: one.height,
            visibility: one.visibility,
            ignored: one.ignored || one.crowd,
        })
        .collect();
    let mut quoted = Vec::new();
    let mut table = String::new();
    let mut rates = Vec::new();
    for subset in CITYPERSONS.iter().chain(&OTHER_SUBSETS) {
        let rate = miss_rate(&ids, &pedestrians, found, subset)?;
        if let Some(value) = rate.value {
            table.push_str(&format!(
                "MR^-2 {:6.2}  {subset}, {} pedestrians\n",
                100.0 * value,
                rate.pedestrians
            ));
            if CITYPERSONS.contains(subset) {
                quoted.push(Metric::error_rate(format!("MR {}", subset.name), value));
            }
        }
        rates.push(rate);
    }
    let ap = box_ap(&truth(boxes), found)?;
    quoted.extend(ap.ap50.map(|value| Metric::score("AP.5", value)));
    Ok(TaskScores {
        // Without any box everyone is missed, and nothing is precise.
        chance: quoted.first().map(|metric| match metric.better {
            Direction::Lower => 1.0,
            Direction::Higher => 0.0,
        }),
        metrics: quoted,
        table,
        details: json!({"miss_rates": rates, "ap": ap}),
    })
}

impl DetectionTask {
    fn protocol(&self, file: &Path) -> String {
        let config = &self.config.scenes;
        format!(
            "Pedestrian detection, fine-tuned, CSP head: whole scenes of {} {}; boxes of score {} and above, {}, \
             at most {} a scene. MR is the log-average miss rate over 0.01 to 1 false positives an image, lower is better: IoU 0.5, \
             pedestrians outside a subset's bounds (table) ignored, detected boxes within 1.25 times its heights. AP.5 is COCO's.",
            file_name(file),
            config.scaling(),
            config.score_threshold,
            config.suppression(),
            config.max_boxes,
        )
    }
}

impl Evaluate for DetectionTask {
    type TestSet = DetectionSet;
    /// The people found in a scene.
    type UnitResult = Vec<DetectedPerson>;

    const UNITS: &'static str = "scenes";
    const MOST_AT_ONCE: usize = 1;

    fn open_test(&self, folder: &Path, split: &SplitChoice) -> Result<DetectionSet, TaskError> {
        let boxes = split.open(|name| BoxDataset::open(folder, name))?;
        DetectionSet::with_people(boxes)
    }

    fn units(eval: &DetectionSet) -> usize {
        eval.boxes.images.len()
    }

    fn unit_text(eval: &DetectionSet, unit: usize) -> String {
        let image = &eval.boxes.images[unit];
        format!("{} {}", image.id, file_name(&image.path))
    }

    fn results_of_batch(
        &self,
        model: &FinetunedModel<Self>,
        eval: &DetectionSet,
        units: Range<usize>,
        _predictions: bool,
    ) -> Result<Vec<Vec<DetectedPerson>>, TaskError> {
        units
            .map(|index| self.detect(model, &eval.read(index)?.0, index))
            .collect()
    }

    fn check_result(
        &self,
        _: &FinetunedModel<Self>,
        _: &DetectionSet,
        _: usize,
        people: &Vec<DetectedPerson>,
    ) -> Result<(), WrongResult> {
        DetectedPerson::check(people, 0)
    }

    fn summarize(
        &self,
        _model: &FinetunedModel<Self>,
        eval: &DetectionSet,
        results: Vec<Vec<DetectedPerson>>,
        _predictions: bool,
    ) -> Result<Evaluation, TaskError> {
        let ids: Vec<u64> = eval.boxes.images.iter().map(|image| image.id).collect();
        let found: Vec<FoundBox> = { ids.iter().zip(results) }
            .flat_map(|(&image, boxes)| {
                boxes.into_iter().map(move |one| FoundBox {
                    image,
                    bbox: one.bbox,
                    score: one.score,
                })
            })
            .collect();
        let scores = scores_of(&eval.boxes, &found)?;
        let results: Vec<Value> = { found.iter() }
            .map(|one| {
                json!({
                    "image_id": one.image,
                    "category_id": eval.boxes.category,
                    "bbox": one.bbox,
                    "score": one.score,
                })
            })
            .collect();
        Ok(Evaluation {
            task: Self::NAME,
            protocol: self.protocol(&eval.boxes.file),
            data: file_name(&eval.boxes.file),
            loss: None,
            notes: { eval.notes().into_iter() }
                .chain(skipped_note(
                    &eval.boxes.file,
                    &Vec::from_iter(eval.boxes.without_hidden()),
                ))
                .collect(),
            scores,
            predictions: Value::from(results).to_string().into_bytes(),
        })
    }

    fn score(
        request: &ScoreRequest<'_>,
        _config: &Self::Config,
    ) -> Result<PredictionScores, TaskError> {
        let predictions = request.predictions;
        let data = request
            .split
            .open(|name| BoxDataset::open(request.data, name))?;
        let ids: BTreeSet<u64> = data.images.iter().map(|image| image.id).collect();
        let (known, unknown): (Vec<_>, Vec<_>) =
            { read_boxes(predictions, data.category)?.into_iter() }
                .partition(|one| ids.contains(&one.image));
        let found: Vec<FoundBox> = { known.iter() }
            .map(|one| FoundBox {
                image: one.image,
                bbox: one.bbox,
                score: one.score,
            })
            .collect();
        let unknown: Vec<String> = unknown.iter().map(|one| one.image.to_string()).collect();
        let mut notes = Vec::from_iter(count_note(
            "boxes are of images that the data do not have",
            &unknown,
        ));
        notes.extend(data.problems.iter().cloned());
        Ok(PredictionScores {
            scores: scores_of(&data, &found)?,
            data: file_name(&data.file),
            notes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Once it named `test_scale` where `resize` decides.
    #[test]
    fn the_protocol_says_how_scenes_are_scaled() {
        let mut task = DetectionTask {
            config: Default::default(),
        };
        let file = Path::new("data/val.json");
        let said = "whole scenes of val.json at scale 1; boxes";
        assert!(task.protocol(file).contains(said));
        task.config.scenes.resize = [900, 1500];
        let protocol = task.protocol(file);
        let said =
            "of val.json with a shorter side of 900 and a longer one of at most 1500 pixels;";
        assert!(protocol.contains(said), "{protocol}");
    }

    #[test]
    fn a_box_on_an_ignored_person_does_not_change_ap() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{"images": [{"id": 7, "file_name": "a.jpg", "width": 200, "height": 200}],
            "annotations": [
              {"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 10, 40, 100]},
              {"id": 2, "image_id": 7, "category_id": 3, "bbox": [100, 10, 40, 100], "ignore": 1}],
            "categories": [{"id": 1, "name": "car"}, {"id": 3, "name": "person"}]}"#;
        fs_err::write(folder.path().join("instances_val.json"), text).unwrap();
        let boxes = BoxDataset::open(folder.path(), "val").unwrap();
        assert_eq!(boxes.category, 3);
        let found = |bbox, score| FoundBox {
            image: 7,
            bbox,
            score,
        };
        // The box of the highest score is on the ignored person: without that person it would be
        // wrong, and AP 0.5.
        let all = [
            found([100.0, 10.0, 40.0, 100.0], 0.9),
            found([10.0, 10.0, 40.0, 100.0], 0.8),
        ];
        let ap = box_ap(&truth(&boxes), &all).unwrap().ap.unwrap();
        assert!((ap - 1.0).abs() < 1e-12, "{ap}");
    }

    #[test]
    fn boxes_of_other_programs_are_scored() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let text = r#"{"images": [{"id": 7, "file_name": "a.jpg", "width": 200, "height": 200}],
            "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 10, 40, 100], "area": 4000, "iscrowd": 0}],
            "categories": [{"id": 3, "name": "person"}]}"#;
        fs_err::write(at("instances_val.json"), text).unwrap();
        let boxes = r#"[{"image_id": 7, "category_id": 3, "bbox": [10, 10, 40, 100], "score": 0.5},
            {"image_id": 7, "category_id": 3, "bbox": [100, 10, 40, 100], "score": 0.9},
            {"image_id": 8, "category_id": 3, "bbox": [1, 1, 4, 10], "score": 0.9}]"#;
        fs_err::write(at("boxes.json"), boxes).unwrap();
        let scored = DetectionTask::score(
            &ScoreRequest {
                data: folder.path(),
                split: &SplitChoice::Test,
                predictions: &at("boxes.json"),
                threshold: 0.5,
            },
            &Default::default(),
        )
        .unwrap();
        let ap = scored.scores.value("AP.5").unwrap();
        assert!((ap - 0.5).abs() < 1e-12, "{ap}");
        assert!(
            scored.notes[0].starts_with("1 boxes are of images"),
            "{:?}",
            scored.notes
        );
    }
}
