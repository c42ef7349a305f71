"""Pseudo-labels as `clasp label` writes them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np
from numpy.typing import NDArray

from . import _clasp

if TYPE_CHECKING:
    import pandas

IGNORE = 255
"""The part label of positions where the labeler is not sure."""


@dataclass(frozen=True)
class Labels:
    """The pseudo-labels of one image."""

    key: str
    """Key of the image in its folder or archive."""
    width: int
    """Width of the image in pixels."""
    height: int
    """Height of the image in pixels."""
    parts: NDArray[np.uint8]
    """Part class of each patch position, `[rows, columns]`; 255 where the labeler is not sure."""
    part_confidence: NDArray[np.uint8]
    """255 times the probability of the best class, `[rows, columns]`."""
    attributes: NDArray[np.float32]
    """Logits of all attribute values, `[values]`, in the order of `LabelStore.values`."""
    image_sha256: str
    """Digest of the image file, empty where it is not known."""
    corrected: dict[str, Optional[str]]
    """Corrected attributes: value by name, None where nobody can tell."""


class LabelStore:
    """The labels of many images, in memory: a sequence of :class:`Labels`, also by key."""

    def __init__(self, folder: Union[str, os.PathLike[str]]) -> None:
        """Read a folder of label files.

        :raises clasp.Error: there are none, or one is damaged.
        """
        self._inner = _clasp.LabelStore(os.fspath(folder))
        self._meta = self._inner.meta

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, index: Union[int, str]) -> Labels:
        """Labels by position, or by the image's key."""
        found = self._inner.of(index) if isinstance(index, str) else self._inner.at(index)
        return Labels(**found)

    def __iter__(self) -> Iterator[Labels]:
        return (self[i] for i in range(len(self)))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._inner.has(key)

    def correct(
        self,
        key: str,
        attributes: Optional[Mapping[str, Optional[str]]] = None,
        parts: Optional[Mapping[tuple[int, int], Optional[str]]] = None,
        *,
        clear: bool = False,
    ) -> None:
        """Correct labels of an image, here and in the folder; pre-training learns these values.

        :param attributes: value by attribute, None where nobody can tell.
        :param parts: name of the class by `(row, column)` of the part map, None where nobody can tell.
        :param clear: remove earlier corrections of the image first.
        :raises clasp.Error: no such image, attribute, value, position or class.
        """
        for row, column in parts or {}:
            if row < 0 or column < 0:
                raise ValueError(f"parts: expected rows and columns from 0 up, found {(row, column)}")
        classes = [(row, column, name) for (row, column), name in (parts or {}).items()]
        self._inner.correct(key, dict(attributes or {}), classes, clear)

    @property
    def keys(self) -> list[str]:
        """Keys of the images, in the order of the rows."""
        return self._inner.keys

    @property
    def parts(self) -> list[str]:
        """Names of the part classes."""
        return [part["name"] for part in self._meta["vocabulary"]["parts"]]

    @property
    def attributes(self) -> dict[str, list[str]]:
        """Names of the attributes and of their values."""
        attributes = self._meta["vocabulary"]["attributes"]
        return {one["name"]: [value["name"] for value in one["values"]] for one in attributes}

    @property
    def values(self) -> list[str]:
        """Attribute and value of each logit, as `upper color=red`."""
        return [f"{name}={value}" for name, values in self.attributes.items() for value in values]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the part maps."""
        rows, columns = self._meta["grid"]
        return rows, columns

    @property
    def meta(self) -> dict[str, Any]:
        """What all labels share: vocabulary, model, grid, method, confidence."""
        return self._meta

    def to_pandas(self) -> pandas.DataFrame:
        """A row an image, indexed by key: width, height, a column a logit, and `parts` with the
        part map as an array. Needs pandas."""
        import pandas

        rows = list(self)
        logits = np.stack([row.attributes for row in rows]) if rows else np.zeros((0, len(self.values)))
        index = pandas.Index([row.key for row in rows], name="key")
        frame = pandas.DataFrame(logits, columns=self.values, index=index)
        frame.insert(0, "width", [row.width for row in rows])
        frame.insert(1, "height", [row.height for row in rows])
        frame.insert(2, "parts", pandas.Series([row.parts for row in rows], index=index, dtype=object))
        return frame
