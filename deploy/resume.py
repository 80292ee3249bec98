"""What a run needs to go on after its pipeline has died: kept beside the services' checkpoints.

The student, its optimiser and the schedule are in the distiller's checkpoint, what a synthesizer
has learned in its own, the controller's memory in its journal. Here are the rest: the buffer, and
what was counted. The buffer on a server that outlived the pipeline is used as it is, if nobody else
had it meanwhile; otherwise its snapshot is; otherwise it is filled anew.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Literal, NamedTuple

from buffer.errors import ConfigError, RateLimited, SsdkdError
from buffer.interface import Replay
from deploy.report import write_atomically
from deploy.supervisor import Totals

STATE, SNAPSHOT = "pipeline.json", "buffer.zip"
ROLE = "pipeline"
"""Whose attempts are counted in the buffer, to know who had it last."""

logger = logging.getLogger(__name__)


class State(NamedTuple):
    """What a pipeline knows of itself."""

    run: str
    attempt: int
    """In the buffer; one more than that of the pipeline before, if nobody came in between."""
    totals: Totals
    finished: bool = False


def read(checkpoints: Path) -> State | None:
    """The state of the pipeline that wrote there last, if any did.

    Raises:
        ConfigError: there is something else.
    """
    path = checkpoints / STATE
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return State(**{**values, "totals": Totals(**values["totals"])})
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"run.out ({path}): the state of the run cannot be read, it cannot go on: {error}"
        ) from error


def recover(
    replay: Replay, checkpoints: Path, earlier: State, attempt: int
) -> Literal["kept", "restored", "empty"]:
    """Gives a run that goes on its buffer back; says what there was.

    Args:
        replay: as it was found.
        checkpoints: folder of the state.
        earlier: of the pipeline before.
        attempt: of this one.
    """
    if attempt == earlier.attempt + 1 and replay.info().size > 0:
        logger.warning("the buffer is still there, with %d samples", replay.info().size)
        return "kept"
    path = checkpoints / SNAPSHOT
    if path.exists():
        try:
            count = replay.restore(path)
        except SsdkdError as error:
            logger.warning("the buffer's snapshot is of no use, it is filled anew: %s", error)
        else:
            logger.warning("the buffer is restored from its snapshot, with %d samples", count)
            return "restored"
    else:
        logger.warning("the buffer is lost and had no snapshot, it is filled anew")
    replay.reset()
    return "empty"


class Keeper:
    """Saves the state now and then, from a background thread; a context manager.

    Args:
        replay: of the run.
        checkpoints: folder of the state.
        state: what to save, asked each time.
        seconds: between two; ``None`` saves no buffer, and the state only at the end.
    """

    def __init__(
        self,
        replay: Replay,
        checkpoints: Path,
        state: Callable[[], State],
        seconds: float | None,
    ) -> None:
        self._replay, self._folder, self._state = replay, checkpoints, state
        self._seconds = seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def __enter__(self) -> Keeper:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._write(self._state())
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._ended.set()
        self._thread.join()
        if error is not None:
            self._save()
        self._write(self._state()._replace(finished=error is None))

    def _keep(self) -> None:
        while not self._ended.wait(self._seconds):
            self._save()
            self._write(self._state())

    def _save(self) -> None:
        if self._seconds is None:
            return
        try:
            self._replay.snapshot(self._folder / SNAPSHOT)
        except (SsdkdError, OSError, RateLimited) as error:
            logger.warning("no snapshot of the buffer, the one before stays: %s", error)

    def _write(self, state: State) -> None:
        values = {**state._asdict(), "totals": asdict(state.totals)}
        write_atomically(self._folder / STATE, json.dumps(values).encode())
