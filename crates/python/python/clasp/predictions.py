"""What fine-tuned models predict. Coordinates are pixels of the image, boxes x, y, width, height."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Union

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ReidPrediction:
    """A feature of re-identification."""

    feature: NDArray[np.float32]
    """`[channels]`, of length 1: the dot product of two is their cosine."""


@dataclass(frozen=True)
class AttributePrediction:
    """Attributes of a person."""

    probabilities: dict[str, float]
    """Probability of each attribute."""


@dataclass(frozen=True)
class ParsingPrediction:
    """Parts of a person."""

    classes: list[str]
    """Names of the classes."""
    labels: NDArray[np.uint8]
    """Class of each pixel, `[height, width]`."""


@dataclass(frozen=True)
class PosePrediction:
    """Joints of a person."""

    joints: list[str]
    """Names of the joints."""
    keypoints: NDArray[np.float32]
    """x, y and confidence of each joint, `[joints, 3]`."""
    score: float
    """Confidence in the whole pose."""


@dataclass(frozen=True)
class DetectionPrediction:
    """People of a scene."""

    boxes: NDArray[np.float32]
    """`[people, 4]`."""
    scores: NDArray[np.float32]
    """Confidence in each box, `[people]`."""


@dataclass(frozen=True)
class SearchPrediction:
    """People of a scene with features to find them again."""

    boxes: NDArray[np.float32]
    """`[people, 4]`."""
    scores: NDArray[np.float32]
    """Confidence in each box, `[people]`."""
    embeddings: NDArray[np.float32]
    """`[people, channels]`, each of length 1."""


Prediction = Union[
    ReidPrediction,
    AttributePrediction,
    ParsingPrediction,
    PosePrediction,
    DetectionPrediction,
    SearchPrediction,
]


def _floats(values: Any, columns: int) -> NDArray[np.float32]:
    return np.asarray(values, dtype=np.float32).reshape(-1, columns)


def _parsing(found: dict[str, Any]) -> ParsingPrediction:
    runs = np.asarray(found["runs"], dtype=np.int64).reshape(-1, 2)
    labels = np.repeat(runs[:, 0].astype(np.uint8), runs[:, 1])
    return ParsingPrediction(found["classes"], labels.reshape(found["height"], found["width"]))


def of_task(task: str, found: dict[str, Any]) -> Prediction:
    """The prediction of a task from what `clasp predict` writes for it."""
    if task == "reid":
        return ReidPrediction(np.asarray(found["feature"], dtype=np.float32))
    if task == "attributes":
        return AttributePrediction(found["attributes"])
    if task == "parsing":
        return _parsing(found)
    if task == "pose":
        joints = found["joints"]
        keypoints = [[joint["x"], joint["y"], joint["confidence"]] for joint in joints]
        return PosePrediction([joint["joint"] for joint in joints], _floats(keypoints, 3), found["score"])
    people = found["boxes"]
    boxes = _floats([person["bbox"] for person in people], 4)
    scores = np.asarray([person["score"] for person in people], dtype=np.float32)
    if task == "detection":
        return DetectionPrediction(boxes, scores)
    embeddings = [person["embedding"] for person in people]
    return SearchPrediction(boxes, scores, _floats(embeddings, len(embeddings[0]) if embeddings else 0) if embeddings else np.zeros((0, 0), np.float32))
