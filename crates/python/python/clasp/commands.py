"""The long commands as functions: labeling, pre-training, fine-tuning, evaluation.

Each runs in a process of its own, with its own threads and memory. Interrupting a function
(KeyboardInterrupt) stops the work as Ctrl-C stops the program: finished work is saved, and the same
call, or one with `resume`, goes on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np

from ._clasp import Error

AnyPath = Union[str, os.PathLike[str]]
Listener = Callable[[dict[str, Any]], object]
"""Called with each line of a run's `metrics.jsonl`."""

_EVERY = 0.2
"""Seconds between two looks at a running command."""


def _toml(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, (str, os.PathLike)):
        return json.dumps(os.fspath(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Iterable):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    raise ValueError(f"expected a number, text, truth value or list, found {value!r}")


def assignments(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key=value` for each value; a dictionary is a section of the recipe."""
    found: list[str] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += assignments(value, f"{prefix}{key}.")
        elif value is not None:
            found.append(f"{prefix}{key}={_toml(value)}")
    return found


def _set(values: Mapping[str, Any]) -> list[str]:
    return [word for one in assignments(values) for word in ("--set", one)]


class _Metrics:
    """Reads the lines that are added to a run's `metrics.jsonl`."""

    def __init__(self, folder: Path, listener: Listener) -> None:
        self.path, self.listener = folder / "metrics.jsonl", listener
        self.at = 0
        # What an earlier part of the run logged. When it resumes, the program first cuts off the lines
        # after its checkpoint.
        self.old = self.path.read_bytes() if self.path.exists() else b""

    def read(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            if self.old:
                found = file.read()
                if found == self.old:
                    return
                common = len(os.path.commonprefix([self.old, found]))
                self.at = found.rfind(b"\n", 0, common) + 1
                self.old = b""
            file.seek(self.at)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self.at += len(whole)
        for line in whole.splitlines():
            self.listener(json.loads(line))


def _start(words: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "clasp", *words]
    # A session of its own: Ctrl-C in a terminal reaches this process alone, which hands it on once.
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", errors="replace", start_new_session=True
    )


def _wait(process: subprocess.Popen[str], metrics: Optional[_Metrics]) -> None:
    while True:
        try:
            process.wait(_EVERY)
        except subprocess.TimeoutExpired:
            if metrics:
                metrics.read()
        else:
            if metrics:
                metrics.read()
            return


def run(*words: str, progress: bool = False, metrics: Optional[_Metrics] = None) -> Any:
    """Run a command of the program and return its result: what `--json` prints, else its text, None
    where it prints nothing.

        clasp.run("data", "stats", "photos/")

    :param words: the command and its arguments.
    :param progress: show what it writes to standard error.
    :raises clasp.Error: it failed, with its message.
    :raises KeyboardInterrupt: it was interrupted; finished work is saved.
    """
    output: list[str] = []
    messages: list[str] = []

    def collect(stream: Any, lines: list[str], show: bool) -> None:
        for line in stream:
            lines.append(line)
            if show:
                print(line, end="", file=sys.stderr)

    process = None
    readers: list[threading.Thread] = []
    try:
        process = _start([*words, "--json", *([] if progress else ["--quiet"])])
        readers = [
            threading.Thread(target=collect, args=(process.stdout, output, False)),
            threading.Thread(target=collect, args=(process.stderr, messages, progress)),
        ]
        for reader in readers:
            reader.start()
        _wait(process, metrics)
    except BaseException:
        if process:
            process.send_signal(signal.SIGINT)
            process.wait()
        raise
    finally:
        for reader in readers:
            if reader.is_alive():
                reader.join()
    status = process.returncode
    if status in (130, 143):
        raise KeyboardInterrupt
    text = "".join(output).strip()
    # Status 1: it ran, and a check failed; the result says which.
    if status not in (0, 1) or (status == 1 and not text):
        raise Error("".join(messages).strip() or f"`clasp {words[0]}` ended with status {status}")
    if not text:
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        # Some commands print text whatever is asked for, as `clasp completions` does.
        return text


def _result(found: Any) -> dict[str, Any]:
    return dict(found or {})


def _training(words: list[str], out: AnyPath, progress: Union[bool, Listener]) -> dict[str, Any]:
    if callable(progress):
        return _result(run(*words, metrics=_Metrics(Path(out), progress)))
    return _result(run(*words, progress=progress))


def _options(options: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if value is True:
            words.append(option)
        elif value is not None and value is not False:
            words += [option, os.fspath(value) if isinstance(value, os.PathLike) else str(value)]
    return words


def label(
    images: Union[AnyPath, Iterable[AnyPath]],
    *,
    out: AnyPath,
    clip: Optional[AnyPath] = None,
    progress: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Make pseudo-labels of images, as `clasp label`; calling it again goes on where it stopped.

    :param images: folders, archives, patterns or files.
    :param out: folder of the label files; read them with :class:`clasp.LabelStore`.
    :param clip: a folder, file or `owner/name` of a CLIP; default: the bundled small one.
    :param options: further options of the command: `threads=2`, `batch=16`.
    """
    places = [images] if isinstance(images, (str, os.PathLike)) else list(images)
    words = ["label", *[os.fspath(place) for place in places], "--out", os.fspath(out)]
    return _result(run(*words, *_options({"clip": clip, **options}), progress=progress))


def pretrain(
    recipe: str = "mini",
    *,
    out: AnyPath,
    images: Optional[AnyPath] = None,
    labels: Optional[AnyPath] = None,
    resume: bool = False,
    threads: Optional[int] = None,
    progress: Union[bool, Listener] = False,
    **overrides: Any,
) -> dict[str, Any]:
    """Pre-train a backbone, as `clasp pretrain`; load it with :func:`clasp.load` of `out`.

    :param recipe: name or file of a recipe; `clasp recipes` lists the built-in ones.
    :param out: folder of the run.
    :param images: folder, archive or pattern.
    :param labels: folder that :func:`label` wrote.
    :param resume: continue the run in `out`.
    :param progress: True for messages on standard error, or a function of each line of the run's
        `metrics.jsonl`.
    :param overrides: values of the recipe: `run={"steps": 500}, optimizer={"lr": 1e-3}, seed=1`.
    """
    values = {"data": {"images": images, "labels": labels}}
    place = ["--resume", os.fspath(out)] if resume else [recipe, "--out", os.fspath(out)]
    words = ["pretrain", *place, *_set(values), *_set(overrides), *_options({"threads": threads})]
    return _training(words, out, progress)


def finetune(
    task: str,
    recipe: Optional[str] = None,
    *,
    out: AnyPath,
    data: Optional[AnyPath] = None,
    init: Optional[AnyPath] = None,
    resume: bool = False,
    threads: Optional[int] = None,
    progress: Union[bool, Listener] = False,
    **overrides: Any,
) -> dict[str, Any]:
    """Fine-tune a backbone with the head of a task, as `clasp finetune`.

    :param task: `reid`, `attributes`, `parsing`, `pose`, `detection` or `search`.
    :param recipe: name or file of a recipe; default: that of the task.
    :param out: folder of the run.
    :param data: a labeled dataset.
    :param init: run or file of the backbone to start from; default: random weights.
    :param resume: continue the run in `out`.
    :param progress: as for :func:`pretrain`.
    :param overrides: values of the recipe: `run={"epochs": 10}`.
    """
    if resume:
        place = ["--resume", os.fspath(out)]
    else:
        place = [*([recipe] if recipe else []), "--out", os.fspath(out)]
    options = _options({"data": data, "init": init, "threads": threads})
    return _training(["finetune", task, *place, *options, *_set(overrides)], out, progress)


def evaluate(
    task: str,
    *,
    model: AnyPath,
    data: AnyPath,
    progress: bool = False,
    **options: Any,
) -> Any:
    """Evaluate a fine-tuned model, or with `frozen=True` a backbone, as `clasp eval`.

    :param task: `reid`, `attributes`, `parsing`, `pose`, `detection` or `search`.
    :param model: run or file.
    :param data: a labeled dataset.
    :param options: further options of the command: `frozen=True`, `prompt="part"`, `size="256x128"`.
    """
    words = ["eval", task, "--model", os.fspath(model), "--data", os.fspath(data)]
    return run(*words, *_options(options), progress=progress)
