from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from distiller.interval import Interval
from distiller.step import StepResult


def _result(kl, *, loss=1.0, agreement=0.5):
    kl = np.array(kl, np.float32)
    return StepResult(loss=loss, kl=kl, agreement=agreement, priorities=kl.astype(np.float64))


@pytest.fixture
def make_drawn(make_batch):
    """A batch of ``count`` draws from a buffer of so many levels and ages."""

    def make(probabilities, ages, *, count, seed=0):
        drawn = np.random.default_rng(seed).choice(len(ages), size=count, p=probabilities)
        return replace(
            make_batch(count),
            probabilities=np.asarray(probabilities)[drawn],
            ages=np.asarray(ages)[drawn],
            population=len(ages),
        )

    return make


def test_a_uniform_draw_is_fully_effective(make_drawn):
    interval = Interval()
    interval.add(make_drawn([0.25] * 4, [0] * 4, count=9), _result([1.0]))
    assert interval.summarise()["ess_ratio"] == pytest.approx(1.0)


def test_the_effective_sample_size_is_that_of_the_priorities_whatever_the_weights(make_drawn):
    masses = np.geomspace(1.0, 100.0, 50)
    probabilities, interval = masses / masses.sum(), Interval()
    for seed in range(100):
        interval.add(make_drawn(probabilities, [0] * 50, count=64, seed=seed), _result([1.0]))
    expected = 1.0 / (50 * np.square(probabilities).sum())
    assert expected < 0.6
    # 6,400 draws: a standard error of about 1 %.
    assert interval.summarise()["ess_ratio"] == pytest.approx(expected, rel=0.05)


def test_the_mean_age_is_that_of_the_buffers_items_not_of_those_drawn(make_drawn):
    ages = np.arange(50)
    masses = np.geomspace(1.0, 20.0, 50)  # the oldest are drawn most
    probabilities, interval = masses / masses.sum(), Interval()
    for seed in range(100):
        interval.add(make_drawn(probabilities, ages, count=64, seed=seed), _result([1.0]))
    assert probabilities @ ages > 32
    assert interval.summarise()["mean_age"] == pytest.approx(ages.mean(), abs=1.0)


def test_a_summary_is_of_all_steps_since_the_last(make_batch):
    interval = Interval()
    interval.add(make_batch(4), _result([0.0, 1.0, 2.0, 3.0], loss=1.0, agreement=0.0))
    interval.add(make_batch(4), _result([4.0, 5.0, 6.0, 7.0], loss=3.0, agreement=1.0))
    summary = interval.summarise()
    assert summary["loss"] == pytest.approx(2.0)
    assert summary["agreement"] == pytest.approx(0.5)
    assert summary["kl_mean"] == pytest.approx(3.5)
    assert summary["kl_quantiles"] == pytest.approx((0.7, 3.5, 6.3))
    assert summary["ess_ratio"] == pytest.approx(1.0)
    interval.add(make_batch(1), _result([9.0]))
    assert interval.summarise()["kl_mean"] == pytest.approx(9.0)


def test_an_interval_without_steps_repeats_the_last(make_batch):
    interval = Interval()
    assert interval.summarise()["kl_mean"] == 0.0
    interval.add(make_batch(1), _result([9.0]))
    assert interval.summarise() == interval.summarise()
    assert interval.summarise()["kl_mean"] == pytest.approx(9.0)
