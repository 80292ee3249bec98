"""Reads files of one JSON object a line while others append to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple


class Lines(NamedTuple):
    """What a file held from some byte on."""

    values: list[dict[str, Any]]
    end: int
    """The byte after the last whole line: where to go on reading."""


def read(path: Path, begin: int = 0) -> Lines:
    """The objects of all whole lines that begin at byte ``begin`` or later.

    A line that a dying process has torn is left out; numbers that are not finite are ``None``,
    because nobody else's JSON has them. A file that is not there has no lines, and one that has
    become shorter than ``begin`` is another one, read from its start.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            begin = begin if begin <= size else 0
            file.seek(begin)
            whole, newline, _ = file.read().rpartition(b"\n")
    except FileNotFoundError:
        return Lines([], 0)
    found = (_object(line) for line in whole.splitlines())
    return Lines([each for each in found if each is not None], begin + len(whole + newline))


class Tail:
    """Goes on reading a file where it stopped."""

    def __init__(self, path: Path) -> None:
        self._path, self._end = path, 0

    def read(self) -> list[dict[str, Any]]:
        """The lines that have come since the last call; see :func:`read`."""
        values, self._end = read(self._path, self._end)
        return values


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line, parse_constant=lambda name: None)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
