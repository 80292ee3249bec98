"""A server that has reached ``maxmemory``: refused with a clear error, never half done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import redis

from buffer.config import BufferTable
from buffer.errors import BufferUnavailable
from buffer.interface import InsertResult
from buffer.replay import ReplayBuffer
from buffer.sample import Batch, Sample
from buffer.server import RedisServer
from buffer.version import Version
from tests.buffer.test_records import audit

Samples = Callable[..., list[Sample]]
REFUSED = r"Redis at unix://.*used memory > 'maxmemory'"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server of this test alone."""
    with RedisServer.start() as server:
        yield server


def key(name: str) -> str:
    return f"{{ssdkd:full:0}}:{name}"


def members(batch: Batch) -> set[int]:
    return set(batch.targets["logits"][:, 0].astype(int).tolist())


def large(samples: list[Sample]) -> list[Sample]:
    """The same with images of 0.75 MiB: two go into one command."""
    image = np.zeros((3, 512, 512), dtype=np.uint8)
    return [replace(sample, image=image) for sample in samples]


def test_memory_that_ends_in_the_middle_of_an_insert_shows_nothing_of_it(
    server: RedisServer, client: redis.Redis, make_samples: Samples
) -> None:
    table = BufferTable(capacity=8, min_size_to_sample=4, cache_mebibytes=0)
    replay = ReplayBuffer(table, url=server.url, run="full")
    first, second = large(make_samples(4)), large(make_samples(4))
    replay.insert(first, producer="a", sequence=1)
    client.config_set("maxmemory", client.info("memory")["used_memory"] + (5 << 19))
    for _ in range(2):
        with pytest.raises(BufferUnavailable, match=REFUSED):
            replay.insert(second, producer="a", sequence=2)
        written = [client.exists(key(f"x:{slot}")) for slot in range(8)]
        assert written == [1, 1, 1, 1, 1, 1, 0, 0]
        assert replay.info().size == 4
        assert members(replay.sample(64)) == {sample.member for sample in first}
    client.config_set("maxmemory", 0)
    assert replay.insert(second, producer="a", sequence=2) == InsertResult(4, False)
    assert members(replay.sample(200)) == {sample.member for sample in first + second}
    replay.close()


def test_nothing_is_half_done_while_there_is_no_memory(
    server: RedisServer, client: redis.Redis, make_samples: Samples
) -> None:
    """Of an operation the server refuses the first write or none."""
    replay = ReplayBuffer(BufferTable(capacity=16), url=server.url, run="full", seed=0)
    replay.insert(make_samples(16, label=[*range(16)]), producer="a", sequence=0)
    names = replay.sample(64).identities
    before = audit(client, key, 16)
    client.config_set("maxmemory", 1)
    chance = np.random.default_rng(0)
    operations: list[Callable[[int], object]] = [
        lambda i: replay.insert(make_samples(3), producer="a", sequence=i),
        lambda i: replay.sample(8),
        lambda i: replay.update_priorities(names, chance.lognormal(size=64), version=Version(1, i)),
        lambda i: replay.request_permit(3, producer="b"),
        lambda i: replay.drawing._scripts.discard(*lost(names[i : i + 1])),
    ]
    for i in range(60):
        with suppress(BufferUnavailable):
            operations[i % 5](i)
        assert len(audit(client, key, 16)) == replay.info().size
    with pytest.raises(BufferUnavailable, match=REFUSED):
        replay.sample(8)
    client.config_set("maxmemory", 0)
    assert replay.insert(make_samples(3), producer="a", sequence=99).inserted == 3
    assert len(replay.sample(64).images) == 64
    assert audit(client, key, 16) != before
    replay.close()


def lost(names: np.ndarray) -> tuple[int, np.ndarray]:
    """Arguments of a discard."""
    pairs = np.array(names[["slot", "generation"]].tolist(), dtype="<u4,<u4")
    return int(names["incarnation"][0]), pairs
