"""Who makes room, and what priority newcomers get: the same in memory and in Redis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import redis

from buffer.errors import RateLimited
from buffer.interface import Replay
from buffer.limits import Limits
from buffer.params import SamplingParams
from buffer.priorities import level_of
from buffer.replay import ReplayBuffer
from buffer.sample import Sample
from buffer.scripts import Insert, Refused, Reserved, Scripts
from buffer.version import Version
from tests.buffer.test_records import audit

Make = Callable[..., Replay]
Samples = Callable[..., list[Sample]]
Key = Callable[[str], str]


def test_the_lowest_priorities_make_room(make_replay: Make, make_samples: Samples) -> None:
    replay = make_replay(capacity=6, probe_capacity=0, eviction="lowest_priority")
    priorities = [5.0, 0.1, 3.0, 0.2, 4.0, 0.3]
    replay.insert(make_samples(6, priority=priorities), producer="a", sequence=1)
    replay.insert(make_samples(2, priority=[9.0, 0.01]), producer="a", sequence=2)
    levels = [5.0, 3.0, 4.0, 0.3, 9.0, 0.01]
    assert replay.info().level_counts == Counter(level_of(levels).tolist())
    replay.insert(make_samples(1, priority=1.0), producer="a", sequence=3)
    assert replay.info().level_counts == Counter(level_of([5.0, 3.0, 4.0, 0.3, 9.0, 1.0]).tolist())
    assert replay.info().evicted == 3


def test_of_equal_priorities_the_oldest_make_room(make_replay: Make, make_samples: Samples) -> None:
    replay = make_replay(capacity=8, probe_capacity=0, eviction="lowest_priority")
    made = [make_samples(1)[0] for _ in range(12)]
    for sequence, sample in enumerate(made):
        replay.insert([sample], producer="a", sequence=sequence)
    held = {int(n) for n in replay.sample(300, seed=0).targets["logits"][:, 0]}
    assert held == {sample.member for sample in made[4:]}


def test_labels_that_have_most_make_room(make_replay: Make, make_samples: Samples) -> None:
    replay = make_replay(capacity=12, probe_capacity=0, eviction="label_quota")
    replay.insert(make_samples(12, label=[0] * 8 + [1] * 3 + [2]), producer="a", sequence=1)
    replay.insert(make_samples(3, label=2), producer="a", sequence=2)
    assert replay.info().class_counts == {0: 5, 1: 3, 2: 4}
    replay.insert(make_samples(3, label=2), producer="a", sequence=3)
    counts = replay.info().class_counts
    assert counts[2] == 6 or counts[2] == 7
    assert sum(counts.values()) == 12
    assert max(counts[0], counts[1]) - min(counts[0], counts[1]) <= 1


@pytest.mark.parametrize(
    ("policy", "expected"), [("disagreement", 7.0), ("percentile", 4.0), ("highest", 64.0)]
)
def test_newcomers_get_the_priority_that_was_chosen(
    make_replay: Make, make_samples: Samples, policy: str, expected: float
) -> None:
    replay = make_replay(capacity=30, probe_capacity=0, new_priority=policy)
    first = [1.0] * 17 + [4.0] * 2 + [64.0]
    replay.insert(make_samples(20, priority=first), producer="a", sequence=1)
    before = Counter(level_of(first).tolist())
    assert replay.info().level_counts == before  # nothing to go by yet
    replay.insert(make_samples(3, priority=7.0), producer="a", sequence=2)
    assert replay.info().level_counts == before + Counter({int(level_of(expected)): 3})


@pytest.mark.parametrize("eviction", ["lowest_priority", "label_quota"])
def test_random_work_keeps_the_records_and_the_twin_in_step(
    make_redis: Callable[..., ReplayBuffer],
    make_memory: Make,
    make_samples: Samples,
    client: redis.Redis,
    keys: Key,
    eviction: str,
) -> None:
    """Labels, levels and sizes agree after every insert, over many turnovers of the buffer."""
    table = {"capacity": 24, "probe_capacity": 0, "min_size_to_sample": 1, "eviction": eviction}
    real, twin = make_redis(**table), make_memory(**table)
    generator = np.random.default_rng(5)
    for sequence in range(120):
        n = int(generator.integers(1, 9))
        labels = generator.integers(0, 3, n).tolist()
        priorities = (2.0 ** (generator.permutation(40)[:n] / 4)).tolist()
        made = make_samples(n, label=labels, priority=priorities)
        for replay in (real, twin):
            replay.insert(made, producer="a", sequence=sequence)
        found = [replay.info() for replay in (real, twin)]
        # Of the other attribute, those that are equal in what counts may differ.
        if eviction == "lowest_priority":
            assert found[0].level_counts == found[1].level_counts
        else:
            assert found[0].class_counts == found[1].class_counts
        assert (found[0].size, found[0].evicted) == (found[1].size, found[1].evicted)
        assert len(audit(client, keys, 24)) == found[0].size


def test_survivors_of_many_turnovers_count_as_ancient(
    make_replay: Make, make_samples: Samples
) -> None:
    """Two samples that never make room, and 40 turnovers of others: age is not forgotten."""
    replay = make_replay(
        capacity=8,
        probe_capacity=0,
        min_size_to_sample=1,
        eviction="lowest_priority",
        age_discount=0.5,
        priority_exponent=0.0,
        importance_exponent=0.0,
    )
    old = make_samples(2, priority=1e6)
    replay.insert(old, producer="a", sequence=0)
    for sequence in range(1, 320):
        replay.insert(make_samples(1), producer="a", sequence=sequence)
    batch = replay.sample(2000, seed=3)
    masses = np.array([2.0**-14] * 2 + [2.0**-i for i in range(6)])
    expected = sorted(masses / masses.sum())
    found = sorted({float(p) for p in batch.probabilities.round(12)})
    assert np.allclose(found, sorted(set(np.round(expected, 12)))[-len(found) :])
    assert found[-1] == pytest.approx(max(expected))


def test_nobody_counts_as_ancient_before_time(make_replay: Make, make_samples: Samples) -> None:
    replay = make_replay(
        capacity=16, probe_capacity=0, eviction="lowest_priority", priority_exponent=0.0
    )
    for sequence in range(14):
        made = make_samples(2, priority=1e6 if sequence == 0 else 1.0)
        replay.insert(made, producer="a", sequence=sequence)
    replay.set_params(
        SamplingParams(version=Version(1, 1), priority_exponent=0.0, age_discount=0.5)
    )
    draws = [replay.sample(4096, seed=seed).probabilities for seed in range(8)]
    chances = np.concatenate(draws)
    # Thirteen cohorts began after that of the two oldest.
    expected = chances.max() / 2**13
    assert chances.min() == pytest.approx(expected)


def test_slots_of_a_dead_producer_are_used_again_after_its_lease(
    make_scripts: Callable[..., Scripts], client: redis.Redis, keys: Key
) -> None:
    limits = Limits(8, 0, 1, None, 0.3, eviction="lowest_priority")
    scripts = make_scripts(limits)
    dead = scripts.reserve(Insert("dead", 1, 1), 6, 0, {})
    assert isinstance(dead, Reserved)
    assert isinstance(scripts.reserve(Insert("alive", 1, 1), 4, 0, {}), Refused)
    client.hdel(keys("permits"), "dead")  # as when its lease has lapsed
    answer = scripts.reserve(Insert("alive", 1, 1), 4, 0, {})
    assert isinstance(answer, Reserved)
    assert len(set(answer.pairs["slot"].tolist())) == 4
    late = scripts.commit(Insert("dead", 1, 1), dead.incarnation, np.zeros(6, np.int64))
    done = scripts.commit(Insert("alive", 1, 1), answer.incarnation, np.zeros(4, np.int64))
    assert (late, done) == (0, 4)
    assert len(audit(client, keys, 8)) == 4


def test_a_producer_that_gave_up_an_insert_takes_its_slots_along(
    make_scripts: Callable[..., Scripts], client: redis.Redis, keys: Key
) -> None:
    scripts = make_scripts(Limits(8, 0, 1, None, 300.0, eviction="label_quota"))
    for sequence in range(1, 6):
        answer = scripts.reserve(Insert("a", 1, sequence), 6, 0, {})
        assert isinstance(answer, Reserved)
    assert scripts.commit(Insert("a", 1, 5), answer.incarnation, np.zeros(6, np.int64)) == 6
    assert len(audit(client, keys, 8)) == 6


def test_slots_given_back_for_an_insert_that_has_to_wait_are_free_once(
    make_scripts: Callable[..., Scripts], client: redis.Redis, keys: Key
) -> None:
    scripts = make_scripts(Limits(4, 0, 1, None, 300.0, eviction="lowest_priority"))
    for producer in ("dead", "alive"):
        scripts.reserve(Insert(producer, 1, 1), 2, 0, {})
    client.hdel(keys("permits"), "dead")
    for _ in range(2):
        assert isinstance(scripts.reserve(Insert("late", 1, 1), 4, 0, {}), Refused)
    reserved = scripts.reserve(Insert("late", 1, 1), 2, 0, {})
    assert isinstance(reserved, Reserved)
    assert sorted(reserved.pairs["slot"].tolist()) == [0, 1]


def test_damaged_samples_leave_slots_that_are_used_again(
    make_redis: Callable[..., ReplayBuffer],
    make_samples: Samples,
    client: redis.Redis,
    keys: Key,
) -> None:
    replay = make_redis(capacity=6, probe_capacity=0, eviction="lowest_priority", cache_mebibytes=0)
    replay.insert(make_samples(6), producer="a", sequence=1)
    client.delete(keys("x:2"), keys("x:4"))
    replay.sample(200, seed=0)
    assert replay.info().size == 4
    replay.insert(make_samples(2, priority=0.5), producer="a", sequence=2)
    assert (replay.info().size, replay.info().evicted) == (6, 2)
    names = replay.sample(100, seed=0).identities
    updated = replay.update_priorities(names, np.ones(100), version=Version(1, 1))
    assert updated.applied == 100
    assert len(audit(client, keys, 6)) == 6


def test_nobody_is_refused_for_ever_where_all_slots_are_taken(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = make_replay(capacity=4, probe_capacity=0, eviction="label_quota")
    for sequence in range(10):
        try:
            replay.insert(make_samples(4), producer=f"p{sequence}", sequence=1)
        except RateLimited:
            pytest.fail("a full buffer makes room")
    assert replay.info().evicted == 36
