from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Histogram

from buffer.batches import identity_array
from distiller.metrics import BatchHistogram, DistillerMetrics, effective_share, repeated_share
from distiller.step import StepResult


def test_a_step_is_counted(make_batch):
    registry = CollectorRegistry()
    metrics = DistillerMetrics(registry)
    kl = np.array([1.0, 3.0], np.float32)
    result = StepResult(loss=0.25, kl=kl, agreement=0.5, priorities=kl.astype(np.float64))
    batch = replace(
        make_batch(2),
        ages=np.array([3, 70]),
        weights=np.array([1.0, 3.0]),
        identities=identity_array(0, 9, [4, 4], [1, 1]),
    )
    metrics.observe_step(batch, result, seconds=0.03, waited_seconds=0.5)
    metrics.observe_step(batch, result, seconds=0.03, waited_seconds=0.25)

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
    assert value("last_step_timestamp_seconds") == pytest.approx(time.time(), abs=60)
    assert value("sample_age_steps_count") == 4
    assert value("sample_age_steps_sum") == 146
    assert value("sample_age_steps_bucket", le="2.0") == 0
    assert value("sample_age_steps_bucket", le="4.0") == 2
    assert value("sample_age_steps_bucket", le="64.0") == 2
    assert value("sample_age_steps_bucket", le="128.0") == 4
    assert value("repeated_draws_ratio") == 0.5
    assert value("weight_effective_ratio") == pytest.approx(16 / 20)


def test_a_batch_at_once_counts_as_its_values_one_by_one():
    registry = CollectorRegistry()
    together = BatchHistogram("together", "", buckets=(1, 4, 16), registry=registry)
    single = Histogram("single", "", buckets=(1, 4, 16), registry=registry)
    values = np.random.default_rng(0).integers(0, 20, 100)
    together.observe_all(values)
    for value in values.tolist():
        single.observe(value)
    found = [
        {
            (sample.name.removeprefix(name), sample.labels.get("le")): sample.value
            for family in registry.collect()
            for sample in family.samples
            if sample.name.startswith(name) and not sample.name.endswith("_created")
        }
        for name in ("together", "single")
    ]
    assert found[0] == found[1]
    assert found[0][("_count", None)] == 100


def test_draws_that_repeat_a_sample_are_those_beyond_its_first():
    slots, generations = [5, 5, 5, 7, 8], [1, 1, 2, 1, 1]
    assert repeated_share(identity_array(0, 9, slots, generations)) == pytest.approx(1 / 5)
    assert repeated_share(identity_array(0, 9, [5, 7], [1, 1])) == 0
    assert repeated_share(identity_array(0, 9, [5] * 4, [1] * 4)) == 3 / 4


def test_equal_weights_all_count_and_a_single_one_counts_alone():
    assert effective_share(np.full(8, 0.25)) == pytest.approx(1.0)
    assert effective_share(np.array([1.0, 0.0, 0.0, 0.0])) == pytest.approx(1 / 4)


def test_the_time_of_a_checkpoint_is_counted_also_if_it_fails():
    registry = CollectorRegistry()
    metrics = DistillerMetrics(registry)
    with metrics.blocked():
        time.sleep(0.02)
    once = registry.get_sample_value("ssdkd_distiller_checkpoint_seconds_total")
    assert 0.02 <= once < 2
    with pytest.raises(OSError, match="full"), metrics.blocked():
        raise OSError("full")
    assert registry.get_sample_value("ssdkd_distiller_checkpoint_seconds_total") > once


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
