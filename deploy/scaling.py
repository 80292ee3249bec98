"""How many synthesizers a run wants, from who waits for whom. Pure: no Ray, no clock of its own.

Synthesizers that wait to insert are too many; distillers that wait for samples have too few. Both
shares are measured over the same window. Two windows in a row must agree before anything changes,
and after a change a pause lets it take effect: a new synthesizer needs time to start, and one that
was started for nothing is as wasteful as a missing one. An order by hand for a number outside of
the bounds ends all this for the run.
"""

from __future__ import annotations

from deploy.rates import Seconds, starved, waiting_share

WINDOW_SECONDS = 15.0
PAUSE_SECONDS = 30.0
AGREEING_WINDOWS = 2


class Autoscaler:
    """Decides on the number of synthesizers.

    Args:
        least: never fewer.
        most: never more.
    """

    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most
        self._window: tuple[float, Seconds, Seconds] | None = None
        self._paused_until = float("-inf")
        self._direction, self._agreed = 0, 0

    def allows(self, wanted: int) -> bool:
        """Whether a number is within the bounds, so that it can go on from there."""
        return self._least <= wanted <= self._most

    def wanted(
        self,
        present: int,
        synthesizers: Seconds,
        distillers: Seconds,
        *,
        complete: bool,
        now: float,
    ) -> int:
        """How many there should be.

        Args:
            present: how many are wanted now, within the bounds.
            synthesizers: totals so far; they may fall when an actor leaves.
            distillers: totals so far.
            complete: whether all of ``present`` are at work; none is added to those that are still
                waited for.
            now: seconds, by any clock that goes on.
        """
        if self._window is None or now < self._paused_until:
            self._window = (now, synthesizers, distillers)
            return present
        begun, then, before = self._window
        if now - begun < WINDOW_SECONDS:
            return present
        self._window = (now, synthesizers, distillers)
        direction = _direction(
            present, waiting_share(then, synthesizers), waiting_share(before, distillers)
        )
        self._agreed = self._agreed + 1 if direction == self._direction else 1
        self._direction = direction
        if direction > 0 and not complete:
            self._agreed = 0
        changed = present + direction
        if direction == 0 or self._agreed < AGREEING_WINDOWS or not self.allows(changed):
            return present
        self._paused_until, self._agreed = now + PAUSE_SECONDS, 0
        return changed


def _direction(present: int, synthesizers: float | None, distillers: float | None) -> int:
    """1 for more synthesizers, -1 for fewer if those can do the work, 0 for as many."""
    side = starved(synthesizers, distillers)
    if side == "synthesizers":
        return -1 if (synthesizers or 0.0) >= 1 / present else 0
    return 1 if side == "distillers" else 0
