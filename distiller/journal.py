"""The training as a file: one JSON line for each published progress, and for each evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from buffer.progress import StudentProgress
from buffer.version import Version


class Journal:
    """Appends to a file that earlier attempts may have begun.

    Every line has a ``version``, ``[attempt, step]``; that of an evaluation says so in ``event``,
    which the others lack. A resumed training repeats steps: readers keep, of two lines of one kind
    with one step, the one with the larger attempt.

    Args:
        path: the file; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end_torn_line()

    def write(self, progress: StudentProgress, *, learning_rate: float) -> None:
        """Appends one line: every field of the progress, and the learning rate."""
        self._append({**progress.model_dump(mode="json"), "learning_rate": learning_rate})

    def write_evaluation(self, version: Version, point: Sequence[float]) -> None:
        """Appends a point of the accuracy curve.

        Args:
            version: of the student that was measured.
            point: as in :attr:`distiller.tally.Tally.curve`.
        """
        fields = ("step", "elapsed_seconds", "elapsed_share", "student_accuracy")
        values = dict(zip(fields, point, strict=True))
        self._append({"event": "evaluation", "version": version, **values})

    def _append(self, line: Mapping[str, Any]) -> None:
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
