"""The replay buffer in this process: the tests' oracle, and enough for one process.

Obvious rather than fast: every draw works its distribution out again from the items themselves.
"""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from buffer.archive import Archive, write
from buffer.batches import (
    DEFAULT_ERROR_BUFFER,
    Draws,
    assemble,
    check_count,
    check_permit,
    check_samples,
    check_schema,
    check_uint32,
    priority_levels,
    schema_of,
    unweighted,
)
from buffer.codec import prepare
from buffer.config import BufferTable
from buffer.contents import Contents
from buffer.errors import RateLimited
from buffer.interface import BufferInfo, InsertResult, Permit, ServerInfo, UpdateCounts
from buffer.items import Item, Items
from buffer.limiter import FILLING_RETRY_SECONDS, RETRY_SECONDS, Limiter
from buffer.params import SamplingParams, start_params
from buffer.progress import StudentProgress
from buffer.sample import Batch, Sample
from buffer.version import NEVER, Version


class InMemoryReplayBuffer:
    """A :class:`~buffer.interface.Replay` in this process. May be used from several threads.

    Args:
        table: the limits.
        params: the sampling parameters it starts with; default: the table's.
        seed: of draws that bring none of their own.
        clock: seconds; leases are counted by it.
    """

    def __init__(
        self,
        table: BufferTable,
        *,
        params: SamplingParams | None = None,
        seed: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table = table
        self._start_params = params or start_params(table)
        self._random = random.Random(seed)
        self._clock = clock
        self._lock = threading.RLock()
        self._attempts: Counter[str] = Counter()
        self._state = self._empty()

    def request_permit(self, n: int, *, producer: str) -> Permit:
        """See :meth:`buffer.interface.Replay.request_permit`."""
        check_permit(n, self._table.capacity)
        with self._lock:
            if not self._may_insert(producer, n):
                self._state.limiter.withdraw(producer)
                return Permit(False, RETRY_SECONDS)
            self._state.limiter.grant(producer, n, now=self._clock())
            return Permit(True, 0.0)

    def release_permit(self, *, producer: str) -> None:
        """See :meth:`buffer.interface.Replay.release_permit`."""
        with self._lock:
            self._state.limiter.withdraw(producer)

    def insert(self, samples: Sequence[Sample], *, producer: str, sequence: int) -> InsertResult:
        """See :meth:`buffer.interface.Replay.insert`."""
        check_samples(samples, self._table.capacity, self._table.probe_capacity)
        check_uint32(sequence=sequence)
        schema = schema_of(prepare(samples))
        with self._lock:
            state = self._state
            if sequence <= state.sequences.get(producer, -1):
                state.counts["duplicates"] += 1
                return InsertResult(0, True)
            for name, found in schema.items():
                check_schema(name, found, state.schema.get(name, found))
            train = [sample for sample in samples if sample.split == "train"]
            self._admit_inserts(producer, len(train))
            state.schema.update(schema)
            state.sequences[producer] = sequence
            state.limiter.withdraw(producer)
            state.items.add(samples)
            per_insert = state.params.samples_per_insert
            state.limiter.inserted(len(train), total=state.items.inserted, per_insert=per_insert)
            return InsertResult(len(samples), False)

    def sample(
        self, n: int, *, seed: int | None = None, student_step: int = 0, counted: bool = True
    ) -> Batch:
        """See :meth:`buffer.interface.Replay.sample`."""
        check_count(n)
        with self._lock:
            if self._table.selector in ("fifo", "sequential") and counted:
                picked, draws = self._take(n)
            else:
                self._admit_draws(n, counted=counted)
                seed = self._random.getrandbits(63) if seed is None else seed
                picked, draws = self._state.draw(n, seed)
            return assemble([item.sample for item in picked], draws, student_step=student_step)

    def probe(self, n: int) -> Batch:
        """See :meth:`buffer.interface.Replay.probe`."""
        check_count(n)
        with self._lock:
            items = self._state.items
            newest = list(items.probes.values())[::-1][:n]
            draws = unweighted(items.identities(newest), self._state.params.version)
            return assemble([item.sample for item in newest], draws, student_step=0)

    def update_priorities(
        self, identities: NDArray[np.void], priorities: ArrayLike, *, version: Version
    ) -> UpdateCounts:
        """See :meth:`buffer.interface.Replay.update_priorities`."""
        check_uint32(**version._asdict())
        levels = priority_levels(priorities, len(identities))
        with self._lock:
            outcomes = Counter(
                self._state.items.update(name, int(level), version)
                for name, level in zip(identities.tolist(), levels, strict=True)
            )
            self._state.counts.update(outcomes)
            return UpdateCounts(outcomes["applied"], outcomes["stale"], outcomes["older"])

    def info(self) -> BufferInfo:
        """See :meth:`buffer.interface.Replay.info`."""
        with self._lock:
            state, counts = self._state, self._state.counts
            items = state.items.train.values()
            return BufferInfo(
                size=len(items),
                capacity=self._table.capacity,
                probe_size=len(state.items.probes),
                probe_capacity=self._table.probe_capacity,
                inserted=state.items.inserted,
                sampled=counts["sampled"],
                evicted=state.items.evicted,
                duplicates=counts["duplicates"],
                redraws=0,
                updates=UpdateCounts(counts["applied"], counts["stale"], counts["older"]),
                balance=state.limiter.balance,
                insert_waits=counts["insert_waits"],
                sample_waits=counts["sample_waits"],
                seconds=self._clock() - state.started,
                class_counts=dict(Counter(item.sample.predicted_class for item in items)),
                level_counts=dict(Counter(item.level for item in items)),
            )

    def servers(self) -> list[ServerInfo]:
        """See :meth:`buffer.interface.Replay.servers`."""
        return []

    def params(self) -> SamplingParams:
        """See :meth:`buffer.interface.Replay.params`."""
        with self._lock:
            return self._state.params

    def set_params(self, params: SamplingParams) -> bool:
        """See :meth:`buffer.interface.Replay.set_params`."""
        check_uint32(**params.version._asdict())
        with self._lock:
            if params.version <= self._state.params.version:
                return params == self._state.params
            limited = self._state.params.samples_per_insert is not None
            if limited != (params.samples_per_insert is not None):
                self._state.limiter.balance = 0.0
            self._state.params = params
            return True

    def begin_attempt(self, role: str) -> int:
        """See :meth:`buffer.interface.Replay.begin_attempt`."""
        with self._lock:
            state = self._state
            newest = max(state.progress.version if state.progress else NEVER, state.student[0])
            published = {"distiller": newest, "controller": state.params.version}
            floor = published.get(role, NEVER).attempt
            self._attempts[role] = max(self._attempts[role], floor) + 1
            return self._attempts[role]

    def publish_progress(self, progress: StudentProgress) -> None:
        """See :meth:`buffer.interface.Replay.publish_progress`."""
        check_uint32(**progress.version._asdict())
        with self._lock:
            last = self._state.progress
            if last is None or last.version <= progress.version:
                self._state.progress = progress

    def progress(self) -> StudentProgress | None:
        """See :meth:`buffer.interface.Replay.progress`."""
        with self._lock:
            return self._state.progress

    def publish_student(self, weights: bytes, *, version: Version) -> None:
        """See :meth:`buffer.interface.Replay.publish_student`."""
        check_uint32(**version._asdict())
        with self._lock:
            if self._state.student[0] <= version:
                self._state.student = (version, weights)

    def fetch_student(self, *, newer_than: Version) -> tuple[Version, bytes] | None:
        """See :meth:`buffer.interface.Replay.fetch_student`."""
        with self._lock:
            known = self._state.student[0] in (NEVER, newer_than)
            return None if known else self._state.student

    def snapshot(self, path: Path) -> int:
        """See :meth:`buffer.interface.Replay.snapshot`."""
        with self._lock:
            meta, chunk = self._state.saved(self._attempts)
            return write(path, meta, [chunk])

    def restore(self, path: Path) -> int:
        """See :meth:`buffer.interface.Replay.restore`."""
        with self._lock, Archive(path) as archive:
            self._state = self._empty()
            self._state.params = archive.meta.params
            for role, attempt in archive.meta.attempts.items():
                self._attempts[role] = max(attempt, self._attempts[role])
            return self._state.put_back(archive, self._table)

    def reset(self) -> None:
        """See :meth:`buffer.interface.Replay.reset`."""
        with self._lock:
            self._state = self._empty()

    def close(self) -> None:
        """See :meth:`buffer.interface.Replay.close`; nothing to do."""

    def _empty(self) -> Contents:
        error_buffer = self._table.error_buffer or DEFAULT_ERROR_BUFFER
        limiter = Limiter(self._table.minimum, error_buffer, self._table.lease_seconds)
        items = Items(self._table, secrets.randbits(32))
        return Contents(self._start_params, self._clock(), items, limiter)

    def _may_insert(self, producer: str, n: int) -> bool:
        state, per_insert = self._state, self._state.params.samples_per_insert
        size, now = len(state.items.train), self._clock()
        admitted = state.limiter.may_insert(producer, n, size=size, per_insert=per_insert, now=now)
        state.counts["insert_waits"] += not admitted
        return admitted

    def _admit_inserts(self, producer: str, n: int) -> None:
        permitted = self._state.limiter.holds_permit(producer, n, now=self._clock())
        if n > 0 and not permitted and not self._may_insert(producer, n):
            raise RateLimited("the limiter lets draws catch up first", RETRY_SECONDS)

    def _admit_draws(self, n: int, *, counted: bool) -> None:
        state, per_insert = self._state, self._state.params.samples_per_insert
        if not state.limiter.warm:
            self._refuse_draws("too few samples", FILLING_RETRY_SECONDS)
        if not counted:
            return
        if not state.limiter.may_draw(n, per_insert=per_insert):
            self._refuse_draws("the limiter lets inserts catch up first", RETRY_SECONDS)
        state.limiter.drawn(n, per_insert=per_insert)
        state.counts["sampled"] += n

    def _take(self, n: int) -> tuple[list[Item], Draws]:
        """``n`` items in order."""
        state, size = self._state, len(self._state.items.train)
        if self._table.selector == "fifo":
            self._admit_draws(n, counted=True)
        elif size == 0:
            self._refuse_draws("too few samples", FILLING_RETRY_SECONDS)
        else:
            state.counts["sampled"] += n
        picked = state.items.take(n)
        if len(picked) < n:
            state.counts["sampled"] -= n
            self._refuse_draws("too few samples", RETRY_SECONDS)
        ones = unweighted(state.items.identities(picked), state.params.version)
        return picked, replace(ones, population=size)

    def _refuse_draws(self, reason: str, retry_after_seconds: float) -> NoReturn:
        self._state.counts["sample_waits"] += 1
        raise RateLimited(reason, retry_after_seconds)
