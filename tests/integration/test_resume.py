"""A run whose pipeline was killed goes on with everything it had."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from contextlib import closing
from typing import Any

import pytest

from buffer.connect import connect
from buffer.server import RedisServer
from deploy.config import load, locate
from tests.integration.conftest import QUICK, survivors

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(420)]

StartRun = Callable[..., Any]
BUDGET = ("run.seconds=null", "run.steps=1000", "run.snapshot_seconds=1")


def killed(run: Any) -> None:
    """SIGKILL to the pipeline once it has checkpoints of everything; all it had started ends."""
    saved = run.out / "checkpoints"
    run.until(lambda: run.reached(300)() and (saved / "buffer.zip").exists(), 200)
    run.until(lambda: (saved / "synthesizer-0.pt").exists())
    run.until(lambda: any((saved / "distiller").rglob("student.safetensors")))
    services = [*run.find("synthesizer"), *run.find("distiller"), *run.find("controller")]
    run.process.send_signal(signal.SIGKILL)
    assert run.process.wait() == -signal.SIGKILL
    assert survivors(services) == []
    run.clean_up(0)  # Ray's own agents take half a minute to notice


def test_a_killed_run_goes_on_with_its_student_and_its_buffer(start_run: StartRun) -> None:
    first = start_run(*BUDGET, "synthesizer.checkpoint_seconds=1")
    killed(first)
    reached = first.journal()[-1]["version"][1]
    second = start_run(*BUDGET, resume=first)
    result, printed = second.end()
    assert "the buffer is restored from its snapshot" in " ".join(printed.split())
    lines = second.journal()
    resumed = [line for line in lines if line["version"][0] == 2]
    assert resumed, "the second training counts as another attempt"
    assert 0 < resumed[0]["version"][1] <= reached + 1
    assert result["student_steps"] == 1000
    assert result["attempts"] == 2
    assert result["student_accuracy"] > 60
    again = start_run(*BUDGET, resume=first)
    said, _ = again.process.communicate(timeout=60)
    assert again.process.returncode == 2
    assert "has finished: there is nothing to resume" in " ".join(said.split())


def test_a_buffer_on_a_server_that_stayed_is_kept(start_run: StartRun) -> None:
    with RedisServer.start() as server:
        settings = (*BUDGET, "synthesizer.checkpoint_seconds=1", f"buffer.url={server.url}")
        first = start_run(*settings)
        killed(first)
        state = json.loads((first.out / "checkpoints/pipeline.json").read_text())
        second = start_run(*settings, resume=first)
        result, printed = second.end()
        config = load(locate("digits"), [*(f"{k}={v}" for k, v in QUICK.items()), *settings])
        with closing(connect(config.buffer, url=server.url, run=config.run.name)) as replay:
            updates = replay.info().updates
    assert updates.applied > 0
    assert updates.older == 0, "what a resumed training says is never the older"
    assert "the buffer is still there" in " ".join(printed.split())
    assert result["synthesizer_rounds"] > state["totals"]["rounds"]
    assert result["student_accuracy"] > 60
