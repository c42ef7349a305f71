"""Golden values of the maps from an image to the input of parsing and pose, by OpenCV's three points.

Run: python affine.py      (writes affine.json beside itself)
Made with opencv-python-headless 5.0.0, numpy 2.4.6.

Parsing: Self-Correction's `get_affine_transform` on the box of the whole image. Pose: that of MMPose 0.x, and its
`get_warp_matrix` for UDP, which turns the other way.
"""

import json
from pathlib import Path

import cv2
import numpy as np


def three_points(centre, source_width, target, target_width, degrees):
    """The centre, a point above it, and one to the side."""
    turn = np.deg2rad(degrees)
    up = 0.5 * source_width * np.array([np.sin(turn), -np.cos(turn)])
    side = lambda a, b: b + np.array([-(a - b)[1], (a - b)[0]])
    points = lambda at, up: np.float32([at, at + up, side(at, at + up)])
    source = points(np.array(centre), up)
    return cv2.getAffineTransform(source, points(np.array(target), np.array([0, -0.5 * target_width]))).tolist()


def parsing(height, width, rows, columns, scale, degrees):
    w, h = width - 1, height - 1
    aspect = columns / rows
    wide = max(w, h * aspect) * scale
    return three_points([w / 2, h / 2], wide, [(columns - 1) / 2, (rows - 1) / 2], columns - 1, degrees)


def pose(region, rows, columns, degrees):
    x, y, w, h = region
    return three_points([x + w / 2, y + h / 2], w, [columns / 2, rows / 2], columns, degrees)


def udp(region, rows, columns, degrees):
    x, y, w, h = region
    cx, cy, turn = x + w / 2, y + h / 2, np.deg2rad(-degrees)
    sx, sy, cos, sin = (columns - 1) / w, (rows - 1) / h, np.cos(turn), np.sin(turn)
    return [
        [cos * sx, -sin * sx, sx * (-cx * cos + cy * sin + 0.5 * w)],
        [sin * sy, cos * sy, sy * (-cx * sin - cy * cos + 0.5 * h)],
    ]


SIZES = [(300, 200, 572, 384), (120, 100, 572, 384), (90, 260, 64, 32), (480, 640, 128, 64)]
TURNS = [(1.0, 0.0), (0.8, 25.0), (1.25, -60.0)]
golden = {
    "parsing": [
        {"image": [h, w], "input": [r, c], "scale": s, "degrees": d, "matrix": parsing(h, w, r, c, s, d)}
        for h, w, r, c in SIZES for s, d in TURNS],
    "pose": [
        {"region": region, "input": [r, c], "degrees": d, "msra": pose(region, r, c, d), "udp": udp(region, r, c, d)}
        for region, r, c in [([10.5, -20.0, 150.0, 200.0], 384, 288), ([300.0, 40.0, 30.0, 60.0], 128, 64)] for _, d in TURNS],
}
path = Path(__file__).with_suffix(".json")
path.write_text(json.dumps(json.loads(json.dumps(golden), parse_float=lambda t: float(f"{float(t):.9g}"))) + "\n")
print(path, path.stat().st_size, cv2.__version__, np.__version__)
