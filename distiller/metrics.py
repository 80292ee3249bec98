"""What a distiller worker tells Prometheus. Objects on a registry that is passed in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from buffer.sample import IDENTITY_DTYPE, Batch
from distiller.step import StepResult

STEP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
AGE_BUCKETS = tuple(2.0**n for n in range(16))


class BatchHistogram(Histogram):
    """A histogram that takes a whole batch for what it would pay for a few values.

    Why it needs the fields of its parent, which takes one value at a time: a batch of 256 would
    cost a millisecond, at every step.
    """

    def observe_all(self, values: NDArray[np.int64]) -> None:
        """Counts values ``[B]``."""
        self._sum.inc(float(values.sum()))
        counts = np.bincount(np.searchsorted(self._upper_bounds, values))
        for bucket in np.flatnonzero(counts).tolist():
            self._buckets[bucket].inc(int(counts[bucket]))


def repeated_share(identities: NDArray[np.void]) -> float:
    """Share of draws ``[B]`` that repeat a sample of the same batch, in [0, 1).

    Compares names as bytes: fields take ten times as long.
    """
    names = np.ascontiguousarray(identities).view(f"V{IDENTITY_DTYPE.itemsize}")
    return 1.0 - len(set(names.tolist())) / len(names)


def effective_share(weights: NDArray[np.float64]) -> float:
    """Effective sample size of importance weights ``[B]`` over B, in (0, 1].

    ``(sum w)^2 / (B sum w^2)`` (Kish 1965): 1 if all weigh alike, 1 / B if one is all that counts.
    """
    return float(weights.sum() ** 2 / (len(weights) * np.square(weights).sum()))


class DistillerMetrics:
    """The training of one worker.

    Args:
        registry: where the metrics are registered; a fresh one per test.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._register_steps(registry)
        self._register_student(registry)
        self._register_batches(registry)
        self._register_waiting(registry)

    def _register_steps(self, registry: CollectorRegistry) -> None:
        self.steps = Counter(
            "ssdkd_distiller_steps_total", "Student steps of this process.", registry=registry
        )
        self.samples = Counter(
            "ssdkd_distiller_samples_total", "Samples this worker trained on.", registry=registry
        )
        self.step_seconds = Histogram(
            "ssdkd_distiller_step_seconds",
            "Duration of a student step.",
            buckets=STEP_BUCKETS,
            registry=registry,
        )
        self.last_step = Gauge(
            "ssdkd_distiller_last_step_timestamp_seconds",
            "Unix time of the newest student step; 0 before the first.",
            multiprocess_mode="max",
            registry=registry,
        )

    def _register_student(self, registry: CollectorRegistry) -> None:
        self.loss = Gauge(
            "ssdkd_distiller_loss",
            "Weighted training loss of the last step.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.kl = Gauge(
            "ssdkd_distiller_kl_nats",
            "Mean KL(teacher || student) at T = 1 of the last step.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.agreement = Gauge(
            "ssdkd_distiller_agreement_ratio",
            "Share of equal argmax of teacher and student, last step.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.learning_rate = Gauge(
            "ssdkd_distiller_learning_rate",
            "Learning rate of the last step; told by the first worker.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.accuracy = Gauge(
            "ssdkd_distiller_accuracy_ratio",
            "Share of the test data that the student classifies correctly, at its last evaluation; "
            "told by the first worker. No decision is based on it.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )

    def _register_batches(self, registry: CollectorRegistry) -> None:
        self.ages = BatchHistogram(
            "ssdkd_distiller_sample_age_steps",
            "Student steps since each sample that was drawn had been made.",
            buckets=AGE_BUCKETS,
            registry=registry,
        )
        self.repeated = Gauge(
            "ssdkd_distiller_repeated_draws_ratio",
            "Share of the last batch that repeats samples of the same batch.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.effective = Gauge(
            "ssdkd_distiller_weight_effective_ratio",
            "Effective sample size of the last batch's importance weights, over its size.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )

    def _register_waiting(self, registry: CollectorRegistry) -> None:
        self.waiting = Counter(
            "ssdkd_distiller_waiting_seconds_total", "Time waiting for batches.", registry=registry
        )
        self.refused = Counter(
            "ssdkd_distiller_refused_seconds_total",
            "Time waited after draws that the buffer refused, or did not answer.",
            registry=registry,
        )
        self.refusals = Counter(
            "ssdkd_distiller_refusals_total",
            "Draws that the buffer refused, or did not answer.",
            registry=registry,
        )
        self.checkpointing = Counter(
            "ssdkd_distiller_checkpoint_seconds_total",
            "Time that training stood still while a checkpoint was made and handed over.",
            registry=registry,
        )

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """Counts the time of a checkpoint."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.checkpointing.inc(time.monotonic() - started)

    def observe_refusal(self, waited_seconds: float) -> None:
        """Counts a wait after a draw that the buffer refused, or did not answer."""
        self.refusals.inc()
        self.refused.inc(waited_seconds)

    def observe_step(
        self, batch: Batch, result: StepResult, *, seconds: float, waited_seconds: float
    ) -> None:
        """Counts one step.

        Args:
            batch: what was drawn for it.
            result: what it measured.
            seconds: how long it took.
            waited_seconds: how long the worker had waited for its batch.
        """
        self.steps.inc()
        self.samples.inc(len(result.kl))
        self.loss.set(result.loss)
        self.kl.set(float(result.kl.mean()))
        self.agreement.set(result.agreement)
        self.waiting.inc(waited_seconds)
        self.step_seconds.observe(seconds)
        self.last_step.set_to_current_time()
        self.ages.observe_all(batch.ages)
        self.repeated.set(repeated_share(batch.identities))
        self.effective.set(effective_share(batch.weights))
