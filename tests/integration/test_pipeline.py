"""The whole pipeline as a user starts it: a command, real Redis, real Ray, real faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(420)]

SSDKD = Path(sys.executable).with_name("ssdkd")
SYNTHESIZER, DISTILLER = "ray::SynthesizerService", "ray::RayTrainWorker"
QUICK = [
    "buffer.capacity=600",
    "buffer.probe_capacity=64",
    "synthesizer.batch_size=100",
    "synthesizer.kwargs.inner_steps=2",
    "distiller.batch_size=64",
    "distiller.snapshot_seconds=1",
    "distiller.probe_seconds=2",
    "distiller.checkpoint_seconds=4",
    "controller.interval_seconds=3",
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from deploy.config import DEFAULT_CONFIG, load
    from deploy.digits import teacher

    return teacher(load(DEFAULT_CONFIG).teacher, tmp_path_factory.mktemp("teacher"), 0)


@contextmanager
def running(out: Path, *assignments: str) -> Iterator[subprocess.Popen[str]]:
    """``ssdkd run`` on the digits; whatever it leaves behind fails the test."""
    sets = [part for setting in (*QUICK, *assignments) for part in ("--set", setting)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_AUTH_MODE"}
    with subprocess.Popen(
        [str(SSDKD), "run", *sets, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment | {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "120"},
        start_new_session=True,
    ) as process:
        started = psutil.Process(process.pid)
        seen: set[psutil.Process] = set()
        try:
            yield process
            seen.update(descendants(started))
        finally:
            seen.update(descendants(started))
            if process.poll() is None:
                process.kill()
    _, left = psutil.wait_procs(seen, timeout=20)
    for orphan in left:
        orphan.kill()
    assert not left, "these outlived the run"


def descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def find(process: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    found = []
    for child in descendants(psutil.Process(process.pid)):
        try:
            if child.cmdline() and child.cmdline()[0].startswith(name):
                found.append(child)
        except psutil.Error:
            continue
    return found


def until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


def distilling(out: Path, steps: int = 1) -> Callable[[], bool]:
    def condition() -> bool:
        path = out / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return bool(lines) and json.loads(lines[-1])["version"][1] >= steps

    return condition


def finished(process: subprocess.Popen[str], out: Path) -> dict[str, Any]:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    return result


def test_two_synthesizers_and_two_workers_make_a_good_student(
    tmp_path: Path, teacher: Path
) -> None:
    with running(
        tmp_path,
        f"teacher.weights={teacher}",
        "run.seconds=45",
        "synthesizer.actors=2",
        "distiller.workers=2",
    ) as process:
        result = finished(process, tmp_path)
    assert result["student_accuracy"] > 60
    assert result["inserted_after_first_step"] > result["buffer_capacity"]
    assert result["student_steps"] > 0
    assert 0 < result["first_step_at_seconds"] < result["wall_seconds"]
    assert result["distillation_seconds"] > 0
    assert result["inversion_seconds"] > 0
    assert not result["interrupted"]
    for name in ("student.safetensors", "samples.png", "config.yaml", "metrics.jsonl"):
        assert (tmp_path / name).stat().st_size > 0


def test_a_killed_synthesizer_does_not_end_the_run(tmp_path: Path, teacher: Path) -> None:
    with running(tmp_path, f"teacher.weights={teacher}", "run.seconds=30") as process:
        until(process, distilling(tmp_path, 20))
        (victim,) = find(process, SYNTHESIZER)
        victim.send_signal(signal.SIGKILL)
        result = finished(process, tmp_path)
    assert result["synthesizer_restarts"] == 1
    assert result["student_accuracy"] is not None
    assert result["samples_inverted"] > result["buffer_capacity"]


def test_a_killed_distiller_worker_resumes_from_its_checkpoint(
    tmp_path: Path, teacher: Path
) -> None:
    with running(tmp_path, f"teacher.weights={teacher}", "run.seconds=40") as process:
        until(process, lambda: any((tmp_path / "checkpoints").rglob("student.safetensors")))
        until(process, distilling(tmp_path, 20))
        time.sleep(3)  # the checkpoint is committed at Ray Train's next health check
        (victim,) = find(process, DISTILLER)
        victim.send_signal(signal.SIGKILL)
        result = finished(process, tmp_path)
    steps = [json.loads(line)["version"] for line in (tmp_path / "metrics.jsonl").open()]
    resumed = [step for attempt, step in steps if attempt == 2]
    assert result["attempts"] == 2
    assert resumed, "nothing was reported after the kill"
    assert result["student_steps"] > 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_saves_what_there_is(
    tmp_path: Path, teacher: Path, number: signal.Signals
) -> None:
    with running(tmp_path, f"teacher.weights={teacher}", "run.seconds=300") as process:
        until(process, distilling(tmp_path, 5))
        os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=90)
    assert process.returncode == 130, output
    assert "interrupted" in output
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["interrupted"]
    assert result["student_steps"] > 0
    assert (tmp_path / "student.safetensors").stat().st_size > 0


def test_an_interrupt_while_filling_ends_cleanly_too(tmp_path: Path, teacher: Path) -> None:
    with running(tmp_path, f"teacher.weights={teacher}", "buffer.capacity=16000000") as process:
        until(process, lambda: bool(find(process, SYNTHESIZER)))
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=90)
    assert process.returncode == 130, output
    assert json.loads((tmp_path / "result.json").read_text())["interrupted"]
