"""Samples in memory with all that decides how they are drawn. Obvious rather than fast."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from buffer.batches import identity_array
from buffer.params import SamplingParams
from buffer.priorities import cohort_width, level_of, probabilities
from buffer.sample import Sample
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


class Items:
    """Two rings: of training samples, and of probe samples. Shard 0.

    Attributes:
        train: by slot.
        probes: by slot, oldest first.
        inserted: training samples ever.
        evicted: training samples that had to make room.
    """

    def __init__(self, capacity: int, probe_capacity: int, incarnation: int) -> None:
        self._capacity = capacity
        self._probe_capacity = probe_capacity
        self._incarnation = incarnation
        self._generations: Counter[int] = Counter()
        self._probes_inserted = 0
        self.train: dict[int, Item] = {}
        self.probes: dict[int, Item] = {}
        self.inserted = 0
        self.evicted = 0

    def add(self, sample: Sample) -> None:
        """Inserts a sample, evicting the oldest of its split if that ring is full."""
        if sample.split == "train":
            slot = self.inserted % self._capacity
            self.evicted += slot in self.train
            self.train[slot] = self._item(sample, slot)
            self.inserted += 1
        else:
            slot = self._capacity + self._probes_inserted % self._probe_capacity
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
        newest = (self.inserted - 1) // cohort_width(self._capacity)
        items = self.train.values()
        return probabilities(
            [item.level for item in items],
            [item.sample.predicted_class for item in items],
            [newest - item.cohort for item in items],
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
        cohort = self.inserted // cohort_width(self._capacity)
        return Item(own, slot, self._generations[slot], level, cohort)
