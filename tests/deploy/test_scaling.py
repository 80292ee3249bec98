"""How many synthesizers a run wants."""

from __future__ import annotations

from itertools import pairwise

import pytest

from deploy.scaling import AGREEING_WINDOWS, PAUSE_SECONDS, WINDOW_SECONDS, Autoscaler, Seconds


class Simulation:
    """Both sides at constant shares of waiting, window after window."""

    def __init__(self, least: int, most: int, present: int) -> None:
        self.scaler, self.present = Autoscaler(least, most), present
        self.now, self.complete = 0.0, True
        self.sides = [Seconds(0.0, 0.0), Seconds(0.0, 0.0)]
        self.look(0.0, 0.0, seconds=0.0)

    def look(self, *waiting: float, seconds: float = WINDOW_SECONDS) -> int:
        """Lets time pass at these shares of waiting (synthesizers, distillers)."""
        self.now += seconds
        self.sides = [
            Seconds(side.busy + seconds * (1 - share), side.waiting + seconds * share)
            for side, share in zip(self.sides, waiting, strict=True)
        ]
        self.present = self.scaler.wanted(
            self.present, *self.sides, complete=self.complete, now=self.now
        )
        return self.present


def test_distillers_that_wait_get_more_synthesizers_and_no_more_than_allowed() -> None:
    run = Simulation(1, 3, 1)
    seen = [run.look(0.0, 0.5) for _ in range(30)]
    assert seen[0] == 1  # one window alone decides nothing
    assert sorted(set(seen)) == [1, 2, 3]
    assert seen[-1] == 3


def test_synthesizers_that_wait_become_fewer_and_no_fewer_than_allowed() -> None:
    run = Simulation(2, 8, 4)
    seen = [run.look(0.6, 0.0) for _ in range(30)]
    assert sorted(set(seen), reverse=True) == [4, 3, 2]


@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.1, 0.1), (0.5, 0.5), (0.04, 0.14), (0.3, 0.2)])
def test_nothing_changes_while_both_have_enough_or_both_wait(shares: tuple[float, float]) -> None:
    run = Simulation(1, 8, 4)
    assert {run.look(*shares) for _ in range(20)} == {4}


def test_a_side_that_waits_a_little_hides_not_that_the_other_waits_much() -> None:
    run = Simulation(1, 2, 2)
    assert [run.look(0.77, 0.22) for _ in range(5)][-1] == 1


def test_nobody_leaves_whose_work_the_others_could_not_do() -> None:
    run = Simulation(1, 8, 2)
    assert {run.look(0.3, 0.0) for _ in range(20)} == {2}
    run = Simulation(1, 8, 4)
    assert {run.look(0.3, 0.0) for _ in range(20)} >= {3}


def test_changes_of_direction_within_two_windows_change_nothing() -> None:
    run = Simulation(1, 8, 4)
    seen = {run.look(*shares) for _ in range(10) for shares in ((0.0, 0.5), (0.5, 0.0))}
    assert seen == {4}


def test_a_change_gets_time_to_take_effect() -> None:
    run = Simulation(1, 8, 1)
    changed = []
    for _ in range(20):
        before = run.present
        if run.look(0.0, 0.9) != before:
            changed.append(run.now)
    gaps = [later - earlier for earlier, later in pairwise(changed)]
    assert min(gaps) >= PAUSE_SECONDS + WINDOW_SECONDS


def test_a_number_set_by_hand_within_the_bounds_is_where_it_goes_on() -> None:
    run = Simulation(1, 4, 2)
    run.present = 3
    assert max(run.look(0.0, 0.5) for _ in range(5)) == 4
    assert [run.scaler.allows(number) for number in (0, 1, 4, 5)] == [False, True, True, False]


def test_nobody_is_added_to_those_who_are_still_waited_for() -> None:
    run = Simulation(1, 8, 2)
    run.complete = False
    assert {run.look(0.0, 0.5) for _ in range(20)} == {2}
    run.complete = True
    seen = [run.look(0.0, 0.5) for _ in range(AGREEING_WINDOWS)]
    assert seen == [2, 3]  # what was measured before they came does not count


def test_one_who_is_not_needed_is_not_waited_for() -> None:
    run = Simulation(1, 8, 4)
    run.complete = False
    assert 3 in {run.look(0.6, 0.0) for _ in range(5)}


def test_totals_that_fell_since_an_actor_left_decide_nothing() -> None:
    run = Simulation(1, 8, 4)
    for _ in range(10):
        run.look(0.0, 0.5, seconds=WINDOW_SECONDS)
        run.sides[0] = Seconds(run.sides[0].busy - 2 * WINDOW_SECONDS, 0.0)
    assert run.present == 4
