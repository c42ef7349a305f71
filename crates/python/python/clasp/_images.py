"""Images of a caller in the form that the extension takes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from numpy.typing import NDArray

from ._clasp import Images

if TYPE_CHECKING:
    from PIL import Image

    AnyImage = Union[str, os.PathLike[str], NDArray[np.uint8], Image.Image]
    AnyImages = Union[AnyImage, Images, Iterable[AnyImage]]
    """One image, or several: paths, PIL images, arrays `uint8` `[height, width, 3]` or
    `[images, height, width, 3]` in RGB, or :class:`clasp.Images` of a folder or archive."""


def pixels(image: Any, name: str = "image") -> NDArray[np.uint8]:
    """An array `uint8` `[height, width, 3]`, contiguous, of an array or a PIL image."""
    if hasattr(image, "convert") and hasattr(image, "mode"):
        image = np.asarray(image.convert("RGB"))
    array = np.asarray(image)
    if array.dtype != np.uint8:
        raise ValueError(f"{name}: expected uint8 from 0 to 255, found {array.dtype}")
    if array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(f"{name}: expected [height, width, 3] in RGB, found {list(array.shape)}")
    return np.ascontiguousarray(array)


def _is_path(image: Any) -> bool:
    return isinstance(image, (str, os.PathLike))


def gathered(images: Any) -> Union[Images, Sequence[Any]]:
    """All images as :class:`Images`, or as a list of paths and arrays."""
    if isinstance(images, Images):
        return images
    if _is_path(images):
        return Images(images)
    if isinstance(images, np.ndarray) and images.ndim == 4:
        return [pixels(image, f"image {i}") for i, image in enumerate(images)]
    if isinstance(images, np.ndarray) or hasattr(images, "convert"):
        return [pixels(images)]
    return [
        os.fspath(image) if _is_path(image) else pixels(image, f"image {i}")
        for i, image in enumerate(images)
    ]
