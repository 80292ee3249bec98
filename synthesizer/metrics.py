"""What a synthesizer measures of itself, as Prometheus objects on a registry that is passed in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

ROUND_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 60.0)


class Fate(StrEnum):
    """What became of an image that was made."""

    COMMITTED = "committed"
    """It can be drawn, or is a probe."""
    REJECTED = "rejected"
    """The buffer has it already, or will not take it."""
    ABANDONED = "abandoned"
    """Given up: the synthesizer was told to end, or the buffer stayed away."""


class SynthesizerMetrics:
    """The metrics of one synthesizer.

    Args:
        registry: where they are registered; one fresh registry per actor and per test.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._terms: set[str] = set()
        self._register_work(registry)
        self._register_time(registry)
        self._register_newest_round(registry)

    def _register_work(self, registry: CollectorRegistry) -> None:
        self._images = Counter(
            "ssdkd_synthesizer_images_total",
            "Images made, by what became of them: committed to the buffer, rejected (it had them "
            "already, or will not take them), or abandoned (at a stop, or without a buffer).",
            ["result"],
            registry=registry,
        )
        for fate in Fate:
            self._images.labels(fate)
        self.last_insert = Gauge(
            "ssdkd_synthesizer_last_insert_timestamp_seconds",
            "Unix time of the newest insert; 0 before the first.",
            multiprocess_mode="max",
            registry=registry,
        )
        self.rounds = Counter("ssdkd_synthesizer_rounds_total", "Rounds made.", registry=registry)
        self.round_seconds = Histogram(
            "ssdkd_synthesizer_round_seconds",
            "Time spent making and inserting the images of a round, without waiting.",
            buckets=ROUND_BUCKETS,
            registry=registry,
        )

    def _register_time(self, registry: CollectorRegistry) -> None:
        self.prepared = Gauge(
            "ssdkd_synthesizer_prepared_ratio",
            "How far the method's preparation is; of several synthesizers the last.",
            multiprocess_mode="livemin",
            registry=registry,
        )
        self.busy = Counter(
            "ssdkd_synthesizer_busy_seconds_total",
            "Time spent preparing, making and inserting images.",
            registry=registry,
        )
        self.waiting = Counter(
            "ssdkd_synthesizer_waiting_seconds_total",
            "Time spent waiting for permits, or for a buffer that is away.",
            registry=registry,
        )
        self.waits = Counter(
            "ssdkd_synthesizer_waits_total",
            "Waits for permits, or for a buffer that is away.",
            registry=registry,
        )

    def _register_newest_round(self, registry: CollectorRegistry) -> None:
        self.loss = Gauge(
            "ssdkd_synthesizer_loss",
            "Mean of each loss term in the newest round, before its weight.",
            ["term"],
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.confidence = Gauge(
            "ssdkd_synthesizer_confidence_ratio",
            "Mean confidence of the teacher in the images of the newest round.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.modulation = Gauge(
            "ssdkd_synthesizer_modulation",
            "Mean of phi, the weights of the task term, in the newest round, before they are "
            "normalised.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.disagreement = Gauge(
            "ssdkd_synthesizer_disagreement_nats",
            "Mean KL(teacher || student) of the images of the newest round that knew a student.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.student_lag = Gauge(
            "ssdkd_synthesizer_student_lag_steps",
            "Student steps made since the snapshot that the newest round used; the largest.",
            multiprocess_mode="livemax",
            registry=registry,
        )

    def observe_images(self, images: int, fate: Fate) -> None:
        """Counts images by what became of them."""
        self._images.labels(fate).inc(images)
        if images and fate is Fate.COMMITTED:
            self.last_insert.set_to_current_time()

    def observe_losses(self, losses: Mapping[str, float]) -> None:
        """Takes the loss terms of a round.

        Args:
            losses: mean of each term. One that was switched off shows NaN from then on, instead of
                its last value for ever.
        """
        for term in self._terms - losses.keys():
            self.loss.labels(term).set(math.nan)
        for term, value in losses.items():
            self.loss.labels(term).set(value)
        self._terms |= losses.keys()
