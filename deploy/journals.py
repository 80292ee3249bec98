"""Reads files of one JSON object a line while others append to them."""

from __future__ import annotations

import json
import re
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

MOST_LINES = 1000
EVENT = re.compile(rb'"event"\s*:\s*"(\w*)"')

T = TypeVar("T")


class Lines(NamedTuple):
    """What a file held from some byte on."""

    values: Iterator[dict[str, Any]]
    """Parsed only as they are asked for: lines of many classes take much memory."""
    end: int
    """The byte after the last whole line: where to go on reading."""


def read(path: Path, begin: int = 0, most: int = MOST_LINES) -> Lines:
    """The objects of whole lines that begin at byte ``begin`` or later.

    A line that a dying process has torn is left out; numbers that are not finite are ``None``,
    because nobody else's JSON has them. A file that is not there has no lines, and one that has
    become shorter than ``begin`` is another one, read from its start.

    Args:
        path: the file.
        begin: a line's first byte.
        most: lines of each ``event``, and of those without; of more, evenly chosen ones.
    """
    starts: dict[bytes, array[int]] = defaultdict(lambda: array("q"))
    try:
        with path.open("rb") as file:
            begin = begin if begin <= file.seek(0, 2) else 0
            file.seek(begin)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                event = EVENT.search(line)
                starts[event[1] if event else b""].append(begin)
                begin += len(line)
    except FileNotFoundError:
        return Lines(iter(()), 0)
    chosen = sorted(start for each in starts.values() for start in thinned(each, most))
    return Lines(_objects(path, chosen), begin)


class Tail:
    """Goes on reading a file where it stopped."""

    def __init__(self, path: Path) -> None:
        self._path, self._end = path, 0

    def read(self) -> list[dict[str, Any]]:
        """The lines that have come since the last call; see :func:`read`."""
        values, self._end = read(self._path, self._end)
        return list(values)


def thinned(values: Sequence[T], most: int) -> list[T]:
    """At most so many of them, evenly chosen, the first and the last always."""
    if len(values) <= most:
        return list(values)
    return [values[place] for place in np.linspace(0, len(values) - 1, most).round().astype(int)]


def _objects(path: Path, starts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The objects of the lines that begin at these bytes."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        for start in starts:
            file.seek(start)
            with suppress(ValueError):
                value = json.loads(file.readline(), parse_constant=lambda name: None)
                if isinstance(value, dict):
                    yield value
