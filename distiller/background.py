"""A training in a thread of its own, so that the main thread notices what else happens.

Why a thread: in the main thread Ray Train installs a SIGINT handler of its own, for good.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from buffer.errors import SsdkdError

ASK_SECONDS = 0.5
SHORTEST_SILENCE_SECONDS = 60.0
"""A training may take so long to begin, or to begin again, whatever the setting says."""


class Background:
    """A training that has begun.

    Args:
        training: returns its metrics.
        end: asks it to save what it has and to end; one that has not begun may overlook it.
    """

    def __init__(
        self, training: Callable[[], Mapping[str, Any]], *, end: Callable[[], None]
    ) -> None:
        self._end = end
        self._outcome: Future[Mapping[str, Any]] = Future()

        def target() -> None:
            try:
                self._outcome.set_result(training())
            except BaseException as error:  # raised again by `result`
                self._outcome.set_exception(error)

        threading.Thread(target=target, name="training", daemon=True).start()

    def done(self, seconds: float) -> bool:
        """Whether it has ended, after waiting for so long at most."""
        wait([self._outcome], timeout=seconds)
        return self._outcome.done()

    def end(self, seconds: float) -> bool:
        """Asks it to end, again and again for so long at most: whether it did."""
        deadline = time.monotonic() + seconds
        while not self._outcome.done() and time.monotonic() < deadline:
            self._end()
            self.done(ASK_SECONDS)
        return self._outcome.done()

    def result(self) -> Mapping[str, Any]:
        """The metrics of a training that has ended; raises what it raised."""
        return self._outcome.result()


class Watch:
    """Notices that a training says nothing any more, of which Ray Train takes no notice.

    It has lost a node that nothing replaces, say: Ray Train would wait for ever. Why by its file:
    that grows on whatever node the workers are, and though the buffer be away.

    Args:
        journal: grows as long as the training does anything.
        seconds: of silence that end it: ``distiller.max_waiting_seconds``.
        clock: monotonic seconds.
    """

    def __init__(
        self, journal: Path, seconds: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._journal, self._clock = journal, clock
        self._seconds = max(seconds, SHORTEST_SILENCE_SECONDS)
        self._size, self._since = 0, clock()

    def check(self) -> None:
        """Looks whether it said something since the last time.

        Raises:
            SsdkdError: it did not for too long.
        """
        size = self._journal.stat().st_size if self._journal.exists() else 0
        if size != self._size:
            self._size, self._since = size, self._clock()
        elif self._clock() - self._since >= self._seconds:
            raise SsdkdError(
                f"distiller.max_waiting_seconds: the training has reported nothing for "
                f"{self._seconds:g} s; its workers hang, or no node has room for them"
            )
