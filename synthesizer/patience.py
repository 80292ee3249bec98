"""How a synthesizer waits: for its next permit, and for a buffer that is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from buffer.errors import BufferUnavailable
from buffer.waiting import Waits

FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 5.0
LONGEST_PERMIT_WAIT_SECONDS = 5.0
"""However long the limiter says, ask again after this: the limit may have been changed."""

Answer = TypeVar("Answer")


class Patience:
    """Waits, each of which ends at once when the synthesizer is told to.

    Args:
        seconds: how long a buffer may be away.
        seed: of the jitter, which spreads synthesizers that began to wait together.
        stopping: set when the synthesizer is to end.
        note: is told how long each wait was, in seconds.
    """

    def __init__(
        self,
        seconds: float,
        *,
        seed: int,
        stopping: threading.Event,
        note: Callable[[float], None],
    ) -> None:
        self._seconds, self._stopping = seconds, stopping
        self._waits = Waits(seed=seed, stopping=stopping, note=note)

    def insist(self, call: Callable[[], Answer]) -> Answer:
        """Repeats a call while the buffer is away, ever more slowly.

        Raises:
            BufferUnavailable: for too long, or the synthesizer is to end.
        """
        deadline: float | None = None
        pause = FIRST_BACKOFF_SECONDS
        while True:
            try:
                return call()
            except BufferUnavailable:
                now = time.monotonic()
                deadline = now + self._seconds if deadline is None else deadline
                if self._stopping.is_set() or now + pause > deadline:
                    raise
            self._waits.wait(pause)
            pause = min(2.0 * pause, LONGEST_BACKOFF_SECONDS)

    def pause(self, retry_after_seconds: float) -> None:
        """Waits as long as the limiter says, or a little less or more."""
        self._waits.wait(min(retry_after_seconds, LONGEST_PERMIT_WAIT_SECONDS))
