"""A cluster of several nodes: runs are submitted, watched, scaled and stopped from outside."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import waiting
from tests.buffer.servers import TcpServer
from tests.integration.conftest import QUICK, accuracy
from tests.integration.ray_nodes import RayNodes

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(420)]

SHARES = {"synthesizer.cpus": 0.25, "distiller.cpus": 0.5}
until = partial(waiting.until, seconds=180.0, pause=1.0)


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    # Not in pytest's folder: its path leaves no room for Ray's sockets.
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder,
        RayNodes(Path(folder), head_cpus=1) as nodes,
    ):
        nodes.add(cpus=1)
        nodes.add(cpus=1)
        yield nodes


def settings(name: str, **more: Any) -> list[str]:
    """Overrides as the command takes them."""
    values = QUICK | SHARES | {"run.name": name} | more
    return [part for k, v in values.items() for part in ("--set", f"{k}={json.dumps(v)}")]


def status(nodes: RayNodes, name: str) -> dict[str, Any]:
    done = nodes.command("status", name)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def stop(nodes: RayNodes, name: str, out: Path) -> dict[str, Any]:
    """A run as ``ssdkd stop`` ends it; its result."""
    assert nodes.command("stop", name).returncode == 0
    until(lambda: status(nodes, name)["job_status"] == "SUCCEEDED")
    result: dict[str, Any] = json.loads((out / "result.json").read_text())
    return result


def test_a_run_is_submitted_scaled_and_makes_a_good_student(
    nodes: RayNodes, redis_server: TcpServer, digits_teacher: Path, tmp_path: Path
) -> None:
    sets = settings(
        "scaled",
        **{
            "run.seconds": None,
            "run.steps": 1_000_000,
            "teacher.weights": str(digits_teacher),
            "buffer.url": redis_server.url,
        },
    )
    sent = nodes.command("submit", "digits", "--out", str(tmp_path / "out"), *sets)
    assert sent.returncode == 0, sent.stderr
    assert "ssdkd-scaled-0: submitted" in sent.stdout
    again = nodes.command("submit", "digits", "--out", str(tmp_path / "out"), *sets)
    assert "ssdkd-scaled-0: runs already" in again.stdout, again.stderr

    def running(count: int) -> Callable[[], bool]:
        def check() -> bool:
            found = status(nodes, "scaled")
            assert found["job_status"] in ("PENDING", "RUNNING"), found
            states = [each["state"] for each in found.get("synthesizers", [])]
            return states == ["running"] * count

        return check

    until(running(1))
    assert nodes.command("scale", "scaled", "--synthesizers", "4").returncode == 0
    until(running(4))
    seen = status(nodes, "scaled")["synthesizers"]
    assert len({each["node"] for each in seen}) == 3, seen
    assert nodes.command("scale", "scaled", "--synthesizers", "2").returncode == 0
    until(running(2))
    until(lambda: status(nodes, "scaled").get("step", 0) > 1500)
    result = stop(nodes, "scaled", tmp_path / "out")
    assert result["interrupted"]
    assert result["synthesizer_restarts"] == 0
    assert accuracy(tmp_path / "out") > 60
    assert "the run was stopped" in " ".join(nodes.command("logs", "scaled").stdout.split())
