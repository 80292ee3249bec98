"""The operations of a replay buffer, whichever one it is.

:class:`~buffer.replay.ReplayBuffer` (Redis), :class:`~buffer.shards.ShardedReplayBuffer` (several
servers) and :class:`~buffer.memory.InMemoryReplayBuffer` (the tests' oracle) have them, and keep
what the docstring of the package :mod:`buffer` promises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from buffer.params import SamplingParams
from buffer.progress import StudentProgress
from buffer.sample import Batch, Sample
from buffer.version import Version


class Permit(NamedTuple):
    """The limiter's answer to a producer that asks before it works."""

    granted: bool
    retry_after_seconds: float
    """When asking again may succeed; 0 if granted."""


class InsertResult(NamedTuple):
    """What an insert did."""

    inserted: int
    """Samples that became visible by this call; 0 for a repeated delivery."""
    duplicate: bool
    """This (producer, epoch, sequence) had been committed before, or is an older one; that is, a
    newer process inserts under this producer's name if the sequence is new."""


class UpdateCounts(NamedTuple):
    """What became of priority updates; the three add up to the updates sent."""

    applied: int
    stale: int
    """The sample has been evicted."""
    older: int
    """A newer version had been written already."""


@dataclass(frozen=True)
class BufferInfo:
    """A consistent picture of the buffer, cheap enough for every scrape and every decision."""

    size: int
    """Training samples that can be drawn."""
    capacity: int
    probe_size: int
    probe_capacity: int
    inserted: int
    """Training samples ever inserted."""
    sampled: int
    """Draws ever answered."""
    evicted: int
    duplicates: int
    """Inserts answered as repeated deliveries."""
    redraws: int
    """Draws repeated because the sample was evicted, or damaged, before it was fetched."""
    updates: UpdateCounts
    balance: float
    """Draws that inserted samples have paid for and nobody has made yet (negative: owed)."""
    insert_waits: int
    """Permits refused by the limiter."""
    sample_waits: int
    """Draws refused by the limiter, or because the buffer had too few samples."""
    seconds: float
    """Since the buffer was initialised, by the server's clock."""
    shards_left_out: int = 0
    """Shards that cannot be reached now."""
    class_counts: dict[int, int] = field(default_factory=dict)
    """Training samples per predicted class; classes without samples are absent."""
    level_counts: dict[int, int] = field(default_factory=dict)
    """Training samples per priority level (see ``buffer.priorities``)."""

    def plus(self, other: BufferInfo) -> BufferInfo:
        """Two shards together."""
        counters = {
            field.name: getattr(self, field.name) + getattr(other, field.name)
            for field in fields(self)
            if field.name not in ("updates", "seconds", "class_counts", "level_counts")
        }
        return BufferInfo(
            **counters,
            updates=UpdateCounts(*map(sum, zip(self.updates, other.updates, strict=True))),
            seconds=max(self.seconds, other.seconds),
            class_counts=dict(Counter(self.class_counts) + Counter(other.class_counts)),
            level_counts=dict(Counter(self.level_counts) + Counter(other.level_counts)),
        )


class ServerInfo(NamedTuple):
    """What a shard's server says of itself."""

    shard: int
    memory_used_bytes: int
    memory_limit_bytes: int
    """It refuses inserts above; 0: no limit."""
    last_fork_seconds: float
    """How long its last fork kept everybody waiting; 0: it never saved itself in the background."""


class Replay(Protocol):
    """The interface of a prioritised replay buffer. Times in seconds, priorities >= 0.

    Sequences and both parts of a version are in [0, 2^32); anything else is a ``ValueError``.

    Raises:
        BufferUnavailable: by every operation: the server cannot be reached, or refuses us. Whether
            it was done is unknown; doing it again is safe.
        ProtocolMismatch: by every operation: the server holds other data under our names, or is
            too old.
    """

    def request_permit(self, n: int, *, producer: str) -> Permit:
        """Asks to insert ``n`` training samples later.

        A producer holds one permit; asking again renews it.
        A granted permit counts as inserted for the limiter until it is used or its lease ends.

        Raises:
            ValueError: n is not in [1, capacity].
        """
        ...

    def release_permit(self, *, producer: str) -> None:
        """Gives an unused permit back."""
        ...

    def insert(self, samples: Sequence[Sample], *, producer: str, sequence: int) -> InsertResult:
        """Inserts samples, evicting the oldest. Uses the producer's permit for that many or more.

        ``sequence`` grows by one with each insert of this producer in this process; repeating one
        is a no-op.

        Raises:
            RateLimited: the producer holds no such permit, and the limiter refuses.
            ValueError: no samples, more than the capacity, shapes that differ (from one another or
                from what is stored), a class outside [0, 65535], or a priority (``disagreement``)
                that is negative or not finite.
        """
        ...

    def sample(
        self, n: int, *, seed: int | None = None, student_step: int = 0, counted: bool = True
    ) -> Batch:
        """Draws ``n`` training samples. ``seed`` makes the draw reproducible.

        Draws that are not ``counted`` are for looking, not for training: the limiter neither
        refuses nor notes them.

        Raises:
            RateLimited: too few samples, or the limiter refuses.
            ValueError: n is not in [1, 4096].
        """
        ...

    def probe(self, n: int) -> Batch:
        """The ``n`` newest probe samples (fewer if there are fewer); probabilities and weights 1.

        An empty probe set gives an empty batch (``images`` of shape ``[0, 0, 0, 0]``).

        Raises:
            ValueError: n is not in [1, 4096].
        """
        ...

    def update_priorities(
        self, identities: NDArray[np.void], priorities: ArrayLike, *, version: Version
    ) -> UpdateCounts:
        """Sets priorities ``[n]`` of the samples that are still there, if ``version`` is not older.

        Raises:
            ValueError: lengths differ, or a priority is negative or not finite.
        """
        ...

    def info(self) -> BufferInfo:
        """Sizes, counters and histograms."""
        ...

    def servers(self) -> list[ServerInfo]:
        """The server of each shard that can be reached; none for a buffer in memory."""
        ...

    def params(self) -> SamplingParams:
        """The sampling parameters in force.

        Raises:
            SchemaError: what is stored is something else.
        """
        ...

    def set_params(self, params: SamplingParams) -> bool:
        """Puts parameters in force if their version is newer; says whether these are in force.

        A new ``samples_per_insert`` counts from now on: what was inserted has paid at the rate of
        its time, and the limiter's balance stays, so that neither side stalls for the past, nor
        gains by changes to and fro. It is set to 0 when the limiter is switched on or off.
        """
        ...

    def begin_attempt(self, role: str) -> int:
        """The next attempt number of ``role`` (``distiller``, ``controller``): 1, 2, ...

        Always above the attempt of what the role has published: of progress and student for the
        distiller, of parameters for the controller.
        """
        ...

    def publish_progress(self, progress: StudentProgress) -> None:
        """Replaces the published progress, unless a newer one is there."""
        ...

    def progress(self) -> StudentProgress | None:
        """The newest progress, or ``None`` before the first.

        Raises:
            SchemaError: what is stored is something else.
        """
        ...

    def publish_student(self, weights: bytes, *, version: Version) -> None:
        """Replaces the student snapshot (safetensors bytes), unless a newer one is there."""
        ...

    def fetch_student(self, *, newer_than: Version) -> tuple[Version, bytes] | None:
        """The newest snapshot if it is newer than ``newer_than``, else ``None`` (cheap).

        A snapshot older than ``newer_than`` is newer in truth: the server has lost its data since.

        Raises:
            SchemaError: the stored snapshot is damaged.
        """
        ...

    def snapshot(self, path: Path) -> int:
        """Writes all samples, priorities, counters and parameters to a file; how many samples.

        Others may go on meanwhile: it is the buffer of one moment, less what they evict before it
        is written. See ``buffer.archive`` for the file.
        """
        ...

    def restore(self, path: Path) -> int:
        """Empties the buffer and fills it from a snapshot; how many samples are there now.

        Under new identities. Into a smaller buffer only the newest samples go.

        Raises:
            SchemaError: the file is no snapshot, or damaged; the buffer may be empty by then.
        """
        ...

    def reset(self) -> None:
        """Empties everything and starts a new incarnation: old identities never come back.

        Attempts go on counting, so that what a straggler of an earlier job publishes is older.
        """
        ...

    def close(self) -> None:
        """Closes connections; the data stays."""
        ...
