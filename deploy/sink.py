"""What a recorder notes of a run, and the protocol of those who take it: files, trackers.

Letters in shapes: M images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from buffer.interface import BufferInfo
from buffer.params import SamplingParams
from buffer.priorities import LEVELS, STEPS_PER_OCTAVE, value_of
from buffer.progress import StudentProgress
from deploy.supervisor import Totals


class Histogram(NamedTuple):
    """How many items lie between each edge and the next."""

    edges: tuple[float, ...]
    """``n + 1`` of them, rising."""
    counts: tuple[float, ...]
    """``n`` of them, >= 0; whole numbers unless they are estimated."""


@dataclass(frozen=True)
class Synthesizers:
    """What the synthesizers of a run do, and did."""

    wanted: int
    states: dict[str, int]
    """How many there are in each state of :data:`deploy.seat.STATES`; others are absent."""
    totals: Totals
    """Those of pipelines before included, of which this one goes on."""


@dataclass(frozen=True)
class Snapshot:
    """A run at one moment."""

    time: float
    """Unix time."""
    elapsed_seconds: float
    """Wall time since the run began, evaluation included, interruptions not."""
    synthesizers: Synthesizers
    buffer: BufferInfo | None
    """``None`` while the buffer is away."""
    params: SamplingParams | None
    """In force; ``None`` while the buffer is away."""
    progress: StudentProgress | None
    """``None`` before the first, and while the buffer is away."""
    learning_rate: float | None = None
    """Of the newest report in ``metrics.jsonl``, if there is one."""
    student_accuracy: float | None = None
    """Percent, of the newest evaluation on test data, if there is one."""

    @property
    def step(self) -> int:
        """Student steps of the run; 0 if they are not known."""
        return 0 if self.progress is None else self.progress.version.step

    def scalars(self) -> dict[str, float]:
        """Every single number by a name like ``student/kl_mean``; what is not known is absent."""
        groups: dict[str, Mapping[str, Any]] = {
            "synthesizers": {
                "wanted": self.synthesizers.wanted,
                **self.synthesizers.states,
                **asdict(self.synthesizers.totals),
            }
        }
        if self.buffer is not None:
            counters = asdict(self.buffer) | {"updates": self.buffer.updates._asdict()}
            for by_class_or_level in ("class_counts", "level_counts"):
                del counters[by_class_or_level]
            groups["buffer"] = counters
        if self.params is not None:
            groups["parameters"] = self.params.model_dump()
        student = {} if self.progress is None else self.progress.model_dump()
        groups["student"] = student | {
            "learning_rate": self.learning_rate,
            "accuracy": self.student_accuracy,
        }
        return dict(_numbers(groups))

    def histograms(self) -> dict[str, Histogram]:
        """The priorities of the training samples, a bin an octave; none while they are unknown."""
        levels = {} if self.buffer is None else self.buffer.level_counts
        return {"buffer/priority": priorities(levels)} if levels else {}


@dataclass(frozen=True)
class Pictures:
    """Samples of the buffer to look at, sorted by class, and how old all its items are."""

    time: float
    elapsed_seconds: float
    step: int
    """Of the student."""
    images: NDArray[np.uint8]
    """``[M, C, H, W]``, of at most 64 pixels a side."""
    predicted_classes: NDArray[np.int64]
    """``[M]``, rising."""
    target_labels: NDArray[np.int64]
    """``[M]``: what the generator was asked for; -1 if nothing."""
    confidences: NDArray[np.float32]
    """``[M]``: the teacher's."""
    difficulties: NDArray[np.float32]
    """``[M]``: ``(1 - confidence)^difficulty_exponent``, by the exponent in force."""
    ages: NDArray[np.int64]
    """``[M]``, in student steps."""
    buffer_ages: Histogram
    """Of all items of the buffer, in student steps, estimated from one draw."""


class Sink(Protocol):
    """Takes what is noted of a run. Called by one thread, one call at a time.

    What a call raises is logged and changes nothing else: the run goes on, and so do other sinks.
    A call that takes long delays what is noted next, and the end of the run: sinks that talk to
    others do so in a thread of their own.
    """

    def note(self, snapshot: Snapshot) -> None:
        """Takes a snapshot: one every ``monitoring.interval_seconds``, and one at the end."""
        ...

    def show(self, pictures: Pictures) -> None:
        """Takes pictures: some every ``monitoring.pictures_seconds``, and at the end."""
        ...

    def close(self) -> None:
        """The run has ended; nothing is noted afterwards."""
        ...


def priorities(level_counts: Mapping[int, int]) -> Histogram:
    """Priorities of items by their levels, a bin an octave, from the first to the last with items.

    Args:
        level_counts: items per level (see ``buffer.priorities``), at least one.
    """
    first = min(level_counts) // STEPS_PER_OCTAVE
    last = max(level_counts) // STEPS_PER_OCTAVE
    # A level stands for what rounds to it: a bin begins half a level below its first.
    starts = np.arange(first, last + 2) * STEPS_PER_OCTAVE
    edges = value_of(starts) * 2.0 ** (-0.5 / STEPS_PER_OCTAVE)
    levels = np.zeros(LEVELS + STEPS_PER_OCTAVE, dtype=np.int64)
    for level, count in level_counts.items():
        levels[level] = count
    octaves = [levels[start : start + STEPS_PER_OCTAVE].sum() for start in starts[:-1]]
    return Histogram(tuple(edges.tolist()), tuple(float(count) for count in octaves))


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", float(value)
