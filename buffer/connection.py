"""The only place that knows the Redis client: connects, moves bytes, and translates its errors.

Why retries are safe: redis-py repeats a command whose answer got lost. Every write of ours may run
twice, it is idempotent or (a counter, a draw) errs by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.commands.core import Script
from redis.retry import Retry

from buffer.errors import BufferUnavailable, ConfigError
from buffer.keys import Keys
from buffer.version import NEVER, Version

SOCKET_TIMEOUT_SECONDS = 10.0
RETRIES = 3
CHUNK_BYTES = 2 << 20
"""Of payload in one command: replies of this size move fastest, and others get their turn."""
MOST_KEYS = 1024

Answer = TypeVar("Answer")


class Connection:
    """A checked connection to a Redis server. May be used from several threads.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.

    Raises:
        ConfigError: the URL is none, or the server is set to drop keys when memory runs out.
        BufferUnavailable: the server cannot be reached, or refuses us.
    """

    def __init__(self, url: str) -> None:
        self._where = host_of(url)
        try:
            self._client: Any = redis.Redis.from_url(
                url,
                decode_responses=False,
                socket_timeout=SOCKET_TIMEOUT_SECONDS,
                retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), RETRIES),
                retry_on_error=[redis.ConnectionError, redis.TimeoutError],
            )
        except ValueError as error:
            raise ConfigError(f"buffer.url ({self._where}) is no Redis URL: {error}") from error
        try:
            self._check_memory_policy()
        except BaseException:
            self.close()
            raise

    def script(self, source: str) -> Callable[[Sequence[str], Sequence[Any]], Any]:
        """A function of KEYS and ARGV that runs a Lua script, loading it when needed."""
        script: Script = self._client.register_script(source)
        return lambda keys, arguments: self._ask(lambda: script(keys=keys, args=arguments))

    def store(self, values: Mapping[str, bytes]) -> None:
        """Writes payloads, in chunks."""
        for chunk in _chunks(values):
            self._ask(partial(self._client.mset, chunk))

    def fetch(self, keys: Sequence[str], *, expected_bytes: int) -> list[bytes | None]:
        """Reads payloads, in chunks of a size that ``expected_bytes`` (each) determines."""
        step = max(1, min(MOST_KEYS, CHUNK_BYTES // max(1, expected_bytes)))
        found: list[bytes | None] = []
        for start in range(0, len(keys), step):
            found += self._ask(partial(self._client.mget, keys[start : start + step]))
        return found

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes payloads, in chunks."""
        for start in range(0, len(keys), MOST_KEYS):
            self._ask(partial(self._client.unlink, *keys[start : start + MOST_KEYS]))

    def fields(self, key: str) -> dict[str, str]:
        """A whole hash; empty if there is none."""
        found = self._ask(lambda: self._client.hgetall(key))
        return {field.decode(): value.decode() for field, value in found.items()}

    def increment(self, key: str, field: str) -> int:
        """Counts a field of a hash up by one. Repeated after a lost answer, it skips a number."""
        return int(self._ask(lambda: self._client.hincrby(key, field, 1)))

    def publish(self, key: str, value: bytes, version: Version) -> None:
        """Replaces a value, unless a newer version is there.

        Not a script: values of 100 MB would keep the server's interpreter busy for a second.
        """

        def replace_older(pipe: Any) -> None:
            if _version(pipe.get(Keys.version_of(key))) <= version:
                pipe.multi()
                pipe.set(key, value)
                pipe.set(Keys.version_of(key), f"{version.attempt}.{version.step}")

        self._ask(lambda: self._client.transaction(replace_older, Keys.version_of(key)))

    def published(self, key: str, *, newer_than: Version | None = None) -> bytes | None:
        """A published value; ``None`` if there is none, or none newer than ``newer_than``."""
        if newer_than is not None:
            stored = self._ask(lambda: self._client.get(Keys.version_of(key)))
            if _version(stored) <= newer_than:
                return None
        value: bytes | None = self._ask(lambda: self._client.get(key))
        return value

    def close(self) -> None:
        """Closes every socket."""
        self._client.close()

    def _check_memory_policy(self) -> None:
        policy = self._ask(lambda: self._client.info("memory")).get("maxmemory_policy")
        if policy != "noeviction":
            raise ConfigError(
                f"maxmemory-policy ({policy}) of the Redis server at {self._where} is not "
                "noeviction: it would silently drop samples when memory runs out"
            )

    def _ask(self, call: Callable[[], Answer]) -> Answer:
        try:
            return call()
        except redis.RedisError as error:
            raise BufferUnavailable(f"Redis at {self._where}: {error}") from error


def host_of(url: str) -> str:
    """The part of a Redis URL that may be shown: no user, no password, no options."""
    parts = urlsplit(url)
    place = parts.path if parts.scheme == "unix" else parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{place}"


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
