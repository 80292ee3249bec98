"""What the controller tells Prometheus. Objects on a registry that is passed in."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

DECISION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 10.0)


class ControllerMetrics:
    """The decisions of one controller.

    Args:
        registry: where the metrics are registered; a fresh one per controller and per test.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.decisions = Counter(
            "ssdkd_controller_decisions_total",
            "Decisions, by arm chosen.",
            ["arm"],
            registry=registry,
        )
        self.reward = Gauge(
            "ssdkd_controller_reward",
            "What the parameters before the newest decision earned on the probe set, per second.",
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.last_decision = Gauge(
            "ssdkd_controller_last_decision_timestamp_seconds",
            "Unix time of the newest decision; 0 before the first.",
            multiprocess_mode="max",
            registry=registry,
        )
        self.interval = Gauge(
            "ssdkd_controller_interval_seconds",
            "Time between two decisions, as it is configured.",
            # As the time of the newest decision: it is by the two that a death is noticed.
            multiprocess_mode="max",
            registry=registry,
        )
        self.decision_seconds = Histogram(
            "ssdkd_controller_decision_seconds",
            "How long a decision took, from looking at the buffer to parameters in force.",
            buckets=DECISION_BUCKETS,
            registry=registry,
        )

    def begin(self, arms: Iterable[str], *, interval_seconds: float) -> None:
        """Tells what is known from the start; the counters of all arms begin at 0.

        Args:
            arms: names of those that can be chosen.
            interval_seconds: between two decisions.
        """
        self.interval.set(interval_seconds)
        for arm in arms:
            self.decisions.labels(arm)

    def observe_decision(self, arm: str, *, reward: float) -> None:
        """Counts one decision.

        Args:
            arm: name of the arm chosen.
            reward: what the arm before it earned.
        """
        self.decisions.labels(arm).inc()
        self.reward.set(reward)
        self.last_decision.set_to_current_time()
