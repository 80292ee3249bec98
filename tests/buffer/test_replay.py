"""What every replay buffer promises; each test runs in memory and on Redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from buffer.errors import RateLimited
from buffer.interface import InsertResult, Replay
from buffer.sample import Batch, Sample
from buffer.version import NEVER, Version

Make = Callable[..., Replay]
Samples = Callable[..., list[Sample]]


def members(batch: Batch) -> set[int]:
    """The numbers of the samples in a batch, from its targets."""
    return {int(serial) for serial in batch.targets["logits"][:, 0]}


def filled(make: Make, samples: list[Sample], **table: Any) -> Replay:
    replay = make(capacity=len(samples), **table)
    replay.insert(samples, producer="a", sequence=1)
    return replay


def test_a_batch_shows_what_was_inserted(make_replay: Make, make_samples: Samples) -> None:
    made = make_samples(6, label=[0, 1, 2, 3, 4, 5], target_label=7, born=Version(1, 10))
    batch = filled(make_replay, made).sample(64, student_step=25)
    by_number = {sample.member: sample for sample in made}
    assert batch.images.shape == (64, 3, 2, 2)
    assert batch.images.dtype == np.uint8
    assert len(members(batch)) > 1
    for i, serial in enumerate(batch.targets["logits"][:, 0]):
        sample = by_number[int(serial)]
        assert np.array_equal(batch.images[i], sample.image)
        assert batch.predicted_classes[i] == sample.predicted_class
    assert (batch.confidences == np.float32(0.5)).all()
    assert (batch.target_labels == 7).all()
    assert (batch.ages == 15).all()
    assert batch.population == 6
    assert batch.params_version == NEVER


def test_ages_are_never_negative(make_replay: Make, make_samples: Samples) -> None:
    replay = filled(make_replay, make_samples(4, born=Version(1, 100)))
    assert (replay.sample(8, student_step=3).ages == 0).all()


def test_a_seed_reproduces_a_draw(make_replay: Make, make_samples: Samples) -> None:
    replay = filled(make_replay, make_samples(50, priority=list(np.geomspace(0.01, 10, 50))))
    first, second = replay.sample(32, seed=5), replay.sample(32, seed=5)
    assert np.array_equal(first.identities, second.identities)
    assert not np.array_equal(first.identities, replay.sample(32, seed=6).identities)


def test_draws_without_a_seed_differ(make_replay: Make, make_samples: Samples) -> None:
    replay = filled(make_replay, make_samples(50))
    assert not np.array_equal(replay.sample(32).identities, replay.sample(32).identities)


def test_one_identity_always_names_one_image(make_replay: Make, make_samples: Samples) -> None:
    replay = make_replay(capacity=10)
    seen: dict[Any, bytes] = {}
    for sequence in range(1, 40):
        replay.insert(make_samples(3), producer="a", sequence=sequence)
        if sequence < 4:
            continue
        batch = replay.sample(20)
        for name, image in zip(batch.identities.tolist(), batch.images, strict=True):
            assert seen.setdefault(name, image.tobytes()) == image.tobytes()
    assert len(seen) > 50


def test_the_oldest_samples_are_evicted(make_replay: Make, make_samples: Samples) -> None:
    replay = make_replay(capacity=6)
    old, new = make_samples(6), make_samples(4)
    replay.insert(old, producer="a", sequence=1)
    replay.insert(new, producer="a", sequence=2)
    left = {sample.member for sample in [*old[4:], *new]}
    assert members(replay.sample(400, seed=0)) == left
    info = replay.info()
    assert (info.size, info.inserted, info.evicted) == (6, 10, 4)


def test_targets_that_only_some_samples_carry_are_left_out(
    make_replay: Make, make_samples: Samples
) -> None:
    made = make_samples(3) + make_samples(3, targets={"features": np.zeros(2, np.float16)})
    batch = filled(make_replay, made).sample(64, seed=0)
    assert batch.targets == {}
    assert batch.images.shape == (64, 3, 2, 2)


def test_a_stored_sample_does_not_change_with_the_producers_array(
    make_replay: Make, make_samples: Samples
) -> None:
    image = np.zeros((3, 2, 2), np.uint8)
    logits = np.zeros(4, np.float32)
    replay = filled(make_replay, make_samples(2, image=image, targets={"logits": logits}))
    image[:], logits[:] = 255, 1.0
    batch = replay.sample(4)
    assert not batch.images.any()
    assert not batch.targets["logits"].any()


def test_nothing_is_drawn_before_the_minimum(make_replay: Make, make_samples: Samples) -> None:
    replay = make_replay(capacity=10, min_size_to_sample=4)
    replay.insert(make_samples(3), producer="a", sequence=1)
    with pytest.raises(RateLimited, match="too few samples") as refusal:
        replay.sample(1)
    assert refusal.value.retry_after_seconds > 0
    assert replay.info().sample_waits == 1
    replay.insert(make_samples(1), producer="a", sequence=2)
    assert replay.sample(5).population == 4


@pytest.mark.parametrize("n", [0, -1, 4097])
def test_a_draw_has_between_1_and_4096_samples(
    make_replay: Make, make_samples: Samples, n: int
) -> None:
    replay = filled(make_replay, make_samples(2))
    with pytest.raises(ValueError, match=rf"n \({n}\) is not in \[1, 4096\]"):
        replay.sample(n)
    assert len(replay.sample(4096).images) == 4096


def test_an_insert_says_what_became_visible(make_replay: Make, make_samples: Samples) -> None:
    replay = make_replay(capacity=8, probe_capacity=4)
    made = make_samples(5) + make_samples(2, split="probe")
    assert replay.insert(made, producer="a", sequence=1) == InsertResult(7, False)
    info = replay.info()
    assert (info.size, info.probe_size, info.inserted) == (5, 2, 5)


def test_a_repeated_insert_changes_nothing(make_replay: Make, make_samples: Samples) -> None:
    replay = make_replay(capacity=8)
    made = make_samples(5)
    replay.insert(made, producer="a", sequence=3)
    assert replay.insert(made, producer="a", sequence=3) == InsertResult(0, True)
    assert replay.insert(make_samples(1), producer="a", sequence=2) == InsertResult(0, True)
    info = replay.info()
    assert (info.size, info.inserted, info.duplicates) == (5, 5, 2)


def test_producers_count_their_sequences_apart(make_replay: Make, make_samples: Samples) -> None:
    replay = make_replay(capacity=8)
    replay.insert(make_samples(2), producer="a", sequence=5)
    assert replay.insert(make_samples(2), producer="b", sequence=1) == InsertResult(2, False)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (lambda make: [], r"samples \(\[\]\) is empty"),
        (lambda make: make(9), r"samples \(9 of split train\) exceed capacity \(8\)"),
        (lambda make: make(5, split="probe"), r"exceed probe_capacity \(4\)"),
        (lambda make: make(1, priority=-0.5), r"disagreement \(-0.5\) is not a finite number >= 0"),
        (lambda make: make(1, priority=float("nan")), r"disagreement \(nan\) is not a finite"),
        (lambda make: make(1, priority=float("inf")), r"disagreement \(inf\) is not a finite"),
        (lambda make: make(1, label=-1), r"predicted_class \(-1\) is not in \[0, 65535\]"),
        (lambda make: make(1, label=65536), r"predicted_class \(65536\) is not in"),
        (
            lambda make: make(1) + make(1, image=np.zeros((3, 4, 4), np.uint8)),
            r"image \(uint8 \[3, 4, 4\]\) differs from the others' uint8 \[3, 2, 2\]",
        ),
        (
            lambda make: make(1) + make(1, targets={"logits": np.zeros(5, np.float32)}),
            r"logits \(float32 \[5\]\) differs from the others' float32 \[4\]",
        ),
        (lambda make: make(1, image=np.zeros((3, 2, 2), np.int8)), "is not uint8"),
    ],
)
def test_impossible_samples_are_refused_and_change_nothing(
    make_replay: Make,
    make_samples: Samples,
    samples: Callable[[Samples], list[Sample]],
    message: str,
) -> None:
    replay = make_replay(capacity=8, probe_capacity=4)
    with pytest.raises(ValueError, match=message):
        replay.insert(samples(make_samples), producer="a", sequence=1)
    assert (replay.info().size, replay.info().probe_size) == (0, 0)
    assert replay.insert(make_samples(8), producer="a", sequence=1).inserted == 8


def test_samples_that_differ_from_earlier_ones_are_refused(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = make_replay(capacity=8)
    replay.insert(make_samples(2), producer="a", sequence=1)
    with pytest.raises(ValueError, match=r"image \(uint8 \[1, 8, 8\]\) differs from the others'"):
        replay.insert(
            make_samples(1, image=np.zeros((1, 8, 8), np.uint8)), producer="b", sequence=1
        )
    assert replay.info().size == 2


@pytest.mark.parametrize("sequence", [-1, 2**32])
def test_a_sequence_that_cannot_be_stored_is_refused(
    make_replay: Make, make_samples: Samples, sequence: int
) -> None:
    with pytest.raises(ValueError, match=rf"sequence \({sequence}\) is not in \[0, 4294967295\]"):
        make_replay(capacity=2).insert(make_samples(1), producer="a", sequence=sequence)
