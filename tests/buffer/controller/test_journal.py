from pathlib import Path
from typing import Any

import pytest

from buffer.controller.journal import Journal
from buffer.params import SamplingParams
from buffer.version import Version

START = SamplingParams()
IN_FORCE = SamplingParams(uniform_share=1 / 3, version=Version(2, 7))


def write_start(journal: Journal, params: SamplingParams = START, policy: str = "learned") -> None:
    arms = {"start": {}, "flat": {"uniform_share": 1 / 3}}
    journal.write("start", params=params.model_dump(mode="json"), arms=arms, policy=policy)


def write_decision(journal: Journal, params: SamplingParams, state: Any = None) -> None:
    journal.write("decision", params=params.model_dump(mode="json"), arm="flat", state=state or {})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "controller.jsonl"


def test_the_decision_in_force_is_found_with_its_start_and_state(path: Path) -> None:
    journal = Journal(path)
    write_start(journal)
    write_decision(journal, IN_FORCE, {"counts": [1.5]})
    write_decision(journal, IN_FORCE.model_copy(update={"version": Version(2, 8)}))
    journal.write("kept", reason="no probe report")
    point = Journal(path).resume_point(IN_FORCE, policy="learned")
    assert point is not None
    assert point.start == START
    assert point.arms["flat"] == {"uniform_share": 1 / 3}
    assert point.state == {"counts": [1.5]}


def test_the_newest_of_two_runs_in_one_file_counts(path: Path) -> None:
    journal = Journal(path)
    for weight in (1.0, 2.0):
        write_start(journal, SamplingParams(adversarial_weight=weight))
        write_decision(journal, IN_FORCE)
    point = journal.resume_point(IN_FORCE, policy="learned")
    assert point is not None
    assert point.start.adversarial_weight == 2.0


@pytest.mark.parametrize(
    "other",
    [{"version": Version(2, 6)}, {"version": Version(1, 7)}, {"uniform_share": 0.0}],
)
def test_decisions_that_are_not_in_force_are_not_believed(
    path: Path, other: dict[str, Any]
) -> None:
    journal = Journal(path)
    write_start(journal)
    write_decision(journal, IN_FORCE.model_copy(update=other))
    assert journal.resume_point(IN_FORCE, policy="learned") is None


def test_the_memory_of_another_policy_is_not_believed(path: Path) -> None:
    journal = Journal(path)
    write_start(journal, policy="random")
    write_decision(journal, IN_FORCE)
    assert journal.resume_point(IN_FORCE, policy="learned") is None


def test_a_line_cut_off_by_a_crash_is_passed_over(path: Path) -> None:
    journal = Journal(path)
    write_start(journal)
    with path.open("a") as file:
        file.write('{"event": "decision", "par\n')
    write_decision(journal, IN_FORCE)
    assert journal.resume_point(IN_FORCE, policy="learned") is not None


def test_a_line_cut_off_before_its_end_does_not_swallow_the_next(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"event": "decision", "par')
    journal = Journal(path)
    write_start(journal)
    write_decision(journal, IN_FORCE)
    assert journal.resume_point(IN_FORCE, policy="learned") is not None


def test_there_is_nothing_to_go_on_from_without_a_file(path: Path) -> None:
    assert Journal(path).resume_point(IN_FORCE, policy="learned") is None
    nowhere = Journal(None)
    write_start(nowhere)
    assert nowhere.resume_point(IN_FORCE, policy="learned") is None
    assert not path.exists()
