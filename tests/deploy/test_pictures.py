from __future__ import annotations

import numpy as np
import pytest

from buffer.config import BufferTable
from buffer.memory import InMemoryReplayBuffer
from buffer.sample import Batch, Sample
from buffer.version import Version
from deploy.pictures import LONGEST_SIDE, buffer_ages, chosen, reduced
from deploy.sink import priorities
from deploy.timeline import sprite


def batch(labels: list[int], priorities: list[float] | None = None, count: int = 512) -> Batch:
    table = BufferTable(capacity=max(2, len(labels)), probe_capacity=0, priority_exponent=1.0)
    replay = InMemoryReplayBuffer(table, seed=0)
    samples = [
        Sample(
            image=np.zeros((1, 2, 2), np.uint8),
            predicted_class=label,
            confidence=0.5,
            disagreement=1.0 if priorities is None else priorities[number],
            born=Version(0, 0 if label else 9),
        )
        for number, label in enumerate(labels)
    ]
    replay.insert(samples, producer="p", sequence=1)
    return replay.sample(count, seed=0, student_step=9)


def test_no_image_is_chosen_twice_and_a_rare_class_has_what_there_is() -> None:
    drawn = batch([0] * 30 + [1] * 3)
    shown = chosen(drawn, 2)
    assert drawn.predicted_classes[shown].tolist() == [0] * 8 + [1] * 3
    assert len(np.unique(drawn.identities[shown])) == 11


def test_of_many_classes_twenty_are_shown_evenly_spread() -> None:
    drawn = batch(list(range(1000)) * 2, count=4096)
    shown = np.unique(drawn.predicted_classes[chosen(drawn, 1000)])
    assert len(shown) == 20
    assert np.diff(shown).max() < 60
    present = np.unique(drawn.predicted_classes)
    assert (shown[0], shown[-1]) == (present[0], present[-1])


def test_classes_that_nobody_drew_leave_their_place_to_others() -> None:
    drawn = batch([3] * 5 + [700] * 5)
    assert set(drawn.predicted_classes[chosen(drawn, 1000)].tolist()) == {3, 700}


@pytest.mark.parametrize(
    ("side", "shown"), [((8, 8), (8, 8)), ((224, 224), (56, 56)), ((130, 1), (43, 1))]
)
def test_large_images_are_shown_smaller(side: tuple[int, int], shown: tuple[int, int]) -> None:
    images = np.full((2, 3, *side), 77, np.uint8)
    small = reduced(images)
    assert small.shape == (2, 3, *shown)
    assert max(shown) <= LONGEST_SIDE
    assert (small == 77).all()


def test_blocks_are_averaged() -> None:
    image = np.zeros((1, 1, 128, 128), np.uint8)
    image[:, :, :, ::2] = 100
    assert (reduced(image) == 50).all()


def test_the_ages_of_the_buffer_are_those_of_all_items_not_of_the_draws() -> None:
    # Samples of class 0 are drawn nine times as often, and were made at step 9, just now.
    drawn = batch([0] * 50 + [1] * 50, [9.0] * 50 + [1.0] * 50, count=4096)
    assert (drawn.ages == 0).mean() > 0.85
    ages = buffer_ages(drawn)
    assert sum(ages.counts) == pytest.approx(100)
    assert (ages.edges[0], ages.edges[-1]) == (0.0, 10.0)
    assert ages.counts[0] == pytest.approx(50, abs=5)
    assert ages.counts[-2] == pytest.approx(50, abs=5)


def test_images_of_one_channel_are_grey_and_of_three_coloured() -> None:
    images = np.arange(17, dtype=np.uint8)[:, None, None, None].repeat(4, 2).repeat(4, 3)
    grey = sprite(images)
    assert grey.shape == (8, 64)
    assert grey[0, ::4].tolist() == list(range(16))
    assert grey[4, ::4].tolist() == [16] + [0] * 15
    colours = sprite(images.repeat(3, 1)[:3])
    assert colours.shape == (4, 12, 3)
    assert colours[0, 4].tolist() == [1, 1, 1]
    assert (sprite(images.repeat(2, 1)) == grey).all()


def test_priorities_are_counted_by_octave() -> None:
    histogram = priorities({128: 3, 131: 2, 136: 1})
    assert histogram.counts == (5.0, 0.0, 1.0)
    half = 2**-0.125
    assert histogram.edges == pytest.approx((half, 2 * half, 4 * half, 8 * half))
    assert priorities({255: 1}).counts == (1.0,)
