"""What a replay buffer promises, whichever one it is.

:class:`~buffer.replay.ReplayBuffer` (Redis) and :class:`~buffer.memory.InMemoryReplayBuffer` (the
tests' oracle) both keep it. The promises:

1. Each operation is atomic and totally ordered within its shard, but for those that move payloads:
   an insert is two atomic steps (slots are reserved, which evicts; samples are committed, all that
   are left at once), a draw is one per round (a sample that was evicted meanwhile is drawn again),
   probes and snapshots are read after they were chosen, ``update_priorities`` is atomic per 1024,
   ``reset`` deletes payloads before it begins.
2. A committed sample is immutable until evicted; an identity never names two different images.
3. Inserts are idempotent on (producer, epoch, sequence): delivering one twice is safe. Each process
   that inserts under a producer's name has an epoch of its own; a newer process ends the older's
   inserts, which are answered as duplicates and logged as a warning.
4. Draws are i.i.d. with replacement, each with the probability it was drawn with.
5. Priority updates are last-writer-wins by version and never resurrect an evicted sample.
6. Nothing blocks in the server: an operation the limiter refuses is answered at once, with when to
   retry. Of the two sides at least one is always admitted, so they cannot stall each other.
7. A server that lost its data is filled again by whoever comes next: epochs follow its clock, and
   attempts go on from what the role's live process publishes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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
    class_counts: dict[int, int] = field(default_factory=dict)
    """Training samples per predicted class; classes without samples are absent."""
    level_counts: dict[int, int] = field(default_factory=dict)
    """Training samples per priority level (see ``buffer.priorities``)."""


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

    def params(self) -> SamplingParams:
        """The sampling parameters in force.

        Raises:
            SchemaError: what is stored is something else.
        """
        ...

    def set_params(self, params: SamplingParams) -> bool:
        """Puts parameters in force if their version is newer; says whether these are in force.

        A change of ``samples_per_insert`` sets the limiter's balance to 0: neither side stalls for
        the past.
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

    def reset(self) -> None:
        """Empties everything and starts a new incarnation: old identities never come back.

        Attempts go on counting, so that what a straggler of an earlier job publishes is older.
        """
        ...

    def close(self) -> None:
        """Closes connections; the data stays."""
        ...
