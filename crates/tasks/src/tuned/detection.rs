//! Pedestrian detection with the CSP head (Liu et al., CVPR 2019), as SOLIDER fine-tunes it on CityPersons.

use std::path::Path;

use burn::tensor::Device;
use clasp_data::Rng as DataRng;
use clasp_data::image::Rgb;
use clasp_data::layouts::coco::BoxDataset;
use clasp_metrics::detection::{
    CITYPERSONS, FoundBox, OTHER_SUBSETS, Pedestrian, TrueBox, box_ap, miss_rate,
};
use clasp_model::backbone::Features;
use clasp_model::heads::{DetectionHead, Training};
use clasp_model::layers::Rng;
use clasp_model::losses::detection_losses;
use clasp_model::mix::{Mix, PART};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::picture;
use super::scenes::{self, Answers, Found, Someone, Views};
use crate::TaskError;
use crate::features::Preprocess;
use crate::finetune::check;
use crate::finetune::{
    Example, Judged, Losses, Model, Report, Running, Split, Stages, Task, file_name, left_out,
};
use clasp_weights::onnx::Output;

/// A box drawn or told by `clasp predict` has at least this score.
pub const SHOWN: f64 = 0.3;

/// Section `[task]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Split to train on.
    pub train: String,
    /// Channels of the head: up to 32, or a multiple of 32.
    pub width: usize,
    /// Weight of the loss of middles.
    pub centre_weight: f64,
    /// Weight of the loss of sizes.
    pub size_weight: f64,
    /// Weight of the loss of offsets.
    pub offset_weight: f64,
    /// How scenes are seen, and what is told of them.
    pub views: Views,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            train: "train".to_owned(),
            width: 256,
            centre_weight: 0.01,
            size_weight: 1.0,
            offset_weight: 0.1,
            views: Views::default(),
        }
    }
}

/// Pedestrian detection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DetectionTask {
    /// The settings.
    pub settings: Settings,
}

/// Scenes, and who is in each.
#[derive(Debug)]
pub struct Scenes {
    boxes: BoxDataset,
    people: Vec<Vec<Someone>>,
}

impl Scenes {
    fn new(boxes: BoxDataset) -> Self {
        let mut people = vec![Vec::new(); boxes.images.len()];
        for marked in &boxes.people {
            people[marked.image].push(Someone {
                bbox: marked.bbox,
                ignored: marked.ignored || marked.crowd,
                person: None,
            });
        }
        Self { boxes, people }
    }

    /// Scenes with somebody to be found.
    fn with_people(boxes: BoxDataset) -> Result<Self, TaskError> {
        let scenes = Self::new(boxes);
        if scenes.people.iter().flatten().all(|one| one.ignored) {
            return Err(TaskError::TooFew {
                what: scenes.boxes.file.display().to_string(),
                expected: "people to be found",
                found: 0,
            });
        }
        Ok(scenes)
    }

    fn read(&self, index: usize) -> Result<(Rgb, &Path), TaskError> {
        let image = &self.boxes.images[index];
        let scene = scenes::read(&image.path, Some([image.height, image.width]))?;
        Ok((scene, &image.path))
    }

    fn notes(&self) -> Vec<String> {
        Vec::from_iter(left_out(&self.boxes.file, &self.boxes.problems))
    }
}

impl DetectionTask {
    fn find(
        &self,
        model: &Model<Self>,
        image: &Rgb,
        index: usize,
    ) -> Result<Vec<Found>, TaskError> {
        let head = |maps: &[_]| model.head.forward(maps);
        let views = &self.settings.views;
        Ok(Answers::new(model, head, image, views, index)?.boxes(views))
    }
}

/// The truth for COCO's AP. Ignored people are as crowds are there: what is found on them counts neither way.
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

/// Judges found boxes, in any order, by the data: miss rates and AP.
pub(crate) fn judge(boxes: &BoxDataset, found: &[FoundBox]) -> Result<Judged, TaskError> {
    let ids: Vec<u64> = boxes.images.iter().map(|image| image.id).collect();
    let people = &boxes.people;
    let pedestrians: Vec<Pedestrian> = { people.iter() }
        .map(|one| Pedestrian {
            image: ids[one.image],
            bbox: one.bbox,
            height: one.height,
            visibility: one.visibility,
            ignored: one.ignored || one.crowd,
        })
        .collect();
    let mut figures = Vec::new();
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
                figures.push((format!("MR {}", subset.name), value));
            }
        }
        rates.push(rate);
    }
    let ap = box_ap(&truth(boxes), found)?;
    figures.extend(ap.ap50.map(|value| ("AP.5".to_owned(), value)));
    Ok(Judged {
        figures,
        table,
        details: json!({"miss_rates": rates, "ap": ap}),
    })
}

/// The JSON form of boxes.
pub fn told(found: &[Found]) -> Vec<Value> {
    { found.iter() }
        .map(|one| json!({"bbox": one.bbox, "score": one.score}))
        .collect()
}

/// Boxes of a prediction over its scene.
pub fn drawn(image: &Rgb, prediction: &Value) -> Rgb {
    let mut drawn = image.clone();
    let boxes = prediction["boxes"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    for (index, one) in boxes.iter().enumerate() {
        let number = |at: usize| one["bbox"][at].as_f64().unwrap_or(0.0);
        let word = format!("{:.2}", one["score"].as_f64().unwrap_or(0.0));
        let bbox = [number(0), number(1), number(2), number(3)];
        picture::boxed(&mut drawn, bbox, &word, picture::colour(index));
    }
    drawn
}

impl Task for DetectionTask {
    const NAME: &'static str = "detection";
    type Settings = Settings;
    type Data = Scenes;
    type Eval = Scenes;
    type Head = DetectionHead;
    type Target = scenes::Target;

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
        settings.views.check()?;
        let weights = [
            ("task.centre_weight", settings.centre_weight),
            ("task.size_weight", settings.size_weight),
            ("task.offset_weight", settings.offset_weight),
        ];
        Ok(check::within(&weights, [0.0, 1e4])?)
    }

    const SCENES: bool = true;

    fn check_size(size: [usize; 2], strides: &[usize]) -> Result<(), TaskError> {
        check::size(
            size,
            strides.iter().copied().max().unwrap_or(scenes::MULTIPLE),
        )
    }

    fn open(
        settings: &Settings,
        folder: &Path,
        _: Option<&Split>,
    ) -> Result<(Self, Scenes), TaskError> {
        let scenes = Scenes::with_people(BoxDataset::open(folder, &settings.train)?)?;
        let task = Self {
            settings: settings.clone(),
        };
        Ok((task, scenes))
    }

    fn open_eval(&self, folder: &Path, split: &Split) -> Result<Scenes, TaskError> {
        let boxes = split.open(|name| BoxDataset::open(folder, name))?;
        Scenes::with_people(boxes)
    }

    fn notes(&self, data: &Scenes) -> Vec<String> {
        data.notes()
    }

    fn files<'a>(&self, data: &'a Scenes) -> Vec<&'a Path> {
        { data.boxes.images.iter() }
            .map(|image| image.path.as_path())
            .collect()
    }

    fn examples(&self, data: &Scenes) -> usize {
        data.people.len()
    }

    fn example(
        &self,
        data: &Scenes,
        index: usize,
        preprocess: &Preprocess,
        rng: &mut DataRng,
    ) -> Result<Example<Self::Target>, TaskError> {
        let (scene, path) = data.read(index)?;
        let views = &self.settings.views;
        let people = &data.people[index];
        Ok(scenes::example(
            &scene, path, people, views, preprocess, rng,
        ))
    }

    fn head(
        &self,
        stages: &Stages,
        rng: &mut Rng,
        device: &Device,
    ) -> Result<DetectionHead, TaskError> {
        scenes::head(stages, self.settings.width, None, rng, device)
    }

    fn outputs(&self, head: &DetectionHead, features: Features) -> Vec<(String, Output)> {
        scenes::outputs(head.forward(scenes::maps(&features.pyramid)))
    }

    fn loss(
        &self,
        head: &DetectionHead,
        features: &Features,
        targets: &[Self::Target],
        _: &mut Training<'_>,
    ) -> Losses {
        let output = head.forward(scenes::maps(&features.pyramid));
        let losses = detection_losses(&output, &scenes::targets(targets));
        let settings = &self.settings;
        Losses::sum([
            ("centre", losses.centre, settings.centre_weight),
            ("size", losses.size, settings.size_weight),
            ("offset", losses.offset, settings.offset_weight),
        ])
    }

    fn evaluate(
        &self,
        model: &Model<Self>,
        eval: &Scenes,
        running: &Running<'_>,
    ) -> Result<Report, TaskError> {
        let images = &eval.boxes.images;
        let one = Running {
            batch: 1,
            ..*running
        };
        let found = model.batches("scenes", images.len(), &one, |model, items| {
            items
                .map(|index| self.find(model, &eval.read(index)?.0, index))
                .collect()
        })?;
        let ids: Vec<u64> = images.iter().map(|image| image.id).collect();
        let found: Vec<FoundBox> = { ids.iter().zip(found) }
            .flat_map(|(&image, boxes)| {
                boxes.into_iter().map(move |one| FoundBox {
                    image,
                    bbox: one.bbox,
                    score: one.score,
                })
            })
            .collect();
        let Judged {
            figures,
            table,
            details,
        } = judge(&eval.boxes, &found)?;
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
        let views = &self.settings.views;
        let protocol = format!(
            "Pedestrian detection, fine-tuned, CSP head: whole scenes of {} at scale {}; boxes of score {} and above, {}, \
             at most {} a scene. MR is the log-average miss rate over 0.01 to 1 false positives an image, lower is better: IoU 0.5, \
             pedestrians outside a subset's bounds (table) ignored, found boxes within 1.25 times its heights. AP.5 is COCO's.",
            eval.boxes.file.file_name().unwrap_or_default().display(),
            views.test_scale,
            views.score,
            views.suppression(),
            views.most,
        );
        Ok(Report {
            task: Self::NAME,
            protocol,
            data: file_name(&eval.boxes.file),
            loss: None,
            notes: { eval.notes().into_iter() }
                .chain(left_out(
                    &eval.boxes.file,
                    &Vec::from_iter(eval.boxes.without_hidden()),
                ))
                .collect(),
            figures,
            details,
            table,
            predictions: Value::from(results).to_string().into_bytes(),
        })
    }

    fn predict(&self, model: &Model<Self>, image: &Rgb) -> Result<Value, TaskError> {
        let mut found = self.find(model, image, 0)?;
        found.retain(|one| one.score >= SHOWN);
        Ok(json!({"boxes": told(&found)}))
    }

    fn draw(&self, image: &Rgb, prediction: &Value) -> Rgb {
        drawn(image, prediction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_on_an_ignored_person_counts_neither_way_in_ap() {
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
        // The surest box is on the ignored person: dropped from the truth it would be wrong, and AP 0.5.
        let all = [
            found([100.0, 10.0, 40.0, 100.0], 0.9),
            found([10.0, 10.0, 40.0, 100.0], 0.8),
        ];
        let ap = box_ap(&truth(&boxes), &all).unwrap().ap.unwrap();
        assert!((ap - 1.0).abs() < 1e-12, "{ap}");
    }
}
