"""Draws against closed form: each test runs in memory and on Redis, over fixed seeds.

The expected distribution is worked out here once more, from the definition and not from
``buffer.priorities``: over quantised priorities, for those are what is drawn by.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats

from buffer.interface import Replay
from buffer.params import SamplingParams
from buffer.sample import Batch, Sample
from buffer.version import Version

Make = Callable[..., Replay]
Samples = Callable[..., list[Sample]]

CAPACITY = 160
COHORT = CAPACITY // 8
DRAWS, BATCH = 102_400, 4096
LEAST_P_VALUE = 1e-3

CASES: dict[str, dict[str, float]] = {
    "prioritised": {"priority_exponent": 0.6},
    "label-balanced": {"priority_exponent": 0.6, "label_balance": 0.7},
    "age-discounted": {"priority_exponent": 0.6, "age_discount": 0.3},
    "uniform-mixed": {"priority_exponent": 0.9, "uniform_share": 0.4},
    "everything": {
        "priority_exponent": 0.8,
        "label_balance": 0.5,
        "age_discount": 0.2,
        "uniform_share": 0.2,
    },
}


def skewed(make_samples: Samples, n: int = CAPACITY) -> list[Sample]:
    """Samples of lognormal priorities, of labels whose frequencies are 1 : 2 : 4 : 8."""
    generator = np.random.default_rng(7)
    labels = generator.choice([0, 3, 4, 900], p=np.array([1, 2, 4, 8]) / 15, size=n)
    priorities = generator.lognormal(0.0, 1.5, size=n)
    return make_samples(n, label=labels.tolist(), priority=priorities.tolist())


def closed_form(samples: list[Sample], params: SamplingParams, shards: int = 1) -> dict[int, float]:
    """The probability of each sample, by its number.

    ``samples`` in the order of insertion, as many into each of the shards one after the other; a
    shard has cohorts of its own.
    """
    masses = {}
    part, width = len(samples) // shards, COHORT // shards
    for i, sample in enumerate(samples):
        quantised = 2 ** (round(4 * math.log2(sample.disagreement + 1e-6)) / 4)
        behind = (part - 1) // width - i % part // width
        masses[i] = quantised**params.priority_exponent * (1 - params.age_discount) ** behind
    of_label: dict[int, float] = defaultdict(float)
    for i, mass in masses.items():
        of_label[samples[i].predicted_class] += mass
    for i in masses:
        masses[i] /= of_label[samples[i].predicted_class] ** params.label_balance
    total = sum(masses.values())
    share = params.uniform_share
    return {
        samples[i].member: (1 - share) * mass / total + share / len(samples)
        for i, mass in masses.items()
    }


def numbers(batch: Batch) -> list[int]:
    return [int(serial) for serial in batch.targets["logits"][:, 0]]


def p_value(counts: Counter[int], expected: dict[int, float]) -> float:
    assert set(counts) <= set(expected)
    draws = counts.total()
    # The usual condition of the test; rare items are taken together.
    rare = [serial for serial, chance in expected.items() if chance * draws < 5]
    kept = [serial for serial in expected if serial not in rare]
    observed = [counts[serial] for serial in kept]
    wanted = [expected[serial] * draws for serial in kept]
    if rare:
        observed.append(sum(counts[serial] for serial in rare))
        wanted.append(sum(expected[serial] for serial in rare) * draws)
    return float(stats.chisquare(observed, np.array(wanted) * sum(observed) / sum(wanted)).pvalue)


@pytest.mark.parametrize("case", CASES)
def test_draws_follow_the_closed_form(make_replay: Make, make_samples: Samples, case: str) -> None:
    params = SamplingParams(**CASES[case], importance_exponent=0.4)
    replay, samples = make_replay(params, capacity=CAPACITY), skewed(make_samples)
    replay.insert(samples, producer="a", sequence=1)
    expected = closed_form(samples, params)
    counts: Counter[int] = Counter()
    for seed in range(DRAWS // BATCH):
        batch = replay.sample(BATCH, seed=seed)
        drawn = numbers(batch)
        counts.update(drawn)
        chances = np.array([expected[serial] for serial in drawn])
        assert np.allclose(batch.probabilities, chances, rtol=1e-9)
        assert np.allclose(batch.weights, (CAPACITY * chances) ** -0.4, rtol=1e-9)
        mean = sum(chance * (CAPACITY * chance) ** -0.4 for chance in expected.values())
        assert math.isclose(batch.weight_mean, mean, rel_tol=1e-9)
    assert p_value(counts, expected) > LEAST_P_VALUE


@pytest.mark.parametrize("params", [{"importance_exponent": 0.0}, {"uniform_share": 1.0}])
def test_uncorrected_and_uniform_draws_have_a_mean_weight_of_one(
    make_replay: Make, make_samples: Samples, params: dict[str, float]
) -> None:
    replay = make_replay(SamplingParams(**params), capacity=CAPACITY)
    replay.insert(skewed(make_samples), producer="a", sequence=1)
    assert math.isclose(replay.sample(8, seed=0).weight_mean, 1.0, rel_tol=1e-12)


def test_the_chi_square_test_would_notice_a_wrong_exponent(make_samples: Samples) -> None:
    samples = skewed(make_samples)
    drawn_by = closed_form(samples, SamplingParams(priority_exponent=0.65))
    generator = np.random.default_rng(0)
    counts = Counter(generator.choice(list(drawn_by), size=DRAWS, p=list(drawn_by.values())))
    wrong = closed_form(samples, SamplingParams(priority_exponent=0.6))
    assert p_value(Counter({int(k): v for k, v in counts.items()}), wrong) < LEAST_P_VALUE


def test_draws_are_independent_of_each_other(make_replay: Make, make_samples: Samples) -> None:
    """Pairs of successive draws, and pairs across seeds that differ by one."""
    samples = make_samples(8)
    replay = make_replay(capacity=8)
    replay.insert(samples, producer="a", sequence=1)
    first = samples[0].member
    batches = [np.array(numbers(replay.sample(BATCH, seed=s))) - first for s in range(13)]
    successive = Counter[int]()
    across = Counter[int]()
    for batch, following in itertools.pairwise(batches):
        successive.update((batch[:-1] * 8 + batch[1:]).tolist())
        across.update((batch * 8 + following).tolist())
    pairs = dict.fromkeys(range(64), 1 / 64)
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
            found[-1].update(zip(numbers(batch), batch.probabilities.tolist(), strict=True))
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
        drawn = np.array(numbers(batch)) - samples[0].member
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
            behind = sample.member - np.array(numbers(batch))
            assert len(set(behind)) > 4
            assert np.allclose(batch.probabilities, 0.5**behind / (2 - 0.5**7), rtol=1e-9)
