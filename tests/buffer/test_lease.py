"""One pipeline a run."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from buffer import lease
from buffer.errors import BufferUnavailable, ConfigError
from buffer.lease import RunLease
from buffer.server import RedisServer
from tests.buffer.servers import TcpServer
from tests.waiting import until


def test_a_live_run_keeps_its_name(server: RedisServer, run: str) -> None:
    with RunLease(server.url, run):
        with pytest.raises(ConfigError, match=re.escape(f"run.name ({run}): a run of this name")):
            RunLease(server.url, run).__enter__()
        with RunLease(server.url, f"{run}-other"):
            pass
    with RunLease(server.url, run):
        pass


def test_the_name_of_a_killed_run_is_free_after_a_while(
    server: RedisServer, run: str, client: redis.Redis, keys: Callable[[str], str]
) -> None:
    client.set(keys("owner"), "somebody who was killed", px=200)
    with pytest.raises(ConfigError):
        RunLease(server.url, run).__enter__()
    time.sleep(0.3)
    with RunLease(server.url, run):
        assert 10_000 < client.pttl(keys("owner")) <= 15_000


def test_a_run_outlives_its_lease_and_the_loss_of_it(
    server: RedisServer,
    run: str,
    client: redis.Redis,
    keys: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lease, "HELD_SECONDS", 0.3)
    with RunLease(server.url, run):
        time.sleep(0.6)
        assert client.exists(keys("owner"))
        client.delete(keys("owner"))  # a server that was restarted without its data
        time.sleep(0.3)
        assert client.exists(keys("owner"))
    assert not client.exists(keys("owner"))


def test_a_run_whose_name_was_taken_knows_and_leaves_it_to_the_other(
    server: RedisServer,
    run: str,
    client: redis.Redis,
    keys: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lease, "HELD_SECONDS", 0.3)
    with RunLease(server.url, run) as held:
        time.sleep(0.3)
        assert not held.lost
        client.set(keys("owner"), "another")
        time.sleep(0.3)
        assert held.lost
        client.delete(keys("owner"))  # the other has ended; its data are in the buffer all the same
        time.sleep(0.3)
        assert held.lost
        assert not client.exists(keys("owner"))
        client.set(keys("owner"), "a third")
    assert client.get(keys("owner")) == b"a third"


@pytest.fixture
def two(tmp_path: Path) -> Iterator[list[TcpServer]]:
    servers = [TcpServer(tmp_path / name) for name in ("one", "other")]
    yield servers
    for server in servers:
        server.stop()


def test_of_several_servers_each_that_is_there_holds_the_name(
    two: list[TcpServer],
    run: str,
    keys: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(lease, "HELD_SECONDS", 1.5)
    url = ",".join(server.url for server in two)
    two[0].stop()
    with RunLease(url, run) as held:
        assert "the name of the run is not held everywhere: Redis at redis://" in caplog.text
        with pytest.raises(ConfigError, match="a run of this name is alive"):
            RunLease(url, run).__enter__()
        two[0].start()
        with redis.Redis.from_url(two[0].url) as client:
            until(lambda: bool(client.exists(keys("owner"))))
        two[1].stop()
        with pytest.raises(ConfigError, match="a run of this name is alive"):
            RunLease(url, run).__enter__()
        assert not held.lost
    two[0].stop()
    with pytest.raises(BufferUnavailable):
        RunLease(url, run).__enter__()


def test_who_does_not_get_the_name_everywhere_keeps_it_nowhere(
    two: list[TcpServer], run: str, keys: Callable[[str], str]
) -> None:
    with RunLease(two[1].url, run):
        with pytest.raises(ConfigError, match="a run of this name is alive"):
            RunLease(f"{two[0].url},{two[1].url}", run).__enter__()
        with redis.Redis.from_url(two[0].url) as client:
            assert not client.exists(keys("owner"))
