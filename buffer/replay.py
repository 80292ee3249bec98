"""The replay buffer in Redis. Nobody outside ``buffer`` talks to Redis.

Payloads go straight between client and server; scripts only ever see slots, generations and cells.
An insert therefore has three steps: *reserve* slots (evicting), write the payloads, *commit*. A
producer that dies in between leaves holes, which the ring passes over. A payload says which slot,
generation and incarnation it belongs to, so that a reader that comes too late notices: it draws
again, and never sees a wrong image.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from buffer.answers import UPDATE, Insert, Misfit, Refused, Reserved
from buffer.archive import Archive, Meta, write
from buffer.batches import (
    LARGEST_UINT32,
    batch_of,
    check_count,
    check_permit,
    check_samples,
    check_schema,
    check_uint32,
    identity_array,
    priority_levels,
    probe_batch,
    schema_of,
)
from buffer.cache import PayloadCache
from buffer.codec import prepare
from buffer.config import BufferTable
from buffer.connection import Connection
from buffer.drawing import Drawing
from buffer.errors import RateLimited
from buffer.interface import BufferInfo, InsertResult, Permit, ServerInfo, UpdateCounts
from buffer.keys import Keys
from buffer.limits import Limits
from buffer.notices import Notices
from buffer.observer import UNOBSERVED, Observer
from buffer.params import SamplingParams, start_params
from buffer.payloads import Payloads
from buffer.priorities import level_of
from buffer.sample import Batch, Sample
from buffer.saving import Dump, dump, load
from buffer.scripts import Scripts
from buffer.version import Version

logger = logging.getLogger(__name__)

UPDATES_PER_CALL = 1024
"""Bounds how long a call keeps the server busy."""


class ReplayBuffer(Notices):
    """A :class:`~buffer.interface.Replay` in Redis. May be used from several threads.

    Args:
        table: the limits; clients of one run must agree on them.
        url: of the Redis server.
        run: names the buffer: clients with one run share it.
        params: the sampling parameters of a buffer that is new or reset; default: the table's.
        shard: number of the server, noted in identities.
        seed: of draws that bring none of their own.
        fresh: whether to begin with an empty buffer, whatever an earlier run of this name left.
        observer: of its calls.

    Raises:
        BufferUnavailable: the server cannot be reached, or refuses us.
        ConfigError: the server is set to drop keys when memory runs out.
        ProtocolMismatch: the server holds a buffer of this name with other limits (and ``fresh`` is
            false), or of another protocol.

    Attributes:
        cache: samples this client has fetched, with its hits and misses.
        drawing: the draws of this shard, for draws over several.
    """

    def __init__(
        self,
        table: BufferTable,
        *,
        url: str,
        run: str,
        params: SamplingParams | None = None,
        shard: int = 0,
        seed: int | None = None,
        fresh: bool = False,
        observer: Observer = UNOBSERVED,
    ) -> None:
        self._table = table
        self._shard = shard
        self._keys = Keys(run, shard)
        self._lock = threading.Lock()
        self._epochs: dict[str, int] = {}
        connection = Connection(url)
        slots = table.capacity + table.probe_capacity
        self.cache = PayloadCache(table.cache_mebibytes << 20, slots)
        self._payloads = Payloads(connection, self._keys, self.cache, observer)
        scripts = Scripts(
            connection,
            self._keys,
            Limits.of(table),
            params or start_params(table),
            lambda: secrets.randbits(32),
            observer,
        )
        super().__init__(connection, self._keys, scripts)
        self.drawing = Drawing(scripts, self._payloads, table, shard, seed)
        try:
            if fresh:
                self.reset()
            else:
                scripts.init()
        except BaseException:
            connection.close()
            raise

    def request_permit(self, n: int, *, producer: str) -> Permit:
        """See :meth:`buffer.interface.Replay.request_permit`."""
        check_permit(n, self._table.capacity)
        wait = self._scripts.permit(producer, n)
        return Permit(wait is None, wait or 0.0)

    def release_permit(self, *, producer: str) -> None:
        """See :meth:`buffer.interface.Replay.release_permit`."""
        self._scripts.release(producer)

    def insert(self, samples: Sequence[Sample], *, producer: str, sequence: int) -> InsertResult:
        """See :meth:`buffer.interface.Replay.insert`."""
        check_samples(samples, self._table.capacity, self._table.probe_capacity)
        check_uint32(sequence=sequence)
        # The order in which slots are reserved.
        ordered = sorted(samples, key=lambda sample: sample.split == "probe")
        prepared = prepare(ordered)
        schema = schema_of(prepared)
        probes = sum(sample.split == "probe" for sample in samples)
        name = Insert(producer, self._epoch(producer), sequence)
        answer = self._scripts.reserve(name, len(samples) - probes, probes, schema)
        if answer == "superseded":
            logger.warning("%s: a newer process inserts under this name, nothing stored", producer)
        if answer in ("duplicate", "superseded"):
            return InsertResult(0, True)
        if isinstance(answer, Refused):
            raise RateLimited(answer.reason, answer.retry_after_seconds)
        if isinstance(answer, Misfit):
            check_schema(answer.name, schema[answer.name], answer.stored)
        assert isinstance(answer, Reserved)
        slots, generations = answer.pairs["slot"], answer.pairs["generation"]
        names = identity_array(self._shard, answer.incarnation, slots, generations)
        self._payloads.store(prepared, names)
        labels = np.array([sample.predicted_class for sample in ordered], dtype=np.int64)
        levels = level_of([sample.disagreement for sample in ordered]).astype(np.int64)
        visible = self._scripts.commit(name, answer.incarnation, labels << 16 | levels << 8)
        return InsertResult(visible, False)

    def sample(
        self, n: int, *, seed: int | None = None, student_step: int = 0, counted: bool = True
    ) -> Batch:
        """See :meth:`buffer.interface.Replay.sample`."""
        check_count(n)
        samples, draws = self.drawing.draw(n, seed=seed, counted=counted)
        return batch_of(samples, draws, student_step=student_step)

    def probe(self, n: int) -> Batch:
        """See :meth:`buffer.interface.Replay.probe`."""
        check_count(n)
        return probe_batch([self.drawing.peek(n)], self.params().version)

    def update_priorities(
        self, identities: NDArray[np.void], priorities: ArrayLike, *, version: Version
    ) -> UpdateCounts:
        """See :meth:`buffer.interface.Replay.update_priorities`."""
        check_uint32(**version._asdict())
        updates = np.empty(len(identities), dtype=UPDATE)
        updates["level"] = priority_levels(priorities, len(identities))
        for field in ("incarnation", "slot", "generation"):
            updates[field] = identities[field]
        # A slot that no shard has: the server counts samples of other shards as stale.
        updates["slot"][identities["shard"] != self._shard] = LARGEST_UINT32
        totals = np.zeros(3, dtype=np.int64)
        for start in range(0, len(updates), UPDATES_PER_CALL):
            totals += self._scripts.update(updates[start : start + UPDATES_PER_CALL], version)
        return UpdateCounts(*totals.tolist())

    def info(self) -> BufferInfo:
        """See :meth:`buffer.interface.Replay.info`."""
        picture = self._scripts.info()
        counts = {name: int(value) for name, value in picture.counters.items()}
        return BufferInfo(
            **{name: counts[name] for name in ("size", "probe_size", "inserted", "sampled")},
            **{name: counts[name] for name in ("evicted", "duplicates", "redraws")},
            **{name: counts[name] for name in ("insert_waits", "sample_waits")},
            capacity=self._table.capacity,
            probe_capacity=self._table.probe_capacity,
            updates=UpdateCounts(counts["applied"], counts["stale"], counts["older"]),
            balance=picture.counters["balance"],
            seconds=picture.seconds,
            class_counts=picture.totals(lambda group: group >> 8),
            level_counts=picture.totals(lambda group: group & 0xFF),
        )

    def servers(self) -> list[ServerInfo]:
        """See :meth:`buffer.interface.Replay.servers`: the one."""
        info = self._connection.server(self._keys.meta)
        used, limit = info["used_memory"], info["maxmemory"]
        return [ServerInfo(self._shard, used, limit, 1e-6 * info["latest_fork_usec"])]

    def reset(self) -> None:
        """See :meth:`buffer.interface.Replay.reset`; back to this client's start parameters."""
        # Payloads first: once the new incarnation has begun they could be somebody's.
        self._payloads.delete()
        self._scripts.reset()

    def close(self) -> None:
        """See :meth:`buffer.interface.Replay.close`."""
        self._connection.close()

    def snapshot(self, path: Path) -> int:
        """See :meth:`buffer.interface.Replay.snapshot`."""
        meta, chunks = self.dump()
        return write(path, meta, chunks)

    def restore(self, path: Path) -> int:
        """See :meth:`buffer.interface.Replay.restore`."""
        with Archive(path) as archive:
            wanted = archive.newest(self._table.capacity, self._table.probe_capacity)
            return self.load(archive, wanted, archive.meta)

    def dump(self) -> Dump:
        """What a snapshot of this shard holds."""
        return dump(self._scripts, self._payloads, self._table, self._shard)

    def load(self, archive: Archive, wanted: NDArray[np.bool_], meta: Meta) -> int:
        """Empties this shard and puts wanted items ``[N]`` of an archive into it; how many."""
        return load(self._scripts, self._payloads, self._table, self._shard, archive, wanted, meta)

    def _epoch(self, producer: str) -> int:
        with self._lock:
            if producer not in self._epochs:
                self._epochs[producer] = self._scripts.begin_epoch(producer)
            return self._epochs[producer]
