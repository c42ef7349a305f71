//! Every metric against an independent reference: `golden/metrics.py` says which and made
//! `golden/metrics.json`.

#![allow(clippy::unwrap_used)]

use clasp_metrics::{attributes, parsing, pose, reid, rerank};
use serde_json::Value;

const METRIC: f64 = 1e-9;
/// Re-ranked distances are single precision.
const DISTANCE: f64 = 1e-6;

fn golden(section: &str) -> Value {
    let text = include_str!("golden/metrics.json");
    let all: Value = serde_json::from_str(text).unwrap();
    all[section].clone()
}

fn floats(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_f64().unwrap())
        .collect()
}

fn optional(value: &Value) -> Vec<Option<f64>> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(Value::as_f64)
        .collect()
}

fn integers(value: &Value) -> Vec<i64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_i64().unwrap())
        .collect()
}

fn assert_close(found: f64, expected: f64, tolerance: f64, what: &str) {
    assert!(
        (found - expected).abs() <= tolerance,
        "{what}: expected {expected}, found {found}"
    );
}

fn assert_all_close(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert_close(*f, *e, tolerance, &format!("{what} {i}"));
    }
}

struct Reid {
    features: Vec<f32>,
    channels: usize,
    queries: usize,
    persons: Vec<i64>,
    cameras: Vec<i64>,
    golden: Value,
}

impl Reid {
    fn load() -> Self {
        let golden = golden("reid");
        Self {
            features: floats(&golden["features"])
                .into_iter()
                .map(|v| v as f32)
                .collect(),
            channels: golden["channels"].as_u64().unwrap() as usize,
            queries: golden["queries"].as_u64().unwrap() as usize,
            persons: integers(&golden["persons"]),
            cameras: integers(&golden["cameras"]),
            golden,
        }
    }

    fn sides(&self) -> [reid::ReidImages<'_>; 2] {
        [0..self.queries, self.queries..self.persons.len()].map(|rows| reid::ReidImages {
            features: &self.features[rows.start * self.channels..rows.end * self.channels],
            channels: self.channels,
            persons: &self.persons[rows.clone()],
            cameras: &self.cameras[rows],
        })
    }
}

fn assert_reid(found: &reid::ReidMetrics, expected: &Value) {
    assert_close(found.map, expected["map"].as_f64().unwrap(), METRIC, "mAP");
    assert_close(
        found.minp,
        expected["minp"].as_f64().unwrap(),
        METRIC,
        "mINP",
    );
    assert_all_close(&found.cmc, &floats(&expected["cmc"]), METRIC, "CMC");
    assert_eq!(found.skipped as u64, expected["skipped"].as_u64().unwrap());
    for (i, (f, e)) in found
        .average_precision
        .iter()
        .zip(optional(&expected["ap"]))
        .enumerate()
    {
        assert_eq!(f.is_some(), e.is_some(), "query {i}");
        assert_close(
            f.unwrap_or(0.0),
            e.unwrap_or(0.0),
            METRIC,
            &format!("AP of query {i}"),
        );
    }
}

#[test]
fn reid_equals_the_published_evaluator() {
    let reid = Reid::load();
    let [query, gallery] = reid.sides();
    assert_reid(
        &reid::evaluate(&query, &gallery, 20).unwrap(),
        &reid.golden["plain"],
    );
}

#[test]
fn reid_does_not_depend_on_the_scale_of_features() {
    let mut reid = Reid::load();
    for (row, values) in reid.features.chunks_mut(reid.channels).enumerate() {
        values
            .iter_mut()
            .for_each(|v| *v *= [0.25, 8.0, 2.0][row % 3]);
    }
    let [query, gallery] = reid.sides();
    assert_reid(
        &reid::evaluate(&query, &gallery, 20).unwrap(),
        &reid.golden["plain"],
    );
}

#[test]
fn rerank_equals_a_literal_dense_program() {
    let reid = Reid::load();
    let [query, gallery] = reid.sides();
    for name in ["default", "odd", "five"] {
        let golden = &reid.golden["reranked"][name];
        let integer = |key: &str| golden[key].as_u64().unwrap() as usize;
        let rerank = rerank::Rerank {
            k1: integer("k1"),
            k2: integer("k2"),
            lambda: golden["lambda_"].as_f64().unwrap(),
        };
        let rows = rerank::map_rows(&query, &gallery, rerank, |_, row| row.to_vec()).unwrap();
        for (row, expected) in rows.iter().zip(golden["rows"].as_array().unwrap()) {
            let row: Vec<f64> = row.iter().map(|v| f64::from(*v)).collect();
            assert_all_close(&row, &floats(expected), DISTANCE, name);
        }
        assert_reid(
            &rerank::evaluate(&query, &gallery, rerank, 20).unwrap(),
            &golden["metrics"],
        );
    }
}

#[test]
fn attributes_equal_the_published_evaluator_and_scikit_learn() {
    let golden = golden("attributes");
    let truth: Vec<bool> = integers(&golden["truth"])
        .into_iter()
        .map(|v| v == 1)
        .collect();
    let probabilities: Vec<f32> = floats(&golden["probabilities"])
        .into_iter()
        .map(|v| v as f32)
        .collect();
    let metrics = attributes::evaluate(&truth, &probabilities, 7, 0.5).unwrap();
    let found = [
        metrics.ma,
        metrics.accuracy,
        metrics.precision,
        metrics.recall,
        metrics.f1,
    ];
    let expected =
        ["ma", "accuracy", "precision", "recall", "f1"].map(|key| golden[key].as_f64().unwrap());
    assert_all_close(&found, &expected, METRIC, "attributes");
    assert_eq!(metrics.degenerate, [4, 5]);
    for (found, expected) in metrics.per_attribute.iter().zip(optional(&golden["ap"])) {
        assert_eq!(found.average_precision.is_some(), expected.is_some());
        assert_close(
            found.average_precision.unwrap_or(0.0),
            expected.unwrap_or(0.0),
            METRIC,
            "AP",
        );
    }
}

#[test]
fn parsing_equals_the_published_evaluator() {
    let golden = golden("parsing");
    let mut confusion = parsing::ConfusionMatrix::new(golden["classes"].as_u64().unwrap() as usize);
    let maps = |key: &str| -> Vec<Vec<u8>> {
        let maps = golden[key].as_array().unwrap();
        maps.iter()
            .map(|m| integers(m).into_iter().map(|v| v as u8).collect())
            .collect()
    };
    for (truth, predicted) in maps("truth").iter().zip(maps("predicted")) {
        confusion.add(truth, &predicted).unwrap();
    }
    let metrics = confusion.metrics();
    let found = [
        metrics.pixel_accuracy.unwrap(),
        metrics.mean_accuracy,
        metrics.mean_iou,
    ];
    let expected =
        ["pixel_accuracy", "mean_accuracy", "mean_iou"].map(|key| golden[key].as_f64().unwrap());
    assert_all_close(&found, &expected, METRIC, "parsing");
    assert_eq!(metrics.absent, [5]);
}

#[test]
fn pose_equals_pycocotools() {
    for golden in golden("pose").as_array().unwrap() {
        let triples = |v: &Value| -> Vec<[f64; 3]> {
            floats(v).chunks(3).map(|k| [k[0], k[1], k[2]]).collect()
        };
        let truth: Vec<pose::TruePose> = { golden["truth"].as_array().unwrap().iter() }
            .map(|t| pose::TruePose {
                image: t["image"].as_u64().unwrap(),
                keypoints: triples(&t["keypoints"]),
                bbox: floats(&t["bbox"]).try_into().unwrap(),
                area: t["area"].as_f64().unwrap(),
                crowd: t["crowd"] == 1,
            })
            .collect();
        let predicted: Vec<pose::PredictedPose> =
            { golden["predicted"].as_array().unwrap().iter() }
                .map(|p| pose::PredictedPose {
                    image: p["image"].as_u64().unwrap(),
                    keypoints: triples(&p["keypoints"])
                        .into_iter()
                        .map(|[x, y, _]| [x, y])
                        .collect(),
                    score: p["score"].as_f64().unwrap(),
                })
                .collect();
        let m = pose::oks_ap(&truth, &predicted, &floats(&golden["sigmas"])).unwrap();
        let found = [
            m.ap,
            m.ap50,
            m.ap75,
            m.ap_medium,
            m.ap_large,
            m.ar,
            m.ar50,
            m.ar75,
            m.ar_medium,
            m.ar_large,
        ];
        let found: Vec<f64> = found.into_iter().map(|v| v.unwrap_or(-1.0)).collect();
        assert_all_close(&found, &floats(&golden["stats"]), METRIC, "OKS");
        assert!(
            found.iter().all(|v| *v > 0.0 && *v < 1.0),
            "a golden file worth having: {found:?}"
        );
    }
}
