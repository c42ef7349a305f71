"""Checks of numbers that a caller gives, before the extension would name them in words of its own."""

from __future__ import annotations

from typing import Optional

MOST_THREADS = 1024


def count(name: str, value: int, most: int = 2**31) -> int:
    """A whole number of at least 1."""
    if not 1 <= value <= most:
        raise ValueError(f"{name}: expected 1 to {most}, found {value}")
    return int(value)


def threads(value: Optional[int]) -> Optional[int]:
    """A number of threads, None for all cores."""
    return None if value is None else count("threads", value, MOST_THREADS)


def index(name: str, value: int) -> int:
    """A whole number of at least 0."""
    if not 0 <= value < 2**63:
        raise ValueError(f"{name}: expected 0 or more, found {value}")
    return int(value)
