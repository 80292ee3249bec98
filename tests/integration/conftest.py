"""A run of the pipeline as a user starts it, and ways to look at it and to hurt it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from distiller.service import JOURNAL
from tests.buffer.servers import TcpServer
from tests.deploy.browser import browser as browser
from tests.deploy.browser import open_page as open_page
from tests.integration.ray_nodes import RayNodes

SSDKD = Path(sys.executable).with_name("ssdkd")
QUICK = {
    "buffer.capacity": 600,
    "buffer.probe_capacity": 64,
    "synthesizer.batch_size": 100,
    "synthesizer.kwargs.inner_steps": 2,
    "distiller.batch_size": 64,
    "distiller.snapshot_seconds": 1,
    "distiller.probe_seconds": 2,
    "distiller.checkpoint_seconds": 4,
    "controller.interval_seconds": 3,
    "monitoring.port": 0,
    "monitoring.node_port": 0,
}
PROCESSES = {
    "synthesizer": "ray::SynthesizerService",
    "distiller": "ray::RayTrainWorker",
    "controller": "ray::ControllerService",
}


def journal(out: Path) -> list[dict[str, Any]]:
    """What the distiller has reported so far."""
    path = out / JOURNAL
    whole, _, _ = path.read_text().rpartition("\n") if path.exists() else ("", "", "")
    return [json.loads(line) for line in whole.splitlines()]


def accuracy(out: Path) -> float:
    """Of a run's student, percent."""
    done = subprocess.run([SSDKD, "evaluate", out], capture_output=True, text=True, timeout=120)
    found = re.search(r"student_accuracy: ([\d.]+) %", done.stdout)
    assert found is not None, done.stderr
    return float(found[1])


class Run:
    """``ssdkd run`` on the digits, in a process group of its own."""

    def __init__(
        self, out: Path, *assignments: str, resume: bool = False, ui: bool = False
    ) -> None:
        self.out = out
        quick = (f"{key}={value}" for key, value in QUICK.items())
        sets = [part for setting in (*quick, *assignments) for part in ("--set", setting)]
        # As a user's shell would be: no authentication mode is set.
        environment = {k: v for k, v in os.environ.items() if k != "RAY_AUTH_MODE"}
        self.process = subprocess.Popen(
            [
                *(str(SSDKD), "run", *sets, *["--ui"] * ui),
                *("--resume" if resume else "--out", str(out)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment | {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "120"},
            start_new_session=True,
        )
        self._seen: set[psutil.Process] = set()

    def find(self, service: str) -> list[psutil.Process]:
        """The live processes of a service."""
        found = []
        for child in self._descendants():
            try:
                command = child.cmdline()
            except psutil.Error:
                continue
            if command and command[0].startswith(PROCESSES[service]):
                found.append(child)
        return found

    def until(self, condition: Callable[[], bool], seconds: float = 120) -> None:
        """Waits for something to come true while the run is alive."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.process.stdout and self.process.stdout.read()
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.2)

    def journal(self) -> list[dict[str, Any]]:
        """The distiller's reports so far."""
        return journal(self.out)

    def reached(self, step: int) -> Callable[[], bool]:
        """Whether the student has made so many steps."""
        return lambda: bool(lines := self.journal()) and lines[-1]["version"][1] >= step

    def end(self, code: int = 0, seconds: float = 300) -> tuple[dict[str, Any], str]:
        """Waits for the end; the result that was written and what was printed."""
        output, _ = self.process.communicate(timeout=seconds)
        assert self.process.returncode == code, output
        result: dict[str, Any] = json.loads((self.out / "result.json").read_text())
        return result, output

    def clean_up(self, seconds: float = 20) -> list[psutil.Process]:
        """Ends what still runs; the processes that had outlived a run that ended by itself."""
        self._descendants()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        left = survivors(self._seen, seconds)
        for orphan in left:
            orphan.kill()
        return left

    def _descendants(self) -> list[psutil.Process]:
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self._seen.update(children)
        return children


def survivors(processes: Iterable[psutil.Process], seconds: float = 20) -> list[psutil.Process]:
    """Those that still live after so long; a zombie does not, nobody may ever bury it."""
    deadline, left = time.monotonic() + seconds, list(processes)
    while (left := [each for each in left if _lives(each)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def start_run(tmp_path: Path, digits_teacher: Path) -> Iterator[Callable[..., Run]]:
    """Starts a run with ``table.key=value`` overrides; what outlives it fails the test."""
    started: list[Run] = []

    def start(*assignments: str, resume: Run | None = None, ui: bool = False) -> Run:
        out = tmp_path / str(len(started)) if resume is None else resume.out
        settings = (f"teacher.weights={digits_teacher}", *assignments)
        started.append(Run(out, *settings, resume=resume is not None, ui=ui))
        return started[-1]

    yield start
    assert not [orphan for run in started for orphan in run.clean_up()], "these outlived the run"


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[TcpServer]:
    server = TcpServer(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def nodes() -> Iterator[RayNodes]:
    """A cluster of a head alone."""
    with (  # not in pytest's folder: its path leaves no room for Ray's sockets
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder,
        RayNodes(Path(folder), head_cpus=1) as nodes,
    ):
        yield nodes


@pytest.fixture(scope="session")
def digits_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's teacher, trained once."""
    from deploy.config import DEFAULT_CONFIG, load
    from deploy.digits import teacher

    return teacher(load(DEFAULT_CONFIG).teacher, tmp_path_factory.mktemp("teacher"), 0)
