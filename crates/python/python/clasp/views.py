"""The views that pre-training makes of images, with their labels."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np
from numpy.typing import NDArray

from . import _checks, _clasp, _images
from .commands import AnyPath, assignments

if TYPE_CHECKING:
    from ._images import AnyImage


def views(
    image: AnyImage, recipe: str = "mini", *, key: str = "", epoch: int = 0, **overrides: Any
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Global and local views of an image, each `float32` `[views, 3, height, width]`.

    The image is cropped, flipped, changed in color and normalized as pre-training does it. The same
    `seed` of the recipe, `key` and `epoch` give the same views, those that pre-training makes.

    :param image: a path, a PIL image, or a `uint8` array `[height, width, 3]` in RGB.
    :param recipe: name or file of a recipe of `clasp pretrain`.
    :param overrides: values of the recipe: `seed=1`, `views={"local": 4}`.
    """
    if isinstance(image, (str, os.PathLike)):
        array = _clasp.load_image(os.fspath(image))
    else:
        array = _images.pixels(image)
    made = _clasp.ViewMaker(recipe, assignments(overrides), False).views(array, key, _checks.index("epoch", epoch))
    return made[0], made[1]


@dataclass(frozen=True)
class Sample:
    """An image as pre-training sees it."""

    key: str
    """Key of the image."""
    global_views: NDArray[np.float32]
    """`[views, 3, height, width]`."""
    local_views: NDArray[np.float32]
    """`[views, 3, height, width]`."""
    parts: Optional[NDArray[np.uint8]]
    """Part class of each position of the backbone's map of a global view, `[views, rows, columns]`,
    255 where it is not known; None without labels."""
    attributes: Optional[NDArray[np.float32]]
    """Target probability of each attribute value, `[values]`; None without labels."""
    attribute_weights: Optional[NDArray[np.float32]]
    """Weight of each attribute, `[attributes]`, 0 where it is too close to call."""


class ViewDataset:
    """Views and labels of images as pre-training makes them; a dataset for a PyTorch `DataLoader`,
    which needs no PyTorch itself.

    Call :meth:`set_epoch` before each epoch for other views. Workers that fork are supported.
    """

    def __init__(self, images: AnyPath, labels: Optional[AnyPath] = None, recipe: str = "mini", **overrides: Any) -> None:
        """Open images and labels.

        :param images: a folder, archive or pattern.
        :param labels: a folder that `clasp label` wrote; None for views alone.
        :param recipe: name or file of a recipe of `clasp pretrain`.
        :param overrides: values of the recipe: `seed=1`, `views={"local": 4}`.
        """
        data = {"images": os.fspath(images)}
        if labels is None:
            overrides = {"method": "dino", **overrides}
        else:
            data["labels"] = os.fspath(labels)
        self._arguments = (recipe, [*assignments({"data": data}), *assignments(overrides)], True)
        self._inner = _clasp.ViewMaker(*self._arguments)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Make the views of this epoch."""
        self.epoch = _checks.index("epoch", epoch)

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, index: int) -> Sample:
        """The sample at a position.

        :raises clasp.Error: the image cannot be read, or has changed since it was labeled.
        """
        found = self._inner.sample(index, self.epoch)
        return Sample(
            found["key"],
            found["global"],
            found["local"],
            found.get("parts"),
            found.get("attributes"),
            found.get("attribute_weights"),
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"arguments": self._arguments, "epoch": self.epoch}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._arguments = state["arguments"]
        self._inner = _clasp.ViewMaker(*self._arguments)
        self.epoch = state["epoch"]
