//! Metrics on large inputs against independent references: `golden/large.py` draws the same inputs,
//! says what it compares with and made `golden/large.json`.

#![allow(clippy::unwrap_used)]

use clasp_metrics::detection::{self, FoundBox, LabeledPedestrian, SoftNmsDecay, TrueBox};
use clasp_metrics::pose::{self, PredictedPose, TruePose};
use clasp_metrics::search::{
    self, ContextMatching, GalleryFrame, SceneDetections, SearchGallery, SearchQuery,
};
use clasp_metrics::{attributes, parsing, reid, verify};
use serde_json::Value;

const METRIC: f64 = 1e-9;
/// Cosines are single precision.
const COSINE: f64 = 1e-6;

fn golden(section: &str) -> Value {
    let all: Value = serde_json::from_str(include_str!("golden/large.json")).unwrap();
    all[section].clone()
}

/// -1 where there is no value, as pycocotools has it.
fn assert_close(found: &[Option<f64>], expected: &Value, tolerance: f64) {
    let expected = expected.as_array().unwrap();
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        let (found, expected) = (found.unwrap_or(-1.0), expected.as_f64().unwrap_or(-1.0));
        let close = (found - expected).abs() <= tolerance;
        assert!(close, "metric {i}: expected {expected}, found {found}");
    }
}

/// SplitMix64, as `Draw` in golden/large.py.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn real(&mut self, n: u64) -> f64 {
        self.below(n) as f64
    }

    fn uniform(&mut self, low: u64, high: u64) -> f64 {
        low as f64 + self.real((high - low) * 4) / 4.0
    }

    fn noise(&mut self, size: f64) -> f64 {
        size * (self.real(1024) + self.real(1024) - 1023.0) / 512.0
    }

    fn bbox(&mut self) -> [f64; 4] {
        [
            self.uniform(0, 600),
            self.uniform(0, 400),
            self.uniform(8, 200),
            self.uniform(8, 300),
        ]
    }

    fn moved(&mut self, b: [f64; 4]) -> [f64; 4] {
        [
            b[0] + self.noise(b[2] / 8.0),
            b[1] + self.noise(b[3] / 8.0),
            b[2],
            b[3],
        ]
    }
}

fn poses(seed: u64, images: u64, joints: usize) -> (Vec<TruePose>, Vec<PredictedPose>) {
    let (mut draw, mut truth, mut predicted) = (Draw(seed), Vec::new(), Vec::new());
    for image in 0..images {
        for _ in 0..draw.below(6) {
            let bbox = draw.bbox();
            let [x, y, width, height] = bbox;
            let (hidden, crowd) = (draw.below(12) == 0, draw.below(15) == 0);
            let keypoints: Vec<[f64; 3]> = (0..joints)
                .map(|_| {
                    let x = x + width * draw.real(65) / 64.0;
                    let y = y + height * draw.real(65) / 64.0;
                    [x, y, if hidden { 0.0 } else { draw.real(3) }]
                })
                .collect();
            for _ in 0..draw.below(4) {
                let size = height / 16.0;
                let moved = |k: &[f64; 3]| [k[0] + draw.noise(size), k[1] + draw.noise(size)];
                let keypoints = keypoints.iter().map(moved).collect();
                predicted.push(PredictedPose {
                    image,
                    keypoints,
                    score: draw.real(1000) / 1000.0,
                });
            }
            truth.push(TruePose {
                image,
                keypoints,
                bbox,
                area: width * height / 2.0,
                crowd,
            });
        }
        for _ in 0..30 * u64::from(draw.below(50) == 0) {
            let keypoints = (0..joints)
                .map(|_| [draw.uniform(0, 600), draw.uniform(0, 400)])
                .collect();
            predicted.push(PredictedPose {
                image,
                keypoints,
                score: draw.real(1000) / 1000.0,
            });
        }
    }
    (truth, predicted)
}

#[test]
fn poses_equal_pycocotools() {
    let coco = [
        0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107,
        0.087, 0.087, 0.089, 0.089,
    ];
    let other: Vec<f64> = (0..14).map(|j| 0.04 + 0.005 * f64::from(j)).collect();
    let cases: [(u64, u64, &[f64]); 3] = [(1, 1500, &coco), (2, 400, &other), (3, 30, &[0.1])];
    for ((seed, images, sigmas), golden) in
        cases.into_iter().zip(golden("pose").as_array().unwrap())
    {
        let (truth, predicted) = poses(seed, images, sigmas.len());
        let m = pose::oks_ap(&truth, &predicted, sigmas).unwrap();
        assert_eq!(m.people as u64, golden["people"]);
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
        assert_close(&found, &golden["stats"], METRIC);
    }
}

#[test]
fn boxes_equal_pycocotools() {
    for ((seed, images), golden) in
        { [(4, 1500), (5, 20)].into_iter() }.zip(golden("boxes").as_array().unwrap())
    {
        let (mut draw, mut truth, mut found) = (Draw(seed), Vec::new(), Vec::new());
        for image in 0..images {
            for _ in 0..draw.below(8) {
                let (bbox, crowd) = (draw.bbox(), draw.below(12) == 0);
                truth.push(TrueBox {
                    image,
                    bbox,
                    area: bbox[2] * bbox[3] * 3.0 / 4.0,
                    crowd,
                });
                for _ in 0..draw.below(4) {
                    found.push(FoundBox {
                        image,
                        score: draw.real(1000) / 1000.0,
                        bbox: draw.moved(bbox),
                    });
                }
            }
            for _ in 0..120 * u64::from(draw.below(40) == 0) {
                found.push(FoundBox {
                    image,
                    score: draw.real(1000) / 1000.0,
                    bbox: draw.bbox(),
                });
            }
        }
        let m = detection::box_ap(&truth, &found).unwrap();
        let found = [
            m.ap,
            m.ap50,
            m.ap75,
            m.ap_small,
            m.ap_medium,
            m.ap_large,
            m.ar1,
            m.ar10,
            m.ar100,
            m.ar_small,
            m.ar_medium,
            m.ar_large,
        ];
        assert_close(&found, golden, METRIC);
    }
}

#[test]
fn miss_rates_equal_the_described_algorithm() {
    let cases = [(6, 500, 14), (7, 12, 30), (8, 40, 6)];
    for ((seed, images, per_image), golden) in
        { cases.into_iter() }.zip(golden("pedestrians").as_array().unwrap())
    {
        let (mut draw, mut truth, mut found) = (Draw(seed), Vec::new(), Vec::new());
        for image in 0..images {
            for _ in 0..draw.below(per_image) {
                let bbox = [
                    draw.uniform(0, 1900),
                    draw.uniform(0, 700),
                    draw.uniform(8, 80),
                    draw.uniform(16, 260),
                ];
                truth.push(LabeledPedestrian {
                    image,
                    bbox,
                    height: bbox[3],
                    visibility: draw.real(101) / 100.0,
                    ignored: draw.below(6) == 0,
                });
                for _ in 0..draw.below(4) {
                    found.push(FoundBox {
                        image,
                        score: draw.real(500) / 500.0,
                        bbox: draw.moved(bbox),
                    });
                }
            }
            for _ in 0..draw.below(3) {
                found.push(FoundBox {
                    image,
                    score: draw.real(400) / 500.0,
                    bbox: draw.bbox(),
                });
            }
        }
        let ids: Vec<u64> = (0..images).collect();
        let subsets = detection::CITYPERSONS
            .iter()
            .chain(&detection::OTHER_SUBSETS);
        for (subset, golden) in subsets.zip(golden.as_array().unwrap()) {
            let rate = detection::miss_rate(&ids, &truth, &found, subset).unwrap();
            assert_eq!(rate.pedestrians as u64, golden["people"], "{subset}");
            assert_eq!(rate.found as u64, golden["found"], "{subset}");
            let at: Vec<_> = rate.at_fppi.iter().copied().map(Some).collect();
            assert_close(&at, &golden["at"], METRIC);
            assert_eq!(rate.value.is_some(), golden["value"].is_f64());
            assert_close(
                &[rate.value],
                &Value::from(vec![golden["value"].clone()]),
                METRIC,
            );
        }
    }
}

const CHANNELS: usize = 32;

fn feature(draw: &mut Draw, person: u64, ties: bool) -> Vec<f32> {
    let mut own = Draw(1000 + person);
    if !ties {
        let mut entry = |_| own.real(2001) - 1000.0 + draw.real(2001) - 1000.0;
        return (0..CHANNELS).map(|i| entry(i) as f32).collect();
    }
    let mut row: Vec<f32> = (0..16).map(|_| own.real(2) as f32 * 2.0 - 1.0).collect();
    row.resize(CHANNELS, 0.0);
    for _ in 0..draw.below(6) {
        let (a, b) = (draw.below(32) as usize, draw.below(32) as usize);
        row.swap(a, b);
    }
    row
}

#[derive(Default)]
struct Drawn {
    truth: Vec<[f64; 4]>,
    persons: Vec<u64>,
    boxes: Vec<[f64; 4]>,
    scores: Vec<f64>,
    features: Vec<f32>,
}

fn drawn_frames(draw: &mut Draw, frames: usize, people: u64, ties: bool) -> Vec<Drawn> {
    let one = |_| {
        let mut frame = Drawn::default();
        for _ in 0..draw.below(5) {
            let person = draw.below(people + 10);
            if frame.persons.contains(&person) {
                continue;
            }
            let bbox = [
                draw.uniform(0, 900),
                draw.uniform(0, 500),
                draw.uniform(6, 120),
                draw.uniform(16, 300),
            ];
            frame.truth.push(bbox);
            frame.persons.push(person);
            for _ in 0..draw.below(3) {
                frame.boxes.push(draw.moved(bbox));
                frame.scores.push(draw.real(65) / 64.0);
                frame.features.extend(feature(draw, person, ties));
            }
        }
        frame
    };
    (0..frames).map(one).collect()
}

#[test]
fn searches_equal_the_described_algorithm() {
    let context = |boxes, people| Some(ContextMatching { boxes, people });
    let cases = [
        (9, 300, 25, 60, false, None),
        (10, 300, 25, 60, true, None),
        (11, 120, 12, 40, false, context(10, 3)),
        (12, 120, 12, 40, true, context(30, 4)),
        (13, 14, 30, 60, false, None),
    ];
    for ((seed, frames, people, queries, weighted, context), golden) in
        cases.into_iter().zip(golden("search").as_array().unwrap())
    {
        let (mut draw, ties) = (Draw(seed), context.is_none());
        let drawn = drawn_frames(&mut draw, frames, people, ties);
        let sought: Vec<(Vec<f32>, Vec<f32>)> = { 0..queries as u64 }
            .map(|q| {
                let own = feature(&mut draw, q % people, ties);
                let companion = |_| {
                    let person = draw.below(people);
                    feature(&mut draw, person, ties)
                };
                (own, (0..4).flat_map(companion).collect())
            })
            .collect();
        let frames: Vec<GalleryFrame> = { drawn.iter() }
            .map(|frame| GalleryFrame {
                boxes: &frame.boxes,
                scores: &frame.scores,
                features: &frame.features,
            })
            .collect();
        let query = |q: usize| SearchQuery {
            feature: &sought[q].0,
            companions: &sought[q].1,
            gallery: { drawn.iter().enumerate() }
                .filter(|(f, _)| f % 7 != q % 7)
                .map(|(f, frame)| {
                    let place = frame.persons.iter().position(|p| *p == q as u64 % people);
                    (f, place.map(|place| frame.truth[place]))
                })
                .collect(),
        };
        let gallery = SearchGallery::new(&frames, CHANNELS, 0.5, weighted).unwrap();
        let m = gallery.evaluate(queries, query, context).unwrap();
        assert_close(
            &[Some(m.map)],
            &Value::from(vec![golden["map"].clone()]),
            METRIC,
        );
        assert_close(&m.top.map(Some), &golden["top"], METRIC);
        assert_close(
            &[Some(m.recall)],
            &Value::from(vec![golden["recall"].clone()]),
            METRIC,
        );
        assert_eq!(m.skipped as u64, golden["skipped"]);

        let known: Vec<Vec<bool>> = { drawn.iter() }
            .map(|frame| frame.persons.iter().map(|p| *p < people).collect())
            .collect();
        let scenes: Vec<SceneDetections> = { drawn.iter().zip(&known) }
            .map(|(frame, known)| SceneDetections {
                truth: &frame.truth,
                known,
                boxes: &frame.boxes,
                scores: &frame.scores,
            })
            .collect();
        for (only, golden) in [false, true]
            .into_iter()
            .zip(golden["detection"].as_array().unwrap())
        {
            let m = search::detection(&scenes, 0.5, only).unwrap();
            let expected = Value::from(vec![golden["recall"].clone(), golden["ap"].clone()]);
            assert_close(&[m.recall, m.ap], &expected, METRIC);
        }
    }
}

#[test]
fn roc_equals_scikit_learn() {
    for ((seed, count, queries, people), golden) in
        { [(14, 900, 200, 40), (15, 60, 20, 8)].into_iter() }.zip(golden("roc").as_array().unwrap())
    {
        let mut draw = Draw(seed);
        let mut numbers =
            |n: u64| -> Vec<i64> { (0..count).map(|_| draw.below(n) as i64).collect() };
        let (persons, cameras) = (numbers(people), numbers(4));
        let row = |person: &i64| feature(&mut draw, *person as u64, true);
        let features: Vec<f32> = persons.iter().flat_map(row).collect();
        let side = |rows: std::ops::Range<usize>| reid::ReidImages {
            features: &features[rows.start * CHANNELS..rows.end * CHANNELS],
            channels: CHANNELS,
            persons: &persons[rows.clone()],
            cameras: &cameras[rows],
        };
        let rates = [1e-4, 1e-3, 1e-2, 1e-1];
        let roc = verify::roc(&side(0..queries), &side(queries..count), &rates).unwrap();
        assert_close(
            &[Some(roc.auc)],
            &Value::from(vec![golden["auc"].clone()]),
            METRIC,
        );
        let at: Vec<_> = roc
            .at
            .iter()
            .map(|at| at.map(|at| at.true_positive_rate))
            .collect();
        assert_close(&at, &golden["at"], METRIC);
        let error = Value::from(vec![golden["error"].clone()]);
        assert_close(&[Some(roc.equal_error.1)], &error, METRIC);
        for (kind, golden) in [
            (&roc.same, &golden["same"]),
            (&roc.different, &golden["different"]),
        ] {
            assert_close(&[Some(kind.mean), Some(kind.deviation)], golden, COSINE);
        }
        assert_eq!(
            Value::from(vec![roc.same.pairs, roc.different.pairs]),
            golden["pairs"]
        );
    }
}

#[test]
fn suppressions_equal_plain_loops() {
    for ((seed, count), golden) in
        { [(16, 400), (17, 30)].into_iter() }.zip(golden("suppression").as_array().unwrap())
    {
        let mut draw = Draw(seed);
        let boxes: Vec<[f64; 4]> = (0..count).map(|_| draw.bbox()).collect();
        let scores: Vec<f64> = (0..count).map(|_| draw.real(200) / 200.0).collect();
        assert_eq!(
            Value::from(detection::nms(&boxes, &scores, 0.3)),
            golden["hard"]
        );
        for (name, decay) in [
            ("linear", SoftNmsDecay::Linear { threshold: 0.3 }),
            ("gaussian", SoftNmsDecay::Gaussian { sigma: 0.5 }),
        ] {
            let (index, score): (Vec<usize>, Vec<Option<f64>>) =
                { detection::soft_nms(&boxes, &scores, decay, 0.05).into_iter() }
                    .map(|(index, score)| (index, Some(score)))
                    .unzip();
            assert_eq!(Value::from(index), golden[name]["index"]);
            assert_close(&score, &golden[name]["score"], METRIC);
        }
        let (mut poses, mut areas) = (Vec::new(), Vec::new());
        for i in 0..count {
            let [x, y, width, height] = boxes[i % 12];
            let joint = |j| {
                let share = f64::from(j) / 8.0;
                [
                    x + width * share + draw.noise(4.0),
                    y + height * share + draw.noise(4.0),
                ]
            };
            poses.push((0..6).map(joint).collect::<Vec<_>>());
            areas.push(width * height);
        }
        let poses: Vec<&[[f64; 2]]> = poses.iter().map(Vec::as_slice).collect();
        let sigmas = [0.03, 0.05, 0.06, 0.08, 0.1, 0.1];
        let kept = pose::oks_nms(&poses, &areas, &scores, &sigmas, 0.5);
        assert_eq!(Value::from(kept), golden["poses"]);
    }
}

#[test]
fn attributes_and_parsing_equal_the_published_evaluators() {
    let (mut draw, images, count) = (Draw(18), 5000, 26);
    let truth: Vec<bool> = { 0..images * count }
        .map(|i| draw.below(count + 3) < i % count)
        .collect();
    let mut probability =
        |truth: &bool| (draw.real(500) + 300.0 * f64::from(u8::from(*truth))) / 800.0;
    let probabilities: Vec<f32> = truth.iter().map(|t| probability(t) as f32).collect();
    let m = attributes::evaluate(&truth, &probabilities, count as usize, 0.5).unwrap();
    let found = [m.ma, m.accuracy, m.precision, m.recall, m.f1].map(Some);
    let golden_attributes = golden("attributes");
    let (first, map) = golden_attributes.as_array().unwrap().split_at(5);
    assert_close(&found, &Value::from(first), METRIC);
    assert_close(&[m.map], &Value::from(map), METRIC);
    assert_eq!(m.degenerate, [0]);

    let (mut draw, classes) = (Draw(19), 20);
    let mut confusion = parsing::ConfusionMatrix::new(classes as usize);
    for _ in 0..20 {
        let drawn: Vec<u64> = (0..3000).map(|_| draw.below(classes + 1)).collect();
        let guess = |t: &u64| match draw.below(3) > 0 && *t < classes {
            true => *t as u8,
            false => draw.below(classes) as u8,
        };
        let predicted: Vec<u8> = drawn.iter().map(guess).collect();
        let label = |t: &u64| {
            if *t == classes {
                parsing::IGNORE
            } else {
                *t as u8
            }
        };
        let truth: Vec<u8> = drawn.iter().map(label).collect();
        confusion.add(&truth, &predicted).unwrap();
    }
    let m = confusion.metrics();
    let found = [m.pixel_accuracy, Some(m.mean_accuracy), Some(m.mean_iou)];
    assert_close(&found, &golden("parsing"), METRIC);
}
