from __future__ import annotations

import select
import socket
import socketserver
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from buffer.config import BufferTable
from buffer.connection import CHUNK_BYTES, MOST_KEYS, Connection, host_of
from buffer.errors import BufferUnavailable, ConfigError, ProtocolMismatch
from buffer.replay import ReplayBuffer
from buffer.sample import Sample
from buffer.server import RedisServer, find_binary
from buffer.version import NEVER, Version


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server whose settings a test may change."""
    with RedisServer.start() as server:
        yield server


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:secret@host:6379/0", "redis://host:6379"),
        ("rediss://user:se@cret@host", "rediss://host"),
        ("unix:///tmp/a.sock?password=secret", "unix:///tmp/a.sock"),
        ("unix://user:secret@/tmp/a.sock", "unix:///tmp/a.sock"),
        ("redis://host?password=secret", "redis://host"),
        ("redis://host:6379/0?password=se/cr@et", "redis://..."),
        ("redis://[::1]:6379", "redis://[::1]:6379"),
        ("redis://:sec/ret@host:6379", "redis://host:6379"),
        ("redis://:sec#ret@host", "redis://host"),
        ("redis://:sec?ret@host", "redis://..."),
        ("redis://:sec/r#e?t/@host", "redis://..."),
        ("redis://:secret", "redis://..."),
        ("redis://user:secret", "redis://..."),
        ("unix:///tmp/a.sock?password=s@cret", "unix://..."),
        ("unix://user:se/c#ret@/tmp/a.sock", "unix:///tmp/a.sock"),
        ("secret@host", "..."),
        ("", "..."),
    ],
)
def test_a_host_is_shown_without_its_password(url: str, shown: str) -> None:
    assert host_of(url) == shown


def test_an_unreachable_server_is_named_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(BufferUnavailable, match=f"Redis at unix://{tmp_path}/none.sock") as error:
        Connection(f"unix://{tmp_path}/none.sock?password=secret")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [("http://user:secret@host", "http://host"), ("redis://:secr/et@host", "redis://host")],
)
def test_a_foreign_url_is_refused_without_its_password(url: str, shown: str) -> None:
    message = rf"buffer.url \({shown}\) is no Redis URL: it begins with redis://.*%40"
    with pytest.raises(ConfigError, match=message) as error:
        Connection(url)
    assert "secr" not in str(error.value)
    assert error.value.__suppress_context__


def test_keys_of_another_kind_are_no_reason_to_try_again(
    connection: Connection, client: redis.Redis, run: str
) -> None:
    client.set(run, "text")
    with pytest.raises(ProtocolMismatch, match=r"Redis at unix://.* cannot do what we ask.*WRONGT"):
        connection.fields(run)


def test_a_script_that_fails_is_no_reason_to_try_again(connection: Connection, run: str) -> None:
    with pytest.raises(ProtocolMismatch, match=r"cannot do what we ask.*Unknown"):
        connection.script("return redis.call('nonsense')")([run], [])


def test_publishing_over_a_connection_that_breaks_ends(own_server: RedisServer) -> None:
    connection = Connection(relayed(own_server, lambda data: b"EXEC" not in data))
    with pytest.raises(BufferUnavailable, match="key was not replaced in 3 rounds"):
        connection.publish("key", b"value", Version(1, 1))
    connection.close()


def test_a_script_that_is_lost_twice_is_a_reason_to_try_again(own_server: RedisServer) -> None:
    """A server may be restarted between loading a script and running it."""

    def forget(data: bytes) -> bool:
        if b"EVALSHA" in data:
            client.script_flush()
        return True

    with redis.Redis.from_url(own_server.url) as client:
        connection = Connection(relayed(own_server, forget))
        with pytest.raises(BufferUnavailable, match="No matching script"):
            connection.script("return 1")(["key"], [])
        connection.close()


def relayed(server: RedisServer, passes: Callable[[bytes], bool]) -> str:
    """The address of a relay to the server that hangs up at what does not pass."""

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.socket(socket.AF_UNIX) as upstream:
                upstream.connect(server.url.removeprefix("unix://"))
                while True:
                    ready, _, _ = select.select([self.request, upstream], [], [])
                    for source in ready:
                        data = source.recv(65536)
                        if not data or not passes(data):
                            return
                        (upstream if source is self.request else self.request).sendall(data)

    relay = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Relay)
    relay.daemon_threads = True
    threading.Thread(target=relay.serve_forever, daemon=True).start()
    return f"redis://127.0.0.1:{relay.server_address[1]}"


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
