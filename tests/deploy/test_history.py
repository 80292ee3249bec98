"""What the run page is told of folders of all kinds."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from buffer.errors import ConfigError
from deploy import history
from deploy.folder import MARK, claimed
from deploy.history import Since, news
from deploy.journals import MOST_LINES, thinned
from tests.deploy.recorded import Recording


def lines(told: dict[str, Any], journal: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = told["journals"][journal]["lines"]
    return found


def test_a_folder_in_which_no_run_has_begun_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.yaml, no run has begun there"):
        history.run(tmp_path)
    (tmp_path / "config.yaml").write_text("just text")
    with pytest.raises(ConfigError, match="no configuration, nothing can be shown"):
        history.run(tmp_path)
    (tmp_path / "config.yaml").write_text("{[")
    with pytest.raises(ConfigError, match=r"config\.yaml cannot be read"):
        history.run(tmp_path)


def test_everything_of_a_finished_run_is_told(tmp_path: Path) -> None:
    Recording(tmp_path).go_on(60).end()
    told = news(tmp_path)
    assert told["state"] == "finished"
    assert told["result"]["student_accuracy"] == 93.1
    assert "config" not in told["result"]
    assert told["began"] is not None
    assert told["classes"]["present"] == 10
    assert sum(told["classes"]["counts"].values()) == 400
    reports = [line for line in lines(told, "metrics") if "event" not in line]
    assert len(reports) == 30
    assert len(lines(told, "pictures")) == 5
    decisions = [line for line in lines(told, "controller") if line["event"] == "decision"]
    assert decisions[1]["earned_by"] == decisions[0]["version"]


@pytest.mark.parametrize(
    ("result", "state"),
    [
        ({"interrupted": True, "error": "by hand"}, "interrupted"),
        ({"interrupted": False, "error": "starved"}, "failed"),
        ({}, "finished"),
    ],
)
def test_a_run_that_ended_says_how(tmp_path: Path, result: dict[str, Any], state: str) -> None:
    Recording(tmp_path).go_on(4).end(**result)
    assert news(tmp_path)["state"] == state


def test_a_run_goes_on_as_long_as_it_holds_its_folder(tmp_path: Path) -> None:
    with claimed(tmp_path / "run") as out:
        Recording(out).go_on(4).end(interrupted=True)  # of the pipeline before
        told = news(out)
        assert (told["state"], told["result"]) == ("running", None)
        assert news(out, claimed=False)["state"] == "interrupted"
    assert news(out)["state"] == "interrupted"


def test_a_pipeline_that_is_silent_and_holds_nothing_has_died(tmp_path: Path) -> None:
    Recording(tmp_path).go_on(4)
    (tmp_path / MARK).touch()
    assert news(tmp_path)["state"] == "running"  # perhaps on another machine
    os.utime(tmp_path / "timeline.jsonl", (1e9, 1e9))
    assert news(tmp_path)["state"] == "died"


def test_a_run_of_an_earlier_version_is_told_without_a_timeline(tmp_path: Path) -> None:
    Recording(tmp_path).go_on(20)
    for name in ("timeline.jsonl", "pictures.jsonl", "controller.jsonl"):
        (tmp_path / name).unlink()
    told = news(tmp_path)
    assert (told["state"], told["began"], told["classes"]) == ("died", None, None)
    assert len(lines(told, "metrics")) == 10
    assert lines(told, "pictures") == []


def test_only_what_has_come_since_is_told_again(tmp_path: Path) -> None:
    recording = Recording(tmp_path).go_on(30)
    first = news(tmp_path)
    since = Since(**{name: each["end"] for name, each in first["journals"].items()})
    assert all(lines(news(tmp_path, since), name) == [] for name in since._fields)
    recording.go_on(10)
    second = news(tmp_path, since)
    assert len(lines(second, "metrics")) == len(lines(second, "timeline")) == 5
    assert len(lines(second, "pictures")) == 1
    assert lines(second, "timeline")[0]["elapsed_seconds"] == 32


def test_a_long_run_is_told_in_a_bounded_number_of_lines(tmp_path: Path) -> None:
    Recording(tmp_path).go_on(4)
    for name in ("metrics", "timeline"):
        path = tmp_path / f"{name}.jsonl"
        line = path.read_text().splitlines()[-1] + "\n"
        with path.open("a") as file:
            file.write(line * 3 * MOST_LINES)
    told = news(tmp_path)
    assert len(lines(told, "metrics")) == MOST_LINES
    assert len([each for each in lines(told, "timeline") if "event" not in each]) == MOST_LINES


def test_many_classes_are_told_as_quantiles_and_absent_ones_count(tmp_path: Path) -> None:
    Recording(tmp_path, classes=3000, size=800).go_on(6, pictures=False, controlled=False)
    told = news(tmp_path)
    newest = lines(told, "timeline")[-1]["buffer"]
    assert "classes" not in newest
    assert newest["quantiles"][0] == 0
    assert len(told["classes"]["counts"]) == history.MOST_CLASSES_NOW
    assert told["classes"]["present"] < 800
    assert len(json.dumps(told)) < 100_000


def test_a_buffer_that_was_away_is_told_as_such(tmp_path: Path) -> None:
    Recording(tmp_path).go_on(4)
    with (tmp_path / "timeline.jsonl").open("a") as file:
        file.write('{"time": 1.0, "elapsed_seconds": 9.0, "step": 0, "buffer": null}\n')
    told = news(tmp_path)
    assert lines(told, "timeline")[-1]["buffer"] is None
    assert told["classes"] is not None


def test_lines_that_lack_what_is_shown_are_left_out(tmp_path: Path) -> None:
    Recording(tmp_path).go_on(60)
    before = news(tmp_path)
    for name in ("controller", "metrics"):
        with (tmp_path / f"{name}.jsonl").open("a") as file:
            file.write('{"event": "decision", "arm": "sharp", "params": null}\n{"loss": 1.0}\n')
    told = news(tmp_path)
    assert lines(told, "controller") == lines(before, "controller") != []
    assert lines(told, "metrics") == lines(before, "metrics") != []


def test_a_run_of_many_classes_is_told_in_little_memory(tmp_path: Path) -> None:
    Recording(tmp_path, classes=1000, size=2000).go_on(2, pictures=False, controlled=False)
    path = tmp_path / "timeline.jsonl"
    line = path.read_text().splitlines()[-1] + "\n"
    with path.open("a") as file:
        for _ in range(2000):
            file.write(line)
    tracemalloc.start()
    try:
        told = news(tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len([each for each in lines(told, "timeline") if "event" not in each]) == MOST_LINES
    assert peak < 20 << 20  # all of them parsed at once take 200 MiB


def test_the_first_and_the_last_are_always_kept() -> None:
    assert thinned(range(5), 9) == [0, 1, 2, 3, 4]
    assert thinned(range(101), 3) == [0, 50, 100]


def test_looking_whether_a_folder_is_claimed_keeps_no_run_from_claiming_it(tmp_path: Path) -> None:
    with claimed(tmp_path / "run") as out:
        pass
    for _ in range(50):
        assert history.is_claimed(out) is False
        with claimed(out):
            assert history.is_claimed(out) is True
