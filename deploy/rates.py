"""How fast a run goes and who waits for whom, from counts at two moments. Pure: no clock, no I/O.

What cannot be known is ``None``: nothing was counted between the two, or a count fell, because an
actor left or the buffer lost its data.
"""

from __future__ import annotations

from collections import deque
from typing import Literal, NamedTuple

STARVED = 0.15
"""From this share of waiting on, a side is short of the other's work."""
LONGER = 3.0
"""So many times as long as the other side it waits: both wait a little, were it only for the
network and for a processor."""

Side = Literal["synthesizers", "distillers"]


class Seconds(NamedTuple):
    """Work and waiting of one side so far, summed over its processes."""

    busy: float
    waiting: float


class Mark(NamedTuple):
    """What was counted by a moment."""

    at: float
    """Seconds, by any clock that goes on."""
    inverted: int
    drawn: int
    elapsed_share: float
    """Of the budget, in [0, 1]."""
    synthesizers: Seconds
    distillers: Seconds


class Marks:
    """The marks of the last while.

    Args:
        seconds: older ones are forgotten, but for the last of them.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._marks: deque[Mark] = deque()

    def add(self, mark: Mark) -> None:
        """Takes a mark that is later than all before."""
        self._marks.append(mark)
        while len(self._marks) > 1 and self._marks[1].at <= mark.at - self._seconds:
            self._marks.popleft()

    def over(self, seconds: float) -> tuple[Mark, Mark]:
        """The latest mark that is so much older than the newest, else the oldest; the newest.

        Raises:
            LookupError: there is none.
        """
        newest = self._marks[-1]
        old_enough = [mark for mark in self._marks if mark.at <= newest.at - seconds]
        return (old_enough[-1] if old_enough else self._marks[0]), newest


def per_second(count: int, before: Mark, after: Mark) -> float | None:
    """A rate, of a count between two marks."""
    seconds = after.at - before.at
    return count / seconds if count >= 0 and seconds > 0 else None


def waiting_share(before: Seconds, after: Seconds) -> float | None:
    """The share of waiting between two totals, in [0, 1]."""
    busy, waiting = after.busy - before.busy, after.waiting - before.waiting
    return waiting / (busy + waiting) if busy >= 0 and waiting >= 0 and busy + waiting > 0 else None


def starved(synthesizers: float | None, distillers: float | None) -> Side | None:
    """Which side waits for the other, from the shares of waiting of both; ``None``: neither."""
    if synthesizers is None or distillers is None:
        return None
    if distillers >= max(STARVED, LONGER * synthesizers):
        return "distillers"
    if synthesizers >= max(STARVED, LONGER * distillers):
        return "synthesizers"
    return None


def seconds_left(before: Mark, after: Mark) -> float | None:
    """Until the budget is spent, should it go on being spent as between two marks."""
    spent = after.elapsed_share - before.elapsed_share
    if after.elapsed_share >= 1.0:
        return 0.0
    if spent <= 0.0:
        return None
    return (1.0 - after.elapsed_share) * (after.at - before.at) / spent
