"""How a run looks: on a terminal, in a log, to a program, to somebody who wants to see nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.constrain import Constrain
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.text import Text

from deploy.outlook import State

LINES = 10
"""Lines over a whole run, at least, where there is no terminal."""
LINE_SECONDS = 300.0
"""After so long without progress, one more."""
JSON_SECONDS = 2.0
BAR_WIDTH = 60
WAITING = {
    "synthesizers": "synthesizers wait for samples to be drawn",
    "distillers": "distillers wait for samples",
}


class View:
    """Nothing but what the run came to; the others show more. Called by one thread at a time.

    Args:
        console: takes it.
        logs: where logs go, so that they and the rest do not tear each other; default: there too.
    """

    quiet = False
    """Whether nothing below a warning is to be logged."""

    def __init__(self, console: Console, logs: Console | None = None) -> None:
        self._console, self.logs = console, logs or console

    def open(self) -> None:
        """Begins."""

    def show(self, state: State) -> None:
        """Shows how things are, if it is time to."""

    def note(self, text: str) -> None:
        """Shows a line that stays."""

    def result(self, result: Mapping[str, Any], folder: Path) -> None:
        """Shows what the run came to."""
        # Imported here: the command's --help needs no numpy.
        from deploy.report import summary

        self._console.print(summary(result, folder))

    def failed(self, reason: str) -> None:
        """Shows why the run ended, for whoever does not read the message on stderr."""

    def close(self) -> None:
        """Ends."""


class QuietView(View):
    """The summary, and logs from warnings on."""

    quiet = True


class PlainView(View):
    """A line for each tenth of a run and each phase, among the logs."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._shown: tuple[str, int] | None = None
        self._next = 0.0

    def show(self, state: State) -> None:
        """Shows a line if there is progress, or nothing was said for long."""
        reached = (state.phase, int(state.elapsed_share * LINES))
        if reached != self._shown or state.elapsed_seconds >= self._next:
            self._shown, self._next = reached, state.elapsed_seconds + LINE_SECONDS
            line = ", ".join([state.phase, *facts(state)])
            self.note(f"{100 * state.elapsed_share:3.0f} %  {line}")

    def note(self, text: str) -> None:
        """Shows a line; whoever reads it breaks it where it is too long."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class RichView(PlainView):
    """A bar and all there is to know, below the logs and drawn anew.

    Args:
        console: a terminal.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._live = Live(console=console, auto_refresh=False)

    def open(self) -> None:
        """Takes the terminal's lowest lines."""
        self._live.start()

    def show(self, state: State) -> None:
        """Draws."""
        self._live.update(drawn(state), refresh=True)

    def result(self, result: Mapping[str, Any], folder: Path) -> None:
        """Shows the summary below what was drawn last."""
        self.close()
        super().result(result, folder)

    def close(self) -> None:
        """Leaves the terminal as it is now."""
        self._live.stop()


class JsonView(View):
    """An object a line: ``{"event": "progress", ...}`` with the fields of :class:`State`.

    Besides ``{"event": "note", "text": ...}``, and as the last line either ``{"event": "result",
    "folder": ..., "result": ...}`` with what ``result.json`` holds, or ``{"event": "error",
    "error": ...}``. What is not finite is ``null``.

    Args:
        out: takes the lines.
        logs: for the logs.
    """

    def __init__(self, out: TextIO, logs: Console) -> None:
        super().__init__(logs)
        self._out = out
        self._phase: str | None = None
        self._next = 0.0

    def show(self, state: State) -> None:
        """Writes a line every two seconds and at each new phase."""
        if state.phase != self._phase or state.elapsed_seconds >= self._next:
            self._phase, self._next = state.phase, state.elapsed_seconds + JSON_SECONDS
            self._write("progress", asdict(state))

    def note(self, text: str) -> None:
        """Writes it."""
        self._write("note", {"text": text})

    def result(self, result: Mapping[str, Any], folder: Path) -> None:
        """Writes all of it."""
        self._write("result", {"folder": str(folder), "result": result})

    def failed(self, reason: str) -> None:
        """Writes why."""
        self._write("error", {"error": reason})

    def _write(self, event: str, fields: Mapping[str, Any]) -> None:
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in fields.items()
        }
        line = json.dumps({"event": event} | finite, allow_nan=False)
        with suppress(BrokenPipeError):  # a run goes on when nobody reads any more
            print(line, file=self._out, flush=True)


def drawn(state: State) -> RenderableType:
    """A run on a terminal of whatever width."""
    parts = [state.phase, f"{100 * state.elapsed_share:.0f} %", clock(state.elapsed_seconds)]
    if state.seconds_left is not None:
        parts.append(f"{clock(state.seconds_left)} left")
    return Group(
        Text("  ".join(parts), style="bold"),
        # Padded, because a bar by itself does not end its line.
        Padding(Constrain(ProgressBar(total=1.0, completed=state.elapsed_share), BAR_WIDTH), 0),
        *(Text(fact) for fact in facts(state)),
    )


def facts(state: State) -> list[str]:
    """What is known of a run but its phase, in short lines."""
    found = []
    if state.phase == "preparing" and state.prepared_share is not None:
        found.append(f"the method is prepared to {100 * state.prepared_share:.0f} %")
    if state.phase == "filling":
        found.append(f"{min(state.size, state.size_needed)} of {state.size_needed} samples")
    if state.agreement is not None and state.kl is not None:
        found.append(
            f"step {state.step}, agreement {100 * state.agreement:.1f} %, KL {state.kl:.3f}"
        )
    if state.inverted:
        found.append(
            f"inverted {state.inverted}{_rate(state.inverted_per_second)}, "
            f"drawn {state.drawn}{_rate(state.drawn_per_second)}"
        )
    if (idle := _idle(state)) is not None:
        found.append(idle)
    if state.synthesizers_wanted:
        found.append(f"{state.synthesizers} of {state.synthesizers_wanted} synthesizers at work")
    return found


def clock(seconds: float) -> str:
    """``h:mm:ss``."""
    return str(timedelta(seconds=round(seconds)))


def _rate(per_second: float | None) -> str:
    return "" if per_second is None else f" ({per_second:.0f}/s)"


def _idle(state: State) -> str | None:
    """Who waits for whom; ``None`` as long as nobody has worked."""
    synthesizers, distillers = (
        "?" if share is None else f"{100 * share:.0f} %"
        for share in (state.synthesizer_idle_share, state.distiller_idle_share)
    )
    if synthesizers == distillers == "?":
        return None
    idle = f"idle: synthesizers {synthesizers}, distillers {distillers}"
    return idle if state.waiting is None else f"{idle}: {WAITING[state.waiting]}"
