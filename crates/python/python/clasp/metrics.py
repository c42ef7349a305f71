"""Published metrics of human-centric tasks, on arrays.

Arrays are taken as they are where they have the type that is needed and lie in memory row by row;
others are copied. Lengths that disagree and values that are not finite raise ValueError.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Optional, Union

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import _checks, _clasp

Rerank = Union[bool, tuple[int, int, float]]
COCO_SIGMAS = tuple(
    value / 10 for value in (0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89)
)
"""Standard deviations of the 17 joints of COCO."""


def _array(name: str, values: ArrayLike, dtype: Any, axes: int) -> NDArray[Any]:
    """Contiguous, of this type and number of axes."""
    array = np.asarray(values)
    kind, wanted = array.dtype.kind, np.dtype(dtype).kind
    allowed = {"f": "fiub", "i": "iub", "u": "iub", "b": "biuf"}[wanted]
    if kind not in allowed and array.size:
        raise ValueError(f"{name}: expected {np.dtype(dtype)}, found {array.dtype}")
    if array.ndim != axes and not array.size:
        array = array.reshape((0,) * axes)
    if array.ndim != axes:
        raise ValueError(f"{name}: expected {axes} axes, found {list(array.shape)}")
    if wanted == "b" and kind != "b":
        if not np.isin(array, (0, 1)).all():
            raise ValueError(f"{name}: expected 0 and 1, or truth values")
    elif wanted == "u" and kind == "i" and array.size and array.min() < 0:
        raise ValueError(f"{name}: expected numbers that are not negative, found {array.min()}")
    elif wanted in "iu" and array.size and array.dtype.itemsize > np.dtype(dtype).itemsize:
        limits = np.iinfo(dtype)
        if array.max() > limits.max or array.min() < limits.min:
            raise ValueError(f"{name}: expected {limits.min} to {limits.max}, found {array.min()} to {array.max()}")
    return np.ascontiguousarray(array, dtype=dtype)


def _boxes(name: str, values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values)
    array = _array(name, array.reshape(0, 4) if array.size == 0 else array, np.float64, 2)
    if array.shape[1] != 4:
        raise ValueError(f"{name}: expected rows of x, y, width and height, found {list(array.shape)}")
    return array


def _finite(name: str, value: float, least: float = -np.inf, most: float = np.inf) -> float:
    if not (np.isfinite(value) and least <= value <= most):
        raise ValueError(f"{name}: expected a number from {least} to {most}, found {value}")
    return float(value)


def _sigmas(values: Sequence[float]) -> list[float]:
    return [_finite("sigmas", value, np.finfo(float).tiny) for value in values]


def _side(name: str, features: ArrayLike, ids: ArrayLike, cams: ArrayLike) -> list[NDArray[Any]]:
    return [
        _array(f"{name}_features", features, np.float32, 2),
        _array(f"{name}_ids", ids, np.int64, 1),
        _array(f"{name}_cams", cams, np.int64, 1),
    ]


def reid(
    query_features: ArrayLike,
    gallery_features: ArrayLike,
    query_ids: ArrayLike,
    gallery_ids: ArrayLike,
    query_cams: ArrayLike,
    gallery_cams: ArrayLike,
    *,
    ranks: int = 50,
    rerank: Rerank = False,
    threads: Optional[int] = None,
) -> dict[str, Any]:
    """Person re-identification by the rules of Market-1501: mAP, CMC, mINP.

    Features are compared by cosine. Gallery images of the query's person and camera are ignored; a
    query without another image of its person is skipped and counted.

    :param query_features: `[queries, channels]`; need not be normalized.
    :param gallery_features: `[images, channels]`.
    :param query_ids: person of each query, `[queries]`.
    :param gallery_ids: person of each gallery image, `[images]`.
    :param query_cams: camera of each query, `[queries]`.
    :param gallery_cams: camera of each gallery image, `[images]`.
    :param ranks: length of the CMC curve, at most that of the gallery.
    :param rerank: k-reciprocal re-ranking (Zhong et al., CVPR 2017), True for k1 = 20, k2 = 6 and
        λ = 0.3, or these three.
    :returns: `map`, `minp`, `cmc` (list: share of queries with a match among the first k),
        `queries`, `skipped`, `gallery`, `chance_map` (of a random order), `average_precision` of
        each query, None where it was skipped. All are shares of 1.
    """
    query = _side("query", query_features, query_ids, query_cams)
    gallery = _side("gallery", gallery_features, gallery_ids, gallery_cams)
    images = len(query[0]) + len(gallery[0])
    parameters = None
    if rerank:
        k1, k2, weight = (20, 6, 0.3) if isinstance(rerank, bool) else rerank
        # More neighbors than images are all images.
        neighbors = [min(_checks.count(f"rerank: {name}", value), max(images, 1)) for name, value in (("k1", k1), ("k2", k2))]
        parameters = (neighbors[0], neighbors[1], _finite("rerank: λ", weight, 0, 1))
    places = min(_checks.count("ranks", ranks), max(len(gallery[0]), 1))
    return _clasp.metric_reid(query, gallery, places, parameters, _checks.threads(threads))


def roc(
    query_features: ArrayLike,
    gallery_features: ArrayLike,
    query_ids: ArrayLike,
    gallery_ids: ArrayLike,
    query_cams: ArrayLike,
    gallery_cams: ArrayLike,
    *,
    rates: Sequence[float] = (1e-4, 1e-3, 1e-2),
    threads: Optional[int] = None,
) -> dict[str, Any]:
    """Receiver operating characteristic of the cosines of pairs of images from different cameras.

    Arrays are those of :func:`reid`.

    :param rates: false positive rates at which it is read.
    :returns: `auc`; `equal_error` (threshold, rate); `at` (a dictionary with `similarity`,
        `true_positive_rate` and `false_positive_rate` for each of `rates`, None where no threshold
        has so low a rate); `same` and `different`, the distributions of the cosines.
    """
    query = _side("query", query_features, query_ids, query_cams)
    gallery = _side("gallery", gallery_features, gallery_ids, gallery_cams)
    return _clasp.metric_roc(query, gallery, list(map(float, rates)), _checks.threads(threads))


def attributes(truth: ArrayLike, probabilities: ArrayLike, *, threshold: float = 0.5) -> dict[str, Any]:
    """Attribute recognition: mA, accuracy, precision, recall and F1 (Li et al., RAP, 2016).

    :param truth: 0 and 1, `[images, attributes]`.
    :param probabilities: `[images, attributes]`.
    :param threshold: a probability above it predicts the attribute.
    :returns: `ma`, `ma_defined` (without attributes that all or no images have), `accuracy`,
        `precision`, `recall`, `f1`, `map`, `per_attribute`, `degenerate`, `images`.
    """
    expected = _array("truth", truth, np.bool_, 2)
    return _clasp.metric_attributes(expected, _array("probabilities", probabilities, np.float32, 2), _finite("threshold", threshold))


def parsing(
    truth: Iterable[ArrayLike], predicted: Iterable[ArrayLike], *, classes: int
) -> dict[str, Any]:
    """Human parsing: pixel accuracy, mean accuracy, mIoU.

    :param truth: label maps, each `[height, width]`; pixels of 255 are not counted.
    :param predicted: label maps of the same sizes.
    :param classes: number of classes.
    :returns: `mean_iou` (over all classes), `mean_iou_present` (over those that occur in the truth),
        `pixel_accuracy`, `mean_accuracy`, `absent`, `per_class`, `pixels`.
    """
    true_maps, predicted_maps = list(truth), list(predicted)
    if len(true_maps) != len(predicted_maps):
        raise ValueError(f"predicted: expected {len(true_maps)} maps, as truth, found {len(predicted_maps)}")
    maps = [
        (_array(f"truth {i}", expected, np.uint8, 2), _array(f"predicted {i}", found, np.uint8, 2))
        for i, (expected, found) in enumerate(zip(true_maps, predicted_maps))
    ]
    return _clasp.metric_parsing(maps, classes)


def keypoints(
    truth_images: ArrayLike,
    truth_keypoints: ArrayLike,
    truth_boxes: ArrayLike,
    predicted_images: ArrayLike,
    predicted_keypoints: ArrayLike,
    predicted_scores: ArrayLike,
    *,
    truth_areas: Optional[ArrayLike] = None,
    truth_crowd: Optional[ArrayLike] = None,
    sigmas: Sequence[float] = COCO_SIGMAS,
) -> dict[str, Any]:
    """The COCO keypoint evaluation: AP and AR over object keypoint similarity.

    :param truth_images: number of the image of each person, `[people]`.
    :param truth_keypoints: x, y and visibility (0 not labeled, 1 hidden, 2 visible), `[people,
        joints, 3]`.
    :param truth_boxes: x, y, width, height, `[people, 4]`.
    :param predicted_images: `[poses]`.
    :param predicted_keypoints: x, y and anything, `[poses, joints, 3]`.
    :param predicted_scores: `[poses]`.
    :param truth_areas: in pixels, `[people]`; default: those of the boxes.
    :param truth_crowd: whether a person marks a crowd, `[people]`; default: none does.
    :param sigmas: standard deviation of each joint.
    :returns: `ap`, `ap50`, `ap75`, `ap_medium`, `ap_large`, `ar`, `ar50`, `ar75`, `ar_medium`,
        `ar_large`, None without people of that size; `people`, `predictions`.
    """
    truth = [
        _joints("truth_keypoints", truth_keypoints, len(sigmas)),
        *_true_boxes(truth_images, truth_boxes, truth_areas, truth_crowd),
    ]
    predicted = [
        _array("predicted_images", predicted_images, np.uint64, 1),
        _joints("predicted_keypoints", predicted_keypoints, len(sigmas)),
        _array("predicted_scores", predicted_scores, np.float64, 1),
    ]
    return _clasp.metric_keypoints(truth, predicted, _sigmas(sigmas))


def _joints(name: str, values: ArrayLike, joints: int) -> NDArray[np.float64]:
    array = np.asarray(values)
    return _array(name, array.reshape(0, joints, 3) if array.size == 0 else array, np.float64, 3)


def _true_boxes(
    images: ArrayLike, boxes: ArrayLike, areas: Optional[ArrayLike], crowd: Optional[ArrayLike]
) -> list[NDArray[Any]]:
    corners = _boxes("truth_boxes", boxes)
    if areas is None:
        areas = corners[:, 2] * corners[:, 3]
    if crowd is None:
        crowd = np.zeros(len(corners), np.bool_)
    return [
        _array("truth_images", images, np.uint64, 1),
        corners,
        _array("truth_areas", areas, np.float64, 1),
        _array("truth_crowd", crowd, np.bool_, 1),
    ]


def _found(images: ArrayLike, boxes: ArrayLike, scores: ArrayLike) -> list[NDArray[Any]]:
    return [
        _array("found_images", images, np.uint64, 1),
        _boxes("found_boxes", boxes),
        _array("found_scores", scores, np.float64, 1),
    ]


def boxes(
    truth_images: ArrayLike,
    truth_boxes: ArrayLike,
    found_images: ArrayLike,
    found_boxes: ArrayLike,
    found_scores: ArrayLike,
    *,
    truth_areas: Optional[ArrayLike] = None,
    truth_crowd: Optional[ArrayLike] = None,
) -> dict[str, Any]:
    """The COCO box evaluation of one class: AP and AR over IoU 0.50 to 0.95.

    :param truth_images: number of the image of each box, `[boxes]`.
    :param truth_boxes: x, y, width, height, `[boxes, 4]`.
    :param found_images: `[found]`.
    :param found_boxes: `[found, 4]`.
    :param found_scores: `[found]`.
    :param truth_areas: in pixels; default: those of the boxes.
    :param truth_crowd: whether a box marks a crowd; default: none does.
    :returns: `ap`, `ap50`, `ap75`, `ap_small`, `ap_medium`, `ap_large`, `ar1`, `ar10`, `ar100`,
        `ar_small`, `ar_medium`, `ar_large`, None without objects of that size; `boxes`, `found`.
    """
    truth = _true_boxes(truth_images, truth_boxes, truth_areas, truth_crowd)
    return _clasp.metric_boxes(truth, _found(found_images, found_boxes, found_scores))


def miss_rate(
    images: ArrayLike,
    truth_images: ArrayLike,
    truth_boxes: ArrayLike,
    found_images: ArrayLike,
    found_boxes: ArrayLike,
    found_scores: ArrayLike,
    *,
    truth_heights: Optional[ArrayLike] = None,
    truth_visibility: Optional[ArrayLike] = None,
    truth_ignored: Optional[ArrayLike] = None,
    subset: str = "reasonable",
) -> dict[str, Any]:
    """Log-average miss rate of pedestrian detection, MR⁻² (Dollár et al., PAMI 2012).

    :param images: numbers of all images, those without pedestrians too, `[images]`.
    :param truth_images: `[pedestrians]`.
    :param truth_boxes: x, y, width, height of the whole body, `[pedestrians, 4]`.
    :param found_images: `[found]`.
    :param found_boxes: `[found, 4]`.
    :param found_scores: `[found]`.
    :param truth_heights: in pixels; default: those of the boxes.
    :param truth_visibility: visible share of the body; default: 1.
    :param truth_ignored: groups, riders, posters; default: none.
    :param subset: `reasonable`, `reasonable small`, `heavy`, `all` of CityPersons, or another in
        print (`bare`, `partial`, …).
    :returns: `value` (None without a pedestrian of the subset), `at_fppi`, `pedestrians`, `found`,
        `images`, `subset`.
    """
    true_boxes = _boxes("truth_boxes", truth_boxes)
    count = len(true_boxes)
    heights = true_boxes[:, 3] if truth_heights is None else truth_heights
    visibility = np.ones(count) if truth_visibility is None else truth_visibility
    ignored = np.zeros(count, np.bool_) if truth_ignored is None else truth_ignored
    truth = [
        _array("truth_images", truth_images, np.uint64, 1),
        true_boxes,
        _array("truth_heights", heights, np.float64, 1),
        _array("truth_visibility", visibility, np.float64, 1),
        _array("truth_ignored", ignored, np.bool_, 1),
    ]
    found = _found(found_images, found_boxes, found_scores)
    return _clasp.metric_miss_rate(_array("images", images, np.uint64, 1), truth, found, subset)


def person_search(
    frames: Sequence[dict[str, ArrayLike]],
    queries: Sequence[dict[str, Any]],
    *,
    score_threshold: float = 0.5,
    class_weighted: bool = False,
    context: Optional[tuple[int, int]] = None,
) -> dict[str, Any]:
    """Person search as CUHK-SYSU and PRW evaluate it: mAP and top-k, and how well people are found.

    :param frames: for each frame `truth` (boxes x, y, width, height of its people, `[people, 4]`),
        `known` (whether the identity of each is known, `[people]`; default: all), `boxes` (found,
        `[boxes, 4]`), `scores` (`[boxes]`) and `features` (`[boxes, channels]`).
    :param queries: for each query `feature` (`[channels]`), `gallery` (a dictionary from the frame's
        position to the box of the person there, None where the frame does not show them), and for
        context matching `companions` (`[people, channels]`).
    :param score_threshold: boxes below it are not searched.
    :param class_weighted: multiply the feature of a box by its score, as NAE does.
    :param context: boxes and people of context bipartite graph matching.
    :returns: `search` (`map`, `top` for 1, 5 and 10, `recall`, `queries`, `skipped`,
        `average_precision`) and `detection` (`recall`, `ap`, `people`, `found`).
    """
    wanted_features = [_array(f"query {i}: feature", query["feature"], np.float32, 1) for i, query in enumerate(queries)]
    # Frames in which nobody was found have no features that say how long one is.
    of_frames = [np.asarray(frame["features"]).shape for frame in frames]
    of_queries = [feature.shape for feature in wanted_features]
    channels = next((shape[-1] for shape in [*of_frames, *of_queries] if len(shape) and shape[-1]), 0)

    def features(name: str, values: ArrayLike) -> NDArray[np.float32]:
        array = np.asarray(values)
        return _array(name, array.reshape(0, channels) if array.size == 0 else array, np.float32, 2)

    arrays = []
    for i, frame in enumerate(frames):
        truth = _boxes(f"frame {i}: truth", frame["truth"])
        known = frame.get("known", np.ones(len(truth), np.bool_))
        arrays.append(
            [
                truth,
                _array(f"frame {i}: known", known, np.bool_, 1),
                _boxes(f"frame {i}: boxes", frame["boxes"]),
                _array(f"frame {i}: scores", frame["scores"], np.float64, 1),
                features(f"frame {i}: features", frame["features"]),
            ]
        )
    wanted = []
    for i, (query, feature) in enumerate(zip(queries, wanted_features)):
        companions = features(f"query {i}: companions", query.get("companions", ()))
        gallery = []
        for place, box in query["gallery"].items():
            corner = None if box is None else [_finite(f"query {i}: gallery", value) for value in box]
            if corner is not None and len(corner) != 4:
                raise ValueError(f"query {i}: gallery: expected x, y, width and height, found {len(corner)} values")
            gallery.append((_checks.index(f"query {i}: gallery", place), corner))
        wanted.append((feature, companions, gallery))
    if context is not None:
        context = (_checks.count("context: boxes", context[0]), _checks.count("context: people", context[1]))
    score_threshold = _finite("score_threshold", score_threshold)
    found = _clasp.metric_person_search(arrays, wanted, score_threshold, class_weighted, context)
    return {"search": found[0], "detection": found[1]}
