//! The metrics on arrays. Lengths are checked here: the libraries take disagreement for a mistake
//! of their caller.

use clasp_metrics::attributes;
use clasp_metrics::detection::{
    self, CITYPERSONS, FoundBox, LabeledPedestrian, OTHER_SUBSETS, PedestrianSubset, TrueBox,
};
use clasp_metrics::parsing::ConfusionMatrix;
use clasp_metrics::pose::{PredictedPose, TruePose, oks_ap};
use clasp_metrics::reid::{self, ReidImages};
use clasp_metrics::rerank::{self, Rerank};
use clasp_metrics::search::{
    ContextMatching, GalleryFrame, SceneDetections, SearchGallery, SearchQuery,
    detection as found_people,
};
use clasp_metrics::verify;
use numpy::ndarray::Ix3;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arrays::{Borrowed, List, Table, as_many, boxes, to_python};
use crate::threads::{count, detached};

/// Adds the functions of this file to the module.
pub fn add_to(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(metric_reid, module)?)?;
    module.add_function(wrap_pyfunction!(metric_roc, module)?)?;
    module.add_function(wrap_pyfunction!(metric_attributes, module)?)?;
    module.add_function(wrap_pyfunction!(metric_parsing, module)?)?;
    module.add_function(wrap_pyfunction!(metric_keypoints, module)?)?;
    module.add_function(wrap_pyfunction!(metric_boxes, module)?)?;
    module.add_function(wrap_pyfunction!(metric_miss_rate, module)?)?;
    module.add_function(wrap_pyfunction!(metric_person_search, module)?)
}

/// A metric that cannot be computed from what was given.
fn wrong(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// One side of a comparison of people.
struct Side<'py> {
    features: Table<'py, f32>,
    persons: List<'py, i64>,
    cameras: List<'py, i64>,
}

impl<'py> Side<'py> {
    /// `name` is that of the side, in messages.
    fn new(name: &str, [features, persons, cameras]: [&Bound<'py, PyAny>; 3]) -> PyResult<Self> {
        let features = Table::new(&format!("{name}_features"), features)?;
        let (ids, cams) = (format!("{name}_ids"), format!("{name}_cams"));
        let images = features.shape()[0];
        let of = format!("the rows of {name}_features");
        Ok(Self {
            persons: List::of(&ids, persons, images, &of)?,
            cameras: List::of(&cams, cameras, images, &of)?,
            features,
        })
    }

    fn images(&self) -> PyResult<ReidImages<'_>> {
        Ok(ReidImages {
            features: self.features.values()?,
            channels: self.features.shape()[1],
            persons: self.persons.values()?,
            cameras: self.cameras.values()?,
        })
    }
}

fn same_channels(query: &Side<'_>, gallery: &Side<'_>) -> PyResult<()> {
    let [query, gallery] = [query, gallery].map(|side| side.features.shape()[1]);
    match query == gallery {
        true => Ok(()),
        false => Err(wrong(format!(
            "gallery_features: expected rows of {query} values, as query_features, found {gallery}"
        ))),
    }
}

#[pyfunction]
#[pyo3(signature = (query, gallery, ranks, rerank, threads))]
fn metric_reid<'py>(
    py: Python<'py>,
    query: [Bound<'py, PyAny>; 3],
    gallery: [Bound<'py, PyAny>; 3],
    ranks: usize,
    rerank: Option<(usize, usize, f64)>,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyAny>> {
    let query = Side::new("query", query.each_ref())?;
    let gallery = Side::new("gallery", gallery.each_ref())?;
    same_channels(&query, &gallery)?;
    if ranks == 0 {
        return Err(wrong("ranks: expected at least 1, found 0"));
    }
    let rerank = match rerank {
        Some((k1, k2, lambda)) if k1 > 0 && k2 > 0 && lambda.is_finite() => {
            Some(Rerank { k1, k2, lambda })
        }
        Some(found) => {
            let expected = "k1 and k2 of at least 1 and a finite lambda";
            return Err(wrong(format!(
                "rerank: expected {expected}, found {found:?}"
            )));
        }
        None => None,
    };
    let (query, gallery) = (query.images()?, gallery.images()?);
    let found = detached(py, count(threads)?, || match rerank {
        None => reid::evaluate(&query, &gallery, ranks),
        Some(rerank) => rerank::evaluate(&query, &gallery, rerank, ranks),
    })?;
    to_python(py, &found.map_err(wrong)?)
}

#[pyfunction]
#[pyo3(signature = (query, gallery, rates, threads))]
fn metric_roc<'py>(
    py: Python<'py>,
    query: [Bound<'py, PyAny>; 3],
    gallery: [Bound<'py, PyAny>; 3],
    rates: Vec<f64>,
    threads: Option<usize>,
) -> PyResult<Bound<'py, PyAny>> {
    let query = Side::new("query", query.each_ref())?;
    let gallery = Side::new("gallery", gallery.each_ref())?;
    same_channels(&query, &gallery)?;
    if let Some(rate) = rates.iter().find(|rate| !(0.0..=1.0).contains(*rate)) {
        return Err(wrong(format!("rates: expected 0 to 1, found {rate}")));
    }
    let (query, gallery) = (query.images()?, gallery.images()?);
    let found = detached(py, count(threads)?, || {
        verify::roc(&query, &gallery, &rates)
    })?;
    to_python(py, &found.map_err(wrong)?)
}

#[pyfunction]
fn metric_attributes<'py>(
    py: Python<'py>,
    truth: &Bound<'py, PyAny>,
    probabilities: &Bound<'py, PyAny>,
    threshold: f32,
) -> PyResult<Bound<'py, PyAny>> {
    let truth = Table::<bool>::new("truth", truth)?;
    let probabilities = Table::<f32>::new("probabilities", probabilities)?;
    if truth.shape() != probabilities.shape() || truth.shape()[1] == 0 {
        return Err(wrong(format!(
            "probabilities: expected [images, attributes] as truth, {:?}, found {:?}",
            truth.shape(),
            probabilities.shape()
        )));
    }
    let attributes = truth.shape()[1];
    let (truth, probabilities) = (truth.values()?, probabilities.values()?);
    let found = detached(py, count(None)?, || {
        attributes::evaluate(truth, probabilities, attributes, threshold)
    })?;
    to_python(py, &found.map_err(wrong)?)
}

#[pyfunction]
fn metric_parsing<'py>(
    py: Python<'py>,
    maps: Vec<(Bound<'py, PyAny>, Bound<'py, PyAny>)>,
    classes: usize,
) -> PyResult<Bound<'py, PyAny>> {
    if !(1..=255).contains(&classes) {
        return Err(wrong(format!(
            "classes: expected 1 to 255, found {classes}"
        )));
    }
    let mut matrix = ConfusionMatrix::new(classes);
    for (index, (truth, predicted)) in maps.iter().enumerate() {
        let truth = Table::<u8>::new(&format!("truth {index}"), truth)?;
        let predicted = Table::<u8>::new(&format!("predicted {index}"), predicted)?;
        if truth.shape() != predicted.shape() {
            return Err(wrong(format!(
                "predicted {index}: expected the shape of the truth, {:?}, found {:?}",
                truth.shape(),
                predicted.shape()
            )));
        }
        let (truth, predicted) = (truth.values()?, predicted.values()?);
        let added = py.detach(|| matrix.add(truth, predicted));
        added.map_err(|error| wrong(format!("image {index}: {error}")))?;
    }
    to_python(py, &matrix.metrics())
}

/// True people: keypoints `[people, joints, 3]`, then as [`true_boxes`].
type TruePeople<'py> = [Bound<'py, PyAny>; 5];

#[pyfunction]
fn metric_keypoints<'py>(
    py: Python<'py>,
    truth: TruePeople<'py>,
    predicted: [Bound<'py, PyAny>; 3],
    sigmas: Vec<f64>,
) -> PyResult<Bound<'py, PyAny>> {
    let [keypoints, boxes @ ..] = &truth;
    let keypoints = Borrowed::<f64, Ix3>::new("truth keypoints", keypoints)?;
    let joints = joints_of("truth keypoints", &keypoints, sigmas.len())?;
    let boxes = true_boxes(boxes)?;
    let of = "the people of truth keypoints";
    as_many("truth boxes", boxes.len(), joints.len(), of)?;
    let true_poses: Vec<TruePose> = { boxes.into_iter().zip(joints) }
        .map(|(one, keypoints)| TruePose {
            image: one.image,
            keypoints,
            bbox: one.bbox,
            area: one.area,
            crowd: one.crowd,
        })
        .collect();
    let [images, keypoints, scores] = &predicted;
    let keypoints = Borrowed::<f64, Ix3>::new("predicted keypoints", keypoints)?;
    let poses = keypoints.shape()[0];
    let joints = joints_of("predicted keypoints", &keypoints, sigmas.len())?;
    let of = "the predicted poses";
    let images = List::<u64>::of("predicted images", images, poses, of)?;
    let scores = List::<f64>::of("predicted scores", scores, poses, of)?;
    let (images, scores) = (images.values()?, scores.values()?);
    let predicted: Vec<PredictedPose> = (0..poses)
        .map(|i| PredictedPose {
            image: images[i],
            keypoints: joints[i].iter().map(|[x, y, _]| [*x, *y]).collect(),
            score: scores[i],
        })
        .collect();
    let found = detached(py, count(None)?, || {
        oks_ap(&true_poses, &predicted, &sigmas)
    })?;
    to_python(py, &found.map_err(wrong)?)
}

/// The joints of each person of an array `[people, joints, 3]`.
fn joints_of(
    name: &str,
    keypoints: &Borrowed<'_, f64, Ix3>,
    joints: usize,
) -> PyResult<Vec<Vec<[f64; 3]>>> {
    let shape = keypoints.shape();
    if joints == 0 || shape[1..] != [joints, 3] {
        return Err(wrong(format!(
            "{name}: expected [people, {joints} joints as sigmas has, 3], found {shape:?}"
        )));
    }
    let (triples, _) = keypoints.values()?.as_chunks::<3>();
    Ok(triples.chunks(joints).map(<[_]>::to_vec).collect())
}

/// Found boxes: images, boxes, scores.
fn found_boxes(found: &[Bound<'_, PyAny>; 3]) -> PyResult<Vec<FoundBox>> {
    let [images, bboxes, scores] = found;
    let bboxes = boxes("found boxes", &Table::new("found boxes", bboxes)?)?;
    let (count, of) = (bboxes.len(), "the found boxes");
    let images = List::<u64>::of("found images", images, count, of)?;
    let scores = List::<f64>::of("found scores", scores, count, of)?;
    let (images, scores) = (images.values()?, scores.values()?);
    let found = bboxes.into_iter().enumerate().map(|(i, bbox)| FoundBox {
        image: images[i],
        bbox,
        score: scores[i],
    });
    Ok(found.collect())
}

/// True boxes: images, boxes, areas, crowds.
fn true_boxes(truth: &[Bound<'_, PyAny>; 4]) -> PyResult<Vec<TrueBox>> {
    let [images, bboxes, areas, crowds] = truth;
    let bboxes = boxes("truth boxes", &Table::new("truth boxes", bboxes)?)?;
    let (count, of) = (bboxes.len(), "the true boxes");
    let images = List::<u64>::of("truth images", images, count, of)?;
    let areas = List::<f64>::of("truth areas", areas, count, of)?;
    let crowds = List::<bool>::of("truth crowds", crowds, count, of)?;
    let (images, areas, crowds) = (images.values()?, areas.values()?, crowds.values()?);
    let truth = bboxes.into_iter().enumerate().map(|(i, bbox)| TrueBox {
        image: images[i],
        bbox,
        area: areas[i],
        crowd: crowds[i],
    });
    Ok(truth.collect())
}

#[pyfunction]
fn metric_boxes<'py>(
    py: Python<'py>,
    truth: [Bound<'py, PyAny>; 4],
    found: [Bound<'py, PyAny>; 3],
) -> PyResult<Bound<'py, PyAny>> {
    let (truth, found) = (true_boxes(&truth)?, found_boxes(&found)?);
    let found = detached(py, count(None)?, || detection::box_ap(&truth, &found))?;
    to_python(py, &found.map_err(wrong)?)
}

/// True pedestrians: images, boxes, heights, visible shares, whether they are ignored.
type Pedestrians<'py> = [Bound<'py, PyAny>; 5];

#[pyfunction]
fn metric_miss_rate<'py>(
    py: Python<'py>,
    images: &Bound<'py, PyAny>,
    truth: Pedestrians<'py>,
    found: [Bound<'py, PyAny>; 3],
    subset: &str,
) -> PyResult<Bound<'py, PyAny>> {
    let subsets = || CITYPERSONS.iter().chain(&OTHER_SUBSETS);
    let subset: PedestrianSubset =
        *subsets()
            .find(|known| known.name == subset)
            .ok_or_else(|| {
                let names: Vec<&str> = subsets().map(|known| known.name).collect();
                wrong(format!(
                    "subset: expected one of {}, found {subset}",
                    names.join(", ")
                ))
            })?;
    let scenes = List::<u64>::new("images", images)?;
    let [images, bboxes, heights, visibilities, ignored] = &truth;
    let bboxes = boxes("truth boxes", &Table::new("truth boxes", bboxes)?)?;
    let (people, of) = (bboxes.len(), "the true boxes");
    let images = List::<u64>::of("truth images", images, people, of)?;
    let heights = List::<f64>::of("truth heights", heights, people, of)?;
    let visibilities = List::<f64>::of("truth visibility", visibilities, people, of)?;
    let ignored = List::<bool>::of("truth ignored", ignored, people, of)?;
    let (images, heights) = (images.values()?, heights.values()?);
    let (visibilities, ignored) = (visibilities.values()?, ignored.values()?);
    let truth: Vec<LabeledPedestrian> = { bboxes.into_iter().enumerate() }
        .map(|(i, bbox)| LabeledPedestrian {
            image: images[i],
            bbox,
            height: heights[i],
            visibility: visibilities[i],
            ignored: ignored[i],
        })
        .collect();
    let (scenes, found) = (scenes.values()?, found_boxes(&found)?);
    let found = detached(py, count(None)?, || {
        detection::miss_rate(scenes, &truth, &found, &subset)
    })?;
    to_python(py, &found.map_err(wrong)?)
}

/// A frame: true boxes with identities known or not, found boxes, scores, features.
type Frame<'py> = [Bound<'py, PyAny>; 5];
/// A query: feature, features of the others in its frame, frames with the person's box or none.
type Query<'py> = (
    Bound<'py, PyAny>,
    Bound<'py, PyAny>,
    Vec<(usize, Option<[f64; 4]>)>,
);

/// The arrays of a [`Frame`].
struct FrameArrays<'py> {
    truth: Vec<[f64; 4]>,
    known: List<'py, bool>,
    boxes: Vec<[f64; 4]>,
    scores: List<'py, f64>,
    features: Table<'py, f32>,
}

impl<'py> FrameArrays<'py> {
    fn new(index: usize, frame: &Frame<'py>) -> PyResult<Self> {
        let [truth, known, found, scores, features] = frame;
        let name = |what: &str| format!("frame {index}: {what}");
        let truth = boxes(&name("truth"), &Table::new(&name("truth"), truth)?)?;
        let boxes = boxes(&name("boxes"), &Table::new(&name("boxes"), found)?)?;
        let (people, found) = (truth.len(), boxes.len());
        let arrays = Self {
            known: List::of(&name("known"), known, people, "truth")?,
            scores: List::of(&name("scores"), scores, found, "boxes")?,
            features: Table::new(&name("features"), features)?,
            truth,
            boxes,
        };
        as_many(
            &name("features"),
            arrays.features.shape()[0],
            found,
            "boxes",
        )?;
        Ok(arrays)
    }
}

#[pyfunction]
#[pyo3(signature = (frames, queries, lowest, weighted, context))]
fn metric_person_search<'py>(
    py: Python<'py>,
    frames: Vec<Frame<'py>>,
    queries: Vec<Query<'py>>,
    lowest: f64,
    weighted: bool,
    context: Option<(usize, usize)>,
) -> PyResult<Bound<'py, PyAny>> {
    let arrays: Vec<FrameArrays<'py>> = { frames.iter().enumerate() }
        .map(|(index, frame)| FrameArrays::new(index, frame))
        .collect::<PyResult<_>>()?;
    let channels = arrays.first().map_or(0, |frame| frame.features.shape()[1]);
    for (index, frame) in arrays.iter().enumerate() {
        let found = frame.features.shape()[1];
        if found != channels {
            return Err(wrong(format!(
                "frame {index}: features: expected rows of {channels} values, as in frame 0, found {found}"
            )));
        }
    }
    let wanted: Vec<(List<'_, f32>, Table<'_, f32>)> = { queries.iter().enumerate() }
        .map(|(index, (feature, companions, gallery))| {
            let feature = List::new(&format!("query {index}: feature"), feature)?;
            let companions = Table::new(&format!("query {index}: companions"), companions)?;
            let lengths = [feature.shape()[0], companions.shape()[1]];
            if lengths != [channels; 2] {
                return Err(wrong(format!(
                    "query {index}: expected features of {channels} values, as in the frames, found {lengths:?}"
                )));
            }
            match gallery.iter().find(|(frame, _)| *frame >= arrays.len()) {
                Some((frame, _)) => Err(wrong(format!(
                    "query {index}: expected frames below {}, found {frame}",
                    arrays.len()
                ))),
                None => Ok((feature, companions)),
            }
        })
        .collect::<PyResult<_>>()?;
    let mut gallery_frames = Vec::new();
    let mut scenes = Vec::new();
    for frame in &arrays {
        gallery_frames.push(GalleryFrame {
            boxes: &frame.boxes,
            scores: frame.scores.values()?,
            features: frame.features.values()?,
        });
        scenes.push(SceneDetections {
            truth: &frame.truth,
            known: frame.known.values()?,
            boxes: &frame.boxes,
            scores: frame.scores.values()?,
        });
    }
    let features = { wanted.iter() }
        .map(|(feature, companions)| Ok((feature.values()?, companions.values()?)))
        .collect::<PyResult<Vec<(&[f32], &[f32])>>>()?;
    let galleries: Vec<&Vec<(usize, Option<[f64; 4]>)>> =
        queries.iter().map(|(_, _, gallery)| gallery).collect();
    let context = context.map(|(boxes, people)| ContextMatching { boxes, people });
    let found = detached(py, count(None)?, || {
        let gallery = SearchGallery::new(&gallery_frames, channels, lowest, weighted)?;
        let query = |i: usize| SearchQuery {
            feature: features[i].0,
            companions: features[i].1,
            gallery: galleries[i].clone(),
        };
        let search = gallery.evaluate(features.len(), query, context)?;
        Ok((search, found_people(&scenes, lowest, false)?))
    })?;
    to_python(
        py,
        &found.map_err(|error: clasp_metrics::MetricError| wrong(error))?,
    )
}
