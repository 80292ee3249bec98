"""Draws that a client makes for itself, from the slot table of a small shard.

A script draws at a cost per draw, which no buffer is too large for. Reading the records of a small
one costs less, all the less as they are only sent when they have changed; the distribution is then
worked out as the in-memory buffer does it. Admission, counting and reading are one atomic step, so
a draw is from what was committed before it, like any other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from buffer.answers import COMMITTED, DRAW, Drawn, Purpose, Refused, Slots
from buffer.config import BufferTable
from buffer.params import SamplingParams, params_of
from buffer.priorities import cohorts_behind, mean_weight, probabilities
from buffer.scripts import Scripts

SLOTS_PER_DRAW = 32
"""The largest table that is worth reading for one draw: about what a draw costs the server."""


class _Table(NamedTuple):
    """What was read, and what follows from it."""

    answer: Slots
    items: NDArray[np.void]
    """``[N]`` of :data:`RECORD`, of the samples that can be drawn."""
    slots: NDArray[np.intp]
    """``[N]``."""
    params: SamplingParams
    chances: NDArray[np.float64]
    """``[N]``."""
    cumulative: NDArray[np.float64]
    """``[N]``."""
    weight_mean: float


def pays(table: BufferTable, draws: int) -> bool:
    """Whether a client of a shard with these limits should make so many draws for itself.

    One that remembers no samples should remember no slots either.
    """
    return table.cache_mebibytes > 0 and table.capacity <= SLOTS_PER_DRAW * draws


class SlotTable:
    """The slot table of a shard, as a client last saw it. May be used from several threads.

    Args:
        scripts: of the shard.
        table: its limits.
    """

    def __init__(self, scripts: Scripts, table: BufferTable) -> None:
        self._scripts = scripts
        self._uniform = table.selector == "uniform"
        self._known: _Table | None = None

    def sample(self, points: NDArray[np.float64], purpose: Purpose) -> Drawn | Refused:
        """Draws training samples; see :meth:`buffer.scripts.Scripts.sample`."""
        known = self._known
        version = (known.answer.incarnation, known.answer.changes) if known else (-1, -1)
        answer = self._scripts.slots(len(points), purpose, version)
        if isinstance(answer, Refused):
            return answer
        table = self._table(answer, known)
        self._known = table
        picks = np.searchsorted(table.cumulative, points, side="right")
        drawn = np.empty(len(points), dtype=DRAW)
        drawn["slot"], drawn["generation"] = table.slots[picks], table.items["generation"][picks]
        drawn["probability"] = table.chances[picks]
        return Drawn(
            incarnation=answer.incarnation,
            population=len(table.items),
            params_version=table.params.version,
            importance_exponent=table.params.importance_exponent,
            weight_mean=table.weight_mean,
            draws=drawn,
        )

    def _table(self, answer: Slots, known: _Table | None) -> _Table:
        records = answer.records
        if known is not None and records is None:
            if known.answer.params == answer.params:
                return known
            slots, items = known.slots, known.items
        else:
            assert records is not None
            slots = np.flatnonzero(records["state"] == COMMITTED)
            items = records.take(slots)
        params = params_of(answer.params)
        if self._uniform:
            params = params.model_copy(update={"uniform_share": 1.0})
        cells = items["cell"]
        behind = cohorts_behind(cells & 0xFF, answer.newest)
        chances = probabilities(cells >> 8 & 0xFF, cells >> 16, behind, params)
        cumulative = np.cumsum(chances)
        cumulative[-1] = 1.0
        mean = mean_weight(chances, params.importance_exponent)
        return _Table(answer, items, slots, params, chances, cumulative, mean)
