import json
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from buffer.controller.config import FixedSettings, LearnedSettings, RandomSettings
from buffer.controller.policy import (
    LARGEST_SURPRISE,
    Baseline,
    DiscountedThompson,
    Fixed,
    Observation,
    Policy,
    Random,
    build,
    class_entropy,
    observe,
    reward,
)
from buffer.interface import BufferInfo, UpdateCounts
from buffer.progress import ProbeReport, StudentProgress
from buffer.version import Version

REPORT = ProbeReport(
    params_version=Version(1, 3),
    members=64,
    before_kl=2.0,
    after_kl=1.0,
    before_agreement=0.5,
    after_agreement=0.7,
    seconds=10.0,
)
INFO = BufferInfo(
    size=40,
    capacity=40,
    probe_size=8,
    probe_capacity=8,
    inserted=50,
    sampled=600,
    evicted=10,
    duplicates=0,
    redraws=0,
    updates=UpdateCounts(applied=70, stale=20, older=10),
    balance=0.0,
    insert_waits=0,
    sample_waits=0,
    seconds=1.0,
    class_counts={0: 20, 1: 20},
)
PROGRESS = StudentProgress(
    phase="distilling",
    elapsed_share=0.25,
    kl_mean=0.3,
    kl_quantiles=(0.1, 0.2, 0.6),
    agreement=0.8,
    ess_ratio=0.9,
    mean_age=12.0,
    probe=REPORT,
)
OBSERVATION = observe(INFO, PROGRESS, classes=4)


def test_an_observation_holds_what_buffer_and_student_report() -> None:
    assert (
        Observation(
            kl_mean=0.3,
            kl_quantiles=(0.1, 0.2, 0.6),
            ess_ratio=0.9,
            class_entropy=pytest.approx(0.5),
            mean_age=12.0,
            stale_share=0.2,
            samples_per_insert=12.0,
            agreement=0.8,
            probe_kl=1.0,
            probe_agreement=0.7,
            elapsed_share=0.25,
        )
        == OBSERVATION
    )


def test_an_observation_of_an_untouched_buffer_divides_by_nothing() -> None:
    empty = replace(INFO, inserted=0, sampled=0, updates=UpdateCounts(0, 0, 0), class_counts={})
    seen = observe(empty, StudentProgress(), classes=10)
    assert (seen.stale_share, seen.samples_per_insert, seen.class_entropy) == (0.0, 0.0, 0.0)
    assert (seen.probe_kl, seen.probe_agreement) == (None, None)


@pytest.mark.parametrize(
    ("counts", "classes", "expected"),
    [
        ({}, 10, 0.0),
        ({3: 7}, 10, 0.0),
        ({0: 5, 1: 5}, 2, 1.0),
        (dict.fromkeys(range(100), 3), 100, 1.0),
        ({0: 3, 1: 1, 2: 0}, 4, -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(4)),
    ],
)
def test_class_entropy_is_a_share_of_the_largest_entropy(
    counts: dict[int, int], classes: int, expected: float
) -> None:
    assert class_entropy(counts, classes=classes) == pytest.approx(expected)


def test_the_reward_is_the_relative_fall_of_the_probe_kl_per_second() -> None:
    assert reward(REPORT) == pytest.approx(math.log(2) / 10, rel=1e-5)


def test_the_reward_of_a_fall_does_not_depend_on_the_level() -> None:
    low = REPORT.model_copy(update={"before_kl": 0.02, "after_kl": 0.01})
    assert reward(low) == pytest.approx(reward(REPORT), rel=1e-3)


def test_a_student_that_gets_worse_earns_less_than_nothing() -> None:
    assert reward(REPORT.model_copy(update={"after_kl": 4.0})) < 0


def test_perfect_agreement_earns_a_finite_reward() -> None:
    assert math.isfinite(reward(REPORT.model_copy(update={"after_kl": 0.0})))


def test_the_gain_of_agreement_is_the_other_reward() -> None:
    assert reward(REPORT, "agreement") == pytest.approx(0.02)


def test_a_report_that_spans_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match=r"seconds \(0\): a rate needs time"):
        reward(REPORT.model_copy(update={"seconds": 0.0}))


def test_fixed_keeps_the_arm_whatever_it_earns() -> None:
    policy = Fixed()
    assert [policy.decide(OBSERVATION, 2, value) for value in (-1.0, 0.0, None)] == [2, 2, 2]
    policy.load_state_dict(policy.state_dict())


def test_random_draws_every_arm_equally_often() -> None:
    policy = Random(4, np.random.default_rng(0))
    counts = Counter(policy.decide(OBSERVATION, 0, 1.0) for _ in range(4000))
    # Standard deviation of each count: sqrt(4000 * 1/4 * 3/4) = 27.
    assert all(abs(counts[arm] - 1000) < 4 * 27 for arm in range(4))


@pytest.mark.parametrize(
    ("settings", "kind"),
    [(FixedSettings(), Fixed), (RandomSettings(), Random), (LearnedSettings(), DiscountedThompson)],
)
def test_settings_name_their_policy(settings: FixedSettings, kind: type[Policy]) -> None:
    policy = build(settings, arms=3, generator=np.random.default_rng(0))
    assert type(policy) is kind
    assert 0 <= policy.decide(OBSERVATION, 0, None) < 3


def test_settings_reach_the_learner() -> None:
    # With no exploration at all and one arm ahead, the choice is certain.
    greedy = build(LearnedSettings(exploration=0), arms=3, generator=np.random.default_rng(0))
    greedy.load_state_dict({"counts": [9, 9, 9], "sums": [0, 5, 0], "baseline": [1, 0, 1]})
    assert {greedy.decide(OBSERVATION, 0, None) for _ in range(50)} == {1}


def test_the_baseline_standardises_against_earlier_rewards_only() -> None:
    baseline = Baseline()
    rewards = np.random.default_rng(0).normal(5.0, 2.0, 400)
    surprises = np.array([baseline.standardise(float(value)) for value in rewards])
    assert surprises[0] == surprises[1] == 0.0
    # The mean of about ten earlier rewards adds its own noise: a spread of sqrt(1 + 1/19) = 1.03.
    assert abs(surprises[50:].mean()) < 0.2
    assert 0.9 < surprises[50:].std() < 1.3


def test_one_burst_is_clipped() -> None:
    baseline = Baseline()
    for value in (1.0, 1.1, 0.9, 1.05):
        baseline.standardise(value)
    assert baseline.standardise(1e9) == LARGEST_SURPRISE


def test_equal_rewards_are_no_surprise() -> None:
    baseline = Baseline()
    assert [baseline.standardise(0.5) for _ in range(5)] == [0.0] * 5


def test_a_decision_without_a_reward_learns_nothing() -> None:
    policy = DiscountedThompson(3, np.random.default_rng(0))
    before = policy.state_dict()
    policy.decide(OBSERVATION, 1, None)
    assert policy.state_dict() == before


def test_old_rewards_are_discounted() -> None:
    policy = DiscountedThompson(2, np.random.default_rng(0), discount=0.5)
    for arm in (0, 0, 1):
        policy.decide(OBSERVATION, arm, 1.0)
    assert policy.state_dict()["counts"] == [0.75, 1.0]


def test_a_learner_goes_on_from_its_state_as_json() -> None:
    generator, copy = np.random.default_rng(1), np.random.default_rng(2)
    first = DiscountedThompson(3, generator)
    for step in range(20):
        first.decide(OBSERVATION, step % 3, math.sin(step))
    second = DiscountedThompson(3, copy)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    copy.bit_generator.state = generator.bit_generator.state
    choices = [
        [policy.decide(OBSERVATION, 1, 0.1 * step) for step in range(50)]
        for policy in (first, second)
    ]
    assert choices[0] == choices[1]
    assert first.state_dict() == second.state_dict()


def test_a_state_of_another_grid_is_refused() -> None:
    state = DiscountedThompson(3, np.random.default_rng(0)).state_dict()
    with pytest.raises(ValueError, match=r"counts \(3 arms\) do not fit 4 arms"):
        DiscountedThompson(4, np.random.default_rng(0)).load_state_dict(state)


def test_decisions_are_reproducible_from_a_seed() -> None:
    runs = [DiscountedThompson(5, np.random.default_rng(7)) for _ in range(2)]
    choices = [
        [policy.decide(OBSERVATION, step % 5, float(step % 3)) for step in range(60)]
        for policy in runs
    ]
    assert choices[0] == choices[1]
    assert len(set(choices[0])) > 1
