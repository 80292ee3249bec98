"""Samples out of one shard: draws, and what a draw over several shards needs of it."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from buffer.answers import Drawn, Masses, Purpose, Refused
from buffer.batches import Draws, concatenate, identity_array, unweighted
from buffer.columns import Columns, joined
from buffer.config import BufferTable
from buffer.errors import RateLimited
from buffer.payloads import Payloads
from buffer.priorities import importance_weights
from buffer.scripts import Scripts
from buffer.slot_table import SlotTable, pays
from buffer.version import NEVER

REDRAW_ROUNDS = 8
REDRAW_RETRY_SECONDS = 0.1


class Drawing:
    """The draws of one shard. May be used from several threads.

    Args:
        scripts: of the shard.
        payloads: of the shard.
        table: its limits.
        shard: its number.
        seed: of draws that bring none of their own.
    """

    def __init__(
        self,
        scripts: Scripts,
        payloads: Payloads,
        table: BufferTable,
        shard: int,
        seed: int | None,
    ) -> None:
        self._scripts = scripts
        self._payloads = payloads
        self._in_order = table.selector in ("fifo", "sequential")
        self._table = table
        self._slots = SlotTable(scripts, table)
        self._shard = shard
        self._lock = threading.Lock()
        self._generator = np.random.default_rng(seed)

    def draw(
        self, n: int, *, seed: int | None = None, counted: bool = True, common: bytes = b""
    ) -> tuple[Columns, Draws]:
        """The samples of ``n`` draws, and how they were drawn.

        See :meth:`buffer.interface.Replay.sample`.

        Args:
            n: how many.
            seed: makes the draw reproducible.
            counted: whether the limiter minds.
            common: what all shards agreed on; see ``lua/sample.lua``.
        """
        pieces: list[Columns] = []
        rounds: list[Draws] = []
        left = n
        generator = np.random.default_rng(self._seed() if seed is None else seed)
        incarnation = -1
        for number in range(REDRAW_ROUNDS):
            purpose: Purpose = "look" if not counted else "redraw" if number else "draw"
            answer = self._ask_for(generator.random(left), purpose, common)
            if answer.incarnation != incarnation:
                # What was drawn before a reset need not fit what came after it.
                pieces, rounds, left, incarnation = [], [], n, answer.incarnation
            names = self._identities(answer.incarnation, answer.draws)
            found, intact = self._payloads.read(names)
            if found is not None:
                pieces.append(found if intact.all() else found.at(np.flatnonzero(intact)))
            rounds.append(_draws(answer, names, intact))
            left -= int(np.count_nonzero(intact))
            if left == 0:
                return joined(pieces), concatenate(rounds)
            self._scripts.discard(answer.incarnation, _pairs(answer.draws[~intact]))
        # What was counted for this draw stays counted: the limiter errs by one batch.
        raise RateLimited(
            f"samples drawn in {REDRAW_ROUNDS} rounds were evicted or damaged before they came",
            REDRAW_RETRY_SECONDS,
        )

    def peek(self, n: int) -> tuple[Columns | None, Draws]:
        """The newest probe samples, if there are any, as certain draws of nobody's parameters.

        See :meth:`buffer.interface.Replay.probe`.
        """
        members = self._scripts.probe(n)
        names = self._identities(members.incarnation, members.pairs)
        found, intact = self._payloads.read(names)
        draws = unweighted(names[intact], NEVER)
        return None if found is None else found.at(np.flatnonzero(intact)), draws

    def masses(self) -> Masses:
        """What this shard would contribute to a draw over all shards.

        Raises:
            RateLimited: it has too few samples.
        """
        answer = self._scripts.masses()
        if isinstance(answer, Refused):
            raise RateLimited(answer.reason, answer.retry_after_seconds)
        return answer

    def _ask_for(self, points: NDArray[np.float64], purpose: Purpose, common: bytes) -> Drawn:
        answer: Drawn | Refused
        if self._in_order and purpose != "look":
            answer = self._scripts.take(len(points))
        elif not common and pays(self._table, len(points)):
            answer = self._slots.sample(points, purpose)
        else:
            answer = self._scripts.sample(points, purpose, common)
        if isinstance(answer, Refused):
            raise RateLimited(answer.reason, answer.retry_after_seconds)
        return answer

    def _seed(self) -> int:
        with self._lock:
            return int(self._generator.integers(2**63))

    def _identities(self, incarnation: int, pairs: NDArray[np.void]) -> NDArray[np.void]:
        return identity_array(self._shard, incarnation, pairs["slot"], pairs["generation"])


def _draws(answer: Drawn, names: NDArray[np.void], intact: NDArray[np.bool_]) -> Draws:
    """What is known of the draws ``[n]`` that stand, and their names."""
    rows = np.flatnonzero(intact)
    chances = answer.draws["probability"].take(rows)
    return Draws(
        identities=names.take(rows),
        probabilities=chances,
        weights=importance_weights(chances, answer.population, answer.importance_exponent),
        weight_mean=answer.weight_mean,
        params_version=answer.params_version,
        population=answer.population,
    )


def _pairs(draws: NDArray[np.void]) -> NDArray[np.void]:
    """``[n]`` packed slots and generations, each once."""
    return np.unique(np.array(draws[["slot", "generation"]].tolist(), dtype="<u4,<u4"))
