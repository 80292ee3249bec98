"""The only place that knows the Redis client: connects, moves bytes, and translates its errors.

Why retries are safe: redis-py repeats a command whose answer got lost. Every write of ours may run
twice, it is idempotent or (a counter, a draw of n) errs by one, or by n.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from hashlib import sha1
from typing import Any, TypeVar

import redis
from redis.backoff import ExponentialBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import (
    AskError,
    ClusterDownError,
    ClusterError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    RedisClusterException,
    TryAgainError,
)
from redis.retry import Retry

from buffer.errors import BufferUnavailable, ConfigError, ProtocolMismatch
from buffer.keys import Keys
from buffer.version import NEVER, Version

SOCKET_TIMEOUT_SECONDS = 10.0
RETRIES = 3
CHUNK_BYTES = 2 << 20
"""Of payload in one command: replies of this size move fastest, and others get their turn."""
MOST_KEYS = 1024
READ_BYTES = 128 << 10
"""Read from a socket at once: fewer, larger steps through Python for payloads of any size."""

_SCHEME = re.compile(r"\w+")
_PLACE = re.compile(r"[\w.-]+(:\d+)?|\[[\da-fA-F:.]+\](:\d+)?|/.*")
_PASSING = (
    *(OutOfMemoryError, redis.ReadOnlyError, NoPermissionError),
    *(AskError, TryAgainError, ClusterDownError, NoScriptError),
)
_PASSING_REPLY = re.compile(
    r"\b(OOM|LOADING|READONLY|BUSY|MISCONF|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|NOPERM)\b"
)
"""Replies of a server that does it later, or for others; those to scripts may be text only."""

Answer = TypeVar("Answer")


class Connection:
    """A checked connection to a Redis server, or cluster. May be used from several threads.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``; of a Redis Cluster any node's, but no
            socket's. There, keys that are asked for together must have one hash tag.

    Raises:
        ConfigError: the URL is none, or the server is set to drop keys when memory runs out.
        BufferUnavailable: the server cannot be reached, or refuses us. So do all methods.
        ProtocolMismatch: keys of ours are of other types there, or the server is too old. So do
            all methods.
    """

    def __init__(self, url: str) -> None:
        self._where = host_of(url)
        self._clustered = False
        options: dict[str, Any] = {
            "decode_responses": False,
            "socket_timeout": SOCKET_TIMEOUT_SECONDS,
            "socket_read_size": READ_BYTES,
            "retry": Retry(ExponentialBackoff(cap=0.5, base=0.05), RETRIES),
        }
        try:
            self._client: Any = redis.Redis.from_url(url, **options)
        except ValueError:
            # Not what it says, nor where it comes from: both could show a part of the password.
            raise ConfigError(
                f"buffer.url ({self._where}) is no Redis URL: it begins with redis://, rediss:// "
                "or unix://, and has %40 %2F %3F %23 for @ / ? # in a password"
            ) from None
        try:
            if self._ask(lambda: self._client.info("cluster")).get("cluster_enabled"):
                self.close()
                self._client = self._ask(lambda: _Cluster.from_url(url, **options))
                self._clustered = True
            self._check_memory_policy()
        except BaseException:
            self.close()
            raise

    @property
    def where(self) -> str:
        """The server, as it may be shown."""
        return self._where

    def script(self, source: str) -> Callable[[Sequence[str], Sequence[Any]], Any]:
        """A function of KEYS and ARGV that runs a Lua script, loading it when needed."""
        sha = sha1(source.encode()).hexdigest()

        def run(keys: Sequence[str], arguments: Sequence[Any]) -> Any:
            try:
                return self._client.evalsha(sha, len(keys), *keys, *arguments)
            except NoScriptError:
                # Not to all nodes of a cluster, as redis-py does: others may be away. It is lost
                # again if the server is restarted, or the slot moves, before the next line.
                self._server_of(keys[0]).script_load(source)
                return self._client.evalsha(sha, len(keys), *keys, *arguments)

        return lambda keys, arguments: self._ask(partial(run, keys, arguments))

    def store(self, values: Mapping[str, bytes]) -> None:
        """Writes payloads, in chunks."""
        for chunk in _chunks(values):
            self._ask(partial(self._client.mset, chunk))

    def fetch(self, keys: Sequence[str], *, expected_bytes: int) -> list[bytes | None]:
        """Reads payloads, in chunks of a size that ``expected_bytes`` (each) determines."""
        step = max(1, min(MOST_KEYS, CHUNK_BYTES // max(1, expected_bytes)))
        found: list[bytes | None] = []
        for start in range(0, len(keys), step):
            found += self._ask(
                partial(self._client.execute_command, "MGET", *keys[start : start + step])
            )
        return found

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes payloads, in chunks."""
        for start in range(0, len(keys), MOST_KEYS):
            self._ask(partial(self._client.unlink, *keys[start : start + MOST_KEYS]))

    def fields(self, key: str) -> dict[str, str]:
        """A whole hash; empty if there is none."""
        found = self._ask(lambda: self._client.hgetall(key))
        return {field.decode(): value.decode() for field, value in found.items()}

    def publish(self, key: str, value: bytes, version: Version) -> None:
        """Replaces a value, unless a newer version is there.

        Not a script: values of 100 MB would keep the server's interpreter busy for a second.
        """
        for _ in range(RETRIES):
            if self._ask(lambda: self._try_to_publish(key, value, version)):
                return
        raise BufferUnavailable(
            f"Redis at {self._where}: {key} was not replaced in {RETRIES} rounds: others replaced "
            "it, or the connection broke"
        )

    def published(self, key: str, *, newer_than: Version | None = None) -> bytes | None:
        """A published value; ``None`` if there is none, or still the one of ``newer_than``.

        An older one than that was published since the server lost its data: it is the newest.
        """
        if newer_than is not None:
            stored = self._ask(lambda: self._client.get(Keys.version_of(key)))
            if _version(stored) in (NEVER, newer_than):
                return None
        value: bytes | None = self._ask(lambda: self._client.get(key))
        return value

    def version(self, key: str) -> Version:
        """The version of a published value; ``NEVER`` if there is none."""
        return _version(self._ask(lambda: self._client.get(Keys.version_of(key))))

    def server(self, key: str) -> dict[str, Any]:
        """What the server that has a key says of itself: the fields of ``INFO``."""
        info: dict[str, Any] = self._ask(lambda: self._server_of(key).info())
        return info

    def close(self) -> None:
        """Closes every socket."""
        if self._clustered:
            self._client.disconnect_connection_pools()
        self._client.close()

    def _try_to_publish(self, key: str, value: bytes, version: Version) -> bool:
        """Whether it is settled: replaced, or a newer one is there."""
        with self._client.pipeline(transaction=True) as pipe:
            pipe.watch(Keys.version_of(key))
            if _version(pipe.get(Keys.version_of(key))) > version:
                return True
            pipe.multi()
            pipe.set(key, value)
            pipe.set(Keys.version_of(key), f"{version.attempt}.{version.step}")
            try:
                pipe.execute()
            except redis.WatchError:  # also when the connection broke, or took too long
                return False
            return True

    def _check_memory_policy(self) -> None:
        if not self._clustered:
            self._refuse_eviction(self._client)
        else:
            for node in self._client.get_primaries():
                # One that is away is missed by those only whose keys are there.
                with suppress(BufferUnavailable):
                    self._refuse_eviction(node.redis_connection)

    def _refuse_eviction(self, server: Any) -> None:
        policy = self._ask(lambda: server.info("memory")).get("maxmemory_policy")
        if policy != "noeviction":
            raise ConfigError(
                f"maxmemory-policy ({policy}) of the Redis server at {self._where} is not "
                "noeviction: it would silently drop samples when memory runs out"
            )

    def _server_of(self, key: str) -> Any:
        if not self._clustered:
            return self._client
        return self._client.get_node_from_key(key).redis_connection

    def _ask(self, call: Callable[[], Answer]) -> Answer:
        try:
            return call()
        except (redis.RedisError, RedisClusterException) as error:
            if _is_a_refused_command(error):
                raise ProtocolMismatch(
                    f"Redis at {self._where} cannot do what we ask, its keys or its version are "
                    f"not ours: {error}"
                ) from error
            raise BufferUnavailable(f"Redis at {self._where}: {error}") from error


class _Cluster(RedisCluster):
    """A cluster's client that says so where redis-py's goes on with a node that is ``None``.

    That is one which it does not know, since it has no slot yet, and to which one is moving.
    """

    def get_redis_connection(self, node: ClusterNode | None) -> redis.Redis:
        if node is None:
            raise ClusterError("keys are moving to a node that is not known yet")
        return super().get_redis_connection(node)


def host_of(url: str) -> str:
    """The part of a Redis URL that may be shown: no user, no password, no options.

    Passwords may be unescaped: what comes before the last ``@`` is never shown, and nothing but
    ``...`` if the rest could belong to a password too.
    """
    scheme, separator, rest = url.partition("://")
    before, _, place = rest.rpartition("@")
    host = re.split("[?#]" if scheme == "unix" else "[/?#]", place)[0]
    hidden = "?" in before or not _PLACE.fullmatch(host) or not _SCHEME.fullmatch(scheme)
    return f"{scheme}://{'...' if hidden else host}" if separator else "..."


def _is_a_refused_command(error: Exception) -> bool:
    """Whether the server would answer the same every time."""
    passing = isinstance(error, _PASSING) or _PASSING_REPLY.search(str(error))
    return isinstance(error, redis.ResponseError) and not passing


def _version(stored: bytes | None) -> Version:
    if stored is None:
        return NEVER
    attempt, step = stored.split(b".")
    return Version(int(attempt), int(step))


def _chunks(values: Mapping[str, bytes]) -> Iterator[dict[str, bytes]]:
    chunk: dict[str, bytes] = {}
    size = 0
    for key, value in values.items():
        if chunk and (size + len(value) > CHUNK_BYTES or len(chunk) == MOST_KEYS):
            yield chunk
            chunk, size = {}, 0
        chunk[key] = value
        size += len(value)
    if chunk:
        yield chunk
