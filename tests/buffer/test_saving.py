"""Snapshots: the same file from every buffer, into every buffer."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from buffer.errors import SchemaError
from buffer.interface import Replay
from buffer.params import SamplingParams
from buffer.payloads import Payloads
from buffer.replay import ReplayBuffer
from buffer.sample import Batch, Sample
from buffer.version import Version
from tests.buffer.test_records import audit

Make = Callable[..., Replay]
Samples = Callable[..., list[Sample]]
KINDS = ["memory", "redis", "sharded"]
TABLE = {"capacity": 16, "probe_capacity": 4, "min_size_to_sample": 4}


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Callable[..., Replay]:
    """Makes a buffer of a kind."""

    def make(kind: str, *args: Any, **table: Any) -> Replay:
        made: Replay = request.getfixturevalue(f"make_{kind}")(*args, **table)
        return made

    return make


def work(replay: Replay, make_samples: Samples) -> None:
    """Turnovers, draws and updates, and something of everything that is counted."""
    generator = np.random.default_rng(3)
    for sequence in range(12):
        labels = generator.integers(0, 3, 4).tolist()
        priorities = generator.lognormal(size=4).tolist()
        made = make_samples(4, label=labels, priority=priorities)
        replay.insert(made, producer="a", sequence=sequence)
        if sequence % 3 == 0:
            replay.insert(make_samples(2, split="probe"), producer="b", sequence=sequence)
        names = replay.sample(8, seed=sequence).identities
        replay.update_priorities(names, generator.lognormal(size=8), version=Version(2, sequence))
    replay.begin_attempt("distiller")


def chances(replay: Replay) -> dict[int, float]:
    """The probability of every sample, by its number."""
    found: dict[int, float] = {}
    for seed in range(20):
        batch = replay.sample(500, seed=seed, counted=False)
        found.update(zip(numbers(batch), batch.probabilities.tolist(), strict=True))
    return found


def numbers(batch: Batch) -> list[int]:
    return [int(serial) for serial in batch.targets["logits"][:, 0]]


@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("target", KINDS)
def test_a_restored_buffer_draws_as_the_saved_one_did(
    make: Make, make_samples: Samples, tmp_path: Path, source: str, target: str
) -> None:
    params = SamplingParams(label_balance=0.5, uniform_share=0.1, version=Version(1, 3))
    saved = make(source, **TABLE, samples_per_insert=4.0, error_buffer=1000.0)
    saved.set_params(params)
    work(saved, make_samples)
    path = tmp_path / "buffer.zip"
    assert saved.snapshot(path) == 20
    before, draws = saved.info(), chances(saved)
    probes = sorted(numbers(saved.probe(4)))
    names = saved.sample(8, seed=0, counted=False).identities
    restored = make(target, **TABLE)
    assert restored.restore(path) == 20
    info = restored.info()
    assert (info.size, info.probe_size) == (before.size, before.probe_size) == (16, 4)
    assert info.class_counts == before.class_counts
    assert info.level_counts == before.level_counts
    assert restored.params().label_balance == params.label_balance
    assert sorted(numbers(restored.probe(4))) == probes
    if source != "sharded" and target != "sharded":
        assert (info.inserted, info.sampled, info.evicted) == (48, before.sampled, before.evicted)
        assert info.balance == pytest.approx(before.balance)
        assert info.updates == before.updates
    found = chances(restored)
    assert found.keys() == draws.keys()
    assert all(found[number] == pytest.approx(draws[number]) for number in draws)
    assert restored.begin_attempt("distiller") == 2 if source == target == "redis" else True
    # Names of the saved buffer mean nothing in the restored one.
    assert restored.update_priorities(names, np.ones(8), version=Version(9, 9)).stale == 8


def test_a_restored_ring_goes_on_with_the_oldest(
    make_replay: Make, make_samples: Samples, tmp_path: Path
) -> None:
    replay = make_replay(capacity=6, probe_capacity=0, min_size_to_sample=1)
    made = make_samples(9)
    for sequence in range(3):
        replay.insert(made[3 * sequence : 3 * sequence + 3], producer="a", sequence=sequence)
    replay.snapshot(tmp_path / "ring.zip")
    replay.restore(tmp_path / "ring.zip")
    later = make_samples(2)
    replay.insert(later, producer="b", sequence=0)
    expected = {sample.member for sample in [*made[5:], *later]}
    assert set(numbers(replay.sample(300, seed=0))) == expected


def test_into_a_smaller_buffer_only_the_newest_go(
    make: Make, make_samples: Samples, tmp_path: Path
) -> None:
    large, made = make("memory", capacity=16, probe_capacity=2), make_samples(16)
    for sequence in range(8):
        pair = made[2 * sequence : 2 * sequence + 2]
        large.insert(pair, producer="a", sequence=sequence)
    large.snapshot(tmp_path / "large.zip")
    small = make("redis", capacity=4, probe_capacity=0)
    assert small.restore(tmp_path / "large.zip") == 4
    assert set(numbers(small.sample(200, seed=0))) == {sample.member for sample in made[12:]}


@pytest.mark.parametrize("kind", ["redis", "scripted"])
def test_into_a_larger_buffer_samples_take_their_ages_along(
    make: Make, make_samples: Samples, tmp_path: Path, kind: str
) -> None:
    small = make("memory", SamplingParams(age_discount=0.3), capacity=16, probe_capacity=0)
    for sequence in range(4):
        small.insert(make_samples(4), producer="a", sequence=sequence)
    small.snapshot(tmp_path / "small.zip")
    large = make(kind, SamplingParams(age_discount=0.3), capacity=160, probe_capacity=0)
    large.restore(tmp_path / "small.zip")
    assert chances(large) == pytest.approx(chances(small))
    # Their cohorts' numbers come round before the ring comes to them.
    for sequence in range(10, 17):
        large.insert(make_samples(20), producer="b", sequence=sequence)
    old = sorted(chances(large).values())[:16]
    assert max(old) == pytest.approx(min(chances(large).values()) * 0.7 ** -(14 - 7), rel=1e-6)


@pytest.mark.parametrize(("kind", "anew"), [("memory", {}), ("redis", {"fresh": True})])
def test_nobody_waits_longer_than_the_new_error_buffer_says(
    make: Make, make_samples: Samples, tmp_path: Path, kind: str, anew: dict[str, bool]
) -> None:
    saved = make(kind, **TABLE, samples_per_insert=1.0, error_buffer=1000.0)
    for sequence in range(4):
        saved.insert(make_samples(4), producer="a", sequence=sequence)
    saved.sample(400)
    assert saved.info().balance < -300
    saved.snapshot(tmp_path / "far-behind.zip")
    restored = make(kind, **anew, **TABLE, samples_per_insert=1.0, error_buffer=30.0)
    restored.restore(tmp_path / "far-behind.zip")
    assert restored.info().balance == -30


@pytest.mark.parametrize("eviction", ["lowest_priority", "label_quota"])
def test_other_evictions_go_on_after_a_restore(
    make: Make,
    make_samples: Samples,
    tmp_path: Path,
    client: redis.Redis,
    keys: Callable,
    eviction: str,
) -> None:
    replay = make("redis", capacity=8, probe_capacity=0, min_size_to_sample=1, eviction=eviction)
    replay.insert(make_samples(5), producer="a", sequence=1)
    replay.snapshot(tmp_path / "five.zip")
    assert replay.restore(tmp_path / "five.zip") == 5
    for sequence in range(6):
        replay.insert(make_samples(2, label=1), producer="b", sequence=sequence)
        assert len(audit(client, keys, 8)) == replay.info().size
    assert replay.info().size == 8


def test_what_was_evicted_or_damaged_meanwhile_is_left_out(
    make_redis: Callable[..., ReplayBuffer],
    make_samples: Samples,
    tmp_path: Path,
    client: redis.Redis,
    keys: Callable,
) -> None:
    replay = make_redis(capacity=8, probe_capacity=0)
    replay.insert(make_samples(8), producer="a", sequence=1)
    client.set(keys("x:3"), b"garbage")
    assert replay.snapshot(tmp_path / "seven.zip") == 7
    assert replay.restore(tmp_path / "seven.zip") == 7


def test_whoever_inserts_during_a_restore_shares_no_name_and_is_counted(
    make_redis: Callable[..., ReplayBuffer],
    make_samples: Samples,
    tmp_path: Path,
    client: redis.Redis,
    keys: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replay = make_redis(capacity=8, probe_capacity=0, min_size_to_sample=1)
    replay.insert(make_samples(8), producer="a", sequence=1)
    replay.snapshot(tmp_path / "buffer.zip")
    other = make_redis(capacity=8, probe_capacity=0, min_size_to_sample=1)
    seen: dict[tuple[int, ...], int] = {}
    deliver = Payloads.keep

    def insert_before(payloads: Payloads, names: Any, packed: Any) -> dict[str, str]:
        other.insert(make_samples(3), producer="b", sequence=1)
        batch = other.sample(100)
        seen.update(zip(batch.identities.tolist(), numbers(batch), strict=True))
        return deliver(payloads, names, packed)

    monkeypatch.setattr(Payloads, "keep", insert_before)
    assert replay.restore(tmp_path / "buffer.zip") == 5
    assert len(audit(client, keys, 8)) == replay.info().size == 8
    # Payloads of the restore that came late have damaged those of the other: gone, not mistaken.
    found = replay.sample(500)
    for name, number in zip(found.identities.tolist(), numbers(found), strict=True):
        assert seen.get(name, number) == number
    assert len(seen) == 3
    assert len(audit(client, keys, 8)) == replay.info().size == 5


def test_an_interrupted_snapshot_leaves_the_older_one(
    make: Make, make_samples: Samples, tmp_path: Path
) -> None:
    replay = make("memory", capacity=4)
    path = tmp_path / "buffer.zip"
    replay.snapshot(path)
    before = path.read_bytes()
    (tmp_path / "buffer.zip.partial").write_bytes(b"half of one")
    assert path.read_bytes() == before
    assert replay.restore(path) == 0


def rewritten(path: Path, **members: bytes) -> None:
    """Replaces members of an archive."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    content |= {name.replace("_", "."): data for name, data in members.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (None, "cannot be read"),
        ({"meta_json": b"[]"}, "is not one of ours"),
        ({"meta_json": json.dumps({"format": 9}).encode()}, "format 9 is not 1"),
        ({"items_npy": b"garbage"}, "is not one of ours"),
        ({"payloads/0": b"short"}, "payloads are cut off"),
    ],
)
def test_what_is_no_snapshot_is_refused(
    make: Make,
    make_samples: Samples,
    tmp_path: Path,
    members: dict[str, bytes] | None,
    message: str,
) -> None:
    replay, path = make("redis", capacity=4, probe_capacity=0), tmp_path / "buffer.zip"
    replay.insert(make_samples(4), producer="a", sequence=1)
    replay.snapshot(path)
    if members is None:
        path.write_bytes(b"garbage")
    else:
        rewritten(path, **members)
    with pytest.raises(SchemaError, match=message):
        replay.restore(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_buffer_has_the_parameters_of_the_snapshot_whatever_it_would_start_with(
    make: Callable[..., Replay], kind: str, make_samples: Samples, tmp_path: Path
) -> None:
    saved = make("memory", SamplingParams(priority_exponent=0.9), **TABLE)
    saved.insert(make_samples(8), producer="a", sequence=1)
    saved.snapshot(tmp_path / "snapshot")
    restored = make(kind, SamplingParams(priority_exponent=0.1), **TABLE)
    restored.restore(tmp_path / "snapshot")
    assert restored.params() == saved.params()


def test_draws_over_shards_are_mixed(make: Callable[..., Replay], make_samples: Samples) -> None:
    replay = make("sharded", capacity=64, probe_capacity=0)
    for sequence in range(4):
        replay.insert(make_samples(16), producer="a", sequence=sequence)
    shards = replay.sample(256, seed=0).identities["shard"].tolist()
    changes = sum(one != other for one, other in pairwise(shards))
    assert changes > 64  # 1 if they came shard by shard, 128 expected
