"""The synthesizer: asks, inverts one batch, inserts it. A plain class, stepped without Ray.

Why it pauses while a permit is refused, although it might go on optimising the round in hand: it
asks before the round begins, so there is none in hand, and where the limiter refuses it is the
student that is slow, on processors which it may share with this one.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from prometheus_client import CollectorRegistry
from torch import Tensor

from buffer.errors import BufferUnavailable, RateLimited
from buffer.interface import BufferInfo, Replay
from buffer.models import autocast_dtype, build, from_bytes, load_weights
from buffer.version import NEVER, Version
from synthesizer.config import SynthesizerFile
from synthesizer.inverter import Inverter, Round, build_method
from synthesizer.methods import Context
from synthesizer.metrics import SynthesizerMetrics
from synthesizer.teacher import Teacher, freeze

logger = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 5.0
LONGEST_PERMIT_WAIT_SECONDS = 5.0
"""However long the limiter says, ask again after this: the limit may have been changed."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class SynthesizerStatus:
    """What a synthesizer has done so far."""

    producer: str
    rounds: int = 0
    samples: int = 0
    """Inserted, probes included."""
    busy_seconds: float = 0.0
    """Making and inserting images."""
    waiting_seconds: float = 0.0
    """Waiting for permits, or for a buffer that is away."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """Of the newest round, by term."""
    student_version: Version = NEVER
    """Of the snapshot in use."""


class Synthesizer:
    """Makes images for the replay buffer, one batch per :meth:`step`.

    :meth:`status` and :meth:`stop` may be called from other threads.

    Args:
        config: the run.
        replay: where samples go.
        producer: a name no other live synthesizer of the run has.
        device: where networks compute.
        threads: CPU threads of torch in this process; ``None`` leaves them.
        seed: of all randomness.
        metrics: defaults to metrics on a registry of its own.
        patience_seconds: how long a buffer may be away before an error ends the run.

    Raises:
        ConfigError: the method refuses its settings.
        ModelError: teacher or method cannot be built.
    """

    def __init__(
        self,
        config: SynthesizerFile,
        replay: Replay,
        *,
        producer: str,
        device: torch.device,
        threads: int | None = None,
        seed: int = 0,
        metrics: SynthesizerMetrics | None = None,
        patience_seconds: float = 120.0,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._config, self._replay, self._patience = config, replay, patience_seconds
        self._metrics = metrics or SynthesizerMetrics(CollectorRegistry())
        self._inverter = _build_inverter(config, producer, device, seed)
        self._prepared = False
        self._sequence = 0
        self._stopping = threading.Event()
        self._jitter = random.Random(seed)
        self._status = SynthesizerStatus(producer)

    @property
    def context(self) -> Context:
        """What the method sees; refreshed from the buffer before each round."""
        return self._inverter.context

    def status(self) -> SynthesizerStatus:
        """What has been done so far."""
        return self._status

    def stop(self) -> None:
        """Ends :meth:`run` after the round in hand."""
        self._stopping.set()

    def run(self) -> None:
        """Steps until :meth:`stop`.

        Raises:
            BufferUnavailable: the buffer stayed away for longer than the patience.
        """
        while not self._stopping.is_set():
            try:
                self.step()
            except BufferUnavailable:
                # A buffer that ends before its producers is no failure of theirs.
                if not self._stopping.is_set():
                    raise

    def step(self) -> int:
        """One round, if the limiter lets it: samples that became visible.

        0 if the limiter refused (after a pause), if :meth:`stop` was called meanwhile, or if the
        insert turned out to be a repeated delivery.

        Raises:
            BufferUnavailable: the buffer stayed away for longer than the patience.
        """
        self._prepare_once()
        if not self._permitted():
            return 0
        begun, waited = time.monotonic(), self._status.waiting_seconds
        try:
            self._refresh()
            made = self._inverter.round(born=self._status.student_version)
        except BaseException:
            self._give_back()
            raise
        self._sequence += 1
        inserted = self._insert(made)
        waited = self._status.waiting_seconds - waited
        self._count(made, inserted, time.monotonic() - begun - waited)
        return inserted

    def _prepare_once(self) -> None:
        # Before a permit is asked for: a method that trains first would outlive its lease.
        if not self._prepared:
            self._refresh()
            self._inverter.method.prepare(self.context)
            self._prepared = True

    def _permitted(self) -> bool:
        """Asks before the work; a refusal is waited out here, not in the server."""
        producer = self._status.producer
        # Probes are outside the limiter's count: asking for them too would hold others up.
        n = self._inverter.expected_training(self._config.synthesizer.batch_size)
        permit = self._patiently(lambda: self._replay.request_permit(n, producer=producer))
        if not permit.granted:
            self._pause(permit.retry_after_seconds)
        elif self._stopping.is_set():
            self._give_back()
        return permit.granted and not self._stopping.is_set()

    def _give_back(self) -> None:
        try:
            self._replay.release_permit(producer=self._status.producer)
        except BufferUnavailable:
            logger.warning("%s: a permit was not given back, it lapses", self._status.producer)

    def _refresh(self) -> None:
        """Brings the context up to date with the buffer."""
        info = self._patiently(self._replay.info)
        context = self.context
        context.class_counts = count_tensor(info, context.teacher.classes, context.device)
        context.filled_once = info.inserted >= info.capacity
        context.params = self._patiently(self._replay.params)
        context.progress = self._patiently(self._replay.progress)
        used = self._status.student_version
        newer = self._patiently(lambda: self._replay.fetch_student(newer_than=used))
        if newer is not None:
            self._load_student(*newer)

    def _load_student(self, version: Version, data: bytes) -> None:
        weights, context = from_bytes(data), self.context
        if context.student is None:
            context.student = freeze(build(self._config.student, weights=weights), context.device)
        else:
            origin = f"student snapshot {tuple(version)}"
            load_weights(context.student.network, weights, origin=origin)
        self._status = replace(self._status, student_version=version)

    def _insert(self, made: Round) -> int:
        """Inserts under a sequence number that repeated deliveries share.

        A permit that lapsed during the round is no reason to throw the round away: the insert is
        tried until the limiter lets it pass, or :meth:`stop`.
        """
        producer, sequence = self._status.producer, self._sequence
        while True:
            try:
                result = self._patiently(
                    lambda: self._replay.insert(made.samples, producer=producer, sequence=sequence)
                )
            except RateLimited as refusal:
                if self._stopping.is_set():
                    return 0
                self._pause(refusal.retry_after_seconds)
                continue
            if result.duplicate:
                logger.warning(
                    "%s: insert %d was answered as a repeated one, its %d samples are not counted: "
                    "an earlier delivery arrived, or another process inserts under this name",
                    *(producer, sequence, len(made.samples)),
                )
            return result.inserted

    def _patiently(self, call: Callable[[], Answer]) -> Answer:
        """Repeats a call while the buffer is away, ever more slowly, up to the patience."""
        deadline: float | None = None
        pause = FIRST_BACKOFF_SECONDS
        while True:
            try:
                return call()
            except BufferUnavailable:
                now = time.monotonic()
                deadline = now + self._patience if deadline is None else deadline
                if self._stopping.is_set() or now + pause > deadline:
                    raise
            self._wait(pause * self._jitter.uniform(0.5, 1.0))
            pause = min(2.0 * pause, LONGEST_BACKOFF_SECONDS)

    def _pause(self, retry_after_seconds: float) -> None:
        # Jitter spreads producers that were refused together.
        seconds = min(retry_after_seconds, LONGEST_PERMIT_WAIT_SECONDS)
        self._wait(seconds * self._jitter.uniform(0.75, 1.25))

    def _wait(self, seconds: float) -> None:
        begun = time.monotonic()
        self._stopping.wait(seconds)
        waited = time.monotonic() - begun
        self._metrics.waiting.inc(waited)
        total = self._status.waiting_seconds + waited
        self._status = replace(self._status, waiting_seconds=total)

    def _count(self, made: Round, inserted: int, seconds: float) -> None:
        status, progress = self._status, self.context.progress
        self._status = replace(
            status,
            rounds=status.rounds + 1,
            samples=status.samples + inserted,
            busy_seconds=status.busy_seconds + seconds,
            losses=dict(made.losses),
        )
        self._metrics.rounds.inc()
        self._metrics.images.inc(inserted)
        self._metrics.busy.inc(seconds)
        for term in status.losses.keys() - made.losses.keys():
            # A term that was switched off would show its last value for ever.
            self._metrics.loss.remove(term)
        for term, value in made.losses.items():
            self._metrics.loss.labels(term).set(value)
        if progress is not None:
            self._metrics.student_lag.set(
                max(0, progress.version.step - status.student_version.step)
            )


def count_tensor(info: BufferInfo, classes: int, device: torch.device) -> Tensor | None:
    """``[K]`` samples per predicted class, or ``None`` for an empty buffer."""
    if info.size == 0:
        return None
    counts = [float(info.class_counts.get(label, 0)) for label in range(classes)]
    return torch.tensor(counts, device=device)


def _build_inverter(
    config: SynthesizerFile, producer: str, device: torch.device, seed: int
) -> Inverter:
    teacher = Teacher(build(config.teacher), classes=config.teacher.classes, device=device)
    context = Context(
        teacher=teacher,
        device=device,
        generator=torch.Generator(device).manual_seed(seed),
        autocast=autocast_dtype(config.run.precision, device),
    )
    probe_share = config.buffer.probe_share if config.buffer.probe_capacity > 0 else 0.0
    return Inverter(build_method(config), context, config.synthesizer.method, producer, probe_share)
