import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from buffer.config import BufferTable
from buffer.controller.arms import STABLE_PRODUCT, Arm, choose, in_force
from buffer.controller.config import FixedSettings, LearnedSettings, RandomSettings
from buffer.errors import ConfigError
from buffer.params import SamplingParams, start_params
from buffer.version import Version

START = SamplingParams()
LIMITED = SamplingParams(samples_per_insert=8.0)


def names(arms: tuple[Arm, ...]) -> list[str]:
    return [arm.name for arm in arms]


def test_fixed_has_one_arm_that_changes_nothing() -> None:
    assert choose(FixedSettings(), START, uniform=False) == (Arm("start"),)


def test_the_built_in_grid_is_a_handful_of_different_arms() -> None:
    arms = choose(LearnedSettings(), START, uniform=False)
    assert names(arms) == ["start", "uniform", "sharp", "corrected", "balanced", "hard", "easy"]
    applied = [arm.applied(START, Version(1, 1)) for arm in arms]
    assert all(applied.count(params) == 1 for params in applied)


def test_the_first_arm_is_the_configured_values_under_a_new_version() -> None:
    params = choose(LearnedSettings(), START, uniform=False)[0].applied(START, Version(2, 5))
    assert params == START.model_copy(update={"version": Version(2, 5)})


def test_the_rate_is_only_turned_where_the_limiter_is_on() -> None:
    arms = choose(LearnedSettings(), LIMITED, uniform=False)
    assert names(arms)[-2:] == ["fresh", "reuse"]
    assert [arm.changes["samples_per_insert"] for arm in arms[-2:]] == pytest.approx([8 / 1.5, 12])
    unlimited = choose(LearnedSettings(), START, uniform=False)
    assert all("samples_per_insert" not in arm.changes for arm in unlimited)


def test_a_uniform_selector_leaves_only_the_arms_of_inversion() -> None:
    assert names(choose(RandomSettings(), START, uniform=True)) == ["start", "hard", "easy"]


def test_arms_that_would_change_nothing_are_left_out() -> None:
    idle = SamplingParams(
        priority_exponent=0.0,
        importance_exponent=1.0,
        uniform_share=1.0,
        label_balance=1.0,
        difficulty_exponent=0.0,
        adversarial_weight=0.0,
    )
    assert names(choose(RandomSettings(), idle, uniform=False)) == ["start"]


@given(
    alpha=st.floats(0, 2),
    beta=st.floats(0, 1),
    share=st.floats(0, 1),
    balance=st.floats(0, 1),
    gamma=st.floats(0, 5),
    adversarial=st.floats(0, 1e6),
    rate=st.none() | st.floats(1e-3, 1e6),
)
def test_every_built_in_arm_is_valid_whatever_was_configured(
    alpha: float,
    beta: float,
    share: float,
    balance: float,
    gamma: float,
    adversarial: float,
    rate: float | None,
) -> None:
    if alpha * beta >= 1:
        return
    start = SamplingParams(
        priority_exponent=alpha,
        importance_exponent=beta,
        uniform_share=share,
        label_balance=balance,
        difficulty_exponent=gamma,
        adversarial_weight=adversarial,
        samples_per_insert=rate,
    )
    for arm in choose(LearnedSettings(), start, uniform=False):
        params = arm.applied(start, Version(1, 1))
        product = params.priority_exponent * params.importance_exponent
        assert product <= max(STABLE_PRODUCT + 1e-9, alpha * beta)
        assert (params.samples_per_insert is None) == (rate is None)


def test_configured_arms_replace_the_built_in_ones() -> None:
    settings = RandomSettings(arms={"mixed": {"uniform_share": 0.3, "difficulty_exponent": 2.0}})
    start, mixed = choose(settings, START, uniform=False)
    assert start == Arm("start")
    params = mixed.applied(START, Version(1, 1))
    assert (params.uniform_share, params.difficulty_exponent) == (0.3, 2.0)
    assert params.adversarial_weight == START.adversarial_weight


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("start", {"uniform_share": 0.1}, r"arms\.start: the start values are always the first"),
        ("a", {"alpha": 0.1}, r"arms\.a \(alpha\): not a sampling parameter; there are priority_"),
        ("a", {"version": 3.0}, r"arms\.a \(version\): not a sampling parameter"),
        ("a", {}, r"arms\.a \(\{\}\): changes nothing"),
        ("a", {"uniform_share": 1.5}, r"arms\.a: uniform_share \(1\.5\): .*less than or equal"),
        (
            "a",
            {"priority_exponent": 2.0, "importance_exponent": 0.5},
            r"arms\.a: priority_exponent \* importance_exponent \(1\) is not below 1",
        ),
        (
            "a",
            {"priority_exponent": 1.5, "importance_exponent": 0.9},
            r"arms\.a: .* \(1\.35\) is not below 1: the priorities w \* KL would oscillate",
        ),
        (
            "a",
            {"samples_per_insert": 4.0},
            r"samples_per_insert \(4\): buffer\.samples_per_insert is not set, and an",
        ),
    ],
)
def test_impossible_arms_are_refused(name: str, changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(RandomSettings(arms={name: changes}), START, uniform=False)


@pytest.mark.parametrize("rate", [3.9, 16.1])
def test_a_rate_far_from_the_configured_one_is_refused(rate: float) -> None:
    settings = RandomSettings(arms={"a": {"samples_per_insert": rate}})
    message = (
        rf"samples_per_insert \({rate:g}\) is not within a factor of 2 .*\(8\): the configured"
    )
    with pytest.raises(ConfigError, match=message):
        choose(settings, LIMITED, uniform=False)


def test_an_arm_without_effect_on_a_uniform_selector_is_refused() -> None:
    settings = RandomSettings(arms={"a": {"label_balance": 0.5}})
    with pytest.raises(ConfigError, match=r"\(label_balance\): without effect while buffer\.sel"):
        choose(settings, START, uniform=True)


def test_the_first_arm_has_the_values_of_the_buffer_table() -> None:
    values = {
        "priority_exponent": 0.9,
        "importance_exponent": 0.3,
        "uniform_share": 0.1,
        "label_balance": 0.2,
        "age_discount": 0.05,
        "samples_per_insert": 3.0,
        "difficulty_exponent": 2.0,
        "adversarial_weight": 7.0,
    }
    start = start_params(BufferTable(**values))
    first = choose(LearnedSettings(), start, uniform=False)[0].applied(start, Version(1, 1))
    assert first.model_dump() == {**values, "version": Version(1, 1)}


def test_a_uniform_selector_starts_with_uniform_draws() -> None:
    start = start_params(BufferTable(selector="uniform", uniform_share=0.1))
    first, *others = choose(RandomSettings(), start, uniform=True)
    assert first.applied(start, Version(1, 1)).uniform_share == 1.0
    assert [arm.applied(start, Version(1, 1)).uniform_share for arm in others] == [1.0, 1.0]


def test_the_arm_in_force_is_recognised_by_its_values() -> None:
    arms = choose(LearnedSettings(), START, uniform=False)
    for index, arm in enumerate(arms):
        assert in_force(arms, START, arm.applied(START, Version(3, 9))) == index


def test_values_of_no_arm_are_recognised_as_such() -> None:
    arms = choose(LearnedSettings(), START, uniform=False)
    assert in_force(arms, START, SamplingParams(uniform_share=0.123)) is None


def test_an_impossible_change_cannot_be_applied() -> None:
    with pytest.raises(ValidationError, match="is not below 1"):
        Arm("a", {"priority_exponent": 2.0, "importance_exponent": 1.0}).applied(START, (1, 1))
