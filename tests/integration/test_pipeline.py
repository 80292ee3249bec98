"""The whole pipeline: a command, real Redis, real Ray, real faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from buffer.config import BufferTable
from buffer.lease import RunLease
from buffer.replay import ReplayBuffer
from buffer.server import RedisServer
from tests.integration.conftest import SSDKD, survivors

pytestmark = [pytest.mark.integration, pytest.mark.timeout(420)]

StartRun = Callable[..., Any]


def steps(count: int) -> list[str]:
    """A budget that a busy machine does not change."""
    return ["run.seconds=null", f"run.steps={count}"]


@pytest.mark.slow
def test_two_synthesizers_and_two_workers_make_a_good_student(start_run: StartRun) -> None:
    run = start_run(*steps(400), "synthesizer.actors=2", "distiller.workers=2")
    result, _ = run.end()
    assert result["student_accuracy"] > 60
    assert result["inserted_after_first_step"] > result["buffer_capacity"]
    assert result["student_steps"] == 400
    assert result["samples_drawn"] == 400 * 2 * 64
    assert 0 < result["first_step_at_seconds"] < result["wall_seconds"]
    assert 0 < result["distillation_seconds"] < 2 * result["wall_seconds"]
    assert 0 < result["inversion_seconds"] < 2 * result["wall_seconds"]
    assert not result["interrupted"]
    for name in ("student.safetensors", "samples.png", "config.yaml", "metrics.jsonl"):
        assert (run.out / name).stat().st_size > 0
    done = subprocess.run([SSDKD, "evaluate", run.out], capture_output=True, text=True)
    assert f"student_accuracy: {result['student_accuracy']:.2f} %" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_job_empties_the_buffer_of_an_earlier_run_but_not_of_a_live_one(
    tmp_path: Path, digits_teacher: Path
) -> None:
    """``python -m deploy.pipeline`` as ``ray job submit`` runs it, with the default settings."""
    sets = ["run.seconds=null", "run.steps=50", f"teacher.weights={digits_teacher}"]
    options = [part for setting in sets for part in ("--set", setting)]
    command = [sys.executable, "-m", "deploy.pipeline", "--config", "digits", *options]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_AUTH_MODE"}

    def job(url: str, out: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, "--out", str(out)],
            capture_output=True,
            text=True,
            env=environment | {"SSDKD_REDIS_URL": url},
        )

    with RedisServer.start() as server:
        ReplayBuffer(BufferTable(capacity=70), url=server.url, run="demo").close()
        with RunLease(server.url, "demo"):
            refused = job(server.url, tmp_path / "refused")
        assert refused.returncode == 2
        assert "run.name (demo): a run of this name is alive" in " ".join(refused.stderr.split())
        assert [path.name for path in (tmp_path / "refused").iterdir()] == ["run.lock"]
        done = job(server.url, tmp_path / "done")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "done/result.json").read_text())["student_steps"] == 50


@pytest.mark.slow
def test_a_killed_synthesizer_does_not_end_the_run(start_run: StartRun) -> None:
    run = start_run(*steps(700))
    run.until(run.reached(5))
    (victim,) = run.find("synthesizer")
    victim.kill()
    assert survivors([victim]) == []
    run.until(lambda: bool(run.find("synthesizer")))
    assert run.find("synthesizer") != [victim]
    result, _ = run.end()
    assert result["synthesizer_restarts"] == 1
    assert result["student_steps"] == 700
    assert result["student_accuracy"] > 20


@pytest.mark.slow
def test_a_killed_distiller_worker_resumes_from_its_checkpoint(start_run: StartRun) -> None:
    run = start_run(*steps(100_000))  # however fast the machine is, it is at work when killed
    run.until(lambda: any((run.out / "checkpoints").rglob("student.safetensors")))
    run.until(run.reached(20))
    time.sleep(3)  # the checkpoint is committed at Ray Train's next health check
    (victim,) = run.find("distiller")
    victim.kill()
    assert survivors([victim]) == []
    run.until(lambda: run.journal()[-1]["version"][0] == 2)
    assert victim not in run.find("distiller")
    reached = run.journal()[-1]["version"][1]
    run.until(run.reached(reached + 50))
    run.process.terminate()  # it alone: Ray's own processes are in its group
    result, _ = run.end(code=130)
    lines = run.journal()
    assert result["attempts"] == 2
    assert result["student_steps"] > reached
    # Not from the start again: an attempt reports as soon as it begins.
    assert min(line["version"][1] for line in lines if line["version"][0] == 2) > 0


def test_an_interrupt_saves_what_there_is(start_run: StartRun) -> None:
    run = start_run(*steps(100_000))
    run.until(run.reached(5))
    os.killpg(run.process.pid, signal.SIGINT)
    result, output = run.end(code=130, seconds=90)
    assert "interrupted" in output
    assert result["interrupted"]
    assert result["student_steps"] > 0
    assert (run.out / "student.safetensors").stat().st_size > 0


def test_an_interrupt_before_anything_runs_says_so(start_run: StartRun) -> None:
    run = start_run(*steps(100))
    time.sleep(1.5)
    os.killpg(run.process.pid, signal.SIGINT)
    output, _ = run.process.communicate(timeout=90)
    assert run.process.returncode == 130, output
    assert "interrupted" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_an_interrupt_while_filling_ends_cleanly_too(start_run: StartRun) -> None:
    run = start_run("buffer.capacity=16000000")
    run.until(lambda: bool(run.find("synthesizer")))
    os.killpg(run.process.pid, signal.SIGINT)
    result, _ = run.end(code=130, seconds=90)
    assert result["interrupted"]
    assert not (run.out / "student.safetensors").exists()
