//! Evaluation of re-identification: mAP, CMC, mINP, re-ranking and same-person thresholds.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use clasp_data::layouts::LayoutError;
use clasp_data::layouts::reid::{ReidDataset, ReidImage, people};
use clasp_data::text::read_text;
use clasp_metrics::Metric;
use clasp_metrics::reid::{self, ReidMetrics};
use clasp_metrics::rerank::{self, Rerank};
use clasp_metrics::verify;
use serde::Deserialize;
use serde_json::json;

use super::data::{held_out, open};
use super::probe::{self, LabeledFeatures};
use super::{ComparedFeature, MsmtValidation, ReidTask, SamePersonThreshold};
use crate::TaskError;
use crate::features::{Preprocess, read_image};
use crate::probe::FrozenEvaluation;
use crate::task::check::setting;
use crate::task::evaluation::{PredictionScores, WrongResult, check_row, mismatch};
use crate::task::{
    Evaluate, Evaluation, FinetunedModel, ScoreRequest, SplitChoice, Task, TaskScores,
};

/// Ranks of the CMC that are kept.
const RANKS: usize = 50;
/// Gallery images listed for each query in the predictions.
const LISTED: usize = 50;
/// Fractions of pairs of different people above a threshold for which thresholds are reported.
const FALSE_POSITIVE_RATES: [f64; 3] = [1e-2, 1e-3, 1e-4];

/// Queries and gallery images.
#[derive(Debug)]
pub struct ReidTestSet {
    /// The dataset and split in words.
    pub name: String,
    /// Queries.
    pub query: Vec<ReidImage>,
    /// Gallery.
    pub gallery: Vec<ReidImage>,
}

impl ReidTestSet {
    /// Queries, then the gallery.
    fn images(&self) -> impl Iterator<Item = &ReidImage> {
        self.query.iter().chain(&self.gallery)
    }
}

impl ReidTask {
    fn rerank(&self) -> Rerank {
        Rerank {
            k1: self.config.rerank_k1,
            k2: self.config.rerank_k2,
            lambda: self.config.rerank_lambda,
        }
    }

    fn protocol(&self, preprocess: &Preprocess, eval: &ReidTestSet) -> String {
        let config = &self.config;
        let filter = if config.test_bilinear {
            ", Bilinear at test"
        } else {
            ""
        };
        let feature = match config.feature {
            ComparedFeature::Before => "before the neck",
            ComparedFeature::After => "after the neck",
        };
        let flipped = if config.flip_test {
            ", plus that of the flipped image"
        } else {
            ""
        };
        let rerank = self.rerank();
        let rerank = if config.rerank {
            format!(
                " Also re-ranked by k-reciprocal encoding, k1 {}, k2 {}, lambda {}.",
                rerank.k1, rerank.k2, rerank.lambda
            )
        } else {
            String::new()
        };
        format!(
            "Re-identification, fine-tuned: {}; the whole image resized to {preprocess}{filter}, mean {:?}, std {:?}; the feature {feature}{flipped}, \
             L2-normalized, ranked by distance. Market-1501 rules: the same person from the same camera is ignored, person -1 is dropped, \
             person 0 stays as a distractor; a query without a match from another camera is skipped. Ties keep the order of file names.{rerank}",
            eval.name, preprocess.mean, preprocess.std,
        )
    }
}

impl Evaluate for ReidTask {
    type TestSet = ReidTestSet;
    /// The feature of an image; queries come before the gallery.
    type UnitResult = Vec<f32>;

    const UNITS: &'static str = "query and gallery images";
    const ONLY_SUMMARIZED: &'static [&'static str] = &[
        "/config/rerank",
        "/config/rerank_k1",
        "/config/rerank_k2",
        "/config/rerank_lambda",
        "/config/false_positive_rate",
        "/same_person",
    ];
    const FROZEN: Option<FrozenEvaluation> = Some(probe::evaluate_frozen);
    const HAS_SPLITS: bool = false;

    fn open_test(&self, folder: &Path, split: &SplitChoice) -> Result<ReidTestSet, TaskError> {
        let market = open(folder, &self.config)?;
        if let SplitChoice::Named(name) = split {
            return Err(TaskError::Layout(LayoutError::NoSplit {
                file: folder.display().to_string(),
                wanted: name.clone(),
                splits: vec!["val".to_owned(), "test".to_owned()],
            }));
        }
        if *split == SplitChoice::Val {
            let held = held_out(&market.train, self.config.holdout);
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
                    "a fraction above 0: split `val` consists of held-out training identities";
                return Err(setting("task.holdout", expected, self.config.holdout));
            }
            let people = people(&gallery);
            let name = format!(
                "{}, {people} people held out of training, the first image of each camera as query",
                market.layout
            );
            return Ok(ReidTestSet {
                name,
                query,
                gallery,
            });
        }
        let val = match (market.layout, self.config.msmt_val) {
            ("MSMT17", MsmtValidation::Train) => " (trained with list_val, as published)",
            ("MSMT17", MsmtValidation::Holdout) => " (list_val held out of training)",
            _ => "",
        };
        Ok(ReidTestSet {
            name: format!("{}, queries against the test gallery{val}", market.layout),
            query: market.query,
            gallery: market.gallery,
        })
    }

    fn units(eval: &ReidTestSet) -> usize {
        eval.query.len() + eval.gallery.len()
    }

    fn unit_text(eval: &ReidTestSet, unit: usize) -> String {
        let (kind, crop) = match unit.checked_sub(eval.query.len()) {
            None => ("query", &eval.query[unit]),
            Some(place) => ("gallery", &eval.gallery[place]),
        };
        format!("{kind} {} {} {}", crop.name, crop.person, crop.camera)
    }

    fn results_of_batch(
        &self,
        model: &FinetunedModel<Self>,
        eval: &ReidTestSet,
        units: Range<usize>,
        _predictions: bool,
    ) -> Result<Vec<Vec<f32>>, TaskError> {
        let images = { eval.images().skip(units.start).take(units.len()) }
            .map(|crop| read_image(&crop.path))
            .collect::<Result<Vec<_>, _>>()?;
        let features = Self::features(model, &images, units.start)?;
        let channels = features.len() / images.len();
        Ok(features
            .chunks_exact(channels)
            .map(<[f32]>::to_vec)
            .collect())
    }

    fn check_result(
        &self,
        model: &FinetunedModel<Self>,
        _: &ReidTestSet,
        _: usize,
        feature: &Vec<f32>,
    ) -> Result<(), WrongResult> {
        let [channels] = model.head.bottleneck.running_mean.dims();
        check_row(
            feature,
            channels,
            f32::is_finite,
            "finite numbers of a feature",
        )
    }

    fn summarize(
        &self,
        model: &FinetunedModel<Self>,
        eval: &ReidTestSet,
        results: Vec<Vec<f32>>,
        _predictions: bool,
    ) -> Result<Evaluation, TaskError> {
        let crops: Vec<&ReidImage> = eval.images().collect();
        let features = LabeledFeatures::new(results, &crops);
        let queries = eval.query.len();
        let query = features.rows(0..queries);
        let gallery = features.rows(queries..crops.len());
        let metrics = reid::evaluate(&query, &gallery, RANKS)?;
        let mut quoted = metrics.quoted();
        let mut nearest = reid::nearest(&query, &gallery, LISTED)?;
        let reranked = if self.config.rerank {
            let rerank = self.rerank();
            let (metrics, order) =
                rerank::evaluate_with_nearest(&query, &gallery, rerank, RANKS, LISTED)?;
            nearest = order;
            let first = metrics.cmc.first().copied().unwrap_or(0.0);
            quoted.push(Metric::score("re-ranked mAP", metrics.map));
            quoted.push(Metric::score("re-ranked rank-1", first));
            Some(metrics)
        } else {
            None
        };
        // A dataset without pairs of one kind has no thresholds, but its other metrics.
        let rates = [
            &[self.config.false_positive_rate],
            FALSE_POSITIVE_RATES.as_slice(),
        ]
        .concat();
        let mut verification = verify::roc(&query, &gallery, &rates).ok();
        // The first is stored with the model; the others are reported.
        let stored = verification.as_mut().and_then(|roc| roc.at.remove(0));
        let same_person = stored.map(|at| SamePersonThreshold {
            cosine: at.similarity,
            false_positive_rate: at.false_positive_rate,
            true_positive_rate: at.true_positive_rate,
            data: eval.name.clone(),
        });
        let thresholds = verification.iter().flat_map(|roc| &roc.at).flatten();
        let table = thresholds.fold(counts_of(&metrics), |table, at| {
            format!(
                "{table}same-person threshold {:.4}: true positive rate {:.1} %, false positive rate {:.3} %\n",
                at.similarity,
                100.0 * at.true_positive_rate,
                100.0 * at.false_positive_rate
            )
        });
        Ok(Evaluation {
            task: Self::NAME,
            protocol: self.protocol(&model.preprocess, eval),
            data: eval.name.clone(),
            loss: None,
            notes: Vec::new(),
            scores: TaskScores {
                metrics: quoted,
                chance: Some(metrics.chance_map),
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
                table,
            },
            predictions: ranking_lines(eval, nearest).into_bytes(),
        })
    }

    fn score(
        request: &ScoreRequest<'_>,
        _config: &Self::Config,
    ) -> Result<PredictionScores, TaskError> {
        let predictions = request.predictions;
        #[derive(Deserialize)]
        struct RankingLine {
            query: String,
            gallery: Vec<String>,
        }
        let data = ReidDataset::open(request.data)?;
        let text = read_text(predictions)?;
        let places: HashMap<&str, usize> = { data.gallery.iter().enumerate() }
            .map(|(place, crop)| (crop.name.as_str(), place))
            .collect();
        let queries: HashSet<&str> = data.query.iter().map(|crop| &*crop.name).collect();
        let mut rankings: HashMap<String, Vec<usize>> = HashMap::new();
        let mut short = 0;
        for (number, line) in (1..)
            .zip(text.lines())
            .filter(|(_, line)| !line.trim().is_empty())
        {
            let at = || format!("line {number}");
            let line: RankingLine = serde_json::from_str(line).map_err(|error| {
                let expected = format!("{}: {{\"query\": NAME, \"gallery\": [NAME, …]}}", at());
                mismatch(predictions, expected, error)
            })?;
            if !queries.contains(&*line.query) {
                let expected = format!("{}: the name of a query image", at());
                return Err(mismatch(predictions, expected, format!("`{}`", line.query)));
            }
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
            if rankings.contains_key(&line.query) {
                let expected = format!("{}: one ranking for each query", at());
                return Err(mismatch(
                    predictions,
                    expected,
                    format!("another of `{}`", line.query),
                ));
            }
            rankings.insert(line.query, ranking);
        }
        // Without its ranking a query would get that of the order of files.
        let orders = { data.query.iter() }
            .map(|crop| {
                rankings.get(&crop.name).cloned().ok_or_else(|| {
                    let expected = format!("a ranking for each of {} queries", data.query.len());
                    let found = format!("{}, none of `{}`", rankings.len(), crop.name);
                    mismatch(predictions, expected, found)
                })
            })
            .collect::<Result<Vec<Vec<usize>>, TaskError>>()?;
        let pairs = |crops: &[ReidImage]| -> Vec<[i64; 2]> {
            crops
                .iter()
                .map(|crop| [crop.person, crop.camera])
                .collect()
        };
        let metrics =
            reid::evaluate_rankings(&pairs(&data.query), &pairs(&data.gallery), &orders, RANKS)?;
        let mut notes = Vec::new();
        if short > 0 {
            notes.push(format!(
                "{short} rankings do not name the whole gallery: the other images come after those named, in the order of \
                 the data, so mAP and mINP differ from those of the whole ranking; rank-k is exact up to the named rank"
            ));
        }
        Ok(PredictionScores {
            scores: TaskScores {
                metrics: metrics.quoted(),
                chance: Some(metrics.chance_map),
                table: counts_of(&metrics),
                details: json!({"metrics": metrics}),
            },
            data: data.layout.to_owned(),
            notes,
        })
    }
}

/// How many queries the metrics are means over, as a line.
fn counts_of(metrics: &ReidMetrics) -> String {
    format!(
        "{} of {} queries evaluated, {} skipped (no image of the person by another camera); {} gallery images\n",
        metrics.queries - metrics.skipped,
        metrics.queries,
        metrics.skipped,
        metrics.gallery
    )
}

/// The nearest gallery images of each query as JSON lines.
fn ranking_lines(eval: &ReidTestSet, nearest: Vec<Vec<usize>>) -> String {
    let line = |(query, nearest): (&ReidImage, Vec<usize>)| {
        let gallery = nearest.into_iter().map(|j| &eval.gallery[j].name);
        let names: Vec<&String> = gallery.collect();
        format!("{}\n", json!({"query": query.name, "gallery": names}))
    };
    eval.query.iter().zip(nearest).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fs_err as fs;

    #[test]
    fn rankings_of_other_programs_are_scored() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let table =
            "image,person,camera,split\nq.png,1,1,query\na.png,2,2,gallery\nb.png,1,2,gallery\n";
        fs::write(at("reid.csv"), table).unwrap();
        let score = |lines: &str| {
            fs::write(at("r.jsonl"), lines).unwrap();
            ReidTask::score(
                &ScoreRequest {
                    data: folder.path(),
                    split: &SplitChoice::Test,
                    predictions: &at("r.jsonl"),
                    threshold: 0.5,
                },
                &Default::default(),
            )
        };
        let scored =
            score("{\"query\": \"q.png\", \"gallery\": [\"a.png\", \"b.png\"]}\n").unwrap();
        let value = |name: &str| scored.scores.value(name).unwrap();
        assert_eq!((value("mAP"), value("rank-1")), (0.5, 0.0));
        let error = score("{\"query\": \"q.png\", \"gallery\": [\"x.png\"]}\n").unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("line 1: names of gallery images") && error.contains("`x.png`"),
            "{error}"
        );
        // Once a missing query was ranked by the order of files, and of two rankings the last counted.
        let line = "{\"query\": \"q.png\", \"gallery\": [\"a.png\"]}\n";
        for (lines, said) in [
            (
                "\n".to_owned(),
                "a ranking for each of 1 queries, found 0, none of `q.png`",
            ),
            (
                line.repeat(2),
                "line 2: one ranking for each query, found another of `q.png`",
            ),
            (
                line.replace("q.png", "b.png"),
                "line 1: the name of a query image, found `b.png`",
            ),
        ] {
            let error = score(&lines).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
