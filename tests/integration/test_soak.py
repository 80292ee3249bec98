"""A run under fire: synthesizers and distiller workers are killed again and again.

``SOAK_SECONDS`` says how long the firing goes on.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from distiller.service import CHECKPOINTS

SSDKD = Path(sys.executable).with_name("ssdkd")
SECONDS = float(os.environ.get("SOAK_SECONDS", "300"))
PAUSES_SECONDS = (5.0, 30.0)
"""Between shots: time to recover. Who dies more often than this is given up, and rightly."""
TARGETS = ("synthesizer", "synthesizer", "distiller")

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(2 * SECONDS + 600)]


def test_a_run_under_fire_goes_on_and_learns(start_run: Callable[..., Any]) -> None:
    run = start_run(
        # No end of its own, however fast or slow the machine is.
        *("run.seconds=null", "run.steps=10000000"),
        *("synthesizer.actors=2", "distiller.max_failures=1000"),
    )
    committed = run.out / CHECKPOINTS / "distiller" / "checkpoint_manager_snapshot.json"
    run.until(committed.exists)  # before it, a distiller would rightly begin from zero
    killed = fire(run)
    last = 1 + killed["distiller"]
    run.until(lambda: run.journal()[-1]["version"][0] == last)
    run.until(run.reached(max(200, run.journal()[-1]["version"][1] + 50)))
    os.killpg(run.process.pid, signal.SIGINT)
    result, _ = run.end(code=130)
    assert result["attempts"] == last > 1
    assert 0 < result["synthesizer_restarts"] <= killed["synthesizer"]
    done = subprocess.run([SSDKD, "evaluate", run.out], capture_output=True, text=True)
    found = re.search(r"student_accuracy: ([\d.]+) %", done.stdout)
    assert found is not None, done.stderr
    assert float(found[1]) > 20


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
