"""The studies can be run, and their tables reckon right."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.config import load
from tests.benchmarks.studies.figures import moved
from tests.benchmarks.studies.study import QUESTIONS, configuration, overrides, study
from tests.benchmarks.studies.tables import advantage, spread, time_to

NAMES = sorted(path.stem for path in QUESTIONS.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_every_arm_is_a_valid_configuration_and_differs_from_the_others(name: str) -> None:
    asked = study(name)
    runs = {
        (
            load(
                configuration(asked), ["teacher.weights=x", *overrides(asked, arm, seed=0)]
            ).model_dump_json(),
            str(asked.other_turns.get(arm)),
        )
        for arm in asked.arms
    }
    assert len(runs) == len(asked.arms) > 1
    assert set(asked.other_turns) <= set(asked.arms)


def run(seed: int, pool: float, *accuracies: float) -> dict[str, Any]:
    """A record with measurements at equal distances over 100 seconds."""
    shares = [(number + 1) / len(accuracies) for number in range(len(accuracies))]
    curve = [[0, 100 * s, s, a] for s, a in zip(shares, accuracies, strict=True)]
    return {"seed": seed, "pool_agreement": pool, "curve": curve}


def test_the_time_to_a_goal_is_that_of_the_mean_curve() -> None:
    runs = [run(0, 0, 20, 60, 80, 80), run(1, 0, 40, 60, 60, 80)]
    assert time_to(60, runs) == "50 s"
    assert time_to(70, runs) == "75 s"
    assert time_to(81, runs) == "-"
    assert time_to(10, [{"seed": 0}]) == "-"


def test_an_advantage_is_paired_by_seed() -> None:
    first = [run(0, 50.0), run(1, 60.0), run(2, 70.0), run(3, 99.0)]
    better = [run(2, 72.0), run(0, 51.0), run(1, 63.0)]
    # Differences 1, 3 and 2: mean 2, standard error 1/sqrt(3), t with two degrees 4.303.
    assert advantage(better, first) == "+2.00 (-0.48 to +4.48)"
    assert advantage(better[:1], first) == "+2.00"
    assert advantage(first, first) == "-"
    assert advantage([{"seed": 0}], first) == "-"


def test_of_one_value_there_is_no_deviation() -> None:
    assert spread([1.0]) == "1.00"
    assert spread([1.0, 3.0]) == "2.00 (1.41)"


def test_what_moved_since_the_last_run_is_said_in_ratios() -> None:
    before = {"steps": 100.0, "inverted": 10.0, "idle": 0.0}
    assert moved({"steps": 85.0, "inverted": 10.5, "idle": 3.0}, before) == (
        "times the last: steps 0.85"
    )
    assert "nothing moved" in moved(before, before)
    assert "no earlier run" in moved(before, {})
