"""Golden values of the metrics from independent references.

    python metrics.py        writes metrics.json beside this file

Versions: NumPy 2.4.6, scikit-learn 1.9.1, pycocotools 2.0.11.

Re-identification and re-ranking are written here literally after the published evaluators (Market-1501 rules; Zhong et
al. 2017), with dense matrices in float64 and a stable sort. Features have entries of 0 and +-1 and
one common length, a power of two, so that float32 and float64 agree on every distance and ties are ties on both sides. Pose figures come from
pycocotools itself; average precisions also from scikit-learn.
"""
import contextlib
import io
import json
import pathlib

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import average_precision_score, balanced_accuracy_score, confusion_matrix, jaccard_score

rng = np.random.default_rng(20231)


def unit_rows(count, channels=16):
    """Sixteen entries of +-1 each: the length is 4, so normalising is exact in float32."""
    rows = np.zeros((count, 2 * channels))
    for row in rows:
        row[rng.choice(2 * channels, 16, replace=False)] = rng.choice([-1.0, 1.0], 16)
    return rows


def eval_func(dist, q_pids, g_pids, q_cams, g_cams, max_rank=20):
    all_cmc, all_ap, all_inp = [], [], []
    for q in range(len(q_pids)):
        order = np.argsort(dist[q], kind="stable")
        remove = (g_pids[order] == q_pids[q]) & (g_cams[order] == q_cams[q])
        matches = (g_pids[order] == q_pids[q]).astype(np.int32)[~remove]
        if not matches.any():
            all_ap.append(None)
            continue
        cmc = matches.cumsum()
        all_inp.append(cmc[-1] / (np.nonzero(matches)[0][-1] + 1))
        cmc[cmc > 1] = 1
        all_cmc.append(np.pad(cmc, (0, max_rank), mode="edge")[:max_rank])
        tmp = matches.cumsum() / (np.arange(len(matches)) + 1.0)
        all_ap.append(float((tmp * matches).sum() / matches.sum()))
        # The same from scikit-learn, by a score that falls with the rank.
        assert abs(all_ap[-1] - average_precision_score(matches, -np.arange(len(matches)))) < 1e-12
    valid = [a for a in all_ap if a is not None]
    return dict(map=float(np.mean(valid)), minp=float(np.mean(all_inp)), cmc=np.mean(all_cmc, 0).tolist(), ap=all_ap,
                skipped=sum(a is None for a in all_ap))


def re_ranking(x, query_num, k1, k2, lambda_value):
    dist = (x ** 2).sum(1)[:, None] + (x ** 2).sum(1)[None] - 2 * x @ x.T
    original_dist = np.transpose(dist / np.max(dist, axis=0))
    initial_rank = np.argsort(original_dist, kind="stable")
    n = len(x)
    v = np.zeros((n, n))
    for i in range(n):
        forward = initial_rank[i, : k1 + 1]
        backward = initial_rank[forward, : k1 + 1]
        k_reciprocal = forward[np.where(backward == i)[0]]
        expansion = k_reciprocal
        for candidate in k_reciprocal:
            half = int(np.around(k1 / 2)) + 1
            c_forward = initial_rank[candidate, :half]
            c_backward = initial_rank[c_forward, :half]
            c_reciprocal = c_forward[np.where(c_backward == candidate)[0]]
            if len(np.intersect1d(c_reciprocal, k_reciprocal)) > 2 / 3 * len(c_reciprocal):
                expansion = np.append(expansion, c_reciprocal)
        expansion = np.unique(expansion)
        weight = np.exp(-original_dist[i, expansion])
        v[i, expansion] = weight / np.sum(weight)
    original_dist = original_dist[:query_num]
    if k2 != 1:
        v = np.stack([np.mean(v[initial_rank[i, :k2]], axis=0) for i in range(n)])
    inv_index = [np.where(v[:, i] != 0)[0] for i in range(n)]
    jaccard = np.zeros_like(original_dist)
    for i in range(query_num):
        temp_min = np.zeros(n)
        for j in np.where(v[i] != 0)[0]:
            temp_min[inv_index[j]] += np.minimum(v[i, j], v[inv_index[j], j])
        jaccard[i] = 1 - temp_min / (2 - temp_min)
    return (jaccard * (1 - lambda_value) + original_dist * lambda_value)[:, query_num:]


def reid():
    people, cams = 12, 4
    centres = unit_rows(people)
    x, pids, camids = [], rng.integers(0, people, 160), rng.integers(0, cams, 160)
    for pid in pids:
        row = centres[pid].copy()
        for _ in range(rng.integers(0, 6)):  # move some entries to other columns: still 16 entries of +-1
            a, b = rng.choice(np.nonzero(row)[0]), rng.choice(np.nonzero(row == 0)[0])
            row[a], row[b] = 0, rng.choice([-1.0, 1.0])
        x.append(row)
    x = np.array(x)
    pids[5] = 99  # a query that nobody matches
    pids[100:110] = 0  # distractors
    queries = 40
    f = x / np.linalg.norm(x, axis=1, keepdims=True)
    dist = (f ** 2).sum(1)[:queries, None] + (f ** 2).sum(1)[None, queries:] - 2 * f[:queries] @ f[queries:].T
    sides = (pids[:queries], pids[queries:], camids[:queries], camids[queries:])
    reranked = {}
    for name, k1, k2, lam in [("default", 20, 6, 0.3), ("odd", 7, 1, 0.1), ("five", 5, 3, 0.5)]:
        final = re_ranking(f, queries, k1, k2, lam)
        # Sums differ in their last bits; ranks are compared on values rounded well above that on both sides.
        reranked[name] = dict(k1=k1, k2=k2, lambda_=lam, rows=[[round(v, 7) for v in r] for r in final[:3].tolist()],
                              metrics=eval_func(np.float32(final), *sides))
    return dict(features=x.astype(int).ravel().tolist(), channels=x.shape[1], queries=queries, persons=pids.tolist(),
                cameras=camids.tolist(), plain=eval_func(dist, *sides), reranked=reranked)


def attributes():
    gt = rng.random((60, 7)) < np.array([0.5, 0.1, 0.9, 0.3, 0.0, 1.0, 0.4])
    gt[7] = False
    gt[7, 5] = True
    prob = np.float32(np.round(np.clip(0.55 * gt + rng.normal(0.22, 0.3, gt.shape), 0, 1), 2))  # two digits: ties
    pred = prob > 0.5
    eps = 1e-20
    tp, tn = (gt & pred).sum(0), (~gt & ~pred).sum(0)
    pos, neg = tp / (gt.sum(0) + eps), tn / ((~gt).sum(0) + eps)
    inter, union = (gt & pred).sum(1), (gt | pred).sum(1)
    acc, prec, rec = (inter / (union + eps)).mean(), (inter / (pred.sum(1) + eps)).mean(), (inter / (gt.sum(1) + eps)).mean()
    for j in range(4):
        assert abs(balanced_accuracy_score(gt[:, j], pred[:, j]) - (pos + neg)[j] / 2) < 1e-12
    assert abs(jaccard_score(gt, pred, average="samples", zero_division=0) - acc) < 1e-12
    ap = [float(average_precision_score(gt[:, j], prob[:, j])) if gt[:, j].any() else None for j in range(7)]
    return dict(truth=gt.astype(int).ravel().tolist(), probabilities=[round(float(v), 2) for v in prob.ravel()], attributes=7,
                ma=float(((pos + neg) / 2).mean()), accuracy=float(acc), precision=float(prec), recall=float(rec),
                f1=float(2 * prec * rec / (prec + rec)), ap=ap)


def parsing():
    classes = 6
    gt = rng.integers(0, classes - 1, (3, 40, 20))  # the last class never occurs
    pred = np.where(rng.random(gt.shape) < 0.6, gt, rng.integers(0, classes, gt.shape))
    gt[rng.random(gt.shape) < 0.1] = 255
    keep = gt != 255
    m = confusion_matrix(gt[keep], pred[keep], labels=range(classes)).astype(float)
    row, col, hit = m.sum(1), m.sum(0), np.diag(m)
    return dict(classes=classes, truth=gt.reshape(3, -1).tolist(), predicted=pred.reshape(3, -1).tolist(),
                pixel_accuracy=float(hit.sum() / m.sum()), mean_accuracy=float((hit / np.maximum(1, row)).mean()),
                mean_iou=float((hit / np.maximum(1, row + col - hit)).mean()))


def pose(joints, sigmas, images, seed):
    rng = np.random.default_rng(seed)
    gt, dt, n = [], [], 0
    for i in range(1, images + 1):
        for _ in range(rng.integers(0, 5)):
            n += 1
            x, y, w, h = rng.uniform(0, 300), rng.uniform(0, 200), rng.uniform(15, 200), rng.uniform(20, 250)
            k = np.stack([rng.uniform(x, x + w, joints), rng.uniform(y, y + h, joints), rng.integers(0, 3, joints)], 1).round(1)
            if rng.random() < 0.1:
                k[:, 2] = 0
            gt.append(dict(id=n, image_id=i, category_id=1, iscrowd=int(rng.random() < 0.08), bbox=[round(v, 1) for v in (x, y, w, h)],
                           area=round(0.5 * w * h, 1), num_keypoints=int((k[:, 2] > 0).sum()), keypoints=k.ravel().tolist()))
            for _ in range(rng.integers(0, 4)):
                e = k.copy()
                e[:, :2] += rng.normal(0, 0.06 * np.sqrt(w * h), (joints, 2))
                e = e.round(1)
                dt.append(dict(image_id=i, category_id=1, score=round(float(rng.uniform()), 2), keypoints=e.ravel().tolist()))
    for _ in range(30):  # many on one image, more than 20 detections
        k = np.stack([rng.uniform(0, 300, joints), rng.uniform(0, 200, joints), np.ones(joints)], 1).round(1)
        dt.append(dict(image_id=1, category_id=1, score=round(float(rng.uniform()), 2), keypoints=k.ravel().tolist()))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dict(images=[dict(id=i) for i in range(1, images + 1)], annotations=gt, categories=[dict(id=1, name="person")])
        coco.createIndex()
        e = COCOeval(coco, coco.loadRes([dict(d) for d in dt]), "keypoints")
        e.params.kpt_oks_sigmas = np.array(sigmas)
        e.evaluate(), e.accumulate(), e.summarize()
    truth = [dict(image=g["image_id"], keypoints=g["keypoints"], bbox=g["bbox"], area=g["area"], crowd=g["iscrowd"]) for g in gt]
    found = [dict(image=d["image_id"], keypoints=d["keypoints"], score=d["score"]) for d in dt]
    return dict(sigmas=sigmas, truth=truth, predicted=found, stats=e.stats.tolist())


coco17 = [.026, .025, .025, .035, .035, .079, .079, .072, .072, .062, .062, .107, .107, .087, .087, .089, .089]
golden = dict(reid=reid(), attributes=attributes(), parsing=parsing(),
              pose=[pose(17, coco17, 25, 1), pose(5, [.05, .06, .07, .08, .1], 40, 2)])
path = pathlib.Path(__file__).with_suffix(".json")
path.write_text(json.dumps(golden, separators=(",", ":")))
print(path, path.stat().st_size)
