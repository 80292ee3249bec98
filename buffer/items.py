"""Samples in memory with all that decides how they are drawn. Obvious rather than fast."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from buffer.archive import ITEM, Chunk
from buffer.batches import identity_array
from buffer.codec import decode, encode
from buffer.config import BufferTable
from buffer.params import SamplingParams
from buffer.priorities import OLDEST_COHORT, cohort_width, level_of, probabilities
from buffer.sample import Identity, Sample
from buffer.version import NEVER, Version


@dataclass
class Item:
    """A stored sample."""

    sample: Sample
    slot: int
    generation: int
    level: int
    cohort: int
    version: Version = NEVER
    taken: int = 0
    """Draws out of the queue."""


class Items:
    """Training samples in slots, and a ring of probe samples. Shard 0.

    Args:
        table: the limits; who makes room, and the priority of new samples.
        incarnation: of the identities.

    Attributes:
        train: by slot.
        probes: by slot, oldest first.
        queue: slots and generations of training samples, oldest first, with their draws.
        inserted: training samples ever.
        evicted: training samples that had to make room, or left the queue.
    """

    def __init__(self, table: BufferTable, incarnation: int) -> None:
        self._table = table
        self._incarnation = incarnation
        self._generations: Counter[int] = Counter()
        self._probes_inserted = 0
        self._cursor = self._head = 0
        self.train: dict[int, Item] = {}
        self.probes: dict[int, Item] = {}
        self.queue: list[Item] = []
        self.inserted = 0
        self.evicted = 0

    def add(self, samples: Sequence[Sample]) -> None:
        """Inserts samples together; first room is made for all of them."""
        train = [sample for sample in samples if sample.split == "train"]
        slots = self._make_room(len(train))
        self._forget_the_gone()
        level = self._level_of_all()
        for sample, slot in zip(train, slots, strict=True):
            item = self._item(sample, slot)
            item.level = item.level if level is None else level
            self.train[slot] = item
            self.queue.append(item)
            self.inserted += 1
        for sample in samples:
            if sample.split == "probe":
                self._add_probe(sample)

    def take(self, n: int) -> list[Item]:
        """The next ``n`` in order; fewer only if the queue is shorter, and then none leaves it."""
        if self._table.selector == "sequential":
            return [self._next() for _ in range(n)]
        self._forget_the_gone()
        most = self._table.max_times_sampled
        taken = [item for item in self.queue for _ in range(most - item.taken)][:n]
        if len(taken) == n:
            for item in taken:
                item.taken += 1
                if item.taken == most:
                    del self.train[item.slot]
                    self.evicted += 1
        return taken

    def as_chunk(self) -> Chunk:
        """All items for an archive, the oldest first, then the probes."""
        newest = (self.inserted - 1) // cohort_width(self._table.capacity)
        held = [*sorted(self.train.values(), key=lambda item: item.cohort), *self.probes.values()]
        payloads = [
            encode(item.sample, Identity(0, self._incarnation, item.slot, item.generation))
            for item in held
        ]
        items = np.zeros(len(held), dtype=ITEM)
        items["bytes"] = [len(payload) for payload in payloads]
        for row, item in enumerate(held):
            items["probe"][row] = item.sample.split == "probe"
            items["label"][row], items["level"][row] = item.sample.predicted_class, item.level
            items["behind"][row] = min(newest - item.cohort, OLDEST_COHORT)
            items["attempt"][row], items["step"][row] = item.version
        return Chunk(items, payloads)

    def put_back(self, row: NDArray[np.void], payload: bytes) -> Sample:
        """Adds an item of an archive as it was, with another name; its sample."""
        _, sample = decode(payload)
        if row["probe"]:
            self._add_probe(sample)
            return sample
        slot = len(self.train)
        self._head = (slot + 1) % self._table.capacity
        item = self._item(sample, slot)
        newest = (self.inserted - 1) // cohort_width(self._table.capacity)
        item.level, item.cohort = int(row["level"]), newest - int(row["behind"])
        item.version = Version(int(row["attempt"]), int(row["step"]))
        self.train[slot] = item
        self.queue.append(item)
        return sample

    def _forget_the_gone(self) -> None:
        self.queue = [item for item in self.queue if self.train.get(item.slot) is item]

    def _next(self) -> Item:
        while self._cursor not in self.train:
            self._cursor = (self._cursor + 1) % self._table.capacity
        item = self.train[self._cursor]
        self._cursor = (self._cursor + 1) % self._table.capacity
        return item

    def _make_room(self, n: int) -> list[int]:
        """Slots for ``n`` samples; who was there is gone."""
        capacity = self._table.capacity
        if self._table.eviction == "oldest":
            slots = [(self._head + i) % capacity for i in range(n)]
            self._head = (self._head + n) % capacity
        else:
            slots = [slot for slot in range(capacity) if slot not in self.train][:n]
            before = self._labels()
            while len(slots) < n:
                slots.append(self._victim(before).slot)
                self._evict(slots[-1])
        for slot in slots:
            self._evict(slot)
        return slots

    def _evict(self, slot: int) -> None:
        if self.train.pop(slot, None) is not None:
            self.evicted += 1

    def _labels(self) -> Counter[int]:
        return Counter(item.sample.predicted_class for item in self.train.values())

    def _victim(self, before: Counter[int]) -> Item:
        """Who goes next; of items that are equal in all that counts, any may.

        Of labels that have equally many now, the one that had fewest before gives first.
        """
        items = self.train.values()
        if self._table.eviction == "lowest_priority":
            return min(items, key=lambda item: (item.level, item.cohort))
        counts = self._labels()
        largest = max(counts, key=lambda label: (counts[label], -before[label], label))
        return min(
            (item for item in items if item.sample.predicted_class == largest),
            key=lambda item: item.cohort,
        )

    def _level_of_all(self) -> int | None:
        """The level that all new samples get, or ``None`` for their own."""
        levels = sorted((item.level for item in self.train.values()), reverse=True)
        if self._table.new_priority == "disagreement" or not levels:
            return None
        return levels[0 if self._table.new_priority == "highest" else len(levels) // 10]

    def _add_probe(self, sample: Sample) -> None:
        slot = self._table.capacity + self._probes_inserted % self._table.probe_capacity
        # Out first: the order of a dictionary is that of insertion.
        self.probes.pop(slot, None)
        self.probes[slot] = self._item(sample, slot)
        self._probes_inserted += 1

    def update(self, identity: tuple[int, int, int, int], level: int, version: Version) -> str:
        """Sets the level of a training sample: ``applied``, ``stale`` or ``older``."""
        shard, incarnation, slot, generation = identity
        item = self.train.get(slot)
        if item is None or item.generation != generation:
            return "stale"
        if (shard, incarnation) != (0, self._incarnation):
            return "stale"
        if version < item.version:
            return "older"
        item.level, item.version = level, version
        return "applied"

    def probabilities(self, params: SamplingParams) -> NDArray[np.float64]:
        """``[N]``: the probability of each training sample to be drawn next."""
        newest = (self.inserted - 1) // cohort_width(self._table.capacity)
        items = self.train.values()
        if self._table.selector == "uniform":
            params = params.model_copy(update={"uniform_share": 1.0})
        return probabilities(
            [item.level for item in items],
            [item.sample.predicted_class for item in items],
            [min(newest - item.cohort, OLDEST_COHORT) for item in items],
            params,
        )

    def identities(self, items: Sequence[Item]) -> NDArray[np.void]:
        """``[n]`` of :data:`~buffer.sample.IDENTITY_DTYPE`."""
        slots, generations = [i.slot for i in items], [i.generation for i in items]
        return identity_array(0, self._incarnation, slots, generations)

    def _item(self, sample: Sample, slot: int) -> Item:
        self._generations[slot] += 1
        own = replace(
            sample,
            image=sample.image.copy(),
            targets={name: values.copy() for name, values in sample.targets.items()},
        )
        level = int(level_of(sample.disagreement))
        cohort = self.inserted // cohort_width(self._table.capacity)
        return Item(own, slot, self._generations[slot], level, cohort)
