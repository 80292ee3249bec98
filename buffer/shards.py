"""Several Redis servers as one buffer.

Each insert goes to one shard, in turn. A draw asks every shard for the mass of each label, divides
the draws among the shards at random in proportion to their share of the probability, and has each
shard draw its part; the probabilities of the parts, multiplied by the shard's share, are those of
the distribution really used, whatever happened to a shard in between.

A shard that cannot be reached is left out and asked again after a pause; its samples are missing
meanwhile, nothing else is. What every shard must know (parameters, attempts, progress) is written
to all that can be reached and read from the one that knows the newest.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial, reduce
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from buffer.answers import Masses
from buffer.archive import Archive, write
from buffer.batches import (
    Draws,
    batch_of,
    check_count,
    check_permit,
    check_samples,
    concatenate,
    priority_levels,
    probe_batch,
)
from buffer.columns import Columns, joined
from buffer.config import BufferTable
from buffer.division import common_of, in_proportion, share_of, table_of_shard, together
from buffer.errors import BufferUnavailable, RateLimited
from buffer.interface import BufferInfo, InsertResult, Permit, ServerInfo, UpdateCounts
from buffer.limiter import RETRY_SECONDS
from buffer.members import Member, Members, draw, peek
from buffer.params import SamplingParams
from buffer.progress import StudentProgress
from buffer.replay import ReplayBuffer
from buffer.sample import Batch, Sample
from buffer.version import NEVER, Version

Answer = TypeVar("Answer")


class ShardedReplayBuffer:
    """A :class:`~buffer.interface.Replay` on several servers. May be used from several threads.

    Args:
        table: the limits of the whole buffer.
        members: its shards.
        seed: of draws that bring none of their own.
        fresh: whether to begin with empty shards.

    Raises:
        BufferUnavailable: no shard can be reached.
    """

    def __init__(
        self, table: BufferTable, members: Sequence[Member], *, seed: int | None, fresh: bool
    ) -> None:
        self._table = table
        self._members = Members(members)
        self._lock = threading.Lock()
        self._generator = np.random.default_rng(seed)
        self._chosen: dict[str, Member] = {}
        self._inserts: dict[str, tuple[int, Member]] = {}
        for member in members:
            member.connect(fresh=fresh)
        self._members.live()

    def request_permit(self, n: int, *, producer: str) -> Permit:
        """See :meth:`buffer.interface.Replay.request_permit`: of the next shard that grants it."""
        check_permit(n, self._table.capacity)
        refused = Permit(False, RETRY_SECONDS)
        sequence = self._inserts[producer][0] + 1 if producer in self._inserts else 0
        for member in self._members.in_turn(sequence):
            answers = self._members.ask([member], lambda r: r.request_permit(n, producer=producer))
            for _, permit in answers:
                if permit.granted:
                    self._chosen[producer] = member
                    return permit
                refused = permit
        return refused

    def release_permit(self, *, producer: str) -> None:
        """See :meth:`buffer.interface.Replay.release_permit`."""
        member = self._chosen.pop(producer, None)
        if member is not None and member.connected:
            self._members.ask([member], lambda replay: replay.release_permit(producer=producer))

    def insert(self, samples: Sequence[Sample], *, producer: str, sequence: int) -> InsertResult:
        """See :meth:`buffer.interface.Replay.insert`: all into one shard.

        A repeated insert goes to the shard of the first; if that has gone away, to another one (and
        is there twice should the first come back with its data).
        """
        check_samples(samples, self._table.capacity, self._table.probe_capacity)
        refusal = RateLimited("no shard admits it", RETRY_SECONDS)
        for member in self._candidates(producer, sequence):
            self._inserts[producer] = sequence, member
            try:
                answers = self._members.ask(
                    [member], lambda r: r.insert(samples, producer=producer, sequence=sequence)
                )
            except RateLimited as error:
                refusal = error
                continue
            for _, result in answers:
                self._chosen.pop(producer, None)
                return result
        raise refusal

    def sample(
        self, n: int, *, seed: int | None = None, student_step: int = 0, counted: bool = True
    ) -> Batch:
        """See :meth:`buffer.interface.Replay.sample`."""
        check_count(n)
        generator = np.random.default_rng(self._seed() if seed is None else seed)
        pieces: list[tuple[Columns, Draws]] = []
        left = n
        while left:
            for count, member, common in self._divide(left, generator, counted=counted):
                seed = int(generator.integers(2**63))
                part = partial(draw, n=count, seed=seed, counted=counted, common=common)
                for _, piece in self._members.ask([member], part):
                    pieces.append(piece)
                    left -= count
        # Mixed: draws are independent, whichever part of a batch somebody takes.
        order = generator.permutation(n)
        draws = concatenate([piece[1] for piece in pieces]).at(order)
        samples = joined([piece[0] for piece in pieces]).at(order)
        return batch_of(samples, draws, student_step=student_step)

    def probe(self, n: int) -> Batch:
        """See :meth:`buffer.interface.Replay.probe`: of each shard in proportion."""
        check_count(n)
        sizes = [(m, info.probe_size) for m, info in self._members.ask_all(ReplayBuffer.info)]
        parts = in_proportion(n, [size for _, size in sizes])
        found = [
            answer
            for (member, _), part in zip(sizes, parts, strict=True)
            for _, answer in self._members.ask([member], partial(peek, n=part))
        ]
        return probe_batch(found, self.params().version)

    def update_priorities(
        self, identities: NDArray[np.void], priorities: ArrayLike, *, version: Version
    ) -> UpdateCounts:
        """See :meth:`buffer.interface.Replay.update_priorities`; of a lost shard all are stale."""
        priority_levels(priorities, len(identities))
        values = np.asarray(priorities, dtype=np.float64)
        counts = np.zeros(3, dtype=np.int64)
        for member in self._members.live():
            own = identities["shard"] == member.shard
            update = partial(
                ReplayBuffer.update_priorities,
                identities=identities[own],
                priorities=values[own],
                version=version,
            )
            for _, answer in self._members.ask([member] if own.any() else [], update):
                counts += answer
        counts[1] += len(identities) - counts.sum()
        return UpdateCounts(*counts.tolist())

    def info(self) -> BufferInfo:
        """See :meth:`buffer.interface.Replay.info`: of the shards that can be reached together."""
        infos = [info for _, info in self._members.ask_all(ReplayBuffer.info)]
        return replace(
            reduce(BufferInfo.plus, infos),
            capacity=self._table.capacity,
            probe_capacity=self._table.probe_capacity,
            shards_left_out=len(self._members) - len(infos),
        )

    def servers(self) -> list[ServerInfo]:
        """See :meth:`buffer.interface.Replay.servers`."""
        return [info for _, infos in self._members.ask_all(ReplayBuffer.servers) for info in infos]

    def params(self) -> SamplingParams:
        """See :meth:`buffer.interface.Replay.params`: the newest."""
        found = [params for _, params in self._members.ask_all(ReplayBuffer.params)]
        return max(found, key=lambda params: params.version)

    def set_params(self, params: SamplingParams) -> bool:
        """See :meth:`buffer.interface.Replay.set_params`: on every shard."""
        return all(done for _, done in self._members.ask_all(lambda r: r.set_params(params)))

    def begin_attempt(self, role: str) -> int:
        """See :meth:`buffer.interface.Replay.begin_attempt`: the same on every shard."""
        begun = self._members.ask_all(lambda replay: replay.begin_attempt(role))
        highest = max(attempt for _, attempt in begun)
        behind = [member for member, attempt in begun if attempt < highest]
        self._members.ask(behind, lambda replay: replay.begin_attempt(role, above=highest - 1))
        return highest

    def publish_progress(self, progress: StudentProgress) -> None:
        """See :meth:`buffer.interface.Replay.publish_progress`."""
        self._members.ask_all(lambda replay: replay.publish_progress(progress))

    def progress(self) -> StudentProgress | None:
        """See :meth:`buffer.interface.Replay.progress`: the newest."""
        answers = self._members.ask_all(lambda replay: replay.progress())
        found = [progress for _, progress in answers if progress is not None]
        return max(found, key=lambda progress: progress.version) if found else None

    def publish_student(self, weights: bytes, *, version: Version) -> None:
        """See :meth:`buffer.interface.Replay.publish_student`: on one shard, the first."""
        while not self._members.ask(
            self._members.live()[:1], lambda r: r.publish_student(weights, version=version)
        ):
            pass

    def fetch_student(self, *, newer_than: Version) -> tuple[Version, bytes] | None:
        """See :meth:`buffer.interface.Replay.fetch_student`: the newest."""
        versions = self._members.ask_all(lambda replay: replay.student_version())
        member, newest = max(versions, key=lambda answer: answer[1])
        if newest in (NEVER, newer_than):
            return None
        for _, student in self._members.ask(
            [member], lambda r: r.fetch_student(newer_than=newer_than)
        ):
            return student
        return self.fetch_student(newer_than=newer_than)

    def snapshot(self, path: Path) -> int:
        """See :meth:`buffer.interface.Replay.snapshot`: of the shards that can be reached."""
        dumps = [made for _, made in self._members.ask_all(ReplayBuffer.dump)]
        chunks = chain(*(made.chunks for made in dumps))
        return write(path, together([made.meta for made in dumps]), chunks)

    def restore(self, path: Path) -> int:
        """See :meth:`buffer.interface.Replay.restore`: onto the shards that can be reached."""
        with Archive(path) as archive:
            live = self._members.live()
            own = table_of_shard(self._table, len(self._members))
            wanted = archive.newest(len(live) * own.capacity, len(live) * own.probe_capacity)
            turn = archive.ranks(wanted) % len(live)
            meta = share_of(archive.meta, len(live))
            loaded = 0
            for number, member in enumerate(live):
                part = partial(
                    ReplayBuffer.load, archive=archive, wanted=wanted & (turn == number), meta=meta
                )
                loaded += sum(count for _, count in self._members.ask([member], part))
            return loaded

    def reset(self) -> None:
        """See :meth:`buffer.interface.Replay.reset`."""
        self._members.ask_all(lambda replay: replay.reset())

    def close(self) -> None:
        """See :meth:`buffer.interface.Replay.close`."""
        self._members.close()

    def _candidates(self, producer: str, sequence: int) -> list[Member]:
        """Where an insert may go: where it was tried before, where it is permitted, in turn."""
        last, tried = self._inserts.get(producer, (-1, None))
        first = tried if last == sequence else self._chosen.get(producer)
        return sorted(self._members.in_turn(sequence), key=lambda member: member is not first)

    def _divide(
        self, n: int, generator: np.random.Generator, *, counted: bool
    ) -> list[tuple[int, Member, bytes]]:
        """Which shard makes how many of n draws, with what they agree on."""
        masses: list[tuple[Member, Masses]] = []
        refusal: RateLimited | None = None
        for member in self._members.live():
            try:
                masses += self._members.ask([member], lambda replay: replay.drawing.masses())
            except RateLimited as error:
                refusal = error
        if not masses:
            raise refusal or BufferUnavailable("no shard can be reached")
        shares, commons = common_of([mass for _, mass in masses])
        if counted and self._table.selector in ("fifo", "sequential"):
            items = np.array([mass.items for _, mass in masses], dtype=np.float64)
            shares, commons = items / items.sum(), [b""] * len(masses)
        counts = generator.multinomial(n, shares)
        if counted and any(
            count > mass.slack for count, (_, mass) in zip(counts, masses, strict=True)
        ):
            raise RateLimited("the limiter lets inserts catch up first", RETRY_SECONDS)
        parts = zip(counts.tolist(), masses, commons, strict=True)
        return [(count, member, common) for count, (member, _), common in parts if count]

    def _seed(self) -> int:
        with self._lock:
            return int(self._generator.integers(2**63))
