"""A training in a thread of its own, so that the main thread notices what else happens.

Why a thread: in the main thread Ray Train installs a SIGINT handler of its own, for good.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any

ASK_SECONDS = 0.5


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
