from __future__ import annotations

import numpy as np
import pytest

from distiller.interval import Interval, ess_ratio
from distiller.step import StepResult


def _result(kl, *, loss=1.0, agreement=0.5):
    kl = np.array(kl, np.float32)
    return StepResult(loss=loss, kl=kl, agreement=agreement, priorities=kl.astype(np.float64))


def test_equal_weights_are_fully_effective():
    assert ess_ratio(np.full(7, 0.3)) == pytest.approx(1.0)


def test_one_heavy_weight_leaves_one_effective_sample():
    assert ess_ratio(np.array([1e9, 1.0, 1.0, 1.0])) == pytest.approx(0.25)


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
