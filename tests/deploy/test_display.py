from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from buffer.config import BufferTable
from buffer.memory import InMemoryReplayBuffer
from buffer.progress import StudentProgress
from buffer.version import Version
from deploy import display
from deploy.display import Display, describe


@pytest.fixture
def replay() -> InMemoryReplayBuffer:
    return InMemoryReplayBuffer(BufferTable(capacity=50, probe_capacity=0), seed=0)


def test_before_the_first_batch_the_filling_is_shown(replay: InMemoryReplayBuffer) -> None:
    assert describe(replay.info(), None, 50) == (0.0, "filling the buffer: 0 of 50 samples")


def test_while_distilling_step_and_agreement_are_shown(replay: InMemoryReplayBuffer) -> None:
    progress = StudentProgress(
        version=Version(1, 12), phase="distilling", elapsed_share=0.5, agreement=0.25
    )
    share, line = describe(replay.info(), progress, 50)
    assert share == 0.5
    assert "step 12" in line
    assert "agreement 25.0 %" in line


@pytest.mark.parametrize("terminal", [True, False])
def test_a_run_is_shown_on_terminals_and_elsewhere(
    replay: InMemoryReplayBuffer, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display, "POLL_SECONDS", 0.01)
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120)
    with Display(replay, 50, console):
        deadline = time.monotonic() + 10
        while "filling the buffer" not in stream.getvalue():
            assert time.monotonic() < deadline, "nothing was shown"
            time.sleep(0.01)


def test_lines_come_only_with_progress(
    replay: InMemoryReplayBuffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display, "POLL_SECONDS", 0.005)
    stream = io.StringIO()
    with Display(replay, 50, Console(file=stream, width=120)):
        time.sleep(0.3)
    assert stream.getvalue().count("\n") == 1
