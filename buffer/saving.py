"""From a shard in Redis to an archive and back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from buffer.answers import COMMITTED, LOADED, Dumped
from buffer.archive import CHUNK_ITEMS, ITEM, Archive, Chunk, Meta
from buffer.batches import DEFAULT_ERROR_BUFFER, identity_array
from buffer.codec import rename
from buffer.config import BufferTable
from buffer.limiter import carried_over
from buffer.payloads import Payloads
from buffer.priorities import COHORTS, OLDEST_COHORT, cohorts_behind
from buffer.scripts import Scripts


class Dump(NamedTuple):
    """A shard's contents."""

    meta: Meta
    chunks: Iterator[Chunk]
    """Read as they are asked for; what is evicted until then is left out."""


def dump(scripts: Scripts, payloads: Payloads, table: BufferTable, shard: int) -> Dump:
    """The contents of a shard; training samples first, the oldest first."""
    found = scripts.dump()
    meta = Meta(found.counters, found.params, found.attempts)
    items, slots, generations = _items(found, table)
    names = identity_array(shard, found.incarnation, slots, generations)
    return Dump(meta, _chunks(items, names, payloads))


def load(
    scripts: Scripts,
    payloads: Payloads,
    table: BufferTable,
    shard: int,
    archive: Archive,
    wanted: NDArray[np.bool_],
    meta: Meta,
) -> int:
    """Empties a shard and puts wanted items of an archive into it.

    Returns:
        How many are there now.
    """
    probes = archive.items["probe"].astype(bool)
    slots = archive.ranks(wanted)
    slots[probes] += table.capacity
    counters = _start(
        meta.counters, table, int((wanted & ~probes).sum()), int((wanted & probes).sum())
    )
    done, loaded = 0, 0
    rows = np.flatnonzero(wanted)
    # Payloads first: once the new incarnation has begun they could be somebody's.
    payloads.delete()
    incarnation = scripts.reset(meta.params, json.dumps(counters), json.dumps(meta.attempts))
    behind = archive.items["behind"].astype(np.uint32)
    behind[behind >= OLDEST_COHORT] = COHORTS
    for chunk in archive.chunks(wanted):
        here = rows[done : done + len(chunk.items)]
        own = slots[here]
        done += len(chunk.items)
        names = identity_array(shard, incarnation, own, np.ones(len(own), dtype=np.uint32))
        renamed = [
            rename(payload, name) for payload, name in zip(chunk.payloads, names, strict=True)
        ]
        schema = payloads.keep(names, renamed)
        updates = np.zeros(len(own), dtype=LOADED)
        updates["slot"] = own
        updates["cell"] = (
            chunk.items["label"].astype(np.uint32) << 16
            | chunk.items["level"].astype(np.uint32) << 8
            | behind[here]
        )
        updates["attempt"], updates["step"] = chunk.items["attempt"], chunk.items["step"]
        loaded += scripts.load(incarnation, schema, updates)
    return loaded


def _start(
    saved: dict[str, float], table: BufferTable, samples: int, probes: int
) -> dict[str, str]:
    """Counters of a shard that is about to be loaded."""
    head = samples % table.capacity if table.eviction == "oldest" else samples
    own = {
        **{name: 0 for name in ("size", "probe_size", "free", "cursor", "queue_used")},
        "head": head,
        "probe_head": probes % max(1, table.probe_capacity),
        "balance": carried_over(saved["balance"], table.error_buffer or DEFAULT_ERROR_BUFFER),
    }
    return {name: f"{value:.17g}" for name, value in {**saved, **own}.items()}


def _items(
    found: Dumped, table: BufferTable
) -> tuple[NDArray[np.void], NDArray[np.uint32], NDArray[np.uint32]]:
    """Items, their slots and generations, without the lengths of their payloads."""
    train = np.flatnonzero(found.records["state"] == COMMITTED)
    cells = found.records["cell"][train]
    behind = cohorts_behind(cells & 0xFF, found.newest)
    turn = (train - int(found.counters["head"])) % table.capacity
    order = np.lexsort((turn, -behind))
    probes = np.flatnonzero(found.probes["state"] == COMMITTED)
    ring = max(1, table.probe_capacity)
    probes = probes[np.argsort((probes - int(found.counters["probe_head"])) % ring)]
    items = np.zeros(len(train) + len(probes), dtype=ITEM)
    items["label"][: len(train)] = cells[order] >> 16
    items["level"][: len(train)] = cells[order] >> 8 & 0xFF
    items["behind"][: len(train)] = behind[order]
    for field in ("attempt", "step"):
        items[field][: len(train)] = found.records[field][train][order]
    items["probe"][len(train) :] = 1
    slots = np.concatenate([train[order], probes + table.capacity]).astype(np.uint32)
    generations = np.concatenate(
        [found.records["generation"][train][order], found.probes["generation"][probes]]
    )
    return items, slots, generations


def _chunks(
    items: NDArray[np.void], names: NDArray[np.void], payloads: Payloads
) -> Iterator[Chunk]:
    for start in range(0, len(items), CHUNK_ITEMS):
        rows = slice(start, start + CHUNK_ITEMS)
        found = payloads.raw(names[rows])
        kept = np.array([payload is not None for payload in found])
        chunk = items[rows][kept]
        present = [payload for payload in found if payload is not None]
        chunk["bytes"] = [len(payload) for payload in present]
        yield Chunk(chunk, present)
