//! Frozen re-identification: pooled features, cosine, nothing trained. See [`protocol`].

use std::ops::{ControlFlow, Range};
use std::path::PathBuf;

use clasp_data::layouts::reid::{ReidDataset, ReidImage};
use clasp_metrics::reid::{self, Images, ReidMetrics};
use clasp_metrics::rerank::{self, Rerank};
use serde::{Deserialize, Serialize};

use crate::features::{Extractor, Features, Pass, Preprocess, each_image, read_image};
use crate::frozen::{Options, Progress};
use crate::{TaskError, frozen};

/// Ranks of the CMC that are kept.
const RANKS: usize = 50;
/// Matches shown of a query.
const SHOWN: usize = 10;

/// The result, with its protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReidReport {
    /// What was done, in words.
    pub protocol: String,
    /// The figures.
    pub metrics: ReidMetrics,
    /// The same after re-ranking, if asked for.
    pub reranked: Option<ReidMetrics>,
    /// Junk images of the data set that were dropped.
    pub junk: usize,
    /// Queries with their nearest gallery images, evenly spaced over the queries that were not skipped.
    pub strips: Vec<Strip>,
}

/// A query and what was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Strip {
    /// The query's file.
    pub query: PathBuf,
    /// Its average precision.
    pub average_precision: f64,
    /// Nearest gallery images, nearest first, and whether each shows the same person.
    pub matches: Vec<(PathBuf, bool)>,
}

/// Features of images, and whom they show.
pub(crate) struct Described {
    features: Vec<f32>,
    channels: usize,
    persons: Vec<i64>,
    cameras: Vec<i64>,
}

impl Described {
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
    pub(crate) fn rows(&self, rows: Range<usize>) -> Images<'_> {
        Images {
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
         L2-normalised; nothing is trained; gallery ranked by cosine. Market-1501 rules: the same person from the same \
         camera is left out, person -1 is dropped, person 0 stays as a distractor; a query without a match from another \
         camera is skipped. Ties keep the order of file names. mAP, mINP and CMC are means over the other queries.{reranked}"
    )
}

/// Evaluates on the queries and the gallery; the training images are not used. `strips` is the number of queries to show.
///
/// # Errors
/// An image that cannot be read, features that are not finite, no query with a match, or a stop through `progress`.
pub fn evaluate<E: Extractor>(
    extractor: &E,
    preprocess: &Preprocess,
    data: &ReidDataset,
    rerank: Option<Rerank>,
    strips: usize,
    options: &Options,
    progress: &(dyn Fn(Progress) -> ControlFlow<()> + Sync),
) -> Result<ReidReport, TaskError> {
    let crops: Vec<&ReidImage> = data.query.iter().chain(&data.gallery).collect();
    let size = [preprocess.height, preprocess.width];
    let load = |i: usize| Ok(Some(preprocess.apply(&read_image(&crops[i].path)?)));
    let keep = |_: usize, features: &Features| Ok(features.pooled.to_vec());
    let pass = Pass {
        stage: "query and gallery images",
        count: crops.len(),
        size,
        stages: 0,
        name: &|i| crops[i].path.display().to_string(),
    };
    let rows = each_image(extractor, pass, options, load, keep, progress)?;
    let described = Described::new(rows.into_iter().flatten().collect(), &crops);
    let queries = data.query.len();
    let (query, gallery) = (
        described.rows(0..queries),
        described.rows(queries..crops.len()),
    );
    let metrics = reid::evaluate(&query, &gallery, RANKS)?;
    let reranked = rerank
        .map(|rerank| rerank::evaluate(&query, &gallery, rerank, RANKS))
        .transpose()?;

    let valid: Vec<usize> = (0..queries)
        .filter(|&i| metrics.average_precision[i].is_some())
        .collect();
    let shown: Vec<usize> = frozen::spaced(valid.len(), strips)
        .into_iter()
        .map(|i| valid[i])
        .collect();
    let shown_features: Vec<f32> = frozen::rows_of(&shown, query.features, query.channels);
    let shown_persons: Vec<i64> = shown.iter().map(|&i| query.persons[i]).collect();
    let shown_cameras: Vec<i64> = shown.iter().map(|&i| query.cameras[i]).collect();
    let asked = Images {
        features: &shown_features,
        channels: query.channels,
        persons: &shown_persons,
        cameras: &shown_cameras,
    };
    let nearest = reid::nearest(&asked, &gallery, SHOWN)?;
    let strips = shown.iter().zip(nearest).map(|(&i, nearest)| Strip {
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
    Ok(ReidReport {
        protocol: protocol(preprocess, rerank),
        strips: strips.collect(),
        metrics,
        reranked,
        junk: data.junk,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fake, people, quiet};

    #[test]
    fn colours_find_people_and_noise_does_not() {
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
                &Options::default(),
                &quiet,
            )
            .unwrap()
        };
        let good = run(Fake::Colours);
        assert!(
            good.metrics.map > 0.99 && good.metrics.cmc[0] > 0.99,
            "{:?}",
            good.metrics
        );
        assert!(good.reranked.unwrap().map > 0.95);
        assert_eq!((good.strips.len(), good.strips[0].matches[0].1), (3, true));
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
    fn threads_and_batches_change_nothing() {
        let folder = tempfile::tempdir().unwrap();
        people(folder.path());
        let data = ReidDataset::open(folder.path()).unwrap();
        let run = |threads, batch| {
            let options = Options {
                threads,
                batch,
                ..Options::default()
            };
            evaluate(
                &Fake::Colours,
                &Preprocess::imagenet(64, 32),
                &data,
                None,
                0,
                &options,
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
        let options = Options::default();
        let error =
            evaluate(&Fake::Nan, &preprocess, &data, None, 0, &options, &quiet).unwrap_err();
        assert!(
            error.to_string().contains(".png has a feature of NaN"),
            "{error}"
        );
        let stop = |_: Progress| ControlFlow::Break(());
        let error =
            evaluate(&Fake::Colours, &preprocess, &data, None, 0, &options, &stop).unwrap_err();
        assert!(matches!(error, TaskError::Stopped));
        fs_err::write(&data.gallery[4].path, b"broken").unwrap();
        let error = evaluate(
            &Fake::Colours,
            &preprocess,
            &data,
            None,
            0,
            &options,
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
