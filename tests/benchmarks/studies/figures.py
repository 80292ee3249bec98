"""What is told of a run, and how it moved since the last one."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

Record = dict[str, Any]
Measures = dict[str, Callable[[Record], float]]
NONE = float("nan")
MOVED = 0.1
"""A figure of a shared machine has moved if it did so by more than this share."""
MOVED_POINTS = 1.0
"""An accuracy has moved if it did so by more points than this."""


def on_pool(run: Record, *, without: str = "") -> float:
    """Agreement on images of the arms but its own, each arm counting the same, percent.

    Args:
        run: judged, or the value is not a number.
        without: an arm whose images are left out, too: the one that it is compared with.
    """
    if "pool_agreements" not in run:  # not judged, or before sources were kept apart
        return float(run.get("pool_agreement", NONE))
    judged = run["pool_agreements"]
    values = [value for source, value in judged.items() if source not in (run["arm"], without)]
    return statistics.mean(values) if values else NONE


def _number(run: Record, what: str) -> float:
    value = run.get(what)
    return NONE if value is None else float(value)


def _distilling_seconds(run: Record) -> float:
    """Of wall time, from the first step to the last one, whatever the number of workers."""
    return float(run.get("wall_seconds", NONE) - run.get("first_step_at_seconds", NONE))


COLUMNS: Measures = {
    "student": lambda run: run["student_accuracy"],
    "agreement": lambda run: run["agreement"],
    "on the pool": on_pool,
}
COUNTS: Measures = {
    "inverted": lambda run: run["samples_inverted"],
    "steps": lambda run: run["student_steps"],
    "inverted a busy second": lambda run: run["samples_inverted"] / run["inversion_seconds"],
    "learned a second": lambda run: run.get("samples_drawn", NONE) / _distilling_seconds(run),
    "distiller idle, %": lambda run: 100 * run.get("distiller_idle_share", NONE),
    "first step, s": lambda run: run.get("first_step_at_seconds", NONE),
    "evaluation, s": lambda run: run.get("evaluation_seconds", NONE),
    "processor, s": lambda run: run.get("processor_seconds", {}).get("all", NONE),
    "GPU, %": lambda run: _number(run, "gpu_utilization"),
    "GPU memory, MiB": lambda run: _number(run, "gpu_peak_mebibytes"),
    "peak memory, MiB": lambda run: run.get("peak_mebibytes", NONE),
}


def figures(run: Record) -> dict[str, float]:
    """All that was measured in a run."""
    found = {what: measure(run) for what, measure in (COLUMNS | COUNTS).items()}
    return {what: value for what, value in found.items() if not math.isnan(value)}


def moved(now: Mapping[str, float], before: Mapping[str, float]) -> str:
    """A line that says which figures moved: accuracies by points, others as ratios to before.

    Those that only one of the two has, or that were 0, are named.
    """
    if not before:
        return "there is no earlier run to compare with"
    both = now.keys() & before.keys()
    points = {what: now[what] - before[what] for what in COLUMNS if what in both}
    ratios = {what: now[what] / before[what] for what in now if before.get(what) and what in both}
    far = [f"{what} {by:+.2f}" for what, by in points.items() if abs(by) > MOVED_POINTS]
    far += [
        f"{what} {ratio:.2f}"
        for what, ratio in ratios.items()
        if what not in COLUMNS and abs(ratio - 1) > MOVED
    ]
    alone = sorted(now.keys() ^ before.keys() | {what for what in both if not before[what]})
    said = f"times the last: {', '.join(far) or 'nothing moved'}"
    return f"{said}; not compared: {', '.join(alone)}" if alone else said
