"""A run on a terminal, and as a program reads it."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import QUICK, SSDKD

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens on: the exporter warns that it takes another."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def arguments(out: Path, teacher: Path, **settings: object) -> list[str]:
    # So many that the display, which looks once a second, sees them made.
    budget = {"run.seconds": "null", "run.steps": 800, "teacher.weights": teacher}
    chosen = QUICK | budget | {name.replace("__", "."): v for name, v in settings.items()}
    sets = [part for key, value in chosen.items() for part in ("--set", f"{key}={value}")]
    return [*sets, "--out", str(out)]


def environment(**variables: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_AUTH_MODE", "NO_COLOR")}
    return kept | variables


def read_terminal(terminal: int) -> str:
    """What is written there until nobody writes any more."""
    parts = []
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError as error:
            if error.errno != errno.EIO:  # how Linux says it
                raise
            part = b""
        if not part:
            return b"".join(parts).decode()
        parts.append(part)


@pytest.mark.slow
def test_a_terminal_shows_a_bar_with_the_warnings_of_actors_above_it(
    tmp_path: Path, digits_teacher: Path, taken: int
) -> None:
    terminal, other_end = pty.openpty()
    process = subprocess.Popen(
        [SSDKD, "run", *arguments(tmp_path / "out", digits_teacher, monitoring__node_port=taken)],
        stdin=other_end,
        stdout=other_end,
        stderr=other_end,
        env=environment(TERM="xterm-256color", COLUMNS="60", LINES="30"),
        start_new_session=True,
    )
    os.close(other_end)
    try:
        shown = read_terminal(terminal)
        assert process.wait(60) == 0, shown
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
        os.close(terminal)
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor stays hidden"
    plain = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown)
    for phase in ("preparing the teacher", "starting", "distilling", "ending", "saving"):
        assert phase in plain, phase
    assert "━" in plain
    assert re.search(r"drawn \d+ \(\d+/s\)", plain)
    assert re.search(r"idle: synthesizers \d+ %", plain)
    assert "1 of 1 synthesizers at work" in plain
    assert f"WARNING exporter: port {taken} of 127.0.0.1 is taken" in plain
    assert "student accuracy" in plain.rpartition("saving")[2]
    assert "pid=" not in plain
    assert "Traceback" not in plain


@pytest.mark.slow
def test_a_program_reads_objects_and_the_logs_of_all_actors_are_beside(
    tmp_path: Path, digits_teacher: Path, taken: int
) -> None:
    out = tmp_path / "out"
    settings = {"monitoring__node_port": taken, "run__log_level": "info"}
    given = arguments(out, digits_teacher, **settings)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "deploy.pipeline",
            "--config",
            "digits",
            "--progress",
            "json",
            *given,
        ],
        capture_output=True,
        text=True,
        env=environment(COLUMNS="80"),
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert {event["event"] for event in events} == {"progress", "note", "result"}
    phases = [event["phase"] for event in events if event["event"] == "progress"]
    assert {"preparing the teacher", "starting", "distilling"} <= set(phases)
    assert phases[-1] == "saving"
    assert events[-1]["event"] == "result"
    assert events[-1]["result"] == json.loads((out / "result.json").read_text())
    logged = re.findall(r"^\d\d:\d\d:\d\d ([A-Z]+) ([\w-]+): ", done.stderr, re.M)
    assert ("WARNING", "exporter") in logged
    assert ("INFO", "synthesizer-0") in logged
    assert len(logged) == len(done.stderr.splitlines()), done.stderr
