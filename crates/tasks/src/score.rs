//! Predictions of any program, judged by a data set with the metrics of `clasp eval`.
//!
//! | task | predictions |
//! |---|---|
//! | re-identification | JSON lines `{"query": NAME, "gallery": [NAME, …]}`, the best first |
//! | attributes | CSV: `image`, then a column of probabilities for each attribute |
//! | parsing | a folder or tar of PNG masks of class indices, named as the images |
//! | pose | COCO's results: `[{"image_id", "category_id", "keypoints", "score"}, …]` |
//! | detection | COCO's results: `[{"image_id", "category_id", "bbox", "score"}, …]` |
//! | person search | the JSON lines that `clasp eval search --predictions` writes |
//!
//! Names are those of the data: paths in a table, else file names.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use clasp_data::layouts::attributes::AttributeDataset;
use clasp_data::layouts::coco::BoxDataset;
use clasp_data::layouts::coco::{KeypointDataset, read_boxes, read_poses};
use clasp_data::layouts::csv::read_columns;
use clasp_data::layouts::parsing::{ParsingDataset, label_map};
use clasp_data::layouts::reid::{ReidDataset, ReidImage};
use clasp_data::source::Source;
use clasp_data::text::read_text;
use clasp_metrics::detection::FoundBox;
use clasp_metrics::parsing::Confusion;
use clasp_metrics::pose::{PredictedPose, oks_ap};
use clasp_metrics::reid::evaluate_rankings;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::TaskError;
use crate::finetune::{Judged, Split};
use crate::tuned::scenes::Found;
use crate::tuned::{attributes, detection, parsing, pose, search};

/// Ranks of the CMC.
const RANKS: usize = 50;

/// Names that a note lists.
const LISTED: usize = 3;

/// What predictions are worth.
#[derive(Debug, Clone)]
pub struct Score {
    /// Figures, table and details.
    pub judged: Judged,
    /// What was judged by: a split, or a file.
    pub data: String,
    /// What could not be used, in words.
    pub notes: Vec<String>,
}

/// How many predictions are missing or of nothing that the data have; nothing if none.
fn count_note(what: &str, names: &[String]) -> Option<String> {
    let first = names.iter().take(LISTED).cloned().collect::<Vec<_>>();
    (!names.is_empty()).then(|| format!("{} {what}, the first: {}", names.len(), first.join(", ")))
}

fn mismatch(file: &Path, expected: impl ToString, found: impl ToString) -> TaskError {
    TaskError::Mismatch {
        file: file.display().to_string(),
        expected: expected.to_string(),
        found: found.to_string(),
    }
}

/// Judges rankings of a gallery.
///
/// # Errors
/// Data or predictions that cannot be read, a name that the gallery does not have, no query with a match.
pub fn reid(data: &Path, predictions: &Path) -> Result<Score, TaskError> {
    #[derive(Deserialize)]
    struct Line {
        query: String,
        gallery: Vec<String>,
    }
    let data = ReidDataset::open(data)?;
    let text = read_text(predictions)?;
    let places: HashMap<&str, usize> = { data.gallery.iter().enumerate() }
        .map(|(place, crop)| (crop.name.as_str(), place))
        .collect();
    let mut rankings: HashMap<String, Vec<usize>> = HashMap::new();
    let mut short = 0;
    for (number, line) in (1..)
        .zip(text.lines())
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let at = || format!("line {number}");
        let line: Line = serde_json::from_str(line).map_err(|error| {
            let expected = format!("{}: {{\"query\": NAME, \"gallery\": [NAME, …]}}", at());
            mismatch(predictions, expected, error)
        })?;
        let mut seen = BTreeSet::new();
        let mut ranking = Vec::with_capacity(line.gallery.len());
        for name in &line.gallery {
            let Some(&place) = places.get(name.as_str()) else {
                let expected = format!("{}: names of gallery images", at());
                return Err(mismatch(predictions, expected, format!("`{name}`")));
            };
            if !seen.insert(place) {
                let expected = format!("{}: every gallery image once", at());
                return Err(mismatch(predictions, expected, format!("`{name}` twice")));
            }
            ranking.push(place);
        }
        short += usize::from(ranking.len() < data.gallery.len());
        rankings.insert(line.query, ranking);
    }
    let missing: Vec<String> = { data.query.iter() }
        .filter(|crop| !rankings.contains_key(&crop.name))
        .map(|crop| crop.name.clone())
        .collect();
    let of = |crop: &ReidImage| rankings.get(&crop.name).cloned().unwrap_or_default();
    let orders: Vec<Vec<usize>> = data.query.iter().map(of).collect();
    let pairs = |crops: &[ReidImage]| -> Vec<[i64; 2]> {
        crops
            .iter()
            .map(|crop| [crop.person, crop.camera])
            .collect()
    };
    let metrics = evaluate_rankings(&pairs(&data.query), &pairs(&data.gallery), &orders, RANKS)?;
    let rank = |k: usize| metrics.cmc.get(k - 1).copied().unwrap_or(1.0);
    let figures = vec![
        ("mAP".to_owned(), metrics.map),
        ("rank-1".to_owned(), rank(1)),
        ("rank-5".to_owned(), rank(5)),
        ("rank-10".to_owned(), rank(10)),
        ("mINP".to_owned(), metrics.minp),
    ];
    let mut notes = Vec::from_iter(count_note("queries have no ranking", &missing));
    if short > 0 {
        notes.push(format!(
            "{short} rankings do not name the whole gallery: images that are not named come after the others, in the order of \
             the data, so mAP and mINP are lower than those of the whole ranking; rank-k is right as far as it is named"
        ));
    }
    Ok(Score {
        judged: Judged {
            figures,
            table: format!(
                "{} of {} queries count, {} skipped (no image of the person by another camera); {} gallery images\n",
                metrics.queries - metrics.skipped,
                metrics.queries,
                metrics.skipped,
                metrics.gallery
            ),
            details: json!({"metrics": metrics}),
        },
        data: data.layout.to_owned(),
        notes,
    })
}

/// Judges probabilities of attributes, of which those above `threshold` predict.
///
/// # Errors
/// Data or predictions that cannot be read, an attribute without a column, an image without a row.
pub fn attributes(
    data: &Path,
    split: &Split,
    predictions: &Path,
    threshold: f32,
) -> Result<Score, TaskError> {
    let data = AttributeDataset::open(data)?;
    let name = split.among(data.splits(), &data.file)?;
    let images = data.split(&name)?;
    let (header, rows) = read_columns(predictions, "image")?;
    let columns = { data.names.iter() }
        .map(|name| {
            header
                .iter()
                .position(|column| column == name)
                .ok_or_else(|| {
                    mismatch(predictions, format!("a column `{name}`"), header.join(","))
                })
        })
        .collect::<Result<Vec<usize>, _>>()?;
    let rows: HashMap<&str, &(usize, Vec<String>)> =
        rows.iter().map(|row| (row.1[0].trim(), row)).collect();
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
            probabilities
                .push(value.ok_or_else(|| mismatch(predictions, expected(), format!("`{cell}`")))?);
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
    Ok(Score {
        judged: attributes::judge(&data.names, &truth, &probabilities, threshold)?,
        data: format!("split `{name}`"),
        notes: Vec::from_iter(count_note("rows are of no image of the split", &others)),
    })
}

/// Judges masks.
///
/// # Errors
/// Data or predictions that cannot be read, an image without a mask, a mask of another size or class.
pub fn parsing(data: &Path, split: &Split, predictions: &Path) -> Result<Score, TaskError> {
    let data = ParsingDataset::open(data)?;
    let name = split.among(data.splits(), &data.file)?;
    let masks = Source::open(&predictions.display().to_string())?;
    let places: HashMap<&str, usize> = masks.keys().zip(0..).collect();
    let mut confusion = Confusion::new(data.classes.len());
    for image in data.split(&name)? {
        let key = Path::new(&image.name).with_extension("");
        let key = key.to_string_lossy();
        let Some(&place) = places.get(&*key) else {
            return Err(mismatch(predictions, format!("a mask `{key}.png`"), "none"));
        };
        let truth = data.read_mask(&image.mask)?;
        let found = label_map(masks.read(place)?, &masks.place(place))?;
        if [found.height, found.width] != [truth.height, truth.width] {
            let size = |height: usize, width: usize| format!("{width} x {height} (width x height)");
            return Err(mismatch(
                predictions,
                format!("`{key}.png` of {}", size(truth.height, truth.width)),
                size(found.height, found.width),
            ));
        }
        confusion.add(&truth.labels, &found.labels)?;
    }
    Ok(Score {
        judged: parsing::judge(&data.classes, &confusion, &data.file)?,
        data: format!("split `{name}`"),
        notes: Vec::new(),
    })
}

/// Judges poses by OKS.
///
/// # Errors
/// Data or predictions that cannot be read; joints without σ.
pub fn pose(data: &Path, split: &Split, predictions: &Path) -> Result<Score, TaskError> {
    let data = split.open(|name| KeypointDataset::open(data, name))?;
    let Some(sigmas) = &data.sigmas else {
        return Err(mismatch(
            &data.file,
            "`sigmas` of its joints, without which there is no OKS",
            "none",
        ));
    };
    let places: HashMap<u64, u64> = data.images.iter().map(|image| image.id).zip(0..).collect();
    let mut strangers = Vec::new();
    let mut found = Vec::new();
    for one in read_poses(predictions, data.category, data.joints.len())? {
        match places.get(&one.image) {
            Some(&image) => found.push(PredictedPose {
                image,
                keypoints: one.keypoints,
                score: one.score,
            }),
            None => strangers.push(one.image.to_string()),
        }
    }
    let oks = oks_ap(&pose::true_poses(&data), &found, sigmas)?;
    Ok(Score {
        judged: Judged {
            figures: pose::oks_figures(&oks),
            table: format!("{} poses in {} images\n", found.len(), data.images.len()),
            details: json!({"oks": oks}),
        },
        data: file_name(&data.file),
        notes: Vec::from_iter(count_note(
            "poses are of images that the data do not have",
            &strangers,
        )),
    })
}

/// Judges boxes of people.
///
/// # Errors
/// Data or predictions that cannot be read.
pub fn detection(data: &Path, split: &Split, predictions: &Path) -> Result<Score, TaskError> {
    let data = split.open(|name| BoxDataset::open(data, name))?;
    let ids: BTreeSet<u64> = data.images.iter().map(|image| image.id).collect();
    let (known, strangers): (Vec<_>, Vec<_>) =
        { read_boxes(predictions, data.category)?.into_iter() }
            .partition(|one| ids.contains(&one.image));
    let found: Vec<FoundBox> = { known.iter() }
        .map(|one| FoundBox {
            image: one.image,
            bbox: one.bbox,
            score: one.score,
        })
        .collect();
    let strangers: Vec<String> = strangers.iter().map(|one| one.image.to_string()).collect();
    let mut notes = Vec::from_iter(count_note(
        "boxes are of images that the data do not have",
        &strangers,
    ));
    notes.extend(data.problems.iter().cloned());
    Ok(Score {
        judged: detection::judge(&data, &found)?,
        data: file_name(&data.file),
        notes,
    })
}

/// Judges a person search: boxes and embeddings of frames, and embeddings of the queries.
///
/// # Errors
/// Data or predictions that cannot be read, a frame or a query that is missing.
pub fn search(data: &Path, predictions: &Path) -> Result<Score, TaskError> {
    #[derive(Deserialize)]
    struct Frame {
        frame: String,
        boxes: Vec<[f64; 4]>,
        scores: Vec<f64>,
        embeddings: Vec<Vec<f32>>,
    }
    #[derive(Deserialize)]
    struct Query {
        person: i64,
        of: String,
        embedding: Vec<f32>,
    }
    let text = read_text(predictions)?;
    let mut settings = search::Settings::default();
    let (mut frames, mut queries) = (HashMap::new(), HashMap::new());
    let mut length = None;
    for (number, line) in (1..)
        .zip(text.lines())
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let wrong = |found: String| {
            let expected = format!(
                "line {number}: settings, a frame or a query, as `clasp eval search` writes them"
            );
            mismatch(predictions, expected, found)
        };
        let value: Value = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
        let failed = |error: serde_json::Error| wrong(error.to_string());
        if let Some(of_all) = value.get("settings") {
            settings = serde_json::from_value(of_all.clone()).map_err(failed)?;
        } else if value.get("frame").is_some() {
            let frame: Frame = serde_json::from_value(value).map_err(failed)?;
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
                found.push(Found {
                    bbox,
                    score,
                    embedding,
                });
            }
            frames.insert(frame.frame, found);
        } else {
            let query: Query = serde_json::from_value(value).map_err(failed)?;
            if *length.get_or_insert(query.embedding.len()) != query.embedding.len() {
                return Err(wrong(format!(
                    "an embedding of {} numbers",
                    query.embedding.len()
                )));
            }
            queries.insert((query.person, query.of), query.embedding);
        }
    }
    settings.embedding = length.unwrap_or(settings.embedding);
    let data = search::open(data, &settings)?;
    let name = |frame: usize| file_name(&data.test[frame].path);
    let lacks = |what: String| mismatch(predictions, what, "none");
    let found = (0..data.test.len())
        .map(|frame| {
            let found = frames.remove(&name(frame));
            found.ok_or_else(|| lacks(format!("a line of frame `{}`", name(frame))))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let sought = { data.queries.iter() }
        .map(|query| {
            let of = name(query.frame);
            let sought = queries.remove(&(query.person, of.clone()));
            sought.ok_or_else(|| lacks(format!("a line of query {} of `{of}`", query.person)))
        })
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Score {
        judged: search::judge(&settings, &data, &found, &sought)?,
        data: data.layout.to_owned(),
        notes: data.problems(),
    })
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clasp_data::image::encode_label_png;
    use fs_err as fs;

    fn value(score: &Score, name: &str) -> f64 {
        let figures = &score.judged.figures;
        figures.iter().find(|(figure, _)| figure == name).unwrap().1
    }

    #[test]
    fn boxes_and_poses_of_other_programs_have_cocos_figures() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let text = r#"{"images": [{"id": 7, "file_name": "a.jpg", "width": 200, "height": 200}],
            "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 10, 40, 100], "area": 4000,
              "iscrowd": 0, "keypoints": [20, 20, 2, 30, 90, 2]}],
            "categories": [{"id": 3, "name": "person", "keypoints": ["head", "hip"], "skeleton": [], "sigmas": [0.1, 0.1]}]}"#;
        fs::write(at("instances_val.json"), text).unwrap();
        fs::write(at("person_keypoints_val.json"), text).unwrap();
        let boxes = r#"[{"image_id": 7, "category_id": 3, "bbox": [10, 10, 40, 100], "score": 0.5},
            {"image_id": 7, "category_id": 3, "bbox": [100, 10, 40, 100], "score": 0.9},
            {"image_id": 8, "category_id": 3, "bbox": [1, 1, 4, 10], "score": 0.9}]"#;
        fs::write(at("boxes.json"), boxes).unwrap();
        let score = detection(folder.path(), &Split::Test, &at("boxes.json")).unwrap();
        assert!((value(&score, "AP.5") - 0.5).abs() < 1e-12);
        assert!(
            score.notes[0].starts_with("1 boxes are of images"),
            "{:?}",
            score.notes
        );
        let poses = r#"[{"image_id": 7, "category_id": 3, "keypoints": [20, 20, 1, 30, 90, 1], "score": 0.5}]"#;
        fs::write(at("poses.json"), poses).unwrap();
        let score = pose(folder.path(), &Split::Test, &at("poses.json")).unwrap();
        assert!((value(&score, "OKS AP") - 1.0).abs() < 1e-12);
    }

    #[test]
    fn tables_rankings_and_masks_of_other_programs_are_judged() {
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
        let score = attributes(folder.path(), &Split::Test, &at("p.csv"), 0.5).unwrap();
        assert_eq!((value(&score, "mA"), score.notes.len()), (1.0, 1));

        let table =
            "image,person,camera,split\nq.png,1,1,query\na.png,2,2,gallery\nb.png,1,2,gallery\n";
        fs::write(at("reid.csv"), table).unwrap();
        fs::write(
            at("r.jsonl"),
            "{\"query\": \"q.png\", \"gallery\": [\"a.png\", \"b.png\"]}\n",
        )
        .unwrap();
        let score = reid(folder.path(), &at("r.jsonl")).unwrap();
        assert_eq!((value(&score, "mAP"), value(&score, "rank-1")), (0.5, 0.0));
        fs::write(
            at("r.jsonl"),
            "{\"query\": \"q.png\", \"gallery\": [\"x.png\"]}\n",
        )
        .unwrap();
        let error = reid(folder.path(), &at("r.jsonl")).unwrap_err().to_string();
        assert!(
            error.contains("line 1: names of gallery images") && error.contains("`x.png`"),
            "{error}"
        );

        fs::create_dir_all(at("found")).unwrap();
        fs::write(at("labels.txt"), "ground\nperson\n").unwrap();
        fs::write(at("parsing.csv"), "image,mask,split\na.jpg,m.png,val\n").unwrap();
        fs::write(at("m.png"), encode_label_png(&[0, 1, 1, 0], 2, 2)).unwrap();
        fs::write(at("found/a.png"), encode_label_png(&[0, 1, 0, 0], 2, 2)).unwrap();
        let score = parsing(folder.path(), &Split::Test, &at("found")).unwrap();
        // Ground 2 of 3, person 1 of 2.
        assert!((value(&score, "mIoU") - (2.0 / 3.0 + 0.5) / 2.0).abs() < 1e-12);
    }
}
