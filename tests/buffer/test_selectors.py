"""Draws in order, and draws that are only looks: the same in memory and in Redis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import redis

from buffer.errors import RateLimited
from buffer.interface import Replay
from buffer.memory import InMemoryReplayBuffer
from buffer.params import SamplingParams
from buffer.replay import ReplayBuffer
from buffer.sample import Batch, Sample
from buffer.version import Version

Make = Callable[..., Replay]
Samples = Callable[..., list[Sample]]


def members(batch: Batch) -> list[int]:
    """The number each image shows."""
    return [int.from_bytes(image.tobytes(), "little") for image in batch.images]


def test_a_queue_gives_each_sample_as_often_as_it_may_and_then_lets_go_of_it(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = make_replay(
        capacity=6, probe_capacity=0, min_size_to_sample=1, selector="fifo", max_times_sampled=2
    )
    made = make_samples(5)
    replay.insert(made, producer="a", sequence=1)
    batch = replay.sample(3)
    assert members(batch) == [made[0].member, made[0].member, made[1].member]
    assert batch.probabilities.tolist() == batch.weights.tolist() == [1, 1, 1]
    assert (replay.info().size, replay.info().evicted) == (4, 1)
    assert members(replay.sample(4)) == [made[i].member for i in (1, 2, 2, 3)]
    with pytest.raises(RateLimited, match="too few samples"):
        replay.sample(4)
    assert replay.info().size == 2
    assert members(replay.sample(3)) == [made[i].member for i in (3, 4, 4)]
    info = replay.info()
    assert (info.size, info.evicted, info.sampled, info.sample_waits) == (0, 5, 10, 1)
    with pytest.raises(RateLimited):
        replay.sample(1)
    later = make_samples(2)
    replay.insert(later, producer="a", sequence=2)
    assert members(replay.sample(1)) == [later[0].member]


def test_a_queue_skips_what_was_evicted(make_replay: Make, make_samples: Samples) -> None:
    replay = make_replay(
        capacity=4, probe_capacity=0, min_size_to_sample=1, selector="fifo", max_times_sampled=3
    )
    made = make_samples(6)
    replay.insert(made[:4], producer="a", sequence=1)
    assert members(replay.sample(1)) == [made[0].member]
    replay.insert(made[4:], producer="a", sequence=2)
    assert members(replay.sample(4)) == [made[i].member for i in (2, 2, 2, 3)]


@pytest.mark.parametrize("eviction", ["oldest", "label_quota"])
def test_a_queue_that_nobody_takes_from_does_not_grow_for_ever(
    make_redis: Callable[..., ReplayBuffer],
    make_memory: Callable[..., InMemoryReplayBuffer],
    make_samples: Samples,
    client: redis.Redis,
    keys: Callable[[str], str],
    eviction: str,
) -> None:
    table = {"capacity": 4, "probe_capacity": 0, "selector": "fifo", "eviction": eviction}
    served, own = make_redis(**table), make_memory(**table)
    for sequence in range(20):
        samples = make_samples(3)
        served.insert(samples, producer="a", sequence=sequence)
        own.insert(samples, producer="a", sequence=sequence)
    assert client.llen(keys("queue")) <= 8
    assert len(own._state.items.queue) <= 8


def test_a_queue_keeps_to_the_limiter(make_replay: Make, make_samples: Samples) -> None:
    replay = make_replay(
        capacity=8,
        probe_capacity=0,
        min_size_to_sample=1,
        selector="fifo",
        samples_per_insert=1.0,
        error_buffer=4.0,
    )
    replay.insert(make_samples(8), producer="a", sequence=1)
    replay.sample(4)
    with pytest.raises(RateLimited, match="catch up"):
        replay.sample(1)


def test_reading_in_turn_gives_everything_once_round_and_round(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = make_replay(
        capacity=6, probe_capacity=0, selector="sequential", samples_per_insert=1e-3
    )
    with pytest.raises(RateLimited, match="too few samples"):
        replay.sample(1)
    made = make_samples(5)
    replay.insert(made, producer="a", sequence=1)
    numbers = [sample.member for sample in made]
    assert members(replay.sample(3)) + members(replay.sample(2)) == numbers
    batch = replay.sample(7)
    assert members(batch) == [*numbers, *numbers[:2]]
    assert batch.probabilities.tolist() == [1] * 7
    assert replay.info().size == 5


@pytest.mark.parametrize("selector", ["prioritized", "fifo", "sequential"])
def test_a_look_changes_nothing(make_replay: Make, make_samples: Samples, selector: str) -> None:
    replay = make_replay(capacity=6, probe_capacity=0, min_size_to_sample=1, selector=selector)
    made = make_samples(5)
    replay.insert(made, producer="a", sequence=1)
    before = replay.info()
    seen = set(members(replay.sample(200, counted=False, seed=1)))
    assert seen == {sample.member for sample in made}
    after = replay.info()
    assert (after.size, after.sampled) == (before.size, before.sampled)
    if selector != "prioritized":
        assert members(replay.sample(2)) == [sample.member for sample in made[:2]]


def test_a_uniform_selector_stays_uniform_whatever_the_parameters(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = make_replay(capacity=2, probe_capacity=0, selector="uniform")
    replay.insert(make_samples(2, priority=[1.0, 1000.0]), producer="a", sequence=1)
    replay.set_params(SamplingParams(version=Version(1, 1), uniform_share=0.0))
    batch = replay.sample(400, seed=0)
    assert np.allclose(batch.probabilities, 0.5)
    assert min(Counter(members(batch)).values()) > 150
