import time

from prometheus_client import CollectorRegistry

from buffer.controller.metrics import ControllerMetrics


def test_a_decision_is_counted_with_its_arm_and_reward() -> None:
    registry = CollectorRegistry()
    metrics = ControllerMetrics(registry)
    metrics.observe_decision("easy", reward=0.03)
    value = registry.get_sample_value
    assert value("ssdkd_controller_decisions_total", {"arm": "easy"}) == 1
    assert value("ssdkd_controller_reward") == 0.03
    decided = value("ssdkd_controller_last_decision_timestamp_seconds")
    assert decided is not None
    assert abs(decided - time.time()) < 60


def test_the_counters_of_all_arms_begin_at_zero() -> None:
    registry = CollectorRegistry()
    ControllerMetrics(registry).begin(["easy", "hard"], interval_seconds=20)
    assert registry.get_sample_value("ssdkd_controller_interval_seconds") == 20
    for arm in ("easy", "hard"):
        assert registry.get_sample_value("ssdkd_controller_decisions_total", {"arm": arm}) == 0
