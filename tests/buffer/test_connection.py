from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from buffer.config import BufferTable
from buffer.connection import CHUNK_BYTES, MOST_KEYS, Connection, host_of
from buffer.errors import BufferUnavailable, ConfigError
from buffer.replay import ReplayBuffer
from buffer.sample import Sample
from buffer.server import RedisServer, find_binary
from buffer.version import NEVER, Version


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server whose settings a test may change."""
    with RedisServer.start() as server:
        yield server


@pytest.fixture
def connection(server: RedisServer) -> Iterator[Connection]:
    connection = Connection(server.url)
    yield connection
    connection.close()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@host:6379/0", "redis://host:6379"),
        ("rediss://user:se@cret@host", "rediss://host"),
        ("unix:///tmp/a.sock?password=secret", "unix:///tmp/a.sock"),
        ("unix://user:secret@/tmp/a.sock", "unix:///tmp/a.sock"),
        ("redis://host?password=secret", "redis://host"),
    ],
)
def test_a_host_is_shown_without_its_password(url: str, shown: str) -> None:
    assert host_of(url) == shown


def test_an_unreachable_server_is_named_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(BufferUnavailable, match=f"Redis at unix://{tmp_path}/none.sock") as error:
        Connection(f"unix://{tmp_path}/none.sock?password=secret")
    assert "secret" not in str(error.value)


def test_a_foreign_url_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"buffer.url \(http://host\) is no Redis URL"):
        Connection("http://user:secret@host")


def test_a_wrong_password_is_refused(own_server: RedisServer) -> None:
    with redis.Redis.from_url(own_server.url) as client:
        client.config_set("requirepass", "right")
    for url in (own_server.url, f"{own_server.url}?password=wrong"):
        with pytest.raises(BufferUnavailable, match=r"Redis at unix://.*(NOAUTH|uthenticat|inval)"):
            Connection(url)
    Connection(f"{own_server.url}?password=right").close()


def test_a_server_that_may_evict_is_refused(own_server: RedisServer) -> None:
    with redis.Redis.from_url(own_server.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    message = r"maxmemory-policy \(allkeys-lru\) of the Redis server at unix://.* silently drop"
    with pytest.raises(ConfigError, match=message):
        Connection(own_server.url)


def test_a_server_without_memory_left_says_so(
    own_server: RedisServer, make_samples: Callable[..., list[Sample]]
) -> None:
    replay = ReplayBuffer(BufferTable(capacity=4), url=own_server.url, run="full")
    with redis.Redis.from_url(own_server.url) as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(BufferUnavailable, match="used memory > 'maxmemory'"):
            replay.insert(make_samples(2), producer="a", sequence=1)
        client.config_set("maxmemory", 0)
    assert replay.insert(make_samples(2), producer="a", sequence=1).inserted == 2
    replay.close()


def test_a_server_that_went_away_is_unavailable_until_it_is_back(own_server: RedisServer) -> None:
    replay = ReplayBuffer(BufferTable(capacity=4), url=own_server.url, run="gone")
    socket = own_server.url.removeprefix("unix://")
    with redis.Redis.from_url(own_server.url) as client:
        client.shutdown(nosave=True)
    with pytest.raises(BufferUnavailable, match="Redis at unix://"):
        replay.info()
    process = subprocess.Popen(
        [find_binary(), "--port", "0", "--unixsocket", socket, "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    try:
        assert eventually(lambda: replay.info().size == 0)
        assert replay.params().version == NEVER
    finally:
        replay.close()
        process.terminate()
        process.wait()


def eventually(check: Callable[[], bool]) -> bool:
    for _ in range(20):
        try:
            return check()
        except BufferUnavailable:
            continue
    return False


def test_payloads_larger_than_a_chunk_come_back(connection: Connection, run: str) -> None:
    values = {f"{run}:{i}": bytes([i]) * (CHUNK_BYTES // 2 + 1) for i in range(5)}
    connection.store(values)
    for expected_bytes in (1, CHUNK_BYTES, 10 * CHUNK_BYTES):
        found = connection.fetch(list(values), expected_bytes=expected_bytes)
        assert found == list(values.values())
    connection.delete(list(values))
    assert connection.fetch(list(values), expected_bytes=1) == [None] * 5


def test_more_payloads_than_keys_in_a_chunk_come_back(connection: Connection, run: str) -> None:
    values = {f"{run}:{i}": str(i).encode() for i in range(2 * MOST_KEYS + 3)}
    connection.store(values)
    assert connection.fetch(list(values), expected_bytes=1) == list(values.values())
    connection.delete(list(values))
    assert connection.fetch(list(values), expected_bytes=1) == [None] * len(values)


def test_a_published_value_is_replaced_by_equal_or_newer_ones_only(
    connection: Connection, run: str
) -> None:
    for value, version in ((b"a", Version(1, 10)), (b"b", Version(1, 9)), (b"c", Version(1, 10))):
        connection.publish(run, value, version)
    assert connection.published(run) == b"c"
    assert connection.published(run, newer_than=Version(1, 10)) is None
    assert connection.published(run, newer_than=Version(1, 9)) == b"c"
