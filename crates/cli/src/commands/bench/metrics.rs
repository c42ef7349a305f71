//! Speed of metrics at the size of published datasets, on random predictions.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::Result;
use clasp_data::layouts::coco::COCO_SIGMAS;
use clasp_data::rng_for;
use clasp_metrics::MetricError;
use clasp_metrics::detection::{
    CITYPERSONS, FoundBox, LabeledPedestrian, OTHER_SUBSETS, miss_rate,
};
use clasp_metrics::parsing::ConfusionMatrix;
use clasp_metrics::pose::{PredictedPose, TruePose, oks_ap};
use clasp_metrics::reid::{self, ReidImages};
use clasp_metrics::rerank::{self, Rerank};
use clasp_metrics::search::{GalleryFrame, SearchGallery, SearchQuery};
use clasp_tasks::index::FeatureIndex;
use rand::RngExt;
use rayon::prelude::*;
use serde_json::json;

use super::measurement::{Measurement, timed};
use crate::args::{BenchCoco, BenchDetection, BenchIndex, BenchParsing, BenchRank, BenchSearch};

/// Market-1501-sized ranking with the peer's distribution of features.
pub fn rank(options: &BenchRank) -> Result<Measurement> {
    let mut normal = normal("rank");
    let centers: Vec<f32> = (0..options.identities * options.dim)
        .map(|_| normal())
        .collect();
    let mut rng = rng_for(0, 0, "people");
    let mut side = |count: usize| {
        let persons: Vec<i64> = (0..count)
            .map(|_| rng.random_range(0..options.identities as i64))
            .collect();
        let cameras: Vec<i64> = (0..count).map(|_| rng.random_range(0..6)).collect();
        let mut features = Vec::with_capacity(count * options.dim);
        for &person in &persons {
            let center = &centers[person as usize * options.dim..][..options.dim];
            let row: Vec<f32> = center.iter().map(|x| x + 4.0 * normal()).collect();
            let length = row.iter().map(|x| x * x).sum::<f32>().sqrt();
            features.extend(row.iter().map(|x| x / length));
        }
        (features, persons, cameras)
    };
    let (query, gallery) = (side(options.queries), side(options.gallery));
    let query = ReidImages {
        features: &query.0,
        channels: options.dim,
        persons: &query.1,
        cameras: &query.2,
    };
    let gallery = ReidImages {
        features: &gallery.0,
        channels: options.dim,
        persons: &gallery.1,
        cameras: &gallery.2,
    };
    let begun = Instant::now();
    let metrics = reid::evaluate(&query, &gallery, 50)?;
    let mut figures = json!({
        "rank_s": begun.elapsed().as_secs_f64(), "mAP": metrics.map, "rank1": metrics.cmc.first(),
    });
    if options.rerank {
        let begun = Instant::now();
        let metrics = rerank::evaluate(&query, &gallery, Rerank::default(), 50)?;
        figures["rerank_s"] = json!(begun.elapsed().as_secs_f64());
        figures["rerank_mAP"] = json!(metrics.map);
    }
    Ok(Measurement {
        work: "rank",
        settings: json!({
            "queries": options.queries, "gallery": options.gallery, "dim": options.dim, "identities": options.identities,
        }),
        figures,
    })
}

/// Exact search in a gallery of random features; each query is a feature of the gallery with noise,
/// and has to be found first.
pub fn index(options: &BenchIndex) -> Result<Measurement> {
    let mut index = FeatureIndex::new(options.dim);
    let mut rng = rng_for(0, 0, "index");
    let mut queries = Vec::new();
    for at in 0..options.gallery {
        let row: Vec<f32> = (0..options.dim)
            .map(|_| rng.random::<f32>() - 0.5)
            .collect();
        index.push(&row);
        if at < options.queries {
            queries.extend(row.iter().map(|x| x + 0.1 * (rng.random::<f32>() - 0.5)));
        }
    }
    let mut found = Vec::new();
    let seconds = timed(options.iters, || {
        found = index.nearest(&queries, options.top, -1.0, &|_| true);
        Ok(())
    })?;
    let first =
        { (0..).zip(&found) }.filter(|(at, hits)| hits.first().is_some_and(|hit| hit.id == *at));
    Ok(Measurement {
        work: "index",
        settings: json!({
            "gallery": options.gallery, "dim": options.dim, "queries": options.queries, "top": options.top,
        }),
        figures: json!({ "search_s": seconds, "found_first": first.count() }),
    })
}

/// COCO keypoint evaluation of random poses, 1 to 5 people an image, with the peer's distribution
/// where two poses are found for each.
pub fn coco(options: &BenchCoco) -> Result<Measurement> {
    let mut rng = rng_for(0, 0, "coco");
    let (mut truth, mut predicted) = (Vec::new(), Vec::new());
    for image in 0..options.images as u64 {
        for _ in 0..rng.random_range(1..6) {
            let (x, y) = (rng.random_range(0.0..300.0), rng.random_range(0.0..200.0));
            let (width, height) = (rng.random_range(20.0..200.0), rng.random_range(40.0..250.0));
            let keypoints: Vec<[f64; 3]> = (0..COCO_SIGMAS.len())
                .map(|_| {
                    let (x, y) = (
                        x + width * rng.random::<f64>(),
                        y + height * rng.random::<f64>(),
                    );
                    [x, y, f64::from(rng.random_range(0..3))]
                })
                .collect();
            for _ in 0..options.predictions {
                // Twelve uniform numbers are nearly normal.
                let mut noise =
                    || 0.08 * height * ((0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0);
                let keypoints = keypoints
                    .iter()
                    .map(|k| [k[0] + noise(), k[1] + noise()])
                    .collect();
                let score = rng.random();
                predicted.push(PredictedPose {
                    image,
                    keypoints,
                    score,
                });
            }
            truth.push(TruePose {
                image,
                keypoints,
                bbox: [x, y, width, height],
                area: 0.5 * width * height,
                crowd: false,
            });
        }
    }
    let mut ap = None;
    let seconds = timed(options.iters, || {
        ap = oks_ap(&truth, &predicted, &COCO_SIGMAS)?.ap;
        Ok(())
    })?;
    Ok(Measurement {
        work: "coco_eval",
        settings: json!({ "images": options.images, "predictions": options.predictions }),
        figures: json!({ "eval_s": seconds, "poses": predicted.len(), "AP": ap }),
    })
}

/// Masks of random blocks of labels, nine tenths of them found, counted mask by mask on all threads
/// as an evaluation does.
pub fn parsing(options: &BenchParsing) -> Result<Measurement> {
    const BLOCK: usize = 16;
    let [height, width] = options.size;
    let classes = usize::from(options.classes);
    let mask = |index: usize| -> [Vec<u8>; 2] {
        let mut rng = rng_for(0, index as u64, "masks");
        let blocks: Vec<[u8; 2]> = (0..height.div_ceil(BLOCK) * width.div_ceil(BLOCK))
            .map(|_| {
                let label = rng.random_range(0..options.classes);
                let found = rng.random_bool(0.9);
                [
                    label,
                    if found {
                        label
                    } else {
                        rng.random_range(0..options.classes)
                    },
                ]
            })
            .collect();
        [0, 1].map(|side| {
            (0..height * width)
                .map(|at| {
                    let (row, column) = (at / width / BLOCK, at % width / BLOCK);
                    blocks[row * width.div_ceil(BLOCK) + column][side]
                })
                .collect()
        })
    };
    let begun = Instant::now();
    let confusion = (0..options.images)
        .into_par_iter()
        .try_fold(
            || ConfusionMatrix::new(classes),
            |mut confusion, index| {
                let [truth, predicted] = mask(index);
                confusion.add(&truth, &predicted)?;
                Ok::<_, MetricError>(confusion)
            },
        )
        .try_reduce(
            || ConfusionMatrix::new(classes),
            |mut all, part| {
                all.merge(&part);
                Ok(all)
            },
        )?;
    let seconds = begun.elapsed().as_secs_f64();
    Ok(Measurement {
        work: "parsing_eval",
        settings: json!({ "images": options.images, "size": options.size, "classes": classes }),
        figures: json!({
            "eval_s": seconds, "masks_per_s": options.images as f64 / seconds,
            "mIoU": confusion.metrics().mean_iou,
        }),
    })
}

/// Miss rates of random pedestrians of all heights and visibilities, each detected with a small
/// offset, among false positives.
pub fn detection(options: &BenchDetection) -> Result<Measurement> {
    let mut rng = rng_for(0, 0, "detection");
    let (mut truth, mut found) = (Vec::new(), Vec::new());
    let images: Vec<u64> = (0..options.images as u64).collect();
    for &image in &images {
        let mut bbox = || {
            let height = 20.0 * 15.0_f64.powf(rng.random());
            let (x, y) = (rng.random_range(0.0..2000.0), rng.random_range(0.0..700.0));
            [x, y, 0.41 * height, height]
        };
        let mut boxes: Vec<[f64; 4]> = (0..options.predictions).map(|_| bbox()).collect();
        for bbox in boxes.iter_mut().take(rng.random_range(0..=12)) {
            let [.., height] = *bbox;
            truth.push(LabeledPedestrian {
                image,
                bbox: *bbox,
                height,
                visibility: rng.random(),
                ignored: rng.random_bool(0.2),
            });
            bbox[0] += 0.1 * height * (rng.random::<f64>() - 0.5);
        }
        found.extend(boxes.into_iter().map(|bbox| FoundBox {
            image,
            bbox,
            score: rng.random(),
        }));
    }
    let mut reasonable = None;
    let seconds = timed(options.iters, || {
        let rates = { CITYPERSONS.iter().chain(&OTHER_SUBSETS) }
            .map(|subset| miss_rate(&images, &truth, &found, subset))
            .collect::<Result<Vec<_>, _>>()?;
        reasonable = rates[0].value;
        Ok(())
    })?;
    Ok(Measurement {
        work: "detection_eval",
        settings: json!({ "images": options.images, "predictions": options.predictions }),
        figures: json!({ "eval_s": seconds, "boxes": found.len(), "miss_rate": reasonable }),
    })
}

/// Person search among people of random features, in which each query's person is one of many.
pub fn search(options: &BenchSearch) -> Result<Measurement> {
    let mut rng = rng_for(0, 0, "search");
    let mut normal = normal("people");
    let (people, dim) = (options.people, options.dim);
    let centers: Vec<f32> = (0..options.queries * dim).map(|_| normal()).collect();
    let mut near = |person: usize| -> Vec<f32> {
        let center = &centers[person * dim..][..dim];
        center.iter().map(|x| x + 2.0 * normal()).collect()
    };
    // People beside each other.
    let boxes: Vec<[f64; 4]> = (0..people)
        .map(|place| [50.0 * place as f64, 100.0, 45.0, 110.0])
        .collect();
    let scores = vec![0.9; people];
    let mut shown: Vec<Vec<(usize, Option<[f64; 4]>)>> = vec![Vec::new(); options.queries];
    let mut features = Vec::with_capacity(options.frames);
    for frame in 0..options.frames {
        let mut of_frame = Vec::with_capacity(people * dim);
        for bbox in &boxes {
            let person = rng.random_range(0..options.queries);
            // Nobody is twice in a picture.
            if shown[person].last().is_none_or(|(last, _)| *last != frame) {
                shown[person].push((frame, Some(*bbox)));
            }
            of_frame.extend(near(person));
        }
        features.push(of_frame);
    }
    let frames: Vec<GalleryFrame> = { features.iter() }
        .map(|features| GalleryFrame {
            boxes: &boxes,
            scores: &scores,
            features,
        })
        .collect();
    let sought: Vec<Vec<f32>> = (0..options.queries).map(near).collect();
    let query = |person: usize| {
        let with = &shown[person];
        let mut others = { with.iter().map(|(frame, _)| *frame) }.collect::<BTreeSet<_>>();
        let mut gallery = with.clone();
        // The frames that follow the person's number, around the end.
        let mut frame = person;
        while gallery.len() < options.gallery.min(options.frames) {
            if others.insert(frame % options.frames) {
                gallery.push((frame % options.frames, None));
            }
            frame += 1;
        }
        SearchQuery {
            feature: &sought[person],
            companions: &[],
            gallery,
        }
    };
    let begun = Instant::now();
    let metrics =
        SearchGallery::new(&frames, dim, 0.5, false)?.evaluate(options.queries, query, None)?;
    Ok(Measurement {
        work: "search_eval",
        settings: json!({
            "queries": options.queries, "frames": options.frames, "gallery": options.gallery, "people": people, "dim": dim,
        }),
        figures: json!({ "eval_s": begun.elapsed().as_secs_f64(), "mAP": metrics.map, "top1": metrics.top[0] }),
    })
}

/// Numbers of a normal distribution, by Box and Muller; the peers draw from NumPy's.
fn normal(purpose: &str) -> impl FnMut() -> f32 {
    let mut rng = rng_for(0, 0, purpose);
    move || {
        let (u, v): (f32, f32) = (rng.random_range(f32::EPSILON..1.0), rng.random());
        (-2.0 * u.ln()).sqrt() * (std::f32::consts::TAU * v).cos()
    }
}
