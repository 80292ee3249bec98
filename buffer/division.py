"""How a buffer is divided among its shards: its limits, a draw, its counters."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from buffer.answers import LABEL, Masses
from buffer.archive import Meta
from buffer.config import BufferTable

ADDED = frozenset(
    ("inserted", "sampled", "evicted", "redraws", "duplicates", "applied", "stale", "older")
) | frozenset(("insert_waits", "sample_waits", "balance"))
"""Counters of which each shard has a part."""


def table_of_shard(table: BufferTable, shards: int) -> BufferTable:
    """The limits of one of several shards, which together have at least those of the table."""

    def part(whole: int) -> int:
        return -(-whole // shards)

    return table.model_copy(
        update={
            "capacity": max(2, part(table.capacity)),
            "probe_capacity": part(table.probe_capacity),
            "min_size_to_sample": part(table.minimum),
            "error_buffer": None if table.error_buffer is None else table.error_buffer / shards,
            "cache_mebibytes": part(table.cache_mebibytes),
        }
    )


def in_proportion(n: int, sizes: Sequence[int]) -> list[int]:
    """How many each of several shards gives to ``n``, or to all if there are fewer."""
    ends = np.cumsum(sizes)
    parts: list[int] = np.diff(min(n, ends[-1]) * ends // max(1, ends[-1]), prepend=0).tolist()
    return parts


def together(metas: Sequence[Meta]) -> Meta:
    """What shards are beside their items, as of one."""
    first = max(metas, key=lambda meta: meta.params.version)
    counters = {
        name: sum(meta.counters[name] for meta in metas) if name in ADDED else value
        for name, value in first.counters.items()
    }
    attempts: dict[str, int] = {}
    for meta in metas:
        for role, attempt in meta.attempts.items():
            attempts[role] = max(attempt, attempts.get(role, 0))
    return Meta(counters, first.params, attempts)


def share_of(meta: Meta, shards: int) -> Meta:
    """The part of one of several shards; of what cannot be divided a little more than its part."""
    counters = {
        name: value / shards if name == "balance" else -(-value // shards)
        for name, value in meta.counters.items()
        if name in ADDED
    }
    return meta._replace(counters={**meta.counters, **counters})


def common_of(masses: Sequence[Masses]) -> tuple[NDArray[np.float64], list[bytes]]:
    """What the shards of a draw agree on, from what each contributes.

    ``P(shard) = (1 - u) sum_label(g(label) m(shard, label)) / M + u N(shard) / N`` with ``g`` and
    ``M`` over all shards, as in :func:`buffer.priorities.probabilities`.

    Returns:
        The share of each shard, adding up to 1, and what each is told (see ``lua/sample.lua``).
    """
    totals: Counter[int] = Counter()
    for shard in masses:
        totals.update(dict(shard.labels.tolist()))
    uniform, balance = masses[0].uniform_share, masses[0].label_balance
    factors = {label: mass**-balance for label, mass in totals.items()}
    mass = sum(factors[label] * total for label, total in totals.items())
    items = sum(shard.items for shard in masses)
    shares = np.array(
        [
            (1 - uniform) * sum(factors[label] * own for label, own in shard.labels.tolist()) / mass
            + uniform * shard.items / items
            for shard in masses
        ]
    )
    shares /= shares.sum()
    packed = np.array(list(factors.items()), dtype=LABEL).tobytes()
    return shares, [struct.pack("<ddd", share, items, mass) + packed for share in shares]
