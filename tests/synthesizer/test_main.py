from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from synthesizer.__main__ import main, with_files
from synthesizer.config import SynthesizerFile


@pytest.fixture
def file(tables: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("SSDKD_REDIS_URL", raising=False)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**tables, "distiller": {"anything": "goes"}}))
    return path


def test_help_needs_neither_torch_nor_ray() -> None:
    code = (
        "import runpy, sys; sys.argv = ['synthesizer', '--help']\n"
        "try: runpy.run_module('synthesizer', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'ray', 'redis', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--config" in result.stdout
    assert "--set" in result.stdout


def test_without_a_redis_url_it_says_what_to_set(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(file)]) == 2
    assert "buffer.url (None): a synthesizer on its own needs a Redis" in (capsys.readouterr().err)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("synthesizer.batch_size=0", "synthesizer.batch_size (0)"),
        ("synthesizer.batchsize=8", "synthesizer.batchsize (8)"),
        ("nonsense", "override (nonsense): expected table.key=value"),
    ],
)
def test_impossible_settings_end_it_with_a_message(
    assignment: str, message: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(file), "--set", assignment]) == 2
    assert message in capsys.readouterr().err


def test_settings_are_checked_against_the_teacher_before_ray_starts(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "buffer.url=redis://nowhere.invalid:1"
    steps = "synthesizer.kwargs.inner_steps=7"
    cluster = "run.ray_address=127.0.0.1:1"
    arguments = [part for setting in (url, cluster, steps) for part in ("--set", setting)]
    assert main(["--config", str(file), *arguments]) == 2
    assert "inner_steps (7) has no published learning rates" in capsys.readouterr().err


def test_file_names_are_made_absolute_for_actors_in_other_folders(
    configure: Callable[..., SynthesizerFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = with_files(configure(teacher={"weights": "teacher.pt"}))
    assert found.teacher.weights == str(tmp_path / "teacher.pt")


def test_weights_that_are_a_function_are_refused(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(file), "--set", "teacher.weights=recipes:train"]) == 2
    assert (
        "teacher.weights (recipes:train) is a function that makes a teacher, which only the "
        "pipeline calls: each synthesizer would invert another one"
    ) in capsys.readouterr().err


def test_a_missing_file_ends_it_with_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(tmp_path / "none.yaml")]) == 2
    assert "No such file" in capsys.readouterr().err


def test_without_a_ray_cluster_it_says_what_to_set(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(["--config", str(file), "--set", "buffer.url=redis://nowhere.invalid:1"]) == 2
    assert "run.ray_address (None): a synthesizer on its own needs a Ray cluster" in (
        capsys.readouterr().err
    )
