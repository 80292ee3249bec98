"""One stream of what all processes of a run log."""

from __future__ import annotations

import inspect
import io
import logging
import re
import time
from collections.abc import Iterator

import pytest
import ray
import ray._private.worker
from rich.console import Console

from buffer.logs import Formatter
from deploy.logs import ConsoleHandler, Forwarding, forwarded, ray_level


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What is shown, from level info on."""
    shown, root = io.StringIO(), logging.getLogger()
    handler, level = ConsoleHandler(Console(file=shown, width=60)), root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield shown
    root.setLevel(level)
    root.removeHandler(handler)


def lines(stream: io.StringIO) -> list[str]:
    """What is shown, without the time."""
    return [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in stream.getvalue().splitlines()]


def said(message: str, level: int = logging.WARNING, service: str = "synthesizer-0") -> list[str]:
    """The lines that a service prints."""
    record = logging.LogRecord("buffer.replay", level, "", 0, message, None, None)
    return Formatter(service).format(record).splitlines()


def batch(*printed: str, pid: int = 7) -> dict[str, object]:
    return {"lines": list(printed), "ip": "10.0.0.1", "pid": pid, "actor_name": "RayTrainWorker"}


def test_a_line_says_who_logged_it(stream: io.StringIO) -> None:
    logging.getLogger("deploy.supervisor").warning("a [bold] word, and %s", "x" * 80)
    with forwarded():
        logging.getLogger("ray.train").error("no room")
    assert lines(stream) == [
        f"WARNING pipeline: a [bold] word, and {'x' * 80}",
        "ERROR ray: no room",
    ]


def test_no_line_shows_a_password(stream: io.StringIO) -> None:
    logging.getLogger("deploy").warning("at redis://user:secret@host:1")
    assert lines(stream) == ["WARNING pipeline: at redis://***@host:1"]


def test_what_services_log_is_shown_under_their_names_and_the_rest_is_not(
    stream: io.StringIO,
) -> None:
    forwarding = Forwarding()
    forwarding.take(batch("Started training worker group of size 1:", *said("one\ntwo")))
    forwarding.take(batch(*said("of another", service="distiller-1"), pid=8))
    forwarding.take(batch("    three", "    four", "free", "    of whoever printed that"))
    forwarding.take(batch(*said("unheard", logging.DEBUG), *said("end", logging.INFO)))
    assert lines(stream) == [
        "WARNING synthesizer-0: one",
        "WARNING synthesizer-0:     two",
        "WARNING distiller-1: of another",
        "WARNING synthesizer-0:     three",
        "WARNING synthesizer-0:     four",
        "INFO synthesizer-0: end",
    ]


def test_at_level_debug_the_rest_is_shown_too(stream: io.StringIO) -> None:
    logging.getLogger().setLevel(logging.DEBUG)
    Forwarding().take(batch("Started training worker group of size 1:"))
    assert lines(stream) == ["DEBUG RayTrainWorker (7): Started training worker group of size 1:"]


def test_ray_s_own_logs_are_shown_from_warnings_on() -> None:
    levels = {level: ray_level(level) for level in ("debug", "info", "warning", "error")}
    assert levels == {"debug": 10, "info": 30, "warning": 30, "error": 40}


def test_ray_has_the_function_that_is_replaced_and_gets_it_back() -> None:
    worker = ray._private.worker
    printing = worker.print_to_stdstream
    parameters = list(inspect.signature(printing).parameters)
    assert parameters == ["data", "ignore_prefix"]
    assert parameters == list(inspect.signature(Forwarding().take).parameters)
    with forwarded():
        assert worker.print_to_stdstream != printing
    assert worker.print_to_stdstream is printing


@pytest.mark.integration
def test_what_an_actor_logs_gets_here_and_what_ray_says_does_not(
    stream: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    class Service:
        def speak(self) -> None:
            from buffer.logs import configure

            print("noise", flush=True)
            configure("info", "controller")
            logging.getLogger("buffer").warning("a warning")
            logging.getLogger("buffer").info("the last")

    with forwarded():
        ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=True)
        try:
            ray.get(ray.remote(Service).remote().speak.remote())  # type: ignore[attr-defined]
            deadline = time.monotonic() + 20
            while "the last" not in stream.getvalue() and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            ray.shutdown()
    ours = [line for line in lines(stream) if "ray:" not in line]
    assert ours == ["WARNING controller: a warning", "INFO controller: the last"]
    printed = capfd.readouterr()
    assert "noise" not in printed.out + printed.err
