"""The training as a file: one JSON line for each published progress."""

from __future__ import annotations

import json
import os
from pathlib import Path

from buffer.progress import StudentProgress


class Journal:
    """Appends to a file that earlier attempts may have begun.

    A resumed training repeats steps: readers keep, of two lines with one step, the one with the
    larger attempt.

    Args:
        path: the file; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end_torn_line()

    def write(self, progress: StudentProgress, *, learning_rate: float) -> None:
        """Appends one line: every field of the progress, and the learning rate."""
        line = {**progress.model_dump(mode="json"), "learning_rate": learning_rate}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _end_torn_line(self) -> None:
        """A process that was killed may have left half a line."""
        with self._path.open("a+b") as file:
            if file.tell() == 0:
                return
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
