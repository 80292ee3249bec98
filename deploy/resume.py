"""What a run needs to go on after its pipeline has died: kept beside the services' checkpoints.

The student, its optimiser and the schedule are in the distiller's checkpoint, what a synthesizer
has learned in its own, the controller's memory in its journal. Here are the rest: the buffer, and
what was counted. The buffer on a server that outlived the pipeline is used as it is, if it is still
the run's own; otherwise its snapshot is; otherwise it is filled anew.

How a buffer is known for a run's own: it counts its pipelines, so somebody in between is noticed,
and holds the run's mark, which a server that has lost its data has not.
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Literal, NamedTuple, Self

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
    mark: str | None = None
    """That of the run in its buffer; ``None`` while the buffer is not known to be the run's."""
    totals: Totals = Totals()
    finished: bool = False


Found = Literal["kept", "restored", "empty"]


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


def forget(checkpoints: Path) -> None:
    """Removes what another run left: its buffer is none to go on with."""
    for name in (STATE, SNAPSHOT):
        (checkpoints / name).unlink(missing_ok=True)


def write(state: State, checkpoints: Path) -> None:
    """Writes a pipeline's state, for :func:`read`."""
    checkpoints.mkdir(parents=True, exist_ok=True)
    values = {**state._asdict(), "totals": asdict(state.totals)}
    write_atomically(checkpoints / STATE, json.dumps(values).encode())


def begin(replay: Replay, run: str, checkpoints: Path, earlier: State | None) -> State:
    """Makes the buffer that of a pipeline which begins now; its state, which is written, too.

    A pipeline that is killed in here, or has nothing to work with afterwards, can be gone on from.

    Args:
        replay: of the run; empty, unless the run goes on.
        run: its name.
        checkpoints: folder of the state; see :func:`forget`.
        earlier: of the pipeline before, if the run goes on.
    """
    attempt = replay.begin_attempt(ROLE)
    if earlier is None:
        return _marked(replay, State(run, attempt), checkpoints)
    ours = (
        attempt == earlier.attempt + 1
        and earlier.mark is not None
        and replay.begin_attempt(_role(earlier.mark)) > 1
    )
    state = earlier._replace(attempt=attempt, mark=earlier.mark if ours else None)
    write(state, checkpoints)
    found = _recover(replay, checkpoints, ours=ours)
    logger.warning("%s, with %d samples", SAID[found], replay.info().size)
    return state if ours else _marked(replay, state, checkpoints)


SAID: dict[Found, str] = {
    "kept": "the buffer is still there",
    "restored": "the buffer is restored from its snapshot",
    "empty": "the buffer is lost and filled anew",
}


def _recover(replay: Replay, checkpoints: Path, *, ours: bool) -> Found:
    if ours and replay.info().size > 0:
        return "kept"
    path = checkpoints / SNAPSHOT
    try:
        if path.exists():
            replay.restore(path)
            return "restored"
    except SsdkdError as error:
        logger.warning("the buffer's snapshot is of no use: %s", error)
    replay.reset()
    return "empty"


def _marked(replay: Replay, state: State, checkpoints: Path) -> State:
    """The state of a pipeline whose buffer has a new mark."""
    marked = state._replace(mark=secrets.token_hex(8))
    replay.begin_attempt(_role(str(marked.mark)))
    write(marked, checkpoints)
    return marked


def _role(mark: str) -> str:
    """Counted like a pipeline: that it was counted is the mark."""
    return f"{ROLE}-{mark}"


class Keeper:
    """Saves the buffer and the state now and then, from a background thread; a context manager.

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
        self._ended, self._finished = threading.Event(), False
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()
        if not self._finished:
            self._save()

    def finish(self) -> None:
        """The run has ended, and all it made is saved: there is nothing to go on with."""
        self._ended.set()
        self._thread.join()
        write(self._state()._replace(finished=True), self._folder)
        self._finished = True

    def _keep(self) -> None:
        while not self._ended.wait(self._seconds):
            self._save()

    def _save(self) -> None:
        try:
            if self._seconds is not None:
                self._replay.snapshot(self._folder / SNAPSHOT)
        except (SsdkdError, OSError, RateLimited) as error:
            logger.warning("no snapshot of the buffer, the one before stays: %s", error)
        try:
            write(self._state(), self._folder)
        except OSError as error:
            logger.warning("the state of the run is not saved, the one before stays: %s", error)
