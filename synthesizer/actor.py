"""The synthesizer: asks, inverts one batch, inserts it. A plain class, stepped without Ray.

Why it pauses while a permit is refused, although it might go on optimising the round in hand: it
asks before the round begins, so there is none in hand, and where the limiter refuses it is the
student that is slow, on processors which it may share with this one.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import torch
from prometheus_client import CollectorRegistry
from torch import Tensor

from buffer.errors import BufferUnavailable, Diverged, RateLimited
from buffer.interface import BufferInfo, InsertResult, Replay
from buffer.models import build, from_bytes, load_weights
from buffer.version import Version
from synthesizer.checkpoint import Checkpoint
from synthesizer.config import SynthesizerFile
from synthesizer.inverter import Round, build_inverter, subject
from synthesizer.methods import Context
from synthesizer.metrics import Fate, SynthesizerMetrics
from synthesizer.patience import Patience
from synthesizer.tally import SynthesizerStatus, Tally
from synthesizer.teacher import freeze

logger = logging.getLogger(__name__)


class Synthesizer:
    """Makes images for the replay buffer, one batch per :meth:`step`.

    :meth:`status` and :meth:`stop` may be called from other threads.

    Args:
        config: the run.
        replay: where samples go.
        producer: a name no other live synthesizer of the run has.
        device: where networks compute.
        threads: CPU threads of torch in this process; ``None`` leaves them.
        seed: of all randomness; another one than its predecessor's.
        checkpoint: file of what it has learned, from which a successor goes on; ``None``: each
            begins anew.
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
        checkpoint: Path | None = None,
        metrics: SynthesizerMetrics | None = None,
        patience_seconds: float = 120.0,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        self._config, self._replay, self._seed = config, replay, seed
        self._prepared = False
        self._prepared_until = 0.0
        self._sequence = 0
        self._stopping = threading.Event()
        self._tally = Tally(producer, metrics or SynthesizerMetrics(CollectorRegistry()))
        self._inverter = build_inverter(config, producer, device, seed)
        self.context.stopping = self._stopping.is_set
        self.context.report = self._note_preparation
        self._patience = Patience(
            patience_seconds, seed=seed, stopping=self._stopping, note=self._tally.waited
        )
        self._checkpoint = Checkpoint(
            checkpoint,
            subject=subject(config),
            interval_seconds=config.synthesizer.checkpoint_seconds,
        )

    @property
    def context(self) -> Context:
        """What the method sees; refreshed from the buffer before each round."""
        return self._inverter.context

    def status(self) -> SynthesizerStatus:
        """What has been done so far."""
        return self._tally.status

    def stop(self) -> None:
        """Ends :meth:`run` after the round in hand, or early in the method's preparation."""
        self._stopping.set()

    def run(self) -> None:
        """Steps until :meth:`stop`; then saves what was learned.

        Raises:
            BufferUnavailable: the buffer stayed away for longer than the patience.
            Diverged: the method left the finite numbers.
        """
        while not self._stopping.is_set():
            try:
                self.step()
            except BufferUnavailable:
                # A buffer that ends before its producers is no failure of theirs.
                if not self._stopping.is_set():
                    raise
            except Diverged:
                # What ended it may lie in what it has learned: a successor is to begin anew.
                self._checkpoint.forget()
                raise
        if self._prepared:
            self._checkpoint.save(self._inverter.state_dict())

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
        begun, waited = time.monotonic(), self.status().waiting_seconds
        try:
            self._refresh()
            made = self._inverter.round(born=self.status().student_version)
        except BaseException:
            self._give_back()
            raise
        self._sequence += 1
        inserted = self._insert(made)
        waited = self.status().waiting_seconds - waited
        self._tally.made(made, time.monotonic() - begun - waited)
        self._checkpoint.save_when_due(self._inverter.state_dict)
        return inserted

    def _prepare_once(self) -> None:
        # Before a permit is asked for: a method that trains first would outlive its lease.
        if self._prepared:
            return
        self._refresh()
        state = self._checkpoint.load()
        if state is not None:
            self._inverter.load_state_dict(state)
            # With its predecessor's random numbers it would make that one's last images again.
            self.context.generator.manual_seed(self._seed)
        self._prepared_until = time.monotonic()
        self._inverter.method.prepare(self.context)
        self._prepared = True
        if not self._stopping.is_set():
            self._note_preparation(1.0)

    def _note_preparation(self, share: float) -> None:
        """What a method's report sets off."""
        now = time.monotonic()
        self._tally.worked(now - self._prepared_until)
        self._prepared_until = now
        self._tally.prepared(share)
        logger.info("prepared to %.0f %%", 100.0 * share)
        self._checkpoint.save_when_due(self._inverter.state_dict)

    def _permitted(self) -> bool:
        """Asks before the work; a refusal is waited out here, not in the server."""
        producer = self.status().producer
        # Probes are outside the limiter's count: asking for them too would hold others up.
        n = self._inverter.expected_training(self._config.synthesizer.batch_size)
        permit = self._patience.insist(lambda: self._replay.request_permit(n, producer=producer))
        if not permit.granted:
            self._patience.pause(permit.retry_after_seconds)
        elif self._stopping.is_set():
            self._give_back()
        return permit.granted and not self._stopping.is_set()

    def _give_back(self) -> None:
        try:
            self._replay.release_permit(producer=self.status().producer)
        except BufferUnavailable:
            logger.warning("a permit was not given back, it lapses")

    def _refresh(self) -> None:
        """Brings the context up to date with the buffer."""
        info = self._patience.insist(self._replay.info)
        context = self.context
        context.class_counts = count_tensor(info, context.teacher.classes, context.device)
        warm_up = self._config.synthesizer.warm_up_samples
        context.warmed_up = info.inserted >= (info.capacity if warm_up is None else warm_up)
        context.params = self._patience.insist(self._replay.params)
        context.progress = self._patience.insist(self._replay.progress)
        self._tally.saw(context.progress)
        used = self.status().student_version
        newer = self._patience.insist(lambda: self._replay.fetch_student(newer_than=used))
        if newer is not None:
            self._load_student(*newer)

    def _load_student(self, version: Version, data: bytes) -> None:
        weights, context = from_bytes(data), self.context
        if context.student is None:
            context.student = freeze(build(self._config.student, weights=weights), context.device)
        else:
            origin = f"student snapshot {tuple(version)}"
            load_weights(context.student.network, weights, origin=origin)
        self._tally.uses(version)

    def _insert(self, made: Round) -> int:
        """Inserts a round; says how many samples became visible, and counts the others too."""
        committed, others = 0, Fate.ABANDONED
        try:
            result = self._deliver(made)
            if result is not None:
                committed, others = result.inserted, Fate.REJECTED
        except ValueError:
            others = Fate.REJECTED
            raise
        finally:
            self._tally.delivered(len(made.samples), committed=committed, others=others)
        return committed

    def _deliver(self, made: Round) -> InsertResult | None:
        """Inserts under a sequence number that repeated deliveries share.

        A permit that lapsed during the round is no reason to throw the round away: the insert is
        tried until the limiter lets it pass, or :meth:`stop` (``None``).
        """
        producer, sequence = self.status().producer, self._sequence
        while True:
            try:
                result = self._patience.insist(
                    lambda: self._replay.insert(made.samples, producer=producer, sequence=sequence)
                )
            except RateLimited as refusal:
                if self._stopping.is_set():
                    return None
                self._patience.pause(refusal.retry_after_seconds)
                continue
            if result.duplicate:
                logger.warning(
                    "insert %d was answered as a repeated one, its %d samples are not counted: "
                    "an earlier delivery arrived, or another process inserts under this name",
                    *(sequence, len(made.samples)),
                )
            return result


def count_tensor(info: BufferInfo, classes: int, device: torch.device) -> Tensor | None:
    """``[K]`` samples per predicted class, or ``None`` for an empty buffer."""
    if info.size == 0:
        return None
    counts = [float(info.class_counts.get(label, 0)) for label in range(classes)]
    return torch.tensor(counts, device=device)
