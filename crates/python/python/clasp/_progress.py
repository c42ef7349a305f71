"""Progress on standard error, or to a function of the caller."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Optional, Union

Progress = Union[bool, Callable[[int, int], object]]
"""True: a line on standard error. A function: called with the images done and in all."""


def listener(progress: Progress, what: str) -> Optional[Callable[[int, int], object]]:
    """What the extension calls, None for nothing."""
    if progress is False:
        return None
    if progress is not True:
        return progress

    def line(done: int, total: int) -> None:
        end = "\n" if done >= total else ""
        print(f"\r{what}: {done} of {total} images", end=end, file=sys.stderr, flush=True)

    return line
