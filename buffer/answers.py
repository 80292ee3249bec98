"""What goes into the scripts and what they answer, as types: one for each packed form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from buffer.params import SamplingParams
from buffer.version import Version

PAIR = np.dtype([("slot", "<u4"), ("generation", "<u4")])
DRAW = np.dtype([("slot", "<u4"), ("generation", "<u4"), ("probability", "<f8")])
GROUP = np.dtype([("group", "<u4"), ("items", "<u4"), ("cohorts", "<u4", (16,))])
UPDATE = np.dtype([(name, "<u4") for name in ("incarnation", "slot", "generation", "level")])
RECORD = np.dtype(
    [(name, "<u4") for name in ("state", "generation", "cell", "position", "attempt", "step")]
)
COMMITTED = 2
"""The state of a record whose sample can be drawn."""
LOADED = np.dtype([(name, "<u4") for name in ("slot", "cell", "attempt", "step")])
LABEL = np.dtype([("label", "<u4"), ("mass", "<f8")])
Purpose = Literal["draw", "redraw", "look"]
"""Why draws are made: the limiter minds only the first, the second replace some of a first."""


class Insert(NamedTuple):
    """The name of an insert."""

    producer: str
    epoch: int
    sequence: int


class Reserved(NamedTuple):
    """Slots taken for an insert."""

    incarnation: int
    pairs: NDArray[np.void]
    """``[n]`` of :data:`PAIR`."""


class Refused(NamedTuple):
    """The limiter's no."""

    retry_after_seconds: float
    reason: str


class Misfit(NamedTuple):
    """An array that does not fit the others of its name."""

    name: str
    stored: str


class Drawn(NamedTuple):
    """An answered draw."""

    incarnation: int
    population: int
    params_version: Version
    importance_exponent: float
    weight_mean: float
    """Expected raw importance weight of a draw."""
    draws: NDArray[np.void]
    """``[n]`` of :data:`DRAW`."""


class Masses(NamedTuple):
    """What a shard would contribute to a draw over all shards."""

    items: int
    slack: float
    """Draws that the limiter admits now."""
    uniform_share: float
    label_balance: float
    labels: NDArray[np.void]
    """Of :data:`LABEL`: the mass of each label's items."""


class Slots(NamedTuple):
    """What a client needs to draw for itself."""

    incarnation: int
    changes: int
    """Of the samples and their levels, ever."""
    newest: int
    """Number of the newest cohort."""
    params: dict[str, str]
    records: NDArray[np.void] | None
    """``[capacity]`` of :data:`RECORD`; ``None`` if they have not changed."""


class Dumped(NamedTuple):
    """Everything that a snapshot needs but the payloads."""

    incarnation: int
    newest: int
    """Number of the newest cohort."""
    counters: dict[str, float]
    params: SamplingParams
    attempts: dict[str, int]
    records: NDArray[np.void]
    """``[capacity]`` of :data:`RECORD`."""
    probes: NDArray[np.void]
    """``[probe_capacity]`` of :data:`RECORD`."""


class Picture(NamedTuple):
    """What ``info`` answers."""

    seconds: float
    counters: dict[str, float]
    groups: dict[int, int]
    """Items of each group."""

    def totals(self, part: Callable[[int], int]) -> dict[int, int]:
        """Items by a part of their group's number."""
        counts: Counter[int] = Counter()
        for group, count in self.groups.items():
            counts[part(group)] += count
        return dict(counts)
