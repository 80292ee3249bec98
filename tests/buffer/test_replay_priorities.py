"""Priority updates and probe samples; each test runs in memory and on Redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from buffer.interface import Replay, UpdateCounts
from buffer.sample import IDENTITY_DTYPE, Batch, Sample
from buffer.version import Version

Make = Callable[..., Replay]
Samples = Callable[..., list[Sample]]


def members(batch: Batch) -> set[int]:
    """The numbers of the samples in a batch, from its targets."""
    return {int(serial) for serial in batch.targets["logits"][:, 0]}


def filled(make: Make, samples: list[Sample], **table: Any) -> Replay:
    replay = make(capacity=len(samples), **table)
    replay.insert(samples, producer="a", sequence=1)
    return replay


def test_updates_change_the_next_draw(make_replay: Make, make_samples: Samples) -> None:
    replay = filled(make_replay, make_samples(4), priority_exponent=1.0, importance_exponent=0.5)
    batch = replay.sample(64, seed=0)
    names = np.unique(batch.identities)
    assert len(names) == 4
    counts = replay.update_priorities(names, [8.0, 1.0, 1.0, 1.0], version=Version(1, 1))
    assert counts == UpdateCounts(4, 0, 0)
    after = replay.sample(256, seed=0)
    hot = after.identities == names[0]
    assert np.allclose(after.probabilities[hot], 8 / 11, rtol=1e-9)
    assert np.allclose(after.probabilities[~hot], 1 / 11, rtol=1e-9)
    assert replay.info().level_counts == {128: 3, 140: 1}


def test_older_updates_lose_and_equal_versions_overwrite(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = make_replay(capacity=2, min_size_to_sample=1)
    replay.insert(make_samples(1), producer="a", sequence=1)
    name = replay.sample(1).identities
    outcomes = [
        replay.update_priorities(name, [priority], version=version)
        for priority, version in (
            (2.0, Version(1, 5)),
            (4.0, Version(1, 4)),
            (8.0, Version(1, 5)),
            (16.0, Version(2, 0)),
            (32.0, Version(1, 900)),
        )
    ]
    assert [outcome.applied for outcome in outcomes] == [1, 0, 1, 1, 0]
    assert [outcome.older for outcome in outcomes] == [0, 1, 0, 0, 1]
    assert replay.info().level_counts == {144: 1}
    assert replay.info().updates == UpdateCounts(3, 0, 2)


def test_updates_of_evicted_samples_are_stale_and_resurrect_nothing(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = filled(make_replay, make_samples(4))
    names = np.unique(replay.sample(64, seed=0).identities)
    replay.insert(make_samples(3), producer="a", sequence=2)
    counts = replay.update_priorities(names, np.full(4, 64.0), version=Version(1, 1))
    assert counts == UpdateCounts(1, 3, 0)
    assert replay.info().level_counts == {128: 3, 152: 1}


def test_an_update_may_name_a_sample_twice_and_the_last_value_stays(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = make_replay(capacity=2, min_size_to_sample=1)
    replay.insert(make_samples(1), producer="a", sequence=1)
    names = np.repeat(replay.sample(1).identities, 2)
    assert replay.update_priorities(names, [4.0, 2.0], version=Version(1, 1)).applied == 2
    assert replay.info().level_counts == {132: 1}


def test_foreign_identities_are_stale(make_replay: Make, make_samples: Samples) -> None:
    replay = filled(make_replay, make_samples(2))
    name = replay.sample(1).identities
    foreign = np.repeat(name, 4)
    foreign["shard"][0] += 1
    foreign["incarnation"][1] ^= 1
    foreign["slot"][2] = 2**31
    foreign["generation"][3] += 1
    counts = replay.update_priorities(foreign, np.ones(4), version=Version(1, 1))
    assert counts == UpdateCounts(0, 4, 0)


@pytest.mark.parametrize(
    ("priorities", "message"),
    [
        ([1.0, 2.0], r"priorities \(shape \[2\]\) does not fit 1 identities"),
        ([-1.0], r"priorities \(-1\) is not a finite number >= 0"),
        ([float("nan")], r"priorities \(nan\) is not a finite number >= 0"),
    ],
)
def test_impossible_priorities_are_refused(
    make_replay: Make, make_samples: Samples, priorities: list[float], message: str
) -> None:
    replay = filled(make_replay, make_samples(2))
    with pytest.raises(ValueError, match=message):
        replay.update_priorities(replay.sample(1).identities, priorities, version=Version(1, 1))


def test_many_updates_are_counted_once_each(make_replay: Make, make_samples: Samples) -> None:
    replay = filled(make_replay, make_samples(20))
    names = replay.sample(3000, seed=0).identities
    counts = replay.update_priorities(names, np.ones(3000), version=Version(1, 1))
    assert counts == UpdateCounts(3000, 0, 0)


def test_no_updates_are_fine(make_replay: Make) -> None:
    none = np.empty(0, dtype=IDENTITY_DTYPE)
    counts = make_replay(capacity=2).update_priorities(none, [], version=Version(1, 1))
    assert counts == UpdateCounts(0, 0, 0)


def test_probe_samples_are_never_drawn(make_replay: Make, make_samples: Samples) -> None:
    replay = make_replay(capacity=4, probe_capacity=4)
    train, probes = make_samples(4), make_samples(4, split="probe", priority=1000.0)
    replay.insert(probes + train, producer="a", sequence=1)
    assert members(replay.sample(500, seed=0)) == {sample.member for sample in train}


def test_the_probe_gives_the_newest_members_for_certain(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = make_replay(capacity=4, probe_capacity=5)
    made = [make_samples(2, split="probe") for _ in range(4)]
    for sequence, samples in enumerate(made):
        replay.insert(samples, producer="a", sequence=sequence)
    batch = replay.probe(3)
    newest = [made[3][1].member, made[3][0].member, made[2][1].member]
    assert batch.targets["logits"][:, 0].tolist() == newest
    assert np.array_equal(batch.probabilities, np.ones(3))
    assert np.array_equal(batch.weights, np.ones(3))
    assert batch.weight_mean == 1.0
    assert len(replay.probe(100).images) == 5
    assert replay.info().probe_size == 5


@pytest.mark.parametrize("probe_capacity", [0, 4])
def test_an_empty_probe_set_is_an_empty_batch(make_replay: Make, probe_capacity: int) -> None:
    batch = make_replay(capacity=2, probe_capacity=probe_capacity).probe(3)
    assert batch.images.shape == (0, 0, 0, 0)
    assert len(batch.identities) == 0
    assert batch.targets == {}


def test_updates_of_probe_samples_are_stale(make_replay: Make, make_samples: Samples) -> None:
    replay = make_replay(capacity=4, probe_capacity=4)
    replay.insert(make_samples(2, split="probe"), producer="a", sequence=1)
    names = replay.probe(2).identities
    assert replay.update_priorities(names, [1.0, 1.0], version=Version(1, 1)).stale == 2
