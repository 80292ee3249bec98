"""What a run has left in its folder so far, as the run page shows it.

The page is told of a run in pieces of bounded size: of long files evenly chosen lines, of many
classes their quantiles. It asks for what has come since by the byte where it stopped reading.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from buffer.errors import ConfigError
from deploy import journals
from deploy.folder import is_claimed
from deploy.journals import MOST_LINES, thinned
from deploy.timeline import PICTURES, TIMELINE
from distiller.service import JOURNAL

CONTROLLER = "controller.jsonl"
MOST_DECISIONS, MOST_PICTURES = 5000, 200
"""Of those that come before a page is opened."""
MOST_CLASSES_EACH = 20
"""Up to so many classes are shown over time one by one, more by their quantiles."""
MOST_CLASSES_NOW = 1000
SILENT_INTERVALS, SILENT_SECONDS = 3.0, 10.0
"""A pipeline that cannot be seen to hold its folder (it may be on another machine) is taken for
alive until it has been silent for so many intervals and seconds."""

Line = dict[str, Any]


class Since(NamedTuple):
    """How much of each file a page knows, in bytes."""

    metrics: int = 0
    timeline: int = 0
    controller: int = 0
    pictures: int = 0


START = Since()


def run(out: Path) -> Line:
    """What does not change while a run goes on: its configuration.

    Raises:
        ConfigError: no run has begun in the folder.
    """
    try:
        written = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
        # YAML has values that JSON has not: dates, and numbers that are not finite.
        text = json.dumps(written, default=str, skipkeys=True)
        tables = json.loads(text, parse_constant=lambda name: None)
    except FileNotFoundError as error:
        raise ConfigError(f"run ({out}): no config.yaml, no run has begun there") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"run ({out}): config.yaml cannot be read: {error}") from error
    if not isinstance(tables, dict) or "classes" not in (tables.get("teacher") or {}):
        raise ConfigError(f"run ({out}): config.yaml is no configuration, nothing can be shown")
    return tables


def news(out: Path, since: Since = START, *, claimed: bool | None = None) -> Line:
    """What has come since, and how the run is.

    Args:
        out: folder of the run.
        since: what is known.
        claimed: whether a live run holds the folder; default: looks.

    Raises:
        ConfigError: no run has begun in the folder.
    """
    names = (JOURNAL, TIMELINE, CONTROLLER, PICTURES)
    mosts = (MOST_LINES, MOST_LINES, MOST_DECISIONS, MOST_PICTURES)
    metrics, timeline, controller, pictures = (
        journals.read(out / name, *each) for name, *each in zip(names, since, mosts, strict=True)
    )
    snapshots, classes_now = _timeline(timeline.values, int(run(out)["teacher"]["classes"]))
    state = _state(out, is_claimed(out) if claimed is None else claimed)
    return {
        "began": _began(out),
        "state": state,
        # While a run goes on again, there is that of its interruption.
        "result": None if state == "running" else _result(out),
        "classes": classes_now,
        "journals": {
            "metrics": {"lines": _metrics(metrics.values), "end": metrics.end},
            "timeline": {"lines": snapshots, "end": timeline.end},
            "controller": {"lines": _controller(controller.values), "end": controller.end},
            "pictures": {"lines": list(pictures.values), "end": pictures.end},
        },
    }


def _began(out: Path) -> float | None:
    """By this a page knows its run from another one in the same folder."""
    try:
        with (out / TIMELINE).open(encoding="utf-8") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError):
        return None
    began = first.get("time") if isinstance(first, dict) else None
    return float(began) if isinstance(began, int | float) else None


def _result(out: Path) -> Line | None:
    """``result.json``, less what is in the configuration."""
    try:
        text = (out / "result.json").read_text(encoding="utf-8")
        result = json.loads(text, parse_constant=lambda name: None)
    except (OSError, ValueError):
        return None
    if not isinstance(result, dict):
        return None
    return {name: value for name, value in result.items() if name != "config"}


def _state(out: Path, claimed: bool) -> str:
    """``running``, ``died``, or how it ended."""
    if claimed:
        return "running"
    result = _result(out)
    if result is not None:
        ended = "interrupted" if result.get("interrupted") else "failed"
        return ended if result.get("interrupted") or result.get("error") else "finished"
    return "running" if _heard_of_lately(out) else "died"


def _heard_of_lately(out: Path) -> bool:
    try:
        silent = time.time() - (out / TIMELINE).stat().st_mtime
        interval = float(run(out)["monitoring"]["interval_seconds"])
    except (OSError, LookupError, TypeError, ValueError):
        return False
    return silent < SILENT_INTERVALS * interval + SILENT_SECONDS


def _classes_now(buffer: Line | None, classes: int) -> Line | None:
    """How many samples of each class there are now; of very many classes, of some of them."""
    if not buffer:
        return None
    counts = _all_counts(buffer, classes)
    shown = thinned(range(classes), MOST_CLASSES_NOW)
    return {"present": sum(map(bool, counts)), "counts": {each: counts[each] for each in shown}}


def _all_counts(buffer: Line, classes: int) -> list[int]:
    """Samples per class, also of those that have none."""
    counts: dict[str, int] = buffer["class_counts"]
    return [counts.get(str(label), 0) for label in range(classes)]


def _metrics(lines: Iterable[Line]) -> list[Line]:
    return sorted(
        (line for line in lines if isinstance(line.get("version"), list)),
        key=lambda line: line["version"],
    )


def _timeline(lines: Iterable[Line], classes: int) -> tuple[list[Line], Line | None]:
    """Its lines, and the classes of the last that knows them: in one pass, for they are large."""
    told, newest = [], None
    for line in lines:
        newest = line.get("buffer") or newest
        told.append(_snapshot(line, classes))
    return told, _classes_now(newest, classes)


def _snapshot(line: Line, classes: int) -> Line:
    """A snapshot with its classes one by one, or as quantiles if there are many."""
    buffer = line.get("buffer")
    if not buffer:
        return line
    counts = _all_counts(buffer, classes)
    values: Line = {"classes": counts}
    if classes > MOST_CLASSES_EACH:
        values = {"quantiles": np.quantile(counts, (0, 0.1, 0.5, 0.9, 1)).tolist()}
    rest = {name: value for name, value in buffer.items() if name != "class_counts"}
    return line | {"buffer": rest | values}


def _controller(lines: Iterable[Line]) -> list[Line]:
    """Decisions, and what each earned for the one before: that of the version in its report.

    A line that others wrote, and that lacks what the page shows, is left out.
    """
    told = []
    for line in lines:
        with suppress(KeyError, TypeError):
            told.append(_start(line) if line["event"] == "start" else _decision(line))
    return told


def _start(line: Line) -> Line:
    return {name: line.get(name) for name in ("event", "time", "policy", "arms")}


def _decision(line: Line) -> Line:
    return {
        "event": "decision",
        "time": line["time"],
        "arm": line["arm"],
        "version": line["params"]["version"],
        "reward": line["reward"],
        "earned_by": line["report"]["params_version"],
    }
