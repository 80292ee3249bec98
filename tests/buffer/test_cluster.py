"""A Redis Cluster: shards lie on its nodes by their hash tags, and follow their slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import redis

from buffer import members
from buffer.config import BufferTable
from buffer.connect import connect
from buffer.connection import Connection
from buffer.errors import BufferUnavailable, ConfigError, ProtocolMismatch
from buffer.interface import Replay
from buffer.keys import Keys
from buffer.sample import Sample
from buffer.version import NEVER, Version
from tests.buffer.cluster import OWNERS, Cluster
from tests.buffer.servers import TcpServer
from tests.waiting import until

Samples = Callable[..., list[Sample]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), "--cluster-require-full-coverage", "no")
    yield cluster
    cluster.stop()


@pytest.fixture
def make(cluster: Cluster, run: str) -> Iterator[Callable[..., Replay]]:
    """Makes buffers that share their data, reached through a node."""
    made = []

    def make(node: int = 0, **table: int) -> Replay:
        limits = BufferTable(**{"capacity": 64, "min_size_to_sample": 4, **table})
        made.append(connect(limits, url=cluster.nodes[node].url, run=run, seed=1))
        return made[-1]

    yield make
    for replay in made:
        replay.close()


def fill(replay: Replay, make_samples: Samples) -> None:
    for sequence in range(8):
        replay.insert(make_samples(8), producer="a", sequence=sequence)


def test_four_shards_lie_on_every_node_that_has_slots(
    cluster: Cluster, make: Callable[..., Replay], make_samples: Samples, run: str
) -> None:
    replay = make(shards=4)
    fill(replay, make_samples)
    assert {cluster.holder_of(Keys(run, shard).meta) for shard in range(4)} == set(range(OWNERS))
    for shard in range(4):
        keys = [Keys(run, shard).meta, *Keys(run, shard).payloads(range(16))]
        assert cluster.clients[cluster.holder_of(keys[0])].exists(*keys) == 17
    assert set(replay.sample(200).identities["shard"].tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("node", range(OWNERS + 1))
def test_any_node_leads_to_the_whole(
    make: Callable[..., Replay], make_samples: Samples, node: int
) -> None:
    fill(make(shards=4), make_samples)
    assert make(node, shards=4).info().size == 64


def test_payloads_of_a_shard_travel_in_one_command(cluster: Cluster, run: str) -> None:
    values = dict.fromkeys(Keys(run).payloads(range(100)), b"payload")
    client = cluster.clients[cluster.holder_of(Keys(run).meta)]
    client.config_resetstat()
    connection = Connection(cluster.url)
    connection.store(values)
    assert connection.fetch(list(values), expected_bytes=7) == [b"payload"] * 100
    connection.delete(list(values))
    connection.close()
    stats = client.info("commandstats")
    calls = {name: stats[f"cmdstat_{name}"]["calls"] for name in ("mset", "mget", "unlink")}
    assert calls == {"mset": 1, "mget": 1, "unlink": 1}


def test_a_shard_follows_its_slot_to_a_new_node(
    cluster: Cluster, make: Callable[..., Replay], make_samples: Samples, run: str
) -> None:
    replay = make(cache_mebibytes=0)
    fill(replay, make_samples)
    before = np.unique(replay.sample(500, seed=0).identities)
    slot, source, target = cluster.slot_of(Keys(run).meta), cluster.holder_of(Keys(run).meta), 3
    for step in (cluster.begin_move, cluster.move_keys):
        step(slot, source, target)
        with pytest.raises(BufferUnavailable):
            replay.sample(4)
        with pytest.raises(BufferUnavailable):
            replay.insert(make_samples(1), producer="a", sequence=99)
    cluster.end_move(slot, source, target)
    assert np.array_equal(np.unique(replay.sample(500, seed=0).identities), before)
    assert replay.insert(make_samples(8), producer="a", sequence=99).inserted == 8
    assert replay.info().size == 64
    assert cluster.clients[target].exists(Keys(run).meta)
    cluster.move(slot, target, source)
    assert replay.info().size == 64


def test_a_student_is_published_where_its_slot_went(
    cluster: Cluster, make: Callable[..., Replay], run: str
) -> None:
    replay = make()
    replay.publish_student(b"old", version=Version(1, 1))
    slot, source = cluster.slot_of(Keys(run).meta), cluster.holder_of(Keys(run).meta)
    target = (source + 1) % OWNERS
    cluster.move(slot, source, target)
    replay.publish_student(b"new", version=Version(1, 2))
    assert replay.fetch_student(newer_than=Version(1, 1)) == (Version(1, 2), b"new")
    assert make().fetch_student(newer_than=NEVER) == (Version(1, 2), b"new")
    cluster.move(slot, target, source)


def test_a_node_that_goes_away_takes_its_shards_only(
    cluster: Cluster,
    make: Callable[..., Replay],
    make_samples: Samples,
    run: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(members, "FIRST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(members, "LONGEST_PAUSE_SECONDS", 0.2)
    replay = make(shards=4)
    fill(replay, make_samples)
    holders = [cluster.holder_of(Keys(run, shard).meta) for shard in range(4)]
    lost = holders[0]
    cluster.nodes[lost].stop()
    assert set(replay.sample(200).identities["shard"].tolist()) == {
        shard for shard in range(4) if holders[shard] != lost
    }
    assert replay.info().shards_left_out == holders.count(lost)
    other = make((lost + 1) % OWNERS, shards=4)
    assert other.info().shards_left_out == holders.count(lost)
    cluster.nodes[lost].start()
    cluster.wait()
    until(lambda: replay.info().shards_left_out == 0)
    until(lambda: other.info().shards_left_out == 0)
    fill(replay, make_samples)
    assert other.info().size == 64


def test_every_primary_must_keep_what_it_has(cluster: Cluster) -> None:
    for client in cluster.clients[:OWNERS]:
        client.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(ConfigError, match=r"maxmemory-policy \(allkeys-lru\)"):
            Connection(cluster.url)
        client.config_set("maxmemory-policy", "noeviction")
    Connection(cluster.url).close()


def test_a_database_of_a_cluster_is_refused(cluster: Cluster) -> None:
    with pytest.raises(ProtocolMismatch, match="cannot do what we ask"):
        Connection(f"{cluster.url}/1")


def test_a_cluster_without_all_its_slots_is_unavailable(tmp_path: Path) -> None:
    server = TcpServer(tmp_path, "--cluster-enabled", "yes")
    server_client = redis.Redis.from_url(server.url)
    try:
        server_client.execute_command("CLUSTER ADDSLOTS", 1)
        with pytest.raises(BufferUnavailable, match="All slots are not covered"):
            Connection(server.url)
    finally:
        server_client.close()
        server.stop()
