import time

from prometheus_client import CollectorRegistry

from buffer.controller.metrics import ControllerMetrics
from buffer.params import SamplingParams


def test_a_decision_is_counted_with_its_arm_parameters_and_reward() -> None:
    registry = CollectorRegistry()
    metrics = ControllerMetrics(registry)
    metrics.observe_decision("easy", SamplingParams(uniform_share=0.25), reward=0.03)
    value = registry.get_sample_value
    assert value("ssdkd_controller_decisions_total", {"arm": "easy"}) == 1
    assert value("ssdkd_controller_reward") == 0.03
    assert value("ssdkd_controller_parameter", {"name": "uniform_share"}) == 0.25
    decided = value("ssdkd_controller_last_decision_timestamp_seconds")
    assert decided is not None
    assert abs(decided - time.time()) < 60


def test_a_parameter_that_is_off_has_no_series() -> None:
    registry = CollectorRegistry()
    ControllerMetrics(registry).observe_decision("start", SamplingParams(), reward=0.0)
    name = {"name": "samples_per_insert"}
    assert registry.get_sample_value("ssdkd_controller_parameter", name) is None
