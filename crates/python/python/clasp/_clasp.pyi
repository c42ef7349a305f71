"""The extension module; the modules of the package wrap and document it."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Optional, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Error",
    "Images",
    "LabelStore",
    "Model",
    "ViewMaker",
    "__version__",
    "metric_attributes",
    "metric_boxes",
    "metric_keypoints",
    "metric_miss_rate",
    "metric_parsing",
    "metric_person_search",
    "metric_reid",
    "metric_roc",
    "load_image",
    "run",
]

__version__: Final[str]

class Error(RuntimeError):
    """What went wrong, in the words of the command line."""

_Progress = Optional[Callable[[int, int], object]]

@final
class Images:
    """Images of folders, tars and patterns, in the order of their keys."""

    def __new__(cls, places: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Images: ...
    def __len__(self, /) -> int: ...
    def __getitem__(self, index: int, /) -> NDArray[np.uint8]:
        """The image at a position, `[height, width, 3]`."""
    @property
    def keys(self) -> list[str]:
        """Keys: paths below the folder or inside the archive, without their ending."""

@final
class LabelStore:
    def __new__(cls, folder: str) -> LabelStore: ...
    def __len__(self, /) -> int: ...
    @property
    def keys(self) -> list[str]: ...
    @property
    def meta(self) -> dict[str, Any]: ...
    @property
    def edited(self) -> list[str]: ...
    def has(self, /, key: str) -> bool: ...
    def at(self, /, index: int) -> dict[str, Any]: ...
    def of(self, /, key: str) -> dict[str, Any]: ...
    def correct(
        self,
        /,
        key: str,
        attributes: Mapping[str, Optional[str]],
        parts: Sequence[tuple[int, int, Optional[str]]],
        clear: bool,
    ) -> None: ...

@final
class Model:
    def __new__(cls, path: str) -> Model: ...
    @property
    def path(self) -> str: ...
    @property
    def task(self) -> Optional[str]: ...
    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def channels(self) -> int: ...
    @property
    def prompt(self) -> str: ...
    @property
    def meta(self) -> dict[str, Any]: ...
    @property
    def task_state(self) -> Any: ...
    def embed(
        self,
        /,
        images: Any,
        prompt: Optional[str],
        size: Optional[tuple[int, int]],
        batching: tuple[int, Optional[int]],
        progress: _Progress,
    ) -> NDArray[np.float32]: ...
    def predict(
        self,
        /,
        images: Any,
        size: Optional[tuple[int, int]],
        batching: tuple[int, Optional[int]],
        progress: _Progress,
    ) -> list[dict[str, Any]]: ...
    def state_dict(self, /, names: str, prompt: Optional[str]) -> dict[str, NDArray[np.float32]]: ...

@final
class ViewMaker:
    def __new__(cls, recipe: str, overrides: Sequence[str], with_images: bool) -> ViewMaker: ...
    def __len__(self, /) -> int: ...
    def views(
        self, /, image: NDArray[np.uint8], key: str, epoch: int
    ) -> list[NDArray[np.float32]]: ...
    def sample(self, /, index: int, epoch: int) -> dict[str, Any]: ...

def load_image(path: str) -> NDArray[np.uint8]: ...
def run(arguments: Sequence[str | os.PathLike[str]]) -> int: ...
def metric_reid(
    query: Sequence[NDArray[Any]],
    gallery: Sequence[NDArray[Any]],
    ranks: int,
    rerank: Optional[tuple[int, int, float]],
    threads: Optional[int],
) -> dict[str, Any]: ...
def metric_roc(
    query: Sequence[NDArray[Any]],
    gallery: Sequence[NDArray[Any]],
    rates: Sequence[float],
    threads: Optional[int],
) -> dict[str, Any]: ...
def metric_attributes(
    truth: NDArray[np.bool_], probabilities: NDArray[np.float32], threshold: float
) -> dict[str, Any]: ...
def metric_parsing(
    maps: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]], classes: int
) -> dict[str, Any]: ...
def metric_keypoints(
    truth: Sequence[NDArray[Any]], predicted: Sequence[NDArray[Any]], sigmas: Sequence[float]
) -> dict[str, Any]: ...
def metric_boxes(
    truth: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]]
) -> dict[str, Any]: ...
def metric_miss_rate(
    images: NDArray[np.uint64],
    truth: Sequence[NDArray[Any]],
    found: Sequence[NDArray[Any]],
    subset: str,
) -> dict[str, Any]: ...
def metric_person_search(
    frames: Sequence[Sequence[NDArray[Any]]],
    queries: Sequence[tuple[NDArray[np.float32], NDArray[np.float32], list[tuple[int, Optional[list[float]]]]]],
    lowest: float,
    weighted: bool,
    context: Optional[tuple[int, int]],
) -> tuple[dict[str, Any], dict[str, Any]]: ...
