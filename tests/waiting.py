"""How tests wait for what another thread, process or server is about to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def until(condition: Callable[[], Found], *, seconds: float = 60.0, pause: float = 0.02) -> Found:
    """What a condition says as soon as it comes true.

    Args:
        condition: asked again and again.
        seconds: after which it has failed.
        pause: between two questions, in seconds.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(pause)
    return found
