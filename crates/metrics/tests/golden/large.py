"""Golden values on large inputs that Python and Rust draw alike, so that only the results are stored.

    python large.py        writes large.json beside this file

Versions: NumPy 2.4.6, SciPy 1.17.1, scikit-learn 1.9.1, pycocotools 2.0.11.

`Draw` is SplitMix64; tests/large.rs has the same, and draws the same numbers in the same order: change both together. Keypoint and
box figures come from pycocotools, average precision and ROC from scikit-learn, the assignment from SciPy. The miss rate and the search
are written here after their descriptions in the modules' docs, with plain loops.
"""
import contextlib
import io
import json
import pathlib

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score, roc_curve

MASK = (1 << 64) - 1


class Draw:
    def __init__(self, seed):
        self.state = seed

    def bits(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, n):
        return self.bits() % n

    def uniform(self, low, high):
        """Quarters, so that sums and products are exact."""
        return low + self.below(int((high - low) * 4)) / 4

    def noise(self, size):
        """Of mean 0, up to 2 * size, peaked."""
        return size * (self.below(1024) + self.below(1024) - 1023) / 512


def coco_eval(gt, dt, images, kind, sigmas=None):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = dict(images=[dict(id=i) for i in range(images)], annotations=gt, categories=[dict(id=1, name="person")])
        coco.createIndex()
        e = COCOeval(coco, coco.loadRes(dt), kind)
        if sigmas:
            e.params.kpt_oks_sigmas = np.array(sigmas)
        e.evaluate(), e.accumulate(), e.summarize()
    return e.stats.tolist()


def box(draw):
    return [draw.uniform(0, 600), draw.uniform(0, 400), draw.uniform(8, 200), draw.uniform(8, 300)]


def pose(seed, images, joints, sigmas):
    draw, gt, dt = Draw(seed), [], []
    for image in range(images):
        for _ in range(draw.below(6)):
            x, y, w, h = box(draw)
            hidden, crowd = draw.below(12) == 0, draw.below(15) == 0
            k = [[x + w * draw.below(65) / 64, y + h * draw.below(65) / 64, 0 if hidden else draw.below(3)] for _ in range(joints)]
            flat = [v for p in k for v in p]
            gt.append(dict(id=len(gt) + 1, image_id=image, category_id=1, iscrowd=int(crowd), bbox=[x, y, w, h], area=w * h / 2,
                           num_keypoints=sum(p[2] > 0 for p in k), keypoints=flat))
            for _ in range(draw.below(4)):
                e = [[p[0] + draw.noise(h / 16), p[1] + draw.noise(h / 16), 1] for p in k]
                dt.append(dict(image_id=image, category_id=1, score=draw.below(1000) / 1000, keypoints=[v for p in e for v in p]))
        for _ in range(30 * (draw.below(50) == 0)):  # now and then more than 20 detections
            e = [[draw.uniform(0, 600), draw.uniform(0, 400), 1] for _ in range(joints)]
            dt.append(dict(image_id=image, category_id=1, score=draw.below(1000) / 1000, keypoints=[v for p in e for v in p]))
    return dict(people=sum(not g["iscrowd"] and g["num_keypoints"] > 0 for g in gt), stats=coco_eval(gt, dt, images, "keypoints", sigmas))


def moved(draw, b):
    return [b[0] + draw.noise(b[2] / 8), b[1] + draw.noise(b[3] / 8), b[2], b[3]]


def boxes(seed, images):
    draw, gt, dt = Draw(seed), [], []
    for image in range(images):
        for _ in range(draw.below(8)):
            b, crowd = box(draw), draw.below(12) == 0
            gt.append(dict(id=len(gt) + 1, image_id=image, category_id=1, iscrowd=int(crowd), bbox=b, area=b[2] * b[3] * 3 / 4))
            for _ in range(draw.below(4)):
                dt.append(dict(image_id=image, category_id=1, score=draw.below(1000) / 1000, bbox=moved(draw, b)))
        for _ in range(120 * (draw.below(40) == 0)):  # now and then more than 100 detections
            dt.append(dict(image_id=image, category_id=1, score=draw.below(1000) / 1000, bbox=box(draw)))
    return coco_eval(gt, dt, images, "bbox")


INF = float("inf")
SUBSETS = [  # height, visibility
    ([50, INF], [.65, INF]), ([50, 75], [.65, INF]), ([50, INF], [.2, .65]), ([20, INF], [.2, INF]),
    ([50, INF], [.9, INF]), ([50, INF], [.65, .9]), ([50, INF], [0, .65]), ([50, INF], [.2, INF]),
    ([75, 100], [.65, INF]), ([100, INF], [.65, INF]),
]


def shared(a, b):
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return w * h if w > 0 and h > 0 else 0.0


def overlap(a, b):
    s = shared(a, b)
    return s / (a[2] * a[3] + b[2] * b[3] - s) if s else 0.0


def miss_rate(images, gt, dt, subset):
    (low, high), (dim, clear) = subset
    scores, right, people = [], [], 0
    for image in range(images):
        g = [dict(x, ignore=x["ignore"] or not (low <= x["height"] <= high and dim <= x["vis"] <= clear)) for x in gt if x["image"] == image]
        g = [x for x in g if not x["ignore"]] + [x for x in g if x["ignore"]]
        people += sum(not x["ignore"] for x in g)
        d = [x for x in dt if x["image"] == image]
        d = [d[i] for i in np.argsort([-x["score"] for x in d], kind="stable")[:1000]]
        d = [x for x in d if low / 1.25 <= x["bbox"][3] < high * 1.25]
        taken = set()
        for x in d:
            best, choice = 0.5, None
            for i, t in enumerate(g):
                if i in taken:
                    continue
                if choice is not None and not g[choice]["ignore"] and t["ignore"]:
                    break
                value = shared(x["bbox"], t["bbox"]) / (x["bbox"][2] * x["bbox"][3]) if t["ignore"] else overlap(x["bbox"], t["bbox"])
                if value >= best:
                    best, choice = value, i
            if choice is not None and g[choice]["ignore"]:
                continue
            if choice is not None:
                taken.add(choice)
            scores.append(x["score"])
            right.append(choice is not None)
    if people == 0:
        return dict(people=0, found=len(right), at=[], value=None)
    order = np.argsort(-np.array(scores), kind="stable")
    tp = np.cumsum(np.array(right)[order])
    fp = np.cumsum(~np.array(right)[order])
    recall, fppi = tp / people, fp / images
    at = []
    for limit in [0.0100, 0.0178, 0.0316, 0.0562, 0.1000, 0.1778, 0.3162, 0.5623, 1.0000]:
        i = np.searchsorted(fppi, limit, side="right") - 1
        at.append(1 - recall[i] if i >= 0 else 1.0)
    at = np.maximum(at, 1e-10)
    return dict(people=people, found=len(right), at=at.tolist(), value=float(np.exp(np.log(at).mean())))


def pedestrians(seed, images, per_image):
    draw, gt, dt = Draw(seed), [], []
    for image in range(images):
        for _ in range(draw.below(per_image)):
            b = [draw.uniform(0, 1900), draw.uniform(0, 700), draw.uniform(8, 80), draw.uniform(16, 260)]
            vis, ignore = draw.below(101) / 100, draw.below(6) == 0
            gt.append(dict(image=image, bbox=b, height=b[3], vis=vis, ignore=ignore))
            for _ in range(draw.below(4)):
                dt.append(dict(image=image, score=draw.below(500) / 500, bbox=moved(draw, b)))
        for _ in range(draw.below(3)):
            dt.append(dict(image=image, score=draw.below(400) / 500, bbox=box(draw)))
    return [miss_rate(images, gt, dt, subset) for subset in SUBSETS]


CHANNELS = 32


def feature(draw, person, ties=True):
    """Sixteen entries of +-1 in 32 channels, length 4: cosines are exact in single precision, and many tie. Without ties, any
    direction: where several assignments are best, SciPy may choose another."""
    own = Draw(1000 + person)
    if not ties:
        row = np.array([own.below(2001) - 1000 + draw.below(2001) - 1000 for _ in range(CHANNELS)])
        return row / np.sqrt((row ** 2).sum())
    row = [own.below(2) * 2 - 1 for _ in range(16)] + [0] * 16
    for _ in range(draw.below(6)):
        a, b = draw.below(CHANNELS), draw.below(CHANNELS)
        row[a], row[b] = row[b], row[a]
    return np.array(row) / 4.0


def search_frames(draw, frames, people, ties):
    out = []
    for _ in range(frames):
        frame = dict(truth=[], pids=[], boxes=[], scores=[], features=[])
        for _ in range(draw.below(5)):
            pid = draw.below(people + 10)  # the last ten are of unknown identity
            if pid in frame["pids"]:
                continue
            b = [draw.uniform(0, 900), draw.uniform(0, 500), draw.uniform(6, 120), draw.uniform(16, 300)]
            frame["truth"].append(b)
            frame["pids"].append(pid)
            for _ in range(draw.below(3)):
                frame["boxes"].append(moved(draw, b))
                frame["scores"].append(draw.below(65) / 64)
                frame["features"].append(feature(draw, pid, ties))
        out.append(frame)
    return out


def search_one(query, companions, gallery, frames, weighted, context):
    kept = {}
    for f, _ in gallery:
        sure = [i for i, s in enumerate(frames[f]["scores"]) if s >= 0.5]
        g = [frames[f]["features"][i] * (frames[f]["scores"][i] if weighted else 1) for i in sure]
        kept[f] = (sure, g, [float(x @ query) for x in g])
    if context:
        flat = [(s, f) for f, _ in gallery for s in kept[f][2]]
        order = np.argsort([-s for s, _ in flat], kind="stable")[: context[0]]
        people = [query] + companions[: context[1] - 1]
        for f in {flat[i][1] for i in order}:
            weights = np.array([[p @ x for x in kept[f][1]] for p in people])
            rows, columns = linear_sum_assignment(weights, maximize=True)
            for r, c in zip(rows, columns):
                if r == 0:
                    kept[f][2][c] = float(weights[rows, columns].sum())
    y, scores, found, shown = [], [], 0, 0
    for f, truth in gallery:
        sure, _, sims = kept[f]
        shown += truth is not None
        order = np.argsort([-s for s in sims], kind="stable")
        label = [0] * len(sims)
        if truth is not None:
            enough = min(0.5, truth[2] * truth[3] / ((truth[2] + 10) * (truth[3] + 10)))
            for i in order:
                if overlap(frames[f]["boxes"][sure[i]], truth) >= enough:
                    label[i] = 1
                    found += 1
                    break
        y += [label[i] for i in order]
        scores += [sims[i] for i in order]
    if shown == 0:
        return None
    ap = float(average_precision_score(y, scores)) * found / shown if found else 0.0
    best = np.array(y)[np.argsort(-np.array(scores), kind="stable")]
    return dict(ap=ap, top=[int(best[:k].any()) for k in (1, 5, 10)], found=found, shown=shown)


def search(seed, frames, people, queries, weighted, context):
    draw = Draw(seed)
    scenes = search_frames(draw, frames, people, context is None)
    results = []
    for q in range(queries):
        pid = q % people
        vector, companions = feature(draw, pid, context is None), [feature(draw, draw.below(people), context is None) for _ in range(4)]
        gallery = []
        for f, scene in enumerate(scenes):
            if f % 7 != q % 7:  # the frames of this query's gallery
                truth = scene["truth"][scene["pids"].index(pid)] if pid in scene["pids"] else None
                gallery.append((f, truth))
        results.append(search_one(vector, companions, gallery, scenes, weighted, context))
    valid = [r for r in results if r]
    return dict(map=float(np.mean([r["ap"] for r in valid])), top=np.mean([r["top"] for r in valid], axis=0).tolist(),
                recall=sum(r["found"] for r in valid) / sum(r["shown"] for r in valid), skipped=len(results) - len(valid),
                detection=[detection(scenes, people, only) for only in (False, True)])


def detection(scenes, people, labelled_only):
    y, scores, right, total = [], [], 0, 0
    for scene in scenes:
        truth = [b for b, pid in zip(scene["truth"], scene["pids"]) if not labelled_only or pid < people]
        if labelled_only and not truth:
            continue
        total += len(truth)
        sure = [i for i, s in enumerate(scene["scores"]) if s >= 0.5]
        m = np.array([[overlap(t, scene["boxes"][i]) for i in sure] for t in truth]).reshape(len(truth), len(sure))
        for j, i in enumerate(sure):
            hit = len(truth) > 0 and m[:, j].max() >= 0.5 and m[m[:, j].argmax()].argmax() == j
            right += hit
            y.append(int(hit))
            scores.append(scene["scores"][i])
    return dict(recall=right / total, ap=float(average_precision_score(y, scores)) * right / total)


def roc(seed, count, queries, people):
    draw = Draw(seed)
    pids = [draw.below(people) for _ in range(count)]
    cams = [draw.below(4) for _ in range(count)]
    x = np.array([feature(draw, p) for p in pids])
    cosines = x[:queries] @ x[queries:].T
    y, s = [], []
    for i in range(queries):
        for j in range(count - queries):
            same = pids[i] == pids[queries + j]
            if not (same and cams[i] == cams[queries + j]):
                y.append(int(same))
                s.append(cosines[i, j])
    fpr, tpr, thresholds = roc_curve(y, s, drop_intermediate=False)
    at = []
    for rate in (1e-4, 1e-3, 1e-2, 1e-1):
        i = np.nonzero(fpr <= rate)[0][-1]
        at.append(None if tpr[i] == 0 else float(tpr[i]))
    y, s = np.array(y), np.array(s)
    return dict(auc=float(roc_auc_score(y, s)), at=at, same=[float(s[y == 1].mean()), float(s[y == 1].std())],
                different=[float(s[y == 0].mean()), float(s[y == 0].std())], pairs=[int((y == 1).sum()), int((y == 0).sum())],
                error=float(min((abs(f - 1 + t), (f + 1 - t) / 2) for f, t in zip(fpr[1:], tpr[1:]))[1]))


def suppression(seed, count):
    draw = Draw(seed)
    b = [box(draw) for _ in range(count)]
    s = [draw.below(200) / 200 for _ in range(count)]
    order = np.argsort([-v for v in s], kind="stable")
    kept = []
    for i in order:
        if all(overlap(b[k], b[i]) <= 0.3 for k in kept):
            kept.append(int(i))

    def soft(decay):
        left, out = {i: v for i, v in enumerate(s) if v >= 0.05}, []
        while left:
            i = max(left, key=lambda k: (left[k], -k))
            out.append((i, left.pop(i)))
            left = {k: v * decay(overlap(b[i], b[k])) for k, v in left.items()}
            left = {k: v for k, v in left.items() if v >= 0.05}
        return dict(index=[i for i, _ in out], score=[v for _, v in out])

    joints, sigmas = 6, np.array([.03, .05, .06, .08, .1, .1])
    poses, areas = [], []
    for i in range(count):
        x, y, w, h = b[i % 12]
        poses.append([[x + w * j / 8 + draw.noise(4), y + h * j / 8 + draw.noise(4)] for j in range(joints)])
        areas.append(w * h)
    poses, single = np.array(poses), []
    for i in order:
        d = ((poses[single] - poses[i]) ** 2).sum(-1)
        area = (np.array([areas[k] for k in single]) + areas[i])[:, None] / 2 + np.spacing(1)
        if not len(single) or (np.exp(-d / (2 * sigmas) ** 2 / area / 2).mean(1) <= 0.5).all():
            single.append(int(i))
    return dict(hard=kept, linear=soft(lambda o: 1 - o if o > 0.3 else 1.0), gaussian=soft(lambda o: float(np.exp(-o * o / 0.5))),
                poses=single)


def attributes(seed, images, count):
    draw = Draw(seed)
    gt = np.array([[draw.below(count + 3) < j for j in range(count)] for _ in range(images)])  # the first is never true
    prob = np.array([[(draw.below(500) + 300 * g) / 800 for g in row] for row in gt]).astype(np.float32)
    pred = prob > 0.5
    tp, tn = (gt & pred).sum(0), (~gt & ~pred).sum(0)
    ma = (tp / (gt.sum(0) + 1e-20) + tn / ((~gt).sum(0) + 1e-20)) / 2
    both, either = (gt & pred).sum(1), (gt | pred).sum(1)
    acc, prec, rec = ((both / (n + 1e-20)).mean() for n in (either, pred.sum(1), gt.sum(1)))
    ap = [float(average_precision_score(gt[:, j], prob[:, j])) for j in range(count) if gt[:, j].any()]
    return [float(v) for v in (ma.mean(), acc, prec, rec, 2 * prec * rec / (prec + rec), np.mean(ap))]


def parsing(seed, images, pixels, classes):
    draw, m = Draw(seed), np.zeros((classes, classes))
    for _ in range(images):
        gt = np.array([draw.below(classes + 1) for _ in range(pixels)])
        pred = np.array([t if draw.below(3) and t < classes else draw.below(classes) for t in gt])
        gt[gt == classes] = 255
        m += confusion_matrix(gt[gt != 255], pred[gt != 255], labels=range(classes))
    row, column, hit = m.sum(1), m.sum(0), np.diag(m)
    return [float(hit.sum() / m.sum()), float((hit / row).mean()), float((hit / (row + column - hit)).mean())]


coco17 = [.026, .025, .025, .035, .035, .079, .079, .072, .072, .062, .062, .107, .107, .087, .087, .089, .089]
golden = dict(
    pose=[pose(1, 1500, 17, coco17), pose(2, 400, 14, [.04 + .005 * j for j in range(14)]), pose(3, 30, 1, [.1])],
    boxes=[boxes(4, 1500), boxes(5, 20)],
    # 500 images as CityPersons; 12 images, where the best box may be wrong at once.
    pedestrians=[pedestrians(6, 500, 14), pedestrians(7, 12, 30), pedestrians(8, 40, 6)],
    search=[search(9, 300, 25, 60, False, None), search(10, 300, 25, 60, True, None), search(11, 120, 12, 40, False, (10, 3)),
            search(12, 120, 12, 40, True, (30, 4)), search(13, 14, 30, 60, False, None)],
    roc=[roc(14, 900, 200, 40), roc(15, 60, 20, 8)],
    suppression=[suppression(16, 400), suppression(17, 30)],
    attributes=attributes(18, 5000, 26),
    parsing=parsing(19, 20, 3000, 20),
)
path = pathlib.Path(__file__).with_suffix(".json")
path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
print(path, path.stat().st_size)
