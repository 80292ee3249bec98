"""All that a buffer in memory holds, and that a reset forgets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from buffer.archive import Archive, Chunk, Meta
from buffer.batches import Draws, schema_of
from buffer.codec import prepare
from buffer.config import BufferTable
from buffer.items import Item, Items
from buffer.limiter import Limiter, carried_over
from buffer.params import SamplingParams
from buffer.priorities import importance_weights, mean_weight
from buffer.progress import StudentProgress
from buffer.version import NEVER, Version

COUNTED = (
    *("sampled", "redraws", "duplicates", "applied", "stale", "older"),
    *("insert_waits", "sample_waits"),
)


@dataclass
class Contents:
    """Samples and everything beside them."""

    params: SamplingParams
    started: float
    items: Items
    limiter: Limiter
    schema: dict[str, str] = field(default_factory=dict)
    sequences: dict[str, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    progress: StudentProgress | None = None
    student: tuple[Version, bytes] = (NEVER, b"")

    def draw(self, n: int, seed: int) -> tuple[list[Item], Draws]:
        """``n`` training samples by their masses."""
        items, params = list(self.items.train.values()), self.params
        chances = self.items.probabilities(params)
        drawn = np.random.default_rng(seed).choice(len(items), size=n, p=chances)
        picked = [items[index] for index in drawn]
        exponent = params.importance_exponent
        draws = Draws(
            identities=self.items.identities(picked),
            probabilities=chances[drawn],
            weights=importance_weights(chances[drawn], len(items), exponent),
            weight_mean=mean_weight(chances, exponent),
            params_version=params.version,
            population=len(items),
        )
        return picked, draws

    def saved(self, attempts: Mapping[str, int]) -> tuple[Meta, Chunk]:
        """What a snapshot holds."""
        counters = {
            **{name: float(self.counts[name]) for name in COUNTED},
            "inserted": float(self.items.inserted),
            "evicted": float(self.items.evicted),
            "balance": self.limiter.balance,
            "warm": float(self.limiter.warm),
        }
        return Meta(counters, self.params, dict(attempts)), self.items.as_chunk()

    def put_back(self, archive: Archive, table: BufferTable) -> int:
        """Adds what fits of a snapshot to contents that are empty; how many samples."""
        counters = archive.meta.counters
        self.counts.update({name: int(counters[name]) for name in COUNTED})
        self.limiter.balance = carried_over(counters["balance"], self.limiter.error_buffer)
        self.limiter.warm = bool(counters["warm"])
        self.items.inserted = int(counters["inserted"])
        self.items.evicted = int(counters["evicted"])
        wanted = archive.newest(table.capacity, table.probe_capacity)
        for chunk in archive.chunks(wanted):
            for item, payload in zip(chunk.items, chunk.payloads, strict=True):
                self.schema.update(schema_of(prepare([self.items.put_back(item, payload)])))
        return int(wanted.sum())
