"""Fetched once: what a reader has seen comes from its own memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import redis

from buffer.interface import Replay
from buffer.replay import ReplayBuffer
from buffer.sample import Batch, Sample
from buffer.scripts import Scripts

Make = Callable[..., ReplayBuffer]
Samples = Callable[..., list[Sample]]


def numbers(batch: Batch) -> list[int]:
    """The number each image shows."""
    return [int.from_bytes(image.tobytes(), "little") for image in batch.images]


def agrees(batch: Batch) -> bool:
    """Whether images and logits are of the same samples."""
    return numbers(batch) == batch.targets["logits"][:, 0].astype(int).tolist()


def test_a_sample_that_was_fetched_is_not_fetched_again(
    make_redis: Make, make_samples: Samples, client: redis.Redis, keys: Callable[[str], str]
) -> None:
    replay = make_redis(capacity=8)
    replay.insert(make_samples(8), producer="a", sequence=1)
    first = replay.sample(100, seed=0)
    assert (replay.cache.hits, replay.cache.misses) == (0, 100)
    client.delete(*[keys(f"x:{slot}") for slot in range(8)])  # nobody could fetch them now
    again = replay.sample(100, seed=0)
    assert (replay.cache.hits, replay.cache.misses) == (100, 100)
    assert numbers(again) == numbers(first)
    assert agrees(again)
    assert np.array_equal(again.predicted_classes, first.predicted_classes)
    assert replay.info().redraws == 0


def test_a_slot_that_was_used_again_is_another_sample(
    make_redis: Make, make_samples: Samples
) -> None:
    replay = make_redis(capacity=4)
    replay.insert(make_samples(4), producer="a", sequence=1)
    replay.sample(50, seed=0)
    later = make_samples(3)
    replay.insert(later, producer="a", sequence=2)
    batch = replay.sample(200, seed=1)
    new = [number for number in numbers(batch) if number in {sample.member for sample in later}]
    assert len(set(new)) == 3
    assert agrees(batch)
    assert replay.cache.misses == 50 + len(new)


def test_an_emptied_buffer_shares_nothing_with_the_one_before(
    make_redis: Make, make_samples: Samples
) -> None:
    replay = make_redis(capacity=4)
    replay.insert(make_samples(4), producer="a", sequence=1)
    replay.sample(50, seed=0)
    replay.reset()
    later = make_samples(4)
    replay.insert(later, producer="a", sequence=2)
    assert set(numbers(replay.sample(50, seed=0))) == {sample.member for sample in later}


def test_after_a_reset_other_shapes_are_remembered_too(
    make_redis: Make, make_samples: Samples
) -> None:
    replay = make_redis(capacity=4)
    for side in (2, 4):
        replay.reset()
        image = np.zeros((3, side, side), np.uint8)
        replay.insert(make_samples(4, image=image), producer="a", sequence=side)
        replay.sample(50, seed=0)
        before = replay.cache.hits
        assert replay.sample(50, seed=0).images.shape == (50, 3, side, side)
        assert replay.cache.hits == before + 50


def test_a_reset_in_the_middle_of_a_draw_lets_it_begin_again(
    make_redis: Make,
    make_samples: Samples,
    client: redis.Redis,
    keys: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replay, other = make_redis(capacity=4), make_redis(capacity=4)
    replay.insert(make_samples(4), producer="a", sequence=1)
    client.delete(keys("x:0"))
    later = make_samples(4, image=np.zeros((3, 4, 4), np.uint8))

    def discard(*_: object) -> int:
        monkeypatch.undo()
        other.reset()
        other.insert(later, producer="b", sequence=1)
        return 0

    monkeypatch.setattr(Scripts, "discard", discard)
    batch = replay.sample(50, seed=0)
    assert batch.images.shape == (50, 3, 4, 4)
    assert len(np.unique(batch.identities["incarnation"])) == 1


def test_a_cache_smaller_than_the_buffer_is_right_too(
    make_redis: Make, make_samples: Samples
) -> None:
    """3,072 bytes an image and 1 MiB: a third of the slots have a row of their own."""
    replay = make_redis(capacity=1000, cache_mebibytes=1)
    image = np.zeros((3, 32, 32), np.uint8)
    made = []
    for one in make_samples(1000):
        shown = image.copy()
        shown.reshape(-1)[:12] = one.image.reshape(-1)
        made.append(Sample(**{**vars(one), "image": shown}))
    replay.insert(made, producer="a", sequence=1)
    for seed in range(5):
        batch = replay.sample(1000, seed=seed)
        shown = [int.from_bytes(i.reshape(-1)[:12].tobytes(), "little") for i in batch.images]
        assert shown == batch.targets["logits"][:, 0].astype(int).tolist()
    assert replay.cache.hits > 0
    assert replay.cache.misses > 1000


def test_what_is_in_a_batch_may_be_changed(make_redis: Make, make_samples: Samples) -> None:
    replay: Replay = make_redis(capacity=4)
    replay.insert(make_samples(4), producer="a", sequence=1)
    for _ in range(2):
        batch = replay.sample(20, seed=0)
        assert agrees(batch)
        batch.images[:] = 0
        batch.targets["logits"][:] = -1
