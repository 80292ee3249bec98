"""What happens when a part of a cluster is killed: the real thing, by SIGKILL."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from tests.buffer.servers import TcpServer
from tests.integration.conftest import accuracy, journal, survivors
from tests.integration.ray_nodes import RAY, RayNodes
from tests.integration.test_cluster import settings, status, stop, until

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(420)]


def submit(nodes: RayNodes, name: str, out: Path, **more: Any) -> None:
    sent = nodes.command("submit", "digits", "--out", str(out), *settings(name=name, **more))
    assert sent.returncode == 0, sent.stderr


def submit_with_ray(nodes: RayNodes, name: str, out: Path, **more: Any) -> None:
    """As one does who has Ray alone; by the job's metadata ``ssdkd`` finds the run."""
    done = subprocess.run(
        [
            *(RAY, "job", "submit", "--address", nodes.address, "--no-wait"),
            *("--metadata-json", json.dumps({"ssdkd_run": name}), "--"),
            *("python", "-m", "deploy.pipeline", "--config", "digits", "--out", str(out)),
            *settings(name=name, **more),
        ],
        env=nodes.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def learnt(out: Path, step: int) -> bool:
    lines = journal(out)
    return bool(lines) and lines[-1]["version"][1] >= step


def test_a_node_that_dies_takes_no_run_with_it(
    nodes: RayNodes, redis_server: TcpServer, digits_teacher: Path, tmp_path: Path
) -> None:
    worker = nodes.add(cpus=2)
    out = tmp_path / "out"
    budget = {"run.seconds": None, "run.steps": 1_000_000, "synthesizer.actors": 4}
    submit(
        nodes,
        "node",
        out,
        **budget,
        **{"teacher.weights": str(digits_teacher), "buffer.url": redis_server.url},
    )

    def pids() -> set[int]:
        found = status(nodes, "node").get("synthesizers", [])
        running = {each["pid"] for each in found if each["state"] == "running"}
        return running if len(running) == 4 else set()

    before = until(pids)
    until(lambda: learnt(out, 100))
    victims = worker.processes()
    dead = before & {process.pid for process in victims}
    assert 0 < len(dead) < 4, "synthesizers are on both nodes"
    worker.kill()
    assert survivors(victims) == []
    nodes.add(cpus=2)
    until(lambda: (now := pids()) and not now & dead)
    steps = journal(out)[-1]["version"][1]
    until(lambda: learnt(out, steps + 500))
    result = stop(nodes, "node", out)
    assert result["synthesizer_restarts"] >= len(dead)
    assert result["student_steps"] >= steps + 500
    assert accuracy(out) > 60


def test_a_training_that_finds_no_node_any_more_ends_in_an_error(
    nodes: RayNodes, redis_server: TcpServer, digits_teacher: Path, tmp_path: Path
) -> None:
    worker = nodes.add(cpus=2)
    out = tmp_path / "out"
    submit(
        nodes,
        "homeless",
        out,
        **{"run.seconds": None, "run.steps": 1_000_000, "distiller.cpus": 1.5},
        **{"distiller.max_waiting_seconds": 5, "buffer.url": redis_server.url},
        **{"teacher.weights": str(digits_teacher)},
    )
    until(lambda: learnt(out, 100))
    victims = worker.processes()
    worker.kill()
    assert survivors(victims) == []
    until(lambda: status(nodes, "homeless")["job_status"] == "FAILED", seconds=150)
    assert "the training has reported nothing for 60 s" in " ".join(
        nodes.command("logs", "homeless").stdout.split()
    )
    assert (out / "student.safetensors").stat().st_size > 0


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
    client = redis.Redis.from_url(redis_server.url)

    def held(key: str, field: str) -> float:
        return float(client.hget(f"{{ssdkd:redis:0}}:{key}", field) or 0)

    until(lambda: learnt(out, 100))
    if keeps_data:
        redis_server.save()
    incarnation, dead = held("meta", "incarnation"), redis_server.pid
    redis_server.stop()
    assert not psutil.pid_exists(dead)
    redis_server.start()
    assert redis_server.pid != dead
    until(lambda: held("meta", "incarnation"))
    assert (held("meta", "incarnation") == incarnation) is keeps_data
    again = held("counters", "inserted")
    until(lambda: held("counters", "inserted") > again)
    until(lambda: status(nodes, "redis")["job_status"] == "SUCCEEDED", seconds=300)
    result = json.loads((out / "result.json").read_text())
    assert result["student_steps"] == 1200
    assert result["student_accuracy"] > 60


def test_a_controller_and_a_desk_that_are_killed_go_on(
    nodes: RayNodes, redis_server: TcpServer, digits_teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    budget = {"run.seconds": None, "run.steps": 1_000_000, "controller.policy": "random"}
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
    (victim,) = nodes.find("ray::ControllerService")
    (desk,) = nodes.find("ray::Desk")
    for process in (victim, desk):
        process.kill()
    assert survivors([victim, desk]) == []
    until(lambda: events("start") == 2)
    (successor,) = nodes.find("ray::ControllerService")
    assert successor.pid != victim.pid
    until(lambda: status(nodes, "controller").get("step"))
    before = events("decision")
    until(lambda: events("decision") > before)
    assert stop(nodes, "controller", out)["controller_failure"] is None


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
    drivers: list[psutil.Process] = []
    for number in range(2):
        with (
            tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder,
            RayNodes(Path(folder), head_cpus=2) as nodes,
        ):
            if number == 0:
                submit(nodes, "head", out, **sets)
                until(lambda: learnt(out, 300))
                until(lambda: any((out / "checkpoints").rglob("student.safetensors")))
                drivers = nodes.find("deploy.pipeline")
            else:
                submit_with_ray(nodes, "head", out, **sets)
                until(
                    lambda nodes=nodes: status(nodes, "head")["job_status"] == "SUCCEEDED",
                    seconds=300,
                )
        assert survivors(drivers) == []
    assert drivers
    result = json.loads((out / "result.json").read_text())
    assert result["attempts"] == 2
    assert result["student_steps"] == 1200
    assert result["student_accuracy"] > 60
