"""Sinks that fail, or talk to servers that do not answer, and disturb nobody."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from deploy.sink import Pictures, Sink, Snapshot

MOST_WAITING = 100
"""Of more calls that wait for a server the oldest are left out."""
END_SECONDS = 10.0
"""At the end of a run a server may take so long to be told the rest."""

logger = logging.getLogger(__name__)


class Tolerated:
    """A sink that may fail: of each of its calls it is said once until it works again."""

    def __init__(self, sink: Sink) -> None:
        self.name = type(sink).__name__
        self.note = self._tolerating(sink.note)
        self.show = self._tolerating(sink.show)
        self.close = self._tolerating(sink.close)

    def _tolerating(self, call: Callable[..., None]) -> Callable[..., None]:
        fails = False

        def tolerated(*arguments: object) -> None:
            nonlocal fails
            try:
                call(*arguments)
                fails = False
            except Exception as error:
                if not fails:
                    why = str(error) or type(error).__name__
                    logger.warning("%s does not record: %s", self.name, why)
                fails = True

        return tolerated


class Detached:
    """A sink that is called in a thread of its own, so that none of its calls is waited for.

    Args:
        sink: may take as long as it likes, and fail.
        end_seconds: how long its last calls are waited for.
    """

    def __init__(self, sink: Sink, end_seconds: float = END_SECONDS) -> None:
        self._sink, self._end_seconds = Tolerated(sink), end_seconds
        self._calls: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._ended, self._lags = False, False
        self._thread = threading.Thread(target=self._work, name=self._sink.name, daemon=True)
        self._thread.start()

    def note(self, snapshot: Snapshot) -> None:
        """Has it noted when the sink comes to it."""
        self._put(partial(self._sink.note, snapshot))

    def show(self, pictures: Pictures) -> None:
        """Has them shown when the sink comes to it."""
        self._put(partial(self._sink.show, pictures))

    def close(self) -> None:
        """Waits for what is left, but not for long."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join(self._end_seconds)
        if self._thread.is_alive():
            with self._changed:
                self._calls.clear()
            logger.warning(
                "%s has not ended within %.0f s: it lacks the end of the run",
                *(self._sink.name, self._end_seconds),
            )

    def _put(self, call: Callable[[], None]) -> None:
        with self._changed:
            if len(self._calls) == MOST_WAITING:
                self._calls.popleft()
                if not self._lags:
                    logger.warning("%s is too slow: parts of the run are left out", self._sink.name)
                self._lags = True
            self._calls.append(call)
            self._changed.notify()

    def _work(self) -> None:
        while (call := self._next()) is not None:
            call()
        self._sink.close()

    def _next(self) -> Callable[[], None] | None:
        """The oldest call that waits; ``None`` at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._calls or self._ended)
            return self._calls.popleft() if self._calls else None
