from __future__ import annotations

import json

from buffer.progress import StudentProgress
from buffer.version import Version
from distiller.journal import Journal


def _progress(attempt, step):
    return StudentProgress(version=Version(attempt, step), kl_mean=0.5)


def test_a_line_holds_every_field_and_the_learning_rate(tmp_path):
    Journal(tmp_path / "metrics.jsonl").write(_progress(1, 7), learning_rate=0.25)
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    values = json.loads(line)
    assert values.pop("learning_rate") == 0.25
    assert StudentProgress.model_validate(values) == _progress(1, 7)


def test_a_resumed_training_appends(tmp_path):
    path = tmp_path / "metrics.jsonl"
    Journal(path).write(_progress(1, 7), learning_rate=0.25)
    Journal(path).write(_progress(2, 5), learning_rate=0.25)
    versions = [json.loads(line)["version"] for line in path.read_text().splitlines()]
    assert versions == [[1, 7], [2, 5]]


def test_half_a_line_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"version": [1, 7], "lo')
    Journal(path).write(_progress(2, 5), learning_rate=0.25)
    assert json.loads(path.read_text().splitlines()[-1])["version"] == [2, 5]


def test_an_evaluation_is_a_line_of_its_own_kind(tmp_path):
    path = tmp_path / "metrics.jsonl"
    Journal(path).write_evaluation(Version(2, 5), [5, 12.5, 0.25, 61.0])
    assert json.loads(path.read_text()) == {
        "event": "evaluation",
        "version": [2, 5],
        "step": 5,
        "elapsed_seconds": 12.5,
        "elapsed_share": 0.25,
        "student_accuracy": 61.0,
    }
