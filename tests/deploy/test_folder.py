"""Whose an output folder is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from buffer.errors import ConfigError
from deploy.folder import claimed


def test_a_folder_is_made_and_can_be_used_again_by_a_later_run(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    with claimed(out):
        (out / "result.json").touch()
    with claimed(out):
        assert (out / "result.json").exists()


def test_a_folder_with_files_of_others_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    message = re.escape(f"run.out ({tmp_path}) holds files")
    with pytest.raises(ConfigError, match=message), claimed(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = "File exists, the outputs would have no place"
    with pytest.raises(ConfigError, match=message), claimed(tmp_path / "file"):
        pass


def test_a_folder_that_a_live_run_writes_to_is_refused_until_that_is_dead(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, deploy.folder\n"
        "with deploy.folder.claimed(pathlib.Path(sys.argv[1])): print(1, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ConfigError, match="a live run writes there"), claimed(tmp_path):
            pass
        other.kill()
    with claimed(tmp_path):
        pass
