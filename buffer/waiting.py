"""How clients wait where the server answers "not now": nothing ever blocks in the server.

One place for both services, so that their waits are alike: spread by jitter, ended at once when the
client is to end, and counted. The server counts what it refused (``insert_waits``,
``sample_waits`` of :class:`~buffer.interface.BufferInfo`), this is the other side.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable


class Waits:
    """The waits of one client, one after the other.

    Args:
        seed: of the jitter, which spreads clients that were refused together.
        stopping: set when the client is to end.
        note: is told how long each wait was, in seconds.
    """

    def __init__(
        self, *, seed: int, stopping: threading.Event, note: Callable[[float], None]
    ) -> None:
        self._jitter = random.Random(seed)
        self._stopping, self._note = stopping, note

    def wait(self, seconds: float) -> None:
        """Waits so long, or up to a quarter less or more."""
        begun = time.monotonic()
        self._stopping.wait(seconds * self._jitter.uniform(0.75, 1.25))
        self._note(time.monotonic() - begun)
