//! Frozen re-identification: ranking by the cosine of pooled features, nothing is trained. See
//! [`protocol`].

use std::ops::{ControlFlow, Range};

use clasp_data::layouts::reid::{ReidDataset, ReidImage};
use clasp_metrics::Metric;
use clasp_metrics::reid::{self, ReidImages, ReidMetrics};
use clasp_metrics::rerank::{self, Rerank};
use serde::{Deserialize, Serialize};

use crate::TaskError;
use crate::features::{
    Batching, Extractor, ImageFeatures, ImagePass, PassProgress, Preprocess, each_image, read_image,
};
use crate::probe::config::spaced;
use crate::probe::selection::rows_of;
use crate::probe::{FrozenRequest, FrozenResult, RetrievalExample};

/// Ranks of the CMC that are kept.
const RANKS: usize = 50;
/// Matches shown of a query.
const SHOWN: usize = 10;

/// The result, with its protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrozenReid {
    /// What was done, in words.
    pub protocol: String,
    /// The metrics.
    pub metrics: ReidMetrics,
    /// The same after re-ranking, if asked for.
    pub reranked: Option<ReidMetrics>,
    /// Junk images of the dataset that were dropped.
    pub junk: usize,
    /// Queries with their nearest gallery images, evenly spaced over the queries that were not
    /// skipped.
    pub examples: Vec<RetrievalExample>,
}

/// Features of images with their identities and cameras.
pub(crate) struct LabeledFeatures {
    features: Vec<f32>,
    channels: usize,
    persons: Vec<i64>,
    cameras: Vec<i64>,
}

impl LabeledFeatures {
    /// A feature for each image.
    pub(crate) fn new(features: Vec<Vec<f32>>, crops: &[&ReidImage]) -> Self {
        Self {
            channels: features.first().map_or(0, Vec::len),
            features: features.into_iter().flatten().collect(),
            persons: crops.iter().map(|crop| crop.person).collect(),
            cameras: crops.iter().map(|crop| crop.camera).collect(),
        }
    }

    /// Some of the images.
    pub(crate) fn rows(&self, rows: Range<usize>) -> ReidImages<'_> {
        ReidImages {
            features: &self.features[rows.start * self.channels..rows.end * self.channels],
            channels: self.channels,
            persons: &self.persons[rows.clone()],
            cameras: &self.cameras[rows],
        }
    }
}

/// The protocol in words.
pub fn protocol(preprocess: &Preprocess, rerank: Option<Rerank>) -> String {
    let reranked = rerank.map_or(String::new(), |r| {
        format!(
            " Also re-ranked by k-reciprocal encoding, k1 {}, k2 {}, lambda {}.",
            r.k1, r.k2, r.lambda
        )
    });
    format!(
        "Frozen re-identification (our protocol): the whole image resized to {preprocess}; pooled features of the last stage, \
         L2-normalized; nothing is trained; gallery ranked by cosine. Market-1501 rules: the same person from the same \
         camera is ignored, person -1 is dropped, person 0 stays as a distractor; a query without a match from another \
         camera is skipped. Ties keep the order of file names. mAP, mINP and CMC are means over the other queries.{reranked}"
    )
}

/// Evaluates on the queries and the gallery; the training images are not used. `examples` is the
/// number of queries to show.
///
/// # Errors
/// An image that cannot be read, features that are not finite, no query with a match, or a stop
/// through `progress`.
pub fn evaluate<E: Extractor>(
    extractor: &E,
    preprocess: &Preprocess,
    data: &ReidDataset,
    rerank: Option<Rerank>,
    examples: usize,
    batching: &Batching,
    progress: &(dyn Fn(PassProgress) -> ControlFlow<()> + Sync),
) -> Result<FrozenReid, TaskError> {
    let crops: Vec<&ReidImage> = data.query.iter().chain(&data.gallery).collect();
    let size = [preprocess.height, preprocess.width];
    let load = |i: usize| Ok(Some(preprocess.apply(&read_image(&crops[i].path)?)));
    let keep = |_: usize, features: &ImageFeatures| Ok(features.pooled.to_vec());
    let pass = ImagePass {
        stage: "query and gallery images",
        count: crops.len(),
        size,
        stages: 0,
        name: &|i| crops[i].path.display().to_string(),
    };
    let rows = each_image(extractor, pass, batching, load, keep, progress)?;
    let features = LabeledFeatures::new(rows.into_iter().flatten().collect(), &crops);
    let queries = data.query.len();
    let (query, gallery) = (
        features.rows(0..queries),
        features.rows(queries..crops.len()),
    );
    let metrics = reid::evaluate(&query, &gallery, RANKS)?;
    let reranked = rerank
        .map(|rerank| rerank::evaluate(&query, &gallery, rerank, RANKS))
        .transpose()?;

    let valid: Vec<usize> = (0..queries)
        .filter(|&i| metrics.average_precision[i].is_some())
        .collect();
    let shown: Vec<usize> = spaced(valid.len(), examples)
        .into_iter()
        .map(|i| valid[i])
        .collect();
    let shown_features: Vec<f32> = rows_of(&shown, query.features, query.channels);
    let shown_persons: Vec<i64> = shown.iter().map(|&i| query.persons[i]).collect();
    let shown_cameras: Vec<i64> = shown.iter().map(|&i| query.cameras[i]).collect();
    let queries = ReidImages {
        features: &shown_features,
        channels: query.channels,
        persons: &shown_persons,
        cameras: &shown_cameras,
    };
    let nearest = reid::nearest(&queries, &gallery, SHOWN)?;
    let examples = shown
        .iter()
        .zip(nearest)
        .map(|(&i, nearest)| RetrievalExample {
            query: data.query[i].path.clone(),
            average_precision: metrics.average_precision[i].unwrap_or(0.0),
            matches: nearest
                .into_iter()
                .map(|j| {
                    (
                        data.gallery[j].path.clone(),
                        data.gallery[j].person == data.query[i].person,
                    )
                })
                .collect(),
        });
    Ok(FrozenReid {
        protocol: protocol(preprocess, rerank),
        examples: examples.collect(),
        metrics,
        reranked,
        junk: data.junk,
    })
}

/// The evaluation of a frozen backbone.
///
/// # Errors
/// The data cannot be opened, and those of [`evaluate`].
pub fn evaluate_frozen(request: &FrozenRequest<'_>) -> Result<FrozenResult, TaskError> {
    let report = evaluate(
        request.extractor,
        request.preprocess,
        &ReidDataset::open(request.data)?,
        request.rerank.then(Rerank::default),
        request.examples,
        &request.config.batching,
        request.progress,
    )?;
    let metrics = &report.metrics;
    let mut quoted = metrics.quoted();
    if let Some(metrics) = &report.reranked {
        let first = metrics.cmc.first().copied().unwrap_or(1.0);
        quoted.push(Metric::score("re-ranked mAP", metrics.map));
        quoted.push(Metric::score("re-ranked rank-1", first));
    }
    let result = FrozenResult::new(quoted, metrics.chance_map, &report.protocol, &report);
    Ok(FrozenResult {
        counted: format!(
            "{} of {} queries evaluated, {} skipped (no image of the person by another camera in the gallery)",
            metrics.queries - metrics.skipped,
            metrics.queries,
            metrics.skipped
        ),
        examples: report.examples,
        ..result
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fake, people, quiet};

    #[test]
    fn color_features_retrieve_people_and_noise_does_not() {
        let folder = tempfile::tempdir().unwrap();
        people(folder.path());
        let data = ReidDataset::open(folder.path()).unwrap();
        let run = |fake: Fake| {
            let preprocess = Preprocess::imagenet(64, 32);
            evaluate(
                &fake,
                &preprocess,
                &data,
                Some(Rerank {
                    k1: 5,
                    k2: 2,
                    lambda: 0.3,
                }),
                3,
                &Batching::default(),
                &quiet,
            )
            .unwrap()
        };
        let good = run(Fake::Colors);
        assert!(
            good.metrics.map > 0.99 && good.metrics.cmc[0] > 0.99,
            "{:?}",
            good.metrics
        );
        assert!(good.reranked.unwrap().map > 0.95);
        assert_eq!(
            (good.examples.len(), good.examples[0].matches[0].1),
            (3, true)
        );
        assert!(good.protocol.contains("64x32") && good.protocol.contains("k1 5"));
        let noise = run(Fake::Noise);
        let gap = (noise.metrics.map - noise.metrics.chance_map).abs();
        assert!(
            gap < 0.1,
            "noise {} chance {}",
            noise.metrics.map,
            noise.metrics.chance_map
        );
    }

    #[test]
    fn results_do_not_depend_on_threads_and_batches() {
        let folder = tempfile::tempdir().unwrap();
        people(folder.path());
        let data = ReidDataset::open(folder.path()).unwrap();
        let run = |threads, batch| {
            let batching = Batching { batch, threads };
            evaluate(
                &Fake::Colors,
                &Preprocess::imagenet(64, 32),
                &data,
                None,
                0,
                &batching,
                &quiet,
            )
            .unwrap()
        };
        assert_eq!(run(1, 1), run(3, 7));
    }

    #[test]
    fn broken_images_bad_features_and_stops_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        people(folder.path());
        let data = ReidDataset::open(folder.path()).unwrap();
        let preprocess = Preprocess::imagenet(64, 32);
        let batching = Batching::default();
        let error =
            evaluate(&Fake::Nan, &preprocess, &data, None, 0, &batching, &quiet).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(".png: expected finite features, found NaN"),
            "{error}"
        );
        let stop = |_: PassProgress| ControlFlow::Break(());
        let error =
            evaluate(&Fake::Colors, &preprocess, &data, None, 0, &batching, &stop).unwrap_err();
        assert!(matches!(error, TaskError::Stopped));
        fs_err::write(&data.gallery[4].path, b"broken").unwrap();
        let error = evaluate(
            &Fake::Colors,
            &preprocess,
            &data,
            None,
            0,
            &batching,
            &quiet,
        )
        .unwrap_err()
        .to_string();
        assert!(
            error.contains("bounding_box_test") && error.contains("not an image"),
            "{error}"
        );
    }
}
