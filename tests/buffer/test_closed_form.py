"""A million draws against closed form: by the client, by a server, over several shards of one.

The expected distribution is worked out here once more, from the definition and not from
``buffer.priorities``: over quantised priorities, for those are what is drawn by.

Seeds are fixed, so that a test passes always or never. Of correct draws under other seeds each
chi-square test would fail with a chance of 1e-4: one of the 25 here in 400 choices of seeds.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from buffer.division import common_of
from buffer.errors import RateLimited
from buffer.interface import Replay
from buffer.params import SamplingParams
from buffer.sample import Batch, Sample

Make = Callable[..., Replay]
Samples = Callable[..., list[Sample]]

CAPACITY = 160
COHORT = CAPACITY // 8
BATCH = 4096
DRAWS = 245 * BATCH  # 1,003,520
LEAST_P_VALUE = 1e-4
FREQUENT = 900
"""A label that half of the samples have."""

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
    labels = generator.choice([0, 3, 4, FREQUENT], p=np.array([1, 2, 4, 8]) / 15, size=n)
    priorities = generator.lognormal(0.0, 1.5, size=n)
    return make_samples(n, label=labels.tolist(), priority=priorities.tolist())


def closed_form(
    samples: list[Sample],
    params: SamplingParams,
    *,
    shards: int = 1,
    faults: Mapping[int, float] | None = None,
) -> NDArray[np.float64]:
    """The probability ``[N]`` of each sample.

    Args:
        samples: in the order of insertion, as many into each of the shards one after the other; a
            shard has cohorts of its own.
        params: in force.
        shards: how many.
        faults: factors of labels' masses that should not be there.
    """
    masses = []
    part, width = len(samples) // shards, COHORT // shards
    for i, sample in enumerate(samples):
        quantised = 2 ** (round(4 * math.log2(sample.disagreement + 1e-6)) / 4)
        behind = (part - 1) // width - i % part // width
        masses.append(quantised**params.priority_exponent * (1 - params.age_discount) ** behind)
    of_label: dict[int, float] = defaultdict(float)
    for mass, sample in zip(masses, samples, strict=True):
        of_label[sample.predicted_class] += mass
    for i, sample in enumerate(samples):
        masses[i] /= of_label[sample.predicted_class] ** params.label_balance
        masses[i] *= (faults or {}).get(sample.predicted_class, 1.0)
    share = params.uniform_share
    return (1 - share) * np.array(masses) / sum(masses) + share / len(samples)


def numbers(batch: Batch) -> NDArray[np.int64]:
    """``[B]``: the member of each sample."""
    return batch.targets["logits"][:, 0].astype(np.int64)


def p_value(counts: NDArray[np.int64], expected: NDArray[np.float64]) -> float:
    """Of the chi-square test of counts ``[N]`` against probabilities ``[N]``."""
    wanted = expected * counts.sum()
    # The usual condition of the test; rare items are taken together.
    rare = wanted < 5
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(wanted[~rare], wanted[rare].sum())
    kept = wanted > 0
    return float(stats.chisquare(observed[kept], wanted[kept]).pvalue)


PLACES = {"memory": 1, "redis": 1, "scripted": 1, "two shards": 2, "four shards": 4}
"""Who draws: the buffer in memory, the client, the server, several servers; and of how many."""


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_there(request: pytest.FixtureRequest, place: str) -> Make:
    """Makes a buffer whose draws are made there."""
    if PLACES[place] == 1:
        make: Make = request.getfixturevalue(f"make_{place}")
        return make
    return partial(request.getfixturevalue("make_sharded"), shards=PLACES[place])


def fill(replay: Replay, samples: list[Sample], shards: int = 1) -> None:
    """As many samples into each shard, one after the other."""
    for sequence, part in enumerate(np.array_split(np.arange(len(samples)), shards)):
        replay.insert([samples[i] for i in part], producer="a", sequence=sequence)


@pytest.mark.parametrize("case", CASES)
def test_a_million_draws_follow_the_closed_form(
    make_there: Make, make_samples: Samples, place: str, case: str
) -> None:
    """And every draw says its probability; and a mass that is 5 % off would have been noticed."""
    params, samples = SamplingParams(**CASES[case], importance_exponent=0.4), skewed(make_samples)
    replay, shards = make_there(params, capacity=CAPACITY), PLACES[place]
    fill(replay, samples, shards)
    expected = closed_form(samples, params, shards=shards)
    weights = (CAPACITY * expected) ** -0.4
    counts = np.zeros(CAPACITY, dtype=np.int64)
    for seed in range(DRAWS // BATCH):
        batch = replay.sample(BATCH, seed=seed)
        drawn = numbers(batch) - samples[0].member
        counts += np.bincount(drawn, minlength=CAPACITY)
        assert np.allclose(batch.probabilities, expected[drawn], rtol=1e-9, atol=0)
        assert np.allclose(batch.weights, weights[drawn], rtol=1e-9, atol=0)
        # Of several shards it is estimated: each one's mean, in the proportion of the draws made.
        tolerance = 1e-9 if shards == 1 else 0.02
        assert math.isclose(batch.weight_mean, expected @ weights, rel_tol=tolerance)
        assert batch.population == CAPACITY
    assert counts.sum() == DRAWS
    assert p_value(counts, expected) > LEAST_P_VALUE
    for fault in (1.05, 0.95):
        wrong = closed_form(samples, params, shards=shards, faults={FREQUENT: fault})
        assert p_value(counts, wrong) < LEAST_P_VALUE


@pytest.mark.parametrize("uniform_share", [0.0, 0.3])
def test_draws_are_made_as_they_say_although_the_shard_has_changed(
    make_redis: Make, make_samples: Samples, uniform_share: float
) -> None:
    """Since it told its masses: others came, of old labels and of one that nobody knew then."""
    params = SamplingParams(label_balance=0.7, uniform_share=uniform_share)
    replay, samples = make_redis(params, capacity=CAPACITY), skewed(make_samples)
    fill(replay, samples)
    _, (common,) = common_of([replay.drawing.masses()])
    later = make_samples(40, label=[0] * 20 + [77] * 20, priority=3.0)
    replay.insert(later, producer="b", sequence=1)
    counts: Counter[int] = Counter()
    chances: dict[int, float] = {}
    for seed in range(25):
        columns, draws = replay.drawing.draw(BATCH, seed=seed, common=common)
        drawn = columns.targets["logits"][:, 0].astype(int).tolist()
        counts.update(drawn)
        chances.update(zip(drawn, draws.probabilities.tolist(), strict=True))
    held = CAPACITY - 20 * (uniform_share == 0)
    assert len(chances) == held
    assert math.isclose(sum(chances.values()), 1.0, rel_tol=1e-9)
    observed = np.array([counts[member] for member in chances])
    assert p_value(observed, np.array([*chances.values()])) > LEAST_P_VALUE


def test_a_shard_of_nothing_but_new_labels_waits(make_redis: Make, make_samples: Samples) -> None:
    replay = make_redis(capacity=4, probe_capacity=0)
    replay.insert(make_samples(4), producer="a", sequence=1)
    _, (common,) = common_of([replay.drawing.masses()])
    replay.insert(make_samples(4, label=77), producer="a", sequence=2)
    with pytest.raises(RateLimited):
        replay.drawing.draw(8, common=common)


def test_the_chi_square_test_would_notice_a_wrong_exponent(make_samples: Samples) -> None:
    samples = skewed(make_samples)
    drawn_by = closed_form(samples, SamplingParams(priority_exponent=0.61))
    counts = np.random.default_rng(0).multinomial(DRAWS, drawn_by)
    assert p_value(counts, drawn_by) > LEAST_P_VALUE
    wrong = closed_form(samples, SamplingParams(priority_exponent=0.6))
    assert p_value(counts, wrong) < LEAST_P_VALUE
