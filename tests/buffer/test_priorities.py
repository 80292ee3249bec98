from __future__ import annotations

import math

import numpy as np
import pytest

from buffer.params import SamplingParams
from buffer.priorities import (
    cohort_width,
    importance_weights,
    level_of,
    mean_weight,
    probabilities,
    value_of,
)


def test_a_level_is_within_nine_percent_of_the_priority_it_stands_for() -> None:
    priorities = np.geomspace(1e-6, 1e8, 10_001)
    ratios = value_of(level_of(priorities)) / (priorities + 1e-6)
    assert np.abs(np.log2(ratios)).max() <= 1 / 8 + 1e-12
    assert 2 ** (1 / 8) < 1.0906


@pytest.mark.parametrize(
    ("priority", "level"),
    [(0.0, 48), (1.0, 128), (2.0, 132), (1e-30, 48), (2.0**31.75, 255), (1e300, 255)],
)
def test_levels_are_clamped_steps_of_a_quarter_octave(priority: float, level: int) -> None:
    assert level_of(priority) == level


def test_the_value_of_a_level_has_that_level() -> None:
    levels = np.arange(48, 256)
    assert (level_of(value_of(levels) - 1e-6) == levels).all()


def test_cohorts_are_an_eighth_of_the_buffer_and_never_empty() -> None:
    assert [cohort_width(capacity) for capacity in (1, 7, 8, 5000)] == [1, 1, 1, 625]


def test_probabilities_add_up_to_one_under_every_parameter() -> None:
    generator = np.random.default_rng(0)
    params = SamplingParams(uniform_share=0.3, label_balance=0.7, age_discount=0.2)
    levels, labels, ages = (generator.integers(0, most, 500) for most in (256, 9, 8))
    result = probabilities(levels, labels, ages, params)
    assert result.min() > 0
    assert math.isclose(result.sum(), 1.0, rel_tol=1e-12)


def test_probabilities_follow_the_priority_to_the_power_of_its_exponent() -> None:
    params = SamplingParams(priority_exponent=0.5)
    result = probabilities([128, 136], [0, 0], [0, 0], params)
    assert np.allclose(result, [1 / 3, 2 / 3], rtol=1e-12)


def test_label_balance_one_draws_every_label_alike() -> None:
    params = SamplingParams(label_balance=1.0)
    labels = np.array([0, 1, 1, 1, 1, 7])
    result = probabilities([100, 120, 121, 122, 140, 90], labels, np.zeros(6), params)
    assert np.allclose([result[labels == label].sum() for label in (0, 1, 7)], 1 / 3, rtol=1e-12)


def test_label_balance_is_the_exponent_of_the_labels_total_mass() -> None:
    params = SamplingParams(label_balance=0.25, priority_exponent=1.0)
    labels = np.array([0, 1, 1])
    result = probabilities([128, 128, 132], labels, np.zeros(3), params)
    # M_0 = 1 and M_1 = 1 + 2: P(label) ~ M^0.75, and inside a label P ~ mass.
    expected = np.array([1.0, 3**0.75 / 3, 3**0.75 * 2 / 3])
    assert np.allclose(result, expected / expected.sum(), rtol=1e-12)


def test_each_cohort_behind_the_newest_costs_the_age_discount() -> None:
    params = SamplingParams(age_discount=0.5)
    result = probabilities([128] * 3, [0] * 3, [0, 1, 3], params)
    assert np.allclose(result, np.array([1, 1 / 2, 1 / 8]) / 1.625, rtol=1e-12)


def test_a_uniform_share_of_one_ignores_priorities() -> None:
    params = SamplingParams(uniform_share=1.0, age_discount=0.9)
    assert np.array_equal(probabilities([50, 255], [0, 1], [7, 0], params), [0.5, 0.5])


def test_importance_weights_are_the_inverse_propensity_at_beta_one_and_ones_at_beta_zero() -> None:
    drawn = np.array([0.1, 0.5])
    assert np.allclose(importance_weights(drawn, 4, 1.0), [2.5, 0.5], rtol=1e-12)
    assert np.array_equal(importance_weights(drawn, 4, 0.0), [1.0, 1.0])


def test_weights_divided_by_their_mean_average_one_over_draws() -> None:
    chances = np.random.default_rng(1).dirichlet(np.ones(50))
    drawn = np.random.default_rng(2).choice(chances, size=200_000, p=chances)
    weights = importance_weights(drawn, 50, 0.4) / mean_weight(chances, 0.4)
    assert abs(weights.mean() - 1) < 5 * weights.std() / math.sqrt(len(weights))
    assert mean_weight(chances, 0.4) < 0.99


def test_the_mean_weight_is_one_for_both_extreme_exponents_and_for_uniform_draws() -> None:
    chances = np.random.default_rng(1).dirichlet(np.ones(50))
    for drawn, exponent in ((chances, 0.0), (chances, 1.0), (np.full(50, 0.02), 0.4)):
        assert math.isclose(mean_weight(drawn, exponent), 1.0, rel_tol=1e-12)


def test_the_mean_weight_does_not_hang_on_the_least_probable_item() -> None:
    masses = np.ones(1000)
    before = mean_weight(masses / masses.sum(), 0.4)
    masses[0] = 1e-6
    after = mean_weight(masses / masses.sum(), 0.4)
    assert abs(after / before - 1) < 1 / 1000
    assert importance_weights(masses.min() / masses.sum(), 1000, 0.4) > 100
