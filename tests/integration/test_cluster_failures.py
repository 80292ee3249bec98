"""What happens when a part of a cluster is killed: the real thing, by SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.buffer.servers import TcpServer
from tests.integration.ray_nodes import RayNodes
from tests.integration.test_cluster import redis_server, settings, status, until

__all__ = ["redis_server"]
pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(420)]


@pytest.fixture
def nodes() -> Iterator[RayNodes]:
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder,
        RayNodes(Path(folder), head_cpus=1) as nodes,
    ):
        yield nodes


def submit(nodes: RayNodes, name: str, out: Path, **more: Any) -> None:
    sent = nodes.command("submit", "digits", "--out", str(out), *settings(name=name, **more))
    assert sent.returncode == 0, sent.stderr


def journal(out: Path) -> list[dict[str, Any]]:
    path = out / "metrics.jsonl"
    whole, _, _ = path.read_text().rpartition("\n") if path.exists() else ("", "", "")
    return [json.loads(line) for line in whole.splitlines()]


def learnt(out: Path, step: int) -> bool:
    lines = journal(out)
    return bool(lines) and lines[-1]["version"][1] >= step


def test_a_node_that_dies_takes_no_run_with_it(
    nodes: RayNodes, redis_server: TcpServer, digits_teacher: Path, tmp_path: Path
) -> None:
    worker = nodes.add(cpus=2)
    out = tmp_path / "out"
    budget = {"run.seconds": None, "run.steps": 1500, "synthesizer.actors": 4}
    submit(
        nodes,
        "node",
        out,
        **budget,
        **{"teacher.weights": str(digits_teacher), "buffer.url": redis_server.url},
    )

    def places() -> set[str]:
        found = status(nodes, "node").get("synthesizers", [])
        running = [each for each in found if each["state"] == "running"]
        return {each["node"] for each in running} if len(running) == 4 else set()

    assert len(until(places)) == 2
    until(lambda: learnt(out, 100))
    worker.kill()
    nodes.add(cpus=2)
    until(lambda: status(nodes, "node")["job_status"] == "SUCCEEDED", 300)
    result = json.loads((out / "result.json").read_text())
    assert result["synthesizer_restarts"] >= 1
    assert result["student_steps"] == 1500
    assert result["student_accuracy"] > 60


@pytest.mark.parametrize("keeps_data", [True, False])
def test_a_redis_that_is_restarted_takes_no_run_with_it(
    nodes: RayNodes,
    redis_server: TcpServer,
    digits_teacher: Path,
    tmp_path: Path,
    keeps_data: bool,
) -> None:
    out = tmp_path / "out"
    budget = {"run.seconds": None, "run.steps": 1200}
    submit(
        nodes,
        "redis",
        out,
        **budget,
        **{"teacher.weights": str(digits_teacher), "buffer.url": redis_server.url},
    )
    until(lambda: learnt(out, 100))
    if keeps_data:
        redis_server.save()
    redis_server.stop()
    redis_server.start()
    until(lambda: status(nodes, "redis")["job_status"] == "SUCCEEDED", 300)
    result = json.loads((out / "result.json").read_text())
    assert result["student_steps"] == 1200
    assert result["student_accuracy"] > 60


def test_a_controller_that_is_killed_goes_on_from_its_journal(
    nodes: RayNodes, redis_server: TcpServer, digits_teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    budget = {"run.seconds": None, "run.steps": 1200, "controller.policy": "random"}
    submit(
        nodes,
        "controller",
        out,
        **budget,
        **{"teacher.weights": str(digits_teacher), "buffer.url": redis_server.url},
    )

    def events(kind: str) -> int:
        path = out / "controller.jsonl"
        return path.read_text().count(f'"event": "{kind}"') if path.exists() else 0

    until(lambda: events("decision") >= 1)
    victims = [
        process
        for process in psutil.process_iter(["cmdline"])
        if (process.info["cmdline"] or [""])[0].startswith("ray::ControllerService")
    ]
    assert len(victims) == 1
    os.kill(victims[0].pid, signal.SIGKILL)
    until(lambda: events("start") == 2)
    before = events("decision")
    until(lambda: events("decision") > before)
    until(lambda: status(nodes, "controller")["job_status"] == "SUCCEEDED", 300)
    assert json.loads((out / "result.json").read_text())["controller_failure"] is None


def test_a_run_goes_on_in_another_cluster_when_its_head_has_died(
    redis_server: TcpServer, digits_teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    sets: dict[str, Any] = {
        "run.seconds": None,
        "run.steps": 1200,
        "run.snapshot_seconds": 1,
        "teacher.weights": str(digits_teacher),
        "buffer.url": redis_server.url,
    }
    for number in range(2):
        with (
            tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder,
            RayNodes(Path(folder), head_cpus=2) as nodes,
        ):
            submit(nodes, "head", out, **sets)
            if number == 0:
                until(lambda: learnt(out, 300))
                until(lambda: any((out / "checkpoints").rglob("student.safetensors")))
            else:
                until(lambda nodes=nodes: status(nodes, "head")["job_status"] == "SUCCEEDED", 300)
    result = json.loads((out / "result.json").read_text())
    assert result["attempts"] == 2
    assert result["student_steps"] == 1200
    assert result["student_accuracy"] > 60
