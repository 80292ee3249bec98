"""One real server for the session, and both replay buffers behind one fixture."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import redis

from buffer.config import BufferTable
from buffer.connect import connect
from buffer.connection import Connection
from buffer.interface import Replay
from buffer.keys import Keys
from buffer.limits import Limits
from buffer.memory import InMemoryReplayBuffer
from buffer.params import SamplingParams
from buffer.replay import ReplayBuffer
from buffer.sample import Sample
from buffer.scripts import Scripts
from buffer.server import RedisServer

RUNS = itertools.count()
SERIALS = itertools.count()
FOUR_SLOTS = Limits(4, 4, 1, None, 300.0)


@pytest.fixture(scope="session")
def server() -> Iterator[RedisServer]:
    with RedisServer.start() as server:
        yield server


@pytest.fixture
def run() -> str:
    """A name of a run that no other test has."""
    return f"test-{next(RUNS)}"


@pytest.fixture
def client(server: RedisServer) -> Iterator[redis.Redis]:
    """For looking behind the interface."""
    with redis.Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
def keys(run: str) -> Callable[[str], str]:
    """Full names of keys of the run."""
    return lambda name: Keys(run).payloads([0])[0].removesuffix("x:0") + name


@pytest.fixture
def connection(server: RedisServer) -> Iterator[Connection]:
    connection = Connection(server.url)
    yield connection
    connection.close()


@pytest.fixture
def make_scripts(connection: Connection, run: str) -> Callable[..., Scripts]:
    def make(limits: Limits = FOUR_SLOTS, incarnation: int = 1, **params: float) -> Scripts:
        given = SamplingParams(**params)
        scripts = Scripts(connection, Keys(run), limits, given, lambda: incarnation)
        scripts.init()
        return scripts

    return make


@pytest.fixture
def make_redis(server: RedisServer, run: str) -> Iterator[Callable[..., ReplayBuffer]]:
    """Makes buffers in Redis that share their data."""
    made = []

    def make(
        params: SamplingParams | None = None, fresh: bool = False, **table: Any
    ) -> ReplayBuffer:
        limits = BufferTable(**table)
        replay = ReplayBuffer(limits, url=server.url, run=run, params=params, seed=1, fresh=fresh)
        made.append(replay)
        return replay

    yield make
    for replay in made:
        replay.close()


@pytest.fixture
def make_sharded(server: RedisServer, run: str) -> Iterator[Callable[..., Replay]]:
    """Makes buffers of several shards on one server that share their data."""
    made = []

    def make(
        params: SamplingParams | None = None, shards: int = 2, seed: int = 1, **table: Any
    ) -> Replay:
        limits = BufferTable(shards=shards, **table)
        name = f"{run}-{shards}"
        replay = connect(limits, url=server.url, run=name, params=params, seed=seed)
        made.append(replay)
        return replay

    yield make
    for replay in made:
        replay.close()


@pytest.fixture
def make_memory() -> Callable[..., InMemoryReplayBuffer]:
    def make(params: SamplingParams | None = None, **table: Any) -> InMemoryReplayBuffer:
        return InMemoryReplayBuffer(BufferTable(**table), params=params, seed=1)

    return make


@pytest.fixture
def make_scripted(make_redis: Callable[..., ReplayBuffer]) -> Callable[..., ReplayBuffer]:
    """Makes buffers in Redis that remember nothing, so that the server makes all draws."""

    def make(params: SamplingParams | None = None, **table: Any) -> ReplayBuffer:
        return make_redis(params, cache_mebibytes=0, **table)

    return make


@pytest.fixture(params=["memory", "redis", "scripted"])
def make_replay(request: pytest.FixtureRequest) -> Callable[..., Replay]:
    """Makes a buffer of each kind from fields of ``BufferTable``, and start parameters."""
    make: Callable[..., Replay] = request.getfixturevalue(f"make_{request.param}")
    return make


@pytest.fixture
def make_samples() -> Callable[..., list[Sample]]:
    """Makes samples; their image shows their member, a number that no other sample has."""

    def make(
        n: int,
        *,
        label: int | list[int] = 0,
        priority: float | list[float] = 1.0,
        **fields: Any,
    ) -> list[Sample]:
        labels = label if isinstance(label, list) else [label] * n
        priorities = priority if isinstance(priority, list) else [priority] * n
        return [
            numbered_sample(next(SERIALS), predicted_class=c, disagreement=p, **fields)
            for c, p in zip(labels, priorities, strict=True)
        ]

    return make


def numbered_sample(serial: int, **fields: Any) -> Sample:
    image = np.frombuffer(serial.to_bytes(12, "little"), dtype=np.uint8).reshape(3, 2, 2)
    defaults = {"targets": {"logits": np.full(4, serial, dtype=np.float32)}, "confidence": 0.5}
    return Sample(**{"image": image, "member": serial, **defaults, **fields})
