"""What reaches a job from outside, and what comes back: its log, and answers to orders."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import SSDKD
from tests.integration.ray_nodes import RAY, RayNodes
from tests.integration.test_cluster import until

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(300)]

# Not a pipeline, but it has the desk of one: it prints, refuses to scale and obeys a stop.
PRETENDER = """
import sys, time, ray
from deploy.control import Control, namespace
run = sys.argv[1]
ray.init(namespace=namespace(run))
print("first", flush=True)
time.sleep(4)
control, orders = Control(run), []
def obey(order):
    orders.append(order.kind)
    return "synthesizer.max_actors (2): too many" if order.kind == "scale" else None
while "stop" not in orders:
    control.exchange({"phase": "distilling"}, obey)
    time.sleep(0.2)
print("last", orders, flush=True)
time.sleep(2)
"""


def submit(nodes: RayNodes, name: str, program: Path) -> None:
    done = subprocess.run(
        [
            *(RAY, "job", "submit", "--address", nodes.address, "--no-wait"),
            *("--metadata-json", json.dumps({"ssdkd_run": name}), "--"),
            *("python", str(program), name),
        ],
        env=nodes.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def follow(nodes: RayNodes, name: str, *, errors: int) -> subprocess.Popen[str]:
    """``ssdkd logs --follow``.

    Args:
        nodes: where.
        name: of the run.
        errors: where its stderr goes, as :class:`subprocess.Popen` takes it.
    """
    return subprocess.Popen(
        [SSDKD, "logs", name, "--follow", "--address", nodes.address],
        env=nodes.environment,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )


def listed(nodes: RayNodes) -> list[dict[str, Any]]:
    """The jobs that were submitted."""
    request = urllib.request.Request(
        f"{nodes.address}/api/jobs/", headers={"Authorization": f"Bearer {nodes.token}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return [each for each in json.loads(answer.read()) if each["submission_id"]]


def test_orders_are_answered_and_leave_no_job_and_the_log_is_followed_to_its_end(
    nodes: RayNodes, tmp_path: Path
) -> None:
    program = tmp_path / "pretender.py"
    program.write_text(PRETENDER)
    submit(nodes, "orders", program)
    until(lambda: "first" in nodes.command("logs", "orders").stdout)
    phases = []

    def phase() -> str:
        done = nodes.command("status", "orders")
        phases.append(json.loads(done.stdout).get("phase"))
        return phases[-1]

    until(lambda: phase() == "distilling")
    assert set(phases) <= {"starting", "distilling"}
    with follow(nodes, "orders", errors=subprocess.STDOUT) as followed:
        scaled = nodes.command("scale", "orders", "--synthesizers", "3")
        assert (scaled.returncode, scaled.stdout) == (2, "")
        assert scaled.stderr == "error: synthesizer.max_actors (2): too many\n"
        stopped = nodes.command("stop", "orders")
        assert (stopped.returncode, stopped.stdout) == (0, "orders: stopping\n"), stopped.stderr
        printed, _ = followed.communicate(timeout=60)
    assert followed.returncode == 0, printed
    lines = printed.splitlines()
    assert lines[lines.index("first") :][-1] == "last ['scale', 'stop']", printed
    assert len(listed(nodes)) > 1
    time.sleep(11)
    after = nodes.command("stop", "orders")
    assert after.returncode == 2
    assert "its job has ended (SUCCEEDED), nobody takes orders" in after.stderr
    time.sleep(3)  # they do not come back
    assert [job["metadata"] for job in listed(nodes)] == [{"ssdkd_run": "orders"}]


def test_a_log_that_is_followed_ends_in_a_line_when_the_server_goes(
    nodes: RayNodes, tmp_path: Path
) -> None:
    program = tmp_path / "endless.py"
    program.write_text("import time\nprint('first', flush=True)\ntime.sleep(300)\n")
    submit(nodes, "cut", program)
    with follow(nodes, "cut", errors=subprocess.PIPE) as followed:
        try:
            assert followed.stdout is not None
            assert "first\n" in iter(followed.stdout.readline, "")
            nodes.nodes[0].kill()
            _, errors = followed.communicate(timeout=60)
        finally:
            followed.kill()
    assert followed.returncode == 2
    (line,) = errors.splitlines()
    assert line.startswith(f"error: the job server at {nodes.address}: ")
