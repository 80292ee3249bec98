"""A run under fire: synthesizers and distiller workers are killed again and again.

``SOAK_SECONDS`` says how long the firing goes on.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from distiller.service import CHECKPOINTS

SECONDS = float(os.environ.get("SOAK_SECONDS", "300"))
EXTRA_SECONDS = 35
"""For starting, the first checkpoint, and for going on after the last shot."""
PAUSES_SECONDS = (5.0, 30.0)
"""Between shots: time to recover. Who dies more often than this is given up, and rightly."""
TARGETS = ("synthesizer", "synthesizer", "distiller")

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(2 * SECONDS + 600)]


def test_a_run_under_fire_ends_well(start_run: Callable[..., Any]) -> None:
    run = start_run(
        f"run.seconds={SECONDS + EXTRA_SECONDS}",
        "synthesizer.actors=2",
        "distiller.max_failures=1000",
    )
    committed = run.out / CHECKPOINTS / "distiller" / "checkpoint_manager_snapshot.json"
    run.until(committed.exists)  # before it, a distiller would rightly begin from zero
    killed = fire(run)
    result, _ = run.end(seconds=2 * SECONDS + 300)
    assert result["attempts"] == 1 + killed["distiller"] > 1
    assert 0 < result["synthesizer_restarts"] <= killed["synthesizer"]
    assert result["student_accuracy"] > 20
    assert not result["interrupted"]


def fire(run: Any) -> Counter[str]:
    """Kills processes that are at work, of each kind at least once: how many of which."""
    chance, killed = random.Random(0), Counter[str]()
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline or len(killed) < len(set(TARGETS)):
        service = chance.choice([kind for kind in TARGETS if kind not in killed] or TARGETS)
        if service == "distiller":
            run.until(lambda: run.journal()[-1]["version"][0] == 1 + killed["distiller"])
        run.until(partial(run.find, service))
        chance.choice(run.find(service)).send_signal(signal.SIGKILL)
        killed[service] += 1
        time.sleep(chance.uniform(*PAUSES_SECONDS))
    return killed
