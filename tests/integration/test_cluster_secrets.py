"""Redis with users and TLS, Ray with a token: a run works, and nothing it leaves shows them."""

from __future__ import annotations

import json
import re
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.buffer.servers import TcpServer
from tests.buffer.test_tls import encrypting
from tests.deploy.manifests import make_secrets
from tests.integration.ray_nodes import RayNodes
from tests.integration.test_cluster import settings

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(300)]

SHOWN = (
    "/api/jobs/",
    "/api/v0/actors?detail=true",
    "/api/v0/tasks?detail=true",
    "/nodes?view=summary",
)


class Guarded(NamedTuple):
    """A cluster as the documents have it: only the head knows where Redis is."""

    nodes: RayNodes
    redis: TcpServer
    folder: Path
    """Of Ray's sessions with their logs."""
    passwords: list[str]
    """Of Redis' users."""


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    make_secrets(tmp_path / "secrets")
    users = tmp_path / "secrets" / "users.acl"
    passwords = dict(re.findall(r"^user (\w+) on >(\w+)", users.read_text(), re.M))
    redis = encrypting(tmp_path / "redis", "--aclfile", str(users))
    url = (
        f"rediss://pipeline:{passwords['pipeline']}@127.0.0.1:{redis.port}"
        f"?ssl_ca_certs={tmp_path / 'redis' / 'ca.crt'}"
    )
    try:
        with (
            tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as name,
            RayNodes(Path(name), head_cpus=0, head_environment={"SSDKD_REDIS_URL": url}) as nodes,
        ):
            nodes.add(cpus=2)
            yield Guarded(nodes, redis, Path(name) / "ray", list(passwords.values()))
    finally:
        redis.stop()


def test_a_run_with_passwords_and_tls_shows_none_of_them(
    guarded: Guarded, digits_teacher: Path, tmp_path: Path
) -> None:
    nodes, out = guarded.nodes, tmp_path / "out"
    budget = {"run.seconds": None, "run.steps": 60, "run.log_level": "debug"}
    sets = settings("guarded", **budget, **{"teacher.weights": str(digits_teacher)})
    done = nodes.command("submit", "digits", "--out", str(out), "--follow", *sets)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((out / "result.json").read_text())["student_steps"] == 60
    shown = {"the command": (done.stdout + done.stderr).encode()}
    for path in SHOWN:
        request = urllib.request.Request(
            nodes.address + path, headers={"Authorization": f"Bearer {nodes.token}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            shown[path] = answer.read()
    assert b"ssdkd-guarded-0" in shown["/api/jobs/"]
    assert b"SynthesizerService" in shown["/api/v0/actors?detail=true"]
    for folder in (out, guarded.folder):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert files
        shown |= {str(path): path.read_bytes() for path in files}
    assert any("job-driver-ssdkd-guarded-0" in name for name in shown)
    for secret in (nodes.token, *guarded.passwords):
        assert [name for name, text in shown.items() if secret.encode() in text] == []
