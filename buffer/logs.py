"""What services log: lines that name the level and the service, and how to read them back.

Why here: whoever gathers what all processes of a run print, as the pipeline does, has to tell these
lines from what else comes from there.
"""

from __future__ import annotations

import logging
import re
from typing import NamedTuple

CONTINUED = "    "
"""Begins the further lines of a message that has several."""
_LINE = re.compile(
    r"\S+ \S+ (DEBUG|INFO|WARNING|ERROR|CRITICAL) "
    r"((?:synthesizer|distiller)(?:-\d+)?|controller|exporter): (.*)"
)
_SECRETS = re.compile(r"(?i)(?<=://)[^\s/]+(?=@)|(?<=password=)[^\s&]+")


class Line(NamedTuple):
    """The first line of a message."""

    level: int
    """As :mod:`logging` has it."""
    service: str
    """``synthesizer-0``, ``distiller-0``, ``controller``, ``exporter``; without a number where the
    service was started on its own."""
    message: str


class Formatter(logging.Formatter):
    """``2026-01-31 12:00:00,000 WARNING synthesizer-0: what it says``, without passwords.

    Args:
        service: see :class:`Line`.
    """

    def __init__(self, service: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {service}: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The message; its further lines are indented."""
        return redacted(super().format(record)).replace("\n", f"\n{CONTINUED}")


def configure(level: str, service: str) -> None:
    """Has a process that nobody has configured log to stderr.

    Ray's libraries are heard from warnings on, or if all is.

    Args:
        level: ``run.log_level``.
        service: see :class:`Line`.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter(service))
    if level != "debug":
        handler.addFilter(_of_interest)
    logging.basicConfig(level=level.upper(), handlers=[handler])


def _of_interest(record: logging.LogRecord) -> bool:
    # Not by the logger's own level: Ray Train sets that after us.
    return record.levelno >= logging.WARNING or record.name.partition(".")[0] != "ray"


def read(line: str) -> Line | None:
    """What a service has logged; ``None`` for any other line."""
    found = _LINE.fullmatch(line)
    return found and Line(logging.getLevelNamesMapping()[found[1]], found[2], found[3])


def redacted(text: str) -> str:
    """Without user and password of the URLs in it.

    Messages name no secret; this is for those of others, which come with errors that nobody
    foresaw.
    """
    return _SECRETS.sub("***", text)


def brief(error: BaseException) -> str:
    """What went wrong in one line, without passwords: of an error that Ray brings, its cause.

    Ray's own text is the traceback there, its frames included.
    """
    cause = getattr(error, "cause", None) or error
    first = (str(cause).strip().splitlines() or ["no message"])[0]
    return redacted(first if cause is error else f"{type(cause).__name__}: {first}")
