//! Person search under online instance matching (Xiao et al., CVPR 2017), with either of two heads.
//!
//! - Two stages ([`super::two_stage`]): SeqNet, which SOLIDER fine-tunes.
//! - One stage: the CSP head with an embedding at the middle of every person, as AlignPS (Yan et al., CVPR 2021) and other
//!   anchor-free searchers have it: one pass over a scene with no step per proposal.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use clasp_data::Rng as DataRng;
use clasp_data::image::Rgb;
use clasp_data::layouts::search::{GallerySize, SearchDataset, SearchFrame};
use clasp_metrics::detection::iou;
use clasp_metrics::search::{self, Context, Frame as FoundFrame, Gallery, Query, Scene, TOP};
use clasp_model::backbone::Features;
use clasp_model::heads::{DetectionHead, DetectionOutput, Training, TwoStageConfig, TwoStageHead};
use clasp_model::layers::Rng;
use clasp_model::losses::{OimMemory, detection_losses};
use clasp_model::mix::Mix;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::detection::{SHOWN, drawn};
use super::scenes::{self, Answers, Found, Someone, Views, middle_of};
use super::two_stage::{self, Regions, Seen};
use crate::TaskError;
use crate::features::Preprocess;
use crate::finetune::check;
use crate::finetune::recipe::setting;
use crate::finetune::{
    Example, Judged, Losses, Model, Report, Running, Split, Stages, Task, left_out,
};
use clasp_weights::onnx::Output;

/// Which head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Head {
    /// SeqNet's.
    TwoStage,
    /// CSP's with an embedding.
    OneStage,
}

/// Section `[task]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Which head.
    pub head: Head,
    /// Channels of the head of one stage: up to 32, or a multiple of 32.
    pub width: usize,
    /// Length of an embedding.
    pub embedding: usize,
    /// Features of unknown people that are remembered: 5000 for CUHK-SYSU, 500 for PRW.
    pub queue: usize,
    /// Share of the old feature of a person in the new one.
    pub momentum: f64,
    /// What similarities are multiplied by in the loss.
    pub scalar: f64,
    /// Weight of the loss of middles.
    pub centre_weight: f64,
    /// Weight of the loss of sizes.
    pub size_weight: f64,
    /// Weight of the loss of offsets.
    pub offset_weight: f64,
    /// Weight of the loss of identities.
    pub identity_weight: f64,
    /// Regions of the head of two stages.
    pub regions: Regions,
    /// How scenes are seen, and what is told of them.
    pub views: Views,
    /// Boxes below this score are not searched.
    pub search_score: f64,
    /// Frames that a query of CUHK-SYSU is searched in: 50, 100, 500, 1000, 2000 or 4000; 0 for all.
    pub gallery: usize,
    /// Search frames of other cameras only (PRW; not the published protocol).
    pub other_cameras: bool,
    /// Multiply similarities by the score of the box.
    pub weighted: bool,
    /// Match the query's companions too in so many best boxes; 0 for not.
    pub context_boxes: usize,
    /// People of the query's frame in that.
    pub context_people: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            head: Head::TwoStage,
            width: 256,
            embedding: 256,
            queue: 5000,
            momentum: 0.5,
            scalar: 30.0,
            centre_weight: 0.01,
            size_weight: 1.0,
            offset_weight: 0.1,
            identity_weight: 1.0,
            regions: Regions::default(),
            views: Views {
                score: 0.05,
                ..Views::default()
            },
            search_score: 0.5,
            gallery: 100,
            other_cameras: false,
            weighted: false,
            context_boxes: 0,
            context_people: 3,
        }
    }
}

/// Person search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SearchTask {
    /// The settings.
    pub settings: Settings,
    /// People to train on, in the order of the memory.
    pub people: Vec<i64>,
}

/// What finds people, and what is remembered of them.
#[derive(Module, Debug)]
pub struct SearchHead {
    /// What finds them.
    pub detector: Detector,
    /// Changed after every step; of use in training only.
    pub memory: OimMemory,
}

/// Either head.
// A head is made once; a box, which Burn has no module for, would save nothing.
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
pub enum Detector {
    /// SeqNet's.
    TwoStage(TwoStageHead),
    /// CSP's with an embedding.
    OneStage(DetectionHead),
}

/// Scenes to train on.
#[derive(Debug)]
pub struct Data {
    root: PathBuf,
    frames: Vec<SearchFrame>,
    people: Vec<Vec<Someone>>,
    /// What cannot be used.
    problems: Vec<String>,
}

pub(crate) fn open(folder: &Path, settings: &Settings) -> Result<SearchDataset, TaskError> {
    let gallery = match settings.gallery {
        0 => GallerySize::Full,
        frames => GallerySize::Frames(frames),
    };
    Ok(SearchDataset::open(folder, gallery)?)
}

impl SearchTask {
    /// The people of a scene, and what stands for those in the boxes `sought`.
    fn find(
        &self,
        model: &Model<Self>,
        image: &Rgb,
        index: usize,
        sought: &[[f64; 4]],
    ) -> Result<(Vec<Found>, Vec<Vec<f32>>), TaskError> {
        let Settings { views, regions, .. } = &self.settings;
        match &model.head.detector {
            Detector::TwoStage(head) => {
                let seen = Seen::new(model, head, image, views, index)?;
                Ok((seen.people(views, regions)?, seen.embeddings(sought)?))
            }
            Detector::OneStage(head) => {
                let head = |maps: &[_]| head.forward(maps);
                let answers = Answers::new(model, head, image, views, index)?;
                let embeddings = sought.iter().map(|bbox| answers.embedding_of(*bbox));
                Ok((answers.boxes(views), embeddings.collect()))
            }
        }
    }

    /// The losses of the head of one stage.
    fn one_stage(
        &self,
        head: &DetectionHead,
        memory: &OimMemory,
        features: &Features,
        targets: &[scenes::Target],
        training: &mut Training<'_>,
    ) -> Losses {
        let output = head.forward(scenes::maps(&features.pyramid));
        let losses = detection_losses(&output, &scenes::targets(targets));
        let settings = &self.settings;
        let identity = match Self::at_middles(&output, targets) {
            Some((embeddings, persons)) => {
                let loss = memory.loss(embeddings.clone(), &persons, settings.scalar);
                memory.follow(embeddings, &persons, settings.momentum, training);
                loss
            }
            None => losses.centre.clone() * 0.0,
        };
        Losses::sum([
            ("centre", losses.centre, settings.centre_weight),
            ("size", losses.size, settings.size_weight),
            ("offset", losses.offset, settings.offset_weight),
            ("identity", identity, settings.identity_weight),
        ])
    }

    /// Embeddings at the middles of a batch's people, and who they are.
    fn at_middles(
        output: &DetectionOutput,
        targets: &[scenes::Target],
    ) -> Option<(Tensor<2>, Vec<Option<usize>>)> {
        let map = output.embedding.clone()?;
        let [batch, length, rows, columns] = map.dims();
        let (mut places, mut persons) = (Vec::new(), Vec::new());
        for (index, target) in targets.iter().enumerate() {
            for one in target.people.iter().filter(|one| !one.ignored) {
                if let Some([row, column]) = middle_of(one.bbox, rows, columns) {
                    places.push(((index * rows + row) * columns + column) as i32);
                    persons.push(one.person);
                }
            }
        }
        if places.is_empty() {
            return None;
        }
        let rows_of_map = map
            .permute([0, 2, 3, 1])
            .reshape([batch * rows * columns, length]);
        let places = TensorData::from(places.as_slice());
        let places = Tensor::<1, Int>::from_data(places, &rows_of_map.device());
        Some((rows_of_map.select(0, places), persons))
    }
}

/// What was found in each frame, by column, as a gallery takes it.
struct Columns {
    /// x, y, width, height of each person, in pixels of the scene.
    boxes: Vec<Vec<[f64; 4]>>,
    scores: Vec<Vec<f64>>,
    /// Embeddings of all people, one after the other.
    features: Vec<Vec<f32>>,
}

impl Columns {
    fn new(frames: &[Vec<Found>]) -> Self {
        Self {
            boxes: { frames.iter() }
                .map(|found| found.iter().map(|one| one.bbox).collect())
                .collect(),
            scores: { frames.iter() }
                .map(|found| found.iter().map(|one| one.score).collect())
                .collect(),
            features: { frames.iter() }
                .map(|found| found.iter().flat_map(|one| one.embedding.clone()).collect())
                .collect(),
        }
    }

    fn frames(&self) -> Vec<FoundFrame<'_>> {
        let scored = self.boxes.iter().zip(&self.scores);
        { scored.zip(&self.features) }
            .map(|((boxes, scores), features)| FoundFrame {
                boxes,
                scores,
                features,
            })
            .collect()
    }
}

/// Judges what was found in each frame, and the embeddings of the queries, by the data.
pub(crate) fn judge(
    settings: &Settings,
    eval: &SearchDataset,
    frames: &[Vec<Found>],
    sought: &[Vec<f32>],
) -> Result<Judged, TaskError> {
    let columns = Columns::new(frames);
    let found = columns.frames();
    let companions: Vec<Vec<f32>> = { eval.queries.iter() }
        .map(|query| {
            // As published: found boxes that are sure enough and that the query's own, which is sure, does not suppress.
            let others = frames[query.frame].iter().filter(|one| {
                one.score >= settings.search_score
                    && iou(one.bbox, query.bbox) <= settings.views.nms
            });
            others.flat_map(|one| one.embedding.clone()).collect()
        })
        .collect();
    let gallery = Gallery::new(
        &found,
        settings.embedding,
        settings.search_score,
        settings.weighted,
    )?;
    let query = |number: usize| {
        let query = &eval.queries[number];
        Query {
            feature: &sought[number],
            companions: &companions[number],
            gallery: eval.gallery(query, settings.other_cameras),
        }
    };
    let context = settings.context();
    let metrics = gallery.evaluate(eval.queries.len(), query, context)?;
    let truth: Vec<(Vec<[f64; 4]>, Vec<bool>)> = { eval.test.iter() }
        .map(|frame| {
            frame
                .people
                .iter()
                .map(|one| (one.bbox, one.person.is_some()))
                .unzip()
        })
        .collect();
    let scenes: Vec<Scene> = (0..frames.len())
        .map(|index| Scene {
            truth: &truth[index].0,
            labelled: &truth[index].1,
            boxes: &columns.boxes[index],
            scores: &columns.scores[index],
        })
        .collect();
    let detection = search::detection(&scenes, settings.search_score, false)?;
    let known = search::detection(&scenes, settings.search_score, true)?;
    let mut figures = vec![("mAP".to_owned(), metrics.map)];
    figures.extend(
        TOP.iter()
            .zip(metrics.top)
            .map(|(k, value)| (format!("top-{k}"), value)),
    );
    figures.extend(
        detection
            .recall
            .map(|value| ("recall of people".to_owned(), value)),
    );
    figures.extend(detection.ap.map(|value| ("AP of people".to_owned(), value)));
    // PRW's custom is to count known people alone.
    figures.extend(
        known
            .recall
            .map(|value| ("recall of known people".to_owned(), value)),
    );
    figures.extend(
        known
            .ap
            .map(|value| ("AP of known people".to_owned(), value)),
    );
    Ok(Judged {
        figures,
        table: format!(
            "{} of {} queries count, {} skipped (in no frame of their gallery)\n",
            metrics.queries - metrics.skipped,
            metrics.queries,
            metrics.skipped
        ),
        details: json!({
            "metrics": metrics,
            "detection": detection,
            "detection of known people": known,
            "frames": eval.test.len(),
        }),
    })
}

/// Predictions as JSON lines, enough to judge them again: the settings of the search; each frame with its boxes, their
/// scores and embeddings; each query with its embedding and its best hits.
fn lines(
    settings: &Settings,
    eval: &SearchDataset,
    frames: &[Vec<Found>],
    sought: &[Vec<f32>],
) -> Result<String, TaskError> {
    let name = |frame: usize| {
        let path = &eval.test[frame].path;
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let mut lines = format!("{}\n", json!({"settings": settings}));
    for (index, found) in frames.iter().enumerate() {
        let boxes: Vec<[f64; 4]> = found.iter().map(|one| one.bbox).collect();
        let scores: Vec<f64> = found.iter().map(|one| one.score).collect();
        let embeddings: Vec<&[f32]> = found.iter().map(|one| &one.embedding[..]).collect();
        let line = json!({
            "frame": name(index),
            "boxes": boxes,
            "scores": scores,
            "embeddings": embeddings,
        });
        lines.push_str(&format!("{line}\n"));
    }
    let columns = Columns::new(frames);
    let found = columns.frames();
    let gallery = Gallery::new(
        &found,
        settings.embedding,
        settings.search_score,
        settings.weighted,
    )?;
    for (number, query) in eval.queries.iter().enumerate() {
        let asked = Query {
            feature: &sought[number],
            companions: &[],
            gallery: eval.gallery(query, settings.other_cameras),
        };
        let ranking = gallery.ranking(&asked, None)?;
        let hits: Vec<Value> = { ranking.iter().take(NAMED) }
            .map(|hit| {
                json!({
                    "frame": name(hit.frame),
                    "bbox": columns.boxes[hit.frame][hit.index],
                    "similarity": hit.similarity,
                })
            })
            .collect();
        let line = json!({
            "person": query.person,
            "of": name(query.frame),
            "bbox": query.bbox,
            "embedding": sought[number],
            "hits": hits,
        });
        lines.push_str(&format!("{line}\n"));
    }
    Ok(lines)
}

impl Settings {
    /// Context matching, if it is asked for.
    fn context(&self) -> Option<Context> {
        (self.context_boxes > 0).then_some(Context {
            boxes: self.context_boxes,
            people: self.context_people,
        })
    }
}

/// Hits of a query that are named in the predictions.
const NAMED: usize = 50;

impl Task for SearchTask {
    const NAME: &'static str = "search";
    type Settings = Settings;
    type Data = Data;
    type Eval = SearchDataset;
    type Head = SearchHead;
    type Target = scenes::Target;

    fn default_mix() -> Mix {
        match Mix::new([0.5, 0.5, 0.0]) {
            Ok(mix) => mix,
            Err(_) => Mix::mean(),
        }
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    fn check(settings: &Settings) -> Result<(), TaskError> {
        settings.views.check()?;
        settings.regions.check()?;
        check::count("task.embedding", settings.embedding, [2, 65_536])?;
        check::count("task.queue", settings.queue, [0, 1_000_000])?;
        let shares = [
            ("task.momentum", settings.momentum),
            ("task.search_score", settings.search_score),
        ];
        check::within(&shares, [0.0, 1.0])?;
        check::within(&[("task.scalar", settings.scalar)], [0.01, 1e4])?;
        let weights = [
            ("task.centre_weight", settings.centre_weight),
            ("task.size_weight", settings.size_weight),
            ("task.offset_weight", settings.offset_weight),
            ("task.identity_weight", settings.identity_weight),
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
    ) -> Result<(Self, Data), TaskError> {
        let search = open(folder, settings)?;
        let known = search.train.iter().flat_map(|frame| &frame.people);
        let people: BTreeSet<i64> = known.filter_map(|marked| marked.person).collect();
        let people: Vec<i64> = people.into_iter().collect();
        if people.len() < 2 {
            return Err(TaskError::TooFew {
                what: search.root.display().to_string(),
                expected: "at least 2 known people in the training frames",
                found: people.len(),
            });
        }
        let class = |person: i64| people.binary_search(&person).ok();
        let someone = |frame: &SearchFrame| -> Vec<Someone> {
            { frame.people.iter() }
                .map(|marked| Someone {
                    bbox: marked.bbox,
                    ignored: false,
                    person: marked.person.and_then(class),
                })
                .collect()
        };
        let data = Data {
            people: search.train.iter().map(someone).collect(),
            problems: [search.problems, SearchDataset::outside(&search.train)].concat(),
            root: search.root,
            frames: search.train,
        };
        let task = Self {
            settings: settings.clone(),
            people: people.clone(),
        };
        Ok((task, data))
    }

    fn open_eval(&self, folder: &Path, split: &Split) -> Result<SearchDataset, TaskError> {
        if *split != Split::Test {
            let expected = "last or test: person search data have no other split to search in";
            return Err(setting("run.select", expected, split.name()));
        }
        open(folder, &self.settings)
    }

    fn notes(&self, data: &Data) -> Vec<String> {
        Vec::from_iter(left_out(&data.root, &data.problems))
    }

    fn files<'a>(&self, data: &'a Data) -> Vec<&'a Path> {
        { data.frames.iter() }
            .map(|frame| frame.path.as_path())
            .collect()
    }

    fn examples(&self, data: &Data) -> usize {
        data.frames.len()
    }

    fn example(
        &self,
        data: &Data,
        index: usize,
        preprocess: &Preprocess,
        rng: &mut DataRng,
    ) -> Result<Example<Self::Target>, TaskError> {
        let SearchFrame { path, size, .. } = &data.frames[index];
        let scene = scenes::read(path, *size)?;
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
    ) -> Result<SearchHead, TaskError> {
        let Settings {
            width,
            embedding,
            queue,
            ..
        } = self.settings;
        let detector = match self.settings.head {
            Head::OneStage => {
                Detector::OneStage(scenes::head(stages, width, Some(embedding), rng, device)?)
            }
            Head::TwoStage => {
                let (channels, copies) = two_stage::last_stages(stages)?;
                let anchors = self.settings.regions.anchors_of_a_position();
                let config = TwoStageConfig {
                    channels,
                    anchors,
                    embedding,
                };
                Detector::TwoStage(config.init(copies, rng, device))
            }
        };
        // A queue of none would be a tensor of nothing.
        let memory = OimMemory::init(self.people.len(), queue.max(1), embedding, device);
        Ok(SearchHead { detector, memory })
    }

    fn outputs(&self, head: &SearchHead, features: Features) -> Vec<(String, Output)> {
        match &head.detector {
            Detector::TwoStage(head) => two_stage::outputs(head, &features.pyramid),
            Detector::OneStage(head) => {
                scenes::outputs(head.forward(scenes::maps(&features.pyramid)))
            }
        }
    }

    fn loss(
        &self,
        head: &SearchHead,
        features: &Features,
        targets: &[Self::Target],
        training: &mut Training<'_>,
    ) -> Losses {
        let (memory, settings) = (&head.memory, &self.settings);
        match &head.detector {
            Detector::TwoStage(head) => {
                two_stage::losses(head, memory, features, targets, settings, training)
            }
            Detector::OneStage(head) => self.one_stage(head, memory, features, targets, training),
        }
    }

    fn evaluate(
        &self,
        model: &Model<Self>,
        eval: &SearchDataset,
        running: &Running<'_>,
    ) -> Result<Report, TaskError> {
        let settings = &self.settings;
        let one = Running {
            batch: 1,
            ..*running
        };
        // What is found in each frame, and the embeddings of its queries.
        let frames: Vec<(Vec<Found>, Vec<(usize, Vec<f32>)>)> =
            model.batches("frames", eval.test.len(), &one, |model, items| {
                items
                    .map(|index| {
                        let SearchFrame { path, size, .. } = &eval.test[index];
                        let image = scenes::read(path, *size)?;
                        let (numbers, boxes): (Vec<usize>, Vec<[f64; 4]>) =
                            { eval.queries.iter().enumerate() }
                                .filter(|(_, query)| query.frame == index)
                                .map(|(number, query)| (number, query.bbox))
                                .unzip();
                        let (found, sought) = self.find(model, &image, index, &boxes)?;
                        Ok((found, numbers.into_iter().zip(sought).collect()))
                    })
                    .collect()
            })?;
        let mut sought = vec![Vec::new(); eval.queries.len()];
        for (number, embedding) in frames.iter().flat_map(|(_, queries)| queries) {
            sought[*number].clone_from(embedding);
        }
        let boxes: Vec<Vec<Found>> = frames.into_iter().map(|(found, _)| found).collect();
        let Judged {
            figures,
            table,
            details,
        } = judge(settings, eval, &boxes, &sought)?;
        let predictions = match running.predictions {
            true => lines(settings, eval, &boxes, &sought)?,
            false => String::new(),
        };
        let context = settings.context();
        let published = eval.queries.iter().any(|query| query.protocol.is_some());
        let searched = match (published, settings.gallery) {
            (true, 0) => "all frames of the gallery".to_owned(),
            (true, frames) => format!("its published gallery of {frames} frames"),
            (false, _) if settings.other_cameras => "frames of other cameras".to_owned(),
            (false, _) => "all test frames but the query's own".to_owned(),
        };
        let context = if context.is_some() {
            format!(
                "; context of {} boxes and {} people",
                settings.context_boxes, settings.context_people
            )
        } else {
            String::new()
        };
        let head = match settings.head {
            Head::TwoStage => "two stages (SeqNet)",
            Head::OneStage => "one stage on the CSP head",
        };
        Ok(Report {
            task: Self::NAME,
            protocol: format!(
                "Person search, fine-tuned, {head}, {}: whole frames {}; boxes of score {} and above, {}; \
                 queries by the embedding of their box, searched in {searched}; cosine{}{context}. A box is right that overlaps the \
                 person's by min(0.5, wh/((w+10)(h+10))) and comes first in its frame; mAP counts frames without one as missed.",
                eval.layout,
                settings.views.shown(),
                settings.search_score,
                settings.views.suppression(),
                if settings.weighted {
                    " times the box's score"
                } else {
                    ""
                },
            ),
            data: eval.layout.to_owned(),
            loss: None,
            notes: Vec::from_iter(left_out(&eval.root, &eval.problems())),
            figures,
            details,
            table,
            predictions: predictions.into_bytes(),
        })
    }

    fn predict(&self, model: &Model<Self>, image: &Rgb) -> Result<Value, TaskError> {
        let (mut found, _) = self.find(model, image, 0, &[])?;
        found.retain(|one| one.score >= SHOWN);
        let boxes: Vec<Value> = { found.iter() }
            .map(|one| json!({"bbox": one.bbox, "score": one.score, "embedding": one.embedding}))
            .collect();
        Ok(json!({ "boxes": boxes }))
    }

    fn draw(&self, image: &Rgb, prediction: &Value) -> Rgb {
        drawn(image, prediction)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_outside_their_frame_are_told_of_at_training() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{"images": [{"id": 1, "file_name": "a.jpg", "width": 90, "height": 90}, {"id": 2, "file_name": "b.jpg", "width": 90, "height": 90}],
            "annotations": [{"id": 1, "image_id": 1, "bbox": [0, 0, 9, 9], "pid": 4}, {"id": 2, "image_id": 2, "bbox": [5, 0, 9, 9], "pid": 5},
              {"id": 3, "image_id": 2, "bbox": [95, 0, 9, 9], "pid": 5}]}"#;
        for split in ["train", "test"] {
            let file = folder.path().join(format!("instances_{split}.json"));
            fs_err::write(file, text).unwrap();
        }
        let (task, data) = SearchTask::open(&Settings::default(), folder.path(), None).unwrap();
        let [note] = &task.notes(&data)[..] else {
            panic!("{:?}", data.problems)
        };
        assert!(note.contains("the box [95.0, 0.0, 9.0, 9.0]"), "{note}");
    }
}
