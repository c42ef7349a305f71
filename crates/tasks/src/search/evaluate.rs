//! Evaluation of person search: mAP, top-k, and how well people are detected.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use clasp_data::layouts::search::{SearchDataset, SearchFrame};
use clasp_data::text::read_text;
use clasp_metrics::detection::iou;
use clasp_metrics::search::{self, GalleryFrame, SceneDetections, SearchGallery, SearchQuery, TOP};
use clasp_metrics::{Metric, MetricError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::SearchTask;
use super::config::{SearchConfig, SearchHeadKind};
use super::data::open;
use crate::TaskError;
use crate::detection::csp::DetectedPerson;
use crate::detection::scenes;
use crate::task::check::setting;
use crate::task::evaluation::{PredictionScores, WrongResult, file_name, mismatch};
use crate::task::examples::skipped_note;
use crate::task::{
    Evaluate, Evaluation, FinetunedModel, ScoreRequest, SplitChoice, Task, TaskScores,
};

/// Results of a query that are listed in the predictions.
const LISTED: usize = 50;

/// The detections of each frame as the gallery takes them: boxes, scores and embeddings apart.
struct FrameDetections {
    /// x, y, width, height of each person, in pixels of the scene.
    boxes: Vec<Vec<[f64; 4]>>,
    scores: Vec<Vec<f64>>,
    /// Embeddings of all people, one after the other.
    features: Vec<Vec<f32>>,
}

impl FrameDetections {
    fn new(frames: &[Vec<DetectedPerson>]) -> Self {
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

    fn frames(&self) -> Vec<GalleryFrame<'_>> {
        let scored = self.boxes.iter().zip(&self.scores);
        { scored.zip(&self.features) }
            .map(|((boxes, scores), features)| GalleryFrame {
                boxes,
                scores,
                features,
            })
            .collect()
    }
}

/// The queries of a dataset with their embeddings.
struct EmbeddedQueries<'a> {
    eval: &'a SearchDataset,
    other_cameras: bool,
    features: &'a [Vec<f32>],
    /// The embeddings of the people beside each query, one after the other.
    companions: Vec<Vec<f32>>,
}

impl<'a> EmbeddedQueries<'a> {
    fn new(
        config: &SearchConfig,
        eval: &'a SearchDataset,
        frames: &[Vec<DetectedPerson>],
        features: &'a [Vec<f32>],
    ) -> Self {
        let companions = { eval.queries.iter() }
            .map(|query| {
                // As published: detections above the threshold that NMS would keep beside the query's
                // ground-truth box.
                let others = frames[query.frame].iter().filter(|one| {
                    one.score >= config.search_threshold
                        && iou(one.bbox, query.bbox) <= config.scenes.nms_threshold
                });
                others.flat_map(|one| one.embedding.clone()).collect()
            })
            .collect();
        Self {
            eval,
            other_cameras: config.other_cameras,
            features,
            companions,
        }
    }

    fn query(&self, number: usize) -> SearchQuery<'_> {
        SearchQuery {
            feature: &self.features[number],
            companions: &self.companions[number],
            gallery: (self.eval).gallery(&self.eval.queries[number], self.other_cameras),
        }
    }
}

/// The detections of all frames, to be searched.
fn gallery<'a>(
    config: &SearchConfig,
    frames: &'a [GalleryFrame<'a>],
) -> Result<SearchGallery<'a>, MetricError> {
    SearchGallery::new(
        frames,
        config.embedding_dim,
        config.search_threshold,
        config.weight_by_score,
    )
}

/// The metrics of the detections in each frame and of the embeddings of the queries.
fn scores_of(
    config: &SearchConfig,
    eval: &SearchDataset,
    frames: &[Vec<DetectedPerson>],
    queries: &[Vec<f32>],
) -> Result<TaskScores, TaskError> {
    let columns = FrameDetections::new(frames);
    let found = columns.frames();
    let asked = EmbeddedQueries::new(config, eval, frames, queries);
    let query_of = |number: usize| asked.query(number);
    let metrics =
        gallery(config, &found)?.evaluate(eval.queries.len(), query_of, config.context())?;
    let truth: Vec<(Vec<[f64; 4]>, Vec<bool>)> = { eval.test.iter() }
        .map(|frame| {
            frame
                .people
                .iter()
                .map(|one| (one.bbox, one.person.is_some()))
                .unzip()
        })
        .collect();
    let scenes: Vec<SceneDetections> = (0..frames.len())
        .map(|index| SceneDetections {
            truth: &truth[index].0,
            known: &truth[index].1,
            boxes: &columns.boxes[index],
            scores: &columns.scores[index],
        })
        .collect();
    let detection = search::detection(&scenes, config.search_threshold, false)?;
    let known = search::detection(&scenes, config.search_threshold, true)?;
    let mut quoted = vec![Metric::score("mAP", metrics.map)];
    let top = TOP.iter().zip(metrics.top);
    quoted.extend(top.map(|(k, value)| Metric::score(format!("top-{k}"), value)));
    // PRW's practice is to count known people only.
    for (name, value) in [
        ("recall of people", detection.recall),
        ("AP of people", detection.ap),
        ("recall of known people", known.recall),
        ("AP of known people", known.ap),
    ] {
        quoted.extend(value.map(|value| Metric::score(name, value)));
    }
    Ok(TaskScores {
        metrics: quoted,
        chance: Some(metrics.chance_map),
        table: format!(
            "{} of {} queries evaluated, {} skipped (in no frame of their gallery)\n",
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

/// Predictions as JSON lines, enough to evaluate them again: the configuration of the search; each
/// frame with its boxes, their scores and embeddings; each query with its embedding and its best
/// results in the order of the metrics, context matching included.
fn lines(
    config: &SearchConfig,
    eval: &SearchDataset,
    frames: &[Vec<DetectedPerson>],
    queries: &[Vec<f32>],
) -> Result<String, TaskError> {
    let names = frame_names(eval);
    let name = |frame: usize| names[frame].as_str();
    let mut lines = format!("{}\n", json!({"config": config}));
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
    let columns = FrameDetections::new(frames);
    let found = columns.frames();
    let gallery = gallery(config, &found)?;
    let asked = EmbeddedQueries::new(config, eval, frames, queries);
    for (number, query) in eval.queries.iter().enumerate() {
        let ranking = gallery.ranking(&asked.query(number), config.context())?;
        let hits: Vec<Value> = { ranking.iter().take(LISTED) }
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
            "embedding": queries[number],
            "hits": hits,
        });
        lines.push_str(&format!("{line}\n"));
    }
    Ok(lines)
}

/// The path of a test frame in its dataset.
fn frame_path(eval: &SearchDataset, frame: usize) -> &Path {
    let path = &eval.test[frame].path;
    path.strip_prefix(&eval.root).unwrap_or(path)
}

/// The names of the test frames in predictions: those of their files, or where two of these are the
/// same the paths in the dataset.
fn frame_names(eval: &SearchDataset) -> Vec<String> {
    let frames = 0..eval.test.len();
    let names: Vec<String> = { frames.clone() }
        .map(|frame| file_name(&eval.test[frame].path))
        .collect();
    match names.iter().collect::<HashSet<_>>().len() == names.len() {
        true => names,
        false => { frames }
            .map(|frame| frame_path(eval, frame).display().to_string())
            .collect(),
    }
}

/// The queries that a frame shows: their numbers among all, and their boxes.
fn queries_of(eval: &SearchDataset, frame: usize) -> impl Iterator<Item = (usize, [f64; 4])> + '_ {
    { eval.queries.iter().enumerate() }
        .filter(move |(_, query)| query.frame == frame)
        .map(|(number, query)| (number, query.bbox))
}

/// What was found in a frame.
#[derive(Debug, Serialize, Deserialize)]
pub struct SearchedFrame {
    people: Vec<DetectedPerson>,
    /// The queries that the frame shows, by their number among all, and the embeddings of their boxes.
    queries: Vec<(usize, Vec<f32>)>,
}

impl Evaluate for SearchTask {
    type TestSet = SearchDataset;
    type UnitResult = SearchedFrame;

    const UNITS: &'static str = "frames";
    const MOST_AT_ONCE: usize = 1;
    const HAS_SPLITS: bool = false;

    fn open_test(&self, folder: &Path, split: &SplitChoice) -> Result<SearchDataset, TaskError> {
        if *split != SplitChoice::Test {
            let expected = "last or test: person search data have no validation split";
            return Err(setting("run.checkpoint_selection", expected, split.name()));
        }
        open(folder, &self.config)
    }

    fn units(eval: &SearchDataset) -> usize {
        eval.test.len()
    }

    fn unit_text(eval: &SearchDataset, unit: usize) -> String {
        let queries: Vec<(usize, [f64; 4])> = queries_of(eval, unit).collect();
        format!("{} {queries:?}", frame_path(eval, unit).display())
    }

    fn results_of_batch(
        &self,
        model: &FinetunedModel<Self>,
        eval: &SearchDataset,
        units: Range<usize>,
        _predictions: bool,
    ) -> Result<Vec<SearchedFrame>, TaskError> {
        let search = |index: usize| {
            let SearchFrame { path, size, .. } = &eval.test[index];
            let image = scenes::read(path, *size)?;
            let (numbers, boxes): (Vec<usize>, Vec<[f64; 4]>) = queries_of(eval, index).unzip();
            let (people, queries) = self.detect(model, &image, index, &boxes)?;
            Ok(SearchedFrame {
                people,
                queries: numbers.into_iter().zip(queries).collect(),
            })
        };
        units.map(search).collect()
    }

    fn check_result(
        &self,
        _: &FinetunedModel<Self>,
        eval: &SearchDataset,
        unit: usize,
        frame: &SearchedFrame,
    ) -> Result<(), WrongResult> {
        let length = self.config.embedding_dim;
        DetectedPerson::check(&frame.people, length)?;
        let numbers: Vec<usize> = frame.queries.iter().map(|(number, _)| *number).collect();
        let expected: Vec<usize> = queries_of(eval, unit).map(|(number, _)| number).collect();
        let embeddings = frame.queries.iter().map(|(_, embedding)| embedding);
        let finite: Vec<usize> = { embeddings.clone() }
            .map(|embedding| embedding.iter().filter(|v| v.is_finite()).count())
            .collect();
        let is_whole = embeddings
            .zip(&finite)
            .all(|(one, finite)| [one.len(), *finite] == [length; 2]);
        if numbers == expected && is_whole {
            return Ok(());
        }
        Err(WrongResult {
            expected: format!("embeddings of {length} finite numbers of the queries {expected:?}"),
            found: format!("{finite:?} finite numbers of the queries {numbers:?}"),
        })
    }

    fn summarize(
        &self,
        _model: &FinetunedModel<Self>,
        eval: &SearchDataset,
        results: Vec<SearchedFrame>,
        predictions: bool,
    ) -> Result<Evaluation, TaskError> {
        let config = &self.config;
        let mut queries = vec![Vec::new(); eval.queries.len()];
        for (number, embedding) in results.iter().flat_map(|frame| &frame.queries) {
            queries[*number].clone_from(embedding);
        }
        let boxes: Vec<Vec<DetectedPerson>> =
            results.into_iter().map(|frame| frame.people).collect();
        let scores = scores_of(config, eval, &boxes, &queries)?;
        let predictions = match predictions {
            true => lines(config, eval, &boxes, &queries)?,
            false => String::new(),
        };
        let context = config.context();
        let published = eval.queries.iter().any(|query| query.protocol.is_some());
        let searched = match (published, config.gallery_size) {
            (true, 0) => "all frames of the gallery".to_owned(),
            (true, frames) => format!("its published gallery of {frames} frames"),
            (false, _) if config.other_cameras => "frames of other cameras".to_owned(),
            (false, _) => "all test frames but the query's own".to_owned(),
        };
        let context = if context.is_some() {
            format!(
                "; context of {} boxes and {} people",
                config.context_boxes, config.context_people
            )
        } else {
            String::new()
        };
        let head = match config.head {
            SearchHeadKind::TwoStage => "two stages (SeqNet)",
            SearchHeadKind::OneStage => "one stage on the CSP head",
        };
        Ok(Evaluation {
            task: Self::NAME,
            protocol: format!(
                "Person search, fine-tuned, {head}, {}: whole frames {}; boxes of score {} and above, {}; \
                 queries by the embedding of their box, searched in {searched}; cosine{}{context}. A box is correct if its IoU with the \
                 person's is at least min(0.5, wh/((w+10)(h+10))) and it ranks first in its frame; mAP counts frames without one as missed.",
                eval.layout,
                config.scenes.scaling(),
                config.search_threshold,
                config.scenes.suppression(),
                if config.weight_by_score {
                    " times the box's score"
                } else {
                    ""
                },
            ),
            data: eval.layout.to_owned(),
            loss: None,
            notes: Vec::from_iter(skipped_note(&eval.root, &eval.problems())),
            scores,
            predictions: predictions.into_bytes(),
        })
    }

    fn score(
        request: &ScoreRequest<'_>,
        _config: &Self::Config,
    ) -> Result<PredictionScores, TaskError> {
        let predictions = request.predictions;
        let SearchPredictions {
            config,
            mut frames,
            mut queries,
        } = SearchPredictions::read(predictions)?;
        let data = open(request.data, &config)?;
        let names = frame_names(&data);
        let name = |frame: usize| names[frame].as_str();
        let lacks = |what: String| mismatch(predictions, what, "none");
        let found = (0..data.test.len())
            .map(|frame| {
                let found = frames.remove(name(frame));
                found.ok_or_else(|| lacks(format!("a line of frame `{}`", name(frame))))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let queries = { data.queries.iter() }
            .map(|query| {
                let of = name(query.frame);
                let queries = queries.remove(&(query.person, of.to_owned()));
                queries.ok_or_else(|| lacks(format!("a line of query {} of `{of}`", query.person)))
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(PredictionScores {
            scores: scores_of(&config, &data, &found, &queries)?,
            data: data.layout.to_owned(),
            notes: data.problems(),
        })
    }
}

/// The detections of a frame, a line of a predictions file.
#[derive(Deserialize)]
struct FrameLine {
    frame: String,
    boxes: Vec<[f64; 4]>,
    scores: Vec<f64>,
    embeddings: Vec<Vec<f32>>,
}

/// The embedding of a query, a line of a predictions file.
#[derive(Deserialize)]
struct QueryLine {
    person: i64,
    of: String,
    embedding: Vec<f32>,
}

/// The content of a predictions file.
struct SearchPredictions {
    config: SearchConfig,
    /// Detections by the name of the frame.
    frames: HashMap<String, Vec<DetectedPerson>>,
    /// Embeddings by identity and name of the frame.
    queries: HashMap<(i64, String), Vec<f32>>,
}

impl SearchPredictions {
    /// Reads the JSON lines of `clasp eval search --predictions`.
    fn read(predictions: &Path) -> Result<Self, TaskError> {
        let text = read_text(predictions)?;
        let mut config = SearchConfig::default();
        let (mut frames, mut queries) = (HashMap::new(), HashMap::new());
        let mut length = None;
        for (number, line) in (1..)
            .zip(text.lines())
            .filter(|(_, line)| !line.trim().is_empty())
        {
            let wrong = |found: String| {
                let expected = format!(
                    "line {number}: config, a frame or a query, as `clasp eval search` writes them"
                );
                mismatch(predictions, expected, found)
            };
            let value: Value =
                serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
            let failed = |error: serde_json::Error| wrong(error.to_string());
            if let Some(of_all) = value.get("config") {
                config = serde_json::from_value(of_all.clone()).map_err(failed)?;
            } else if value.get("frame").is_some() {
                let frame: FrameLine = serde_json::from_value(value).map_err(failed)?;
                let count = frame.boxes.len();
                if [frame.scores.len(), frame.embeddings.len()] != [count; 2] {
                    return Err(wrong(format!(
                        "{count} boxes, {} scores, {} embeddings",
                        frame.scores.len(),
                        frame.embeddings.len()
                    )));
                }
                let boxes = frame
                    .boxes
                    .into_iter()
                    .zip(frame.scores)
                    .zip(frame.embeddings);
                let mut found = Vec::with_capacity(count);
                for ((bbox, score), embedding) in boxes {
                    if *length.get_or_insert(embedding.len()) != embedding.len() {
                        return Err(wrong(format!(
                            "an embedding of {} numbers",
                            embedding.len()
                        )));
                    }
                    found.push(DetectedPerson {
                        bbox,
                        score,
                        embedding,
                    });
                }
                let name = format!("another line of frame `{}`", frame.frame);
                if frames.insert(frame.frame, found).is_some() {
                    return Err(wrong(name));
                }
            } else {
                let query: QueryLine = serde_json::from_value(value).map_err(failed)?;
                if *length.get_or_insert(query.embedding.len()) != query.embedding.len() {
                    return Err(wrong(format!(
                        "an embedding of {} numbers",
                        query.embedding.len()
                    )));
                }
                let name = format!("another line of query {} of `{}`", query.person, query.of);
                let key = (query.person, query.of);
                if queries.insert(key, query.embedding).is_some() {
                    return Err(wrong(name));
                }
            }
        }
        config.embedding_dim = length.unwrap_or(config.embedding_dim);
        Ok(Self {
            config,
            frames,
            queries,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Once the listed results were those without the context that the metrics rank by.
    #[test]
    fn listed_results_are_ranked_by_context_as_the_metrics() {
        const PERSON: [f64; 4] = [10.0, 10.0, 40.0, 80.0];
        const BESIDE: [f64; 4] = [100.0, 10.0, 40.0, 80.0];
        let folder = tempfile::tempdir().unwrap();
        // Persons 1 and 2 in frames a and c, person 3 in frame b.
        let text = r#"{"images": [{"id": 1, "file_name": "a.jpg", "width": 200, "height": 100},
              {"id": 2, "file_name": "b.jpg", "width": 200, "height": 100},
              {"id": 3, "file_name": "c.jpg", "width": 200, "height": 100}],
            "annotations": [{"id": 1, "image_id": 1, "bbox": [10, 10, 40, 80], "pid": 1},
              {"id": 2, "image_id": 1, "bbox": [100, 10, 40, 80], "pid": 2},
              {"id": 3, "image_id": 2, "bbox": [10, 10, 40, 80], "pid": 3},
              {"id": 4, "image_id": 3, "bbox": [10, 10, 40, 80], "pid": 1},
              {"id": 5, "image_id": 3, "bbox": [100, 10, 40, 80], "pid": 2}]}"#;
        for split in ["train", "test"] {
            let file = folder.path().join(format!("instances_{split}.json"));
            fs_err::write(file, text).unwrap();
        }
        let mut config = SearchConfig {
            embedding_dim: 2,
            context_boxes: 10,
            context_people: 2,
            ..SearchConfig::default()
        };
        let eval = open(folder.path(), &config).unwrap();
        let found = |bbox, embedding: [f32; 2]| DetectedPerson {
            bbox,
            score: 1.0,
            embedding: embedding.to_vec(),
        };
        let frames = [
            vec![found(PERSON, [1.0, 0.0]), found(BESIDE, [0.0, 1.0])],
            vec![found(PERSON, [0.8, 0.6])],
            vec![found(PERSON, [0.6, 0.8]), found(BESIDE, [0.0, 1.0])],
        ];
        let queries: Vec<Vec<f32>> = { eval.queries.iter() }
            .map(|query| match query.person {
                1 => vec![1.0, 0.0],
                _ => vec![0.0, 1.0],
            })
            .collect();
        let first = |config: &SearchConfig| -> String {
            let text = lines(config, &eval, &frames, &queries).unwrap();
            let line = { text.lines() }
                .map(|line| serde_json::from_str::<Value>(line).unwrap())
                .find(|line| line["person"] == 1 && line["of"] == "a.jpg")
                .unwrap();
            line["hits"][0]["frame"].as_str().unwrap().to_owned()
        };
        assert_eq!(first(&config), "c.jpg");
        config.context_boxes = 0;
        assert_eq!(first(&config), "b.jpg");
    }

    /// Frames of one name in two folders were once one frame in `clasp score search`.
    #[test]
    fn frames_of_one_name_in_two_folders_are_scored_each_by_its_own() {
        const PERSON: [f64; 4] = [10.0, 10.0, 40.0, 80.0];
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let text = r#"{"images": [{"id": 1, "file_name": "a/1.jpg", "width": 200, "height": 100},
              {"id": 2, "file_name": "b/1.jpg", "width": 200, "height": 100}],
            "annotations": [{"id": 1, "image_id": 1, "bbox": [10, 10, 40, 80], "pid": 1},
              {"id": 2, "image_id": 2, "bbox": [10, 10, 40, 80], "pid": 1}]}"#;
        for split in ["train", "test"] {
            fs_err::write(at(&format!("instances_{split}.json")), text).unwrap();
        }
        let config = SearchConfig {
            embedding_dim: 2,
            ..SearchConfig::default()
        };
        let eval = open(folder.path(), &config).unwrap();
        let frame = |embedding: [f32; 2]| {
            vec![DetectedPerson {
                bbox: PERSON,
                score: 1.0,
                embedding: embedding.to_vec(),
            }]
        };
        let frames = [frame([1.0, 0.0]), frame([0.0, 1.0])];
        let queries = vec![vec![1.0, 0.0]; eval.queries.len()];
        let text = lines(&config, &eval, &frames, &queries).unwrap();
        for name in ["images/a/1.jpg", "images/b/1.jpg"] {
            assert!(text.contains(&format!("\"frame\":\"{name}\"")), "{text}");
        }
        let score = |text: &str| {
            fs_err::write(at("found.jsonl"), text).unwrap();
            SearchTask::score(
                &ScoreRequest {
                    data: folder.path(),
                    split: &SplitChoice::Test,
                    predictions: &at("found.jsonl"),
                    threshold: 0.5,
                },
                &config,
            )
        };
        let map = score(&text).unwrap().scores.value("mAP").unwrap();
        let own = scores_of(&config, &eval, &frames, &queries).unwrap();
        assert_eq!(map, own.value("mAP").unwrap());
        let again = format!("{text}{}", text.lines().nth(1).unwrap());
        let error = score(&again).unwrap_err().to_string();
        assert!(
            error.contains("another line of frame `images/a/1.jpg`"),
            "{error}"
        );
    }
}
