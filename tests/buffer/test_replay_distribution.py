"""What draws are like besides their distribution; each test runs in memory and on Redis."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from buffer.interface import Replay
from buffer.params import SamplingParams
from buffer.sample import Batch, Sample
from buffer.version import Version
from tests.buffer.test_closed_form import (
    BATCH,
    CAPACITY,
    CASES,
    LEAST_P_VALUE,
    numbers,
    p_value,
    skewed,
)

Make = Callable[..., Replay]
Samples = Callable[..., list[Sample]]


@pytest.mark.parametrize("params", [{"importance_exponent": 0.0}, {"uniform_share": 1.0}])
def test_uncorrected_and_uniform_draws_have_a_mean_weight_of_one(
    make_replay: Make, make_samples: Samples, params: dict[str, float]
) -> None:
    replay = make_replay(SamplingParams(**params), capacity=CAPACITY)
    replay.insert(skewed(make_samples), producer="a", sequence=1)
    assert math.isclose(replay.sample(8, seed=0).weight_mean, 1.0, rel_tol=1e-12)


def test_draws_are_independent_of_each_other(make_replay: Make, make_samples: Samples) -> None:
    """Pairs of successive draws, and pairs across seeds that differ by one."""
    samples = make_samples(8)
    replay = make_replay(capacity=8)
    replay.insert(samples, producer="a", sequence=1)
    first = samples[0].member
    batches = [numbers(replay.sample(BATCH, seed=seed)) - first for seed in range(13)]
    successive = np.zeros(64, dtype=np.int64)
    across = np.zeros(64, dtype=np.int64)
    for batch, following in itertools.pairwise(batches):
        successive += np.bincount(batch[:-1] * 8 + batch[1:], minlength=64)
        across += np.bincount(batch * 8 + following, minlength=64)
    pairs = np.full(64, 1 / 64)
    assert p_value(successive, pairs) > LEAST_P_VALUE
    assert p_value(across, pairs) > LEAST_P_VALUE


def test_both_buffers_return_the_same_probabilities(
    make_memory: Make, make_redis: Make, make_samples: Samples
) -> None:
    params, samples = SamplingParams(**CASES["everything"]), skewed(make_samples, 3 * CAPACITY)
    found: list[dict[int, float]] = []
    for make in (make_memory, make_redis):
        replay = make(params, capacity=CAPACITY)
        for i in range(0, len(samples), 30):
            replay.insert(samples[i : i + 30], producer="a", sequence=i)
        batches = [replay.sample(BATCH, seed=seed) for seed in range(3)]
        found.append({})
        for batch in batches:
            found[-1].update(
                zip(numbers(batch).tolist(), batch.probabilities.tolist(), strict=True)
            )
    common = found[0].keys() & found[1].keys()
    assert len(common) > 0.8 * CAPACITY
    assert all(math.isclose(found[0][k], found[1][k], rel_tol=1e-9) for k in common)


KNOBS: list[tuple[dict[str, Any], Callable[[Batch], float], str]] = [
    ({"priority_exponent": 0.0}, lambda batch: float(np.ptp(batch.probabilities)), "vanishes"),
    ({"importance_exponent": 0.0}, lambda batch: float(np.ptp(batch.weights)), "vanishes"),
    ({"uniform_share": 1.0}, lambda batch: float(np.ptp(batch.probabilities)), "vanishes"),
    ({"label_balance": 1.0}, lambda batch: float(np.mean(batch.predicted_classes == 0)), "grows"),
    ({"age_discount": 0.9}, lambda batch: float(np.mean(batch.ages)), "shrinks"),
]


@pytest.mark.parametrize(("change", "measure", "effect"), KNOBS)
def test_each_parameter_acts_at_the_next_draw(
    make_replay: Make,
    make_samples: Samples,
    change: dict[str, Any],
    measure: Callable[[Batch], float],
    effect: str,
) -> None:
    replay = make_replay(capacity=CAPACITY)
    made = skewed(make_samples)
    for i, sample in enumerate(made):
        aged = Sample(**{**vars(sample), "born": Version(1, i)})
        replay.insert([aged], producer="a", sequence=i)
    before = measure(replay.sample(2000, seed=0, student_step=CAPACITY))
    assert replay.set_params(SamplingParams(version=Version(1, 1), **change))
    after = measure(replay.sample(2000, seed=0, student_step=CAPACITY))
    assert before > 0.01
    assert {
        "vanishes": after < 1e-12,
        "grows": after > 1.5 * before,
        "shrinks": after < 0.5 * before,
    }[effect]


def test_repeated_updates_settle_where_theory_says(
    make_replay: Make, make_samples: Samples
) -> None:
    """P ~ KL^(alpha / (1 + alpha beta)) for fixed KL and the recursion delta = w KL.

    A level is off by at most 1/8 octave, and the recursion contracts by alpha beta: the logarithm
    of a priority ends within ``ln(2) / 8 / (1 - alpha beta)`` of its place, that of a probability
    within alpha times that, up to one constant for all.
    """
    alpha, beta = 0.6, 0.4
    kl = np.repeat(np.exp2(np.linspace(-4, 3, 8)), 8)
    params = SamplingParams(priority_exponent=alpha, importance_exponent=beta)
    samples = make_samples(64)
    replay = make_replay(params, capacity=64)
    replay.insert(samples, producer="a", sequence=1)
    chances = np.zeros(64)
    for step in range(60):
        batch = replay.sample(1024, seed=step)
        drawn = numbers(batch) - samples[0].member
        chances[drawn] = batch.probabilities
        replay.update_priorities(
            batch.identities, batch.weights * kl[drawn], version=Version(1, step)
        )
    exponent = alpha / (1 + alpha * beta)
    residual = np.log(chances) - exponent * np.log(kl)
    tolerance = alpha * math.log(2) / 8 / (1 - alpha * beta)
    assert np.ptp(residual) <= 2 * tolerance
    slope = np.polyfit(np.log(kl), np.log(chances), 1)[0]
    assert abs(slope - exponent) < 0.02
    assert abs(slope - alpha) > 0.1


def test_ages_stay_right_when_the_numbers_of_cohorts_start_again(
    make_replay: Make, make_samples: Samples
) -> None:
    replay = make_replay(SamplingParams(age_discount=0.5), capacity=8)
    samples = make_samples(600)
    for sequence, sample in enumerate(samples):
        replay.insert([sample], producer="a", sequence=sequence)
        if sequence in (260, 511, 515, 599):
            batch = replay.sample(500, seed=0)
            behind = sample.member - numbers(batch)
            assert len(set(behind)) > 4
            assert np.allclose(batch.probabilities, 0.5**behind / (2 - 0.5**7), rtol=1e-9)
