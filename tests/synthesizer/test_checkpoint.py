from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from synthesizer.checkpoint import Checkpoint

STATE = {"weights": torch.arange(3.0), "betas": (0.5, 0.999), "rounds": 7, "averages": None}


def kept(path: Path | None, *, subject: str = "fast_meta", **settings: Any) -> Checkpoint:
    return Checkpoint(path, subject=subject, interval_seconds=60.0, **settings)


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "not yet there" / "synthesizer-0.pt"
    kept(path).save(STATE)
    loaded = kept(path).load()
    assert loaded is not None
    assert torch.equal(loaded.pop("weights"), STATE["weights"])
    assert loaded == {"betas": (0.5, 0.999), "rounds": 7, "averages": None}
    assert [file.name for file in path.parent.iterdir()] == ["synthesizer-0.pt"]


def test_without_a_file_there_is_no_state(tmp_path: Path) -> None:
    assert kept(tmp_path / "none.pt").load() is None
    nowhere = kept(None)
    nowhere.save(STATE)
    nowhere.forget()
    assert nowhere.load() is None


def test_a_state_is_saved_every_so_often_and_made_only_then(tmp_path: Path) -> None:
    path, now, asked = tmp_path / "state.pt", 0.0, []
    checkpoint = kept(path, clock=lambda: now)

    def state() -> dict[str, Any]:
        asked.append(now)
        return STATE

    for now in (0.0, 59.0, 60.0, 61.0, 119.0, 120.0):  # noqa: B007 - the clock reads it
        checkpoint.save_when_due(state)
    assert asked == [60.0, 120.0]


def test_the_state_of_another_method_or_teacher_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.pt"
    kept(path, subject="another").save(STATE)
    assert kept(path).load() is None
    assert f"{path} is of another method or teacher and is not used" in caplog.text


class Malicious:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.touch(),
        lambda path: path.write_bytes(b"no archive"),
        lambda path: torch.save(Malicious(), path),
        lambda path: torch.save([1, 2], path),
    ],
    ids=["empty", "foreign", "code", "list"],
)
def test_a_damaged_file_costs_what_was_learned_and_runs_no_code(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "state.pt"
    write(path)
    assert kept(path).load() is None
    assert "cannot be read, what was learned is lost" in caplog.text
    assert not (tmp_path / "harmed").exists()


def test_a_folder_that_cannot_be_written_is_survived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    kept(tmp_path / "file" / "state.pt").save(STATE)
    assert "cannot be written, a successor begins anew" in caplog.text


def test_a_forgotten_state_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    kept(path).save(STATE)
    kept(path).forget()
    assert kept(path).load() is None
