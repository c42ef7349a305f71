"""Metrics against formulas in NumPy, scikit-learn and pycocotools."""

import contextlib
import io

import numpy as np
import pytest

import clasp

rng = np.random.default_rng(0)


def people(queries=40, gallery=200, channels=16, persons=12):
    """Features near one center a person."""
    centers = rng.normal(size=(persons, channels))
    of = lambda count: (rng.integers(0, persons, count), rng.integers(0, 3, count))
    (q_ids, q_cams), (g_ids, g_cams) = of(queries), of(gallery)
    near = lambda ids: (centers[ids] + 1.2 * rng.normal(size=(len(ids), channels))).astype(np.float32)
    return near(q_ids), near(g_ids), q_ids, g_ids, q_cams, g_cams


def market1501(qf, gf, q_ids, g_ids, q_cams, g_cams, ranks=50):
    """The rules of Market-1501, as torchreid applies them, query by query."""
    unit = lambda f: f / np.linalg.norm(f.astype(np.float64), axis=1, keepdims=True)
    distances = -(unit(qf) @ unit(gf).T)
    cmc, average_precision, inverse_penalty = [], [], []
    for i, order in enumerate(np.argsort(distances, axis=1, kind="stable")):
        order = order[~((g_ids[order] == q_ids[i]) & (g_cams[order] == q_cams[i]))]
        hits = g_ids[order] == q_ids[i]
        if not hits.any():
            continue
        places = np.flatnonzero(hits) + 1
        average_precision.append(np.mean(np.arange(1, len(places) + 1) / places))
        inverse_penalty.append(len(places) / places[-1])
        cmc.append(np.minimum(np.cumsum(hits), 1)[:ranks])
    return np.mean(average_precision), np.mean(cmc, axis=0), np.mean(inverse_penalty)


def test_reid_is_that_of_market1501():
    data = people()
    found = clasp.metrics.reid(*data)
    mean, cmc, inverse_penalty = market1501(*data)
    assert found["map"] == pytest.approx(mean, abs=1e-9)
    assert found["minp"] == pytest.approx(inverse_penalty, abs=1e-9)
    assert np.allclose(found["cmc"], cmc)
    assert 0.2 < found["map"] < 0.95
    assert found["queries"] == 40 and found["gallery"] == 200


def test_reranking_finds_more():
    data = people()
    assert clasp.metrics.reid(*data, rerank=True)["map"] > clasp.metrics.reid(*data)["map"]
    given = clasp.metrics.reid(*data, rerank=(20, 6, 0.3))
    assert given == clasp.metrics.reid(*data, rerank=True)
    with pytest.raises(ValueError, match="rerank"):
        clasp.metrics.reid(*data, rerank=(0, 6, 0.3))


@pytest.mark.parametrize(
    "change",
    [
        np.asfortranarray,
        lambda f: f.astype(np.float64),
        lambda f: np.repeat(f, 2, axis=1)[:, ::2],
        lambda f: f[:, :].T.copy().T,
        lambda f: f.tolist(),
    ],
)
def test_order_and_type_of_arrays_change_nothing(change):
    qf, gf, *rest = people()
    expected = clasp.metrics.reid(qf, gf, *rest)
    assert clasp.metrics.reid(change(qf), change(gf), *rest)["map"] == pytest.approx(expected["map"], abs=1e-12)


def test_half_precision_is_cast():
    qf, gf, *rest = people()
    halves = [f.astype(np.float16) for f in (qf, gf)]
    expected = clasp.metrics.reid(*[f.astype(np.float32) for f in halves], *rest)
    assert clasp.metrics.reid(*halves, *rest) == expected


def test_mistakes_are_value_errors_in_words():
    qf, gf, q_ids, g_ids, q_cams, g_cams = people()
    wrong = [
        ((qf, gf, q_ids[:-1], g_ids, q_cams, g_cams), "query_ids: expected 40"),
        ((qf, gf, q_ids, g_ids, q_cams, g_cams[:3]), "gallery_cams: expected 200"),
        ((qf, gf[:, :5], q_ids, g_ids, q_cams, g_cams), "gallery_features: expected rows of 16"),
        ((qf[0], gf, q_ids, g_ids, q_cams, g_cams), "query_features: expected 2 axes"),
        ((qf.astype(complex), gf, q_ids, g_ids, q_cams, g_cams), "complex"),
        ((qf, gf, q_ids.astype(str), g_ids, q_cams, g_cams), "query_ids"),
        ((qf, gf, q_ids + 0.5, g_ids, q_cams, g_cams), "query_ids"),
        ((np.where(qf > 2, np.nan, qf), gf, q_ids, g_ids, q_cams, g_cams), "finite"),
        ((qf, gf, q_ids + 100, g_ids, q_cams, g_cams), "none of the 40 queries"),
    ]
    for arguments, message in wrong:
        with pytest.raises(ValueError, match=message):
            clasp.metrics.reid(*arguments)
    whole = (qf, gf, q_ids, g_ids, q_cams, g_cams)
    for wrong_number in ({"ranks": 0}, {"ranks": -1}, {"threads": -1}, {"threads": 10**6}, {"rerank": (-1, 6, 0.3)}, {"rerank": (20, 6, -5)}):
        with pytest.raises(ValueError, match=next(iter(wrong_number))):
            clasp.metrics.reid(*whole, **wrong_number)
    # Larger than any gallery: all of it, and no memory for more.
    assert len(clasp.metrics.reid(*whole, ranks=10**9)["cmc"]) == 200
    assert clasp.metrics.reid(*whole, rerank=(10**9, 6, 0.3))["queries"] == 40
    with pytest.raises(ValueError, match="threads"):
        clasp.metrics.reid(qf, gf, q_ids, g_ids, q_cams, g_cams, threads=0)


def test_roc_is_that_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    qf, gf, q_ids, g_ids, q_cams, g_cams = people()
    found = clasp.metrics.roc(qf, gf, q_ids, g_ids, q_cams, g_cams, rates=[0.01, 0.1])
    unit = lambda f: f / np.linalg.norm(f, axis=1, keepdims=True)
    cosines = unit(qf) @ unit(gf).T
    same = q_ids[:, None] == g_ids[None]
    counted = ~(same & (q_cams[:, None] == g_cams[None]))
    assert found["auc"] == pytest.approx(sklearn.roc_auc_score(same[counted], cosines[counted]), abs=1e-6)
    for rate, at in zip([0.01, 0.1], found["at"]):
        accepted = cosines[counted] >= at["similarity"] - 1e-6
        assert accepted[~same[counted]].mean() == pytest.approx(at["false_positive_rate"], abs=1e-3)
        assert at["false_positive_rate"] <= rate


def test_attributes_are_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    truth = rng.random((60, 5)) < 0.4
    probabilities = np.clip(truth * 0.3 + rng.random((60, 5)) * 0.7, 0, 1).astype(np.float32)
    found = clasp.metrics.attributes(truth, probabilities)
    predicted = probabilities > 0.5
    balanced = [sklearn.balanced_accuracy_score(truth[:, j], predicted[:, j]) for j in range(5)]
    assert found["ma"] == pytest.approx(np.mean(balanced))
    precisions = [sklearn.average_precision_score(truth[:, j], probabilities[:, j]) for j in range(5)]
    assert found["map"] == pytest.approx(np.mean(precisions), abs=1e-6)
    assert found == clasp.metrics.attributes(truth.astype(int), probabilities)
    with pytest.raises(ValueError, match="0 and 1"):
        clasp.metrics.attributes(truth.astype(int) * 2, probabilities)
    with pytest.raises(ValueError, match="probabilities"):
        clasp.metrics.attributes(truth, probabilities[:, :4])


def test_parsing_is_that_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    truth = [rng.integers(0, 4, (9, 7)), rng.integers(0, 4, (5, 6))]
    truth[0][0, :3] = 255
    predicted = [np.where(rng.random(t.shape) < 0.6, t % 255, rng.integers(0, 4, t.shape)) for t in truth]
    found = clasp.metrics.parsing(truth, [p.astype(np.uint8) for p in predicted], classes=4)
    flat = lambda maps: np.concatenate([m.ravel() for m in maps])
    counted = flat(truth) != 255
    expected = sklearn.jaccard_score(flat(truth)[counted], flat(predicted)[counted], average="macro")
    assert found["mean_iou"] == pytest.approx(expected)
    for bad, message in [([truth[0]], "2 maps|1 maps"), ([truth[0], truth[0]], "shape")]:
        with pytest.raises(ValueError, match=message):
            clasp.metrics.parsing(truth, bad, classes=4)
    with pytest.raises(ValueError, match="image 1: pixel"):
        clasp.metrics.parsing(truth, [predicted[0], predicted[1] + 9], classes=4)
    with pytest.raises(ValueError, match="not negative"):
        clasp.metrics.parsing(truth, [predicted[0], predicted[1] - 9], classes=4)


def coco(kind, truth, found, images):
    """The stats of pycocotools."""
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        of_truth = COCO()
        of_truth.dataset = {"images": [{"id": int(i)} for i in images], "annotations": truth, "categories": [{"id": 1}]}
        of_truth.createIndex()
        evaluation = COCOeval(of_truth, of_truth.loadRes(found), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def scenes(count=20):
    images, boxes = [], []
    for image in range(1, count + 1):
        for _ in range(rng.integers(1, 4)):
            images.append(image)
            boxes.append([*rng.uniform(0, 300, 2), *rng.uniform(20, 160, 2)])
    return np.array(images), np.array(boxes)


def test_boxes_are_those_of_pycocotools():
    images, boxes = scenes()
    found = boxes + rng.normal(scale=6, size=boxes.shape) * [1, 1, 0.5, 0.5]
    scores = rng.random(len(boxes))
    truth = [
        {"id": i + 1, "image_id": int(images[i]), "category_id": 1, "bbox": list(boxes[i]), "area": boxes[i][2] * boxes[i][3], "iscrowd": 0}
        for i in range(len(boxes))
    ]
    predicted = [
        {"image_id": int(images[i]), "category_id": 1, "bbox": list(found[i]), "score": scores[i]} for i in range(len(boxes))
    ]
    stats = coco("bbox", truth, predicted, set(images))
    ours = clasp.metrics.boxes(images, boxes, images, found, scores)
    names = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100"]
    for name, expected in zip(names, stats):
        assert ours[name] == (None if expected < 0 else pytest.approx(expected, abs=1e-9)), name


def test_keypoints_are_those_of_pycocotools():
    images, boxes = scenes()
    joints = np.empty((len(boxes), 17, 3))
    joints[..., :2] = boxes[:, None, :2] + rng.random((len(boxes), 17, 2)) * boxes[:, None, 2:]
    joints[..., 2] = rng.integers(0, 3, (len(boxes), 17))
    found = joints.copy()
    found[..., :2] += rng.normal(scale=4, size=found[..., :2].shape)
    scores = rng.random(len(boxes))
    truth = [
        {
            "id": i + 1, "image_id": int(images[i]), "category_id": 1, "bbox": list(boxes[i]), "area": boxes[i][2] * boxes[i][3],
            "iscrowd": 0, "keypoints": list(joints[i].ravel()), "num_keypoints": int((joints[i, :, 2] > 0).sum()),
        }
        for i in range(len(boxes))
    ]
    predicted = [
        {"image_id": int(images[i]), "category_id": 1, "keypoints": list(found[i].ravel()), "score": scores[i]} for i in range(len(boxes))
    ]
    stats = coco("keypoints", truth, predicted, set(images))
    ours = clasp.metrics.keypoints(images, joints, boxes, images, found, scores)
    names = ["ap", "ap50", "ap75", "ap_medium", "ap_large", "ar", "ar50", "ar75", "ar_medium", "ar_large"]
    for name, expected in zip(names, stats):
        assert ours[name] == pytest.approx(expected, abs=1e-9), name
    with pytest.raises(ValueError, match="truth_keypoints|truth keypoints"):
        clasp.metrics.keypoints(images, joints[:, :5], boxes, images, found, scores)
    for boxes_of in (boxes[:, :3], boxes[0]):
        with pytest.raises(ValueError, match="truth_boxes"):
            clasp.metrics.keypoints(images, joints, boxes_of, images, found, scores)
    with pytest.raises(ValueError, match="sigmas"):
        clasp.metrics.keypoints(images, joints, boxes, images, found, scores, sigmas=[0] * 17)
    with pytest.raises(ValueError, match="predicted scores: expected"):
        clasp.metrics.keypoints(images, joints, boxes, images, found, scores[:-1])


def test_the_miss_rate_by_hand():
    # One of two pedestrians is found on two images without a false box: half are missed.
    boxes = [[10, 10, 30, 80], [60, 10, 30, 80]]
    found = clasp.metrics.miss_rate([1, 2], [1, 2], boxes, [1], boxes[:1], [0.9])
    assert found["value"] == pytest.approx(0.5) and found["pedestrians"] == 2
    nothing = clasp.metrics.miss_rate([1, 2], [1, 2], boxes, [], [], [])
    assert nothing["value"] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="subset"):
        clasp.metrics.miss_rate([1, 2], [1, 2], boxes, [1], boxes[:1], [0.9], subset="tiny")
    with pytest.raises(ValueError, match="none of those evaluated"):
        clasp.metrics.miss_rate([1, 2], [1, 7], boxes, [1], boxes[:1], [0.9])
    with pytest.raises(ValueError, match="not negative"):
        clasp.metrics.miss_rate([1, 2], [1, -2], boxes, [1], boxes[:1], [0.9])


def test_person_search_by_hand():
    box, other = [0, 0, 10, 20], [50, 0, 10, 20]
    frame = {"truth": [box, other], "boxes": [box, other], "scores": [0.9, 0.8], "features": [[1, 0], [0, 1]]}
    empty = {"truth": [box], "boxes": [], "scores": [], "features": []}
    query = {"feature": [1, 0.1], "gallery": {0: box, 1: None}}
    found = clasp.metrics.person_search([frame, empty], [query])
    assert found["search"]["map"] == 1.0 and found["search"]["top"][0] == 1.0
    assert found["detection"]["people"] == 3 and found["detection"]["recall"] == pytest.approx(2 / 3)
    turned = clasp.metrics.person_search([frame, empty], [{**query, "feature": [0.1, 1]}])
    assert turned["search"]["map"] == 0.5
    for bad, message in [
        ([{**query, "gallery": {-1: box}}], "gallery: expected 0 or more"),
        ([{**query, "gallery": {0: [0, 0, np.nan, 2]}}], "gallery: expected a number"),
        ([{**query, "companions": [[1, 2, 3, 4]]}], "features of 2 values"),
        ([{**query, "gallery": {7: box}}], "frames below 2"),
        ([{**query, "feature": [1.0]}], "features of 2 values"),
    ]:
        with pytest.raises(ValueError, match=message):
            clasp.metrics.person_search([frame, empty], bad)
    nobody = {"truth": [box], "boxes": [], "scores": [], "features": []}
    assert clasp.metrics.person_search([nobody], [{"feature": [1, 0], "gallery": {0: box}}])["search"]["map"] == 0.0
    with pytest.raises(ValueError, match="score_threshold"):
        clasp.metrics.person_search([frame, empty], [query], score_threshold=np.nan)
    with pytest.raises(ValueError, match="frame 0: scores: expected 2"):
        clasp.metrics.person_search([{**frame, "scores": [0.9]}], [query])
