"""What a synthesizer measures of itself, as Prometheus objects on a registry that is passed in."""

from __future__ import annotations

import math
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge


class SynthesizerMetrics:
    """The metrics of one synthesizer.

    Args:
        registry: where they are registered; one fresh registry per actor and per test.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._terms: set[str] = set()
        self.images = Counter(
            "ssdkd_synthesizer_images_total", "Images inserted.", registry=registry
        )
        self.prepared = Gauge(
            "ssdkd_synthesizer_prepared_ratio",
            "How far the method's preparation is; of several synthesizers the last.",
            multiprocess_mode="livemin",
            registry=registry,
        )
        self.rounds = Counter("ssdkd_synthesizer_rounds_total", "Rounds made.", registry=registry)
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
            "ssdkd_synthesizer_waits_total", "How often it waited so.", registry=registry
        )
        self.loss = Gauge(
            "ssdkd_synthesizer_loss",
            "Mean of each loss term in the newest round, before its weight.",
            ["term"],
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.student_lag = Gauge(
            "ssdkd_synthesizer_student_lag_steps",
            "Student steps between the newest progress and the snapshot in use; the largest.",
            multiprocess_mode="livemax",
            registry=registry,
        )

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
