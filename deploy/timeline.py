"""The recorder's files in a run's folder, from which the run page is made.

``timeline.jsonl`` has a line for each snapshot and, where a pipeline began, one with ``event``
``start`` that says what it runs on; ``pictures.jsonl`` one for each picture in ``pictures/``.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deploy import journals
from deploy.report import write_atomically
from deploy.sink import Pictures, Snapshot, priorities

TIMELINE, PICTURES, FOLDER = "timeline.jsonl", "pictures.jsonl", "pictures"
COLUMNS = 16
"""Images in a row of a picture."""


def recorded_seconds(out: Path) -> float:
    """How long the run in a folder has been recorded for; 0 if it has not been."""
    lines = journals.read(out / TIMELINE, most=2).values  # the first and the last
    return max((float(line.get("elapsed_seconds") or 0.0) for line in lines), default=0.0)


class Timeline:
    """A :class:`~deploy.sink.Sink` that appends to the files of a run's folder.

    Args:
        out: the folder; it may have files of pipelines before, of which this one goes on.
        environment: says what this pipeline runs on.
    """

    def __init__(self, out: Path, environment: Callable[[], Mapping[str, Any]]) -> None:
        self._out, self._environment = out, environment
        self._begun = False

    def note(self, snapshot: Snapshot) -> None:
        """Appends a line."""
        if not self._begun:
            start = {"event": "start", "time": time.time(), "environment": self._environment()}
            _append(self._out / TIMELINE, start)
            self._begun = True
        _append(self._out / TIMELINE, as_line(snapshot))

    def show(self, pictures: Pictures) -> None:
        """Writes a picture, then its line."""
        folder = self._out / FOLDER
        folder.mkdir(exist_ok=True)
        number = 1 + max((int(path.stem) for path in folder.glob("*.png")), default=0)
        name = f"{number:06}.png"
        data = BytesIO()
        Image.fromarray(sprite(pictures.images)).save(data, "png")
        write_atomically(folder / name, data.getvalue())
        line = {
            "time": pictures.time,
            "elapsed_seconds": pictures.elapsed_seconds,
            "step": pictures.step,
            "file": f"{FOLDER}/{name}",
            "height": pictures.images.shape[2],
            "width": pictures.images.shape[3],
            "columns": min(COLUMNS, len(pictures.images)),
            "predicted_classes": pictures.predicted_classes.tolist(),
            "target_labels": pictures.target_labels.tolist(),
            "confidences": _rounded(pictures.confidences),
            "difficulties": _rounded(pictures.difficulties),
            "ages": pictures.ages.tolist(),
            "buffer_ages": pictures.buffer_ages._asdict(),
        }
        _append(self._out / PICTURES, line)

    def close(self) -> None:
        """Nothing is left open."""


def as_line(snapshot: Snapshot) -> dict[str, Any]:
    """A snapshot as it is written, with the priorities as a histogram instead of levels."""
    line = asdict(snapshot) | {"step": snapshot.step}
    line["params"] = snapshot.params and snapshot.params.model_dump(mode="json")
    line["progress"] = snapshot.progress and snapshot.progress.model_dump(mode="json")
    if snapshot.buffer is not None:
        levels = line["buffer"].pop("level_counts")
        line["buffer"]["updates"] = snapshot.buffer.updates._asdict()
        line["priorities"] = priorities(levels)._asdict() if levels else None
    return line


def sprite(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images ``[M, C, H, W]`` side by side, :data:`COLUMNS` in a row: ``[h, w, 3]`` or ``[h, w]``.

    Three channels are shown as colours, any other number as the grey of their mean.
    """
    count, channels, height, width = images.shape
    if channels != 3:
        images = images.mean(axis=1, keepdims=True).round().astype(np.uint8)
    columns, rows = min(count, COLUMNS), math.ceil(count / COLUMNS)
    whole = np.zeros((rows * columns, *images.shape[1:]), np.uint8)
    whole[:count] = images
    tiles = whole.reshape(rows, columns, -1, height, width).transpose(0, 3, 1, 4, 2)
    grid = tiles.reshape(rows * height, columns * width, -1)
    return grid if channels == 3 else grid[:, :, 0]


def _rounded(values: NDArray[np.float32]) -> list[float]:
    """To digits that are worth storing; single precision itself would be written with sixteen."""
    return [float(f"{value:.4g}") for value in values]


def _append(path: Path, line: Mapping[str, Any]) -> None:
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, 2)
            torn = file.read(1) != b"\n"  # by a process that was killed, or a disk that was full
            file.write(b"\n" * torn)
        file.write(json.dumps(line).encode() + b"\n")
