"""Heatmap targets and decodings by a plain NumPy reading of MMPose's formulas (MSRA, DARK, UDP).

    python heatmaps.py        writes heatmaps.json beside this file

Made with NumPy 2.4.6. Blurs are written out: OpenCV's kernel for sigma 0 is 0.3 ((k - 1) / 2 - 1) + 0.8.
"""
import json
import pathlib

import numpy as np

ROWS, COLUMNS, SIGMA, KERNEL = 20, 15, 2.0, 11
rng = np.random.default_rng(3)


def kernel():
    sigma = 0.3 * ((KERNEL - 1) * 0.5 - 1) + 0.8
    k = np.exp(-np.arange(-(KERNEL // 2), KERNEL // 2 + 1) ** 2 / (2 * sigma**2))
    return k / k.sum()


def blur(map, mode):
    r = KERNEL // 2
    padded = np.pad(map, r, mode=mode)
    k = kernel()
    along = np.stack([np.convolve(row, k, "valid") for row in padded])
    return np.stack([np.convolve(column, k, "valid") for column in along.T]).T


def peak(map):
    y, x = np.unravel_index(map.argmax(), map.shape)
    return np.array([x, y], float)


def msra(map):
    p = peak(map)
    x, y = int(p[0]), int(p[1])
    if 1 < x < COLUMNS - 1 and 1 < y < ROWS - 1:
        p += 0.25 * np.sign([map[y, x + 1] - map[y, x - 1], map[y + 1, x] - map[y - 1, x]])
    return p


def dark(map):
    p = peak(map)
    blurred = blur(map, "constant")
    h = np.log(np.maximum(blurred * map.max() / blurred.max(), 1e-10))
    x, y = int(p[0]), int(p[1])
    if 1 < x < COLUMNS - 2 and 1 < y < ROWS - 2:
        dx, dy = 0.5 * (h[y, x + 1] - h[y, x - 1]), 0.5 * (h[y + 1, x] - h[y - 1, x])
        dxx = 0.25 * (h[y, x + 2] - 2 * h[y, x] + h[y, x - 2])
        dxy = 0.25 * (h[y + 1, x + 1] - h[y - 1, x + 1] - h[y + 1, x - 1] + h[y - 1, x - 1])
        dyy = 0.25 * (h[y + 2, x] - 2 * h[y, x] + h[y - 2, x])
        hessian = np.array([[dxx, dxy], [dxy, dyy]])
        if np.linalg.det(hessian) != 0:
            p -= np.linalg.inv(hessian) @ [dx, dy]
    return p


def udp(map):
    p = peak(map)
    h = np.pad(np.log(np.clip(blur(map, "reflect"), 0.001, 50)), 1, mode="edge")
    x, y = int(p[0]) + 1, int(p[1]) + 1
    i, ix1, ix1_, iy1, iy1_ = h[y, x], h[y, x + 1], h[y, x - 1], h[y + 1, x], h[y - 1, x]
    dx, dy = 0.5 * (ix1 - ix1_), 0.5 * (iy1 - iy1_)
    dxx, dyy = ix1 - 2 * i + ix1_, iy1 - 2 * i + iy1_
    dxy = 0.5 * (h[y + 1, x + 1] - ix1 - iy1 + i + i - ix1_ - iy1_ + h[y - 1, x - 1])
    hessian = np.array([[dxx, dxy], [dxy, dyy]]) + np.finfo(np.float32).eps * np.eye(2)
    return p - np.linalg.inv(hessian) @ [dx, dy]


def target(x, y, coding):
    reach = 3 * SIGMA
    mu = np.array([int(np.floor(x + 0.5)), int(np.floor(y + 0.5))])
    ul, br = mu - reach, mu + reach + 1
    if ul[0] >= COLUMNS or ul[1] >= ROWS or br[0] < 0 or br[1] < 0:
        return None
    gx, gy = np.meshgrid(np.arange(COLUMNS), np.arange(ROWS))
    cx, cy = mu if coding == "msra" else (x, y)
    map = np.exp(-((gx - cx) ** 2 + (gy - cy) ** 2) / (2 * SIGMA**2))
    if coding != "dark":  # a patch of 2 * reach + 1 positions about the nearest one
        map[(abs(gx - mu[0]) > reach) | (abs(gy - mu[1]) > reach)] = 0
    return map.ravel().tolist()


cases = []
for index in range(12):
    gx, gy = np.meshgrid(np.arange(COLUMNS), np.arange(ROWS))
    x, y = rng.uniform(0, COLUMNS - 1), rng.uniform(0, ROWS - 1)
    map = np.exp(-((gx - x) ** 2 / rng.uniform(5, 10) + (gy - y) ** 2 / rng.uniform(5, 10)))
    map = np.round(0.9 * map + 0.02 * rng.uniform(size=map.shape), 5).astype(np.float32).astype(float)
    cases.append(dict(map=map.ravel().round(5).tolist(), **{f.__name__: f(map).tolist() for f in (msra, dark, udp)}))
targets = []
for x, y in [(7.3, 9.6), (0.2, 19.4), (-3.0, 5.0), (-7.6, 5.0), (14.5, 10.5), (21.2, 3.0), (20.4, 3.0)]:
    targets.append(dict(x=x, y=y, **{c: target(x, y, c) for c in ("msra", "dark", "udp")}))
for one in targets:
    for c in ("msra", "dark", "udp"):
        one[c] = one[c] and np.round(one[c], 7).tolist()
path = pathlib.Path(__file__).with_suffix(".json")
path.write_text(json.dumps(dict(rows=ROWS, columns=COLUMNS, cases=cases, targets=targets), separators=(",", ":")))
print(path, path.stat().st_size)
