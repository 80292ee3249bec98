"""What Prometheus is told of a buffer, in memory and on Redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from buffer.config import BufferTable
from buffer.interface import Replay
from buffer.metrics import BufferCollector
from buffer.params import SamplingParams
from buffer.progress import ProbeReport, StudentProgress
from buffer.replay import ReplayBuffer
from buffer.sample import Sample
from buffer.server import RedisServer
from buffer.version import NEVER, Version

Make = Callable[..., Replay]
Samples = Callable[..., list[Sample]]


def registry_of(replay: Replay) -> Callable[..., float | None]:
    registry = CollectorRegistry()
    registry.register(BufferCollector(replay))

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
    progress = StudentProgress(version=Version(1, 7), phase="distilling", probe=probe)
    replay.publish_progress(progress)
    assert value("student_step") == 7
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
