"""One pipeline a run."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
import redis

from buffer import lease
from buffer.errors import ConfigError
from buffer.lease import RunLease
from buffer.server import RedisServer


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
