"""What a distiller worker tells Prometheus. Objects on a registry that is passed in."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from distiller.step import StepResult

STEP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class DistillerMetrics:
    """The training of one worker.

    Args:
        registry: where the metrics are registered; a fresh one per test.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.steps = Counter(
            "ssdkd_distiller_steps_total", "Student steps of this process.", registry=registry
        )
        self.samples = Counter(
            "ssdkd_distiller_samples_total", "Samples this worker trained on.", registry=registry
        )
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
        self.waiting = Counter(
            "ssdkd_distiller_waiting_seconds_total", "Time waiting for batches.", registry=registry
        )
        self.refused = Counter(
            "ssdkd_distiller_refused_seconds_total",
            "Time waited after draws that the buffer refused, or did not answer.",
            registry=registry,
        )
        self.refusals = Counter(
            "ssdkd_distiller_refusals_total", "How often it waited so.", registry=registry
        )
        self.step_seconds = Histogram(
            "ssdkd_distiller_step_seconds",
            "Duration of a student step.",
            buckets=STEP_BUCKETS,
            registry=registry,
        )

    def observe_refusal(self, waited_seconds: float) -> None:
        """Counts a wait after a draw that the buffer refused, or did not answer."""
        self.refusals.inc()
        self.refused.inc(waited_seconds)

    def observe_step(self, result: StepResult, *, seconds: float, waited_seconds: float) -> None:
        """Counts one step.

        Args:
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
