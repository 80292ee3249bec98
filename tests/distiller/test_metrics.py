from __future__ import annotations

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from distiller.metrics import DistillerMetrics
from distiller.step import StepResult


def test_a_step_is_counted():
    registry = CollectorRegistry()
    metrics = DistillerMetrics(registry)
    kl = np.array([1.0, 3.0], np.float32)
    result = StepResult(loss=0.25, kl=kl, agreement=0.5, priorities=kl.astype(np.float64))
    metrics.observe_step(result, seconds=0.03, waited_seconds=0.5)
    metrics.observe_step(result, seconds=0.03, waited_seconds=0.25)

    def value(name, **labels):
        return registry.get_sample_value(f"ssdkd_distiller_{name}", labels)

    assert value("steps_total") == 2
    assert value("samples_total") == 4
    assert value("loss") == 0.25
    assert value("kl_nats") == 2.0
    assert value("agreement_ratio") == 0.5
    assert value("waiting_seconds_total") == 0.75
    assert value("step_seconds_sum") == pytest.approx(0.06)
    assert value("step_seconds_bucket", le="0.025") == 0
    assert value("step_seconds_bucket", le="0.05") == 2


def test_waits_after_refusals_are_counted_and_timed():
    registry = CollectorRegistry()
    metrics = DistillerMetrics(registry)
    metrics.observe_refusal(0.5)
    metrics.observe_refusal(0.25)
    assert registry.get_sample_value("ssdkd_distiller_refusals_total") == 2
    assert registry.get_sample_value("ssdkd_distiller_refused_seconds_total") == 0.75


def test_two_workers_may_count_in_one_process():
    DistillerMetrics(CollectorRegistry())
    DistillerMetrics(CollectorRegistry())
