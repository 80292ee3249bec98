"""What Prometheus is told of a buffer, in memory and on Redis."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from prometheus_client import CollectorRegistry

from buffer.config import BufferTable
from buffer.connect import connect
from buffer.errors import BufferUnavailable
from buffer.interface import Replay
from buffer.metrics import ANSWER_SECONDS, BufferCollector, ClientMetrics
from buffer.params import SamplingParams
from buffer.progress import ProbeReport, StudentProgress
from buffer.replay import ReplayBuffer
from buffer.sample import Sample
from buffer.server import RedisServer
from buffer.sources import OPERATIONS
from buffer.version import NEVER, Version
from tests.buffer.servers import TcpServer
from tests.waiting import until

Make = Callable[..., Replay]
Samples = Callable[..., list[Sample]]


def registry_of(replay: Replay) -> Callable[..., float | None]:
    registry = CollectorRegistry()
    registry.register(BufferCollector(replay, minimum=4))

    def value(name: str, /, **labels: str) -> float | None:
        return registry.get_sample_value(f"ssdkd_{name}", labels)

    return value


def test_sizes_counters_and_classes_are_those_of_the_buffer(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = make_replay(capacity=4, probe_capacity=2, min_size_to_sample=1)
    replay.insert(make_samples(3, label=[1, 1, 300]), producer="a", sequence=1)
    replay.insert(make_samples(1, split="probe"), producer="a", sequence=2)
    replay.sample(5)
    value = registry_of(replay)
    assert value("buffer_up") == 1
    assert value("buffer_samples", split="train") == 3
    assert value("buffer_samples", split="probe") == 1
    assert value("buffer_capacity_samples", split="train") == 4
    assert value("buffer_needed_samples") == 4
    assert value("buffer_class_samples", predicted_class="1") == 2
    assert value("buffer_class_samples", predicted_class="300") == 1
    assert value("buffer_inserts_total") == 3
    assert value("buffer_draws_total") == 5
    assert value("buffer_updates_total", result="stale") == 0


def test_priorities_are_a_histogram_of_octaves(make_replay: Make, make_samples: Samples) -> None:
    replay = make_replay(capacity=4)
    replay.insert(make_samples(3, priority=[0.999, 1.0, 4.0]), producer="a", sequence=1)
    value = registry_of(replay)
    # The octave that begins with 1 ends where its last level does: at 2^(3.5/4).
    assert value("buffer_priority_bucket", le="1.834") == 2
    assert value("buffer_priority_bucket", le="3.668") == 2
    assert value("buffer_priority_bucket", le="7.336") == 3
    assert value("buffer_priority_bucket", le="+Inf") == 3
    assert value("buffer_priority_gsum") == pytest.approx(6.0)


def test_a_parameter_that_is_off_has_no_series(make_replay: Make) -> None:
    params = SamplingParams(uniform_share=0.25, samples_per_insert=None)
    value = registry_of(make_replay(params, capacity=4))
    assert value("buffer_parameter", name="uniform_share") == 0.25
    assert value("buffer_parameter", name="samples_per_insert") is None


def test_the_student_is_there_once_it_has_been_published(make_replay: Make) -> None:
    replay = make_replay(capacity=4)
    value = registry_of(replay)
    assert value("student_step") is None
    probe = ProbeReport(
        params_version=NEVER,
        members=8,
        before_kl=2.0,
        after_kl=1.5,
        before_agreement=0.5,
        after_agreement=0.75,
        seconds=3.0,
    )
    progress = StudentProgress(version=Version(2, 7), phase="distilling", probe=probe)
    replay.publish_progress(progress)
    assert value("student_step") == 7
    assert value("student_attempt") == 2
    assert value("student_phase", phase="distilling") == 1
    assert value("student_phase", phase="filling") == 0
    assert value("student_probe_kl_nats") == 1.5
    assert value("student_probe_agreement_ratio") == 0.75


def test_a_buffer_that_is_away_is_reported_as_such(run: str) -> None:
    with RedisServer.start() as server:
        replay: Any = ReplayBuffer(BufferTable(capacity=4), url=server.url, run=run)
        value = registry_of(replay)
        assert value("buffer_up") == 1
    assert value("buffer_up") == 0
    assert value("buffer_inserts_total") is None
    replay.close()


def test_the_memory_of_each_shards_server_is_read_and_its_last_fork() -> None:
    with RedisServer.start() as server, redis.Redis.from_url(server.url) as client:
        replay = connect(BufferTable(capacity=4, shards=2), url=server.url, run="two")
        value = registry_of(replay)
        used = value("redis_memory_used_bytes", shard="0")
        assert used == pytest.approx(client.info("memory")["used_memory"], rel=0.2)
        assert value("redis_memory_limit_bytes", shard="1") == 0
        assert value("redis_last_fork_seconds", shard="1") == 0
        client.config_set("maxmemory", 50_000_000)
        client.bgsave()
        assert value("redis_memory_limit_bytes", shard="1") == 50_000_000
        forked = value("redis_last_fork_seconds", shard="1")
        assert forked is not None
        assert 0 < forked < 1
        replay.close()


def test_a_buffer_in_memory_has_no_server(make_memory: Make) -> None:
    replay = make_memory(capacity=4)
    assert replay.servers() == []
    assert registry_of(replay)("redis_memory_used_bytes", shard="0") is None


@pytest.fixture
def observed() -> tuple[ClientMetrics, Callable[..., float | None]]:
    """The metrics of a client, and a way to read them."""
    registry = CollectorRegistry()

    def value(name: str, /, **labels: str) -> float | None:
        return registry.get_sample_value(f"ssdkd_buffer_{name}", labels)

    return ClientMetrics(registry), value


Observed = tuple[ClientMetrics, Callable[..., float | None]]


def test_calls_are_timed_by_operation_and_payloads_counted_each_way(
    server: RedisServer,
    client: redis.Redis,
    keys: Callable[[str], str],
    run: str,
    observed: Observed,
    make_samples: Samples,
    tmp_path: Path,
) -> None:
    metrics, value = observed
    replay = connect(BufferTable(capacity=4), url=server.url, run=run, observer=metrics)
    replay.insert(make_samples(3), producer="a", sequence=1)
    stored = sum(client.strlen(keys(f"x:{slot}")) for slot in range(3))
    assert stored > 0
    assert value("payload_bytes_total", direction="in") == stored
    assert value("payload_bytes_total", direction="out") == 0
    replay.snapshot(tmp_path / "buffer.zip")
    assert value("payload_bytes_total", direction="out") == stored
    replay.close()
    made = {"init", "begin_epoch", "reserve", "store", "commit", "dump", "fetch"}
    for operation in (*OPERATIONS, "store", "fetch"):
        count = value("call_seconds_count", op=operation)
        assert count == (operation in made), operation
        seconds = value("call_seconds_sum", op=operation)
        assert seconds is not None
        assert (seconds > 0) == (operation in made), operation


def test_all_shards_of_a_client_are_counted_together(
    server: RedisServer, run: str, observed: Observed
) -> None:
    metrics, value = observed
    table = BufferTable(capacity=4, shards=2)
    connect(table, url=server.url, run=run, observer=metrics).close()
    assert value("call_seconds_count", op="init") == 2


def test_the_wait_for_an_answer_that_never_came_is_counted(run: str, observed: Observed) -> None:
    metrics, value = observed
    with RedisServer.start() as server:
        replay = ReplayBuffer(BufferTable(capacity=4), url=server.url, run=run, observer=metrics)
    with pytest.raises(BufferUnavailable):
        replay.info()
    replay.close()
    assert value("call_seconds_count", op="info") == 1
    # Three repetitions, after 0.05 s and more.
    assert value("call_seconds_bucket", op="info", le="0.05") == 0


def test_a_buffer_that_hangs_is_reported_while_a_scrape_waits(tmp_path: Path) -> None:
    server = TcpServer(tmp_path)
    replay = ReplayBuffer(BufferTable(capacity=4), url=server.url, run="run")
    value = registry_of(replay)
    try:
        assert value("buffer_up") == 1
        os.kill(server.pid, signal.SIGSTOP)
        began, threads = time.monotonic(), threading.active_count()
        assert [value("buffer_up") for _ in range(3)] == [0, 0, 0]
        assert time.monotonic() - began < 4 * ANSWER_SECONDS
        assert threading.active_count() == threads + 1, "all scrapes wait for one answer"
        os.kill(server.pid, signal.SIGCONT)
        until(lambda: value("buffer_up") == 1)
        assert value("buffer_capacity_samples", split="train") == 4
    finally:
        replay.close()
        server.stop()
