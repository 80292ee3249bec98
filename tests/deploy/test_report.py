from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from buffer.config import BufferTable
from buffer.errors import RateLimited
from buffer.memory import InMemoryReplayBuffer
from buffer.sample import Sample
from deploy import report
from deploy.config import DEFAULT_CONFIG, load


def samples(count: int, shape: tuple[int, int, int] = (1, 4, 4)) -> list[Sample]:
    return [
        Sample(
            image=np.full(shape, i % 3 * 100, np.uint8),
            predicted_class=i % 3,
            confidence=0.9,
            disagreement=1.0,
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_gallery_has_a_row_per_class(channels: int) -> None:
    replay = InMemoryReplayBuffer(BufferTable(capacity=60, probe_capacity=0), seed=0)
    replay.insert(samples(60, (channels, 4, 4)), producer="p", sequence=1)
    picture = report.gallery(replay, 3)
    assert picture is not None
    grid = np.asarray(picture.convert("L"))
    factor = grid.shape[1] // (report.GALLERY_COLUMNS * 5 + 1)
    for row, grey in enumerate((0, 100, 200)):
        inside = grid[(row * 5 + 1) * factor : (row * 5 + 5) * factor]
        assert set(np.unique(inside)) == {grey, 255}


def test_a_limiter_that_refuses_draws_still_leaves_a_gallery() -> None:
    table = BufferTable(capacity=60, probe_capacity=0, samples_per_insert=1.0, error_buffer=300.0)
    replay = InMemoryReplayBuffer(table, seed=0)
    replay.insert(samples(60), producer="p", sequence=1)
    for _ in range(4):
        replay.sample(64)
    before = replay.info()
    with pytest.raises(RateLimited):
        replay.sample(64)
    assert report.gallery(replay, 3) is not None
    assert replay.info().sampled == before.sampled


def test_an_unfilled_buffer_has_no_gallery() -> None:
    replay = InMemoryReplayBuffer(BufferTable(capacity=60, probe_capacity=0), seed=0)
    replay.insert(samples(5), producer="p", sequence=1)
    assert report.gallery(replay, 3) is None


def test_a_written_configuration_can_be_run_again(tmp_path: Path) -> None:
    config = load(DEFAULT_CONFIG)
    report.write_config(config, tmp_path)
    assert load(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    "url",
    [
        "redis://:secret@host:1/0",
        "rediss://user:secret@host",
        "redis://host?password=secret",
        "unix:///x.sock?password=secret",
    ],
)
def test_a_password_is_not_written_down(tmp_path: Path, url: str) -> None:
    config = load(DEFAULT_CONFIG, [f"buffer.url={url}"])
    report.write_config(config, tmp_path)
    text = (tmp_path / "config.yaml").read_text()
    assert "secret" not in text
    assert yaml.safe_load(text)["buffer"]["url"] is None
    assert "secret" not in json.dumps(report.public(config))


def test_a_url_without_a_password_is_kept(tmp_path: Path) -> None:
    config = load(DEFAULT_CONFIG, ["buffer.url=redis://host:1/0"])
    assert report.public(config)["buffer"]["url"] == "redis://host:1/0"


def test_an_earlier_runs_results_are_cleared_and_the_rest_is_left(tmp_path: Path) -> None:
    for name in ("result.json", "student.safetensors", "timeline.jsonl", "mine.txt"):
        (tmp_path / name).write_text("old")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "000001.png").write_text("old")
    report.clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_result_is_strict_json_and_replaces_an_older_one(tmp_path: Path) -> None:
    report.write_result({"a": 1}, tmp_path)
    report.write_result({"a": None}, tmp_path)
    assert json.loads((tmp_path / "result.json").read_text()) == {"a": None}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.write_result({"a": float("nan")}, tmp_path)


def test_the_revision_is_that_of_our_own_tree_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for command in (
        "git init -q .",
        "git -c user.name=a -c user.email=a@b commit -q --allow-empty -m theirs",
    ):
        subprocess.run(command.split(), cwd=tmp_path, check=True)
    installed = tmp_path / "site-packages" / "report.py"
    installed.parent.mkdir()
    installed.touch()
    monkeypatch.setattr(report, "__file__", str(installed))
    assert report.git_revision() is None
    subprocess.run(["git", "add", str(installed)], cwd=tmp_path, check=True)
    found = report.git_revision()
    assert found is not None
    assert re.fullmatch(r"[0-9a-f]{40}-dirty", found)


def test_the_environment_says_what_a_run_runs_on() -> None:
    told = report.environment()
    assert set(told) == {"versions", "git_revision", "machine"}
    assert told["machine"]["cores"] > 0
    assert told["machine"]["memory_gibibytes"] > 0
    assert torch.backends.cpu.get_cpu_capability() in told["machine"]["processor"]
    assert json.loads(json.dumps(told)) == told


def test_versions_name_what_a_result_depends_on() -> None:
    assert {"python", "ssdkd", "torch", "ray", "redis"} <= set(report.versions())
