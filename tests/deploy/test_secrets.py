"""The script that makes a deployment's secrets, and the Redis servers that manifests start."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest
import redis
import yaml

from buffer.config import BufferTable
from buffer.connect import connect
from buffer.version import NEVER, Version
from tests.buffer.servers import TcpServer
from tests.deploy.manifests import DEPLOY, containers, make_secrets, sources

SECRETS = {"auth_token", "grafana_password", "redis_url", "users.acl"}


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    folder = tmp_path / "secrets"
    make_secrets(folder, "10.0.0.1:6380")
    return folder


def command_of(kind: str) -> list[str]:
    """The server's command line in a manifest, without what only a container has."""
    if kind == "compose":
        services = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())["services"]
        command = list(services["redis"]["command"])
    else:
        (document,) = (each for each in sources() if each["kind"] == "StatefulSet")
        (container,) = containers(document)
        command = list(container["command"])
    options = dict(zip(command[1::2], command[2::2], strict=True))
    # The last is Redis 7's; the tests' own server may be an older one.
    del options["--port"], options["--aclfile"], options["--maxmemory-clients"]
    return [part for option in options.items() for part in option]


def test_secrets_are_random_and_this_user_s_alone(secrets: Path, tmp_path: Path) -> None:
    make_secrets(tmp_path / "others")
    assert {path.name for path in secrets.iterdir()} == SECRETS
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    for name in SECRETS:
        assert (secrets / name).read_text() != (tmp_path / "others" / name).read_text()
    assert re.fullmatch(r"[0-9a-f]{48}", (secrets / "auth_token").read_text())


def test_every_user_has_a_password_of_its_own(secrets: Path) -> None:
    users = (secrets / "users.acl").read_text()
    assert "CHANGE" not in users
    assert "user default off" in users
    passwords = re.findall(r"^user \w+ on >([0-9a-f]{48}) ", users, re.M)
    assert len(set(passwords)) == 5


def test_secrets_that_are_there_are_left_alone(secrets: Path) -> None:
    before = {path.name: path.read_bytes() for path in secrets.iterdir()}
    assert "nothing was changed" in make_secrets(secrets)
    assert {path.name: path.read_bytes() for path in secrets.iterdir()} == before


@pytest.mark.parametrize("kind", ["compose", "kubernetes"])
def test_a_server_started_as_in_the_manifest_serves_the_pipeline_s_url_alone(
    kind: str, secrets: Path, tmp_path: Path
) -> None:
    server = TcpServer(tmp_path, "--aclfile", str(secrets / "users.acl"), *command_of(kind))
    try:
        url = (secrets / "redis_url").read_text()
        assert "@10.0.0.1:6380" in url
        place = server.url.removeprefix("redis://").partition("/")[0]
        table = BufferTable(capacity=8, probe_capacity=0, min_size_to_sample=4)
        replay = connect(table, url=url.replace("10.0.0.1:6380", place), run="a", fresh=True)
        replay.publish_student(b"weights", version=Version(1, 1))
        assert replay.fetch_student(newer_than=NEVER) == (Version(1, 1), b"weights")
        replay.close()
        with redis.Redis.from_url(server.url) as nobody, pytest.raises(redis.AuthenticationError):
            nobody.ping()
    finally:
        server.stop()
