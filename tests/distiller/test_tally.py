from __future__ import annotations

import pytest

from buffer.config import RunTable
from distiller.tally import Budget, Tally


class Clock:
    """A clock that a test sets."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def _filled():
    return Tally(step=3, samples_drawn=48, evaluation_seconds=2.0, curve=[[3, 1.0, 0.1, 50.0]])


def test_a_tally_survives_as_plain_values():
    other = Tally()
    other.update(_filled().as_dict())
    assert other == _filled()


def test_a_tally_as_metrics_says_what_its_steps_are():
    metrics = _filled().as_metrics()
    assert metrics["student_steps"] == 3
    assert metrics["curve"] == [[3, 1.0, 0.1, 50.0]]
    assert not {"step", "first_share"} & metrics.keys()


def test_a_budget_of_seconds_counts_from_before_the_training(clock):
    budget = Budget(RunTable(seconds=100), Tally(), clock=clock)
    budget.begin(already_seconds=20.0)
    clock.now += 30
    assert budget.elapsed_seconds == pytest.approx(50)
    assert budget.share == pytest.approx(0.5)


def test_evaluation_does_not_spend_the_budget(clock):
    tally = Tally()
    budget = Budget(RunTable(seconds=100), tally, clock=clock)
    budget.begin(already_seconds=0.0)
    clock.now += 10
    with budget.excluded():
        clock.now += 25
    clock.now += 10
    assert tally.evaluation_seconds == pytest.approx(25)
    assert budget.elapsed_seconds == pytest.approx(20)
    assert budget.share == pytest.approx(0.2)


def test_a_share_never_exceeds_one(clock):
    budget = Budget(RunTable(seconds=100), Tally(), clock=clock)
    budget.begin(already_seconds=500.0)
    assert budget.share == 1.0


def test_a_budget_of_steps_does_not_follow_the_clock(clock):
    tally = Tally()
    budget = Budget(RunTable(steps=10), tally, clock=clock)
    budget.begin(already_seconds=500.0)
    assert budget.share == 0.0
    tally.step = 4
    assert budget.share == pytest.approx(0.4)


def test_an_earlier_attempts_time_counts_when_the_buffer_forgot_it(clock):
    tally = Tally(elapsed_seconds=40.0, evaluation_seconds=5.0)
    budget = Budget(RunTable(seconds=100), tally, clock=clock)
    budget.begin(already_seconds=1.0)
    assert budget.elapsed_seconds == pytest.approx(40)
    budget.begin(already_seconds=65.0)
    assert budget.elapsed_seconds == pytest.approx(60)


def test_the_filling_spends_a_budget_of_seconds_but_none_of_steps(clock):
    assert Budget(RunTable(seconds=100), Tally(), clock=clock).share_at(30.0) == 0.3
    assert Budget(RunTable(steps=100), Tally(), clock=clock).share_at(30.0) == 0.0
