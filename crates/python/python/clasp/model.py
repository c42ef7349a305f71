"""Backbones and fine-tuned models."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Optional, Union

import numpy as np
from numpy.typing import NDArray

from . import _checks, _clasp, _images, commands, predictions
from ._progress import Progress, listener
from .predictions import Prediction

if TYPE_CHECKING:
    from ._images import AnyImages

Size = tuple[int, int]
"""Height and width in pixels."""


def _size(size: Optional[Size]) -> Optional[Size]:
    if size is None:
        return None
    height, width = size
    return _checks.count("size: height", height, 4096), _checks.count("size: width", width, 4096)


class Model:
    """A backbone, with the head of a task where it was fine-tuned. Use :func:`load`."""

    def __init__(self, name: str, inner: _clasp.Model) -> None:
        self._name = name
        self._inner = inner

    @property
    def task(self) -> Optional[str]:
        """The task that it was fine-tuned for, None for a backbone."""
        return self._inner.task

    @property
    def size(self) -> Size:
        """Height and width of its inputs."""
        return self._inner.size

    @property
    def channels(self) -> int:
        """Length of a feature."""
        return self._inner.channels

    @property
    def prompt(self) -> str:
        """The prompt that it uses unless another is given."""
        return self._inner.prompt

    @property
    def meta(self) -> dict[str, Any]:
        """What its file says: configuration, preprocessing, method, licenses, origin."""
        return self._inner.meta

    def __repr__(self) -> str:
        height, width = self.size
        what = f"fine-tuned for {self.task}" if self.task else "backbone"
        return f"<clasp.Model {self._name!r}: {what}, {self.channels} channels, {height}x{width} (height x width)>"

    def embed(
        self,
        images: AnyImages,
        *,
        prompt: Optional[str] = None,
        size: Optional[Size] = None,
        batch: int = 16,
        threads: Optional[int] = None,
        progress: Progress = False,
    ) -> NDArray[np.float32]:
        """Pooled features of images, `float32` `[images, channels]`, as `clasp embed` computes them.

        They are not normalized: divide each by its L2 norm before comparing by cosine.

        :param images: paths, PIL images, `uint8` arrays `[height, width, 3]` or `[images, height,
            width, 3]` in RGB, or :class:`clasp.Images`.
        :param prompt: `identity`, `part`, `attribute`, or weights as `identity=0.8,part=0.2`.
        :param size: height and width that images are resized to.
        :param batch: images in a batch.
        :param threads: threads, each with a batch of its own; default: all cores.
        :param progress: True for a line on standard error, or a function of the images done and in
            all; an exception in it stops the work.
        :raises clasp.Error: an image cannot be read; features are not finite.
        """
        given = _images.gathered(images)
        batching = (_checks.count("batch", batch), _checks.threads(threads))
        return self._inner.embed(given, prompt, _size(size), batching, listener(progress, "embed"))

    def predict(
        self,
        images: AnyImages,
        *,
        size: Optional[Size] = None,
        batch: int = 4,
        threads: Optional[int] = None,
        progress: Progress = False,
    ) -> list[Prediction]:
        """What a fine-tuned model predicts for each image, as `clasp predict` does.

        Images show one person from edge to edge; for detection and search they are whole scenes, which
        keep their size. Parameters are those of :meth:`embed`.

        :raises ValueError: this is a backbone without a task.
        :raises clasp.Error: an image cannot be read; outputs are not finite.
        """
        given = _images.gathered(images)
        batching = (_checks.count("batch", batch), _checks.threads(threads))
        found = self._inner.predict(given, _size(size), batching, listener(progress, "predict"))
        task = self.task or ""
        return [predictions.of_task(task, one) for one in found]

    def state_dict(self, *, names: str = "timm", prompt: Optional[str] = None) -> dict[str, NDArray[np.float32]]:
        """The tensors of the backbone by name.

        :param names: `timm` or `solider`, a plain network into which a mixture of experts is folded
            at `prompt`; or `clasp`, with its own names and all parameters.
        :param prompt: the prompt that is folded in.
        """
        return self._inner.state_dict(names, prompt)

    def export_hub(self, folder: Union[str, os.PathLike[str]], *options: str) -> dict[str, Any]:
        """Write a folder that timm or transformers loads, as `clasp export hub` does.

        :param options: further options of the command, for example `"--library", "transformers"`.
        :returns: what was written, and the Python that loads it.
        """
        return dict(commands.run("export", "hub", self._inner.path, "--out", os.fspath(folder), *options) or {})

    def export_onnx(self, path: Union[str, os.PathLike[str]], *options: str) -> None:
        """Write an ONNX file, checked against this model on images, as `clasp export onnx` does.

        :param options: further options of the command, for example `"--bytes"`.
        """
        commands.run("export", "onnx", self._inner.path, "--out", os.fspath(path), *options)


def load(path: Union[str, os.PathLike[str]]) -> Model:
    """Load a backbone or a fine-tuned model.

    :param path: the folder of a run, a file that `pretrain`, `finetune` or `import` wrote, a
        published checkpoint that `clasp import` reads, or `owner/name` of a model hub.
    :raises clasp.Error: there is no such file, or it is none of these.
    """
    name = os.fspath(path)
    return Model(name, _clasp.Model(name))
