"""A run under fire: synthesizers and distiller workers are killed at random moments.

``SOAK_SECONDS`` says how long the firing goes on.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

SECONDS = float(os.environ.get("SOAK_SECONDS", "300"))
EXTRA_SECONDS = 60
"""For starting, filling, and for going on after the last shot."""
PAUSES_SECONDS = (5.0, 40.0)
"""Between shots: time to recover. Who dies more often than this is given up, and rightly."""

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(2 * SECONDS + 600)]


def test_a_run_under_fire_ends_well(start_run: Callable[..., Any]) -> None:
    run = start_run(
        f"run.seconds={SECONDS + EXTRA_SECONDS}",
        "synthesizer.actors=2",
        "distiller.max_failures=1000",
    )
    chance, killed = random.Random(0), {"synthesizer": 0, "distiller": 0}
    run.until(run.reached(5))
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        service = chance.choice(["synthesizer", "synthesizer", "distiller"])
        if alive := run.find(service):
            with contextlib.suppress(psutil.NoSuchProcess):
                chance.choice(alive).send_signal(signal.SIGKILL)
                killed[service] += 1
        time.sleep(chance.uniform(*PAUSES_SECONDS))
    result, _ = run.end(seconds=2 * SECONDS + 300)
    assert sum(killed.values()) > 0
    assert result["attempts"] >= 1 + (killed["distiller"] > 0)
    assert result["synthesizer_restarts"] >= (killed["synthesizer"] > 0)
    assert result["student_accuracy"] > 20
    assert not result["interrupted"]
