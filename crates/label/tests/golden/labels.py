"""Golden values for part maps, attribute logits and k-means labels, computed with NumPy and scikit-learn.

Written for this project from the equations of the method; no code is shared with the Rust side.
Made with Python 3, NumPy, safetensors and scikit-learn (versions are in the file's metadata). Run it beside the output:

    python labels.py
"""

import platform
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import sklearn
from sklearn.cluster import KMeans

rng = np.random.default_rng(20260123)
out = {}


def unit(x, axis):
    return x / np.linalg.norm(x, axis=axis, keepdims=True)


def taps(n, m):
    """[m, n] weights: mean over the covered interval when shrinking, linear between centres when growing."""
    w = np.zeros((m, n))
    for i in range(m):
        if m < n:
            a, b = i * n / m, (i + 1) * n / m
            for j in range(n):
                w[i, j] = max(0.0, min(b, j + 1) - max(a, j)) / (b - a)
        else:
            x = min(max((i + 0.5) * n / m - 0.5, 0), n - 1)
            j = int(np.floor(x))
            w[i, j] += 1 - (x - j)
            w[i, min(j + 1, n - 1)] += x - j
    return w


def part_map(dense, text, classes, grid, scale, threshold, prior=None):
    """dense [batch, embed, rows, columns], text [synonyms, embed] -> parts, confidence, largest probability"""
    cosines = np.einsum("behw,se->bshw", dense, text)
    scores = np.stack([scale * cosines[:, classes == c].max(1) for c in range(classes.max() + 1)], 1)
    if prior is not None:
        scores = scores + np.log(prior)[None, :, :, None]
    p = np.exp(scores - scores.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p = np.einsum("yh,bchw,xw->bcyx", taps(dense.shape[2], grid[0]), p, taps(dense.shape[3], grid[1]))
    best = p.max(1)
    second = np.sort(p, 1)[:, -2]
    # Nothing may hang on the last bits.
    assert np.abs(best - second).min() > 1e-5 and np.abs(best - threshold).min() > 1e-5
    parts = np.where(best < threshold, 255, p.argmax(1)).astype(np.uint8)
    return parts, best


def bell(names_to_bands, order, rows):
    y = (np.arange(rows) + 0.5) / rows
    w = np.ones((len(order), rows))
    for i, name in enumerate(order):
        if name in names_to_bands:
            centre, spread = names_to_bands[name]
            w[i] = np.maximum(np.exp(-0.5 * ((y - centre) / spread) ** 2), 0.01)
    return w / w.sum(0, keepdims=True)


batch, embed = 3, 16
# The classes and synonyms of the tests' vocabulary: background 1, head 2, legs 1.
classes = np.array([0, 1, 1, 2])
text = unit(rng.normal(size=(4, embed)), 1)
values = unit(rng.normal(size=(5, embed)), 1)
dense = unit(rng.normal(size=(batch, embed, 14, 7)) + 1.5 * text[rng.integers(0, 4, (batch, 14, 7))].transpose(0, 3, 1, 2), 1)
pooled = unit(rng.normal(size=(batch, embed)), 1)
out |= {"dense": dense, "pooled": pooled, "text": text, "values": values}
out["logits"] = 100.0 * pooled @ values.T
bands = {"head": (0.15, 0.1), "legs": (0.8, 0.2)}
for name, grid, scale, threshold, prior in [
    ("16x8", (16, 8), 50.0, 0.5, None),
    ("14x7", (14, 7), 50.0, 0.0, None),
    ("5x3", (5, 3), 10.0, 0.45, None),
    ("prior", (16, 8), 20.0, 0.5, bell(bands, ["background", "head", "legs"], 14)),
]:
    parts, best = part_map(dense, text, classes, grid, scale, threshold, prior)
    out[f"parts.{name}"], out[f"best.{name}"] = parts, best
    print(name, {int(k): int((parts == k).sum()) for k in np.unique(parts)})


def kmeans(x):
    """x [channels, rows, columns] -> classes [rows, columns], or none."""
    c, h, w = x.shape
    x = x.reshape(c, -1).T
    border = np.ones((h, w), bool)
    border[1:-1, 1:-1] = False
    regions = KMeans(12, n_init=100, random_state=0).fit(x).labels_
    touching = np.array([border.ravel()[regions == k].mean() for k in range(12)])
    # Nothing may hang on the last bits.
    assert np.abs(touching - 0.45 * border.mean()).min() > 1e-3
    front = (touching < 0.45 * border.mean())[regions]
    if not 0.1 <= front.mean() <= 0.8:
        return None
    three = KMeans(3, n_init=100, random_state=0).fit(x[front])
    height = np.repeat(np.arange(h), w)[front]
    order = np.argsort([height[three.labels_ == k].mean() for k in range(3)])
    result = np.zeros(h * w, np.uint8)
    result[front] = 1 + np.argsort(order)[three.labels_]
    return result.reshape(h, w)


# Four colours of a person inside, eight of the place; in map 4 the person's colours run to the border.
maps, expected = [], []
for i in range(6):
    colours = rng.normal(size=(12, 8)) * 3
    x = rng.normal(size=(8, 10, 6)) * 0.3
    for row in range(10):
        for column in range(6):
            if i == 4:
                kind = (row + 3 * column) % 12
            elif 1 <= row <= 8 and 1 <= column <= 4:
                kind = 0 if row < 3 else 1 if row < 6 else 2 + (column > 2)
            else:
                side = 0 if row == 0 else 1 if row == 9 else 2 + (column == 5)
                kind = 4 + 2 * side + (column > 2 if side < 2 else row > 4)
            x[:, row, column] += colours[kind]
    maps.append(x)
    classes_ = kmeans(x.astype(np.float32).astype(np.float64))
    print(i, None if classes_ is None else np.bincount(classes_.ravel()))
    expected.append(np.full((10, 6), 255, np.uint8) if classes_ is None else classes_)
assert (np.stack(expected)[4] == 255).all()
out["kmeans.maps"], out["kmeans.classes"] = np.stack(maps), np.stack(expected)

path = Path(__file__).with_name("labels.safetensors")
safetensors.numpy.save_file(
    {k: np.ascontiguousarray(v if v.dtype == np.uint8 else v.astype(np.float32)) for k, v in out.items()},
    path,
    metadata={
        "script": "labels.py",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "safetensors": safetensors.__version__,
    },
)
print(path.stat().st_size, "bytes")
