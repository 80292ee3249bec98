"""The logs of all processes of a run as one stream, each line with the name of whose it is.

Ray brings what actors print, line by line, and prints it itself, among its own. Here the lines that
services have logged go through this process' :mod:`logging` instead, and so does the rest of what
Ray would print, at level ``debug``. For that a function of Ray's is replaced that has no public
twin: ``tests/deploy/test_logs.py`` notices when another version of Ray has none of that name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from buffer.logs import CONTINUED, read, redacted

OURS = ("buffer", "deploy", "distiller", "synthesizer")
STYLES = {"DEBUG": "dim", "INFO": "blue", "WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}

logger = logging.getLogger(__name__)


class ConsoleHandler(logging.Handler):
    """Shows time, level, service and message, without passwords.

    Args:
        console: where.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(message)s"))
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Shows a message."""
        line = Text.assemble(
            (f"{datetime.fromtimestamp(record.created):%H:%M:%S} ", "dim"),
            (f"{record.levelname} ", STYLES.get(record.levelname, "")),
            (f"{_service(record)}: ", "bold"),
            redacted(self.format(record)),
        )
        self._console.print(line, soft_wrap=True)


def configure(level: str, console: Console) -> None:
    """Has this process show what it logs.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        console: where.
    """
    logging.basicConfig(level=level.upper(), handlers=[ConsoleHandler(console)])


def ray_level(level: str) -> int:
    """The level of Ray's own logs: warnings are what a user has to know, unless it is all."""
    chosen = logging.getLevelNamesMapping()[level.upper()]
    return chosen if chosen == logging.DEBUG else max(chosen, logging.WARNING)


@contextmanager
def forwarded() -> Iterator[None]:
    """Has what Ray brings from other processes logged here; enter before Ray is started."""
    import ray._private.worker as worker

    own = logging.getLogger("ray")
    handlers, printing = own.handlers[:], worker.print_to_stdstream
    own.handlers.clear()
    own.propagate = True
    worker.print_to_stdstream = Forwarding().take
    try:
        yield
    finally:
        worker.print_to_stdstream = printing
        own.handlers[:] = handlers
        own.propagate = False


class Forwarding:
    """Takes what other processes print, and logs it."""

    def __init__(self) -> None:
        self._last: dict[tuple[Any, Any], tuple[int, str]] = {}

    def take(self, data: Mapping[str, Any], ignore_prefix: bool = False) -> None:
        """Takes some lines of one process.

        Args:
            data: of Ray's: ``lines``, ``ip``, ``pid``, and whose they are.
            ignore_prefix: Ray's, of no use here.
        """
        source = (data.get("ip"), data.get("pid"))
        for text in data["lines"]:
            if (line := read(text)) is not None:
                self._last[source] = (line.level, line.service)
                self._log(line.level, line.service, line.message)
            elif text.startswith(CONTINUED) and source in self._last:
                self._log(*self._last[source], text)
            else:
                self._last.pop(source, None)
                whose = data.get("actor_name") or data.get("task_name") or "process"
                self._log(logging.DEBUG, f"{whose} ({data.get('pid')})", text)

    @staticmethod
    def _log(level: int, service: str, message: str) -> None:
        logger.log(level, "%s", message, extra={"service": service})


def _service(record: logging.LogRecord) -> str:
    """Who has logged something, here or elsewhere."""
    package = record.name.partition(".")[0]
    return str(getattr(record, "service", "pipeline" if package in OURS else package))
