"""What a run shows while it works: a progress bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from buffer.errors import BufferUnavailable
from buffer.interface import BufferInfo, Replay
from buffer.progress import StudentProgress

POLL_SECONDS = 1.0
LINES = 10
"""Lines over a whole run where there is no terminal."""


def describe(info: BufferInfo, progress: StudentProgress | None, minimum: int) -> tuple[float, str]:
    """How far the run is, in [0, 1], and one line that says what it is doing."""
    if progress is None or progress.phase == "filling":
        share = 0.0 if progress is None else progress.elapsed_share
        return share, f"filling the buffer: {min(info.size, minimum)} of {minimum} samples"
    line = (
        f"step {progress.version.step}, KL {progress.kl_mean:.3f}, "
        f"agreement {100 * progress.agreement:.1f} %, inverted {info.inserted}, "
        f"drawn {progress.samples_drawn}"
    )
    return progress.elapsed_share, line


class Display:
    """Shows a run from a background thread; a context manager."""

    def __init__(self, replay: Replay, minimum: int, console: Console) -> None:
        self._replay, self._minimum, self._console = replay, minimum, console
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="display", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        if self._console.is_terminal:
            self._bar()
        else:
            self._lines()

    def _poll(self) -> tuple[float, str] | None:
        try:
            return describe(self._replay.info(), self._replay.progress(), self._minimum)
        except BufferUnavailable:
            return None

    def _bar(self) -> None:
        columns = (
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task("starting", total=1.0)
            while not self._done.wait(POLL_SECONDS):
                if (state := self._poll()) is not None:
                    bar.update(task, completed=state[0], description=state[1])

    def _lines(self) -> None:
        shown = -1
        while not self._done.wait(POLL_SECONDS):
            state = self._poll()
            if state is not None and int(state[0] * LINES) > shown:
                shown = int(state[0] * LINES)
                self._console.print(f"{100 * state[0]:3.0f} %  {state[1]}", highlight=False)
