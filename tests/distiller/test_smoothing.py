from __future__ import annotations

import numpy as np
import pytest

from buffer.sample import IDENTITY_DTYPE
from distiller.smoothing import SmoothedKl


def _identities(*slots, generation=0):
    identities = np.zeros(len(slots), IDENTITY_DTYPE)
    identities["slot"], identities["generation"] = slots, generation
    return identities


def _kl(*values):
    return np.array(values, np.float32)


def test_without_smoothing_the_newest_view_alone_counts():
    smoothed = SmoothedKl(0.0, capacity=4)
    smoothed.update(_identities(1), _kl(8))
    np.testing.assert_array_equal(smoothed.update(_identities(1), _kl(2)), [2])


def test_the_first_views_count_alike():
    smoothed = SmoothedKl(0.9, capacity=4)
    found = [smoothed.update(_identities(1), _kl(value))[0] for value in (1, 2, 6)]
    np.testing.assert_allclose(found, [1, 1.5, 3])


def test_later_views_move_the_average_by_their_share():
    smoothed = SmoothedKl(0.75, capacity=4)
    for _ in range(4):
        smoothed.update(_identities(1), _kl(1))
    np.testing.assert_allclose(smoothed.update(_identities(1), _kl(5)), [2])


def test_a_sample_that_is_drawn_twice_counts_twice():
    smoothed = SmoothedKl(0.9, capacity=4)
    np.testing.assert_allclose(smoothed.update(_identities(1, 2, 1), _kl(1, 7, 3)), [1, 7, 2])


def test_another_sample_in_the_same_slot_begins_anew():
    smoothed = SmoothedKl(0.9, capacity=4)
    smoothed.update(_identities(1), _kl(1))
    np.testing.assert_array_equal(smoothed.update(_identities(1, generation=1), _kl(3)), [3])


@pytest.mark.parametrize(("slot", "expected"), [(2, 9), (1, 11 / 3)])
def test_who_was_seen_longest_ago_is_forgotten(slot, expected):
    smoothed = SmoothedKl(0.9, capacity=2)
    for seen in (1, 2, 1, 3):
        smoothed.update(_identities(seen), _kl(1))
    np.testing.assert_allclose(smoothed.update(_identities(slot), _kl(9)), [expected])
