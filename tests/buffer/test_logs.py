from __future__ import annotations

import logging
import subprocess
import sys

import pytest
from ray.exceptions import RayTaskError

from buffer.errors import SchemaError
from buffer.logs import CONTINUED, Formatter, Line, brief, read, redacted


def logged(message: str, level: int = logging.WARNING, service: str = "synthesizer-0") -> list[str]:
    record = logging.LogRecord("buffer.replay", level, "", 0, message, None, None)
    return Formatter(service).format(record).splitlines()


@pytest.mark.parametrize(
    "service", ["synthesizer", "synthesizer-12", "distiller-0", "controller", "exporter"]
)
def test_what_a_service_logs_is_read_back(service: str) -> None:
    (line,) = logged("the buffer is away: no answer", logging.ERROR, service)
    assert read(line) == Line(logging.ERROR, service, "the buffer is away: no answer")


def test_further_lines_of_a_message_are_indented() -> None:
    first, *rest = logged("one\ntwo\n  three")
    assert read(first) == Line(logging.WARNING, "synthesizer-0", "one")
    assert rest == [f"{CONTINUED}two", f"{CONTINUED}  three"]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "WARNING:root:what logging says by itself",
        "2026-01-31 12:00:00,000 WARNING worker.py:2021 -- what Ray says",
        "2026-01-31 12:00:00,000 WARNING somebody: what another library says",
        "Started training worker group of size 1:",
    ],
)
def test_what_others_print_is_not_taken_for_a_service_s(line: str) -> None:
    assert read(line) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at redis://user:pa@ss@host:6379/0 now", "at redis://***@host:6379/0 now"),
        ("rediss://host?password=secret&db=1", "rediss://host?password=***&db=1"),
        ("rediss://host?ssl_Password=secret", "rediss://host?ssl_Password=***"),
        ("redis://host:6379", "redis://host:6379"),
        ("mail me@host", "mail me@host"),
    ],
)
def test_no_line_shows_a_password(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert logged(text)[0].endswith(shown)


def test_an_error_from_elsewhere_is_told_by_its_cause_without_the_traceback() -> None:
    cause = SchemaError("the sample is damaged\nand more")
    error = RayTaskError("run", "Traceback (most recent call last): ...", cause)
    assert brief(error) == "SchemaError: the sample is damaged"
    assert brief(error.as_instanceof_cause()) == "SchemaError: the sample is damaged"
    assert brief(ValueError("first\nsecond")) == "first"
    assert brief(ValueError()) == "no message"


def test_an_error_in_one_line_shows_no_password_either() -> None:
    error = RuntimeError("no answer from redis://user:secret@host")
    assert brief(error) == "no answer from redis://***@host"
    of_ray = RayTaskError("run", "Traceback (most recent call last): ...", error)
    assert brief(of_ray) == "RuntimeError: no answer from redis://***@host"


def test_a_process_logs_from_the_level_that_is_chosen() -> None:
    program = (
        "import logging; from buffer.logs import configure; configure('info', 'controller')\n"
        "logging.getLogger('a').debug('unheard'); logging.getLogger('a').info('heard')\n"
        "logging.getLogger('ray.train').info('a checkpoint was reported')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    assert read(line) == Line(logging.INFO, "controller", "heard")
