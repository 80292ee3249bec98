"""What a run shows while it works, and in the end: on a terminal, in a log, to a program, hardly.

``rich``: a bar and what there is to know, drawn anew every second. ``plain``: a line now and then.
``json``: an object a line on stdout, logs on stderr. ``quiet``: warnings and errors on stderr, the
summary on stdout. ``auto`` is ``rich`` on a terminal, else ``plain``.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from buffer.errors import SsdkdError
from buffer.logs import redacted
from deploy.outlook import State
from deploy.views import JsonView, PlainView, QuietView, RichView, View

POLL_SECONDS = 1.0


class Mode(StrEnum):
    """How a run is shown; see the module."""

    AUTO = "auto"
    RICH = "rich"
    PLAIN = "plain"
    JSON = "json"
    QUIET = "quiet"


class Output(Console):
    """A console that falls silent when nobody reads any more; rich's own would end the run."""

    def on_broken_pipe(self) -> None:
        """Called by rich."""
        self.quiet = True


class Display:
    """Shows a run from a background thread while it is entered.

    Args:
        view: what it looks like.
    """

    def __init__(self, view: View) -> None:
        self._view = view
        self._look: Callable[[], State] | None = None
        self._state = State()
        self._begun = time.monotonic()
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="display", daemon=True)

    def __enter__(self) -> Self:
        self._view.open()
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
        if isinstance(error, SsdkdError):
            self._view.failed(redacted(str(error)))
        self._view.close()

    @property
    def logs(self) -> Console:
        """Where logs go, so that they and the rest do not tear each other."""
        return self._view.logs

    @property
    def quiet(self) -> bool:
        """Whether nothing below a warning is to be shown."""
        return self._view.quiet

    def watch(self, look: Callable[[], State]) -> None:
        """Shows what a run is doing from now on, until :meth:`enter`."""
        with self._lock:
            self._look = look

    def enter(self, phase: str) -> None:
        """Shows that a run is in a phase which nobody looks at more closely."""
        with self._lock:
            self._look, self._state = None, self._state.halted(phase)
        self._show()

    def note(self, text: str) -> None:
        """Shows a line that stays."""
        with self._lock:
            self._view.note(text)

    def result(self, result: Mapping[str, Any], folder: Path) -> None:
        """Shows what a run came to."""
        self._done.set()
        self._thread.join()
        self._view.result(result, folder)

    def _run(self) -> None:
        while not self._done.wait(POLL_SECONDS):
            self._show()

    def _show(self) -> None:
        with self._lock:
            state = self._state if self._look is None else self._look()
            self._state = replace(state, elapsed_seconds=time.monotonic() - self._begun)
            self._view.show(self._state)


@contextmanager
def shown(mode: Mode) -> Iterator[Display]:
    """The display of a mode on this process' stdout and stderr, entered.

    In the modes ``json`` and ``quiet`` nothing else gets to stdout: what is printed there by
    whomever goes to stderr.
    """
    console, errors = Output(force_terminal=mode is Mode.RICH or None), Output(stderr=True)
    if mode is Mode.AUTO:
        fit = console.is_terminal and not console.is_dumb_terminal
        mode = Mode.RICH if fit else Mode.PLAIN
    if mode in (Mode.RICH, Mode.PLAIN):
        with Display(RichView(console) if mode is Mode.RICH else PlainView(console)) as display:
            yield display
        return
    out = sys.stdout
    with redirect_stdout(sys.stderr):
        view = JsonView(out, errors) if mode is Mode.JSON else QuietView(Output(file=out), errors)
        with Display(view) as display:
            yield display
