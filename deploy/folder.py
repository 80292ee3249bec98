"""The folder of a run's outputs, claimed by one run at a time."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from buffer.errors import ConfigError

MARK = "run.lock"
"""The file that is locked while a run writes to its folder, and by which later runs know it."""

LOOKS, LOOK_SECONDS = 3, 0.05
"""Somebody may just look whether the folder is claimed, and so hold it for a moment."""


@contextmanager
def claimed(out: Path) -> Iterator[Path]:
    """Holds a folder for a run; makes it if need be.

    A run replaces what an earlier one left: results, checkpoints, journals. So a folder with files
    that no run of ours wrote is refused, and one that a live run writes to.

    Raises:
        ConfigError: naming the folder and what is the matter with it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"run.out ({out}): {error.strerror}, the outputs would have no place"
        ) from error
    if not (out / MARK).exists() and any(out.iterdir()):
        raise ConfigError(
            f"run.out ({out}) holds files that no run wrote, and this one would replace what "
            "has the names of its outputs; choose an empty folder, or one of an earlier run"
        )
    with (out / MARK).open("w") as mark:
        try:
            _lock(mark)
        except OSError as error:
            raise ConfigError(
                f"run.out ({out}): a live run writes there, the two would overwrite each other's "
                "outputs; choose another folder"
            ) from error
        yield out


def is_claimed(out: Path) -> bool:
    """Whether a live run holds a folder. One on another machine is seen if the file system can."""
    try:
        with (out / MARK).open() as mark:
            fcntl.flock(mark, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _lock(mark: IO[str]) -> None:
    for left in reversed(range(LOOKS)):
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            if left == 0:
                raise
        time.sleep(LOOK_SECONDS)
