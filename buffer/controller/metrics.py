"""What the controller tells Prometheus. Objects on a registry that is passed in."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge

from buffer.params import SamplingParams


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
            registry=registry,
        )
        self.parameter = Gauge(
            "ssdkd_controller_parameter",
            "Sampling parameters in force since the newest decision.",
            ["name"],
            registry=registry,
        )
        self.last_decision = Gauge(
            "ssdkd_controller_last_decision_timestamp_seconds",
            "Unix time of the newest decision.",
            registry=registry,
        )

    def observe_decision(self, arm: str, params: SamplingParams, *, reward: float) -> None:
        """Counts one decision.

        Args:
            arm: name of the arm chosen.
            params: what it put in force; parameters that are off (``None``) have no series.
            reward: what the arm before it earned.
        """
        self.decisions.labels(arm).inc()
        self.reward.set(reward)
        self.last_decision.set_to_current_time()
        for name, value in params.model_dump(exclude={"version"}).items():
            if value is not None:
                self.parameter.labels(name).set(value)
