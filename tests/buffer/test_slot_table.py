"""A client that draws for itself draws what the server would have drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from buffer.answers import Slots
from buffer.config import BufferTable
from buffer.errors import RateLimited
from buffer.params import SamplingParams
from buffer.replay import ReplayBuffer
from buffer.sample import Sample
from buffer.slot_table import pays
from buffer.version import Version

Make = Callable[..., ReplayBuffer]
Samples = Callable[..., list[Sample]]

SETTINGS: list[dict[str, float]] = [
    {"priority_exponent": 0.0, "importance_exponent": 0.0},
    {"priority_exponent": 0.6, "importance_exponent": 0.4},
    {"uniform_share": 0.3, "label_balance": 1.0, "age_discount": 0.5},
    {"uniform_share": 1.0},
]


@pytest.fixture
def pair(make_redis: Make, make_samples: Samples) -> Callable[..., tuple[ReplayBuffer, ...]]:
    """Makes a client that draws for itself and one that does not, of one filled buffer."""

    def make(**table: Any) -> tuple[ReplayBuffer, ...]:
        own = make_redis(capacity=48, **table)
        served = make_redis(capacity=48, cache_mebibytes=0, **table)
        priorities = np.random.default_rng(0).lognormal(size=60).tolist()
        for start in range(0, 60, 12):
            part = slice(start, start + 12)
            labels = [i % 3 for i in range(12)]
            samples = make_samples(12, label=labels, priority=priorities[part])
            own.insert(samples, producer="a", sequence=start)
        return own, served

    return make


def chances(replay: ReplayBuffer) -> dict[tuple[int, ...], float]:
    """The probability of every sample."""
    found: dict[tuple[int, ...], float] = {}
    size = replay.info().size
    while len(found) < size:
        batch = replay.sample(4096, counted=False)
        found |= zip(batch.identities.tolist(), batch.probabilities.tolist(), strict=True)
    return found


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("table", [{}, {"selector": "uniform"}, {"eviction": "label_quota"}])
def test_both_draw_with_the_same_probabilities_and_weights(
    pair: Callable[..., tuple[ReplayBuffer, ...]], setting: dict[str, float], table: dict[str, str]
) -> None:
    own, served = pair(**table)
    own.set_params(SamplingParams(version=Version(1, 1), **setting))
    assert chances(own) == pytest.approx(chances(served), rel=1e-9)
    assert sum(chances(own).values()) == pytest.approx(1.0)
    mine, theirs = own.sample(64), served.sample(64)
    assert mine.weight_mean == pytest.approx(theirs.weight_mean, rel=1e-9)
    assert mine.population == theirs.population == 48
    assert mine.params_version == theirs.params_version == (1, 1)


def test_what_others_change_is_in_the_next_draw(
    pair: Callable[..., tuple[ReplayBuffer, ...]], make_samples: Samples
) -> None:
    own, other = pair()
    before = chances(own)
    names = own.sample(64).identities[:20]
    other.update_priorities(names, np.full(20, 50.0), version=Version(1, 1))
    updated = chances(own)
    assert updated == pytest.approx(chances(other), rel=1e-9)
    assert updated != pytest.approx(before, rel=0.01)
    other.insert(make_samples(7), producer="b", sequence=1)
    assert chances(own) == pytest.approx(chances(other), rel=1e-9)
    assert chances(own).keys() != before.keys()
    other.reset()
    with pytest.raises(RateLimited):
        own.sample(8)


def test_records_are_sent_only_if_they_have_changed(
    pair: Callable[..., tuple[ReplayBuffer, ...]],
) -> None:
    own, _ = pair()
    scripts = own._scripts

    def read(known: tuple[int, int]) -> Slots:
        answer = scripts.slots(1, "look", known)
        assert isinstance(answer, Slots)
        return answer

    first = read((-1, -1))
    known = first.incarnation, first.changes
    assert first.records is not None
    assert read(known).records is None
    names = own.sample(64).identities[:5]
    own.update_priorities(names, np.full(5, 9.0), version=Version(1, 1))
    assert read(known).records is not None


def test_the_limiter_counts_both_alike(pair: Callable[..., tuple[ReplayBuffer, ...]]) -> None:
    own, served = pair(samples_per_insert=2.0, error_buffer=64.0)
    before = own.info()
    own.sample(10)
    served.sample(10)
    own.sample(10, counted=False)
    after = own.info()
    assert after.sampled - before.sampled == 20
    assert after.balance - before.balance == -20
    served.sample(int(after.balance) + 64)
    with pytest.raises(RateLimited):
        own.sample(10)


def test_a_draw_of_few_from_many_is_left_to_the_server() -> None:
    assert [pays(BufferTable(capacity=1000), draws) for draws in (31, 32)] == [False, True]
    assert not pays(BufferTable(capacity=1000, cache_mebibytes=0), 1000)
