from __future__ import annotations

import itertools
import threading
import time

from buffer.waiting import Waits


def waited(seed: int, times: int = 5, seconds: float = 0.02) -> list[float]:
    """How long so many waits were."""
    found: list[float] = []
    waits = Waits(seed=seed, stopping=threading.Event(), note=found.append)
    for _ in range(times):
        waits.wait(seconds)
    return found


def test_each_wait_is_noted_and_about_as_long_as_was_said() -> None:
    found = waited(seed=0)
    assert len(found) == 5
    assert min(found) >= 0.75 * 0.02
    assert min(found) < 0.2


def test_clients_that_were_refused_together_do_not_come_back_together() -> None:
    ends = [itertools.accumulate(waited(seed, seconds=0.05)) for seed in range(3)]
    for together in zip(*ends, strict=True):
        ordered = sorted(together)
        assert ordered[-1] - ordered[0] > 0.002


def test_a_client_that_is_to_end_does_not_wait_on() -> None:
    stopping = threading.Event()
    threading.Timer(0.05, stopping.set).start()
    found: list[float] = []
    begun = time.monotonic()
    Waits(seed=0, stopping=stopping, note=found.append).wait(60.0)
    assert time.monotonic() - begun < 10.0
    assert 0.04 < found[0] < 10.0
