from __future__ import annotations

import numpy as np
import pytest

from buffer.batches import Draws, concatenate, identity_array
from buffer.version import Version


def draws(chances: list[float], mean: float, version: Version) -> Draws:
    n = len(chances)
    identities = identity_array(0, 1, np.arange(n), np.ones(n, np.uint32))
    return Draws(identities, np.array(chances), 1 / np.array(chances), mean, version, 10 * n)


@pytest.mark.parametrize("order", [1, -1])
def test_rounds_of_a_draw_keep_their_probabilities_and_share_their_mean_weight(order: int) -> None:
    rounds = [draws([0.5, 0.25], 0.5, Version(1, 1)), draws([0.125], 0.8, Version(1, 2))][::order]
    whole = concatenate(rounds)
    assert sorted(whole.probabilities.tolist()) == [0.125, 0.25, 0.5]
    assert np.array_equal(whole.weights, 1 / whole.probabilities)
    assert len(whole.identities) == 3
    assert whole.weight_mean == pytest.approx((2 * 0.5 + 0.8) / 3)
    assert whole.params_version == rounds[0].params_version
    assert whole.population == rounds[0].population
