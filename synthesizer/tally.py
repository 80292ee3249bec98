"""What a synthesizer has done so far: for those who ask it, and for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean

from buffer.progress import StudentProgress
from buffer.version import NEVER, Version
from synthesizer.inverter import Round
from synthesizer.metrics import Fate, SynthesizerMetrics


@dataclass(frozen=True)
class SynthesizerStatus:
    """What a synthesizer has done so far."""

    producer: str
    prepared_share: float = 0.0
    """How far the method's preparation is, in [0, 1]."""
    rounds: int = 0
    samples: int = 0
    """Inserted, probes included."""
    busy_seconds: float = 0.0
    """Preparing, making and inserting images."""
    waiting_seconds: float = 0.0
    """Waiting for permits, or for a buffer that is away."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """Of the newest round, by term."""
    student_version: Version = NEVER
    """Of the snapshot in use."""


class Tally:
    """Counts for both alike.

    Args:
        producer: the synthesizer's name.
        metrics: told of everything.

    Attributes:
        status: as of now; replaced by each count, so that other threads may read it.
    """

    def __init__(self, producer: str, metrics: SynthesizerMetrics) -> None:
        self.status = SynthesizerStatus(producer)
        self._metrics = metrics

    def prepared(self, share: float) -> None:
        """Notes how far the preparation is, in [0, 1]."""
        self.status = replace(self.status, prepared_share=share)
        self._metrics.prepared.set(share)

    def uses(self, student: Version) -> None:
        """Notes which snapshot is in use."""
        self.status = replace(self.status, student_version=student)

    def saw(self, progress: StudentProgress | None) -> None:
        """Notes how far the student has come since the snapshot in use, before a newer one is."""
        used = self.status.student_version
        if progress is not None and used != NEVER:
            self._metrics.student_lag.set(max(0, progress.version.step - used.step))

    def waited(self, seconds: float) -> None:
        """Counts one wait."""
        self._metrics.waits.inc()
        self._metrics.waiting.inc(seconds)
        total = self.status.waiting_seconds + seconds
        self.status = replace(self.status, waiting_seconds=total)

    def worked(self, seconds: float) -> None:
        """Counts work."""
        self._metrics.busy.inc(seconds)
        self.status = replace(self.status, busy_seconds=self.status.busy_seconds + seconds)

    def delivered(self, images: int, *, committed: int, others: Fate) -> None:
        """Counts a round's images, and what became of those that were not committed."""
        self.status = replace(self.status, samples=self.status.samples + committed)
        self._metrics.observe_images(committed, Fate.COMMITTED)
        self._metrics.observe_images(images - committed, others)

    def made(self, made: Round, seconds: float) -> None:
        """Counts a round that has been delivered, after so many seconds of work."""
        self.worked(seconds)
        status, metrics = self.status, self._metrics
        self.status = replace(status, rounds=status.rounds + 1, losses=dict(made.losses))
        metrics.rounds.inc()
        metrics.round_seconds.observe(seconds)
        metrics.observe_losses(made.losses)
        metrics.confidence.set(fmean(sample.confidence for sample in made.samples))
        if made.modulation is not None:
            metrics.modulation.set(made.modulation)
        if status.student_version != NEVER:
            metrics.disagreement.set(fmean(sample.disagreement for sample in made.samples))
