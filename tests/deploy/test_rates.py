from __future__ import annotations

import pytest

from deploy.rates import (
    Mark,
    Marks,
    Seconds,
    per_second,
    seconds_left,
    starved,
    waiting_share,
)


def mark(at: float, share: float = 0.0) -> Mark:
    return Mark(at, 0, 0, share, Seconds(0.0, 0.0), Seconds(0.0, 0.0))


def test_a_rate_is_a_count_over_its_time() -> None:
    assert per_second(30, mark(2.0), mark(12.0)) == 3.0
    assert per_second(0, mark(2.0), mark(12.0)) == 0.0


def test_a_rate_over_no_time_or_of_a_count_that_fell_is_not_known() -> None:
    assert per_second(30, mark(2.0), mark(2.0)) is None
    assert per_second(-1, mark(2.0), mark(12.0)) is None


def test_the_share_of_waiting_is_of_the_time_between_two_totals() -> None:
    assert waiting_share(Seconds(10, 90), Seconds(13, 91)) == 0.25
    assert waiting_share(Seconds(0, 0), Seconds(0, 5)) == 1.0


@pytest.mark.parametrize("after", [Seconds(10, 90), Seconds(9, 95), Seconds(15, 80)])
def test_without_work_or_after_a_total_fell_no_share_is_known(after: Seconds) -> None:
    assert waiting_share(Seconds(10, 90), after) is None


@pytest.mark.parametrize(
    ("synthesizers", "distillers", "side"),
    [
        (0.0, 0.5, "distillers"),
        (0.5, 0.1, "synthesizers"),
        (0.3, 0.5, None),
        (0.0, 0.1, None),
        (None, 0.9, None),
        (0.9, None, None),
    ],
)
def test_a_side_waits_for_the_other_if_it_waits_much_and_much_longer(
    synthesizers: float | None, distillers: float | None, side: str | None
) -> None:
    assert starved(synthesizers, distillers) == side


def test_the_time_left_follows_from_the_share_that_was_spent_meanwhile() -> None:
    assert seconds_left(mark(100, 0.2), mark(110, 0.3)) == pytest.approx(70)
    assert seconds_left(mark(0, 0.5), mark(10, 1.0)) == 0.0
    assert seconds_left(mark(0, 1.0), mark(10, 1.0)) == 0.0


def test_the_time_left_is_not_known_while_nothing_is_spent() -> None:
    assert seconds_left(mark(0), mark(10)) is None
    assert seconds_left(mark(0, 0.5), mark(10, 0.4)) is None


def test_marks_reach_back_as_far_as_is_asked_or_as_they_can() -> None:
    marks = Marks(60)
    with pytest.raises(LookupError):
        marks.over(10)
    for second in range(5):
        marks.add(mark(second))
    assert marks.over(2) == (mark(2), mark(4))
    assert marks.over(10) == (mark(0), mark(4))
    for second in range(5, 500):
        marks.add(mark(second))
    assert marks.over(60) == (mark(439), mark(499))
    assert marks.over(1000) == (mark(439), mark(499))
