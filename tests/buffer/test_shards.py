"""Several servers as one buffer, whose shards go away and come back."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from buffer import members
from buffer.config import BufferTable
from buffer.connect import connect
from buffer.errors import BufferUnavailable, RateLimited, SchemaError
from buffer.interface import InsertResult, Replay
from buffer.params import SamplingParams
from buffer.payloads import Payloads
from buffer.progress import StudentProgress
from buffer.sample import Sample
from buffer.server import RedisServer
from buffer.shards import ShardedReplayBuffer
from buffer.version import NEVER, Version
from tests.buffer.servers import TcpServer

Make = Callable[..., Replay]
Samples = Callable[..., list[Sample]]


def test_inserts_go_to_the_shards_in_turn(make_sharded: Make, make_samples: Samples) -> None:
    replay = make_sharded(shards=4, capacity=16, min_size_to_sample=4)
    for sequence in range(8):
        replay.insert(make_samples(2), producer="a", sequence=sequence)
    shards = Counter(replay.sample(800, seed=0).identities["shard"].tolist())
    assert sorted(shards) == [0, 1, 2, 3]
    assert min(shards.values()) > 120


def test_a_repeated_insert_is_a_duplicate(make_sharded: Make, make_samples: Samples) -> None:
    replay, made = make_sharded(capacity=8, min_size_to_sample=2), make_samples(2)
    assert replay.insert(made, producer="a", sequence=1) == InsertResult(2, False)
    assert replay.insert(made, producer="a", sequence=1) == InsertResult(0, True)
    assert replay.info().size == 2


def test_updates_find_their_shards(make_sharded: Make, make_samples: Samples) -> None:
    replay = make_sharded(capacity=8, probe_capacity=4)
    for sequence in range(2):
        replay.insert(make_samples(4), producer="a", sequence=sequence)
    names = np.unique(replay.sample(200, seed=0).identities)
    assert len(names) == 8
    priorities = np.arange(1.0, 9.0)
    assert replay.update_priorities(names, priorities, version=Version(1, 1)).applied == 8
    foreign = names.copy()
    foreign["shard"] = 7
    assert replay.update_priorities(foreign, priorities, version=Version(1, 2)).stale == 8
    chances = replay.sample(400, seed=1).probabilities
    assert len(np.unique(chances.round(12))) == 8


def test_probes_come_from_all_shards(make_sharded: Make, make_samples: Samples) -> None:
    replay = make_sharded(capacity=8, probe_capacity=8)
    assert len(replay.probe(4).images) == 0
    for sequence in range(2):
        replay.insert(make_samples(4, split="probe"), producer="a", sequence=sequence)
    batch = replay.probe(8)
    assert sorted(Counter(batch.identities["shard"].tolist()).values()) == [4, 4]
    assert batch.probabilities.tolist() == [1.0] * 8
    assert [len(replay.probe(n).images) for n in (1, 3, 7, 9)] == [1, 3, 7, 8]


def test_one_shard_on_two_servers_is_on_the_first(server: RedisServer, run: str) -> None:
    url = f"{server.url},redis://nowhere.invalid:1"
    replay = connect(BufferTable(shards=1), url=url, run=run)
    assert replay.info().size == 0
    replay.close()


def test_shards_of_different_shapes_make_no_batch(
    make_sharded: Make, make_samples: Samples
) -> None:
    replay = make_sharded(capacity=8, probe_capacity=0)
    replay.insert(make_samples(4), producer="a", sequence=0)
    replay.insert(make_samples(4, image=np.zeros((3, 1, 1), np.uint8)), producer="a", sequence=1)
    with pytest.raises(SchemaError, match="image"):
        replay.sample(64, seed=0)


def test_a_permit_is_for_the_shard_that_gave_it(make_sharded: Make, make_samples: Samples) -> None:
    replay = make_sharded(
        capacity=8, min_size_to_sample=2, samples_per_insert=1.0, error_buffer=8.0
    )
    for sequence in range(20):
        permit = replay.request_permit(2, producer="a")
        if not permit.granted:
            replay.sample(2)
            continue
        assert replay.insert(make_samples(2), producer="a", sequence=sequence).inserted == 2
    with pytest.raises(RateLimited):
        [replay.sample(4) for _ in range(100)]
    assert replay.request_permit(2, producer="a").granted
    replay.release_permit(producer="a")


def test_what_services_tell_each_other_is_known_to_all(make_sharded: Make) -> None:
    one, other = make_sharded(capacity=8), make_sharded(capacity=8)
    assert one.begin_attempt("distiller") == 1
    assert other.begin_attempt("distiller") == 2
    assert one.set_params(SamplingParams(version=Version(1, 1), uniform_share=0.5))
    assert other.params().uniform_share == 0.5
    assert not other.set_params(SamplingParams(version=Version(1, 0)))
    assert other.progress() is None
    one.publish_progress(StudentProgress(version=Version(2, 3)))
    assert other.progress() == StudentProgress(version=Version(2, 3))
    assert other.fetch_student(newer_than=NEVER) is None
    one.publish_student(b"weights", version=Version(2, 3))
    assert other.fetch_student(newer_than=NEVER) == (Version(2, 3), b"weights")
    assert other.fetch_student(newer_than=Version(2, 3)) is None


class Servers:
    """Two servers, and the buffer over both."""

    def __init__(self, folder: Path, table: BufferTable, seed: int = 0) -> None:
        self.servers = [TcpServer(folder / "0"), TcpServer(folder / "1")]
        self.url = ",".join(server.url for server in self.servers)
        self.replay = connect(table, url=self.url, run="two", seed=seed)


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Servers]:
    monkeypatch.setattr(members, "FIRST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(members, "LONGEST_PAUSE_SECONDS", 0.2)
    made = Servers(tmp_path, BufferTable(capacity=16, probe_capacity=4, min_size_to_sample=4))
    assert isinstance(made.replay, ShardedReplayBuffer)
    yield made
    made.replay.close()
    for server in made.servers:
        server.stop()


def test_a_shard_that_goes_away_is_left_out_and_said_so(
    two: Servers, make_samples: Samples, caplog: pytest.LogCaptureFixture
) -> None:
    for sequence in range(4):
        two.replay.insert(make_samples(4), producer="a", sequence=sequence)
    two.replay.publish_student(b"weights", version=Version(1, 1))
    two.replay.set_params(SamplingParams(version=Version(1, 1), uniform_share=0.5))
    lost = two.replay.sample(100, seed=0).identities
    assert [server.shard for server in two.replay.servers()] == [0, 1]
    two.servers[1].stop()
    assert [server.shard for server in two.replay.servers()] == [0]
    batch = two.replay.sample(100, seed=1)
    assert set(batch.identities["shard"].tolist()) == {0}
    assert batch.population == 8
    assert np.allclose(batch.probabilities, 1 / 8)
    assert "shard 1 (redis://" in caplog.text
    assert "left out" in caplog.text
    info = two.replay.info()
    assert (info.size, info.shards_left_out) == (8, 1)
    counts = two.replay.update_priorities(lost, np.ones(100), version=Version(1, 2))
    assert counts.stale == int((lost["shard"] == 1).sum()) > 0
    assert two.replay.insert(make_samples(4), producer="a", sequence=5).inserted == 4
    assert two.replay.fetch_student(newer_than=NEVER) == (Version(1, 1), b"weights")


def test_a_thread_outlives_that_another_one_leaves_a_shard_out(
    make_sharded: Make, make_samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    replay = make_sharded(capacity=16, probe_capacity=0, min_size_to_sample=2, cache_mebibytes=0)
    assert isinstance(replay, ShardedReplayBuffer)
    for sequence in range(2):
        replay.insert(make_samples(8), producer="a", sequence=sequence)
    first, second = replay._members.live()
    fetch = Payloads.read

    def interrupted(payloads: Payloads, names: Any) -> Any:
        # Between a draw and its payloads, and between two shards.
        for member in (first, second):
            member.leave_out(BufferUnavailable("gone"))
        return fetch(payloads, names)

    with monkeypatch.context() as patch:
        patch.setattr(Payloads, "read", interrupted)
        with pytest.raises(BufferUnavailable, match="none of the 2 shards"):
            replay.sample(64)
    assert not any(member.connected for member in (first, second))


def test_the_student_can_be_published_whichever_shard_is_away(
    two: Servers, make_samples: Samples
) -> None:
    two.replay.publish_student(b"old", version=Version(1, 1))
    two.servers[0].stop()
    assert two.replay.begin_attempt("distiller") == 1
    two.replay.publish_student(b"new", version=Version(1, 2))
    assert two.replay.fetch_student(newer_than=Version(1, 1)) == (Version(1, 2), b"new")


def test_a_shard_that_comes_back_empty_is_filled_again_and_knows_the_parameters(
    two: Servers, make_samples: Samples, caplog: pytest.LogCaptureFixture
) -> None:
    for sequence in range(4):
        two.replay.insert(make_samples(4), producer="a", sequence=sequence)
    two.servers[1].stop()
    two.replay.sample(10)
    two.replay.set_params(SamplingParams(version=Version(1, 1), uniform_share=0.5))
    two.servers[1].start()
    until_back(two, caplog)
    for sequence in range(4, 8):
        two.replay.insert(make_samples(4), producer="a", sequence=sequence)
    batch = two.replay.sample(200, seed=3)
    assert set(batch.identities["shard"].tolist()) == {0, 1}
    assert batch.population == two.replay.info().size
    assert two.replay.params().uniform_share == 0.5
    two.servers[0].stop()
    assert two.replay.params().uniform_share == 0.5


def test_a_snapshot_goes_onto_the_shards_that_are_there(
    two: Servers, make_samples: Samples, tmp_path: Path
) -> None:
    for sequence in range(4):
        made = make_samples(4) + make_samples(1, split="probe")
        two.replay.insert(made, producer="a", sequence=sequence)
    assert two.replay.snapshot(tmp_path / "buffer.zip") == 20
    two.servers[1].stop()
    assert two.replay.restore(tmp_path / "buffer.zip") == 10
    info = two.replay.info()
    assert (info.size, info.probe_size, info.shards_left_out) == (8, 2, 1)
    assert len(np.unique(two.replay.sample(200, seed=0).identities)) == 8
    assert two.replay.info().redraws == 0
    assert len(two.replay.probe(2).images) == 2


def until_back(two: Servers, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            if two.replay.info().shards_left_out == 0:
                break
            time.sleep(0.02)
    assert two.replay.info().shards_left_out == 0
    assert "shard 1 (redis://" in caplog.text


def test_without_any_shard_it_is_unavailable(two: Servers) -> None:
    for server in two.servers:
        server.stop()
    with pytest.raises(BufferUnavailable, match="none of the 2 shards"):
        two.replay.info()
    with pytest.raises(BufferUnavailable):
        connect(BufferTable(capacity=16), url=two.url, run="two")
